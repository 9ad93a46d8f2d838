//! From the resources in hand to a snapshot, one resource at a time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use archipelago_identity::revocation::Revocations;
use archipelago_model::{compile, feature};
use archipelago_proto::v1::{self as proto, ConfigResource, config_resource::Body};

use super::{Closed, Cluster, Peer, Protocol, Service, Snapshot, read};
use crate::config::ConfigState;
use crate::route;

/// A snapshot, and what of the state is not in it.
#[derive(Debug)]
pub struct Built {
    /// Fit to run.
    pub snapshot: Snapshot,
    /// In the order of the resources' names.
    pub rejected: Vec<Rejected>,
}

/// A resource that this gateway cannot use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub resource: String,
    /// Its version.
    pub version: Vec<u8>,
    /// What is wrong with it.
    pub reason: String,
    /// What runs instead.
    pub kept: Kept,
}

/// What runs instead of a rejected resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The form of it that ran before.
    LastGood,
    /// Nothing: a service is answered closed, anything else is not there.
    Closed,
}

/// Why a configuration was refused as a whole; the last good one stays.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{resource}: {reason}")]
pub struct SnapshotError {
    /// Name of the resource at fault.
    pub resource: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a service was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    version: Vec<u8>,
    /// Fingerprint of its local endpoints.
    local: u64,
}

/// Names of clusters to their places in the snapshot.
pub(super) type Clusters = BTreeMap<Arc<str>, usize>;

impl Snapshot {
    /// Makes the snapshot of a state. Pure; `previous` is what runs now.
    ///
    /// A resource that cannot be used keeps the form that it has in `previous`, or is closed, and touches no other one. A
    /// service that did not change is the same `Arc` as before: a change costs the services it is about, and the maps.
    /// Local services never fail (an agent's unusable endpoint is left out).
    ///
    /// # Errors
    /// The configuration is that of another trust domain: nothing in it is meant for this gateway.
    pub fn build(
        state: &ConfigState,
        cluster: &str,
        trust_domain: &str,
        previous: &Self,
    ) -> Result<Built, SnapshotError> {
        let mut builder = Builder { previous, rejected: Vec::new(), out: Self::empty() };
        builder.out.revision = state.held.version.revision;
        let mut peers = Vec::new();
        let mut services = Vec::new();
        for resource in state.held.resources.iter() {
            let resource: &ConfigResource = resource;
            match usable(resource) {
                Ok(Body::Mesh(mesh)) if mesh.trust_domain != trust_domain => {
                    let reason =
                        format!("trust domain {:?}, this gateway belongs to {trust_domain:?}", mesh.trust_domain);
                    return Err(SnapshotError { resource: resource.name.clone(), reason });
                }
                Ok(Body::Mesh(mesh)) => builder.out.trust_domain.clone_from(&mesh.trust_domain),
                Ok(Body::Cluster(config)) => builder.out.clusters.push(read::cluster(config)),
                Ok(Body::Revocations(list)) => builder.revocations(resource, list),
                Ok(Body::Peer(peer)) => peers.push((resource, peer)),
                Ok(Body::Service(service)) => services.push((resource, service)),
                Ok(Body::UnsupportedService(service)) => builder.out.closed.push(read::unsupported(service)),
                Err(reason) => builder.broken(resource, reason),
            }
        }
        builder.out.clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let clusters: Clusters =
            builder.out.clusters.iter().enumerate().map(|(place, c)| (Arc::clone(&c.name), place)).collect();
        builder.out.own_cluster = clusters.get(cluster).copied();
        builder.peers(peers, &clusters);
        builder.services(services, &clusters, state);
        builder.rejected.sort_by(|a, b| a.resource.cmp(&b.resource));
        Ok(Built { snapshot: builder.out, rejected: builder.rejected })
    }
}

/// The body of a resource that this gateway can read at all.
fn usable(resource: &ConfigResource) -> Result<&Body, String> {
    if let Some(missing) = resource.required_features.iter().find(|name| !feature::is_supported(name)) {
        return Err(format!("it needs {missing}, which this gateway lacks"));
    }
    let body = resource.body.as_ref().ok_or("an unknown kind of resource: this gateway is too old for it")?;
    let name = compile::name(body);
    // Names are unique, so this also means that no two resources are about the same thing.
    if name == resource.name { Ok(body) } else { Err(format!("it is about {name}")) }
}

struct Builder<'p> {
    previous: &'p Snapshot,
    rejected: Vec<Rejected>,
    out: Snapshot,
}

