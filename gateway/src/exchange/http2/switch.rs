//! A stream of a client of HTTP/2 that has switched to another protocol (RFC 8441): bytes both ways.
//!
//! hyper hands the stream over once it has sent the response, as one reader and writer. What is read is the body of the request; what is
//! written is the body of the response, by a task of its own.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio_util::io::poll_read_buf;

use super::open::OpenStream;
use crate::exchange::body::{BoxError, ResponseBody};
use crate::exchange::failure::Cut;
use crate::worker::Worker;

/// What a client sends once its stream has switched.
#[derive(Debug)]
pub struct Switched {
    shared: Rc<RefCell<Shared>>,
    _stream: OpenStream,
}

/// The way for a stream to switch.
#[derive(Debug)]
pub struct Switch {
    shared: Rc<RefCell<Shared>>,
    upgrade: OnUpgrade,
}

#[derive(Debug, Default)]
struct Shared {
    reader: Option<ReadHalf<TokioIo<Upgraded>>>,
    /// Nothing comes of it any more.
    is_over: bool,
    /// Who waits for it.
    waker: Option<Waker>,
}

/// Both ends of a stream that may switch.
pub fn pair(upgrade: OnUpgrade, stream: OpenStream) -> (Switch, Switched) {
    let shared = Rc::<RefCell<Shared>>::default();
    (Switch { shared: Rc::clone(&shared), upgrade }, Switched { shared, _stream: stream })
}

impl Switch {
    /// Its answer switches: `body` is what the client is sent from then on.
    pub fn switch(self, worker: Rc<Worker>, body: ResponseBody, stream: OpenStream) {
        tokio::task::spawn_local(async move {
            let Self { shared, upgrade } = self;
            let Ok(upgraded) = upgrade.await else { return shared.borrow_mut().end() };
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            shared.borrow_mut().begin(reader);
            send(&worker, body, writer).await;
            drop(stream);
        });
    }
}

/// Writes a body to its end. A client that takes nothing of it for too long is cut.
async fn send(worker: &Worker, mut body: ResponseBody, mut writer: WriteHalf<TokioIo<Upgraded>>) {
    let idle = body.limits().unwrap_or(worker.limits.streams).download_idle();
    let timer = worker.timers.timer();
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let mut data = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => {
                tracing::debug!(%error, "a stream that has switched broke off");
                return;
            }
            None => break,
        };
        timer.set(idle.map(|idle| Instant::now() + idle));
        let written = poll_fn(|cx| {
            while !data.is_empty() {
                match Pin::new(&mut writer).poll_write(cx, &data) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => drop(data.split_to(n)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        ready!(timer.poll_due(cx));
                        worker.metrics.stalled("http2");
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Cut::ClientDownload.line())));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await;
        timer.set(None);
        if let Err(error) = written {
            return body.failed(&error);
        }
    }
    let _ = writer.shutdown().await;
}

impl Shared {
    fn begin(&mut self, reader: ReadHalf<TokioIo<Upgraded>>) {
        self.reader = Some(reader);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn end(&mut self) {
        self.is_over = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Switched {
    /// The next piece.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_over {
            return Poll::Ready(None);
        }
        let Some(reader) = &mut shared.reader else {
            shared.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let mut data = BytesMut::with_capacity(READ_BYTES);
        match ready!(poll_read_buf(Pin::new(reader), cx, &mut data)) {
            Ok(0) => {
                (shared.reader, shared.is_over) = (None, true);
                Poll::Ready(None)
            }
            Ok(_) => Poll::Ready(Some(Ok(Frame::data(data.freeze())))),
            Err(error) => {
                (shared.reader, shared.is_over) = (None, true);
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }
}

const READ_BYTES: usize = 16 * 1024;
