//! What one worker knows right now: the snapshot, joined with its peers' health and its local endpoints.
//!
//! Rebuilt when one of those changes, read by every request. [`View::decide`] is the one place where a request's target is
//! chosen; requests and `explain` both call it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_proto::v1::Readiness;
use archipelago_tunnel::{PeerHandle, PeerState};
use http::HeaderValue;

use crate::authorize::Authorized;
use crate::balance::cluster::{self, Availability, NoTrace, Trace};
use crate::balance::failback::Failback;
use crate::balance::hash::{Key, Sequence};
use crate::balance::load::{self, PeakEwma};
use crate::balance::outlier::Verdict;
use crate::balance::topology::Preference;
use crate::config::{Backend, Rule, Service, Snapshot};
use crate::exchange::upstream::Endpoint;

/// One consistent picture for requests that begin now.
#[derive(Debug)]
pub struct View {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Same order as `snapshot.services`.
    pub services: Vec<ServiceView>,
}

/// A service's live state.
#[derive(Debug)]
pub struct ServiceView {
    /// Indexed like `snapshot.clusters`.
    pub clusters: Vec<ClusterView>,
    /// In this cluster.
    pub endpoints: Vec<EndpointView>,
    /// Which of them come first; `None`: all are the same.
    pub preference: Option<Preference>,
    /// Draws for requests without a sticky key.
    pub sequence: Cell<Sequence>,
}

/// A cluster as a place that serves one service.
#[derive(Debug)]
pub struct ClusterView {
    /// Its gateways that report endpoints of the service.
    pub peers: Vec<PeerView>,
    /// How it is coming back; shared with the worker, outlives the view.
    pub failback: Rc<Cell<Failback>>,
}

/// A gateway that serves one service.
#[derive(Debug)]
pub struct PeerView {
    /// The gateway.
    pub remote: Rc<Remote>,
    /// Ready endpoints by version.
    pub ready: Vec<(String, u32)>,
}

/// A local endpoint of one service.
#[derive(Debug)]
pub struct EndpointView {
    /// Connections and passive health.
    pub endpoint: Rc<Endpoint>,
    /// Its version.
    pub version: Arc<str>,
    /// Its name for people.
    pub instance: String,
    /// The agent's verdict.
    pub readiness: Readiness,
    /// One of those that come first by where it stands; true where none do.
    pub preferred: bool,
}

/// A gateway of another cluster, as this worker sees it.
#[derive(Debug)]
pub struct Remote {
    /// The tunnel.
    pub handle: PeerHandle,
    /// "cluster/gateway".
    pub name: Arc<str>,
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Value of `mesh-served-by`.
    pub served_by: HeaderValue,
    /// Time to response heads.
    pub latency: RefCell<PeakEwma>,
}

/// Who serves a request.
#[derive(Debug, Clone)]
pub enum Target {
    /// An endpoint here.
    Local(Rc<Endpoint>),
    /// Whatever the gateway there chooses.
    Remote(Rc<Remote>),
}

/// A decision and what led to it.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Who.
    pub target: Target,
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

impl View {
    /// Chooses a target; `None`: nobody can serve the request.
    pub fn decide(&self, query: &RouteQuery<'_>, why: &mut impl Trace) -> Option<Decision> {
        let (config, live) = (self.snapshot.services.get(query.service)?, self.services.get(query.service)?);
        let availability = |backend: &Backend| self.availability(config, live, backend, query.tried, query.now);
        let names = |index: usize| self.snapshot.cluster_name(index).to_owned();
        let chosen = cluster::choose(query.rule, query.key, availability, names, why)?;
        let (index, version) = (chosen.backend.cluster, chosen.backend.version.clone());
        let target = if Some(index) == self.snapshot.own_cluster {
            Target::Local(live.pick_endpoint(version.as_deref(), query.tried, query.random, query.now, why)?)
        } else {
            Target::Remote(live.clusters.get(index)?.pick_peer(version.as_deref(), query.tried, query.random, why)?)
        };
        Some(Decision { target, version, cluster: index })
    }

    /// Chooses an endpoint here for what came through a tunnel; `None`: none is left.
    pub fn decide_for_peer(
        &self,
        authorized: &Authorized,
        version: &Option<Arc<str>>,
        tried: &Tried,
        random: u64,
        now: Instant,
    ) -> Option<Decision> {
        let live = self.services.get(self.snapshot.service_by_key(authorized.service())?)?;
        let endpoint = live.pick_endpoint(version.as_deref(), tried, random, now, &mut NoTrace)?;
        Some(Decision {
            target: Target::Local(endpoint),
            version: version.clone(),
            cluster: self.snapshot.own_cluster?,
        })
    }

