//! One exchange: a request and its response, whatever they came in by and whatever they go out by.
//!
//! | module | what | I/O |
//! | --- | --- | --- |
//! | [`client`], [`http1`], [`http2`] | connections of clients, connections to endpoints ([`upstream`], [`door`]) | sockets |
//! | [`call`] | a request: its head, its body, the one policy that holds for all of it | |
//! | [`policy`] | what is asked of it before it is sent anywhere | none |
//! | [`attempts`], [`replay`] | the one loop over attempts, and the table of what may be repeated | |
//! | [`local`], [`remote`] | one attempt: at an endpoint here, at a gateway elsewhere | |
//! | [`body`] | bodies on their way through, kept for another attempt | |
//! | [`books`] | what a request holds until its last byte, and what is written down then | |
//! | [`grpc`] | how a gRPC call ended | none |
//! | [`websocket`] | how each protocol asks for WebSocket, and answers that | none |
//! | [`watch`] | who is too slow once a response has begun | |
//! | [`timers`] | deadlines of a worker | |
//!
//! What a request costs here, on the back of an envelope, for a small GET over HTTP/1.1 on both sides:
//!
//! | step | cost |
//! | --- | --- |
//! | read and write on both sides: 4 system calls, 2 wake-ups | 8 to 12 µs |
//! | both heads read and written: one pass and one copy each | 0.4 µs |
//! | host lookup, rule, availability of the backends, draw | 0.3 µs |
//! | one task, woken twice; two boxes | 0.3 µs |
//! | record: a hash and three additions; its texts, if there is an access log or somebody looks | 0.1 µs; 2 µs |
//! | through a tunnel, in place of the backend's system calls | about 6 µs in batches, 88 µs alone (bare quinn) |
//!
//! A request stays on the thread that accepted it and takes no lock.

pub mod attempts;
pub mod body;
pub mod books;
pub mod call;
pub mod client;
pub mod door;
pub mod failure;
pub mod grpc;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod interim;
pub mod local;
pub mod policy;
pub mod remote;
pub mod replay;
pub mod timers;
pub mod upstream;
pub mod watch;
pub mod websocket;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use archipelago_http::{Fields, Known, Pooled, RequestHead, ResponseHead, Scheme};
use archipelago_identity::SpiffeId;
use archipelago_tunnel::{IncomingRequest, Responder};
use http::{Method, StatusCode};

use crate::ledger::timing;
use crate::source::Workload;
use crate::trace;
use crate::worker::{Caller, Worker};
use body::{Incoming, Replayable, ResponseBody};
use books::{Books, Record, Reporter, Text};
use call::{Call, Origin};
use client::Entrance;
use failure::Failure;
use grpc::Grpc;
use interim::Interim;

/// What a request is answered with.
#[derive(Debug)]
pub struct Response {
    /// Its head, without framing.
    pub head: Pooled<ResponseHead>,
    /// Its body.
    pub body: ResponseBody,
}

/// Serves one request of a client, which began at `now`.
pub async fn serve_client(
    worker: Rc<Worker>,
    entrance: &Entrance,
    mut head: Pooled<RequestHead>,
    body: Replayable,
    interim: Interim,
    now: Instant,
) -> Response {
    let source = entrance.source.current(&worker.clients, worker.clients_seen.get()).cloned();
    if entrance.tls.is_some() {
        // In HTTP/1.1 nobody else says so.
        head.scheme = Scheme::Https;
    }
    let mut record = Record::new(Reporter::Source, worker.cluster.clone(), now);
    if let Some(tracer) = &worker.tracer {
        record.trace = tracer.record(&mut head, Reporter::Source, now);
    }
    let trace = record.trace.clone();
    if let (Some(trace), Some(source)) = (&trace, &source) {
        source.as_str().clone_into(&mut trace.source.borrow_mut());
    }
    let is_told = worker.access_log.is_some() || worker.taps.is_active();
    record.text = is_told.then(|| Box::new(text(&head, source.as_deref(), None, trace.as_deref())));
    record.tls.clone_from(&entrance.tls);
    let mut books = Books::open(&worker, record, body.clone());
    let view = worker.view();
    books.record().revision = view.snapshot.revision;
    let is_head = head.method == Method::HEAD;
    let routed = policy::of_client(&worker, &view, entrance, &mut head, &mut books, now);
    let routed = match routed {
        Ok(routed) => routed,
        Err(failure) => return answer(&worker, failure, books, policy::is_grpc(&head), is_head),
    };
    let is_grpc = routed.is_grpc;
    books.record().shows_timing =
        worker.server_timing.has(|| view.snapshot.service(routed.service).map(|service| (*service.service).into()));
    let call = Call {
        worker: Rc::clone(&worker),
        head,
        body,
        interim,
        origin: Origin::Client,
        source,
        trace,
        is_grpc,
        view,
        service: routed.service,
        deadline: routed.deadline,
        limits: routed.limits,
    };
    match attempts::run(call, books).await {
        Ok((response, books)) => response.with(books),
        Err((failure, books)) => answer(&worker, failure, books, is_grpc, is_head),
    }
}

