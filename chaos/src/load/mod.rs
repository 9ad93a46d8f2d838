//! Open-loop HTTP load: requests go out by a schedule, whether or not earlier ones were answered.
//!
//! A target that stalls therefore meets the same arrivals as one that does not, and every latency
//! counts from when its request was due, so that a stall shows in full ("no coordinated omission").
//!
//! [`run`] does a whole run; [`start`] gives a handle to watch and stop it. Senders have threads of
//! their own and keep time even when the caller's runtime is busy.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use archipelago_chaos::load::{self, Plan};
//! use std::time::Duration;
//!
//! let mut plan = Plan::new("http://127.0.0.1:15080/", 500.0, Duration::from_secs(10))?;
//! plan.host = Some("checkout.shop".to_owned());
//! let running = load::start(plan)?;
//! running.until(|counters| counters.ok >= 1000).await;
//! // … kill something …
//! let report = running.finish().await?;
//! assert_eq!(report.failed, 0, "{report}");
//! # Ok(())
//! # }
//! ```

mod client;
mod plan;
mod recorder;
mod report;
mod schedule;
mod worker;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use plan::{BODY_BYTES_MAX, Expect, Plan, PlanError, Protocol};
pub use recorder::Counters;
pub(crate) use report::micros;
pub use report::{
    Asked, FAILURE_SAMPLES, FailureKind, FailureSample, Failures, Generator, Latency, Report, Second, Target,
};
pub use schedule::Arrivals;

use recorder::Recorder;

/// Runs `plan` to its end.
///
/// # Errors
/// As [`start`] and [`Running::finish`].
pub async fn run(plan: Plan) -> Result<Report, LoadError> {
    start(plan)?.finish().await
}

/// Starts `plan` on threads of its own.
///
/// # Errors
/// The plan cannot be run, or a thread cannot be started. Failing requests are no error here.
pub fn start(plan: Plan) -> Result<Running, LoadError> {
    let template = plan.template()?;
    let shared = Arc::new(Shared {
        // A moment for all workers to get ready, so that the first requests are not late.
        start: Instant::now() + LEAD_TIME,
        started_unix: SystemTime::now() + LEAD_TIME,
        recorder: Mutex::new(Recorder::new(plan.timeout)),
        stop: CancellationToken::new(),
        sending: AtomicUsize::new(plan.workers),
        plan,
        template,
    });
    let mut workers = Vec::new();
    // Made first, so that the workers already started stop if a later one cannot be.
    let stop = shared.stop.clone().drop_guard();
    for index in 0..shared.plan.workers {
        let (ended, end) = oneshot::channel();
        let shared = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("chaos-load-{index}"))
            .spawn(move || {
                let sending = Sending(&shared);
                let outcome = worker::run(index, &shared);
                drop(sending);
                // The other end is dropped when nobody waits for the result.
                let _ = ended.send(outcome);
            })
            .map_err(LoadError::Worker)?;
        workers.push(end);
    }
    Ok(Running { shared, workers, _stop: stop })
}

/// A run under way; dropping it stops the run.
pub struct Running {
    shared: Arc<Shared>,
    workers: Vec<oneshot::Receiver<io::Result<()>>>,
    _stop: tokio_util::sync::DropGuard,
}

impl Running {
    /// Sends no more requests; those under way still end, each within its timeout.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// A handle to stop the run from elsewhere, such as a signal handler.
    pub fn stopper(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    /// Totals so far.
    pub fn counters(&self) -> Counters {
        self.shared.recorder().counters()
    }

    /// Time since the first intended send time.
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// The row of the second that ended last, as far as its requests have.
    pub fn last_second(&self) -> Option<Second> {
        self.shared.recorder().last_second(self.elapsed())
    }

    /// Returns once `condition` holds for the totals, or once the run sends no more and all requests
    /// have ended; says whether the condition held.
    pub async fn until(&self, condition: impl Fn(Counters) -> bool) -> bool {
        loop {
            let is_over = self.is_over();
            if condition(self.counters()) {
                return true;
            }
            if is_over {
                return false;
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// The report as it stands.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// Waits for the end of the run: its duration over or [`Running::stop`], and every request ended.
    ///
    /// # Errors
    /// A sending thread failed or panicked.
    pub async fn finish(mut self) -> Result<Report, LoadError> {
        for worker in self.workers.drain(..) {
            worker
                .await
                .map_err(|_| LoadError::Worker(io::Error::other("a sending thread panicked")))?
                .map_err(LoadError::Worker)?;
        }
        Ok(self.shared.report())
    }

    fn is_over(&self) -> bool {
        self.shared.sending.load(Ordering::Acquire) == 0
    }
}

/// Why a run could not be started or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A sending thread could not start or failed.
    #[error("sending failed")]
    Worker(#[source] io::Error),
}

/// What the handle and the workers have in common.
struct Shared {
    plan: Plan,
    template: plan::Template,
    start: Instant,
    started_unix: SystemTime,
    recorder: Mutex<Recorder>,
    stop: CancellationToken,
    /// Workers whose requests have not all ended.
    sending: AtomicUsize,
}

/// Counts a worker as sending for as long as it lives, even if the worker panics.
struct Sending<'a>(&'a Shared);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Ordering::Release);
    }
}

impl Shared {
    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        // Counters stay usable whatever a panicking holder left half counted.
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Report {
        let summary = self.recorder().summary();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Report {
            target: Target {
                url: self.plan.url.to_string(),
                host: self.plan.authority(),
                method: self.plan.method.to_string(),
                protocol: self.plan.protocol,
            },
            plan: Asked {
                rate: self.plan.rate,
                duration_millis: self.plan.duration.map(millis),
                arrivals: self.plan.arrivals,
                timeout_millis: millis(self.plan.timeout),
            },
            started_unix_millis: self.started_unix.duration_since(UNIX_EPOCH).map_or(0, millis),
            elapsed_millis: millis(summary.elapsed),
            sent: summary.counters.sent,
            ok: summary.counters.ok,
            failed: summary.counters.failed,
            in_flight: summary.counters.in_flight,
            by_status: summary.by_status,
            by_cluster: summary.by_cluster,
            by_version: summary.by_version,
            failures: summary.failures,
            failure_samples: summary.failure_samples,
            latency_micros: summary.latency,
            generator: summary.generator,
            timeline: summary.timeline,
        }
    }
}

const LEAD_TIME: Duration = Duration::from_millis(20);
const WATCH_EVERY: Duration = Duration::from_millis(5);