    fn availability(
        &self,
        config: &Service,
        live: &ServiceView,
        backend: &Backend,
        tried: &Tried,
        now: Instant,
    ) -> Availability {
        let version = backend.version.as_deref();
        let (Some(cluster), Some(state)) =
            (self.snapshot.clusters.get(backend.cluster), live.clusters.get(backend.cluster))
        else {
            return Availability::Out("unknown cluster");
        };
        if !config.may_reside_in(Some(backend.cluster)) {
            return Availability::Out("residency does not allow it");
        }
        let reach = if Some(backend.cluster) == self.snapshot.own_cluster {
            live.local_availability(version, tried, now)
        } else {
            state.availability(version, tried)
        };
        match reach {
            Availability::Serving { .. } if cluster.drained => Availability::Reserve("an operator drains the cluster"),
            Availability::Serving { .. } if config.avoid.contains(&backend.cluster) => {
                Availability::Reserve("an operator moved the service away")
            }
            Availability::Serving { .. } => match state.failback.get().factor(&config.failback, now) {
                Some(factor) => Availability::Serving { factor },
                None => Availability::Reserve("it came back, the failback policy holds it"),
            },
            other => other,
        }
    }
}

impl ServiceView {
    fn local_availability(&self, version: Option<&str>, tried: &Tried, now: Instant) -> Availability {
        let mut availability = Availability::Out("no ready endpoint");
        for view in self.endpoints.iter().filter(|e| e.eligible(version, tried)) {
            match (view.readiness, view.endpoint.ejected(now)) {
                (Readiness::Ready, false) => return Availability::Serving { factor: 1.0 },
                (Readiness::Ready, true) => availability = Availability::Reserve("its endpoints fail and sit out"),
                (Readiness::Unknown | Readiness::NotReady, _) => {
                    if matches!(availability, Availability::Out(_)) {
                        availability = Availability::Reserve("its endpoints have not been checked yet");
                    }
                }
            }
        }
        availability
    }

