//! One worker: a thread with a `current_thread` runtime that accepts, routes, and tunnels on its own.
//!
//! Workers share nothing on the request path: each has its sockets (SO_REUSEPORT, one UDP port), its tunnels, its connection
//! pools, and its own [`view::View`] of the snapshot. Configuration reaches it through [`crate::config::Published`], and it
//! reports each generation once every new request uses it.

pub mod captures;
pub mod command;
mod health;
pub mod listen;
pub mod ports;
pub(crate) mod probe;
pub mod streams;
pub mod view;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use archipelago_identity::revocation::Revocations;
use archipelago_identity::tls::PeerCertificate;
use archipelago_identity::{LiveCredential, SpiffeId};
use archipelago_tunnel::{
    BindError, DetectorConfig, Incoming, Peer, PeerState, ServiceHealth, TunnelConfig, TunnelStats, Tunnels,
};
use http::{HeaderValue, Method};
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::authorize::{self, AdmittedPeer, Refusal};
use crate::balance::budget::{Budget, Purpose};
use crate::balance::hash;
use crate::callers::{self, CaptureFrom};
use crate::config::{Published, Snapshot};
use crate::exchange::books::Done;
use crate::exchange::timers::Timers;
use crate::handover::{Phase, Turn};
use crate::source::{Source, Vouches};
use crate::telemetry::{AccessLog, GatewayMetrics, WorkerMetrics};
use captures::{CaptureListeners, CapturePorts};
use command::Command;
use ports::TcpPorts;
use streams::Streams;
use view::{LiveState, View};

/// Who this gateway is, with the header values made once.
#[derive(Debug)]
pub struct Identity {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its name.
    pub gateway: Arc<str>,
    /// Its SPIFFE id.
    pub spiffe_id: SpiffeId,
    /// `mesh-source`.
    pub spiffe_id_value: HeaderValue,
    /// `mesh-cluster`.
    pub cluster_value: HeaderValue,
    /// `mesh-served-by`.
    pub served_by: HeaderValue,
}

impl Identity {
    /// From the credential's id and the names on the command line.
    ///
    /// # Errors
    /// A name that cannot stand in a header.
    pub fn new(cluster: &str, gateway: &str, spiffe_id: SpiffeId) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(Self {
            cluster: cluster.into(),
            gateway: gateway.into(),
            spiffe_id_value: HeaderValue::from_str(&spiffe_id.to_string())?,
            cluster_value: HeaderValue::from_str(cluster)?,
            served_by: HeaderValue::from_str(&format!("{cluster}/{gateway}"))?,
            spiffe_id,
        })
    }
}

/// Another gateway as the sender of requests, with the header values that all of them share.
#[derive(Debug)]
pub struct Caller {
    /// Proof that it may tunnel to us, by the current snapshot.
    pub admitted: AdmittedPeer,
    /// `mesh-source` of a client of whom it says nothing.
    pub source: HeaderValue,
    /// Of whom it may say something.
    pub vouches: Vouches,
    /// `mesh-cluster`.
    pub cluster_value: HeaderValue,
    /// One value per connection.
    certificate: Arc<PeerCertificate>,
}

impl Caller {
    fn new(peer: &Arc<PeerCertificate>, snapshot: &Snapshot) -> Result<Self, Refusal> {
        let admitted = authorize::admit(snapshot, peer, SystemTime::now())?;
        // An SPIFFE id and a cluster's name are always fit for a header.
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Refusal::NotAGateway);
        Ok(Self {
            source: value(&peer.spiffe_id.to_string())?,
            vouches: Vouches::new(peer.spiffe_id.trust_domain().as_str(), admitted.cluster()),
            cluster_value: value(admitted.cluster())?,
            admitted,
            certificate: Arc::clone(peer),
        })
    }
}

/// Bounds of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until a response must begin; see [`crate::exchange::call::Deadline`].
    pub request_timeout: Duration,
    /// How long a client may take nothing of a response that is there.
    pub stall_timeout: Duration,
    /// Requests carried at a time.
    pub requests_max: usize,
    /// HTTP connections of clients. At about 10 KiB idle and 150 KiB with full buffers each.
    pub connections_max: usize,
    /// TCP connections proxied, at up to 128 KiB of buffers each.
    pub tcp_connections_max: usize,
    /// How long a TCP connection may go on that the configuration does not allow any more.
    pub tcp_grace: Duration,
    /// How long a drain waits for what is in flight.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            requests_max: 8_192,
            connections_max: 8_192,
            tcp_connections_max: 2_048,
            tcp_grace: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// What all workers are given alike.
