//! One service: its ports, and who is behind each of them.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

use archipelago_agent::catalog::{self, Check, Endpoint, Port};
use archipelago_model::service::ServiceProtocol;
use archipelago_proto::v1::ExportFacts;

use crate::types::{EndpointSlice, MANAGED_BY_US, Service, ServicePort, ServiceType, SliceEndpoint, Transport};

/// What the federation gets of an exported Service; `None` if there is nothing that it could reach.
pub(super) fn derive(
    service: &Service,
    slices: &[&EndpointSlice],
    version: impl Fn(&Arc<str>) -> Option<Arc<str>>,
    export: &Arc<ExportFacts>,
) -> Option<catalog::Service> {
    // A name for something outside has no endpoints, and what stands for an import is not ours to offer.
    if service.kind == ServiceType::ExternalName || service.stands_for_import() {
        return None;
    }
    let slices: Vec<_> = slices.iter().filter(|slice| slice.managed_by.as_deref() != Some(MANAGED_BY_US)).collect();
    let is_ipv6_first = service.ip_families.first().is_some_and(|family| &**family == "IPv6");
    let port = |port: &ServicePort| {
        let found = slices.iter().flat_map(|slice| behind(slice, port)).collect();
        Port {
            name: port.name.to_string(),
            port: port.port,
            protocol: protocol(port),
            app_protocol: port.app_protocol.as_deref().unwrap_or_default().to_owned(),
            endpoints: endpoints(found, is_ipv6_first, &version),
        }
    };
    let ports: Vec<Port> = service.ports.iter().filter(|port| port.transport == Transport::Tcp).map(port).collect();
    (!ports.is_empty()).then(|| catalog::Service {
        ports,
        exported: true,
        check: Check::Provider,
        origin: String::new(),
        export: Some(Arc::clone(export)),
    })
}

/// What is spoken at a port: `appProtocol` where it says something that we know, else the first part of the port's name as
/// Istio and others read it, else bytes.
#[must_use]
pub fn protocol(port: &ServicePort) -> ServiceProtocol {
    match port.app_protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("http" | "kubernetes.io/ws") => return ServiceProtocol::Http,
        Some("kubernetes.io/h2c" | "grpc" | "http2") => return ServiceProtocol::H2c,
        // Encrypted end to end, or something else that somebody names: then its name is no better a guess.
        Some(_) => return ServiceProtocol::Tcp,
        None => {}
    }
    match port.name.split('-').next() {
        Some("http2" | "grpc") => ServiceProtocol::H2c,
        Some("http") => ServiceProtocol::Http,
        _ => ServiceProtocol::Tcp,
    }
}

/// Endpoints of a slice at a port of the Service. The slice says under the port's name where each target port is.
fn behind<'a>(slice: &'a EndpointSlice, port: &ServicePort) -> impl Iterator<Item = (SocketAddr, &'a SliceEndpoint)> {
    let target = slice.ports.iter().find(|target| target.name == port.name && target.transport == port.transport);
    let target = target.map(|target| target.port);
    target.into_iter().flat_map(|target| {
        slice.endpoints.iter().map(move |endpoint| (SocketAddr::new(endpoint.address, target), endpoint))
    })
}

fn endpoints(
    found: Vec<(SocketAddr, &SliceEndpoint)>,
    is_ipv6_first: bool,
    version: impl Fn(&Arc<str>) -> Option<Arc<str>>,
) -> Vec<Endpoint> {
    // While slices are rebalanced an endpoint can be in two of them; the better one counts, as for kube-proxy.
    let mut unique: BTreeMap<SocketAddr, &SliceEndpoint> = BTreeMap::new();
    for (address, endpoint) in found {
        match unique.entry(address) {
            Entry::Vacant(entry) => {
                entry.insert(endpoint);
            }
            Entry::Occupied(mut entry) if rank(endpoint) > rank(entry.get()) => {
                entry.insert(endpoint);
            }
            Entry::Occupied(_) => {}
        }
    }
    // A pod with addresses of both families is in slices of both, and is one endpoint: that of the Service's first family.
    let is_first = |address: &SocketAddr| address.is_ipv6() == is_ipv6_first;
    if !unique.keys().all(is_first) {
        let first = unique.iter().filter(|(address, _)| is_first(address));
        let pods: BTreeSet<Arc<str>> = first.filter_map(|(_, endpoint)| endpoint.pod.clone()).collect();
        unique.retain(|address, endpoint| {
            is_first(address) || endpoint.pod.as_ref().is_none_or(|pod| !pods.contains(pod))
        });
    }
    // Pods that are going still serve, and are better than nobody (KEP-1669); then it matters no more where they are.
    let any_ready = unique.values().any(|endpoint| endpoint.ready);
    let is_ready = |endpoint: &SliceEndpoint| match any_ready {
        true => endpoint.ready,
        false => endpoint.serving && endpoint.terminating,
    };
    let endpoint = |(address, endpoint): (SocketAddr, &SliceEndpoint)| Endpoint {
        address,
        version: endpoint.pod.as_ref().and_then(&version).unwrap_or_default(),
        instance: endpoint.pod.clone().unwrap_or_default(),
        ready: is_ready(endpoint),
        locality: endpoint.locality.clone().filter(|_| any_ready),
    };
    unique.into_iter().map(endpoint).collect()
}

fn rank(endpoint: &SliceEndpoint) -> (bool, bool, bool) {
    (endpoint.ready, endpoint.serving, !endpoint.terminating)
}
