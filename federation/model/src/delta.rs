//! What changed in a table: one engine and one vocabulary for every stream that keeps a reader's copy in step.
//!
//! Tables are persistent maps, so a place in the history of one is a cheap clone, and two of them are compared in the time of
//! their difference. A [`Delta`] is **full** (rows not named are gone), or has **upserts** and **removals** against a
//! **base** that the reader holds, or is a **bookmark**: nothing changed. Who keeps the base differs: a [`Reader`] for streams
//! that deliver in order or break; an acknowledged one keeps it by acknowledgement.

use std::{ops::Deref, sync::Arc};

use imbl::OrdMap;

/// What brings a reader's copy of a table up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// Rows not named in `upserts` are gone.
    pub full: bool,
    /// New and changed rows, by key.
    pub upserts: Vec<(K, V)>,
    /// Keys of rows that are gone; empty when `full`.
    pub removals: Vec<K>,
}

impl<K: Ord + Clone, V: Clone + PartialEq> Delta<K, V> {
    /// Everything, for a reader of whom nothing is known.
    #[must_use]
    pub fn full(now: &OrdMap<K, V>) -> Self {
        let upserts = now.iter().map(|(key, row)| (key.clone(), row.clone())).collect();
        Self { full: true, upserts, removals: Vec::new() }
    }

    /// The difference for a reader that holds `base`. Costs what changed, if one map was made from the other.
    #[must_use]
    pub fn between(base: &OrdMap<K, V>, now: &OrdMap<K, V>) -> Self {
        let mut delta = Self { full: false, upserts: Vec::new(), removals: Vec::new() };
        for change in base.diff(now) {
            match change {
                imbl::ordmap::DiffItem::Add(key, row) => delta.upserts.push((key.clone(), row.clone())),
                imbl::ordmap::DiffItem::Update { new: (key, row), .. } => {
                    delta.upserts.push((key.clone(), row.clone()));
                }
                imbl::ordmap::DiffItem::Remove(key, _) => delta.removals.push(key.clone()),
            }
        }
        delta
    }

    /// Whether it says only that nothing changed.
    #[must_use]
    pub fn is_bookmark(&self) -> bool {
        !self.full && self.upserts.is_empty() && self.removals.is_empty()
    }

    /// Brings a copy up to date.
    pub fn apply_to(self, copy: &mut OrdMap<K, V>) {
        if self.full {
            copy.clear();
        }
        for key in &self.removals {
            copy.remove(key);
        }
        for (key, row) in self.upserts {
            copy.insert(key, row);
        }
    }
}

/// A reader's place in a table, for a stream that delivers in order or breaks: what was sent is the base of what comes next.
#[derive(Debug, Clone)]
pub struct Reader<K: Ord, V> {
    told: Option<OrdMap<K, V>>,
}

impl<K: Ord, V> Default for Reader<K, V> {
    fn default() -> Self {
        Self { told: None }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Reader<K, V> {
    /// What to tell the reader now; `None`: it knows. The first answer is full, also when the table is empty.
    pub fn next(&mut self, now: &OrdMap<K, V>) -> Option<Delta<K, V>> {
        let delta = match &self.told {
            None => Delta::full(now),
            Some(told) => Delta::between(told, now),
        };
        self.told = Some(now.clone());
        (!delta.is_bookmark()).then_some(delta)
    }

    /// Forgets what the reader knows: the next answer is full.
    pub fn restart(&mut self) {
        self.told = None;
    }
}

/// A row that is compared by address before it is compared by content: neighbours of a changed row cost nothing.
#[derive(Debug, Default)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Shares a row.
    #[must_use]
    pub fn new(row: T) -> Self {
        Self(Arc::new(row))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_sees_each_change_once_and_an_empty_table_too() {
        let mut reader = Reader::default();
        let mut table: OrdMap<&str, Shared<u8>> = OrdMap::new();
        let first = reader.next(&table).unwrap();
        assert!(first.full && first.upserts.is_empty());
        assert_eq!(reader.next(&table), None);
        table.insert("a", Shared::new(1));
        table.insert("b", Shared::new(2));
        assert_eq!(reader.next(&table).unwrap().upserts, [("a", Shared::new(1)), ("b", Shared::new(2))]);
        // Written again as it was: nothing to tell.
        table.insert("a", Shared::new(1));
        assert_eq!(reader.next(&table), None);
        table.insert("a", Shared::new(3));
        table.remove("b");
        let delta = reader.next(&table).unwrap();
        assert_eq!((delta.full, delta.upserts, delta.removals), (false, vec![("a", Shared::new(3))], vec!["b"]));
        reader.restart();
        assert!(reader.next(&table).unwrap().full);
    }

    proptest! {
        /// However a table moves and whenever a reader looks, its copy is the table.
        #[test]
        fn copies_follow(steps in prop::collection::vec((0u8..40, prop::option::of(0u8..4), any::<bool>()), 0..200)) {
            let mut table = OrdMap::new();
            let (mut reader, mut copy) = (Reader::default(), OrdMap::new());
            for (key, value, looks) in steps {
                match value {
                    Some(value) => drop(table.insert(key, Shared::new(value))),
                    None => drop(table.remove(&key)),
                }
                if looks {
                    if let Some(delta) = reader.next(&table) {
                        // Only what differs is said.
                        let said = |(key, row): &(u8, Shared<u8>)| copy.get(key) != Some(row);
                        prop_assert!(delta.full || delta.upserts.iter().all(said));
                        prop_assert!(delta.removals.iter().all(|key| copy.contains_key(key)));
                        delta.apply_to(&mut copy);
                    }
                    prop_assert!(copy == table);
                }
            }
        }

        /// Between any two tables, related or not.
        #[test]
        fn the_difference_leads_from_one_to_the_other(
            before in prop::collection::btree_map(any::<u8>(), 0u8..3, 0..60),
            after in prop::collection::btree_map(any::<u8>(), 0u8..3, 0..60),
        ) {
            let (before, after): (OrdMap<u8, u8>, OrdMap<u8, u8>) = (before.into(), after.into());
            let mut copy = before.clone();
            let delta = Delta::between(&before, &after);
            prop_assert_eq!(delta.is_bookmark(), before == after);
            delta.apply_to(&mut copy);
            prop_assert_eq!(&copy, &after);
            let mut anything = before;
            Delta::full(&after).apply_to(&mut anything);
            prop_assert_eq!(anything, after);
        }
    }
}
