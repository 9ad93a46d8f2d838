//! HTTP/1.1 (RFC 9112) over the codec of `archipelago-http`: [`server`] towards clients, [`client`] towards endpoints, both over
//! a [`link`].

use archipelago_http::{Fields, h1};
use bytes::Bytes;
use http::HeaderMap;

use out::Out;

pub mod client;
pub mod link;
pub mod out;
pub mod server;
pub mod spare;

/// Appends one chunk of a body (RFC 9112 §7.1).
fn push_chunk(data: Bytes, out: &mut Out) {
    out.text().extend_from_slice(h1::chunk_head(data.len()).as_ref());
    out.push(data);
    out.text().extend_from_slice(h1::CHUNK_END);
}

/// Appends the end of a body in chunks.
fn push_last_chunk(trailers: Option<&HeaderMap>, out: &mut Out) {
    let fields = trailers.map(|trailers| {
        let mut fields = Fields::new();
        for (name, value) in trailers {
            // What a map holds is valid here, too.
            let _ = fields.push_named(name.as_str().as_bytes(), value.as_bytes());
        }
        fields
    });
    h1::last_chunk(fields.as_ref(), out.text());
}
