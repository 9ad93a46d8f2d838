//! What a configuration may ask of a gateway, by name.
//!
//! The compiler writes into every resource which features it needs ([`of`]); a gateway says in its hello which it has. A
//! gateway that lacks one must not run a half-understood resource: it gets the service as *unsupported here* and
//! answers it closed. A name means one thing for ever: what changes its meaning gets a new name.

use std::collections::BTreeSet;

use archipelago_proto::v1::{
    Backend, BackendSettings, Match, NamedMatch, Protocol, RouteRule, ServiceConfig, ServicePort,
    config_resource::Body, r#match::On, named_match, path_match, question, service_port::Listener, sticky,
};

/// A list of revoked identities, enforced on every tunnel.
pub const REVOCATIONS: &str = "revocations";
/// HTTP services, told apart by host name.
pub const LISTENER_HTTP: &str = "listener.http";
/// TCP services, each on a port of its own.
pub const LISTENER_TCP: &str = "listener.tcp";
/// Endpoints that speak HTTP/1.1.
pub const PROTOCOL_HTTP1: &str = "protocol.http1";
/// Endpoints that speak HTTP/2 by prior knowledge.
pub const PROTOCOL_H2C: &str = "protocol.h2c";
/// Endpoints that speak bytes.
pub const PROTOCOL_TCP: &str = "protocol.tcp";
/// It says what it sees: no configuration asks for it, and who lacks it is shown as silent.
pub const SAYS_EVENTS: &str = "says.events";
/// Services with more than one port.
pub const SERVICE_PORTS: &str = "service.ports";
/// How slow clients and endpoints may be with one request.
pub const STREAM_LIMITS: &str = "stream-limits";
/// Stickiness by a header.
pub const STICKY_HEADER: &str = "sticky.header";
/// Stickiness by a cookie.
pub const STICKY_COOKIE: &str = "sticky.cookie";

/// Answers how long requests took.
pub const TELEMETRY_LATENCY: &str = "telemetry.latency";
/// Answers where the time of slow requests went.
pub const TELEMETRY_SLOW: &str = "telemetry.slow";
/// Tells of requests as they end.
pub const TELEMETRY_TAP: &str = "telemetry.tap";
/// Tells what is under way.
pub const TELEMETRY_UNDER_WAY: &str = "telemetry.under-way";

/// What this version supports, sorted.
pub const ALL: &[&str] = &[
    LISTENER_HTTP,
    LISTENER_TCP,
    "match.cookie.exact",
    "match.cookie.prefix",
    "match.cookie.present",
    "match.header.exact",
    "match.header.prefix",
    "match.header.present",
    "match.method",
    "match.path.exact",
    "match.path.prefix",
    "match.query.exact",
    "match.query.prefix",
    "match.query.present",
    PROTOCOL_H2C,
    PROTOCOL_HTTP1,
    PROTOCOL_TCP,
    REVOCATIONS,
    SERVICE_PORTS,
    STICKY_COOKIE,
    STICKY_HEADER,
    STREAM_LIMITS,
    TELEMETRY_LATENCY,
    TELEMETRY_SLOW,
    TELEMETRY_TAP,
    TELEMETRY_UNDER_WAY,
];

/// Whether this version supports `feature`.
#[must_use]
pub fn is_supported(feature: &str) -> bool {
    ALL.binary_search(&feature).is_ok()
}

/// The features that a gateway needs to run `body`, sorted.
///
/// The model can say more than gateways can do: what is not in [`ALL`] is named too, so that it is never ignored.
#[must_use]
pub fn of(body: &Body) -> Vec<&'static str> {
    let mut needs = BTreeSet::new();
    match body {
        // What every gateway has ever known.
        Body::Mesh(_) | Body::Cluster(_) | Body::Peer(_) | Body::UnsupportedService(_) => {}
        Body::Revocations(_) => drop(needs.insert(REVOCATIONS)),
        Body::Service(service) => of_service(service, &mut needs),
    }
    needs.into_iter().collect()
}

/// The feature that a gateway needs to answer `question`.
#[must_use]
pub const fn of_question(question: &question::Body) -> &'static str {
    match question {
        question::Body::Latency(_) => TELEMETRY_LATENCY,
        question::Body::Slow(_) => TELEMETRY_SLOW,
        question::Body::Tap(_) => TELEMETRY_TAP,
        question::Body::UnderWay(_) => TELEMETRY_UNDER_WAY,
    }
}

type Needs = BTreeSet<&'static str>;

fn of_service(service: &ServiceConfig, needs: &mut Needs) {
    if service.ports.len() > 1 {
        needs.insert(SERVICE_PORTS);
    }
    if let Some(settings) = &service.backend_settings {
        let BackendSettings { connect_timeout_ms, requests_max, connections_max, outlier_detection, limits } = settings;
        if limits.is_some() {
            needs.insert(STREAM_LIMITS);
        }
        if connect_timeout_ms.is_some()
            || requests_max.is_some()
            || connections_max.is_some()
            || outlier_detection.is_some()
        {
            needs.insert("backend-settings");
        }
    }
    for port in &service.ports {
        of_port(port, needs);
    }
}

