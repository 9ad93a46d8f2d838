//! Attempts: choose a target, send, and if that went wrong in a way that may be repeated ([`replay`]), choose another.
//!
//! An attempt whose endpoint hangs is not given up for the next one: both go on side by side, and the first answer wins. Whoever
//! loses is dropped, and with it its stream or connection.

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use archipelago_http::Known;

use super::Response;
use super::body::RequestBody;
use super::books::{Books, Hedge};
use super::call::{Call, Deadline, Origin};
use super::failure::Failure;
use super::replay::{self, Ending, History};
use super::upstream::InFlight;
use super::{local, remote};
use crate::balance::budget::Purpose;
use crate::balance::cluster::NoTrace;
use crate::balance::hash::Key;
use crate::telemetry::Name;
use crate::worker::view::{Decision, RouteQuery, Target, Tried, View};

/// One attempt that gave no response to pass on.
#[derive(Debug)]
pub struct Failed {
    /// What its sender hears if there is no other.
    pub failure: Failure,
    /// Whether there may be another.
    pub ending: Ending,
    /// Label of metrics.
    pub reason: &'static str,
}

/// A response, and its place among those that an endpoint here works on.
pub type Sent = (Response, Option<InFlight>);

/// Sends a call until it is answered or may not be sent again, within its time.
pub async fn run(mut call: Call, mut books: Books) -> Result<(Response, Books), (Failure, Books)> {
    let started = Instant::now();
    let timer = call.worker.timers.timer();
    timer.set(call.deadline.due(started, call.body.progress()));
    let course = Course::new(&mut call);
    let outcome = {
        let mut answered = pin!(attempts(&call, &mut books, course, None));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = answered.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            while timer.poll_due(cx).is_ready() {
                // While the sender is still sending, the clock runs from his last byte.
                match call.deadline.due(started, call.body.progress()) {
                    Some(due) if due <= Instant::now() => return Poll::Ready(Err(Failure::Timeout)),
                    later => timer.set(later),
                }
            }
            Poll::Pending
        })
        .await
    };
    match outcome {
        Ok(response) => Ok((response, books)),
        Err(failure) => Err((failure, books)),
    }
}

