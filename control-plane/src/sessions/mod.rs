//! Who is connected, to which member, and what it acknowledged: soft state, merged over all members.
//!
//! Each member owns the sessions it serves and streams them to the others ([`crate::api`], `Members.WatchSessions`).
//! For one gateway or agent the session that it began last counts, by its own count ([`SessionOrder`]): no clock of a member
//! is asked. Nothing here is replicated: after a failover gateways reconnect and acknowledge again.

mod acks;
mod asks;
pub(crate) mod door;
mod guard;
pub(crate) mod progress;
mod reviews;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use archipelago_model::delta::{Delta, Reader, Shared};
use archipelago_model::feature;
use archipelago_model::version::Version;
use archipelago_proto::v1::{
    AgentHello, AgentSession, GatewayHello, GatewaySession, Problem, SessionOrder, SessionUpdate,
};
use imbl::OrdMap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::acks::AckLog;
use self::progress::AckView;
use crate::{consensus::unix_ms, published::Published};

pub(crate) use self::asks::{ANSWER_BYTES_MAX, Ask, AskError, Asked, Told};
pub(crate) use self::guard::{AgentGuard, GatewayGuard};
pub(crate) use self::reviews::{Review, ReviewError};

/// All sessions this member knows of.
#[derive(Debug)]
pub(crate) struct Sessions {
    node_id: u64,
    published: Arc<Published>,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    gateways: Table<GatewaySession>,
    agents: Table<AgentSession>,
    gateway_handles: BTreeMap<String, GatewayHandle>,
    agent_handles: BTreeMap<String, AgentHandle>,
    remote: BTreeMap<u64, Remote>,
    acks: BTreeMap<String, AckLog>,
}

type Table<T> = OrdMap<String, Shared<T>>;

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
    reviews: mpsc::Sender<Review>,
}

#[derive(Debug, Default)]
struct Remote {
    gateways: Table<GatewaySession>,
    agents: Table<AgentSession>,
}

/// A gateway's session and the member that serves it.
#[derive(Debug, Clone)]
pub(crate) struct GatewayView {
    pub(crate) session: Shared<GatewaySession>,
    pub(crate) member: u64,
}

/// Where a reader of local sessions stands.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    gateways: Reader<String, Shared<GatewaySession>>,
    agents: Reader<String, Shared<AgentSession>>,
}

impl Sessions {
    pub(crate) fn new(node_id: u64, published: Arc<Published>) -> Self {
        Self { node_id, published, inner: Mutex::default(), changed: watch::Sender::new(0), next_id: AtomicU64::new(1) }
    }

    /// Moves with every change, local or remote.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Begins a gateway's session here. An older one of the same gateway on this member ends; if this is the older one, it
    /// begins replaced. `problems`: what of the hello was not admitted.
    pub(crate) fn open_gateway(self: &Arc<Self>, hello: GatewayHello, problems: Vec<Problem>) -> GatewayGuard {
        let key = gateway_key(&hello.cluster, &hello.gateway);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let (asks, asked) = mpsc::channel(asks::QUEUED_MAX);
        let session = GatewaySession {
            cluster: hello.cluster.clone(),
            gateway: hello.gateway.clone(),
            hello: Some(hello),
            last_seen_unix_ms: unix_ms(),
            problems,
            ..GatewaySession::default()
        };
        {
            let mut inner = self.lock();
            let newer = inner.gateways.get(&key).is_some_and(|other| order_of(other) > order_of(&session));
            if newer {
                replaced.cancel();
            } else {
                let handle = GatewayHandle { id, replaced: replaced.clone(), asks };
                if let Some(old) = inner.gateway_handles.insert(key.clone(), handle) {
                    old.replaced.cancel();
                }
                inner.gateways.insert(key.clone(), Shared::new(session));
            }
        }
        self.notify();
        GatewayGuard::new(Arc::clone(self), key, id, replaced, asked)
    }

    /// Begins the session of a cluster's agent here, as [`Self::open_gateway`].
    pub(crate) fn open_agent(self: &Arc<Self>, hello: &AgentHello) -> AgentGuard {
        let cluster = hello.cluster.clone();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let (reviews, asked) = mpsc::channel(reviews::QUEUED_MAX);
        let session = AgentSession {
            cluster: cluster.clone(),
            last_seen_unix_ms: unix_ms(),
            order: hello.order,
            features: door::admit_features(&hello.features),
            ..AgentSession::default()
        };
        {
            let mut inner = self.lock();
            let newer = inner.agents.get(&cluster).is_some_and(|other| agent_order(other) > agent_order(&session));
            if newer {
                replaced.cancel();
            } else {
                let handle = AgentHandle { id, replaced: replaced.clone(), reviews };
                if let Some(old) = inner.agent_handles.insert(cluster.clone(), handle) {
                    old.replaced.cancel();
                }
                inner.agents.insert(cluster.clone(), Shared::new(session));
            }
        }
        self.notify();
        AgentGuard::new(Arc::clone(self), cluster, id, replaced, asked)
    }

