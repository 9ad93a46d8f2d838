//! One service: who offers it, and the rules by which a gateway chooses a cluster.

use std::{collections::BTreeMap, time::Duration};

use archipelago_proto::v1::{
    self as proto, BackendSettings, ExportType, Exporter, FailoverChain, HttpListener, Match, NamedMatch, PathMatch,
    Protocol, ReportedPort, RouteRule, ServiceConfig, ServicePort, TcpListener, r#match::On, named_match, path_match,
    service_port::Listener, sticky,
};

use super::{
    Index, Meaning, hosts,
    index::{Facts, Report},
    tiers::{self, Chains, Order},
};
use crate::{
    export::{self, MergedPort, Transport},
    id::{ClusterId, ServiceKey},
    resource::{Backend, Failback, FailbackMode, Route, RouteMatch, Sticky, StreamLimits},
    selector::ClusterSelectors,
};

/// What the clusters together offer under one name.
pub(super) struct Offer<'i> {
    /// Whose word counts for the first port.
    said_by: &'i str,
    headless: bool,
    /// What is carried; never empty.
    ports: Vec<MergedPort>,
    /// Cluster that serves any port → what it reports.
    exporters: BTreeMap<&'i ClusterId, &'i Report>,
    disagreeing: Vec<(&'i ClusterId, Protocol, u32)>,
    /// Whom its clusters want to serve first.
    selectors: Option<ClusterSelectors>,
}

impl Offer<'_> {
    pub(super) fn meaning(&self) -> Option<Meaning> {
        let first = self.ports.first()?;
        let owned = |(cluster, protocol, port): &(&ClusterId, Protocol, u32)| ((*cluster).clone(), *protocol, *port);
        Some(Meaning {
            protocol: first.protocol,
            port: first.port,
            ports: self.ports.clone(),
            headless: self.headless,
            said_by: ClusterId::new(self.said_by),
            exporters: self.exporters.keys().map(|cluster| (*cluster).clone()).collect(),
            disagreeing: self.disagreeing.iter().map(owned).collect(),
        })
    }

    /// Cluster that serves this port → versions that it reports.
    fn versions(&self, port: &MergedPort) -> Versions<'_> {
        let serves = |(cluster, _): &(&&ClusterId, &&Report)| is_exporter(port, cluster);
        self.exporters.iter().filter(serves).map(|(cluster, report)| (*cluster, report.versions.as_slice())).collect()
    }
}

/// Cluster → versions that it reports, of those that serve a port.
pub(super) type Versions<'a> = BTreeMap<&'a ClusterId, &'a [String]>;

/// Merges what is reported of a service.
///
/// Age decides, and it is in the replicated state: the result is the same after a restart, on every member, and when
/// another cluster joins.
pub(super) fn offer<'i>(index: &'i Index, key: &ServiceKey) -> Option<Offer<'i>> {
    let facts = index.facts.get(key)?;
    let exported: Vec<(&ClusterId, &Report)> = facts
        .reports
        .iter()
        .filter(|(cluster, report)| index.clusters.contains_key(*cluster) && facts.exports(cluster, report))
        .collect();
    let merged = export::merge(exported.iter().map(|(_, report)| &report.says));
    let selectors = merged.cluster_selectors();
    let ports: Vec<MergedPort> = merged.ports.into_iter().filter(|port| port.transport == Transport::Tcp).collect();
    let first = ports.first()?;
    let has_first = |exporter: &&&Exporter| {
        exporter.ports.iter().any(|own| (own.port, own.protocol()) == (first.port, first.protocol))
    };
    let by_age = export::oldest_first(exported.iter().map(|(_, report)| &report.says));
    let said_by = by_age.iter().find(has_first)?.cluster.as_str();
    let exporters = exported.iter().copied().filter(|(cluster, _)| ports.iter().any(|port| is_exporter(port, cluster)));
    let disagreeing = exported.iter().flat_map(|(cluster, report)| {
        let contradicts = |own: &&ReportedPort| {
            let known = own.protocol() != Protocol::Unspecified;
            known && !ports.iter().any(|port| (port.port, port.protocol) == (own.port, own.protocol()))
        };
        report.says.ports.iter().filter(contradicts).map(|own| (*cluster, own.protocol(), own.port))
    });
    Some(Offer {
        said_by,
        headless: merged.kind == ExportType::Headless,
        exporters: exporters.collect(),
        disagreeing: disagreeing.collect(),
        ports,
        selectors,
    })
}

