//! The services of a cluster, whoever provides them.

use std::{net::SocketAddr, sync::Arc};

use archipelago_model::{
    id::ServiceKey,
    service::{ActiveCheck, ServiceProtocol},
};
use archipelago_proto::v1::ExportFacts;
use imbl::OrdMap;

/// All services of a cluster at one moment.
///
/// A copy costs nothing, and a provider that changes one service shares the others with the catalog before: whoever follows
/// a catalog looks only at services that are not the same `Arc` any more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// Complete.
    pub services: OrdMap<ServiceKey, Arc<Service>>,
    /// The source has been read since the start; until then an absent service may just not have been found yet.
    pub read: bool,
}

/// A service and where it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Never empty, in the provider's order, each number once. The first is the one that readers see who know of one port.
    pub ports: Vec<Port>,
    /// The cluster itself offers it to the others.
    pub exported: bool,
    /// Who says whether an endpoint is ready, on every port.
    pub check: Check,
    /// What it came from, in the provider's words: it alone reads this, to find its way back after a restart.
    pub origin: String,
    /// What a Multi-Cluster Services export says beyond ports, for providers that know such a thing.
    pub export: Option<Arc<ExportFacts>>,
}

/// A port of a service; its number identifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Empty where the source has no names for ports.
    pub name: String,
    /// Port under which clients know it.
    pub port: u16,
    /// What its endpoints speak.
    pub protocol: ServiceProtocol,
    /// What the source itself calls the protocol (`appProtocol`), as it is written there; empty when it says nothing.
    pub app_protocol: String,
    /// Where it runs; may be empty.
    pub endpoints: Vec<Endpoint>,
}

/// One place where a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Version of the service there. Many have the same, so it is shared.
    pub version: Arc<str>,
    /// Name of the instance, for logs. Shared with whatever else the provider knows of it.
    pub instance: Arc<str>,
    /// What the provider says of it; counts with [`Check::Provider`].
    pub ready: bool,
    /// Where it stands; `None`: nothing is known. Shared by all endpoints of which the same is known.
    pub locality: Option<Arc<Locality>>,
}

/// Where endpoints stand, and which clients should prefer them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locality {
    /// Zone that they are in.
    pub zone: Option<Arc<str>>,
    /// Zones whose clients they are meant for; empty: nobody has said.
    pub for_zones: Box<[Arc<str>]>,
    /// Nodes whose clients they are meant for; empty: nobody has said.
    pub for_nodes: Box<[Arc<str>]>,
}

impl Locality {
    /// In `zone`, and meant for its own zone if the service wants to stay in it.
    #[must_use]
    pub fn in_zone(zone: Arc<str>, stays: bool) -> Self {
        let for_zones = if stays { [Arc::clone(&zone)].into() } else { Box::default() };
        Self { zone: Some(zone), for_zones, for_nodes: Box::default() }
    }
}

/// Everything that endpoints of a service say of where they are, each once, in an order of its own.
pub(crate) struct Localities<'a>(Vec<&'a Locality>);

impl<'a> Localities<'a> {
    pub(crate) fn of(service: &'a Service) -> Self {
        let endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
        let mut all: Vec<&Locality> = endpoints.filter_map(|endpoint| endpoint.locality.as_deref()).collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// The place of one of them, counted from 1; 0: nothing is known.
    pub(crate) fn place(&self, locality: Option<&Locality>) -> u32 {
        let place = locality.and_then(|locality| self.0.binary_search(&locality).ok());
        place.and_then(|place| u32::try_from(place + 1).ok()).unwrap_or(0)
    }

    pub(crate) fn as_slice(&self) -> &[&'a Locality] {
        &self.0
    }
}

/// How to tell that an endpoint is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The provider knows.
    Provider,
    /// Ask, and believe the answers.
    Active(ActiveCheck),
}
