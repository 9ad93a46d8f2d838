//! Attempts: choose a target, send, and if that went wrong in a way that may be repeated ([`replay`]), choose another.
//!
//! An attempt whose endpoint hangs or whose gateway is lost is not given up for the next one: both go on side by side, and the first
//! answer wins. Whoever loses is dropped, and with it its stream or connection. When nobody can be asked, the request waits for as
//! long as there is hope (`worker/seek`).

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use archipelago_http::Known;
use http::StatusCode;

use super::Response;
use super::body::RequestBody;
use super::books::{Books, Hedge};
use super::call::{Call, Deadline, Origin};
use super::failure::Failure;
use super::replay::{self, Ending, History};
use super::upstream::InFlight;
use super::{local, remote, websocket};
use crate::balance::budget::Purpose;
use crate::balance::cluster::NoTrace;
use crate::balance::hash::Key;
use crate::ledger::Stamps;
use crate::telemetry::Name;
use crate::worker::streams::End;
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
    /// How long it waited for a connection, in microseconds.
    pub connecting: u32,
}

impl Failed {
    /// One that waited for no connection.
    pub fn new(failure: Failure, ending: Ending, reason: &'static str) -> Self {
        Self { failure, ending, reason, connecting: 0 }
    }
}

/// A response, its place among those that an endpoint here works on, and what the attempt stamped.
pub type Sent = (Response, Option<InFlight>, Stamps);

/// Sends a call until it is answered or may not be sent again, within its time.
pub async fn run(call: Call, mut books: Books) -> Result<(Response, Books), (Failure, Books)> {
    if call.is_clients() && call.worker.counts_requests {
        books.record().keeper = call.live().map(|live| Rc::clone(live.keeper()));
    }
    let mut sending = Sending { call, books: Some(books) };
    // All of it here: a future that is made elsewhere is handed over by copying, and this one is kilobytes.
    let outcome = {
        let Sending { call, books: Some(books) } = &mut sending else { unreachable!("books are there until it ends") };
        let started = Instant::now();
        let timer = call.worker.timers.timer();
        let mut late = call.due(started, started);
        timer.set(late.map(|(due, _)| due));
        let course = Course::new(call, started);
        let call = &*call;
        let mut answered = pin!(attempts(call, books, course, None));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = answered.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            loop {
                // Whose time runs changes as long as there is a body on its way.
                if !call.body.is_empty() {
                    let next = call.due(started, Instant::now());
                    if std::mem::replace(&mut late, next) != next {
                        timer.set(next.map(|(due, _)| due));
                    }
                }
                ready!(timer.poll_due(cx));
                if let Some((due, failure)) = late
                    && due <= Instant::now()
                {
                    return Poll::Ready(Err(failure));
                }
            }
        })
        .await
    };
    if websocket::is_asked(&sending.call.head) {
        let switches = outcome.as_ref().is_ok_and(|response| response.head.status == StatusCode::SWITCHING_PROTOCOLS);
        sending.call.body.release(switches);
        if switches {
            sending.switches();
        }
    }
    match (outcome, sending.finish()) {
        (Ok(response), Some(books)) => Ok((response, books)),
        (Err(failure), Some(books)) => Err((failure, books)),
        (_, None) => unreachable!("books are taken here only"),
    }
}

/// A call that is being sent. However that ends, by its sender going away as well, its books get its head.
struct Sending {
    call: Call,
    books: Option<Books>,
}

impl Sending {
    /// From now on it lasts for as long as its two ends like, and the configuration allows.
    fn switches(&mut self) {
        let (Some(config), Some(books)) = (self.call.config(), &mut self.books) else { return };
        let served_by = books.record().destination_cluster.as_deref().unwrap_or_default();
        let end = if self.call.is_clients() { End::Client { served_by: served_by.into() } } else { End::Peer };
        books.switches(self.call.worker.streams.open_websocket(Arc::clone(&config.key), end));
    }

