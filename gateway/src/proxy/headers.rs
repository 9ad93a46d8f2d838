//! Which headers cross a gateway: hop-by-hop ones do not (RFC 9110 §7.6.1), `mesh-*` ones only between gateways, and who a client is
//! says the gateway alone.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, request};

/// Why a request is not well-formed enough to forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// RFC 9112 §3.2: exactly one Host.
    #[error("a request needs exactly one Host header")]
    Host,
    /// The name in it is not one.
    #[error("the host name is not valid")]
    Authority,
    /// Neither a path nor an absolute `http` URI.
    #[error("the request target is not a path")]
    Target,
}

/// The authority that a request names, checked (RFC 9112 §3.2.2: an absolute target overrides Host).
pub fn authority(parts: &request::Parts) -> Result<Authority, Malformed> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::Host);
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| Malformed::Authority)?,
        (None, None) => return Err(Malformed::Host),
    };
    if parts.version == Version::HTTP_11 && host.is_none() {
        return Err(Malformed::Host);
    }
    // Credentials in an authority are a phishing trick, not a service (RFC 9110 §4.2.4).
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(Malformed::Authority);
    }
    Ok(authority)
}

/// The path of a request that can be forwarded: origin form, absolute form, or `*` for OPTIONS.
pub fn target(parts: &request::Parts) -> Result<PathAndQuery, Malformed> {
    match parts.uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') => Ok(path.clone()),
        Some(path) if path.as_str() == "*" && parts.method == Method::OPTIONS => Ok(path.clone()),
        _ => Err(Malformed::Target),
    }
}

/// Takes away what only concerns the connection a message came on, and what only gateways may say.
///
/// Returns true when the sender accepts trailers (`TE: trailers`, RFC 9110 §10.1.4).
pub fn strip(headers: &mut HeaderMap) -> bool {
    // Most messages have nothing of the kind; one pass over the names costs less than a lookup for each.
    if !headers.keys().any(|name| concerns_hop(name.as_str())) {
        return false;
    }
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers"))));
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            // Framing and routing cannot be made hop-by-hop by a sender (that is how caches and rules are tricked).
            .filter(|name| ![HOST, CONTENT_LENGTH].contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    strip_mesh(headers);
    trailers
}

/// True for names in [`HOP_BY_HOP`] and those that only gateways may say.
fn concerns_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "expect"
            | "keep-alive"
            | "proxy-connection"
            | "http2-settings"
    ) || is_mesh(name)
}

/// Takes away what only gateways may say; for trailers, which have nothing else to lose.
pub fn strip_mesh(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_mesh(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// Several `cookie` fields, as HTTP/2 and HTTP/3 may have them, become the one line that HTTP/1.1 and rules know (RFC 9113 §8.2.3,
/// RFC 9114 §4.2.1).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Values with what is allowed in values between them.
    if let Ok(line) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, line);
    }
}

/// CGI, WSGI and their kin show `mesh_source` to an application under the name of `mesh-source`; so it is with Envoy's header.
fn is_mesh(name: &str) -> bool {
    let is_xfcc = || {
        let names = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        name.len() == XFCC.as_str().len() && names.eq(XFCC.as_str().bytes())
    };
    name.strip_prefix("mesh").is_some_and(|rest| rest.starts_with(['-', '_'])) || is_xfcc()
}

/// `TE: trailers` for the next hop; HTTP/1.1 must also name it in Connection (RFC 9110 §10.1.4).
pub fn accept_trailers(headers: &mut HeaderMap, http1: bool) {
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if http1 {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// `http://authority/path`.
pub fn absolute(authority: &Authority, path: &PathAndQuery) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path.clone());
    Uri::from_parts(parts).ok()
}

/// Methods whose repetition has the effect of one (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    // The gateway answered the expectation itself (RFC 9110 §10.1.1).
    EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Identity of the caller as the ingress gateway vouches for it.
