//! What is allowed and probably not meant: policies come before deployments, and so do slips of the pen.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_proto::v1::{Protocol, ServiceReport};

use super::{Finding, PROBLEMS_MAX, Resources, residency};
use crate::{
    document::{suggest, tree::shorten},
    export,
    resource::{
        BackendPolicySpec, Cluster, FailoverPolicySpec, FailoverTier, LOCAL, Resource, ResourceKey, ServiceExportSpec,
        TrafficSplitSpec,
    },
};

/// Cluster → what its agent last reported.
pub type Reports = BTreeMap<String, Vec<ServiceReport>>;

/// Says of `written`, resources that were just admitted, what an operator may want to look at again.
///
/// `resources` is everything as it is now, `written` included. Each thing is said once, at the first place where it
/// shows; at most [`PROBLEMS_MAX`] findings, in the order of `written`.
#[must_use]
pub fn warnings(written: &[Resource], resources: &Resources, reports: &Reports) -> Vec<Finding> {
    let fleet = Fleet::of(resources, reports);
    let mut out = Vec::new();
    for resource in written {
        let key = resource.key();
        let mut notes = Notes { key: &key, said: BTreeSet::new(), out: &mut out };
        match resource {
            Resource::Cluster(_) => {}
            Resource::ServiceExport(export) => service_export(&key, &export.spec, &fleet, &mut notes),
            Resource::TrafficSplit(split) => traffic_split(&key, &split.spec, &fleet, &mut notes),
            Resource::FailoverPolicy(policy) => failover_policy(&key, &policy.spec, &fleet, &mut notes),
            Resource::BackendPolicy(policy) => backend_policy(&key, &policy.spec, &fleet, &mut notes),
        }
    }
    out.truncate(PROBLEMS_MAX);
    out
}

type Service<'f> = (&'f str, &'f str);

/// What the clusters of the federation run, and what operators said of them.
struct Fleet<'f> {
    clusters: BTreeMap<&'f str, &'f Cluster>,
    /// Clusters whose agent has reported anything at all.
    reporting: BTreeSet<&'f str>,
    services: BTreeMap<Service<'f>, BTreeMap<&'f str, &'f ServiceReport>>,
    policies: BTreeMap<Service<'f>, (&'f ResourceKey, &'f FailoverPolicySpec)>,
}

impl<'f> Fleet<'f> {
    fn of(resources: &'f Resources, reports: &'f Reports) -> Self {
        let mut fleet = Self {
            clusters: BTreeMap::new(),
            reporting: BTreeSet::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        for (key, resource) in resources {
            match resource {
                Resource::Cluster(cluster) => drop(fleet.clusters.insert(&key.name, cluster)),
                Resource::FailoverPolicy(policy) => {
                    let service = (key.namespace.as_str(), policy.spec.service.as_str());
                    fleet.policies.entry(service).or_insert((key, &policy.spec));
                }
                Resource::ServiceExport(_) | Resource::TrafficSplit(_) | Resource::BackendPolicy(_) => {}
            }
        }
        for (cluster, reports) in reports {
            if !fleet.clusters.contains_key(cluster.as_str()) || reports.is_empty() {
                continue;
            }
            fleet.reporting.insert(cluster);
            for report in reports {
                let service = (report.namespace.as_str(), report.name.as_str());
                fleet.services.entry(service).or_default().insert(cluster, report);
            }
        }
        fleet
    }

    /// Who runs the service; says so when nobody does.
    fn runs(
        &self,
        service: Service<'_>,
        path: &str,
        notes: &mut Notes<'_>,
    ) -> Option<&BTreeMap<&'f str, &'f ServiceReport>> {
        let found = self.services.iter().find(|(key, _)| **key == service).map(|(_, reports)| reports);
        if found.is_none() {
            let (namespace, name) = service;
            let wanted = format!("{namespace}/{name}");
            let known: Vec<String> =
                self.services.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
            let hint = suggest::hint(&wanted, known.iter().map(String::as_str));
            notes.add(path, format!("no cluster has reported a service `{}` yet{hint}", shorten(&wanted)));
        }
        found
    }
}

struct Notes<'n> {
    key: &'n ResourceKey,
    said: BTreeSet<String>,
    out: &'n mut Vec<Finding>,
}

impl Notes<'_> {
    fn add(&mut self, path: impl Into<String>, message: String) {
        // One more than are shown is enough to know that there are more.
        if self.out.len() <= PROBLEMS_MAX && self.said.insert(message.clone()) {
            self.out.push(Finding { key: self.key.clone(), path: path.into(), message });
        }
    }
}

