//! The compiled configuration: built whole or refused whole, then never changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use archipelago_identity::{MeshRole, SpiffeId};
use archipelago_model::id::ClusterId;
use archipelago_proto::v1::{self as proto, config_resource::Body};
use http::{HeaderMap, HeaderName, Method};

use super::ConfigState;
use crate::balance::{failback, hash};
use crate::route::{self, Matcher};

/// Everything a worker needs to decide about a request, immutable.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Revision of the federation's configuration; 0 before the first.
    pub revision: u64,
    /// Empty before the first configuration.
    pub trust_domain: String,
    /// Sorted by name; [`Backend::cluster`] is an index into it.
    pub clusters: Vec<Cluster>,
    /// Gateways of other clusters.
    pub peers: Vec<Peer>,
    /// Sorted by key.
    pub services: Vec<Service>,
    /// Index of the own cluster in `clusters`, if the configuration knows it.
    pub own_cluster: Option<usize>,
    /// Certificates that are refused although they are genuine and in date.
    pub revocations: Vec<Revocation>,
    /// Services that this gateway cannot run, sorted by key.
    pub closed: Vec<Closed>,
    hosts: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    closed_hosts: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    keys: HashMap<Arc<str>, usize, foldhash::fast::RandomState>,
}

/// A cluster of the federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: Arc<str>,
    /// Its region.
    pub region: String,
    /// An operator drains it: no new requests while another cluster can.
    pub drained: bool,
}

/// A service that is known and cannot be run here: every request for it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// "namespace/name".
    pub key: Arc<str>,
    /// Host names that select it.
    pub hosts: Vec<String>,
    /// Why, for people.
    pub why: String,
}

/// Certificates of a subject that are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Whose.
    pub subject: RevokedSubject,
    /// Those whose notBefore is older than this, Unix seconds.
    pub issued_before_unix: i64,
}

/// Who was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedSubject {
    /// One identity.
    Identity(SpiffeId),
    /// Every identity of a cluster.
    Cluster(ClusterId),
}

/// A gateway of another cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Index into [`Snapshot::clusters`].
    pub cluster: usize,
    /// Its name.
    pub gateway: String,
    /// What it must prove to be.
    pub spiffe_id: SpiffeId,
    /// One per worker of that gateway.
    pub addresses: Vec<SocketAddr>,
}

/// How a service's endpoints are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    H2c,
    /// Bytes.
    Tcp,
}

/// A service of the federation, as this cluster sees it.
#[derive(Debug, Clone)]
pub struct Service {
    /// "namespace/name".
    pub key: Arc<str>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Host names that select it.
    pub hosts: Vec<String>,
    /// Protocol of the service.
    pub protocol: Protocol,
    /// Its port number.
    pub port: u16,
    /// TCP services: offset from the gateway's TCP base port.
    pub tcp_slot: u16,
    /// Sticky key of its split.
    pub sticky: Option<StickyKey>,
    /// First match wins; the last matches everything.
    pub rules: Vec<Rule>,
    /// How clusters come back.
    pub failback: failback::Policy,
    /// Clusters (indices) that may serve it; `None`: all.
    pub residency: Option<Vec<usize>>,
    /// Clusters (indices) that export it.
    pub exporters: Vec<usize>,
    /// Clusters (indices) that an operator moved traffic away from.
    pub avoid: Vec<usize>,
    /// Endpoints in this cluster.
    pub local: Vec<LocalEndpoint>,
}

/// What makes a user sticky.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StickyKey {
    /// The value of a request header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(String),
}

/// One routing rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Place in the resource: "routes[0]", "backends", "default".
    pub name: Arc<str>,
    /// Its conditions.
    pub matcher: Matcher,
    /// Explicit weights; may be empty.
    pub backends: Vec<Backend>,
    /// Tried in order when no backend above can serve.
    pub tiers: Vec<Vec<Backend>>,
}

/// A weighted choice of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Index into [`Snapshot::clusters`].
    pub cluster: usize,
    /// Only endpoints of this version.
    pub version: Option<Arc<str>>,
    /// Relative weight.
    pub weight: u32,
    /// [`hash::choice_id`] of cluster and version.
    pub id: u64,
}

/// An endpoint in this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its version; may be empty.
    pub version: Arc<str>,
    /// Its name for people.
    pub instance: String,
    /// The agent's verdict.
    pub readiness: proto::Readiness,
}

