//! One QUIC connection, dialled or accepted: control streams, beats, service health, verdict.

use crate::{
    codec::{
        Code, ControlDecoder, ControlEvent, Limits, Mesh, ProtocolError, Settings, goaway_frame, varint as quic_varint,
    },
    config::TunnelLimits,
    credit::{StreamCredit, Window},
    detector::{Cause, Counts, Detector, Event, Output, Sample, Verdict, beat::Beat},
    error::TunnelError,
    health::{self, HealthError, HealthReader},
    lifecycle,
    peer::Peering,
    socket::canonical,
    stops::Stops,
    ticker::now,
    transport::varint,
    tunnels::Core,
};
use archipelago_identity::tls::PeerCertificate;
use bytes::BytesMut;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quinn::ConnectionError;
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{Notify, mpsc, watch};

/// A connection and what is known about its other end.
pub(crate) struct Conn {
    quinn: quinn::Connection,
    role: Role,
    peer: Arc<PeerCertificate>,
    core: Arc<Core>,
    /// Set once, by the peer's SETTINGS.
    settings: watch::Sender<Option<Settings>>,
    /// Present once both sides speak our extensions.
    detector: Mutex<Option<Detector>>,
    /// True while requests need not tell the detector that they begin.
    is_armed: AtomicBool,
    verdict: watch::Sender<Verdict>,
    in_flight: AtomicUsize,
    /// Those in flight that are established CONNECT tunnels.
    tunnels: AtomicUsize,
    /// Notified when `in_flight` falls to zero.
    idle: Notify,
    /// First stream id that the peer said it would not process.
    goaway: AtomicU64,
    /// Commands for our control stream; bounded, since a connection says GOAWAY once.
    control: mpsc::Sender<u64>,
    closed: OnceLock<ConnectionError>,
    /// What incomplete request heads hold.
    head_bytes: AtomicUsize,
    /// Smoothed round trip of beats; 0 without any.
    rtt_micros: AtomicU64,
    /// Largest head that the peer takes.
    section_bytes_max: AtomicU64,
    window: Mutex<Window>,
    streams: Mutex<StreamCredit>,
    stops: Stops,
}

/// Which side dialled.
#[derive(Debug)]
pub(crate) enum Role {
    /// We did: our requests go over it.
    Dialled(Weak<Peering>),
    /// The peer did: its requests come over it.
    Accepted,
}

impl Conn {
    /// Takes over an established connection: says SETTINGS and starts reading control, health and beats.
    pub(crate) fn start(quinn: quinn::Connection, role: Role, peer: PeerCertificate, core: &Arc<Core>) -> Arc<Self> {
        let (control, commands) = mpsc::channel(2);
        let conn = Arc::new(Self {
            quinn,
            role,
            peer: Arc::new(peer),
            core: core.clone(),
            settings: watch::Sender::new(None),
            detector: Mutex::new(None),
            is_armed: AtomicBool::new(true),
            verdict: watch::Sender::new(Verdict::Up),
            in_flight: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            idle: Notify::new(),
            goaway: AtomicU64::new(u64::MAX),
            control,
            closed: OnceLock::new(),
            head_bytes: AtomicUsize::new(0),
            rtt_micros: AtomicU64::new(0),
            section_bytes_max: AtomicU64::new(u64::MAX),
            window: Mutex::new(Window::new(&core.config().limits)),
            streams: Mutex::new(StreamCredit::new(&core.config().limits)),
            stops: Stops::default(),
        });
        core.register(&conn);
        tokio::spawn(conn.clone().write_control(commands));
        tokio::spawn(conn.clone().read_uni_streams());
        tokio::spawn(conn.clone().read_datagrams());
        tokio::spawn(conn.clone().end_with_certificate());
        conn
    }

    pub(crate) fn quinn(&self) -> &quinn::Connection {
        &self.quinn
    }

    pub(crate) fn peer(&self) -> &Arc<PeerCertificate> {
        &self.peer
    }

    pub(crate) fn is_accepted(&self) -> bool {
        matches!(self.role, Role::Accepted)
    }

    pub(crate) fn head_bytes(&self) -> &AtomicUsize {
        &self.head_bytes
    }

    pub(crate) fn limits(&self) -> &TunnelLimits {
        &self.core.config().limits
    }

    /// Largest head that the peer takes; no limit until it has said so (RFC 9114 §7.2.4.2).
    pub(crate) fn section_bytes_max(&self) -> u64 {
        self.section_bytes_max.load(Ordering::Relaxed)
    }

