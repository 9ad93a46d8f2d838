//! What to send where, how often, and what counts as success.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, uri};
use http_body_util::Full;

use super::schedule::Arrivals;

/// One run of the load generator. [`Plan::new`] fills in defaults; set the other fields as needed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where requests go: scheme `http`, a host and an optional port (80), path and query.
    pub url: Uri,
    /// Host header or `:authority`, where it differs from the URL's.
    pub host: Option<String>,
    /// HTTP version on every connection.
    pub protocol: Protocol,
    /// Request method.
    pub method: Method,
    /// Request headers in this order, duplicates kept. `{n}` in a value becomes the number of the
    /// arrival modulo [`Plan::cycle`].
    pub headers: Vec<(String, String)>,
    /// Bytes of every request body, at most [`BODY_BYTES_MAX`]; zero sends none.
    pub body_bytes: usize,
    /// Arrivals a second, over all workers.
    pub rate: f64,
    /// How long arrivals go on; without it until the run is stopped, at most a day.
    pub duration: Option<Duration>,
    /// Spacing of arrivals.
    pub arrivals: Arrivals,
    /// Seed of the Poisson spacing.
    pub seed: u64,
    /// Connections at most, over all workers.
    pub connections: usize,
    /// Concurrent requests on one HTTP/2 connection at most.
    pub streams: usize,
    /// From the intended send time to the last byte of the response.
    pub timeout: Duration,
    /// Statuses that count as success.
    pub expect: Expect,
    /// Threads that send, each with its own share of rate and connections.
    pub workers: usize,
    /// Requests under way at most, over all workers; arrivals beyond fail as `overload`.
    pub in_flight_max: usize,
    /// Period of `{n}` in header values.
    pub cycle: u64,
}

impl Plan {
    /// GET `url` over HTTP/1.1 at `rate` a second for `duration`.
    ///
    /// # Errors
    /// The URL is not `http://host[:port][/path]`.
    pub fn new(url: &str, rate: f64, duration: impl Into<Option<Duration>>) -> Result<Self, PlanError> {
        Ok(Self {
            url: target(url)?,
            host: None,
            protocol: Protocol::Http1,
            method: Method::GET,
            headers: Vec::new(),
            body_bytes: 0,
            rate,
            duration: duration.into(),
            arrivals: Arrivals::Constant,
            seed: 1,
            connections: CONNECTIONS,
            streams: STREAMS,
            timeout: TIMEOUT,
            expect: Expect::default(),
            workers: 1,
            in_flight_max: IN_FLIGHT_MAX,
            cycle: u64::MAX,
        })
    }

    /// `host:port` to connect to.
    pub(super) fn address(&self) -> String {
        let host = self.url.host().unwrap_or_default();
        format!("{host}:{}", self.url.port_u16().unwrap_or(80))
    }

    /// Value of the Host header or of `:authority`.
    pub(super) fn authority(&self) -> String {
        let from_url = || self.url.authority().map(ToString::to_string);
        self.host.clone().or_else(from_url).unwrap_or_default()
    }

    /// Checks every bound and prepares what all requests share.
    pub(super) fn template(&self) -> Result<Template, PlanError> {
        let refuse = |text: &str| Err(PlanError::Bound(text.to_owned()));
        if !(self.rate > 0.0 && self.rate <= RATE_MAX) {
            return refuse("the rate must be above 0 and at most 1,000,000 a second");
        }
        if self.duration.is_some_and(|duration| duration.is_zero() || duration > DURATION_MAX) {
            return refuse("the duration must be above 0 and at most 24h");
        }
        if self.timeout.is_zero() || self.timeout > TIMEOUT_MAX {
            return refuse("the timeout must be above 0 and at most 10m");
        }
        if self.workers == 0 || self.workers > WORKERS_MAX {
            return refuse("between 1 and 64 threads can send");
        }
        if self.connections < self.workers || self.streams == 0 || self.in_flight_max == 0 {
            return refuse("each thread needs a connection, a stream and a request under way");
        }
        if self.body_bytes > BODY_BYTES_MAX {
            return refuse("a request body has at most 64 MiB");
        }
        Template::new(self)
    }
}

