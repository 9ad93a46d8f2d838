//! Bodies on their way through.
//!
//! [`RequestBody`] is what one attempt sends. While an attempt streams it, the first [`REPLAY_BYTES_MAX`] bytes are kept (as
//! references, nothing is copied), so that another attempt can start over. [`ResponseBody`] is what goes back; its end,
//! clean or not, closes the books of the request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use archipelago_tunnel::{Exchange, TunnelBody};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::headers;
use super::record::Finish;
use super::upstream::{Lease, UpstreamBody};

/// Errors of bodies; they end the message with a reset.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of one attempt.
#[derive(Debug)]
pub struct RequestBody(Option<Attempt>);

/// The body of a request, across its attempts.
#[derive(Debug, Clone)]
pub struct Replayable(Option<Arc<Mutex<Source>>>);

#[derive(Debug)]
struct Attempt {
    source: Arc<Mutex<Source>>,
    number: u32,
    next: usize,
    size: SizeHint,
}

#[derive(Debug)]
struct Source {
    stream: Stream,
    size: SizeHint,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// More than fits was read: what an attempt has not seen yet is gone for any later one.
    overflowed: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
    attempt: u32,
    bytes: u64,
    progress: Instant,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would cost an allocation per request, this lives in one already")]
enum Stream {
    Client(Incoming),
    Tunnel(TunnelBody),
}

impl Replayable {
    /// The body of a client's request.
    pub fn client(body: Incoming, now: Instant) -> Self {
        Self::new(body.is_end_stream(), body.size_hint(), Stream::Client(body), now)
    }

    /// The body of a request that came through a tunnel.
    pub fn tunnel(body: TunnelBody, now: Instant) -> Self {
        Self::new(body.is_end_stream(), body.size_hint(), Stream::Tunnel(body), now)
    }

    fn new(empty: bool, size: SizeHint, stream: Stream, now: Instant) -> Self {
        if empty {
            return Self(None);
        }
        Self(Some(Arc::new(Mutex::new(Source {
            stream,
            size,
            kept: Vec::new(),
            kept_bytes: 0,
            overflowed: false,
            trailers: None,
            ended: false,
            attempt: 0,
            bytes: 0,
            progress: now,
        }))))
    }

    /// The body for one more attempt; earlier attempts end with an error. `None` when bytes of it are gone.
    pub fn attempt(&self) -> Option<RequestBody> {
        let Some(shared) = &self.0 else { return Some(RequestBody(None)) };
        let mut source = lock(shared);
        if source.overflowed {
            return None;
        }
        source.attempt += 1;
        Some(RequestBody(Some(Attempt {
            source: Arc::clone(shared),
            number: source.attempt,
            next: 0,
            size: source.size,
        })))
    }

    /// True while another attempt could send the whole body.
    pub fn can_replay(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| !lock(shared).overflowed)
    }

    /// When the sender last gave something, and whether he is done.
    pub fn progress(&self) -> Option<(Instant, bool)> {
        self.0.as_ref().map(|shared| {
            let source = lock(shared);
            (source.progress, source.ended)
        })
    }

