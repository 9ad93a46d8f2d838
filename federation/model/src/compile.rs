//! The policy compiler: resources and reports in, the configuration of a cluster's gateways out.
//!
//! [`compile`] is a pure function. Equal input gives equal bytes on every control-plane node, and a change touches only
//! the resources it is about, because each carries a hash of its own content and nothing of its neighbours.
//!
//! Who compiles again and again keeps an [`Index`], tells it what changed, and compiles only the services that it names
//! ([`compile_service`]) and, rarely, what all services share ([`compile_shared`]); together they give what [`compile`]
//! gives, which is what tests hold them against.
//!
//! Names in the result: `mesh`, `revocations`, `cluster/<cluster>`, `peer/<cluster>/<gateway>`,
//! `service/<namespace>/<service>`.

mod import;
mod index;
mod service;
mod tiers;

use std::collections::BTreeMap;

use archipelago_proto::v1::{
    ClusterConfig, ConfigResource, GatewayAddresses, MeshConfig, PeerConfig, Protocol, Revocation, Revocations,
    ServiceReport, UnsupportedService, config_resource::Body,
};
use aws_lc_rs::digest;
use prost::Message;

pub use self::{
    import::import,
    index::{Changed, Index},
};
use crate::{
    export::MergedPort,
    feature,
    id::{ClusterId, ServiceKey},
    resource::{Resource, ResourceKey},
};

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
    /// Service → cluster → fleet version at which the cluster began to report it with today's protocols and ports.
    /// A cluster that is not in it counts as having reported it always.
    pub reported_since: BTreeMap<ServiceKey, BTreeMap<ClusterId, u64>>,
    /// (cluster, gateway) → where it is.
    pub gateways: BTreeMap<(String, String), GatewayRecord>,
    /// (namespace, service, port) → port offset of a TCP port; the port is 0 where the service's first TCP port is meant,
    /// whatever its number.
    pub tcp_slots: BTreeMap<(String, String, u32), u32>,
    /// Certificates that are refused although they are genuine and in date.
    pub revocations: Vec<Revocation>,
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
/// - A service appears once a cluster reports it and it is exported from there; a TCP port also needs its offset.
/// - The ports of all exporters are united ([`crate::export`]); policies are for the whole service, and so are their rules the
///   same for every port, as far as a cluster has it.
/// - A **headless** service does not appear: its clients dial its pods by their own addresses, which lead nowhere in another
///   cluster. That its oldest export is headless makes it so.
/// - A service whose residency allows no cluster at all does not appear: nobody may serve it.
#[must_use]
pub fn compile(state: &FederationState, cluster: &str) -> BTreeMap<String, ConfigResource> {
    let index = Index::of(state);
    let cluster = ClusterId::new(cluster);
    let mut config = compile_shared(&index, &cluster);
    for key in index.services() {
        if let Some(resource) = compile_service(&index, &cluster, key) {
            config.insert(resource.name.clone(), resource);
        }
    }
    config
}

/// Everything but the services: mesh, revocations, clusters, peers.
#[must_use]
pub fn compile_shared(index: &Index, cluster: &ClusterId) -> BTreeMap<String, ConfigResource> {
    let mesh = MeshConfig { trust_domain: index.trust_domain.clone(), bundle_der: index.bundle_der.clone() };
    let mut all = vec![resource(Body::Mesh(mesh))];
    if !index.revocations.is_empty() {
        let body = Revocations { revocations: index.revocations.clone() };
        all.push(resource(Body::Revocations(body)));
    }
    for (name, spec) in &index.clusters {
        let body = ClusterConfig { name: name.to_string(), region: spec.region.clone(), drained: spec.drained };
        all.push(resource(Body::Cluster(body)));
    }
    for (id, record) in &index.gateways {
        let foreign = id.cluster != *cluster && index.clusters.contains_key(&id.cluster);
        if foreign && !record.addresses.tunnel.is_empty() {
            let body = PeerConfig {
                cluster: id.cluster.to_string(),
                gateway: id.name.to_string(),
                spiffe_id: record.spiffe_id.clone(),
                tunnel_addresses: record.addresses.tunnel.clone(),
            };
            all.push(resource(Body::Peer(body)));
        }
    }
    all.into_iter().map(|resource| (resource.name.clone(), resource)).collect()
}

