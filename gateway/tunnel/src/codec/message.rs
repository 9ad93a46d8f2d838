//! One request stream: HEADERS, DATA, trailers, in that order and nothing else (RFC 9114 §4.1).

use super::{Code, Frame, FrameDecoder, Limits, ProtocolError, StreamRole, fields};
use bytes::Bytes;
use http::HeaderMap;

/// Reads one message off a request stream.
///
/// Feed it with [`push`](Self::push) and [`finish`](Self::finish), drain [`next_event`](Self::next_event). After
/// [`MessageEvent::Head`] the caller decodes the section and says what follows by
/// [`expect_body`](Self::expect_body) or, after an informational response, [`expect_head`](Self::expect_head).
#[derive(Debug)]
pub struct MessageDecoder {
    frames: FrameDecoder,
    state: State,
    finished: bool,
    limits: Limits,
}

impl MessageDecoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self { frames: FrameDecoder::new(StreamRole::Request, limits), state: State::Head, finished: false, limits }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        self.frames.push(chunk);
    }

    /// Bytes given to it that have not come out yet.
    pub fn buffered(&self) -> usize {
        self.frames.buffered()
    }

    /// The stream ended (FIN).
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Another head follows (1xx responses).
    pub fn expect_head(&mut self) {
        self.state = State::Head;
    }

    /// A body follows, of `content_length` bytes where that was declared and applies.
    pub fn expect_body(&mut self, content_length: Option<u64>) {
        self.state = State::Body { left: content_length };
    }

    /// The data of a CONNECT tunnel follows: DATA only, no trailers (RFC 9114 §4.4).
    pub fn expect_tunnel(&mut self) {
        self.state = State::Tunnel;
    }

    /// Bytes that are still to come by the declared content-length.
    pub fn bytes_left(&self) -> Option<u64> {
        match self.state {
            State::Body { left } => left,
            _ => None,
        }
    }

    /// True once the message is complete and nothing more can come of it.
    pub fn is_complete(&self) -> bool {
        self.finished
            && self.frames.is_at_boundary()
            && matches!(self.state, State::Body { left: None | Some(0) } | State::Trailed | State::Tunnel | State::End)
    }

    /// The next event.
    ///
    /// # Errors
    /// Frames out of order, an end inside the message, a body that is not as long as declared.
    pub fn next_event(&mut self) -> Result<MessageEvent, ProtocolError> {
        let Some(frame) = self.frames.next_frame()? else { return self.starved() };
        match (&mut self.state, frame) {
            (State::Head, Frame::Headers(section)) => {
                self.state = State::HeadGiven;
                Ok(MessageEvent::Head(section))
            }
            (State::Body { left }, Frame::Data(piece)) => {
                if let Some(left) = left {
                    *left = left
                        .checked_sub(piece.len() as u64)
                        .ok_or(ProtocolError::stream(Code::MESSAGE_ERROR, "body longer than its content-length"))?;
                }
                Ok(MessageEvent::Data(piece))
            }
            (State::Tunnel, Frame::Data(piece)) => Ok(MessageEvent::Data(piece)),
            (State::Body { left }, Frame::Headers(section)) => {
                if left.is_some_and(|left| left > 0) {
                    return Err(SHORT_BODY);
                }
                self.state = State::Trailed;
                fields::decode_trailers(&section, self.limits).map(MessageEvent::Trailers)
            }
            (State::Head, Frame::Data(_)) => {
                Err(ProtocolError::connection(Code::FRAME_UNEXPECTED, "DATA before HEADERS"))
            }
            _ => Err(ProtocolError::connection(Code::FRAME_UNEXPECTED, "frame after the end of the message")),
        }
    }

    /// What it means that no further frame is there.
    fn starved(&mut self) -> Result<MessageEvent, ProtocolError> {
        if !self.finished {
            return Ok(MessageEvent::NeedMore);
        }
        if !self.frames.is_at_boundary() {
            return Err(ProtocolError::connection(Code::FRAME_ERROR, "stream ended inside a frame"));
        }
        match self.state {
            State::Head | State::HeadGiven => {
                Err(ProtocolError::stream(Code::REQUEST_INCOMPLETE, "stream ended before its message"))
            }
            State::Body { left: Some(1..) } => Err(SHORT_BODY),
            State::Body { .. } | State::Trailed | State::Tunnel | State::End => {
                self.state = State::End;
                Ok(MessageEvent::End)
            }
        }
    }
}

/// What a message consists of.
#[derive(Debug, Clone, PartialEq)]
pub enum MessageEvent {
    /// Nothing until more bytes arrive.
    NeedMore,
    /// The encoded field section of a request or response.
    Head(Bytes),
    /// A piece of the body.
    Data(Bytes),
    /// The trailers; only [`MessageEvent::End`] follows.
    Trailers(HeaderMap),
    /// A complete message.
    End,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    /// The head is with the caller, who has not yet said what follows.
    HeadGiven,
    Body {
        left: Option<u64>,
    },
    Tunnel,
    Trailed,
    End,
}

const SHORT_BODY: ProtocolError = ProtocolError::stream(Code::MESSAGE_ERROR, "body shorter than its content-length");
