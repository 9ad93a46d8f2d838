//! Who is connected, to which member, and what it acknowledged: soft state, merged over all members.
//!
//! Each member owns the sessions it serves and streams them to the others ([`crate::api`], `Members.WatchSessions`).
//! For one gateway the session that began last counts. Nothing here is replicated: after a failover gateways reconnect
//! and acknowledge again.

mod journal;
pub(crate) mod progress;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use archipelago_proto::v1::{
    AgentSession, ExplainQuery, ExplainResponse, GatewayHello, GatewaySession, ServiceReport, SessionUpdate,
    TunnelStatus,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::journal::Journal;
use self::progress::AckView;
use crate::{consensus::unix_ms, published::Published};

/// All sessions this member knows of.
#[derive(Debug)]
pub(crate) struct Sessions {
    node_id: u64,
    published: Arc<Published>,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    next_id: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    gateways: Journal<GatewaySession>,
    agents: Journal<AgentSession>,
    gateway_handles: BTreeMap<String, GatewayHandle>,
    agent_handles: BTreeMap<String, AgentHandle>,
    remote: BTreeMap<u64, Remote>,
    acks: BTreeMap<String, AckLog>,
}

/// How the rest of this process reaches a stream that it serves.
#[derive(Debug)]
struct GatewayHandle {
    id: u64,
    replaced: CancellationToken,
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
struct AgentHandle {
    id: u64,
    replaced: CancellationToken,
}

#[derive(Debug, Default)]
struct Remote {
    gateways: BTreeMap<String, GatewaySession>,
    agents: BTreeMap<String, AgentSession>,
}

/// A question to a connected gateway.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) query: ExplainQuery,
    pub(crate) reply: oneshot::Sender<ExplainResponse>,
}

/// A gateway's session and the member that serves it.
#[derive(Debug, Clone)]
pub(crate) struct GatewayView {
    pub(crate) session: GatewaySession,
    pub(crate) member: u64,
}

/// Where a reader of local sessions stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    gateways: u64,
    agents: u64,
}