/// What every request of a run has in common.
#[derive(Debug, Clone)]
pub(super) struct Template {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    numbered: Vec<(HeaderName, String)>,
    body: Bytes,
    cycle: u64,
}

impl Template {
    fn new(plan: &Plan) -> Result<Self, PlanError> {
        let authority = plan.authority();
        let parsed: uri::Authority = authority.parse().map_err(|_| PlanError::Host(authority.clone()))?;
        let path = plan.url.path_and_query().cloned().unwrap_or(uri::PathAndQuery::from_static("/"));
        let mut uri = uri::Parts::default();
        uri.path_and_query = Some(path);
        let mut headers = HeaderMap::new();
        match plan.protocol {
            Protocol::Http1 => {
                let host = HeaderValue::try_from(&authority).map_err(|_| PlanError::Host(authority.clone()))?;
                headers.insert(http::header::HOST, host);
            }
            Protocol::Http2 => {
                uri.scheme = Some(uri::Scheme::HTTP);
                uri.authority = Some(parsed);
            }
        }
        let mut numbered = Vec::new();
        for (name, value) in &plan.headers {
            let refuse = || PlanError::Header(format!("{name}: {value}"));
            let name = HeaderName::try_from(name).map_err(|_| refuse())?;
            let checked = HeaderValue::try_from(value.replace(NUMBER, "0")).map_err(|_| refuse())?;
            if value.contains(NUMBER) {
                numbered.push((name, value.clone()));
            } else {
                headers.append(name, checked);
            }
        }
        Ok(Self {
            method: plan.method.clone(),
            uri: Uri::from_parts(uri).map_err(|_| PlanError::Url(plan.url.to_string()))?,
            headers,
            numbered,
            // A pattern rather than zeros, which a path could compress or skip.
            body: (0..plan.body_bytes).map(|offset| (offset % 251) as u8).collect(),
            cycle: plan.cycle.max(1),
        })
    }

    pub(super) fn request(&self, number: u64) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        for (name, value) in &self.numbered {
            let value = value.replace(NUMBER, &(number % self.cycle).to_string());
            // Checked with one number when the template was made, and digits are always allowed.
            if let Ok(value) = HeaderValue::try_from(value) {
                request.headers_mut().append(name.clone(), value);
            }
        }
        request
    }
}

/// HTTP version of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive.
    #[serde(rename = "HTTP/1.1")]
    Http1,
    /// HTTP/2 by prior knowledge.
    #[serde(rename = "HTTP/2")]
    Http2,
}

/// Statuses that count as success; by default 200 to 399.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect(Vec<std::ops::RangeInclusive<u16>>);

impl Expect {
    /// Whether `status` is one of these.
    pub fn allows(&self, status: StatusCode) -> bool {
        self.0.iter().any(|range| range.contains(&status.as_u16()))
    }
}

impl Default for Expect {
    fn default() -> Self {
        Self(vec![200..=399])
    }
}

impl std::str::FromStr for Expect {
    type Err = String;

    /// Reads codes and classes, separated by commas: `200,404` or `2xx,304`.
    fn from_str(text: &str) -> Result<Self, String> {
        let range = |item: &str| {
            let item = item.trim();
            let class = item.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok());
            match class {
                Some(class @ 1..=5) => Some(class * 100..=class * 100 + 99),
                Some(_) => None,
                None => item.parse().ok().filter(|code| (100..=599).contains(code)).map(|code| code..=code),
            }
        };
        text.split(',')
            .map(range)
            .collect::<Option<Vec<_>>>()
            .map(Self)
            .ok_or_else(|| "expected status codes or classes, such as 200,404 or 2xx".to_owned())
    }
}

/// A plan that cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The URL is not plain HTTP to a host.
    #[error("{0:?} is not a URL like http://host:port/path")]
    Url(String),
    /// The Host header is not a host and an optional port.
    #[error("{0:?} is not a host name with an optional port")]
    Host(String),
    /// A header cannot be sent.
    #[error("{0:?} is not a header")]
    Header(String),
    /// A number is out of bounds; the text says which and how.
    #[error("{0}")]
    Bound(String),
}

