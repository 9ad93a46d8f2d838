//! From one picture to the next, at the cost of what happened in between.
//!
//! Everything is kept by the indices of the snapshot. What may have changed comes from three sides: the snapshot says which services
//! are others than in the one before, the tunnels say which peers said what ([`News`]), and time moves failback states and ends
//! ejections. Services that none of them names are not looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use archipelago_proto::v1::Readiness;
use archipelago_tunnel::{HealthNews, News, PeerHandle, PeerName};

use super::{EndpointView, Memory, PeerFacts, PeerView, Remote, ServiceView, View, peer};
use crate::balance::hash::Sequence;
use crate::balance::reach::Reach;
use crate::config::snapshot::Change;
use crate::config::{Service, Snapshot};
use crate::exchange::upstream::Endpoint;
use crate::journal::Out;
use crate::ledger::Keeper;
use crate::ledger::keeper::Shelf;
use crate::ledger::minutes::MINUTE;
use crate::telemetry::Name;

/// What outlives a picture: connections, latencies, who serves what, and which failback states move.
#[derive(Debug)]
pub struct LiveState<P = PeerHandle> {
    endpoints: HashMap<SocketAddr, Known>,
    remotes: BTreeMap<PeerName, Serving<P>>,
    /// Indexed like `snapshot.clusters`.
    by_cluster: Vec<Vec<Rc<Remote<P>>>>,
    /// Services of which a cluster is on its way back.
    moving: BTreeSet<usize>,
    /// Room for the requests that are kept of all services.
    shelf: Rc<Shelf>,
    /// When what is too old of them is next looked for.
    expires: Option<Instant>,
    /// Services that may be served by others than before.
    turned: BTreeSet<usize>,
}

/// An endpoint and the services that it is of.
#[derive(Debug)]
struct Known {
    endpoint: Rc<Endpoint>,
    services: Vec<usize>,
    /// As last told to peers.
    sits_out: bool,
    /// As last told to operators.
    out: Option<Out>,
}

/// A peer and the services in whose pictures it stands.
#[derive(Debug)]
struct Serving<P> {
    remote: Rc<Remote<P>>,
    services: BTreeSet<usize>,
    /// As of the last look.
    is_reachable: bool,
}

/// The next picture, and what of it is another.
#[derive(Debug)]
pub struct Followed<P = PeerHandle> {
    /// To serve with.
    pub view: View<P>,
    /// Services that were made anew, by index.
    pub rebuilt: BTreeSet<usize>,
    /// Services of which only what a peer says is another.
    pub renewed: BTreeSet<usize>,
    /// The forms that services had which were made anew or are gone.
    pub before: Vec<Arc<Service>>,
}

impl<P> Default for LiveState<P> {
    fn default() -> Self {
        let (endpoints, remotes) = (HashMap::new(), BTreeMap::new());
        Self {
            endpoints,
            remotes,
            by_cluster: Vec::new(),
            moving: BTreeSet::new(),
            turned: BTreeSet::new(),
            shelf: Rc::default(),
            expires: None,
        }
    }
}

impl<P: PeerFacts> LiveState<P> {
    /// Joins a snapshot with what the peers report. `previous` is what the last call returned; `peers` are asked for when others are
    /// chosen.
    pub fn follow(
        &mut self,
        previous: &View<P>,
        snapshot: &Arc<Snapshot>,
        news: News,
        peers: impl FnOnce() -> Vec<P>,
        now: Instant,
        random: &mut impl FnMut() -> u64,
    ) -> Followed<P> {
        let mut dirty = BTreeSet::new();
        if news.chosen || !Arc::ptr_eq(&previous.snapshot.clusters, &snapshot.clusters) {
            self.meet(snapshot, peers(), &mut dirty, now);
        }
        let cluster_names = match Arc::ptr_eq(&previous.snapshot.clusters, &snapshot.clusters) {
            true => Rc::clone(&previous.cluster_names),
            false => snapshot.clusters.iter().map(|cluster| Name::from(&*cluster.name)).collect(),
        };
        let view = View { snapshot: Arc::clone(snapshot), services: previous.services.clone(), cluster_names };
        let mut next = Followed { view, rebuilt: BTreeSet::new(), renewed: BTreeSet::new(), before: Vec::new() };
        self.take_changes(previous, &mut next, now, random);
        let mut flipped = BTreeSet::new();
        for (name, news) in news.peers {
            let Some(serving) = self.remotes.get_mut(&name) else { continue };
            let Some(cluster) = cluster_of(snapshot, &serving.remote.cluster) else { continue };
            let is_reachable = serving.remote.is_reachable();
            if news.state {
                self.turned.extend(&serving.services);
            }
            if std::mem::replace(&mut serving.is_reachable, is_reachable) != is_reachable {
                flipped.extend(serving.services.iter().map(|index| (*index, cluster)));
            }
            named(snapshot, serving, cluster, news.health, &mut dirty);
        }
        for (index, cluster) in dirty {
            if !next.rebuilt.contains(&index) && self.renew(&mut next.view, index, cluster) {
                next.renewed.insert(index);
                flipped.insert((index, cluster));
            }
        }
        for (index, cluster) in flipped {
            self.step(&next.view, index, [cluster], now);
        }
        self.turned.extend(next.rebuilt.iter().chain(&next.renewed));
        next
    }

