use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{Kind, Meta, Names, Resource};

/// A node: how it is reached from inside of the cluster, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its `InternalIP` addresses, in its own order; at most one of each family by the API's rules.
    pub addresses: Vec<IpAddr>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
/// As the API server sends it.
pub struct Raw {
    metadata: Meta,
    status: RawStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    addresses: Vec<RawAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAddress {
    r#type: String,
    address: String,
}

impl Kind for Node {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "", version: "v1", plural: "nodes" };

    fn keep(raw: Raw, names: &mut Names) -> Option<Self> {
        let internal = raw.status.addresses.iter().filter(|address| address.r#type == "InternalIP");
        let addresses = internal.filter_map(|address| address.address.parse().ok()).collect();
        Some(Self { addresses, zone: names.intern_some(raw.metadata.labels.get("topology.kubernetes.io/zone")) })
    }
}
