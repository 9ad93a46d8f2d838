//! Policies that the users of a cluster write there: brought into the federation, taken out of it again, and what became of
//! each told to the cluster.
//!
//! One task per session of an agent. Only that of the newest session writes; each round begins with what a majority agreed on
//! and commits what differs in one command, by the same way as an operator's files.

mod plan;
mod status;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use archipelago_model::resource::ResourceKey;
use archipelago_proto::v1::{ApplyResponse, ClusterPolicy, PolicyStatus};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep},
};
use tonic::Status;

pub(in crate::api) use self::plan::may_write;
use self::{
    plan::{Plan, Situation, plan},
    status::statuses,
};
use super::stream::at;
use crate::{
    api::{Context, resources::Write},
    machine::{
        State,
        command::{ApplyResources, ResourceWrite},
        convert,
    },
    policy,
    sessions::AgentGuard,
};

/// The policies of one session.
pub(super) struct Policies {
    listed: watch::Sender<Option<Arc<[ClusterPolicy]>>>,
    statuses: watch::Receiver<Option<Arc<[PolicyStatus]>>>,
    told: Option<Arc<[PolicyStatus]>>,
    task: AbortHandle,
}

impl Policies {
    pub(super) fn new(context: &Arc<Context>, cluster: &str, actor: &str, guard: &Arc<AgentGuard>) -> Self {
        let (listed, lists) = watch::channel(None);
        let (said, statuses) = watch::channel(None);
        let reconciler = Reconciler {
            context: Arc::clone(context),
            cluster: cluster.to_owned(),
            actor: actor.to_owned(),
            guard: Arc::downgrade(guard),
            lists,
            said,
        };
        Self { listed, statuses, told: None, task: tokio::spawn(reconciler.run()).abort_handle() }
    }

    /// The complete list.
    pub(super) fn list(&self, policies: Vec<ClusterPolicy>) {
        self.listed.send_replace(Some(policies.into()));
    }

    /// Resolves when there is something to tell.
    pub(super) async fn changed(&mut self) {
        if self.statuses.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// What to tell the agent now.
    pub(super) fn news(&mut self) -> Option<Vec<PolicyStatus>> {
        let newest = self.statuses.borrow_and_update().clone()?;
        if self.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &newest)) {
            return None;
        }
        self.told = Some(Arc::clone(&newest));
        Some(newest.to_vec())
    }
}

impl Drop for Policies {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reconciler {
    context: Arc<Context>,
    cluster: String,
    actor: String,
    guard: Weak<AgentGuard>,
    lists: watch::Receiver<Option<Arc<[ClusterPolicy]>>>,
    said: watch::Sender<Option<Arc<[PolicyStatus]>>>,
}

/// A list that was judged.
struct Judged {
    listed: Arc<[ClusterPolicy]>,
    plan: Plan,
    /// Revision of the last write of any resource, when it was judged.
    policy_revision: u64,
    /// Why what should have been written was not.
    failure: Option<String>,
}

impl Reconciler {
    async fn run(mut self) {
        let mut versions = self.context.consensus.published.subscribe();
        let mut sessions = self.context.sessions.subscribe();
        let mut judged: Option<Judged> = None;
        let mut again = None;
        loop {
            versions.mark_unchanged();
            sessions.mark_unchanged();
            let listed = self.lists.borrow_and_update().clone();
            if let Some(listed) = listed {
                let revision = self.context.consensus.read(State::policy_revision);
                let is_due = judged.as_ref().is_none_or(|judged| {
                    !Arc::ptr_eq(&judged.listed, &listed)
                        || judged.policy_revision != revision
                        || (judged.failure.is_some() && again.is_none_or(|at| Instant::now() >= at))
                });
                if is_due {
                    // A session that was replaced has nothing to say any more.
                    let Some(guard) = self.guard.upgrade() else { return };
                    if guard.is_newest() {
                        drop(guard);
                        let next = self.reconcile(listed).await;
                        again = next.failure.is_some().then(|| Instant::now() + RETRY);
                        judged = Some(next);
                    }
                }
                if let Some(judged) = &judged
                    && !self.tell(judged).await
                {
                    return;
                }
            }
            tokio::select! {
                changed = self.lists.changed() => if changed.is_err() { return },
                changed = versions.changed() => if changed.is_err() { return },
                changed = sessions.changed() => if changed.is_err() { return },
                () = at(again) => {}
            }
            // Acknowledgements of a thousand gateways become one status instead of a thousand.
            sleep(GATHER).await;
        }
    }

