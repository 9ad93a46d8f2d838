//! The Service and the slices that lead an import's clients to the gateway of their own node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use archipelago_agent::catalog::Locality;
use archipelago_model::service::ServiceProtocol;
use serde_json::{Value, json};

use super::{
    names::{self, PortKey},
    ports::Allocator,
};
use crate::{
    crd::ImportPort,
    discovery,
    types::{
        APP, EndpointSlice, Key, MANAGED_BY, MANAGED_BY_US, Node, Pod, SLICE_MANAGED_BY, Service, ServicePort,
        ServiceType, SliceEndpoint, SlicePort, Transport,
    },
    watch::Objects,
};

/// Label with the name of the import that a derived Service stands for.
pub(super) const IMPORTED_NAME: &str = "multicluster.kubernetes.io/service-name";

/// A node that a gateway runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Zone of the node.
    pub locality: Option<Arc<Locality>>,
    /// A gateway there takes connections.
    pub is_ready: bool,
}

/// Nodes with a gateway: a pod of the gateways' ServiceAccount in the namespace of this installation.
#[must_use]
pub fn gateways(nodes: &Objects<Node>, pods: &Objects<Pod>, namespace: &str) -> BTreeMap<Arc<str>, Gateway> {
    let mut gateways: BTreeMap<Arc<str>, Gateway> = BTreeMap::new();
    let ours = pods.range(Key::new(namespace, "")..).take_while(|(key, _)| &*key.namespace == namespace);
    for (_, pod) in ours.filter(|(_, pod)| &*pod.who.service_account == GATEWAY_ACCOUNT && !pod.is_over) {
        let Some(name) = &pod.node else { continue };
        let Some(node) = nodes.get(&Key::new("", name.clone())) else { continue };
        let gateway = gateways.entry(name.clone()).or_insert_with(|| Gateway {
            addresses: node.addresses.clone(),
            locality: node.zone.clone().map(|zone| Arc::new(Locality::in_zone(zone, false))),
            is_ready: false,
        });
        // Beside one that is going there may be its successor; while there is none, the old one still takes connections.
        gateway.is_ready |= pod.is_ready;
    }
    gateways
}

/// A TCP or other port of an import, as far as anything can be made of it.
pub(super) fn usable(ports: &[ImportPort]) -> impl Iterator<Item = (u16, Transport, &ImportPort)> {
    ports.iter().filter_map(|port| {
        let number = u16::try_from(port.port).ok().filter(|port| *port != 0)?;
        Some((number, Transport::parse(Some(&port.protocol))?, port))
    })
}

/// What is spoken at a port of an import.
pub(super) fn protocol(port: &ImportPort) -> ServiceProtocol {
    discovery::protocol(&ServicePort {
        name: port.name.as_str().into(),
        port: 0,
        transport: Transport::Tcp,
        app_protocol: port.app_protocol.as_deref().map(Into::into),
    })
}

/// The body of the derived Service. It has no selector, and every port of the import: one that nobody serves is refused at
/// once by kube-proxy, which is better than silence. `addresses`: which to ask for; empty: any.
pub(super) fn service(
    key: &Key,
    import_name: &str,
    import_uid: &str,
    ports: &[ImportPort],
    addresses: &[String],
) -> Value {
    let ports: Vec<Value> = usable(ports)
        .map(|(port, transport, _)| {
            json!({ "name": names::port(transport, port), "port": port, "protocol": transport.as_str() })
        })
        .collect();
    let mut body = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": { MANAGED_BY: APP, IMPORTED_NAME: import_name },
            "ownerReferences": [{
                "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "name": import_name, "uid": import_uid,
                "controller": true, "blockOwnerDeletion": false,
            }],
        },
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "internalTrafficPolicy": "Local",
            "ports": ports,
        },
    });
    if let (Some(first), Some(spec)) = (addresses.first(), body.get_mut("spec").and_then(Value::as_object_mut)) {
        spec.insert("clusterIP".into(), json!(first));
        spec.insert("clusterIPs".into(), json!(addresses));
    }
    body
}

/// Whether a Service is one of ours that stands for an import.
pub(super) fn is_ours(service: &Service) -> bool {
    service.managed_by.as_deref() == Some(APP) && service.imported_name.is_some()
}