fn is_exporter(port: &MergedPort, cluster: &ClusterId) -> bool {
    port.exporters.iter().any(|name| *cluster == **name)
}

/// The configuration of one service for the gateways of `cluster`; `None` while nobody may or can serve it.
pub(super) fn compile(index: &Index, cluster: &ClusterId, key: &ServiceKey) -> Option<ServiceConfig> {
    let offer = offer(index, key)?;
    if offer.headless {
        return None;
    }
    let facts = index.facts.get(key)?;
    let policy = facts.policy();
    let residency = policy.and_then(|policy| policy.residency.as_ref());
    let allowed = |cluster: &str| {
        let region = index.clusters.get(cluster).map_or("", |spec| &spec.region);
        residency.is_none_or(|residency| residency.allows(cluster, region))
    };
    let residency_clusters: Vec<String> = match residency {
        None => Vec::new(),
        Some(_) => index.clusters.keys().map(ToString::to_string).filter(|name| allowed(name)).collect(),
    };
    if residency.is_some() && residency_clusters.is_empty() {
        // An empty list would mean "no limit".
        return None;
    }

    let hosts = hosts(&key.namespace, &key.name);
    let first_tcp = offer.ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.port);
    let mut ports = Vec::with_capacity(offer.ports.len());
    for port in &offer.ports {
        let listener = match port.protocol {
            Protocol::Tcp => {
                let of_first = || facts.tcp_offsets.get(&ANY_PORT).filter(|_| first_tcp == Some(port.port));
                // Until it has one nobody could connect to it.
                let Some(offset) = facts.tcp_offsets.get(&port.port).or_else(of_first) else { continue };
                Listener::Tcp(TcpListener { port_offset: *offset })
            }
            Protocol::Http1 | Protocol::H2c => Listener::Http(HttpListener { hosts: hosts.clone() }),
            Protocol::Unspecified => continue,
        };
        let (rules, chains) = rules(index, facts, &offer, port, cluster, &allowed);
        ports.push(ServicePort {
            name: port.name.clone(),
            port: port.port,
            protocol: port.protocol.into(),
            listener: Some(listener),
            sticky: facts.split().and_then(|split| split.sticky.as_ref()).map(sticky_key),
            rules,
            chains,
        });
    }
    match ports.as_mut_slice() {
        [] => return None,
        [only] => only.name.clear(),
        _ => {}
    }

    let mut avoid_clusters = policy.map_or_else(Vec::new, |policy| policy.avoid.clone());
    avoid_clusters.sort();
    avoid_clusters.dedup();
    Some(ServiceConfig {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        hosts,
        ports,
        failback: Some(failback(policy.map_or_else(Failback::default, |policy| policy.failback.clone()))),
        residency_clusters,
        exporters: offer.exporters.keys().map(ToString::to_string).collect(),
        avoid_clusters,
        backend_settings: facts.limits().map(backend_settings),
    })
}