fn of_port(port: &ServicePort, needs: &mut Needs) {
    needs.insert(match port.protocol() {
        Protocol::Http1 => PROTOCOL_HTTP1,
        Protocol::H2c => PROTOCOL_H2C,
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Unspecified => UNKNOWN,
    });
    needs.insert(match &port.listener {
        Some(Listener::Http(_)) => LISTENER_HTTP,
        Some(Listener::Tcp(_)) => LISTENER_TCP,
        None => UNKNOWN,
    });
    if let Some(sticky) = &port.sticky {
        needs.insert(match &sticky.key {
            Some(sticky::Key::Header(_)) => STICKY_HEADER,
            Some(sticky::Key::Cookie(_)) => STICKY_COOKIE,
            None => UNKNOWN,
        });
    }
    for rule in &port.rules {
        of_rule(rule, needs);
    }
    for backend in port.chains.iter().flat_map(|chain| &chain.tiers).flat_map(|tier| &tier.backends) {
        of_backend(backend, needs);
    }
}

fn of_rule(rule: &RouteRule, needs: &mut Needs) {
    needs.extend(rule.matches.iter().map(of_match));
    if !rule.filters.is_empty() {
        needs.insert("filter");
    }
    if rule.timeouts.is_some() {
        needs.insert("timeouts");
    }
    if rule.retry.is_some() {
        needs.insert("retry");
    }
    for backend in &rule.backends {
        of_backend(backend, needs);
    }
}

fn of_backend(backend: &Backend, needs: &mut Needs) {
    if !backend.service.is_empty() {
        needs.insert("backend.service");
    }
}

fn of_match(given: &Match) -> &'static str {
    let named = |given: &NamedMatch, [exact, prefix, expression, present]: [&'static str; 4]| match &given.how {
        Some(named_match::How::Exact(_)) => exact,
        Some(named_match::How::Prefix(_)) => prefix,
        Some(named_match::How::RegularExpression(_)) => expression,
        Some(named_match::How::Present(_)) => present,
        None => UNKNOWN,
    };
    match &given.on {
        Some(On::Method(_)) => "match.method",
        Some(On::Path(path)) => match &path.how {
            Some(path_match::How::Exact(_)) => "match.path.exact",
            Some(path_match::How::Prefix(_)) => "match.path.prefix",
            Some(path_match::How::RegularExpression(_)) => "match.path.regular-expression",
            None => UNKNOWN,
        },
        Some(On::Header(header)) => named(
            header,
            ["match.header.exact", "match.header.prefix", "match.header.regular-expression", "match.header.present"],
        ),
        Some(On::QueryParameter(query)) => named(
            query,
            ["match.query.exact", "match.query.prefix", "match.query.regular-expression", "match.query.present"],
        ),
        Some(On::Cookie(cookie)) => named(
            cookie,
            ["match.cookie.exact", "match.cookie.prefix", "match.cookie.regular-expression", "match.cookie.present"],
        ),
        None => UNKNOWN,
    }
}

/// Something that this version cannot even name; no gateway of this version has it.
const UNKNOWN: &str = "unknown";

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::{Filter, OutlierDetection, PathMatch, Retry, StreamLimits, Timeouts};

    use super::*;

    #[test]
    fn the_list_is_sorted_so_that_it_can_be_searched() {
        assert!(ALL.is_sorted_by(|a, b| a < b));
        assert!(ALL.iter().all(|name| is_supported(name)));
        assert!(!is_supported("tea"));
    }

    #[test]
    fn whatever_a_rule_says_is_named_and_what_no_gateway_can_do_is_not_supported() {
        let rule = |rule: RouteRule| {
            let port = ServicePort {
                protocol: Protocol::Http1.into(),
                listener: Some(Listener::Http(Default::default())),
                rules: vec![rule],
                ..Default::default()
            };
            of(&Body::Service(ServiceConfig { ports: vec![port], ..Default::default() }))
        };
        let matching = |on| rule(RouteRule { matches: vec![Match { on }], ..Default::default() });
        let path = |how| matching(Some(On::Path(PathMatch { how: Some(how) })));
        let needs = [LISTENER_HTTP, "match.path.prefix", PROTOCOL_HTTP1];
        assert_eq!(path(path_match::How::Prefix("/".into())), needs);
        assert!(needs.iter().all(|name| is_supported(name)));
        for (needs, name) in [
            (path(path_match::How::RegularExpression(".*".into())), "match.path.regular-expression"),
            (matching(None), UNKNOWN),
            (rule(RouteRule { filters: vec![Filter {}], ..Default::default() }), "filter"),
            (rule(RouteRule { timeouts: Some(Timeouts::default()), ..Default::default() }), "timeouts"),
            (rule(RouteRule { retry: Some(Retry::default()), ..Default::default() }), "retry"),
            (
                rule(RouteRule {
                    backends: vec![Backend { service: "a/b".into(), ..Default::default() }],
                    ..Default::default()
                }),
                "backend.service",
            ),
        ] {
            assert!(needs.contains(&name) && !is_supported(name), "{name}: {needs:?}");
        }
    }

    #[test]
    fn each_backend_setting_is_named() {
        let needs =
            |settings| of(&Body::Service(ServiceConfig { backend_settings: Some(settings), ..Default::default() }));
        let limits = Some(StreamLimits::default());
        assert_eq!(needs(BackendSettings { limits, ..Default::default() }), [STREAM_LIMITS]);
        let both = BackendSettings { limits, requests_max: Some(1), ..Default::default() };
        assert_eq!(needs(both), ["backend-settings", STREAM_LIMITS]);
        for settings in [
            BackendSettings { connect_timeout_ms: Some(1), ..Default::default() },
            BackendSettings { connections_max: Some(1), ..Default::default() },
            BackendSettings { outlier_detection: Some(OutlierDetection::default()), ..Default::default() },
        ] {
            assert_eq!(needs(settings), ["backend-settings"]);
        }
    }
}
