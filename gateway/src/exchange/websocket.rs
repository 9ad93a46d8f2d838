//! WebSocket as gateways carry it, without I/O: one form inside, and what each protocol makes of it at its edge.
//!
//! Inside it is a request like any other: GET, its [`protocol`](RequestHead::protocol) said, with a body that nobody reads before the
//! answer; 101 is the answer that switches, any other is a plain response. Keys are of one connection (RFC 6455 §1.3) and of HTTP/1.1
//! only (RFC 8441 §5): they are checked and made at the edges.
//!
//! | edge | asks | says that it switches |
//! | --- | --- | --- |
//! | HTTP/1.1 (RFC 6455) | GET with `Upgrade`, `Connection` and a key | 101 and what follows from the key |
//! | HTTP/2 (RFC 8441), HTTP/3 (RFC 9220) | CONNECT with `:protocol` | 2xx |

use archipelago_http::{Fields, Known, RequestHead, ResponseHead};
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, StatusCode};

/// The name by which it is asked for.
pub const PROTOCOL: &str = "websocket";

/// True for a request to switch, from wherever it came.
pub fn is_asked(head: &RequestHead) -> bool {
    head.protocol.is_some()
}

/// True for one that asks as nobody may (RFC 6455 §4.2.1).
pub fn is_malformed(head: &RequestHead) -> bool {
    head.protocol.as_deref() == Some(KEYLESS)
}

/// Makes a head of HTTP/1.1 that offers to switch one that asks for it. Returns what the client has to be told when that is done; `None`
/// when its key is none, and the head malformed.
pub fn from_http1(head: &mut RequestHead) -> Option<String> {
    let accept = single(&head.fields, KEY).and_then(accept);
    head.protocol = Some(if accept.is_some() { PROTOCOL } else { KEYLESS }.into());
    head.fields.remove_named(KEY.as_bytes());
    accept
}

/// The same of an extended CONNECT of HTTP/2 or HTTP/3 for `protocol`. False when it is for something else.
pub fn from_connect(head: &mut RequestHead, protocol: &str) -> bool {
    let is_it = head.method == Method::CONNECT && protocol.eq_ignore_ascii_case(PROTOCOL);
    if is_it {
        (head.method, head.protocol) = (Method::GET, Some(PROTOCOL.into()));
        // They are of HTTP/1.1 (RFC 8441 §5).
        head.fields.remove_named(KEY.as_bytes());
    }
    is_it
}

/// The same of one out of a tunnel.
pub fn of_peer(head: &mut RequestHead) -> bool {
    let Some(protocol) = head.protocol.take() else { return false };
    let is_it = from_connect(head, &protocol);
    head.protocol = Some(protocol);
    is_it
}

/// What is added to a head for an endpoint of HTTP/1.1, and what its answer must say: `random` is its own.
pub fn offer(random: [u8; 16]) -> (String, String) {
    let key = BASE64_STANDARD.encode(random);
    let accept = accept(key.as_bytes()).unwrap_or_default();
    (format!("upgrade: {PROTOCOL}\r\nconnection: upgrade\r\n{KEY}: {key}\r\n"), accept)
}

/// True when a 101 of HTTP/1.1 is the answer to the offer whose answer must say `accept` (RFC 6455 §4.1). Any other could be made of
/// what a client made an endpoint say, and what follows it would be read as if it were from nobody.
pub fn agrees(head: &ResponseHead, accept: &str) -> bool {
    let upgraded = single_known(&head.fields, Known::Upgrade);
    let connection = |value: &[u8]| {
        value.split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    upgraded.is_some_and(|value| value.eq_ignore_ascii_case(PROTOCOL.as_bytes()))
        && head.fields.get_all(Known::Connection).any(connection)
        && single(&head.fields, ACCEPT) == Some(accept.as_bytes())
}

/// What switches, without what only one connection is concerned with.
pub fn switched(head: &mut ResponseHead) {
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    head.fields.remove_named(ACCEPT.as_bytes());
    head.fields.remove(Known::ContentLength);
}

/// Makes 101 what a client of HTTP/1.1 has to be told.
pub fn to_http1(head: &mut ResponseHead, accept: &str) {
    head.fields.set(Known::Upgrade, PROTOCOL.as_bytes());
    // Base64 is a value.
    let _ = head.fields.push_named(ACCEPT.as_bytes(), accept.as_bytes());
}

/// Makes an answer one to an extended CONNECT, where 2xx says that it switches. What is 2xx without switching cannot be said there: false.
pub fn to_connect(head: &mut ResponseHead) -> bool {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        head.status = StatusCode::OK;
        return true;
    }
    !head.status.is_success()
}

