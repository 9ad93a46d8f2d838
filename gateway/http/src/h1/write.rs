//! Heads and chunks to HTTP/1.1.
//!
//! Framing, `Host` and `Connection` are written here alone, from what a message is; fields of that name in a head are left out.
//! Everything else is written as it is: what must not cross a gateway is taken away before
//! ([`Fields::strip_hop_by_hop`], [`Fields::strip_mesh`]).

use http::{Method, Version};

use super::Framing;
use crate::fields::Fields;
use crate::head::{RequestHead, ResponseHead};
use crate::name::Known;
use crate::text::push_decimal;

/// What a response says about the connection it goes out on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: the client speaks HTTP/1.1, the connection goes on.
    Implied,
    /// `keep-alive`: the client speaks HTTP/1.0 and asked for it.
    KeepAlive,
    /// `close`.
    Close,
}

impl Persistence {
    /// For a client of that version whose connection goes on or not.
    pub fn of(persistent: bool, client: Version) -> Self {
        match (persistent, client) {
            (false, _) => Self::Close,
            (true, Version::HTTP_10) => Self::KeepAlive,
            (true, _) => Self::Implied,
        }
    }
}

/// Appends the head of a request in origin form (RFC 9112 §3.2.1), its authority as `Host`, then `block`: whole lines, each with its CR LF.
///
/// `TE` and `Upgrade` are named in a `Connection` of our own if the head has them (RFC 9110 §7.6.1).
pub fn write_request(head: &RequestHead, framing: Framing, block: &[u8], out: &mut Vec<u8>) {
    let authority = head.authority().unwrap_or_default();
    let target = if head.method == Method::CONNECT { authority } else { head.path() };
    // One look at the capacity; what is appended below then grows it once at most.
    out.reserve(
        head.method.as_str().len() + target.len() + authority.len() + head.fields.text_bytes() + block.len() + 128,
    );
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(if target.is_empty() { b"/" } else { target });
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(authority);
    out.extend_from_slice(b"\r\n");
    match framing {
        // A request is never ended by its connection: who cannot say how long it is sends chunks.
        Framing::Chunked | Framing::UntilClose => out.extend_from_slice(CHUNKED),
        Framing::Length(length) => push_length(length, out),
        Framing::Empty => {}
    }
    head.fields.write_lines(false, out);
    push_nominations(&head.fields, None, out);
    out.extend_from_slice(block);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of a final response, or of 101; then `block`: whole lines, each with its CR LF.
///
/// [`Framing::Empty`] leaves `Content-Length` as it is, which answers to HEAD and 304 may have.
pub fn write_response(
    head: &ResponseHead,
    framing: Framing,
    persistence: Persistence,
    block: &[u8],
    out: &mut Vec<u8>,
) {
    status_line(head, block.len(), out);
    match framing {
        Framing::Chunked => out.extend_from_slice(CHUNKED),
        Framing::Length(length) => push_length(length, out),
        Framing::Empty | Framing::UntilClose => {}
    }
    head.fields.write_lines(framing == Framing::Empty, out);
    let option: Option<&[u8]> = match persistence {
        Persistence::Implied => None,
        Persistence::KeepAlive => Some(b"keep-alive"),
        Persistence::Close => Some(b"close"),
    };
    push_nominations(&head.fields, option, out);
    out.extend_from_slice(block);
    out.extend_from_slice(b"\r\n");
}

/// Appends an interim response (RFC 9110 §15.2). Never for a client of HTTP/1.0, which would take it for the final one.
pub fn write_interim(head: &ResponseHead, out: &mut Vec<u8>) {
    status_line(head, 0, out);
    head.fields.write_lines(false, out);
    out.extend_from_slice(b"\r\n");
}

/// `size CR LF`, to be followed by so many bytes and another CR LF.
#[derive(Debug, Clone, Copy)]
pub struct ChunkHead {
    bytes: [u8; 18],
    from: usize,
}

impl AsRef<[u8]> for ChunkHead {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.from..).unwrap_or_default()
    }
}

/// The head of a chunk of `length` bytes. None has 0: that would end the body, see [`last_chunk`].
pub fn chunk_head(length: usize) -> ChunkHead {
    debug_assert!(length > 0, "an empty chunk is the last");
    let mut bytes = [b'\n'; 18];
    let [digits @ .., carriage_return, _] = &mut bytes;
    *carriage_return = b'\r';
    let (mut left, mut used) = (length, 0);
    for digit in digits.iter_mut().rev() {
        *digit = match (left % 16) as u8 {
            value @ 0..=9 => b'0' + value,
            value => b'a' + value - 10,
        };
        left /= 16;
        used += 1;
        if left == 0 {
            break;
        }
    }
    ChunkHead { bytes, from: 16 - used }
}

/// What follows the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Appends the end of a chunked body.
pub fn last_chunk(trailers: Option<&Fields>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write_lines(false, out);
    }
    out.extend_from_slice(b"\r\n");
}

fn status_line(head: &ResponseHead, block: usize, out: &mut Vec<u8>) {
    out.reserve(head.reason().len() + head.fields.text_bytes() + block + 128);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.reason());
    out.extend_from_slice(b"\r\n");
}

fn push_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    push_decimal(length, out);
    out.extend_from_slice(b"\r\n");
}

/// `Connection`, if there is anything to say.
fn push_nominations(fields: &Fields, option: Option<&[u8]>, out: &mut Vec<u8>) {
    let te: Option<&[u8]> = fields.contains(Known::Te).then_some(b"te");
    let upgrade: Option<&[u8]> = fields.contains(Known::Upgrade).then_some(b"upgrade");
    let mut separator: &[u8] = b"connection: ";
    for option in [option, te, upgrade].into_iter().flatten() {
        out.extend_from_slice(separator);
        out.extend_from_slice(option);
        separator = b", ";
    }
    if separator == b", " {
        out.extend_from_slice(b"\r\n");
    }
}

const CHUNKED: &[u8] = b"transfer-encoding: chunked\r\n";