/// Attempts, one after another, and all of them beside the one `behind`, if there is one.
async fn attempts(
    call: &Call,
    books: &mut Books,
    mut course: Course,
    mut behind: Option<Behind<'_>>,
) -> Result<Response, Failure> {
    let worker = &call.worker;
    let idempotent = replay::is_idempotent(&call.head.method);
    loop {
        course.history.attempts += 1;
        books.record().attempts = course.history.attempts;
        let Some((decision, rule)) = course.choose(call) else {
            if call.is_clients() {
                worker.demand(&course.view, call.service);
            }
            return last(call, books, &course, behind, course.nobody(call)).await;
        };
        let Some(body) = call.body.attempt() else {
            return last(call, books, &course, behind, Failure::Broken).await;
        };
        let destination = course.view.cluster_name(decision.cluster).unwrap_or(&worker.cluster).clone();
        books.record().destination_cluster = Some(destination.clone());
        books.names(&decision.target, rule);
        let attempt = Attempt { history: course.history, has_timeout: course.has_timeout };
        let mut sent = pin!(send(call, &decision, attempt, body, idempotent));
        let mut hangs = pin!(hangs(call, &decision.target));
        let mut is_hung = false;
        let failed = loop {
            let raced = poll_fn(|cx| {
                if let Poll::Ready(sent) = sent.as_mut().poll(cx) {
                    return Poll::Ready(Raced::Ended(sent));
                }
                if let Some(Behind { sent, .. }) = &mut behind
                    && let Poll::Ready(sent) = sent.as_mut().poll(cx)
                {
                    return Poll::Ready(Raced::BehindEnded(sent));
                }
                if !is_hung && hangs.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Raced::Hangs);
                }
                Poll::Pending
            });
            match raced.await {
                Raced::Ended(Ok((response, in_flight))) => {
                    books.enter(in_flight);
                    if behind.is_some() {
                        books.record().hedge = Some(Hedge::Second);
                    }
                    return Ok(response);
                }
                Raced::Ended(Err(failed)) => break failed,
                Raced::BehindEnded(ended) => {
                    let behind = behind.take();
                    if let (Some(behind), Ok(sent)) = (behind, ended) {
                        return Ok(behind.wins(books, sent));
                    }
                }
                Raced::Hangs => {
                    is_hung = true;
                    let Some(next) = course.hedge(call, &decision.target) else { continue };
                    if behind.is_some() || !worker.withdraw(Purpose::Retry) {
                        continue;
                    }
                    books.record().hedge = Some(Hedge::None);
                    worker.metrics.replay(Purpose::Retry, "endpoint_hung");
                    let address = decision.target.endpoint();
                    let left = Behind { sent: sent.as_mut(), address, destination };
                    return Box::pin(attempts(call, books, next, Some(left))).await;
                }
            }
        };
        course.tried(&decision.target);
        course.touched |= failed.ending != Ending::NotProcessed;
        let next = replay::again(&mut course.history, failed.ending, idempotent, call.body.can_replay());
        let Some(purpose) = next.filter(|purpose| worker.withdraw(*purpose)) else {
            return last(call, books, &course, behind, failed.failure).await;
        };
        worker.metrics.replay(purpose, failed.reason);
        if purpose == Purpose::Retry {
            // What broke one exchange may be about to break its neighbours: a moment later that is known (Envoy's base interval).
            tokio::time::sleep(RETRY_PAUSE + RETRY_PAUSE.mul_f64((worker.random() >> 40) as f64 / f64::from(1 << 24)))
                .await;
        }
        // What just failed is often known to have failed by now.
        course.look_again(call);
        if purpose == Purpose::Retry && course.choose(call).is_none() {
            // One exchange broke; its target may well be fine, and it may be the only one.
            course.tried = Tried::default();
        }
    }
}

/// What happened first.
enum Raced {
    Ended(Result<Sent, Failed>),
    BehindEnded(Result<Sent, Failed>),
    Hangs,
}

/// An attempt whose endpoint hangs, while others go on. Its answer counts if it is the first.
struct Behind<'a> {
    sent: Pin<&'a mut (dyn Future<Output = Result<Sent, Failed>> + 'a)>,
    address: Option<SocketAddr>,
    destination: Name,
}

impl Behind<'_> {
    fn wins(self, books: &mut Books, (response, in_flight): Sent) -> Response {
        books.enter(in_flight);
        books.record().destination_cluster = Some(self.destination);
        books.record().hedge = Some(Hedge::First);
        if let (Some(text), Some(address)) = (books.text(), self.address) {
            text.upstream_host = address.to_string();
        }
        response
    }
}

/// There is no other attempt: what the one behind says, if there is one, and else `failure`.
async fn last(
    call: &Call,
    books: &mut Books,
    course: &Course,
    behind: Option<Behind<'_>>,
    failure: Failure,
) -> Result<Response, Failure> {
    let Some(mut behind) = behind else { return Err(course.said(call, failure)) };
    match behind.sent.as_mut().await {
        Ok(sent) => Ok(behind.wins(books, sent)),
        Err(failed) => Err(course.said(call, failed.failure)),
    }
}

async fn send(
    call: &Call,
    decision: &Decision,
    attempt: Attempt,
    body: RequestBody,
    idempotent: bool,
) -> Result<Sent, Failed> {
    match &decision.target {
        Target::Local(endpoint) => local::send(call, endpoint, attempt, body).await,
        Target::Remote(remote) => Ok((remote::send(call, decision, remote, attempt, body, idempotent).await?, None)),
    }
}

/// Resolves when the target is an endpoint that hangs.
async fn hangs(call: &Call, target: &Target) {
    match target {
        // A gRPC caller says himself how long he waits, and his streams may be silent until then.
        Target::Local(endpoint) if !call.is_grpc => local::hangs(call, endpoint).await,
        // The gateway there knows its endpoints.
        Target::Local(_) | Target::Remote(_) => pending().await,
    }
}

