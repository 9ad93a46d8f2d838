//! Which rule of a service a request falls under: the first whose every given condition holds.

use http::{HeaderMap, HeaderName, Method, header};

/// The conditions of one rule; an empty matcher matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    /// Each must be present with exactly this value (any one line of a repeated header counts).
    pub headers: Vec<(HeaderName, String)>,
    /// Each must be present with exactly this value.
    pub cookies: Vec<(String, String)>,
    /// Whole path segments, as in the Gateway API: `/a` matches `/a` and `/a/b`, not `/ab`.
    pub path_prefix: Option<String>,
    /// Exactly this method.
    pub method: Option<Method>,
}

impl Matcher {
    /// True when it restricts nothing.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// True when every condition holds.
    pub fn matches(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.method.as_ref().is_none_or(|m| m == method)
            && self.path_prefix.as_ref().is_none_or(|prefix| path_has_prefix(path, prefix))
            && self
                .headers
                .iter()
                .all(|(name, value)| headers.get_all(name).iter().any(|v| v.as_bytes() == value.as_bytes()))
            && self.cookies.iter().all(|(name, value)| cookies(headers, name).any(|v| v == value))
    }
}

/// The values of the cookie `name`, in order (RFC 6265 §5.4; HTTP/2 may split the header, RFC 9113 §8.2.3).
pub fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| value)
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

fn path_has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn golden_table() {
        let preview =
            Matcher { headers: vec![(HeaderName::from_static("x-preview"), "pr-42".into())], ..Matcher::default() };
        let canary = Matcher { cookies: vec![("track".into(), "canary".into())], ..Matcher::default() };
        let api = Matcher { path_prefix: Some("/api".into()), method: Some(Method::GET), ..Matcher::default() };
        let root = Matcher { path_prefix: Some("/".into()), ..Matcher::default() };
        type Case<'a> = (&'a Matcher, &'a str, &'a str, &'a [(&'a str, &'a str)], bool);
        let cases: &[Case<'_>] = &[
            (&Matcher::default(), "GET", "/", &[], true),
            (&preview, "GET", "/", &[("X-Preview", "pr-42")], true),
            (&preview, "GET", "/", &[("x-preview", "pr-4")], false),
            (&preview, "GET", "/", &[("x-preview", "other"), ("x-preview", "pr-42")], true),
            (&preview, "GET", "/", &[], false),
            (&canary, "GET", "/", &[("cookie", "a=b; track=canary")], true),
            (&canary, "GET", "/", &[("cookie", "a=b"), ("cookie", "track=canary")], true),
            (&canary, "GET", "/", &[("cookie", "track=canary2; xtrack=canary")], false),
            (&api, "GET", "/api", &[], true),
            (&api, "GET", "/api/v1?q=1", &[], true),
            (&api, "GET", "/api?q=1", &[], true),
            (&api, "GET", "/apis", &[], false),
            (&api, "POST", "/api", &[], false),
            (&root, "GET", "/anything", &[], true),
        ];
        for (matcher, method, path, list, expected) in cases {
            let method = Method::try_from(*method).unwrap();
            assert_eq!(
                matcher.matches(&method, path, &headers(list)),
                *expected,
                "{matcher:?} {method} {path} {list:?}"
            );
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
