//! Which requests are those of a browser that shows our page, and what browsers are told to forbid. Pure.
//!
//! Three things are in the way of other pages: they must name this host (a name of theirs that is made to lead here is refused), they
//! cannot read answers (there is no CORS), and they cannot write, since that takes our origin and a header that forms cannot send.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

/// Where the page is found.
#[derive(Debug, Clone)]
pub struct Site {
    listen: SocketAddr,
    /// As browsers are sent there: scheme, host and port, without a slash at the end.
    origin: String,
    is_secure: bool,
}

impl Site {
    /// Of a listener, with TLS or without; `url`: how browsers reach it, if not by its address.
    ///
    /// # Errors
    /// A sentence: this would carry secrets in the clear, or nobody could find it.
    pub fn new(listen: SocketAddr, has_tls: bool, url: Option<&str>) -> Result<Self, String> {
        if !has_tls && !listen.ip().is_loopback() {
            return Err(format!(
                "--dashboard {listen} would carry sessions of operators in the clear: give --dashboard-cert and --dashboard-key, or \
                 listen on 127.0.0.1 and let people forward a port"
            ));
        }
        let Some(url) = url else {
            if listen.ip().is_unspecified() {
                return Err(format!(
                    "--dashboard {listen} is every address and none that a browser finds: say how it is reached with \
                     --dashboard-url https://HOST:{}",
                    listen.port()
                ));
            }
            let scheme = if has_tls { "https" } else { "http" };
            return Ok(Self { listen, origin: format!("{scheme}://{listen}"), is_secure: has_tls });
        };
        let refused =
            |why: &str| Err(format!("--dashboard-url {url:?} {why}; it looks like https://mesh.example:7443"));
        let Ok(parsed) = url.parse::<Uri>() else { return refused("is no URL") };
        let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
            return refused("has no scheme or no host");
        };
        if !matches!(scheme, "http" | "https") || !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
            return refused("has more than http or https, a host and a port");
        }
        if authority.as_str().contains('@') {
            return refused("names a user");
        }
        if scheme == "http" && !is_loopback(authority.host()) {
            return refused("is in the clear and not on this machine");
        }
        let origin = format!("{scheme}://{}", authority.as_str().to_ascii_lowercase());
        Ok(Self { listen, origin, is_secure: scheme == "https" })
    }

    /// The address for people.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether browsers come by TLS.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The cookie of a session. Cookies do not know ports: without this one's in its name, two members on one machine would take each
    /// other's.
    #[must_use]
    pub fn cookie_name(&self) -> String {
        let prefix = if self.is_secure { "__Host-" } else { "" };
        format!("{prefix}archipelago-{}", self.listen.port())
    }

    /// The header that gives a browser its session; an empty secret takes it away.
    #[must_use]
    pub fn set_cookie(&self, secret: &str, seconds: u64) -> String {
        let secure = if self.is_secure { "; Secure" } else { "" };
        format!("{}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}", self.cookie_name())
    }

    /// The secret of the session that a browser shows. Two of the name are none: somebody else has put one there.
    #[must_use]
    pub fn session<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let name = self.cookie_name();
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut own = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
        own.next().filter(|secret| secret.len() <= SECRET_BYTES_MAX && own.next().is_none())
    }

    /// Whether a request is one of our page, or of a person who opens it.
    ///
    /// # Errors
    /// What is wrong with it, and what that is answered with.
    pub fn admit(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        let host = self.host(uri, headers)?;
        let is_api = uri.path().starts_with("/api/");
        // What a browser says by itself of who asks; absent: an old one, or none.
        let site = headers.get(&SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        match (method, is_api) {
            (&Method::GET | &Method::HEAD, false) => Ok(()),
            (&Method::GET, true) if matches!(site, None | Some(b"same-origin" | b"none")) => Ok(()),
            (&Method::POST, true) => {
                if !matches!(site, None | Some(b"same-origin")) {
                    return Err(Foreign::Origin);
                }
                let mut origins = headers.get_all(header::ORIGIN).iter();
                let origin = origins.next().and_then(|origin| origin.to_str().ok()).ok_or(Foreign::Origin)?;
                let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
                if origins.next().is_some() || authority.is_none_or(|authority| !authority.eq_ignore_ascii_case(host)) {
                    return Err(Foreign::Origin);
                }
                let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                let kind = kind.split(';').next().unwrap_or_default().trim();
                if headers.get(&PAGE_HEADER).is_none_or(|value| value != "1") || !kind.eq_ignore_ascii_case(JSON) {
                    return Err(Foreign::NotThePage);
                }
                Ok(())
            }
            (&Method::GET, true) => Err(Foreign::Origin),
            _ => Err(Foreign::Method),
        }
    }

    /// The host that a request names, if it is one of this site.
    fn host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Foreign> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let named = hosts.next().and_then(|host| host.to_str().ok()).ok_or(Foreign::Host)?;
        let agrees = uri.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(named));
        if hosts.next().is_some() || !agrees {
            return Err(Foreign::Host);
        }
        let own = self.origin.split_once("://").map_or("", |(_, authority)| authority);
        let is_own = named.eq_ignore_ascii_case(own) || named.eq_ignore_ascii_case(&self.listen.to_string());
        // Whatever port was forwarded to here: a name that somebody else's DNS answers is neither of these.
        let is_here = self.listen.ip().is_loopback() && is_loopback(without_port(named));
        if is_own || is_here { Ok(named) } else { Err(Foreign::Host) }
    }
}

