//! HTTP/1.1 towards an endpoint: one exchange over one connection, driven by whoever waits for it. No task of its own.
//!
//! The request's body is sent and the response is read side by side, first while the head of the response is awaited and then
//! whenever its body is polled. A response that comes before the request is sent whole is taken as it is.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use archipelago_http::h1::{self, BadResponse, BodyDecoder, Framing, Piece};
use archipelago_http::{Pooled, RequestHead, ResponseHead};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::link::Link;
use super::{push_chunk, push_last_chunk};
use crate::exchange::body::{BoxError, RequestBody};
use crate::exchange::interim::Interim;
use crate::exchange::upstream::{Endpoint, UpstreamError};
use crate::exchange::websocket;

/// What one exchange sends.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The head, without framing.
    pub head: &'a RequestHead,
    /// Lines that are added to it.
    pub block: &'a [u8],
    /// The body.
    pub body: RequestBody,
    /// It offers WebSocket, in `block`; an answer that switches says this. The body is what follows that.
    pub switch: Option<&'a str>,
}

/// Sends a request over `link` and waits for the head of the response. `reused`: another exchange came before it.
///
/// # Errors
/// See [`UpstreamError::never_processed`] for what may be sent again whatever it is.
pub async fn exchange(
    mut link: Box<Link>,
    endpoint: &Rc<Endpoint>,
    outgoing: Outgoing<'_>,
    interim: &Interim,
) -> Result<(Pooled<ResponseHead>, Answer), UpstreamError> {
    let Outgoing { head, block, body, switch } = outgoing;
    let framing = if switch.is_some() { Framing::UntilClose } else { framing(&head.method, &body) };
    let head_framing = if switch.is_some() { Framing::Empty } else { framing };
    h1::write_request(head, head_framing, block, link.out.text());
    let mut sending = Sending { upload: Upload::new(body, framing), broken: None, begun: false };
    let mut response = Pooled::<ResponseHead>::new();
    let mut progress = h1::Progress::default();
    let address = endpoint.address();
    let info = std::future::poll_fn(|cx| {
        sending.poll(&mut link, cx).map_err(|source| UpstreamError::Body { source })?;
        loop {
            if !link.read.is_empty() {
                let parsed =
                    h1::parse_response(&link.read, &h1::Limits::default(), &mut progress, &head.method, &mut response);
                match parsed {
                    Ok(Some(info)) => {
                        link.read.advance(info.used);
                        if response.status == StatusCode::SWITCHING_PROTOCOLS {
                            if switch.is_some_and(|accept| websocket::agrees(&response, accept)) {
                                websocket::switched(&mut response);
                                link.keep_alive();
                                return Poll::Ready(Ok(info));
                            }
                            let source = BadResponse::SwitchingProtocols;
                            return Poll::Ready(Err(UpstreamError::BadResponse { address, source }));
                        }
                        if !response.status.is_informational() {
                            return Poll::Ready(Ok(info));
                        }
                        interim.send(&response, cx);
                        continue;
                    }
                    Ok(None) => {}
                    Err(source) => return Poll::Ready(Err(UpstreamError::BadResponse { address, source })),
                }
            }
            let silent = link.read.is_empty();
            match ready!(link.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) => {
                    return Poll::Ready(Err(sending.broke(address, silent, io::ErrorKind::UnexpectedEof.into())));
                }
                Err(error) => return Poll::Ready(Err(sending.broke(address, silent, error))),
            }
        }
    })
    .await?;
    let broken = sending.broken.take();
    let is_switched = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let framing = if is_switched { Framing::UntilClose } else { info.framing };
    // Nothing of what would have followed is sent where nothing is switched.
    sending.upload.ended |= switch.is_some() && !is_switched;
    let persistent = info.persistent && broken.is_none() && !is_switched;
    let upload = (broken.is_none() && (!sending.upload.ended || !link.out.is_empty())).then_some(sending);
    let mut answer = Answer {
        link: Some(link),
        endpoint: Rc::clone(endpoint),
        decoder: BodyDecoder::new(framing),
        left: match framing {
            Framing::Empty => Some(0),
            Framing::Length(n) => Some(n),
            Framing::Chunked | Framing::UntilClose => None,
        },
        upload,
        persistent,
        is_switched,
        has_ended: false,
        broken,
    };
    if answer.left == Some(0) {
        answer.end();
    }
    Ok((response, answer))
}

