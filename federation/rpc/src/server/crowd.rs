//! Who is inside, bounded by key and in total. Pure: no clock, no sockets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

/// Places in order of arrival. A full one makes room by letting the oldest go, so that whoever sits still cannot keep others out.
#[derive(Debug)]
pub(super) struct Crowd<K, V> {
    places: BTreeMap<u64, (K, V)>,
    by_key: HashMap<K, BTreeSet<u64>>,
    next: u64,
    total_max: usize,
}

impl<K: Clone + Eq + Hash, V> Crowd<K, V> {
    pub(super) fn new(total_max: usize) -> Self {
        Self { places: BTreeMap::new(), by_key: HashMap::new(), next: 0, total_max: total_max.max(1) }
    }

    /// Lets one in; returns its place and whoever had to go for it: the oldest of the same key when that key has
    /// `key_max` places, otherwise the oldest of all when there are `total_max`.
    pub(super) fn admit(&mut self, key: K, key_max: usize, value: V) -> (u64, Option<V>) {
        let own = self.by_key.get(&key).filter(|places| places.len() >= key_max.max(1));
        let oldest = match own {
            Some(places) => places.first().copied(),
            None if self.places.len() >= self.total_max => self.places.keys().next().copied(),
            None => None,
        };
        let displaced = oldest.and_then(|place| self.leave(place));
        let place = self.next;
        self.next += 1;
        self.by_key.entry(key.clone()).or_default().insert(place);
        self.places.insert(place, (key, value));
        (place, displaced)
    }

    /// Gives a place back; harmless when it was taken away before.
    pub(super) fn leave(&mut self, place: u64) -> Option<V> {
        let (key, value) = self.places.remove(&place)?;
        if let Some(places) = self.by_key.get_mut(&key) {
            places.remove(&place);
            if places.is_empty() {
                self.by_key.remove(&key);
            }
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_of_the_same_source_goes_first_then_the_oldest_of_all() {
        let mut crowd = Crowd::new(4);
        let admitted: Vec<_> =
            ["a", "a", "b", "b"].into_iter().enumerate().map(|(n, k)| crowd.admit(k, 2, n)).collect();
        assert_eq!(admitted, [(0, None), (1, None), (2, None), (3, None)]);
        assert_eq!(crowd.admit("b", 2, 4), (4, Some(2)), "b is full: its own oldest goes, a's do not");
        assert_eq!(crowd.admit("c", 2, 5), (5, Some(0)), "all is full: the oldest goes");
        assert_eq!(crowd.leave(0), None, "it was displaced already");
        assert_eq!(crowd.leave(1), Some(1));
        assert_eq!(crowd.admit("d", 2, 6), (6, None));
        assert_eq!(crowd.places.len(), 4);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_the_newest_is_always_inside(keys in prop::collection::vec((0_u8..5, any::<bool>()), 0..200)) {
            let mut crowd = Crowd::new(7);
            let mut held = Vec::new();
            for (key, leaves) in keys {
                if leaves {
                    held.pop().map(|place| crowd.leave(place));
                } else {
                    let (place, _) = crowd.admit(key, 3, ());
                    held.push(place);
                    prop_assert!(crowd.places.contains_key(&place));
                }
                prop_assert!(crowd.places.len() <= 7);
                prop_assert!(crowd.by_key.values().all(|places| (1..=3).contains(&places.len())));
                prop_assert_eq!(crowd.by_key.values().map(BTreeSet::len).sum::<usize>(), crowd.places.len());
            }
        }
    }
}