    /// Local sessions that changed since `cursor`, as one message to another member; `None`: it knows all of them.
    pub(crate) fn local_since(&self, cursor: &mut Cursor) -> Option<SessionUpdate> {
        let (gateways, agents) = {
            let inner = self.lock();
            (inner.gateways.clone(), inner.agents.clone())
        };
        // Both readers begin at the same moment, so either both differences are full or none is.
        let (gateways, agents) = (cursor.gateways.next(&gateways), cursor.agents.next(&agents));
        if gateways.is_none() && agents.is_none() {
            return None;
        }
        let full = gateways.as_ref().is_some_and(|delta| delta.full);
        let (gateways, gateway_removals) = on_wire(gateways);
        let (agents, agent_removals) = on_wire(agents);
        Some(SessionUpdate { full, gateways, agents, gateway_removals, agent_removals })
    }

    /// Takes in what another member serves.
    pub(crate) fn merge(&self, member: u64, update: SessionUpdate) {
        let SessionUpdate { full, gateways, agents, gateway_removals, agent_removals } = update;
        {
            let mut inner = self.lock();
            for session in &gateways {
                if let Some(acked) = session.acked {
                    let micros = (session.ack_micros > 0).then_some(session.ack_micros);
                    inner.log_ack(&gateway_key(&session.cluster, &session.gateway), acked.into(), micros);
                }
            }
            let remote = inner.remote.entry(member).or_default();
            let keyed =
                |session: GatewaySession| (gateway_key(&session.cluster, &session.gateway), Shared::new(session));
            let upserts = gateways.into_iter().map(keyed).collect();
            Delta { full, upserts, removals: gateway_removals }.apply_to(&mut remote.gateways);
            let upserts = agents.into_iter().map(|session| (session.cluster.clone(), Shared::new(session))).collect();
            Delta { full, upserts, removals: agent_removals }.apply_to(&mut remote.agents);
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
    pub(crate) fn agents(&self) -> BTreeMap<String, Shared<AgentSession>> {
        let inner = self.lock();
        let mut merged: BTreeMap<String, Shared<AgentSession>> = BTreeMap::new();
        for (cluster, session) in inner.remote.values().flat_map(|remote| &remote.agents).chain(&inner.agents) {
            match merged.get(cluster) {
                Some(other) if agent_order(other) > agent_order(session) => {}
                _ => {
                    merged.insert(cluster.clone(), session.clone());
                }
            }
        }
        merged
    }

    /// Which start of a gateway's process the session is of that it has now.
    pub(crate) fn boot_of(&self, gateway: &str) -> Option<u64> {
        let inner = self.lock();
        let remote = inner.remote.values().filter_map(|remote| remote.gateways.get(gateway));
        remote.chain(inner.gateways.get(gateway)).map(|session| order_of(session).0).max()
    }

    /// Clusters of which anything is connected to any member, and the other members that are heard.
    pub(crate) fn heard(&self) -> (BTreeSet<String>, BTreeSet<u64>) {
        let inner = self.lock();
        let mut clusters = BTreeSet::new();
        let remote = inner.remote.values().map(|remote| (&remote.gateways, &remote.agents));
        for (gateways, agents) in remote.chain([(&inner.gateways, &inner.agents)]) {
            clusters.extend(agents.keys().cloned());
            for key in gateways.keys() {
                let cluster = key.split_once('/').map_or(key.as_str(), |(cluster, _)| cluster);
                if !clusters.contains(cluster) {
                    clusters.insert(cluster.to_owned());
                }
            }
        }
        (clusters, inner.remote.keys().copied().collect())
    }

    /// The gateways that this member serves, and whether each says what it sees.
    pub(crate) fn who_says_events(&self) -> Vec<(String, bool)> {
        let gateways = self.lock().gateways.clone();
        let says = |session: &GatewaySession| {
            session.hello.as_ref().is_some_and(|hello| hello.features.iter().any(|f| f == feature::SAYS_EVENTS))
        };
        gateways.iter().map(|(gateway, session)| (gateway.clone(), says(session))).collect()
    }

    /// The session of a cluster's agent that counts, and the member that serves it.
    pub(crate) fn agent(&self, cluster: &str) -> Option<(u64, Shared<AgentSession>)> {
        let inner = self.lock();
        let local = inner.agents.get(cluster).map(|session| (self.node_id, session.clone()));
        let remote =
            inner.remote.iter().filter_map(|(member, remote)| Some((*member, remote.agents.get(cluster)?.clone())));
        remote.chain(local).max_by_key(|(member, session)| (agent_order(session), *member))
    }

    /// Sessions served here: gateways, agents.
    pub(crate) fn local_counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.gateway_handles.len(), inner.agent_handles.len())
    }

