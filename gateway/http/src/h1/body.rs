//! Bodies (RFC 9112 §6, §7), handed out without a copy.

use bytes::{Buf as _, Bytes, BytesMut};

use super::lexer::{Fault, Line, Reading};
use super::{Framing, Limits};
use crate::fields::Fields;
use crate::name::Known;
use crate::text;

/// Reads one body off the start of a buffer.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    limits: Limits,
    /// Bytes of chunk heads beyond their digits that are still allowed.
    extensions_left: u64,
    trailers: Fields,
    trailer_bytes: usize,
    trailer_lines: usize,
    /// How much of an unfinished line was searched for its end.
    searched: usize,
}

/// What a body consists of.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the content, at least one.
    Data(Bytes),
    /// The trailers, when there are any that may be; then [`Piece::End`].
    Trailers(Fields),
    /// The body is whole. What is left in the buffer is not of it.
    End,
    /// Nothing until more bytes arrive.
    More,
}

/// Why a body cannot be read on. Its connection is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum BadBody {
    /// RFC 9112 §7.1.
    #[error("a chunk does not begin with its size in at most 15 hexadecimal digits")]
    ChunkSize,
    /// RFC 9112 §7.1.
    #[error("the head of a chunk does not end with CR LF")]
    ChunkLine,
    /// RFC 9112 §7.1.1.
    #[error("chunk extensions are longer than what they extend")]
    ChunkExtensions,
    /// RFC 9112 §7.1.
    #[error("a chunk is not followed by CR LF")]
    ChunkEnd,
    /// RFC 9112 §7.1.2.
    #[error("a line of the trailers is not a name, a colon right after it, and a value")]
    Trailer,
    /// RFC 9112 §7.1.2.
    #[error("the trailers are larger than is taken here (64 KiB, 256 fields)")]
    TrailersTooLarge,
}

impl BadBody {
    /// Bounded label for metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ChunkSize => "chunk_size",
            Self::ChunkLine => "chunk_line",
            Self::ChunkExtensions => "chunk_extensions",
            Self::ChunkEnd => "chunk_end",
            Self::Trailer => "trailer",
            Self::TrailersTooLarge => "trailers_too_large",
        }
    }
}

/// The connection ended inside of a body: what came of it must not pass for the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection ended before the body did")]
pub struct Truncated;

impl BodyDecoder {
    /// At the start of a body.
    pub fn new(framing: Framing) -> Self {
        Self::with_limits(framing, &Limits::default())
    }