/// One attempt among others.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// What became of the request before, this attempt counted.
    pub history: History,
    /// A gRPC caller said how long he waits.
    pub has_timeout: bool,
}

/// What has become of a request so far.
#[derive(Debug, Clone)]
struct Course {
    view: Rc<View>,
    history: History,
    /// Of `history.acted`, those behind other gateways before it came here.
    elsewhere: u32,
    tried: Tried,
    draw: Option<Key>,
    /// An endpoint may have acted on the request.
    touched: bool,
    has_timeout: bool,
}

impl Course {
    fn new(call: &mut Call) -> Self {
        let elsewhere = if let Origin::Peer(arrival, _) = &call.origin { arrival.sends } else { 0 };
        // Each hop says what is left (gRPC over HTTP/2, "Timeout").
        let has_timeout = matches!(call.deadline, Deadline::At(_)) && call.head.fields.remove(Known::GrpcTimeout) > 0;
        Self {
            view: Rc::clone(&call.view),
            history: History { attempts: 0, acted: elsewhere },
            elsewhere,
            tried: Tried::default(),
            draw: None,
            touched: false,
            has_timeout,
        }
    }

    /// Who serves it, and by which rule.
    fn choose<'a>(&mut self, call: &'a Call) -> Option<(Decision, Option<&'a str>)> {
        let (now, random) = (Instant::now(), call.worker.random());
        match &call.origin {
            Origin::Peer(arrival, authorized) => {
                Some((self.view.decide_for_peer(authorized, &arrival.version, &self.tried, random, now)?, None))
            }
            Origin::Client => {
                let (config, live, rule) = (call.config()?, self.view.service(call.service)?, call.rule()?);
                let draw = || config.sticky_hash(&call.head.fields).map_or_else(|| live.draw(), Key::Sticky);
                let key = *self.draw.get_or_insert_with(draw);
                let query = RouteQuery { service: call.service, rule, key, tried: &self.tried, random, now };
                Some((self.view.decide(&query, &mut NoTrace)?, Some(&*rule.name)))
            }
        }
    }

    /// How it goes on beside an attempt at `target`, which hangs; `None`: that one is all there is.
    fn hedge(&self, call: &Call, target: &Target) -> Option<Self> {
        let idempotent = replay::is_idempotent(&call.head.method);
        let mut next = self.clone();
        if !replay::hedge(&mut next.history, idempotent, call.body.can_replay() && call.body.is_taken()) {
            return None;
        }
        next.touched = true;
        next.look_again(call);
        next.tried(target);
        next.choose(call).is_some().then_some(next)
    }

    fn tried(&mut self, target: &Target) {
        match target {
            Target::Local(endpoint) => self.tried.endpoints.push(endpoint.address()),
            Target::Remote(remote) => self.tried.peers.push(Arc::clone(&remote.name)),
        }
    }

    /// Takes what is known now of peers and endpoints, as long as its policy is the same.
    fn look_again(&mut self, call: &Call) {
        let view = call.worker.view();
        if view.has_policy_of(&self.view, call.service) {
            self.view = view;
        }
    }

    /// Nobody is left to be asked.
    fn nobody(&self, call: &Call) -> Failure {
        match (call.is_clients(), self.touched) {
            (true, false) => Failure::NoHealthy,
            (false, false) => Failure::NoEndpointHere,
            (_, true) => Failure::Broken,
        }
    }

    /// A failure as whoever sent the request hears it.
    fn said(&self, call: &Call, failure: Failure) -> Failure {
        match (call.is_clients(), self.touched, failure) {
            (false, false, _) => Failure::NoEndpointHere,
            (false, true, Failure::Broken) => Failure::BrokenAfter(self.history.acted - self.elsewhere),
            (_, _, failure) => failure,
        }
    }
}

/// With as much again at random.
const RETRY_PAUSE: Duration = Duration::from_millis(12);
