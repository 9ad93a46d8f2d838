//! Spans on their way to collectors that take them, that are busy, that say nothing, and that are not there.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use archipelago_otlp::exporter::{Dropped, LAST_TIME};
use archipelago_otlp::proto::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use archipelago_otlp::{Config, Counts, Exporter, Span, attribute};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a collector got, and how it answers.
#[derive(Default)]
struct Collector {
    got: Mutex<Vec<(HeaderMap, String, ExportTraceServiceRequest)>>,
    /// Statuses of HTTP for the first requests; from then on all is well.
    statuses: Mutex<Vec<u16>>,
    rejected: i64,
}

impl Collector {
    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let scopes = got.iter().flat_map(|(_, _, request)| &request.resource_spans).flat_map(|all| &all.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Response<impl http_body::Body<Data = Bytes, Error = Infallible> + use<>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let is_grpc = parts.headers["content-type"] == "application/grpc";
        let message = if is_grpc { &body[5..] } else { &body[..] };
        let read = ExportTraceServiceRequest::decode(message).unwrap();
        let status = self.statuses.lock().unwrap().pop().unwrap_or(200);
        if status == 200 {
            self.got.lock().unwrap().push((parts.headers, parts.uri.to_string(), read));
        }
        let partial = ExportTracePartialSuccess { rejected_spans: self.rejected, error_message: String::new() };
        let answer = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        let mut frames = vec![];
        if is_grpc {
            let mut framed = vec![0];
            framed.extend(u32::try_from(answer.len()).unwrap().to_be_bytes());
            framed.extend(answer);
            let mut trailers = HeaderMap::new();
            // A gRPC status of its own: unavailable.
            trailers.insert("grpc-status", HeaderValue::from_static(if status == 200 { "0" } else { "14" }));
            frames.extend([Ok(Frame::data(Bytes::from(framed))), Ok(Frame::trailers(trailers))]);
        } else {
            frames.push(Ok(Frame::data(Bytes::from(answer))));
        }
        let status = if is_grpc { 200 } else { status };
        Response::builder().status(status).body(StreamBody::new(futures_util::stream::iter(frames))).unwrap()
    }

    async fn serve(self, tls: Option<TlsAcceptor>) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (this, address) = (Arc::new(self), listener.local_addr().unwrap());
        let collector = Arc::clone(&this);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (collector, tls) = (Arc::clone(&collector), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let collector = Arc::clone(&collector);
                        async move { Ok::<_, Infallible>(collector.answer(request).await) }
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        (this, address)
    }
}

fn config(endpoint: &str, more: &[(&str, &str)]) -> Config {
    let own = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "1")];
    let all: Vec<_> = more.iter().chain(&own).collect();
    let (config, warnings) =
        Config::read(|name| all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()));
    assert!(warnings.is_empty(), "{warnings:?}");
    config.unwrap()
}

fn start(config: Config) -> (Exporter, Counts) {
    let counts = Counts::default();
    let resource = config.resource(&[("service.name", "test")]);
    (Exporter::start(config, resource, "scope", counts.clone()).unwrap(), counts)
}

fn span(number: u64) -> Span {
    Span { span_id: number.to_be_bytes().into(), name: format!("span {number}"), ..Span::default() }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn close(exporter: Exporter) {
    tokio::task::spawn_blocking(move || exporter.close()).await.unwrap();
}

#[tokio::test]
async fn spans_arrive_whole_by_both_protocols_and_the_last_when_it_ends() {
    for (protocol, path) in
        [("grpc", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"), ("http/protobuf", "/base/v1/traces")]
    {
        let (collector, address) = Collector::default().serve(None).await;
        let endpoint = if protocol == "grpc" { format!("http://{address}") } else { format!("http://{address}/base") };
        let variables = [("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")];
        let (exporter, counts) = start(config(&endpoint, &variables));
        (0..1_000).for_each(|number| exporter.spans().put(span(number)));
        eventually("they are there", || collector.spans().len() == 1_000).await;
        exporter.spans().put(span(1_000));
        close(exporter).await;
        let names: Vec<_> = collector.spans().into_iter().map(|span| span.name).collect();
        let expected: Vec<_> = (0..=1_000).map(|number| format!("span {number}")).collect();
        assert!(names == expected, "{protocol}: {} spans", names.len());
        let got = collector.got.lock().unwrap();
        assert!(got.len() > 2, "more than a request may hold");
        for (headers, uri, request) in got.iter() {
            assert!(uri.ends_with(path), "{uri}");
            assert_eq!(headers["x-key"], "secret");
            let resource = request.resource_spans[0].resource.as_ref().unwrap();
            assert_eq!(resource.attributes, [attribute("service.name", "test")]);
            assert!(request.resource_spans[0].scope_spans[0].spans.len() <= 512);
        }
        assert_eq!((counts.exported.get(), counts.of(Dropped::Shutdown).get()), (1_001, 0));
    }
}

#[tokio::test]
async fn a_busy_collector_gets_them_later_and_each_once() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector { statuses: vec![503, 429].into(), rejected: 1, ..Collector::default() };
        let (collector, address) = collector.serve(None).await;
        let (exporter, counts) =
            start(config(&format!("http://{address}"), &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]));
        (0..3).for_each(|number| exporter.spans().put(span(number)));
        eventually("they are there", || counts.exported.get() + counts.of(Dropped::Refused).get() == 3).await;
        assert_eq!(collector.spans().len(), 3, "{protocol}");
        let requests = u64::try_from(collector.got.lock().unwrap().len()).unwrap();
        assert_eq!(counts.of(Dropped::Refused).get(), requests, "one of each is not wanted");
        close(exporter).await;
    }
}

