//! From the resources in hand to a snapshot, one resource at a time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use archipelago_identity::revocation::Revocations;
use archipelago_model::{compile, feature};
use archipelago_proto::v1::{self as proto, ConfigResource, config_resource::Body};

use super::{Closed, Cluster, Listener, Peer, Protocol, Service, Snapshot, read, read::Local};
use crate::balance::topology::Place;
use crate::config::{Captures, ConfigState};
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

/// What a port of a service was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    version: Vec<u8>,
    /// Fingerprint of its local endpoints, and of where they were seen from.
    local: u64,
}

impl Source {
    pub(super) fn of(version: &[u8], local: Local<'_>, here: &Place) -> Self {
        Self { version: version.to_vec(), local: fingerprint(local, here) }
    }
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
        builder.out.captures = state.captures.as_ref().map(|source| {
            let before = previous.captures.as_ref().filter(|before| before.are_of(source));
            before.map_or_else(|| Arc::new(Captures::read(source)), Arc::clone)
        });
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
            let before = previous.ports_of(&key);
            let is_same = same_clusters
                && !resource.version.is_empty()
                && before.first().is_some_and(|unit| unit.source.version == resource.version);
            let made = if is_same {
                let several = before.len() > 1;
                Ok((Rank::AsBefore, before.iter().map(|unit| unit.with_local(local, several, &state.place)).collect()))
            } else {
                read::service(config, clusters, local, &state.place, &resource.version).map(|units| {
                    let own = compile::hosts(&config.namespace, &config.name);
                    let modest = units.iter().flat_map(|unit| &unit.hosts).all(|host| own.contains(host));
                    let units: Vec<_> = units.into_iter().map(Arc::new).collect();
                    (if modest { Rank::OwnNames } else { Rank::OtherNames }, units)
                })
            };
            match made {
                Ok((rank, units)) => candidates.push((rank, Arc::<str>::from(key), units, resource)),
                Err(reason) => self.reject(resource, reason, Kept::Closed),
            }
        }
        candidates.sort_by(|(a, one, ..), (b, other, ..)| a.cmp(b).then_with(|| one.cmp(other)));
        let mut taken = Taken::default();
        for (_, key, units, resource) in candidates {
            match taken.take(&key, units) {
                Ok(()) => {}
                Err(reason) => self.reject(resource, reason, Kept::Closed),
            }
        }
        self.keep_services(&mut taken, same_clusters, clusters, state);
        self.out.services = taken.services.into_values().flatten().collect();
        for (place, unit) in self.out.services.iter().enumerate() {
            self.out.keys.insert(Arc::clone(&unit.key), place);
            if unit.place == 0 {
                self.out.keys.insert(Arc::clone(&unit.service), place);
            }
        }
        // A name alone is the first port that speaks HTTP, or at least the first.
        let by_preference = |http: bool| {
            let units = self.out.services.iter().enumerate();
            units.filter(move |(_, unit)| (unit.listener == Listener::Http) == http)
        };
        for (place, unit) in by_preference(true).chain(by_preference(false)) {
            for host in &unit.hosts {
                self.out.hosts.entry(host.as_str().into()).or_insert(place);
            }
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
            let before = previous.ports_of(key);
            let (several, local) = (before.len() > 1, state.local.get(key).map(|local| &**local));
            // Never the version of what was rejected: once it is right, it must be made.
            let again = before.iter().map(|unit| match same_clusters {
                true => unit.with_local(local, several, &state.place),
                false => {
                    let place = |old: usize| clusters.get(previous.cluster_name(old)).copied();
                    Arc::new(unit.moved(&place)).with_local(local, several, &state.place)
                }
            });
            if !before.is_empty() && taken.take(key, again.collect()).is_ok() {
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
                http =
                    config.ports.is_empty() || config.ports.iter().any(|port| port.protocol() != proto::Protocol::Tcp);
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
    services: BTreeMap<Arc<str>, Vec<Arc<Service>>>,
    hosts: HashMap<Box<str>, Arc<str>, foldhash::fast::RandomState>,
    offsets: HashMap<u16, Arc<str>>,
}

impl Taken {
    /// All ports of a service, or none of them.
    fn take(&mut self, key: &str, units: Vec<Arc<Service>>) -> Result<(), String> {
        let mut offsets = HashMap::new();
        for unit in &units {
            for host in &unit.hosts {
                if let Some(other) = self.hosts.get(host.as_str()).filter(|other| ***other != *key) {
                    return Err(format!("host {host:?} already selects {other}"));
                }
            }
            let Some(offset) = unit.tcp_offset() else { continue };
            let other = self.offsets.get(&offset).cloned().or_else(|| offsets.insert(offset, Arc::clone(&unit.key)));
            if let Some(other) = other {
                return Err(format!("TCP port offset {offset} already belongs to {other}"));
            }
        }
        let Some(service) = units.first().map(|unit| Arc::clone(&unit.service)) else { return Ok(()) };
        let hosts = units.iter().flat_map(|unit| &unit.hosts);
        self.hosts.extend(hosts.map(|host| (host.as_str().into(), Arc::clone(&service))));
        self.offsets.extend(offsets);
        self.services.insert(service, units);
        Ok(())
    }
}

impl Service {
    /// The same policy with the endpoints that the agent knows now, seen from `here`; `several`: it is one port of several.
    fn with_local(self: &Arc<Self>, local: Option<&proto::LocalService>, several: bool, here: &Place) -> Arc<Self> {
        let local = Local::of(local, self.port.into(), several);
        let source = Source::of(&self.source.version, local, here);
        if source == self.source {
            return Arc::clone(self);
        }
        let (local, preference) = local.read(here);
        Arc::new(Self { local, preference, source, ..(**self).clone() })
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

/// Equal for equal lists of endpoints, seen from the same place, within one process; without allocation, because it is taken
/// of every service whenever one endpoint changes.
fn fingerprint(local: Local<'_>, here: &Place) -> u64 {
    static SEED: std::sync::LazyLock<foldhash::quality::RandomState> = std::sync::LazyLock::new(Default::default);
    let mut hasher = SEED.build_hasher();
    for endpoint in local.endpoints {
        let proto::Endpoint { address, version, instance, readiness, locality } = endpoint;
        (address, version, instance, readiness, locality).hash(&mut hasher);
    }
    for proto::Locality { zone: _, for_zones, for_nodes } in local.localities {
        (for_zones, for_nodes).hash(&mut hasher);
    }
    // Where nothing is known it does not matter where we are.
    if !local.localities.is_empty() {
        here.hash(&mut hasher);
    }
    hasher.finish()
}

impl Protocol {
    pub(in crate::config) fn from_proto(value: i32) -> Option<Self> {
        match proto::Protocol::try_from(value).ok()? {
            proto::Protocol::Http1 => Some(Self::Http1),
            proto::Protocol::H2c => Some(Self::H2c),
            proto::Protocol::Tcp => Some(Self::Tcp),
            proto::Protocol::Unspecified => None,
        }
    }
}