/// How the body of a request is delimited (RFC 9112 §6): by its length where that is known.
fn framing(method: &Method, body: &RequestBody) -> Framing {
    if body.is_end_stream() {
        // RFC 9110 §8.6: a method that anticipates content says that there is none.
        let anticipates = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        return if anticipates { Framing::Length(0) } else { Framing::Empty };
    }
    body.size_hint().exact().map_or(Framing::Chunked, Framing::Length)
}

/// The request on its way.
#[derive(Debug)]
struct Sending {
    upload: Upload,
    /// Nothing more can be sent; the response may be there all the same.
    broken: Option<io::Error>,
    /// Bytes have left.
    begun: bool,
}

impl Sending {
    /// Sends what can be sent now.
    fn poll(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Result<(), BoxError> {
        if self.broken.is_some() {
            return Ok(());
        }
        let before = link.out.len();
        let sent = self.upload.poll(link, cx);
        self.begun |= link.out.len() < before || !matches!(sent, Poll::Ready(Err(_)));
        match sent {
            Poll::Ready(Err(UploadError::Link(error))) => {
                link.out.clear();
                self.broken = Some(error);
                Ok(())
            }
            Poll::Ready(Err(UploadError::Body(error))) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// The connection ended without a response. `silent`: not a byte of one.
    fn broke(&mut self, address: std::net::SocketAddr, silent: bool, error: io::Error) -> UpstreamError {
        match self.broken.take() {
            // Nothing had left when the connection turned out to be closed.
            Some(_) if silent && !self.begun => UpstreamError::NotSent { address },
            Some(source) => UpstreamError::Broken { address, source: source.into() },
            None => UpstreamError::Broken { address, source: error.into() },
        }
    }
}

/// The body of a request, on its way into a connection.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    framing: Framing,
    /// Of a body with a length.
    left: u64,
    ended: bool,
}

enum UploadError {
    Link(io::Error),
    Body(BoxError),
}

impl Upload {
    fn new(body: RequestBody, framing: Framing) -> Self {
        let left = if let Framing::Length(n) = framing { n } else { 0 };
        let ended = matches!(framing, Framing::Empty | Framing::Length(0));
        Self { body, framing, left, ended }
    }

    fn poll(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        loop {
            while !self.ended && link.out.len() < AHEAD_BYTES {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(UploadError::Body(error))),
                    Poll::Ready(Some(Ok(frame))) => self.push(link, frame)?,
                    Poll::Ready(None) => self.end(link, None)?,
                }
            }
            let before = link.out.len();
            ready!(link.poll_flush(cx)).map_err(UploadError::Link)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if before < AHEAD_BYTES {
                return Poll::Pending;
            }
        }
    }

    fn push(&mut self, link: &mut Link, frame: Frame<Bytes>) -> Result<(), UploadError> {
        match frame.into_data() {
            Ok(data) if data.is_empty() => Ok(()),
            Ok(data) => {
                match self.framing {
                    Framing::Chunked => {
                        push_chunk(data, &mut link.out);
                        return Ok(());
                    }
                    Framing::UntilClose => {
                        link.out.push(data);
                        return Ok(());
                    }
                    Framing::Length(_) | Framing::Empty => {}
                }
                self.left = self.left.checked_sub(data.len() as u64).ok_or_else(|| wrong_length("more"))?;
                link.out.push(data);
                if self.left == 0 {
                    self.ended = true;
                }
                Ok(())
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.end(link, Some(&trailers)),
                Err(_) => Ok(()),
            },
        }
    }

    fn end(&mut self, link: &mut Link, trailers: Option<&HeaderMap>) -> Result<(), UploadError> {
        if self.framing == Framing::Chunked {
            push_last_chunk(trailers, &mut link.out);
        } else if self.left > 0 {
            return Err(wrong_length("less"));
        }
        self.ended = true;
        Ok(())
    }
}

fn wrong_length(how: &str) -> UploadError {
    UploadError::Body(format!("the body has {how} bytes than its length says").into())
}

