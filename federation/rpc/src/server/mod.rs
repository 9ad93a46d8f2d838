//! gRPC over mutual TLS, for clients that may be anybody: nobody without the right certificate makes this process wait, hold or
//! compute much.
//!
//! | what | bound | when full |
//! | --- | --- | --- |
//! | sockets that have not said a word | per source address and in total, each with a deadline | the oldest is dropped |
//! | handshakes under way | per source address and in total, each with a deadline | the oldest is dropped |
//! | connections without a certificate | per source address and in total, few streams, small windows | the oldest is dropped |
//! | connections with one | per identity and in total | the identity's oldest is dropped |
//! | a call | by [`Access`]: who, how many bytes, how long | refused before its body is read |
//! | calls without a certificate | a rate per source address | refused |
//! | connections without a stream | idle time | closed |
//!
//! A connection ends when the certificate that it began with does, or at once when that is revoked.

mod access;
mod call;
mod crowd;
mod throttle;

use std::{
    future::Future,
    hash::Hash,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use archipelago_base::open_files;
use archipelago_identity::{
    LiveCredential, SpiffeId,
    tls::{self, ClientAuth, PeerCertificate, peer_certificate},
};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

pub use self::access::{Access, Call, Caller, Rule};
use self::{crowd::Crowd, throttle::Throttle};
use crate::{grpc::PeerInfo, wall_clock::sleep_until_wall};

/// A port and what it serves.
#[derive(Debug)]
pub struct Server {
    /// For logs.
    pub name: &'static str,
    /// Who this process is, and whom it refuses.
    pub credential: LiveCredential,
    /// Whether there are callers without a certificate.
    pub auth: ClientAuth,
    /// Who may call what.
    pub access: Access,
    /// How many of them.
    pub limits: Limits,
}

/// Bounds of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes under way.
    pub handshakes_max: usize,
    /// Of those, from one address.
    pub handshakes_per_source_max: usize,
    /// Connections without a certificate.
    pub strangers_max: usize,
    /// Of those, from one address.
    pub strangers_per_source_max: usize,
    /// Connections with a certificate.
    pub connections_max: usize,
}

