//! One stream: the request is sent while the response is waited for and read, all by the caller's own task.

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use archipelago_tunnel::codec;
use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response, header};
use http_body::{Body, Frame, SizeHint};

use super::Http2Error;
use super::link::Counted;
use crate::exchange::body::BoxError;

/// A request under way and the response to it. First its heads ([`head`](Self::head)), then it is the response's body.
/// Whenever it is polled it sends more of the request. Dropped before its end, it cancels the stream (CANCEL).
pub struct Http2Exchange<B> {
    // Dropped in this order: `h2` resets a stream once nobody holds it any more.
    upload: Option<Upload<B>>,
    response: State,
    counted: Option<Counted>,
    address: SocketAddr,
}

enum State {
    Head(ResponseFuture),
    Body { stream: RecvStream, left: Option<u64> },
    Trailers(RecvStream),
    Ended,
}

/// What is left of a request whose response has ended: a future that sends it. Dropped, it cancels the stream.
pub struct Upload<B> {
    stream: SendStream<Bytes>,
    /// Gone once it has ended.
    body: Option<B>,
    /// Of the body, not yet taken by the connection.
    chunk: Bytes,
    small: Small,
    /// They come after it.
    trailers: Option<HeaderMap>,
    counted: Option<Counted>,
}

/// Small pieces that come together go out together: a server may take a hundred small frames for an attack, and end the connection
/// with everybody's streams on it.
#[derive(Default)]
struct Small {
    /// The first is not copied: mostly it is the only one.
    first: Bytes,
    gathered: BytesMut,
}

impl Small {
    /// Takes a piece; gives what is to be sent now, or nothing.
    fn push(&mut self, data: Bytes) -> Bytes {
        if self.first.is_empty() && self.gathered.is_empty() {
            if data.len() >= SMALL_BYTES {
                return data;
            }
            self.first = data;
            return Bytes::new();
        }
        self.gathered.extend_from_slice(&std::mem::take(&mut self.first));
        self.gathered.extend_from_slice(&data);
        if self.gathered.len() >= GATHERED_BYTES { self.take() } else { Bytes::new() }
    }

    /// All there is.
    fn take(&mut self) -> Bytes {
        if self.gathered.is_empty() { std::mem::take(&mut self.first) } else { self.gathered.split().freeze() }
    }
}

impl<B> Http2Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(response: ResponseFuture, upload: Option<(SendStream<Bytes>, B)>, counted: Counted) -> Self {
        let upload = upload.map(|(stream, body)| Upload {
            stream,
            body: Some(body),
            chunk: Bytes::new(),
            small: Small::default(),
            trailers: None,
            counted: None,
        });
        let address = counted.address;
        Self { upload, response: State::Head(response), counted: Some(counted), address }
    }

    /// The next head: informational ones first, as they come.
    ///
    /// # Errors
    /// See [`Http2Error`].
    pub async fn head(&mut self) -> Result<Response<()>, Http2Error> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// As [`head`](Self::head).
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Http2Error>> {
        self.poll_upload(cx).map_err(Http2Error::Sender)?;
        let address = self.address;
        let State::Head(response) = &mut self.response else {
            return Poll::Ready(Err(Http2Error::Broken { address, source: Reason::INTERNAL_ERROR.into() }));
        };
        match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(head))) => return Poll::Ready(Ok(head)),
            // The response itself says what is wrong.
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
        }
        let response = match ready!(Pin::new(response).poll(cx)) {
            Ok(response) => response,
            Err(source) => {
                self.response = State::Ended;
                let is_bad = source.is_library() && source.is_reset();
                return Poll::Ready(Err(match is_bad {
                    true => Http2Error::BadHead { address, source },
                    false => Http2Error::Broken { address, source },
                }));
            }
        };
        let (parts, stream) = response.into_parts();
        let (bytes, max) = (section_bytes(&parts.headers), codec::Limits::default().field_section_bytes_max);
        if bytes > max {
            return Poll::Ready(Err(Http2Error::HeadTooLarge { address, bytes, max }));
        }
        let left = match stream.is_end_stream() {
            true => Some(0),
            false => content_length(&parts.headers),
        };
        self.response = State::Body { stream, left };
        Poll::Ready(Ok(Response::from_parts(parts, ())))
    }

    /// What is left of the request, once the response has ended and if there is something left. Until then, and for requests
    /// that were sent whole: nothing.
    pub fn take_upload(&mut self) -> Option<Upload<B>> {
        if !self.is_end_stream() {
            return None;
        }
        let mut upload = self.upload.take()?;
        upload.counted = self.counted.take();
        Some(upload)
    }

    /// Sends more of the request; fails if its body does.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BoxError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        match Pin::new(upload).poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(result) => {
                self.upload = None;
                result
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        loop {
            match &mut self.response {
                State::Head(_) | State::Ended => return Poll::Ready(None),
                State::Body { stream, left } => match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        // Given back when it is taken: who does not read stops the endpoint.
                        let _ = stream.flow_control().release_capacity(data.len());
                        if let Some(left) = left {
                            *left = left.saturating_sub(data.len() as u64);
                        }
                        if !data.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    // RFC 9113 §8.1: the response is complete, and the rest of the request is not needed. `h2` tells of a reset only if
                    // END_STREAM was not there before it: then a length has to say whether it is.
                    Some(Err(error)) if is_early_end(&error) && *left == Some(0) => {
                        self.response = State::Ended;
                        return Poll::Ready(None);
                    }
                    Some(Err(error)) => {
                        self.response = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => {
                        let State::Body { stream, .. } = std::mem::replace(&mut self.response, State::Ended) else {
                            return Poll::Ready(None);
                        };
                        self.response = State::Trailers(stream);
                    }
                },
                State::Trailers(stream) => {
                    let trailers = ready!(stream.poll_trailers(cx));
                    self.response = State::Ended;
                    return Poll::Ready(match trailers {
                        Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                        Err(error) => Some(Err(error)),
                    });
                }
            }
        }
    }
}