/// The body of a response, with the connection that it comes from: back in its pool at a clean end, closed at any other.
#[derive(Debug)]
pub struct Answer {
    link: Option<Box<Link>>,
    endpoint: Rc<Endpoint>,
    decoder: BodyDecoder,
    /// Of a body with a length.
    left: Option<u64>,
    upload: Option<Sending>,
    persistent: bool,
    /// To another protocol: each direction ends by itself.
    is_switched: bool,
    /// The endpoint's is over, the other is not.
    has_ended: bool,
    /// The endpoint has closed or reset the connection. The kernel says so once, and has said it to a write: the next read sees an end.
    broken: Option<io::Error>,
}

impl Answer {
    /// Nothing more is wanted of the connection.
    fn end(&mut self) {
        let Some(link) = self.link.take() else { return };
        // What the endpoint did not read of the request would be read as the next one.
        if self.persistent && self.upload.is_none() && link.read.is_empty() && link.out.is_empty() {
            self.endpoint.put_back(link);
        }
    }
}

/// What is left of the direction towards the endpoint, once the endpoint's own is over: a future that carries it to its end.
#[derive(Debug)]
pub struct Rest {
    link: Box<Link>,
    sending: Sending,
}

impl Answer {
    /// See [`Rest`]; `None` where both are over.
    pub fn take_rest(&mut self) -> Option<Rest> {
        Some(Rest { link: self.link.take().filter(|_| self.has_ended)?, sending: self.upload.take()? })
    }
}

impl Future for Rest {
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let result = this.sending.poll(&mut this.link, cx);
        if result.is_err() {
            this.link.reset();
        }
        let broken = this.sending.broken.take().map(BoxError::from);
        match result.and(broken.map_or(Ok(()), Err)) {
            Ok(()) if this.sending.upload.ended && this.link.out.is_empty() => Poll::Ready(Ok(())),
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(link) = this.link.as_mut().filter(|_| !this.has_ended) else { return Poll::Ready(None) };
        if let Some(sending) = &mut this.upload {
            // A request that cannot be sent on does not spoil a response that has begun.
            if let Err(error) = sending.poll(link, cx) {
                if this.is_switched {
                    // A break stays one.
                    link.reset();
                    this.link = None;
                    return Poll::Ready(Some(Err(error)));
                }
                // The sender broke off: the endpoint hears that, or it would wait for the rest for ever, and we for its response.
                link.out.clear();
                link.close_writing();
                (this.upload, this.persistent) = (None, false);
            } else if sending.broken.is_some() {
                this.broken = sending.broken.take();
                (this.upload, this.persistent) = (None, false);
            } else if sending.upload.ended && link.out.is_empty() {
                if this.is_switched {
                    link.close_writing();
                }
                this.upload = None;
            }
        }
        loop {
            match this.decoder.decode(&mut link.read) {
                Ok(Piece::Data(data)) => {
                    if let Some(left) = &mut this.left {
                        *left = left.saturating_sub(data.len() as u64);
                        if *left == 0 {
                            this.end();
                        }
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Piece::Trailers(trailers)) => {
                    // More of them than a map holds do not pass the decoder.
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers.to_header_map().unwrap_or_default()))));
                }
                Ok(Piece::End) => {
                    this.end();
                    return Poll::Ready(None);
                }
                Ok(Piece::More) => {}
                Err(error) => {
                    this.link = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
            let more = match ready!(link.poll_fill(cx)) {
                Ok(true) => continue,
                Ok(false) if this.is_switched && this.upload.is_some() => {
                    this.has_ended = true;
                    return Poll::Ready(None);
                }
                Ok(false) => match this.broken.take() {
                    Some(error) => Err(error.into()),
                    None => this.decoder.end_of_input().map_err(BoxError::from),
                },
                Err(error) => Err(error.into()),
            };
            this.link = None;
            return Poll::Ready(more.err().map(Err));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.link.is_none() || self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A new connection to an endpoint.
pub fn link(stream: tokio::net::TcpStream) -> Box<Link> {
    Box::new(Link::new(stream, BytesMut::new()))
}

/// Read from the sender ahead of what the endpoint takes.
const AHEAD_BYTES: usize = 64 * 1024;
