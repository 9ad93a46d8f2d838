//! One attempt at a gateway of another cluster, which serves it from endpoints of its own.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use archipelago_http::h1::BadResponse;
use archipelago_http::{Fields, Known, Pooled, ResponseHead};
use archipelago_tunnel::{Exchange, PeerState, TunnelError};

use super::Response;
use super::attempts::{Attempt, Failed, Sent};
use super::body::{RequestBody, ResponseBody};
use super::call::Call;
use super::failure::Failure;
use super::headers::Malformed;
use super::local::{push_deadline, push_trace};
use super::replay::Ending;
use super::websocket;
use crate::authorize::INGRESS_HOP;
use crate::ledger::{Far, Stamps, Waits};
use crate::trace::traced::Outcome;
use crate::worker::view::{Decision, Remote};

/// Sends the call through the tunnel to `remote`.
pub async fn send(
    call: &Call,
    decision: &Decision,
    remote: &Rc<Remote>,
    attempt: Attempt,
    body: RequestBody,
    idempotent: bool,
) -> Result<Sent, Failed> {
    let (started, waits) = (Instant::now(), Waits::default());
    let number = attempt.history.attempts;
    if let Some(trace) = &call.trace {
        trace.asks_gateway(number, remote, started);
    }
    let failed = |failed: Failed| {
        if let Some(trace) = &call.trace {
            trace.ended(number, Outcome::Failed(failed.reason), Instant::now());
        }
        failed
    };
    let response = exchange(call, decision, remote, attempt, body, &waits).await;
    let now = Instant::now();
    let response = response.map_err(|error| {
        tracing::debug!(peer = %remote.name, error = &error as &dyn std::error::Error, "attempt through a tunnel failed");
        let (failure, ending) = if error.is_head_too_large() {
            (Failure::RequestHead, Ending::Final)
        } else if error.has_no_form() {
            (Failure::Malformed(Malformed::Target), Ending::Final)
        } else if error.is_peers_head_too_large() {
            (Failure::BadResponse(BadResponse::HeadTooLarge), Ending::Final)
        } else if error.never_processed() {
            (Failure::NoHealthy, Ending::NotProcessed)
        } else if remote.handle.state() != PeerState::Up {
            (Failure::Broken, Ending::Lost)
        } else {
            (Failure::Broken, Ending::Broken { acted: 1 })
        };
        failed(Failed::new(failure, ending, error.reason()))
    })?;
    remote.observe(now.saturating_duration_since(started), now);
    let (mut head, body) = response;
    let reason = head.fields.get(Known::MeshFailure).map(<[u8]>::to_vec);
    let said = reason.as_deref().and_then(Failure::by_reason);
    match said {
        Some(Failure::Broken) => {
            let acted = head.fields.get(Known::MeshSends).and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
            let acted = acted.unwrap_or(1);
            return Err(failed(Failed::new(Failure::Broken, Ending::Broken { acted }, "far_side_broken")));
        }
        Some(Failure::NoHealthy) if idempotent => {
            return Err(failed(Failed::new(Failure::NoHealthy, Ending::Lost, "far_side_unhealthy")));
        }
        // He understands it in his own words only.
        Some(failure) if call.is_grpc => return Err(failed(Failed::new(failure, Ending::Final, "far_side"))),
        _ => {}
    }
    if websocket::is_asked(&call.head) {
        websocket::from_peer(&mut head);
    }
    let far = head.fields.get(Known::MeshLedger).and_then(Far::decode).map(Box::new);
    head.fields.strip_hop_by_hop();
    head.fields.strip_mesh();
    head.fields.push(Known::MeshServedBy, remote.served_by.as_bytes());
    if let Some(reason) = reason {
        head.fields.push(Known::MeshFailure, &reason);
    }
    let (waited, connected) = (waits.stream.get(), waits.connection.get());
    if let Some(trace) = &call.trace {
        trace.ended(number, Outcome::Answered { status: head.status.as_u16(), waited, connected }, now);
    }
    let stamps = Stamps { began: started, answered: now, waited, connected, far };
    Ok((Response { head, body: ResponseBody::tunnel(body) }, None, stamps))
}

/// Sends the request; resolves with the response, informational ones passed on.
async fn exchange(
    call: &Call,
    decision: &Decision,
    remote: &Remote,
    attempt: Attempt,
    body: RequestBody,
    waits: &Waits,
) -> Result<(Pooled<ResponseHead>, Exchange<RequestBody>), TunnelError> {
    let opened = waits.for_stream(remote.handle.open()).await?;
    let mut exchange = opened.request(&call.head, &said(call, decision, attempt), body)?;
    loop {
        let head = exchange.head().await?;
        if !head.status.is_informational() {
            return Ok((head, exchange));
        }
        poll_fn(|cx| {
            call.interim.send(&head, cx);
            Poll::Ready(())
        })
        .await;
    }
}

/// What the gateway there is told about the request.
fn said(call: &Call, decision: &Decision, attempt: Attempt) -> Pooled<Fields> {
    let mut said = Pooled::<Fields>::new();
    if let Some(service) = call.config() {
        said.push(Known::MeshService, service.service.as_bytes());
        said.push_number(Known::MeshPort, service.port.into());
    }
    said.push(Known::MeshHop, INGRESS_HOP.as_bytes());
    said.push_number(Known::MeshAttempt, attempt.history.attempts.into());
    if let Some(version) = &decision.version {
        said.push(Known::MeshVersion, version.as_bytes());
    }
    if let Some(workload) = &call.source {
        said.push(Known::MeshSource, workload.id.as_bytes());
    }
    if attempt.history.acted > 0 {
        said.push_number(Known::MeshSends, attempt.history.acted.into());
    }
    push_trace(call, attempt, &mut said);
    push_deadline(call, attempt, &mut said);
    said
}
