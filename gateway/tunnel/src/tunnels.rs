//! All tunnels of one worker.

use crate::{
    accept::{self, Gate},
    choice::Choice,
    codec::Code,
    config::{Peer, PeerName, TunnelConfig},
    conn::Conn,
    credit::Budget,
    error::BindError,
    health::{HealthBook, ServiceHealth},
    news::{News, PeerNews},
    peer::{PeerState, Peering},
    request::PeerHandle,
    server::{Incoming, IncomingRequest},
    socket::{Cut, CutSet},
    ticker::Ticker,
    traffic::{Ended, Path, Traffic},
    transport::{self, varint},
};
use arc_swap::ArcSwap;
use archipelago_identity::{MeshRole, SpiffeId, tls::PeerCertificate};
use bytes::Bytes;
use quinn::{Endpoint, TransportConfig};
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

/// The tunnels of one worker, to and from all its peers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tunnels(Arc<Core>);

impl Tunnels {
    /// Binds the UDP socket and starts accepting. Call it on the worker's own runtime: everything runs there.
    ///
    /// # Errors
    /// The port cannot be had, or TLS cannot be set up.
    pub fn bind(config: TunnelConfig) -> Result<(Self, Incoming), BindError> {
        let cut = Arc::new(CutSet::default());
        let transport = transport::transport(&config.limits);
        let endpoint = transport::endpoint(&config, &transport, &cut)?;
        let local_addr = endpoint.local_addr().map_err(|source| BindError::Socket { address: config.bind, source })?;
        let (incoming, requests) = mpsc::channel(config.limits.incoming_queue);
        let gate = Gate::clone(&config.gate);
        let own = PeerName { cluster: config.cluster.clone(), gateway: config.gateway.clone() };
        let core = Arc::new(Core {
            endpoint,
            local_addr,
            transport,
            cut,
            cut_spec: Mutex::default(),
            peers: ArcSwap::default(),
            conns: Mutex::default(),
            incoming,
            changes: watch::Sender::new(0),
            news: Mutex::default(),
            chosen: Mutex::new(Chosen { choice: Choice::new(own, config.peers_per_cluster), known: BTreeMap::new() }),
            health: Mutex::default(),
            health_version: watch::Sender::new(0),
            draining: watch::Sender::new(false),
            gate: ArcSwap::from_pointee(gate),
            ticker: Ticker::new(),
            incarnation: rand::random::<u64>() >> 2,
            counters: Counters::default(),
            windows: Budget::new(config.limits.window_budget_bytes),
            config,
        });
        tokio::spawn(accept::accept(core.clone()));
        tokio::spawn(core.clone().keep_choosing());
        let ticking = core.clone();
        tokio::spawn(async move { ticking.ticker.run().await });
        Ok((Self(core), Incoming::new(requests)))
    }

