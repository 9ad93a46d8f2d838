//! One account out of what workers say, and what of it moved. Pure.
//!
//! Each worker has tunnels and verdicts of its own, so two of them never change their minds in the same moment, and one may be right
//! while the others are not yet. So what all of them say together counts: a cluster serves as long as any worker uses it, a peer is
//! reached as long as any worker reaches it, an endpoint sits out as long as it does for any. And it counts once it stood for
//! [`SETTLE_MS`]: what came and went within that time is in the metrics, and is no event. An event has the time at which it began.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use archipelago_model::event::Draft;
use archipelago_tunnel::PeerState;

use super::words::{self, Moved};

/// What there is an account of.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// By cluster and gateway.
    pub(super) peers: Table<(String, String), PeerWord>,
    /// By the key of the service or of its port.
    pub(super) services: Table<Arc<str>, Standing>,
    /// Endpoints that sit out by instance, by the same keys.
    pub(super) endpoints: Table<Arc<str>, BTreeMap<Arc<str>, Out>>,
    told: words::Told,
}

/// Whether a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerWord {
    /// It was, and is silent.
    Unreachable,
    /// Not yet.
    Connecting,
    /// It said that it goes.
    Draining,
    /// It is.
    Reachable,
}

impl From<PeerState> for PeerWord {
    fn from(state: PeerState) -> Self {
        match state {
            PeerState::Up | PeerState::Suspect => Self::Reachable,
            PeerState::Draining => Self::Draining,
            PeerState::Dialing => Self::Connecting,
            PeerState::Dead => Self::Unreachable,
        }
    }
}

/// Who serves a service.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// "namespace/name".
    pub service: Arc<str>,
    /// The clusters that requests go to now.
    pub serving: BTreeSet<Arc<str>>,
    /// Those that could be asked and are not, with why.
    pub out: BTreeMap<Arc<str>, Cause>,
    /// Endpoints that could serve now, by cluster: of those that export it, and of our own. A number that moves is no event.
    pub ready: BTreeMap<Arc<str>, u64>,
    /// Nothing of the first choice can serve.
    pub failed_over: bool,
    /// Names what the policy asks for: another policy has another one.
    pub policy: u64,
    /// Revision of the configuration.
    pub revision: u64,
}

/// Why a cluster is given no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// For people.
    pub why: &'static str,
    /// An operator wants it so.
    pub is_wanted: bool,
}

/// Why an endpoint sits out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Out {
    /// It failed requests.
    Failed,
    /// It left requests unanswered.
    Hung,
    /// It refuses connections.
    Refuses,
    /// Nobody answers there.
    Silent,
}

/// What several workers say together.
pub(super) trait Word: Clone {
    fn merge(&self, other: &Self) -> Self;
    /// Whether there is nothing to tell between them.
    fn is_same(&self, other: &Self) -> bool;
}

