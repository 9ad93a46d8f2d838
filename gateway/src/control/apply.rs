//! Updates in, snapshots out: the only task that publishes.
//!
//! One update is one build and one swap. It is acknowledged when every worker serves with it; the disk follows beside that, one
//! appended record away, because a slow disk must not delay a failover: a gateway that dies in between starts from the
//! version before, says so in its hello and is brought up to date. One that is told to stop writes what it holds first. A refused update changes nothing, is never written, and its
//! reason goes back to whoever sent it.

use std::sync::Arc;
use std::time::Duration;

use archipelago_model::stream::Refusal;
use archipelago_proto::v1::{self as proto, ConfigUpdate, LocalUpdate, ResourceRejection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::callers::{self, Callers};
use crate::config::state::zone_of;
use crate::config::store::Store;
use crate::config::{Built, ConfigState, Kept, Published, Rejected, Snapshot};
use crate::telemetry::GatewayMetrics;

/// One change, and where to say what became of it.
#[derive(Debug)]
pub struct Update {
    /// The change.
    pub change: Change,
    /// Told once every worker uses it, or some of them are late, or it was refused.
    pub applied: oneshot::Sender<Result<Applied, Refusal>>,
}

/// Who changed what.
#[derive(Debug)]
pub enum Change {
    /// The control plane.
    Config(ConfigUpdate),
    /// The cluster's agent.
    Local(LocalUpdate),
}

/// An update that is held and published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// Of the snapshot, for [`Published::reached_by_all`].
    pub generation: u64,
    /// Resources that cannot be used here.
    pub rejections: Vec<ResourceRejection>,
    /// Workers that hang: they do not serve with it.
    pub late_workers: Vec<usize>,
}

/// Builds, publishes, and keeps.
#[derive(Debug)]
pub struct Applier {
    /// Where workers find it.
    pub published: Arc<Published>,
    /// What is held, as of the last swap.
    pub state: watch::Sender<Arc<ConfigState>>,
    /// Whose address is whose on our node.
    pub callers: Arc<callers::Table>,
    /// Our cluster.
    pub cluster: String,
    /// Our trust domain.
    pub trust_domain: String,
    /// Metrics.
    pub metrics: GatewayMetrics,
}

impl Applier {
    /// Applies updates until nobody can send any more.
    pub async fn run(self, mut updates: mpsc::Receiver<Update>) {
        let mut late = Vec::new();
        while let Some(Update { change, applied }) = updates.recv().await {
            let outcome = match self.publish(change) {
                Ok((generation, rejections)) => {
                    let late_before = std::mem::take(&mut late);
                    late = self.published.settle(generation, &late_before).await;
                    if late != late_before {
                        tracing::warn!(?late, "workers that hang serve with an older configuration");
                    }
                    Ok(Applied { generation, rejections, late_workers: late.clone() })
                }
                Err(refusal) => {
                    self.metrics.config_rejected.inc();
                    Err(refusal)
                }
            };
            // The stream that brought it may be gone; it will ask again.
            let _ = applied.send(outcome);
        }
    }

    /// Builds and swaps in what a change leads to: the generation, and what of it cannot be used here.
    ///
    /// # Errors
    /// Nothing of the change was taken.
    pub(crate) fn publish(&self, change: Change) -> Result<(u64, Vec<ResourceRejection>), Refusal> {
        let before = self.state.borrow().clone();
        let next = match change {
            Change::Config(update) => before.with_update(&update)?,
            Change::Local(mut update) => {
                if let Some(workloads) = update.workloads.take() {
                    self.callers.publish(Callers::new(&workloads));
                    let moved = zone_of(&workloads).is_some_and(|zone| *zone != *before.place.zone);
                    // Of an orchestrated cluster: what it does not capture its clients do not know, from the beginning.
                    if before.captures.is_none() {
                        update.captures.get_or_insert_default();
                    }
                    // Pods come and go all the time: that alone is no other configuration.
                    if !moved && update == LocalUpdate::default() {
                        return Ok((self.published.generation(), Vec::new()));
                    }
                    // For the zone of the node, which is part of the configuration.
                    update.workloads = moved.then_some(workloads);
                }
                before.with_local(update)
            }
        };
        let running = self.published.load();
        let Built { snapshot, rejected } = Snapshot::build(&next, &self.cluster, &self.trust_domain, &running)
            .map_err(|error| Refusal::Unusable(error.to_string()))?;
        if running.own_cluster.is_some() && snapshot.own_cluster.is_none() {
            tracing::warn!(cluster = self.cluster, "our cluster is not declared any more; nothing is served for it");
        }
        let last_good = rejected.iter().filter(|rejected| rejected.kept == Kept::LastGood);
        let next = next.keeping(last_good.map(|rejected| rejected.resource.clone()), &before);
        let revision = snapshot.revision;
        let generation = self.published.publish(snapshot);
        self.metrics.config_revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.state.send_replace(Arc::new(next));
        Ok((generation, rejected.into_iter().map(rejection).collect()))
    }
}

