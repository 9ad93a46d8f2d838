//! tonic over mutual TLS: an acceptor that knows who called, and a channel that finds a living server.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom;
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri, server::Connected},
};

use archipelago_identity::{
    LiveCredential, MeshRole, SpiffeId,
    tls::{self, Expect, peer_spiffe_id},
};

/// Accepts connections and finishes their handshakes; give it to tonic's `serve_with_incoming`.
///
/// At most 64 handshakes run at once and each has five seconds, so that neither a storm nor a silent client costs others.
/// A failed handshake is logged at `debug` with its reason and never ends the stream.
pub fn serve_incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsStream>> + Send + Unpin {
    let (ready, accepted) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let (stream, remote) = tokio::select! {
                () = ready.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                },
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _slot = slot;
                // Small messages both ways: waiting to fill a segment only adds latency.
                let _ = stream.set_nodelay(true);
                match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(tls)) => {
                        let peer = tls.get_ref().1.peer_certificates().and_then(|chain| peer_spiffe_id(chain).ok());
                        // The server went away: so does the connection.
                        let _ = ready.send(Ok(TlsStream { tls, peer, remote })).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%remote, "TLS handshake timed out"),
                }
            });
        }
    });
    ReceiverStream::new(accepted)
}

/// An accepted connection whose client, if it showed a certificate, is verified.
pub struct TlsStream {
    tls: server::TlsStream<TcpStream>,
    peer: Option<SpiffeId>,
    remote: SocketAddr,
}

/// What tonic attaches to each request of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The verified client; `None` when it showed no certificate.
    pub spiffe_id: Option<SpiffeId>,
    /// Where it came from.
    pub remote: SocketAddr,
}

impl Connected for TlsStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        PeerInfo { spiffe_id: self.peer.clone(), remote: self.remote }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// The verified SPIFFE id of the caller.
#[must_use]
pub fn peer<T>(request: &tonic::Request<T>) -> Option<SpiffeId> {
    request.extensions().get::<PeerInfo>().and_then(|info| info.spiffe_id.clone())
}

/// The caller's id, if its role is one that `allowed` accepts.
///
/// # Errors
/// `Unauthenticated` without a certificate, `PermissionDenied` with the id in the message otherwise.
pub fn require<T>(request: &tonic::Request<T>, allowed: impl FnOnce(&MeshRole) -> bool) -> Result<SpiffeId, Status> {
    let Some(id) = peer(request) else {
        return Err(Status::unauthenticated("this call needs a client certificate of the federation"));
    };
    match id.role() {
        Some(role) if allowed(&role) => Ok(id),
        _ => Err(Status::permission_denied(format!("{id} may not make this call"))),
    }
}

/// A channel to whichever of `addresses` (host:port) answers, tried in random order, now and at every reconnect.
///
/// HTTP/2 pings every 2 s find a dead server within 4 s more, so that long streams do not hang on a machine that is gone.
///
/// # Errors
/// None answered with an acceptable identity; the error lists each address with its cause.
pub async fn connect(
    addresses: &[String],
    credential: &LiveCredential,
    expect: Expect,
) -> Result<Channel, ConnectError> {
    connect_with(addresses, tls::client_config(credential, expect, &[b"h2"])).await
}

pub(crate) async fn connect_with(addresses: &[String], config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let addresses: Arc<[String]> = addresses.into();
    let failure = Arc::new(Mutex::new(None));
    let connector = {
        let failure = failure.clone();
        tower::service_fn(move |_: Uri| {
            let (addresses, config, failure) = (addresses.clone(), config.clone(), failure.clone());
            async move {
                match connect_any(&addresses, config).await {
                    Ok(stream) => Ok(TokioIo::new(stream)),
                    Err(error) => {
                        let text = error.to_string();
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        Err(io::Error::new(io::ErrorKind::NotConnected, text))
                    }
                }
            }
        })
    };
    let endpoint = Endpoint::from_static("http://mesh.internal")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .user_agent(concat!("archipelago/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| ConnectError { attempts: vec![("user agent".to_owned(), error.to_string())] })?;
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(channel),
        Err(error) => {
            let recorded = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(recorded.unwrap_or_else(|| ConnectError { attempts: vec![("HTTP/2".to_owned(), error.to_string())] }))
        }
    }
}

async fn connect_any(
    addresses: &[String],
    config: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
    let mut order: Vec<&String> = addresses.iter().collect();
    order.shuffle(&mut rand::rng());
    let connector = TlsConnector::from(config);
    let mut attempts = Vec::with_capacity(order.len());
    for address in order {
        let attempt = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connector.connect(server_name(), stream).await
        };
        let cause = match timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        attempts.push((address.clone(), cause));
    }
    Err(ConnectError { attempts })
}

/// No address answered as it should.
#[derive(Debug)]
pub struct ConnectError {
    /// Address and cause, in the order tried.
    pub attempts: Vec<(String, String)>,
}

impl ConnectError {
    /// True when servers are there but their identity was refused, so that trying again cannot help.
    #[must_use]
    pub fn is_identity_refusal(&self) -> bool {
        let refused = |cause: &String| {
            ["expected", "trust domain", "certificate", "wrong CA", "UnknownIssuer"]
                .iter()
                .any(|word| cause.contains(word))
        };
        !self.attempts.is_empty() && self.attempts.iter().all(|(_, cause)| refused(cause))
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return out.write_str("no address to connect to");
        }
        let refused = self.is_identity_refusal();
        out.write_str(if refused { "no server has an acceptable identity: " } else { "no server answered: " })?;
        // All members of a control plane usually fail alike: each cause is said once.
        let mut by_cause: Vec<(&str, Vec<&str>)> = Vec::new();
        for (address, cause) in &self.attempts {
            // rustls puts this before a verifier's own words.
            let cause = cause.strip_prefix("unexpected error: ").unwrap_or(cause);
            match by_cause.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, addresses)) => addresses.push(address),
                None => by_cause.push((cause, vec![address])),
            }
        }
        for (index, (cause, addresses)) in by_cause.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(out, "{separator}{cause} ({})", addresses.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// TLS wants a name; identity is checked by SPIFFE id, so an address serves for all, and no SNI is sent.
fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// One handshake costs about a millisecond of CPU (ML-KEM, two ECDSA checks); 64 keep a core busy without a queue of seconds.
const HANDSHAKES_MAX: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