/// One service for the gateways of `cluster`; `None` while nobody may or can serve it.
#[must_use]
pub fn compile_service(index: &Index, cluster: &ClusterId, key: &ServiceKey) -> Option<ConfigResource> {
    let body = service::compile(index, cluster, key)?;
    Some(resource(Body::Service(body)))
}

/// What stands in for a service at a gateway that lacks `missing` features.
#[must_use]
pub fn unsupported(key: &ServiceKey, hosts: Vec<String>, missing: Vec<String>) -> ConfigResource {
    let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
    let body = UnsupportedService { namespace, name, hosts, missing_features: missing };
    resource(Body::UnsupportedService(body))
}

/// Host names that select a service: the clusterset name of the Multi-Cluster Services DNS specification, and its short form.
#[must_use]
pub fn hosts(namespace: &str, name: &str) -> Vec<String> {
    vec![format!("{name}.{namespace}.svc.clusterset.local"), format!("{name}.{namespace}")]
}

/// What a service is to the federation when its clusters have had their say; see [`crate::export`].
///
/// Of clusters that contradict each other the oldest export is believed, for as long as it is there. A cluster that speaks
/// another protocol on a port does not serve it, because no request could be carried over to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// What the endpoints of the first port speak.
    pub protocol: Protocol,
    /// The first port: under which clients know it who know of one.
    pub port: u32,
    /// All ports that are carried, the first included.
    pub ports: Vec<MergedPort>,
    /// It is listed, and not carried.
    pub headless: bool,
    /// Whose word counts.
    pub said_by: ClusterId,
    /// Clusters that export any port of it, sorted, whatever their health.
    pub exporters: Vec<ClusterId>,
    /// Clusters that contradict it, with the port about which and what they speak there; those that serve no port at all are
    /// no exporters.
    pub disagreeing: Vec<(ClusterId, Protocol, u32)>,
}

/// What `key` means; `None` when no cluster exports it.
#[must_use]
pub fn meaning(index: &Index, key: &ServiceKey) -> Option<Meaning> {
    service::offer(index, key)?.meaning()
}

/// Clusters that export a service, sorted, whatever their health.
#[must_use]
pub fn exporters(state: &FederationState, namespace: &str, name: &str) -> Vec<String> {
    let meaning = meaning(&Index::of(state), &ServiceKey::new(namespace, name));
    meaning.map_or_else(Vec::new, |meaning| meaning.exporters.iter().map(ToString::to_string).collect())
}

/// What a resource with this body is called; two with one name are about the same thing.
#[must_use]
pub fn name(body: &Body) -> String {
    match body {
        Body::Mesh(_) => "mesh".to_owned(),
        Body::Revocations(_) => "revocations".to_owned(),
        Body::Cluster(cluster) => format!("cluster/{}", cluster.name),
        Body::Peer(peer) => format!("peer/{}/{}", peer.cluster, peer.gateway),
        Body::Service(service) => format!("service/{}/{}", service.namespace, service.name),
        Body::UnsupportedService(service) => format!("service/{}/{}", service.namespace, service.name),
    }
}

/// A resource under its name, with the features that its body needs and the hash of it.
#[must_use]
pub fn resource(body: Body) -> ConfigResource {
    let name = name(&body);
    let required_features = feature::of(&body).into_iter().map(str::to_owned).collect();
    let mut resource = ConfigResource { body: Some(body), ..ConfigResource::default() };
    let hash = digest::digest(&digest::SHA256, &resource.encode_to_vec());
    resource.version = hash.as_ref().iter().take(VERSION_BYTES).copied().collect();
    ConfigResource { name, required_features, ..resource }
}

const VERSION_BYTES: usize = 16;
