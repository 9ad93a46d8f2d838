//! HTTP/2 to one endpoint, in clear text (h2c): as many connections as the endpoint's limit on streams asks for.
//!
//! On `h2` itself, because what may be sent again depends on things that only it says: the limit on streams, which streams a
//! GOAWAY leaves unprocessed, who reset a stream and why. A stream that the endpoint provably never processed (RFC 9113
//! §6.8, §8.7) is sent again here, on another connection, whatever its method; its caller does not notice. Everything else
//! is the caller's to judge.
//!
//! No request waits for another's dial: those that need a connection share the one dial there is, and its result.

mod exchange;
mod link;
#[cfg(test)]
mod tests;

pub use exchange::Http2Exchange;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{FutureExt as _, LocalBoxFuture, Shared};
use http::{Request, Response};
use http_body::Body;
use tokio::sync::Notify;

use crate::exchange::body::BoxError;
use crate::exchange::door::Door;
use crate::ledger::Waits;
use link::Link;

/// The connections of one worker to one endpoint.
#[derive(Debug, Clone)]
pub struct Http2Pool(Rc<Inner>);

struct Inner {
    door: Rc<Door>,
    address: SocketAddr,
    links: RefCell<Vec<Link>>,
    dial: RefCell<Option<Dial>>,
    /// Told when a stream has ended, or a connection.
    freed: Notify,
    waiting: Cell<usize>,
}

type Dial = Shared<LocalBoxFuture<'static, Result<(), Arc<DialError>>>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Nobody listens, or not in time.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// This gateway has no descriptor or port left for a connection. That is not the endpoint's fault.
    #[error("this gateway is short of descriptors or ports")]
    Local(#[source] std::io::Error),
    /// Somebody listens who does not begin as HTTP/2 does.
    #[error("the endpoint does not speak HTTP/2 without TLS; its service's port must say a protocol that it speaks")]
    NotHttp2(#[from] h2::Error),
    /// It accepted the connection and said nothing.
    #[error("no HTTP/2 SETTINGS within {SETTINGS_TIMEOUT:?}")]
    Silent,
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Http2Error {
    /// No connection.
    #[error("cannot connect to {address}")]
    Dial {
        /// The endpoint.
        address: SocketAddr,
        /// Why; one result for all who waited for it.
        source: Arc<DialError>,
    },
    /// All connections that we may have carry as many streams as the endpoint allows.
    #[error("{address} takes no more streams on {CONNECTIONS_MAX} connections")]
    Saturated {
        /// The endpoint.
        address: SocketAddr,
    },
    /// It is to carry another protocol, and the endpoint has not said that it can (RFC 8441 §3).
    #[error(
        "{address} does not announce extended CONNECT; let its service's port say http if it speaks WebSocket over HTTP/1.1"
    )]
    NoExtendedConnect {
        /// The endpoint.
        address: SocketAddr,
    },
    /// The endpoint kept refusing it unprocessed.
    #[error("{address} refused the request unprocessed, {tries} times")]
    Refused {
        /// The endpoint.
        address: SocketAddr,
        /// How often.
        tries: usize,
        /// The last refusal.
        source: h2::Error,
    },
    /// The stream or its connection broke when the endpoint may have acted on the request.
    #[error("{address} broke the exchange")]
    Broken {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: h2::Error,
    },
    /// The head of the response is more than any leg of the mesh carries.
    #[error(
        "the response of {address} has a head of {bytes} bytes (names, values and 32 for each field), more than {max}"
    )]
    HeadTooLarge {
        /// The endpoint.
        address: SocketAddr,
        /// Its size by RFC 9113 §6.5.2.
        bytes: usize,
        /// What may be.
        max: usize,
    },
    /// The head of the response cannot be read.
    #[error("the response of {address} has a head that is malformed, or larger than {ANNOUNCED_BYTES_MAX} bytes")]
    BadHead {
        /// The endpoint.
        address: SocketAddr,
        /// What is wrong.
        source: h2::Error,
    },
    /// The body of the request failed; the endpoint was told CANCEL.
    #[error("the sender of the request gave up")]
    Sender(#[source] BoxError),
}

impl Http2Error {
    /// True when the endpoint cannot have acted on the request.
    pub fn never_processed(&self) -> bool {
        matches!(self, Self::Dial { .. } | Self::Saturated { .. } | Self::Refused { .. })
    }

    /// True when it says something about the endpoint's health.
    pub fn blames_endpoint(&self) -> bool {
        match self {
            // Whether connections come about is known at the door.
            Self::Dial { source, .. } => matches!(**source, DialError::NotHttp2(_) | DialError::Silent),
            Self::Refused { .. } | Self::Broken { .. } => true,
            _ => false,
        }
    }

    /// True when it is this gateway that lacks something.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Dial { source, .. } if matches!(**source, DialError::Local(_)))
    }

    /// True when the endpoint answered with a head that cannot be carried: it would do so again.
    pub fn is_bad_head(&self) -> bool {
        matches!(self, Self::HeadTooLarge { .. } | Self::BadHead { .. })
    }
}

impl Http2Pool {
    /// A pool without connections.
    pub fn new(door: Rc<Door>) -> Self {
        Self(Rc::new(Inner {
            address: door.address(),
            door,
            links: RefCell::default(),
            dial: RefCell::default(),
            freed: Notify::new(),
            waiting: Cell::new(0),
        }))
    }