/// The same to another gateway, which can be told.
pub fn to_peer(head: &mut ResponseHead) {
    if !to_connect(head) {
        head.fields.remove(Known::ContentLength);
        let _ = head.fields.push_named(PLAIN.as_bytes(), b"1");
    }
}

/// What another gateway said.
pub fn from_peer(head: &mut ResponseHead) {
    if head.status.is_success() && head.fields.find(PLAIN).is_none() {
        switched(head);
    }
}

/// RFC 6455 §4.2.2: what proves that this key was read, if it is one: base64 of 16 bytes.
fn accept(key: &[u8]) -> Option<String> {
    let random = BASE64_STANDARD.decode(key).ok()?;
    let sum = |key: &[u8]| {
        let mut sum = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        sum.update(key);
        sum.update(GUID);
        BASE64_STANDARD.encode(sum.finish())
    };
    (random.len() == 16).then(|| sum(key))
}

fn single<'a>(fields: &'a Fields, name: &'a str) -> Option<&'a [u8]> {
    let mut all = fields.find_all(name);
    all.next().filter(|_| all.next().is_none())
}

fn single_known(fields: &Fields, name: Known) -> Option<&[u8]> {
    let mut all = fields.get_all(name);
    all.next().filter(|_| all.next().is_none())
}

/// In the place of [`PROTOCOL`]; no protocol is called so.
const KEYLESS: &str = "websocket without a key";
const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";
/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Between gateways: an endpoint answered with 2xx and did not switch. Fields of this kind are taken away from everybody else's.
const PLAIN: &str = "mesh-not-switched";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc6455_s1_3_the_example() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ==").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        for no_key in [&b""[..], b"dGhl", b"not base64", b"dGhlIHNhbXBsZSBub25jZTE="] {
            assert_eq!(accept(no_key), None, "{no_key:?}");
        }
    }

    #[test]
    fn only_the_answer_to_the_offer_switches() {
        let (block, proof) = offer([7; 16]);
        assert!(block.starts_with("upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: "));
        let answer = |fields: &[(&str, &str)]| {
            let mut head = ResponseHead::of(StatusCode::SWITCHING_PROTOCOLS);
            for (name, value) in fields {
                head.fields.push_named(name.as_bytes(), value.as_bytes()).unwrap();
            }
            agrees(&head, &proof)
        };
        let (upgrade, connection, accept) =
            (("upgrade", "WebSocket"), ("connection", "x, Upgrade"), ("sec-websocket-accept", proof.as_str()));
        assert!(answer(&[upgrade, connection, accept]));
        assert!(!answer(&[upgrade, connection]));
        assert!(!answer(&[upgrade, accept]));
        assert!(!answer(&[connection, accept]));
        assert!(!answer(&[upgrade, connection, accept, accept]));
        assert!(!answer(&[("upgrade", "h2c"), connection, accept]));
        assert!(!answer(&[upgrade, upgrade, connection, accept]));
        assert!(!answer(&[upgrade, connection, ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]));
    }

    #[test]
    fn a_plain_answer_is_one_behind_a_tunnel_too() {
        for (status, there, back) in
            [(101, 200, 101), (200, 200, 200), (204, 204, 204), (404, 404, 404), (302, 302, 302)]
        {
            let mut head = ResponseHead::of(StatusCode::from_u16(status).unwrap());
            to_peer(&mut head);
            assert_eq!(head.status, there, "{status}");
            from_peer(&mut head);
            assert_eq!(head.status, back, "{status}");
        }
    }
}
