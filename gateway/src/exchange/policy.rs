//! What is asked of a request before it is sent anywhere: plain functions of its head, in the order in which they are asked.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_http::{Fields, Known, RequestHead};
use http::Method;

use super::books::Books;
use super::call::{Arrival, Deadline};
use super::client::Entrance;
use super::failure::Failure;
use super::grpc::Grpc;
use super::headers::Malformed;
use super::websocket;
use crate::authorize::{Asked, Authorized, Refusal, authorize};
use crate::config::{Capture, Protocol};
use crate::pace::Limits;
use crate::worker::view::View;
use crate::worker::{Caller, Worker};

/// What was found out about a request.
#[derive(Debug)]
pub struct Routed {
    /// Index of its service.
    pub service: usize,
    /// When a response must have begun.
    pub deadline: Deadline,
    /// A gRPC caller.
    pub is_grpc: bool,
    /// How slow one may be with it.
    pub limits: Limits,
}

/// Judges a client's request and finds its service.
///
/// # Errors
/// Why it goes nowhere.
pub fn of_client(
    worker: &Worker,
    view: &View,
    entrance: &Entrance,
    head: &mut RequestHead,
    books: &mut Books,
    now: Instant,
) -> Result<Routed, Failure> {
    if head.method == Method::CONNECT {
        return Err(Failure::Unsupported);
    }
    if websocket::is_malformed(head) {
        return Err(Failure::Malformed(Malformed::WebSocketKey));
    }
    let is_path = head.path().starts_with(b"/") || (head.method == Method::OPTIONS && head.path() == b"*");
    if !is_path {
        return Err(Failure::Malformed(Malformed::Target));
    }
    strip(head);
    if entrance.tls.is_some() {
        // Whoever ends TLS says so, since nobody behind it can know.
        head.fields.set(Known::XForwardedProto, b"https");
    }
    books.ask(entrance.visit.request().ok_or(Failure::ClientLimit)?);
    if !books.admit() {
        return Err(Failure::Overloaded);
    }
    let service = find(worker, view, entrance.capture.as_ref(), head, books)?;
    worker.deposit();
    let is_grpc = is_grpc(head);
    if is_grpc {
        books.record().grpc = Grpc::Call;
    }
    let deadline = Deadline::of_client(head, is_grpc, worker.limits.request_timeout, now);
    let limits = limits(worker, view, service).of(is_grpc || websocket::is_asked(head), true);
    books.limit(limits);
    Ok(Routed { service, deadline, is_grpc, limits })
}

/// Judges a request out of a tunnel: see [`authorize`]. Also returns what it brings along, and the proof that it may go on.
///
/// # Errors
/// Why it goes nowhere.
pub fn of_peer(
    worker: &Worker,
    view: &View,
    caller: Rc<Caller>,
    head: &mut RequestHead,
    books: &mut Books,
    now: Instant,
) -> Result<(Routed, Arrival, Authorized), Failure> {
    let asked = Asked::by(head);
    // In the books under the name that was asked for, if there is such a service.
    let named = asked.find(&view.snapshot).and_then(|index| view.service(index));
    books.record().service = named.map(|service| service.name().clone());
    let authorized = authorize(&view.snapshot, &caller.admitted, asked).map_err(Failure::Refused)?;
    let service =
        view.snapshot.service_by_key(authorized.service()).ok_or(Failure::Refused(Refusal::UnknownService))?;
    if head.authority().is_none() {
        return Err(Failure::Malformed(Malformed::Authority));
    }
    let is_grpc = is_grpc(head);
    if is_grpc {
        books.record().grpc = Grpc::Call;
    }
    let left = number(&head.fields, Known::MeshDeadlineMs).map(Duration::from_millis);
    let deadline = Deadline::of_peer(left, is_grpc, worker.limits.request_timeout, now);
    let small = |name| number(&head.fields, name).and_then(|n| u32::try_from(n).ok());
    let arrival = Arrival {
        caller,
        version: version_asked(&head.fields),
        attempt: small(Known::MeshAttempt).unwrap_or(1),
        sends: small(Known::MeshSends).unwrap_or(0),
    };
    strip(head);
    if !books.admit() {
        return Err(Failure::Overloaded);
    }
    let limits = limits(worker, view, service).of(is_grpc || websocket::is_asked(head), false);
    books.limit(limits);
    Ok((Routed { service, deadline, is_grpc, limits }, arrival, authorized))
}

fn limits(worker: &Worker, view: &View, service: usize) -> Limits {
    let given = view.snapshot.service(service).and_then(|service| service.limits.as_deref());
    given.map_or(worker.limits.streams, |given| worker.limits.streams.with(given))
}

/// Host name, or the port that the request came to, to service.
fn find(
    worker: &Worker,
    view: &View,
    capture: Option<&Arc<Capture>>,
    head: &RequestHead,
    books: &mut Books,
) -> Result<usize, Failure> {
    let authority = head.authority().ok_or(Failure::Malformed(Malformed::Host))?;
    let (found, closed, unknown) = match capture {
        None => {
            let authority = std::str::from_utf8(authority).map_err(|_| Failure::Malformed(Malformed::Authority))?;
            let found = view.snapshot.service_by_host(authority);
            let closed = || view.snapshot.closed_by_host(authority);
            (found, found.is_none().then(closed).flatten(), Failure::UnknownHost)
        }
        Some(capture) => {
            let found = view.snapshot.port_of(&capture.service, capture.port);
            let closed = || view.snapshot.closed_by_key(&capture.service);
            (found, found.is_none().then(closed).flatten(), Failure::UnknownPort)
        }
    };
    if let Some(closed) = closed {
        books.record().service = Some(worker.names.of(&closed.key));
        return Err(Failure::Closed);
    }
    let index = found.ok_or(unknown)?;
    let service = view.snapshot.service(index).ok_or(unknown)?;
    books.record().service = view.service(index).map(|live| live.name().clone());
    if service.protocol == Protocol::Tcp {
        return Err(Failure::NotHttp);
    }
    Ok(index)
}

/// Takes away what concerns the connection that the request came on, and what only gateways may say. Whether trailers are taken goes
/// on to the next hop, which asks us.
fn strip(head: &mut RequestHead) {
    let trailers = head.fields.strip_hop_by_hop();
    head.fields.strip_mesh();
    if trailers {
        head.fields.push(Known::Te, b"trailers");
    }
}

/// True for a gRPC caller.
pub fn is_grpc(head: &RequestHead) -> bool {
    let content_type = head.fields.get(Known::ContentType).unwrap_or_default();
    content_type.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The version that a peer wants its request served by; `None`: any.
pub fn version_asked(fields: &Fields) -> Option<Arc<str>> {
    Some(Arc::from(std::str::from_utf8(fields.get(Known::MeshVersion)?).ok()?))
}

fn number(fields: &Fields, name: Known) -> Option<u64> {
    std::str::from_utf8(fields.get(name)?).ok()?.parse().ok()
}
