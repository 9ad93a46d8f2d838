//! To which gateways of the other clusters a gateway keeps tunnels, without I/O.
//!
//! Every gateway of a cluster can reach all endpoints of that cluster, and says so for all of them; a few tunnels to each cluster
//! are therefore enough. Which ones is decided by rendezvous hashing over (own gateway, peer gateway): the ranking of a peer depends
//! on no other, so that load stays even and a gateway that comes or goes moves only the tunnels that it takes or leaves.
//!
//! - The first `per_cluster` of the ranking are the **homes**: they are dialled for ever.
//! - While a home cannot take requests, the next in the ranking **stands in**; it lingers for a while after the home is back.
//! - When requests find nobody in a cluster who can serve them, [`Choice::demand`] adds the next in the ranking, one at a time.

use crate::config::PeerName;
use archipelago_base::random::mix;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// The choice of one gateway.
#[derive(Debug)]
pub(crate) struct Choice {
    own: PeerName,
    per_cluster: usize,
    clusters: BTreeMap<String, Cluster>,
}

#[derive(Debug, Default)]
struct Cluster {
    /// Best first.
    ranking: Vec<PeerName>,
    /// Those beyond the homes, and until when they are kept.
    extra: BTreeMap<PeerName, Instant>,
    /// How many beyond the homes requests asked for, and until when.
    demanded: usize,
    demanded_until: Option<Instant>,
    demanded_at: Option<Instant>,
}

impl Choice {
    pub(crate) fn new(own: PeerName, per_cluster: usize) -> Self {
        Self { own, per_cluster: per_cluster.max(1), clusters: BTreeMap::new() }
    }

    /// Takes the gateways that there are.
    pub(crate) fn set_members<'a>(&mut self, members: impl IntoIterator<Item = &'a PeerName>) {
        let mut by_cluster: BTreeMap<&str, Vec<&PeerName>> = BTreeMap::new();
        for member in members {
            by_cluster.entry(&member.cluster).or_default().push(member);
        }
        self.clusters.retain(|name, _| by_cluster.contains_key(name.as_str()));
        for (name, members) in by_cluster {
            let mut scored: Vec<_> = members.into_iter().map(|peer| (score(&self.own, peer), peer)).collect();
            scored.sort_unstable_by(|a, b| b.cmp(a));
            let cluster = self.clusters.entry(name.to_owned()).or_default();
            cluster.ranking = scored.into_iter().map(|(_, peer)| peer.clone()).collect();
            cluster.extra.retain(|peer, _| cluster.ranking.contains(peer));
        }
    }

    /// Takes one more gateway, or one that is known.
    pub(crate) fn add(&mut self, peer: &PeerName) {
        let own = &self.own;
        let ranking = &mut self.clusters.entry(peer.cluster.clone()).or_default().ranking;
        let rank = (score(own, peer), peer);
        if let Err(place) = ranking.binary_search_by(|known| rank.cmp(&(score(own, known), known))) {
            ranking.insert(place, peer.clone());
        }
    }

    /// A gateway is gone.
    pub(crate) fn remove(&mut self, peer: &PeerName) {
        let Some(cluster) = self.clusters.get_mut(&peer.cluster) else { return };
        cluster.ranking.retain(|known| known != peer);
        cluster.extra.remove(peer);
        if cluster.ranking.is_empty() {
            self.clusters.remove(&peer.cluster);
        }
    }

    /// Requests found nobody in `cluster` who can serve them: one more gateway of it may know better. True when that changes the choice.
    pub(crate) fn demand(&mut self, cluster: &str, now: Instant) -> bool {
        let Some(cluster) = self.clusters.get_mut(cluster) else { return false };
        cluster.demanded_until = Some(now + LINGER);
        let is_too_soon = cluster.demanded_at.is_some_and(|at| now.saturating_duration_since(at) < DEMAND_INTERVAL);
        if is_too_soon || cluster.demanded >= self.per_cluster.min(cluster.ranking.len()) {
            return false;
        }
        cluster.demanded += 1;
        cluster.demanded_at = Some(now);
        true
    }

    /// The gateways to keep tunnels to now; `is_promising` says of one whether requests may go there as far as is known.
    pub(crate) fn wanted(&mut self, is_promising: impl Fn(&PeerName) -> bool, now: Instant) -> BTreeSet<PeerName> {
        let mut wanted = BTreeSet::new();
        for cluster in self.clusters.values_mut() {
            if cluster.demanded_until.is_some_and(|until| until <= now) {
                (cluster.demanded, cluster.demanded_until) = (0, None);
            }
            let homes = self.per_cluster.min(cluster.ranking.len());
            let (home, others) = cluster.ranking.split_at(homes);
            let failing = home.iter().filter(|peer| !is_promising(peer)).count();
            let mut missing = failing + cluster.demanded;
            // Not all of a cluster that is gone: what does not answer eight times does not answer.
            for peer in others.iter().take(self.per_cluster * STAND_INS_PER_HOME) {
                if missing == 0 {
                    break;
                }
                cluster.extra.insert(peer.clone(), now + LINGER);
                missing -= usize::from(is_promising(peer));
            }
            cluster.extra.retain(|_, until| *until > now);
            wanted.extend(home.iter().chain(cluster.extra.keys()).cloned());
        }
        wanted
    }

    /// When to ask again although nothing happens.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.clusters.values().flat_map(|cluster| cluster.extra.values().copied()).min()
    }
}

/// FNV-1a over the names, each ended by a byte that no name has, and a finaliser that FNV lacks.
fn score(own: &PeerName, peer: &PeerName) -> u64 {
    let names = [&own.cluster, &own.gateway, &peer.cluster, &peer.gateway];
    let bytes = names.into_iter().flat_map(|name| name.bytes().chain([0xff]));
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)))
}

/// A home that comes back for a moment only must not make its stand-in come and go.
const LINGER: Duration = Duration::from_secs(30);
/// One more tunnel must have the time to come up and say what it knows.
const DEMAND_INTERVAL: Duration = Duration::from_secs(1);
const STAND_INS_PER_HOME: usize = 2;

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
