//! Connections to the endpoints of this cluster, one pool per endpoint and worker.
//!
//! HTTP/1.1 connections are reused last in, first out, so that few stay warm and the rest time out.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use archipelago_http::h1::BadResponse;
use tokio::net::TcpStream;

use super::body::BoxError;
use super::door::{Door, is_shortage};
use super::http1::client;
use super::http1::link::Link;
use super::http2::client::{Http2Error, Http2Pool};
use crate::balance::load::{self, PeakEwma};
use crate::balance::outlier::{Outlier, Verdict};
use crate::balance::patience::Patience;
use crate::balance::reach::Reach;
use crate::journal::Out;
use crate::ledger::Waits;

/// One endpoint as one worker knows it.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    door: Rc<Door>,
    in_flight: Rc<Cell<usize>>,
    latency: RefCell<PeakEwma>,
    outlier: Cell<Outlier>,
    patience: RefCell<Patience>,
    idle: RefCell<Vec<Idle>>,
    /// Connections of HTTP/2.
    pub http2: Http2Pool,
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
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
    /// This gateway has no descriptor or port left for a connection. That is not the endpoint's fault.
    #[error("no connection to {address}: this gateway is short of descriptors or ports")]
    Local {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The connection closed before the request was written, or the endpoint said that it did not look at it.
    #[error("{address} did not take the request")]
    NotSent {
        /// The endpoint.
        address: SocketAddr,
    },
    /// The connection broke before a response.
    #[error("{address} broke the exchange")]
    Broken {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: BoxError,
    },
    /// It took nothing of the body of the request for too long.
    #[error("{address} takes nothing of the request")]
    Stalled {
        /// The endpoint.
        address: SocketAddr,
    },
    /// What came back cannot be passed on.
    #[error("{address} answered what cannot be passed on")]
    BadResponse {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: BadResponse,
    },
    /// The same of HTTP/2, where more is known of it.
    #[error(transparent)]
    Http2(#[from] Http2Error),
    /// The body of the request broke off: the sender's fault.
    #[error("the body of the request broke off")]
    Body {
        /// Why.
        source: BoxError,
    },
}

impl UpstreamError {
    /// What it tells of the endpoint, if anything.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::NotSent { .. } | Self::Broken { .. } => Some(Verdict::Failed),
            Self::Stalled { .. } => Some(Verdict::Hung),
            // It answered: a response that is too large or wrong is one request's misfortune.
            Self::BadResponse { .. } => Some(Verdict::Answered),
            Self::Http2(error) if error.blames_endpoint() => Some(Verdict::Failed),
            Self::Http2(error) if error.is_bad_head() => Some(Verdict::Answered),
            Self::Http2(_) => None,
            // Whether connections come about is known at the door.
            Self::Connect { .. } | Self::Local { .. } | Self::Body { .. } => None,
        }
    }
}

