//! The HTTP paths of a demo backend.
//!
//! | request | answer |
//! | --- | --- |
//! | `/` | JSON `{"service","cluster","version","instance","protocol","source","caller"}` |
//! | `/bytes/N` | N bytes, byte `i` being `i % 251` ([`crate::pattern_byte`]) |
//! | `POST /digest` | JSON `{"bytes","sha256"}` of the body, hashed as it arrives |
//! | `POST /echo` | the body, and its trailers, back as they arrive |
//! | `/delay/MS` | as `/`, after MS milliseconds (at most ten minutes) |
//! | `POST /slower/MS` | JSON `{"slowerMs":MS}`: from now on this backend answers everything else MS milliseconds later; 0 ends it |
//! | `/status/CODE` | as `/`, with that status (200 to 599) |
//! | `/headers` | JSON `{"method","path","authority","headers":[[name,value],…]}` as they arrived, duplicates kept |
//! | `/trailers` | a text, then the trailers `x-demo-bytes` and `x-demo-sha256` over it |
//! | `/stream/COUNT/MS` | COUNT lines, the first at once and then one each MS milliseconds |
//! | `/cancelled` | JSON `{"cancelled":N}`: requests whose client left before the response ended |
//!
//! `protocol` is how the request arrived here (`HTTP/1.1` or `HTTP/2`); `source` is the request's
//! `mesh-source` header or null, `caller` the `URI` in its `x-forwarded-client-cert` or null. Paths without a method take every method but CONNECT and TRACE, and
//! read and drop a request body; HEAD has the head of GET. A refusal is JSON `{"error"}`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    Identity,
    body::{BodyError, BoxError, Cancelled, Patient, Pattern, ResponseBody, Ticks, full, hex},
};

/// Answers the requests of one backend.
pub(crate) struct Backend {
    identity: Arc<Identity>,
    cancelled: Cancelled,
    slower_ms: AtomicU64,
}

