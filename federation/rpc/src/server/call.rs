//! One call: judged, bounded in bytes and time, counted until its last byte.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::Limited;
use hyper::body::Incoming;
use tokio::{sync::watch, time::timeout};
use tonic::{Status, body::Body};
use tower::Service;

use super::{Call, Port, lock, source_of};
use crate::grpc::PeerInfo;

/// Answers a request, whatever comes.
pub(super) async fn answer(
    port: Arc<Port>,
    peer: PeerInfo,
    streams: watch::Sender<usize>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let open = Open::new(streams);
    let answer = match admit(&port, &peer, &request) {
        Ok(call) => perform(&port, peer, call, request).await,
        // Without a look at the body: what was not read is not kept, and the stream is reset.
        Err(status) => status.into_http(),
    };
    Ok(answer.map(|body| Body::new(Counted { body, _open: open })))
}

fn admit(port: &Port, peer: &PeerInfo, request: &Request<Incoming>) -> Result<Call, Status> {
    let rule = port.server.access.judge(request.uri().path(), peer.spiffe_id())?;
    if peer.certificate.is_none() && !lock(&port.throttle).take(source_of(peer.remote.ip()), Instant::now()) {
        return Err(Status::resource_exhausted("too many calls without a certificate from your address, try again"));
    }
    Ok(rule.call)
}

async fn perform(port: &Port, peer: PeerInfo, call: Call, request: Request<Incoming>) -> Response<Body> {
    let asked = grpc_timeout(request.headers());
    let (mut request, own) = match call {
        Call::Streaming => (request.map(Body::new), None),
        Call::Unary { request_bytes_max, time_max } => {
            (request.map(|body| Body::new(Limited::new(body, request_bytes_max))), Some(time_max))
        }
    };
    request.extensions_mut().insert(peer);
    let mut routes = port.routes.clone();
    let answer = routes.call(request);
    let limit = [asked, own].into_iter().flatten().min();
    match limit {
        None => answer.await.unwrap_or_else(|never| match never {}),
        Some(limit) => match timeout(limit, answer).await {
            Ok(answer) => answer.unwrap_or_else(|never| match never {}),
            Err(_) => Status::deadline_exceeded("the call took too long").into_http(),
        },
    }
}

/// How long the client waits: `grpc-timeout`, up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// A stream that is counted as open until dropped.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(streams: watch::Sender<usize>) -> Self {
        streams.send_modify(|open| *open += 1);
        Self(streams)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// An answer's body, whose end is that of the stream.
struct Counted {
    body: Body,
    _open: Open,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_patience_is_read_as_grpc_writes_it() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&headers)
        };
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("1500m"), Some(Duration::from_millis(1_500)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for wrong in ["", "S", "2", "123456789S", "-1S", "2x", "2é"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
