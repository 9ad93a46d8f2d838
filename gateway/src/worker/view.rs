//! What one worker knows right now: the snapshot, joined with its peers' health and its local endpoints.
//!
//! A picture is never changed: [`LiveState`] makes the next one when something happens, which shares with the one before whatever did
//! not change. Every request reads one. [`View::decide`] is the one place where a request's target is chosen; requests and `explain`
//! both call it.

mod live;
mod peer;
mod standing;

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_proto::v1::Readiness;
use archipelago_tunnel::PeerHandle;
use imbl::Vector;

pub use self::live::{Followed, LiveState};
pub use self::peer::{PeerFacts, PeerView, Remote};
use crate::authorize::Authorized;
use crate::balance::cluster::{self, Availability, NoTrace, Trace};
use crate::balance::failback::Failback;
use crate::balance::hash::{Key, Sequence};
use crate::balance::load;
use crate::balance::outlier::Verdict;
use crate::balance::reach::Reach;
use crate::balance::topology::Preference;
use crate::config::{Backend, Rule, Service, Snapshot};
use crate::exchange::upstream::Endpoint;
use crate::ledger::Keeper;
use crate::telemetry::Name;
use crate::worker::under_way::UnderWay;

/// One consistent picture for requests that begin now.
#[derive(Debug)]
pub struct View<P = PeerHandle> {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// By the indices of the snapshot.
    services: Vector<Option<Rc<ServiceView<P>>>>,
    /// Indexed like `snapshot.clusters`.
    cluster_names: Rc<[Name]>,
}

/// A service's live state.
#[derive(Debug)]
pub struct ServiceView<P = PeerHandle> {
    /// [`Service::key`], as this worker counts it.
    name: Name,
    /// Indexed like `snapshot.clusters`: its gateways that report endpoints of the service.
    clusters: Vec<Rc<[PeerView<P>]>>,
    /// In this cluster.
    endpoints: Rc<[EndpointView]>,
    /// Which of them come first; `None`: all are the same.
    preference: Option<Preference>,
    /// What goes from one picture to the next.
    memory: Rc<Memory>,
}

impl<P> Clone for ServiceView<P> {
    fn clone(&self) -> Self {
        let (clusters, endpoints) = (self.clusters.clone(), Rc::clone(&self.endpoints));
        let (name, memory) = (self.name.clone(), Rc::clone(&self.memory));
        Self { name, clusters, endpoints, preference: self.preference, memory }
    }
}

/// What a worker remembers of a service for as long as it is there.
#[derive(Debug)]
struct Memory {
    /// How each cluster comes back, indexed like `snapshot.clusters`.
    failback: Box<[Cell<Failback>]>,
    /// Draws for requests without a sticky key.
    sequence: Cell<Sequence>,
    /// Requests that are kept of it.
    keeper: Rc<Keeper>,
    /// Those that are under way.
    under_way: Rc<UnderWay>,
}

/// A local endpoint of one service.
#[derive(Debug)]
pub struct EndpointView {
    /// Connections and passive health.
    pub endpoint: Rc<Endpoint>,
    /// Its version.
    pub version: Arc<str>,
    /// The same, as this worker counts it; `None`: it has none.
    pub counted_as: Option<Name>,
    /// Its name for people.
    pub instance: Arc<str>,
    /// The agent's verdict.
    pub readiness: Readiness,
    /// One of those that come first by where it stands; true where none do.
    pub preferred: bool,
}

/// Who serves a request.
#[derive(Debug, Clone)]
pub enum Target<P = PeerHandle> {
    /// An endpoint here.
    Local(Rc<Endpoint>),
    /// Whatever the gateway there chooses.
    Remote(Rc<Remote<P>>),
}

impl Target {
    /// Whether it is there to be asked, as far as that is known of places: a gateway that is lost is not.
    pub fn takes_requests(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Remote(remote) => remote.is_reachable(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(endpoint) => endpoint.address().fmt(f),
            Self::Remote(remote) => remote.name.fmt(f),
        }
    }
}

