//! The beat: one HTTP datagram (RFC 9297) of a reserved quarter stream id, sent both ways.

use crate::codec::varint;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// One beat. Clocks are the sender's own, in microseconds since its connection began; they are only echoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The sender wants beats at the active cadence.
    pub is_active: bool,
    /// Counts from 1, wraps.
    pub sequence: u32,
    /// Sender's clock.
    pub sent_micros: u64,
    /// [`Beat::sequence`] of the last beat received from the other side; 0 for none.
    pub echo_sequence: u32,
    /// [`Beat::sent_micros`] of that beat.
    pub echo_micros: u64,
    /// How long ago that beat arrived.
    pub hold_micros: u32,
}

impl Beat {
    /// The datagram.
    ///
    /// Layout: `quarter stream id: varint(2^60 - 1) | version: u8 = 1 | flags: u8 | sequence: u32 | sent: u64 |
    /// echo sequence: u32 | echo: u64 | hold: u32`, big endian.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(BEAT_BYTES);
        varint::encode(QUARTER_STREAM_ID, &mut out);
        out.put_u8(VERSION);
        out.put_u8(u8::from(self.is_active));
        out.put_u32(self.sequence);
        out.put_u64(self.sent_micros);
        out.put_u32(self.echo_sequence);
        out.put_u64(self.echo_micros);
        out.put_u32(self.hold_micros);
        out.freeze()
    }

    /// Reads a datagram; `None` for everything that is not a beat. Longer ones are from newer versions.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let (id, used) = varint::decode(datagram)?;
        let mut rest = datagram.get(used..)?;
        if id != QUARTER_STREAM_ID || rest.len() < BEAT_BYTES - 8 || rest.get_u8() < VERSION {
            return None;
        }
        Some(Self {
            is_active: rest.get_u8() & 1 != 0,
            sequence: rest.get_u32(),
            sent_micros: rest.get_u64(),
            echo_sequence: rest.get_u32(),
            echo_micros: rest.get_u64(),
            hold_micros: rest.get_u32(),
        })
    }
}

/// The largest quarter stream id: no request stream will ever have it.
const QUARTER_STREAM_ID: u64 = (1 << 60) - 1;
const VERSION: u8 = 1;
const BEAT_BYTES: usize = 8 + 1 + 1 + 4 + 8 + 4 + 8 + 4;

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn round_trip(is_active: bool, sequence: u32, sent_micros: u64, echo_sequence: u32, echo_micros: u64, hold_micros: u32, tail: Vec<u8>) {
            let beat = Beat { is_active, sequence, sent_micros, echo_sequence, echo_micros, hold_micros };
            let mut wire = beat.encode().to_vec();
            proptest::prop_assert_eq!(wire.len(), BEAT_BYTES);
            for cut in 0..wire.len() {
                proptest::prop_assert_eq!(Beat::decode(&wire[..cut]), None);
            }
            wire.extend(tail);
            proptest::prop_assert_eq!(Beat::decode(&wire), Some(beat));
        }

        #[test]
        fn arbitrary_bytes(bytes: Vec<u8>) {
            let _ = Beat::decode(&bytes);
        }
    }
}