    /// The UDP address in use.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr
    }

    /// The gateways of other clusters that there are. Of each cluster as many as [`TunnelConfig::peers_per_cluster`] says are chosen to
    /// keep tunnels to, others as they are needed. A peer that stays chosen keeps its connection; one that goes finishes its requests.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        let known: BTreeMap<PeerName, Peer> = peers.into_iter().map(|peer| (peer.name(), peer)).collect();
        {
            let mut chosen = self.0.chosen();
            if !chosen.known.keys().eq(known.keys()) {
                chosen.choice.set_members(known.keys());
            }
            chosen.known = known;
        }
        self.0.choose();
    }

    /// As [`Self::set_peers`], of these peers only: those that are new or elsewhere now, and those that are gone.
    pub fn change_peers(&self, upserts: Vec<Peer>, removals: &[PeerName]) {
        {
            let mut chosen = self.0.chosen();
            let Chosen { choice, known } = &mut *chosen;
            for name in removals {
                if known.remove(name).is_some() {
                    choice.remove(name);
                }
            }
            for peer in upserts {
                let name = peer.name();
                choice.add(&name);
                known.insert(name, peer);
            }
        }
        self.0.choose();
    }

    /// Requests find nobody in `cluster` who can serve them: dials one more gateway of it, if there is one. Cheap to call for each.
    pub fn demand(&self, cluster: &str) {
        let is_news = self.0.chosen().choice.demand(cluster, Instant::now().into_std());
        if is_news {
            tracing::debug!(cluster, "one more tunnel on demand");
            self.0.choose();
        }
    }

    /// The peer of that name.
    pub fn peer(&self, name: &PeerName) -> Option<PeerHandle> {
        self.0.peers.load().get(name).cloned().map(PeerHandle::new)
    }

    /// The chosen peers, by name.
    pub fn peers(&self) -> Vec<PeerHandle> {
        self.0.peers.load().values().cloned().map(PeerHandle::new).collect()
    }

    /// How the open connections with each gateway are, whoever dialled them.
    pub fn paths(&self) -> BTreeMap<SpiffeId, Path> {
        let mut paths: BTreeMap<SpiffeId, Path> = BTreeMap::new();
        for conn in self.0.live() {
            paths.entry(conn.peer().spiffe_id.clone()).or_default().add(conn.quinn().stats().path.into());
        }
        paths
    }

    /// A counter that moves when any peer's state or health changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// What happened to peers since this was asked last.
    pub fn take_news(&self) -> News {
        std::mem::take(&mut *self.0.news())
    }

    /// Tells every connected peer what is ready here.
    pub fn publish_health(&self, services: Vec<ServiceHealth>) {
        let mut book = self.0.health.lock().unwrap_or_else(PoisonError::into_inner);
        if book.publish(services) {
            self.0.health_version.send_replace(book.version());
        }
    }

    /// Tells every connected peer what is ready here of these services, by name: versions with their numbers of endpoints, none when
    /// the service is gone.
    pub fn change_health(&self, services: BTreeMap<String, Vec<(String, u32)>>) {
        let mut book = self.0.health.lock().unwrap_or_else(PoisonError::into_inner);
        if book.change(services) {
            self.0.health_version.send_replace(book.version());
        }
    }

    /// Starts a drill: packets from and to these peers vanish silently, until [`heal`](Self::heal).
    pub fn cut(&self, cut: Cut) {
        *self.0.cut_spec() = cut;
        self.0.apply_cut();
    }

    /// Ends a drill.
    pub fn heal(&self) {
        self.cut(Cut::default());
    }

    /// Puts another rule in force of who may keep a tunnel with us, and closes the connections, dialled and accepted, of whoever it
    /// refuses.
    pub fn set_gate(&self, gate: Gate) {
        self.0.gate.store(Arc::new(Gate::clone(&gate)));
        for conn in self.0.live() {
            let proven = self.0.proven_until(&conn.peer().spiffe_id);
            if let Err(reason) = gate(&PeerCertificate { not_after: proven, ..(**conn.peer()).clone() }) {
                self.0.count_refused(reason);
                tracing::info!(peer = %conn.peer().spiffe_id, reason, "tunnel closed");
                conn.close(Code::GENERAL_PROTOCOL_ERROR, reason);
            }
        }
    }

    /// Totals since the start.
    pub fn stats(&self) -> TunnelStats {
        let counters = &self.0.counters;
        TunnelStats {
            accepted: counters.accepted.load(Ordering::Relaxed),
            refused: counters.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            failed_dials: counters.failed_dials.load(Ordering::Relaxed),
            rejected_requests: counters.rejected.load(Ordering::Relaxed),
            suspicions: counters.suspicions.load(Ordering::Relaxed),
            deaths: counters.deaths.load(Ordering::Relaxed),
            beats_sent: counters.beats_sent.load(Ordering::Relaxed),
            beats_received: counters.beats_received.load(Ordering::Relaxed),
            traffic: self.0.traffic(),
        }
    }

    /// Takes no new requests (peers are told by GOAWAY), waits for those in flight both ways, at most until `deadline`
    /// has passed, and closes. Peers see [`PeerState::Draining`] at once.
    pub async fn drain(&self, deadline: Duration) {
        let deadline = Instant::now() + deadline;
        self.0.draining.send_replace(true);
        for conn in self.0.live() {
            let _ = timeout_at(deadline, conn.quiet()).await;
        }
        // The last FINs must be acknowledged before the connections close.
        tokio::time::sleep(CLOSE_LINGER.min(deadline.saturating_duration_since(Instant::now()))).await;
        self.close().await;
    }

    /// Closes everything at once; requests in flight fail on both sides.
    pub async fn close(&self) {
        self.set_peers(Vec::new());
        self.0.endpoint.close(varint(Code::NO_ERROR), b"shutting down");
        let _ = timeout(CLOSE_LINGER, self.0.endpoint.wait_idle()).await;
    }
}

