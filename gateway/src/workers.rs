//! All workers of the gateway, as the rest of the process sees them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use archipelago_proto::v1::{
    ExplainQuery, ExplainResponse, SlowAnswer, SlowQuestion, TunnelProbe, TunnelStatus, UnderWayAnswer,
    UnderWayQuestion, UnderWayRow,
};
use archipelago_tunnel::Cut;
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::explain;
use crate::ledger::report;
use crate::telemetry::GatewayMetrics;
use crate::worker::Reply;
use crate::worker::command::{self, Command, Knowledge, Report};
use crate::worker::probe;

/// A way to ask every worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Workers(Arc<Vec<mpsc::Sender<Command>>>);

impl Workers {
    /// From the workers' command queues.
    pub fn new(commands: Vec<mpsc::Sender<Command>>) -> Self {
        Self(Arc::new(commands))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is none, which no running gateway shows.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Asks every worker what would happen to a request: what the first of those says that cannot serve it, if there are such.
    pub async fn explain(&self, query: ExplainQuery) -> Option<ExplainResponse> {
        explain::merge(self.explain_each(&query).await)
    }

    /// What each worker would do with a request; those that do not answer in time are left out.
    pub async fn explain_each(&self, query: &ExplainQuery) -> Vec<ExplainResponse> {
        let query = || Box::new(query.clone());
        let asked = self.0.iter().map(|worker| ask(worker, |reply| Command::Explain(query(), reply)));
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// What each worker knows of endpoints here and elsewhere; those that do not answer in time are left out.
    pub async fn knowledge(&self) -> Vec<Knowledge> {
        let asked = self.0.iter().map(|worker| ask(worker, Command::Knowledge));
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The requests that are kept, of all workers.
    pub async fn slow(&self, question: &SlowQuestion) -> SlowAnswer {
        let since = match question.since_ms {
            0 => Duration::MAX,
            since => Duration::from_millis(since),
        };
        let asked =
            self.0.iter().map(|worker| ask(worker, |reply| Command::Slow(question.service.clone(), since, reply)));
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let silent = self.len() - answers.len();
        report::merge(answers.into_iter().flatten().collect(), silent)
    }

    /// What is under way, on all workers.
    pub async fn under_way(&self, question: &UnderWayQuestion) -> UnderWayAnswer {
        let asked = self.0.iter().map(|worker| ask(worker, |reply| Command::UnderWay(question.cluster.clone(), reply)));
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let silent_workers = u32::try_from(self.len() - answers.len()).unwrap_or(u32::MAX);
        let mut sums: BTreeMap<(String, String), UnderWayRow> = BTreeMap::new();
        for row in answers.into_iter().flatten() {
            let UnderWayRow { service, cluster, requests, connections } = row;
            let sum = sums.entry((service.clone(), cluster.clone())).or_insert_with(|| UnderWayRow {
                service,
                cluster,
                ..UnderWayRow::default()
            });
            sum.requests += requests;
            sum.connections += connections;
        }
        UnderWayAnswer { rows: sums.into_values().collect(), silent_workers }
    }

    /// What comes back through the tunnels of all workers, one entry per peer.
    pub async fn probe(&self) -> Vec<TunnelProbe> {
        let asked = self.0.iter().map(|worker| ask(worker, Command::Probe));
        probe::merge(join_all(asked).await.into_iter().flatten())
    }

    /// Every worker's report; those that do not answer in time are left out.
    pub async fn reports(&self) -> Vec<Report> {
        let mut reports = Vec::with_capacity(self.0.len());
        for worker in self.0.iter() {
            reports.extend(ask(worker, Command::Report).await);
        }
        reports
    }

    /// Every worker hands over how long requests took; how many of them do not answer in time.
    pub async fn flush_latencies(&self) -> usize {
        let asked = self.0.iter().map(|worker| {
            let asked = ask(worker, Command::FlushLatencies);
            async { tokio::time::timeout(FLUSH_TIMEOUT, asked).await.ok().flatten() }
        });
        join_all(asked).await.into_iter().filter(Option::is_none).count()
    }

    /// Cuts on every worker.
    pub async fn cut(&self, cut: &Cut) {
        for worker in self.0.iter() {
            ask(worker, |reply| Command::Cut(cut.clone(), reply)).await;
        }
    }

    /// Heals on every worker.
    pub async fn heal(&self) {
        for worker in self.0.iter() {
            ask(worker, Command::Heal).await;
        }
    }

    /// The tunnels of all workers, one entry per peer.
    pub async fn tunnels(&self) -> Vec<TunnelStatus> {
        command::merge(self.reports().await.into_iter().map(|report| report.tunnels))
    }
}

/// Keeps the shared state of the tunnels fresh, and tells `reports` when a state changed.
pub async fn watch_tunnels(workers: Workers, metrics: GatewayMetrics, changed: Arc<Notify>, reports: Arc<Notify>) {
    let states = |tunnels: &[TunnelStatus]| tunnels.iter().map(|t| (t.to.clone(), t.state.clone())).collect::<Vec<_>>();
    loop {
        let given = workers.reports().await;
        metrics.vitals.observe(&given);
        let tunnels = command::merge(given.into_iter().map(|report| report.tunnels));
        let moved = states(&tunnels) != states(&metrics.tunnels());
        metrics.set_tunnels(tunnels);
        if moved {
            reports.notify_one();
        }
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep(REFRESH_INTERVAL) => {}
        }
    }
}

async fn ask<T>(worker: &mpsc::Sender<Command>, command: impl FnOnce(Reply<T>) -> Command) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    tokio::time::timeout(ANSWER_TIMEOUT, async {
        worker.send(command(reply)).await.ok()?;
        answer.await.ok()
    })
    .await
    .ok()
    .flatten()
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Whoever looks at a gateway waits for it, and a worker that hangs has told all but its last quarter of a second.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Round trips drift; states are told at once.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
