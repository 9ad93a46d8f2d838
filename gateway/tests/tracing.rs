//! Distributed traces: what passes, what begins, which spans there are, and that no collector costs anybody's time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use archipelago_otlp::proto::collector::trace::v1::ExportTraceServiceRequest;
use archipelago_otlp::{Config, Span, Value, span::SpanKind, status::StatusCode};
use archipelago_proto::v1::Protocol;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpListener;

use harness::{Mesh, backend, eventually, get, patient, refusing, service, text};

const HOST: &str = "checkout.shop";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

/// All that it has been sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (this, address) = (Self::default(), listener.local_addr().unwrap());
        let collector = this.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let collector = collector.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let collector = collector.clone();
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let export = ExportTraceServiceRequest::decode(body).unwrap();
                        let scopes = export.resource_spans.into_iter().flat_map(|all| all.scope_spans);
                        collector.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
                        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (this, address)
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }

    /// Spans of the trace, once there are so many.
    async fn trace(&self, trace_id: &str, count: usize) -> Vec<Span> {
        let mut found = vec![];
        eventually("the trace is there", async || {
            found = self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace_id).collect();
            found.len() >= count
        })
        .await;
        assert_eq!(found.len(), count, "{found:?}");
        found
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn config(collector: SocketAddr, sampler: &str) -> Config {
    let (config, warnings) = Config::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(format!("http://{collector}")),
        "OTEL_TRACES_SAMPLER" => Some(sampler.to_owned()),
        "OTEL_BSP_SCHEDULE_DELAY" => Some("1".to_owned()),
        "OTEL_BSP_MAX_QUEUE_SIZE" => Some("100".to_owned()),
        _ => None,
    });
    assert!(warnings.is_empty(), "{warnings:?}");
    config.unwrap()
}

/// paris alone, with a service that has these endpoints.
async fn paris(otlp: Config, endpoints: &[SocketAddr]) -> Mesh {
    let mut mesh = Mesh::start_traced(&["paris"], patient(), Some(otlp)).await;
    let config = service("checkout", Protocol::Http1, &["paris"], &[("paris", 1)]);
    let endpoints: Vec<_> = endpoints.iter().map(|address| ("checkout", "paris", *address, "")).collect();
    mesh.configure(vec![config], &endpoints).await;
    mesh
}

