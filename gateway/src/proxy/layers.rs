//! What is policy, one function per layer. [`super::ingress`] and [`super::far_side`] put them in order.

use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Response, header};

use super::body::ResponseBody;
use super::headers::{self, MESH_FAILURE};
use super::record::{Finish, Record};
use super::stack::{Call, Failure, Origin, Outcome, Stack};
use crate::authorize::{Asked, Kind, Refusal, authorize};
use crate::config::Protocol;
use crate::worker::Worker;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Answers failures, and writes every request down once: answered, failed, or given up by its sender.
pub async fn record(call: Box<Call>, next: Stack) -> Outcome {
    let (record, body, worker) = (Rc::clone(&call.record), call.body.clone(), Rc::clone(&call.worker));
    let is_peer = !matches!(call.origin, Origin::Client);
    let mut abandoned = Abandoned { record: Some(Rc::clone(&record)), body: body.clone() };
    let outcome = next.run(call).await;
    abandoned.record = None;
    let response = match outcome {
        Ok(response) => response,
        // The far side tells its peer that nothing was processed; no response may exist.
        Err(failure) if is_peer && failure.is_rejection() => {
            worker.metrics.failure(failure);
            let mut record = record.borrow().clone();
            (record.code, record.flags) = (failure.status().as_u16(), failure.flags());
            drop(Finish::new(record, body, None));
            return Err(failure);
        }
        Err(failure) => {
            record.borrow_mut().flags = failure.flags();
            worker.metrics.failure(failure);
            answer(failure)
        }
    };
    // The call is gone, so nobody else holds it.
    let mut record = Rc::try_unwrap(record).map_or_else(|shared| shared.borrow().clone(), RefCell::into_inner);
    record.code = response.status().as_u16();
    let finish = Finish::new(record, body, None);
    Ok(response.map(|body| body.with_finish(finish)))
}

/// The response to a failure: one line of text, with the reason in a header.
pub fn answer(failure: Failure) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(format!("{}\n", failure.line())));
    *response.status_mut() = failure.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(MESH_FAILURE, HeaderValue::from_static(failure.reason()));
    if matches!(failure, Failure::Overloaded | Failure::NoHealthy | Failure::UnknownPort) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Only well-formed requests pass, without what belongs to the sender's connection or to gateways.
pub async fn sanitize(mut call: Box<Call>, next: Stack) -> Outcome {
    if call.parts.method == Method::CONNECT || call.parts.headers.contains_key(header::UPGRADE) && wants_upgrade(&call)
    {
        return Err(Failure::Unsupported);
    }
    let authority = headers::authority(&call.parts).map_err(Failure::Malformed)?;
    let target = headers::target(&call.parts).map_err(Failure::Malformed)?;
    call.target = Some((authority, target));
    call.trailers = headers::strip(&mut call.parts.headers);
    next.run(call).await
}

/// `Upgrade: h2c` is ignored (RFC 9113 §3.1 retired it, and RFC 9110 §7.8 lets a server go on); anything else needs an answer.
fn wants_upgrade(call: &Call) -> bool {
    let named = call
        .parts
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("upgrade")));
    named && call.parts.headers.get_all(header::UPGRADE).iter().any(|v| v.as_bytes() != b"h2c")
}

/// Sheds load when the worker carries as many requests as it may: never queues.
pub async fn admission(call: Box<Call>, next: Stack) -> Outcome {
    let Some(slot) = call.worker.admit() else { return Err(Failure::Overloaded) };
    let outcome = next.run(call).await;
    drop(slot);
    outcome
}

