//! HTTP/1.1 from a client: one task per connection, which reads a head, lets it be answered, writes the answer, and begins anew.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use archipelago_http::h1::{self, BodyDecoder, Framing, Piece, Refusal, UpgradeTo};
use archipelago_http::{Known, Pooled, RequestHead, ResponseHead};
use bytes::{Buf as _, Bytes};
use http::{Method, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use super::link::Link;
use super::{push_chunk, push_last_chunk};
use crate::exchange::body::{BoxError, Incoming, Replayable, ResponseBody};
use crate::exchange::client::Entrance;
use crate::exchange::failure::Cut;
use crate::exchange::interim::Interim;
use crate::exchange::timers::Timer;
use crate::exchange::{self, Response, websocket};
use crate::worker::Worker;

/// Serves a connection until it ends.
pub async fn serve(worker: Rc<Worker>, link: Link, entrance: Entrance) {
    let conn = Rc::new(Conn {
        link: RefCell::new(link),
        body: RefCell::new(BodyDecoder::new(Framing::Empty)),
        left: Cell::new(Some(0)),
        expectation: Cell::new(Expectation::None),
        message: Cell::new(0),
        is_lent: Cell::new(false),
        returned: Notify::new(),
    });
    let timer = worker.timers.timer();
    loop {
        let (mut head, info) = match conn.head(&worker, &timer).await {
            Ok(Some(read)) => read,
            Ok(None) => return,
            Err(Unread::Refused(refusal)) => {
                worker.metrics.refused_head(refusal);
                return conn.refuse(refusal.status(), refusal.line()).await;
            }
            Err(Unread::Slow) => {
                return conn.refuse(StatusCode::REQUEST_TIMEOUT, "the head of the request did not come in time").await;
            }
        };
        let message = Message { method: head.method.clone(), version: head.version };
        conn.begin(&info);
        let now = Instant::now();
        // Offered beside a body, or with another method, it is no offer of WebSocket, and nobody has to take any (RFC 9110 §7.8).
        let is_offer =
            info.upgrade == Some(UpgradeTo::WebSocket) && head.method == Method::GET && !info.framing.has_body();
        let (body, accept) = if is_offer { conn.offered(&mut head, now) } else { (conn.lend(info.framing, now), None) };
        let interim =
            if message.version == Version::HTTP_11 { Interim::Http1(Rc::clone(&conn)) } else { Interim::None };
        // In a box: an idle connection does not carry the room of a request.
        let answered = Box::pin(exchange::serve_client(Rc::clone(&worker), &entrance, head, body, interim, now));
        let response = tokio::select! {
            biased;
            response = answered => response,
            () = conn.vanished(&worker, message.version) => return,
        };
        let wants_more = info.persistent && !worker.is_draining.get() && !worker.is_leaving.get();
        let switch = accept.as_deref();
        let Ok(again) = conn.answer(&worker, &timer, message, response, wants_more, switch).await else { return };
        if !again || !conn.rest().await {
            return conn.linger().await;
        }
    }
}

/// What the answer depends on.
#[derive(Debug)]
struct Message {
    method: Method,
    version: Version,
}

/// A client's connection, shared by its task and the body of the request that it reads now.
#[derive(Debug)]
pub struct Conn {
    link: RefCell<Link>,
    body: RefCell<BodyDecoder>,
    /// Of a body with a length.
    left: Cell<Option<u64>>,
    expectation: Cell<Expectation>,
    /// Which one it is, so that who still holds the body of an earlier one does not read this one's.
    message: Cell<u64>,
    /// Somebody holds its body.
    is_lent: Cell<bool>,
    /// Told when nobody does any more, or all of it was read.
    returned: Notify,
}

/// Why a head was not read.
enum Unread {
    /// It is not one.
    Refused(Refusal),
    /// It did not come in time.
    Slow,
}

/// What became of `Expect: 100-continue` (RFC 9110 §10.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expectation {
    /// There is none, or it was answered.
    None,
    /// Whoever serves the request answers it.
    Open,
}