/// A decision and what led to it.
#[derive(Debug, Clone)]
pub struct Decision<P = PeerHandle> {
    /// Who.
    pub target: Target<P>,
    /// Only this version.
    pub version: Option<Arc<str>>,
    /// Cluster of the target, index.
    pub cluster: usize,
}

/// A request, as far as the choice of its target goes.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuery<'a> {
    /// Index of its service.
    pub service: usize,
    /// The rule it falls under.
    pub rule: &'a Rule,
    /// What decides among weights.
    pub key: Key,
    /// Targets that failed it already.
    pub tried: &'a Tried,
    /// Fresh randomness for the power of two choices.
    pub random: u64,
    /// Now.
    pub now: Instant,
}

/// Targets that failed this request already.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    /// Local endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// Peer gateways.
    pub peers: Vec<Arc<str>>,
}

impl Tried {
    /// One more.
    pub fn add(&mut self, target: &Target) {
        match target {
            Target::Local(endpoint) => self.endpoints.push(endpoint.address()),
            Target::Remote(remote) => self.peers.push(Arc::clone(&remote.name)),
        }
    }

    /// It may be asked again, if it is a gateway.
    pub fn forget(&mut self, target: &Target) {
        if let Target::Remote(remote) = target {
            self.peers.retain(|name| *name != remote.name);
        }
    }
}

impl<P> View<P> {
    /// The picture of a worker that knows nothing yet.
    pub fn empty() -> Self {
        Self { snapshot: Arc::new(Snapshot::empty()), services: Vector::new(), cluster_names: Rc::new([]) }
    }

    /// A service's live state, by the index that the snapshot gives it.
    pub fn service(&self, index: usize) -> Option<&Rc<ServiceView<P>>> {
        self.services.get(index)?.as_ref()
    }

    /// A cluster's name, as this worker counts it.
    pub fn cluster_name(&self, index: usize) -> Option<&Name> {
        self.cluster_names.get(index)
    }

    /// Whether the policy of a service is the same in both pictures, so that a request can go on with what `other` knows.
    pub fn has_policy_of(&self, other: &Self, service: usize) -> bool {
        let same = |one, other| matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(one, other));
        Arc::ptr_eq(&self.snapshot.clusters, &other.snapshot.clusters)
            && same(self.snapshot.service(service), other.snapshot.service(service))
    }
}

impl<P: PeerFacts> View<P> {
    /// Chooses a target; `None`: nobody can serve the request.
    pub fn decide(&self, query: &RouteQuery<'_>, why: &mut impl Trace) -> Option<Decision<P>> {
        let (config, live) = (self.snapshot.service(query.service)?, self.service(query.service)?);
        let availability = |backend: &Backend| self.availability(config, live, backend, query.tried, query.now);
        let names = |index: usize| self.snapshot.cluster_name(index).to_owned();
        let chosen = cluster::choose(query.rule, query.key, availability, names, why)?;
        let (index, version) = (chosen.backend.cluster, chosen.backend.version.clone());
        let target = if Some(index) == self.snapshot.own_cluster {
            Target::Local(live.pick_endpoint(version.as_deref(), query.tried, query.random, query.now, why)?)
        } else {
            Target::Remote(peer::pick(live.clusters.get(index)?, version.as_deref(), query.tried, query.random, why)?)
        };
        Some(Decision { target, version, cluster: index })
    }

    /// Nobody can serve a request now: until when it is worth waiting for a gateway of another cluster that could, `patience` after it
    /// was lost; `None`: it is not.
    pub fn hope(&self, query: &RouteQuery<'_>, patience: Duration) -> Option<Instant> {
        let (config, live) = (self.snapshot.service(query.service)?, self.service(query.service)?);
        let backends = query.rule.backends.iter().chain(query.rule.tiers.iter().flatten());
        let hopes = backends.filter(|backend| config.may_reside_in(Some(backend.cluster))).filter_map(|backend| {
            let peers = live.clusters.get(backend.cluster)?;
            peer::hope(peers, backend.version.as_deref(), query.tried, patience, query.now)
        });
        hopes.max()
    }

