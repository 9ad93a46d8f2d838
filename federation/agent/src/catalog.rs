//! The services of a cluster, whoever provides them.

use std::{collections::BTreeMap, net::SocketAddr};

use archipelago_model::{
    id::ServiceKey,
    service::{ActiveCheck, ServiceProtocol},
};

/// All services of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Complete.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The source has been read since the start; until then an absent service may just not have been found yet.
    pub read: bool,
}

/// A service and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Port under which clients know it.
    pub port: u16,
    /// What its endpoints speak.
    pub protocol: ServiceProtocol,
    /// The cluster itself offers it to the others.
    pub exported: bool,
    /// Where it runs; may be empty.
    pub endpoints: Vec<Endpoint>,
    /// Who says whether an endpoint is ready.
    pub check: Check,
    /// What it came from, in the provider's words: it alone reads this, to find its way back after a restart.
    pub origin: String,
}

/// One place where a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Version of the service there.
    pub version: String,
    /// Name of the instance, for logs.
    pub instance: String,
    /// What the provider says of it; counts with [`Check::Provider`].
    pub ready: bool,
}

/// How to tell that an endpoint is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The provider knows.
    Provider,
    /// Ask, and believe the answers.
    Active(ActiveCheck),
}
