//! The metrics port of a process: `/metrics`, `/healthz`, `/readyz` over plain HTTP/1.1.

mod protobuf;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
pub use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

/// Says whether the process can do its job, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The exemplars of this moment: by sample, name and labels as they are written, what OpenMetrics has behind `#`.
///
/// prometheus-client has no way to make one for a histogram that is kept elsewhere. One for a sample that is not there is not written.
pub type Exemplars = Arc<dyn Fn() -> HashMap<String, String> + Send + Sync>;

/// A native histogram: how many of its values are in which bucket, of those that are not empty, ascending. Bucket `i` ends at
/// 2^(`i`/8), included, and begins where the one before ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Native {
    /// Of all values.
    pub sum: f64,
    /// Index, and how many.
    pub buckets: Vec<(i32, u64)>,
}

impl Native {
    /// As Prometheus counts resolutions: eight buckets to a power of two, each 9 % wide.
    pub const SCHEMA: i32 = 3;

    /// What the histogram of this name and labels is found by.
    pub fn key<N: AsRef<str>, V: AsRef<str>>(name: &str, labels: &[(N, V)]) -> String {
        protobuf::key(name, labels)
    }
}

/// Native histograms of this moment, by [`Native::key`]; of metrics that are there as classic ones.
pub type Natives = Arc<dyn Fn() -> HashMap<String, Native> + Send + Sync>;

/// What the registry cannot say.
#[derive(Clone)]
pub struct Beside {
    /// Exemplars.
    pub exemplars: Exemplars,
    /// Native histograms.
    pub natives: Natives,
}

/// What a scraper asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

/// Serves the three paths on `listener` until dropped.
///
/// `/metrics` is Prometheus text 0.0.4, or OpenMetrics 1.0 or Prometheus' protobuf when the scraper's `Accept` names it; `/healthz` answers 200 while
/// the process runs; `/readyz` is 200 or 503 with the reason.
///
/// # Errors
/// The listener cannot be used by tokio.
pub async fn serve(
    listener: std::net::TcpListener,
    registry: Arc<Mutex<Registry>>,
    ready: Readiness,
) -> std::io::Result<()> {
    let beside = Beside { exemplars: Arc::new(HashMap::new), natives: Arc::new(HashMap::new) };
    serve_with(listener, registry, beside, ready).await
}

/// As [`serve`], with exemplars for whoever asks for OpenMetrics, and native histograms for whoever asks for protobuf.
///
/// # Errors
/// The listener cannot be used by tokio.
pub async fn serve_with(
    listener: std::net::TcpListener,
    registry: Arc<Mutex<Registry>>,
    beside: Beside,
    ready: Readiness,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors passes; spinning on it would not help.
                tracing::debug!(%error, "accept on the metrics port failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (registry, beside, ready) = (registry.clone(), beside.clone(), ready.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (registry, beside, ready) = (registry.clone(), beside.clone(), ready.clone());
                async move { Ok::<_, Infallible>(respond(&request, registry, beside, &ready).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that goes away or talks nonsense concerns nobody.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(slot);
        });
    }
}

async fn respond(
    request: &Request<Incoming>,
    registry: Arc<Mutex<Registry>>,
    beside: Beside,
    ready: &Readiness,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let accepted = request.headers().get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
            let format = format(accepted);
            // Thousands of services are megabytes of text, and whatever else this runtime does must not wait for them.
            let encoded = tokio::task::spawn_blocking(move || encode(&registry, &beside, format));
            encoded
                .await
                .ok()
                .flatten()
                .unwrap_or_else(|| text(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be encoded\n".to_owned()))
        }
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match ready() {
            Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n".to_owned()),
    }
}

/// The format that is wanted most; OpenMetrics before the older text wherever it is named.
fn format<'a>(accepted: impl Iterator<Item = &'a str>) -> Format {
    let (mut open_metrics, mut protobuf) = (None, None);
    for range in accepted.flat_map(|accept| accept.split(',')) {
        let kind = range.split(';').next().unwrap_or_default().trim();
        let parameter =
            |name: &str| range.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        let quality = parameter("q").and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0);
        let is_ours = parameter("proto") == Some("io.prometheus.client.MetricFamily")
            && parameter("encoding") == Some("delimited");
        match kind {
            "application/openmetrics-text" => open_metrics = Some(quality),
            "application/vnd.google.protobuf" if is_ours => protobuf = Some(quality),
            _ => {}
        }
    }
    match (protobuf, open_metrics) {
        (Some(protobuf), other) if protobuf > 0.0 && other.is_none_or(|other| protobuf >= other) => Format::Protobuf,
        (_, Some(_)) => Format::OpenMetrics,
        _ => Format::Text,
    }
}