/// A request that is not our page's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It came by a name that is not ours.
    #[error("the dashboard is not served under this name: open the address that `meshctl dashboard` prints")]
    Host,
    /// Another page makes it.
    #[error("this request was made by another page")]
    Origin,
    /// It lacks what our page sends.
    #[error("a request that changes something is sent by the page itself: JSON, with `x-archipelago-page: 1`")]
    NotThePage,
    /// There is nothing of this kind.
    #[error("there is nothing here for this method")]
    Method,
}

impl Foreign {
    /// What it is answered with.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin | Self::NotThePage => StatusCode::FORBIDDEN,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// Tells a browser what nothing of this site may do. Goes with every answer, errors too.
pub fn protect(headers: &mut HeaderMap) {
    for (name, value) in PROTECTION {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// `localhost`, and addresses that never leave the machine.
fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Scripts and styles are files of this site, nothing is loaded from elsewhere, nobody may show it in a frame, nothing is kept on a disk.
const PROTECTION: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=(), payment=()"),
];
/// Only scripts of a page's own origin can send it without asking us first, and we agree to nothing.
pub const PAGE_HEADER: HeaderName = HeaderName::from_static("x-archipelago-page");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const JSON: &str = "application/json";
/// Ours have 43.
const SECRET_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn site(listen: &str, has_tls: bool, url: Option<&str>) -> Site {
        Site::new(listen.parse().unwrap(), has_tls, url).unwrap()
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn in_the_clear_on_this_machine_only() {
        let made = |listen: &str, tls, url| Site::new(listen.parse().unwrap(), tls, url).map(|site| site.origin);
        let url = Some("https://mesh.example:7443/");
        for (listen, tls, url, expected) in [
            ("127.0.0.1:7430", false, None, Ok("http://127.0.0.1:7430")),
            ("[::1]:7430", false, None, Ok("http://[::1]:7430")),
            ("127.0.0.1:7430", true, None, Ok("https://127.0.0.1:7430")),
            ("10.0.0.1:7430", true, None, Ok("https://10.0.0.1:7430")),
            ("0.0.0.0:7430", true, url, Ok("https://mesh.example:7443")),
            // A proxy on this machine has the certificate.
            ("127.0.0.1:7430", false, url, Ok("https://mesh.example:7443")),
            ("127.0.0.1:7430", false, Some("http://LOCALHOST:1"), Ok("http://localhost:1")),
            ("10.0.0.1:7430", false, None, Err("--dashboard-cert")),
            ("0.0.0.0:7430", false, url, Err("--dashboard-cert")),
            ("[::]:7430", true, None, Err("--dashboard-url")),
            ("127.0.0.1:1", false, Some("http://mesh.example"), Err("in the clear")),
            ("127.0.0.1:1", false, Some("mesh.example"), Err("no scheme")),
            ("127.0.0.1:1", false, Some("ftp://mesh.example"), Err("more than")),
            ("127.0.0.1:1", false, Some("https://mesh.example/x"), Err("more than")),
            ("127.0.0.1:1", false, Some("https://u:p@mesh.example"), Err("user")),
            ("127.0.0.1:1", false, Some("\u{7}"), Err("no URL")),
        ] {
            match (made(listen, tls, url), expected) {
                (Ok(made), Ok(expected)) => assert_eq!(made, expected),
                (Err(said), Err(part)) => assert!(said.contains(part), "{said}"),
                (made, expected) => panic!("{listen} {url:?}: {made:?}, not {expected:?}"),
            }
        }
    }

    /// A page of somebody else's reaches us by a name of theirs that they make lead to 127.0.0.1.
    #[test]
    fn names_of_others_are_refused() {
        let loopback = site("127.0.0.1:7430", false, None);
        let public = site("10.0.0.1:7443", true, Some("https://mesh.example:7443"));
        let proxied = site("127.0.0.1:7430", false, Some("https://mesh.example"));
        for (site, host, expected) in [
            (&loopback, "127.0.0.1:7430", true),
            (&loopback, "localhost:7430", true),
            (&loopback, "LocalHost:9999", true),
            (&loopback, "localhost", true),
            (&loopback, "[::1]:7430", true),
            (&loopback, "127.1.2.3:80", true),
            (&loopback, "evil.example:7430", false),
            (&loopback, "127.0.0.1.evil.example:7430", false),
            (&loopback, "localhost.evil.example", false),
            (&loopback, "127.0.0.1:7430@evil.example", false),
            (&loopback, "localhost:x", false),
            (&loopback, "10.0.0.1:7430", false),
            (&loopback, "0.0.0.0:7430", false),
            (&loopback, "", false),
            (&public, "mesh.example:7443", true),
            (&public, "MESH.example:7443", true),
            (&public, "10.0.0.1:7443", true),
            (&public, "mesh.example", false),
            (&public, "localhost:7443", false),
            (&public, "127.0.0.1:7443", false),
            (&proxied, "mesh.example", true),
            (&proxied, "evil.example", false),
        ] {
            let said = site.admit(&Method::GET, &"/".parse().unwrap(), &headers(&[("host", host)]));
            assert_eq!(said.is_ok(), expected, "{host:?} at {}", site.origin());
        }
        let get =
            |uri: &str, pairs: &[(&str, &str)]| loopback.admit(&Method::GET, &uri.parse().unwrap(), &headers(pairs));
        assert_eq!(get("/", &[]), Err(Foreign::Host));
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(get("/", &two), Err(Foreign::Host));
        assert_eq!(get("http://evil.example/", &[("host", "localhost")]), Err(Foreign::Host));
        assert_eq!(get("http://localhost/", &[("host", "localhost")]), Ok(()));
    }

    /// Who sends what from where.
    #[test]
    fn pages_of_others_neither_write_nor_ask() {
        const HOST: (&str, &str) = ("host", "127.0.0.1:7430");
        const ORIGIN: (&str, &str) = ("origin", "http://127.0.0.1:7430");
        const KIND: (&str, &str) = ("content-type", "application/json");
        const OURS: (&str, &str) = ("x-archipelago-page", "1");
        let site = site("127.0.0.1:7430", false, None);
        let said = |method: Method, path: &str, pairs: &[(&str, &str)]| {
            let mut all = vec![HOST];
            all.extend(pairs);
            site.admit(&method, &path.parse().unwrap(), &headers(&all))
        };
        let action = "/api/actions/switch";
        for (method, path, pairs, expected) in [
            (Method::POST, action, &[ORIGIN, KIND, OURS][..], Ok(())),
            (Method::POST, action, &[ORIGIN, ("content-type", "application/json; charset=utf-8"), OURS], Ok(())),
            (Method::POST, action, &[ORIGIN, KIND, OURS, ("sec-fetch-site", "same-origin")], Ok(())),
            // A form, an image, a script, a link.
            (Method::POST, action, &[KIND, OURS], Err(Foreign::Origin)),
            (Method::POST, action, &[("origin", "null"), KIND, OURS], Err(Foreign::Origin)),
            (Method::POST, action, &[("origin", "https://evil.example"), KIND, OURS], Err(Foreign::Origin)),
            (Method::POST, action, &[("origin", "http://127.0.0.1:9999"), KIND, OURS], Err(Foreign::Origin)),
            (Method::POST, action, &[("origin", "http://localhost:7430"), KIND, OURS], Err(Foreign::Origin)),
            (
                Method::POST,
                action,
                &[("origin", "http://127.0.0.1:7430.evil.example"), KIND, OURS],
                Err(Foreign::Origin),
            ),
            (Method::POST, action, &[("origin", "file://127.0.0.1:7430"), KIND, OURS], Err(Foreign::Origin)),
            (Method::POST, action, &[ORIGIN, ("origin", "https://evil.example"), KIND, OURS], Err(Foreign::Origin)),
            (Method::POST, action, &[ORIGIN, KIND, OURS, ("sec-fetch-site", "same-site")], Err(Foreign::Origin)),
            (Method::POST, action, &[ORIGIN, KIND, OURS, ("sec-fetch-site", "cross-site")], Err(Foreign::Origin)),
            (Method::POST, action, &[ORIGIN, OURS], Err(Foreign::NotThePage)),
            (Method::POST, action, &[ORIGIN, ("content-type", "text/plain"), OURS], Err(Foreign::NotThePage)),
            (Method::POST, action, &[ORIGIN, KIND], Err(Foreign::NotThePage)),
            (Method::POST, action, &[ORIGIN, KIND, ("x-archipelago-page", "0")], Err(Foreign::NotThePage)),
            (Method::GET, "/api/live", &[], Ok(())),
            (Method::GET, "/api/live", &[("sec-fetch-site", "none")], Ok(())),
            (Method::GET, "/api/live", &[("sec-fetch-site", "same-site")], Err(Foreign::Origin)),
            (Method::GET, "/api/live", &[("sec-fetch-site", "cross-site")], Err(Foreign::Origin)),
            // A link to the page is for everybody: it shows nothing without a session.
            (Method::GET, "/", &[("sec-fetch-site", "cross-site")], Ok(())),
            (Method::POST, "/", &[ORIGIN, KIND, OURS], Err(Foreign::Method)),
            (Method::PUT, action, &[ORIGIN, KIND, OURS], Err(Foreign::Method)),
            (Method::DELETE, action, &[ORIGIN, KIND, OURS], Err(Foreign::Method)),
            (Method::OPTIONS, action, &[ORIGIN], Err(Foreign::Method)),
        ] {
            assert_eq!(said(method.clone(), path, pairs), expected, "{method} {path} {pairs:?}");
        }
    }

    #[test]
    fn a_cookie_is_for_this_member_alone() {
        let (site, secure) = (site("127.0.0.1:7430", false, None), site("127.0.0.1:7431", true, None));
        assert_eq!(site.set_cookie("abc", 60), "archipelago-7430=abc; Path=/; HttpOnly; SameSite=Strict; Max-Age=60");
        assert_eq!(
            secure.set_cookie("abc", 60),
            "__Host-archipelago-7431=abc; Path=/; HttpOnly; SameSite=Strict; Max-Age=60; Secure"
        );
        for (cookies, expected) in [
            (&["archipelago-7430=abc"][..], Some("abc")),
            (&["x=1; archipelago-7430=abc; archipelago-7431=no"], Some("abc")),
            (&["x=1", "archipelago-7430=abc"], Some("abc")),
            (&["archipelago-7431=abc"], None),
            (&["archipelago-7430=abc; archipelago-7430=evil"], None),
            (&["archipelago-7430=abc", "archipelago-7430=evil"], None),
            (&["archipelago-7430"], None),
            (&[], None),
        ] {
            let pairs: Vec<(&str, &str)> = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            assert_eq!(site.session(&headers(&pairs)), expected, "{cookies:?}");
        }
        let long = format!("archipelago-7430={}", "a".repeat(65));
        assert_eq!(site.session(&headers(&[("cookie", &long)])), None);
    }

    #[test]
    fn every_answer_forbids_what_the_page_does_not_do() {
        let mut told = headers(&[("cache-control", "max-age=60")]);
        protect(&mut told);
        let policy = told["content-security-policy"].to_str().unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.split("; ").any(|said| said == part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'));
        assert_eq!(told["cache-control"], "no-store");
        assert_eq!(told["x-content-type-options"], "nosniff");
    }
}
