//! The compiled configuration: built resource by resource, then never changed.
//!
//! A resource that cannot be used here is named in [`Rejected`] and touches nothing but itself: its last good form stays,
//! or, if there is none, the service is [`Closed`]. What did not change is shared with the snapshot before, indexes included, so that
//! a change costs what it is about ([`Snapshot::build`]) and is found at that price ([`Snapshot::changes`]).

mod build;
mod read;

use std::net::SocketAddr;
use std::sync::Arc;

use archipelago_http::Fields;
use archipelago_identity::SpiffeId;
use archipelago_identity::revocation::Revocations;
use archipelago_proto::v1 as proto;
use http::{HeaderName, Method};
use imbl::{GenericHashMap, OrdMap, OrdSet, Vector, ordmap::DiffItem, shared_ptr::DefaultSharedPtr};

pub use self::build::{Built, Kept, Rejected};
use super::Captures;
use crate::balance::{failback, hash, topology::Preference};
use crate::pace;
use crate::route::{self, Matcher, RouteInput, index::RuleIndex};

/// Everything a worker needs to decide about a request, immutable.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Revision of the federation's configuration; 0 before the first.
    pub revision: u64,
    /// Sorted by name; [`Backend::cluster`] is an index into it.
    pub clusters: Arc<[Cluster]>,
    /// Index of the own cluster in `clusters`, if the configuration knows it.
    pub own_cluster: Option<usize>,
    /// Who belongs to the federation.
    pub membership: Arc<Membership>,
    /// Gateways of other clusters, by "cluster/gateway".
    pub peers: OrdMap<Arc<str>, Arc<Peer>>,
    /// Where clients find services at this gateway, in a cluster that says so; elsewhere they come by host name.
    pub captures: Option<Arc<Captures>>,
    /// One for each port of each service. Its index stays while it is there, and is given to another afterwards.
    units: Vector<Option<Arc<Service>>>,
    /// Indices that nobody has.
    free: OrdSet<usize>,
    /// By "namespace/name": to walk through, and to compare with another snapshot.
    services: OrdMap<Arc<str>, Ports>,
    /// The same, to look one up.
    names: Index<Ports>,
    hosts: Index<usize>,
    /// TCP services: [`Service::key`] by what is added to the gateway's TCP base port.
    tcp: OrdMap<u16, Arc<str>>,
    /// Services that this gateway cannot run, by "namespace/name".
    closed: OrdMap<Arc<str>, Arc<Closed>>,
    /// Host names of those, with the key.
    closed_hosts: OrdSet<(Arc<str>, Arc<str>)>,
    made: build::Made,
}

/// By name.
type Index<T> = GenericHashMap<Arc<str>, T, foldhash::fast::RandomState, DefaultSharedPtr>;

/// Who belongs to the federation: what decides about tunnels, and changes seldom.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    /// Empty before the first configuration.
    pub trust_domain: String,
    /// See [`Snapshot::clusters`].
    pub clusters: Arc<[Cluster]>,
    /// See [`Snapshot::own_cluster`].
    pub own_cluster: Option<usize>,
    /// Certificates that are refused although they are genuine and in date. `None`: there is a list and nothing of it was
    /// ever understood, so that nobody can be told from the revoked.
    pub revocations: Option<Arc<Revocations>>,
}

/// The ports of one service, in its order, each with its index in a snapshot.
#[derive(Debug, Clone)]
struct Ports(Arc<[(usize, Arc<Service>)]>);

impl PartialEq for Ports {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A service that is another one than in the snapshot before, or was not there, or is gone: its ports with their indices.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// In the snapshot before.
    pub before: &'a [(usize, Arc<Service>)],
    /// Now.
    pub now: &'a [(usize, Arc<Service>)],
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
    /// Its clients come by HTTP, as far as can be known of it, and are told on the HTTP port.
    pub http: bool,
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

/// How clients reach a service at this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// On the HTTP port, by host name.
    Http,
    /// On a port of its own.
    Tcp {
        /// Added to the gateway's TCP base port.
        port_offset: u16,
    },
}

