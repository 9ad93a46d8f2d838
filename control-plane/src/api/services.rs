//! What `Fleet.Services` answers: exports from the replicated state, counts from the agents' sessions. Pure.

use std::collections::BTreeMap;

use archipelago_model::{
    compile::{self, FederationState},
    delta::Shared,
    resource::{Resource, TrafficSplitSpec},
};
use archipelago_proto::v1::{AgentSession, Protocol, ServiceClusterStatus, ServiceReport, ServiceStatus, TcpAddress};

use crate::sessions::GatewayView;

/// Every exported service.
pub(super) fn overview(
    federation: &FederationState,
    agents: &BTreeMap<String, Shared<AgentSession>>,
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
    agents: &BTreeMap<String, Shared<AgentSession>>,
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
    agents: &BTreeMap<String, Shared<AgentSession>>,
    split: Option<&TrafficSplitSpec>,
    cluster: &str,
    namespace: &str,
    name: &str,
) -> ServiceClusterStatus {
    let live = agents
        .get(cluster)
        .map(|session| session.services.iter().find(|service| service.namespace == namespace && service.name == name));
    let (ready, total) = live.flatten().map_or((0, 0), |service| (service.ready, service.total));
    let unknown = live.flatten().map_or(0, |service| service.unknown);
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
            Some(_) if ready == 0 && unknown > 0 => "unknown",
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
        unknown,
        last_failure: live.flatten().and_then(|service| service.last_failure),
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

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::{GatewayAddresses, GatewayHello, GatewaySession};

    use super::*;

    fn service(cluster_ready: u32) -> ServiceReport {
        ServiceReport {
            namespace: "shop".into(),
            name: "ledger".into(),
            protocol: Protocol::Tcp.into(),
            port: 9000,
            exported: true,
            versions: vec!["v1".into()],
            ready: cluster_ready,
            total: 2,
            ..ServiceReport::default()
        }
    }

    /// Five clusters export one TCP service; each is in another condition.
    fn federation() -> FederationState {
        let mut federation = FederationState::default();
        let mut add = |kind: &str, name: &str, namespace: &str, spec: &str| {
            let namespace = if namespace.is_empty() { String::new() } else { format!(r#","namespace":"{namespace}""#) };
            let json = format!(
                r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}"{namespace}}},"spec":{spec}}}"#
            );
            let resource = Resource::from_json(&json).unwrap();
            federation.resources.insert(resource.key(), resource);
        };
        for cluster in ["bern", "lima", "oslo", "paris"] {
            add("Cluster", cluster, "", r#"{"region":"r"}"#);
        }
        add("Cluster", "tokyo", "", r#"{"region":"r","drained":true}"#);
        let backends =
            r#"{"service":"ledger","backends":[{"cluster":"paris","weight":3},{"cluster":"tokyo","weight":1}]}"#;
        add("TrafficSplit", "ledger", "shop", backends);
        add("FailoverPolicy", "ledger", "shop", r#"{"service":"ledger","avoid":["oslo"]}"#);
        for cluster in ["bern", "lima", "oslo", "paris", "tokyo"] {
            federation.reports.insert(cluster.to_owned(), vec![service(0)]);
        }
        federation.tcp_slots.insert(("shop".to_owned(), "ledger".to_owned()), 7);
        federation
    }

    #[test]
    fn each_condition_of_a_cluster_has_its_word() {
        let agent = |cluster: &str, ready: u32| {
            let session =
                AgentSession { cluster: cluster.into(), services: vec![service(ready)], ..Default::default() };
            (cluster.to_owned(), Shared::new(session))
        };
        let agents = BTreeMap::from([agent("paris", 2), agent("lima", 1), agent("oslo", 2), agent("tokyo", 2)]);
        let hello = GatewayHello {
            addresses: Some(GatewayAddresses { tcp_base: "[::1]:16000".into(), ..Default::default() }),
            ..Default::default()
        };
        let session = GatewaySession {
            cluster: "paris".into(),
            gateway: "gw-1".into(),
            hello: Some(hello),
            ..Default::default()
        };
        let gateways =
            BTreeMap::from([("paris/gw-1".to_owned(), GatewayView { session: Shared::new(session), member: 1 })]);

        let services = overview(&federation(), &agents, &gateways);
        assert_eq!(services.len(), 1);
        let ledger = &services[0];
        let seen: Vec<_> =
            ledger.clusters.iter().map(|at| (at.cluster.as_str(), at.state.as_str(), at.ready, at.weight)).collect();
        assert_eq!(
            seen,
            [
                ("bern", "unknown", 0, Some(0.0)),
                ("lima", "degraded", 1, Some(0.0)),
                ("oslo", "avoided", 2, Some(0.0)),
                ("paris", "ready", 2, Some(75.0)),
                ("tokyo", "drained", 2, Some(25.0)),
            ]
        );
        assert_eq!(ledger.tcp_addresses[0].address, "[::1]:16007");
        assert_eq!(ledger.hosts, ["ledger.shop.svc.clusterset.local", "ledger.shop"]);

        let none_ready = BTreeMap::from([agent("paris", 0)]);
        let paris = &overview(&federation(), &none_ready, &gateways)[0].clusters[3];
        assert_eq!((paris.state.as_str(), paris.total), ("down", 2));
    }
}
