//! Attempts: choose a target, send, and if that went wrong in a way that may be repeated, choose another.
//!
//! A request is repeated only while nothing of a response has gone downstream, and only if either the target provably never
//! processed it (any method), or its method is idempotent and its body still complete (design §4, RFC 9110 §9.2.2).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use archipelago_tunnel::PeerState;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};

use super::body::{RequestBody, ResponseBody};
use super::headers::{
    self, MESH_ATTEMPT, MESH_CLUSTER, MESH_DEADLINE_MS, MESH_FAILURE, MESH_HOP, MESH_PORT, MESH_SERVED_BY,
    MESH_SERVICE, MESH_SOURCE, MESH_VERSION, XFCC,
};
use super::stack::{Call, Failure, Origin, Outcome};
use super::upstream::Endpoint;
use crate::authorize::INGRESS_HOP;
use crate::balance::budget::Purpose;
use crate::balance::cluster::NoTrace;
use crate::balance::hash::Key;
use crate::balance::outlier::Verdict;
use crate::config::{Protocol, Service};
use crate::worker::view::{Decision, Remote, RouteQuery, Target, Tried, View};

/// Sends a routed call until it is answered or may not be sent again.
pub async fn forward(call: Box<Call>) -> Outcome {
    let worker = Rc::clone(&call.worker);
    let key = call.service.clone().ok_or(Failure::UnknownHost)?;
    let idempotent = headers::is_idempotent(&call.parts.method);
    let mut tried = Tried::default();
    let mut draw = None;
    let mut attempt = 0;
    // True once an endpoint may have acted on the request.
    let mut touched = false;
    loop {
        attempt += 1;
        call.record.borrow_mut().attempts = attempt;
        // A fresh view per attempt: what just failed is often known to have failed by now.
        let view = worker.view();
        let service = view.snapshot.service_by_key(&key).ok_or(Failure::UnknownHost)?;
        let config = view.snapshot.services.get(service).ok_or(Failure::UnknownHost)?;
        let Some(decision) = decide(&call, &view, service, &mut draw, &tried) else {
            if matches!(call.origin, Origin::Client) {
                worker.demand(&view, service);
            }
            return Err(match call.origin {
                Origin::Client => Failure::NoHealthy,
                Origin::Arrived(_) | Origin::Peer(..) if !touched => Failure::NoEndpointHere,
                Origin::Arrived(_) | Origin::Peer(..) => Failure::Broken,
            });
        };
        call.record.borrow_mut().destination_cluster = Some(
            view.snapshot
                .clusters
                .get(decision.cluster)
                .map_or_else(|| worker.identity.cluster.clone(), |c| c.name.clone()),
        );
        let Some(body) = call.body.attempt() else { return Err(Failure::Broken) };
        let failed = match &decision.target {
            Target::Local(endpoint) => match send_local(&call, &view, service, endpoint, attempt, body).await {
                Ok(response) => return Ok(response),
                Err(failed) => {
                    tried.endpoints.push(endpoint.address());
                    failed
                }
            },
            Target::Remote(remote) => {
                match send_remote(&call, config, &decision, remote, attempt, body, idempotent).await {
                    Ok(response) => return Ok(response),
                    Err(failed) => {
                        tried.peers.push(Arc::clone(&remote.name));
                        failed
                    }
                }
            }
        };
        touched |= !failed.never_processed;
        let is_final = matches!(failed.failure, Failure::RequestHead | Failure::ResponseHead);
        let may_repeat = !is_final && (failed.never_processed || idempotent) && call.body.can_replay();
        if !may_repeat || attempt >= ATTEMPTS_MAX || !worker.withdraw(failed.purpose) {
            let unseen_here = !matches!(call.origin, Origin::Client) && !touched && !is_final;
            return Err(if unseen_here { Failure::NoEndpointHere } else { failed.failure });
        }
        worker.metrics.replay(failed.purpose, failed.reason);
        if failed.purpose == Purpose::Retry {
            // One exchange broke; its target may well be fine, and it may be the only one.
            if decide(&call, &worker.view(), service, &mut draw, &tried).is_none() {
                tried = Tried::default();
            }
        }
    }
}

/// One attempt that gave no response.
struct Failed {
    failure: Failure,
    never_processed: bool,
    purpose: Purpose,
    reason: &'static str,
}

