//! Who is too slow once a response has begun: its endpoint, or a client that is still to send a body whose length it has said.
//!
//! Nothing is looked at as long as the response comes. When more of it is waited for, whoever could go on is the one whose time runs.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::body::{BoxError, Upload};
use super::books::{Books, Reporter};
use super::failure::Cut;
use super::timers::Timer;
use crate::pace::Limits;

/// A response of which more was waited for.
#[derive(Debug)]
pub struct Watch {
    timer: Timer,
    /// Since when more is waited for, if it is.
    since: Option<Instant>,
}

impl Watch {
    /// Something of the response came.
    pub fn came(&mut self) {
        self.since = None;
    }

    /// Nothing came. Ready with what is to be said when that is too long, and written into the books.
    pub fn poll(
        watch: &mut Option<Box<Self>>,
        books: &mut Books,
        is_endpoints: bool,
        has_length: bool,
        cx: &mut Context<'_>,
    ) -> Poll<BoxError> {
        books.request().end_poll(Instant::now());
        let waits = Waits { is_endpoints, has_length };
        if watch.is_none() && !waits.may_end(books) {
            return Poll::Pending;
        }
        let this = watch.get_or_insert_with(|| Box::new(Self { timer: books.worker().timers.timer(), since: None }));
        let since = *this.since.get_or_insert_with(Instant::now);
        loop {
            let late = waits.late(books, since, Instant::now());
            this.timer.set(late.map(|(due, _)| due));
            ready!(this.timer.poll_due(cx));
            if let Some((due, cut)) = late
                && due <= Instant::now()
            {
                books.cut(cut);
                return Poll::Ready(cut.line().into());
            }
        }
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// From an endpoint of this gateway.
    is_endpoints: bool,
    /// Its length is known.
    has_length: bool,
}

impl Waits {
    /// Whether it can be too long at all.
    fn may_end(self, books: &Books) -> bool {
        let limits = books.limits();
        let endpoint = if self.has_length { limits.endpoint_idle() } else { limits.stream_idle() };
        (self.is_endpoints && (endpoint.is_some() || books.is_switched())) || books.request().is_sending()
    }

    /// When it is too long, and what is said then; `since`: nothing has come of the response.
    fn late(self, books: &Books, since: Instant, now: Instant) -> Option<(Instant, Cut)> {
        let (limits, request) = (books.limits(), books.request());
        let upload = request.upload(now);
        let endpoint = |from: Instant| {
            let idle = if self.has_length { limits.endpoint_idle() } else { limits.stream_idle() };
            let cut = if self.has_length { Cut::EndpointResponse } else { Cut::StreamIdle };
            idle.filter(|_| self.is_endpoints).map(|idle| (since.max(from) + idle, cut))
        };
        match upload {
            Upload::Whole(last) if books.is_switched() => {
                let since = since.max(last.unwrap_or(since));
                self.is_endpoints.then(|| (since + half_closed_idle(limits), Cut::StreamIdle))
            }
            // Where neither side has a length it is a stream, and the client may be silent as long as the endpoint may.
            Upload::Sender(_) if !request.has_length() && !self.has_length => endpoint(request.last().unwrap_or(since)),
            Upload::Sender(due) => due.map(|(due, slow)| (due, slow.into())),
            // What it takes of the request is a sign of life.
            Upload::Taker(from) | Upload::Unasked(from) => endpoint(from),
            Upload::Whole(last) => endpoint(last.unwrap_or(since)),
        }
    }
}

/// Carries on what a client sends to a service whose own direction is over, in a task of its own: until that is over as well, or
/// nothing of it has passed for too long.
pub fn finish_switched<E: Into<BoxError>>(mut books: Books, rest: impl Future<Output = Result<(), E>> + 'static) {
    let idle = half_closed_idle(books.limits());
    tokio::task::spawn_local(async move {
        let timer = books.worker().timers.timer();
        let mut rest = pin!(rest);
        let (mut passed, mut from) = (books.request().bytes(), Instant::now());
        let broken = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = rest.as_mut().poll(cx) {
                    return Poll::Ready(result.err());
                }
                let now = Instant::now();
                if books.poll_reset(cx).is_ready() {
                    return Poll::Ready(None);
                }
                if std::mem::replace(&mut passed, books.request().bytes()) != passed {
                    from = now;
                }
                if from + idle <= now {
                    return Poll::Ready(None);
                }
                timer.set(Some(from + idle));
                ready!(timer.poll_due(cx));
            }
        })
        .await;
        if let Some(error) = broken {
            books.unsent(&*error.into());
        }
    });
}

/// How long one direction of what has switched may be silent once the other is over.
fn half_closed_idle(limits: Limits) -> Duration {
    limits.stream_idle().map_or(HALF_CLOSED_IDLE, |idle| idle.min(HALF_CLOSED_IDLE))
}

/// Sends what is left of a request whose response has ended, in a task of its own, for as long as its client keeps to the limits.
pub fn finish<E>(books: &Books, rest: impl Future<Output = Result<(), E>> + 'static) {
    let (worker, request) = (books.worker().clone(), books.request().clone());
    let limits = books.limits();
    if limits.upload_idle().is_none() && books.reporter() == Reporter::Source {
        // A call whose streams might be silent; now it is over.
        request.police(worker.limits.streams);
    }
    tokio::task::spawn_local(async move {
        let timer = worker.timers.timer();
        let mut rest = pin!(rest);
        poll_fn(|cx| {
            loop {
                request.begin_poll();
                if rest.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let now = Instant::now();
                request.end_poll(now);
                let due = match request.upload(now) {
                    Upload::Sender(due) => due.map(|(due, _)| due),
                    Upload::Taker(since) => limits.endpoint_idle().map(|idle| since + idle),
                    Upload::Whole(_) | Upload::Unasked(_) => None,
                };
                if due.is_some_and(|due| due <= now) {
                    return Poll::Ready(());
                }
                timer.set(due);
                ready!(timer.poll_due(cx));
            }
        })
        .await;
    });
}

/// A client closes when the service has, and who does not within a minute
/// is not going to (TCP's own wait for the last of a connection is one to four minutes, RFC 9293 §3.3.2).
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);