/// The rules of one port. A split or an order is for the whole service: what it says of a cluster that exports other ports and
/// not this one does not count here.
fn rules(
    index: &Index,
    facts: &Facts,
    offer: &Offer<'_>,
    port: &MergedPort,
    cluster: &ClusterId,
    allowed: &impl Fn(&str) -> bool,
) -> (Vec<RouteRule>, Vec<FailoverChain>) {
    let versions = offer.versions(port);
    let order = match (facts.policy(), &offer.selectors) {
        (Some(policy), _) if !policy.order.is_empty() => Order::Policy(&policy.order),
        (_, Some(selectors)) => Order::Selectors(selectors),
        _ => Order::Default,
    };
    let order = tiers::order(index, &versions, order, cluster, allowed);
    let mut chains = Chains::new(&order, &versions);
    let elsewhere = |cluster: &str| {
        let cluster = ClusterId::new(cluster);
        offer.exporters.contains_key(&cluster) && !versions.contains_key(&cluster)
    };
    let mut rule = |name: String, matches: Vec<Match>, backends: &[Backend]| {
        let usable = |backend: &&Backend| allowed(&backend.cluster) && !elsewhere(&backend.cluster);
        RouteRule {
            name,
            matches,
            backends: backends.iter().filter(usable).map(weighted).collect(),
            chain: chains.of(backends),
            ..RouteRule::default()
        }
    };
    let split = facts.split();
    let (routes, backends): (&[Route], &[Backend]) = split.map_or((&[], &[]), |split| (&split.routes, &split.backends));
    let mut rules: Vec<RouteRule> = routes
        .iter()
        .enumerate()
        .map(|(index, route)| rule(format!("routes[{index}]"), matches(&route.matches), &route.backends))
        .collect();
    let last = if backends.is_empty() { "default" } else { "backends" };
    rules.push(rule(last.to_owned(), Vec::new(), backends));
    (rules, chains.into_vec())
}

fn weighted(backend: &Backend) -> proto::Backend {
    proto::Backend {
        service: String::new(),
        subset: backend.version.clone().unwrap_or_default(),
        cluster: backend.cluster.clone(),
        weight: backend.weight,
    }
}

fn matches(given: &RouteMatch) -> Vec<Match> {
    let exact = |(name, value): (&String, &String)| NamedMatch {
        name: name.clone(),
        how: Some(named_match::How::Exact(value.clone())),
    };
    let method = given.method.iter().cloned().map(On::Method);
    let path = given
        .path_prefix
        .iter()
        .map(|prefix| On::Path(PathMatch { how: Some(path_match::How::Prefix(prefix.clone())) }));
    let headers = given.headers.iter().map(exact).map(On::Header);
    let cookies = given.cookies.iter().map(exact).map(On::Cookie);
    method.chain(path).chain(headers).chain(cookies).map(|on| Match { on: Some(on) }).collect()
}

fn sticky_key(sticky: &Sticky) -> proto::Sticky {
    let key = match sticky {
        Sticky::Header(name) => sticky::Key::Header(name.clone()),
        Sticky::Cookie(name) => sticky::Key::Cookie(name.clone()),
    };
    proto::Sticky { key: Some(key) }
}

fn backend_settings(limits: &StreamLimits) -> BackendSettings {
    // None is longer than a week.
    let ms = |time: Option<Duration>| time.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
    let limits = proto::StreamLimits {
        upload_idle_ms: ms(limits.upload_idle),
        upload_rate_min: limits.upload_min_rate,
        upload_grace_ms: ms(limits.upload_grace),
        download_idle_ms: ms(limits.download_idle),
        endpoint_idle_ms: ms(limits.endpoint_idle),
        stream_idle_ms: ms(limits.stream_idle),
    };
    BackendSettings { limits: Some(limits), ..BackendSettings::default() }
}

fn failback(failback: Failback) -> proto::Failback {
    proto::Failback {
        after_ms: u64::try_from(failback.after.as_millis()).unwrap_or(u64::MAX),
        ramp_ms: u64::try_from(failback.ramp.as_millis()).unwrap_or(u64::MAX),
        automatic: failback.mode == FailbackMode::Auto,
    }
}

/// Stands for the first TCP port of a service, whatever its number: until several ports, the number did not matter.
const ANY_PORT: u32 = 0;
