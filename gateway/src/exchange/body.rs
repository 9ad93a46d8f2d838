//! Bodies on their way through.
//!
//! [`RequestBody`] is what one attempt sends. While an attempt streams it, the first [`REPLAY_BYTES_MAX`] bytes are kept, so that
//! another attempt can start over. [`ResponseBody`] is what goes back; its end, clean or not, closes the books of the request.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use archipelago_http::h1::Framing;
use archipelago_tunnel::{Exchange, TunnelBody};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::books::Books;
use super::headers;
use super::http1::client::Answer;
use super::http1::server::UploadBody;
use super::http2::client::Http2Exchange;
use super::http2::open::OpenStream;
use super::http2::switch::Switched;
use super::watch::{self, Watch};
use crate::pace::{Limits, Pace, TooSlow, Turn};

/// Errors of bodies; they end the message with a reset.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request as it comes in.
#[derive(Debug)]
pub struct Incoming {
    stream: Stream,
    size: SizeHint,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would cost an allocation per request, this lives in one already")]
enum Stream {
    Empty,
    Http1(UploadBody),
    Http2(hyper::body::Incoming, OpenStream),
    Tunnel(TunnelBody),
    Switched(Switched),
    #[cfg(test)]
    Listed(std::collections::VecDeque<Bytes>),
}

impl Incoming {
    /// From a client's HTTP/1.1 connection.
    pub fn http1(body: UploadBody, framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Length(0) | Framing::UntilClose => {
                Self::of(Stream::Empty, SizeHint::with_exact(0))
            }
            Framing::Length(n) => Self::of(Stream::Http1(body), SizeHint::with_exact(n)),
            Framing::Chunked => Self::of(Stream::Http1(body), SizeHint::default()),
        }
    }

    /// From a client's HTTP/2 stream.
    pub fn http2(body: hyper::body::Incoming, stream: OpenStream) -> Self {
        let (is_empty, size) = (body.is_end_stream(), body.size_hint());
        Self::of(if is_empty { Stream::Empty } else { Stream::Http2(body, stream) }, size)
    }

    /// What follows once a client's HTTP/1.1 connection has switched.
    pub fn http1_switched(body: UploadBody) -> Self {
        Self::of(Stream::Http1(body), SizeHint::default())
    }

    /// What follows once a client's HTTP/2 stream has switched.
    pub fn http2_switched(body: Switched) -> Self {
        Self::of(Stream::Switched(body), SizeHint::default())
    }

    /// From another gateway.
    pub fn tunnel(body: TunnelBody) -> Self {
        let (is_empty, size) = (body.is_end_stream(), body.size_hint());
        Self::of(if is_empty { Stream::Empty } else { Stream::Tunnel(body) }, size)
    }

    fn of(stream: Stream, size: SizeHint) -> Self {
        Self { stream, size }
    }
}

impl Stream {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body, _) => body.is_end_stream(),
            Self::Tunnel(body) => body.is_end_stream(),
            Self::Switched(_) => false,
            #[cfg(test)]
            Self::Listed(pieces) => pieces.is_empty(),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(body, _) => match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                // hyper takes RST_STREAM(NO_ERROR) for an end; what came before it is not all, or END_STREAM would have been there.
                None if !body.is_end_stream() => {
                    Poll::Ready(Some(Err("the client reset the stream of the request".into())))
                }
                frame => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            },
            Self::Tunnel(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Switched(body) => body.poll_frame(cx),
            #[cfg(test)]
            Self::Listed(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
        };
        frame.map(|frame| frame.map(|frame| frame.map(without_mesh)))
    }

    /// True while its sender has been told by nobody to go on, and waits for that (RFC 9110 §10.1.1).
    fn waits_itself(&self) -> bool {
        matches!(self, Self::Http1(body) if body.waits_itself())
    }

    /// Until when its sender could not send for what we hold of other bodies; see [`OpenStream`].
    fn choked_until(&self, now: Instant) -> Option<Instant> {
        if let Self::Http2(_, stream) = self { stream.choked_until(now) } else { None }
    }
}

/// The body of a request, across its attempts.
#[derive(Debug, Clone)]
pub struct Replayable(Option<Rc<RefCell<Source>>>);

/// The body of one attempt.
#[derive(Debug)]
pub struct RequestBody(Option<Attempt>);

#[derive(Debug)]
struct Attempt {
    source: Rc<RefCell<Source>>,
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
    /// Small pieces since the last large one: one piece of their own.
    gathered: BytesMut,
    /// More than fits was read: what an attempt has not seen yet is gone for any later one.
    overflowed: bool,
    trailers: Option<HeaderMap>,
    /// Nobody may read it yet.
    held: bool,
    ended: bool,
    attempt: u32,
    /// The attempt that runs has had all of it.
    taken: bool,
    bytes: u64,
    progress: Instant,
    pace: Pace,
    /// Its sender waited to be told to go on when it was last asked for more.
    waited_itself: bool,
    /// It was asked for more since [`Replayable::begin_poll`].
    asked: bool,
}