fn backend_policy(key: &ResourceKey, spec: &BackendPolicySpec, fleet: &Fleet<'_>, notes: &mut Notes<'_>) {
    let limits = &spec.limits;
    if limits.upload_min_rate == Some(0) && limits.upload_grace.is_some() {
        notes.add("spec.limits.uploadGrace", "nothing is measured over it: `uploadMinRate` is 0".to_owned());
    }
    if limits.upload_min_rate.is_some_and(|rate| rate > FAST) {
        let message =
            format!("clients of mobile networks often send less than {FAST} bytes a second: they will be refused");
        notes.add("spec.limits.uploadMinRate", message);
    }
    let Some(runs) = fleet.runs((&key.namespace, &spec.service), "spec.service", notes) else { return };
    let mut ports = runs.values().flat_map(|report| export::ports_of(report));
    if ports.all(|port| port.protocol() == Protocol::Tcp) {
        let (namespace, name) = (&key.namespace, shorten(&spec.service));
        let message = format!("{namespace}/{name} is a TCP service: these limits are for requests of HTTP");
        notes.add("spec.service", message);
    }
}

fn service_export(key: &ResourceKey, spec: &ServiceExportSpec, fleet: &Fleet<'_>, notes: &mut Notes<'_>) {
    let service = (key.namespace.as_str(), key.name.as_str());
    let Some(runs) = fleet.runs(service, "metadata.name", notes) else { return };
    for (index, cluster) in spec.clusters.iter().enumerate() {
        absent(service, cluster, format!("spec.clusters[{index}]"), runs, fleet, notes);
    }
}

fn traffic_split(key: &ResourceKey, spec: &TrafficSplitSpec, fleet: &Fleet<'_>, notes: &mut Notes<'_>) {
    let service = (key.namespace.as_str(), spec.service.as_str());
    let name = format!("{}/{}", key.namespace, spec.service);
    if let Some((policy, over)) = fleet.policies.get(&service) {
        for (path, backend) in residency::backends(spec).filter(|(_, backend)| backend.weight > 0) {
            if over.avoid.contains(&backend.cluster) {
                let message = format!(
                    "requests do not go to `{}` while another cluster can serve: {policy} keeps them away (`meshctl failover trigger`)",
                    backend.cluster
                );
                notes.add(format!("{path}.cluster"), message);
            }
        }
    }
    for (path, backend) in residency::backends(spec).filter(|(_, backend)| backend.weight > 0) {
        if fleet.clusters.get(backend.cluster.as_str()).is_some_and(|cluster| cluster.spec.drained) {
            let message =
                format!("requests do not go to `{}` while another cluster can serve: it is drained", backend.cluster);
            notes.add(format!("{path}.cluster"), message);
        }
    }
    let Some(runs) = fleet.runs(service, "spec.service", notes) else { return };
    let mut ports = runs.values().flat_map(|report| export::ports_of(report));
    if ports.all(|port| port.protocol() == Protocol::Tcp) {
        if !spec.routes.is_empty() {
            notes.add(
                "spec.routes",
                format!("{name} is a TCP service: routes match HTTP requests, so none is ever used"),
            );
        }
        if spec.sticky.is_some() {
            notes.add("spec.sticky", format!("{name} is a TCP service: its connections carry no header or cookie"));
        }
    }
    for (path, backend) in residency::backends(spec).filter(|(_, backend)| backend.weight > 0) {
        let Some(report) = runs.get(backend.cluster.as_str()) else {
            absent(service, &backend.cluster, format!("{path}.cluster"), runs, fleet, notes);
            continue;
        };
        let Some(version) = backend.version.as_ref().filter(|version| !report.versions.contains(version)) else {
            continue;
        };
        let known: Vec<&str> = report.versions.iter().map(String::as_str).collect();
        let hint = suggest::hint(version, known.iter().copied());
        let runs = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message =
            format!("nobody runs version `{version}` of {name} in `{}`{hint}: it reports {runs}", backend.cluster);
        notes.add(format!("{path}.version"), message);
    }
}

fn failover_policy(key: &ResourceKey, spec: &FailoverPolicySpec, fleet: &Fleet<'_>, notes: &mut Notes<'_>) {
    let service = (key.namespace.as_str(), spec.service.as_str());
    let Some(runs) = fleet.runs(service, "spec.service", notes) else { return };
    for (tier, names) in spec.order.iter().enumerate() {
        let FailoverTier::Clusters(names) = names else { continue };
        for (index, cluster) in names.iter().enumerate().filter(|(_, name)| *name != LOCAL) {
            absent(service, cluster, format!("spec.order[{tier}].clusters[{index}]"), runs, fleet, notes);
        }
    }
}

/// Says that `cluster` does not run the service, when that is so.
fn absent(
    (namespace, name): Service<'_>,
    cluster: &str,
    path: String,
    runs: &BTreeMap<&str, &ServiceReport>,
    fleet: &Fleet<'_>,
    notes: &mut Notes<'_>,
) {
    if !runs.contains_key(cluster) {
        let what = match fleet.reporting.contains(cluster) {
            true => format!("does not report {namespace}/{name}"),
            false => "has reported nothing yet".to_owned(),
        };
        notes.add(path, format!("cluster `{}` {what}", shorten(cluster)));
    }
}

/// Bytes in a second.
const FAST: u32 = 10_000;
