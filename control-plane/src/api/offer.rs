//! What to send a gateway next: deltas against what it has, one unacknowledged revision at a time.
//!
//! Pure. While one update is on its way, later revisions coalesce: the next update goes straight to the newest. A revision
//! that changes nothing for this gateway is sent all the same, empty, so that every gateway acknowledges every revision.

use std::{collections::BTreeMap, sync::Arc};

use archipelago_proto::v1::ConfigUpdate;

use crate::config::Compiled;

/// The state of one gateway's configuration stream.
#[derive(Debug)]
pub(crate) struct Offer {
    have: Have,
    in_flight: Option<Arc<Compiled>>,
    /// Newest revision offered; a refused one is not offered again.
    offered: Option<u64>,
}

/// What the gateway runs, as far as is known.
#[derive(Debug)]
enum Have {
    /// As its hello says: resource name to version.
    Reported(BTreeMap<String, Vec<u8>>),
    /// It acknowledged this.
    Acknowledged(Arc<Compiled>),
}

/// What an acknowledgement or refusal was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The update that is on its way.
    Expected,
    /// Something else: ignore it.
    Unexpected,
}

impl Offer {
    /// A stream whose gateway said hello with these versions in hand.
    pub(crate) fn new(versions: BTreeMap<String, Vec<u8>>) -> Self {
        Self { have: Have::Reported(versions), in_flight: None, offered: None }
    }

    /// The update to send now, if any.
    pub(crate) fn next(&mut self, newest: &Arc<Compiled>) -> Option<ConfigUpdate> {
        if self.in_flight.is_some() || self.offered.is_some_and(|offered| offered >= newest.revision) {
            return None;
        }
        let upserts = newest
            .resources
            .values()
            .filter(|resource| !self.has(&resource.name, &resource.version))
            .cloned()
            .collect();
        let full = matches!(&self.have, Have::Reported(versions) if versions.is_empty());
        let removals = if full { Vec::new() } else { self.not_in(newest) };
        self.in_flight = Some(Arc::clone(newest));
        self.offered = Some(newest.revision);
        Some(ConfigUpdate { revision: newest.revision, upserts, removals, full })
    }

    /// The gateway runs `revision`.
    pub(crate) fn acknowledged(&mut self, revision: u64) -> Verdict {
        match self.in_flight.take_if(|compiled| compiled.revision == revision) {
            Some(compiled) => {
                self.have = Have::Acknowledged(compiled);
                Verdict::Expected
            }
            None => Verdict::Unexpected,
        }
    }

    /// The gateway refused `revision` and still runs what it had.
    pub(crate) fn rejected(&mut self, revision: u64) -> Verdict {
        match self.in_flight.take_if(|compiled| compiled.revision == revision) {
            Some(_) => Verdict::Expected,
            None => Verdict::Unexpected,
        }
    }

    fn has(&self, name: &str, version: &[u8]) -> bool {
        match &self.have {
            Have::Reported(versions) => versions.get(name).is_some_and(|had| had == version),
            Have::Acknowledged(compiled) => compiled.resources.get(name).is_some_and(|had| had.version == version),
        }
    }