impl Limits {
    /// For a process that may have `open_files` descriptors and two ports such as this: together they take half.
    #[must_use]
    pub fn for_open_files(open_files: u64) -> Self {
        let share =
            |divisor: u64, max: usize| usize::try_from(open_files / divisor).unwrap_or(usize::MAX).clamp(16, max);
        let (handshakes_max, strangers_max) = (share(32, HANDSHAKES_MAX), share(32, STRANGERS_MAX));
        Self {
            handshakes_max,
            handshakes_per_source_max: (handshakes_max / 4).max(16),
            strangers_max,
            strangers_per_source_max: (strangers_max / 4).max(16),
            connections_max: share(6, CONNECTIONS_MAX),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_open_files(open_files::limit())
    }
}

impl Server {
    /// Serves until `shutdown` resolves, then lets the calls in progress end; whoever awaits this decides how long.
    ///
    /// # Errors
    /// The listener cannot be used. A failing connection is its own affair.
    pub async fn serve(
        self,
        listener: std::net::TcpListener,
        routes: Routes,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        // Listening again sets the backlog: the standard library's is short, and a full one costs clients a second each.
        rustix::net::listen(&listener, BACKLOG)?;
        let listener = TcpListener::from_std(listener)?;
        let port = Arc::new(Port {
            acceptor: TlsAcceptor::from(tls::server_config(&self.credential, self.auth, &[b"h2"])),
            routes: routes.prepare(),
            silent: Arc::new(Mutex::new(Crowd::new(self.limits.handshakes_max))),
            handshakes: Arc::new(Mutex::new(Crowd::new(self.limits.handshakes_max))),
            strangers: Arc::new(Mutex::new(Crowd::new(self.limits.strangers_max))),
            known: Arc::new(Mutex::new(Crowd::new(self.limits.connections_max))),
            throttle: Mutex::new(Throttle::new(CALLS_BURST, CALLS_PER_SECOND, SOURCES_MAX)),
            draining: CancellationToken::new(),
            server: self,
        });
        let connections = TaskTracker::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    connections.spawn(Arc::clone(&port).connection(stream, remote));
                }
                Err(error) => {
                    tracing::warn!(server = port.server.name, %error, "accept failed");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(listener);
        port.draining.cancel();
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

/// What the connections of a port share.
struct Port {
    server: Server,
    acceptor: TlsAcceptor,
    routes: Routes,
    /// Sockets that have not said a word.
    silent: Places<IpAddr>,
    handshakes: Places<IpAddr>,
    strangers: Places<IpAddr>,
    known: Places<SpiffeId>,
    /// Calls without a certificate.
    throttle: Mutex<Throttle<IpAddr>>,
    draining: CancellationToken,
}

type Places<K> = Arc<Mutex<Crowd<K, CancellationToken>>>;

impl Port {
    async fn connection(self: Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        let source = source_of(remote.ip());
        let Some((stream, peer)) = self.handshake(stream, source, remote).await else { return };
        match &peer {
            Some(certificate) => {
                let key_max = connections_max(Caller::of(Some(&certificate.spiffe_id)));
                let seat = Seat::take(&self.known, certificate.spiffe_id.clone(), key_max);
                self.serve(stream, peer.clone(), remote, &seat.displaced).await;
            }
            None => {
                let seat = Seat::take(&self.strangers, source, self.server.limits.strangers_per_source_max);
                self.serve(stream, None, remote, &seat.displaced).await;
            }
        }
    }

    /// A connection whose client, if it showed a certificate, is verified.
    async fn handshake(
        &self,
        stream: TcpStream,
        source: IpAddr,
        remote: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, Option<Arc<PeerCertificate>>)> {
        let key_max = self.server.limits.handshakes_per_source_max;
        // Sockets that say nothing are a crowd of their own: they are dropped for each other, never for one that speaks.
        let silent = Seat::take(&self.silent, source, key_max);
        let mut word = [0];
        tokio::select! {
            biased;
            // A look that takes nothing; the end of a socket is no word either.
            said = stream.peek(&mut word) => if !matches!(said, Ok(1..)) { return None },
            () = silent.displaced.cancelled() => return None,
            () = sleep(HANDSHAKE_TIMEOUT) => return None,
            () = self.draining.cancelled() => return None,
        }
        drop(silent);
        let seat = Seat::take(&self.handshakes, source, key_max);
        // Small messages both ways: waiting to fill a segment only adds latency.
        let _ = stream.set_nodelay(true);
        let accepted = tokio::select! {
            biased;
            accepted = timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)) => accepted,
            () = seat.displaced.cancelled() => {
                tracing::debug!(%remote, "TLS handshake dropped for newer ones");
                return None;
            }
            () = self.draining.cancelled() => return None,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates();
                // The verifier has read it before: this cannot fail.
                let peer = chain.and_then(|chain| peer_certificate(chain).ok()).map(Arc::new);
                Some((stream, peer))
            }
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!(%remote, "TLS handshake timed out");
                None
            }
        }
    }

    async fn serve(
        self: &Arc<Self>,
        stream: TlsStream<TcpStream>,
        peer: Option<Arc<PeerCertificate>>,
        remote: SocketAddr,
        displaced: &CancellationToken,
    ) {
        let caller = Caller::of(peer.as_ref().map(|peer| &peer.spiffe_id));
        let streams = watch::Sender::new(0_usize);
        let info = PeerInfo { certificate: peer.clone(), remote };
        let (port, count) = (Arc::clone(self), streams.clone());
        let service = service_fn(move |request| call::answer(Arc::clone(&port), info.clone(), count.clone(), request));
        let connection = http(caller).serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let mut counted = streams.subscribe();
        let mut ending = pin!(async {
            tokio::select! {
                end = self.end_of(peer.as_deref()) => end,
                () = displaced.cancelled() => End::Displaced,
                () = idle(&mut counted, idle_max(caller)) => End::Idle,
                () = self.draining.cancelled() => End::Draining,
            }
        });
        let end = tokio::select! {
            result = &mut connection => return closed(remote, result),
            end = &mut ending => end,
        };
        let last = match end {
            End::Displaced | End::Revoked => None,
            // It may finish what it does, and is told to go elsewhere for more.
            End::Expiring => Some(EXPIRY_NOTICE),
            End::Idle => Some(LINGER),
            End::Draining => Some(Duration::MAX),
        };
        tracing::debug!(%remote, ?end, "connection ends");
        if let Some(last) = last {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = timeout(last, &mut connection) => if let Ok(result) = result { closed(remote, result) },
                () = self.revoked(peer.as_deref()) => {}
            }
        }
    }

    /// Resolves when the certificate of a connection is revoked, or about to run out.
    async fn end_of(&self, peer: Option<&PeerCertificate>) -> End {
        let expiring = async {
            match peer {
                Some(peer) => {
                    sleep_until_wall(peer.not_after.checked_sub(EXPIRY_NOTICE).unwrap_or(peer.not_after)).await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.revoked(peer) => End::Revoked,
            () = expiring => End::Expiring,
        }
    }

    async fn revoked(&self, peer: Option<&PeerCertificate>) {
        let Some(peer) = peer else { return std::future::pending().await };
        let revocations = self.server.credential.revocations();
        let mut changes = revocations.subscribe();
        loop {
            // Also before the first change: the list may have grown since the handshake looked at it.
            if let Some(revoked) = revocations.check(&peer.spiffe_id, peer.not_before) {
                tracing::info!(spiffe_id = %peer.spiffe_id, reason = %revoked, "connection ends");
                return;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Why this side ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Displaced,
    Draining,
    Expiring,
    Idle,
    Revoked,
}

/// A place in a crowd, given back when dropped.
struct Seat<K: Clone + Eq + Hash> {
    places: Places<K>,
    place: u64,
    /// Cancelled when it was taken away for a newcomer.
    displaced: CancellationToken,
}

impl<K: Clone + Eq + Hash> Seat<K> {
    fn take(places: &Places<K>, key: K, key_max: usize) -> Self {
        let displaced = CancellationToken::new();
        let (place, gone) = lock(places).admit(key, key_max, displaced.clone());
        if let Some(gone) = gone {
            gone.cancel();
        }
        Self { places: Arc::clone(places), place, displaced }
    }
}

impl<K: Clone + Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        lock(&self.places).leave(self.place);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An address as far as its owner cannot choose another: a /64 of IPv6 is one customer's.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

fn http(caller: Option<Caller>) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        // A gateway that vanished is noticed within 6 s, before its session would time out.
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(streams_max(caller));
    if matches!(caller, Some(Caller::Stranger) | None) {
        http.initial_stream_window_size(STRANGER_WINDOW_BYTES)
            .initial_connection_window_size(STRANGER_WINDOW_BYTES * 2);
    }
    http
}

/// Resolves once no stream was open for `limit`.
async fn idle(streams: &mut watch::Receiver<usize>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        if streams.wait_for(|open| *open == 0).await.is_err() {
            return std::future::pending().await;
        }
        if timeout(limit, streams.wait_for(|open| *open > 0)).await.is_err() {
            return;
        }
    }
}

fn closed(remote: SocketAddr, result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(%remote, %error, "connection failed");
    }
}

/// What one connection can make this process hold, in streams. A gateway needs its session and a few calls.
const fn streams_max(caller: Option<Caller>) -> u32 {
    match caller {
        Some(Caller::ControlPlane) => 256,
        Some(Caller::Operator) => 64,
        Some(Caller::Agent | Caller::Gateway) => 16,
        Some(Caller::Stranger) | None => 4,
    }
}

/// Connections of one identity: a process has one or two, operators and robots share a credential.
const fn connections_max(caller: Option<Caller>) -> usize {
    match caller {
        Some(Caller::Operator) => 256,
        Some(Caller::ControlPlane) => 32,
        Some(Caller::Agent | Caller::Gateway) => 8,
        Some(Caller::Stranger) | None => 2,
    }
}

/// Members keep theirs: pings show that they are alive.
const fn idle_max(caller: Option<Caller>) -> Option<Duration> {
    match caller {
        Some(Caller::ControlPlane) => None,
        Some(Caller::Agent | Caller::Gateway | Caller::Operator) => Some(Duration::from_secs(60)),
        Some(Caller::Stranger) | None => Some(Duration::from_secs(10)),
    }
}

/// A handshake in being costs two sockets' buffers and 20 KiB; whoever is honest is through within a second, even when a
/// thousand come at once (a millisecond of CPU each: ML-KEM, two ECDSA checks).
const HANDSHAKES_MAX: usize = 4_096;
/// What Linux allows by default (net.core.somaxconn).
const BACKLOG: i32 = 4_096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Each may hold 4 streams of 64 KiB in a window of 128 KiB: 64 MiB together.
const STRANGERS_MAX: usize = 512;
/// More gateways than a federation has, twice.
const CONNECTIONS_MAX: usize = 32_768;
/// Joins and recoveries: a rack that starts at once behind one address, then one every 50 ms.
const CALLS_BURST: u32 = 200;
const CALLS_PER_SECOND: u32 = 20;
const SOURCES_MAX: usize = 10_000;
const STRANGER_WINDOW_BYTES: u32 = 64 * 1024;
/// gRPC metadata of ours is a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Between the word that a connection will close and its close, so that no call is cut.
const EXPIRY_NOTICE: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