#[derive(Clone)]
pub struct Shared {
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Bounds.
    pub limits: Limits,
    /// Gateways of each other cluster to keep tunnels to.
    pub peers_per_cluster: usize,
    /// Our SVID.
    pub credential: LiveCredential,
    /// Configuration.
    pub published: Arc<Published>,
    /// Metrics.
    pub metrics: GatewayMetrics,
    /// Access log, if any.
    pub access_log: Option<AccessLog>,
    /// Ports of TCP services.
    pub tcp_ports: Arc<TcpPorts>,
    /// Whose address is whose on our node.
    pub clients: Arc<callers::Table>,
    /// Ports where clients of the node arrive, and who may.
    pub captures: (Arc<CapturePorts>, CaptureFrom),
    /// Cancelled when the gateway drains.
    pub drain: CancellationToken,
    /// Whose turn it is to serve.
    pub turn: Turn,
    /// Told when a tunnel changed its state.
    pub tunnels_changed: Arc<Notify>,
}

/// State of one worker, used only on its thread.
pub struct Worker {
    /// Counted from 0.
    pub index: usize,
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Bounds.
    pub limits: Limits,
    /// Metrics.
    pub metrics: WorkerMetrics,
    /// Access log, if any.
    pub access_log: Option<AccessLog>,
    /// Whose address is whose on our node.
    pub clients: Arc<callers::Table>,
    /// Deadlines of everything that runs on it.
    pub timers: Rc<Timers>,
    /// Requests carried.
    pub requests: Cell<usize>,
    pub(crate) connections: Cell<usize>,
    /// The gateway drains: idle connections of clients end.
    pub(crate) is_draining: Cell<bool>,
    /// A successor serves: clients are asked to come again, to it.
    pub(crate) is_leaving: Cell<bool>,
    pub(crate) tcp_connections: Cell<usize>,
    /// The newest picture of the node's clients that this worker has seen.
    pub(crate) clients_seen: Cell<u64>,
    /// Clients of whom nothing is known yet.
    pub(crate) waiting: Cell<usize>,
    pub(crate) tunnels: Tunnels,
    /// Changes of the tunnels that the view knows of.
    pub(crate) tunnels_seen: Cell<u64>,
    pub(crate) streams: Streams,
    credential: LiveCredential,
    view: RefCell<Rc<View>>,
    live: RefCell<LiveState>,
    budget: RefCell<Budget>,
    random: Cell<u64>,
    callers: RefCell<Vec<Rc<Caller>>>,
    published_health: RefCell<Vec<ServiceHealth>>,
    peer_states: RefCell<Vec<(String, PeerState)>>,
    tunnel_stats: RefCell<TunnelStats>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Worker {
    fn new(index: usize, shared: &Shared, tunnels: Tunnels) -> Self {
        let now = Instant::now();
        Self {
            index,
            identity: Arc::clone(&shared.identity),
            limits: shared.limits,
            metrics: WorkerMetrics::new(&shared.metrics),
            access_log: shared.access_log.clone(),
            clients: Arc::clone(&shared.clients),
            timers: Rc::default(),
            requests: Cell::new(0),
            connections: Cell::new(0),
            is_draining: Cell::new(false),
            is_leaving: Cell::new(false),
            tcp_connections: Cell::new(0),
            clients_seen: Cell::new(0),
            waiting: Cell::new(0),
            tunnels,
            tunnels_seen: Cell::new(0),
            streams: Streams::default(),
            credential: shared.credential.clone(),
            view: RefCell::new(Rc::new(View { snapshot: Arc::new(Snapshot::empty()), services: Vec::new() })),
            live: RefCell::default(),
            budget: RefCell::new(Budget::new(now)),
            random: Cell::new(rand::random()),
            callers: RefCell::default(),
            published_health: RefCell::default(),
            peer_states: RefCell::default(),
            tunnel_stats: RefCell::default(),
        }
    }

    /// The current view.
    pub fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// A random number; SplitMix64, seeded once per worker.
    pub fn random(&self) -> u64 {
        let next = self.random.get().wrapping_add(1);
        self.random.set(next);
        hash::mix(next)
    }

    /// What requests of the gateway `peer` have in common.
    ///
    /// # Errors
    /// Why the current snapshot does not let it tunnel to us.
    pub fn caller(&self, peer: &Arc<PeerCertificate>) -> Result<Rc<Caller>, Refusal> {
        let mut callers = self.callers.borrow_mut();
        if let Some(known) = callers.iter().find(|caller| Arc::ptr_eq(&caller.certificate, peer)) {
            return Ok(Rc::clone(known));
        }
        let caller = Rc::new(Caller::new(peer, &self.view.borrow().snapshot)?);
        // One per connection; those of connections that ended are forgotten together.
        if callers.len() >= CALLERS_MAX {
            callers.clear();
        }
        callers.push(Rc::clone(&caller));
        Ok(caller)
    }

    /// Who is at the other end of a client's connection that has just begun.
    pub fn source(&self, ip: IpAddr) -> Source {
        let trust_domain = self.identity.spiffe_id.trust_domain();
        Source::of(ip, &self.clients, self.clients_seen.get(), trust_domain, &self.identity.cluster)
    }

    /// Nobody can serve a request for this service: of the clusters that export it, other gateways than the chosen may know better.
    pub fn demand(&self, view: &View, service: usize) {
        let Some(service) = view.snapshot.services.get(service) else { return };
        for cluster in service.exporters.iter().filter(|cluster| Some(**cluster) != view.snapshot.own_cluster) {
            self.tunnels.demand(view.snapshot.cluster_name(*cluster));
        }
    }

    /// Counts a first attempt.
    pub fn deposit(&self) {
        self.budget.borrow_mut().deposit();
    }

    /// Asks for one more attempt.
    pub fn withdraw(&self, purpose: Purpose) -> bool {
        self.budget.borrow_mut().withdraw(purpose, Instant::now())
    }

    /// Writes a finished request down.
    pub fn finished(&self, done: &Done<'_>) {
        self.metrics.request(done);
        if let Some(log) = &self.access_log {
            log.log(done);
        }
    }

    /// Joins `snapshot` with what is known of peers and endpoints, and serves with it from now on.
    fn refresh(&self, snapshot: &Arc<Snapshot>) {
        let previous = self.view();
        if !Arc::ptr_eq(&previous.snapshot, snapshot) {
            let peers = snapshot.peers.iter().map(|peer| Peer {
                cluster: snapshot.cluster_name(peer.cluster).to_owned(),
                gateway: peer.gateway.clone(),
                spiffe_id: peer.spiffe_id.clone(),
                addresses: peer.addresses.clone(),
            });
            // Unreadable: what was in force stays, and the gate lets nobody in.
            if let Some(revocations) = &snapshot.revocations {
                self.credential.revocations().replace(Revocations::clone(revocations));
            }
            self.tunnels.set_gate(authorize::gate(Arc::clone(snapshot)));
            self.tunnels.set_peers(peers.collect());
        }
        let peers = self.tunnels.peers();
        self.count_verdicts(&peers);
        let mut random = || self.random();
        let view = self.live.borrow_mut().view(snapshot, peers, Some(&previous), Instant::now(), &mut random);
        self.view.replace(Rc::new(view));
        self.streams.judge(snapshot, self.limits.tcp_grace, Instant::now());
        // They were admitted by the snapshot before.
        self.callers.borrow_mut().clear();
        self.publish_health();
    }

    /// Tells the peers how many endpoints are ready here.
    fn publish_health(&self) {
        let health = self.view().health(Instant::now());
        if *self.published_health.borrow() != health {
            self.published_health.replace(health.clone());
            self.tunnels.publish_health(health);
        }
    }

    fn count_verdicts(&self, peers: &[archipelago_tunnel::PeerHandle]) {
        let mut states: Vec<_> = peers.iter().map(|p| (p.name().to_string(), p.state())).collect();
        states.sort_by(|a, b| a.0.cmp(&b.0));
        let mut known = self.peer_states.borrow_mut();
        for (name, state) in &states {
            let before = known.iter().find(|(n, _)| n == name).map(|(_, s)| s);
            if before != Some(state) {
                self.metrics.verdict(command::state_name(*state));
            }
        }
        *known = states;
    }

    /// Everything that only needs doing now and then.
    fn housekeeping(&self) {
        let now = Instant::now();
        self.metrics.flush();
        self.metrics.tunnels(&self.tunnel_stats.replace(self.tunnels.stats()), &self.tunnel_stats.borrow());
        self.live.borrow().endpoints().for_each(|endpoint| endpoint.close_idle(now));
        self.streams.reset_due(now);
        view::step_failback(&self.view(), now);
        self.publish_health();
    }
}

/// Sockets of one worker, bound before its thread starts.
#[derive(Debug)]
pub struct Sockets {
    /// Clients, HTTP; at least one.
    pub http: Vec<std::net::TcpListener>,
    /// Tunnels.
    pub tunnel: SocketAddr,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    /// Asks something of it.
    pub commands: mpsc::Sender<Command>,
    /// Where its tunnels arrive.
    pub tunnel: SocketAddr,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    /// Waits until it has drained and ended.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its thread or runtime.
    #[error("cannot start a worker thread")]
    Thread(#[from] std::io::Error),
    /// Its tunnels.
    #[error(transparent)]
    Tunnels(#[from] BindError),
    /// It ended before it had started.
    #[error("a worker ended while starting")]
    Ended,
}

/// Starts worker `index`; returns once its sockets are open.
pub fn start(index: usize, shared: Shared, sockets: Sockets) -> Result<Handle, StartError> {
    let (commands, queue) = mpsc::channel(COMMANDS_QUEUED_MAX);
    let (started, outcome) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // Not a LocalSet inside a runtime: that is a second scheduler, through which every wake-up would pass as well.
        let runtime =
            match tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(StartError::Thread(error)))),
            };
        runtime.block_on(async move {
            let mut config = TunnelConfig::new(
                &*shared.identity.cluster,
                &*shared.identity.gateway,
                shared.credential.clone(),
                sockets.tunnel,
            );
            config.worker = index;
            config.peers_per_cluster = shared.peers_per_cluster;
            // Until the first snapshot says who belongs to the federation.
            config.gate = authorize::gate(Arc::new(Snapshot::empty()));
            config.detector = DetectorConfig::default();
            let (tunnels, incoming) = match Tunnels::bind(config) {
                Ok(bound) => bound,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            let address = tunnels.local_addr();
            let worker = Rc::new(Worker::new(index, &shared, tunnels));
            let listeners = sockets.http.into_iter().map(tokio::net::TcpListener::from_std);
            let listeners = match listeners.collect::<Result<Vec<_>, _>>() {
                Ok(listeners) => listeners,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            let _ = started.send(Ok(address));
            run(worker, shared, listeners, incoming, queue).await;
        });
    })?;
    let tunnel = outcome.recv().map_err(|_| StartError::Ended)??;
    Ok(Handle { commands, tunnel, thread })
}

