//! Whom a request is for: `host [ ":" port ]` (RFC 3986 §3.2, RFC 9110 §4.2).

use crate::text::is_host_byte;

/// True for a host that is not empty, with or without a port.
///
/// User information is refused: in front of a host it is a phishing trick, not a service (RFC 9110 §4.2.4).
pub(crate) fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = split(authority);
    let port_is_one = port.is_none_or(|port| {
        port.len() <= 5
            && port.iter().all(u8::is_ascii_digit)
            && port.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
    });
    port_is_one && is_host(host)
}

/// Host and port; a colon inside of brackets is part of an address.
pub(super) fn split(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let end_of_address = authority.iter().rposition(|byte| *byte == b']').map_or(0, |at| at + 1);
    let colon = authority.get(end_of_address..).and_then(|rest| rest.iter().position(|byte| *byte == b':'));
    match colon.and_then(|colon| authority.split_at_checked(end_of_address + colon)) {
        Some((host, port)) => (host, port.get(1..)),
        None => (authority, None),
    }
}

/// True when both name the same host and port, where no port is `default`.
pub(super) fn same(a: &[u8], b: &[u8], default: u16) -> bool {
    let ((host_a, port_a), (host_b, port_b)) = (split(a), split(b));
    host_a.eq_ignore_ascii_case(host_b) && number(port_a, default) == number(port_b, default)
}

fn number(port: Option<&[u8]>, default: u16) -> u32 {
    match port {
        None | Some([]) => u32::from(default),
        Some(digits) => {
            digits.iter().take(5).fold(0, |number, digit| number * 10 + u32::from(digit.wrapping_sub(b'0')))
        }
    }
}

fn is_host(host: &[u8]) -> bool {
    if let Some(address) = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        // IPv6, with a zone as browsers write it, or an IPvFuture nobody has seen.
        return !address.is_empty() && address.iter().all(|byte| is_host_byte(*byte) || matches!(byte, b':' | b'%'));
    }
    let mut rest = host;
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
            (byte, after) if is_host_byte(*byte) => after,
            _ => return false,
        };
    }
    !host.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for good in
            ["a", "checkout.shop:80", "a_b.c", "a:", "127.0.0.1:65535", "[::1]", "[fe80::1%25eth0]:80", "a%20b", "a.:1"]
        {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "user@a",
            "a b",
            "a:x",
            "a:65536",
            "a:123456",
            "a:-1",
            "a:80:80",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "[",
            "[]",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]]",
            "é",
            "a%2",
            "a%zz",
            "a\"",
            "<a>",
            "a,b:80,81",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn the_same_authority_may_be_spelt_in_several_ways() {
        for (a, b) in [("a", "A"), ("a:80", "a"), ("a:", "a:80"), ("[::1]:80", "[::1]"), ("a:0080", "a")] {
            assert!(same(a.as_bytes(), b.as_bytes(), 80), "{a} {b}");
        }
        for (a, b) in [("a", "b"), ("a:80", "a:81"), ("a", "a:443"), ("a", "a.")] {
            assert!(!same(a.as_bytes(), b.as_bytes(), 80), "{a} {b}");
        }
    }
}