impl Backend {
    pub(crate) fn new(identity: Arc<Identity>) -> Self {
        Self { identity, cancelled: Cancelled::default(), slower_ms: AtomicU64::new(0) }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Answers one request; if the returned future or the body is dropped early, counts it as cancelled.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let watch = self.cancelled.watch();
        let is_head = request.method() == Method::HEAD;
        let (parts, body) = request.into_parts();
        let body = Patient::new(body, BODY_SILENCE_MAX);
        let response = match self.route(&parts, body).await {
            Ok(response) => response,
            // The connection is gone or out of step: the watch, dropped here, counts it.
            Err(Refusal::ClientLeft) => return refusal(&Refusal::ClientLeft),
            Err(refused) => refusal(&refused),
        };
        let (mut head, body) = response.into_parts();
        // hyper leaves the length out where there is no body to send, so it is set here for all.
        // RFC 9110 §8.6 forbids it in a 204 and makes it misleading in a 304.
        if let Some(length) = body.size_hint().exact()
            && !matches!(head.status.as_u16(), 204 | 304)
        {
            head.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let body = if is_head { full(Bytes::new()) } else { body };
        Response::from_parts(head, watch.over(body))
    }

    async fn route(
        &self,
        request: &request::Parts,
        body: Patient<Incoming>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let method = &request.method;
        if matches!(*method, Method::CONNECT | Method::TRACE) {
            return Err(Refusal::Method("GET, HEAD, POST"));
        }
        let path = request.uri.path();
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        if let ["slower", millis] = segments[..] {
            if *method != Method::POST {
                return Err(Refusal::Method("POST"));
            }
            let millis = number(millis, 0..=DELAY_MAX_MS)?;
            discard(body).await?;
            self.slower_ms.store(millis, Ordering::Relaxed);
            return Ok(json(&serde_json::json!({ "slowerMs": millis })));
        }
        match self.slower_ms.load(Ordering::Relaxed) {
            0 => {}
            millis => sleep(Duration::from_millis(millis)).await,
        }
        match segments[..] {
            ["digest"] if *method == Method::POST => digest_of(body).await,
            ["echo"] if *method == Method::POST => Ok(echo(request, body)),
            ["digest" | "echo"] => Err(Refusal::Method("POST")),
            [""] => {
                discard(body).await?;
                Ok(self.introduce(request, StatusCode::OK))
            }
            ["bytes", length] => {
                let length = number(length, 0..=BYTES_MAX)?;
                discard(body).await?;
                let pattern = Pattern::new(length).boxed_unsync();
                Ok(respond("application/octet-stream", pattern))
            }
            ["delay", millis] => {
                let delay = Duration::from_millis(number(millis, 0..=DELAY_MAX_MS)?);
                discard(body).await?;
                sleep(delay).await;
                Ok(self.introduce(request, StatusCode::OK))
            }
            ["status", code] => {
                let code = number(code, 200..=599)?;
                discard(body).await?;
                let status = u16::try_from(code)
                    .ok()
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .ok_or(Refusal::NotFound)?;
                Ok(self.introduce(request, status))
            }
            ["headers"] => {
                discard(body).await?;
                Ok(json(&Arrived::from(request)))
            }
            ["trailers"] => {
                discard(body).await?;
                Ok(with_trailers())
            }
            ["stream", count, millis] => {
                let count = number(count, 0..=STREAM_COUNT_MAX)?;
                let every = Duration::from_millis(number(millis, 0..=DELAY_MAX_MS)?);
                discard(body).await?;
                let ticks = Ticks::new(count, every).boxed_unsync();
                Ok(respond("text/plain; charset=utf-8", ticks))
            }
            ["cancelled"] => {
                discard(body).await?;
                Ok(json(&serde_json::json!({ "cancelled": self.cancelled.count() })))
            }
            _ => Err(Refusal::NotFound),
        }
    }

    fn introduce(&self, request: &request::Parts, status: StatusCode) -> Response<ResponseBody> {
        let source = request.headers.get("mesh-source").map(|source| String::from_utf8_lossy(source.as_bytes()));
        let mut response = json(&Introduction {
            service: &self.identity.service,
            cluster: &self.identity.cluster,
            version: &self.identity.version,
            instance: &self.identity.instance,
            protocol: protocol(request.version),
            source: source.as_deref(),
            caller: caller(&request.headers),
        });
        *response.status_mut() = status;
        // RFC 9110 §15.3.5, §15.3.6, §15.4.5: these three carry no content.
        if matches!(status.as_u16(), 204 | 205 | 304) {
            response.headers_mut().remove(header::CONTENT_TYPE);
            *response.body_mut() = full(Bytes::new());
        }
        response
    }
}

#[derive(Serialize)]
struct Introduction<'a> {
    service: &'a str,
    cluster: &'a str,
    version: &'a str,
    instance: &'a str,
    protocol: &'a str,
    source: Option<&'a str>,
    caller: Option<&'a str>,
}

/// The identity of the workload that sent the request, from the `URI` of Envoy's `x-forwarded-client-cert`.
///
/// Several elements, several headers or several URIs are nobody's word in particular, so they name nobody.
fn caller(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("x-forwarded-client-cert").iter();
    let value = values.next()?.to_str().ok().filter(|value| !value.contains(','))?;
    let mut uris = value.split(';').filter_map(|pair| pair.trim().strip_prefix("URI="));
    let uri = uris.next()?;
    (values.next().is_none() && uris.next().is_none()).then_some(uri)
}

/// A request as it arrived; bytes that are not UTF-8 are replaced.
#[derive(Serialize)]
struct Arrived<'a> {
    method: &'a str,
    path: &'a str,
    authority: Option<String>,
    headers: Vec<(&'a str, String)>,
}

impl<'a> From<&'a request::Parts> for Arrived<'a> {
    fn from(request: &'a request::Parts) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            method: request.method.as_str(),
            path: request.uri.path_and_query().map_or_else(|| request.uri.path(), |path| path.as_str()),
            authority: match request.uri.authority() {
                Some(authority) => Some(authority.to_string()),
                None => request.headers.get(header::HOST).map(text),
            },
            headers: request.headers.iter().map(|(name, value)| (name.as_str(), text(value))).collect(),
        }
    }
}