    /// An endpoint here: two at random, the cheaper one. First those of our node or zone, where the cluster wants that, then all
    /// that are ready; those sitting out, and then those that nobody has checked yet, only when nothing else is left.
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
        for (readiness, ejected, near) in near.into_iter().chain(all) {
            let eligible = || {
                self.endpoints.iter().filter(|e| {
                    e.readiness == readiness
                        && (e.preferred || !near)
                        && e.eligible(version, tried)
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
        near().filter(|e| e.endpoint.ejected(now)).count() * 2 <= near().count()
    }

    /// Takes what an attempt at an endpoint of this service showed. At most half of the endpoints sit out at a time.
    pub fn judge(&self, endpoint: &Endpoint, verdict: Verdict, now: Instant) {
        // Only whether another may sit out depends on the others.
        let count = || self.endpoints.iter().filter(|e| e.endpoint.ejected(now)).count();
        let ejected = if verdict == Verdict::Answered { 0 } else { count() };
        endpoint.judge(verdict, self.endpoints.len(), ejected, now);
    }

    /// The next draw for a request without a sticky key.
    pub fn draw(&self) -> Key {
        let mut sequence = self.sequence.get();
        let draw = sequence.next_draw();
        self.sequence.set(sequence);
        Key::Fresh(draw)
    }
}

impl ClusterView {
    fn availability(&self, version: Option<&str>, tried: &Tried) -> Availability {
        if self.peers.is_empty() {
            return Availability::Out("no gateway of it reports an endpoint");
        }
        let mut best = Availability::Out("no ready endpoint");
        for view in self.peers.iter().filter(|p| p.ready_of(version) > 0) {
            if tried.peers.contains(&view.remote.name) {
                best = Availability::Out("its gateways were tried");
                continue;
            }
            match view.remote.handle.state() {
                PeerState::Up => return Availability::Serving { factor: 1.0 },
                PeerState::Suspect => best = Availability::Reserve("its gateways are suspect"),
                PeerState::Draining | PeerState::Dead | PeerState::Dialing => {
                    if matches!(best, Availability::Out(_)) {
                        best = Availability::Out("its gateways cannot be reached");
                    }
                }
            }
        }
        best
    }

    fn pick_peer(&self, version: Option<&str>, tried: &Tried, random: u64, why: &mut impl Trace) -> Option<Rc<Remote>> {
        for state in [PeerState::Up, PeerState::Suspect] {
            let eligible = || {
                self.peers.iter().filter(|p| {
                    p.remote.handle.state() == state && p.ready_of(version) > 0 && !tried.peers.contains(&p.remote.name)
                })
            };
            let count = eligible().count();
            let index = load::pick_of_two(count, random, |i| eligible().nth(i).map_or(f64::MAX, |p| p.cost(version)));
            if let Some(view) = index.and_then(|i| eligible().nth(i)) {
                why.note(|| {
                    let rtt = view.remote.handle.rtt();
                    format!(
                        "gateway: {} chosen out of {count} {state:?}, rtt {rtt:.1?}, {} endpoints ready",
                        view.remote.name,
                        view.ready_of(version)
                    )
                });
                return Some(Rc::clone(&view.remote));
            }
        }
        None
    }

    /// True while a gateway of it could serve the service.
    pub fn reachable(&self) -> bool {
        self.peers
            .iter()
            .any(|p| p.ready_of(None) > 0 && matches!(p.remote.handle.state(), PeerState::Up | PeerState::Suspect))
    }
}

impl PeerView {
    fn ready_of(&self, version: Option<&str>) -> u32 {
        self.ready.iter().filter(|(v, _)| version.is_none_or(|wanted| wanted == v)).map(|(_, ready)| ready).sum()
    }

    fn cost(&self, version: Option<&str>) -> f64 {
        let handle = &self.remote.handle;
        let latency = self.remote.latency.borrow().latency(handle.rtt());
        load::cost(handle.in_flight(), latency, f64::from(self.ready_of(version)))
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

impl Remote {
    /// Takes the time to one response head.
    pub fn observe(&self, latency: Duration, now: Instant) {
        self.latency.borrow_mut().observe(latency, now);
    }
}

/// A port by "namespace/name" and number: its key changes when the service gets a second one.
type Port = (Arc<str>, u16);

/// What outlives a view: connections, latencies and failback states.
#[derive(Debug, Default)]
pub struct LiveState {
    endpoints: HashMap<SocketAddr, Rc<Endpoint>>,
    remotes: HashMap<Arc<str>, Rc<Remote>>,
    failback: HashMap<(Port, Arc<str>), Rc<Cell<Failback>>>,
    sequences: HashMap<Port, Sequence>,
}

impl LiveState {
    /// Joins a snapshot with what the peers report; forgets what neither knows any more.
    pub fn view(
        &mut self,
        snapshot: &Arc<Snapshot>,
        peers: Vec<PeerHandle>,
        previous: Option<&View>,
        now: Instant,
        random: &mut impl FnMut() -> u64,
    ) -> View {
        self.keep_sequences(previous);
        let by_cluster = self.remotes(snapshot, peers, now);
        let mut used = HashMap::with_capacity(self.endpoints.len());
        let mut services = Vec::with_capacity(snapshot.services.len());
        for config in &snapshot.services {
            let endpoints = config.local.iter().map(|local| {
                let known = used.get(&local.address).or_else(|| self.endpoints.get(&local.address)).cloned();
                let endpoint = known.unwrap_or_else(|| Rc::new(Endpoint::new(local.address, now)));
                used.insert(local.address, Rc::clone(&endpoint));
                EndpointView {
                    endpoint,
                    version: Arc::clone(&local.version),
                    instance: local.instance.clone(),
                    readiness: local.readiness,
                    preferred: local.preferred,
                }
            });
            let endpoints: Vec<_> = endpoints.collect();
            let clusters = snapshot.clusters.iter().enumerate().map(|(index, cluster)| {
                let peers = by_cluster.get(index).map(Vec::as_slice).unwrap_or_default();
                let peers: Vec<_> = if config.exporters.contains(&index) {
                    peers.iter().filter_map(|remote| peer_view(remote, config)).collect()
                } else {
                    Vec::new()
                };
                let failback = self.failback.entry((port(config), Arc::clone(&cluster.name))).or_default();
                ClusterView { peers, failback: Rc::clone(failback) }
            });
            let clusters = clusters.collect();
            let sequence = self.sequences.get(&port(config)).copied().unwrap_or_else(|| Sequence::new(random()));
            let preference = config.preference;
            services.push(ServiceView { clusters, endpoints, preference, sequence: Cell::new(sequence) });
        }
        self.endpoints = used;
        let view = View { snapshot: Arc::clone(snapshot), services };
        release(previous, &view, now);
        step_failback(&view, now);
        if self.failback.len() > view.services.len() * view.snapshot.clusters.len() {
            let keys: std::collections::HashSet<_> = snapshot
                .services
                .iter()
                .flat_map(|s| snapshot.clusters.iter().map(|c| (port(s), Arc::clone(&c.name))))
                .collect();
            self.failback.retain(|key, _| keys.contains(key));
        }
        view
    }

    /// All endpoints, for housekeeping.
    pub fn endpoints(&self) -> impl Iterator<Item = &Rc<Endpoint>> {
        self.endpoints.values()
    }

    fn keep_sequences(&mut self, previous: Option<&View>) {
        self.sequences = previous
            .map(|view| {
                view.snapshot
                    .services
                    .iter()
                    .zip(&view.services)
                    .map(|(config, live)| (port(config), live.sequence.get()))
                    .collect()
            })
            .unwrap_or_default();
    }

    fn remotes(&mut self, snapshot: &Snapshot, peers: Vec<PeerHandle>, now: Instant) -> Vec<Vec<Rc<Remote>>> {
        let mut by_cluster = vec![Vec::new(); snapshot.clusters.len()];
        let mut used = HashMap::with_capacity(peers.len());
        for handle in peers {
            let peer = handle.name();
            let Ok(index) = snapshot.clusters.binary_search_by(|c| (*c.name).cmp(peer.cluster.as_str())) else {
                continue;
            };
            let name: Arc<str> = format!("{}/{}", peer.cluster, peer.gateway).into();
            let latency = self.remotes.get(&name).map_or_else(|| PeakEwma::new(now), |known| *known.latency.borrow());
            let remote = Rc::new(Remote {
                handle: handle.clone(),
                served_by: HeaderValue::from_str(&name).unwrap_or_else(|_| HeaderValue::from_static("unprintable")),
                cluster: peer.cluster.as_str().into(),
                latency: RefCell::new(latency),
                name: Arc::clone(&name),
            });
            used.insert(name, Rc::clone(&remote));
            if let Some(list) = by_cluster.get_mut(index) {
                list.push(remote);
            }
        }
        self.remotes = used;
        by_cluster
    }
}

fn port(service: &Service) -> Port {
    (Arc::clone(&service.service), service.port)
}

fn peer_view(remote: &Rc<Remote>, config: &Service) -> Option<PeerView> {
    let mut health = remote.handle.health(&config.key);
    // A gateway that has not heard of the other ports yet says it of the service.
    if health.is_empty() && config.place == 0 && config.key != config.service {
        health = remote.handle.health(&config.service);
    }
    let ready: Vec<_> = health.into_iter().map(|health| (health.version, health.ready)).collect();
    (!ready.is_empty()).then(|| PeerView { remote: Rc::clone(remote), ready })
}

/// Taking back a `failover trigger` also releases a cluster that only waits for an operator.
fn release(previous: Option<&View>, view: &View, now: Instant) {
    let Some(previous) = previous else { return };
    for (config, live) in view.snapshot.services.iter().zip(&view.services) {
        let Some(before) =
            previous.snapshot.port_of(&config.service, config.port).and_then(|i| previous.snapshot.services.get(i))
        else {
            continue;
        };
        let avoided = |name: &str| before.avoid.iter().any(|i| previous.snapshot.cluster_name(*i) == name);
        for (index, cluster) in view.snapshot.clusters.iter().enumerate() {
            if avoided(&cluster.name)
                && !config.avoid.contains(&index)
                && let Some(state) = live.clusters.get(index)
            {
                state.failback.set(state.failback.get().release(&config.failback, now));
            }
        }
    }
}

/// Moves every failback state on. Called at each rebuild and, while time matters, periodically.
pub fn step_failback(view: &View, now: Instant) {
    for (config, live) in view.snapshot.services.iter().zip(&view.services) {
        for (index, cluster) in live.clusters.iter().enumerate() {
            let serving = if Some(index) == view.snapshot.own_cluster {
                live.endpoints.iter().any(|e| e.readiness != Readiness::NotReady)
            } else {
                cluster.reachable()
            };
            cluster.failback.set(cluster.failback.get().step(serving, &config.failback, now));
        }
    }
}

#[cfg(test)]
mod tests;