/// How far the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// All of it is here, the last of it since then, if there is one.
    Whole(Option<Instant>),
    /// More of it is waited for: when that is too long, if ever.
    Sender(Option<(Instant, TooSlow)>),
    /// Nobody has taken what is there since then.
    Taker(Instant),
    /// Nobody asks for it; something of it came then.
    Unasked(Instant),
}

impl Replayable {
    /// Of a request that began at `now`.
    pub fn new(body: Incoming, now: Instant) -> Self {
        let Incoming { stream, size } = body;
        if matches!(stream, Stream::Empty) {
            return Self(None);
        }
        Self(Some(Rc::new(RefCell::new(Source {
            stream,
            size,
            kept: Vec::new(),
            kept_bytes: 0,
            gathered: BytesMut::new(),
            overflowed: false,
            trailers: None,
            held: false,
            ended: false,
            attempt: 0,
            taken: false,
            bytes: 0,
            progress: now,
            pace: Pace::new(Limits::NONE),
            waited_itself: false,
            asked: false,
        }))))
    }

    /// Nobody reads it until it is released: it follows an answer, and what comes too early waits where it is.
    pub fn hold(&self) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().held = true;
        }
    }

    /// The answer is there. Whoever reads it reads it from now on, if it follows that, and finds its end at once if it does not: then it
    /// was never sent. There is no other attempt either way. Who waits for it is not woken, but reads the answer, which asks for it.
    pub fn release(&self, follows: bool) {
        if let Some(shared) = &self.0 {
            let mut source = shared.borrow_mut();
            source.held = false;
            source.overflowed = true;
            (source.kept, source.gathered) = (Vec::new(), BytesMut::new());
            if !follows {
                source.end();
            }
        }
    }

    /// Its sender may be no slower than this.
    pub fn police(&self, limits: Limits) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().turn(|pace| *pace = Pace::new(limits));
        }
    }

    /// The body for one more attempt; earlier attempts that have not had all of it end with an error. `None` when bytes of it are gone.
    pub fn attempt(&self) -> Option<RequestBody> {
        let Some(shared) = &self.0 else { return Some(RequestBody(None)) };
        let mut source = shared.borrow_mut();
        if source.overflowed {
            return None;
        }
        source.attempt += 1;
        source.taken = false;
        source.turn(Pace::rests);
        source.gather();
        let (number, size) = (source.attempt, source.size);
        Some(RequestBody(Some(Attempt { source: Rc::clone(shared), number, next: 0, size })))
    }

    /// True while another attempt could send the whole body.
    pub fn can_replay(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| !shared.borrow().overflowed)
    }

    /// True once the last attempt has had the whole body.
    pub fn is_taken(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.borrow().taken)
    }

    /// True for a request without a body.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// True while its sender is not done.
    pub fn is_sending(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| !shared.borrow().ended)
    }

    /// When something of it came last.
    pub fn last(&self) -> Option<Instant> {
        self.0.as_ref().map(|shared| shared.borrow().progress)
    }

    /// True when its sender said how long it is.
    pub fn has_length(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.borrow().size.exact().is_some())
    }

    /// Whoever may ask for more of it is about to be polled.
    pub fn begin_poll(&self) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().asked = false;
        }
    }

    /// Whoever may ask was polled, and waits for something. If it did not ask, it has enough that nobody takes: its sender is not
    /// waited for any more, although the last that was heard of it is that nothing was there.
    pub fn end_poll(&self, now: Instant) {
        if let Some(shared) = &self.0 {
            let mut source = shared.borrow_mut();
            if !source.asked && matches!(source.pace.turn(), Turn::Sender(_)) {
                source.turn(|pace| pace.took(now));
            }
        }
    }

    /// How far it is at `now`.
    pub fn upload(&self, now: Instant) -> Upload {
        let Some(shared) = &self.0 else { return Upload::Whole(None) };
        let mut source = shared.borrow_mut();
        if source.ended {
            return Upload::Whole(Some(source.progress));
        }
        match source.pace.turn() {
            Turn::Sender(_) => Upload::Sender(source.pace.due(source.stream.choked_until(now))),
            Turn::Taker(since) => Upload::Taker(since),
            // It was told to go on, and nobody has asked since.
            Turn::Nobody if source.waited_itself && !source.stream.waits_itself() => {
                source.awaits(now);
                Upload::Sender(source.pace.due(None))
            }
            Turn::Nobody => Upload::Unasked(source.progress),
        }
    }

    /// When the last of it came from the sender, or what there is so far; `None` for one that has none.
    pub fn received(&self) -> Option<Instant> {
        self.0.as_ref().map(|shared| shared.borrow().progress)
    }

    /// Bytes received from the sender.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.borrow().bytes)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(attempt) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        if attempt.next == ENDED {
            return Poll::Ready(None);
        }
        let mut source = attempt.source.borrow_mut();
        if source.attempt != attempt.number {
            return Poll::Ready(Some(Err("another attempt took over".into())));
        }
        if let Some(bytes) = source.kept.get(attempt.next).cloned() {
            attempt.next += 1;
            source.turn(|pace| pace.took(Instant::now()));
            if source.ended && attempt.next >= source.kept.len() && source.trailers.is_none() {
                attempt.next = source.end();
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if source.ended {
            attempt.next = source.end();
            return Poll::Ready(source.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if source.held {
            return Poll::Pending;
        }
        source.asked = true;
        let Poll::Ready(frame) = source.stream.poll_frame(cx) else {
            if !matches!(source.pace.turn(), Turn::Sender(_)) {
                source.awaits(Instant::now());
            }
            return Poll::Pending;
        };
        let now = Instant::now();
        source.progress = now;
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        source.turn(|pace| pace.gave(bytes, now));
        Poll::Ready(match frame {
            None => {
                attempt.next = source.end();
                None
            }
            Some(Err(error)) => {
                source.overflowed = true;
                Some(Err(error))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    source.keep(&data);
                    // Who announced a length says no more after it.
                    attempt.next = if source.stream.is_end_stream() { source.end() } else { source.kept.len() };
                    Some(Ok(Frame::data(data)))
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        // Kept for a replay too, at the price of one clone for the rare request with trailers.
                        source.trailers = Some(trailers.clone());
                        attempt.next = source.end();
                        Some(Ok(Frame::trailers(trailers)))
                    }
                    Err(_) => Some(Err("unknown frame".into())),
                },
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|attempt| attempt.next == ENDED)
    }

    fn size_hint(&self) -> SizeHint {
        // The whole message's length: an exact hint becomes its Content-Length. Asked for once, before the first frame.
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |attempt| attempt.size)
    }
}

impl Source {
    /// Keeps a piece for another attempt. Large ones are kept as they are; of small ones, which may hold on to the large buffer that
    /// they were read into, the bytes.
    fn keep(&mut self, data: &Bytes) {
        self.bytes += data.len() as u64;
        if self.overflowed {
            return;
        }
        self.kept_bytes += data.len();
        if self.kept_bytes > REPLAY_BYTES_MAX {
            self.overflowed = true;
            (self.kept, self.gathered) = (Vec::new(), BytesMut::new());
        } else if data.len() < PIECE_MIN {
            self.gathered.extend_from_slice(data);
        } else {
            self.gather();
            self.kept.push(data.clone());
        }
    }

    /// The attempt that runs has had all of it. Returns what it reads next: nothing.
    fn end(&mut self) -> usize {
        (self.ended, self.taken) = (true, true);
        self.turn(Pace::rests);
        ENDED
    }

    /// There is room for more of it, and no more of it.
    fn awaits(&mut self, now: Instant) {
        self.waited_itself = self.stream.waits_itself();
        match self.waited_itself {
            true => self.turn(Pace::rests),
            false => self.turn(|pace| pace.awaits(now)),
        }
    }

    fn turn(&mut self, change: impl FnOnce(&mut Pace)) {
        change(&mut self.pace);
        if let Stream::Http2(_, stream) = &self.stream {
            stream.hold(matches!(self.pace.turn(), Turn::Taker(_)));
        }
    }

    fn gather(&mut self) {
        if !self.gathered.is_empty() {
            self.kept.push(self.gathered.split().freeze());
        }
    }
}

/// Trailers are merged into headers by some receivers: what only gateways may say stays out of both.
fn without_mesh(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::strip_mesh(trailers);
    }
    frame
}