async fn digest_of(mut body: Patient<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut bytes = 0_u64;
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame?.into_data() {
            hash.update(&chunk);
            bytes = bytes.saturating_add(chunk.len() as u64);
        }
    }
    let sha256 = hex(hash.finish().as_ref());
    Ok(json(&serde_json::json!({ "bytes": bytes, "sha256": sha256 })))
}

fn echo(request: &request::Parts, body: Patient<Incoming>) -> Response<ResponseBody> {
    let content_type = request
        .headers
        .get(header::CONTENT_TYPE)
        .cloned()
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let mut response = Response::new(body.map_err(BoxError::from).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    // HTTP/1.1 sends only trailers that its head announced.
    if let Some(trailers) = request.headers.get(header::TRAILER) {
        response.headers_mut().insert(header::TRAILER, trailers.clone());
    }
    response
}

fn with_trailers() -> Response<ResponseBody> {
    const TEXT: &str = "The digest of this text follows in a trailer.\n";
    let sha256 = hex(digest::digest(&digest::SHA256, TEXT.as_bytes()).as_ref());
    let mut trailers = HeaderMap::new();
    trailers.insert(TRAILER_BYTES, TEXT.len().into());
    if let Ok(value) = HeaderValue::try_from(sha256) {
        trailers.insert(TRAILER_SHA256, value);
    }
    let frames = [Frame::data(Bytes::from_static(TEXT.as_bytes())), Frame::trailers(trailers)];
    let frames = stream::iter(frames.map(Ok::<_, BoxError>));
    let mut response = respond("text/plain; charset=utf-8", StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-demo-bytes, x-demo-sha256"));
    response
}

/// Reads a request body to its end, so that the connection can carry the next request.
async fn discard(mut body: Patient<Incoming>) -> Result<(), Refusal> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Response<ResponseBody> {
    match serde_json::to_vec(value) {
        Ok(text) => respond("application/json", full(text)),
        // Strings and numbers always serialise; should that change, say so rather than panic.
        Err(_) => {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

fn respond(content_type: &'static str, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Reads a path segment of digits only; `u64`'s own parser would also take `+7`.
fn number(text: &str, within: std::ops::RangeInclusive<u64>) -> Result<u64, Refusal> {
    Some(text)
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|value| within.contains(value))
        .ok_or_else(|| Refusal::Number {
            text: text.chars().take(32).collect(),
            from: *within.start(),
            to: *within.end(),
        })
}

enum Refusal {
    NotFound,
    Method(&'static str),
    Number { text: String, from: u64, to: u64 },
    ClientSilent,
    ClientLeft,
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Silent => Self::ClientSilent,
            BodyError::Broken(_) => Self::ClientLeft,
        }
    }
}

fn refusal(refusal: &Refusal) -> Response<ResponseBody> {
    let (status, message) = match refusal {
        Refusal::NotFound => (StatusCode::NOT_FOUND, "no such path".to_owned()),
        Refusal::Method(allow) => (StatusCode::METHOD_NOT_ALLOWED, format!("use one of: {allow}")),
        Refusal::Number { text, from, to } => {
            (StatusCode::BAD_REQUEST, format!("{text:?} is not a number from {from} to {to}"))
        }
        Refusal::ClientSilent => (StatusCode::REQUEST_TIMEOUT, "the request body stopped arriving".to_owned()),
        Refusal::ClientLeft => (StatusCode::BAD_REQUEST, "the request body broke off".to_owned()),
    };
    let mut response = json(&serde_json::json!({ "error": message }));
    *response.status_mut() = status;
    if let Refusal::Method(allow) = refusal {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    response
}

const TRAILER_BYTES: HeaderName = HeaderName::from_static("x-demo-bytes");
const TRAILER_SHA256: HeaderName = HeaderName::from_static("x-demo-sha256");
/// A tebibyte: beyond any test, and far from overflow.
const BYTES_MAX: u64 = 1 << 40;
const DELAY_MAX_MS: u64 = 600_000;
const STREAM_COUNT_MAX: u64 = 1_000_000;
/// How long a request body may pause.
const BODY_SILENCE_MAX: Duration = Duration::from_secs(120);