fn rejection(rejected: Rejected) -> ResourceRejection {
    let Rejected { resource, version, reason, kept } = rejected;
    let kept = match kept {
        Kept::LastGood => proto::Kept::LastGood,
        Kept::Closed => proto::Kept::Closed,
    };
    ResourceRejection { resource, version, reason, kept: kept.into() }
}

/// Writes what is held to disk whenever it changed, one write at a time; ends when nobody can change it any more and the last change is
/// written. Once `stop` is cancelled it does not pause.
pub async fn keep_on_disk(mut store: Store, mut state: watch::Receiver<Arc<ConfigState>>, stop: CancellationToken) {
    let mut failing = false;
    while state.changed().await.is_ok() {
        let current = state.borrow_and_update().clone();
        let written = tokio::task::spawn_blocking(move || {
            let saved = store.save(&current);
            (store, saved)
        });
        let Ok((again, written)) = written.await else { return };
        store = again;
        match written {
            Ok(()) => {
                if failing {
                    tracing::info!("the configuration is on disk again");
                }
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "the configuration cannot be kept on disk; a restart would begin with an older one");
                }
                failing = true;
                if stop.is_cancelled() {
                    return;
                }
                let _ = tokio::time::timeout(RETRY, stop.cancelled()).await;
                state.mark_changed();
            }
        }
        // Endpoints can flap many times a second; the disk need not follow each step.
        let _ = tokio::time::timeout(WRITE_INTERVAL, stop.cancelled()).await;
    }
}

const RETRY: Duration = Duration::from_secs(2);
/// After a write, not before it: what comes alone is written at once.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use archipelago_base::metrics::Registry;

    use super::*;
    use crate::callers::Caller;

    #[test]
    fn pods_that_come_and_go_are_no_other_configuration() {
        let applier = Applier {
            published: Arc::new(Published::new(Snapshot::empty(), 1)),
            state: watch::channel(Arc::default()).0,
            callers: Arc::default(),
            cluster: "paris".into(),
            trust_domain: "mesh.test".into(),
            metrics: GatewayMetrics::register(&mut Registry::default()),
        };
        let workloads = |ip: &str| {
            let workload = proto::Workload { ip: ip.into(), ..proto::Workload::default() };
            let workloads = proto::Workloads { fresh: true, workloads: vec![workload], ..proto::Workloads::default() };
            Change::Local(LocalUpdate { workloads: Some(workloads), ..LocalUpdate::default() })
        };
        let is_pod = |ip: &str| matches!(applier.callers.of(ip.parse().unwrap()), Caller::Pod(_));
        // The first says what kind of cluster it is.
        let (first, _) = applier.publish(workloads("10.1.0.1")).unwrap();
        assert!(is_pod("10.1.0.1"));
        assert!(applier.published.load().captures.as_ref().is_some_and(|captures| captures.list().is_empty()));
        let (second, _) = applier.publish(workloads("10.1.0.2")).unwrap();
        assert!(is_pod("10.1.0.2") && !is_pod("10.1.0.1"));
        assert_eq!((second, applier.published.generation()), (first, first));
        // Beside something else it is one.
        let Change::Local(update) = workloads("10.1.0.3") else { panic!() };
        let (third, _) = applier.publish(Change::Local(LocalUpdate { full: true, ..update })).unwrap();
        assert!(is_pod("10.1.0.3") && third > second);
    }
}