fn decide(call: &Call, view: &View, service: usize, draw: &mut Option<Key>, tried: &Tried) -> Option<Decision> {
    let (config, live) = (view.snapshot.services.get(service)?, view.services.get(service)?);
    let (now, random) = (Instant::now(), call.worker.random());
    match &call.origin {
        Origin::Arrived(_) => None,
        Origin::Peer(arrival, authorized) => view.decide_for_peer(authorized, &arrival.version, tried, random, now),
        Origin::Client => {
            let path = call.target.as_ref().map_or("/", |(_, path)| path.as_str());
            let rule = config.rule(&call.parts.method, path, &call.parts.headers)?;
            call.record.borrow_mut().rule = Some(Arc::clone(&rule.name));
            let key = *draw.get_or_insert_with(|| {
                config.sticky_hash(&call.parts.headers).map_or_else(|| live.draw(), Key::Sticky)
            });
            view.decide(&RouteQuery { service, rule, key, tried, random, now }, &mut NoTrace)
        }
    }
}

async fn send_local(
    call: &Call,
    view: &View,
    service: usize,
    endpoint: &Rc<Endpoint>,
    attempt: u32,
    body: RequestBody,
) -> Result<Response<ResponseBody>, Failed> {
    let protocol = view.snapshot.services.get(service).map_or(Protocol::Http1, |s| s.protocol);
    let mut first = Some(local_request(call, protocol, attempt, body).ok_or_else(Failed::internal)?);
    let request = || first.take().or_else(|| local_request(call, protocol, attempt, call.body.attempt()?));

    note_upstream(call, || endpoint.address().to_string());
    let (in_flight, started) = (endpoint.enter(), Instant::now());
    let sent = endpoint.send(protocol, request).await;
    let now = Instant::now();
    let verdict = match &sent {
        Ok(_) => Some(Verdict::Answered),
        Err(error) => error.blames_endpoint().then_some(Verdict::Failed),
    };
    if let (Some(live), Some(verdict)) = (view.services.get(service), verdict) {
        live.judge(endpoint, verdict, now);
    }
    match sent {
        Ok((response, lease)) => {
            endpoint.observe(now.saturating_duration_since(started), now);
            let (mut parts, body) = response.into_parts();
            // The version of the hop behind; the hop in front has its own.
            parts.version = Version::HTTP_11;
            headers::strip(&mut parts.headers);
            if matches!(call.origin, Origin::Client) {
                parts.headers.insert(MESH_SERVED_BY, call.worker.identity.served_by.clone());
            }
            drop(in_flight);
            Ok(Response::from_parts(parts, ResponseBody::local(body, lease)))
        }
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "attempt at an endpoint failed");
            let never_processed = error.never_processed();
            let (failure, reason) = match never_processed {
                _ if error.is_bad_head() => (Failure::ResponseHead, "endpoint_head"),
                true => (Failure::NoHealthy, "endpoint_refused"),
                false => (Failure::Broken, "endpoint_broken"),
            };
            let purpose = if never_processed { Purpose::Failover } else { Purpose::Retry };
            Err(Failed { failure, never_processed, purpose, reason })
        }
    }
}

/// What an endpoint of this cluster is sent; `None` when what was validated at the edge does not hold here.
fn local_request(call: &Call, protocol: Protocol, attempt: u32, body: RequestBody) -> Option<Request<RequestBody>> {
    let (authority, path) = call.target.as_ref()?;
    let mut headers = call.parts.headers.clone();
    let uri = if protocol == Protocol::H2c {
        headers.remove(HOST);
        headers::absolute(authority, path)?
    } else {
        headers.insert(HOST, HeaderValue::from_str(authority.as_str()).ok()?);
        Uri::from(path.clone())
    };
    if call.trailers {
        headers::accept_trailers(&mut headers, protocol != Protocol::H2c);
    }
    let identity = &call.worker.identity;
    let (source, cluster, attempt) = match &call.origin {
        Origin::Client => (identity.spiffe_id_value.clone(), identity.cluster_value.clone(), attempt),
        Origin::Arrived(arrival) | Origin::Peer(arrival, _) => (
            arrival.caller.source.clone(),
            arrival.caller.cluster_value.clone(),
            arrival.attempt.saturating_add(attempt - 1),
        ),
    };
    match &call.source {
        Some(workload) => {
            headers.insert(MESH_SOURCE, workload.id.clone());
            headers.insert(XFCC, workload.xfcc.clone());
        }
        None => drop(headers.insert(MESH_SOURCE, source)),
    }
    headers.insert(MESH_CLUSTER, cluster);
    stamp(call, &mut headers, attempt);
    headers.insert(
        MESH_HOP,
        HeaderValue::from_static(if matches!(call.origin, Origin::Client) { INGRESS_HOP } else { "2" }),
    );
    Some(request_of(call, uri, headers, body))
}