/// Serves one request out of a tunnel. It is served by endpoints of this cluster or not at all.
pub async fn serve_peer(worker: Rc<Worker>, incoming: Box<IncomingRequest>) {
    let IncomingRequest { peer, arrived: now, mut head, body, mut responder } = *incoming;
    let is_head = head.method == Method::HEAD;
    let is_websocket = websocket::of_peer(&mut head);
    let caller = match worker.caller(&peer) {
        Ok(caller) => caller,
        Err(refusal) => {
            tracing::debug!(peer = %peer.spiffe_id, %refusal, "a request out of a tunnel is refused");
            worker.metrics.refused_stream(refusal);
            return respond(responder, said(Failure::Refused(refusal)).without_body_if(is_head)).await;
        }
    };
    // HTTP/3 splits cookies as HTTP/2 does (RFC 9114 §4.2.1).
    head.fields.join_cookies();
    let source = vouched(&caller, &head.fields);
    let mut record = Record::new(Reporter::Destination, caller.cluster.clone(), now);
    if let Some(tracer) = &worker.tracer {
        record.trace = tracer.record(&mut head, Reporter::Destination, now);
    }
    let trace = record.trace.clone();
    if let Some(trace) = &trace {
        *trace.peer.borrow_mut() = peer.spiffe_id.to_string();
        source.as_deref().map(Workload::as_str).unwrap_or_default().clone_into(&mut trace.source.borrow_mut());
    }
    record.text = worker
        .access_log
        .is_some()
        .then(|| Box::new(text(&head, source.as_deref(), Some(&peer.spiffe_id), trace.as_deref())));
    let body = Replayable::new(Incoming::tunnel(body), now);
    if is_websocket {
        body.hold();
    }
    let mut books = Books::open(&worker, record, body.clone());
    let view = worker.view();
    books.record().revision = view.snapshot.revision;
    let routed = policy::of_peer(&worker, &view, caller, &mut head, &mut books, now);
    let outcome = match routed {
        Err(failure) => Err((failure, books)),
        Ok((routed, arrival, authorized)) => {
            let informed = Rc::default();
            let call = Call {
                worker: Rc::clone(&worker),
                head,
                body,
                interim: Interim::Peer(Rc::clone(&informed)),
                origin: Origin::Peer(arrival, authorized),
                source,
                trace,
                is_grpc: routed.is_grpc,
                view,
                service: routed.service,
                deadline: routed.deadline,
                limits: routed.limits,
            };
            match informing(call, books, &informed, &mut responder).await {
                Some(outcome) => outcome,
                // The client went away at the other end: dropping the call cancels the backend's request.
                None => return,
            }
        }
    };
    match outcome {
        Ok((mut response, books)) => {
            books.tell(response.head.status, &mut response.head.fields);
            let mut response = response.with(books);
            if is_websocket {
                if response.head.status == StatusCode::SWITCHING_PROTOCOLS {
                    responder.becomes_tunnel();
                }
                websocket::to_peer(&mut response.head);
            }
            respond(responder, response).await;
        }
        // Its sender is told that nothing was processed; no response may exist.
        Err((failure, mut books)) if failure.is_rejection() => {
            worker.metrics.failure(failure);
            if let Failure::Refused(refusal) = failure {
                worker.metrics.refused_stream(refusal);
            }
            (books.record().code, books.record().flags) = (failure.status().as_u16(), failure.flags());
            books.calls_failed(failure.grpc_status());
            books.fails(failure.reason());
            responder.reject();
        }
        Err((failure, books)) => {
            if let Failure::Refused(refusal) = failure {
                worker.metrics.refused_stream(refusal);
            }
            let mut told = Fields::new();
            books.tell(failure.status(), &mut told);
            let mut response = answer(&worker, failure, books, false, is_head);
            if let Some(ledger) = told.get(Known::MeshLedger) {
                response.head.fields.push(Known::MeshLedger, ledger);
            }
            respond(responder, response).await;
        }
    }
}

/// Sees to the call and tells the peer of informational responses meanwhile; `None` when it wants no answer any more.
async fn informing(
    call: Call,
    books: Books,
    informed: &RefCell<Vec<ResponseHead>>,
    responder: &mut Responder,
) -> Option<Result<(Response, Books), (Failure, Books)>> {
    // Made here, not handed over: what is handed over is copied, and this is kilobytes.
    let mut outcome = pin!(attempts::run(call, books));
    loop {
        let outcome = poll_fn(|cx| match outcome.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(Some(outcome))),
            Poll::Pending if !informed.borrow().is_empty() => Poll::Ready(Some(None)),
            Poll::Pending => pin!(responder.cancelled()).poll(cx).map(|_| None),
        })
        .await?;
        for head in informed.take() {
            responder.inform(&head).await.ok()?;
        }
        if outcome.is_some() {
            return outcome;
        }
    }
}