impl Conn {
    /// The body of the request that begins.
    fn lend(self: &Rc<Self>, framing: Framing, now: Instant) -> Replayable {
        Replayable::new(Incoming::http1(UploadBody::of(self), framing), now)
    }

    /// The same of one that offers WebSocket: what comes after the answer, if that switches. Also what that must say.
    #[cold]
    fn offered(self: &Rc<Self>, head: &mut RequestHead, now: Instant) -> (Replayable, Option<String>) {
        let accept = websocket::from_http1(head);
        let mut upload = UploadBody::of(self);
        upload.is_read = false;
        let body = Replayable::new(Incoming::http1_switched(upload), now);
        body.hold();
        (body, accept)
    }

    /// Reads the next head; `None` when the connection ended, or is to end, between two messages.
    async fn head(
        &self,
        worker: &Worker,
        timer: &Timer,
    ) -> Result<Option<(Pooled<RequestHead>, h1::RequestInfo)>, Unread> {
        // Idle connections hold none.
        let mut head = None;
        let mut progress = h1::Progress::default();
        timer.set(Some(Instant::now() + worker.limits.idle_timeout));
        let mut idle = true;
        std::future::poll_fn(|cx| {
            let mut link = self.link.borrow_mut();
            loop {
                if !link.read.is_empty() {
                    let reading: &mut Pooled<RequestHead> = head.get_or_insert_default();
                    match h1::parse_request(&link.read, &h1::Limits::default(), &mut progress, reading) {
                        Ok(Some(info)) => {
                            link.read.advance(info.used);
                            return Poll::Ready(Ok(head.take().map(|head| (head, info))));
                        }
                        Ok(None) => {}
                        Err(refusal) => return Poll::Ready(Err(Unread::Refused(refusal))),
                    }
                    if std::mem::take(&mut idle) {
                        timer.set(Some(Instant::now() + worker.limits.head_timeout));
                    }
                }
                match link.poll_fill(cx) {
                    Poll::Ready(Ok(true)) => continue,
                    Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(Ok(None)),
                    Poll::Pending => {}
                }
                if timer.poll_due(cx).is_ready() {
                    return Poll::Ready(if idle { Ok(None) } else { Err(Unread::Slow) });
                }
                if idle {
                    link.rest();
                }
                // Whoever drains wakes everybody who waits for a timer.
                return if idle && worker.is_draining.get() { Poll::Ready(Ok(None)) } else { Poll::Pending };
            }
        })
        .await
    }

    /// A message with this framing begins.
    fn begin(&self, info: &h1::RequestInfo) {
        self.body.replace(BodyDecoder::new(info.framing));
        self.left.set(match info.framing {
            Framing::Length(n) => Some(n),
            Framing::Chunked => None,
            Framing::Empty | Framing::UntilClose => Some(0),
        });
        self.message.set(self.message.get() + 1);
        self.expectation.set(if info.expects_continue { Expectation::Open } else { Expectation::None });
    }

    /// True when all of the request has been read.
    fn is_read(&self) -> bool {
        self.left.get() == Some(0)
    }

    /// Resolves when nobody is there any more for whom the request could be answered.
    ///
    /// A client that shuts down its sending half still waits (RFC 9112 §9.6), one that closed does not, and both look alike until
    /// something is sent. So after a while the silent one is told, by a response that every client of HTTP/1.1 skips, that its
    /// request is being worked on: whoever is gone answers that with a reset.
    async fn vanished(&self, worker: &Worker, version: Version) {
        let ended = std::future::poll_fn(|cx| {
            let mut link = self.link.borrow_mut();
            // What belongs to the request's body is for whoever reads that.
            while self.is_read() && link.read.len() < PIPELINED_MAX {
                match ready!(link.poll_fill(cx)) {
                    Ok(true) => {}
                    Ok(false) => return Poll::Ready(true),
                    Err(_) => return Poll::Ready(false),
                }
            }
            Poll::Pending
        });
        // Not while `link` is borrowed.
        let is_gone = self.gone();
        let ended = tokio::select! {
            biased;
            ended = ended => ended,
            () = is_gone => false,
        };
        if !ended {
            return;
        }
        if version == Version::HTTP_11 {
            let timer = worker.timers.timer();
            timer.set(Some(Instant::now() + PROBE_AFTER));
            tokio::select! {
                biased;
                () = timer.is_due() => self.probe(),
                () = self.gone() => return,
            }
        }
        self.gone().await;
    }