/// One port of a service of the federation, as this cluster sees it: what is routed, balanced and counted as one.
#[derive(Debug, Clone)]
pub struct Service {
    /// "namespace/name", with ":port" behind it if the service has several.
    pub key: Arc<str>,
    /// "namespace/name".
    pub service: Arc<str>,
    /// Its place among the ports of the service.
    pub place: usize,
    /// Host names that select it.
    pub hosts: Vec<String>,
    /// Protocol of the service.
    pub protocol: Protocol,
    /// Its number, which is its identity within the service.
    pub port: u16,
    /// Its name; may be empty.
    pub port_name: String,
    /// How clients reach it here.
    pub listener: Listener,
    /// Sticky key of its split.
    pub sticky: Option<StickyKey>,
    /// First match wins; the last matches everything.
    pub rules: Rules,
    /// How clusters come back.
    pub failback: failback::Policy,
    /// What its policy says of how slow one may be with its requests; in a box, because few say something.
    pub limits: Option<Box<pace::Given>>,
    /// Clusters (indices) that may serve it; `None`: all.
    pub residency: Option<Vec<usize>>,
    /// Clusters (indices) that export it.
    pub exporters: Vec<usize>,
    /// Clusters (indices) that an operator moved traffic away from.
    pub avoid: Vec<usize>,
    /// Endpoints of it in this cluster.
    pub local: Vec<LocalEndpoint>,
    /// Which of them come first here; `None`: all are the same.
    pub preference: Option<Preference>,
    /// Where it came from, so that it need not be made again.
    source: build::Source,
}

/// The rules of a service, shared by everything that has the same.
#[derive(Debug, Clone)]
pub struct Rules(Arc<RuleSet>);

#[derive(Debug)]
struct RuleSet {
    list: Vec<Rule>,
    /// Only where it is faster than asking each rule.
    index: Option<RuleIndex>,
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
    /// Tried in order when no backend above can serve; rules of a service share a few of these.
    pub tiers: Arc<[Vec<Backend>]>,
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
    pub instance: Arc<str>,
    /// The agent's verdict.
    pub readiness: proto::Readiness,
    /// One of those that come first; true where none do.
    pub preferred: bool,
}

impl Snapshot {
    /// The snapshot of a gateway that knows nothing yet.
    pub fn empty() -> Self {
        let membership = Membership { revocations: Some(Arc::default()), ..Membership::default() };
        Self {
            revision: 0,
            clusters: Arc::clone(&membership.clusters),
            own_cluster: None,
            membership: Arc::new(membership),
            peers: OrdMap::new(),
            captures: None,
            units: Vector::new(),
            free: OrdSet::new(),
            services: OrdMap::new(),
            names: Index::default(),
            hosts: Index::default(),
            tcp: OrdMap::new(),
            closed: OrdMap::new(),
            closed_hosts: OrdSet::new(),
            made: build::Made::default(),
        }
    }

    /// One port of a service, by index.
    pub fn service(&self, index: usize) -> Option<&Arc<Service>> {
        self.units.get(index)?.as_ref()
    }

    /// All ports of all services with their indices: by "namespace/name", the ports of a service in its own order.
    pub fn services(&self) -> impl Iterator<Item = (usize, &Arc<Service>)> {
        self.services.values().flat_map(|ports| ports.0.iter().map(|(index, unit)| (*index, unit)))
    }