fn target(text: &str) -> Result<Uri, PlanError> {
    text.parse::<Uri>()
        .ok()
        .filter(|url| url.scheme_str() == Some("http"))
        .filter(|url| url.host().is_some_and(|host| !host.is_empty()))
        .filter(|url| !url.authority().is_some_and(|authority| authority.as_str().contains('@')))
        .ok_or_else(|| PlanError::Url(text.to_owned()))
}

const NUMBER: &str = "{n}";
/// Enough for 5,000 requests/s that take 50 ms each.
const CONNECTIONS: usize = 256;
/// What most servers allow (RFC 9113 §6.5.2 recommends at least 100).
const STREAMS: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Tasks of some two KiB each.
const IN_FLIGHT_MAX: usize = 50_000;
const RATE_MAX: f64 = 1_000_000.0;
/// A bound on the timeline, whose row for each second is kept.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
const WORKERS_MAX: usize = 64;
/// Largest request body.
pub const BODY_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let plan = |url| Plan::new(url, 1.0, None);
        assert_eq!(plan("http://127.0.0.1:8080/a?b=c").unwrap().address(), "127.0.0.1:8080");
        assert_eq!(plan("http://[::1]").unwrap().address(), "[::1]:80");
        for wrong in ["https://a/", "a:80", "/path", "http://", "http://u@h/", "ftp://a/"] {
            assert_eq!(plan(wrong).unwrap_err(), PlanError::Url(wrong.to_owned()));
        }
    }

    #[test]
    fn requests_name_their_host_the_way_their_version_does() {
        let mut plan = Plan::new("http://127.0.0.1:8080/a?b=c", 1.0, None).unwrap();
        plan.host = Some("checkout.shop".to_owned());
        let request = plan.template().unwrap().request(0);
        assert_eq!(request.uri(), "/a?b=c");
        assert_eq!(request.headers()["host"], "checkout.shop");
        plan.protocol = Protocol::Http2;
        let request = plan.template().unwrap().request(0);
        assert_eq!(request.uri(), "http://checkout.shop/a?b=c");
        assert!(request.headers().is_empty());
    }

    #[test]
    fn numbered_headers_go_round() {
        let mut plan = Plan::new("http://a/", 1.0, None).unwrap();
        plan.headers = vec![("x-user".into(), "u-{n}".into()), ("x-a".into(), "b".into())];
        plan.cycle = 10;
        let template = plan.template().unwrap();
        assert_eq!(template.request(3).headers()["x-user"], "u-3");
        assert_eq!(template.request(17).headers()["x-user"], "u-7");
        assert_eq!(template.request(17).headers()["x-a"], "b");
        plan.headers = vec![("x-user".into(), "{n}\n".into())];
        assert!(matches!(plan.template(), Err(PlanError::Header(_))));
    }

    #[test]
    fn bounds_are_checked() {
        let plan = || Plan::new("http://a/", 100.0, Duration::from_secs(1)).unwrap();
        assert!(plan().template().is_ok());
        let changes: [fn(&mut Plan); 9] = [
            |plan| plan.rate = 0.0,
            |plan| plan.rate = f64::NAN,
            |plan| plan.rate = 1e7,
            |plan| plan.duration = Some(Duration::ZERO),
            |plan| plan.timeout = Duration::MAX,
            |plan| plan.workers = 0,
            |plan| plan.connections = 0,
            |plan| plan.streams = 0,
            |plan| plan.body_bytes = BODY_BYTES_MAX + 1,
        ];
        for change in changes {
            let mut plan = plan();
            change(&mut plan);
            assert!(matches!(plan.template(), Err(PlanError::Bound(_))), "{plan:?}");
        }
    }

    #[test]
    fn expected_statuses() {
        let expect: Expect = "2xx,404".parse().unwrap();
        for (code, allowed) in [(200, true), (299, true), (404, true), (300, false), (503, false)] {
            assert_eq!(expect.allows(StatusCode::from_u16(code).unwrap()), allowed);
        }
        for wrong in ["", "6xx", "99", "600", "abc", "200,,300"] {
            assert!(wrong.parse::<Expect>().is_err(), "{wrong:?}");
        }
    }
}
