//! Frames of request and control streams (RFC 9114 §7).

use super::{Code, Limits, ProtocolError, varint};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Cuts the chunks of one stream into frames, without copying what DATA frames carry.
///
/// Chunks go in by [`push`](Self::push), frames come out by [`next_frame`](Self::next_frame) until it
/// returns `None`. Holds at most one field section (bounded by [`Limits`]) beyond the chunks given to it.
#[derive(Debug)]
pub struct FrameDecoder {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    buffered: usize,
    state: State,
    role: StreamRole,
    block_bytes_max: u64,
}

impl FrameDecoder {
    /// A decoder for a stream of the given role.
    pub fn new(role: StreamRole, limits: Limits) -> Self {
        let block_bytes_max = match role {
            StreamRole::Request => limits.field_section_bytes_max as u64,
            // SETTINGS of every implementation known is under 100 bytes.
            StreamRole::Control => 4096,
        };
        Self { chunks: VecDeque::new(), buffered: 0, state: State::Header, role, block_bytes_max }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.buffered += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Bytes given to it that have not come out yet.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// True between two frames with nothing unread: the only place where a stream may end.
    pub fn is_at_boundary(&self) -> bool {
        self.buffered == 0 && matches!(self.state, State::Header)
    }

    /// The next frame, or `None` when more bytes are needed. A DATA frame comes in as many pieces as it
    /// arrived in; unknown frame types are skipped (RFC 9114 §9).
    ///
    /// # Errors
    /// Frames of other roles, reserved HTTP/2 types, wrong sizes.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        loop {
            match self.state {
                State::Header => {
                    let Some((kind, length)) = self.take_header() else { return Ok(None) };
                    self.state = self.admit(kind, length)?;
                }
                State::Data { left } => {
                    if left == 0 {
                        self.state = State::Header;
                        continue;
                    }
                    let Some(piece) = self.take_front(left) else { return Ok(None) };
                    self.state = State::Data { left: left - piece.len() as u64 };
                    return Ok(Some(Frame::Data(piece)));
                }
                State::Skip { left } => {
                    if left == 0 {
                        self.state = State::Header;
                        continue;
                    }
                    let Some(piece) = self.take_front(left) else { return Ok(None) };
                    self.state = State::Skip { left: left - piece.len() as u64 };
                }
                State::Block { kind, length } => {
                    if self.buffered < length {
                        return Ok(None);
                    }
                    let payload = self.take(length);
                    self.state = State::Header;
                    return match kind {
                        Block::Headers => Ok(Some(Frame::Headers(payload))),
                        Block::Settings => Ok(Some(Frame::Settings(payload))),
                        Block::GoAway => Ok(Some(Frame::GoAway(only_varint(&payload)?))),
                        Block::PushLimit => {
                            only_varint(&payload)?;
                            continue; // we never push: nothing to remember
                        }
                    };
                }
            }
        }
    }

    /// What to do with a frame of this type and length on this kind of stream.
    fn admit(&self, kind: u64, length: u64) -> Result<State, ProtocolError> {
        use StreamRole::{Control, Request};
        let block = match (kind, self.role) {
            (0x00, Request) => return Ok(State::Data { left: length }),
            (0x01, Request) => Block::Headers,
            (0x04, Control) => Block::Settings,
            (0x07, Control) => Block::GoAway,
            (0x03 | 0x0d, Control) => Block::PushLimit,
            // HTTP/2's PRIORITY, PING, WINDOW_UPDATE, CONTINUATION (RFC 9114 §7.2.8).
            (0x02 | 0x06 | 0x08 | 0x09, _) => {
                return Err(ProtocolError::connection(Code::FRAME_UNEXPECTED, "reserved HTTP/2 frame type"));
            }
            (0x00 | 0x01 | 0x03 | 0x04 | 0x05 | 0x07 | 0x0d, _) => {
                return Err(ProtocolError::connection(Code::FRAME_UNEXPECTED, "frame on the wrong kind of stream"));
            }
            _ => return Ok(State::Skip { left: length }),
        };
        if length > self.block_bytes_max {
            return Err(match block {
                Block::Headers => ProtocolError::stream(Code::EXCESSIVE_LOAD, "field section too large"),
                _ => ProtocolError::connection(Code::EXCESSIVE_LOAD, "control frame too large"),
            });
        }
        Ok(State::Block { kind: block, length: length as usize })
    }

    /// Type and length of the next frame, once both have arrived.
    fn take_header(&mut self) -> Option<(u64, u64)> {
        let mut head = [0u8; 16];
        let mut filled = 0;
        for chunk in &self.chunks {
            for (to, from) in head.iter_mut().skip(filled).zip(chunk.iter()) {
                *to = *from;
                filled += 1;
            }
            if filled == head.len() {
                break;
            }
        }
        let head = head.get(..filled)?;
        let (kind, kind_bytes) = varint::decode(head)?;
        let (length, length_bytes) = varint::decode(head.get(kind_bytes..)?)?;
        self.discard(kind_bytes + length_bytes);
        Some((kind, length))
    }

    fn discard(&mut self, mut count: usize) {
        self.buffered -= count;
        while count > 0 {
            let Some(front) = self.chunks.front_mut() else { return };
            let step = count.min(front.len());
            front.advance(step);
            count -= step;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// At most `limit` bytes of what has arrived, as they arrived.
    fn take_front(&mut self, limit: u64) -> Option<Bytes> {
        let front = self.chunks.front_mut()?;
        let count = usize::try_from(limit).unwrap_or(usize::MAX).min(front.len());
        let piece = front.split_to(count);
        if front.is_empty() {
            self.chunks.pop_front();
        }
        self.buffered -= count;
        Some(piece)
    }

    /// Exactly `count` bytes, as they arrived where they arrived together.
    fn take(&mut self, count: usize) -> Bytes {
        if self.chunks.front().is_some_and(|front| front.len() >= count) {
            return self.take_front(count as u64).unwrap_or_default();
        }
        let mut out = BytesMut::with_capacity(count);
        while out.len() < count {
            let Some(piece) = self.take_front((count - out.len()) as u64) else { break };
            out.extend_from_slice(&piece);
        }
        out.freeze()
    }
}

/// Which frames a stream may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamRole {
    /// A bidirectional request stream: HEADERS and DATA.
    Request,
    /// The control stream: SETTINGS, GOAWAY, MAX_PUSH_ID, CANCEL_PUSH.
    Control,
}

/// A frame, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Some of the payload of a DATA frame; never empty.
    Data(Bytes),
    /// An encoded field section. Maybe a slice of a receive buffer of tens of kilobytes, and not to be kept.
    Headers(Bytes),
    /// The payload of SETTINGS.
    Settings(Bytes),
    /// The id in GOAWAY.
    GoAway(u64),
}

/// Writes the header of a DATA frame with `length` bytes of payload.
pub fn data_header(length: usize, out: &mut BytesMut) {
    out.put_u8(0x00);
    varint::encode(length as u64, out);
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Data { left: u64 },
    Skip { left: u64 },
    Block { kind: Block, length: usize },
}

/// Frames that are needed whole.
#[derive(Debug, Clone, Copy)]
enum Block {
    Headers,
    Settings,
    GoAway,
    PushLimit,
}

fn only_varint(payload: &[u8]) -> Result<u64, ProtocolError> {
    match varint::decode(payload) {
        Some((value, length)) if length == payload.len() => Ok(value),
        _ => Err(ProtocolError::connection(Code::FRAME_ERROR, "frame payload is not one integer")),
    }
}