    /// Bytes received from the sender.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| lock(shared).bytes)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(attempt) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        // Uncontended: every attempt of a request lives on one thread. The lock is there because hyper and the tunnel ask for `Send`.
        let mut source = lock(&attempt.source);
        if source.attempt != attempt.number {
            return Poll::Ready(Some(Err("another attempt took over".into())));
        }
        if let Some(bytes) = source.kept.get(attempt.next) {
            attempt.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if source.ended {
            let trailers = source.trailers.clone().filter(|_| attempt.next != usize::MAX);
            attempt.next = usize::MAX;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(source.stream.poll_frame(cx));
        source.progress = Instant::now();
        Poll::Ready(match frame {
            None => {
                source.ended = true;
                None
            }
            Some(Err(error)) => {
                source.overflowed = true;
                Some(Err(error))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    source.keep(&data);
                    attempt.next = source.kept.len();
                    Some(Ok(Frame::data(data)))
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        source.ended = true;
                        // Kept for a replay too, at the price of one clone for the rare request with trailers.
                        source.trailers = Some(trailers.clone());
                        attempt.next = usize::MAX;
                        Some(Ok(Frame::trailers(trailers)))
                    }
                    Err(_) => Some(Err("unknown frame".into())),
                },
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            None => true,
            Some(attempt) => {
                let source = lock(&attempt.source);
                source.ended
                    && (attempt.next == usize::MAX || (attempt.next >= source.kept.len() && source.trailers.is_none()))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        // The whole message's length: an exact hint becomes its Content-Length. Asked for once, before the first frame.
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |attempt| attempt.size)
    }
}

impl Source {
    fn keep(&mut self, data: &Bytes) {
        self.bytes += data.len() as u64;
        if self.overflowed {
            return;
        }
        self.kept_bytes += data.len();
        if self.kept_bytes > REPLAY_BYTES_MAX {
            self.overflowed = true;
            self.kept = Vec::new();
        } else {
            self.kept.push(data.clone());
        }
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self {
            Self::Client(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Tunnel(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        };
        frame.map(|frame| frame.map(|frame| frame.map(without_mesh)))
    }
}

/// Trailers are merged into headers by some receivers: what only gateways may say stays out of both.
fn without_mesh(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::strip_mesh(trailers);
    }
    frame
}

fn lock(source: &Mutex<Source>) -> std::sync::MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of a response.
#[derive(Debug)]
pub struct ResponseBody {
    kind: Kind,
    /// The pooled connection, handed back at a clean end.
    lease: Option<Lease>,
    finish: Option<Finish>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would cost an allocation per request")]
enum Kind {
    Empty,
    Full(Bytes),
    Local(UpstreamBody),
    Tunnel(Exchange<RequestBody>),
}

impl ResponseBody {
    /// A body of the gateway's own.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Full(bytes.into()), lease: None, finish: None }
    }

    /// From an endpoint.
    pub fn local(body: UpstreamBody, lease: Option<Lease>) -> Self {
        let mut this = Self { kind: Kind::Local(body), lease, finish: None };
        this.settle();
        this
    }

    /// From another gateway.
    pub fn tunnel(body: Exchange<RequestBody>) -> Self {
        Self { kind: Kind::Tunnel(body), lease: None, finish: None }
    }

    /// Closes the books when the body ends.
    pub fn with_finish(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self.settle();
        self
    }

    /// A body without frames is at its end before anybody polls it.
    fn settle(&mut self) {
        if self.is_end_stream() {
            self.end();
        }
    }

    /// The response is complete.
    fn end(&mut self) {
        match &mut self.kind {
            // An endpoint that answered early may still want the rest of the request: it goes on alone.
            Kind::Local(UpstreamBody::Http2(exchange)) => {
                if let Some(upload) = exchange.take_upload() {
                    tokio::task::spawn_local(upload);
                }
            }
            Kind::Tunnel(exchange) => {
                if let Some(upload) = exchange.take_upload() {
                    tokio::task::spawn_local(upload);
                }
            }
            Kind::Empty | Kind::Full(_) | Kind::Local(UpstreamBody::Http1(_)) => {}
        }
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if let Some(finish) = self.finish.as_mut() {
            finish.clean();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.kind {
            Kind::Empty => None,
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)))
            }
            Kind::Local(UpstreamBody::Http1(body)) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(BoxError::from))
            }
            Kind::Local(UpstreamBody::Http2(body)) => ready!(Pin::new(body).poll_frame(cx)),
            Kind::Tunnel(body) => ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(BoxError::from)),
        };
        let frame = frame.map(|frame| frame.map(without_mesh));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(finish), Some(data)) = (this.finish.as_mut(), frame.data_ref()) {
                    finish.sent(data.len());
                }
                this.settle();
            }
            Some(Err(error)) => {
                if let Some(finish) = this.finish.as_mut() {
                    finish.broken(error);
                }
            }
            None => this.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Local(UpstreamBody::Http1(body)) => body.is_end_stream(),
            Kind::Local(UpstreamBody::Http2(body)) => body.is_end_stream(),
            Kind::Tunnel(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Local(UpstreamBody::Http1(body)) => body.size_hint(),
            Kind::Local(UpstreamBody::Http2(body)) => body.size_hint(),
            Kind::Tunnel(body) => body.size_hint(),
        }
    }
}

/// Bodies up to here can be sent again (design §4). A worker keeps at most this for each request that it carries or whose response
/// still runs: connections × streams per connection in the worst case, which nothing smaller bounds yet.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;
