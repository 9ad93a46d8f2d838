//! Connections of one worker: reused, opened as needed, bounded.
//!
//! Everything here stays on one thread, so that state is in cells rather than behind locks.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    io,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::{Notify, Semaphore, SemaphorePermit},
    task::AbortHandle,
};

use super::{plan::Protocol, recorder::Failure, report::FailureKind};

/// Connections to one address, and the requests that wait for one.
pub(super) struct Pool {
    address: String,
    protocol: Protocol,
    connections_max: usize,
    streams_max: usize,
    /// A permit for each request that may be on a connection; waiting is first come, first served.
    permits: Semaphore,
    connections: RefCell<Vec<Rc<Connection>>>,
    opening: Cell<usize>,
    opening_ended: Notify,
    events: Box<dyn Fn(PoolEvent)>,
}

/// What a pool tells the run's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolEvent {
    /// A connection was opened.
    Opened,
    /// A request moved to another connection before any of its bytes was sent.
    MovedUnsent,
}

/// A response and the hold on its connection. Dropped before [`Exchange::complete`], an HTTP/1.1
/// connection is closed, since the rest of the response would come first on it; an HTTP/2 stream is reset.
pub(super) struct Exchange<'a> {
    pub(super) response: Response<Incoming>,
    _permit: SemaphorePermit<'a>,
    lease: Lease<'a>,
}

impl Exchange<'_> {
    /// The response was read to its end: the connection may carry another.
    pub(super) fn complete(mut self) {
        self.lease.reusable = true;
    }
}

impl Pool {
    pub(super) fn new(
        address: String,
        protocol: Protocol,
        connections_max: usize,
        streams_max: usize,
        events: Box<dyn Fn(PoolEvent)>,
    ) -> Self {
        let streams_max = match protocol {
            Protocol::Http1 => 1,
            Protocol::Http2 => streams_max,
        };
        let permits = connections_max.saturating_mul(streams_max).min(Semaphore::MAX_PERMITS);
        Self {
            address,
            protocol,
            connections_max,
            streams_max,
            permits: Semaphore::new(permits),
            connections: RefCell::default(),
            opening: Cell::new(0),
            opening_ended: Notify::new(),
            events,
        }
    }

    /// Sends `request` and waits for the head of its response; has no time limit of its own.
    ///
    /// A request whose connection closes before any byte of it was sent moves to another one, as any
    /// client would do it: the server cannot have seen it.
    pub(super) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Exchange<'_>, Failure> {
        // The semaphore is never closed.
        let permit = self
            .permits
            .acquire()
            .await
            .map_err(|error| Failure { kind: FailureKind::Overload, message: error.to_string() })?;
        for _ in 0..MOVES_MAX {
            let lease = self.lease().await?;
            match lease.connection.try_send(request).await {
                Ok(response) => {
                    return Ok(Exchange { response, _permit: permit, lease });
                }
                Err((failure, None)) => return Err(failure),
                Err((_, Some(unsent))) => {
                    lease.connection.usable.set(false);
                    (self.events)(PoolEvent::MovedUnsent);
                    request = unsent;
                }
            }
        }
        Err(Failure {
            kind: FailureKind::Reset,
            message: format!("{MOVES_MAX} connections closed before the request could be sent"),
        })
    }

    /// A place on a connection: the least busy one, but a new one while all are busy and the bound allows.
    async fn lease(&self) -> Result<Lease<'_>, Failure> {
        loop {
            let ended = self.opening_ended.notified();
            if let Some(connection) = self.idle_or_full_house() {
                return Ok(Lease::new(self, connection));
            }
            if self.connections.borrow().len() + self.opening.get() < self.connections_max {
                let connection = self.open().await?;
                return Ok(Lease::new(self, connection));
            }
            // Others are opening the connections that this request waits for.
            ended.await;
        }
    }

    fn idle_or_full_house(&self) -> Option<Rc<Connection>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.is_usable());
        let may_open = connections.len() + self.opening.get() < self.connections_max;
        connections
            .iter()
            // The newest first among equals: the rest can idle out.
            .rev()
            .min_by_key(|connection| connection.in_flight.get())
            .filter(|connection| match connection.in_flight.get() {
                0 => true,
                busy => !may_open && busy < self.streams_max,
            })
            .cloned()
    }

    async fn open(&self) -> Result<Rc<Connection>, Failure> {
        let _opening = Opening::begin(self);
        let stream = TcpStream::connect(&self.address).await.map_err(|error| Failure {
            kind: FailureKind::Connect,
            message: format!("connecting to {}: {error}", self.address),
        })?;
        // Small requests must not wait for each other's acknowledgements.
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let connection = Rc::new(Connection::handshake(stream, self.protocol).await?);
        self.connections.borrow_mut().push(Rc::clone(&connection));
        (self.events)(PoolEvent::Opened);
        Ok(connection)
    }
}

/// Counts a connection as being opened for as long as it lives.
struct Opening<'a>(&'a Pool);

impl<'a> Opening<'a> {
    fn begin(pool: &'a Pool) -> Self {
        pool.opening.set(pool.opening.get() + 1);
        Self(pool)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get().saturating_sub(1));
        self.0.opening_ended.notify_waiters();
    }
}

