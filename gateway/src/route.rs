//! Which rule of a service a request falls under: the first whose every condition holds.
//!
//! [`Matcher`] says what one rule means; [`index::RuleIndex`] finds the first of thousands without asking each.

pub mod index;

use archipelago_http::{Fields, Known};
use http::{HeaderName, Method};

/// The conditions of one rule, all of which must hold; an empty matcher matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    /// In any order.
    pub conditions: Vec<Condition>,
}

/// One condition on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Exactly this method.
    Method(Method),
    /// On the path, without its query.
    Path(PathPattern),
    /// On any one line of a header.
    Header(HeaderName, Pattern),
    /// On any one parameter of the query, as it was sent.
    Query(String, Pattern),
    /// On any one cookie of this name.
    Cookie(String, Pattern),
}

/// What a path must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPattern {
    /// Exactly this.
    Exact(String),
    /// Whole path segments, as in the Gateway API: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

/// What a value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// Anything, as long as it is there.
    Present,
}

/// What conditions are about.
#[derive(Debug, Clone, Copy)]
pub struct RouteInput<'r> {
    /// Method of the request.
    pub method: &'r Method,
    /// Path, with or without its query.
    pub path: &'r [u8],
    /// Headers of the request.
    pub headers: &'r Fields,
}

impl Matcher {
    /// True when it restricts nothing.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// True when every condition holds.
    pub fn matches(&self, request: &RouteInput<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(request))
    }
}

impl Condition {
    fn holds(&self, request: &RouteInput<'_>) -> bool {
        match self {
            Self::Method(method) => method == request.method,
            Self::Path(PathPattern::Exact(path)) => without_query(request.path) == path.as_bytes(),
            Self::Path(PathPattern::Prefix(prefix)) => path_has_prefix(request.path, prefix),
            Self::Header(name, pattern) => request.headers.find_all(name.as_str()).any(|value| pattern.fits(value)),
            Self::Query(name, pattern) => {
                query_pairs(request.path).any(|(key, value)| key == name.as_bytes() && pattern.fits(value))
            }
            Self::Cookie(name, pattern) => cookies(request.headers, name).any(|value| pattern.fits(value)),
        }
    }
}

impl Pattern {
    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => value == wanted.as_bytes(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Present => true,
        }
    }
}

/// The values of the cookie `name`, in order (RFC 6265 §5.4; HTTP/2 may split the header, RFC 9113 §8.2.3).
pub fn cookies<'a>(headers: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    cookie_pairs(headers).filter(move |(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
}

fn cookie_pairs(headers: &Fields) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .get_all(Known::Cookie)
        .flat_map(|line| line.split(|byte| *byte == b';'))
        .filter_map(|pair| split_once(pair.trim_ascii(), b'='))
}

fn query_pairs(path: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let query = split_once(path, b'?').map_or(&[][..], |(_, query)| query);
    query
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| split_once(pair, b'=').unwrap_or((pair, b"")))
}

fn without_query(path: &[u8]) -> &[u8] {
    split_once(path, b'?').map_or(path, |(path, _)| path)
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (before, after) = text.split_at_checked(text.iter().position(|byte| *byte == at)?)?;
    Some((before, after.get(1..)?))
}

