//! What gateways say to each other, to backends and to clients in fields of a message, and what of that nobody else may say.

use http::HeaderMap;

use archipelago_http::Known;

/// Why a request cannot be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// RFC 9112 §3.2: exactly one Host.
    #[error("a request needs a Host header")]
    Host,
    /// The name in it is not one.
    #[error("the host name is not valid")]
    Authority,
    /// Neither a path nor an absolute `http` URI.
    #[error("the request target is not a path")]
    Target,
    /// RFC 6455 §4.2.1.
    #[error("a request to switch to WebSocket needs one Sec-WebSocket-Key: base64 of 16 bytes")]
    WebSocketKey,
}

/// Takes away what only gateways may say; for trailers, which have nothing else to lose.
pub fn strip_mesh(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_mesh(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// CGI, WSGI and their kin show `mesh_source` to an application under the name of `mesh-source`; so it is with Envoy's header.
fn is_mesh(name: &str) -> bool {
    let xfcc = Known::XForwardedClientCert.as_str();
    let is_xfcc = || {
        let names = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        name.len() == xfcc.len() && names.eq(xfcc.bytes())
    };
    name.strip_prefix("mesh").is_some_and(|rest| rest.starts_with(['-', '_'])) || is_xfcc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn what_only_gateways_may_say_is_taken_away_however_it_is_spelt() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("mesh-source", "spiffe://forged"),
            ("mesh-anything", "1"),
            ("mesh_source", "spiffe://forged"),
            ("x-forwarded-client-cert", "URI=spiffe://forged"),
            ("x_forwarded_client-cert", "URI=spiffe://forged"),
            ("x-forwarded-client", "kept"),
            ("meshes", "kept"),
            ("x-checksum", "kept"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_mesh(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["meshes", "x-checksum", "x-forwarded-client"]);
    }
}
