//! What `Fleet.Services` answers: exports from the replicated state, counts from the agents' sessions. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use archipelago_model::{
    compile::{self, FederationState, Index, Meaning},
    delta::Shared,
    export::MergedPort,
    id::ServiceKey,
    resource::{Resource, TrafficSplitSpec},
};
use archipelago_proto::v1::{
    AgentSession, Disagreement, PortStatus, Protocol, ServiceClusterStatus, ServiceReport, ServiceStatus, TcpAddress,
};

use crate::sessions::GatewayView;

/// Everything that an answer is made of, each looked up once and not once per service.
pub(crate) struct Overview<'a> {
    index: Index,
    splits: HashMap<(&'a str, &'a str), &'a TrafficSplitSpec>,
    /// Service → clusters that `meshctl failover trigger` wrote into its policy.
    avoided: HashMap<(&'a str, &'a str), &'a [String]>,
    drained: BTreeSet<&'a str>,
    /// What is replicated, by cluster and service.
    reported: HashMap<(&'a str, &'a str, &'a str), &'a ServiceReport>,
    /// What agents say right now; a cluster without a session is not in it.
    live: HashMap<&'a str, HashMap<(&'a str, &'a str), &'a ServiceReport>>,
    tcp_slots: &'a BTreeMap<(String, String, u32), u32>,
    gateways: &'a BTreeMap<String, GatewayView>,
}

impl<'a> Overview<'a> {
    pub(crate) fn new(
        federation: &'a FederationState,
        agents: &'a BTreeMap<String, Shared<AgentSession>>,
        gateways: &'a BTreeMap<String, GatewayView>,
    ) -> Self {
        let mut overview = Self {
            index: Index::of(federation),
            splits: HashMap::new(),
            avoided: HashMap::new(),
            drained: BTreeSet::new(),
            reported: HashMap::new(),
            live: HashMap::new(),
            tcp_slots: &federation.tcp_slots,
            gateways,
        };
        for (key, resource) in &federation.resources {
            let namespace = key.namespace.as_str();
            match resource {
                Resource::TrafficSplit(split) => {
                    overview.splits.entry((namespace, &split.spec.service)).or_insert(&split.spec);
                }
                Resource::FailoverPolicy(policy) => {
                    overview.avoided.entry((namespace, &policy.spec.service)).or_insert(&policy.spec.avoid);
                }
                Resource::Cluster(cluster) if cluster.spec.drained => {
                    overview.drained.insert(&cluster.metadata.name);
                }
                Resource::Cluster(_) | Resource::ServiceExport(_) | Resource::BackendPolicy(_) => {}
            }
        }
        for (cluster, reports) in &federation.reports {
            for report in reports {
                overview.reported.insert((cluster, &report.namespace, &report.name), report);
            }
        }
        for (cluster, session) in agents {
            let services = session.services.iter().map(|report| ((&*report.namespace, &*report.name), report));
            overview.live.insert(cluster, services.collect());
        }
        overview
    }

    /// Services that some cluster exports, sorted, those behind `after` alone.
    pub(crate) fn services(&self, after: Option<&ServiceKey>) -> impl Iterator<Item = ServiceStatus> {
        let behind = move |key: &&ServiceKey| after.is_none_or(|after| *key > after);
        self.index.services().filter(behind).filter_map(|key| self.one(key))
    }

    fn one(&self, key: &ServiceKey) -> Option<ServiceStatus> {
        let meaning = compile::meaning(&self.index, key)?;
        let (namespace, name) = (&*key.namespace, &*key.name);
        let first_tcp = meaning.ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.port);
        let slot_of = |port: &MergedPort| {
            let slot = |number: u32| self.tcp_slots.get(&(namespace.to_owned(), name.to_owned(), number)).copied();
            // Without a number until the federation's log has several ports.
            let tcp = port.protocol == Protocol::Tcp;
            tcp.then(|| slot(port.port).or_else(|| slot(0).filter(|_| first_tcp == Some(port.port)))).flatten()
        };
        let ports: Vec<PortStatus> = meaning
            .ports
            .iter()
            .map(|port| PortStatus {
                name: port.name.clone(),
                port: port.port,
                protocol: port.protocol.into(),
                tcp_slot: slot_of(port),
                exporters: port.exporters.clone(),
            })
            .collect();
        let tcp_addresses = ports
            .iter()
            .filter_map(|port| Some((port.port, port.tcp_slot?)))
            .flat_map(|(port, slot)| self.gateways.values().filter_map(move |view| tcp_address(view, port, slot)))
            .collect();
        Some(ServiceStatus {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            hosts: compile::hosts(namespace, name),
            protocol: meaning.protocol.into(),
            port: meaning.port,
            tcp_slot: ports.first().and_then(|port| port.tcp_slot).unwrap_or(0),
            clusters: meaning
                .exporters
                .iter()
                .map(|cluster| self.in_cluster(cluster.as_str(), namespace, name))
                .collect(),
            tcp_addresses,
            disagreements: disagreements(&meaning),
            said_by: meaning.said_by.to_string(),
            ports,
            headless: meaning.headless,
        })
    }

    fn in_cluster(&self, cluster: &str, namespace: &str, name: &str) -> ServiceClusterStatus {
        let session = self.live.get(cluster);
        let live = session.and_then(|services| services.get(&(namespace, name))).copied();
        let (ready, total, unknown) = live.map_or((0, 0, 0), |report| (report.ready, report.total, report.unknown));
        let report = live.or_else(|| self.reported.get(&(cluster, namespace, name)).copied());
        let avoided = self.avoided.get(&(namespace, name)).is_some_and(|avoid| avoid.iter().any(|at| at == cluster));
        let state = if self.drained.contains(cluster) {
            "drained"
        } else if avoided {
            "avoided"
        } else {
            match session {
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
            weight: self.splits.get(&(namespace, name)).and_then(|split| share(split, cluster)),
            state: state.to_owned(),
            versions: report.map(|report| report.versions.clone()).unwrap_or_default(),
            unknown,
            last_failure: live.and_then(|report| report.last_failure),
        }
    }
}