/// Totals of one worker's tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TunnelStats {
    /// Connections accepted from other gateways.
    pub accepted: u64,
    /// Handshakes and identities refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Attempts to dial a peer that failed.
    pub failed_dials: u64,
    /// Requests rejected because too many waited.
    pub rejected_requests: u64,
    /// Times a peer became suspect.
    pub suspicions: u64,
    /// Times a peer was found dead.
    pub deaths: u64,
    /// Beats sent.
    pub beats_sent: u64,
    /// Beats that came.
    pub beats_received: u64,
    /// What went over connections with each cluster, whoever dialled them, those that ended included.
    pub traffic: BTreeMap<String, Traffic>,
}

/// Which peers tunnels are kept to, out of those that there are.
#[derive(Debug)]
struct Chosen {
    choice: Choice,
    known: BTreeMap<PeerName, Peer>,
}

/// What the tasks of a worker's tunnels share.
pub(crate) struct Core {
    config: TunnelConfig,
    endpoint: Endpoint,
    local_addr: SocketAddr,
    transport: Arc<TransportConfig>,
    cut: Arc<CutSet>,
    cut_spec: Mutex<Cut>,
    peers: ArcSwap<BTreeMap<PeerName, Arc<Peering>>>,
    conns: Mutex<Vec<Weak<Conn>>>,
    incoming: mpsc::Sender<Box<IncomingRequest>>,
    changes: watch::Sender<u64>,
    news: Mutex<News>,
    chosen: Mutex<Chosen>,
    health: Mutex<HealthBook>,
    health_version: watch::Sender<u64>,
    draining: watch::Sender<bool>,
    gate: ArcSwap<Gate>,
    ticker: Ticker,
    incarnation: u64,
    counters: Counters,
    windows: Budget,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    failed_dials: AtomicU64,
    rejected: AtomicU64,
    suspicions: AtomicU64,
    deaths: AtomicU64,
    beats_sent: AtomicU64,
    beats_received: AtomicU64,
    ended: Mutex<Ended>,
}

