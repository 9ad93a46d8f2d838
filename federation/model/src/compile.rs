//! The policy compiler: resources and reports in, the configuration of a cluster's gateways out.
//!
//! [`compile`] is a pure function. Equal input gives equal bytes on every control-plane node, and a change touches only
//! the resources it is about, because each carries a hash of its own content and nothing of its neighbours.
//!
//! Names in the result: `mesh`, `cluster/<cluster>`, `peer/<cluster>/<gateway>`, `service/<namespace>/<service>`.

mod service;
mod tiers;

use std::collections::BTreeMap;

use archipelago_proto::v1::{
    ClusterConfig, ConfigResource, GatewayAddresses, MeshConfig, PeerConfig, ServiceReport, config_resource::Body,
};
use aws_lc_rs::digest;
use prost::Message;

use crate::resource::{FailoverPolicySpec, Resource, ResourceKey, TrafficSplitSpec};

/// Everything that configuration is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FederationState {
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Root certificates, DER.
    pub bundle_der: Vec<Vec<u8>>,
    /// Admitted resources.
    pub resources: BTreeMap<ResourceKey, Resource>,
    /// Cluster → what its agent last reported. Kept while the agent is away: silence is not absence.
    pub reports: BTreeMap<String, Vec<ServiceReport>>,
    /// (cluster, gateway) → where it is.
    pub gateways: BTreeMap<(String, String), GatewayRecord>,
    /// (namespace, service) → slot of a TCP service.
    pub tcp_slots: BTreeMap<(String, String), u32>,
}

/// A gateway that has joined.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GatewayRecord {
    /// Its identity.
    pub spiffe_id: String,
    /// Where its ports are.
    pub addresses: GatewayAddresses,
}

/// Compiles what every gateway of `cluster` runs, by resource name.
///
/// - Reports and gateways of a cluster without a `Cluster` resource count for nothing.
/// - A service appears once a cluster reports *and* exports it; a TCP service also needs its slot.
/// - A service whose residency allows no cluster at all does not appear: nobody may serve it.
#[must_use]
pub fn compile(state: &FederationState, cluster: &str) -> BTreeMap<String, ConfigResource> {
    let view = View::of(state);
    let mut config = BTreeMap::new();
    let mut add = |name: String, body: Body| {
        let version = version(&body).into();
        config.insert(name.clone(), ConfigResource { name, version, required_features: Vec::new(), body: Some(body) });
    };
    let mesh = MeshConfig { trust_domain: state.trust_domain.clone(), bundle_der: state.bundle_der.clone() };
    add("mesh".to_owned(), Body::Mesh(mesh));
    for (name, facts) in &view.clusters {
        let body = ClusterConfig { name: (*name).to_owned(), region: facts.region.to_owned(), drained: facts.drained };
        add(format!("cluster/{name}"), Body::Cluster(body));
    }
    for ((peer_cluster, gateway), record) in &state.gateways {
        let foreign = peer_cluster != cluster && view.clusters.contains_key(peer_cluster.as_str());
        if foreign && !record.addresses.tunnel.is_empty() {
            let body = PeerConfig {
                cluster: peer_cluster.clone(),
                gateway: gateway.clone(),
                spiffe_id: record.spiffe_id.clone(),
                tunnel_addresses: record.addresses.tunnel.clone(),
            };
            add(format!("peer/{peer_cluster}/{gateway}"), Body::Peer(body));
        }
    }
    for (namespace, name) in view.exported() {
        if let Some(body) = service::compile(&view, state, cluster, namespace, name) {
            add(format!("service/{namespace}/{name}"), Body::Service(body));
        }
    }
    config
}

/// Host names that select a service: the clusterset name of the Multi-Cluster Services DNS specification, and its short form.
#[must_use]
pub fn hosts(namespace: &str, name: &str) -> Vec<String> {
    vec![format!("{name}.{namespace}.svc.clusterset.local"), format!("{name}.{namespace}")]
}

/// Clusters that export a service, sorted, whatever their health.
#[must_use]
pub fn exporters(state: &FederationState, namespace: &str, name: &str) -> Vec<String> {
    let view = View::of(state);
    service::offer(&view, namespace, name)
        .map_or_else(Vec::new, |offer| offer.exporters.keys().map(|cluster| (*cluster).to_owned()).collect())
}

/// First 16 bytes of SHA-256 over the encoded body.
fn version(body: &Body) -> Vec<u8> {
    let bytes = ConfigResource { body: Some(body.clone()), ..ConfigResource::default() }.encode_to_vec();
    let hash = digest::digest(&digest::SHA256, &bytes);
    hash.as_ref().iter().take(VERSION_BYTES).copied().collect()
}

const VERSION_BYTES: usize = 16;

/// The state, indexed for the compiler.
struct View<'s> {
    clusters: BTreeMap<&'s str, ClusterFacts<'s>>,
    /// (namespace, service) → clusters that may export it by resource; empty: every one.
    exports: BTreeMap<(&'s str, &'s str), &'s [String]>,
    splits: BTreeMap<(&'s str, &'s str), &'s TrafficSplitSpec>,
    policies: BTreeMap<(&'s str, &'s str), &'s FailoverPolicySpec>,
    /// (namespace, service) → cluster → its report.
    reports: BTreeMap<(&'s str, &'s str), BTreeMap<&'s str, &'s ServiceReport>>,
}

#[derive(Debug, Clone, Copy)]
struct ClusterFacts<'s> {
    region: &'s str,
    drained: bool,
}

impl<'s> View<'s> {
    fn of(state: &'s FederationState) -> Self {
        let mut view = Self {
            clusters: BTreeMap::new(),
            exports: BTreeMap::new(),
            splits: BTreeMap::new(),
            policies: BTreeMap::new(),
            reports: BTreeMap::new(),
        };
        for (key, resource) in &state.resources {
            let namespace = key.namespace.as_str();
            match resource {
                Resource::Cluster(cluster) => {
                    let facts = ClusterFacts { region: &cluster.spec.region, drained: cluster.spec.drained };
                    view.clusters.insert(&key.name, facts);
                }
                Resource::ServiceExport(export) => {
                    view.exports.insert((namespace, &key.name), &export.spec.clusters);
                }
                // Admission allows one per service; should there be two, the first by name counts everywhere alike.
                Resource::TrafficSplit(split) => {
                    view.splits.entry((namespace, &split.spec.service)).or_insert(&split.spec);
                }
                Resource::FailoverPolicy(policy) => {
                    view.policies.entry((namespace, &policy.spec.service)).or_insert(&policy.spec);
                }
            }
        }
        for (cluster, reports) in &state.reports {
            if !view.clusters.contains_key(cluster.as_str()) {
                continue;
            }
            for report in reports {
                let service = (report.namespace.as_str(), report.name.as_str());
                view.reports.entry(service).or_default().insert(cluster, report);
            }
        }
        view
    }

    /// Services that at least one cluster reports and exports, sorted.
    fn exported(&self) -> impl Iterator<Item = (&'s str, &'s str)> {
        self.reports
            .iter()
            .filter(|(service, reports)| {
                reports.iter().any(|(cluster, report)| self.exports(**service, cluster, report))
            })
            .map(|(service, _)| *service)
    }

    /// Whether `cluster` offers the service to others: by its own ServiceExport, or by one of the federation.
    fn exports(&self, service: (&str, &str), cluster: &str, report: &ServiceReport) -> bool {
        report.exported
            || self
                .exports
                .get(&service)
                .is_some_and(|clusters| clusters.is_empty() || clusters.iter().any(|name| name == cluster))
    }
}