/// What the backend gets as `traceparent` and `tracestate`, all of each.
async fn passed(mesh: &Mesh, headers: &[(&str, &str)]) -> [Vec<String>; 2] {
    let seen = text(get(mesh.http("paris"), HOST, "/headers", headers).await.unwrap()).await;
    ["traceparent", "tracestate"].map(|name| {
        let before = format!("\"{name}\": \"");
        let parts = seen.split(&before).skip(1);
        parts.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    })
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

#[tokio::test]
async fn what_is_not_recorded_passes_as_it_came() {
    let (collector, address) = Collector::start().await;
    let (endpoint, _) = backend("paris").await;
    let mesh = paris(config(address, "parentbased_always_off"), &[endpoint]).await;
    let unsampled = format!("{PARENT}-00");
    let later = format!("cc-{}-00-what-the-future-will-be-like", &PARENT[3..]);
    for values in [
        vec![("traceparent", &*unsampled), ("tracestate", "foo=1 , bar=2")],
        vec![("traceparent", &later)],
        vec![("traceparent", "00-a-b-01"), ("tracestate", "FOO")],
        vec![("traceparent", &unsampled), ("traceparent", &unsampled)],
        vec![("tracestate", "foo=1")],
        vec![],
    ] {
        let sent = ["traceparent", "tracestate"].map(|name| {
            values.iter().filter(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(passed(&mesh, &values).await, sent, "{values:?}");
    }
    // The one that its sender records is the only one that is recorded.
    let sampled = format!("{PARENT}-01");
    let [parents, _] = passed(&mesh, &[("traceparent", &sampled)]).await;
    let spans = collector.trace(&PARENT[3..35], 2).await;
    assert_eq!(spans.len(), collector.spans().len());
    let last = spans.iter().find(|span| span.kind() == SpanKind::Client).unwrap();
    assert_eq!(parents, [format!("{}-{}-01", &PARENT[..35], hex(&last.span_id))]);
}

#[tokio::test]
async fn a_trace_begins_where_there_is_none_that_can_be_believed() {
    let (collector, address) = Collector::start().await;
    let (endpoint, _) = backend("paris").await;
    let mesh = paris(config(address, "always_on"), &[endpoint]).await;
    let mut ids = vec![];
    for values in [
        vec![],
        vec![("traceparent", "00-a-b-01"), ("tracestate", "foo=1")],
        vec![("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
        vec![("tracestate", "foo=1")],
    ] {
        let [parents, states] = passed(&mesh, &values).await;
        let [parent] = &parents[..] else { panic!("{parents:?}") };
        let parts: Vec<_> = parent.split('-').collect();
        assert_eq!((parts[0], parts[3], states.len()), ("00", "01", 0), "{values:?}: {parent}");
        let spans = collector.trace(parts[1], 2).await;
        let [server, client] =
            [SpanKind::Server, SpanKind::Client].map(|kind| spans.iter().find(|span| span.kind() == kind).unwrap());
        assert!(server.parent_span_id.is_empty(), "{server:?}");
        assert_eq!((&client.parent_span_id, hex(&client.span_id)), (&server.span_id, parts[2].to_owned()));
        ids.push(parts[1].to_owned());
    }
    assert!(!ids.contains(&PARENT[3..35].to_owned()));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "each has its own");
    // What a parent says beside it stays.
    let sampled = format!("{PARENT}-03");
    let [parents, states] = passed(&mesh, &[("traceparent", &sampled), ("tracestate", "foo=1,bar=2")]).await;
    assert!(parents[0].starts_with(&PARENT[..36]) && parents[0].ends_with("-03"), "{parents:?}");
    assert_eq!(states, ["foo=1,bar=2"]);
    let [_, states] = passed(&mesh, &[("traceparent", &sampled), ("tracestate", "FOO=1")]).await;
    assert!(states.is_empty(), "{states:?}");
}

#[tokio::test]
async fn a_gateway_behind_a_tunnel_begins_no_trace() {
    let (collector, address) = Collector::start().await;
    let (endpoint, _) = backend("tokyo").await;
    let mut mesh = Mesh::start_traced(&["paris", "tokyo"], patient(), Some(config(address, "always_on"))).await;
    mesh.stop_gateway("paris").await;
    mesh.otlp = None;
    mesh.start_gateway("paris").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    assert_eq!(passed(&mesh, &[]).await, [vec![], vec![]] as [Vec<String>; 2]);
    let sampled = format!("{PARENT}-01");
    passed(&mesh, &[("traceparent", &sampled)]).await;
    let spans = collector.trace(&PARENT[3..35], 2).await;
    assert_eq!(spans.len(), collector.spans().len(), "of tokyo, and nothing of the first request");
    let server = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(hex(&server.parent_span_id), PARENT[36..], "paris is not in the trace, and the client's span is");
}

#[tokio::test]
async fn each_attempt_has_a_span_and_says_how_it_ended() {
    let (collector, address) = Collector::start().await;
    let (endpoint, _) = backend("paris").await;
    let (dead, _held) = refusing();
    let mesh = paris(config(address, "always_on"), &[endpoint, dead]).await;
    let mut failed = None;
    // Which endpoint is asked first is chance.
    eventually("an attempt failed", async || {
        let answer = get(mesh.http("paris"), HOST, "/a?token=secret", &[]).await.unwrap();
        assert_eq!(answer.status(), 200);
        let spans = collector.spans();
        failed = spans.into_iter().find(|span| attribute(span, "error.type").as_deref() == Some("endpoint_refused"));
        failed.is_some()
    })
    .await;
    let failed = failed.unwrap();
    assert!(is_error(&failed));
    assert_eq!(attribute(&failed, "server.port"), Some(dead.port().to_string()));
    let spans = collector.trace(&hex(&failed.trace_id), 3).await;
    let server = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    let second = spans.iter().find(|span| span.kind() == SpanKind::Client && span.span_id != failed.span_id).unwrap();
    assert_eq!((&failed.parent_span_id, &second.parent_span_id), (&server.span_id, &server.span_id));
    assert!(failed.end_time_unix_nano <= second.start_time_unix_nano, "{failed:?} {second:?}");
    assert!(!is_error(second) && !is_error(server), "it went well in the end");
    assert_eq!(
        (attribute(second, "http.request.resend_count"), attribute(server, "mesh.attempts")),
        (Some("1".into()), Some("2".into()))
    );
    assert!(!format!("{spans:?}").contains("secret"));
}

#[tokio::test]
async fn latencies_name_a_recorded_trace_to_who_asks_for_openmetrics() {
    let (_collector, address) = Collector::start().await;
    let (endpoint, _) = backend("paris").await;
    let mesh = paris(config(address, "parentbased_always_off"), &[endpoint]).await;
    for flags in ["01", "00"] {
        let parent = format!("00-{}-00f067aa0ba902b7-{flags}", flags.repeat(16));
        assert_eq!(passed(&mesh, &[("traceparent", &parent)]).await[0].len(), 1);
    }
    let metrics = mesh.metrics("paris");
    let (accept, exemplar) =
        ("application/openmetrics-text; version=1.0.0", format!(" # {{trace_id=\"{}\"}} 0.", "01".repeat(16)));
    eventually("it is there", async || {
        let told = text(get(metrics, "m", "/metrics", &[("accept", accept)]).await.unwrap()).await;
        let with: Vec<_> = told.lines().filter(|line| line.contains("trace_id")).collect();
        assert!(with.len() <= 1 && told.ends_with("# EOF\n"), "only what was recorded: {with:?}");
        let is_bucket =
            |line: &&str| line.starts_with("mesh_request_duration_seconds_bucket{") && line.contains(&exemplar);
        with.first().is_some_and(is_bucket)
    })
    .await;
    let plain = get(metrics, "m", "/metrics", &[]).await.unwrap();
    assert_eq!(plain.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(!text(plain).await.contains("trace_id"), "the older text has no exemplars");
}

#[tokio::test]
async fn failures_are_errors_of_whoever_made_them() {
    let (collector, address) = Collector::start().await;
    let (endpoint, _) = backend("paris").await;
    let mut mesh = Mesh::start_traced(&["paris"], patient(), Some(config(address, "always_on"))).await;
    let services = ["checkout", "empty"].map(|name| service(name, Protocol::Http1, &["paris"], &[("paris", 1)]));
    mesh.configure(services.to_vec(), &[("checkout", "paris", endpoint, "")]).await;
    let cases: BTreeMap<u64, _> = [
        (1, (HOST, "/status/503", 503, Some("503"), None)),
        (2, (HOST, "/status/404", 404, None, None)),
        (3, ("empty.shop", "/", 503, Some("no-healthy-upstream"), Some("no-healthy-upstream"))),
        (4, ("nobody.shop", "/", 404, None, Some("unknown-host"))),
    ]
    .into();
    for (number, (host, path, code, error, failure)) in cases {
        let id = format!("{number:032x}");
        let parent = format!("00-{id}-00f067aa0ba902b7-01");
        let answer = get(mesh.http("paris"), host, path, &[("traceparent", &parent)]).await.unwrap();
        assert_eq!(answer.status(), code);
        drop(text(answer).await);
        let spans = collector.trace(&id, if failure.is_some() { 1 } else { 2 }).await;
        let server = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
        assert_eq!(attribute(server, "error.type").as_deref(), error, "{path}: {server:?}");
        assert_eq!((is_error(server), attribute(server, "mesh.failure").as_deref()), (error.is_some(), failure));
        assert_eq!(attribute(server, "http.response.status_code"), Some(code.to_string()));
        if let Some(client) = spans.iter().find(|span| span.kind() == SpanKind::Client) {
            assert!(is_error(client), "for whoever asks, 4xx is one: {client:?}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_says_nothing_costs_spans_only() {
    // The kernel takes connections; nobody reads them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, _) = backend("paris").await;
    let mut mesh = paris(config(silent.local_addr().unwrap(), "always_on"), &[endpoint]).await;
    for _ in 0..300 {
        assert_eq!(get(mesh.http("paris"), HOST, "/", &[]).await.unwrap().status(), 200);
    }
    let metrics = mesh.metrics("paris");
    eventually("what there is no room for is counted", async || {
        let metrics = text(get(metrics, "m", "/metrics", &[]).await.unwrap()).await;
        let series = "mesh_gateway_spans_dropped_total{reason=\"queue_full\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse::<u64>().unwrap();
        assert!(metrics.contains("mesh_gateway_spans_exported_total 0\n"), "{metrics}");
        // Two for each request; at most a batch and a queue of them wait.
        (300..=600).contains(&count)
    })
    .await;
    mesh.stop_gateway("paris").await;
}
