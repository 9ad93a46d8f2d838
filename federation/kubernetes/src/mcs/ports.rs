//! Which port of every gateway stands for which port of an import.
//!
//! What slices say counts: they are what kube-proxy obeys, and what every replica of the agent reads. A port that is no
//! longer needed rests for a while before another service gets it, because a client that still has it must meet a refusal
//! and not somebody else's service. Where the search for a free port begins is a hash of the service, so that after a change
//! of leaders, who do not know what is resting, another service is unlikely to be given the same one, and a service that
//! comes back likely is.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};

use super::names::PortKey;

/// Who has which port.
#[derive(Debug)]
pub(super) struct Allocator {
    range: RangeInclusive<u16>,
    held: BTreeMap<PortKey, u16>,
    resting: BTreeMap<u16, Instant>,
}

impl Allocator {
    /// Nobody has any.
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, held: BTreeMap::new(), resting: BTreeMap::new() }
    }

    /// Gives every one of `wanted` its port: the one it has, the one that slices say, or a free one. Returns those that got
    /// none, because the range is used up.
    ///
    /// Of two that slices give the same port, the first in order keeps it.
    pub(super) fn allocate(
        &mut self,
        wanted: &BTreeSet<PortKey>,
        seen: &BTreeMap<PortKey, u16>,
        now: Instant,
    ) -> Vec<PortKey> {
        self.resting.retain(|_, since| now.duration_since(*since) < REST);
        let given_up: Vec<PortKey> = self.held.keys().filter(|key| !wanted.contains(*key)).cloned().collect();
        for key in given_up {
            if let Some(port) = self.held.remove(&key) {
                self.resting.insert(port, now);
            }
        }
        let mut taken: BTreeSet<u16> = self.held.values().copied().collect();
        for (key, port) in seen {
            if wanted.contains(key) && !self.held.contains_key(key) && self.range.contains(port) && taken.insert(*port)
            {
                self.resting.remove(port);
                self.held.insert(key.clone(), *port);
            }
        }
        let mut without = Vec::new();
        for key in wanted {
            if self.held.contains_key(key) {
                continue;
            }
            match self.free(key, &taken) {
                Some(port) => {
                    taken.insert(port);
                    self.resting.remove(&port);
                    self.held.insert(key.clone(), port);
                }
                None => without.push(key.clone()),
            }
        }
        without
    }

    /// The port of `key`.
    pub(super) fn port(&self, key: &PortKey) -> Option<u16> {
        self.held.get(key).copied()
    }

    /// A free port, or else the one that has rested longest: an old client may be refused by it, a new service without a
    /// port would be for certain.
    fn free(&self, key: &PortKey, taken: &BTreeSet<u16>) -> Option<u16> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let size = u32::from(last.checked_sub(first)?) + 1;
        let text = format!("{}:{}", key.0, key.1);
        let hash = digest(&SHA256, text.as_bytes());
        let start = hash.as_ref().iter().take(4).fold(0_u32, |all, byte| (all << 8) | u32::from(*byte)) % size;
        let nth = |at: u32| u16::try_from(u32::from(first) + (start + at) % size).ok();
        let mut ports = (0..size).filter_map(nth).filter(|port| !taken.contains(port));
        ports.find(|port| !self.resting.contains_key(port)).or_else(|| {
            let rested = self.resting.iter().filter(|(port, _)| self.range.contains(port) && !taken.contains(port));
            rested.min_by_key(|(_, since)| **since).map(|(port, _)| *port)
        })
    }
}

/// Longer than any connection pool or DNS answer is trusted without asking again.
const REST: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use archipelago_model::id::ServiceKey;

    use super::*;

    fn key(name: &str, port: u16) -> PortKey {
        (ServiceKey::new("shop", name), port)
    }

    fn set(names: &[&str]) -> BTreeSet<PortKey> {
        names.iter().map(|name| key(name, 80)).collect()
    }

    #[test]
    fn a_service_keeps_its_port_and_a_new_one_never_gets_it_too() {
        let now = Instant::now();
        let mut ports = Allocator::new(17_000..=17_099);
        let names: Vec<String> = (0..100).map(|index| format!("s{index}")).collect();
        let wanted: BTreeSet<PortKey> = names.iter().map(|name| key(name, 80)).collect();
        assert!(ports.allocate(&wanted, &BTreeMap::new(), now).is_empty());
        let before = ports.held.clone();
        assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 100);
        assert!(ports.allocate(&wanted, &BTreeMap::new(), now).is_empty());
        assert_eq!(ports.held, before);
        let more = wanted.iter().cloned().chain([key("one-too-many", 80)]).collect();
        assert_eq!(ports.allocate(&more, &BTreeMap::new(), now), vec![key("one-too-many", 80)]);
    }

    #[test]
    fn what_slices_say_counts_for_a_new_leader() {
        let now = Instant::now();
        let mut old = Allocator::new(17_000..=17_999);
        old.allocate(&set(&["a", "b", "c"]), &BTreeMap::new(), now);
        let seen = old.held.clone();
        let mut new = Allocator::new(17_000..=17_999);
        new.allocate(&set(&["a", "b", "c", "d"]), &seen, now);
        assert!(seen.iter().all(|(key, port)| new.port(key) == Some(*port)));
        assert!(!seen.values().any(|port| new.port(&key("d", 80)) == Some(*port)));
    }

    #[test]
    fn of_two_with_one_port_the_first_keeps_it_and_one_outside_of_the_range_is_given_anew() {
        let mut ports = Allocator::new(17_000..=17_999);
        let seen = BTreeMap::from([(key("a", 80), 17_005), (key("b", 80), 17_005), (key("c", 80), 16_000)]);
        ports.allocate(&set(&["a", "b", "c"]), &seen, Instant::now());
        assert_eq!(ports.port(&key("a", 80)), Some(17_005));
        let others = [ports.port(&key("b", 80)).unwrap(), ports.port(&key("c", 80)).unwrap()];
        assert!(others[0] != others[1] && others.iter().all(|port| *port != 17_005 && *port >= 17_000));
    }

    #[test]
    fn a_port_that_was_given_up_rests_before_somebody_else_gets_it() {
        let now = Instant::now();
        let mut ports = Allocator::new(17_000..=17_001);
        ports.allocate(&set(&["a"]), &BTreeMap::new(), now);
        let port = ports.port(&key("a", 80)).unwrap();
        ports.allocate(&set(&["b"]), &BTreeMap::new(), now);
        assert_ne!(ports.port(&key("b", 80)), Some(port), "it rests");
        // The range is used up but for the one that rests: better that than none.
        assert!(ports.allocate(&set(&["b", "c"]), &BTreeMap::new(), now).is_empty());
        assert_eq!(ports.port(&key("c", 80)), Some(port));
        ports.allocate(&set(&["b"]), &BTreeMap::new(), now);
        ports.allocate(&set(&["b", "d"]), &BTreeMap::new(), now + REST);
        assert_eq!(ports.port(&key("d", 80)), Some(port), "it has rested");
    }
}
