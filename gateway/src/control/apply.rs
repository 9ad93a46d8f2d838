//! Updates in, snapshots out: the only task that publishes.
//!
//! One update is one build and one swap. It is acknowledged when every worker serves with it; the disk follows behind, because a
//! slow disk must not delay a failover. A refused update changes nothing, and its reason goes back to whoever sent it.

use std::sync::Arc;
use std::time::Duration;

use archipelago_proto::v1::{ConfigUpdate, LocalUpdate};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::store::Store;
use crate::config::{Built, ConfigState, Published, Rejected, Snapshot};
use crate::telemetry::GatewayMetrics;

/// One change, and where to say what became of it.
#[derive(Debug)]
pub struct Update {
    /// The change.
    pub change: Change,
    /// `Ok` once every worker uses it, or why it was refused.
    pub applied: oneshot::Sender<Result<(), String>>,
}

/// Who changed what.
#[derive(Debug)]
pub enum Change {
    /// The control plane.
    Config(ConfigUpdate),
    /// The cluster's agent.
    Local(LocalUpdate),
}

/// Builds, publishes, and keeps.
#[derive(Debug)]
pub struct Applier {
    /// Where workers find it.
    pub published: Arc<Published>,
    /// The last good state.
    pub state: watch::Sender<Arc<ConfigState>>,
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
        while let Some(Update { change, applied }) = updates.recv().await {
            let before = self.state.borrow().clone();
            let next = match change {
                Change::Config(update) => before.with_update(update),
                Change::Local(update) => before.with_local(update),
            };
            let running = self.published.load();
            let outcome = match Snapshot::build(&next, &self.cluster, &self.trust_domain, &running) {
                Ok(Built { snapshot, rejected }) => {
                    for Rejected { resource, reason, kept, .. } in &rejected {
                        tracing::warn!(
                            revision = snapshot.revision,
                            resource,
                            reason,
                            ?kept,
                            "a resource cannot be used"
                        );
                    }
                    let revision = snapshot.revision;
                    let generation = self.published.publish(snapshot);
                    self.published.reached_by_all(generation).await;
                    self.metrics.config_revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
                    self.state.send_replace(Arc::new(next));
                    Ok(())
                }
                Err(error) => {
                    self.metrics.config_rejected.inc();
                    tracing::warn!(revision = next.revision, %error, "configuration refused; the last good one stays");
                    Err(error.to_string())
                }
            };
            // The stream that brought it may be gone; it will ask again.
            let _ = applied.send(outcome);
        }
    }
}

/// Writes the last good state to disk whenever it changed, one write at a time.
pub async fn keep_on_disk(store: Store, mut state: watch::Receiver<Arc<ConfigState>>) {
    let mut failing = false;
    while state.changed().await.is_ok() {
        let current = state.borrow_and_update().clone();
        let writer = store.clone();
        let written = tokio::task::spawn_blocking(move || writer.save(&current)).await;
        match written {
            Ok(Ok(())) => {
                if failing {
                    tracing::info!("the configuration is on disk again");
                }
                failing = false;
            }
            Ok(Err(error)) => {
                if !failing {
                    tracing::error!(%error, "the configuration cannot be kept on disk; a restart would begin with an older one");
                }
                failing = true;
                tokio::time::sleep(RETRY).await;
                state.mark_changed();
            }
            Err(_) => return,
        }
        // Endpoints can flap many times a second; the disk need not follow each step.
        tokio::time::sleep(WRITE_INTERVAL).await;
    }
}

const RETRY: Duration = Duration::from_secs(2);
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