    fn finish(&mut self) -> Option<Books> {
        let mut books = self.books.take()?;
        books.is_sent(self.call.head.hand_over());
        Some(books)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        drop(self.finish());
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
        let (decision, rule) = match course.choose(call) {
            Some(chosen) => chosen,
            None => {
                let from = course.chosen;
                match somebody(call, books, &mut course, &mut behind).await {
                    Sought::Found(chosen) => {
                        books.record().trail.sought(from, course.chosen);
                        chosen
                    }
                    Sought::Answered(response) => return Ok(*response),
                    Sought::Nobody => return Err(course.said(call, course.nobody(call))),
                }
            }
        };
        let Some(body) = call.body.attempt() else {
            return last(call, books, &course, behind, Failure::Broken).await;
        };
        let destination = course.view.cluster_name(decision.cluster).unwrap_or(&worker.cluster).clone();
        let version = course.version_of(call, &decision.target);
        books.goes_to(destination.clone(), call.live());
        books.record().version.clone_from(&version);
        books.names(&decision.target, rule);
        books.record().trail.begins(&decision.target, course.chosen);
        let attempt = Attempt { history: course.history, has_timeout: course.has_timeout };
        let failed = {
            let mut sent = pin!(send(call, &decision, attempt, body, idempotent));
            let mut stuck = pin!(stuck(call, &course, &decision.target, behind.is_some()));
            let mut is_stuck = false;
            loop {
                let raced = poll_fn(|cx| {
                    if let Poll::Ready(sent) = sent.as_mut().poll(cx) {
                        return Poll::Ready(Raced::Ended(sent));
                    }
                    if let Some(Behind { sent, .. }) = &mut behind
                        && let Poll::Ready(sent) = sent.as_mut().poll(cx)
                    {
                        return Poll::Ready(Raced::BehindEnded(sent));
                    }
                    if !is_stuck && let Poll::Ready(stuck) = stuck.as_mut().poll(cx) {
                        return Poll::Ready(Raced::Stuck(stuck));
                    }
                    Poll::Pending
                });
                match raced.await {
                    Raced::Ended(Ok((response, in_flight, stamps))) => {
                        books.enter(in_flight);
                        books.record().trail.answered(&decision.target, stamps);
                        if behind.as_ref().is_some_and(|behind| behind.is_hedged) {
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
                    Raced::Stuck(Stuck::Lost) => {
                        break Failed::new(Failure::Broken, Ending::Lost, "peer_dead");
                    }
                    Raced::Stuck(Stuck::Beside(next)) => {
                        is_stuck = true;
                        let is_hedged = matches!(decision.target, Target::Local(_));
                        let (purpose, reason) = if is_hedged {
                            (Purpose::Retry, "endpoint_hung")
                        } else {
                            (Purpose::Failover, "peer_dead")
                        };
                        if behind.is_some() || !worker.withdraw(purpose) {
                            continue;
                        }
                        if is_hedged {
                            books.record().hedge = Some(Hedge::None);
                        }
                        worker.metrics.replay(purpose, reason);
                        let (sent, target) = (sent.as_mut(), decision.target.clone());
                        let left = Behind { sent, target, destination, version, is_hedged };
                        return Box::pin(attempts(call, books, *next, Some(left))).await;
                    }
                }
            }
        };
        books.record().trail.failed(failed.connecting, Instant::now());
        // A gateway that is away may be back for the next attempt.
        if decision.target.takes_requests() {
            course.tried.add(&decision.target);
        }
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
    Stuck(Stuck),
}

/// An attempt is not to be waited for alone.
enum Stuck {
    /// So it goes on beside it.
    Beside(Box<Course>),
    /// It is given up.
    Lost,
}

/// An attempt whose endpoint hangs or whose gateway is lost, while others go on. Its answer counts if it is the first.
struct Behind<'a> {
    sent: Pin<&'a mut (dyn Future<Output = Result<Sent, Failed>> + 'a)>,
    target: Target,
    destination: Name,
    /// Of its endpoint, if that is here.
    version: Option<Name>,
    /// Both may answer.
    is_hedged: bool,
}

impl Behind<'_> {
    fn wins(self, books: &mut Books, (response, in_flight, stamps): Sent) -> Response {
        books.enter(in_flight);
        books.record().trail.answered(&self.target, stamps);
        books.went_to(self.destination);
        books.record().version = self.version;
        if self.is_hedged {
            books.record().hedge = Some(Hedge::First);
        }
        if let Some(text) = books.text() {
            text.upstream_host = self.target.to_string();
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
        Target::Remote(remote) => remote::send(call, decision, remote, attempt, body, idempotent).await,
    }
}

/// Resolves when an attempt at `target` is not to be waited for alone.
async fn stuck(call: &Call, course: &Course, target: &Target, has_behind: bool) -> Stuck {
    match target {
        // A gRPC caller says himself how long he waits, and his streams may be silent until then.
        Target::Local(endpoint) if !call.is_grpc => {
            local::hangs(call, endpoint).await;
            match course.hedge(call, target) {
                Some(next) => Stuck::Beside(Box::new(next)),
                None => pending().await,
            }
        }
        Target::Local(_) => pending().await,
        Target::Remote(remote) => {
            remote.handle.died().await;
            let Some(next) = course.without(call, target) else { return pending().await };
            // Two of them could not share what the sender has yet to give.
            if has_behind || !call.body.is_taken() {
                return Stuck::Lost;
            }
            // The tunnel lives on, and if nobody else comes, its answer is the only one.
            Box::pin(beside(call, next)).await
        }
    }
}

/// Resolves when there is somebody else.
async fn beside(call: &Call, mut next: Course) -> Stuck {
    let worker = &call.worker;
    worker.demand(&next.view, call.service);
    let found = worker.seek(|| {
        next.look_again(call);
        // QUIC gives a tunnel up by itself.
        next.choose(call).map(drop).ok_or_else(|| Some(Instant::now() + LOST_MAX))
    });
    match found.await {
        Some(()) => Stuck::Beside(Box::new(next)),
        None => pending().await,
    }
}

/// What came of waiting.
enum Sought<'call> {
    Found((Decision, Option<&'call str>)),
    Answered(Box<Response>),
    Nobody,
}

/// Nobody can be asked now: who can a little later, or the answer of the one behind, whichever comes first.
async fn somebody<'call>(
    call: &'call Call,
    books: &mut Books,
    course: &mut Course,
    behind: &mut Option<Behind<'_>>,
) -> Sought<'call> {
    let worker = &call.worker;
    if call.is_clients() {
        worker.demand(&course.view, call.service);
    }
    loop {
        let ended = {
            let mut sought = pin!(worker.seek(|| {
                course.look_again(call);
                course.choose(call).ok_or_else(|| course.hope(call))
            }));
            let mut is_over = false;
            poll_fn(|cx| {
                if !is_over && let Poll::Ready(found) = sought.as_mut().poll(cx) {
                    is_over = true;
                    if let Some(chosen) = found {
                        return Poll::Ready(Err(Sought::Found(chosen)));
                    }
                }
                match behind {
                    Some(Behind { sent, .. }) => sent.as_mut().poll(cx).map(Ok),
                    None if is_over => Poll::Ready(Err(Sought::Nobody)),
                    None => Poll::Pending,
                }
            })
            .await
        };
        match (ended, behind.take()) {
            (Err(sought), left) => {
                *behind = left;
                return sought;
            }
            (Ok(Ok(sent)), Some(behind)) => return Sought::Answered(Box::new(behind.wins(books, sent))),
            // What it was lost with may be back.
            (Ok(Err(Failed { ending: Ending::Lost | Ending::NotProcessed, .. })), Some(behind)) => {
                course.tried.forget(&behind.target);
            }
            (Ok(_), _) => return Sought::Nobody,
        }
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
    /// When somebody was last looked for.
    chosen: Instant,
    /// An endpoint may have acted on the request.
    touched: bool,
    has_timeout: bool,
}

impl Course {
    fn new(call: &mut Call, now: Instant) -> Self {
        let elsewhere = if let Origin::Peer(arrival, _) = &call.origin { arrival.sends } else { 0 };
        // Each hop says what is left (gRPC over HTTP/2, "Timeout").
        let has_timeout = matches!(call.deadline, Deadline::At(_)) && call.head.fields.remove(Known::GrpcTimeout) > 0;
        Self {
            view: Rc::clone(&call.view),
            history: History { attempts: 0, acted: elsewhere },
            elsewhere,
            tried: Tried::default(),
            draw: None,
            chosen: now,
            touched: false,
            has_timeout,
        }
    }

