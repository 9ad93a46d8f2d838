//! Calls over mutual TLS: who called, and a channel that finds a living server.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use archipelago_base::error::chain;
use archipelago_identity::{
    LiveCredential, MeshRole, SpiffeId,
    tls::{self, Expect, PeerCertificate, identity_error, peer_certificate},
};
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom;
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{resolve::resolve, wall_clock::Ending};

/// What is attached to each request of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The verified client's certificate; `None` when it showed none.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// Where it came from.
    pub remote: SocketAddr,
}

impl PeerInfo {
    /// The verified client.
    #[must_use]
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.certificate.as_ref().map(|certificate| &certificate.spiffe_id)
    }
}

/// The verified SPIFFE id of the caller.
#[must_use]
pub fn peer<T>(request: &tonic::Request<T>) -> Option<SpiffeId> {
    certificate(request).map(|certificate| certificate.spiffe_id.clone())
}

/// The verified certificate of the caller.
#[must_use]
pub fn certificate<T>(request: &tonic::Request<T>) -> Option<Arc<PeerCertificate>> {
    request.extensions().get::<PeerInfo>().and_then(|info| info.certificate.clone())
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

/// As [`connect`], with a TLS configuration that says who is asked and what is shown.
///
/// # Errors
/// As there.
pub async fn connect_with(addresses: &[String], config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
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
        .map_err(|error| ConnectError {
            attempts: vec![("user agent".to_owned(), Cause::Broken(error.to_string()))],
        })?;
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(channel),
        Err(error) => {
            let recorded = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            let broken = || ConnectError { attempts: vec![("HTTP/2".to_owned(), Cause::Broken(chain(&error)))] };
            Err(recorded.unwrap_or_else(broken))
        }
    }
}

async fn connect_any(
    addresses: &[String],
    config: Arc<ClientConfig>,
) -> Result<Ending<TlsStream<TcpStream>>, ConnectError> {
    let mut order: Vec<&String> = addresses.iter().collect();
    order.shuffle(&mut rand::rng());
    let connector = TlsConnector::from(config);
    let mut attempts = Vec::with_capacity(order.len());
    for address in order {
        let mut resolved = match resolve(address).await {
            Ok(resolved) => resolved,
            Err(error) => {
                attempts.push((address.clone(), Cause::Broken(error.to_string())));
                continue;
            }
        };
        // A name may stand for all members of a control plane.
        resolved.shuffle(&mut rand::rng());
        for at in resolved {
            match connect_to(at, &connector).await {
                Ok(stream) => return Ok(stream),
                Err(cause) => {
                    let literal = address.parse() == Ok(at);
                    attempts.push((if literal { address.clone() } else { format!("{address} at {at}") }, cause));
                }
            }
        }
    }
    Err(ConnectError { attempts })
}

async fn connect_to(at: SocketAddr, connector: &TlsConnector) -> Result<Ending<TlsStream<TcpStream>>, Cause> {
    let attempt = async {
        let stream = TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        connector.connect(server_name(), stream).await
    };
    match timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            match peer_certificate(chain) {
                // The server's certificate ends, and with it what it vouched for.
                Ok(server) => Ok(Ending::new(stream, server.not_after)),
                Err(error) => Err(Cause::Refused(error.to_string())),
            }
        }
        Ok(Err(error)) => Err(Cause::of(&error)),
        Err(_) => Err(Cause::Silent(CONNECT_TIMEOUT)),
    }
}

/// No address answered as it should.
#[derive(Debug)]
pub struct ConnectError {
    /// Address and cause, in the order tried.
    pub attempts: Vec<(String, Cause)>,
}

/// Why one address did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Somebody answered, and it did not work out.
    #[error("{0}")]
    Broken(String),
    /// The server's certificate is over, by the clock of this machine.
    #[error("the server's certificate ended {} s ago by this machine's clock: one of the two clocks is wrong, or the server could not renew", .0.as_secs())]
    Expired(Duration),
    /// The server's certificate has not begun, by the clock of this machine: that is behind by at least so much.
    #[error("the server's certificate begins in {} s by this machine's clock: the clock is behind", .0.as_secs())]
    NotYetValid(Duration),
    /// A server is there, but not one that is acceptable.
    #[error("{0}")]
    Refused(String),
    /// Nothing happened for so long.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
}

impl Cause {
    fn of(error: &io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Broken(error.to_string());
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match tls {
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
                Self::NotYetValid(Duration::from_secs(not_before.as_secs()).saturating_sub(now))
            }
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                Self::Expired(now.saturating_sub(Duration::from_secs(not_after.as_secs())))
            }
            rustls::Error::InvalidCertificate(_) => Self::Refused(tls.to_string()),
            _ => match identity_error(tls) {
                Some(refused) => Self::Refused(refused.to_string()),
                None => Self::Broken(error.to_string()),
            },
        }
    }
}

impl ConnectError {
    /// True when servers are there but their identity was refused, so that trying again cannot help.
    #[must_use]
    pub fn is_identity_refusal(&self) -> bool {
        !self.attempts.is_empty() && self.attempts.iter().all(|(_, cause)| matches!(cause, Cause::Refused(_)))
    }

    /// By how much this machine's clock is behind at least, when that is why servers were refused.
    #[must_use]
    pub fn clock_behind(&self) -> Option<Duration> {
        let behind = |(_, cause): &(String, Cause)| match cause {
            Cause::NotYetValid(by) => Some(*by),
            _ => None,
        };
        self.attempts.iter().filter_map(behind).max()
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
        let mut by_cause: Vec<(&Cause, Vec<&str>)> = Vec::new();
        for (address, cause) in &self.attempts {
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

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
