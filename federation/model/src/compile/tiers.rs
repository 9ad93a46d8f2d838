//! Failover order: which clusters are tried after each other, and with which versions.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_proto::v1::{self as proto, FailoverChain, Tier};

use super::{Index, service::Versions};
use crate::{
    id::ClusterId,
    resource::{Backend, FailoverTier, LOCAL, SAME},
    selector::{self, ClusterSelectors},
};

/// What decides on the order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order<'a> {
    /// A FailoverPolicy. Clusters that it does not reach are left out even if they export the service: it is a statement about
    /// where requests may end.
    Policy(&'a [FailoverTier]),
    /// Whom the exporting clusters prefer, and then the rest.
    Selectors(&'a ClusterSelectors),
    /// Nobody: the local cluster, its region, the rest.
    Default,
}

/// The tiers of `local`, as names of clusters; every cluster stands in its first tier only, empty tiers are dropped.
///
/// Drained and avoided clusters stay: whether to use them is decided with what the gateway knows of the others.
pub(super) fn order<'i>(
    index: &Index,
    exporters: &Versions<'i>,
    order: Order<'_>,
    own: &ClusterId,
    allowed: &impl Fn(&str) -> bool,
) -> Vec<Vec<&'i ClusterId>> {
    let local = own.as_str();
    let region_of = |cluster: &str| index.clusters.get(cluster).map(|spec| spec.region.as_str());
    let home = region_of(local);
    let in_tier = |tier: &FailoverTier, cluster: &str| match tier {
        FailoverTier::Clusters(names) => {
            names.iter().any(|name| if name == LOCAL { cluster == local } else { cluster == name })
        }
        FailoverTier::Regions(names) => names.iter().any(|name| {
            let wanted = if name == SAME { home } else { Some(name.as_str()) };
            wanted.is_some() && region_of(cluster) == wanted
        }),
    };
    let mut left: Vec<&'i ClusterId> = exporters.keys().copied().filter(|cluster| allowed(cluster.as_str())).collect();
    let mut tiers = Vec::new();
    let mut take = |belongs: &dyn Fn(&str) -> bool| {
        let (tier, rest): (Vec<_>, Vec<_>) = left.iter().partition(|cluster| belongs(cluster.as_str()));
        left = rest;
        if !tier.is_empty() {
            tiers.push(tier);
        }
    };
    match order {
        Order::Policy(tiers) => tiers.iter().for_each(|tier| take(&|cluster| in_tier(tier, cluster))),
        Order::Selectors(selectors) => {
            for selector in selectors.as_slice() {
                let property = |cluster: &str, key: &str| property(index, cluster, key);
                take(&|cluster| {
                    selector.selects(&|key: &str| property(local, key), &|key: &str| property(cluster, key))
                });
            }
            take(&|_| true);
        }
        Order::Default => {
            take(&|cluster| cluster == local);
            take(&|cluster| home.is_some() && region_of(cluster) == home);
            take(&|_| true);
        }
    }
    tiers
}

/// What the About API calls a ClusterProperty, as far as the federation knows it.
fn property<'p>(index: &'p Index, cluster: &str, key: &str) -> Option<&'p str> {
    let (name, spec) = index.clusters.get_key_value(cluster)?;
    match key {
        selector::CLUSTER_ID => Some(name.as_str()),
        selector::CLUSTERSET => Some(&index.trust_domain),
        selector::REGION => Some(&spec.region),
        _ => None,
    }
}

/// The failover chains of a service: one for each way in which its rules ask for versions.
///
/// A rule keeps its versions when it fails over, as far as that is possible: if every backend that gets requests names
/// a version, a fallback cluster serves those of these versions that it reports, in the proportion in which the rule
/// weighs them, and any version if it reports none of them (a wrong version answers better than nobody). If any
/// backend that gets requests leaves the version open, or there are none, fallback clusters serve any version.
/// All clusters of a tier weigh the same.
pub(super) struct Chains<'a> {
    order: &'a [Vec<&'a ClusterId>],
    exporters: &'a Versions<'a>,
    /// By what is wanted: the index into `chains`.
    known: BTreeMap<BTreeMap<String, u64>, u32>,
    chains: Vec<FailoverChain>,
}

impl<'a> Chains<'a> {
    pub(super) fn new(order: &'a [Vec<&'a ClusterId>], exporters: &'a Versions<'a>) -> Self {
        Self { order, exporters, known: BTreeMap::new(), chains: Vec::new() }
    }

    /// The chain of a rule with these backends; `None` when no cluster is left to try.
    pub(super) fn of(&mut self, backends: &[Backend]) -> Option<u32> {
        if self.order.is_empty() {
            return None;
        }
        let wanted = wanted(backends);
        if let Some(known) = self.known.get(&wanted) {
            return Some(*known);
        }
        let next = u32::try_from(self.chains.len()).ok()?;
        self.chains.push(FailoverChain { tiers: versioned(self.order, self.exporters, &wanted) });
        self.known.insert(wanted, next);
        Some(next)
    }

    pub(super) fn into_vec(self) -> Vec<FailoverChain> {
        self.chains
    }
}

fn versioned(order: &[Vec<&ClusterId>], exporters: &Versions<'_>, wanted: &BTreeMap<String, u64>) -> Vec<Tier> {
    let total: u64 = wanted.values().sum::<u64>().max(1);
    order
        .iter()
        .map(|clusters| {
            let backends = clusters.iter().flat_map(|cluster| {
                let reported: BTreeSet<&str> = exporters
                    .get(cluster)
                    .into_iter()
                    .flat_map(|versions| versions.iter().map(String::as_str))
                    .collect();
                let kept: Vec<(&str, u64)> = wanted
                    .iter()
                    .filter(|(version, _)| reported.contains(version.as_str()))
                    .map(|(version, weight)| (version.as_str(), *weight))
                    .collect();
                let sum: u64 = kept.iter().map(|(_, weight)| weight).sum::<u64>().max(1);
                let backend = |subset: &str, weight: u64| proto::Backend {
                    service: String::new(),
                    subset: subset.to_owned(),
                    cluster: cluster.to_string(),
                    weight: u32::try_from(weight).unwrap_or(u32::MAX).max(1),
                };
                if kept.is_empty() {
                    vec![backend("", total)]
                } else {
                    // At most 64 weights of at most a million each: the product fits u64 with room to spare.
                    kept.into_iter()
                        .map(|(version, weight)| backend(version, weight.saturating_mul(total) / sum))
                        .collect()
                }
            });
            Tier { backends: backends.collect() }
        })
        .collect()
}

/// Versions that the rule asks for with their weights; empty when any version will do.
fn wanted(backends: &[Backend]) -> BTreeMap<String, u64> {
    let mut wanted = BTreeMap::new();
    for backend in backends.iter().filter(|backend| backend.weight > 0) {
        let Some(version) = &backend.version else { return BTreeMap::new() };
        *wanted.entry(version.clone()).or_insert(0) += u64::from(backend.weight);
    }
    wanted
}
