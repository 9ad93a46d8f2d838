//! What `Fleet.Services` answers: exports from the replicated state, counts from the agents' sessions. Pure.

use std::collections::BTreeMap;

use archipelago_federation::{
    compile::{self, FederationState},
    resource::{Resource, TrafficSplitSpec},
};
use archipelago_proto::v1::{AgentSession, Protocol, ServiceClusterStatus, ServiceReport, ServiceStatus, TcpAddress};

use crate::sessions::GatewayView;

/// Every exported service.
pub(super) fn overview(
    federation: &FederationState,
    agents: &BTreeMap<String, AgentSession>,
    gateways: &BTreeMap<String, GatewayView>,
) -> Vec<ServiceStatus> {
    let mut names: Vec<(&str, &str)> =
        federation.reports.values().flatten().map(|report| (report.namespace.as_str(), report.name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(|(namespace, name)| one(federation, agents, gateways, namespace, name)).collect()
}

fn one(
    federation: &FederationState,
    agents: &BTreeMap<String, AgentSession>,
    gateways: &BTreeMap<String, GatewayView>,
    namespace: &str,
    name: &str,
) -> Option<ServiceStatus> {
    let exporters = compile::exporters(federation, namespace, name);
    let first = exporters.iter().find_map(|cluster| reported(federation, cluster, namespace, name))?;
    let split = split(federation, namespace, name);
    let clusters =
        exporters.iter().map(|cluster| in_cluster(federation, agents, split, cluster, namespace, name)).collect();
    let tcp_slot = federation.tcp_slots.get(&(namespace.to_owned(), name.to_owned())).copied();
    let tcp_addresses = match tcp_slot.filter(|_| first.protocol() == Protocol::Tcp) {
        Some(slot) => gateways.values().filter_map(|view| tcp_address(view, slot)).collect(),
        None => Vec::new(),
    };
    Some(ServiceStatus {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        hosts: compile::hosts(namespace, name),
        protocol: first.protocol,
        port: first.port,
        tcp_slot: tcp_slot.unwrap_or(0),
        clusters,
        tcp_addresses,
    })
}

fn in_cluster(
    federation: &FederationState,
    agents: &BTreeMap<String, AgentSession>,
    split: Option<&TrafficSplitSpec>,
    cluster: &str,
    namespace: &str,
    name: &str,
) -> ServiceClusterStatus {
    let live = agents
        .get(cluster)
        .map(|session| session.services.iter().find(|service| service.namespace == namespace && service.name == name));
    let (ready, total) = live.flatten().map_or((0, 0), |service| (service.ready, service.total));
    let versions = live
        .flatten()
        .or_else(|| reported(federation, cluster, namespace, name))
        .map(|service| service.versions.clone())
        .unwrap_or_default();
    let state = if drained(federation, cluster) {
        "drained"
    } else if avoided(federation, cluster, namespace, name) {
        "avoided"
    } else {
        match live {
            None => "unknown",
            Some(_) if ready == 0 => "down",
            Some(_) if ready < total => "degraded",
            Some(_) => "ready",
        }
    };
    ServiceClusterStatus {
        cluster: cluster.to_owned(),
        ready,
        total,
        weight: split.and_then(|split| share(split, cluster)),
        state: state.to_owned(),
        versions,
    }
}

fn reported<'f>(
    federation: &'f FederationState,
    cluster: &str,
    namespace: &str,
    name: &str,
) -> Option<&'f ServiceReport> {
    let reports = federation.reports.get(cluster)?;
    reports.iter().find(|service| service.namespace == namespace && service.name == name)
}

fn split<'f>(federation: &'f FederationState, namespace: &str, name: &str) -> Option<&'f TrafficSplitSpec> {
    federation.resources.iter().find_map(|(key, resource)| match resource {
        Resource::TrafficSplit(split) if key.namespace == namespace && split.spec.service == name => Some(&split.spec),
        _ => None,
    })
}

/// Percent of the requests that no route singles out; `None` when the split says nothing about them.
fn share(split: &TrafficSplitSpec, cluster: &str) -> Option<f64> {
    let total: u64 = split.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let own: u64 = split
        .backends
        .iter()
        .filter(|backend| backend.cluster == cluster)
        .map(|backend| u64::from(backend.weight))
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "sums of a few 32-bit weights, shown as a percentage")]
    (total > 0).then(|| own as f64 * 100.0 / total as f64)
}

fn drained(federation: &FederationState, cluster: &str) -> bool {
    federation
        .resources
        .values()
        .any(|resource| matches!(resource, Resource::Cluster(object) if object.metadata.name == cluster && object.spec.drained))
}

/// `meshctl failover trigger` writes the cluster into the service's policy.
fn avoided(federation: &FederationState, cluster: &str, namespace: &str, name: &str) -> bool {
    federation.resources.iter().any(|(key, resource)| match resource {
        Resource::FailoverPolicy(policy) if key.namespace == namespace && policy.spec.service == name => {
            policy.spec.avoid.iter().any(|avoided| avoided == cluster)
        }
        _ => false,
    })
}

fn tcp_address(view: &GatewayView, slot: u32) -> Option<TcpAddress> {
    let base = &view.session.hello.as_ref()?.addresses.as_ref()?.tcp_base;
    let (host, port) = base.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?.checked_add(u16::try_from(slot).ok()?)?;
    Some(TcpAddress {
        gateway: view.session.gateway.clone(),
        cluster: view.session.cluster.clone(),
        address: format!("{host}:{port}"),
    })
}