    /// With other limits for trailers.
    pub fn with_limits(framing: Framing, limits: &Limits) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::End,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::ChunkHead,
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            limits: *limits,
            extensions_left: EXTENSION_BYTES,
            trailers: Fields::new(),
            trailer_bytes: 0,
            trailer_lines: 0,
            searched: 0,
        }
    }

    /// True once [`Piece::End`] was or will be the next answer.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Bytes that are still to come by a declared length, or of the chunk that has begun: room worth having in the buffer.
    pub fn bytes_expected(&self) -> Option<u64> {
        match self.state {
            State::Length { left } | State::ChunkData { left } => Some(left),
            _ => None,
        }
    }

    /// Takes the next piece off the buffer. Call it until [`Piece::More`] or [`Piece::End`].
    ///
    /// # Errors
    /// Chunks that are none.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Piece, BadBody> {
        loop {
            match &mut self.state {
                State::End => return Ok(Piece::End),
                State::UntilClose if buf.is_empty() => return Ok(Piece::More),
                State::UntilClose => return Ok(Piece::Data(buf.split().freeze())),
                State::Length { left } => {
                    let Some(piece) = take(left, buf) else { return Ok(Piece::More) };
                    if *left == 0 {
                        self.state = State::End;
                    }
                    return Ok(Piece::Data(piece));
                }
                State::ChunkData { left } => {
                    if let Some(piece) = gather(*left, &mut self.extensions_left, buf) {
                        self.state = State::ChunkEnd;
                        return Ok(Piece::Data(piece));
                    }
                    let Some(piece) = take(left, buf) else { return Ok(Piece::More) };
                    if *left == 0 {
                        self.state = State::ChunkEnd;
                    }
                    replenish(&mut self.extensions_left, piece.len() as u64);
                    return Ok(Piece::Data(piece));
                }
                State::ChunkEnd => match buf.as_ref() {
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.state = State::ChunkHead;
                    }
                    [] | [b'\r'] => return Ok(Piece::More),
                    _ => return Err(BadBody::ChunkEnd),
                },
                State::ChunkHead => {
                    if !self.chunk_head(buf)? {
                        return Ok(Piece::More);
                    }
                }
                State::Trailers => {
                    let Some(more) = self.trailer(buf)? else { return Ok(Piece::More) };
                    if !more {
                        self.state = State::End;
                        if !self.trailers.is_empty() {
                            return Ok(Piece::Trailers(std::mem::take(&mut self.trailers)));
                        }
                    }
                }
            }
        }
    }

    /// The connection ended: was that the end of the body?
    ///
    /// # Errors
    /// It was not.
    pub fn end_of_input(&mut self) -> Result<(), Truncated> {
        match self.state {
            State::End => Ok(()),
            State::UntilClose => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(Truncated),
        }
    }

    /// `size [ extensions ] CR LF` (RFC 9112 §7.1); false when it is not whole.
    fn chunk_head(&mut self, buf: &mut BytesMut) -> Result<bool, BadBody> {
        let Some(end) = self.end_of_line(buf) else {
            // What cannot become a chunk head is said at once, and what never ends is not waited for.
            let line = match buf.as_ref() {
                [line @ .., b'\r'] => line,
                line => line,
            };
            check_chunk_head(line, self.extensions_left)?;
            return Ok(false);
        };
        let text = buf.get(..end).unwrap_or_default();
        let line = text.strip_suffix(b"\r");
        // What is before the line's end is judged first, as it is when the end has not come yet.
        let (size, extension) = check_chunk_head(line.unwrap_or(text), self.extensions_left)?;
        let size = line.and(size).ok_or(if line.is_some() { BadBody::ChunkSize } else { BadBody::ChunkLine })?;
        self.extensions_left -= extension;
        buf.advance(end + 1);
        self.state = if size == 0 { State::Trailers } else { State::ChunkData { left: size } };
        Ok(true)
    }

    /// One line of trailers: `Some(false)` was the empty one that ends them, `None` is not whole.
    fn trailer(&mut self, buf: &mut BytesMut) -> Result<Option<bool>, BadBody> {
        let end = self.end_of_line(buf);
        let size = end.map_or(buf.len(), |end| end + 1);
        if self.trailer_bytes + size > self.limits.head_bytes {
            return Err(BadBody::TrailersTooLarge);
        }
        let Some(end) = end else { return Ok(None) };
        self.trailer_bytes += size;
        let text = buf.get(..end).unwrap_or_default().strip_suffix(b"\r").ok_or(BadBody::Trailer)?;
        if text.is_empty() {
            buf.advance(size);
            return Ok(Some(false));
        }
        self.trailer_lines += 1;
        if self.trailer_lines > self.limits.fields {
            return Err(BadBody::TrailersTooLarge);
        }
        let read = Line { text, start: 0, crlf: true, controls: true }.read(0, Reading::Strict);
        let read = read.map_err(|fault| match fault {
            Fault::Folded | Fault::Name | Fault::Value => BadBody::Trailer,
            Fault::TooMany => BadBody::TrailersTooLarge,
        })?;
        if !read.field.is_mesh() && read.known.is_none_or(Known::may_trail) {
            let name = text.get(..usize::from(read.field.name_len)).unwrap_or_default();
            self.trailers.push_named(name, read.value).map_err(|_| BadBody::Trailer)?;
        }
        buf.advance(size);
        Ok(Some(true))
    }

    /// Where the LF of the first line is. Bytes are searched once.
    fn end_of_line(&mut self, buf: &BytesMut) -> Option<usize> {
        let rest = buf.get(self.searched..).unwrap_or_default();
        let Some(feed) = memchr::memchr(b'\n', rest) else {
            self.searched = buf.len();
            return None;
        };
        let end = self.searched + feed;
        self.searched = 0;
        Some(end)
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Length {
        left: u64,
    },
    UntilClose,
    /// At the size of a chunk.
    ChunkHead,
    ChunkData {
        left: u64,
    },
    /// At the CR LF behind a chunk.
    ChunkEnd,
    /// At a line behind the last chunk.
    Trailers,
    End,
}

