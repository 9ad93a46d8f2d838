//! Spans of a request that is over, by OpenTelemetry's semantic conventions for HTTP (stable names), and `mesh.*` beside them.

use std::time::Instant;

use archipelago_otlp::{KeyValue, Span, Status, attribute, span, status};
use archipelago_proto::v1::SlowHops;
use http::Method;

use super::traced::{Attempted, Outcome, Traced, Whom};
use crate::exchange::books::Record;

/// The span of this gateway, and those of its attempts.
pub fn of(traced: &Traced, record: &Record, bytes: [u64; 2], end: Instant) -> impl Iterator<Item = Span> {
    let attempts = traced.attempts.take().into_iter().map(move |attempt| of_attempt(traced, record, &attempt, end));
    std::iter::once(of_request(traced, record, bytes, end)).chain(attempts)
}

fn of_request(traced: &Traced, record: &Record, [received, sent]: [u64; 2], end: Instant) -> Span {
    let asked = &traced.request;
    let mut attributes = method(&asked.method);
    attributes.push(attribute("url.scheme", asked.scheme));
    attributes.push(attribute("url.path", asked.path.as_str()));
    attributes.push(attribute("network.protocol.name", "http"));
    attributes.push(attribute("network.protocol.version", asked.version));
    let (host, port) = split(&asked.authority);
    push_text(&mut attributes, "server.address", host);
    push_number(&mut attributes, "server.port", port);
    push_number(&mut attributes, "http.response.status_code", u64::from(record.code));
    if let Some(status) = record.grpc.status() {
        attributes.push(attribute("rpc.system", "grpc"));
        attributes.push(attribute("rpc.grpc.status_code", u64::from(status.number())));
    }
    push_number(&mut attributes, "http.request.body.size", received);
    push_number(&mut attributes, "http.response.body.size", sent);
    push_text(&mut attributes, "mesh.reporter", record.reporter.label());
    push_text(&mut attributes, "mesh.source.cluster", &record.source_cluster);
    push_text(&mut attributes, "mesh.source.workload", &traced.source.borrow());
    push_text(&mut attributes, "mesh.source.gateway", &traced.peer.borrow());
    push_text(&mut attributes, "mesh.destination.cluster", record.destination_cluster.as_deref().unwrap_or_default());
    push_text(&mut attributes, "mesh.destination.version", record.version.as_deref().unwrap_or_default());
    push_text(&mut attributes, "mesh.service", record.service.as_deref().unwrap_or_default());
    push_text(&mut attributes, "mesh.rule", &traced.rule.borrow());
    push_number(&mut attributes, "mesh.revision", record.revision);
    push_number(&mut attributes, "mesh.attempts", u64::from(record.attempts));
    push_text(&mut attributes, "mesh.response_flags", record.flags);
    push_text(&mut attributes, "mesh.failure", traced.failure.get().unwrap_or_default());
    hops(&record.trail.hops(traced.arrived(), end), &mut attributes);
    let failed_call = record.grpc.status().filter(|status| status.is_failure());
    let error = match (traced.failure.get(), record.code) {
        // What its sender did wrong is no error of whoever says so.
        (Some(failure), ..400 | 500..) => Some(failure.to_owned()),
        (None, 500..) => Some(record.code.to_string()),
        (None, _) if failed_call.is_some() => failed_call.map(|status| status.label().to_owned()),
        // Whoever asked has gone, or the answer broke off.
        (None, _) if !record.flags.is_empty() => Some(record.flags.to_owned()),
        (_, _) => None,
    };
    let events = record.trail.head_at().map(|at| event("mesh.response_head", traced.nanos(at)));
    Span {
        span_id: traced.span_id.to_be_bytes().into(),
        parent_span_id: traced.parent.map(|parent| parent.to_be_bytes().into()).unwrap_or_default(),
        kind: span::SpanKind::Server.into(),
        flags: u32::from(traced.flags) | IS_REMOTE_KNOWN | traced.parent.map_or(0, |_| IS_REMOTE),
        start_time_unix_nano: traced.nanos(traced.arrived()),
        end_time_unix_nano: traced.nanos(end),
        events: events.into_iter().collect(),
        ..span_of(traced, record, attributes, error)
    }
}

