use std::{net::IpAddr, sync::Arc};

use archipelago_agent::catalog::Locality;
use serde::Deserialize;

use super::{Kind, Meta, Names, Resource, SLICE_MANAGED_BY, Transport};

/// A slice of the endpoints of one Service, of one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Label `kubernetes.io/service-name`; a slice without one belongs to no Service and is not kept.
    pub service: Arc<str>,
    /// Label `endpointslice.kubernetes.io/managed-by`.
    pub managed_by: Option<Arc<str>>,
    /// What all of its endpoints listen on.
    pub ports: Box<[SlicePort]>,
    /// Where.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// A port as endpoints have it: what a Service's target port was resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// That of the Service's port.
    pub name: Arc<str>,
    /// Where endpoints listen.
    pub port: u16,
    /// By what.
    pub transport: Transport,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses: the others are the same endpoint's, and clients need none of them.
    pub address: IpAddr,
    /// `conditions.ready`; not said: it is.
    pub ready: bool,
    /// `conditions.serving`; not said: as ready.
    pub serving: bool,
    /// `conditions.terminating`; not said: it is not.
    pub terminating: bool,
    /// Name of the pod behind it.
    pub pod: Option<Arc<str>>,
    /// Node it is on.
    pub node: Option<Arc<str>>,
    /// Its zone, and `hints`: for whom it is meant.
    pub locality: Option<Arc<Locality>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
/// As the API server sends it.
pub struct Raw {
    metadata: Meta,
    address_type: String,
    ports: Option<Vec<RawPort>>,
    endpoints: Option<Vec<RawEndpoint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawEndpoint {
    addresses: Vec<String>,
    conditions: RawConditions,
    node_name: Option<String>,
    zone: Option<String>,
    hints: Option<RawHints>,
    target_ref: Option<RawTarget>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawHints {
    for_zones: Option<Vec<RawHint>>,
    for_nodes: Option<Vec<RawHint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawHint {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawTarget {
    kind: String,
    name: String,
}

impl Kind for EndpointSlice {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "discovery.k8s.io", version: "v1", plural: "endpointslices" };

    fn keep(raw: Raw, names: &mut Names) -> Option<Self> {
        let Raw { metadata, address_type, ports, endpoints } = raw;
        // `FQDN` slices hold names, and nobody but their maker knows what for.
        if !matches!(address_type.as_str(), "IPv4" | "IPv6") {
            return None;
        }
        let service = names.intern(metadata.labels.get("kubernetes.io/service-name")?);
        let managed_by = names.intern_some(metadata.labels.get(SLICE_MANAGED_BY));
        let ports = ports.unwrap_or_default().iter().filter_map(|port| SlicePort::keep(port, names)).collect();
        let endpoints = endpoints.unwrap_or_default();
        let endpoints = endpoints.iter().filter_map(|endpoint| SliceEndpoint::keep(endpoint, names)).collect();
        Some(Self { service, managed_by, ports, endpoints })
    }
}

impl SlicePort {
    /// A port without a number means "any", which no client can connect to.
    fn keep(raw: &RawPort, names: &mut Names) -> Option<Self> {
        Some(Self {
            name: names.intern(raw.name.as_deref().unwrap_or_default()),
            port: u16::try_from(raw.port?).ok().filter(|port| *port != 0)?,
            transport: Transport::parse(raw.protocol.as_deref())?,
        })
    }
}

impl SliceEndpoint {
    fn keep(raw: &RawEndpoint, names: &mut Names) -> Option<Self> {
        let pod = raw.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let ready = raw.conditions.ready.unwrap_or(true);
        Some(Self {
            address: raw.addresses.first()?.parse().ok()?,
            ready,
            serving: raw.conditions.serving.unwrap_or(ready),
            terminating: raw.conditions.terminating.unwrap_or(false),
            // Of one slice alone, so there is nothing to share.
            pod: pod.map(|pod| pod.name.as_str().into()),
            node: names.intern_some(raw.node_name.as_deref()),
            locality: locality(raw, names),
        })
    }
}

fn locality(raw: &RawEndpoint, names: &mut Names) -> Option<Arc<Locality>> {
    let mut texts = |list: Option<&Vec<RawHint>>| {
        let list = list.into_iter().flatten();
        list.filter_map(|hint| names.intern_some(Some(hint.name.as_str()))).collect()
    };
    let hints = raw.hints.as_ref();
    let for_zones = texts(hints.and_then(|hints| hints.for_zones.as_ref()));
    let for_nodes = texts(hints.and_then(|hints| hints.for_nodes.as_ref()));
    let zone = names.intern_some(raw.zone.as_deref());
    names.intern_locality(Locality { zone, for_zones, for_nodes })
}