/// Why a configuration was refused; the last good one stays.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{resource}: {reason}")]
pub struct SnapshotError {
    /// Name of the resource at fault.
    pub resource: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Snapshot {
    /// The snapshot of a gateway that knows nothing yet.
    pub fn empty() -> Self {
        Self {
            revision: 0,
            trust_domain: String::new(),
            clusters: Vec::new(),
            peers: Vec::new(),
            services: Vec::new(),
            own_cluster: None,
            revocations: Vec::new(),
            closed: Vec::new(),
            hosts: HashMap::default(),
            closed_hosts: HashMap::default(),
            keys: HashMap::default(),
        }
    }

    /// Validates and compiles a state. Pure.
    ///
    /// # Errors
    /// The first resource that does not make sense, with the reason; local services never fail a build (an agent's
    /// unusable endpoint is left out).
    pub fn build(state: &ConfigState, cluster: &str, trust_domain: &str) -> Result<Self, SnapshotError> {
        let mut snapshot = Self { revision: state.revision, ..Self::empty() };
        let bodies = || state.resources.values().filter_map(|r| r.body.as_ref().map(|body| (r.name.as_str(), body)));
        if let Some(unknown) = state.resources.values().find(|r| r.body.is_none()) {
            // A newer control plane speaks of something this gateway cannot run; half a configuration is worse than the old one.
            return Err(refuse(&unknown.name, "unknown kind of resource; this gateway is too old for it"));
        }
        for (name, body) in bodies() {
            match body {
                Body::Mesh(mesh) => {
                    if mesh.trust_domain != trust_domain {
                        return Err(refuse(
                            name,
                            format!("trust domain {:?}, this gateway belongs to {trust_domain:?}", mesh.trust_domain),
                        ));
                    }
                    snapshot.trust_domain.clone_from(&mesh.trust_domain);
                }
                Body::Cluster(c) => {
                    snapshot.clusters.push(Cluster {
                        name: c.name.as_str().into(),
                        region: c.region.clone(),
                        drained: c.drained,
                    });
                }
                Body::UnsupportedService(s) => snapshot.closed.push(Closed {
                    key: format!("{}/{}", s.namespace, s.name).into(),
                    hosts: s.hosts.iter().map(|host| route::host_name(host)).collect(),
                    why: format!("this gateway lacks {}", s.missing_features.join(", ")),
                }),
                Body::Revocations(list) => {
                    for entry in &list.revocations {
                        snapshot.revocations.push(revocation(name, entry)?);
                    }
                }
                Body::Peer(_) | Body::Service(_) => {}
            }
        }
        snapshot.closed.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, closed) in snapshot.closed.iter().enumerate() {
            snapshot.closed_hosts.extend(closed.hosts.iter().map(|host| (host.as_str().into(), index)));
        }
        snapshot.clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let clusters: BTreeMap<Arc<str>, usize> =
            snapshot.clusters.iter().enumerate().map(|(i, c)| (Arc::clone(&c.name), i)).collect();
        if clusters.len() != snapshot.clusters.len() {
            return Err(refuse("cluster", "two resources name the same cluster"));
        }
        snapshot.own_cluster = clusters.get(cluster).copied();

        let mut slots = HashMap::new();
        for (name, body) in bodies() {
            match body {
                Body::Peer(p) => snapshot.peers.push(peer(name, p, &clusters)?),
                Body::Service(s) => {
                    let service = service(name, s, &clusters, state)?;
                    if service.protocol == Protocol::Tcp
                        && let Some(other) = slots.insert(service.tcp_slot, Arc::clone(&service.key))
                    {
                        return Err(refuse(name, format!("TCP slot {} is already taken by {other}", service.tcp_slot)));
                    }
                    snapshot.services.push(service);
                }
                Body::Mesh(_) | Body::Cluster(_) | Body::UnsupportedService(_) | Body::Revocations(_) => {}
            }
        }
        snapshot.services.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, service) in snapshot.services.iter().enumerate() {
            if snapshot.keys.insert(Arc::clone(&service.key), index).is_some() {
                return Err(refuse(&service.key, "two resources name the same service"));
            }
            for host in &service.hosts {
                if let Some(other) = snapshot.hosts.insert(host.as_str().into(), index)
                    && other != index
                {
                    return Err(refuse(&service.key, format!("host {host:?} already selects another service")));
                }
            }
        }
        Ok(snapshot)
    }

    /// The service that a host name selects, by index.
    pub fn service_by_host(&self, authority: &str) -> Option<usize> {
        match self.hosts.get(authority) {
            Some(index) => Some(*index),
            None => self.hosts.get(route::host_name(authority).as_str()).copied(),
        }
    }

    /// The service "namespace/name", by index.
    pub fn service_by_key(&self, key: &str) -> Option<usize> {
        self.keys.get(key).copied()
    }

    /// The closed service that a host name selects.
    pub fn closed_by_host(&self, authority: &str) -> Option<&Closed> {
        let index = match self.closed_hosts.get(authority) {
            Some(index) => *index,
            None => *self.closed_hosts.get(route::host_name(authority).as_str())?,
        };
        self.closed.get(index)
    }

    /// Whether a certificate of `id`, valid from `not_before_unix` on, was revoked.
    pub fn revoked(&self, id: &SpiffeId, not_before_unix: i64) -> bool {
        self.revocations.iter().any(|revocation| {
            let is_meant = match &revocation.subject {
                RevokedSubject::Identity(revoked) => revoked == id,
                RevokedSubject::Cluster(cluster) => cluster_of(id) == Some(cluster.as_str()),
            };
            is_meant && not_before_unix < revocation.issued_before_unix
        })
    }

    /// A cluster's name, for people.
    pub fn cluster_name(&self, index: usize) -> &str {
        self.clusters.get(index).map_or("?", |c| &c.name)
    }
}