impl Sessions {
    pub(crate) fn new(node_id: u64, published: Arc<Published>) -> Self {
        Self {
            node_id,
            published,
            inner: Mutex::new(Inner {
                gateways: Journal::new(),
                agents: Journal::new(),
                gateway_handles: BTreeMap::new(),
                agent_handles: BTreeMap::new(),
                remote: BTreeMap::new(),
                acks: BTreeMap::new(),
            }),
            changed: watch::Sender::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    /// Moves with every change, local or remote.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Begins a gateway's session here. An older one of the same gateway on this member ends.
    pub(crate) fn open_gateway(self: &Arc<Self>, hello: GatewayHello) -> GatewayGuard {
        let key = gateway_key(&hello.cluster, &hello.gateway);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let now = unix_ms();
        let session = GatewaySession {
            cluster: hello.cluster.clone(),
            gateway: hello.gateway.clone(),
            acked_revision: 0,
            rejected_revision: 0,
            rejected_error: String::new(),
            ack_micros: 0,
            // The versions are for this member's first delta only; others need not hear them.
            hello: Some(GatewayHello { versions: BTreeMap::new(), ..hello }),
            tunnels: Vec::new(),
            last_seen_unix_ms: now,
            started_unix_ms: now,
        };
        {
            let mut inner = self.lock();
            let handle = GatewayHandle { id, replaced: replaced.clone(), asks };
            if let Some(old) = inner.gateway_handles.insert(key.clone(), handle) {
                old.replaced.cancel();
            }
            inner.gateways.put(&key, session);
        }
        self.notify();
        GatewayGuard { sessions: Arc::clone(self), key, id, replaced, asked: Some(asked) }
    }

    /// Begins the session of a cluster's agent here.
    pub(crate) fn open_agent(self: &Arc<Self>, cluster: &str) -> AgentGuard {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let now = unix_ms();
        let session = AgentSession {
            cluster: cluster.to_owned(),
            services: Vec::new(),
            last_seen_unix_ms: now,
            started_unix_ms: now,
        };
        {
            let mut inner = self.lock();
            let handle = AgentHandle { id, replaced: replaced.clone() };
            if let Some(old) = inner.agent_handles.insert(cluster.to_owned(), handle) {
                old.replaced.cancel();
            }
            inner.agents.put(cluster, session);
        }
        self.notify();
        AgentGuard { sessions: Arc::clone(self), cluster: cluster.to_owned(), id, replaced }
    }

    /// Local sessions that changed since `cursor`, as one message to another member.
    pub(crate) fn local_since(&self, cursor: &mut Cursor) -> SessionUpdate {
        let inner = self.lock();
        let gateways = inner.gateways.since(cursor.gateways);
        let agents = inner.agents.since(cursor.agents);
        let snapshot = gateways.complete || agents.complete;
        // A snapshot covers both tables: then both are sent whole.
        let (gateways, agents) =
            if snapshot { (inner.gateways.since(0), inner.agents.since(0)) } else { (gateways, agents) };
        *cursor = Cursor { gateways: gateways.version, agents: agents.version };
        SessionUpdate {
            snapshot,
            gateways: gateways.rows,
            agents: agents.rows,
            gateways_gone: gateways.gone,
            agents_gone: agents.gone,
        }
    }

    /// Takes in what another member serves.
    pub(crate) fn merge(&self, member: u64, update: SessionUpdate) {
        {
            let mut inner = self.lock();
            for session in &update.gateways {
                let key = gateway_key(&session.cluster, &session.gateway);
                if session.acked_revision > 0 {
                    let micros = (session.ack_micros > 0).then_some(session.ack_micros);
                    inner.log_ack(&key, session.acked_revision, micros);
                }
            }
            let remote = inner.remote.entry(member).or_default();
            if update.snapshot {
                *remote = Remote::default();
            }
            for gone in &update.gateways_gone {
                remote.gateways.remove(gone);
            }
            for gone in &update.agents_gone {
                remote.agents.remove(gone);
            }
            for session in update.gateways {
                remote.gateways.insert(gateway_key(&session.cluster, &session.gateway), session);
            }
            for session in update.agents {
                remote.agents.insert(session.cluster.clone(), session);
            }
        }
        self.notify();
    }

    /// Forgets what a member served that cannot be reached any more; its gateways reconnect elsewhere.
    pub(crate) fn forget_member(&self, member: u64) {
        let known = self.lock().remote.remove(&member).is_some();
        if known {
            self.notify();
        }
    }

    /// Connected gateways of the federation, by "cluster/gateway".
    pub(crate) fn gateways(&self) -> BTreeMap<String, GatewayView> {
        self.lock().merged_gateways(self.node_id)
    }

    /// Connected agents, by cluster.
    pub(crate) fn agents(&self) -> BTreeMap<String, AgentSession> {
        let inner = self.lock();
        let mut merged: BTreeMap<String, AgentSession> = BTreeMap::new();
        for (cluster, session) in inner.remote.values().flat_map(|remote| &remote.agents).chain(inner.agents.iter()) {
            match merged.get(cluster) {
                Some(other) if other.started_unix_ms > session.started_unix_ms => {}
                _ => {
                    merged.insert(cluster.clone(), session.clone());
                }
            }
        }
        merged
    }

    /// Sessions served here: gateways, agents.
    pub(crate) fn local_counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.gateway_handles.len(), inner.agent_handles.len())
    }

    /// What each gateway did with `revision`, for those that were ever seen.
    pub(crate) fn acks(&self, revision: u64) -> BTreeMap<String, AckView> {
        let applied_at = self.published.applied_at(revision);
        let inner = self.lock();
        let connected = inner.merged_gateways(self.node_id);
        let mut views: BTreeMap<String, AckView> = BTreeMap::new();
        for (key, log) in &inner.acks {
            let acked = log.entries.back().map_or(0, |ack| ack.revision);
            views.insert(
                key.clone(),
                AckView { connected: false, acked, micros: log.micros(revision, applied_at), rejected: None },
            );
        }
        for (key, view) in connected {
            let session = view.session;
            let rejected = (session.rejected_revision > session.acked_revision)
                .then_some((session.rejected_revision, session.rejected_error));
            let micros = views.get(&key).and_then(|seen| seen.micros);
            // A connected gateway counts by what this very session acknowledged: it may have restarted from older state.
            views.insert(key, AckView { connected: true, acked: session.acked_revision, micros, rejected });
        }
        views
    }