    fn probe(&self) {
        let mut link = self.link.borrow_mut();
        if link.out.is_empty() {
            link.out.text().extend_from_slice(CONTINUE);
            let _ = link.poll_flush(&mut Context::from_waker(std::task::Waker::noop()));
        }
    }

    async fn gone(&self) {
        // One poll at a time: nobody else may find the link borrowed.
        let stream = self.link.borrow().watch();
        stream.is_gone().await;
    }

    /// Reads what the answer did not wait for: whoever still wants it may, then it is left out. True once all of it was read.
    async fn rest(&self) -> bool {
        if !self.is_read() {
            let mut left = LINGER_BYTES;
            let read = async {
                while self.is_lent.get() && !self.is_read() {
                    self.returned.notified().await;
                }
                std::future::poll_fn(|cx| self.poll_rest(&mut left, cx)).await;
            };
            let _ = tokio::time::timeout(LINGER, read).await;
        }
        self.is_read()
    }

    fn poll_rest(&self, left: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
        while !self.is_read() {
            match ready!(self.poll_body(cx)) {
                Some(Ok(frame)) => match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(less) => *left = less,
                    None => break,
                },
                Some(Err(_)) | None => break,
            }
        }
        Poll::Ready(())
    }

    /// The next piece of the body.
    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut link = self.link.borrow_mut();
        loop {
            match self.body.borrow_mut().decode(&mut link.read) {
                Ok(Piece::Data(data)) => {
                    // Who sends although nobody has told him to does not wait for it any more.
                    self.expectation.set(Expectation::None);
                    self.left.set(self.left.get().map(|left| left.saturating_sub(data.len() as u64)));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Piece::Trailers(trailers)) => {
                    self.left.set(Some(0));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers.to_header_map().unwrap_or_default()))));
                }
                Ok(Piece::End) => {
                    self.left.set(Some(0));
                    return Poll::Ready(None);
                }
                Ok(Piece::More) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
            match ready!(link.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) => {
                    let cut = self.body.borrow_mut().end_of_input();
                    if cut.is_ok() {
                        self.left.set(Some(0));
                    }
                    return Poll::Ready(cut.err().map(|error| Err(error.into())));
                }
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Writes the response. `Ok(true)`: the connection can carry another request, once this one was read.
    async fn answer(
        &self,
        worker: &Rc<Worker>,
        timer: &Timer,
        message: Message,
        response: Response,
        wants_more: bool,
        switch: Option<&str>,
    ) -> io::Result<bool> {
        let Response { mut head, mut body } = response;
        let switch = switch.filter(|_| head.status == StatusCode::SWITCHING_PROTOCOLS);
        let framing = if switch.is_some() { Framing::UntilClose } else { framing(&message, head.status, &body) };
        // Whoever has been told the answer instead of to go on may or may not send the body: its end cannot be known.
        // What a client is too slow with is not waited for after its answer either (RFC 9110 §15.5.9).
        let is_late = head.status == StatusCode::REQUEST_TIMEOUT && !self.is_read();
        let persistent =
            wants_more && !is_late && framing != Framing::UntilClose && self.expectation.get() == Expectation::None;
        let download_idle = body.limits().unwrap_or(worker.limits.streams).download_idle();
        if let Some(accept) = switch {
            websocket::to_http1(&mut head, accept);
            self.body.replace(BodyDecoder::new(Framing::UntilClose));
            self.left.set(None);
            self.link.borrow().keep_alive();
        }
        {
            let mut link = self.link.borrow_mut();
            let persistence = h1::Persistence::of(persistent || switch.is_some(), message.version);
            h1::write_response(&head, framing, persistence, &[], link.out.text());
        }
        drop(head);
        let mut ended = matches!(framing, Framing::Empty | Framing::Length(0));
        if ended {
            body.skipped();
        }
        let mut left = if let Framing::Length(n) = framing { n } else { u64::MAX };
        timer.set(None);
        let sent = std::future::poll_fn(|cx| {
            loop {
                while !ended && self.link.borrow().out.len() < AHEAD_BYTES {
                    let frame = match Pin::new(&mut body).poll_frame(cx) {
                        Poll::Pending => break,
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                        Poll::Ready(Some(Ok(frame))) => Some(frame),
                        Poll::Ready(None) => None,
                    };
                    let mut link = self.link.borrow_mut();
                    match frame.map(Frame::into_data) {
                        Some(Ok(data)) if data.is_empty() => {}
                        Some(Ok(data)) => {
                            left = left.checked_sub(data.len() as u64).ok_or_else(longer)?;
                            if framing == Framing::Chunked {
                                push_chunk(data, &mut link.out);
                            } else {
                                link.out.push(data);
                                ended = left == 0;
                            }
                        }
                        other => {
                            let trailers = other.and_then(Result::err).and_then(|frame| frame.into_trailers().ok());
                            match framing {
                                Framing::Chunked => push_last_chunk(trailers.as_ref(), &mut link.out),
                                Framing::Length(_) if left > 0 => {
                                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                                }
                                _ => {}
                            }
                            ended = true;
                        }
                    }
                }
                let mut link = self.link.borrow_mut();
                let (before, taken) = (link.out.len(), link.taken());
                match link.poll_flush(cx) {
                    Poll::Ready(Ok(())) if ended => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) => {
                        timer.set(None);
                        // With less than this the body was asked, had nothing, and wakes us.
                        if before < AHEAD_BYTES {
                            return Poll::Pending;
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        // The clock runs while the client takes nothing.
                        if timer.due().is_none() || link.out.len() < before || link.taken() > taken {
                            timer.set(download_idle.map(|idle| Instant::now() + idle));
                        }
                        ready!(timer.poll_due(cx));
                        worker.metrics.stalled("http1");
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Cut::ClientDownload.line())));
                    }
                }
            }
        });
        let sent = tokio::select! {
            biased;
            sent = sent => sent,
            // While there is nothing to write.
            () = self.vanished(worker, Version::HTTP_10) => Err(io::ErrorKind::ConnectionReset.into()),
        };
        if let Err(error) = sent {
            tracing::debug!(error = &error as &dyn std::error::Error, "a response broke off");
            body.failed(&error);
            drop(body);
            self.break_off(framing).await;
            return Err(error);
        }
        // Its client has all of it, whether or not whoever it is from has said yet that this was all.
        body.skipped();
        drop(body);
        if switch.is_some() {
            // Each direction ends by itself; whoever carries the other one ends it, or gives it up.
            self.link.borrow_mut().close_writing();
            while self.is_lent.get() && !self.is_read() {
                self.returned.notified().await;
            }
        }
        Ok(persistent && self.expectation.get() == Expectation::None)
    }

    /// Ends a response that is not whole. Whoever counts bytes or chunks sees that something is missing, and gets what there is; who
    /// reads to the end of the connection must not take this for one.
    async fn break_off(&self, framing: Framing) {
        if framing == Framing::UntilClose {
            self.link.borrow().reset();
            return;
        }
        let flushed = std::future::poll_fn(|cx| self.link.borrow_mut().poll_flush(cx));
        let _ = tokio::time::timeout(LINGER, flushed).await;
    }

    /// Answers what cannot be understood, with the reason, and closes.
    async fn refuse(&self, status: StatusCode, line: &str) {
        let mut head = ResponseHead::of(status);
        head.fields.push(Known::ContentType, b"text/plain; charset=utf-8");
        head.fields.push(Known::MeshFailure, b"malformed");
        {
            let mut link = self.link.borrow_mut();
            let framing = Framing::Length(line.len() as u64 + 1);
            h1::write_response(&head, framing, h1::Persistence::Close, &[], link.out.text());
            link.out.text().extend_from_slice(line.as_bytes());
            link.out.text().push(b'\n');
        }
        let flushed = std::future::poll_fn(|cx| self.link.borrow_mut().poll_flush(cx));
        if matches!(tokio::time::timeout(LINGER, flushed).await, Ok(Ok(()))) {
            self.linger().await;
        }
    }

    /// Leaves the response a while to arrive: a socket that closes with unread bytes in it resets the connection, and with it what the
    /// client has not read yet (RFC 9112 §9.6).
    async fn linger(&self) {
        // What follows is nobody's.
        self.message.set(self.message.get() + 1);
        self.link.borrow_mut().close_writing();
        let mut left = LINGER_BYTES;
        let drained = std::future::poll_fn(|cx| self.link.borrow_mut().poll_drain(&mut left, cx));
        let _ = tokio::time::timeout(LINGER, drained).await;
    }

    /// Passes an informational response on.
    pub fn interim(&self, head: &ResponseHead, cx: &mut Context<'_>) {
        let answers = head.status == StatusCode::CONTINUE;
        if answers && self.expectation.replace(Expectation::None) == Expectation::None {
            return;
        }
        let mut link = self.link.borrow_mut();
        h1::write_interim(head, link.out.text());
        // An error shows again when the response is written.
        let _ = link.poll_flush(cx);
    }
}

