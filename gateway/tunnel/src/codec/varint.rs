//! Variable-length integers (RFC 9000 §16): the top two bits of the first byte give the length.

use bytes::BufMut;

/// The largest value: 62 bits.
pub const MAX: u64 = (1 << 62) - 1;

/// Reads one integer; returns it and the bytes it took, or `None` when `buf` ends before it does.
pub fn decode(buf: &[u8]) -> Option<(u64, usize)> {
    let first = *buf.first()?;
    let length = 1usize << (first >> 6);
    let bytes = buf.get(..length)?;
    let value = bytes.iter().skip(1).fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    Some((value, length))
}

/// Writes `value` in its shortest form. Values above [`MAX`] are cut to 62 bits; no caller has one.
pub fn encode(value: u64, out: &mut impl BufMut) {
    debug_assert!(value <= MAX);
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(value as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64((value & MAX) | 0xc000_0000_0000_0000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc9000_a_1_samples() {
        assert_eq!(decode(&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]), Some((151_288_809_941_952_652, 8)));
        assert_eq!(decode(&[0x9d, 0x7f, 0x3e, 0x7d]), Some((494_878_333, 4)));
        assert_eq!(decode(&[0x7b, 0xbd]), Some((15_293, 2)));
        assert_eq!(decode(&[0x25]), Some((37, 1)));
        assert_eq!(decode(&[0x40, 0x25]), Some((37, 2)));
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0xc2, 0x19]), None);
    }

    proptest::proptest! {
        #[test]
        fn round_trip(value in 0..=MAX, tail: Vec<u8>) {
            let mut buf = Vec::new();
            encode(value, &mut buf);
            let length = buf.len();
            buf.extend(tail);
            proptest::prop_assert_eq!(decode(&buf), Some((value, length)));
        }
    }
}
