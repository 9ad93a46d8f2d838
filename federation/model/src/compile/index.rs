//! The federation by service: what the compiler reads, kept up to date change by change.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_proto::v1::{Exporter, Revocation, ServiceReport};

use super::{FederationState, GatewayRecord};
use crate::{
    export,
    id::{ClusterId, GatewayId, ServiceKey},
    resource::{
        BackendPolicySpec, ClusterSpec, FailoverPolicySpec, Kind, Resource, ResourceKey, ServiceExportSpec,
        StreamLimits, TrafficSplitSpec,
    },
};

/// What the compiler reads, by what it reads it for. Every setter says which results may differ from now on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    pub(super) trust_domain: String,
    pub(super) bundle_der: Vec<Vec<u8>>,
    pub(super) revocations: Vec<Revocation>,
    pub(super) clusters: BTreeMap<ClusterId, ClusterSpec>,
    pub(super) gateways: BTreeMap<GatewayId, GatewayRecord>,
    pub(super) facts: BTreeMap<ServiceKey, Facts>,
    /// Which services a cluster reports.
    reported: BTreeMap<ClusterId, BTreeSet<ServiceKey>>,
    /// Which service a resource is about.
    about: BTreeMap<ResourceKey, ServiceKey>,
}

/// What is known of one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) export: Option<ServiceExportSpec>,
    /// By name of the resource: admission allows one per service; should there be two, the first by name counts
    /// everywhere alike.
    pub(super) splits: BTreeMap<String, TrafficSplitSpec>,
    /// As `splits`.
    pub(super) policies: BTreeMap<String, FailoverPolicySpec>,
    /// As `splits`.
    pub(super) backends: BTreeMap<String, BackendPolicySpec>,
    pub(super) reports: BTreeMap<ClusterId, Report>,
    /// Port → offset; 0 stands for the first TCP port.
    pub(super) tcp_offsets: BTreeMap<u32, u32>,
}

/// What a cluster says of a service, as far as configuration depends on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    pub(super) exported: bool,
    pub(super) versions: Vec<String>,
    /// Its ports and its age.
    pub(super) says: Exporter,
}

impl Report {
    fn of(cluster: &ClusterId, report: &ServiceReport, since: u64) -> Self {
        let says = export::exporter(cluster.as_str(), report, since);
        Self { exported: report.exported, versions: report.versions.clone(), says }
    }
}

/// Which results a change may have touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// These services.
    pub services: BTreeSet<ServiceKey>,
    /// Every service: clusters came, went or moved.
    pub every_service: bool,
    /// What [`super::compile_shared`] gives.
    pub shared: bool,
}

impl Changed {
    /// True when nothing has to be compiled again.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.services.is_empty() && !self.every_service && !self.shared
    }

    /// Adds what another change touched.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.every_service |= other.every_service;
        self.shared |= other.shared;
    }

    fn service(key: ServiceKey) -> Self {
        Self { services: BTreeSet::from([key]), ..Self::default() }
    }

    fn shared(changed: bool) -> Self {
        Self { shared: changed, ..Self::default() }
    }
}

impl Index {
    /// Indexes a whole state.
    #[must_use]
    pub fn of(state: &FederationState) -> Self {
        let mut index = Self::default();
        index.set_authority(&state.trust_domain, &state.bundle_der);
        index.set_revocations(&state.revocations);
        for (key, resource) in &state.resources {
            index.set_resource(key, Some(resource));
        }
        for (cluster, reports) in &state.reports {
            let cluster = ClusterId::new(cluster.as_str());
            index.set_reports(&cluster, reports, |key| {
                state.reported_since.get(key).and_then(|clusters| clusters.get(&cluster)).copied().unwrap_or(0)
            });
        }
        for ((cluster, name), record) in &state.gateways {
            index.set_gateway(&GatewayId::new(cluster.as_str(), name.as_str()), Some(record));
        }
        for ((namespace, name, port), offset) in &state.tcp_slots {
            index.set_tcp_offset(&ServiceKey::new(namespace.as_str(), name.as_str()), *port, Some(*offset));
        }
        index
    }