    /// Chooses an endpoint here for what came through a tunnel; `None`: none is left.
    pub fn decide_for_peer(
        &self,
        authorized: &Authorized,
        version: &Option<Arc<str>>,
        tried: &Tried,
        random: u64,
        now: Instant,
    ) -> Option<Decision<P>> {
        let live = self.service(self.snapshot.service_by_key(authorized.service())?)?;
        let endpoint = live.pick_endpoint(version.as_deref(), tried, random, now, &mut NoTrace)?;
        Some(Decision {
            target: Target::Local(endpoint),
            version: version.clone(),
            cluster: self.snapshot.own_cluster?,
        })
    }

    /// Whether a backend may take requests now.
    pub(super) fn availability(
        &self,
        config: &Service,
        live: &ServiceView<P>,
        backend: &Backend,
        tried: &Tried,
        now: Instant,
    ) -> Availability {
        let version = backend.version.as_deref();
        let (Some(cluster), Some(peers), Some(failback)) = (
            self.snapshot.clusters.get(backend.cluster),
            live.clusters.get(backend.cluster),
            live.memory.failback.get(backend.cluster),
        ) else {
            return Availability::Out("unknown cluster");
        };
        if !config.may_reside_in(Some(backend.cluster)) {
            return Availability::Out("residency does not allow it");
        }
        let reach = if Some(backend.cluster) == self.snapshot.own_cluster {
            live.local_availability(version, tried, now)
        } else {
            peer::availability(peers, version, tried)
        };
        match reach {
            Availability::Serving { .. } if cluster.drained => Availability::Reserve(DRAINED),
            Availability::Serving { .. } if config.avoid.contains(&backend.cluster) => Availability::Reserve(AVOIDED),
            Availability::Serving { .. } => match failback.get().factor(&config.failback, now) {
                Some(factor) => Availability::Serving { factor },
                None => Availability::Reserve("it came back, the failback policy holds it"),
            },
            other => other,
        }
    }
}

impl<P> ServiceView<P> {
    /// The requests of it that are kept.
    pub fn keeper(&self) -> &Rc<Keeper> {
        &self.memory.keeper
    }

    /// Its requests that are under way.
    pub fn under_way(&self) -> &Rc<UnderWay> {
        &self.memory.under_way
    }

    fn local_availability(&self, version: Option<&str>, tried: &Tried, now: Instant) -> Availability {
        let mut availability = Availability::Out("no ready endpoint");
        for view in self.endpoints.iter().filter(|e| e.eligible(version, tried)) {
            let is_out = matches!(availability, Availability::Out(_));
            match (view.endpoint.reach(), view.readiness, view.endpoint.ejected(now)) {
                (Reach::Reachable, Readiness::Ready, false) => return Availability::Serving { factor: 1.0 },
                (Reach::Reachable, Readiness::Ready, true) => {
                    availability = Availability::Reserve("its endpoints fail and sit out");
                }
                (Reach::Reachable, ..) if is_out => {
                    availability = Availability::Reserve("its endpoints have not been checked yet");
                }
                (Reach::Refuses, ..) if is_out => {
                    availability = Availability::Reserve("its endpoints refuse connections");
                }
                (Reach::Silent, ..) if is_out => availability = Availability::Out("nobody answers at its endpoints"),
                _ => {}
            }
        }
        availability
    }

