//! HTTP/3 without I/O: bytes in, messages out (RFC 9114, RFC 9204, RFC 9220).
//!
//! [`MessageDecoder`] takes the chunks of one request stream and yields head, data and trailers;
//! [`fields`] turns field sections into heads of [`archipelago_http`] and back; [`ControlDecoder`] reads a control
//! stream. Payload of DATA frames is handed on as slices of what arrived, never copied.
//!
//! Kept small on purpose: QPACK uses the static table only and never Huffman when it sends, there is no
//! dynamic table, no server push and no priority. Decoding accepts what stock peers send (Huffman, grease).

mod control;
pub mod fields;
mod frame;
mod huffman;
mod message;
mod qpack;
mod static_table;
#[cfg(test)]
mod tests;
pub mod varint;

pub use control::{ControlDecoder, ControlEvent, Mesh, Settings, goaway_frame};
pub use frame::{Frame, FrameDecoder, StreamRole, data_header};
pub use huffman::InvalidHuffman;
pub use message::{MessageDecoder, MessageEvent};

use std::fmt;

/// An HTTP/3 or QPACK error code (RFC 9114 §8.1, RFC 9204 §6), as it travels in resets and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u64);

impl Code {
    /// Nothing wrong: a clean end, or "no more body needed".
    pub const NO_ERROR: Self = Self(0x100);
    /// A violation that no other code names.
    pub const GENERAL_PROTOCOL_ERROR: Self = Self(0x101);
    /// This side broke, as when a backend fails after its response began.
    pub const INTERNAL_ERROR: Self = Self(0x102);
    /// A stream of a kind that is not accepted.
    pub const STREAM_CREATION_ERROR: Self = Self(0x103);
    /// A control stream or QPACK stream ended.
    pub const CLOSED_CRITICAL_STREAM: Self = Self(0x104);
    /// A frame where it may not stand.
    pub const FRAME_UNEXPECTED: Self = Self(0x105);
    /// A frame whose layout or size is wrong.
    pub const FRAME_ERROR: Self = Self(0x106);
    /// The peer asks for more than this side will hold.
    pub const EXCESSIVE_LOAD: Self = Self(0x107);
    /// A stream or push id out of range.
    pub const ID_ERROR: Self = Self(0x108);
    /// SETTINGS with forbidden content.
    pub const SETTINGS_ERROR: Self = Self(0x109);
    /// The control stream did not begin with SETTINGS.
    pub const MISSING_SETTINGS: Self = Self(0x10a);
    /// The request was not processed at all: safe to retry whatever it was.
    pub const REQUEST_REJECTED: Self = Self(0x10b);
    /// The request, or its response, is no longer wanted.
    pub const REQUEST_CANCELLED: Self = Self(0x10c);
    /// The stream ended inside a request.
    pub const REQUEST_INCOMPLETE: Self = Self(0x10d);
    /// A malformed message (RFC 9114 §4.1.2).
    pub const MESSAGE_ERROR: Self = Self(0x10e);
    /// The TCP connection behind a CONNECT was reset.
    pub const CONNECT_ERROR: Self = Self(0x10f);
    /// QPACK could not decode a field section.
    pub const QPACK_DECOMPRESSION_FAILED: Self = Self(0x200);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_ERROR => "H3_NO_ERROR",
            Self::GENERAL_PROTOCOL_ERROR => "H3_GENERAL_PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "H3_INTERNAL_ERROR",
            Self::STREAM_CREATION_ERROR => "H3_STREAM_CREATION_ERROR",
            Self::CLOSED_CRITICAL_STREAM => "H3_CLOSED_CRITICAL_STREAM",
            Self::FRAME_UNEXPECTED => "H3_FRAME_UNEXPECTED",
            Self::FRAME_ERROR => "H3_FRAME_ERROR",
            Self::EXCESSIVE_LOAD => "H3_EXCESSIVE_LOAD",
            Self::ID_ERROR => "H3_ID_ERROR",
            Self::SETTINGS_ERROR => "H3_SETTINGS_ERROR",
            Self::MISSING_SETTINGS => "H3_MISSING_SETTINGS",
            Self::REQUEST_REJECTED => "H3_REQUEST_REJECTED",
            Self::REQUEST_CANCELLED => "H3_REQUEST_CANCELLED",
            Self::REQUEST_INCOMPLETE => "H3_REQUEST_INCOMPLETE",
            Self::MESSAGE_ERROR => "H3_MESSAGE_ERROR",
            Self::CONNECT_ERROR => "H3_CONNECT_ERROR",
            Self::QPACK_DECOMPRESSION_FAILED => "QPACK_DECOMPRESSION_FAILED",
            Self(other) => return write!(f, "error {other:#x}"),
        };
        f.write_str(name)
    }
}

/// What a peer's violation costs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Reset the stream; the others go on.
    Stream,
    /// Close the connection.
    Connection,
}

/// A violation of HTTP/3 by the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({code})")]
pub struct ProtocolError {
    /// The code to reset or close with.
    pub code: Code,
    /// How much the violation ends.
    pub scope: Scope,
    /// What was wrong, for the log and the close reason.
    pub what: &'static str,
}

impl ProtocolError {
    /// An error of one stream.
    pub const fn stream(code: Code, what: &'static str) -> Self {
        Self { code, scope: Scope::Stream, what }
    }

    /// An error that closes the connection.
    pub const fn connection(code: Code, what: &'static str) -> Self {
        Self { code, scope: Scope::Connection, what }
    }
}

/// Bounds on what one message may make us hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one field section, encoded and decoded (RFC 9114 §4.2.2 counts name + value + 32).
    /// 96 KiB: what an HTTP/1.1 head of 64 KiB with the most fields comes to, and what gateways add. All legs have this limit.
    pub field_section_bytes_max: usize,
    /// Fields in one section. 512: more than legs accept, so that none is lost between them.
    pub fields_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { field_section_bytes_max: 96 * 1024, fields_max: 512 }
    }
}