    /// What each gateway did with `version`, for those that were ever seen.
    pub(crate) fn acks(&self, version: Version) -> BTreeMap<String, AckView> {
        let applied_at = self.published.applied_at(version.revision);
        let inner = self.lock();
        let connected = inner.merged_gateways(self.node_id);
        let mut views: BTreeMap<String, AckView> = BTreeMap::new();
        for (key, log) in &inner.acks {
            let acked = log.last();
            let micros = log.micros(version, applied_at);
            views.insert(key.clone(), AckView { acked, micros, ..AckView::default() });
        }
        for (key, view) in connected {
            let micros = views.get(&key).and_then(|seen| seen.micros);
            // A connected gateway counts by what this very session acknowledged: it may have restarted from older state.
            views.insert(key, AckView::of(&view.session, micros));
        }
        views
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
            match merged.get(key) {
                Some(other) if (order_of(&other.session), other.member) > (order_of(session), member) => {}
                _ => {
                    merged.insert(key.clone(), GatewayView { session: session.clone(), member });
                }
            }
        }
        merged
    }

    /// Whether the local session `id` of gateway `key` is the one that counts.
    fn is_newest_gateway(&self, node_id: u64, key: &str, id: u64) -> bool {
        let ours = self.gateway_handles.get(key).is_some_and(|handle| handle.id == id);
        let Some(session) = self.gateways.get(key).filter(|_| ours) else { return false };
        self.remote.iter().all(|(member, remote)| {
            remote.gateways.get(key).is_none_or(|other| (order_of(other), *member) < (order_of(session), node_id))
        })
    }

    /// The same for the agent of a cluster.
    fn is_newest_agent(&self, node_id: u64, cluster: &str, id: u64) -> bool {
        let ours = self.agent_handles.get(cluster).is_some_and(|handle| handle.id == id);
        let Some(session) = self.agents.get(cluster).filter(|_| ours) else { return false };
        self.remote.iter().all(|(member, remote)| {
            let older = |other: &Shared<AgentSession>| (agent_order(other), *member) < (agent_order(session), node_id);
            remote.agents.get(cluster).is_none_or(older)
        })
    }

    fn log_ack(&mut self, key: &str, version: Version, micros: Option<u64>) {
        if self.acks.len() >= ACK_LOGS_MAX && !self.acks.contains_key(key) {
            return;
        }
        self.acks.entry(key.to_owned()).or_default().push(version, micros);
    }
}

fn on_wire<T: Clone>(delta: Option<Delta<String, Shared<T>>>) -> (Vec<T>, Vec<String>) {
    delta.map_or_else(Default::default, |delta| {
        (delta.upserts.into_iter().map(|(_, session)| T::clone(&session)).collect(), delta.removals)
    })
}

/// Place of a session among those of the same gateway.
fn order_of(session: &GatewaySession) -> (u64, u64) {
    place(session.hello.as_ref().and_then(|hello| hello.order))
}

fn agent_order(session: &AgentSession) -> (u64, u64) {
    place(session.order)
}

fn place(order: Option<SessionOrder>) -> (u64, u64) {
    order.map_or((0, 0), |order| (order.boot, order.session))
}

/// Name of a gateway in the federation.
pub(crate) fn gateway_key(cluster: &str, gateway: &str) -> String {
    format!("{cluster}/{gateway}")
}