pub const MESH_SOURCE: HeaderName = HeaderName::from_static("mesh-source");
/// The same to backends, as Envoy tells it: `URI=<SPIFFE id>`; absent when the caller is not known.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Cluster at which the request entered.
pub const MESH_CLUSTER: HeaderName = HeaderName::from_static("mesh-cluster");
/// Counts from 1.
pub const MESH_ATTEMPT: HeaderName = HeaderName::from_static("mesh-attempt");
/// Gateways passed so far.
pub const MESH_HOP: HeaderName = HeaderName::from_static("mesh-hop");
/// Milliseconds that are left for a response to begin.
pub const MESH_DEADLINE_MS: HeaderName = HeaderName::from_static("mesh-deadline-ms");
/// "namespace/name" of the service, between gateways.
pub const MESH_SERVICE: HeaderName = HeaderName::from_static("mesh-service");
/// Number of the service's port, between gateways; absent: the first.
pub const MESH_PORT: HeaderName = HeaderName::from_static("mesh-port");
/// Only endpoints of this version, between gateways.
pub const MESH_VERSION: HeaderName = HeaderName::from_static("mesh-version");
/// Why a gateway made this response itself, between gateways and to clients.
pub const MESH_FAILURE: HeaderName = HeaderName::from_static("mesh-failure");
/// "cluster/gateway" that served, to clients.
pub const MESH_SERVED_BY: HeaderName = HeaderName::from_static("mesh-served-by");

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(build: impl FnOnce(request::Builder) -> request::Builder) -> request::Parts {
        build(http::Request::builder()).body(()).unwrap().into_parts().0
    }

    #[test]
    fn rfc9113_s8_2_3_cookies_become_one_line() {
        let mut headers = HeaderMap::new();
        join_cookies(&mut headers);
        assert!(headers.is_empty());
        for crumb in ["a=1", "b=2; c=3", "d=\u{e9}"] {
            headers.append(COOKIE, HeaderValue::from_bytes(crumb.as_bytes()).unwrap());
        }
        join_cookies(&mut headers);
        let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(lines, ["a=1; b=2; c=3; d=\u{e9}".as_bytes()]);
    }

    #[test]
    fn strips_what_belongs_to_the_connection_and_to_gateways() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("connection", "host, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("proxy-connection", "close"),
            ("mesh-source", "spiffe://forged"),
            ("mesh-hop", "0"),
            ("mesh-anything", "1"),
            ("mesh_source", "spiffe://forged"),
            ("mesh_hop", "0"),
            ("x-forwarded-client-cert", "URI=spiffe://forged"),
            ("x_forwarded_client-cert", "URI=spiffe://forged"),
            ("x-forwarded-client", "kept"),
            ("meshes", "kept"),
            ("host", "checkout.shop"),
            ("content-length", "0"),
            ("traceparent", "00-a-b-01"),
            ("tracestate", "x=1"),
            ("trailer", "x-checksum"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert!(strip(&mut headers));
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["content-length", "host", "meshes", "traceparent", "tracestate", "trailer", "x-forwarded-client"]
        );
    }

    #[test]
    fn the_quick_look_knows_every_hop_by_hop_name() {
        for name in HOP_BY_HOP {
            assert!(concerns_hop(name.as_str()), "{name}");
        }
        let mut plain = HeaderMap::from_iter([(HOST, HeaderValue::from_static("a"))]);
        assert!(!strip(&mut plain));
        assert_eq!(plain.len(), 1);
    }

    #[test]
    fn authorities_and_targets() {
        let host = |list: &[&str], uri: &str| {
            parts(|mut b| {
                for host in list {
                    b = b.header(HOST, *host);
                }
                b.uri(uri)
            })
        };
        assert_eq!(authority(&host(&["checkout.shop:80"], "/")).unwrap().as_str(), "checkout.shop:80");
        assert_eq!(authority(&host(&["a"], "http://b/")).unwrap().as_str(), "b");
        assert_eq!(authority(&host(&[], "/")), Err(Malformed::Host));
        assert_eq!(authority(&host(&["a", "a"], "/")), Err(Malformed::Host));
        assert_eq!(authority(&host(&["user@a"], "/")), Err(Malformed::Authority));
        assert_eq!(authority(&host(&["a b"], "/")), Err(Malformed::Authority));
        assert_eq!(target(&host(&["a"], "/x?y=1")).unwrap().as_str(), "/x?y=1");
        assert_eq!(target(&parts(|b| b.method(Method::CONNECT).uri("a:80"))), Err(Malformed::Target));
        assert!(target(&parts(|b| b.method(Method::OPTIONS).uri("*"))).is_ok());
        assert_eq!(target(&parts(|b| b.uri("*"))), Err(Malformed::Target));
    }
}