    pub(crate) fn stops(&self) -> &Stops {
        &self.stops
    }

    /// True while beats come and go, and with them the looks at what the peer said of streams.
    pub(crate) fn has_beats(&self) -> bool {
        self.detector().is_some()
    }

    /// True once the peer said that it takes extended CONNECT (RFC 9220).
    pub(crate) fn takes_extended_connect(&self) -> bool {
        self.settings.borrow().as_ref().is_some_and(|settings| settings.extended_connect)
    }

    pub(crate) fn settings(&self) -> watch::Receiver<Option<Settings>> {
        self.settings.subscribe()
    }

    /// Which process of the peer this is, if it said so.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        self.settings.borrow().as_ref().and_then(|settings| settings.mesh).map(|mesh| mesh.incarnation)
    }

    pub(crate) fn verdict(&self) -> watch::Receiver<Verdict> {
        self.verdict.subscribe()
    }

    /// Where the peer is.
    pub(crate) fn remote(&self) -> SocketAddr {
        canonical(self.quinn.remote_address())
    }

    pub(crate) fn current_verdict(&self) -> Verdict {
        *self.verdict.borrow()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Resolves when nothing is in flight.
    pub(crate) async fn quiet(&self) {
        loop {
            let idle = self.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.closed.get().is_none()
    }

    /// True when the peer said that it takes no more requests.
    pub(crate) fn is_going_away(&self) -> bool {
        self.goaway.load(Ordering::Relaxed) != u64::MAX
    }

    /// Read per request, hence one load where beats measure it.
    pub(crate) fn rtt(&self) -> Duration {
        match self.rtt_micros.load(Ordering::Relaxed) {
            0 => self.quinn.rtt(),
            micros => Duration::from_micros(micros),
        }
    }

    /// Announces that requests from stream `id` on are not processed.
    pub(crate) fn say_goaway(&self, id: u64) {
        let _ = self.control.try_send(id);
    }

    pub(crate) fn close(&self, code: Code, reason: &str) {
        self.quinn.close(varint(code), reason.as_bytes());
    }

    /// The error that a stream dies of when the connection does.
    pub(crate) fn lost(&self, cause: ConnectionError, stream: Option<quinn::StreamId>) -> TunnelError {
        let never_processed = match stream {
            // Ours, and the peer announced not to look at it; or it never existed.
            Some(id) => matches!(self.role, Role::Dialled(_)) && u64::from(id) >= self.goaway.load(Ordering::Relaxed),
            None => true,
        };
        TunnelError::ConnectionLost { cause, never_processed }
    }

    /// The beats of a detector that is due, and its judgement.
    pub(crate) fn tick(&self, now: Instant) {
        // A TCP connection may stand idle for days, and cannot be replayed: it is not worth two hundred beats a second.
        let waiting = self.in_flight().saturating_sub(self.tunnels.load(Ordering::Relaxed));
        let stats = self.quinn.stats();
        self.handle(Event::Tick(Sample { counts: counts(&stats), in_flight: waiting }), now);
        self.stops.observe(stats.frame_rx.stop_sending);
        let window = lock(&self.window).observe(
            stats.frame_rx.data_blocked,
            self.in_flight() == 0,
            self.limits(),
            self.core.windows(),
        );
        if let Some(window) = window.and_then(|bytes| quinn::VarInt::from_u64(bytes).ok()) {
            tracing::debug!(peer = %self.peer.spiffe_id, bytes = window.into_inner(), "connection window");
            self.quinn.set_receive_window(window);
        }
    }

    /// A stream of the peer's was accepted: it may have more of them before it has used up what it may have.
    pub(crate) fn extend_streams(&self) {
        if let Some(count) = lock(&self.streams).observe(self.in_flight(), self.limits()) {
            self.quinn.set_max_concurrent_bi_streams(count.into());
        }
    }

    pub(crate) fn tick_due(&self) -> Option<Instant> {
        self.detector().as_ref().map(Detector::due)
    }

    fn request_started(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if !self.is_armed.load(Ordering::Relaxed) {
            self.handle(Event::RequestStarted(counts(&self.quinn.stats())), now());
        }
    }

    fn request_ended(&self) {
        if self.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.idle.notify_waiters();
        }
    }

    fn handle(&self, event: Event, now: Instant) {
        let mut guard = self.detector();
        let Some(detector) = guard.as_mut() else { return };
        let Output { beats, changed } = detector.handle(event, now);
        self.core.beats_sent(beats.into());
        for _ in 0..beats {
            // Fails when the connection closed, which the reader of datagrams reports.
            let _ = self.quinn.send_datagram(detector.next_beat(now).encode());
        }
        self.is_armed.store(detector.is_active(now), Ordering::Relaxed);
        let (due, rtt) = (detector.due(), detector.rtt());
        drop(guard);
        self.rtt_micros.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.core.ticker().expect(due);
        if let Some((verdict, cause)) = changed {
            self.report(verdict, cause);
        }
    }

    fn report(&self, verdict: Verdict, cause: Cause) {
        self.verdict.send_replace(verdict);
        if let Role::Dialled(peering) = &self.role
            && let Some(peering) = peering.upgrade()
        {
            tracing::debug!(peer = %peering.name(), ?verdict, ?cause, "tunnel verdict");
            peering.observe(self, lifecycle::Event::Verdict(verdict));
        }
    }

    fn detector(&self) -> MutexGuard<'_, Option<Detector>> {
        lock(&self.detector)
    }

    /// The connection is over: everybody who waits for it learns so.
    fn end(&self, cause: ConnectionError) {
        {
            let mut ended = self.core.ended();
            if self.closed.set(cause).is_err() {
                return;
            }
            ended.add(&self.peer, self.quinn.stats());
        }
        self.verdict.send_replace(Verdict::Dead);
        self.idle.notify_waiters();
        self.stops.wake_all();
        if let Role::Dialled(peering) = &self.role
            && let Some(peering) = peering.upgrade()
        {
            peering.observe(self, lifecycle::Event::Closed);
        }
    }

    fn on_settings(self: &Arc<Self>, settings: Settings) {
        self.section_bytes_max.store(settings.field_section_bytes_max.unwrap_or(u64::MAX), Ordering::Relaxed);
        if settings.mesh.is_some() && self.quinn.max_datagram_size().is_some() {
            let detector = Detector::new(self.core.config().detector, now(), self.quinn.rtt());
            *self.detector() = Some(detector);
            self.is_armed.store(false, Ordering::Relaxed);
            self.core.ticker().add(Arc::downgrade(self));
            if matches!(self.role, Role::Accepted) {
                tokio::spawn(self.clone().write_health());
            }
        }
        self.settings.send_replace(Some(settings));
    }

    fn on_control(self: &Arc<Self>, event: ControlEvent) {
        match event {
            ControlEvent::Settings(settings) => self.on_settings(settings),
            ControlEvent::GoAway(id) => {
                // From a client the id counts pushes, of which there are none.
                if let Role::Dialled(peering) = &self.role {
                    self.goaway.store(id, Ordering::Relaxed);
                    if let Some(peering) = peering.upgrade() {
                        peering.observe(self, lifecycle::Event::GoingAway);
                    }
                }
            }
        }
    }

    async fn write_control(self: Arc<Self>, mut commands: mpsc::Receiver<u64>) {
        let Ok(mut stream) = self.quinn.open_uni().await else { return };
        let _ = stream.set_priority(CONTROL_PRIORITY);
        let settings = Settings {
            field_section_bytes_max: Some(Limits::default().field_section_bytes_max as u64),
            extended_connect: true,
            datagrams: true,
            mesh: Some(Mesh { version: MESH_VERSION, incarnation: self.core.incarnation() }),
        };
        if stream.write_chunk(settings.control_stream_prefix()).await.is_err() {
            return;
        }
        // The stream must stay open as long as the connection (RFC 9114 §6.2.1).
        loop {
            tokio::select! {
                Some(id) = commands.recv() => {
                    if stream.write_chunk(goaway_frame(id)).await.is_err() {
                        return;
                    }
                }
                _ = self.quinn.closed() => return,
            }
        }
    }

    /// A connection proves its ends once, when it begins: it may not outlast what was proven. What it still carries when it has
    /// been replaced may end in peace, because the same gateway has proven itself again, by a later certificate, where it is now.
    async fn end_with_certificate(self: Arc<Self>) {
        loop {
            let left =
                self.core.proven_until(&self.peer.spiffe_id).duration_since(SystemTime::now()).unwrap_or_default();
            if left.is_zero() {
                tracing::info!(peer = %self.peer.spiffe_id, "tunnel closed: the peer's certificate ran out");
                self.core.count_refused("expired");
                return self.close(Code::GENERAL_PROTOCOL_ERROR, "certificate ran out");
            }
            tokio::select! {
                // The clock of certificates may jump, that of timers does not.
                () = tokio::time::sleep(left.min(VALIDITY_INTERVAL)) => {}
                _ = self.quinn.closed() => return,
            }
        }
    }

    async fn read_datagrams(self: Arc<Self>) {
        let cause = loop {
            match self.quinn.read_datagram().await {
                Ok(datagram) => {
                    if let Some(beat) = Beat::decode(&datagram) {
                        self.core.beat_received();
                        self.handle(Event::Beat(beat), now());
                    }
                }
                Err(cause) => break cause,
            }
        };
        // Whatever the peer says or does not say any more, requests cannot go here: proof, not suspicion.
        self.handle(Event::Closed, now());
        self.end(cause);
    }

    async fn read_uni_streams(self: Arc<Self>) {
        let control_seen = AtomicBool::new(false);
        let mut readers = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.quinn.accept_uni() => match accepted {
                    Ok(stream) => readers.push(self.read_uni_stream(stream, &control_seen)),
                    Err(_) => return,
                },
                // RFC 9114 §6.1: no extension that we announce allows it.
                Ok(_) = self.quinn.accept_bi(), if matches!(self.role, Role::Dialled(_)) => {
                    self.close(Code::STREAM_CREATION_ERROR, "request stream from a server");
                    return;
                }
                Some(result) = readers.next(), if !readers.is_empty() => {
                    if let Err(error) = result {
                        let error: ProtocolError = error;
                        tracing::debug!(peer = %self.peer.spiffe_id, %error, "connection closed for a protocol violation");
                        self.close(error.code, error.what);
                        return;
                    }
                }
            }
        }
    }

    async fn read_uni_stream(
        self: &Arc<Self>,
        mut stream: quinn::RecvStream,
        control_seen: &AtomicBool,
    ) -> Result<(), ProtocolError> {
        let mut head = BytesMut::new();
        let kind = loop {
            if let Some((kind, used)) = quic_varint::decode(&head) {
                bytes::Buf::advance(&mut head, used);
                break kind;
            }
            match stream.read_chunk(READ_BYTES, true).await {
                Ok(Some(chunk)) => head.extend_from_slice(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(()), // a stream that ends before its type is no stream
            }
        };
        match kind {
            CONTROL_STREAM => {
                if control_seen.swap(true, Ordering::Relaxed) {
                    return Err(ProtocolError::connection(Code::STREAM_CREATION_ERROR, "second control stream"));
                }
                self.read_control(stream, head).await
            }
            // A capacity of zero leaves nothing to say here, but the streams may exist and must then stay.
            QPACK_ENCODER_STREAM | QPACK_DECODER_STREAM => {
                while let Ok(chunk) = stream.read_chunk(READ_BYTES, true).await {
                    if chunk.is_none() {
                        return Err(CLOSED_CRITICAL);
                    }
                }
                Ok(())
            }
            PUSH_STREAM => Err(match self.role {
                Role::Dialled(_) => ProtocolError::connection(Code::ID_ERROR, "push without MAX_PUSH_ID"),
                Role::Accepted => ProtocolError::connection(Code::STREAM_CREATION_ERROR, "push from a client"),
            }),
            health::STREAM_TYPE => self.read_health(stream, head).await,
            _ => {
                let _ = stream.stop(varint(Code::STREAM_CREATION_ERROR));
                Ok(())
            }
        }
    }

    async fn read_control(
        self: &Arc<Self>,
        mut stream: quinn::RecvStream,
        head: BytesMut,
    ) -> Result<(), ProtocolError> {
        let mut decoder = ControlDecoder::default();
        decoder.push(head.freeze());
        loop {
            while let Some(event) = decoder.next_event()? {
                self.on_control(event);
            }
            match stream.read_chunk(READ_BYTES, true).await {
                Ok(Some(chunk)) => decoder.push(chunk.bytes),
                Ok(None) | Err(quinn::ReadError::Reset(_)) => return Err(CLOSED_CRITICAL),
                Err(_) => return Ok(()),
            }
        }
    }

    async fn read_health(&self, mut stream: quinn::RecvStream, head: BytesMut) -> Result<(), ProtocolError> {
        let Role::Dialled(peering) = &self.role else {
            let _ = stream.stop(varint(Code::STREAM_CREATION_ERROR));
            return Ok(());
        };
        let reader = Arc::new(Mutex::new(HealthReader::default()));
        let mut chunk = head.freeze();
        loop {
            let advanced = {
                let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                reader.push(&chunk);
                reader.advance()
            };
            match (advanced, peering.upgrade()) {
                (Ok(true), Some(peering)) => peering.health_changed(&reader),
                (Ok(_), _) => {}
                // The peer answers this with a stream that begins with everything.
                (Err(HealthError::Gap), _) => {
                    let _ = stream.stop(varint(Code::REQUEST_CANCELLED));
                    return Ok(());
                }
                (Err(HealthError::Invalid), _) => {
                    return Err(ProtocolError::connection(Code::GENERAL_PROTOCOL_ERROR, "invalid health message"));
                }
            }
            match stream.read_chunk(READ_BYTES, true).await {
                Ok(Some(read)) => chunk = read.bytes,
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    /// Says what is ready here for as long as the connection lives; anew when the reader asks for it by stopping the stream.
    async fn write_health(self: Arc<Self>) {
        loop {
            let stopped = tokio::select! {
                stopped = self.write_health_stream() => stopped,
                _ = self.quinn.closed() => return,
            };
            // A peer that does not know these streams says so once.
            if stopped.is_none_or(|code| code == varint(Code::STREAM_CREATION_ERROR)) {
                return;
            }
            tokio::time::sleep(HEALTH_RESTART_DELAY).await;
        }
    }

    /// One stream; resolves with the code that the reader stopped it with, if it did.
    async fn write_health_stream(&self) -> Option<quinn::VarInt> {
        let mut stream = self.quinn.open_uni().await.ok()?;
        let _ = stream.set_priority(CONTROL_PRIORITY);
        let mut changes = self.core.health_changes();
        let mut messages = vec![health::stream_prefix()];
        let mut sent = 0;
        loop {
            for message in messages {
                if let Err(error) = stream.write_chunk(message).await {
                    return match error {
                        quinn::WriteError::Stopped(code) => Some(code),
                        _ => None,
                    };
                }
            }
            (messages, sent) = loop {
                changes.mark_unchanged();
                let (messages, version) = self.core.health_since(sent);
                if !messages.is_empty() {
                    break (messages, version);
                }
                // The version is looked at after the mark: a change in between is in the messages, or wakes us.
                tokio::select! {
                    changed = changes.changed() => changed.ok()?,
                    stopped = stream.stopped() => return stopped.ok().flatten(),
                }
            };
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        lock(&self.window).close(&self.core.config().limits, self.core.windows());
    }
}

fn counts(stats: &quinn::ConnectionStats) -> Counts {
    Counts { received: stats.udp_rx.datagrams, sent: stats.udp_tx.datagrams }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("peer", &self.peer.spiffe_id.to_string())
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A request being worked on over a connection, from its first byte to the end of its response.
#[derive(Debug)]
pub(crate) struct InFlight {
    conn: Arc<Conn>,
    is_tunnel: bool,
}

impl InFlight {
    pub(crate) fn new(conn: Arc<Conn>) -> Self {
        conn.request_started();
        Self { conn, is_tunnel: false }
    }

    /// From now on this is an established CONNECT tunnel, shared by its halves.
    pub(crate) fn into_tunnel(mut self) -> Arc<Self> {
        self.become_tunnel();
        Arc::new(self)
    }

    /// From now on this is an established CONNECT tunnel.
    pub(crate) fn become_tunnel(&mut self) {
        if !std::mem::replace(&mut self.is_tunnel, true) {
            self.conn.tunnels.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.is_tunnel {
            self.conn.tunnels.fetch_sub(1, Ordering::Relaxed);
        }
        self.conn.request_ended();
    }
}

const CONTROL_STREAM: u64 = 0x00;
const PUSH_STREAM: u64 = 0x01;
const QPACK_ENCODER_STREAM: u64 = 0x02;
const QPACK_DECODER_STREAM: u64 = 0x03;
const CLOSED_CRITICAL: ProtocolError =
    ProtocolError::connection(Code::CLOSED_CRITICAL_STREAM, "critical stream closed");
/// Version of our extensions.
const MESH_VERSION: u64 = 1;
const CONTROL_PRIORITY: i32 = 10;
const READ_BYTES: usize = 16 * 1024;
const VALIDITY_INTERVAL: Duration = Duration::from_secs(60);
/// A reader that keeps missing something must not make us send everything all the time.
const HEALTH_RESTART_DELAY: Duration = Duration::from_millis(100);