impl Service {
    /// The first rule that matches, if any.
    pub fn rule(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.matcher.matches(method, path, headers))
    }

    /// The hash of the request's sticky key, if the split is sticky and the request carries the key.
    pub fn sticky_hash(&self, headers: &HeaderMap) -> Option<u64> {
        let value = match self.sticky.as_ref()? {
            StickyKey::Header(name) => headers.get(name)?.as_bytes(),
            StickyKey::Cookie(name) => route::cookies(headers, name).next()?.as_bytes(),
        };
        Some(hash::sticky_key(&self.key, value))
    }

    /// True when residency lets `cluster` serve it.
    pub fn may_reside_in(&self, cluster: Option<usize>) -> bool {
        match (&self.residency, cluster) {
            (None, _) => true,
            (Some(allowed), Some(cluster)) => allowed.contains(&cluster),
            (Some(_), None) => false,
        }
    }
}

impl Protocol {
    fn from_proto(value: i32) -> Option<Self> {
        match proto::Protocol::try_from(value).ok()? {
            proto::Protocol::Http1 => Some(Self::Http1),
            proto::Protocol::H2c => Some(Self::H2c),
            proto::Protocol::Tcp => Some(Self::Tcp),
            proto::Protocol::Unspecified => None,
        }
    }
}

/// The cluster that an identity belongs to, by its path `/cluster/<cluster>/…`.
fn cluster_of(id: &SpiffeId) -> Option<&str> {
    id.path().strip_prefix("/cluster/")?.split('/').next()
}

type Clusters = BTreeMap<Arc<str>, usize>;

fn revocation(name: &str, config: &proto::Revocation) -> Result<Revocation, SnapshotError> {
    let subject = match &config.subject {
        Some(proto::revocation::Subject::SpiffeId(id)) => RevokedSubject::Identity(
            id.parse().map_err(|error| refuse(name, format!("{id:?} is no SPIFFE id: {error}")))?,
        ),
        Some(proto::revocation::Subject::Cluster(cluster)) => RevokedSubject::Cluster(ClusterId::new(cluster.as_str())),
        None => return Err(refuse(name, "a revocation of an unknown kind of subject")),
    };
    Ok(Revocation { subject, issued_before_unix: config.issued_before_unix })
}

fn peer(name: &str, config: &proto::PeerConfig, clusters: &Clusters) -> Result<Peer, SnapshotError> {
    let spiffe_id: SpiffeId =
        config.spiffe_id.parse().map_err(|error| refuse(name, format!("{:?}: {error}", config.spiffe_id)))?;
    let expected = MeshRole::Gateway { cluster: config.cluster.clone(), name: config.gateway.clone() };
    if spiffe_id.role().as_ref() != Some(&expected) {
        return Err(refuse(
            name,
            format!("{spiffe_id} is not the identity of gateway {}/{}", config.cluster, config.gateway),
        ));
    }
    let addresses = config
        .tunnel_addresses
        .iter()
        .map(|text| text.parse().map_err(|_| refuse(name, format!("tunnel address {text:?} is not ip:port"))))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Peer { cluster: find(name, &config.cluster, clusters)?, gateway: config.gateway.clone(), spiffe_id, addresses })
}