/// The host name that selects a service: lower case, without port and trailing dot.
pub fn host_name(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        // Not inside the brackets of an IPv6 literal.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn path_has_prefix(path: &[u8], prefix: &str) -> bool {
    path.strip_prefix(bare(prefix).as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?')))
}

/// A prefix with and without its last slash means the same.
fn bare(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in list {
            fields.push_named(name.as_bytes(), value.as_bytes()).unwrap();
        }
        fields
    }

    /// Values in other encodings than UTF-8 are nobody's fault but their own.
    #[test]
    fn bytes_beyond_ascii_hide_nothing_else() {
        let mut fields = Fields::new();
        fields.push_named(b"cookie", b"name=Andr\xe9; track=canary").unwrap();
        let canary = Matcher { conditions: vec![Condition::Cookie("track".into(), Pattern::Exact("canary".into()))] };
        let page = Matcher { conditions: vec![Condition::Query("page".into(), Pattern::Exact("2".into()))] };
        let input = RouteInput { method: &Method::GET, path: b"/caf\xe9?q=\xff&page=2", headers: &fields };
        assert!(canary.matches(&input) && page.matches(&input));
        assert_eq!(cookies(&fields, "name").collect::<Vec<_>>(), [b"Andr\xe9"]);
    }

    #[test]
    fn golden_table() {
        let one = |condition| Matcher { conditions: vec![condition] };
        let exact = |value: &str| Pattern::Exact(value.into());
        let header = |pattern| one(Condition::Header(HeaderName::from_static("x-preview"), pattern));
        let all = Matcher::default();
        let preview = header(exact("pr-42"));
        let any_preview = header(Pattern::Present);
        let previews = header(Pattern::Prefix("pr-".into()));
        let canary = one(Condition::Cookie("track".into(), exact("canary")));
        let prefix = |path: &str| Condition::Path(PathPattern::Prefix(path.into()));
        let api = Matcher { conditions: vec![prefix("/api"), Condition::Method(Method::GET)] };
        let root = one(prefix("/"));
        let health = one(Condition::Path(PathPattern::Exact("/health".into())));
        let debug = one(Condition::Query("debug".into(), Pattern::Present));
        let page = one(Condition::Query("page".into(), exact("2")));
        type Case<'a> = (&'a Matcher, &'a str, &'a str, &'a [(&'a str, &'a str)], bool);
        let cases: &[Case<'_>] = &[
            (&all, "GET", "/", &[], true),
            (&preview, "GET", "/", &[("X-Preview", "pr-42")], true),
            (&preview, "GET", "/", &[("x-preview", "pr-4")], false),
            (&preview, "GET", "/", &[("x-preview", "other"), ("x-preview", "pr-42")], true),
            (&preview, "GET", "/", &[], false),
            (&any_preview, "GET", "/", &[("x-preview", "")], true),
            (&any_preview, "GET", "/", &[], false),
            (&previews, "GET", "/", &[("x-preview", "pr-7")], true),
            (&previews, "GET", "/", &[("x-preview", "main")], false),
            (&canary, "GET", "/", &[("cookie", "a=b; track=canary")], true),
            (&canary, "GET", "/", &[("cookie", "a=b"), ("cookie", "track=canary")], true),
            (&canary, "GET", "/", &[("cookie", "track=canary2; xtrack=canary")], false),
            (&api, "GET", "/api", &[], true),
            (&api, "GET", "/api/v1?q=1", &[], true),
            (&api, "GET", "/api?q=1", &[], true),
            (&api, "GET", "/apis", &[], false),
            (&api, "POST", "/api", &[], false),
            (&root, "GET", "/anything", &[], true),
            (&health, "GET", "/health", &[], true),
            (&health, "GET", "/health?deep", &[], true),
            (&health, "GET", "/health/", &[], false),
            (&debug, "GET", "/?x=1&debug", &[], true),
            (&debug, "GET", "/debug", &[], false),
            (&page, "GET", "/?page=1&page=2", &[], true),
            (&page, "GET", "/?page=22", &[], false),
        ];
        for (matcher, method, path, list, expected) in cases {
            let method = Method::try_from(*method).unwrap();
            let headers = headers(list);
            let input = RouteInput { method: &method, path: path.as_bytes(), headers: &headers };
            assert_eq!(matcher.matches(&input), *expected, "{matcher:?} {method} {path} {list:?}");
        }
    }

    #[test]
    fn host_names() {
        for (authority, host) in [
            ("Checkout.Shop:15080", "checkout.shop"),
            ("checkout.shop.svc.clusterset.local.", "checkout.shop.svc.clusterset.local"),
            ("checkout.shop.:80", "checkout.shop"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(host_name(authority), host, "{authority}");
        }
    }
}
