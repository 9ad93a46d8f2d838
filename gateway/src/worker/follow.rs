//! Following configuration and peers: the one place where a worker's picture changes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_identity::revocation::Revocations;
use archipelago_tunnel::{News, Peer, PeerName};
use imbl::ordmap::DiffItem;

use super::captures::CaptureListeners;
use super::view::{Followed, View};
use super::{Shared, Worker, command, health, listen};
use crate::authorize;
use crate::config::Snapshot;

/// Follows for ever.
pub(super) async fn follow(worker: Rc<Worker>, shared: Shared) {
    let mut generations = shared.published.subscribe();
    let mut changes = worker.tunnels.changes();
    let mut listeners =
        listen::TcpListeners::new(Arc::clone(&shared.tcp_ports), shared.drain.clone(), shared.turn.clone());
    let (ports, from) = shared.captures;
    let mut captures = CaptureListeners::new(ports, from, shared.drain.clone(), shared.turn.clone());
    let mut listening = false;
    loop {
        let generation = *generations.borrow_and_update();
        let seen = *changes.borrow_and_update();
        let snapshot = shared.published.load();
        let before = worker.view();
        worker.refresh(&snapshot);
        worker.tunnels_seen.set(seen);
        if !listening || !has_same_ports(&before.snapshot, &snapshot) {
            listening = listeners.follow(&worker, &snapshot) & captures.follow(&worker, &snapshot);
        }
        drop(before);
        worker.generation_seen.set(generation);
        shared.published.worker_reached(worker.index, generation);
        shared.tunnels_changed.notify_one();
        tokio::select! {
            moved = generations.changed() => if moved.is_err() { return },
            () = tokio::time::sleep(LISTEN_RETRY), if !listening => {}
            moved = changes.changed() => {
                if moved.is_err() {
                    return;
                }
                // Changes come in bursts: a peer's death touches all its services.
                tokio::time::sleep(BURST).await;
            }
        }
    }
}

/// Whether clients find services at the same ports.
fn has_same_ports(before: &Snapshot, now: &Snapshot) -> bool {
    let same_captures = match (&before.captures, &now.captures) {
        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
        (before, now) => before.is_none() && now.is_none(),
    };
    same_captures && before.tcp().ptr_eq(now.tcp())
}

impl Worker {
    /// Joins `snapshot` with what is known of peers and endpoints, and serves with it from now on.
    fn refresh(&self, snapshot: &Arc<Snapshot>) {
        let (previous, now) = (self.view(), Instant::now());
        if !Arc::ptr_eq(&previous.snapshot.membership, &snapshot.membership) {
            // Unreadable: what was in force stays, and the gate lets nobody in.
            if let Some(revocations) = &snapshot.membership.revocations {
                self.credential.revocations().replace(Revocations::clone(revocations));
            }
            self.tunnels.set_gate(authorize::gate(Arc::clone(&snapshot.membership)));
            // They were admitted by the one before.
            self.callers.borrow_mut().clear();
        }
        self.follow_peers(&previous.snapshot, snapshot);
        let news = self.tunnels.take_news();
        self.count_verdicts(&news);
        let (peers, mut random) = (|| self.tunnels.peers(), || self.random());
        let followed = self.live.borrow_mut().follow(&previous, snapshot, news, peers, now, &mut random);
        let Followed { view, rebuilt, before, .. } = followed;
        let view = Rc::new(view);
        self.view.replace(Rc::clone(&view));
        self.view_changed.notify_waiters();
        let configs = rebuilt.iter().filter_map(|index| snapshot.service(*index)).chain(&before);
        self.streams.judge(configs.map(|config| &*config.service), snapshot, self.limits.tcp_grace, now);
        for config in before.iter().filter(|config| snapshot.service_by_key(&config.key).is_none()) {
            self.say_gone(&config.key);
        }
        match Arc::ptr_eq(&previous.snapshot.clusters, &snapshot.clusters) {
            true => self.statements.mark(self.live.borrow_mut().take_turned()),
            // Which of them are drained is said of each.
            false => self.statements.mark_all(snapshot),
        }
        let gone = before.iter().flat_map(|config| health::names(config)).map(|name| (name.to_string(), Vec::new()));
        self.tell(gone.collect(), &view, &rebuilt, now);
    }