fn of_attempt(traced: &Traced, record: &Record, attempt: &Attempted, end: Instant) -> Span {
    let asked = &traced.request;
    let mut attributes = method(&asked.method);
    attributes.push(attribute("url.full", format!("{}://{}{}", asked.scheme, asked.authority, asked.path)));
    match &attempt.whom {
        Whom::Endpoint(address) => {
            let ip = address.ip().to_string();
            for (name, port) in [("server.address", "server.port"), ("network.peer.address", "network.peer.port")] {
                push_text(&mut attributes, name, &ip);
                push_number(&mut attributes, port, u64::from(address.port()));
            }
        }
        Whom::Gateway(name) => {
            push_text(&mut attributes, "server.address", split(&asked.authority).0);
            push_text(&mut attributes, "mesh.destination.gateway", name);
        }
    }
    push_number(&mut attributes, "http.request.resend_count", u64::from(attempt.number.saturating_sub(1)));
    let (mut events, mut ended) = (Vec::new(), end);
    let error = match attempt.outcome {
        Some((at, Outcome::Answered { status, waited, connected })) => {
            push_number(&mut attributes, "http.response.status_code", u64::from(status));
            push_number(&mut attributes, "mesh.stream_wait_us", u64::from(waited));
            push_number(&mut attributes, "mesh.connect_us", u64::from(connected));
            events.push(event("mesh.response_head", traced.nanos(at)));
            (status >= 400).then(|| status.to_string())
        }
        Some((at, Outcome::Failed(reason))) => {
            ended = at;
            Some(reason.to_owned())
        }
        // Given up: another was the first to answer, or nobody waited any more.
        None => Some("given_up".to_owned()),
    };
    Span {
        span_id: traced.span_of(attempt.number).to_be_bytes().into(),
        parent_span_id: traced.span_id.to_be_bytes().into(),
        kind: span::SpanKind::Client.into(),
        flags: u32::from(traced.flags) | IS_REMOTE_KNOWN,
        start_time_unix_nano: traced.nanos(attempt.began),
        end_time_unix_nano: traced.nanos(ended),
        events,
        ..span_of(traced, record, attributes, error)
    }
}

/// What all spans of a request have in common.
fn span_of(traced: &Traced, record: &Record, mut attributes: Vec<KeyValue>, error: Option<String>) -> Span {
    let status = error.map(|error| {
        attributes.push(attribute("error.type", error));
        Status { code: status::StatusCode::Error.into(), ..Status::default() }
    });
    let method = if is_known(&traced.request.method) { traced.request.method.as_str() } else { "HTTP" };
    let service = record.service.as_deref().unwrap_or_default();
    Span {
        trace_id: traced.trace_id.to_be_bytes().into(),
        trace_state: if traced.state.len() <= STATE_BYTES_MAX { traced.state.clone() } else { String::new() },
        name: format!("{method} {service}").trim_end().to_owned(),
        attributes,
        status,
        ..Span::default()
    }
}

/// A method that HTTP does not have is not a value of this attribute: there would be no end to them.
fn method(method: &Method) -> Vec<KeyValue> {
    if is_known(method) {
        return vec![attribute("http.request.method", method.as_str())];
    }
    let original: String = method.as_str().chars().take(METHOD_CHARS_MAX).collect();
    vec![attribute("http.request.method", "_OTHER"), attribute("http.request.method_original", original)]
}

fn is_known(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ]
    .contains(method)
}

/// The parts of its time, in microseconds, by the names that `meshctl slow` has for them.
fn hops(hops: &SlowHops, attributes: &mut Vec<KeyValue>) {
    for (name, micros) in [
        ("mesh.hop.queue_us", hops.queue),
        ("mesh.hop.lost_us", hops.lost),
        ("mesh.hop.tunnel_wait_us", hops.tunnel_wait),
        ("mesh.hop.tunnel_us", hops.tunnel),
        ("mesh.hop.far_queue_us", hops.far_queue),
        ("mesh.hop.far_lost_us", hops.far_lost),
        ("mesh.hop.endpoint_wait_us", hops.endpoint_wait),
        ("mesh.hop.connect_us", hops.connect),
        ("mesh.hop.upload_us", hops.upload),
        ("mesh.hop.first_byte_us", hops.first_byte),
        ("mesh.hop.body_us", hops.body),
        ("mesh.hop.beyond_us", hops.beyond),
    ] {
        push_number(attributes, name, micros);
    }
}

fn event(name: &str, time_unix_nano: u64) -> span::Event {
    span::Event { name: name.to_owned(), time_unix_nano, ..span::Event::default() }
}

fn push_text(attributes: &mut Vec<KeyValue>, name: &str, text: &str) {
    if !text.is_empty() {
        attributes.push(attribute(name, text));
    }
}

fn push_number(attributes: &mut Vec<KeyValue>, name: &str, number: u64) {
    if number > 0 {
        attributes.push(attribute(name, number));
    }
}

/// Host and port, 0 if there is none.
fn split(authority: &str) -> (&str, u64) {
    let parts = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.unwrap_or((authority, 0));
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

/// OTLP's `SpanFlags`: whether the parent is of another process is known, and it is.
const IS_REMOTE_KNOWN: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;
/// A longer one is passed on, and not in spans.
const STATE_BYTES_MAX: usize = 512;
const METHOD_CHARS_MAX: usize = 32;