/// Whether the derived Service is as [`service`] would make it.
pub(super) fn is_right(service: &Service, import_name: &str, import_uid: &str, ports: &[ImportPort]) -> bool {
    let found: BTreeSet<(&str, u16, Transport)> =
        service.ports.iter().map(|port| (&*port.name, port.port, port.transport)).collect();
    let wanted: Vec<(String, u16, Transport)> =
        usable(ports).map(|(port, transport, _)| (names::port(transport, port), port, transport)).collect();
    let wanted: BTreeSet<(&str, u16, Transport)> =
        wanted.iter().map(|(name, port, transport)| (name.as_str(), *port, *transport)).collect();
    is_ours(service)
        && service.imported_name.as_deref() == Some(import_name)
        && service.kind == ServiceType::ClusterIp
        && service.internal_traffic_policy.as_deref() == Some("Local")
        && service.owner.as_ref().is_some_and(|(_, _, uid)| &**uid == import_uid)
        && found == wanted
}

/// The slices of a derived Service, by name: one per family and thousand nodes.
pub(super) fn slices(
    key: &Key,
    import: &PortKeyOf<'_>,
    service: &Service,
    gateways: &BTreeMap<Arc<str>, Gateway>,
    allocator: &Allocator,
) -> BTreeMap<Key, EndpointSlice> {
    let mut ports: Vec<SlicePort> = usable(import.ports)
        .filter(|(_, transport, _)| *transport == Transport::Tcp)
        .filter_map(|(port, transport, _)| {
            let listen = allocator.port(&import.key(port))?;
            Some(SlicePort { name: names::port(transport, port).into(), port: listen, transport })
        })
        .collect();
    ports.sort_by(|one, other| one.name.cmp(&other.name));
    let mut slices = BTreeMap::new();
    if ports.is_empty() {
        return slices;
    }
    for family in &service.ip_families {
        let of_family = |ip: &&IpAddr| if &**family == "IPv6" { ip.is_ipv6() } else { ip.is_ipv4() };
        let endpoints: Vec<SliceEndpoint> = gateways
            .iter()
            .filter_map(|(node, gateway)| {
                Some(SliceEndpoint {
                    address: *gateway.addresses.iter().find(of_family)?,
                    ready: gateway.is_ready,
                    serving: gateway.is_ready,
                    terminating: false,
                    pod: None,
                    node: Some(node.clone()),
                    locality: gateway.locality.clone(),
                })
            })
            .collect();
        // Without any endpoint there is one slice all the same: it holds the ports.
        let chunks: Vec<&[SliceEndpoint]> =
            if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(ENDPOINTS_MAX).collect() };
        for (index, endpoints) in chunks.into_iter().enumerate() {
            let name = names::slice(&key.name, family, index);
            let slice = EndpointSlice {
                service: key.name.clone(),
                managed_by: Some(MANAGED_BY_US.into()),
                ports: ports.clone().into(),
                endpoints: endpoints.into(),
            };
            slices.insert(Key::new(key.namespace.clone(), name), slice);
        }
    }
    slices
}

/// An import and its ports.
pub(super) struct PortKeyOf<'a> {
    pub(super) namespace: &'a Arc<str>,
    pub(super) name: &'a Arc<str>,
    pub(super) ports: &'a [ImportPort],
}

impl PortKeyOf<'_> {
    pub(super) fn key(&self, port: u16) -> PortKey {
        (archipelago_model::id::ServiceKey { namespace: self.namespace.clone(), name: self.name.clone() }, port)
    }
}

/// The body of a slice.
pub(super) fn slice(key: &Key, slice: &EndpointSlice, family: &str, owner_uid: &str) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|port| json!({ "name": port.name, "port": port.port, "protocol": port.transport.as_str() }))
        .collect();
    let endpoints: Vec<Value> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let mut body = json!({
                "addresses": [endpoint.address],
                "conditions": { "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating },
                "nodeName": endpoint.node,
            });
            let zone = endpoint.locality.as_ref().and_then(|locality| locality.zone.as_ref());
            if let (Some(zone), Some(body)) = (zone, body.as_object_mut()) {
                body.insert("zone".into(), json!(zone));
            }
            body
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": {
                MANAGED_BY: APP,
                "kubernetes.io/service-name": slice.service,
                SLICE_MANAGED_BY: MANAGED_BY_US,
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": slice.service, "uid": owner_uid,
                "controller": true, "blockOwnerDeletion": false,
            }],
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

const GATEWAY_ACCOUNT: &str = "archipelago-gateway";
/// Of the API.
const ENDPOINTS_MAX: usize = 1_000;
