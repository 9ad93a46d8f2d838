//! A request of the gateway's own through a tunnel, which the gateway at its other end answers itself: what `meshctl check` asks for.
//!
//! Beats say that datagrams pass. This says that streams do: flow control, the codec, the worker at the other end and its judgement of us.

use std::rc::Rc;
use std::time::{Duration, Instant};

use archipelago_http::{Known, RequestHead, ResponseHead};
use archipelago_proto::v1::TunnelProbe;
use archipelago_tunnel::{IncomingRequest, PeerHandle};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};

use super::{Worker, command::micros};
use crate::authorize::{INGRESS_HOP, Refusal};

/// Through every tunnel of a worker, at once.
pub(super) async fn all(worker: Rc<Worker>) -> Vec<TunnelProbe> {
    join_all(worker.tunnels.peers().into_iter().map(one)).await
}

async fn one(peer: PeerHandle) -> TunnelProbe {
    let began = Instant::now();
    let outcome = tokio::time::timeout(ANSWER_TIMEOUT, ask(&peer)).await;
    let failure = match outcome {
        Ok(Ok(())) => String::new(),
        Ok(Err(failure)) => failure,
        Err(_) => format!("no answer within {} ms", ANSWER_TIMEOUT.as_millis()),
    };
    TunnelProbe {
        to: peer.name().to_string(),
        to_cluster: peer.name().cluster.clone(),
        round_trip_micros: micros(began.elapsed()),
        failure,
    }
}

async fn ask(peer: &PeerHandle) -> Result<(), String> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::OPTIONS;
    *request.uri_mut() = http::Uri::from_static(PROBE_URI);
    request.headers_mut().insert(Known::MeshHop.as_str(), HeaderValue::from_static(INGRESS_HOP));
    let response = peer.request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
    let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    // A gateway of a version that knows no probes answers them as it answers whatever names no service: it has answered.
    if status == StatusCode::FORBIDDEN && said == Refusal::NoService.to_string() {
        return Ok(());
    }
    Err(format!("answered {}: {said}", status.as_u16()))
}

/// Whether a request that came through a tunnel is one of these: no service, and an authority that no host can have (RFC 6761).
pub(super) fn is_probe(head: &RequestHead) -> bool {
    head.method == Method::OPTIONS
        && head.authority() == Some(PROBE_HOST.as_bytes())
        && !head.fields.contains(Known::MeshService)
}

/// Answers one, to whoever may have a tunnel here now.
pub(super) async fn answer(worker: Rc<Worker>, incoming: Box<IncomingRequest>) {
    let IncomingRequest { peer, responder, .. } = *incoming;
    let (status, line) = match worker.caller(&peer) {
        Ok(_) => (StatusCode::NO_CONTENT, String::new()),
        Err(refusal) => {
            worker.metrics.refused_stream(refusal);
            (StatusCode::FORBIDDEN, format!("{refusal}\n"))
        }
    };
    if let Err(error) = responder.respond(&ResponseHead::of(status), Full::new(Bytes::from(line))).await {
        tracing::debug!(%error, "the answer to a probe broke off");
    }
}

/// One per peer out of those of all workers: the slowest, and the first failure.
pub(crate) fn merge(probes: impl IntoIterator<Item = Vec<TunnelProbe>>) -> Vec<TunnelProbe> {
    let mut merged: Vec<TunnelProbe> = Vec::new();
    for probe in probes.into_iter().flatten() {
        match merged.iter_mut().find(|known| known.to == probe.to) {
            None => merged.push(probe),
            Some(known) => {
                known.round_trip_micros = known.round_trip_micros.max(probe.round_trip_micros);
                if known.failure.is_empty() {
                    known.failure = probe.failure;
                }
            }
        }
    }
    merged.sort_by(|a, b| a.to.cmp(&b.to));
    merged
}

const PROBE_HOST: &str = "probe.archipelago.invalid";
const PROBE_URI: &str = "https://probe.archipelago.invalid/";
/// Whoever asks for probes waits 2 s for all of them.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_200);
/// Of an answer that is not as expected; what a gateway says of a refusal is a line.
const BODY_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_worker_and_the_first_failure_count() {
        let probe = |to: &str, round_trip_micros, failure: &str| TunnelProbe {
            to: to.into(),
            round_trip_micros,
            failure: failure.into(),
            ..Default::default()
        };
        let merged = merge([
            vec![probe("b", 5, ""), probe("a", 1, "")],
            vec![probe("a", 3, ""), probe("b", 2, "reset"), probe("b", 1, "later")],
        ]);
        assert_eq!(merged, [probe("a", 3, ""), probe("b", 5, "reset")]);
    }
}