/// One request's place on a connection.
struct Lease<'a> {
    pool: &'a Pool,
    connection: Rc<Connection>,
    reusable: bool,
}

impl<'a> Lease<'a> {
    fn new(pool: &'a Pool, connection: Rc<Connection>) -> Self {
        connection.in_flight.set(connection.in_flight.get() + 1);
        Self { pool, connection, reusable: false }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.in_flight.set(connection.in_flight.get().saturating_sub(1));
        if !self.reusable && matches!(connection.sender, Sender::Http1(_)) {
            connection.usable.set(false);
        }
        if !connection.is_usable() {
            let gone = |other: &Rc<Connection>| !Rc::ptr_eq(other, connection);
            self.pool.connections.borrow_mut().retain(gone);
        }
        // Those who wait because all connections were busy or being opened look again.
        self.pool.opening_ended.notify_waiters();
    }
}

struct Connection {
    sender: Sender,
    in_flight: Cell<usize>,
    usable: Cell<bool>,
    driver: AbortHandle,
}

enum Sender {
    Http1(RefCell<Option<http1::SendRequest<Full<Bytes>>>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// The failure, and the request if none of its bytes was sent.
type NotSent = (Failure, Option<Request<Full<Bytes>>>);

impl Connection {
    async fn handshake(stream: TcpStream, protocol: Protocol) -> Result<Self, Failure> {
        let stream = TokioIo::new(stream);
        let (sender, driver) = match protocol {
            Protocol::Http1 => {
                let (sender, driver) = http1::handshake(stream).await.map_err(|e| classify(&e))?;
                let driver = tokio::task::spawn_local(async move { drop(driver.await) });
                (Sender::Http1(RefCell::new(Some(sender))), driver)
            }
            Protocol::Http2 => {
                let (sender, driver) = http2::Builder::new(SpawnLocal)
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(WINDOW_BYTES)
                    .initial_connection_window_size(WINDOW_BYTES * 4)
                    .keep_alive_interval(PING_EVERY)
                    .handshake(stream)
                    .await
                    .map_err(|error| classify(&error))?;
                let driver = tokio::task::spawn_local(async move { drop(driver.await) });
                (Sender::Http2(sender), driver)
            }
        };
        Ok(Self { sender, in_flight: Cell::new(0), usable: Cell::new(true), driver: driver.abort_handle() })
    }

    fn is_usable(&self) -> bool {
        self.usable.get()
            && match &self.sender {
                // None while a request is on it: it will say itself what became of the connection.
                Sender::Http1(sender) => (sender.borrow().as_ref()).is_none_or(|sender| !sender.is_closed()),
                Sender::Http2(sender) => !sender.is_closed(),
            }
    }

    async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NotSent> {
        let outcome = match &self.sender {
            Sender::Http1(cell) => {
                let Some(mut sender) = cell.borrow_mut().take() else {
                    let failure = Failure { kind: FailureKind::Reset, message: "the connection is in use".to_owned() };
                    return Err((failure, Some(request)));
                };
                if let Err(error) = sender.ready().await {
                    return Err((classify(&error), Some(request)));
                }
                let outcome = sender.try_send_request(request).await;
                *cell.borrow_mut() = Some(sender);
                outcome
            }
            Sender::Http2(sender) => {
                let mut sender = sender.clone();
                if let Err(error) = sender.ready().await {
                    return Err((classify(&error), Some(request)));
                }
                sender.try_send_request(request).await
            }
        };
        outcome.map_err(|mut error| {
            let unsent = error.take_message();
            (classify(error.error()), unsent)
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Without this a connection would live on until its abandoned response is complete.
        self.driver.abort();
    }
}

/// Runs hyper's own tasks on this thread.
#[derive(Clone, Copy)]
struct SpawnLocal;

impl<F> hyper::rt::Executor<F> for SpawnLocal
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

/// The kind of a failure on an established connection.
pub(super) fn classify(error: &hyper::Error) -> Failure {
    let causes = || std::iter::successors(error.source(), cause_of);
    let h2 = causes().find_map(|cause| cause.downcast_ref::<h2::Error>());
    let is_ours = h2.is_some_and(|h2| {
        // We refuse what the peer sent: that is its breach of protocol. A reset or GOAWAY that it
        // sent, or a broken socket, is the end of the connection or stream like any other.
        !h2.is_io() && !h2.is_remote() && h2.reason().is_some_and(|reason| reason != h2::Reason::CANCEL)
    });
    let is_io = causes().any(|cause| cause.is::<io::Error>());
    let kind = if error.is_parse() || is_ours {
        FailureKind::Protocol
    } else if h2.is_some()
        || is_io
        || error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
    {
        FailureKind::Reset
    } else {
        FailureKind::Protocol
    };
    let message = causes().fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    Failure { kind, message }
}

fn cause_of<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    (*error).source()
}

fn broken(error: &io::Error) -> Failure {
    Failure { kind: FailureKind::Reset, message: error.to_string() }
}

/// Connections that may close under one request before it counts as failed.
const MOVES_MAX: usize = 8;
const WINDOW_BYTES: u32 = 1 << 20;
const PING_EVERY: Duration = Duration::from_secs(10);