async fn run(
    worker: Rc<Worker>,
    shared: Shared,
    http: Vec<tokio::net::TcpListener>,
    incoming: Incoming,
    commands: mpsc::Receiver<Command>,
) {
    let background = [
        tokio::task::spawn_local(follow(Rc::clone(&worker), shared.clone())),
        tokio::task::spawn_local(command::answer(Rc::clone(&worker), commands)),
        tokio::task::spawn_local(serve_tunnels(Rc::clone(&worker), incoming)),
        tokio::task::spawn_local(keep_house(Rc::clone(&worker))),
        tokio::task::spawn_local(note_clients(Rc::clone(&worker))),
        tokio::task::spawn_local(Rc::clone(&worker.timers).run()),
        tokio::task::spawn_local(note_successors(Rc::clone(&worker), shared.turn.clone())),
    ];
    let mut accepting = tokio::task::JoinSet::new();
    for listener in http {
        accepting.spawn_local(listen::http(Rc::clone(&worker), listener, shared.drain.clone(), shared.turn.clone()));
    }
    shared.drain.cancelled().await;
    worker.is_draining.set(true);
    worker.timers.wake_all();

    // New work stops: no accepts, GOAWAY on HTTP/2 (by each connection) and on the tunnels. Then what is in flight ends.
    let deadline = Instant::now() + worker.limits.drain_timeout;
    while accepting.join_next().await.is_some() {}
    // Idle client connections close at once; those that just sent a request may still need a tunnel.
    let grace = Instant::now() + CLIENT_GRACE;
    while Instant::now() < grace && worker.connections.get() > 0 {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    worker.tunnels.drain(deadline.saturating_duration_since(Instant::now())).await;
    while Instant::now() < deadline
        && (worker.requests.get() > 0 || worker.connections.get() > 0 || worker.tcp_connections.get() > 0)
    {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    worker.metrics.flush();
    background.iter().for_each(tokio::task::JoinHandle::abort);
    worker.tunnels.close().await;
}

/// Follows configuration and peers; the one place where the view changes.
async fn follow(worker: Rc<Worker>, shared: Shared) {
    let mut generations = shared.published.subscribe();
    let mut changes = worker.tunnels.changes();
    let mut listeners =
        listen::TcpListeners::new(Arc::clone(&shared.tcp_ports), shared.drain.clone(), shared.turn.clone());
    let (ports, from) = shared.captures;
    let mut captures = CaptureListeners::new(ports, from, shared.drain.clone(), shared.turn.clone());
    loop {
        let generation = *generations.borrow_and_update();
        let seen = *changes.borrow_and_update();
        let snapshot = shared.published.load();
        worker.refresh(&snapshot);
        worker.tunnels_seen.set(seen);
        let listening = listeners.follow(&worker, &snapshot) & captures.follow(&worker, &snapshot);
        shared.published.worker_reached(worker.index, generation);
        shared.tunnels_changed.notify_one();
        tokio::select! {
            moved = generations.changed() => if moved.is_err() { return },
            () = tokio::time::sleep(LISTEN_RETRY), if !listening => {}
            moved = changes.changed() => {
                if moved.is_err() {
                    return;
                }
                // Changes come in bursts (a peer's death touches all its services), and a rebuild costs microseconds per service.
                tokio::time::sleep(REBUILD_INTERVAL).await;
            }
        }
    }
}

async fn serve_tunnels(worker: Rc<Worker>, mut incoming: Incoming) {
    let mut burst = 0u32;
    while let Some(request) = incoming.next().await {
        burst = burst.wrapping_add(1);
        if burst.is_multiple_of(REQUESTS_PER_TURN) {
            // Thousands may wait: clients of this worker get their turn in between.
            tokio::task::yield_now().await;
        }
        let worker = Rc::clone(&worker);
        if request.head.method == Method::CONNECT {
            if worker.tcp_connections.get() >= worker.limits.tcp_connections_max {
                request.responder.reject();
                continue;
            }
            // In boxes: what is spawned is copied about, and these futures are kilobytes.
            tokio::task::spawn_local(Box::pin(async move {
                let _open = listen::Count::new(Rc::clone(&worker), |w| &w.tcp_connections);
                crate::tcp::serve_peer(Rc::clone(&worker), *request).await;
            }));
        } else if probe::is_probe(&request.head) {
            tokio::task::spawn_local(Box::pin(probe::answer(worker, request)));
        } else {
            tokio::task::spawn_local(Box::pin(crate::exchange::serve_peer(worker, request)));
        }
    }
}

/// A number of the worker's own, so that a request does not look at one that all workers share.
async fn note_clients(worker: Rc<Worker>) {
    let mut changes = worker.clients.changes();
    loop {
        worker.clients_seen.set(*changes.borrow_and_update());
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn note_successors(worker: Rc<Worker>, mut turn: Turn) {
    loop {
        turn.until(|phase| phase == Phase::Yielded).await;
        worker.is_leaving.set(true);
        turn.until(|phase| phase != Phase::Yielded).await;
        worker.is_leaving.set(false);
    }
}

async fn keep_house(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.housekeeping();
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Answers a question of another thread; the asker may be gone.
pub type Reply<T> = oneshot::Sender<T>;

const REQUESTS_PER_TURN: u32 = 64;
const COMMANDS_QUEUED_MAX: usize = 64;
/// More connections than peers of a large federation have.
const CALLERS_MAX: usize = 256;
/// Metrics may be this old; the failback ramp moves in such steps.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(250);
/// Whoever has the port of a TCP service may let go of it.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
const REBUILD_INTERVAL: Duration = Duration::from_millis(1);
const CLIENT_GRACE: Duration = Duration::from_millis(250);
const DRAIN_POLL: Duration = Duration::from_millis(20);