    /// What is different from `before`: at the cost of that, if one was made from the other.
    pub fn changes<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Change<'a>> {
        before.services.diff(&self.services).map(|item| match item {
            DiffItem::Add(_, now) => Change { before: &[], now: &now.0 },
            DiffItem::Update { old: (_, before), new: (_, now) } => Change { before: &before.0, now: &now.0 },
            DiffItem::Remove(_, before) => Change { before: &before.0, now: &[] },
        })
    }

    /// What a host name selects, by index: the port of the service that stands behind the name, else its first HTTP port.
    pub fn service_by_host(&self, authority: &str) -> Option<usize> {
        if let Some(index) = self.hosts.get(authority) {
            return Some(*index);
        }
        let index = *self.hosts.get(route::host_name(authority).as_str())?;
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        Some(port.and_then(|port| self.port_of(&self.service(index)?.service, port)).unwrap_or(index))
    }

    /// The closed service that a host name selects; of several the last by key.
    pub fn closed_by_host(&self, authority: &str) -> Option<&Closed> {
        let of = |host: &str| {
            let (first, all): (Arc<str>, Arc<str>) = (host.into(), "".into());
            let known = self.closed_hosts.range((first, all)..).take_while(|(name, _)| **name == *host);
            known.last().and_then(|(_, key)| self.closed.get(key))
        };
        of(authority).or_else(|| of(&route::host_name(authority))).map(|closed| &**closed)
    }

    /// The port "namespace/name:port" of a service, or the first of "namespace/name", by index.
    pub fn service_by_key(&self, key: &str) -> Option<usize> {
        if let Some(ports) = self.names.get(key) {
            return ports.0.first().map(|(index, _)| *index);
        }
        // The only port of a service goes by the service's name, and has a number all the same.
        let (service, port) = key.rsplit_once(':')?;
        self.port_of(service, port.parse().ok()?)
    }

    /// The port with this number of the service "namespace/name", by index.
    pub fn port_of(&self, service: &str, port: u16) -> Option<usize> {
        self.ports_of(service).iter().find(|(_, unit)| unit.port == port).map(|(index, _)| *index)
    }

    /// All ports of the service "namespace/name", in its order, each with its index; empty: it is not known.
    pub fn ports_of(&self, service: &str) -> &[(usize, Arc<Service>)] {
        self.names.get(service).map(|ports| &*ports.0).unwrap_or_default()
    }

    /// TCP services: [`Service::key`] by what is added to the gateway's TCP base port.
    pub fn tcp(&self) -> &OrdMap<u16, Arc<str>> {
        &self.tcp
    }

    /// The closed service "namespace/name".
    pub fn closed_by_key(&self, key: &str) -> Option<&Closed> {
        self.closed.get(key).map(|closed| &**closed)
    }

    /// Services that this gateway cannot run, by key.
    #[cfg(test)]
    pub fn closed(&self) -> impl Iterator<Item = &Closed> {
        self.closed.values().map(|closed| &**closed)
    }

    /// Whether there is a service in this namespace, one that is closed to HTTP clients included.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        let first: Arc<str> = format!("{namespace}/").into();
        let is_in = |key: &Arc<str>| key.starts_with(&*first);
        self.services.range(Arc::clone(&first)..).next().is_some_and(|(key, _)| is_in(key))
            || self.closed.range(Arc::clone(&first)..).take_while(|(key, _)| is_in(key)).any(|(_, closed)| closed.http)
    }

    /// A cluster's name, for people.
    pub fn cluster_name(&self, index: usize) -> &str {
        self.clusters.get(index).map_or("?", |c| &c.name)
    }
}

impl Service {
    /// The first rule that matches, if any.
    pub fn rule(&self, method: &Method, path: &[u8], headers: &Fields) -> Option<&Rule> {
        let place = self.rules.first(&RouteInput { method, path, headers })?;
        self.rules.as_slice().get(place)
    }

    /// TCP services: what is added to the gateway's TCP base port.
    pub fn tcp_offset(&self) -> Option<u16> {
        match self.listener {
            Listener::Http => None,
            Listener::Tcp { port_offset } => Some(port_offset),
        }
    }

    /// The hash of the request's sticky key, if the split is sticky and the request carries the key.
    pub fn sticky_hash(&self, headers: &Fields) -> Option<u64> {
        let value = match self.sticky.as_ref()? {
            StickyKey::Header(name) => headers.find(name.as_str())?,
            StickyKey::Cookie(name) => route::cookies(headers, name).next()?,
        };
        // By the service: a user is where he is on all of its ports.
        Some(hash::sticky_key(&self.service, value))
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

impl Rules {
    /// Rules in the order in which they are tried.
    pub fn new(list: Vec<Rule>) -> Self {
        let index = (list.len() > SCANNED_MAX).then(|| RuleIndex::of(list.iter().map(|rule| &rule.matcher)));
        Self(Arc::new(RuleSet { list, index }))
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Rule] {
        &self.0.list
    }

    /// The place of the first that matches.
    pub fn first(&self, request: &RouteInput<'_>) -> Option<usize> {
        let matches = |rule: &Rule| rule.matcher.matches(request);
        match &self.0.index {
            None => self.0.list.iter().position(matches),
            Some(index) => {
                let at = |number: u32| usize::try_from(number).ok().and_then(|place| self.0.list.get(place));
                usize::try_from(index.first(request, |number| at(number).is_some_and(matches))?).ok()
            }
        }
    }
}

/// So many rules are asked in the time that the index takes to be asked (`examples/bench_rules.rs`: with 4 rules 111 and
/// 62 ns for the last one, with 4,000 rules 117,317 and 138 ns).
const SCANNED_MAX: usize = 3;

#[cfg(test)]
mod tests;
