//! The HTTP path, from a client's connection to a backend's and back.
//!
//! Read in this order: [`stack`] (the shapes), [`layers`] (policy, one function each), [`forward`] (attempts and replay),
//! [`upstream`] and [`http2`] (connections to endpoints), [`body`], [`headers`], [`guard`], [`client`] (a client's connection).
//!
//! What a request costs here, on the back of an envelope, for a small GET over HTTP/1.1:
//!
//! | step | cost |
//! | --- | --- |
//! | read and write on both sides | 4 system calls and two wake-ups, 8 to 12 µs |
//! | parse and write both heads (hyper), guard | 2 µs |
//! | one clone of the headers per attempt | 0.3 to 1 µs |
//! | layers: one box each | 6 × 40 ns |
//! | host lookup, rule, availability of the backends, draw | 0.3 µs |
//! | record: a hash and three additions; the access log's line, if on | 0.1 µs; 2 µs |
//! | through a tunnel, in place of the backend's system calls | about 6 µs in batches, 88 µs alone (bare quinn) |
//!
//! A request stays on the thread that accepted it. It takes no contended lock: bodies sit in an uncontended mutex because
//! hyper and the tunnel ask for `Send`, and a request without a body has none.

pub mod body;
pub mod client;
pub mod forward;
pub mod guard;
pub mod headers;
pub mod http2;
pub mod layers;
pub mod record;
pub mod stack;
pub mod upstream;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use archipelago_identity::SpiffeId;
use archipelago_tunnel::{IncomingRequest, Responder};
use http::{HeaderMap, HeaderValue, Request, Response, header, request};
use hyper::body::Incoming;
use tower::ServiceBuilder;

use crate::source::Workload;
use crate::worker::{Caller, Worker};
use body::{Replayable, ResponseBody};
use client::Entrance;
use headers::{MESH_ATTEMPT, MESH_SOURCE, MESH_VERSION};
use record::{Record, Reporter, Text};
use stack::{Arrival, Call, Failure, Last, Origin, Stack, layer};

/// What a client's request passes, outermost first.
pub fn ingress() -> Stack {
    Stack::new(
        ServiceBuilder::new()
            .layer(layer(layers::record))
            .layer(layer(layers::sanitize))
            .layer(layer(layers::admission))
            .layer(layer(layers::route))
            .layer(layer(layers::deadline))
            .service(Last(forward::forward)),
    )
}

/// What a request out of a tunnel passes, outermost first. It is served by endpoints of this cluster or not at all.
pub fn far_side() -> Stack {
    Stack::new(
        ServiceBuilder::new()
            .layer(layer(layers::record))
            .layer(layer(layers::authorise_peer))
            .layer(layer(layers::admission))
            .layer(layer(layers::deadline))
            .service(Last(forward::forward)),
    )
}

/// Serves one request of a client.
pub async fn serve_client(
    worker: Rc<Worker>,
    entrance: &Entrance,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let now = Instant::now();
    let (parts, body) = request.into_parts();
    let source = entrance.source.current(&worker.clients, worker.clients_seen.get()).cloned();
    let mut record = Record::new(Reporter::Source, worker.identity.cluster.clone(), now);
    record.text = worker.access_log.is_some().then(|| Box::new(text(&parts, source.as_deref(), None)));
    let mut call = call(&worker, parts, Replayable::client(body, now), Origin::Client, record);
    (call.source, call.capture) = (source, entrance.capture.clone());
    match worker.ingress.run(call).await {
        Ok(response) => response,
        Err(failure) => layers::answer(failure),
    }
}

/// Serves one request out of a tunnel.
pub async fn serve_peer(worker: Rc<Worker>, incoming: Box<IncomingRequest>) {
    let IncomingRequest { peer, request, mut responder } = *incoming;
    let now = Instant::now();
    let (parts, body) = request.into_parts();
    let caller = match worker.caller(&peer) {
        Ok(caller) => caller,
        Err(refusal) => {
            tracing::debug!(peer = %peer.spiffe_id, %refusal, "a request out of a tunnel is refused");
            worker.metrics.refused_stream(refusal);
            return respond(responder, layers::answer(Failure::Refused(refusal))).await;
        }
    };
    let mut record = Record::new(Reporter::Destination, Arc::clone(caller.admitted.cluster()), now);
    let source = vouched(&caller, &parts.headers);
    record.text = worker.access_log.is_some().then(|| Box::new(text(&parts, source.as_deref(), Some(&peer.spiffe_id))));
    let number = |headers: &HeaderMap| headers.get(MESH_ATTEMPT)?.to_str().ok()?.parse().ok();
    let origin = Origin::Arrived(Arrival {
        version: parts.headers.get(MESH_VERSION).and_then(|v| v.to_str().ok()).map(Arc::from),
        attempt: number(&parts.headers).unwrap_or(1),
        caller,
    });
    let mut call = call(&worker, parts, Replayable::tunnel(body, now), origin, record);
    call.source = source;
    let outcome = worker.far_side.run(call);
    tokio::pin!(outcome);
    // The client went away at the other end: dropping the call cancels the backend's request.
    let outcome = tokio::select! {
        biased;
        outcome = &mut outcome => outcome,
        _ = responder.cancelled() => return,
    };
    match outcome {
        Ok(response) => respond(responder, response).await,
        Err(failure) if failure.is_rejection() => responder.reject(),
        Err(failure) => respond(responder, layers::answer(failure)).await,
    }
}

async fn respond(responder: Responder, response: Response<ResponseBody>) {
    if let Err(error) = responder.respond(response).await {
        tracing::debug!(%error, "response through a tunnel broke off");
    }
}

fn call(worker: &Rc<Worker>, mut parts: request::Parts, body: Replayable, origin: Origin, record: Record) -> Box<Call> {
    headers::join_cookies(&mut parts.headers);
    Box::new(Call {
        worker: Rc::clone(worker),
        parts,
        body,
        origin,
        source: None,
        record: Rc::new(RefCell::new(record)),
        capture: None,
        target: None,
        trailers: false,
        service: None,
        deadline: None,
    })
}

/// The workload for which a peer speaks; one for which it may not speak, or two, is nobody.
pub fn vouched(caller: &Caller, headers: &HeaderMap) -> Option<Rc<Workload>> {
    let mut sources = headers.get_all(MESH_SOURCE).iter();
    let said = sources.next()?;
    let workload = said.to_str().ok().and_then(|id| Workload::vouched(&caller.vouches, id));
    if workload.is_none() || sources.next().is_some() {
        tracing::debug!(cluster = %caller.admitted.cluster(), ?said, "a gateway spoke for somebody for whom it may not");
        return None;
    }
    workload.map(Rc::new)
}

fn text(parts: &request::Parts, source: Option<&Workload>, peer: Option<&SpiffeId>) -> Text {
    let header =
        |name: &str| parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("").to_owned();
    Text {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        protocol: format!("{:?}", parts.version),
        authority: parts.uri.authority().map_or_else(|| header(header::HOST.as_str()), ToString::to_string),
        request_id: header("x-request-id"),
        // traceparent = version-trace_id-parent_id-flags (W3C Trace Context §3.2)
        trace_id: header("traceparent").split('-').nth(1).unwrap_or("").to_owned(),
        source: source.map(|workload| workload.as_str().to_owned()).unwrap_or_default(),
        peer_spiffe_id: peer.map(ToString::to_string).unwrap_or_default(),
        ..Text::default()
    }
}
