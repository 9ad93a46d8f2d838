//! The body of a response on its way to a client of HTTP/2, who may stop taking it.
//!
//! hyper asks for the next piece once the client has made room for the last one. While that takes, the exchange holds a slot, and an
//! endpoint or a tunnel: too long, and it is cut. Waiting for the service does not count: then nothing lies there to be taken.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::open::OpenStream;
use crate::exchange::body::{BoxError, ResponseBody};
use crate::exchange::failure::Cut;
use crate::worker::Worker;

/// A body that is cut when nobody takes it.
#[derive(Debug)]
pub struct Download {
    worker: Rc<Worker>,
    shared: Rc<Shared>,
    /// Once there is a piece that is not the last.
    watch: Option<AbortHandle>,
    /// How long that may lie there.
    idle: Option<Duration>,
    _stream: OpenStream,
}

#[derive(Debug)]
struct Shared {
    /// `None` once it was cut.
    body: RefCell<Option<ResponseBody>>,
    /// Since when a piece lies there.
    since: Cell<Option<Instant>>,
}

impl Download {
    /// Of this response.
    pub fn new(worker: &Rc<Worker>, body: ResponseBody, stream: OpenStream) -> Self {
        let idle = body.limits().unwrap_or(worker.limits.streams).download_idle();
        let shared = Shared { body: RefCell::new(Some(body)), since: Cell::default() };
        Self { worker: Rc::clone(worker), shared: Rc::new(shared), watch: None, idle, _stream: stream }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let mut body = this.shared.body.borrow_mut();
        let Some(body) = body.as_mut() else { return Poll::Ready(Some(Err(stalled().into()))) };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        let lies_there = matches!(frame, Poll::Ready(Some(Ok(_)))) && !body.is_end_stream();
        this.shared.since.set(lies_there.then(Instant::now));
        if let Some(idle) = this.idle
            && lies_there
            && this.watch.is_none()
        {
            let watch = watch(Rc::clone(&this.shared), Rc::clone(&this.worker), idle);
            this.watch = Some(tokio::task::spawn_local(watch).abort_handle());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.shared.body.borrow().as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.shared.body.borrow().as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
        // Here and now, whoever else still knows of it.
        drop(self.shared.body.take());
    }
}

/// Cuts it when its time is over: all that it holds is free then, and the stream is reset as soon as its client asks for more.
async fn watch(shared: Rc<Shared>, worker: Rc<Worker>, idle: Duration) {
    let timer = worker.timers.timer();
    let mut from = Instant::now();
    loop {
        timer.set(Some(from + idle));
        timer.is_due().await;
        let now = Instant::now();
        match shared.since.get() {
            Some(since) if now >= since + idle => break,
            since => from = since.unwrap_or(now),
        }
    }
    let cut = shared.body.borrow_mut().take();
    if let Some(mut body) = cut {
        worker.metrics.stalled("http2");
        body.failed(&stalled());
    }
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, Cut::ClientDownload.line())
}