fn service(
    name: &str,
    config: &proto::ServiceConfig,
    clusters: &Clusters,
    state: &ConfigState,
) -> Result<Service, SnapshotError> {
    let key: Arc<str> = format!("{}/{}", config.namespace, config.name).into();
    let protocol = Protocol::from_proto(config.protocol).ok_or_else(|| refuse(name, "unknown protocol"))?;
    let sticky = match config.sticky.as_ref().and_then(|s| s.key.as_ref()) {
        None => None,
        Some(proto::sticky::Key::Header(header)) => Some(StickyKey::Header(header_name(name, header)?)),
        Some(proto::sticky::Key::Cookie(cookie)) => Some(StickyKey::Cookie(cookie.clone())),
    };
    let rules = config.rules.iter().map(|r| rule(name, r, clusters)).collect::<Result<Vec<_>, _>>()?;
    if !rules.last().is_some_and(|last| last.matcher.is_empty()) {
        return Err(refuse(name, "the last rule must match everything"));
    }
    let indices =
        |list: &[String]| list.iter().map(|cluster| find(name, cluster, clusters)).collect::<Result<Vec<_>, _>>();
    let failback = config.failback.as_ref().map_or_else(failback::Policy::default, |f| failback::Policy {
        after: Duration::from_millis(f.after_ms),
        ramp: Duration::from_millis(f.ramp_ms),
        automatic: f.automatic,
    });
    Ok(Service {
        namespace: config.namespace.clone(),
        name: config.name.clone(),
        hosts: config.hosts.iter().map(|host| route::host_name(host)).collect(),
        protocol,
        port: u16::try_from(config.port).map_err(|_| refuse(name, format!("port {} is out of range", config.port)))?,
        tcp_slot: u16::try_from(config.tcp_slot)
            .map_err(|_| refuse(name, format!("TCP slot {} is out of range", config.tcp_slot)))?,
        sticky,
        rules,
        failback,
        // Residency names clusters that may not have joined yet, so unknown ones are no error; they cannot serve anyway.
        residency: (!config.residency_clusters.is_empty())
            .then(|| config.residency_clusters.iter().filter_map(|c| clusters.get(c.as_str()).copied()).collect()),
        exporters: indices(&config.exporters)?,
        avoid: indices(&config.avoid_clusters)?,
        local: state.local.get(&*key).map(endpoints).unwrap_or_default(),
        key,
    })
}

fn rule(resource: &str, config: &proto::RouteRule, clusters: &Clusters) -> Result<Rule, SnapshotError> {
    let matcher = match &config.r#match {
        None => Matcher::default(),
        Some(m) => Matcher {
            headers: m
                .headers
                .iter()
                .map(|(n, v)| Ok((header_name(resource, n)?, v.clone())))
                .collect::<Result<_, _>>()?,
            cookies: m.cookies.iter().map(|(n, v)| (n.clone(), v.clone())).collect(),
            path_prefix: (!m.path_prefix.is_empty()).then(|| m.path_prefix.clone()),
            method: match m.method.as_str() {
                "" => None,
                method => Some(
                    Method::try_from(method)
                        .map_err(|_| refuse(resource, format!("{method:?} is not an HTTP method")))?,
                ),
            },
        },
    };
    let backends = |list: &[proto::WeightedBackend]| {
        let mut seen = HashSet::new();
        list.iter()
            .map(|b| {
                let version = (!b.version.is_empty()).then_some(b.version.as_str());
                let id = hash::choice_id(&b.cluster, version);
                if !seen.insert((b.cluster.as_str(), version)) {
                    return Err(refuse(
                        resource,
                        format!("{}: {}/{} appears twice", config.name, b.cluster, b.version),
                    ));
                }
                Ok(Backend {
                    cluster: find(resource, &b.cluster, clusters)?,
                    version: version.map(Arc::from),
                    weight: b.weight,
                    id,
                })
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let weighted = backends(&config.backends)?;
    let tiers = config.tiers.iter().map(|tier| backends(&tier.backends)).collect::<Result<Vec<_>, _>>()?;
    Ok(Rule { name: config.name.as_str().into(), matcher, backends: weighted, tiers })
}

fn endpoints(local: &proto::LocalService) -> Vec<LocalEndpoint> {
    let mut endpoints: Vec<_> = local
        .endpoints
        .iter()
        .filter_map(|e| {
            let address = e.address.parse().ok()?;
            Some(LocalEndpoint {
                address,
                version: e.version.as_str().into(),
                instance: e.instance.clone(),
                readiness: e.readiness(),
            })
        })
        .collect();
    endpoints.sort_by_key(|e| e.address);
    endpoints.dedup_by_key(|e| e.address);
    endpoints
}

fn find(resource: &str, cluster: &str, clusters: &Clusters) -> Result<usize, SnapshotError> {
    clusters.get(cluster).copied().ok_or_else(|| refuse(resource, format!("no cluster {cluster:?}")))
}

fn header_name(resource: &str, name: &str) -> Result<HeaderName, SnapshotError> {
    HeaderName::try_from(name).map_err(|_| refuse(resource, format!("{name:?} is not a header name")))
}

fn refuse(resource: &str, reason: impl Into<String>) -> SnapshotError {
    SnapshotError { resource: resource.to_owned(), reason: reason.into() }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
