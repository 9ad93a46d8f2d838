//! Huffman decoding of string literals (RFC 7541 §5.2 and Appendix B, as RFC 9204 §4.1.2 uses it).
//!
//! The code is canonical: within one length, codes are consecutive in symbol order. So the 256 lengths
//! are the whole table, and decoding compares a 32-bit window with the end of each length's range.
//! We never encode with Huffman: on a 10 Gbit/s tunnel the bytes saved cost more CPU than they are worth.

/// A string that is not a valid Huffman encoding: a padding of eight bits or more, padding other than
/// ones, or the end-of-string symbol inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid Huffman code")]
pub struct InvalidHuffman;

/// Decodes `input` onto `out`; at most `8/5` of the input's length is written.
///
/// # Errors
/// [`InvalidHuffman`]; `out` then holds a prefix of no use.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), InvalidHuffman> {
    let mut window: u64 = 0; // unread bits, right-aligned
    let mut bits: u32 = 0;
    let mut rest = input.iter();
    loop {
        while bits <= 32 {
            let Some(byte) = rest.next() else { break };
            window = (window << 8) | u64::from(*byte);
            bits += 8;
        }
        // Left-align in 32 bits; past the end, ones: the prefix of the end-of-string code (RFC 7541 §5.2).
        let aligned = if bits >= 32 {
            (window >> (bits - 32)) as u32
        } else {
            ((window << (32 - bits)) as u32) | (u32::MAX.checked_shr(bits).unwrap_or(0))
        };
        if bits < 8 && aligned == u32::MAX {
            return Ok(()); // nothing, or a padding of ones shorter than a byte
        }
        let (symbol, length) = TABLE.lookup(aligned).ok_or(InvalidHuffman)?;
        bits = bits.checked_sub(length).ok_or(InvalidHuffman)?;
        window &= (1 << bits) - 1;
        out.push(symbol);
    }
}

struct Table {
    /// Per length class: bits, first code past the class (left-aligned to 32 bits), first code, offset into `symbols`.
    classes: [Class; 21],
    symbols: [u8; 256],
}

#[derive(Clone, Copy)]
struct Class {
    bits: u32,
    end: u64,
    first: u32,
    offset: usize,
}

impl Table {
    fn lookup(&self, aligned: u32) -> Option<(u8, u32)> {
        for class in &self.classes {
            if u64::from(aligned) < class.end {
                let code = aligned >> (32 - class.bits);
                let index = class.offset + (code - class.first) as usize;
                return self.symbols.get(index).map(|symbol| (*symbol, class.bits));
            }
        }
        None // the end-of-string symbol
    }
}

const TABLE: Table = build();

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler: out of range does not build")]
const fn build() -> Table {
    let mut table = Table { classes: [Class { bits: 0, end: 0, first: 0, offset: 0 }; 21], symbols: [0; 256] };
    let (mut code, mut filled, mut class, mut bits) = (0u32, 0usize, 0usize, 1u32);
    while bits <= 30 {
        code <<= 1;
        let (first, offset) = (code, filled);
        let mut symbol = 0usize;
        while symbol < 256 {
            if LENGTHS[symbol] as u32 == bits {
                table.symbols[filled] = symbol as u8;
                filled += 1;
                code += 1;
            }
            symbol += 1;
        }
        if code != first {
            let end = (code as u64) << (32 - bits);
            table.classes[class] = Class { bits, end, first, offset };
            class += 1;
        }
        bits += 1;
    }
    assert!(class == 21 && filled == 256);
    table
}

/// Code length of each byte in bits (RFC 7541 Appendix B); the end-of-string symbol has 30 as well.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hex: &str) -> Result<String, InvalidHuffman> {
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let mut out = Vec::new();
        decode(&bytes, &mut out).map(|()| String::from_utf8(out.to_vec()).unwrap())
    }

    #[test]
    fn rfc7541_appendix_c_vectors() {
        for (hex, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("aec3771a4b", "private"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
            ("", ""),
        ] {
            assert_eq!(decoded(hex).as_deref(), Ok(text), "{hex}");
        }
    }

    #[test]
    fn rfc7541_s5_2_padding() {
        assert_eq!(decoded("a8eb10649cbfff"), Err(InvalidHuffman)); // a whole byte of padding
        assert_eq!(decoded("1e"), Err(InvalidHuffman)); // '3' (011001)? padded with 10
        assert_eq!(decoded("fffffffc"), Err(InvalidHuffman)); // end of string
        assert_eq!(decoded("ff"), Err(InvalidHuffman));
    }

    // Encodes by the canonical rule from the lengths alone, independently of the class table.
    #[test]
    fn every_symbol_round_trips() {
        let mut order: Vec<usize> = (0..256).collect();
        order.sort_by_key(|symbol| (LENGTHS[*symbol], *symbol));
        let (mut code, mut length) = (0u64, u32::from(LENGTHS[order[0]]));
        for symbol in order {
            let bits = u32::from(LENGTHS[symbol]);
            code <<= bits - length;
            length = bits;
            let padded = (code << (32 - bits)) | ((1u64 << (32 - bits)) - 1);
            let bytes = (padded as u32).to_be_bytes();
            let mut out = Vec::new();
            decode(&bytes[..bits.div_ceil(8) as usize], &mut out).unwrap();
            assert_eq!(&out[..], &[symbol as u8]);
            code += 1;
        }
        assert_eq!(code, 0x3fff_ffff, "what is left is the end-of-string code");
    }
}