    /// Services that may be served by others than before, since the last time that this was asked.
    pub fn take_turned(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.turned)
    }

    /// Closes what is idle and moves on what only time moves; the services of which peers must be told something else.
    pub fn keep_house(&mut self, view: &View<P>, now: Instant) -> BTreeSet<usize> {
        for index in self.moving.clone() {
            self.step(view, index, 0..view.snapshot.clusters.len(), now);
        }
        if self.expires.is_none_or(|at| at <= now) {
            self.expires = Some(now + MINUTE);
            view.services.iter().flatten().for_each(|live| live.keeper().expire(now));
        }
        let mut changed = BTreeSet::new();
        for known in self.endpoints.values_mut() {
            known.endpoint.close_idle(now);
            let sits_out = known.endpoint.sits_out(now);
            if std::mem::replace(&mut known.sits_out, sits_out) != sits_out {
                changed.extend(known.services.iter().copied());
            }
            let out = known.endpoint.out(now);
            if std::mem::replace(&mut known.out, out) != out {
                self.turned.extend(&known.services);
            }
        }
        for (index, own) in changed.iter().zip(std::iter::repeat(view.snapshot.own_cluster)) {
            // Whether there is an endpoint that can be connected to.
            self.step(view, *index, own, now);
        }
        changed
    }

    /// Endpoints to which no connection comes about.
    pub fn unreachable(&self) -> usize {
        self.endpoints.values().filter(|known| known.endpoint.reach() != Reach::Reachable).count()
    }

    /// Takes the peers that there are; `dirty`: what of which service is to be looked at, by cluster.
    fn meet(&mut self, snapshot: &Snapshot, peers: Vec<P>, dirty: &mut BTreeSet<(usize, usize)>, now: Instant) {
        let mut before = std::mem::take(&mut self.remotes);
        self.by_cluster = vec![Vec::new(); snapshot.clusters.len()];
        for handle in peers {
            let Some(cluster) = cluster_of(snapshot, &handle.name().cluster) else { continue };
            let name = handle.name().clone();
            let known = before.remove(&name);
            let serving = match known {
                Some(known) if known.remote.handle.is_same(&handle) => known,
                known => {
                    let remote = Rc::new(Remote::new(handle, known.as_ref().map(|known| &*known.remote), now));
                    let services = known.map(|known| known.services).unwrap_or_default();
                    let serving = Serving { is_reachable: remote.is_reachable(), remote, services };
                    named(snapshot, &serving, cluster, HealthNews::Everything, dirty);
                    serving
                }
            };
            if let Some(list) = self.by_cluster.get_mut(cluster) {
                list.push(Rc::clone(&serving.remote));
            }
            self.remotes.insert(name, serving);
        }
        for gone in before.into_values() {
            let cluster = cluster_of(snapshot, &gone.remote.cluster);
            dirty.extend(
                cluster.into_iter().flat_map(|cluster| gone.services.iter().map(move |index| (*index, cluster))),
            );
        }
    }

    /// Makes the services anew that the snapshot has in another form.
    fn take_changes(
        &mut self,
        previous: &View<P>,
        next: &mut Followed<P>,
        now: Instant,
        random: &mut impl FnMut() -> u64,
    ) {
        let snapshot = Arc::clone(&next.view.snapshot);
        let changes: Vec<Change<'_>> = snapshot.changes(&previous.snapshot).collect();
        // First all that goes, since its index may be another's now.
        let mut unused = Vec::new();
        for (index, config) in changes.iter().flat_map(|change| change.before) {
            next.before.push(Arc::clone(config));
            if let Some(before) = previous.service(*index) {
                self.leave(*index, before, &mut unused);
            }
            set(&mut next.view, *index, None);
        }
        let same_clusters = same_names(&previous.snapshot, &snapshot);
        for change in &changes {
            for (index, config) in change.now {
                let before = change.before.iter().find(|(_, before)| before.port == config.port);
                let before = before.and_then(|(at, before)| Some((before, previous.service(*at)?)));
                let memory = match before {
                    Some((_, live)) if same_clusters => Rc::clone(&live.memory),
                    Some((_, live)) => Rc::new(live.memory.moved(&previous.snapshot, &snapshot)),
                    None => {
                        let keeper = Keeper::new(&self.shelf, now);
                        Rc::new(Memory::new(snapshot.clusters.len(), Sequence::new(random()), keeper))
                    }
                };
                if let Some((before, _)) = before {
                    memory.release(before, config, &previous.snapshot, &snapshot, now);
                }
                let name = before.map(|(_, live)| &live.name).filter(|name| ***name == *config.key).cloned();
                let name = name.unwrap_or_else(|| Name::from(&*config.key));
                let live = self.service(*index, config, (name, memory), now);
                set(&mut next.view, *index, Some(Rc::new(live)));
                next.rebuilt.insert(*index);
            }
        }
        for address in unused {
            if self.endpoints.get(&address).is_some_and(|known| known.services.is_empty()) {
                self.endpoints.remove(&address);
            }
        }
        for index in &next.rebuilt {
            self.step(&next.view, *index, 0..snapshot.clusters.len(), now);
        }
    }

    /// The live state of a service, made of what is known of its endpoints and peers.
    fn service(
        &mut self,
        index: usize,
        config: &Service,
        (name, memory): (Name, Rc<Memory>),
        now: Instant,
    ) -> ServiceView<P> {
        let mut versions: Vec<(&str, Name)> = Vec::new();
        let endpoints = config.local.iter().map(|local| {
            let known = self.endpoints.entry(local.address).or_insert_with(|| {
                let endpoint = Rc::new(Endpoint::new(local.address, now));
                Known { endpoint, services: Vec::new(), sits_out: false, out: None }
            });
            if !known.services.contains(&index) {
                known.services.push(index);
            }
            EndpointView {
                endpoint: Rc::clone(&known.endpoint),
                version: Arc::clone(&local.version),
                counted_as: counted_as(&mut versions, &local.version),
                instance: Arc::clone(&local.instance),
                readiness: local.readiness,
                preferred: local.preferred,
            }
        });
        let endpoints = endpoints.collect();
        // Most clusters have nothing of most services.
        let nobody: Rc<[PeerView<P>]> = Rc::new([]);
        let clusters = (0..self.by_cluster.len()).map(|cluster| match config.exporters.contains(&cluster) {
            true => self.peers_of(index, config, cluster),
            false => Rc::clone(&nobody),
        });
        let clusters: Vec<_> = clusters.collect();
        ServiceView { name, clusters, endpoints, preference: config.preference, memory }
    }

    /// The gateways of a cluster that say something of a service.
    fn peers_of(&mut self, index: usize, config: &Service, cluster: usize) -> Rc<[PeerView<P>]> {
        let remotes = self.by_cluster.get(cluster).map(Vec::as_slice).unwrap_or_default();
        let peers: Rc<[_]> = remotes.iter().filter_map(|remote| PeerView::of(remote, config)).collect();
        for view in peers.iter() {
            if let Some(serving) = self.remotes.get_mut(view.remote.handle.name()) {
                serving.services.insert(index);
            }
        }
        peers
    }

    /// Asks a cluster's gateways again what they say of a service; true when that is something else.
    fn renew(&mut self, view: &mut View<P>, index: usize, cluster: usize) -> bool {
        let (Some(config), Some(live)) = (view.snapshot.service(index).cloned(), view.service(index).cloned()) else {
            return false;
        };
        let before = live.clusters.get(cluster).filter(|_| config.exporters.contains(&cluster));
        let Some(before) = before else { return false };
        let peers = self.peers_of(index, &config, cluster);
        if *peers == **before {
            return false;
        }
        for gone in before.iter().filter(|gone| !peers.iter().any(|now| Rc::ptr_eq(&now.remote, &gone.remote))) {
            let name = gone.remote.handle.name();
            if !peers.iter().any(|now| now.remote.handle.name() == name)
                && let Some(serving) = self.remotes.get_mut(name)
            {
                serving.services.remove(&index);
            }
        }
        let mut live = ServiceView::clone(&live);
        if let Some(place) = live.clusters.get_mut(cluster) {
            *place = peers;
        }
        set(view, index, Some(Rc::new(live)));
        true
    }

    /// Nobody serves this service any more, for now.
    fn leave(&mut self, index: usize, live: &ServiceView<P>, unused: &mut Vec<SocketAddr>) {
        self.moving.remove(&index);
        for endpoint in live.endpoints.iter() {
            let address = endpoint.endpoint.address();
            if let Some(known) = self.endpoints.get_mut(&address) {
                known.services.retain(|of| *of != index);
                unused.push(address);
            }
        }
        for view in live.clusters.iter().flat_map(|peers| peers.iter()) {
            if let Some(serving) = self.remotes.get_mut(view.remote.handle.name()) {
                serving.services.remove(&index);
            }
        }
    }

    /// Moves the failback states of a service on.
    fn step(&mut self, view: &View<P>, index: usize, clusters: impl IntoIterator<Item = usize>, now: Instant) {
        let (Some(config), Some(live)) = (view.snapshot.service(index), view.service(index)) else {
            self.moving.remove(&index);
            return;
        };
        for cluster in clusters {
            let (Some(failback), Some(peers)) = (live.memory.failback.get(cluster), live.clusters.get(cluster)) else {
                continue;
            };
            let serving = if Some(cluster) == view.snapshot.own_cluster {
                let reachable = |e: &EndpointView| e.endpoint.reach() == Reach::Reachable;
                live.endpoints.iter().any(|e| e.readiness != Readiness::NotReady && reachable(e))
            } else {
                peer::is_reachable(peers)
            };
            let (before, after) = (failback.get(), failback.get().step(serving, &config.failback, now));
            if std::mem::discriminant(&before) != std::mem::discriminant(&after) {
                self.turned.insert(index);
            }
            failback.set(after);
        }
        if live.memory.failback.iter().any(|failback| failback.get().is_moving()) {
            self.moving.insert(index);
        } else {
            self.moving.remove(&index);
        }
    }
}