impl Builder<'_> {
    fn reject(&mut self, resource: &ConfigResource, reason: String, kept: Kept) {
        let (name, version) = (resource.name.clone(), resource.version.to_vec());
        self.rejected.push(Rejected { resource: name, version, reason, kept });
    }

    /// A resource of which nothing but its name can be read.
    fn broken(&mut self, resource: &ConfigResource, reason: String) {
        let previous = self.previous;
        let parts: Vec<&str> = resource.name.splitn(3, '/').collect();
        let kept = match parts.as_slice() {
            ["mesh"] if !previous.trust_domain.is_empty() => {
                self.out.trust_domain.clone_from(&previous.trust_domain);
                Kept::LastGood
            }
            ["revocations"] => {
                // An empty list is no list: nobody may come in while it is not known who must not.
                self.out.revocations = previous.revocations.clone().filter(|list| !list.is_empty());
                match &self.out.revocations {
                    Some(_) => Kept::LastGood,
                    None => {
                        let reason = format!("{reason}; no gateway is let in, and none called, until it can be read");
                        self.reject(resource, reason, Kept::Closed);
                        return;
                    }
                }
            }
            ["cluster", name] => match previous.clusters.iter().find(|cluster| *cluster.name == **name) {
                Some(cluster) => {
                    self.out.clusters.push(cluster.clone());
                    Kept::LastGood
                }
                None => Kept::Closed,
            },
            // Decided when all clusters are known.
            ["peer", ..] | ["service", _, _] => {
                self.reject(resource, reason, Kept::Closed);
                return;
            }
            _ => Kept::Closed,
        };
        self.reject(resource, reason, kept);
    }

    /// What can be understood of the list counts, at once: a revocation is urgent, and never lets anyone in.
    fn revocations(&mut self, resource: &ConfigResource, list: &proto::Revocations) {
        let mut understood = Revocations::default();
        let mut reason = None;
        for entry in &list.revocations {
            match read::revocation(entry) {
                Ok((subject, issued_before)) => understood.refuse(subject, issued_before),
                Err(why) => reason = reason.or(Some(why)),
            }
        }
        if let Some(reason) = reason {
            if let Some(before) = &self.previous.revocations {
                understood.merge(before);
            }
            self.reject(resource, reason, Kept::LastGood);
        }
        self.out.revocations = Some(Arc::new(understood));
    }

    fn peers(&mut self, peers: Vec<(&ConfigResource, &proto::PeerConfig)>, clusters: &Clusters) {
        for (resource, config) in peers {
            match read::peer(config, clusters) {
                Ok(peer) => self.out.peers.push(peer),
                Err(reason) => self.reject(resource, reason, Kept::Closed),
            }
        }
        let previous = self.previous;
        for rejected in self.rejected.iter_mut().filter(|rejected| rejected.resource.starts_with("peer/")) {
            let before = previous.peers.iter().find(|peer| {
                let cluster = previous.cluster_name(peer.cluster);
                rejected.resource == format!("peer/{cluster}/{}", peer.gateway)
            });
            if let Some(peer) = before
                && let Some(cluster) = clusters.get(previous.cluster_name(peer.cluster))
            {
                self.out.peers.push(Peer { cluster: *cluster, ..peer.clone() });
                rejected.kept = Kept::LastGood;
            }
        }
    }

    fn services(
        &mut self,
        services: Vec<(&ConfigResource, &proto::ServiceConfig)>,
        clusters: &Clusters,
        state: &ConfigState,
    ) {
        let previous = self.previous;
        let same_clusters = same_names(&previous.clusters, &self.out.clusters);
        let mut candidates = Vec::with_capacity(services.len());
        for (resource, config) in services {
            let key = format!("{}/{}", config.namespace, config.name);
            let local = state.local.get(&key).map(|local| &**local);
            let source = Source { version: resource.version.to_vec(), local: fingerprint(local) };
            let before = previous.service(&key).filter(|before| {
                same_clusters && !source.version.is_empty() && before.source.version == source.version
            });
            let made = match before {
                Some(before) if before.source.local == source.local => Ok((Rank::AsBefore, Arc::clone(before))),
                Some(before) => Ok((Rank::AsBefore, Arc::new(before.with_local(source, local)))),
                None => read::service(config, clusters, local, source).map(|service| {
                    let own = compile::hosts(&service.namespace, &service.name);
                    let modest = service.hosts.iter().all(|host| own.contains(host));
                    (if modest { Rank::OwnNames } else { Rank::OtherNames }, Arc::new(service))
                }),
            };
            match made {
                Ok((rank, service)) => candidates.push((rank, service, resource)),
                Err(reason) => self.reject(resource, reason, Kept::Closed),
            }
        }
        candidates.sort_by(|(a, one, _), (b, other, _)| a.cmp(b).then_with(|| one.key.cmp(&other.key)));
        let mut taken = Taken::default();
        for (_, service, resource) in candidates {
            match taken.take(service) {
                Ok(()) => {}
                Err(reason) => self.reject(resource, reason, Kept::Closed),
            }
        }
        self.keep_services(&mut taken, same_clusters, clusters, state);
        self.out.services = taken.services.into_values().collect();
        for (place, service) in self.out.services.iter().enumerate() {
            self.out.keys.insert(Arc::clone(&service.key), place);
            self.out.hosts.extend(service.hosts.iter().map(|host| (host.as_str().into(), place)));
        }
        self.out.closed.sort_by(|a, b| a.key.cmp(&b.key));
        for (place, closed) in self.out.closed.iter().enumerate() {
            self.out.closed_hosts.extend(closed.hosts.iter().map(|host| (host.as_str().into(), place)));
        }
    }

    /// Gives every rejected service its last good form, as far as nobody stands in its place now, or closes it.
    fn keep_services(&mut self, taken: &mut Taken, same_clusters: bool, clusters: &Clusters, state: &ConfigState) {
        let previous = self.previous;
        for rejected in &mut self.rejected {
            let Some(key) = rejected.resource.strip_prefix("service/") else { continue };
            let before = previous.service(key).map(|before| {
                let local = state.local.get(key).map(|local| &**local);
                // Never the version of what was rejected: once it is right, it must be made.
                let source = Source { version: before.source.version.clone(), local: fingerprint(local) };
                match same_clusters {
                    true if before.source == source => Arc::clone(before),
                    true => Arc::new(before.with_local(source, local)),
                    false => {
                        let place = |old: usize| clusters.get(previous.cluster_name(old)).copied();
                        Arc::new(before.moved(&place).with_local(source, local))
                    }
                }
            });
            if before.is_some_and(|before| taken.take(before).is_ok()) {
                rejected.kept = Kept::LastGood;
                continue;
            }
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            let mut hosts = compile::hosts(namespace, name);
            let mut http = true;
            if let Some(Body::Service(config)) =
                state.held.resources.get(&rejected.resource).and_then(|r| r.body.as_ref())
            {
                hosts.extend(config.hosts.iter().map(|host| route::host_name(host)));
                http = config.ports.first().is_none_or(|port| port.protocol() != proto::Protocol::Tcp);
            }
            // A host that another service has rightly is answered there.
            hosts.retain(|host| !taken.hosts.contains_key(host.as_str()));
            self.out.closed.push(Closed { key: key.into(), hosts, why: rejected.reason.clone(), http });
        }
    }
}

