//! A table that can tell a reader what changed since it last looked, without keeping a queue per reader.

use std::collections::BTreeMap;

/// Rows by key, each stamped with the version that changed it last.
#[derive(Debug, Clone)]
pub(super) struct Journal<V> {
    version: u64,
    rows: BTreeMap<String, (u64, V)>,
    by_version: BTreeMap<u64, String>,
    gone: BTreeMap<u64, String>,
    /// Readers that saw less than this must read everything: a deletion they missed was forgotten.
    floor: u64,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changes<V> {
    /// Rows not named in `rows` are gone.
    pub(super) complete: bool,
    pub(super) rows: Vec<V>,
    pub(super) gone: Vec<String>,
    /// Pass it to the next [`Journal::since`].
    pub(super) version: u64,
}

impl<V: Clone> Journal<V> {
    pub(super) fn new() -> Self {
        // A reader that starts at 0 has seen nothing; one that looked at an empty table has seen version 1.
        Self { version: 1, rows: BTreeMap::new(), by_version: BTreeMap::new(), gone: BTreeMap::new(), floor: 0 }
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        self.rows.get(key).map(|(_, row)| row)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.rows.iter().map(|(key, (_, row))| (key, row))
    }

    pub(super) fn put(&mut self, key: &str, row: V) {
        self.version += 1;
        if let Some((old, _)) = self.rows.insert(key.to_owned(), (self.version, row)) {
            self.by_version.remove(&old);
        }
        self.by_version.insert(self.version, key.to_owned());
    }

    pub(super) fn remove(&mut self, key: &str) {
        let Some((old, _)) = self.rows.remove(key) else { return };
        self.version += 1;
        self.by_version.remove(&old);
        self.gone.insert(self.version, key.to_owned());
        if self.gone.len() > GONE_MAX
            && let Some((forgotten, _)) = self.gone.pop_first()
        {
            self.floor = forgotten;
        }
    }

    /// Everything that changed after `version`; everything at all when that is too long ago or 0.
    pub(super) fn since(&self, version: u64) -> Changes<V> {
        let complete = version == 0 || version < self.floor;
        let after = if complete { 0 } else { version };
        let rows = self
            .by_version
            .range(after + 1..)
            .filter_map(|(_, key)| self.rows.get(key))
            .map(|(_, row)| row.clone())
            .collect();
        let gone = if complete {
            Vec::new()
        } else {
            // A key that came back is a row above.
            let returned = |key: &&String| !self.rows.contains_key(*key);
            self.gone.range(after + 1..).map(|(_, key)| key).filter(returned).cloned().collect()
        };
        Changes { complete, rows, gone, version: self.version }
    }
}

/// Departures remembered for readers; a reader further behind reads everything.
const GONE_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_sees_each_change_once() {
        let mut journal = Journal::new();
        journal.put("a", 1);
        journal.put("b", 2);
        let first = journal.since(0);
        assert_eq!((first.complete, first.rows), (true, vec![1, 2]));
        journal.put("a", 3);
        journal.remove("b");
        let second = journal.since(first.version);
        assert_eq!((second.complete, second.rows, second.gone), (false, vec![3], vec!["b".to_owned()]));
        let third = journal.since(second.version);
        assert_eq!((third.rows.len(), third.gone.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn a_reader_that_looks_now_and_then_ends_with_the_table(
            steps in prop::collection::vec((0u8..6, prop::option::of(0u8..50), any::<bool>()), 0..200)
        ) {
            let mut journal = Journal::new();
            let mut seen: BTreeMap<String, (String, u8)> = BTreeMap::new();
            let mut version = 0;
            let look = |journal: &Journal<(String, u8)>, seen: &mut BTreeMap<String, (String, u8)>, version: &mut u64| {
                let changes = journal.since(*version);
                if changes.complete {
                    seen.clear();
                }
                for key in changes.gone {
                    seen.remove(&key);
                }
                for row in changes.rows {
                    seen.insert(row.0.clone(), row);
                }
                *version = changes.version;
            };
            for (key, value, reads) in steps {
                let key = format!("k{key}");
                match value {
                    Some(value) => journal.put(&key, (key.clone(), value)),
                    None => journal.remove(&key),
                }
                if reads {
                    look(&journal, &mut seen, &mut version);
                }
            }
            look(&journal, &mut seen, &mut version);
            let table: BTreeMap<_, _> = journal.iter().map(|(key, row)| (key.clone(), row.clone())).collect();
            prop_assert_eq!(seen, table);
        }
    }
}
