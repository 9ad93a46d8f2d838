//! Rules about resources together: names that exist, one policy per service, residency.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Resources, residency,
    rules::{Complaint, Site},
};
use crate::{
    document::{suggest, tree::shorten},
    resource::{FailoverTier, Resource, ResourceKey},
};

/// Judges the whole set; the order of complaints follows the order of keys.
pub(super) fn resources(resources: &Resources, known: Known, out: &mut Vec<Complaint>) {
    let clusters = Clusters::of(resources);
    if known == Known::All || !clusters.regions.is_empty() {
        references(resources, &clusters, out);
    }
    one_per_service(resources, out);
    residency::leaks(resources, &clusters, out);
}

/// Whether the set holds every cluster there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It is a whole federation.
    All,
    /// Files on their own: without any cluster in them, the clusters are those of the federation they are meant for.
    Files,
}

/// The clusters of a federation and their regions.
pub(super) struct Clusters<'r> {
    regions: BTreeMap<&'r str, &'r str>,
}

impl<'r> Clusters<'r> {
    fn of(resources: &'r Resources) -> Self {
        let regions = resources
            .values()
            .filter_map(|resource| match resource {
                Resource::Cluster(cluster) => Some((cluster.metadata.name.as_str(), cluster.spec.region.as_str())),
                Resource::ServiceExport(_)
                | Resource::TrafficSplit(_)
                | Resource::FailoverPolicy(_)
                | Resource::BackendPolicy(_) => None,
            })
            .collect();
        Self { regions }
    }

    /// Every cluster with its region, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'r str, &'r str)> {
        self.regions.iter().map(|(name, region)| (*name, *region))
    }

    pub(super) fn region(&self, cluster: &str) -> Option<&'r str> {
        self.regions.get(cluster).copied()
    }
}

/// Every cluster and every region that is named must exist.
fn references(resources: &Resources, clusters: &Clusters<'_>, out: &mut Vec<Complaint>) {
    let regions: BTreeSet<&str> = clusters.regions.values().copied().collect();
    for (key, resource) in resources {
        let mut cluster = |path: String, name: &str| {
            if !clusters.regions.contains_key(name) && !name.starts_with('@') {
                let hint = suggest::hint(name, clusters.regions.keys().copied());
                out.push(Complaint::about(key, path, format!("no cluster `{}`{hint}", shorten(name))));
            }
        };
        match resource {
            Resource::Cluster(_) | Resource::BackendPolicy(_) => {}
            Resource::ServiceExport(export) => each("spec.clusters", &export.spec.clusters, &mut cluster),
            Resource::TrafficSplit(split) => {
                for (path, backend) in residency::backends(&split.spec) {
                    cluster(format!("{path}.cluster"), &backend.cluster);
                }
            }
            Resource::FailoverPolicy(policy) => {
                let spec = &policy.spec;
                each("spec.avoid", &spec.avoid, &mut cluster);
                for (index, tier) in spec.order.iter().enumerate() {
                    if let FailoverTier::Clusters(names) = tier {
                        each(&format!("spec.order[{index}].clusters"), names, &mut cluster);
                    }
                }
                if let Some(residency) = &spec.residency {
                    each("spec.residency.clusters", &residency.clusters, &mut cluster);
                }
                let mut region = |path: String, name: &str| {
                    if !regions.contains(name) && !name.starts_with('@') {
                        let hint = suggest::hint(name, regions.iter().copied());
                        let message = format!("no cluster is in region `{}`{hint}", shorten(name));
                        out.push(Complaint::about(key, path, message));
                    }
                };
                for (index, tier) in spec.order.iter().enumerate() {
                    if let FailoverTier::Regions(names) = tier {
                        each(&format!("spec.order[{index}].regions"), names, &mut region);
                    }
                }
                if let Some(residency) = &spec.residency {
                    each("spec.residency.regions", &residency.regions, &mut region);
                }
            }
        }
    }
}

fn each(path: &str, names: &[String], judge: &mut impl FnMut(String, &str)) {
    for (index, name) in names.iter().enumerate() {
        judge(format!("{path}[{index}]"), name);
    }
}

/// A service has at most one TrafficSplit, one FailoverPolicy and one BackendPolicy: two would have to be merged by a rule to remember.
fn one_per_service(resources: &Resources, out: &mut Vec<Complaint>) {
    let mut first: BTreeMap<_, &ResourceKey> = BTreeMap::new();
    for (key, resource) in resources {
        let service = match resource {
            Resource::TrafficSplit(split) => &split.spec.service,
            Resource::FailoverPolicy(policy) => &policy.spec.service,
            Resource::BackendPolicy(policy) => &policy.spec.service,
            Resource::Cluster(_) | Resource::ServiceExport(_) => continue,
        };
        match first.get(&(key.kind, &key.namespace, service)) {
            None => {
                first.insert((key.kind, &key.namespace, service), key);
            }
            Some(earlier) => out.push(Complaint {
                sites: vec![Site::of(key, "spec.service"), Site::of(earlier, "spec.service")],
                message: format!("service `{}/{service}` already has a {}", key.namespace, key.kind),
                duplicate: true,
            }),
        }
    }
}
