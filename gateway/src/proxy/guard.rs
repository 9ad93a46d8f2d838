//! Refuses HTTP/1.1 requests whose end two parsers could see in different places (request smuggling).
//!
//! hyper refuses most of them, but forgives four that RFC 9112 calls an attack or lets a server refuse: Content-Length beside
//! Transfer-Encoding, repeated Content-Length, lines ended by a bare LF, and codings before `chunked`. By the time it calls a
//! service the evidence is gone, so this guard follows the framing of the bytes on their way in. It never changes a good
//! request; at the first violation it overwrites the rest of the buffer with NUL, at which hyper answers 400 and closes.
//!
//! Cost: one pass over the bytes of a head, about 1 ns each; bodies with a length are skipped, not read.

/// What was wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A line of the head, a chunk size or a trailer ended without CR, or had a CR inside.
    LineEnd,
    /// A header line that continues the previous one (RFC 9112 §5.2).
    FoldedLine,
    /// White space before the colon, or no colon.
    HeaderName,
    /// Not a plain number, or more than one.
    ContentLength,
    /// Anything but exactly one `chunked`.
    TransferEncoding,
    /// Both (RFC 9112 §6.1).
    LengthAndEncoding,
    /// Not a chunk.
    Chunk,
}

/// Follows one connection's requests.
#[derive(Debug, Default)]
pub struct RequestGuard {
    state: State,
    violation: Option<Violation>,
}

impl RequestGuard {
    /// Looks at the next bytes; from the first violation on, overwrites them.
    pub fn inspect(&mut self, bytes: &mut [u8]) -> Option<Violation> {
        if self.violation.is_none() {
            match self.state.follow(bytes) {
                Ok(()) => return None,
                Err((at, violation)) => {
                    self.violation = Some(violation);
                    bytes.iter_mut().skip(at).for_each(|byte| *byte = 0);
                    return self.violation;
                }
            }
        }
        bytes.fill(0);
        self.violation
    }
}

#[derive(Debug)]
enum State {
    Head(Head),
    Body { left: u64 },
    ChunkSize { size: u64, digits: u8, extension: bool, cr: bool },
    ChunkData { left: u64 },
    ChunkEnd { cr: bool },
    Trailers { line: usize, cr: bool },
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Head::default())
    }
}

impl State {
    fn follow(&mut self, bytes: &[u8]) -> Result<(), (usize, Violation)> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            match self {
                Self::Body { left } | Self::ChunkData { left } => {
                    let available = (bytes.len() - at) as u64;
                    let skip = available.min(*left);
                    *left -= skip;
                    at += skip as usize;
                    if *left == 0 {
                        *self = if matches!(self, Self::Body { .. }) {
                            Self::default()
                        } else {
                            Self::ChunkEnd { cr: false }
                        };
                    }
                    continue;
                }
                Self::Head(head) => {
                    if let Some(next) = head.byte(byte).map_err(|v| (at, v))? {
                        *self = next;
                    }
                }
                Self::ChunkSize { size, digits, extension, cr } => match (byte, *cr, *extension) {
                    (b'\n', true, _) if *digits > 0 => {
                        *self = if *size == 0 {
                            Self::Trailers { line: 0, cr: false }
                        } else {
                            Self::ChunkData { left: *size }
                        }
                    }
                    (b'\n', ..) | (_, true, _) => return Err((at, Violation::LineEnd)),
                    (b'\r', false, _) => *cr = true,
                    (_, false, true) => {}
                    (b';' | b' ' | b'\t', false, false) if *digits > 0 => *extension = true,
                    (_, false, false) => {
                        let digit = char::from(byte).to_digit(16).ok_or((at, Violation::Chunk))?;
                        *digits += 1;
                        if *digits > 15 {
                            return Err((at, Violation::Chunk));
                        }
                        *size = *size * 16 + u64::from(digit);
                    }
                },
                Self::ChunkEnd { cr } => match (byte, *cr) {
                    (b'\r', false) => *cr = true,
                    (b'\n', true) => *self = Self::ChunkSize { size: 0, digits: 0, extension: false, cr: false },
                    _ => return Err((at, Violation::Chunk)),
                },
                Self::Trailers { line, cr } => match (byte, *cr) {
                    (b'\n', true) if *line == 0 => *self = Self::default(),
                    (b'\n', true) => (*line, *cr) = (0, false),
                    (b'\n', false) | (_, true) => return Err((at, Violation::LineEnd)),
                    (b'\r', false) => *cr = true,
                    _ => *line += 1,
                },
            }
            at += 1;
        }
        Ok(())
    }
}

/// The head of one request, line by line.
#[derive(Debug, Default)]
struct Head {
    line: Line,
    cr: bool,
    started: bool,
    content_length: Option<u64>,
    chunked: bool,
}