    /// Brings the federation to what is listed.
    async fn reconcile(&self, listed: Arc<[ClusterPolicy]>) -> Judged {
        match self.write(&listed).await {
            Ok((plan, policy_revision, failure)) => Judged { listed, plan, policy_revision, failure },
            Err(status) => {
                tracing::debug!(cluster = self.cluster, reason = status.message(), "policies not written yet");
                let (plan, policy_revision) = self.plan(&self.context.consensus.state(), &listed).await;
                Judged { listed, plan, policy_revision, failure: Some(status.message().to_owned()) }
            }
        }
    }

    async fn write(&self, listed: &Arc<[ClusterPolicy]>) -> Result<(Plan, u64, Option<String>), Status> {
        let consensus = &self.context.consensus;
        consensus.barrier().await?;
        let (first, revision) = self.plan(&consensus.state(), listed).await;
        if first.changes_nothing() {
            return Ok((first, revision, None));
        }
        let made = Mutex::new((first, revision));
        let judge = |state: &State| {
            let (state, made) = (state.clone(), &made);
            async move {
                let (plan, revision) = self.plan(&state, listed).await;
                let upserts = plan.upserts.iter().map(|resource| ResourceWrite {
                    key: Some(convert::resource_key_of(resource.key())),
                    canonical: resource.to_json().into(),
                });
                let command = ApplyResources {
                    upserts: upserts.collect(),
                    deletes: plan.deletes.iter().cloned().map(convert::resource_key_of).collect(),
                    origin: self.cluster.clone(),
                    ..ApplyResources::default()
                };
                let is_empty = plan.changes_nothing();
                *made.lock().unwrap_or_else(PoisonError::into_inner) = (plan, revision);
                // Somebody else brought it about: nothing to write, and nothing wrong.
                Ok(if is_empty { Err(Vec::new()) } else { Ok(command) })
            }
        };
        let write = Write { consensus, actor: &self.actor, begun: Instant::now() };
        let ApplyResponse { problems, conflicts, changes, revision: written, .. } =
            write.commit(String::new(), Vec::new(), judge).await?.into_inner();
        let (plan, planned) = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        if problems.is_empty() && conflicts.is_empty() {
            if !changes.is_empty() {
                tracing::info!(cluster = self.cluster, revision = written, changes = changes.len(), "policies written");
            }
            // Its own write is no news: what it was judged by is what it made.
            let policy_revision = if changes.is_empty() { planned } else { written };
            return Ok((plan, policy_revision, None));
        }
        tracing::warn!(cluster = self.cluster, problems = problems.join("; "), "policies not written");
        Ok((plan, planned, Some(problems.join("\n"))))
    }

    /// Judged apart from the runtime's threads: a list is as long and as hostile as a cluster's users like.
    async fn plan(&self, state: &State, listed: &Arc<[ClusterPolicy]>) -> (Plan, u64) {
        let revision = state.policy_revision();
        let resources = self.context.consensus.resources(state);
        let origins = origins(state);
        let (listed, cluster) = (Arc::clone(listed), self.cluster.clone());
        let judge =
            move || plan(&Situation { cluster: &cluster, listed: &listed, resources: &resources, origins: &origins });
        (tokio::task::spawn_blocking(judge).await.unwrap_or_default(), revision)
    }

    /// Says what became of each; false: the session is over.
    async fn tell(&self, judged: &Judged) -> bool {
        let context = Arc::clone(&self.context);
        let (listed, verdicts) = (Arc::clone(&judged.listed), judged.plan.verdicts.clone());
        let (failure, cluster) = (judged.failure.clone(), self.cluster.clone());
        let made =
            tokio::task::spawn_blocking(move || statuses(&context, &cluster, &listed, &verdicts, failure.as_deref()));
        let Ok(statuses) = made.await else { return true };
        let is_news = self.said.borrow().as_deref() != Some(&statuses[..]);
        if is_news {
            let Some(guard) = self.guard.upgrade() else { return false };
            guard.policies(statuses.clone());
            self.said.send_replace(Some(statuses.into()));
        }
        true
    }
}

/// The resources that were written in clusters, with which.
fn origins(state: &State) -> BTreeMap<ResourceKey, String> {
    let of_clusters = state.resources().iter().filter(|(_, stored)| !stored.origin.is_empty());
    of_clusters.filter_map(|(key, stored)| Some((policy::known(key)?, stored.origin.clone()))).collect()
}

/// Reason of what somebody else has written.
pub(in crate::api) const CONFLICT: &str = plan::Reason::Conflict.word();
/// A status is there within a second, and no more than a few times in one.
const GATHER: Duration = Duration::from_millis(150);
/// Until what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(2);