    /// An endpoint here: two at random, the cheaper one. First those of our node or zone, where the cluster wants that, then all
    /// that are ready; those sitting out, then those that nobody has checked yet, and then those that refuse connections, only
    /// when nothing else is left.
    fn pick_endpoint(
        &self,
        version: Option<&str>,
        tried: &Tried,
        random: u64,
        now: Instant,
        why: &mut impl Trace,
    ) -> Option<Rc<Endpoint>> {
        let (ready, unknown) = (Readiness::Ready, Readiness::Unknown);
        // What sits out is drawn from as a whole: the fault may be that of the zone.
        let near = self.stays_near(now).then_some((ready, false, true));
        let all = [(ready, false, false), (ready, true, false), (unknown, false, false), (unknown, true, false)];
        let reachable = near.into_iter().chain(all).map(|pass| (pass, Reach::Reachable));
        let refusing = all.into_iter().map(|pass| (pass, Reach::Refuses));
        for ((readiness, ejected, near), reach) in reachable.chain(refusing) {
            let eligible = || {
                self.endpoints.iter().filter(|e| {
                    e.readiness == readiness
                        && (e.preferred || !near)
                        && e.eligible(version, tried)
                        && e.endpoint.reach() == reach
                        && e.endpoint.ejected(now) == ejected
                })
            };
            let count = eligible().count();
            let index =
                load::pick_of_two(count, random, |i| eligible().nth(i).map_or(f64::MAX, |e| e.endpoint.cost(now)));
            if let Some(view) = index.and_then(|i| eligible().nth(i)) {
                let state = if readiness == Readiness::Ready { "ready" } else { "unchecked" };
                why.note(|| {
                    let place = match self.preference {
                        Some(preference) if near => format!(" {}", preference.words()),
                        Some(preference) => format!(", too few {} can serve", preference.words()),
                        None => String::new(),
                    };
                    let (address, instance) = (view.endpoint.address(), &view.instance);
                    format!("endpoint: {address} ({instance}) chosen out of {count} {state}{place}")
                });
                return Some(Rc::clone(&view.endpoint));
            }
        }
        None
    }

    /// Whether there are endpoints to prefer, and at least half of them do not sit out: the last one that is left of a zone
    /// must not be given what all of them took.
    fn stays_near(&self, now: Instant) -> bool {
        if self.preference.is_none() {
            return false;
        }
        let near = || self.endpoints.iter().filter(|e| e.preferred && e.readiness == Readiness::Ready);
        near().filter(|e| e.endpoint.sits_out(now)).count() * 2 <= near().count()
    }

    /// Takes what an attempt at an endpoint of this service showed. At most half of the endpoints sit out at a time.
    pub fn judge(&self, endpoint: &Endpoint, verdict: Verdict, now: Instant) {
        // Only whether another may sit out depends on the others.
        let count = || self.endpoints.iter().filter(|e| e.endpoint.sits_out(now)).count();
        let ejected = if verdict == Verdict::Answered { 0 } else { count() };
        endpoint.judge(verdict, self.endpoints.len(), ejected, now);
    }

    /// [`Service::key`], as this worker counts it.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Those of other clusters, by the indices of the snapshot.
    pub fn clusters(&self) -> &[Rc<[PeerView<P>]>] {
        &self.clusters
    }

    /// Those in this cluster.
    pub fn endpoints(&self) -> &[EndpointView] {
        &self.endpoints
    }

    /// The version of one of them, as this worker counts it.
    pub fn version_of(&self, endpoint: &Rc<Endpoint>) -> Option<&Name> {
        self.endpoints.iter().find(|view| Rc::ptr_eq(&view.endpoint, endpoint))?.counted_as.as_ref()
    }

    /// The next draw for a request without a sticky key.
    pub fn draw(&self) -> Key {
        let mut sequence = self.memory.sequence.get();
        let draw = sequence.next_draw();
        self.memory.sequence.set(sequence);
        Key::Fresh(draw)
    }
}

impl EndpointView {
    /// Whether it counts for peers: ready, or at least not known to be down while `any_ready` says that nothing is ready.
    pub fn offered(&self, any_ready: bool) -> bool {
        match self.readiness {
            Readiness::Ready => true,
            Readiness::Unknown => !any_ready,
            Readiness::NotReady => false,
        }
    }

    fn eligible(&self, version: Option<&str>, tried: &Tried) -> bool {
        self.readiness != Readiness::NotReady
            && version.is_none_or(|wanted| wanted == &*self.version)
            && !tried.endpoints.contains(&self.endpoint.address())
    }
}

const DRAINED: &str = "an operator drains the cluster";
const AVOIDED: &str = "an operator moved the service away";

#[cfg(test)]
mod tests;
