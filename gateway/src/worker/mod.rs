//! One worker: a thread with a `current_thread` runtime that accepts, routes, and tunnels on its own.
//!
//! Workers share nothing on the request path: each has its sockets (SO_REUSEPORT, one UDP port), its tunnels, its connection
//! pools, and its own [`view::View`] of the snapshot. Configuration reaches it through [`crate::config::Published`], and it
//! reports each generation once every new request uses it.

pub mod captures;
pub mod command;
mod follow;
mod health;
mod identity;
pub mod listen;
pub mod ports;
pub(crate) mod probe;
mod seek;
mod statements;
pub mod streams;
mod thread;
pub mod under_way;
pub mod view;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_identity::LiveCredential;
use archipelago_identity::tls::PeerCertificate;
use archipelago_tunnel::{DetectorConfig, PeerName, PeerState, TunnelStats, Tunnels};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::identity::{Caller, Identity};
pub use self::thread::{Handle, LocalExecutor, Sockets, start};
use crate::authorize::Refusal;
use crate::balance::budget::{Budget, Purpose};
use crate::balance::hash;
use crate::callers::{self, CaptureFrom};
use crate::config::Published;
use crate::exchange::books::Done;
use crate::exchange::timers::Timers;
use crate::handover::Turn;
use crate::journal::Journal;
use crate::ledger::timing::Told;
use crate::pace;
use crate::source::Source;
use crate::tap::Taps;
use crate::telemetry::{AccessLog, GatewayMetrics, Name, Names, WorkerMetrics};
use crate::tls::Terminator;
use crate::trace::Tracer;
use crate::visitors::Visitors;
use captures::CapturePorts;
use ports::TcpPorts;
use statements::Statements;
use streams::Streams;
use view::{LiveState, View};

/// Bounds of one worker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until a response must begin; see [`crate::exchange::call::Deadline`].
    pub request_timeout: Duration,
    /// Until the head of a request is there, once it has begun, and until a new connection says anything.
    pub head_timeout: Duration,
    /// How long a client's connection is kept on which there is no request. nginx: 75 s, HAProxy: until its client time-out.
    pub idle_timeout: Duration,
    /// How slow clients and endpoints may be with one request, where no policy says it.
    pub streams: pace::Limits,
    /// How long requests may wait, once the last gateway that could serve them is lost, for it or another one to be there.
    pub away_timeout: Duration,
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
    /// How soon a silent peer is suspected and given up.
    pub detector: DetectorConfig,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(30),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            streams: pace::Limits::default(),
            // As long as QUIC itself waits for a silent peer, and longer than a gateway takes to start.
            away_timeout: Duration::from_secs(3),
            requests_max: 8_192,
            connections_max: 8_192,
            tcp_connections_max: 2_048,
            tcp_grace: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            detector: DetectorConfig::default(),
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
    /// What each client has open.
    pub visitors: Arc<Visitors>,
    /// What handshakes have in common, if clients speak TLS.
    pub tls: Option<Terminator>,
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
    /// Records traces, if there is a collector.
    pub tracer: Option<Tracer>,
    /// Requests are counted, and the slowest kept.
    pub counts_requests: bool,
    /// Whose clients see where the time of their requests went.
    pub server_timing: Told,
    /// Who looks at requests as they end.
    pub taps: Arc<Taps>,
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
    /// Where what it sees is written down for operators.
    pub journal: Journal,
}

/// State of one worker, used only on its thread.
pub struct Worker {
    /// Counted from 0.
    pub index: usize,
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Our cluster, as this worker counts it.
    pub cluster: Name,
    /// Other names that it counts.
    pub names: Names,
    /// Bounds.
    pub limits: Limits,
    /// What each client has open, on all workers.
    pub visitors: Arc<Visitors>,
    /// Metrics.
    pub metrics: WorkerMetrics,
    /// Access log, if any.
    pub access_log: Option<AccessLog>,
    /// Records traces, if there is a collector.
    pub tracer: Option<Tracer>,
    /// Requests are counted, and the slowest kept.
    pub counts_requests: bool,
    /// Whose clients see where the time of their requests went.
    pub server_timing: Told,
    /// Who looks at requests as they end.
    pub taps: Arc<Taps>,
    /// Whose address is whose on our node.
    pub clients: Arc<callers::Table>,
    /// Deadlines of everything that runs on it.
    pub timers: Rc<Timers>,
    /// Requests carried.
    pub requests: Cell<usize>,
    /// One handshake at a time.
    pub(crate) handshakes: Semaphore,
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
    pub(crate) published: Arc<Published>,
    /// The newest configuration that it serves with.
    pub(crate) generation_seen: Cell<u64>,
    /// Peers have been told what is ready here, if only that nothing is.
    has_told: Cell<bool>,
    pub(crate) streams: Streams,
    pub(crate) journal: Journal,
    statements: Statements,
    credential: LiveCredential,
    view: RefCell<Rc<View>>,
    /// Told when there is another view.
    view_changed: Notify,
    /// Requests and connections that wait for somebody to serve them.
    seeking: Cell<usize>,
    live: RefCell<LiveState>,
    budget: RefCell<Budget>,
    random: Cell<u64>,
    callers: RefCell<Vec<Rc<Caller>>>,
    peer_states: RefCell<BTreeMap<PeerName, PeerState>>,
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
            cluster: Name::from(&*shared.identity.cluster),
            names: Names::default(),
            limits: shared.limits,
            visitors: Arc::clone(&shared.visitors),
            metrics: WorkerMetrics::new(&shared.metrics),
            access_log: shared.access_log.clone(),
            tracer: shared.tracer.clone(),
            counts_requests: shared.counts_requests,
            server_timing: shared.server_timing.clone(),
            taps: Arc::clone(&shared.taps),
            clients: Arc::clone(&shared.clients),
            timers: Rc::default(),
            requests: Cell::new(0),
            handshakes: Semaphore::new(1),
            connections: Cell::new(0),
            is_draining: Cell::new(false),
            is_leaving: Cell::new(false),
            tcp_connections: Cell::new(0),
            clients_seen: Cell::new(0),
            waiting: Cell::new(0),
            tunnels,
            tunnels_seen: Cell::new(0),
            published: Arc::clone(&shared.published),
            generation_seen: Cell::new(0),
            has_told: Cell::new(false),
            streams: Streams::default(),
            journal: shared.journal.clone(),
            statements: Statements::default(),
            credential: shared.credential.clone(),
            view: RefCell::new(Rc::new(View::empty())),
            view_changed: Notify::new(),
            seeking: Cell::new(0),
            live: RefCell::default(),
            budget: RefCell::new(Budget::new(now)),
            random: Cell::new(rand::random()),
            callers: RefCell::default(),
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
        let caller = Rc::new(Caller::new(peer, &self.view.borrow().snapshot.membership, &self.names)?);
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
        let Some(service) = view.snapshot.service(service) else { return };
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
    pub fn finished(&self, done: &Done<'_>, end: Instant) {
        if self.counts_requests {
            self.metrics.request(done);
        }
        if let Some(hedge) = done.record.hedge {
            self.metrics.hedge(hedge);
        }
        if let (Some(tracer), Some(trace)) = (&self.tracer, &done.record.trace) {
            tracer.finish(trace, done.record, [done.bytes_received, done.bytes_sent], end);
        }
        if let Some(log) = &self.access_log {
            log.log(done, self.random());
        }
    }
}

/// Answers a question of another thread; the asker may be gone.
pub type Reply<T> = oneshot::Sender<T>;

/// More connections than peers of a large federation have.
const CALLERS_MAX: usize = 256;
