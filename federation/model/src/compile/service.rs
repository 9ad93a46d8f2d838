//! One service: who offers it, and the rules by which a gateway chooses a cluster.

use std::collections::BTreeMap;

use archipelago_proto::v1::{
    self as proto, HttpListener, Match, NamedMatch, PathMatch, Protocol, RouteRule, ServiceConfig, ServicePort,
    TcpListener, r#match::On, named_match, path_match, service_port::Listener, sticky,
};

use super::{
    Index, Meaning, hosts,
    index::Report,
    tiers::{self, Chains},
};
use crate::{
    id::{ClusterId, ServiceKey},
    resource::{Backend, Failback, FailbackMode, Route, RouteMatch, Sticky},
};

/// What the clusters together offer under one name.
pub(super) struct Offer<'i> {
    first: (&'i ClusterId, &'i Report),
    /// Cluster → versions it reports.
    pub(super) exporters: BTreeMap<&'i ClusterId, &'i [String]>,
    disagreeing: Vec<(&'i ClusterId, &'i Report)>,
}

impl Offer<'_> {
    pub(super) fn meaning(&self) -> Meaning {
        let (said_by, said) = self.first;
        Meaning {
            protocol: said.protocol,
            port: said.port,
            said_by: said_by.clone(),
            exporters: self.exporters.keys().map(|cluster| (*cluster).clone()).collect(),
            disagreeing: self.disagreeing.iter().map(|(at, says)| ((*at).clone(), says.protocol, says.port)).collect(),
        }
    }
}

/// Merges the reports of a service, see [`Meaning`].
///
/// Age decides, and it is in the replicated state: the result is the same after a restart, on every member, and when
/// another cluster joins. Of clusters as old as each other the first by name is believed.
pub(super) fn offer<'i>(index: &'i Index, key: &ServiceKey) -> Option<Offer<'i>> {
    let facts = index.facts.get(key)?;
    let exported = || {
        facts.reports.iter().filter(|(cluster, report)| {
            index.clusters.contains_key(*cluster)
                && report.protocol != Protocol::Unspecified
                && facts.exports(cluster, report)
        })
    };
    let first = exported().min_by_key(|(_, report)| report.since)?;
    let (_, said) = first;
    Some(Offer {
        first,
        exporters: exported()
            .filter(|(_, report)| report.protocol == said.protocol)
            .map(|(cluster, report)| (cluster, report.versions.as_slice()))
            .collect(),
        disagreeing: exported()
            .filter(|(_, report)| (report.protocol, report.port) != (said.protocol, said.port))
            .collect(),
    })
}

/// The configuration of one service for the gateways of `cluster`; `None` while nobody may or can serve it.
pub(super) fn compile(index: &Index, cluster: &ClusterId, key: &ServiceKey) -> Option<ServiceConfig> {
    let offer = offer(index, key)?;
    let facts = index.facts.get(key)?;
    let (_, said) = offer.first;
    let hosts = hosts(&key.namespace, &key.name);
    let listener = match said.protocol {
        Protocol::Tcp => Listener::Tcp(TcpListener { port_offset: facts.tcp_offset? }),
        Protocol::Http1 | Protocol::H2c => Listener::Http(HttpListener { hosts: hosts.clone() }),
        Protocol::Unspecified => return None,
    };
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

    let order = tiers::order(index, &offer, policy.map_or(&[], |policy| &policy.order), cluster, &allowed);
    let mut chains = Chains::new(&order, &offer);
    let mut rule = |name: String, matches: Vec<Match>, backends: &[Backend]| RouteRule {
        name,
        matches,
        backends: backends.iter().filter(|backend| allowed(&backend.cluster)).map(weighted).collect(),
        chain: chains.of(backends),
        ..RouteRule::default()
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

    let mut avoid_clusters = policy.map_or_else(Vec::new, |policy| policy.avoid.clone());
    avoid_clusters.sort();
    avoid_clusters.dedup();
    Some(ServiceConfig {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        hosts,
        ports: vec![ServicePort {
            name: String::new(),
            port: said.port,
            protocol: said.protocol.into(),
            listener: Some(listener),
            sticky: split.and_then(|split| split.sticky.as_ref()).map(sticky_key),
            rules,
            chains: chains.into_vec(),
        }],
        failback: Some(failback(policy.map_or_else(Failback::default, |policy| policy.failback.clone()))),
        residency_clusters,
        exporters: offer.exporters.keys().map(ToString::to_string).collect(),
        avoid_clusters,
        backend_settings: None,
    })
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

fn failback(failback: Failback) -> proto::Failback {
    proto::Failback {
        after_ms: u64::try_from(failback.after.as_millis()).unwrap_or(u64::MAX),
        ramp_ms: u64::try_from(failback.ramp.as_millis()).unwrap_or(u64::MAX),
        automatic: failback.mode == FailbackMode::Auto,
    }
}