impl<B> Body for Http2Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Err(error) = this.poll_upload(cx) {
            this.response = State::Ended;
            return Poll::Ready(Some(Err(error)));
        }
        this.poll_body(cx).map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.response {
            State::Head(_) | State::Trailers(_) => false,
            State::Body { stream, .. } => stream.is_end_stream(),
            State::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.response {
            State::Body { left: Some(left), .. } => SizeHint::with_exact(*left),
            State::Ended => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

impl<B> Future for Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Only a failure of the body itself is an error: what the endpoint does to the stream shows in its response.
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if !this.chunk.is_empty() {
                this.stream.reserve_capacity(this.chunk.len());
                if this.stream.capacity() == 0 {
                    match ready!(this.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => continue,
                        // The endpoint wants no more of it.
                        Some(Err(_)) | None => return Poll::Ready(Ok(())),
                    }
                }
                let piece = this.chunk.split_to(this.stream.capacity().min(this.chunk.len()));
                let is_last = this.chunk.is_empty() && this.body.is_none() && this.trailers.is_none();
                if this.stream.send_data(piece, is_last).is_err() || is_last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if let Some(trailers) = this.trailers.take() {
                let _ = this.stream.send_trailers(trailers);
                return Poll::Ready(Ok(()));
            }
            let Some(body) = &mut this.body else {
                let _ = this.stream.send_data(Bytes::new(), true);
                return Poll::Ready(Ok(()));
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => {
                    this.chunk = this.small.take();
                    if this.chunk.is_empty() {
                        // Learn at once if nobody wants it any more.
                        return this.stream.poll_reset(cx).map(|_| Ok(()));
                    }
                }
                Poll::Ready(None) => (this.body, this.chunk) = (None, this.small.take()),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        this.chunk = this.small.push(data);
                        if this.body.as_ref().is_some_and(Body::is_end_stream) {
                            this.body = None;
                            if this.chunk.is_empty() {
                                this.chunk = this.small.take();
                            }
                        }
                    }
                    Err(frame) => {
                        this.trailers = frame.into_trailers().ok();
                        (this.body, this.chunk) = (None, this.small.take());
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    // Whatever became of its sender, the request is not wanted any more.
                    this.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

impl<B> fmt::Debug for Http2Exchange<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Exchange").field("address", &self.address).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Upload<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

fn is_early_end(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

/// The size of a field section by RFC 9113 §6.5.2, `:status` included.
fn section_bytes(headers: &HeaderMap) -> usize {
    const STATUS: usize = ":status".len() + 3 + 32;
    headers.iter().fold(STATUS, |bytes, (name, value)| bytes + name.as_str().len() + value.len() + 32)
}

/// `h2` has refused responses in which it is no number, or not one.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Below this a piece costs less to copy than to send.
const SMALL_BYTES: usize = 2 * 1024;
/// What servers take as one frame.
const GATHERED_BYTES: usize = 16 * 1024;