/// The body of a response. Holds all that the request holds, until its last byte.
#[derive(Debug)]
pub struct ResponseBody {
    kind: Kind,
    books: Option<Books>,
    /// Once more of it was waited for.
    watch: Option<Box<Watch>>,
}

/// In boxes, since a response is handed on a dozen times before it is read: that costs more than an allocation.
#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Http1(Box<Answer>),
    Http2(Box<Http2Exchange<RequestBody>>),
    Tunnel(Box<Exchange<RequestBody>>),
}

impl ResponseBody {
    /// A body of the gateway's own.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Full(bytes.into()), books: None, watch: None }
    }

    /// No body.
    pub fn empty() -> Self {
        Self { kind: Kind::Empty, books: None, watch: None }
    }

    /// From an endpoint.
    pub fn http1(answer: Answer) -> Self {
        Self { kind: Kind::Http1(Box::new(answer)), books: None, watch: None }
    }

    /// From an endpoint.
    pub fn http2(body: Http2Exchange<RequestBody>) -> Self {
        Self { kind: Kind::Http2(Box::new(body)), books: None, watch: None }
    }

    /// From another gateway.
    pub fn tunnel(body: Exchange<RequestBody>) -> Self {
        Self { kind: Kind::Tunnel(Box::new(body)), books: None, watch: None }
    }

    /// Closes the books when the body ends.
    pub fn with_books(mut self, books: Books) -> Self {
        self.books = Some(books);
        self.settle();
        self
    }

    /// How long its client may take nothing of it; `None`: it is the gateway's own.
    pub fn limits(&self) -> Option<Limits> {
        self.books.as_ref().map(Books::limits)
    }

    /// What there still is of it is not sent, and that is right: an answer to HEAD, or nothing but its end.
    pub fn skipped(&mut self) {
        if let Some(books) = &mut self.books {
            books.clean();
        }
    }

    /// It could not be sent.
    pub fn failed(&mut self, error: &dyn std::error::Error) {
        if let Some(books) = &mut self.books {
            books.unsent(error);
        }
    }

    /// A body without frames is at its end before anybody polls it.
    fn settle(&mut self) {
        if self.is_end_stream() {
            self.end();
        }
    }

    /// The response is complete.
    fn end(&mut self) {
        // Whoever answered early may still want the rest of the request: it goes on alone.
        if self.books.as_ref().is_some_and(Books::is_switched) {
            return self.end_one_way();
        }
        if let Some(books) = self.books.as_mut() {
            match &mut self.kind {
                Kind::Http2(exchange) => drop(exchange.take_upload().map(|rest| watch::finish(books, rest))),
                Kind::Tunnel(exchange) => drop(exchange.take_upload().map(|rest| watch::finish(books, rest))),
                Kind::Empty | Kind::Full(_) | Kind::Http1(_) => {}
            }
            books.clean();
        }
    }
}

