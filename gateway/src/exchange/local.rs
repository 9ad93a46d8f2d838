//! One attempt at an endpoint of this cluster.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use archipelago_http::h1::BadResponse;
use archipelago_http::{Fields, Known, Pooled, ResponseHead};

use super::Response;
use super::attempts::{Attempt, Failed, Sent};
use super::body::{RequestBody, ResponseBody, Upload};
use super::call::{Call, Deadline, Origin, write_grpc_timeout};
use super::failure::{Cut, Failure};
use super::http1::client::{self, Outgoing};
use super::http2::client::Http2Error;
use super::replay::Ending;
use super::timers::Timer;
use super::upstream::{Endpoint, UpstreamError};
use super::websocket;
use crate::authorize::INGRESS_HOP;
use crate::balance::outlier::Verdict;
use crate::config::Protocol;
use crate::ledger::{Stamps, Waits};
use crate::trace::traced::Outcome;

/// Sends the call to `endpoint`.
pub async fn send(call: &Call, endpoint: &Rc<Endpoint>, attempt: Attempt, body: RequestBody) -> Result<Sent, Failed> {
    let protocol = call.config().map_or(Protocol::Http1, |service| service.protocol);
    let said = said(call, attempt);
    let in_flight = endpoint.enter();
    let (began, stamped) = (Instant::now(), Waits::default());
    let waits = endpoint.wait(began);
    let number = attempt.history.attempts;
    if let Some(trace) = &call.trace {
        trace.asks_endpoint(number, endpoint, began);
    }
    let sent = match protocol {
        Protocol::Http1 | Protocol::Tcp => minded(call, endpoint, http1(call, endpoint, &said, body, &stamped)).await,
        Protocol::H2c => minded(call, endpoint, http2(call, endpoint, &said, body, &stamped)).await,
    };
    let now = Instant::now();
    let verdict = sent.as_ref().map_or_else(UpstreamError::verdict, |_| Some(Verdict::Answered));
    if let (Some(live), Some(verdict)) = (call.live(), verdict) {
        live.judge(endpoint, verdict, now);
    }
    match sent {
        Ok((mut head, body)) => {
            waits.answered(now);
            head.fields.strip_hop_by_hop();
            head.fields.strip_mesh();
            if call.is_clients() {
                head.fields.push(Known::MeshServedBy, call.worker.identity.served_by.as_bytes());
            }
            let (waited, connected) = (stamped.stream.get(), stamped.connection.get());
            if let Some(trace) = &call.trace {
                trace.ended(number, Outcome::Answered { status: head.status.as_u16(), waited, connected }, now);
            }
            let stamps = Stamps { began, answered: now, waited, connected, far: None };
            Ok((Response { head, body }, Some(in_flight), stamps))
        }
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "attempt at an endpoint failed");
            let failed = Failed { connecting: stamped.connection.get(), ..failed(&error) };
            if let Some(trace) = &call.trace {
                trace.ended(number, Outcome::Failed(failed.reason), now);
            }
            Err(failed)
        }
    }
}

/// Resolves when the endpoint has been silent for longer than it ever takes, this request, begun now, all the while among those that
/// wait. The endpoint is judged by it.
pub async fn hangs(call: &Call, endpoint: &Endpoint) {
    let timer = call.worker.timers.timer();
    let mut from = Instant::now();
    loop {
        timer.set(Some(from + endpoint.limit()));
        timer.is_due().await;
        let now = Instant::now();
        // While the sender is still sending, it is his turn.
        if !call.body.is_sending() && endpoint.hangs(now) {
            if let Some(live) = call.live() {
                live.judge(endpoint, Verdict::Hung, now);
            }
            return;
        }
        from = now;
    }
}

/// An attempt, for as long as its endpoint takes something of the body now and then.
async fn minded<T>(
    call: &Call,
    endpoint: &Endpoint,
    sent: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let mut sent = pin!(sent);
    let mut timer = None;
    poll_fn(|cx| {
        call.body.begin_poll();
        if let Poll::Ready(sent) = sent.as_mut().poll(cx) {
            return Poll::Ready(sent);
        }
        if call.body.is_empty() {
            return Poll::Pending;
        }
        call.body.end_poll(Instant::now());
        ready!(poll_stalled(call, &mut timer, cx));
        call.worker.metrics.cut(Cut::EndpointUpload);
        Poll::Ready(Err(UpstreamError::Stalled { address: endpoint.address() }))
    })
    .await
}

