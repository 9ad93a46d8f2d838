//! One sending thread: waits for arrivals, sends each as a task of its own, records what became of it.

use std::{io, rc::Rc, sync::Arc, time::Instant};

use http::header;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::{task::LocalSet, time::timeout_at};
use tokio_util::task::TaskTracker;

use super::{
    Shared,
    client::{Pool, PoolEvent, classify},
    plan::DURATION_MAX,
    recorder::{Answer, Ending, Failure},
    report::FailureKind,
    schedule::{Arrival, Schedule},
};
use crate::timer::Timer;

/// Runs worker `index` until its arrivals are over or the run is stopped, and its requests have ended.
pub(super) fn run(index: usize, shared: &Arc<Shared>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Both numbers keep the gap between two looks at the timer short under load.
        .event_interval(16)
        .build()?;
    LocalSet::new().block_on(&runtime, send_all(index, shared))
}

async fn send_all(index: usize, shared: &Arc<Shared>) -> io::Result<()> {
    let plan = &shared.plan;
    let timer = Timer::new()?;
    let pool = Rc::new(pool(index, shared));
    let requests = TaskTracker::new();
    let in_flight_max = plan.in_flight_max.div_ceil(plan.workers);
    let mut schedule = Schedule::new(
        plan.arrivals,
        plan.rate,
        Some(plan.duration.unwrap_or(DURATION_MAX)),
        (index as u64, plan.workers as u64),
        plan.seed,
    );
    let mut burst = 0;
    while let Some(arrival) = schedule.peek() {
        let due = shared.start + arrival.due;
        if Instant::now() < due {
            burst = 0;
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => break,
                waited = timer.until(due) => waited?,
            }
        } else if burst == BURST_MAX {
            // Behind schedule: responses and the stop must still get their turn.
            burst = 0;
            tokio::task::yield_now().await;
        }
        if shared.stop.is_cancelled() {
            break;
        }
        burst += 1;
        schedule.advance();
        shared.recorder().sent(arrival.due, shared.start.elapsed());
        if requests.len() >= in_flight_max {
            let failure = Failure {
                kind: FailureKind::Overload,
                message: format!("{in_flight_max} requests are already under way"),
            };
            record(shared, arrival, Ending::Failed(failure));
            continue;
        }
        let (shared, pool) = (Arc::clone(shared), Rc::clone(&pool));
        tokio::task::spawn_local(requests.track_future(async move {
            let ending = one(&shared, &pool, arrival).await;
            record(&shared, arrival, ending);
        }));
    }
    requests.close();
    requests.wait().await;
    Ok(())
}

fn pool(index: usize, shared: &Arc<Shared>) -> Pool {
    let plan = &shared.plan;
    // The first workers take what does not divide evenly.
    let share = plan.connections / plan.workers + usize::from(index < plan.connections % plan.workers);
    let record = Arc::clone(shared);
    let events = Box::new(move |event| match event {
        PoolEvent::Opened => record.recorder().connection_opened(),
        PoolEvent::MovedUnsent => record.recorder().moved_unsent(),
    });
    Pool::new(plan.address(), plan.protocol, share, plan.streams, events)
}

fn record(shared: &Shared, arrival: Arrival, ending: Ending) {
    let now = shared.start.elapsed();
    shared.recorder().ended(arrival.due, now, ending);
}

async fn one(shared: &Shared, pool: &Pool, arrival: Arrival) -> Ending {
    let deadline = shared.start + arrival.due + shared.plan.timeout;
    match timeout_at(deadline.into(), answer(shared, pool, arrival.number)).await {
        Ok(Ok(answer)) => Ending::Answered(answer),
        Ok(Err(failure)) => Ending::Failed(failure),
        Err(_) => Ending::Failed(Failure {
            kind: FailureKind::Timeout,
            message: format!("not complete after {:?}", shared.plan.timeout),
        }),
    }
}

async fn answer(shared: &Shared, pool: &Pool, number: u64) -> Result<Answer, Failure> {
    let mut exchange = pool.send(shared.template.request(number)).await?;
    let mut beginning = Vec::new();
    let is_json = exchange
        .response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    while let Some(frame) = exchange.response.frame().await {
        let frame = frame.map_err(|error| classify(&error))?;
        if let Some(data) = frame.data_ref()
            && is_json
            && beginning.len() + data.len() <= JSON_BYTES_MAX
        {
            beginning.extend_from_slice(data);
        }
    }
    let served_by = served_by(&exchange.response);
    let status = exchange.response.status();
    exchange.complete();
    // A body too long or of another shape names nobody.
    let body: ServedBy = serde_json::from_slice(&beginning).unwrap_or_default();
    Ok(Answer {
        status: status.as_u16(),
        expected: shared.plan.expect.allows(status),
        cluster: body.cluster.or(served_by),
        version: body.version,
    })
}

/// What a demo backend says about itself.
#[derive(Default, Deserialize)]
struct ServedBy {
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    version: Option<String>,
}

/// The cluster of `mesh-served-by: <cluster>/<gateway>`.
fn served_by<B>(response: &http::Response<B>) -> Option<String> {
    let value = response.headers().get("mesh-served-by")?.to_str().ok()?;
    let cluster = value.split('/').next()?;
    Some(cluster.to_owned()).filter(|cluster| !cluster.is_empty())
}

/// Arrivals sent in a row when behind schedule.
const BURST_MAX: usize = 64;
/// JSON beyond this is not looked at for the name of a cluster.
const JSON_BYTES_MAX: usize = 4 << 10;
