//! What a service speaks and how its endpoints are checked, whoever says so: a file, a topology, an API server.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use archipelago_proto::v1::Protocol;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    document::{
        decode::{Cursor, Mistakes},
        tree::Value,
    },
    duration,
};

/// What an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServiceProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 by prior knowledge.
    H2c,
    /// Bytes.
    Tcp,
}

impl ServiceProtocol {
    pub(crate) const WORDS: [(&'static str, Self); 3] = [("http", Self::Http), ("h2c", Self::H2c), ("tcp", Self::Tcp)];

    /// As gateways say it.
    #[must_use]
    pub fn to_proto(self) -> Protocol {
        match self {
            Self::Http => Protocol::Http1,
            Self::H2c => Protocol::H2c,
            Self::Tcp => Protocol::Tcp,
        }
    }
}

impl fmt::Display for ServiceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Tcp => "tcp",
        })
    }
}

/// How to tell that an endpoint is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// Endpoints count as ready as long as they are in the file; in YAML `healthCheck: none`.
    None,
    /// Ask, and believe the answers.
    Active(ActiveCheck),
}

/// A question asked again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveCheck {
    /// What to ask.
    pub probe: Probe,
    /// From one question to the next.
    pub interval: Duration,
    /// No answer for this long is a bad one.
    pub timeout: Duration,
    /// Good answers in a row that make an endpoint ready.
    pub healthy_after: u32,
    /// Bad answers in a row that make it not ready.
    pub unhealthy_after: u32,
}

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A connection can be opened.
    Tcp,
    /// `GET` of `path`, in the service's protocol, is answered with 2xx.
    Http {
        /// Begins with `/`.
        path: String,
        /// Host header; absent: the endpoint's address. For servers that serve by name.
        host: Option<String>,
    },
    /// `grpc.health.v1.Health/Check` says `SERVING` (the gRPC health checking protocol).
    Grpc {
        /// The service that is asked about; empty: the server as a whole.
        service: String,
    },
}

impl Default for ActiveCheck {
    /// Gateways notice refused and broken connections at once; the check is what finds a process that hangs or has
    /// come back, and one second is soon enough for that at a cost of one small request.
    fn default() -> Self {
        Self {
            probe: Probe::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 2,
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self::Active(ActiveCheck::default())
    }
}

impl HealthCheck {
    pub(crate) fn decode(at: &Cursor<'_>, protocol: ServiceProtocol, out: &mut Mistakes) -> Self {
        if let Value::Text(_) = at.node.value {
            return at.one_of(&[("none", ())], out).map_or_else(Self::default, |()| Self::None);
        }
        let Some(mut fields) = at.fields(out) else { return Self::default() };
        let mut check = ActiveCheck::default();
        let http = fields.optional("http");
        let host = fields.optional("host").map(|cursor| (cursor.text(out), cursor));
        if let Some((host, cursor)) = &host
            && !is_authority(host)
        {
            cursor.wrong(out, "expected a host name, with a port or without");
        }
        if let (Some((_, cursor)), None) = (&host, &http) {
            cursor.wrong(out, "only a check with `http` sends a host");
        }
        let tcp = fields.optional("tcp").map(|cursor| (cursor.boolean(out), cursor));
        if let Some(cursor) = fields.optional("grpc") {
            let service = cursor.text(out);
            if protocol != ServiceProtocol::H2c {
                cursor.wrong(out, "gRPC is spoken by services of protocol h2c");
            }
            if service.len() > GRPC_SERVICE_BYTES_MAX || !service.bytes().all(|byte| byte.is_ascii_graphic()) {
                cursor.wrong(
                    out,
                    "expected the name of a gRPC service, such as `shop.Checkout`, or `\"\"` for the server",
                );
            }
            if http.is_some() || tcp.is_some() {
                cursor.wrong(out, "expected one of `grpc`, `http` and `tcp`");
            }
            check.probe = Probe::Grpc { service };
        } else {
            Self::decode_plain(&mut check, protocol, Plain { http, host, tcp }, out);
        }
        let mut time = |name: &'static str, target: &mut Duration, out: &mut Mistakes| {
            if let Some(cursor) = fields.optional(name) {
                *target = cursor.duration(out);
                if !(TIME_MIN..=TIME_MAX).contains(target) {
                    cursor.wrong(out, "expected a duration from 10ms to 5m");
                }
            }
        };
        time("interval", &mut check.interval, out);
        time("timeout", &mut check.timeout, out);
        if let Some(cursor) = fields.optional("healthyAfter") {
            check.healthy_after = cursor.number(1, 100, out);
        }
        if let Some(cursor) = fields.optional("unhealthyAfter") {
            check.unhealthy_after = cursor.number(1, 100, out);
        }
        fields.finish(out);
        Self::Active(check)
    }

    /// A question in the service's own protocol, or a connection.
    fn decode_plain(
        check: &mut ActiveCheck,
        protocol: ServiceProtocol,
        Plain { http, host, tcp }: Plain<'_>,
        out: &mut Mistakes,
    ) {
        match (http, tcp) {
            (Some(cursor), None) => {
                let path = cursor.text(out);
                if protocol == ServiceProtocol::Tcp {
                    cursor.wrong(out, "a tcp service cannot be asked over HTTP: use `tcp: true`");
                }
                if !path.starts_with('/') || path.len() > 1_024 || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                    cursor.wrong(out, "expected a path that begins with `/`");
                }
                check.probe = Probe::Http { path, host: host.map(|(host, _)| host) };
            }
            (None, None | Some((true, _))) => check.probe = Probe::Tcp,
            (None, Some((false, cursor))) => cursor.wrong(out, "expected `true`, or `healthCheck: none`"),
            (Some(_), Some((_, cursor))) => cursor.wrong(out, "expected either `http` or `tcp`"),
        }
    }
}

/// What a check without gRPC may say.
struct Plain<'a> {
    http: Option<Cursor<'a>>,
    host: Option<(String, Cursor<'a>)>,
    tcp: Option<(bool, Cursor<'a>)>,
}

impl Serialize for HealthCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Active(check) => {
                let (http, host, tcp, grpc) = match &check.probe {
                    Probe::Http { path, host } => (Some(path.as_str()), host.as_deref(), None, None),
                    Probe::Tcp => (None, None, Some(true), None),
                    Probe::Grpc { service } => (None, None, None, Some(service.as_str())),
                };
                WrittenCheck {
                    http,
                    host,
                    tcp,
                    grpc,
                    interval: duration::format(check.interval),
                    timeout: duration::format(check.timeout),
                    healthy_after: check.healthy_after,
                    unhealthy_after: check.unhealthy_after,
                }
                .serialize(serializer)
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenCheck<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<&'a str>,
    interval: String,
    timeout: String,
    healthy_after: u32,
    unhealthy_after: u32,
}

/// What may stand in a Host header: a name or an address, and maybe a port (RFC 9110 §7.2).
fn is_authority(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() || text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()) {
        return true;
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.bytes().all(inside)
        && port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Of a DNS name.
const HOST_BYTES_MAX: usize = 253;
/// Nobody's package and service have longer names.
const GRPC_SERVICE_BYTES_MAX: usize = 253;
/// Faster than this, checks would be load.
const TIME_MIN: Duration = Duration::from_millis(10);
/// Slower than this, they would not be checks.
const TIME_MAX: Duration = Duration::from_secs(300);
