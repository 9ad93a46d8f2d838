//! Residency: a chain that can leave its limit is refused, with the chain shown.
//!
//! Entries that stand for something else in every cluster (`@local`, `@same`, the default order) cannot leak: the
//! compiler computes them inside the limit. What is *named* and lies outside contradicts the limit, and is refused.

use std::collections::BTreeMap;

use super::{
    Resources,
    cross::Clusters,
    rules::{Complaint, Site},
};
use crate::resource::{
    Backend, FailoverPolicySpec, FailoverTier, Kind, LOCAL, Residency, Resource, ResourceKey, SAME, TrafficSplitSpec,
};

/// Complains about every named cluster or region outside the residency of its service.
pub(super) fn leaks(resources: &Resources, clusters: &Clusters<'_>, out: &mut Vec<Complaint>) {
    let mut limits: BTreeMap<(&str, &str), (&ResourceKey, &Residency)> = BTreeMap::new();
    for (key, resource) in resources {
        if let Resource::FailoverPolicy(policy) = resource
            && let Some(residency) = &policy.spec.residency
        {
            limits.entry((&key.namespace, &policy.spec.service)).or_insert((key, residency));
            order(key, &policy.spec, residency, clusters, out);
        }
    }
    for (key, resource) in resources {
        if let Resource::TrafficSplit(split) = resource
            && let Some((policy, residency)) = limits.get(&(key.namespace.as_str(), split.spec.service.as_str()))
        {
            for (path, backend) in backends(&split.spec) {
                let Some(region) = clusters.region(&backend.cluster) else { continue };
                if residency.allows(&backend.cluster, region) {
                    continue;
                }
                let why = outside(&backend.cluster, region, residency);
                out.push(Complaint {
                    sites: vec![
                        Site::of(key, format!("{path}.cluster")),
                        Site::of(policy, "spec.residency"),
                        Site::of(&cluster_key(&backend.cluster), "spec.region"),
                    ],
                    message: format!(
                        "{key} sends requests where {policy} forbids it: {}/{} → {}: {why}",
                        key.namespace, split.spec.service, backend.cluster
                    ),
                    duplicate: false,
                });
            }
        }
    }
}

/// Every backend of a split with its path.
pub(super) fn backends(spec: &TrafficSplitSpec) -> impl Iterator<Item = (String, &Backend)> {
    let routes = spec.routes.iter().enumerate().flat_map(|(route, rule)| {
        let at = move |index| format!("spec.routes[{route}].backends[{index}]");
        rule.backends.iter().enumerate().map(move |(index, backend)| (at(index), backend))
    });
    let rest = spec.backends.iter().enumerate().map(|(index, backend)| (format!("spec.backends[{index}]"), backend));
    routes.chain(rest)
}

fn order(
    key: &ResourceKey,
    spec: &FailoverPolicySpec,
    residency: &Residency,
    clusters: &Clusters<'_>,
    out: &mut Vec<Complaint>,
) {
    for (index, tier) in spec.order.iter().enumerate() {
        let (field, names) = match tier {
            FailoverTier::Clusters(names) => ("clusters", names),
            FailoverTier::Regions(names) => ("regions", names),
        };
        for (entry, name) in names.iter().enumerate() {
            let leak = match tier {
                FailoverTier::Clusters(_) => clusters.region(name).map(|region| (name.as_str(), region)),
                FailoverTier::Regions(_) => clusters.iter().find(|(_, region)| region == name),
            };
            let Some((cluster, region)) = leak.filter(|(cluster, region)| !residency.allows(cluster, region)) else {
                continue;
            };
            let chain = longest_chain(spec, residency, clusters, cluster).join(" → ");
            out.push(Complaint {
                sites: vec![
                    Site::of(key, format!("spec.order[{index}].{field}[{entry}]")),
                    Site::of(&cluster_key(cluster), "spec.region"),
                ],
                message: format!("{chain}: {}", outside(cluster, region, residency)),
                duplicate: false,
            });
        }
    }
}

/// The failover chain that ends in `leak`, seen from the allowed cluster where it is longest: the most telling one.
fn longest_chain<'c>(
    spec: &'c FailoverPolicySpec,
    residency: &Residency,
    clusters: &Clusters<'c>,
    leak: &'c str,
) -> Vec<&'c str> {
    let mut longest = vec![leak];
    for (local, region) in clusters.iter().filter(|(name, region)| residency.allows(name, region)) {
        let mut chain: Vec<&str> = Vec::new();
        let members = spec.order.iter().flat_map(|tier| members(tier, local, region, clusters));
        for cluster in members.take_while(|cluster| *cluster != leak) {
            let allowed = clusters.region(cluster).is_some_and(|region| residency.allows(cluster, region));
            if allowed && !chain.contains(&cluster) {
                chain.push(cluster);
            }
        }
        chain.push(leak);
        // Strictly longer or, among equals, the later name: a chain that begins at the reader's `paris` rather than at
        // the alphabet's first cluster reads no worse, and the choice stays deterministic.
        if chain.len() >= longest.len() {
            longest = chain;
        }
    }
    longest
}

/// The clusters of one tier as seen from `local`.
fn members<'c>(tier: &'c FailoverTier, local: &'c str, region: &'c str, clusters: &Clusters<'c>) -> Vec<&'c str> {
    match tier {
        FailoverTier::Clusters(names) => {
            names.iter().map(|name| if name == LOCAL { local } else { name.as_str() }).collect()
        }
        FailoverTier::Regions(names) => names
            .iter()
            .map(|name| if name == SAME { region } else { name.as_str() })
            .flat_map(|wanted| clusters.iter().filter(move |(_, region)| *region == wanted).map(|(name, _)| name))
            .collect(),
    }
}

/// `tokyo is in ap-northeast, outside residency regions eu-west, eu-central`.
fn outside(cluster: &str, region: &str, residency: &Residency) -> String {
    let mut limits = Vec::new();
    if !residency.regions.is_empty() {
        limits.push(format!("regions {}", residency.regions.join(", ")));
    }
    if !residency.clusters.is_empty() {
        limits.push(format!("clusters {}", residency.clusters.join(", ")));
    }
    format!("{cluster} is in {region}, outside residency {}", limits.join(" and "))
}

fn cluster_key(name: &str) -> ResourceKey {
    ResourceKey { kind: Kind::Cluster, namespace: String::new(), name: name.to_owned() }
}