/// Who keeps a name or a port that two services claim: the one that had it, then the one whose own name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    AsBefore,
    OwnNames,
    OtherNames,
}

/// Services that are in, and what no other one can have any more.
#[derive(Default)]
struct Taken {
    services: BTreeMap<Arc<str>, Arc<Service>>,
    hosts: HashMap<Box<str>, Arc<str>, foldhash::fast::RandomState>,
    offsets: HashMap<u16, Arc<str>>,
}

impl Taken {
    fn take(&mut self, service: Arc<Service>) -> Result<(), String> {
        for host in &service.hosts {
            if let Some(other) = self.hosts.get(host.as_str()).filter(|other| **other != service.key) {
                return Err(format!("host {host:?} already selects {other}"));
            }
        }
        if let Some(offset) = service.tcp_offset() {
            if let Some(other) = self.offsets.get(&offset) {
                return Err(format!("TCP port offset {offset} already belongs to {other}"));
            }
            self.offsets.insert(offset, Arc::clone(&service.key));
        }
        self.hosts.extend(service.hosts.iter().map(|host| (host.as_str().into(), Arc::clone(&service.key))));
        self.services.insert(Arc::clone(&service.key), service);
        Ok(())
    }
}

impl Snapshot {
    fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(self.service_by_key(key)?)
    }
}

impl Service {
    /// The same policy with other endpoints.
    fn with_local(&self, source: Source, local: Option<&proto::LocalService>) -> Self {
        Self { local: local.map(read::endpoints).unwrap_or_default(), source, ..self.clone() }
    }

    /// The same policy in a snapshot with other clusters; those that are gone can serve nothing.
    fn moved(&self, place: &impl Fn(usize) -> Option<usize>) -> Self {
        let all = |list: &[usize]| list.iter().filter_map(|old| place(*old)).collect();
        Self {
            exporters: all(&self.exporters),
            avoid: all(&self.avoid),
            residency: self.residency.as_deref().map(all),
            rules: self.rules.moved(place),
            ..self.clone()
        }
    }
}

fn same_names(before: &[Cluster], now: &[Cluster]) -> bool {
    before.len() == now.len()
        && before.iter().zip(now).all(|(before, now)| before.name.cmp(&now.name) == Ordering::Equal)
}

/// Equal for equal lists of endpoints within one process; without allocation, because it is taken of every service
/// whenever one endpoint changes.
fn fingerprint(local: Option<&proto::LocalService>) -> u64 {
    static SEED: std::sync::LazyLock<foldhash::quality::RandomState> = std::sync::LazyLock::new(Default::default);
    let mut hasher = SEED.build_hasher();
    for endpoint in local.into_iter().flat_map(|local| &local.endpoints) {
        let proto::Endpoint { address, version, instance, readiness } = endpoint;
        (address, version, instance, readiness).hash(&mut hasher);
    }
    hasher.finish()
}

impl Protocol {
    pub(super) fn from_proto(value: i32) -> Option<Self> {
        match proto::Protocol::try_from(value).ok()? {
            proto::Protocol::Http1 => Some(Self::Http1),
            proto::Protocol::H2c => Some(Self::H2c),
            proto::Protocol::Tcp => Some(Self::Tcp),
            proto::Protocol::Unspecified => None,
        }
    }
}
