//! Lines of a head or of trailers, each looked at once however its bytes arrive.

use crate::fields::{Field, Fields};
use crate::name::Known;
use crate::text;

/// How far the head at the start of a buffer has been read, so that bytes are looked at once however they arrive.
///
/// Belongs to one buffer: as long as `parse_request` or `parse_response` wants more bytes, the buffer only grows at its end. After a
/// head or a refusal it is as new.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Where the line begins that has no end yet.
    line: usize,
    /// Up to where its end was looked for.
    searched: usize,
    /// There is a control in it that is no tab and not of its end.
    controls: bool,
    /// Where the fields begin: behind the request line or status line; 0 before it was read.
    fields_from: usize,
    lines: usize,
    pub(super) notes: Notes,
}

impl Progress {
    /// At the start of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// True once a request line or status line was read. Whether anything but line ends came before is not known.
    pub fn is_in_head(&self) -> bool {
        self.fields_from > 0
    }

    /// Forgets what was read: the buffer is another one.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// The next line that is whole. Its bytes are looked at once, for its end and for controls.
    #[inline]
    pub(super) fn next_line<'a>(&mut self, bytes: &'a [u8]) -> Option<Line<'a>> {
        loop {
            let Some(inner) = bytes.get(self.searched..).and_then(text::control) else {
                self.searched = bytes.len();
                return None;
            };
            let at = self.searched + inner;
            match (bytes.get(at), bytes.get(at + 1)) {
                (Some(b'\r'), Some(b'\n')) => return Some(self.take(bytes, at, 2)),
                (Some(b'\n'), _) => return Some(self.take(bytes, at, 1)),
                (Some(b'\r'), None) => {
                    self.searched = at;
                    return None;
                }
                _ => (self.controls, self.searched) = (true, at + 1),
            }
        }
    }

    #[inline]
    fn take<'a>(&mut self, bytes: &'a [u8], end: usize, end_len: usize) -> Line<'a> {
        let (start, controls) = (self.line, std::mem::take(&mut self.controls));
        (self.line, self.searched) = (end + end_len, end + end_len);
        Line { text: bytes.get(start..end).unwrap_or_default(), start, crlf: end_len == 2, controls }
    }

    /// Up to where lines were taken.
    pub(super) fn taken(&self) -> usize {
        self.line
    }

    /// The start line was read.
    pub(super) fn begin_fields(&mut self) {
        self.fields_from = self.line;
    }

    /// Reads one field line; `Ok(None)` when there are too many.
    #[inline]
    pub(super) fn field<'a>(
        &mut self,
        line: &Line<'a>,
        fields_max: usize,
        reading: Reading,
    ) -> Result<Read<'a>, Fault> {
        self.lines += 1;
        if self.lines > fields_max {
            return Err(Fault::TooMany);
        }
        line.read(self.fields_from, reading)
    }

    /// Gives the fields their text.
    pub(super) fn finish(&mut self, bytes: &[u8], end: usize, fields: &mut Fields) {
        fields.adopt(bytes.get(self.fields_from..end).unwrap_or_default());
    }
}

/// What the fields seen so far say about the message and its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) host: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) websocket: bool,
    pub(super) some_protocol: bool,
    pub(super) expects_continue: bool,
    connection_bytes: usize,
}

impl Notes {
    /// RFC 9110 §7.6.1. False when there is more of it than anyone has use for: what it names is looked for in every field.
    pub(super) fn connection(&mut self, value: &[u8]) -> bool {
        self.connection_bytes += value.len();
        for option in text::list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            }
        }
        self.connection_bytes <= CONNECTION_BYTES_MAX
    }

    /// RFC 9110 §7.8.
    pub(super) fn protocols(&mut self, value: &[u8]) {
        for protocol in text::list(value) {
            self.some_protocol = true;
            self.websocket |= protocol.eq_ignore_ascii_case(b"websocket");
        }
    }
}

/// One line without its end.
pub(super) struct Line<'a> {
    pub(super) text: &'a [u8],
    /// Where it begins in the buffer.
    pub(super) start: usize,
    /// False when it ended with LF alone.
    pub(super) crlf: bool,
    /// False when it has no control but tab; true when that is not known.
    pub(super) controls: bool,
}

/// How strictly a field line is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Strict,
    /// White space before the colon is taken away, as RFC 9112 §5.1 has a proxy do with responses.
    Lenient,
}

/// A field line that is one.
pub(super) struct Read<'a> {
    pub(super) field: Field,
    pub(super) known: Option<Known>,
    pub(super) value: &'a [u8],
}

/// What is wrong with a field line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Folded,
    Name,
    Value,
    TooMany,
}

impl<'a> Line<'a> {
    /// Reads it as `name: value`; offsets are counted from `base`.
    #[inline]
    pub(super) fn read(&self, base: usize, reading: Reading) -> Result<Read<'a>, Fault> {
        if let Some(b' ' | b'\t') = self.text.first() {
            return Err(Fault::Folded);
        }
        let colon = text::colon(self.text).ok_or(Fault::Name)?;
        let (name, rest) = self.text.split_at_checked(colon).ok_or(Fault::Name)?;
        let name = if reading == Reading::Lenient { text::trim_end(name) } else { name };
        let known = Known::of(name);
        if known.is_none() && !text::is_token(name) {
            return Err(Fault::Name);
        }
        let value = text::trim_end(rest.get(1..).unwrap_or_default());
        let value_end = self.start + colon + 1 + value.len();
        let value = text::trim_start(value);
        if self.controls && !text::is_value(value) {
            return Err(Fault::Value);
        }
        let (start, value_start) = (self.start, value_end - value.len());
        let name_len = u16::try_from(name.len()).map_err(|_| Fault::Name)?;
        let plain = self.crlf
            && rest.get(1) == Some(&b' ')
            && value_start == start + name.len() + 2
            && value_end == start + self.text.len();
        let offset = |at: usize| u32::try_from(at.saturating_sub(base)).map_err(|_| Fault::Value);
        let flags = Field::flags(known, name) | if plain { Field::CANONICAL } else { 0 };
        let field = Field {
            start: offset(start)?,
            value_start: offset(value_start)?,
            value_end: offset(value_end)?,
            name_len,
            known: known.map_or(Field::OTHER, |known| known as u8),
            flags,
        };
        Ok(Read { field, known, value })
    }
}

/// Names of two dozen fields; a browser sends one.
const CONNECTION_BYTES_MAX: usize = 1024;