impl Memory {
    pub(super) fn new(clusters: usize, sequence: Sequence, keeper: Rc<Keeper>) -> Self {
        let failback = (0..clusters).map(|_| Default::default()).collect();
        Self { failback, sequence: std::cell::Cell::new(sequence), keeper, under_way: Rc::default() }
    }

    /// The same among other clusters.
    fn moved(&self, before: &Snapshot, now: &Snapshot) -> Self {
        let known = |cluster: &str| cluster_of(before, cluster).and_then(|place| self.failback.get(place));
        let failback = now.clusters.iter().map(|cluster| known(&cluster.name).cloned().unwrap_or_default());
        let (keeper, under_way) = (Rc::clone(&self.keeper), Rc::clone(&self.under_way));
        Self { failback: failback.collect(), sequence: self.sequence.clone(), keeper, under_way }
    }

    /// Taking back a `failover trigger` also releases a cluster that only waits for an operator.
    fn release(&self, before: &Service, config: &Service, then: &Snapshot, now: &Snapshot, at: Instant) {
        let names = before.avoid.iter().filter_map(|place| then.clusters.get(*place));
        for place in names.filter_map(|cluster| cluster_of(now, &cluster.name)) {
            if !config.avoid.contains(&place)
                && let Some(state) = self.failback.get(place)
            {
                state.set(state.get().release(&config.failback, at));
            }
        }
    }
}