fn disagreements(meaning: &Meaning) -> Vec<Disagreement> {
    let disagreement = |(cluster, protocol, port): &(archipelago_model::id::ClusterId, Protocol, u32)| Disagreement {
        cluster: cluster.to_string(),
        protocol: (*protocol).into(),
        port: *port,
        ignored: !meaning.exporters.contains(cluster),
    };
    meaning.disagreeing.iter().map(disagreement).collect()
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

fn tcp_address(view: &GatewayView, service_port: u32, slot: u32) -> Option<TcpAddress> {
    let base = &view.session.hello.as_ref()?.addresses.as_ref()?.tcp_base;
    let (host, port) = base.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?.checked_add(u16::try_from(slot).ok()?)?;
    Some(TcpAddress {
        gateway: view.session.gateway.clone(),
        cluster: view.session.cluster.clone(),
        address: format!("{host}:{port}"),
        port: service_port,
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
        federation.tcp_slots.insert(("shop".to_owned(), "ledger".to_owned(), 9_000), 7);
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

        let federation = federation();
        let services: Vec<ServiceStatus> = Overview::new(&federation, &agents, &gateways).services(None).collect();
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
        assert_eq!((&*ledger.tcp_addresses[0].address, ledger.tcp_addresses[0].port), ("[::1]:16007", 9_000));
        assert_eq!(ledger.hosts, ["ledger.shop.svc.clusterset.local", "ledger.shop"]);

        let none_ready = BTreeMap::from([agent("paris", 0)]);
        let overview = Overview::new(&federation, &none_ready, &gateways);
        let paris = overview.services(None).next().unwrap().clusters.remove(3);
        let after = ServiceKey::new("shop", "ledger");
        assert_eq!(overview.services(Some(&after)).count(), 0);
        assert_eq!((paris.state.as_str(), paris.total), ("down", 2));
    }

    /// Whoever said it first is believed; the others are named.
    #[test]
    fn clusters_that_disagree_are_named_with_what_they_say() {
        let mut federation = federation();
        let other = ServiceReport { protocol: Protocol::Http1.into(), port: 80, ..service(0) };
        federation.reports.insert("lima".to_owned(), vec![other]);
        let key = ServiceKey::new("shop", "ledger");
        let late = BTreeMap::from([(archipelago_model::id::ClusterId::new("lima"), 9)]);
        federation.reported_since.insert(key, late);
        let (agents, gateways) = (BTreeMap::new(), BTreeMap::new());
        let ledger = Overview::new(&federation, &agents, &gateways).services(None).next().unwrap();
        assert!(ledger.clusters.iter().all(|at| at.cluster != "lima"));
        let [disagreement] = ledger.disagreements.as_slice() else { panic!("{:?}", ledger.disagreements) };
        assert_eq!((disagreement.cluster.as_str(), disagreement.protocol()), ("lima", Protocol::Http1));
        assert!(disagreement.ignored);
    }

    /// Pages and everything else, at a size that nobody should wait for.
    #[test]
    fn a_large_federation_is_listed_at_once() {
        let mut federation = FederationState::default();
        let mut agents = BTreeMap::new();
        for cluster in 0..10 {
            let cluster = format!("c{cluster}");
            let json = format!(
                r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"Cluster","metadata":{{"name":"{cluster}"}},"spec":{{"region":"r"}}}}"#
            );
            let resource = Resource::from_json(&json).unwrap();
            federation.resources.insert(resource.key(), resource);
            let services: Vec<_> =
                (0..2_000).map(|number| ServiceReport { name: format!("s{number}"), ..service(1) }).collect();
            federation.reports.insert(cluster.clone(), services.clone());
            let session = AgentSession { cluster: cluster.clone(), services, ..Default::default() };
            agents.insert(cluster, Shared::new(session));
        }
        let gateways = BTreeMap::new();
        let began = std::time::Instant::now();
        let count = Overview::new(&federation, &agents, &gateways).services(None).count();
        println!("{count} services in 10 clusters: {:.1?}", began.elapsed());
        assert_eq!(count, 2_000);
    }
}
