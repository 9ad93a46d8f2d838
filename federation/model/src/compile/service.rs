//! One service: who offers it, and the rules by which a gateway chooses a cluster.

use std::collections::BTreeMap;

use archipelago_proto::v1::{self as proto, Protocol, RouteRule, ServiceConfig, ServiceReport, sticky};

use super::{FederationState, View, hosts, tiers};
use crate::resource::{Backend, Failback, FailbackMode, Route, Sticky};

/// What the clusters together offer under one name.
pub(super) struct Offer<'s> {
    pub(super) protocol: Protocol,
    pub(super) port: u32,
    /// Cluster → versions it reports.
    pub(super) exporters: BTreeMap<&'s str, &'s [String]>,
}

/// Merges the reports of a service.
///
/// Where clusters disagree on protocol and port, most exporters win, then the first by name; those that speak TCP do
/// not count for an HTTP service nor the other way round, because no request could be carried over to them.
pub(super) fn offer<'s>(view: &View<'s>, namespace: &str, name: &str) -> Option<Offer<'s>> {
    let service = (namespace, name);
    let reports: Vec<(&'s str, &'s ServiceReport)> = view
        .reports
        .get(&service)?
        .iter()
        .filter(|(cluster, report)| view.exports(service, cluster, report))
        .map(|(cluster, report)| (*cluster, *report))
        .collect();
    let facts = |report: &ServiceReport| (report.protocol(), report.port);
    let mut best: Option<((Protocol, u32), usize)> = None;
    for (_, candidate) in &reports {
        let votes = reports.iter().filter(|(_, report)| facts(report) == facts(candidate)).count();
        if best.is_none_or(|(_, most)| votes > most) {
            best = Some((facts(candidate), votes));
        }
    }
    let ((protocol, port), _) = best?;
    let is_tcp = |protocol| protocol == Protocol::Tcp;
    let exporters = reports
        .into_iter()
        .filter(|(_, report)| is_tcp(report.protocol()) == is_tcp(protocol))
        .map(|(cluster, report)| (cluster, report.versions.as_slice()))
        .collect();
    Some(Offer { protocol, port, exporters })
}

/// The configuration of one service for the gateways of `cluster`; `None` while nobody may or can serve it.
pub(super) fn compile(
    view: &View<'_>,
    state: &FederationState,
    cluster: &str,
    namespace: &str,
    name: &str,
) -> Option<ServiceConfig> {
    let offer = offer(view, namespace, name)?;
    let tcp_slot = match offer.protocol {
        Protocol::Tcp => *state.tcp_slots.get(&(namespace.to_owned(), name.to_owned()))?,
        Protocol::Unspecified | Protocol::Http1 | Protocol::H2c => 0,
    };
    let split = view.splits.get(&(namespace, name)).copied();
    let policy = view.policies.get(&(namespace, name)).copied();
    let residency = policy.and_then(|policy| policy.residency.as_ref());
    let allowed = |cluster: &str| {
        let region = view.clusters.get(cluster).map_or("", |facts| facts.region);
        residency.is_none_or(|residency| residency.allows(cluster, region))
    };
    let residency_clusters: Vec<String> = match residency {
        None => Vec::new(),
        Some(_) => view.clusters.keys().filter(|name| allowed(name)).map(|name| (*name).to_owned()).collect(),
    };
    if residency.is_some() && residency_clusters.is_empty() {
        // An empty list would mean "no limit".
        return None;
    }

    let order = tiers::order(view, &offer, policy.map_or(&[], |policy| &policy.order), cluster, &allowed);
    let rule = |name: String, matches: Option<proto::RouteMatch>, backends: &[Backend]| RouteRule {
        name,
        r#match: matches,
        backends: backends.iter().filter(|backend| allowed(&backend.cluster)).map(weighted).collect(),
        tiers: tiers::versioned(&order, &offer, backends),
    };
    let (routes, backends): (&[Route], &[Backend]) = split.map_or((&[], &[]), |split| (&split.routes, &split.backends));
    let mut rules: Vec<RouteRule> = routes
        .iter()
        .enumerate()
        .map(|(index, route)| rule(format!("routes[{index}]"), Some(route_match(route)), &route.backends))
        .collect();
    let last = if backends.is_empty() { "default" } else { "backends" };
    rules.push(rule(last.to_owned(), None, backends));

    let mut avoid_clusters = policy.map_or_else(Vec::new, |policy| policy.avoid.clone());
    avoid_clusters.sort();
    avoid_clusters.dedup();
    Some(ServiceConfig {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        hosts: hosts(namespace, name),
        protocol: offer.protocol.into(),
        port: offer.port,
        tcp_slot,
        sticky: split.and_then(|split| split.sticky.as_ref()).map(sticky_key),
        rules,
        failback: Some(failback(policy.map_or_else(Failback::default, |policy| policy.failback.clone()))),
        residency_clusters,
        exporters: offer.exporters.keys().map(|cluster| (*cluster).to_owned()).collect(),
        avoid_clusters,
    })
}

fn weighted(backend: &Backend) -> proto::WeightedBackend {
    proto::WeightedBackend {
        cluster: backend.cluster.clone(),
        version: backend.version.clone().unwrap_or_default(),
        weight: backend.weight,
    }
}

fn route_match(route: &Route) -> proto::RouteMatch {
    proto::RouteMatch {
        headers: route.matches.headers.clone(),
        cookies: route.matches.cookies.clone(),
        path_prefix: route.matches.path_prefix.clone().unwrap_or_default(),
        method: route.matches.method.clone().unwrap_or_default(),
    }
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