async fn send_remote(
    call: &Call,
    service: &Service,
    decision: &Decision,
    remote: &Rc<Remote>,
    attempt: u32,
    body: RequestBody,
    idempotent: bool,
) -> Result<Response<ResponseBody>, Failed> {
    let Some((authority, path)) = &call.target else { return Err(Failed::internal()) };
    let uri = headers::absolute(authority, path).ok_or_else(Failed::internal)?;
    let mut headers = call.parts.headers.clone();
    headers.remove(HOST);
    if call.trailers {
        headers::accept_trailers(&mut headers, false);
    }
    headers.insert(MESH_SERVICE, value(&service.service));
    headers.insert(MESH_PORT, HeaderValue::from(service.port));
    if let Some(version) = &decision.version {
        headers.insert(MESH_VERSION, value(version));
    }
    if let Some(workload) = &call.source {
        headers.insert(MESH_SOURCE, workload.id.clone());
    }
    stamp(call, &mut headers, attempt);
    headers.insert(MESH_HOP, HeaderValue::from_static(INGRESS_HOP));
    let request = request_of(call, uri, headers, body);

    note_upstream(call, || remote.name.to_string());
    let started = Instant::now();
    let response = remote.handle.request(request);
    tokio::pin!(response);
    let died = remote.handle.died();
    tokio::pin!(died);
    let mut dead = false;
    let response = loop {
        tokio::select! {
            biased;
            response = &mut response => break response,
            // The tunnel lives on and a late answer still counts, but whoever can start over elsewhere does.
            () = &mut died, if !dead => {
                if idempotent && call.body.can_replay() {
                    return Err(Failed { failure: Failure::Broken, never_processed: false, purpose: Purpose::Failover, reason: "peer_dead" });
                }
                dead = true;
            }
        }
    };
    let now = Instant::now();
    match response {
        Ok(response) => {
            remote.observe(now.saturating_duration_since(started), now);
            let (mut parts, body) = response.into_parts();
            // The version of the hop behind; the hop in front has its own.
            parts.version = Version::HTTP_11;
            let failure = parts
                .headers
                .get(MESH_FAILURE)
                .map(|reason| (reason == Failure::Broken.reason(), reason == Failure::NoHealthy.reason()));
            if let Some((broken, unhealthy)) = failure
                && (broken || unhealthy)
                && idempotent
            {
                return Err(Failed {
                    failure: Failure::Broken,
                    never_processed: false,
                    purpose: Purpose::Failover,
                    reason: "far_side_broken",
                });
            }
            let reason = parts.headers.get(MESH_FAILURE).cloned();
            headers::strip(&mut parts.headers);
            parts.headers.insert(MESH_SERVED_BY, remote.served_by.clone());
            if let Some(reason) = reason {
                parts.headers.insert(MESH_FAILURE, reason);
            }
            Ok(Response::from_parts(parts, ResponseBody::tunnel(body)))
        }
        Err(error) => {
            tracing::debug!(peer = %remote.name, error = &error as &dyn std::error::Error, "attempt through a tunnel failed");
            let head = match () {
                () if error.is_head_too_large() => Some(Failure::RequestHead),
                () if error.is_peers_head_too_large() => Some(Failure::ResponseHead),
                () => None,
            };
            let never_processed = error.never_processed();
            let lost = never_processed || remote.handle.state() != PeerState::Up;
            Err(Failed {
                failure: head.unwrap_or(if never_processed { Failure::NoHealthy } else { Failure::Broken }),
                never_processed,
                purpose: if lost { Purpose::Failover } else { Purpose::Retry },
                reason: error.reason(),
            })
        }
    }
}

impl Failed {
    /// What was validated at the edge did not hold here; nothing was sent.
    fn internal() -> Self {
        Self {
            failure: Failure::Malformed(headers::Malformed::Target),
            never_processed: false,
            purpose: Purpose::Retry,
            reason: "internal",
        }
    }
}

fn request_of(call: &Call, uri: Uri, headers: HeaderMap, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = call.parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

fn stamp(call: &Call, headers: &mut HeaderMap, attempt: u32) {
    headers.insert(MESH_ATTEMPT, HeaderValue::from(attempt));
    if let Some(deadline) = call.deadline {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        headers.insert(MESH_DEADLINE_MS, HeaderValue::from(u64::try_from(left).unwrap_or(u64::MAX)));
    }
}

fn note_upstream(call: &Call, host: impl FnOnce() -> String) {
    if let Some(text) = call.record.borrow_mut().text.as_mut() {
        text.upstream_host = host();
    }
}

/// Names and ids that came through validation are valid header values; anything else would be dropped, not sent wrong.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Two gateways and two clusters can fail under one request before it gives up.
const ATTEMPTS_MAX: u32 = 5;
