//! QPACK (RFC 9204) with the static table only.
//!
//! A section written here needs no state at the peer, and a section that refers to a dynamic table is
//! refused: we announce a capacity of zero, so no correct peer sends one.

use super::{Code, ProtocolError, huffman, static_table};
use bytes::{BufMut, BytesMut};

/// Starts a section: Required Insert Count 0, Base 0 (RFC 9204 §4.5.1).
pub(super) fn begin(out: &mut BytesMut) {
    out.put_u16(0);
}

/// Appends one field line, in the shortest form the static table allows. `entries` are those of the table that have this name.
///
/// Names of HTTP/3 are in lower case: others are written so. `sensitive` sets the bit that forbids intermediaries to index the
/// value (RFC 9204 §7.1.3).
pub(super) fn encode_field(entries: &[u8], name: &[u8], value: &[u8], sensitive: bool, out: &mut BytesMut) {
    let has_value = |index: &&u8| static_table::entry(u64::from(**index)).is_some_and(|(_, v)| v.as_bytes() == value);
    match (entries.iter().find(has_value), entries.first()) {
        (Some(index), _) if !sensitive => prefix_int(0b1100_0000, 6, u64::from(*index), out),
        (_, Some(index)) => {
            let never_indexed = if sensitive { 0b0010_0000 } else { 0 };
            prefix_int(0b0101_0000 | never_indexed, 4, u64::from(*index), out);
            string(0, 7, value, out);
        }
        (_, None) => {
            let never_indexed = if sensitive { 0b0001_0000 } else { 0 };
            let start = out.len();
            string(0b0010_0000 | never_indexed, 3, name, out);
            let end = out.len();
            if let Some(written) = out.get_mut(start + (end - start - name.len())..) {
                written.make_ascii_lowercase();
            }
            string(0, 7, value, out);
        }
    }
}

/// Reads the field lines of a section.
pub(super) struct Section<'a> {
    rest: &'a [u8],
    /// What Huffman codes of the current line say.
    scratch: Vec<u8>,
}

impl<'a> Section<'a> {
    /// Checks the prefix of `block`.
    ///
    /// # Errors
    /// A prefix cut short, or one that needs a dynamic table.
    pub(super) fn new(block: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut section = Self { rest: block, scratch: Vec::new() };
        if section.int(section.peek()?, 8)? != 0 {
            return Err(failed("field section needs a dynamic table"));
        }
        section.int(section.peek()?, 7)?; // Delta Base: nothing refers to it
        Ok(section)
    }

    /// The next field line, or `None` at the end.
    ///
    /// # Errors
    /// [`Code::QPACK_DECOMPRESSION_FAILED`] for every representation that is malformed or dynamic.
    pub(super) fn next_field(&mut self) -> Result<Option<Field<'_>>, ProtocolError> {
        let Some(first) = self.rest.first().copied() else { return Ok(None) };
        self.scratch.clear();
        let (name, value, index) = match first {
            0b1100_0000.. => {
                let index = self.int(first, 6)?;
                let (name, value) = static_table::entry(index).ok_or(OUT_OF_TABLE)?;
                (Text::Plain(name.as_bytes()), Text::Plain(value.as_bytes()), Some(index))
            }
            0b0101_0000..=0b0101_1111 | 0b0111_0000..=0b0111_1111 => {
                let index = self.int(first, 4)?;
                let (name, _) = static_table::entry(index).ok_or(OUT_OF_TABLE)?;
                (Text::Plain(name.as_bytes()), self.string(7)?, Some(index))
            }
            0b0010_0000..=0b0011_1111 => (self.string(3)?, self.string(7)?, None),
            _ => return Err(failed("field line refers to the dynamic table")),
        };
        Ok(Some(Field { name: name.of(&self.scratch), value: value.of(&self.scratch), index }))
    }

    fn peek(&self) -> Result<u8, ProtocolError> {
        self.rest.first().copied().ok_or(TRUNCATED)
    }

    /// An integer with a prefix of `bits` bits in `first`, the byte at the front (RFC 7541 §5.1).
    fn int(&mut self, first: u8, bits: u32) -> Result<u64, ProtocolError> {
        let mask = (1u64 << bits) - 1;
        let mut value = u64::from(first) & mask;
        let mut used = 1;
        if value == mask {
            let mut shift = 0;
            loop {
                let byte = *self.rest.get(used).ok_or(TRUNCATED)?;
                used += 1;
                value = value.checked_add(u64::from(byte & 0x7f) << shift).ok_or(failed("integer too large"))?;
                if byte & 0x80 == 0 {
                    break;
                }
                shift += 7;
                if shift > 28 {
                    return Err(failed("integer too large")); // nothing legitimate passes 2^32
                }
            }
        }
        self.rest = self.rest.get(used..).ok_or(TRUNCATED)?;
        Ok(value)
    }

    /// A string literal whose length has a prefix of `bits` bits, below its Huffman bit (RFC 9204 §4.1.2).
    fn string(&mut self, bits: u32) -> Result<Text<'a>, ProtocolError> {
        let first = self.peek()?;
        let is_huffman = first & (1 << bits) != 0;
        let length = usize::try_from(self.int(first, bits)?).unwrap_or(usize::MAX);
        let (raw, rest) = self.rest.split_at_checked(length).ok_or(TRUNCATED)?;
        self.rest = rest;
        if !is_huffman {
            return Ok(Text::Plain(raw));
        }
        let start = self.scratch.len();
        huffman::decode(raw, &mut self.scratch).map_err(|_| failed("invalid Huffman code"))?;
        Ok(Text::Decoded(start..self.scratch.len()))
    }
}

/// One field line.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// Where the name is in the static table, if that is how it was said.
    pub(super) index: Option<u64>,
}

enum Text<'a> {
    /// As it stands in the section or in the static table.
    Plain(&'a [u8]),
    /// This part of the scratch.
    Decoded(std::ops::Range<usize>),
}

impl<'a> Text<'a> {
    fn of<'b>(self, scratch: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Plain(text) => text,
            Self::Decoded(range) => scratch.get(range).unwrap_or_default(),
        }
    }
}

fn prefix_int(flags: u8, bits: u32, value: u64, out: &mut BytesMut) {
    let mask = (1u64 << bits) - 1;
    if value < mask {
        out.put_u8(flags | value as u8);
        return;
    }
    out.put_u8(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn string(flags: u8, bits: u32, text: &[u8], out: &mut BytesMut) {
    prefix_int(flags, bits, text.len() as u64, out);
    out.put_slice(text);
}

const fn failed(what: &'static str) -> ProtocolError {
    ProtocolError::connection(Code::QPACK_DECOMPRESSION_FAILED, what)
}

const TRUNCATED: ProtocolError = failed("field section cut short");
const OUT_OF_TABLE: ProtocolError = failed("index past the static table");
