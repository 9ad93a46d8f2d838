//! The trait the raft crate calls to encode its messages, over prost 0.14.
//!
//! The `raft` crate asks `protobuf` 2 for three things only: the size of a message, its bytes, and a merge
//! from bytes. This crate answers them with prost, so that nobody links the parser of rust-protobuf 2
//! (RUSTSEC-2024-0437: unbounded recursion on hostile input). It is patched in by the workspace manifest.

/// What the raft crate expects of a message; every prost message has it.
pub trait Message {
    /// Encoded size in bytes, saturating at `u32::MAX` as protobuf caps a message at 2 GiB anyway.
    fn compute_size(&self) -> u32;

    /// The encoded message.
    ///
    /// # Errors
    /// Never with prost (a `Vec` grows); the signature is the one callers were written against.
    fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>>;

    /// Merges encoded `bytes` into this message, field by field.
    ///
    /// # Errors
    /// [`ProtobufError`] when `bytes` are not a valid encoding; fields read before the fault may have changed.
    fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()>;
}

impl<M: prost::Message> Message for M {
    fn compute_size(&self) -> u32 {
        u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
    }

    fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>> {
        Ok(self.encode_to_vec())
    }

    fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()> {
        Ok(self.merge(bytes)?)
    }
}

/// A message that could not be decoded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("malformed protobuf message")]
pub struct ProtobufError(#[from] prost::DecodeError);

/// Result of the calls above.
pub type ProtobufResult<T> = Result<T, ProtobufError>;

#[cfg(test)]
mod tests {
    use super::Message as _;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Pair {
        #[prost(uint64, tag = "1")]
        left: u64,
        #[prost(string, tag = "2")]
        right: String,
    }

    #[test]
    fn size_and_bytes_agree() {
        let pair = Pair { left: 300, right: "ab".into() };
        let bytes = pair.write_to_bytes().unwrap();
        assert_eq!(bytes, [0x08, 0xac, 0x02, 0x12, 0x02, b'a', b'b']);
        assert_eq!(pair.compute_size(), 7);
    }

    #[test]
    fn merge_overwrites_what_is_present_and_keeps_the_rest() {
        let mut pair = Pair { left: 1, right: "kept".into() };
        pair.merge_from_bytes(&[0x08, 0x05]).unwrap();
        assert_eq!(pair, Pair { left: 5, right: "kept".into() });
    }

    #[test]
    fn malformed_bytes_are_an_error() {
        let mut pair = Pair::default();
        assert!(pair.merge_from_bytes(&[0x12, 0xff]).is_err());
    }
}
