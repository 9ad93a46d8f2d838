//! Carries a body into a stream, as fast as flow control lets it and no faster.

use crate::{codec::Code, error::TunnelError, stream::Outbox};
use bytes::Bytes;
use http_body::Body;
use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// A future that sends what is queued, then the body with its trailers, then FIN.
///
/// Holds at most [`AHEAD_BYTES`] and one frame of the body beyond what QUIC has taken. Fails when the body fails (the
/// stream is then reset) and when the far side stops reading.
pub(crate) struct Pump<B> {
    outbox: Outbox,
    /// Gone once it has ended.
    body: Option<B>,
    on_body_error: Code,
}

impl<B> Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(crate) fn new(outbox: Outbox, body: B, on_body_error: Code) -> Self {
        let body = (!body.is_end_stream()).then_some(body);
        Self { outbox, body, on_body_error }
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
                            self.outbox.push_trailers(&trailers);
                            self.body = None;
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
            let has_more = self.outbox.queued_bytes() > 0;
            match self.outbox.poll_flush(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // quinn wakes a blocked writer when the far side stops.
                Poll::Pending => return Poll::Pending,
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