impl Head {
    fn byte(&mut self, byte: u8) -> Result<Option<State>, Violation> {
        match (byte, self.cr) {
            (b'\n', true) => {
                self.cr = false;
                return self.end_of_line();
            }
            (b'\n', false) | (_, true) => return Err(Violation::LineEnd),
            (b'\r', false) => self.cr = true,
            (_, false) => self.line.push(byte),
        }
        Ok(None)
    }

    fn end_of_line(&mut self) -> Result<Option<State>, Violation> {
        let (empty, request_line) = (self.line.is_empty(), !self.started);
        if empty {
            // Empty lines before a request line are allowed (RFC 9112 §2.2).
            return Ok(self.started.then(|| self.body()));
        }
        self.started = true;
        if !request_line {
            self.header()?;
        }
        self.line.clear();
        Ok(None)
    }

    fn header(&mut self) -> Result<(), Violation> {
        let line = &self.line;
        if line.name.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
            return Err(Violation::FoldedLine);
        }
        let spaced = line.name_spaced || line.name.iter().any(u8::is_ascii_whitespace);
        if !line.colon || line.name.is_empty() || spaced {
            return Err(Violation::HeaderName);
        }
        if line.is_named(b"content-length") {
            if self.chunked {
                return Err(Violation::LengthAndEncoding);
            }
            let value = line.value().ok_or(Violation::ContentLength)?;
            let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            if !digits || self.content_length.is_some() {
                return Err(Violation::ContentLength);
            }
            self.content_length = Some(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')));
        } else if line.is_named(b"transfer-encoding") {
            if self.content_length.is_some() {
                return Err(Violation::LengthAndEncoding);
            }
            let chunked = line.value().is_some_and(|value| value.eq_ignore_ascii_case(b"chunked"));
            if self.chunked || !chunked {
                return Err(Violation::TransferEncoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn body(&mut self) -> State {
        match (self.chunked, self.content_length) {
            (true, _) => State::ChunkSize { size: 0, digits: 0, extension: false, cr: false },
            (false, Some(left)) if left > 0 => State::Body { left },
            _ => {
                // The buffers of the next head are this one's: no allocation per request.
                self.line.clear();
                State::Head(Self { line: std::mem::take(&mut self.line), ..Self::default() })
            }
        }
    }
}

/// One header line as a parser reads it: the name, and the value without the white space around it (RFC 9112 §5).
///
/// Only as much is kept as the two headers that matter need, and what was left out is remembered: however long a line is
/// and however its white space is placed, a value is judged whole or not at all.
#[derive(Debug, Default)]
struct Line {
    name: Vec<u8>,
    /// True from the first colon on.
    colon: bool,
    value: Vec<u8>,
    /// White space seen after the last other byte of the value.
    spaces: usize,
    name_cut: bool,
    /// White space in the part of the name that was cut.
    name_spaced: bool,
    value_cut: bool,
}

impl Line {
    fn push(&mut self, byte: u8) {
        if !self.colon {
            match byte {
                b':' => self.colon = true,
                _ if self.name.len() < NAME_KEPT_BYTES => self.name.push(byte),
                _ => {
                    self.name_cut = true;
                    self.name_spaced |= byte.is_ascii_whitespace();
                }
            }
        } else if matches!(byte, b' ' | b'\t') {
            self.spaces += usize::from(!self.value.is_empty());
        } else {
            self.value_cut |= self.value.len() + self.spaces >= VALUE_KEPT_BYTES;
            if !self.value_cut {
                self.value.resize(self.value.len() + self.spaces, b' ');
                self.value.push(byte);
            }
            self.spaces = 0;
        }
    }

    fn is_empty(&self) -> bool {
        self.name.is_empty() && !self.colon
    }

    fn is_named(&self, name: &[u8]) -> bool {
        !self.name_cut && self.name.eq_ignore_ascii_case(name)
    }

    /// The whole value; `None` when it was too long to keep.
    fn value(&self) -> Option<&[u8]> {
        (!self.value_cut).then_some(self.value.as_slice())
    }

    fn clear(&mut self) {
        self.name.clear();
        self.value.clear();
        (self.colon, self.name_cut, self.name_spaced, self.value_cut, self.spaces) = (false, false, false, false, 0);
    }
}

/// "transfer-encoding" has 17 bytes; a longer name is another header's.
const NAME_KEPT_BYTES: usize = 32;
/// A length has 18 digits at most, "chunked" seven letters; a longer value of either header is refused.
const VALUE_KEPT_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding:\t chunked \r\n\r\n5;ext=1\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\n\n\0\rGET / HTTP/1.1\r\n\r\n",
    ];

    #[test]
    fn good_requests_pass_unchanged() {
        for request in GOOD {
            let mut bytes = request.as_bytes().to_vec();
            assert_eq!(RequestGuard::default().inspect(&mut bytes), None, "{request:?}");
            assert_eq!(bytes, request.as_bytes());
        }
    }

    #[test]
    fn smuggling_forms_are_named() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        for (rest, violation) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Violation::LengthAndEncoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", Violation::LengthAndEncoding),
            ("Content-Length: 5\r\nContent-Length: 5\r\n\r\n", Violation::ContentLength),
            ("Content-Length: 5\r\nContent-Length: 6\r\n\r\n", Violation::ContentLength),
            ("Content-Length: +5\r\n\r\n", Violation::ContentLength),
            ("Content-Length: 5, 5\r\n\r\n", Violation::ContentLength),
            ("Content-Length: 0x5\r\n\r\n", Violation::ContentLength),
            ("Content-Length: \r\n\r\n", Violation::ContentLength),
            ("Content-Length: 99999999999999999999\r\n\r\n", Violation::ContentLength),
            ("Transfer-Encoding: gzip, chunked\r\n\r\n", Violation::TransferEncoding),
            ("Transfer-Encoding: xchunked\r\n\r\n", Violation::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", Violation::TransferEncoding),
            ("Transfer-Encoding : chunked\r\n\r\n", Violation::HeaderName),
            ("Transfer-Encoding: \r\n chunked\r\n\r\n", Violation::TransferEncoding),
            ("X: a\r\n Content-Length: 5\r\n\r\n", Violation::FoldedLine),
            ("X: a\nContent-Length: 5\r\n\r\n", Violation::LineEnd),
            ("X: a\rContent-Length: 5\r\n\r\n", Violation::LineEnd),
            ("no colon\r\n\r\n", Violation::HeaderName),
            (
                "Content-Length: 4                                                                2\r\n\r\n",
                Violation::ContentLength,
            ),
            ("Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", Violation::LineEnd),
            ("Transfer-Encoding: chunked\r\n\r\nG\r\n", Violation::Chunk),
            ("Transfer-Encoding: chunked\r\n\r\n-1\r\n", Violation::Chunk),
            ("Transfer-Encoding: chunked\r\n\r\n\r\n", Violation::LineEnd),
            ("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", Violation::Chunk),
            ("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n", Violation::Chunk),
        ] {
            let request = format!("{head}{rest}");
            let mut bytes = request.clone().into_bytes();
            assert_eq!(RequestGuard::default().inspect(&mut bytes), Some(violation), "{request:?}");
            assert_eq!(bytes.last(), Some(&0), "{request:?} must not reach the parser whole");
        }
    }

    /// The parser behind the guard takes any amount of white space around a value, so the guard must as well: kept to 128
    /// bytes, `42` behind 112 blanks was a length of 4 to the guard and of 42 to the parser.
    #[test]
    fn white_space_around_a_value_changes_nothing() {
        for blanks in (0..300).chain([4_000]) {
            for blank in [" ", "\t", " \t"] {
                let around = blank.repeat(blanks);
                let smuggled = "GET /smuggled HTTP/1.1\r\nX: 123456789012\r\n";
                let length =
                    format!("POST / HTTP/1.1\r\nContent-Length:{around}{}{around}\r\n\r\n{smuggled}", smuggled.len());
                assert_body_ends_with_the_bytes(&length);
                let chunked =
                    format!("POST / HTTP/1.1\r\nTransfer-Encoding:{around}chunked{around}\r\n\r\n2\r\nok\r\n0\r\n\r\n");
                assert_body_ends_with_the_bytes(&chunked);
                let name = format!("POST / HTTP/1.1\r\nContent-Length{around} : 5\r\n\r\n").into_bytes();
                assert_eq!(RequestGuard::default().inspect(&mut name.clone()), Some(Violation::HeaderName));
            }
        }
    }

    /// After `request`, the guard expects the first byte of another one, and nothing was refused.
    fn assert_body_ends_with_the_bytes(request: &str) {
        let mut guard = RequestGuard::default();
        assert_eq!(guard.inspect(&mut request.as_bytes().to_vec()), None, "{request:?}");
        assert!(matches!(&guard.state, State::Head(head) if !head.started), "{request:?}: {:?}", guard.state);
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_bytes_arrive(which in 0..GOOD.len(), cuts in proptest::collection::vec(1_usize..7, 1..80)) {
            let mut guard = RequestGuard::default();
            let mut bytes = GOOD[which].as_bytes().to_vec();
            let mut rest = bytes.as_mut_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, more) = rest.split_at_mut((*cut).min(rest.len()));
                prop_assert_eq!(guard.inspect(piece), None);
                rest = more;
            }
        }

        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            RequestGuard::default().inspect(&mut bytes);
        }
    }
}