/// How a response is delimited (RFC 9112 §6.3).
fn framing(message: &Message, status: StatusCode, body: &ResponseBody) -> Framing {
    if message.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Framing::Empty;
    }
    match body.size_hint().exact() {
        Some(length) => Framing::Length(length),
        None if message.version == Version::HTTP_11 => Framing::Chunked,
        None => Framing::UntilClose,
    }
}

fn longer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the body is longer than it said")
}

/// The body of a request, for as long as its connection carries that request.
#[derive(Debug)]
pub struct UploadBody {
    conn: Rc<Conn>,
    message: u64,
    is_read: bool,
}

impl UploadBody {
    /// Of the request that `conn` carries now.
    fn of(conn: &Rc<Conn>) -> Self {
        conn.is_lent.set(true);
        Self { conn: Rc::clone(conn), message: conn.message.get(), is_read: conn.is_read() }
    }
}

impl UploadBody {
    /// True while its client waits to be told to go on (RFC 9110 §10.1.1).
    pub fn waits_itself(&self) -> bool {
        self.message == self.conn.message.get() && self.conn.expectation.get() == Expectation::Open
    }
}

impl Drop for UploadBody {
    fn drop(&mut self) {
        if self.message == self.conn.message.get() {
            self.conn.is_lent.set(false);
            self.conn.returned.notify_one();
        }
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.is_read {
            return Poll::Ready(None);
        }
        if this.message != this.conn.message.get() {
            return Poll::Ready(Some(Err(
                "the request was answered before it was read, and its connection has ended".into()
            )));
        }
        let frame = ready!(this.conn.poll_body(cx));
        this.is_read = this.conn.is_read();
        if this.is_read {
            this.conn.returned.notify_one();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_read
    }

    fn size_hint(&self) -> SizeHint {
        match self.is_read {
            true => SizeHint::with_exact(0),
            false => self.conn.left.get().map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Read ahead of what the client takes.
const AHEAD_BYTES: usize = 64 * 1024;
/// Read ahead of the answer to an earlier request.
const PIPELINED_MAX: usize = 8 * 1024;
const PROBE_AFTER: Duration = Duration::from_millis(250);
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;