/// As much of `left` as is there.
fn take(left: &mut u64, buf: &mut BytesMut) -> Option<Bytes> {
    if buf.is_empty() {
        return None;
    }
    let available = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= available as u64;
    Some(buf.split_to(available).freeze())
}

/// The whole chunk whose data begins the buffer, if it is small, and all small ones behind it that are whole: moved together in place, so that
/// bytes that were sent one by one do not cost a piece, an allocation and a chunk of ours each. Stops before whatever is not in order.
fn gather(first: u64, extensions_left: &mut u64, buf: &mut BytesMut) -> Option<Bytes> {
    let small = |size: u64| usize::try_from(size).ok().filter(|size| *size <= GATHERED_CHUNK_BYTES_MAX);
    let mut written = small(first).filter(|size| *size <= buf.len())?;
    let mut read = written;
    replenish(extensions_left, first);
    while let Some(rest) = buf.get(read..).and_then(|rest| rest.strip_prefix(b"\r\n")) {
        let head = rest.get(..GATHERED_HEAD_BYTES_MAX.min(rest.len())).unwrap_or_default();
        let Some(line) = memchr::memchr(b'\n', head).and_then(|feed| rest.get(..feed)?.strip_suffix(b"\r")) else {
            break;
        };
        let Ok((Some(size @ 1..), extension)) = check_chunk_head(line, *extensions_left) else { break };
        let from = read + 2 + line.len() + 2;
        let Some(length) = small(size).filter(|length| from + length <= buf.len()) else { break };
        buf.copy_within(from..from + length, written);
        (written, read) = (written + length, from + length);
        *extensions_left -= extension;
        replenish(extensions_left, size);
    }
    let piece = buf.split_to(written).freeze();
    buf.advance(read - written);
    Some(piece)
}

/// Data gives room for extensions.
fn replenish(extensions_left: &mut u64, data: u64) {
    *extensions_left = (*extensions_left + data).min(EXTENSION_BYTES);
}

/// The size, once there is a digit, and how many bytes are not its digits.
fn check_chunk_head(line: &[u8], extensions_left: u64) -> Result<(Option<u64>, u64), BadBody> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extension) = line.split_at_checked(digits).ok_or(BadBody::ChunkSize)?;
    // 15 digits are below 2^60: no 64-bit parser reads another number.
    if size.len() > 15 || size.is_empty() && !extension.is_empty() {
        return Err(BadBody::ChunkSize);
    }
    // RFC 9112 §7.1.1: white space, then `;` and whatever the sender means by it. White space alone was written by some as padding.
    let begins = extension.iter().find(|byte| !matches!(byte, b' ' | b'\t'));
    if begins.is_some_and(|byte| *byte != b';') {
        return Err(if begins == Some(&b'\r') { BadBody::ChunkLine } else { BadBody::ChunkSize });
    }
    if !text::is_value(extension) {
        return Err(BadBody::ChunkLine);
    }
    if extension.len() > CHUNK_EXTENSION_BYTES_MAX || extension.len() as u64 > extensions_left {
        return Err(BadBody::ChunkExtensions);
    }
    let number = size.iter().fold(0, |number, digit| number * 16 + u64::from(hex(*digit)));
    Ok(((!size.is_empty()).then_some(number), extension.len() as u64))
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// A line of extensions; nobody is known to use any.
const CHUNK_EXTENSION_BYTES_MAX: usize = 1024;
/// How far extensions may run ahead of the data that they extend (as in Go's net/http since CVE-2023-39326).
const EXTENSION_BYTES: u64 = 16 * 1024;
/// Moving so many bytes costs less than handing them out on their own.
const GATHERED_CHUNK_BYTES_MAX: usize = 512;
/// A chunk head without much of an extension.
const GATHERED_HEAD_BYTES_MAX: usize = 64;
