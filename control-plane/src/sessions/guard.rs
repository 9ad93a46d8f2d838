//! What the driver of a stream may do to the session that it serves. A session that was replaced can do nothing any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use archipelago_model::delta::Shared;
use archipelago_model::version::Version;
use archipelago_proto::v1::{
    AgentSession, ConfigVersion, GatewaySession, PolicyStatus, Problem, ResourceRejection, ServiceReport, TunnelStatus,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Ask, Review, Sessions};
use crate::consensus::unix_ms;

/// A gateway's session on this member; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct GatewayGuard {
    sessions: Arc<Sessions>,
    key: String,
    id: u64,
    replaced: CancellationToken,
    asked: Option<mpsc::Receiver<Ask>>,
}

impl GatewayGuard {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        key: String,
        id: u64,
        replaced: CancellationToken,
        asked: mpsc::Receiver<Ask>,
    ) -> Self {
        Self { sessions, key, id, replaced, asked: Some(asked) }
    }

    /// Resolves when a newer session of the same gateway began here.
    pub(crate) fn replaced(&self) -> CancellationToken {
        self.replaced.clone()
    }

    /// Questions for this gateway; taken once.
    pub(crate) fn take_asks(&mut self) -> Option<mpsc::Receiver<Ask>> {
        self.asked.take()
    }

    /// Whether no other member serves a later session of this gateway.
    pub(crate) fn is_newest(&self) -> bool {
        self.sessions.lock().is_newest_gateway(self.sessions.node_id, &self.key, self.id)
    }

    /// Every worker of the gateway serves with `version`, but for `rejections`.
    pub(crate) fn acked(&self, version: Version, rejections: Vec<ResourceRejection>) {
        let elapsed = self.sessions.published.applied_at(version.revision).map(|at| at.elapsed());
        // At least 1: 0 stands for "not known" on the wire.
        let micros = elapsed.map(|elapsed| u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1));
        let changed = self.change(|session| {
            let epoch = |acked: ConfigVersion| acked.restore_epoch;
            let before = match session.acked.map(epoch) == Some(version.restore_epoch) {
                true => std::mem::take(&mut session.rejections),
                // Another history: its revisions say nothing about this one.
                false => Vec::new(),
            };
            let is_old = |rejection: &ResourceRejection| {
                let same =
                    |b: &&ResourceRejection| (&b.resource, &b.version) == (&rejection.resource, &rejection.version);
                before.iter().any(|b| same(&b))
            };
            for rejection in rejections.iter().filter(|rejection| !is_old(rejection)) {
                session.unusable_since.insert(rejection.resource.clone(), version.revision);
            }
            session.acked = Some(version.into());
            session.ack_micros = micros.unwrap_or(0);
            session.rejections = rejections;
            session.refused = None;
            session.held_back.clear();
            forget_usable(session);
        });
        if changed {
            self.sessions.lock().log_ack(&self.key, version, micros);
            self.sessions.notify();
        }
    }

    /// The gateway holds a newer version, and not every worker serves with it.
    pub(crate) fn late(&self, why: String) {
        self.change(|session| session.held_back = why);
        self.sessions.notify();
    }

    /// The gateway will not run `version`, and runs what it had.
    pub(crate) fn refused(&self, version: Version, why: String) {
        self.change(|session| {
            session.refused = Some(version.into());
            session.held_back = why;
        });
        self.sessions.notify();
    }

    /// Resources that are not sent as they are from `version` on, because the gateway lacks what they need.
    pub(crate) fn unsupported(&self, version: Version, resources: &[Problem]) {
        let changed = self.change(|session| {
            let changed = session.unsupported != resources;
            if changed {
                for problem in resources.iter().filter(|problem| !session.unsupported.contains(problem)) {
                    session.unusable_since.insert(problem.subject.clone(), version.revision);
                }
                session.unsupported = resources.to_vec();
                forget_usable(session);
            }
        });
        if changed {
            self.sessions.notify();
        }
    }

    /// What the gateway says of its tunnels, and what it cannot serve.
    pub(crate) fn report(&self, tunnels: Vec<TunnelStatus>, unserved: Vec<Problem>) {
        self.change(|session| {
            session.tunnels = tunnels;
            session.unserved = unserved;
        });
        self.sessions.notify();
    }

    /// What it said of itself and is not used: replaces the list.
    pub(crate) fn problems(&self, problems: Vec<Problem>) {
        self.change(|session| session.problems = problems);
        self.sessions.notify();
    }

    fn change<R>(&self, change: impl FnOnce(&mut GatewaySession) -> R) -> bool {
        let mut inner = self.sessions.lock();
        if inner.gateway_handles.get(&self.key).is_none_or(|handle| handle.id != self.id) {
            return false;
        }
        let Some(session) = inner.gateways.get(&self.key) else { return false };
        let mut session = GatewaySession::clone(session);
        session.last_seen_unix_ms = unix_ms();
        change(&mut session);
        inner.gateways.insert(self.key.clone(), Shared::new(session));
        true
    }
}

