//! One HTTP/2 connection, and the places for streams on it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use h2::client::{Connection, SendRequest};
use http::Request;
use http_body::Body;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::exchange::Http2Exchange;
use super::{ANNOUNCED_BYTES_MAX, DialError, Inner, SETTINGS_TIMEOUT};
use crate::exchange::body::BoxError;
use crate::exchange::door::{Door, is_shortage};

/// A connection that takes requests. Dropped, it closes once its last stream has ended.
pub(super) struct Link {
    send: RefCell<SendRequest<Bytes>>,
    state: Rc<State>,
}

/// What its streams and its driver know of it without keeping it open.
struct State {
    streams: Cell<usize>,
    quiet_since: Cell<Instant>,
    is_over: Cell<bool>,
}

/// A place for one stream, taken until dropped.
pub(super) struct Place {
    send: SendRequest<Bytes>,
    pub(super) counted: Counted,
}

/// Counts one stream.
pub(super) struct Counted {
    state: Rc<State>,
    pool: Weak<Inner>,
    pub(super) address: SocketAddr,
}

/// Connects, and waits for the endpoint's SETTINGS: before them its limit on streams is not known, nor whether it speaks HTTP/2.
pub(super) async fn dial(door: &Rc<Door>, pool: &Weak<Inner>) -> Result<Link, DialError> {
    let stream = door.connect().await.map_err(|error| match is_shortage(&error) {
        true => DialError::Local(error),
        false => DialError::Connect(error),
    })?;
    let (send, mut connection) = h2::client::Builder::new()
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(BUFFER_BYTES_MAX)
        .max_header_list_size(ANNOUNCED_BYTES_MAX as u32)
        .enable_push(false)
        .handshake(stream)
        .await?;
    let settled = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(DialError::Connect(std::io::ErrorKind::UnexpectedEof.into()))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
        Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    });
    timeout(SETTINGS_TIMEOUT, settled).await.map_err(|_| DialError::Silent)??;
    let state =
        Rc::new(State { streams: Cell::new(0), quiet_since: Cell::new(Instant::now()), is_over: Cell::new(false) });
    tokio::task::spawn_local(drive(connection, Rc::clone(&state), Weak::clone(pool)));
    Ok(Link { send: RefCell::new(send), state })
}

/// Carries the connection until it ends; the errors of it reach the streams on it.
async fn drive(connection: Connection<TcpStream, Bytes>, state: Rc<State>, pool: Weak<Inner>) {
    if let Err(error) = keep_alive(connection, &state).await {
        tracing::debug!(%error, "connection to an endpoint ended");
    }
    state.is_over.set(true);
    if let Some(pool) = pool.upgrade() {
        pool.freed.notify_one();
    }
}

/// Asks for a sign of life now and then while streams are open: an endpoint that vanished leaves no other.
async fn keep_alive(mut connection: Connection<TcpStream, Bytes>, state: &State) -> Result<(), h2::Error> {
    let mut pings = connection.ping_pong();
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            () = sleep(KEEP_ALIVE_INTERVAL) => {}
        }
        let Some(pings) = pings.as_mut().filter(|_| state.streams.get() > 0) else { continue };
        let mut pong = pin!(timeout(KEEP_ALIVE_TIMEOUT, pings.ping(h2::Ping::opaque())));
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            answered = &mut pong => match answered {
                Ok(result) => {
                    result?;
                }
                // Dropping the connection breaks its streams.
                Err(_) => {
                    tracing::debug!("an endpoint answers no PING");
                    return Ok(());
                }
            },
        }
    }
}

impl Link {
    /// True when it takes no more streams, because it ended or the endpoint said GOAWAY.
    pub(super) fn is_over(&self) -> bool {
        // With nothing pending on this handle it answers at once, and keeps no waker.
        let mut cx = Context::from_waker(noop_waker_ref());
        self.state.is_over.get() || matches!(self.send.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams() < self.send.borrow().current_max_send_streams()
    }

    pub(super) fn streams(&self) -> usize {
        self.state.streams.get()
    }

    pub(super) fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        self.streams() == 0 && now.saturating_duration_since(self.state.quiet_since.get()) >= limit
    }

    pub(super) fn enter(&self, pool: &Rc<Inner>) -> Place {
        self.state.streams.set(self.streams() + 1);
        Place {
            send: self.send.borrow().clone(),
            counted: Counted { state: Rc::clone(&self.state), pool: Rc::downgrade(pool), address: pool.address },
        }
    }
}

impl Place {
    /// True when the endpoint has said that it takes extended CONNECT.
    pub(super) fn takes_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }

    /// Begins the stream.
    ///
    /// # Errors
    /// Nothing of the request left.
    pub(super) fn open<B>(mut self, request: Request<B>) -> Result<Http2Exchange<B>, h2::Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let is_whole = body.is_end_stream();
        let (response, stream) = self.send.send_request(Request::from_parts(parts, ()), is_whole)?;
        Ok(Http2Exchange::new(response, (!is_whole).then_some((stream, body)), self.counted))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.state.streams.set(self.state.streams.get() - 1);
        self.state.quiet_since.set(Instant::now());
        if let Some(pool) = self.pool.upgrade() {
            pool.freed.notify_one();
        }
    }
}

const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// One round trip inside a cluster at 10 Gbit/s is about 600 KiB.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Room for 64 readers that have stalled: they keep what their streams may hold, and must not keep the others'.
const CONNECTION_WINDOW_BYTES: u32 = 64 * STREAM_WINDOW_BYTES;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
