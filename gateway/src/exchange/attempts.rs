//! Attempts: choose a target, send, and if that went wrong in a way that may be repeated ([`replay`]), choose another.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use archipelago_http::Known;

use super::Response;
use super::books::Books;
use super::call::{Call, Deadline, Origin};
use super::failure::Failure;
use super::replay::{self, Ending, History};
use super::upstream::Endpoint;
use super::{local, remote};
use crate::balance::budget::Purpose;
use crate::balance::cluster::NoTrace;
use crate::balance::hash::Key;
use crate::worker::view::{Decision, RouteQuery, Target, Tried};

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

/// Sends a call until it is answered or may not be sent again, within its time.
pub async fn run(mut call: Call) -> Result<(Response, Books), (Failure, Books)> {
    let started = Instant::now();
    let timer = call.worker.timers.timer();
    let (deadline, body) = (call.deadline, call.body.clone());
    timer.set(deadline.due(started, body.progress()));
    let outcome = {
        let mut answered = pin!(attempts(&mut call));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = answered.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            while timer.poll_due(cx).is_ready() {
                // While the sender is still sending, the clock runs from his last byte.
                match deadline.due(started, body.progress()) {
                    Some(due) if due <= Instant::now() => return Poll::Ready(Err(Failure::Timeout)),
                    later => timer.set(later),
                }
            }
            Poll::Pending
        })
        .await
    };
    match outcome {
        Ok(response) => Ok((response, call.books)),
        Err(failure) => Err((failure, call.books)),
    }
}

async fn attempts(call: &mut Call) -> Result<Response, Failure> {
    let worker = Rc::clone(&call.worker);
    let idempotent = replay::is_idempotent(&call.head.method);
    let mut history = History::default();
    if let Origin::Peer(arrival, _) = &call.origin {
        history.acted = arrival.sends;
    }
    let elsewhere = history.acted;
    let mut tried = Tried::default();
    let mut draw = None;
    // True once an endpoint may have acted on the request.
    let mut touched = false;
    // Each hop says what is left (gRPC over HTTP/2, "Timeout").
    let has_timeout = matches!(call.deadline, Deadline::At(_)) && call.head.fields.remove(Known::GrpcTimeout) > 0;
    loop {
        history.attempts += 1;
        call.books.record().attempts = history.attempts;
        let Some(decision) = decide(call, &mut draw, &tried) else {
            if call.is_clients() {
                worker.demand(&call.view, call.service);
            }
            return Err(match (call.is_clients(), touched) {
                (true, false) => Failure::NoHealthy,
                (true, true) => Failure::Broken,
                (false, false) => Failure::NoEndpointHere,
                (false, true) => Failure::BrokenAfter(history.acted - elsewhere),
            });
        };
        let destination = call.view.cluster_name(decision.cluster).unwrap_or(&worker.cluster).clone();
        call.books.record().destination_cluster = Some(destination);
        let Some(body) = call.body.attempt() else { return Err(Failure::Broken) };
        let attempt = Attempt { history, has_timeout, tried: &tried, draw };
        let sent = match &decision.target {
            Target::Local(endpoint) => local::send(call, endpoint, attempt, body).await,
            Target::Remote(remote) => remote::send(call, &decision, remote, attempt, body, idempotent).await,
        };
        let failed = match sent {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        match &decision.target {
            Target::Local(endpoint) => tried.endpoints.push(endpoint.address()),
            Target::Remote(remote) => tried.peers.push(Arc::clone(&remote.name)),
        }
        touched |= failed.ending != Ending::NotProcessed;
        let next = replay::again(&mut history, failed.ending, idempotent, call.body.can_replay());
        let Some(purpose) = next.filter(|purpose| worker.withdraw(*purpose)) else {
            return Err(match (call.is_clients(), touched, failed.failure) {
                (false, false, _) => Failure::NoEndpointHere,
                (false, true, Failure::Broken) => Failure::BrokenAfter(history.acted - elsewhere),
                (_, _, failure) => failure,
            });
        };
        worker.metrics.replay(purpose, failed.reason);
        if purpose == Purpose::Retry {
            // What broke one exchange may be about to break its neighbours: a moment later that is known (Envoy's base interval).
            tokio::time::sleep(RETRY_PAUSE + RETRY_PAUSE.mul_f64((worker.random() >> 40) as f64 / f64::from(1 << 24)))
                .await;
        }
        // What just failed is often known to have failed by now.
        call.look_again();
        if purpose == Purpose::Retry && decide(call, &mut draw, &tried).is_none() {
            // One exchange broke; its target may well be fine, and it may be the only one.
            tried = Tried::default();
        }
    }
}

/// One attempt among others.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// What became of the request before, this attempt counted.
    pub history: History,
    /// A gRPC caller said how long he waits.
    pub has_timeout: bool,
    tried: &'a Tried,
    draw: Option<Key>,
}

/// Whether the request could be sent to somebody else than this endpoint, which hangs.
pub fn could_move(call: &Call, attempt: Attempt<'_>, endpoint: &Endpoint) -> bool {
    let idempotent = replay::is_idempotent(&call.head.method);
    let mut tried = attempt.tried.clone();
    tried.endpoints.push(endpoint.address());
    replay::may_move(&attempt.history, idempotent, call.body.can_replay())
        && choose(call, &mut attempt.draw.clone(), &tried).is_some()
}

fn decide(call: &mut Call, draw: &mut Option<Key>, tried: &Tried) -> Option<Decision> {
    let (decision, rule) = choose(call, draw, tried)?;
    let rule = rule.filter(|_| call.worker.access_log.is_some()).map(str::to_owned);
    if let (Some(rule), Some(text)) = (rule, call.books.text()) {
        text.rule = rule;
    }
    Some(decision)
}

/// Who serves it, and by which rule.
fn choose<'a>(call: &'a Call, draw: &mut Option<Key>, tried: &Tried) -> Option<(Decision, Option<&'a str>)> {
    let (now, random) = (Instant::now(), call.worker.random());
    match &call.origin {
        Origin::Peer(arrival, authorized) => {
            Some((call.view.decide_for_peer(authorized, &arrival.version, tried, random, now)?, None))
        }
        Origin::Client => {
            let (config, live, rule) = (call.config()?, call.live()?, call.rule()?);
            let key = *draw
                .get_or_insert_with(|| config.sticky_hash(&call.head.fields).map_or_else(|| live.draw(), Key::Sticky));
            let query = RouteQuery { service: call.service, rule, key, tried, random, now };
            Some((call.view.decide(&query, &mut NoTrace)?, Some(&*rule.name)))
        }
    }
}

/// With as much again at random.
const RETRY_PAUSE: Duration = Duration::from_millis(12);