impl Drop for GatewayGuard {
    fn drop(&mut self) {
        {
            let mut inner = self.sessions.lock();
            if inner.gateway_handles.get(&self.key).is_none_or(|handle| handle.id != self.id) {
                return;
            }
            inner.gateway_handles.remove(&self.key);
            inner.gateways.remove(&self.key);
        }
        self.sessions.notify();
    }
}

/// The session of a cluster's agent on this member; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct AgentGuard {
    sessions: Arc<Sessions>,
    cluster: String,
    id: u64,
    replaced: CancellationToken,
    reviews: Option<mpsc::Receiver<Review>>,
}

impl AgentGuard {
    pub(super) const fn new(
        sessions: Arc<Sessions>,
        cluster: String,
        id: u64,
        replaced: CancellationToken,
        reviews: mpsc::Receiver<Review>,
    ) -> Self {
        Self { sessions, cluster, id, replaced, reviews: Some(reviews) }
    }

    /// Questions for this agent; taken once.
    pub(crate) fn take_reviews(&mut self) -> Option<mpsc::Receiver<Review>> {
        self.reviews.take()
    }

    /// Resolves when a newer session of the same cluster's agent began here.
    pub(crate) fn replaced(&self) -> CancellationToken {
        self.replaced.clone()
    }

    /// The complete list, counts included, and what of it was not admitted.
    pub(crate) fn report(&self, services: Vec<ServiceReport>, problems: Vec<Problem>) {
        self.change(|session| {
            session.services = services;
            session.problems = problems;
        });
    }

    /// What it said and is not used: replaces the list.
    pub(crate) fn problems(&self, problems: Vec<Problem>) {
        self.change(|session| session.problems = problems);
    }

    /// What became of the policies that its cluster's users wrote.
    pub(crate) fn policies(&self, statuses: Vec<PolicyStatus>) {
        self.change(|session| session.policies = statuses);
    }

    fn change(&self, change: impl FnOnce(&mut AgentSession)) {
        {
            let mut inner = self.sessions.lock();
            if inner.agent_handles.get(&self.cluster).is_none_or(|handle| handle.id != self.id) {
                return;
            }
            let Some(session) = inner.agents.get(&self.cluster) else { return };
            let mut session = AgentSession { last_seen_unix_ms: unix_ms(), ..AgentSession::clone(session) };
            change(&mut session);
            inner.agents.insert(self.cluster.clone(), Shared::new(session));
        }
        self.sessions.notify();
    }

    /// Whether no other member serves a later session of this cluster's agent.
    pub(crate) fn is_newest(&self) -> bool {
        self.sessions.lock().is_newest_agent(self.sessions.node_id, &self.cluster, self.id)
    }
}

/// Keeps an age for nothing but what cannot be used.
fn forget_usable(session: &mut GatewaySession) {
    let GatewaySession { rejections, unsupported, unusable_since, .. } = session;
    let names: BTreeSet<&str> = rejections.iter().map(|rejection| &*rejection.resource).collect();
    let lacking: BTreeSet<&str> = unsupported.iter().map(|problem| &*problem.subject).collect();
    unusable_since.retain(|name, _| names.contains(&**name) || lacking.contains(&**name));
}

impl Drop for AgentGuard {
    fn drop(&mut self) {
        {
            let mut inner = self.sessions.lock();
            if inner.agent_handles.get(&self.cluster).is_none_or(|handle| handle.id != self.id) {
                return;
            }
            inner.agent_handles.remove(&self.cluster);
            inner.agents.remove(&self.cluster);
        }
        self.sessions.notify();
    }
}
