//! Connections to the endpoints of this cluster, one pool per endpoint and worker.
//!
//! HTTP/1.1 connections are reused last in, first out, so that few stay warm and the rest time out. HTTP/2 has a pool of its
//! own: [`super::http2`].

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::body::RequestBody;
use super::http2::{Http2Error, Http2Exchange, Http2Pool};
use crate::balance::load::{self, PeakEwma};
use crate::balance::outlier::{Outlier, Verdict};
use crate::config::Protocol;
use crate::worker;

/// One endpoint as one worker knows it.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    in_flight: Arc<AtomicUsize>,
    latency: RefCell<PeakEwma>,
    outlier: Cell<Outlier>,
    http1: RefCell<Vec<Idle>>,
    http2: Http2Pool,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// The body of a response, as it comes from an endpoint.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would cost an allocation per request")]
pub enum UpstreamBody {
    /// Over HTTP/1.1.
    Http1(Incoming),
    /// Over HTTP/2; sends what is left of the request, too.
    Http2(Http2Exchange<RequestBody>),
}

/// Why an endpoint gave no response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// Nobody listens, or not in time. The request was not sent.
    #[error("cannot connect to {address}")]
    Connect {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The connection closed before the request was written.
    #[error("{address} closed the connection before the request was sent")]
    NotSent {
        /// The endpoint.
        address: SocketAddr,
    },
    /// The connection broke, or what came back was not HTTP.
    #[error("{address} broke the exchange")]
    Broken {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: hyper::Error,
    },
    /// The same of HTTP/2, where more is known of it.
    #[error(transparent)]
    Http2(#[from] Http2Error),
}

impl UpstreamError {
    /// True when the endpoint cannot have acted on the request.
    pub fn never_processed(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::NotSent { .. } => true,
            Self::Broken { .. } => false,
            Self::Http2(error) => error.never_processed(),
        }
    }

    /// True when it says something about the endpoint's health.
    pub fn blames_endpoint(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::NotSent { .. } | Self::Broken { .. } => true,
            Self::Http2(error) => error.blames_endpoint(),
        }
    }

    /// True when the endpoint answered with a head that cannot be carried: it would do so again.
    pub fn is_bad_head(&self) -> bool {
        matches!(self, Self::Http2(error) if error.is_bad_head())
    }
}

/// A pooled connection in use by one exchange; goes back when the exchange ended cleanly.
#[derive(Debug)]
pub struct Lease {
    address: SocketAddr,
    sender: http1::SendRequest<RequestBody>,
}

impl Lease {
    /// Makes the connection available again.
    pub fn give_back(self) {
        worker::with_current(|worker| worker.return_connection(self.address, self.sender));
    }
}

/// Counts one exchange in flight until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// An endpoint nothing is known about.
    pub fn new(address: SocketAddr, now: Instant) -> Self {
        Self {
            address,
            in_flight: Arc::default(),
            latency: RefCell::new(PeakEwma::new(now)),
            outlier: Cell::default(),
            http1: RefCell::default(),
            http2: Http2Pool::new(address),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What one more request would cost.
    pub fn cost(&self) -> f64 {
        load::cost(self.in_flight.load(Ordering::Relaxed), self.latency.borrow().latency(load::LATENCY_DEFAULT), 1.0)
    }

    /// True while it sits out.
    pub fn ejected(&self, now: Instant) -> bool {
        self.outlier.get().ejected(now)
    }

    /// Takes what an attempt showed; `siblings` and `ejected` count the endpoints of the service.
    pub fn judge(&self, verdict: Verdict, siblings: usize, ejected: usize, now: Instant) {
        let mut outlier = self.outlier.get();
        outlier.observe(verdict, siblings, ejected, now);
        self.outlier.set(outlier);
    }

    /// Takes the time to one response head.
    pub fn observe(&self, latency: Duration, now: Instant) {
        self.latency.borrow_mut().observe(latency, now);
    }

    /// Counts an exchange.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.in_flight))
    }

    /// Sends one request and waits for the head of the response. `request` gives it from its beginning, anew whenever this endpoint
    /// provably never processed what it was given before; `None` when it cannot be given again.
    ///
    /// # Errors
    /// See [`UpstreamError::never_processed`] for which may be tried again with any method.
    pub async fn send(
        &self,
        protocol: Protocol,
        mut request: impl FnMut() -> Option<Request<RequestBody>>,
    ) -> Result<(Response<UpstreamBody>, Option<Lease>), UpstreamError> {
        match protocol {
            Protocol::Http1 | Protocol::Tcp => {
                let request = request().ok_or(UpstreamError::NotSent { address: self.address })?;
                let (response, lease) = self.send_http1(request).await?;
                Ok((response.map(UpstreamBody::Http1), lease))
            }
            Protocol::H2c => {
                let (mut head, mut exchange) = self.http2.send(request).await?;
                while head.status().is_informational() {
                    head = exchange.head().await?;
                }
                Ok((head.map(|()| UpstreamBody::Http2(exchange)), None))
            }
        }
    }

    /// A plain connection.
    pub async fn connect(&self) -> Result<TcpStream, UpstreamError> {
        let failed = |source| UpstreamError::Connect { address: self.address, source };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address))
            .await
            .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        // Small writes must not wait for the acknowledgement of earlier ones; failure only costs latency.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Puts a connection back; the newest is used first.
    pub fn put_back(&self, sender: http1::SendRequest<RequestBody>, now: Instant) {
        let mut idle = self.http1.borrow_mut();
        if !sender.is_closed() && idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(Idle { sender, since: now });
        }
    }

    /// Closes connections that nobody used for a while.
    pub fn close_idle(&self, now: Instant) {
        self.http1
            .borrow_mut()
            .retain(|idle| !idle.sender.is_closed() && now.saturating_duration_since(idle.since) < IDLE_TIMEOUT);
        self.http2.close_idle(now);
    }

    async fn send_http1(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Option<Lease>), UpstreamError> {
        *request.version_mut() = Version::HTTP_11;
        loop {
            let (mut sender, fresh) = match self.take_idle() {
                Some(sender) => (sender, false),
                None => (self.dial_http1().await?, true),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Some(Lease { address: self.address, sender }))),
                Err(mut error) => match error.take_message() {
                    // A pooled connection that the endpoint had closed meanwhile: not its fault, next connection.
                    Some(unsent) if !fresh => request = unsent,
                    Some(_) => return Err(UpstreamError::NotSent { address: self.address }),
                    None => return Err(UpstreamError::Broken { address: self.address, source: error.into_error() }),
                },
            }
        }
    }

    fn take_idle(&self) -> Option<http1::SendRequest<RequestBody>> {
        let mut idle = self.http1.borrow_mut();
        // Not ready means that the connection's task has not yet seen the end of its last exchange, or that the connection is
        // closed; those below the one that is taken wait for `close_idle`.
        let newest_ready = idle.iter().rposition(|i| i.sender.is_ready())?;
        Some(idle.remove(newest_ready).sender)
    }

    async fn dial_http1(&self) -> Result<http1::SendRequest<RequestBody>, UpstreamError> {
        let stream = self.connect().await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Broken { address: self.address, source })?;
        // Errors of the connection reach the exchange that it carries.
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

/// Endpoints are in the same cluster: a second means packets are dropped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Longer than some servers keep connections (Node.js: 5 s). A request without a body that meets a closing connection is sent
/// anew when the connection hands it back unsent; otherwise it counts as a broken exchange.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER_BYTES_MAX: usize = 64 * 1024;