#[tokio::test]
async fn one_that_does_not_want_them_is_not_asked_again() {
    let collector = Collector { statuses: vec![401].into(), ..Collector::default() };
    let (collector, address) = collector.serve(None).await;
    let (exporter, counts) = start(config(&format!("http://{address}"), &[]));
    exporter.spans().put(span(1));
    eventually("it is refused", || counts.of(Dropped::Refused).get() == 1).await;
    exporter.spans().put(span(2));
    eventually("the next one is taken", || counts.exported.get() == 1).await;
    assert_eq!(collector.spans(), [span(2)]);
    close(exporter).await;
}

/// Nobody waits for a collector, and what there is no room for is counted.
#[tokio::test]
async fn a_silent_collector_costs_spans_and_nobodys_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let (exporter, counts) = start(config(&endpoint, &[("OTEL_BSP_MAX_QUEUE_SIZE", "10")]));
    let spans = exporter.spans();
    // It does not return, or not in an hour, if any of them waits.
    (0..100_000).for_each(|number| spans.put(span(number)));
    let dropped = counts.of(Dropped::QueueFull).get();
    assert!(dropped >= 100_000 - 100, "{dropped}");
    let began = Instant::now();
    close(exporter).await;
    // The machine may be starved: what counts is that there is an end at all.
    assert!(began.elapsed() < LAST_TIME + Duration::from_secs(60));
    assert_eq!(counts.exported.get(), 0);
    assert_eq!(dropped + counts.of(Dropped::Shutdown).get(), 100_000, "each is counted, and once");
}

#[tokio::test]
async fn one_that_comes_later_is_found() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    drop(held);
    let (exporter, counts) = start(config(&format!("http://{address}"), &[]));
    exporter.spans().put(span(1));
    // Refused once, at least.
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let collector = Arc::new(Collector::default());
    let shared = Arc::clone(&collector);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let collector = Arc::clone(&shared);
            let service = service_fn(move |request| {
                let collector = Arc::clone(&collector);
                async move { Ok::<_, Infallible>(collector.answer(request).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), service).await.map_err(drop) });
        }
    });
    eventually("it is there", || counts.exported.get() == 1).await;
    assert_eq!(collector.spans(), [span(1)]);
    close(exporter).await;
}

#[tokio::test]
async fn tls_is_spoken_to_whom_the_roots_know_and_to_nobody_else() {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (root, other) = (folder.path().join("ca.pem"), folder.path().join("other.pem"));
    std::fs::write(&root, issued.cert.pem()).unwrap();
    std::fs::write(&other, rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (collector, address) = Collector::default().serve(Some(TlsAcceptor::from(Arc::new(tls)))).await;
    let endpoint = format!("https://localhost:{}", address.port());
    for protocol in ["grpc", "http/protobuf"] {
        let of = |file: &std::path::Path| {
            let file = file.to_str().unwrap().to_owned();
            config(&endpoint, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_EXPORTER_OTLP_CERTIFICATE", &file)])
        };
        let (exporter, counts) = start(of(&root));
        exporter.spans().put(span(1));
        eventually("it is there", || counts.exported.get() == 1).await;
        close(exporter).await;
        let before = collector.spans().len();
        let (exporter, counts) = start(of(&other));
        exporter.spans().put(span(2));
        close(exporter).await;
        assert_eq!((counts.exported.get(), counts.of(Dropped::Shutdown).get()), (0, 1), "{protocol}");
        assert_eq!(collector.spans().len(), before);
    }
}