async fn respond(responder: Responder, response: Response) {
    let Response { head, body } = response;
    if let Err(error) = responder.respond(&head, body).await {
        tracing::debug!(%error, "response through a tunnel broke off");
    }
}

impl Response {
    /// Without its body if that is for HEAD: only HTTP/1.1 leaves it out by itself.
    fn without_body_if(mut self, is_head: bool) -> Self {
        if is_head {
            self.body = ResponseBody::empty();
        }
        self
    }

    fn with(mut self, mut books: Books) -> Self {
        let record = books.record();
        record.code = self.head.status.as_u16();
        if record.grpc != Grpc::No {
            record.grpc.head(self.head.fields.get(Known::GrpcStatus));
        }
        if record.shows_timing {
            let value = timing::value(&record.trail, record.started);
            // Beside what the service says there itself.
            let _ = self.head.fields.push_named(b"server-timing", value.as_bytes());
        }
        Self { head: self.head, body: self.body.with_books(books) }
    }
}

/// Answers a failure, and writes it down.
fn answer(worker: &Worker, failure: Failure, mut books: Books, is_grpc: bool, is_head: bool) -> Response {
    worker.metrics.failure(failure);
    books.record().flags = failure.flags();
    books.fails(failure.reason());
    if let Some(text) = books.text() {
        text.failure = failure.line();
    }
    if let Some(cut) = failure.cut() {
        worker.metrics.cut(cut);
    }
    if is_grpc {
        books.record().grpc = Grpc::Call;
    }
    books.calls_failed(failure.grpc_status());
    let response = if is_grpc { said_in_grpc(failure) } else { said(failure) };
    response.without_body_if(is_head).with(books)
}

/// The response to a failure: one line of text, with the reason in a header.
fn said(failure: Failure) -> Response {
    let mut head = ResponseHead::of(failure.status());
    head.fields.push(Known::ContentType, b"text/plain; charset=utf-8");
    head.fields.push(Known::MeshFailure, failure.reason().as_bytes());
    if failure.is_passing() {
        head.fields.push(Known::RetryAfter, b"1");
    }
    if let Failure::BrokenAfter(sends) = failure {
        head.fields.push_number(Known::MeshSends, sends.into());
    }
    Response { head: head.into(), body: ResponseBody::full(format!("{}\n", failure.line())) }
}

/// The same to a gRPC caller: trailers only, with a status of its own (gRPC over HTTP/2, "Responses").
fn said_in_grpc(failure: Failure) -> Response {
    let mut head = ResponseHead::of(StatusCode::OK);
    head.fields.push(Known::ContentType, b"application/grpc");
    head.fields.push_number(Known::GrpcStatus, failure.grpc_status().into());
    head.fields.push(Known::GrpcMessage, failure.line().as_bytes());
    head.fields.push(Known::MeshFailure, failure.reason().as_bytes());
    Response { head: head.into(), body: ResponseBody::empty() }
}

/// The workload for which a peer speaks; one for which it may not speak, or two, is nobody.
pub fn vouched(caller: &Caller, fields: &Fields) -> Option<Rc<Workload>> {
    let mut sources = fields.get_all(Known::MeshSource);
    let said = sources.next()?;
    let workload = std::str::from_utf8(said).ok().and_then(|id| Workload::vouched(&caller.vouches, id));
    if workload.is_none() || sources.next().is_some() {
        let said = String::from_utf8_lossy(said);
        tracing::debug!(cluster = %caller.admitted.cluster(), ?said, "a gateway spoke for somebody for whom it may not");
        return None;
    }
    workload.map(Rc::new)
}

fn text(head: &RequestHead, source: Option<&Workload>, peer: Option<&SpiffeId>, trace: Option<&trace::Traced>) -> Text {
    let lossy = Text::short;
    let field = |name| lossy(head.fields.get(name).unwrap_or_default());
    let path = head.path();
    let path = path.iter().position(|byte| *byte == b'?').and_then(|at| path.get(..at)).unwrap_or(path);
    Text {
        start_time: SystemTime::now(),
        rule: String::new(),
        method: lossy(head.method.as_str().as_bytes()),
        path: if head.method == Method::CONNECT { String::new() } else { lossy(path) },
        protocol: format!("{:?}", head.version),
        authority: lossy(head.authority().unwrap_or_default()),
        request_id: field(Known::XRequestId),
        trace_id: trace::id(trace, Some(&head.fields)),
        source: source.map(|workload| workload.as_str().to_owned()).unwrap_or_default(),
        peer_spiffe_id: peer.map(ToString::to_string).unwrap_or_default(),
        upstream_host: String::new(),
        failure: String::new(),
    }
}
