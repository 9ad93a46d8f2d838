//! Values as they lie on disk: a checksum, the place in the log they claim, and the payload.
//!
//! redb verifies its own pages when it repairs a file, not on each read. This frame is verified on every read, so a
//! flipped bit or a value under the wrong key is noticed before it is believed.

use crate::core::Position;

/// Layout: `crc32: u32 | log_index: u64 | term: u64 | payload`, big-endian. The checksum (CRC-32, IEEE 802.3) covers
/// everything after itself.
pub(super) fn encode(position: Position, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + payload.len());
    value.extend([0; CHECKSUM_BYTES]);
    value.extend(position.log_index.to_be_bytes());
    value.extend(position.term.to_be_bytes());
    value.extend(payload);
    let checksum = crc32fast::hash(value.get(CHECKSUM_BYTES..).unwrap_or_default()).to_be_bytes();
    value.iter_mut().zip(checksum).for_each(|(byte, checksum)| *byte = checksum);
    value
}

/// Takes a value apart and verifies it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(value: &[u8]) -> Result<(Position, &[u8]), &'static str> {
    let (checksum, covered) = value.split_first_chunk::<CHECKSUM_BYTES>().ok_or("value too short")?;
    if crc32fast::hash(covered) != u32::from_be_bytes(*checksum) {
        return Err("checksum mismatch");
    }
    let (log_index, rest) = covered.split_first_chunk::<8>().ok_or("value too short")?;
    let (term, payload) = rest.split_first_chunk::<8>().ok_or("value too short")?;
    Ok((Position { log_index: u64::from_be_bytes(*log_index), term: u64::from_be_bytes(*term) }, payload))
}

const CHECKSUM_BYTES: usize = 4;
const HEADER_BYTES: usize = CHECKSUM_BYTES + 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_come_back_and_any_flipped_bit_is_noticed(
            log_index: u64, term: u64, payload in proptest::collection::vec(any::<u8>(), 0..64), flip: prop::sample::Index,
        ) {
            let position = Position { log_index, term };
            let mut value = encode(position, &payload);
            prop_assert_eq!(decode(&value), Ok((position, payload.as_slice())));
            let bit = flip.index(value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&value).is_err());
        }

        #[test]
        fn any_bytes_are_taken_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn layout_is_pinned() {
        let value = encode(Position { log_index: 1, term: 2 }, b"ab");
        assert_eq!(value[4..], *b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02ab");
        assert_eq!(value[..4], crc32fast::hash(&value[4..]).to_be_bytes());
    }
}
