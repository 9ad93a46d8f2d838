//! The receiving side of a message: its head, then a body that streams.

use crate::{
    codec::{Code, Limits, MessageDecoder, MessageEvent, ProtocolError, Scope, fields},
    conn::InFlight,
    error::TunnelError,
    stream::Inbox,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::task::JoinHandle;

/// The body of a message from a tunnel. Reading it is what lets the far side send more; dropping it before its end
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TunnelError>>> {
        let Some(reader) = &mut self.0 else { return Poll::Ready(None) };
        let event = match ready!(reader.poll_event(cx)) {
            Ok(MessageEvent::Data(data)) => {
                if reader.decoder.bytes_left() == Some(0) {
                    reader.look_for_end(cx);
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Ok(MessageEvent::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        match &event {
            Some(Err(_)) => self.0 = None,
            None => {
                reader.complete();
                self.0 = None;
            }
            Some(Ok(_)) => {}
        }
        Poll::Ready(event)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|reader| reader.decoder.is_complete())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some(reader) => reader.decoder.bytes_left().map_or_else(SizeHint::default, SizeHint::with_exact),
        }
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
    /// The task that still sends our request: it ends with us unless we end well.
    pump: Option<JoinHandle<Result<(), TunnelError>>>,
}

impl MessageReader {
    pub(crate) fn new(inbox: Inbox, limits: Limits, in_flight: Option<InFlight>) -> Self {
        Self { inbox, decoder: MessageDecoder::new(limits), limits, in_flight, failed: None, pump: None }
    }

    /// Ties a request that is still being sent to this response.
    pub(crate) fn attach_pump(&mut self, pump: JoinHandle<Result<(), TunnelError>>) {
        self.pump = Some(pump);
    }

    /// Waits for the head of a request.
    pub(crate) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request<()>, TunnelError>> {
        let section = ready!(self.poll_head(cx))?;
        Poll::Ready(self.begin_request(section, cx).map_err(|error| self.violated(error)))
    }

    /// Waits for the head of the response to a request with `method`; informational ones are passed over.
    pub(crate) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<Response<()>, TunnelError>> {
        loop {
            let section = ready!(self.poll_head(cx))?;
            match self.begin_response(section, method, cx) {
                Ok(Some(response)) => return Poll::Ready(Ok(response)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.violated(error))),
            }
        }
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

    /// The message ended well: what we still send goes on alone.
    pub(crate) fn complete(&mut self) {
        self.pump = None;
        self.in_flight = None;
    }

    /// Bytes that have arrived and are not consumed.
    pub(crate) fn buffered(&self) -> usize {
        self.decoder.buffered()
    }

    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    fn begin_request(&mut self, section: Bytes, cx: &mut Context<'_>) -> Result<Request<()>, ProtocolError> {
        let request = fields::decode_request(section, self.limits)?;
        if request.method() == Method::CONNECT {
            self.decoder.expect_tunnel();
        } else {
            self.decoder.expect_body(fields::content_length(request.headers())?);
            self.look_for_end(cx);
        }
        Ok(request)
    }

    fn begin_response(
        &mut self,
        section: Bytes,
        method: &Method,
        cx: &mut Context<'_>,
    ) -> Result<Option<Response<()>>, ProtocolError> {
        let response = fields::decode_response(section, self.limits)?;
        let status = response.status();
        if status.is_informational() {
            self.decoder.expect_head();
            return Ok(None);
        }
        if method == Method::CONNECT && status.is_success() {
            self.decoder.expect_tunnel();
            return Ok(Some(response));
        }
        // RFC 9110 §8.6: these carry the length of a body that is not sent.
        let is_bodyless = method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        let length = if is_bodyless { Some(0) } else { fields::content_length(response.headers())? };
        self.decoder.expect_body(length);
        self.look_for_end(cx);
        Ok(Some(response))
    }

    /// The end mostly arrives with the head: knowing it spares the next hop a chunked empty body.
    fn look_for_end(&mut self, cx: &mut Context<'_>) {
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
        if read.is_pending()
            && let Some(pump) = &mut self.pump
            && let Poll::Ready(sent) = Pin::new(pump).poll(cx)
        {
            self.pump = None;
            // Only a failure of the body itself is news: a stopped stream or a lost connection shows here anyway.
            if let Ok(Err(error @ TunnelError::Body(_))) = sent {
                return Poll::Ready(Err(error));
            }
        }
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
        } else if let Some(pump) = &self.pump {
            pump.abort(); // its stream is reset with it
        }
    }
}