    fn not_in(&self, newest: &Compiled) -> Vec<String> {
        let gone = |name: &&String| !newest.resources.contains_key(*name);
        match &self.have {
            Have::Reported(versions) => versions.keys().filter(gone).cloned().collect(),
            Have::Acknowledged(compiled) => compiled.resources.keys().filter(gone).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::ConfigResource;
    use proptest::prelude::*;

    use super::*;

    fn compiled(revision: u64, resources: &[(&str, u8)]) -> Arc<Compiled> {
        let resources = resources
            .iter()
            .map(|(name, version)| {
                let resource =
                    ConfigResource { name: (*name).to_owned(), version: vec![*version].into(), ..Default::default() };
                ((*name).to_owned(), resource)
            })
            .collect();
        Arc::new(Compiled { revision, resources })
    }

    fn names(update: &ConfigUpdate) -> Vec<&str> {
        update.upserts.iter().map(|resource| resource.name.as_str()).collect()
    }

    #[test]
    fn a_fresh_gateway_gets_everything_and_a_known_one_the_difference() {
        let newest = compiled(4, &[("mesh", 1), ("service/a/b", 2)]);
        let update = Offer::new(BTreeMap::new()).next(&newest).unwrap();
        assert_eq!((update.full, names(&update)), (true, vec!["mesh", "service/a/b"]));

        let versions = BTreeMap::from([("mesh".to_owned(), vec![1]), ("peer/x/y".to_owned(), vec![9])]);
        let update = Offer::new(versions).next(&newest).unwrap();
        assert_eq!((update.full, names(&update)), (false, vec!["service/a/b"]));
        assert_eq!(update.removals, ["peer/x/y"]);
    }

    #[test]
    fn revisions_coalesce_only_while_one_is_unacknowledged() {
        let mut offer = Offer::new(BTreeMap::new());
        assert_eq!(offer.next(&compiled(1, &[("mesh", 1)])).unwrap().revision, 1);
        assert!(offer.next(&compiled(2, &[("mesh", 2)])).is_none());
        assert!(offer.next(&compiled(3, &[("mesh", 3)])).is_none());
        assert_eq!(offer.acknowledged(9), Verdict::Unexpected);
        assert_eq!(offer.acknowledged(1), Verdict::Expected);
        let update = offer.next(&compiled(3, &[("mesh", 3)])).unwrap();
        assert_eq!((update.revision, names(&update)), (3, vec!["mesh"]));
        assert_eq!(offer.acknowledged(3), Verdict::Expected);
        let bookmark = offer.next(&compiled(4, &[("mesh", 3)])).unwrap();
        assert_eq!((bookmark.revision, bookmark.upserts.len(), bookmark.removals.len()), (4, 0, 0));
    }

    #[test]
    fn a_refused_revision_is_not_offered_again_and_the_next_is_a_delta_to_the_last_good_one() {
        let mut offer = Offer::new(BTreeMap::new());
        offer.next(&compiled(1, &[("mesh", 1)])).unwrap();
        offer.acknowledged(1);
        offer.next(&compiled(2, &[("mesh", 1), ("service/a/b", 1)])).unwrap();
        assert_eq!(offer.rejected(2), Verdict::Expected);
        assert!(offer.next(&compiled(2, &[("mesh", 1), ("service/a/b", 1)])).is_none());
        let update = offer.next(&compiled(3, &[("mesh", 1), ("service/a/b", 2)])).unwrap();
        assert_eq!(names(&update), ["service/a/b"]);
    }

    proptest! {
        /// A gateway that applies what it acknowledges always ends with exactly the newest configuration.
        #[test]
        fn deltas_add_up(
            revisions in prop::collection::vec(prop::collection::btree_map("[a-e]", 0u8..3, 0..5), 1..12),
            verdicts in prop::collection::vec(any::<bool>(), 12),
            start in prop::collection::btree_map("[a-e]", 0u8..3, 0..5),
        ) {
            let mut running: BTreeMap<String, Vec<u8>> =
                start.iter().map(|(name, version)| (name.clone(), vec![*version])).collect();
            let mut offer = Offer::new(running.clone());
            let last = revisions.len() - 1;
            for (index, resources) in revisions.iter().enumerate() {
                let list: Vec<(&str, u8)> = resources.iter().map(|(name, v)| (name.as_str(), *v)).collect();
                let newest = compiled(index as u64 + 1, &list);
                let update = offer.next(&newest).unwrap();
                if verdicts[index] || index == last {
                    if update.full {
                        running.clear();
                    }
                    for removal in &update.removals {
                        running.remove(removal);
                    }
                    for upsert in &update.upserts {
                        running.insert(upsert.name.clone(), upsert.version.to_vec());
                    }
                    prop_assert_eq!(offer.acknowledged(update.revision), Verdict::Expected);
                    let want: BTreeMap<String, Vec<u8>> =
                        resources.iter().map(|(name, version)| (name.clone(), vec![*version])).collect();
                    prop_assert_eq!(&running, &want);
                } else {
                    prop_assert_eq!(offer.rejected(update.revision), Verdict::Expected);
                }
            }
        }
    }
}
