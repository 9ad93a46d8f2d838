//! A bounded queue, batches, and the thread that sends them.

use std::fmt;
use std::thread::JoinHandle;
use std::time::Duration;

use archipelago_base::backoff::Backoff;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::proto::collector::trace::v1::ExportTraceServiceRequest;
use crate::proto::common::v1::{InstrumentationScope, KeyValue};
use crate::proto::resource::v1::Resource;
use crate::proto::trace::v1::{ResourceSpans, ScopeSpans};
use crate::reply::{Verdict, judge};
use crate::{Config, Span};

/// A running export.
#[derive(Debug)]
pub struct Exporter {
    spans: Spans,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

/// Where spans are handed in; cheap to clone.
#[derive(Clone)]
pub struct Spans {
    queue: mpsc::Sender<Span>,
    counts: Counts,
}

/// What became of spans.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Collectors have taken them.
    pub exported: Counter,
    dropped: Family<[(&'static str, &'static str); 1], Counter>,
}

/// Why spans are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// More came than the collector took.
    QueueFull,
    /// The collector did not answer, or was busy, for too long.
    Unreachable,
    /// The collector does not want them.
    Refused,
    /// The process ended first.
    Shutdown,
}

impl Counts {
    /// Declares them in `registry`, as those of `component`.
    pub fn register(registry: &mut Registry, component: &str) -> Self {
        let this = Self::default();
        for reason in [Dropped::QueueFull, Dropped::Unreachable, Dropped::Refused, Dropped::Shutdown] {
            drop(this.of(reason));
        }
        let name = |rest: &str| format!("mesh_{component}_spans_{rest}");
        registry.register(name("exported"), "Spans that the collector has taken", this.exported.clone());
        registry.register(name("dropped"), "Spans that no collector has", this.dropped.clone());
        this
    }

    /// The counter of a reason.
    pub fn of(&self, reason: Dropped) -> Counter {
        self.dropped.get_or_create(&[("reason", reason.label())]).clone()
    }
}

impl Dropped {
    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Spans {
    /// Hands in a span. Never waits.
    pub fn put(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.counts.of(Dropped::QueueFull).inc();
        }
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").field("room", &self.queue.capacity()).finish_non_exhaustive()
    }
}

impl Exporter {
    /// Starts the thread. `resource` is what all spans are of; `scope` names who made them.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(config: Config, resource: Vec<KeyValue>, scope: &str, counts: Counts) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel(config.queue_max);
        let stop = CancellationToken::new();
        let scope = InstrumentationScope {
            name: scope.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let sending = Sending {
            connection: Connection::new(&config),
            resource: Resource { attributes: resource, ..Resource::default() },
            scope,
            config,
            counts: counts.clone(),
            stop: stop.clone(),
            batch: Vec::new(),
            is_failing: false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || runtime.block_on(sending.run(waiting)))?;
        Ok(Self { spans: Spans { queue, counts }, stop, thread })
    }

    /// Where spans are handed in.
    pub fn spans(&self) -> Spans {
        self.spans.clone()
    }

    /// Sends what there is and ends. Blocks, for [`LAST_TIME`] at most.
    pub fn close(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the export of spans panicked");
        }
    }
}

struct Sending {
    connection: Connection,
    config: Config,
    resource: Resource,
    scope: InstrumentationScope,
    counts: Counts,
    stop: CancellationToken,
    /// Taken out of the queue and not yet of anybody else's.
    batch: Vec<Span>,
    /// Told, until it works again.
    is_failing: bool,
}