    /// Who serves it, and by which rule.
    fn choose<'a>(&mut self, call: &'a Call) -> Option<(Decision, Option<&'a str>)> {
        let (now, random) = (Instant::now(), call.worker.random());
        self.chosen = now;
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
        next.tried.add(target);
        next.choose(call).is_some().then_some(next)
    }

    /// How it goes on if what `target` does is never heard of; `None`: not at all.
    fn without(&self, call: &Call, target: &Target) -> Option<Self> {
        let idempotent = replay::is_idempotent(&call.head.method);
        let mut next = self.clone();
        replay::again(&mut next.history, Ending::Lost, idempotent, call.body.can_replay())?;
        next.touched = true;
        next.tried.add(target);
        Some(next)
    }

    /// Nobody can be asked: until when it is worth waiting.
    fn hope(&self, call: &Call) -> Option<Instant> {
        // Endpoints here are all that a peer asks for, and it has others to ask.
        let (Origin::Client, Some(rule), Some(key)) = (&call.origin, call.rule(), self.draw) else { return None };
        let (now, tried) = (Instant::now(), &self.tried);
        let query = RouteQuery { service: call.service, rule, key, tried, random: 0, now };
        self.view.hope(&query, call.worker.limits.away_timeout)
    }

    /// The version of an endpoint here.
    fn version_of(&self, call: &Call, target: &Target) -> Option<Name> {
        let Target::Local(endpoint) = target else { return None };
        self.view.service(call.service)?.version_of(endpoint).cloned()
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

/// Longer than QUIC waits for a silent peer.
const LOST_MAX: Duration = Duration::from_secs(10);
/// With as much again at random.
const RETRY_PAUSE: Duration = Duration::from_millis(12);