    /// Asks a gateway that is connected to this member.
    pub(crate) async fn ask(&self, key: &str, query: ExplainQuery) -> Result<ExplainResponse, AskError> {
        let asks = self.lock().gateway_handles.get(key).map(|handle| handle.asks.clone());
        let asks = asks.ok_or(AskError::NotConnected)?;
        let (reply, answer) = oneshot::channel();
        asks.try_send(Ask { query, reply }).map_err(|_| AskError::Busy)?;
        match tokio::time::timeout(ASK_TIMEOUT, answer).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(AskError::NotConnected),
            Err(_) => Err(AskError::Silent),
        }
    }

    fn notify(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn merged_gateways(&self, node_id: u64) -> BTreeMap<String, GatewayView> {
        let mut merged: BTreeMap<String, GatewayView> = BTreeMap::new();
        let local = self.gateways.iter().map(|(key, session)| (node_id, key, session));
        let remote = self
            .remote
            .iter()
            .flat_map(|(member, remote)| remote.gateways.iter().map(move |(key, session)| (*member, key, session)));
        for (member, key, session) in local.chain(remote) {
            let order = (session.started_unix_ms, member);
            match merged.get(key) {
                Some(other) if (other.session.started_unix_ms, other.member) > order => {}
                _ => {
                    merged.insert(key.clone(), GatewayView { session: session.clone(), member });
                }
            }
        }
        merged
    }

    /// Whether the local session `id` of `key` is the one that counts.
    fn is_newest(&self, node_id: u64, key: &str, id: u64) -> bool {
        let ours = self.gateway_handles.get(key).is_some_and(|handle| handle.id == id);
        let Some(session) = self.gateways.get(key).filter(|_| ours) else { return false };
        let order = (session.started_unix_ms, node_id);
        self.remote.iter().all(|(member, remote)| {
            remote.gateways.get(key).is_none_or(|other| (other.started_unix_ms, *member) < order)
        })
    }

    fn log_ack(&mut self, key: &str, revision: u64, micros: Option<u64>) {
        if self.acks.len() >= ACK_LOGS_MAX && !self.acks.contains_key(key) {
            return;
        }
        self.acks.entry(key.to_owned()).or_default().push(Ack { revision, at: Instant::now(), micros });
    }
}

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
        self.sessions.lock().is_newest(self.sessions.node_id, &self.key, self.id)
    }

    /// Every worker of the gateway runs `revision`.
    pub(crate) fn acked(&self, revision: u64) {
        let elapsed = self.sessions.published.applied_at(revision).map(|at| at.elapsed());
        // At least 1: 0 stands for "not known" on the wire.
        let micros = elapsed.map(|elapsed| u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1));
        self.change(|session| {
            session.acked_revision = revision;
            session.ack_micros = micros.unwrap_or(0);
            if session.rejected_revision <= revision {
                session.rejected_revision = 0;
                session.rejected_error.clear();
            }
        });
        self.sessions.lock().log_ack(&self.key, revision, micros);
        self.sessions.notify();
    }

    /// The gateway refused `revision` and runs what it had.
    pub(crate) fn rejected(&self, revision: u64, error: String) {
        self.change(|session| {
            session.rejected_revision = revision;
            session.rejected_error = error;
        });
        self.sessions.notify();
    }

    /// What the gateway says of its tunnels.
    pub(crate) fn report(&self, tunnels: Vec<TunnelStatus>) {
        self.change(|session| session.tunnels = tunnels);
        self.sessions.notify();
    }

    fn change(&self, change: impl FnOnce(&mut GatewaySession)) {
        let mut inner = self.sessions.lock();
        if inner.gateway_handles.get(&self.key).is_none_or(|handle| handle.id != self.id) {
            return;
        }
        let Some(mut session) = inner.gateways.get(&self.key).cloned() else { return };
        session.last_seen_unix_ms = unix_ms();
        change(&mut session);
        inner.gateways.put(&self.key, session);
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
}

impl AgentGuard {
    /// Resolves when a newer session of the same cluster's agent began here.
    pub(crate) fn replaced(&self) -> CancellationToken {
        self.replaced.clone()
    }

    /// The complete list, counts included.
    pub(crate) fn report(&self, services: Vec<ServiceReport>) {
        {
            let mut inner = self.sessions.lock();
            if inner.agent_handles.get(&self.cluster).is_none_or(|handle| handle.id != self.id) {
                return;
            }
            let Some(mut session) = inner.agents.get(&self.cluster).cloned() else { return };
            session.last_seen_unix_ms = unix_ms();
            session.services = services;
            inner.agents.put(&self.cluster, session);
        }
        self.sessions.notify();
    }

    /// Whether no other member serves a later session of this cluster's agent.
    pub(crate) fn is_newest(&self) -> bool {
        let inner = self.sessions.lock();
        let ours = inner.agent_handles.get(&self.cluster).is_some_and(|handle| handle.id == self.id);
        let Some(session) = inner.agents.get(&self.cluster).filter(|_| ours) else { return false };
        inner.remote.values().all(|remote| {
            remote.agents.get(&self.cluster).is_none_or(|other| other.started_unix_ms <= session.started_unix_ms)
        })
    }
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

/// Acknowledgements of one gateway, as they were seen here, ascending by revision.
#[derive(Debug, Default)]
struct AckLog {
    entries: VecDeque<Ack>,
}

#[derive(Debug, Clone, Copy)]
struct Ack {
    revision: u64,
    at: Instant,
    /// From the commit of exactly this revision, by the member that served the gateway.
    micros: Option<u64>,
}

impl AckLog {
    fn push(&mut self, ack: Ack) {
        if self.entries.back().is_some_and(|last| last.revision >= ack.revision) {
            return;
        }
        if self.entries.len() >= ACKS_PER_GATEWAY {
            self.entries.pop_front();
        }
        self.entries.push_back(ack);
    }