/// Counts one exchange in flight until dropped.
#[derive(Debug)]
pub struct InFlight(Rc<Cell<usize>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// A request that waits for its response head. Dropped unanswered, it says nothing about the endpoint.
#[derive(Debug)]
pub struct Wait {
    endpoint: Rc<Endpoint>,
    began: Instant,
    is_answered: bool,
}

impl Wait {
    /// The head is there.
    pub fn answered(mut self, now: Instant) {
        let taken = now.saturating_duration_since(self.began);
        self.is_answered = true;
        self.endpoint.latency.borrow_mut().observe(taken, now);
        self.endpoint.patience.borrow_mut().end(Some(taken), now);
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.is_answered {
            self.endpoint.patience.borrow_mut().end(None, self.began);
        }
    }
}

impl Endpoint {
    /// An endpoint nothing is known about.
    pub fn new(address: SocketAddr, now: Instant) -> Self {
        let door = Door::new(address);
        Self {
            address,
            http2: Http2Pool::new(Rc::clone(&door)),
            door,
            in_flight: Rc::default(),
            latency: RefCell::new(PeakEwma::new(now)),
            outlier: Cell::default(),
            patience: RefCell::new(Patience::new(now)),
            idle: RefCell::default(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What one more request would cost.
    pub fn cost(&self, now: Instant) -> f64 {
        let cost = load::cost(self.in_flight.get(), self.latency.borrow().latency(load::LATENCY_DEFAULT), 1.0);
        cost * self.outlier.get().dearer(now)
    }

    /// True while it sits out for what it did to requests.
    pub fn ejected(&self, now: Instant) -> bool {
        self.outlier.get().ejected(self.patience.borrow().waiting(), now)
    }

    /// Whether connections to it come about.
    pub fn reach(&self) -> Reach {
        self.door.reach()
    }

    /// Why it sits out, if it does.
    pub fn out(&self, now: Instant) -> Option<Out> {
        match self.reach() {
            Reach::Refuses => Some(Out::Refuses),
            Reach::Silent => Some(Out::Silent),
            Reach::Reachable => {
                let hung = self.outlier.get().sits_out_for_hanging(now)?;
                Some(if hung { Out::Hung } else { Out::Failed })
            }
        }
    }

    /// True while it is given nothing, or as little as can be.
    pub fn sits_out(&self, now: Instant) -> bool {
        self.reach() != Reach::Reachable || self.ejected(now)
    }

    /// How long a request may wait for it while nothing comes from it.
    pub fn limit(&self) -> Duration {
        self.patience.borrow().limit()
    }

    /// True when it has been silent for longer than that.
    pub fn hangs(&self, now: Instant) -> bool {
        let patience = self.patience.borrow();
        patience.silence(now) >= patience.limit()
    }

    /// Takes what an attempt showed; `siblings` and `ejected` count the endpoints of the service.
    pub fn judge(&self, verdict: Verdict, siblings: usize, ejected: usize, now: Instant) {
        let mut outlier = self.outlier.get();
        outlier.observe(verdict, siblings, ejected, now);
        self.outlier.set(outlier);
    }

    /// It is given a request; see [`Wait`].
    pub fn wait(self: &Rc<Self>, now: Instant) -> Wait {
        self.patience.borrow_mut().begin(now);
        Wait { endpoint: Rc::clone(self), began: now, is_answered: false }
    }

    /// Counts an exchange.
    pub fn enter(&self) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(&self.in_flight))
    }

    /// A connection for one exchange of HTTP/1.1: the newest idle one that the endpoint has not closed, else a new one. Also whether
    /// it was used before.
    ///
    /// # Errors
    /// None can be had.
    pub async fn link(&self, waits: &Waits) -> Result<(Box<Link>, bool), UpstreamError> {
        match self.take_idle() {
            Some(link) => Ok((link, true)),
            None => Ok((client::link(waits.for_connection(self.connect()).await?), false)),
        }
    }

    /// A plain connection.
    ///
    /// # Errors
    /// None can be had.
    pub async fn connect(&self) -> Result<TcpStream, UpstreamError> {
        let address = self.address;
        self.door.connect().await.map_err(|source| match is_shortage(&source) {
            true => UpstreamError::Local { address, source },
            false => UpstreamError::Connect { address, source },
        })
    }

    /// Puts a connection back; the newest is used first.
    pub fn put_back(&self, link: Box<Link>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(Idle { link, since: Instant::now() });
        }
    }

    /// Closes connections that nobody used for a while, or that the endpoint closed.
    pub fn close_idle(&self, now: Instant) {
        let mut cx = Context::from_waker(Waker::noop());
        self.idle
            .borrow_mut()
            .retain_mut(|idle| now.saturating_duration_since(idle.since) < IDLE_TIMEOUT && idle.link.is_quiet(&mut cx));
        self.http2.close_idle(now);
    }

    fn take_idle(&self) -> Option<Box<Link>> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = self.idle.borrow_mut();
        while let Some(mut newest) = idle.pop() {
            // Costs no system call as long as the runtime has heard nothing of the socket.
            if newest.link.is_quiet(&mut cx) {
                return Some(newest.link);
            }
        }
        None
    }
}

const IDLE_CONNECTIONS_MAX: usize = 256;
/// Longer than some servers keep connections (Node.js: 5 s): what they close is seen before it is used again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