impl Word for PeerWord {
    fn merge(&self, other: &Self) -> Self {
        *self.max(other)
    }
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Word for BTreeMap<Arc<str>, Out> {
    fn merge(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (instance, out) in other {
            let known = all.entry(Arc::clone(instance)).or_insert(*out);
            *known = (*known).max(*out);
        }
        all
    }
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Word for Standing {
    fn merge(&self, other: &Self) -> Self {
        let newer = if other.revision > self.revision { other } else { self };
        let serving: BTreeSet<_> = self.serving.union(&other.serving).cloned().collect();
        let out = self.out.iter().chain(&other.out).filter(|(cluster, _)| !serving.contains(*cluster));
        let out = out.map(|(cluster, cause)| (Arc::clone(cluster), *cause)).collect();
        let mut ready = self.ready.clone();
        for (cluster, count) in &other.ready {
            let known = ready.entry(Arc::clone(cluster)).or_default();
            *known = (*known).max(*count);
        }
        Self {
            service: Arc::clone(&self.service),
            serving,
            out,
            ready,
            failed_over: self.failed_over && other.failed_over,
            policy: newer.policy,
            revision: newer.revision,
        }
    }
    fn is_same(&self, other: &Self) -> bool {
        self.serving == other.serving
    }
}

impl Desk {
    /// What is settled by now, each with the time at which it began.
    pub(super) fn settle(&mut self, now_ms: i64) -> Vec<(Draft, i64)> {
        let mut drafts = Vec::new();
        let peers = self.peers.settle(now_ms);
        let clusters: BTreeSet<String> = peers.iter().map(|moved| moved.key.0.clone()).collect();
        let began = peers.iter().map(|moved| moved.at_ms).max().unwrap_or(now_ms);
        drafts.extend(peers.iter().filter_map(|moved| Some((self.told.peer(moved)?, moved.at_ms))));
        for cluster in clusters {
            let first = (cluster.clone(), String::new());
            let of_cluster = self.peers.rows.range(first..).take_while(|((of, _), _)| *of == cluster);
            let words: Vec<PeerWord> = of_cluster.filter_map(|(_, row)| row.told).collect();
            drafts.extend(self.told.cluster(&cluster, &words).map(|draft| (draft, began)));
        }
        let services = self.services.settle(now_ms);
        drafts.extend(services.iter().filter_map(|moved| Some((self.told.service(moved)?, moved.at_ms))));
        for moved in self.endpoints.settle(now_ms) {
            drafts.extend(words::endpoints(&moved).into_iter().map(|draft| (draft, moved.at_ms)));
        }
        drafts.sort_by_key(|(_, at)| *at);
        drafts
    }

    /// When something is settled next.
    pub(super) fn due(&self) -> Option<i64> {
        [self.peers.due(), self.services.due(), self.endpoints.due()].into_iter().flatten().min()
    }
}

/// What workers say of things of one sort. As many rows as there are such things: peers, services.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    rows: BTreeMap<K, Row<V>>,
    due: BTreeSet<(i64, K)>,
}

#[derive(Debug)]
struct Row<V> {
    said: BTreeMap<usize, V>,
    told: Option<V>,
    moved_at: Option<i64>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), due: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V: Word> Table<K, V> {
    /// Takes what a worker says.
    pub(super) fn say(&mut self, worker: usize, key: K, word: Option<V>, now_ms: i64) {
        if word.is_none() && !self.rows.contains_key(&key) {
            return;
        }
        let row =
            self.rows.entry(key.clone()).or_insert_with(|| Row { said: BTreeMap::new(), told: None, moved_at: None });
        match word {
            Some(word) => drop(row.said.insert(worker, word)),
            None => drop(row.said.remove(&worker)),
        }
        let is_same = match (row.together(), &row.told) {
            (Some(now), Some(told)) => now.is_same(told),
            (now, told) => now.is_none() && told.is_none(),
        };
        if is_same {
            if let Some(at) = row.moved_at.take() {
                self.due.remove(&(at, key.clone()));
            }
            if row.said.is_empty() {
                self.rows.remove(&key);
            }
        } else if row.moved_at.is_none() {
            row.moved_at = Some(now_ms);
            self.due.insert((now_ms, key));
        }
    }

    /// What has moved for long enough.
    fn settle(&mut self, now_ms: i64) -> Vec<Moved<K, V>> {
        let mut moved = Vec::new();
        while let Some((at_ms, _)) = self.due.first().filter(|(at, _)| now_ms.saturating_sub(*at) >= SETTLE_MS) {
            let at_ms = *at_ms;
            let Some((_, key)) = self.due.pop_first() else { break };
            let Some(row) = self.rows.get_mut(&key) else { continue };
            row.moved_at = None;
            let now = row.together();
            let before = std::mem::replace(&mut row.told, now.clone());
            if row.said.is_empty() {
                self.rows.remove(&key);
            }
            moved.push(Moved { key, before, now, at_ms });
        }
        moved
    }

    /// What is said of the first rows behind `key`, at most `count` of them.
    pub(super) fn after(&self, key: Option<&K>, count: usize) -> Vec<(K, V)> {
        let behind = (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        // A row of which nothing is said any more goes once that is settled, and ends no page.
        let rows = self.rows.range(behind).filter_map(|(key, row)| Some((key.clone(), row.together()?)));
        rows.take(count).collect()
    }

    fn due(&self) -> Option<i64> {
        self.due.first().map(|(at, _)| at.saturating_add(SETTLE_MS))
    }
}

impl<V: Word> Row<V> {
    fn together(&self) -> Option<V> {
        let mut words = self.said.values();
        let first = words.next()?.clone();
        Some(words.fold(first, |all, word| all.merge(word)))
    }
}

/// Workers follow each other within this, on a machine that is busy with something else too.
pub(super) const SETTLE_MS: i64 = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokyo() -> (String, String) {
        ("tokyo".into(), "gw-1".into())
    }

    /// What is told when all of this was said, a millisecond apart, and settled after each pause of 1 s (`None`).
    fn told(said: &[Option<(usize, PeerWord)>]) -> Vec<String> {
        let (mut desk, mut now, mut told) = (Desk::default(), 0, Vec::new());
        for word in said.iter().chain([&None]) {
            match word {
                Some((worker, word)) => {
                    now += 1;
                    desk.peers.say(*worker, tokyo(), Some(*word), now);
                }
                None => now += 1_000,
            }
            told.extend(desk.settle(now).into_iter().map(|(draft, at)| format!("{at} {}", draft.reason)));
        }
        told
    }

    #[test]
    fn two_workers_are_one_account() {
        use PeerWord::{Draining, Reachable as Up, Unreachable as Dead};
        let both = |word: PeerWord| [Some((0, word)), Some((1, word)), None];
        let walk = |words: &[PeerWord]| told(&words.iter().flat_map(|word| both(*word)).collect::<Vec<_>>());
        assert_eq!(walk(&[Up]), [""; 0], "what is reached for the first time is as it should be");
        assert_eq!(walk(&[Dead, Up]), [""; 0], "and what never was is not missed");
        // Since the second worker said so, which is when nobody reached it any more.
        assert_eq!(walk(&[Up, Dead]), ["1004 GatewayUnreachable", "1004 ClusterUnreachable"]);
        assert_eq!(
            walk(&[Up, Dead, Up]),
            ["1004 GatewayUnreachable", "1004 ClusterUnreachable", "2005 GatewayReachable", "2005 ClusterReachable"]
        );
        assert_eq!(walk(&[Up, Draining]), ["1004 GatewayDraining"]);
        let blip = [Some((0, Up)), None, Some((0, Dead)), Some((0, Up)), None];
        assert_eq!(told(&blip), [""; 0], "it came and went");
        let one_of_two = [Some((0, Up)), Some((1, Up)), None, Some((0, Dead)), None];
        assert_eq!(told(&one_of_two), [""; 0], "the other reaches it");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut desk = Desk::default();
        for word in [Some(PeerWord::Reachable), Some(PeerWord::Unreachable), None] {
            desk.peers.say(0, tokyo(), word, 0);
        }
        assert!(desk.settle(1_000).is_empty() && desk.peers.rows.is_empty() && desk.due().is_none());
        desk.peers.say(0, tokyo(), None, 2_000);
        assert!(desk.peers.rows.is_empty());
    }

    proptest! {
        /// Whatever workers say in whatever order: what was told last is what they say together, within the time to settle.
        #[test]
        fn the_account_ends_with_what_workers_say(
            said in prop::collection::vec((0usize..3, 0u8..5, 0i64..200), 1..60),
        ) {
            let (mut table, mut now) = (Table::<u8, PeerWord>::default(), 0);
            let (mut last, mut words) = (None, BTreeMap::new());
            let all = [PeerWord::Unreachable, PeerWord::Connecting, PeerWord::Draining, PeerWord::Reachable];
            for (worker, word, pause) in said {
                now += pause;
                for moved in table.settle(now) {
                    prop_assert_ne!(moved.before, moved.now, "it moved");
                    prop_assert_eq!(moved.before, last);
                    last = moved.now;
                }
                let word = all.get(usize::from(word)).copied();
                table.say(worker, 0, word, now);
                match word {
                    Some(word) => drop(words.insert(worker, word)),
                    None => drop(words.remove(&worker)),
                }
            }
            for moved in table.settle(now + SETTLE_MS) {
                last = moved.now;
            }
            prop_assert_eq!(last, words.values().max().copied());
            prop_assert!(table.due().is_none());
            prop_assert_eq!(table.rows.is_empty(), words.is_empty());
        }
    }
}