    /// Sends a request; resolves with the first head that comes back, which may be an informational one (then
    /// [`Http2Exchange::head`] has the next), while the request's body may still be on its way.
    ///
    /// `request` gives the request from its beginning, anew whenever the endpoint provably never processed what it was
    /// given before; `None` when it cannot be given again. Dropping the future or the exchange cancels the stream.
    ///
    /// # Errors
    /// See [`Http2Error`]; [`Http2Error::never_processed`] says which may be sent elsewhere with any method.
    pub async fn send<B>(
        &self,
        mut request: impl FnMut() -> Option<Request<B>>,
        waits: &Waits,
    ) -> Result<(Response<()>, Http2Exchange<B>), Http2Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let address = self.0.address;
        let mut refused = None;
        for tries in 0..=RESENDS_MAX {
            let stream = self.stream(waits).await?;
            let Some(request) = request() else {
                return Err(match refused {
                    Some(source) => Http2Error::Refused { address, tries, source },
                    None => Http2Error::Saturated { address },
                });
            };
            if request.extensions().get::<h2::ext::Protocol>().is_some() && !stream.takes_extended_connect() {
                return Err(Http2Error::NoExtendedConnect { address });
            }
            let sent = match stream.open(request) {
                Ok(mut exchange) => exchange.head().await.map(|head| (head, exchange)),
                // Nothing of it left: the connection was going away.
                Err(source) => {
                    refused = Some(source);
                    continue;
                }
            };
            match sent {
                Ok((head, exchange)) => return Ok((head, exchange)),
                Err(Http2Error::Broken { source, .. }) if is_unprocessed(&source) => refused = Some(source),
                Err(error) => return Err(error),
            }
        }
        Err(match refused {
            Some(source) => Http2Error::Refused { address, tries: RESENDS_MAX + 1, source },
            None => Http2Error::Saturated { address },
        })
    }

    /// Closes connections that nobody used for a while.
    pub fn close_idle(&self, now: Instant) {
        self.0.links.borrow_mut().retain(|link| !link.is_over() && !link.is_idle(now, IDLE_TIMEOUT));
    }

    /// Connections that take requests.
    pub fn connections(&self) -> usize {
        self.0.links.borrow().len()
    }

    /// A place for one stream, on a connection that may need to be made first.
    async fn stream(&self, waits: &Waits) -> Result<link::Place, Http2Error> {
        let address = self.0.address;
        let mut queued = None;
        let mut deadline = None;
        loop {
            if let Some(place) = self.place() {
                return Ok(place);
            }
            if queued.is_none() {
                queued = Some(Queued::new(&self.0).ok_or(Http2Error::Saturated { address })?);
            }
            if self.connections() < CONNECTIONS_MAX {
                let dialled = waits.for_connection(self.dial()).await;
                dialled.map_err(|source| Http2Error::Dial { address, source })?;
                continue;
            }
            let until = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + STREAM_TIMEOUT);
            if waits.for_stream(tokio::time::timeout_at(until, self.0.freed.notified())).await.is_err() {
                return Err(Http2Error::Saturated { address });
            }
        }
    }

    /// The fullest connection that takes one more, so that others may become idle.
    fn place(&self) -> Option<link::Place> {
        let mut links = self.0.links.borrow_mut();
        // Those that go away finish what they carry by themselves.
        links.retain(|link| !link.is_over());
        links.iter().filter(|link| link.has_room()).max_by_key(|link| link.streams()).map(|link| link.enter(&self.0))
    }

    /// Waits for the dial in progress, or makes one.
    async fn dial(&self) -> Result<(), Arc<DialError>> {
        let dial = {
            let mut current = self.0.dial.borrow_mut();
            match current.as_ref().filter(|dial| dial.peek().is_none()) {
                Some(dial) => dial.clone(),
                None => {
                    let dial = dial(Rc::downgrade(&self.0), Rc::clone(&self.0.door)).boxed_local().shared();
                    *current = Some(dial.clone());
                    dial
                }
            }
        };
        dial.await
    }
}

async fn dial(pool: Weak<Inner>, door: Rc<Door>) -> Result<(), Arc<DialError>> {
    let link = link::dial(&door, &pool).await.map_err(Arc::new)?;
    if let Some(pool) = pool.upgrade() {
        pool.links.borrow_mut().push(link);
    }
    Ok(())
}

/// One of those who wait for a stream.
struct Queued(Rc<Inner>);

impl Queued {
    fn new(pool: &Rc<Inner>) -> Option<Self> {
        if pool.waiting.get() >= WAITING_MAX {
            return None;
        }
        pool.waiting.set(pool.waiting.get() + 1);
        Some(Self(Rc::clone(pool)))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http2Pool").field("address", &self.address).finish_non_exhaustive()
    }
}

/// RFC 9113 §8.7: the endpoint said, by GOAWAY or REFUSED_STREAM, that it did nothing with the stream. `h2` gives a GOAWAY of the
/// other side only to streams above the last one that it names.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Per worker and endpoint. 16 × the 100 streams that most servers allow.
const CONNECTIONS_MAX: usize = 16;
/// A server that ends each connection after a few requests may refuse the same one many times; one that refuses everything must not
/// be asked for ever.
const RESENDS_MAX: usize = 16;
/// Those who wait for a connection or a stream.
const WAITING_MAX: usize = 1024;
/// A wait for a stream longer than this is an overloaded endpoint: better to try another.
const STREAM_TIMEOUT: Duration = Duration::from_secs(1);
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What we say that we accept: far more than what we carry, because `h2` cannot tell a head beyond it from a malformed one, and one
/// of many times that size ends the connection, with all that others have on it.
const ANNOUNCED_BYTES_MAX: usize = 1024 * 1024;