    /// Microseconds from the commit of `revision` to the first acknowledgement that covers it.
    fn micros(&self, revision: u64, applied_at: Option<Instant>) -> Option<u64> {
        let first = self.entries.iter().find(|ack| ack.revision >= revision)?;
        if first.revision == revision && first.micros.is_some() {
            return first.micros;
        }
        let elapsed = first.at.saturating_duration_since(applied_at?);
        u64::try_from(elapsed.as_micros()).ok()
    }
}

/// Why a connected gateway did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the gateway is not connected to this member")]
    NotConnected,
    #[error("too many questions wait for the gateway")]
    Busy,
    #[error("the gateway did not answer in time")]
    Silent,
}

/// Name of a gateway in the federation.
pub(crate) fn gateway_key(cluster: &str, gateway: &str) -> String {
    format!("{cluster}/{gateway}")
}

const ASKS_MAX: usize = 16;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Revisions between a commit and the `WaitApplied` that asks for it; beyond this only the time is less exact.
const ACKS_PER_GATEWAY: usize = 64;
const ACK_LOGS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(cluster: &str, gateway: &str) -> GatewayHello {
        GatewayHello { cluster: cluster.into(), gateway: gateway.into(), ..Default::default() }
    }

    fn sessions(node_id: u64) -> Arc<Sessions> {
        Arc::new(Sessions::new(node_id, Arc::new(Published::new())))
    }

    #[test]
    fn the_newest_session_of_a_gateway_counts_and_ends_the_older() {
        let here = sessions(1);
        let first = here.open_gateway(hello("paris", "gw-1"));
        let second = here.open_gateway(hello("paris", "gw-1"));
        assert!(first.replaced().is_cancelled() && !second.replaced().is_cancelled());
        first.acked(7);
        assert_eq!(here.gateways()["paris/gw-1"].session.acked_revision, 0, "a replaced session changes nothing");
        drop(first);
        assert_eq!(here.gateways().len(), 1, "dropping the old session leaves the new one");
        drop(second);
        assert!(here.gateways().is_empty());
    }

    #[test]
    fn members_learn_of_each_others_sessions_by_differences() {
        let (here, there) = (sessions(1), sessions(2));
        let guard = there.open_gateway(hello("tokyo", "gw-1"));
        let agent = there.open_agent("tokyo");
        let mut cursor = Cursor::default();
        let first = there.local_since(&mut cursor);
        assert!(first.snapshot);
        here.merge(2, first);
        guard.acked(3);
        let second = there.local_since(&mut cursor);
        assert_eq!((second.snapshot, second.gateways.len(), second.agents.len()), (false, 1, 0));
        here.merge(2, second);
        let view = &here.gateways()["tokyo/gw-1"];
        assert_eq!((view.session.acked_revision, view.member), (3, 2));
        assert!(here.agents().contains_key("tokyo"));
        drop(agent);
        drop(guard);
        here.merge(2, there.local_since(&mut cursor));
        assert!(here.gateways().is_empty() && here.agents().is_empty());
        assert_eq!(here.acks(3)["tokyo/gw-1"].acked, 3, "that it applied revision 3 stays true");
    }

    #[test]
    fn the_last_departure_is_told_too() {
        let (here, there) = (sessions(1), sessions(2));
        let mut cursor = Cursor::default();
        assert!(there.local_since(&mut cursor).snapshot, "also when there is nobody");
        drop(there.open_gateway(hello("tokyo", "gw-1")));
        let update = there.local_since(&mut cursor);
        assert!(!update.snapshot && update.gateways_gone == ["tokyo/gw-1"], "{update:?}");
        here.merge(2, update);
        assert!(here.gateways().is_empty());
    }

    #[test]
    fn a_gateway_that_moved_counts_where_it_is_now() {
        let (here, there) = (sessions(1), sessions(2));
        let mut cursor = Cursor::default();
        let old = there.open_gateway(hello("paris", "gw-1"));
        old.acked(9);
        here.merge(2, there.local_since(&mut cursor));
        std::thread::sleep(Duration::from_millis(2)); // session order is by wall clock milliseconds
        let new = here.open_gateway(hello("paris", "gw-1"));
        assert!(new.is_newest());
        let view = here.acks(9).remove("paris/gw-1").unwrap();
        assert_eq!((view.connected, view.acked), (true, 0), "the new session has acknowledged nothing yet");
        here.forget_member(2);
        assert_eq!(here.gateways()["paris/gw-1"].member, 1);
    }
}