impl Sending {
    async fn run(mut self, mut waiting: mpsc::Receiver<Span>) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.go_on(&mut waiting) => {}
            () = async { stop.cancelled().await; sleep(LAST_TIME).await } => waiting.close(),
        }
        self.counts.of(Dropped::Shutdown).inc_by((self.batch.len() + waiting.len()) as u64);
    }

    /// Until nobody hands in spans any more, or none may. Can be given up at any time: what is not sent is in the batch or in the queue.
    async fn go_on(&mut self, waiting: &mut mpsc::Receiver<Span>) {
        while !self.batch.is_empty() || self.gather(waiting).await {
            self.deliver().await;
        }
    }

    /// Fills the batch: as much as a request holds, or what came within the delay. False: there will be no more.
    async fn gather(&mut self, waiting: &mut mpsc::Receiver<Span>) -> bool {
        let batch_max = self.config.batch_max;
        let stop = self.stop.clone();
        let count = tokio::select! {
            biased;
            count = waiting.recv_many(&mut self.batch, batch_max) => count,
            () = stop.cancelled() => {
                waiting.close();
                waiting.recv_many(&mut self.batch, batch_max).await
            }
        };
        if count == 0 {
            return false;
        }
        let due = Instant::now() + self.config.schedule_delay;
        while self.batch.len() < batch_max && Instant::now() < due && !waiting.is_closed() && !stop.is_cancelled() {
            // Not by waiting for the next one: whoever hands it in would have to wake this thread for each.
            stop.run_until_cancelled(sleep_until(due.min(Instant::now() + LOOK_INTERVAL))).await;
            while self.batch.len() < batch_max
                && let Ok(span) = waiting.try_recv()
            {
                self.batch.push(span);
            }
        }
        true
    }

    /// Sends the batch, again where that may help, and forgets it.
    async fn deliver(&mut self) {
        let (message, count) = (self.message(), self.batch.len() as u64);
        let mut backoff = Backoff::new(Duration::ZERO, RETRY_FIRST, RETRY_MAX);
        let until = Instant::now() + PATIENCE;
        let dropped = loop {
            let verdict = match timeout(self.config.timeout, self.connection.send(&message)).await {
                Ok(Ok(answer)) => judge(self.config.protocol, &answer),
                Ok(Err(unanswered)) => Verdict::Again { after: None, why: unanswered.to_string() },
                Err(_) => Verdict::Again { after: None, why: format!("no answer within {:?}", self.config.timeout) },
            };
            match verdict {
                Verdict::Taken { rejected } => {
                    let rejected = rejected.min(count);
                    self.counts.exported.inc_by(count - rejected);
                    self.counts.of(Dropped::Refused).inc_by(rejected);
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("the collector takes spans again");
                    }
                    break None;
                }
                Verdict::Refused(why) => {
                    self.complain(&why);
                    break Some(Dropped::Refused);
                }
                Verdict::Again { after, why } => {
                    self.complain(&why);
                    let pause = backoff.next_delay(rand::random()).max(after.unwrap_or_default());
                    // Whoever ends asks once more, and then no more.
                    if self.stop.is_cancelled() {
                        break Some(Dropped::Shutdown);
                    }
                    if Instant::now() + pause > until {
                        break Some(Dropped::Unreachable);
                    }
                    self.stop.clone().run_until_cancelled(sleep(pause)).await;
                }
            }
        };
        if let Some(reason) = dropped {
            self.counts.of(reason).inc_by(count);
        }
        self.batch.clear();
    }

    fn message(&mut self) -> Vec<u8> {
        let spans = std::mem::take(&mut self.batch);
        let scoped = ScopeSpans { scope: Some(self.scope.clone()), spans, schema_url: SCHEMA.to_owned() };
        let resource = Some(self.resource.clone());
        let all = ResourceSpans { resource, scope_spans: vec![scoped], schema_url: SCHEMA.to_owned() };
        let mut request = ExportTraceServiceRequest { resource_spans: vec![all] };
        let message = request.encode_to_vec();
        let scoped = request.resource_spans.pop().and_then(|mut all| all.scope_spans.pop());
        self.batch = scoped.map(|scoped| scoped.spans).unwrap_or_default();
        message
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let collector = self.config.endpoint.authority().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(collector, error = why, "the collector does not take spans; they are lost until it does");
        }
    }
}

/// For what is left when the process ends; below the usual grace of 30 s together with what a drain takes.
pub const LAST_TIME: Duration = Duration::from_secs(5);
/// With the queue's default, 20,000 spans a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A batch is held so long for a collector that is away, and no other one goes before it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the semantic conventions by which attributes are named.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";