fn encode(registry: &Mutex<Registry>, beside: &Beside, format: Format) -> Option<Response<Full<Bytes>>> {
    let mut body = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    prometheus_client::encoding::text::encode(&mut body, &registry).ok()?;
    drop(registry);
    let (body, content_type) = match format {
        Format::Text => (to_text_format(&body).into_bytes(), TEXT_FORMAT),
        Format::OpenMetrics => (with_exemplars(body, &(beside.exemplars)()).into_bytes(), OPEN_METRICS),
        // After the text: of a metric there are never more values in the classic buckets than in all.
        Format::Protobuf => (protobuf::encode(&body, &(beside.exemplars)(), &(beside.natives)()), PROTOBUF),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    Some(response)
}

/// Writes exemplars behind the samples that they are of.
fn with_exemplars(text: String, exemplars: &HashMap<String, String>) -> String {
    if exemplars.is_empty() {
        return text;
    }
    let mut out = String::with_capacity(text.len() + exemplars.len() * EXEMPLAR_BYTES_TYPICAL);
    for line in text.lines() {
        out.push_str(line);
        // Whatever a label's value is, the sample's is behind the last space.
        let sample = line.rsplit_once(' ').map(|(sample, _)| sample);
        if let Some(exemplar) = sample.and_then(|sample| exemplars.get(sample)) {
            out.push_str(" # ");
            out.push_str(exemplar);
        }
        out.push('\n');
    }
    out
}

/// Turns OpenMetrics 1.0 text into the text format 0.0.4.
///
/// Two differences matter to a 0.0.4 parser: counters are declared with their `_total` suffix, and `# EOF` and `# UNIT` do not exist.
fn to_text_format(open_metrics: &str) -> String {
    let mut help: Option<(&str, &str)> = None;
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // The name in HELP depends on the type, which comes on the next line.
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" || kind == "info" { "gauge" } else { kind };
            if let Some((_, help)) = help.take().filter(|(helped, _)| *helped == name) {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        } else {
            // No sample here carries an exemplar yet, which 0.0.4 does not know; what looks like one is part of a label's value.
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A scraper or two and a few people; more is a mistake or an attack.
const CONNECTIONS_MAX: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any scrape interval in use, so that keep-alive works, and still bounded.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
const EXEMPLAR_BYTES_TYPICAL: usize = 80;
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that clients choose do not get this far; that of a cluster or service does, and must not cut its line.
    #[test]
    fn a_label_may_hold_what_ends_a_sample() {
        let open = "# HELP mesh_x X.\n# TYPE mesh_x gauge\nmesh_x{a=\"b # {c=\\\"d\\\"} \\n 1\"} 3\n# EOF\n";
        assert_eq!(to_text_format(open).lines().last(), open.lines().nth(2));
    }

    #[test]
    fn a_scraper_gets_what_it_wants_most() {
        let of = |accept: &str| format(std::iter::once(accept));
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        // Prometheus 2.42 with native histograms, without them, and a person.
        let wanted = format!(
            "{protobuf},application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        assert_eq!(of(&wanted), Format::Protobuf);
        assert_eq!(
            of("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
            Format::OpenMetrics
        );
        assert_eq!(of("*/*"), Format::Text);
        assert_eq!(
            of(&format!("application/openmetrics-text;version=1.0.0;q=0.6, {protobuf};q=0.3")),
            Format::OpenMetrics
        );
        assert_eq!(of("application/vnd.google.protobuf;proto=other;encoding=delimited"), Format::Text);
        assert_eq!(of(&format!("{protobuf};q=0")), Format::Text);
    }

    #[test]
    fn exemplars_stand_behind_their_samples_and_nowhere_else() {
        let text = "# TYPE mesh_x histogram\nmesh_x_bucket{le=\"1.0\",a=\"b c # {\"} 3\nmesh_x_bucket{le=\"+Inf\",a=\"b\"} 4\n# EOF\n";
        let sample = "mesh_x_bucket{le=\"1.0\",a=\"b c # {\"}".to_owned();
        let exemplars = [(sample, "{trace_id=\"a\"} 0.5".to_owned()), ("mesh_y".to_owned(), "no".to_owned())].into();
        let expected = text.replace("} 3\n", "} 3 # {trace_id=\"a\"} 0.5\n");
        assert_eq!(with_exemplars(text.to_owned(), &exemplars), expected);
        assert_eq!(with_exemplars(text.to_owned(), &HashMap::new()), text);
    }

    #[test]
    fn counters_keep_their_type_in_the_old_format() {
        let open = "# HELP mesh_requests Requests.\n# TYPE mesh_requests counter\nmesh_requests_total{a=\"b\"} 3\n# HELP mesh_x_seconds X.\n# TYPE mesh_x_seconds gauge\n# UNIT mesh_x_seconds seconds\nmesh_x_seconds 1.5\n# EOF\n";
        let text = to_text_format(open);
        assert_eq!(
            text,
            "# HELP mesh_requests_total Requests.\n# TYPE mesh_requests_total counter\nmesh_requests_total{a=\"b\"} 3\n# HELP mesh_x_seconds X.\n# TYPE mesh_x_seconds gauge\nmesh_x_seconds 1.5\n"
        );
    }
}
