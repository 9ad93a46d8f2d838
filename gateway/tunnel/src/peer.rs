//! Keeping a tunnel to one peer: dial, watch, replace, retire.

use crate::{
    codec::Code,
    config::{Peer, PeerName},
    conn::{Conn, Role},
    detector::Verdict,
    error::TunnelError,
    health::{HealthReader, ServiceHealth},
    lifecycle::{Event, Lifecycle, Output},
    news::{HealthNews, PeerNews},
    socket::canonical,
    transport::{self, SERVER_NAME, varint},
    tunnels::Core,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use archipelago_identity::{Credential, SpiffeId, tls::IdentityError};
use quinn::{ConnectError, ConnectionError, crypto::rustls::NoInitialCipherSuite};
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

/// Where a peer stands, as far as this worker can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// No connection has come about yet.
    Dialing,
    /// Takes requests.
    Up,
    /// Silent for longer than usual, or just back from the dead: prefer another.
    Suspect,
    /// Unreachable. It is being dialled, and returns to [`PeerState::Up`] by itself.
    Dead,
    /// Said that it is going away: finishes what it has, takes nothing new.
    Draining,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dialing => "dialing",
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Draining => "draining",
        })
    }
}

/// A peer and the connection to it, if there is one: [`Lifecycle`] with hands.
#[derive(Debug)]
pub(crate) struct Peering {
    name: PeerName,
    spiffe_id: SpiffeId,
    addresses: ArcSwap<Vec<SocketAddr>>,
    core: Arc<Core>,
    current: ArcSwapOption<Conn>,
    lifecycle: Mutex<Lifecycle>,
    state: watch::Sender<PeerState>,
    /// When it came to that state.
    since: Mutex<Instant>,
    dialling: watch::Sender<bool>,
    deaths: AtomicU64,
    death: Notify,
    /// What the peer says, once it has said everything; of the newest connection that did.
    health: ArcSwapOption<Mutex<HealthReader>>,
    last_error: Mutex<Option<String>>,
    /// The peer gave a sign of life elsewhere: do not wait to dial it.
    redial: Notify,
    task: Mutex<Option<AbortHandle>>,
}

impl Peering {
    /// Starts keeping a tunnel to `peer`.
    pub(crate) fn start(peer: Peer, core: &Arc<Core>) -> Arc<Self> {
        let lifecycle = Lifecycle::new();
        let peering = Arc::new(Self {
            name: peer.name(),
            spiffe_id: peer.spiffe_id,
            addresses: ArcSwap::from_pointee(peer.addresses),
            core: core.clone(),
            current: ArcSwapOption::empty(),
            state: watch::Sender::new(lifecycle.state()),
            since: Mutex::new(Instant::now()),
            dialling: watch::Sender::new(lifecycle.wants_dialling()),
            lifecycle: Mutex::new(lifecycle),
            deaths: AtomicU64::new(0),
            death: Notify::new(),
            health: ArcSwapOption::empty(),
            last_error: Mutex::default(),
            redial: Notify::new(),
            task: Mutex::default(),
        });
        let task = tokio::spawn(peering.clone().run()).abort_handle();
        *peering.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        peering
    }

    /// Stops dialling; the connection goes once its last request has ended.
    pub(crate) fn stop(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        if let Some(conn) = self.current.swap(None) {
            retire(conn, self.core.config().limits.retire_timeout);
        }
        self.handle(Event::Stopped);
    }

    pub(crate) fn name(&self) -> &PeerName {
        &self.name
    }

