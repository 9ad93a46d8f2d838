//! Carries a body into a stream, as fast as flow control lets it and no faster.

use crate::{codec::Code, error::TunnelError, stream::Outbox};
use bytes::Bytes;
use http_body::Body;
use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::{Sleep, sleep};

/// A future that sends what is queued, then the body with its trailers, then FIN.
///
/// Holds at most [`AHEAD_BYTES`] and one frame of the body beyond what QUIC has taken. Fails when the body fails (the
/// stream is then reset) and when the far side stops reading.
pub(crate) struct Pump<B> {
    outbox: Outbox,
    /// Gone once it has ended.
    body: Option<B>,
    on_body_error: Code,
    /// Runs while QUIC takes nothing.
    unread: Option<Pin<Box<Sleep>>>,
}

impl<B> Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(crate) fn new(outbox: Outbox, body: B, on_body_error: Code) -> Self {
        let body = (!body.is_end_stream()).then_some(body);
        Self { outbox, body, on_body_error, unread: None }
    }

    /// Resolves when the far side has left the message unread for too long: it holds our memory and its connection's window.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.outbox.conn().limits().unread_timeout;
        self.unread.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx)
    }

    /// Takes frames off the body until enough is queued or none is ready; true while more may come.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), TunnelError> {
        while self.outbox.queued_bytes() < AHEAD_BYTES {
            let Some(body) = &mut self.body else { return Ok(()) };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.body = None,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.outbox.push_data(data);
                        if self.body.as_ref().is_some_and(Body::is_end_stream) {
                            self.body = None;
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.body = None;
                            if let Err(error) = self.outbox.push_trailers(&trailers) {
                                self.outbox.reset(Code::EXCESSIVE_LOAD);
                                return Err(error.into());
                            }
                        }
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    self.body = None;
                    self.outbox.reset(self.on_body_error);
                    return Err(TunnelError::Body(Arc::from(error.into())));
                }
            }
        }
        Ok(())
    }
}

impl<B> Future for Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            self.fill(cx)?;
            let queued = self.outbox.queued_bytes();
            let has_more = queued > 0;
            let flushed = self.outbox.poll_flush(cx);
            if flushed.is_ready() || self.outbox.queued_bytes() < queued {
                self.unread = None;
            }
            match flushed {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // quinn wakes a blocked writer when the far side stops.
                Poll::Pending => {
                    ready!(self.poll_unread(cx));
                    let code = self.on_body_error;
                    self.outbox.reset(code);
                    return Poll::Ready(Err(TunnelError::Unread));
                }
                Poll::Ready(Ok(())) if self.body.is_none() => {
                    self.outbox.finish();
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) if has_more => {}
                // The body has nothing yet: learn at once if nobody wants it any more.
                Poll::Ready(Ok(())) => return self.outbox.poll_stopped(cx).map(Err),
            }
        }
    }
}

/// Read ahead of QUIC: enough for full packets and large writes.
const AHEAD_BYTES: usize = 64 * 1024;
