//! QPACK (RFC 9204) with the static table only.
//!
//! A section written here needs no state at the peer, and a section that refers to a dynamic table is
//! refused: we announce a capacity of zero, so no correct peer sends one.

use super::{Code, ProtocolError, huffman, static_table};
use bytes::{BufMut, Bytes, BytesMut};

/// Starts a section: Required Insert Count 0, Base 0 (RFC 9204 §4.5.1).
pub(super) fn begin(out: &mut BytesMut) {
    out.put_u16(0);
}

/// Appends one field line, in the shortest form the static table allows.
///
/// `sensitive` sets the bit that forbids intermediaries to index the value (RFC 9204 §7.1.3).
pub(super) fn encode_field(name: &str, value: &[u8], sensitive: bool, out: &mut BytesMut) {
    let indices = static_table::indices(name);
    let same_value = indices
        .iter()
        .find(|index| static_table::entry(u64::from(**index)).is_some_and(|(_, known)| known.as_bytes() == value));
    match (same_value, indices.first()) {
        (Some(index), _) if !sensitive => prefix_int(0b1100_0000, 6, u64::from(*index), out),
        (_, Some(index)) => {
            let never_indexed = if sensitive { 0b0010_0000 } else { 0 };
            prefix_int(0b0101_0000 | never_indexed, 4, u64::from(*index), out);
            string(0, 7, value, out);
        }
        (_, None) => {
            let never_indexed = if sensitive { 0b0001_0000 } else { 0 };
            string(0b0010_0000 | never_indexed, 3, name.as_bytes(), out);
            string(0, 7, value, out);
        }
    }
}

/// Reads the field lines of a section.
pub(super) struct Section {
    block: Bytes,
    /// Backing of Huffman-decoded strings, so that a section costs few allocations.
    scratch: BytesMut,
}

impl Section {
    /// Checks the prefix of `block`.
    ///
    /// # Errors
    /// A prefix cut short, or one that needs a dynamic table.
    pub(super) fn new(block: Bytes) -> Result<Self, ProtocolError> {
        let mut section = Self { block, scratch: BytesMut::new() };
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
    pub(super) fn next_field(&mut self) -> Result<Option<Field>, ProtocolError> {
        let Some(first) = self.block.first().copied() else { return Ok(None) };
        let (name, value) = match first {
            0b1100_0000.. => {
                let (name, value) = static_table::entry(self.int(first, 6)?).ok_or(OUT_OF_TABLE)?;
                (Text::Static(name), Text::Static(value))
            }
            0b0101_0000..=0b0101_1111 | 0b0111_0000..=0b0111_1111 => {
                let (name, _) = static_table::entry(self.int(first, 4)?).ok_or(OUT_OF_TABLE)?;
                (Text::Static(name), Text::Owned(self.string(7)?))
            }
            0b0010_0000..=0b0011_1111 => (Text::Owned(self.string(3)?), Text::Owned(self.string(7)?)),
            _ => return Err(failed("field line refers to the dynamic table")),
        };
        Ok(Some(Field { name, value }))
    }

    fn peek(&self) -> Result<u8, ProtocolError> {
        self.block.first().copied().ok_or(TRUNCATED)
    }

    /// An integer with a prefix of `bits` bits in `first`, the byte at the front (RFC 7541 §5.1).
    fn int(&mut self, first: u8, bits: u32) -> Result<u64, ProtocolError> {
        let mask = (1u64 << bits) - 1;
        let mut value = u64::from(first) & mask;
        let mut used = 1;
        if value == mask {
            let mut shift = 0;
            loop {
                let byte = *self.block.get(used).ok_or(TRUNCATED)?;
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
        bytes::Buf::advance(&mut self.block, used);
        Ok(value)
    }

    /// A string literal whose length has a prefix of `bits` bits, below its Huffman bit (RFC 9204 §4.1.2).
    fn string(&mut self, bits: u32) -> Result<Bytes, ProtocolError> {
        let first = self.peek()?;
        let is_huffman = first & (1 << bits) != 0;
        let length = usize::try_from(self.int(first, bits)?).unwrap_or(usize::MAX);
        if length > self.block.len() {
            return Err(TRUNCATED);
        }
        let raw = self.block.split_to(length);
        if !is_huffman {
            return Ok(raw);
        }
        // The shortest code has five bits, so this much cannot be exceeded.
        self.scratch.reserve(length * 8 / 5 + 1);
        huffman::decode(&raw, &mut self.scratch).map_err(|_| failed("invalid Huffman code"))?;
        Ok(self.scratch.split().freeze())
    }
}

/// One field line.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: Text,
    pub(super) value: Text,
}

/// Text of the static table, or of the section.
#[derive(Debug)]
pub(super) enum Text {
    Static(&'static str),
    Owned(Bytes),
}

impl Text {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Static(text) => text.as_bytes(),
            Self::Owned(bytes) => bytes,
        }
    }

    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Static(text) => Bytes::from_static(text.as_bytes()),
            Self::Owned(bytes) => bytes,
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