/// Host name, or the port that the request came to, to service.
pub async fn route(mut call: Box<Call>, next: Stack) -> Outcome {
    let view = call.worker.view();
    let (found, closed, unknown) = match &call.capture {
        None => {
            let (authority, _) = call.target.as_ref().ok_or(Failure::UnknownHost)?;
            let found = view.snapshot.service_by_host(authority.as_str());
            let closed = || view.snapshot.closed_by_host(authority.as_str());
            (found, found.is_none().then(closed).flatten(), Failure::UnknownHost)
        }
        Some(capture) => {
            let found = view.snapshot.port_of(&capture.service, capture.port);
            let closed = || view.snapshot.closed_by_key(&capture.service);
            (found, found.is_none().then(closed).flatten(), Failure::UnknownPort)
        }
    };
    if let Some(closed) = closed {
        call.record.borrow_mut().service = Some(closed.key.clone());
        return Err(Failure::Closed);
    }
    let service = found.and_then(|index| view.snapshot.services.get(index)).ok_or(unknown)?;
    call.record.borrow_mut().service = Some(service.key.clone());
    if service.protocol == Protocol::Tcp {
        return Err(Failure::NotHttp);
    }
    call.service = Some(service.key.clone());
    call.worker.deposit();
    next.run(call).await
}

/// Who may ask through a tunnel for what: see [`authorize`].
pub async fn authorise_peer(mut call: Box<Call>, next: Stack) -> Outcome {
    let Origin::Arrived(arrival) = call.origin else { return Err(Failure::Refused(Refusal::NotAGateway)) };
    let view = call.worker.view();
    let asked = Asked::new(Kind::Request, &call.parts.headers);
    // In the books under the name that was asked for, if there is such a service.
    let named = asked.find(&view.snapshot);
    call.record.borrow_mut().service =
        named.and_then(|index| view.snapshot.services.get(index)).map(|service| Arc::clone(&service.key));
    let authorized = authorize(&view.snapshot, &arrival.caller.admitted, asked).map_err(|refusal| {
        call.worker.metrics.refused_stream(refusal);
        Failure::Refused(refusal)
    })?;
    let value = |name| call.parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let deadline = value(headers::MESH_DEADLINE_MS).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    call.deadline = deadline.map(|left| Instant::now() + left.min(call.worker.limits.request_timeout));
    call.service = Some(Arc::clone(authorized.service()));
    call.origin = Origin::Peer(arrival, authorized);
    let authority = call.parts.uri.authority().cloned().ok_or(Failure::Malformed(headers::Malformed::Authority))?;
    let target = headers::target(&call.parts).map_err(Failure::Malformed)?;
    call.target = Some((authority, target));
    call.trailers = headers::strip(&mut call.parts.headers);
    next.run(call).await
}

/// A response must begin in time. While the sender is still sending, the clock runs from its last byte: an upload may take long.
pub async fn deadline(mut call: Box<Call>, next: Stack) -> Outcome {
    let timeout =
        call.deadline.map_or(call.worker.limits.request_timeout, |at| at.saturating_duration_since(Instant::now()));
    let started = Instant::now();
    call.deadline = Some(started + timeout);
    let body = call.body.clone();
    let due = || body.progress().map_or(started, |(at, _)| at.max(started)) + timeout;
    let response = next.run(call);
    tokio::pin!(response);
    loop {
        tokio::select! {
            biased;
            outcome = &mut response => return outcome,
            () = tokio::time::sleep_until(due().into()) => {
                if due() <= Instant::now() {
                    return Err(Failure::Timeout);
                }
            }
        }
    }
}

/// Writes down a request whose sender left before there was an answer.
struct Abandoned {
    record: Option<Rc<RefCell<Record>>>,
    body: super::body::Replayable,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            drop(Finish::new(record.borrow().clone(), self.body.clone(), None));
        }
    }
}

/// One of a worker's admission slots.
#[derive(Debug)]
pub struct Slot(Rc<Worker>);

impl Slot {
    /// Takes a slot if one is free.
    pub fn take(worker: &Rc<Worker>) -> Option<Self> {
        let carried = worker.requests.get();
        if carried >= worker.limits.requests_max {
            return None;
        }
        worker.requests.set(carried + 1);
        Some(Self(Rc::clone(worker)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get().saturating_sub(1));
    }
}
