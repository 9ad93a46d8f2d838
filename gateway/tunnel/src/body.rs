//! The receiving side of a message: its head, then a body that streams.

use crate::{
    codec::{Code, Limits, MessageDecoder, MessageEvent, ProtocolError, Scope, fields},
    conn::InFlight,
    error::TunnelError,
    exchange,
    stream::Inbox,
};
use archipelago_http::{Pooled, RequestHead, ResponseHead};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The body of a request from a tunnel. Reading it is what lets the far side send more; dropping it before its end
/// cancels the rest.
pub struct TunnelBody(Option<MessageReader>);

impl TunnelBody {
    pub(crate) fn new(reader: MessageReader) -> Self {
        Self(Some(reader))
    }

    pub(crate) fn empty() -> Self {
        Self(None)
    }
}

impl Body for TunnelBody {
    type Data = Bytes;
    type Error = TunnelError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TunnelError>>> {
        exchange::poll_frame(&mut self.get_mut().0, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(MessageReader::is_complete)
    }

    fn size_hint(&self) -> SizeHint {
        exchange::size_hint(self.0.as_ref())
    }
}

impl fmt::Debug for TunnelBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelBody").field("is_open", &self.0.is_some()).finish()
    }
}

/// Reads one message off a stream.
pub(crate) struct MessageReader {
    inbox: Inbox,
    decoder: MessageDecoder,
    limits: Limits,
    in_flight: Option<InFlight>,
    /// Why nothing more will be read.
    failed: Option<TunnelError>,
}

impl MessageReader {
    pub(crate) fn new(inbox: Inbox, limits: Limits, in_flight: Option<InFlight>) -> Self {
        Self { inbox, decoder: MessageDecoder::new(limits), limits, in_flight, failed: None }
    }

    /// Waits for the head of a request.
    pub(crate) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pooled<RequestHead>, TunnelError>> {
        let section = ready!(self.poll_head(cx))?;
        Poll::Ready(self.begin_request(&section, cx).map_err(|error| self.violated(error)))
    }

    /// Waits for the next head of the response to a request with `method`; after an informational one another follows.
    pub(crate) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<Pooled<ResponseHead>, TunnelError>> {
        let section = ready!(self.poll_head(cx))?;
        Poll::Ready(self.begin_response(&section, method, cx).map_err(|error| self.violated(error)))
    }

    /// The next piece of the body; [`MessageEvent::End`] at a clean end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<MessageEvent, TunnelError>> {
        loop {
            if let Some(error @ TunnelError::Protocol(_)) = &self.failed {
                return Poll::Ready(Err(error.clone()));
            }
            match self.decoder.next_event() {
                Ok(MessageEvent::NeedMore) => ready!(self.poll_fill(cx))?,
                Ok(event) => return Poll::Ready(Ok(event)),
                Err(error) => return Poll::Ready(Err(self.violated(error))),
            }
        }
    }

    /// The message ended well.
    pub(crate) fn complete(&mut self) {
        self.in_flight = None;
    }

    /// True once nothing more can come of it.
    pub(crate) fn is_complete(&self) -> bool {
        self.decoder.is_complete()
    }

    /// Bytes that are still to come, where that is known.
    pub(crate) fn bytes_left(&self) -> Option<u64> {
        self.decoder.bytes_left()
    }

    /// Bytes that have arrived and are not consumed.
    pub(crate) fn buffered(&self) -> usize {
        self.decoder.buffered()
    }

    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    fn begin_request(&mut self, section: &[u8], cx: &mut Context<'_>) -> Result<Pooled<RequestHead>, ProtocolError> {
        let head = fields::decode_request(section, self.limits)?;
        if head.method == Method::CONNECT {
            self.decoder.expect_tunnel();
        } else {
            self.decoder.expect_body(fields::content_length(&head.fields)?);
            self.look_for_end(cx);
        }
        Ok(head)
    }

    fn begin_response(
        &mut self,
        section: &[u8],
        method: &Method,
        cx: &mut Context<'_>,
    ) -> Result<Pooled<ResponseHead>, ProtocolError> {
        let head = fields::decode_response(section, self.limits)?;
        if head.status.is_informational() {
            self.decoder.expect_head();
            return Ok(head);
        }
        if method == Method::CONNECT && head.status.is_success() {
            self.decoder.expect_tunnel();
            if let Some(in_flight) = &mut self.in_flight {
                in_flight.become_tunnel();
            }
            return Ok(head);
        }
        // RFC 9110 §8.6: these carry the length of a body that is not sent.
        let is_bodyless = method == Method::HEAD || head.status == StatusCode::NOT_MODIFIED;
        let length = if is_bodyless { Some(0) } else { fields::content_length(&head.fields)? };
        self.decoder.expect_body(length);
        self.look_for_end(cx);
        Ok(head)
    }

    /// The end mostly arrives with the head: knowing it spares the next hop a chunked empty body.
    pub(crate) fn look_for_end(&mut self, cx: &mut Context<'_>) {
        if !self.decoder.is_complete() {
            let decoder = &mut self.decoder;
            match self.inbox.poll_read(cx, |chunk| decoder.push(chunk)) {
                Poll::Ready(Ok(false)) => self.decoder.finish(),
                // quinn reports an error once, and a clean end after it: keep it for the next read.
                Poll::Ready(Err(error)) => self.failed = Some(error),
                Poll::Ready(Ok(true)) | Poll::Pending => {}
            }
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, TunnelError>> {
        match ready!(self.poll_event(cx))? {
            MessageEvent::Head(section) => Poll::Ready(Ok(section)),
            // The decoder gives nothing else before a head.
            _ => Poll::Ready(Err(TunnelError::Closed)),
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        let decoder = &mut self.decoder;
        let read = self.inbox.poll_read(cx, |chunk| decoder.push(chunk));
        match ready!(read) {
            Ok(true) => {}
            Ok(false) => self.decoder.finish(),
            Err(error) => {
                self.failed = Some(error.clone());
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn violated(&mut self, error: ProtocolError) -> TunnelError {
        tracing::debug!(%error, peer = %self.inbox.conn().peer().spiffe_id, "protocol violation on a request stream");
        match error.scope {
            Scope::Connection => self.inbox.conn().close(error.code, error.what),
            Scope::Stream => self.inbox.stop(error.code),
        }
        self.failed = Some(TunnelError::Protocol(error));
        TunnelError::Protocol(error)
    }
}

impl Drop for MessageReader {
    fn drop(&mut self) {
        // HTTP/1.1 writers stop reading once content-length is reached: that is an end, not a cancellation.
        if self.decoder.is_complete() || self.decoder.bytes_left() == Some(0) {
            self.inbox.stop(Code::NO_ERROR);
        }
    }
}
