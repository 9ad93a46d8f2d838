//! What is kept, for whoever asks: entries made of finished requests, and answers made of entries.

use std::rc::Rc;
use std::time::{Duration, Instant};

use archipelago_http::RequestHead;
use archipelago_proto::v1::{SlowAnswer, SlowMinute, SlowRequest};
use http::Method;
use serde_json::{Value, json};

use super::micros;
use super::minutes::Minute;
use super::trail::endpoint_of;
use crate::exchange::books::Record;
use crate::trace;
use crate::worker::Worker;
use crate::worker::view::Target;

/// Keeps a request that ended at `end`, if it is one to be kept.
#[inline]
pub fn finished(worker: &Rc<Worker>, record: &Record, head: Option<&RequestHead>, end: Instant) {
    let Some(keeper) = &record.keeper else { return };
    let total = micros(record.started, end);
    if keeper.wants(total, end) {
        keeper.keep(total, end, entry(record, head, end), || worker.random());
    }
}

/// The way of a request that ended at `end`.
#[cold]
pub fn entry(record: &Record, head: Option<&RequestHead>, end: Instant) -> SlowRequest {
    let trail = &record.trail;
    let (target, far) = (trail.target().or(trail.lost_at()), trail.far());
    let is_remote = matches!(target, Some(Target::Remote(_)));
    SlowRequest {
        total_us: micros(record.started, end).into(),
        status: record.code.into(),
        flags: record.flags.to_owned(),
        method: head.map(|head| short(head.method.as_str())).unwrap_or_default(),
        path: head.map(path).unwrap_or_default(),
        trace_id: trace::id(record.trace.as_deref(), head.map(|head| &head.fields)),
        cluster: record.destination_cluster.as_deref().unwrap_or_default().to_owned(),
        gateway: match target {
            Some(Target::Remote(remote)) => remote.name.to_string(),
            _ => String::new(),
        },
        endpoint: endpoint_of(target, far).map(|address| address.to_string()).unwrap_or_default(),
        attempts: record.attempts,
        far_attempts: far.map_or(0, |far| far.attempts),
        hops: Some(trail.hops(record.started, end)),
        lost_at: match (trail.lost_at(), far.and_then(|far| far.lost_at)) {
            (Some(Target::Local(endpoint)), _) => endpoint.address().to_string(),
            (Some(Target::Remote(remote)), None) => remote.name.to_string(),
            (_, lost_at) => lost_at.map(|address| address.to_string()).unwrap_or_default(),
        },
        far_silent: is_remote && trail.head_at().is_some() && far.is_none(),
        ..SlowRequest::default()
    }
}

/// Without the query, which may hold secrets.
fn path(head: &RequestHead) -> String {
    if head.method == Method::CONNECT {
        return String::new();
    }
    let whole = head.path();
    let end = whole.iter().position(|byte| *byte == b'?').unwrap_or(whole.len());
    short(&String::from_utf8_lossy(whole.get(..end).unwrap_or_default()))
}

/// As much of a text as is kept.
pub fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// One minute of one worker.
pub fn minute(minute: &Minute<Box<SlowRequest>>, service: &str, worker: usize, now: Instant) -> SlowMinute {
    let age = |at: Instant| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
    let mut kept: Vec<_> = minute.kept.iter().collect();
    // Whoever takes the first of a sample takes it at random.
    kept.sort_by_key(|kept| kept.slot);
    let requests = kept.into_iter().map(|kept| SlowRequest {
        slowest: kept.slowest,
        sampled: kept.slot.is_some(),
        age_ms: age(kept.at),
        ..SlowRequest::clone(&kept.entry)
    });
    SlowMinute {
        service: service.to_owned(),
        worker: u32::try_from(worker).unwrap_or(u32::MAX),
        age_ms: age(minute.began),
        seen: minute.seen,
        requests: requests.collect(),
    }
}

/// What one worker has kept of a service, "namespace/name", all ports of it, or of all services if that is empty.
pub fn of_worker(worker: &Worker, service: &str, since: Duration) -> Vec<SlowMinute> {
    let (view, now) = (worker.view(), Instant::now());
    let is_meant = |key: &str| service.is_empty() || key.split(':').next() == Some(service);
    let meant = view.snapshot.services().filter(|(_, config)| is_meant(&config.key));
    let live = meant.filter_map(|(index, config)| Some((&config.key, view.service(index)?)));
    live.flat_map(|(key, live)| live.keeper().report(key, worker.index, since, now)).collect()
}

/// The answers of all workers, the slowest and the samples of them cut to what an answer may be.
pub fn merge(minutes: Vec<SlowMinute>, silent_workers: usize) -> SlowAnswer {
    let mut minutes = minutes;
    let of_all = |minutes: &[SlowMinute]| minutes.iter().map(|minute| minute.requests.len()).sum::<usize>();
    if of_all(&minutes) > REQUESTS_MAX {
        let mut totals: Vec<u64> = minutes
            .iter()
            .flat_map(|minute| minute.requests.iter().filter(|r| r.slowest).map(|r| r.total_us))
            .collect();
        totals.sort_unstable_by(|a, b| b.cmp(a));
        let least = totals.get(REQUESTS_MAX / 2).copied().unwrap_or(0);
        let sampled = (REQUESTS_MAX / 2 / minutes.len()).max(1);
        for minute in &mut minutes {
            let mut left = sampled;
            for request in &mut minute.requests {
                request.slowest &= request.total_us > least;
                request.sampled = request.sampled && left > 0;
                left -= usize::from(request.sampled);
            }
            minute.requests.retain(|request| request.slowest || request.sampled);
        }
        // Minutes of more services than that have nothing to say together.
        minutes.truncate(REQUESTS_MAX);
    }
    SlowAnswer { minutes, silent_workers: u32::try_from(silent_workers).unwrap_or(u32::MAX) }
}

/// For the admin socket.
pub fn json(answer: &SlowAnswer) -> Value {
    let request = |r: &SlowRequest| {
        let hops = r.hops.unwrap_or_default();
        json!({
            "slowest": r.slowest, "sampled": r.sampled, "ageMs": r.age_ms, "totalMicros": r.total_us, "status": r.status,
            "flags": r.flags, "method": r.method, "path": r.path, "traceId": r.trace_id, "cluster": r.cluster,
            "gateway": r.gateway, "endpoint": r.endpoint, "attempts": r.attempts, "farAttempts": r.far_attempts,
            "lostAt": r.lost_at, "farSilent": r.far_silent,
            "hops": {
                "queue": hops.queue, "lost": hops.lost, "tunnelWait": hops.tunnel_wait, "tunnel": hops.tunnel,
                "farQueue": hops.far_queue, "farLost": hops.far_lost, "endpointWait": hops.endpoint_wait,
                "connect": hops.connect, "upload": hops.upload, "firstByte": hops.first_byte, "body": hops.body,
                "beyond": hops.beyond,
            },
        })
    };
    let minute = |m: &SlowMinute| {
        json!({
            "service": m.service, "worker": m.worker, "ageMs": m.age_ms, "seen": m.seen,
            "requests": m.requests.iter().map(request).collect::<Vec<_>>(),
        })
    };
    json!({
        "minutes": answer.minutes.iter().map(minute).collect::<Vec<_>>(), "silentWorkers": answer.silent_workers,
    })
}

/// Enough to know a path again.
const TEXT_CHARS_MAX: usize = 128;
/// Of one answer: at some 500 bytes each, 1 MiB.
const REQUESTS_MAX: usize = 2_000;