    /// Every service that anything is known of, sorted; not all of them can be compiled.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.facts.keys()
    }

    /// Every declared cluster, sorted.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterId> {
        self.clusters.keys()
    }

    /// Sets trust domain and roots.
    pub fn set_authority(&mut self, trust_domain: &str, bundle_der: &[Vec<u8>]) -> Changed {
        let changed = self.trust_domain != trust_domain || self.bundle_der != bundle_der;
        if changed {
            trust_domain.clone_into(&mut self.trust_domain);
            self.bundle_der = bundle_der.to_vec();
        }
        Changed::shared(changed)
    }

    /// Sets the list of revocations.
    pub fn set_revocations(&mut self, revocations: &[Revocation]) -> Changed {
        let changed = self.revocations != revocations;
        if changed {
            self.revocations = revocations.to_vec();
        }
        Changed::shared(changed)
    }

    /// Sets, or with `None` removes, a resource.
    pub fn set_resource(&mut self, key: &ResourceKey, resource: Option<&Resource>) -> Changed {
        if let Some(Resource::Cluster(cluster)) = resource {
            return self.set_cluster(&key.name, Some(&cluster.spec));
        }
        let mut changed = Changed::default();
        if let Some(service) = self.about.remove(key) {
            self.edit(&service, |facts| facts.forget(key));
            changed.services.insert(service);
        } else if key.kind == Kind::Cluster {
            return self.set_cluster(&key.name, None);
        }
        let service = |name: &str| ServiceKey::new(key.namespace.as_str(), name);
        let service = match resource {
            None | Some(Resource::Cluster(_)) => return changed,
            Some(Resource::ServiceExport(export)) => {
                let service = service(&key.name);
                self.edit(&service, |facts| facts.export = Some(export.spec.clone()));
                service
            }
            Some(Resource::TrafficSplit(split)) => {
                let service = service(&split.spec.service);
                self.edit(&service, |facts| drop(facts.splits.insert(key.name.clone(), split.spec.clone())));
                service
            }
            Some(Resource::FailoverPolicy(policy)) => {
                let service = service(&policy.spec.service);
                self.edit(&service, |facts| drop(facts.policies.insert(key.name.clone(), policy.spec.clone())));
                service
            }
            Some(Resource::BackendPolicy(policy)) => {
                let service = service(&policy.spec.service);
                self.edit(&service, |facts| drop(facts.backends.insert(key.name.clone(), policy.spec.clone())));
                service
            }
        };
        self.about.insert(key.clone(), service.clone());
        changed.services.insert(service);
        changed
    }

    /// Sets everything that a cluster reports; `since` says for each service at which fleet version the cluster began to
    /// report it as it does now.
    pub fn set_reports(
        &mut self,
        cluster: &ClusterId,
        reports: &[ServiceReport],
        since: impl Fn(&ServiceKey) -> u64,
    ) -> Changed {
        let mut gone = self.reported.remove(cluster).unwrap_or_default();
        let mut now = BTreeSet::new();
        let mut changed = Changed::default();
        for report in reports {
            let key = ServiceKey::new(report.namespace.as_str(), report.name.as_str());
            let report = Report::of(cluster, report, since(&key));
            gone.remove(&key);
            let before = self.facts.get(&key).and_then(|facts| facts.reports.get(cluster));
            if before != Some(&report) {
                self.edit(&key, |facts| drop(facts.reports.insert(cluster.clone(), report)));
                changed.services.insert(key.clone());
            }
            now.insert(key);
        }
        for key in gone {
            self.edit(&key, |facts| drop(facts.reports.remove(cluster)));
            changed.services.insert(key);
        }
        if !now.is_empty() {
            self.reported.insert(cluster.clone(), now);
        }
        changed
    }

    /// Sets, or with `None` removes, a gateway.
    pub fn set_gateway(&mut self, id: &GatewayId, record: Option<&GatewayRecord>) -> Changed {
        Changed::shared(set(&mut self.gateways, id, record))
    }

    /// Sets, or with `None` takes back, the port offset of a TCP port; 0 stands for the first one of the service.
    pub fn set_tcp_offset(&mut self, service: &ServiceKey, port: u32, offset: Option<u32>) -> Changed {
        if self.facts.get(service).and_then(|facts| facts.tcp_offsets.get(&port).copied()) == offset {
            return Changed::default();
        }
        self.edit(service, |facts| {
            match offset {
                Some(offset) => facts.tcp_offsets.insert(port, offset),
                None => facts.tcp_offsets.remove(&port),
            };
        });
        Changed::service(service.clone())
    }

    fn set_cluster(&mut self, name: &str, spec: Option<&ClusterSpec>) -> Changed {
        let region = |index: &Self| index.clusters.get(name).map(|spec| spec.region.clone());
        let before = region(self);
        let shared = set(&mut self.clusters, &ClusterId::new(name), spec);
        Changed { shared, every_service: before != region(self), ..Changed::default() }
    }

    /// Changes what is known of a service, and forgets one of which nothing is known any more.
    fn edit(&mut self, key: &ServiceKey, change: impl FnOnce(&mut Facts)) {
        let facts = self.facts.entry(key.clone()).or_default();
        change(facts);
        if *facts == Facts::default() {
            self.facts.remove(key);
        }
    }
}

impl Facts {
    pub(super) fn split(&self) -> Option<&TrafficSplitSpec> {
        self.splits.values().next()
    }

    pub(super) fn policy(&self) -> Option<&FailoverPolicySpec> {
        self.policies.values().next()
    }

    pub(super) fn limits(&self) -> Option<&StreamLimits> {
        self.backends.values().next().map(|policy| &policy.limits)
    }

    /// Whether the service is exported from `cluster`: an operator's export says for all clusters or for those that it
    /// names and no others; without one, the cluster itself says it.
    pub(super) fn exports(&self, cluster: &ClusterId, report: &Report) -> bool {
        match &self.export {
            None => report.exported,
            Some(export) => export.clusters.is_empty() || export.clusters.iter().any(|name| *cluster == **name),
        }
    }

    fn forget(&mut self, key: &ResourceKey) {
        match key.kind {
            Kind::Cluster => {}
            Kind::ServiceExport => self.export = None,
            Kind::TrafficSplit => drop(self.splits.remove(&key.name)),
            Kind::FailoverPolicy => drop(self.policies.remove(&key.name)),
            Kind::BackendPolicy => drop(self.backends.remove(&key.name)),
        }
    }
}

/// True when it changed anything.
fn set<K: Ord + Clone, V: PartialEq + Clone>(map: &mut BTreeMap<K, V>, key: &K, value: Option<&V>) -> bool {
    if map.get(key) == value {
        return false;
    }
    match value {
        Some(value) => map.insert(key.clone(), value.clone()),
        None => map.remove(key),
    };
    true
}