/// Ready when the endpoint has taken nothing for too long.
fn poll_stalled(call: &Call, timer: &mut Option<Timer>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(idle) = call.limits.endpoint_idle() else { return Poll::Pending };
    loop {
        let now = Instant::now();
        // Only while it is the endpoint's turn.
        let Upload::Taker(since) = call.body.upload(now) else { return Poll::Pending };
        let due = since + idle;
        if due <= now {
            return Poll::Ready(());
        }
        let timer = timer.get_or_insert_with(|| call.worker.timers.timer());
        timer.set(Some(due));
        ready!(timer.poll_due(cx));
    }
}

async fn http1(
    call: &Call,
    endpoint: &Rc<Endpoint>,
    said: &Fields,
    mut body: RequestBody,
    waits: &Waits,
) -> Result<(Pooled<ResponseHead>, ResponseBody), UpstreamError> {
    let offered = websocket::is_asked(&call.head).then(|| offer(call, said));
    let (block, switch) = match &offered {
        None => (said.lines(), None),
        Some((block, accept)) => (block.as_slice(), Some(accept.as_str())),
    };
    loop {
        let (link, reused) = endpoint.link(waits).await?;
        let outgoing = Outgoing { head: &call.head, block, body, switch };
        match client::exchange(link, endpoint, outgoing, &call.interim).await {
            Ok((head, answer)) => return Ok((head, ResponseBody::http1(answer))),
            // The endpoint had closed it meanwhile: not its fault, next connection.
            Err(error @ UpstreamError::NotSent { .. }) if reused => body = call.body.attempt().ok_or(error)?,
            Err(error) => return Err(error),
        }
    }
}

/// What is added to a head that offers WebSocket, and what the answer must say.
#[cold]
fn offer(call: &Call, said: &Fields) -> (Vec<u8>, String) {
    let mut random = [0; 16];
    let (first, second) = random.split_at_mut(8);
    first.copy_from_slice(&call.worker.random().to_ne_bytes());
    second.copy_from_slice(&call.worker.random().to_ne_bytes());
    let (offer, accept) = websocket::offer(random);
    ([said.lines(), offer.as_bytes()].concat(), accept)
}

async fn http2(
    call: &Call,
    endpoint: &Rc<Endpoint>,
    said: &Fields,
    body: RequestBody,
    waits: &Waits,
) -> Result<(Pooled<ResponseHead>, ResponseBody), UpstreamError> {
    if call.head.fields.contains(Known::Expect) {
        // Servers of HTTP/2 mostly say nothing of it, and need not: flow control is there for that.
        call.interim.go_on().await;
    }
    let is_websocket = websocket::is_asked(&call.head);
    let mut first = Some(body);
    let request = || {
        let mut parts = call.head.to_http().ok()?;
        parts.version = http::Version::HTTP_2;
        parts.headers.remove(http::header::EXPECT);
        parts.headers.extend(said.to_header_map().ok()?);
        if is_websocket {
            parts.method = http::Method::CONNECT;
            parts.extensions.insert(h2::ext::Protocol::from_static(websocket::PROTOCOL));
        }
        Some(http::Request::from_parts(parts, first.take().or_else(|| call.body.attempt())?))
    };
    let (mut head, mut exchange) = endpoint.http2.send(request, waits).await?;
    loop {
        let (parts, ()) = head.into_parts();
        let mut read = ResponseHead::from_http(&parts)
            .map_err(|error| UpstreamError::Broken { address: endpoint.address(), source: error.into() })?;
        if is_websocket && read.status.is_success() {
            websocket::switched(&mut read);
            return Ok((read.into(), ResponseBody::http2(exchange)));
        }
        if !read.status.is_informational() {
            return Ok((read.into(), ResponseBody::http2(exchange)));
        }
        // Once, however often this is polled.
        let mut unsaid = Some(&read);
        head = poll_fn(|cx| {
            if let Some(head) = unsaid.take() {
                call.interim.send(head, cx);
            }
            exchange.poll_head(cx)
        })
        .await?;
    }
}

