//! HTTP/1.1 (RFC 9112) without I/O: bytes in, heads and pieces of bodies out, and back.
//!
//! The lexer is our own. httparse takes a bare LF for the end of a line, refuses targets that are not UTF-8, and hands out slices that
//! borrow the buffer, so each of its answers would have to be judged once more; one parser cannot be out of step with itself.

mod authority;
mod body;
mod lexer;
mod refusal;
mod request;
mod response;
mod write;

pub(crate) use authority::is_authority;
pub use body::{BadBody, BodyDecoder, Piece, Truncated};
pub use lexer::Progress;
pub use refusal::{BadResponse, Refusal};
pub use request::{RequestInfo, UpgradeTo, parse_request};
pub use response::{ResponseInfo, parse_response};
pub use write::{
    CHUNK_END, ChunkHead, Persistence, chunk_head, last_chunk, write_interim, write_request, write_response,
};

/// How large a head may be; one set for all legs and protocols.
///
/// | | head | fields | target |
/// | --- | --- | --- | --- |
/// | nginx 1.22 | 4 buffers of 8 KiB; no count (1,000 from 1.29) | | 8 KiB |
/// | Apache 2.4 | 8 KiB a line | 100 | 8 KiB |
/// | HAProxy 2.6 | 16 KiB less 1 KiB | 101 | within the head |
/// | Envoy | 60 KiB | 100 | within the head |
/// | Node 20 | 16 KiB | 2,000 | within the head |
///
/// A head that one of them takes is taken here but for heads of hundreds of fields, which none of them writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head or of trailers, with all line ends.
    pub head_bytes: usize,
    /// Lines of a head or of trailers.
    pub fields: usize,
    /// Bytes of a request's target.
    pub target_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Half of a head for the target, so that a long one leaves room for its fields (RFC 9110 §4.1 asks for 8,000 at least).
        Self { head_bytes: 64 * 1024, fields: 256, target_bytes: 32 * 1024 }
    }
}

/// Where the body of a message ends (RFC 9112 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none, and nothing says how long one would be.
    Empty,
    /// After so many bytes, zero included.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

impl Framing {
    /// True when bytes of a body can follow.
    pub fn has_body(self) -> bool {
        !matches!(self, Self::Empty | Self::Length(0))
    }
}