impl ResponseBody {
    /// What came from the service is complete, and its client is told at once. What the client still sends goes on, and with it all that
    /// the two hold.
    fn end_one_way(&mut self) {
        let Some(mut books) = self.books.take() else { return };
        books.clean();
        match &mut self.kind {
            Kind::Http1(answer) => drop(answer.take_rest().map(|rest| watch::finish_switched(books, rest))),
            Kind::Http2(exchange) => drop(exchange.take_upload().map(|rest| watch::finish_switched(books, rest))),
            Kind::Tunnel(exchange) => drop(exchange.take_upload().map(|rest| watch::finish_switched(books, rest))),
            Kind::Empty | Kind::Full(_) => {}
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(books) = &this.books {
            books.request().begin_poll();
        }
        if let Some(books) = &mut this.books
            && books.poll_reset(cx).is_ready()
        {
            let error = BoxError::from("the configuration does not allow this connection any more");
            books.broken(&*error);
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Http1(body) => Pin::new(body).poll_frame(cx),
            Kind::Http2(body) => Pin::new(body).poll_frame(cx),
            Kind::Tunnel(body) => Pin::new(body).poll_frame(cx).map(|frame| frame.map(|f| f.map_err(BoxError::from))),
        };
        let Poll::Ready(frame) = frame else {
            // What another gateway's endpoint gives is that gateway's to mind.
            let is_endpoints = !matches!(this.kind, Kind::Tunnel(_));
            let has_length = this.size_hint().exact().is_some();
            let Some(books) = this.books.as_mut() else { return Poll::Pending };
            let error = ready!(Watch::poll(&mut this.watch, books, is_endpoints, has_length, cx));
            return Poll::Ready(Some(Err(error)));
        };
        if let Some(watch) = &mut this.watch {
            watch.came();
        }
        let frame = frame.map(|frame| frame.map(without_mesh));
        match (&frame, this.books.as_mut()) {
            (Some(Ok(frame)), Some(books)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => books.sent(data.len()),
                (None, Some(trailers)) => books.trailers(trailers),
                (None, None) => {}
            },
            (Some(Err(error)), Some(books)) => books.broken(&**error),
            _ => {}
        }
        match frame {
            Some(Ok(_)) => this.settle(),
            None => this.end(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Http1(body) => body.is_end_stream(),
            Kind::Http2(body) => body.is_end_stream(),
            Kind::Tunnel(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Http1(body) => body.size_hint(),
            Kind::Http2(body) => body.size_hint(),
            Kind::Tunnel(body) => body.size_hint(),
        }
    }
}

/// Bodies up to here can be sent again (design §4). A worker keeps at most this for each request that it carries: admission bounds
/// how many those are.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// What an attempt reads next that has had everything.
const ENDED: usize = usize::MAX;
/// Smaller pieces are copied when they are kept.
const PIECE_MIN: usize = 2 * 1024;

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