    pub(crate) fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    pub(crate) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// The peer is elsewhere now. What there is goes on until there is a connection to the new place, and there it is dialled at once.
    pub(crate) fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        let is_there = |conn: &Conn| addresses.iter().any(|address| canonical(*address) == conn.remote());
        let moved = self.current.load().as_ref().is_some_and(|conn| !is_there(conn));
        self.addresses.store(Arc::new(addresses));
        if moved {
            self.handle(Event::Moved);
        }
        self.redial.notify_one();
    }

    pub(crate) fn state(&self) -> PeerState {
        *self.state.borrow()
    }

    /// When it came to the state in which it is.
    pub(crate) fn since(&self) -> Instant {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Lifecycle::is_promising`].
    pub(crate) fn is_promising(&self) -> bool {
        self.lifecycle().is_promising()
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn current(&self) -> Option<Arc<Conn>> {
        self.current.load_full()
    }

    /// The connection to send a request over.
    pub(crate) fn usable(&self) -> Result<Arc<Conn>, TunnelError> {
        self.current
            .load_full()
            .filter(|conn| conn.is_open() && !conn.is_going_away() && conn.current_verdict() != Verdict::Dead)
            .ok_or_else(|| TunnelError::NotConnected { peer: self.name.clone() })
    }

    pub(crate) fn health(&self, service: &str) -> Vec<ServiceHealth> {
        let Some(reader) = self.health.load_full() else { return Vec::new() };
        let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.table().get(service).cloned().unwrap_or_default()
    }

    pub(crate) fn services(&self) -> Vec<String> {
        let Some(reader) = self.health.load_full() else { return Vec::new() };
        let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.table().keys().cloned().collect()
    }

    pub(crate) fn has_said_health(&self) -> bool {
        self.health.load().is_some()
    }

    /// What `reader` follows changed.
    pub(crate) fn health_changed(&self, reader: &Arc<Mutex<HealthReader>>) {
        let mut news = reader.lock().unwrap_or_else(PoisonError::into_inner).take_news();
        if !self.health.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, reader)) {
            self.health.store(Some(reader.clone()));
            news = HealthNews::Everything;
        }
        self.core.note(&self.name, PeerNews { state: false, health: news });
    }

    /// Another connection of this peer appeared: it is alive.
    pub(crate) fn hint(&self) {
        if self.state() != PeerState::Up {
            self.redial.notify_one();
        }
    }

    /// Resolves when the peer is dead, now or later; a death between two polls is not missed.
    pub(crate) async fn died(&self) {
        let deaths = self.deaths.load(Ordering::Acquire);
        loop {
            let death = self.death.notified();
            if self.state() == PeerState::Dead || self.deaths.load(Ordering::Acquire) != deaths {
                return;
            }
            death.await;
        }
    }

    /// Something happened to `conn`; it matters if that is the connection in use.
    pub(crate) fn observe(&self, conn: &Conn, event: Event) {
        if self.current.load().as_ref().is_some_and(|current| std::ptr::eq(&**current, conn)) {
            self.handle(event);
        }
    }

    fn handle(&self, event: Event) {
        let Output { announce, died, dial } = self.lifecycle().handle(event);
        if let Some(dial) = dial {
            self.dialling.send_replace(dial);
        }
        let Some(state) = announce else { return };
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.state.send_replace(state);
        if event != Event::Stopped {
            match state {
                PeerState::Suspect => tracing::debug!(peer = %self.name, %state, "tunnel state"),
                _ => tracing::info!(peer = %self.name, %state, "tunnel state"),
            }
            self.core.count_state(state);
        }
        if died {
            self.deaths.fetch_add(1, Ordering::Release);
            self.death.notify_waiters();
        }
        self.core.note(&self.name, PeerNews { state: true, health: HealthNews::Nothing });
    }

    fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut dialling = self.dialling.subscribe();
        let mut aged = None;
        loop {
            tokio::select! {
                () = until(&mut dialling, true) => {}
                () = sleep_until(aged.unwrap_or_else(Instant::now)), if aged.is_some() => self.handle(Event::Aged),
            }
            if let Some(conn) = self.dial_until_connected(&mut dialling).await {
                aged = Some(Instant::now() + self.connection_age());
                self.install(conn);
            }
        }
    }

    /// Dials until it succeeds, or until the connection that there is turns out to be alive.
    async fn dial_until_connected(self: &Arc<Self>, dialling: &mut watch::Receiver<bool>) -> Option<Arc<Conn>> {
        let mut delay_max = REDIAL_DELAY_MIN;
        loop {
            let failed = tokio::select! {
                dialled = self.dial() => match dialled {
                    Ok(conn) => return Some(conn),
                    Err(error) => error,
                },
                () = until(dialling, false) => return None,
                // The peer is back, and our handshake may sit in a long back-off: begin a new one.
                () = async { sleep(HINT_PATIENCE).await; self.redial.notified().await } => continue,
            };
            self.note(&failed);
            // Full jitter: all peers of a gateway that restarts dial it at once, and a common delay keeps them in step.
            let delay = delay_max.mul_f64(rand::random_range(0.0..1.0));
            delay_max = (delay_max * 2).min(self.core.config().limits.redial_delay_max);
            tokio::select! {
                () = sleep(delay) => {}
                () = self.redial.notified() => sleep(HINT_DELAY).await,
                () = until(dialling, false) => return None,
            }
        }
    }

    async fn dial(self: &Arc<Self>) -> Result<Arc<Conn>, DialError> {
        let limit = self.core.config().limits.dial_timeout;
        timeout(limit, self.handshake()).await.unwrap_or(Err(DialError::Timeout(limit)))
    }

    async fn handshake(self: &Arc<Self>) -> Result<Arc<Conn>, DialError> {
        let addresses = self.addresses.load_full();
        let worker = self.core.config().worker.checked_rem(addresses.len()).ok_or(DialError::NoAddress)?;
        let address = *addresses.get(worker).ok_or(DialError::NoAddress)?;
        let config = transport::client_config(&self.core.config().credential, &self.spiffe_id, self.core.transport())?;
        let connection = self.core.endpoint().connect_with(config, address, SERVER_NAME)?.await?;
        let peer = transport::peer_certificate(&connection)?;
        if let Err(reason) = self.core.gate()(&peer) {
            connection.close(varint(Code::GENERAL_PROTOCOL_ERROR), reason.as_bytes());
            return Err(DialError::Refused(reason));
        }
        // A TLS 1.3 client is done before the server has seen its certificate: only SETTINGS prove that we are welcome.
        let role = Role::Dialled(Arc::downgrade(self));
        let conn = Conn::start(connection, role, peer, &self.core);
        let mut closing = Closing(Some(conn.clone()));
        let mut settings = conn.settings();
        tokio::select! {
            _ = settings.wait_for(Option::is_some) => {}
            cause = conn.quinn().closed() => return Err(cause.into()),
        }
        closing.0 = None;
        Ok(conn)
    }

    fn install(self: &Arc<Self>, conn: Arc<Conn>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let before = self.current.swap(Some(conn.clone()));
        self.handle(Event::Connected);
        // What happened to it before it was the one in use.
        if conn.is_going_away() {
            self.handle(Event::GoingAway);
        }
        match conn.current_verdict() {
            _ if !conn.is_open() => self.handle(Event::Closed),
            Verdict::Up => {}
            verdict => self.handle(Event::Verdict(verdict)),
        }
        if let Some(before) = before {
            match (before.incarnation(), conn.incarnation()) {
                // The process we talked to is gone: whoever waits for it should learn so now, not in three seconds.
                (Some(old), Some(new)) if old != new && before.remote() == conn.remote() => {
                    before.close(Code::NO_ERROR, "the peer restarted");
                }
                // Elsewhere is another process of the peer, beside which the one before may end what it has begun.
                (Some(old), Some(new)) if old != new => {
                    tokio::spawn(close_when_silent(Arc::clone(&before)));
                    retire(before, self.core.config().limits.retire_timeout);
                }
                _ => retire(before, self.core.config().limits.retire_timeout),
            }
        }
    }

    fn note(&self, error: &DialError) {
        let text = archipelago_base::error::chain(error);
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&text) {
            tracing::info!(peer = %self.name, error = %text, "cannot dial");
            *last = Some(text);
        }
        self.core.count_failed_dial();
        let was_promising = self.is_promising();
        self.handle(Event::DialFailed);
        if was_promising != self.is_promising() {
            self.core.changed(); // another peer may have to stand in
        }
    }

    /// How old the new connection may get: half the SVID's life, never past its end, all of it with jitter.
    fn connection_age(&self) -> Duration {
        let age = match self.core.config().limits.connection_age_max {
            Some(age) => age,
            None => age_of(&self.core.config().credential.current(), SystemTime::now()),
        };
        age.mul_f64(rand::random_range(0.8..1.0))
    }
}

/// Resolves when the value is `wanted`; its sender lives in the [`Peering`] that asks.
async fn until(dialling: &mut watch::Receiver<bool>, wanted: bool) {
    let _ = dialling.wait_for(|dialling| *dialling == wanted).await;
}

/// Closes a connection that is given up half-way.
struct Closing(Option<Arc<Conn>>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(conn) = &self.0 {
            conn.close(Code::NO_ERROR, "given up");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("the peer has no tunnel address")]
    NoAddress,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect")]
    Connect(#[from] ConnectError),
    #[error("handshake failed")]
    Handshake(#[from] ConnectionError),
    #[error("TLS configuration does not fit QUIC")]
    Tls(#[from] NoInitialCipherSuite),
    #[error("the peer's certificate cannot be read")]
    Certificate(#[from] IdentityError),
    #[error("the peer is refused: {0}")]
    Refused(&'static str),
}

/// Lets the last requests of `conn` end, then closes it.
fn retire(conn: Arc<Conn>, limit: Duration) {
    tokio::spawn(async move {
        tokio::select! {
            _ = timeout(limit, conn.quiet()) => {}
            _ = conn.quinn().closed() => return,
        }
        // Closing drops what is not acknowledged yet, such as the FIN of a half that has just ended.
        sleep(RETIRE_LINGER + conn.rtt() * 3).await;
        conn.close(Code::NO_ERROR, "replaced");
    });
}

/// Closes the connection to a process that did not end what it had begun, but died: nobody else looks after what it carries.
async fn close_when_silent(conn: Arc<Conn>) {
    let mut verdict = conn.verdict();
    loop {
        tokio::select! {
            dead = verdict.wait_for(|verdict| *verdict == Verdict::Dead) => if dead.is_err() { return },
            _ = conn.quinn().closed() => return,
        }
        // A verdict may be wrong, and is then taken back within moments.
        sleep(SILENCE_MAX).await;
        if *verdict.borrow() == Verdict::Dead {
            return conn.close(Code::NO_ERROR, "the peer that was replaced is silent");
        }
    }
}

fn age_of(credential: &Credential, now: SystemTime) -> Duration {
    let life = credential.not_after.duration_since(credential.not_before).unwrap_or_default();
    let left = credential.not_after.duration_since(now).unwrap_or_default();
    (life / 2).min(left.mul_f64(0.8)).clamp(CONNECTION_AGE_MIN, CONNECTION_AGE_MAX)
}

const REDIAL_DELAY_MIN: Duration = Duration::from_millis(50);
/// A peer that has just dialled us may not listen with all its workers yet.
const HINT_DELAY: Duration = Duration::from_millis(5);
/// A handshake younger than this is left alone: two gateways that start together dial each other, and must not
/// keep making each other begin anew.
const HINT_PATIENCE: Duration = Duration::from_millis(600);
const SILENCE_MAX: Duration = Duration::from_millis(500);
const RETIRE_LINGER: Duration = Duration::from_millis(100);
/// An SVID at its end, or a clock that jumped, must not make us dial in a loop.
const CONNECTION_AGE_MIN: Duration = Duration::from_secs(5);
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 86_400);