impl Core {
    pub(crate) fn config(&self) -> &TunnelConfig {
        &self.config
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn transport(&self) -> &Arc<TransportConfig> {
        &self.transport
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    /// What connections hold beyond their first window.
    pub(crate) fn windows(&self) -> &Budget {
        &self.windows
    }

    pub(crate) fn incoming(&self) -> &mpsc::Sender<Box<IncomingRequest>> {
        &self.incoming
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The version of what is published here.
    pub(crate) fn health_changes(&self) -> watch::Receiver<u64> {
        self.health_version.subscribe()
    }

    /// See [`HealthBook::since`].
    pub(crate) fn health_since(&self, version: u64) -> (Vec<Bytes>, u64) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).since(version)
    }

    pub(crate) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Starts and stops tunnels so that they are those that [`Choice`] wants.
    fn choose(self: &Arc<Self>) {
        let before = self.peers.load_full();
        let mut after = BTreeMap::new();
        let mut chosen = self.chosen();
        let is_promising = |name: &PeerName| before.get(name).is_none_or(|peering| peering.is_promising());
        for name in chosen.choice.wanted(is_promising, Instant::now().into_std()) {
            let Some(peer) = chosen.known.get(&name) else { continue };
            let peering = match before.get(&name).filter(|peering| *peering.spiffe_id() == peer.spiffe_id) {
                Some(peering) => {
                    if *peering.addresses() != peer.addresses {
                        peering.set_addresses(peer.addresses.clone());
                    }
                    peering.clone()
                }
                None => Peering::start(peer.clone(), self),
            };
            after.insert(name, peering);
        }
        let gone: Vec<_> = before
            .iter()
            .filter(|(name, old)| !after.get(*name).is_some_and(|new| Arc::ptr_eq(old, new)))
            .map(|(_, peering)| peering.clone())
            .collect();
        let is_same = gone.is_empty() && after.len() == before.len();
        self.peers.store(Arc::new(after));
        drop(chosen);
        if is_same {
            return;
        }
        gone.iter().for_each(|peering| peering.stop());
        self.apply_cut();
        self.news().chosen = true;
        self.changed();
    }

    /// Chooses anew whenever a peer's state changes, and when a tunnel was kept long enough.
    async fn keep_choosing(self: Arc<Self>) {
        let mut changes = self.changes.subscribe();
        loop {
            let due = self.chosen().choice.due();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = async { match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                } } => {}
            }
            self.choose();
        }
    }

    fn chosen(&self) -> MutexGuard<'_, Chosen> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Something happened to a peer.
    pub(crate) fn note(&self, peer: &PeerName, news: PeerNews) {
        {
            let mut all = self.news();
            let known = all.peers.entry(peer.clone()).or_default();
            known.state |= news.state;
            known.health.add(news.health);
        }
        self.changed();
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection began.
    pub(crate) fn register(&self, conn: &Arc<Conn>) {
        let mut list = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() == list.capacity() {
            list.retain(|conn| conn.strong_count() > 0);
        }
        list.push(Arc::downgrade(conn));
    }

    /// Beats went out.
    pub(crate) fn beats_sent(&self, count: u64) {
        self.counters.beats_sent.fetch_add(count, Ordering::Relaxed);
    }

    /// A beat came.
    pub(crate) fn beat_received(&self) {
        self.counters.beats_received.fetch_add(1, Ordering::Relaxed);
    }

    /// Totals of what ended; whoever ends a connection holds it, so that none is counted twice or not at all.
    pub(crate) fn ended(&self) -> MutexGuard<'_, Ended> {
        self.counters.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn traffic(&self) -> BTreeMap<String, Traffic> {
        let ended = self.ended();
        let mut totals = ended.clone();
        for conn in self.live() {
            totals.add(conn.peer(), conn.quinn().stats());
        }
        totals.0
    }

    /// A gateway connected to us: its tunnel, if we keep one, need not wait to be dialled.
    pub(crate) fn accepted(&self, conn: &Arc<Conn>) {
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        for peering in self.peers.load().values() {
            if *peering.spiffe_id() == conn.peer().spiffe_id {
                peering.hint();
            }
        }
        if !self.cut_spec().clusters.is_empty() {
            self.apply_cut();
        }
    }

    pub(crate) fn connections_of(&self, peer: &SpiffeId) -> usize {
        self.live_accepted().filter(|conn| conn.peer().spiffe_id == *peer).count()
    }

    /// Until when this gateway has proven to be who it is, on any of its open connections.
    pub(crate) fn proven_until(&self, peer: &SpiffeId) -> SystemTime {
        let proven = self.live().into_iter().filter(|conn| conn.peer().spiffe_id == *peer);
        proven.map(|conn| conn.peer().not_after).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(crate) fn count_refused(&self, reason: &'static str) {
        *self.counters.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_insert(0) += 1;
    }

    pub(crate) fn gate(&self) -> Gate {
        Gate::clone(&self.gate.load())
    }

    pub(crate) fn connections(&self) -> usize {
        self.live_accepted().count()
    }

    pub(crate) fn count_failed_dial(&self) {
        self.counters.failed_dials.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_rejected(&self) {
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_state(&self, state: PeerState) {
        match state {
            PeerState::Suspect => self.counters.suspicions.fetch_add(1, Ordering::Relaxed),
            PeerState::Dead => self.counters.deaths.fetch_add(1, Ordering::Relaxed),
            PeerState::Dialing | PeerState::Up | PeerState::Draining => 0,
        };
    }

    /// Every open connection, whoever dialled, those that were replaced and end their last requests too.
    fn live(&self) -> Vec<Arc<Conn>> {
        let mut list = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        let live: Vec<_> = list.iter().filter_map(Weak::upgrade).filter(|conn| conn.is_open()).collect();
        *list = live.iter().map(Arc::downgrade).collect();
        live
    }

    fn live_accepted(&self) -> impl Iterator<Item = Arc<Conn>> {
        self.live().into_iter().filter(|conn| conn.is_accepted())
    }

    fn cut_spec(&self) -> MutexGuard<'_, Cut> {
        self.cut_spec.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns names into addresses: those we dial, and those the peers dialled us from.
    fn apply_cut(&self) {
        let cut = self.cut_spec().clone();
        let mut addresses: std::collections::HashSet<SocketAddr> = cut.addresses.iter().copied().collect();
        for (name, peering) in self.peers.load().iter() {
            if cut.covers(name) {
                addresses.extend(peering.addresses().iter());
            }
        }
        if !cut.clusters.is_empty() || !cut.peers.is_empty() {
            for conn in self.live_accepted() {
                if let Some(MeshRole::Gateway { cluster, name }) = conn.peer().spiffe_id.role()
                    && cut.covers(&PeerName { cluster, gateway: name })
                {
                    addresses.insert(conn.quinn().remote_address());
                }
            }
        }
        self.cut.replace(addresses);
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// Time for the last acknowledgements and CONNECTION_CLOSE to leave.
const CLOSE_LINGER: Duration = Duration::from_millis(200);