    /// Keeps tunnels to the gateways that the snapshot names.
    fn follow_peers(&self, before: &Snapshot, now: &Snapshot) {
        let (mut upserts, mut removals) = (Vec::new(), Vec::new());
        let name = |of: &Snapshot, peer: &crate::config::snapshot::Peer| PeerName {
            cluster: of.cluster_name(peer.cluster).to_owned(),
            gateway: peer.gateway.clone(),
        };
        for item in before.peers.diff(&now.peers) {
            match item {
                DiffItem::Add(_, peer) | DiffItem::Update { new: (_, peer), .. } => {
                    let PeerName { cluster, gateway } = name(now, peer);
                    let (spiffe_id, addresses) = (peer.spiffe_id.clone(), peer.addresses.clone());
                    upserts.push(Peer { cluster, gateway, spiffe_id, addresses });
                }
                DiffItem::Remove(_, peer) => removals.push(name(before, peer)),
            }
        }
        if !upserts.is_empty() || !removals.is_empty() {
            self.tunnels.change_peers(upserts, &removals);
        }
    }

    /// Tells the peers how many endpoints of these services are ready here, beside what they are to be told anyway.
    fn tell(
        &self,
        mut told: BTreeMap<String, Vec<(String, u32)>>,
        view: &View,
        services: &BTreeSet<usize>,
        now: Instant,
    ) {
        told.extend(services.iter().flat_map(|index| view.health(*index, now)));
        // Peers wait to hear what there is: "nothing" is said, too, but not by who has no configuration and does not know.
        let is_first = view.snapshot.own_cluster.is_some() && !self.has_told.get();
        if !told.is_empty() || is_first {
            self.has_told.set(true);
            self.tunnels.change_health(told);
        }
    }

    fn count_verdicts(&self, news: &News) {
        let mut known = self.peer_states.borrow_mut();
        if news.chosen {
            let peers = self.tunnels.peers();
            known.retain(|name, _| {
                let stays = peers.iter().any(|peer| peer.name() == name);
                if !stays {
                    self.journal.peer(self.index, name, None);
                }
                stays
            });
            for peer in peers.iter().filter(|peer| !known.contains_key(peer.name())).collect::<Vec<_>>() {
                known.insert(peer.name().clone(), peer.state());
                self.journal.peer(self.index, peer.name(), Some(peer.state()));
                self.metrics.verdict(command::state_name(peer.state()));
            }
        }
        for name in news.peers.iter().filter(|(_, news)| news.state).map(|(name, _)| name) {
            let (Some(before), Some(peer)) = (known.get_mut(name), self.tunnels.peer(name)) else { continue };
            let state = peer.state();
            if std::mem::replace(before, state) != state {
                self.journal.peer(self.index, name, Some(state));
                self.metrics.verdict(command::state_name(state));
            }
        }
    }

    /// Everything that only needs doing now and then.
    pub(super) fn housekeeping(&self) {
        let (view, now) = (self.view(), Instant::now());
        self.metrics.flush();
        self.metrics.tunnels(&self.tunnel_stats.replace(self.tunnels.stats()), &self.tunnel_stats.borrow());
        self.streams.judge_new(&view.snapshot, self.limits.tcp_grace, now);
        self.streams.reset_due(now);
        let changed = self.live.borrow_mut().keep_house(&view, now);
        self.metrics.unreachable_endpoints(self.live.borrow().unreachable());
        let turned = self.live.borrow_mut().take_turned();
        self.statements.mark(turned.into_iter().chain(changed.iter().copied()));
        self.tell(BTreeMap::new(), &view, &changed, now);
    }
}

/// Whoever has the port of a TCP service may let go of it.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
const BURST: Duration = Duration::from_millis(1);