/// What the backend is told about the request.
fn said(call: &Call, attempt: Attempt) -> Pooled<Fields> {
    let identity = &call.worker.identity;
    let (source, cluster, number, hop) = match &call.origin {
        Origin::Client => (&identity.spiffe_id_value, &identity.cluster_value, attempt.history.attempts, INGRESS_HOP),
        Origin::Peer(arrival, _) => {
            let number = arrival.attempt.saturating_add(attempt.history.attempts - 1);
            (&arrival.caller.source, &arrival.caller.cluster_value, number, "2")
        }
    };
    let mut said = Pooled::<Fields>::new();
    match &call.source {
        Some(workload) => {
            said.push(Known::MeshSource, workload.id.as_bytes());
            said.push(Known::XForwardedClientCert, workload.xfcc.as_bytes());
        }
        None => said.push(Known::MeshSource, source.as_bytes()),
    }
    said.push(Known::MeshCluster, cluster.as_bytes());
    said.push(Known::MeshHop, hop.as_bytes());
    said.push_number(Known::MeshAttempt, number.into());
    push_trace(call, attempt, &mut said);
    push_deadline(call, attempt, &mut said);
    said
}

/// Whose child is what comes of it, if the request is recorded.
pub fn push_trace(call: &Call, attempt: Attempt, said: &mut Fields) {
    if let Some(trace) = &call.trace {
        said.push(Known::Traceparent, &trace.parent_of(attempt.history.attempts));
    }
}

/// How long there is for a response to begin.
pub fn push_deadline(call: &Call, attempt: Attempt, said: &mut Fields) {
    let left = match call.deadline {
        Deadline::At(at) => at.saturating_duration_since(Instant::now()),
        Deadline::After(timeout) => timeout,
        Deadline::Never => return,
    };
    said.push_number(Known::MeshDeadlineMs, u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    if attempt.has_timeout {
        let mut text = Vec::new();
        write_grpc_timeout(left, &mut text);
        said.push(Known::GrpcTimeout, &text);
    }
}

fn failed(error: &UpstreamError) -> Failed {
    let (failure, ending, reason) = match error {
        UpstreamError::Connect { .. } | UpstreamError::NotSent { .. } => {
            (Failure::NoHealthy, Ending::NotProcessed, "endpoint_refused")
        }
        UpstreamError::Local { .. } => (Failure::Overloaded, Ending::NotProcessed, "local_shortage"),
        UpstreamError::Stalled { .. } => (Failure::Stalled, Ending::Broken { acted: 1 }, "endpoint_stalled"),
        UpstreamError::Broken { .. } => (Failure::Broken, Ending::Broken { acted: 1 }, "endpoint_broken"),
        UpstreamError::BadResponse { source, .. } => (Failure::BadResponse(*source), Ending::Final, "bad_response"),
        UpstreamError::Http2(Http2Error::NoExtendedConnect { .. }) => {
            (Failure::Unsupported, Ending::Final, "no_extended_connect")
        }
        UpstreamError::Http2(error) if error.is_shortage() => {
            (Failure::Overloaded, Ending::NotProcessed, "local_shortage")
        }
        UpstreamError::Http2(error) if error.never_processed() => {
            (Failure::NoHealthy, Ending::NotProcessed, "endpoint_refused")
        }
        UpstreamError::Http2(error) if error.is_bad_head() => {
            (Failure::BadResponse(BadResponse::HeadTooLarge), Ending::Final, "bad_response")
        }
        UpstreamError::Http2(Http2Error::Sender(_)) => (Failure::BrokenRequest, Ending::Final, "request_broken"),
        UpstreamError::Http2(_) => (Failure::Broken, Ending::Broken { acted: 1 }, "endpoint_broken"),
        UpstreamError::Body { .. } => (Failure::BrokenRequest, Ending::Final, "request_broken"),
    };
    Failed { failure, ending, reason, connecting: 0 }
}