/// What of which service a peer's news are about, by cluster.
fn named<P: PeerFacts>(
    snapshot: &Snapshot,
    serving: &Serving<P>,
    cluster: usize,
    news: HealthNews,
    dirty: &mut BTreeSet<(usize, usize)>,
) {
    let mut mark = |index: Option<usize>| dirty.extend(index.map(|index| (index, cluster)));
    match news {
        HealthNews::Nothing => {}
        HealthNews::Services(names) => names.iter().for_each(|name| mark(snapshot.service_by_key(name))),
        HealthNews::Everything => {
            serving.services.iter().for_each(|index| mark(Some(*index)));
            serving.remote.handle.services().iter().for_each(|name| mark(snapshot.service_by_key(name)));
        }
    }
}

fn set<P>(view: &mut View<P>, index: usize, service: Option<Rc<ServiceView<P>>>) {
    while view.services.len() <= index {
        view.services.push_back(None);
    }
    view.services.set(index, service);
}

/// One name per version, however many endpoints have it.
fn counted_as<'a>(known: &mut Vec<(&'a str, Name)>, version: &'a str) -> Option<Name> {
    if version.is_empty() {
        return None;
    }
    if let Some((_, name)) = known.iter().find(|(text, _)| *text == version) {
        return Some(name.clone());
    }
    known.push((version, Name::from(version)));
    known.last().map(|(_, name)| name.clone())
}

fn cluster_of(snapshot: &Snapshot, name: &str) -> Option<usize> {
    snapshot.clusters.binary_search_by(|cluster| (*cluster.name).cmp(name)).ok()
}

fn same_names(before: &Snapshot, now: &Snapshot) -> bool {
    Arc::ptr_eq(&before.clusters, &now.clusters)
        || before.clusters.iter().map(|cluster| &cluster.name).eq(now.clusters.iter().map(|cluster| &cluster.name))
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
