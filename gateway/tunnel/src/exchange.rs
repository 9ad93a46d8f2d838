//! A request under way and the response to it, driven by the caller's own task.

use crate::{body::MessageReader, codec::MessageEvent, error::TunnelError, pump::Pump};
use archipelago_http::{Pooled, ResponseHead};
use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A request that is being sent and the response to it. First its heads ([`head`](Self::head)), then it is the response's body.
///
/// Whenever it is polled it sends more of the request, as fast as the far side reads it: no task, no allocation, and nothing that
/// must be `Send`. Reading it is what lets the far side send more; dropping it before its end cancels the request there.
pub struct Exchange<B> {
    reader: Option<MessageReader>,
    upload: Option<Pump<B>>,
    method: Method,
}

impl<B> Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(crate) fn new(reader: MessageReader, upload: Pump<B>, method: Method) -> Self {
        Self { reader: Some(reader), upload: Some(upload), method }
    }

    /// The next head: informational ones first, as they come.
    ///
    /// # Errors
    /// As [`crate::Opening::request`]; after a head that is not informational [`TunnelError::Closed`].
    pub async fn head(&mut self) -> Result<Pooled<ResponseHead>, TunnelError> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// As [`head`](Self::head).
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pooled<ResponseHead>, TunnelError>> {
        self.poll_upload(cx)?;
        let Some(reader) = &mut self.reader else { return Poll::Ready(Err(TunnelError::Closed)) };
        reader.poll_response(cx, &self.method)
    }

    /// What is left of the request once the response has ended, if there is something left: to be awaited by whoever wants it to
    /// arrive all the same, or dropped, which cancels it.
    pub fn take_upload(&mut self) -> Option<Upload<B>> {
        if !self.is_end_stream() {
            return None;
        }
        self.upload.take().map(Upload)
    }

    /// Sends more of the request. Only a failure of the body itself is an error: a stopped stream or a lost connection shows in
    /// the response anyway.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), TunnelError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let Poll::Ready(sent) = Pin::new(upload).poll(cx) else { return Ok(()) };
        self.upload = None;
        match sent {
            Err(error @ TunnelError::Body(_)) => {
                self.reader = None;
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

impl<B> Body for Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = TunnelError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TunnelError>>> {
        let this = self.get_mut();
        if let Err(error) = this.poll_upload(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        poll_frame(&mut this.reader, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(MessageReader::is_complete)
    }

    fn size_hint(&self) -> SizeHint {
        size_hint(self.reader.as_ref())
    }
}

impl<B> fmt::Debug for Exchange<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("is_open", &self.reader.is_some()).finish_non_exhaustive()
    }
}

/// What is left of a request whose response has ended; a future that sends it.
pub struct Upload<B>(Pump<B>);

impl<B> Future for Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Result<(), TunnelError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0).poll(cx)
    }
}

impl<B> fmt::Debug for Upload<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

/// The next frame of a body; its reader is gone once it has ended.
pub(crate) fn poll_frame(
    body: &mut Option<MessageReader>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, TunnelError>>> {
    let Some(reader) = body else { return Poll::Ready(None) };
    let event = match ready!(reader.poll_event(cx)) {
        Ok(MessageEvent::Data(data)) => {
            if reader.bytes_left() == Some(0) {
                reader.look_for_end(cx);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Ok(MessageEvent::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    match &event {
        Some(Err(_)) | None => *body = None,
        Some(Ok(_)) => {}
    }
    Poll::Ready(event)
}

pub(crate) fn size_hint(body: Option<&MessageReader>) -> SizeHint {
    match body {
        None => SizeHint::with_exact(0),
        Some(reader) => reader.bytes_left().map_or_else(SizeHint::default, SizeHint::with_exact),
    }
}