const ACK_LOGS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(cluster: &str, gateway: &str, order: (u64, u64)) -> GatewayHello {
        let order = Some(SessionOrder { boot: order.0, session: order.1 });
        GatewayHello { cluster: cluster.into(), gateway: gateway.into(), order, ..GatewayHello::default() }
    }

    fn version(revision: u64) -> Version {
        Version { revision, ..Version::default() }
    }

    fn sessions(node_id: u64) -> Arc<Sessions> {
        Arc::new(Sessions::new(node_id, Arc::new(Published::new())))
    }

    #[test]
    fn the_newest_session_of_a_gateway_counts_and_ends_the_older() {
        let here = sessions(1);
        let first = here.open_gateway(hello("paris", "gw-1", (5, 1)), vec![]);
        let second = here.open_gateway(hello("paris", "gw-1", (5, 2)), vec![]);
        assert!(first.replaced().is_cancelled() && !second.replaced().is_cancelled());
        first.acked(version(7), vec![]);
        assert_eq!(here.gateways()["paris/gw-1"].session.acked, None, "a replaced session changes nothing");
        drop(first);
        assert_eq!(here.gateways().len(), 1, "dropping the old session leaves the new one");
        // A stream that was begun earlier and arrives later.
        let late = here.open_gateway(hello("paris", "gw-1", (4, 9)), vec![]);
        assert!(late.replaced().is_cancelled() && !late.is_newest() && second.is_newest());
        drop(late);
        drop(second);
        assert!(here.gateways().is_empty());
    }

    #[test]
    fn members_learn_of_each_others_sessions_by_differences() {
        let (here, there) = (sessions(1), sessions(2));
        let guard = there.open_gateway(hello("tokyo", "gw-1", (1, 1)), vec![]);
        let agent = there.open_agent(&AgentHello { cluster: "tokyo".into(), ..AgentHello::default() });
        let mut cursor = Cursor::default();
        let first = there.local_since(&mut cursor).unwrap();
        assert!(first.full);
        here.merge(2, first);
        assert_eq!(there.local_since(&mut cursor), None);
        guard.acked(version(3), vec![]);
        let second = there.local_since(&mut cursor).unwrap();
        assert_eq!((second.full, second.gateways.len(), second.agents.len()), (false, 1, 0));
        here.merge(2, second);
        let view = &here.gateways()["tokyo/gw-1"];
        assert_eq!((view.session.acked, view.member), (Some(version(3).into()), 2));
        assert!(here.agents().contains_key("tokyo"));
        drop(agent);
        drop(guard);
        here.merge(2, there.local_since(&mut cursor).unwrap());
        assert!(here.gateways().is_empty() && here.agents().is_empty());
        assert_eq!(here.acks(version(3))["tokyo/gw-1"].acked, version(3), "that it applied revision 3 stays true");
    }

    #[test]
    fn the_last_departure_is_told_too() {
        let (here, there) = (sessions(1), sessions(2));
        let mut cursor = Cursor::default();
        assert!(there.local_since(&mut cursor).unwrap().full, "also when there is nobody");
        let guard = there.open_gateway(hello("tokyo", "gw-1", (1, 1)), vec![]);
        here.merge(2, there.local_since(&mut cursor).unwrap());
        drop(guard);
        let update = there.local_since(&mut cursor).unwrap();
        assert!(!update.full && update.gateway_removals == ["tokyo/gw-1"], "{update:?}");
        here.merge(2, update);
        assert!(here.gateways().is_empty());
    }

    /// Whatever the clocks of the members say: the gateway counts its sessions itself.
    #[test]
    fn a_gateway_that_moved_counts_where_it_is_now() {
        for (old_order, new_order) in [((7, 1), (7, 2)), ((7, 9), (8, 1))] {
            let (here, there) = (sessions(1), sessions(2));
            let mut cursor = Cursor::default();
            let old = there.open_gateway(hello("paris", "gw-1", old_order), vec![]);
            old.acked(version(9), vec![]);
            here.merge(2, there.local_since(&mut cursor).unwrap());
            let new = here.open_gateway(hello("paris", "gw-1", new_order), vec![]);
            assert!(new.is_newest());
            let view = here.acks(version(9)).remove("paris/gw-1").unwrap();
            let (connected, acked) = (view.connected, view.acked);
            assert_eq!((connected, acked), (true, version(0)), "the new session has acknowledged nothing yet");
            here.forget_member(2);
            assert_eq!(here.gateways()["paris/gw-1"].member, 1);
            // The agent likewise.
            let agent = |order: (u64, u64)| AgentHello {
                cluster: "paris".into(),
                order: Some(SessionOrder { boot: order.0, session: order.1 }),
                ..AgentHello::default()
            };
            let old = there.open_agent(&agent(old_order));
            here.merge(2, there.local_since(&mut cursor).unwrap());
            let new = here.open_agent(&agent(new_order));
            there.merge(1, here.local_since(&mut Cursor::default()).unwrap());
            assert!(new.is_newest() && !old.is_newest());
        }
    }
}
