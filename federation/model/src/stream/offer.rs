//! The control plane's end of one session: what to send next, one unacknowledged update at a time.
//!
//! While one update is on its way, later versions coalesce: the next goes straight to the newest. A policy revision that
//! changes nothing for this gateway is sent as a bookmark, so that it can be acknowledged; a fleet version that changes
//! nothing for it is not sent.

use std::sync::Arc;

use crate::delta::Delta;
use archipelago_proto::v1::{ConfigResource, ConfigUpdate};

use super::{Compiled, Digest, Refusal, Resource, Resources};
use crate::version::Version;

/// One session with a gateway.
#[derive(Debug)]
pub struct Offer {
    running: Version,
    base: Base,
    /// A majority confirmed that the federation's state is at least this.
    confirmed: Option<Version>,
    in_flight: Option<Arc<Compiled>>,
    /// Acknowledged in this session.
    is_acknowledged: bool,
    /// An update of this version could not be used at all: it is not sent again.
    unusable: Option<Version>,
}

/// What the gateway holds, as far as is known.
#[derive(Debug)]
enum Base {
    /// It said this digest; its list was not asked for.
    Said(Digest),
    /// It was asked for its list.
    Asked,
    /// Exactly this.
    Known(Resources),
    /// Something else than was thought: the next update is full.
    Unknown,
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Wait for an event.
    Nothing,
    /// Ask the gateway for names and versions of what it holds ([`Offer::held`] takes the answer).
    AskHeld,
    /// Send this.
    Update(ConfigUpdate),
    /// The gateway runs something newer than the federation has: offer nothing, and tell people.
    Behind {
        /// What it runs.
        running: Version,
        /// What there is.
        newest: Version,
    },
}

impl Offer {
    /// A session whose gateway said in its hello that it runs `running` and holds resources of this digest.
    #[must_use]
    pub fn new(running: Version, held: Digest) -> Self {
        let base = if held == Digest::default() { Base::Unknown } else { Base::Said(held) };
        Self { running, base, confirmed: None, in_flight: None, is_acknowledged: false, unusable: None }
    }

    /// A majority confirmed after the session began that this member has applied everything committed by then, which made its
    /// state `applied`. From here on the member's own state is good enough, because it only grows; what was compiled from
    /// an older one before is not.
    pub fn confirmed(&mut self, applied: Version) {
        self.confirmed = Some(applied);
    }

    /// What to do, now that `newest` is what this gateway should run.
    pub fn next(&mut self, newest: &Arc<Compiled>) -> Next {
        let is_current = self.confirmed.is_some_and(|applied| newest.version >= applied);
        let is_unusable = self.unusable.is_some_and(|version| version >= newest.version);
        if !is_current || self.in_flight.is_some() || is_unusable {
            return Next::Nothing;
        }
        if newest.version < self.running {
            return Next::Behind { running: self.running, newest: newest.version };
        }
        let base = match &self.base {
            Base::Asked => return Next::Nothing,
            // The usual reconnect: it holds exactly what it should, and the list need not travel.
            Base::Said(digest) if *digest == newest.resources.digest() => Some(&newest.resources),
            Base::Said(_) => {
                self.base = Base::Asked;
                return Next::AskHeld;
            }
            Base::Known(resources) => Some(resources),
            Base::Unknown => None,
        };
        let delta = base.map_or_else(|| newest.resources.in_full(), |base| newest.resources.since(base));
        if self.is_acknowledged && delta.is_bookmark() && self.running.policy() == newest.version.policy() {
            return Next::Nothing;
        }
        let base_digest = base.map_or_else(Vec::new, |base| base.digest().to_bytes());
        self.in_flight = Some(Arc::clone(newest));
        let Delta { full, upserts, removals } = delta;
        Next::Update(ConfigUpdate {
            version: Some(newest.version.into()),
            full,
            upserts: upserts.into_iter().map(|(_, resource)| ConfigResource::clone(&resource)).collect(),
            removals,
            base_digest,
            digest: newest.resources.digest().to_bytes(),
        })
    }

    /// The gateway answers [`Next::AskHeld`]: names and versions of what it holds. Unasked, it changes nothing.
    pub fn held(&mut self, versions: impl IntoIterator<Item = (String, Vec<u8>)>) {
        if matches!(self.base, Base::Asked) {
            let row = |(name, version): (String, Vec<u8>)| {
                Resource::from(ConfigResource { name, version: version.into(), ..ConfigResource::default() })
            };
            self.base = Base::Known(versions.into_iter().map(row).collect());
        }
    }

    /// The gateway holds and runs `version`. False: that is not what is on its way, ignore it.
    pub fn acknowledged(&mut self, version: Version) -> bool {
        let Some(compiled) = self.in_flight.take_if(|compiled| compiled.version == version) else {
            // Again, after a worker that was late has caught up.
            return self.is_acknowledged && self.running == version;
        };
        self.running = version;
        self.is_acknowledged = true;
        self.base = Base::Known(compiled.resources.clone());
        true
    }

    /// The gateway refused `version` whole and runs what it ran. False: that is not what is on its way.
    pub fn refused(&mut self, version: Version, refusal: &Refusal) -> bool {
        let Some(compiled) = self.in_flight.take_if(|compiled| compiled.version == version) else { return false };
        match refusal {
            Refusal::Regression { running, .. } => self.running = *running,
            // A full update that does not add up would not the second time either.
            Refusal::WrongBase { .. } if matches!(self.base, Base::Unknown) => self.unusable = Some(compiled.version),
            Refusal::WrongBase { .. } => self.base = Base::Unknown,
            Refusal::Unusable(_) => self.unusable = Some(compiled.version),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::Held;

    fn version(revision: u64, fleet: u64) -> Version {
        Version { restore_epoch: 0, revision, fleet }
    }

    fn compiled(version: Version, rows: &[(&str, u8)]) -> Arc<Compiled> {
        let row = |(name, version): &(&str, u8)| {
            let (name, version) = ((*name).to_owned(), vec![*version].into());
            Resource::from(ConfigResource { name, version, ..ConfigResource::default() })
        };
        Arc::new(Compiled { version, resources: rows.iter().map(row).collect() })
    }

    fn offer(held: &Held) -> Offer {
        let mut offer = Offer::new(held.version, held.resources.digest());
        offer.confirmed(Version::default());
        offer
    }

    fn update(next: Next) -> ConfigUpdate {
        let Next::Update(update) = next else { panic!("{next:?}") };
        update
    }

    fn names(update: &ConfigUpdate) -> Vec<&str> {
        update.upserts.iter().map(|resource| resource.name.as_str()).collect()
    }

    #[test]
    fn nothing_is_offered_before_a_majority_confirmed() {
        let newest = compiled(version(3, 0), &[("mesh", 1)]);
        let mut offer = Offer::new(Version::default(), Digest::default());
        assert_eq!(offer.next(&newest), Next::Nothing);
        offer.confirmed(version(4, 0));
        assert_eq!(offer.next(&newest), Next::Nothing, "compiled before the state that was confirmed");
        assert!(update(offer.next(&compiled(version(4, 0), &[("mesh", 2)]))).full);
    }

    #[test]
    fn nothing_older_than_what_runs_is_offered_unless_the_restore_epoch_rose() {
        let held =
            Held { version: version(14, 2), resources: compiled(version(14, 2), &[("mesh", 9)]).resources.clone() };
        let mut session = offer(&held);
        let old = compiled(version(11, 7), &[("mesh", 1)]);
        assert_eq!(session.next(&old), Next::Behind { running: held.version, newest: old.version });
        let mut restored = Compiled::clone(&old);
        restored.version.restore_epoch = 1;
        let restored = Arc::new(restored);
        assert_eq!(session.next(&restored), Next::AskHeld);
        session.held([("mesh".to_owned(), vec![9])]);
        let update = update(session.next(&restored));
        assert_eq!(held.take(&update).unwrap().version, restored.version);
    }

    #[test]
    fn a_fresh_gateway_gets_everything_a_known_one_the_difference_and_one_in_step_a_bookmark() {
        let newest = compiled(version(4, 1), &[("mesh", 1), ("service/a/b", 2)]);
        let fresh = update(offer(&Held::default()).next(&newest));
        assert_eq!((fresh.full, names(&fresh)), (true, vec!["mesh", "service/a/b"]));

        let held = Held {
            version: version(2, 0),
            resources: compiled(version(2, 0), &[("mesh", 1), ("peer/x/y", 9)]).resources.clone(),
        };
        let mut session = offer(&held);
        assert_eq!((session.next(&newest), session.next(&newest)), (Next::AskHeld, Next::Nothing));
        session.held([("mesh".to_owned(), vec![1]), ("peer/x/y".to_owned(), vec![9])]);
        let difference = update(session.next(&newest));
        assert_eq!((difference.full, names(&difference)), (false, vec!["service/a/b"]));
        assert_eq!(difference.removals, ["peer/x/y"]);
        let now = held.take(&difference).unwrap();

        let bookmark = update(offer(&now).next(&newest));
        assert!(!bookmark.full && bookmark.upserts.is_empty() && bookmark.removals.is_empty());
        assert_eq!(now.take(&bookmark), Ok(now.clone()));
    }

    #[test]
    fn a_list_that_is_not_what_is_held_ends_in_a_full_update() {
        let newest = compiled(version(4, 1), &[("mesh", 1), ("service/a/b", 2)]);
        let held =
            Held { version: version(3, 0), resources: compiled(version(3, 0), &[("mesh", 7)]).resources.clone() };
        let mut session = offer(&held);
        assert_eq!(session.next(&newest), Next::AskHeld);
        session.held([("mesh".to_owned(), vec![1])]);
        let wrong = update(session.next(&newest));
        let refusal = held.take(&wrong).unwrap_err();
        assert_eq!(refusal, Refusal::WrongBase { held: held.resources.digest() });
        assert!(session.refused(newest.version, &refusal));
        let full = update(session.next(&newest));
        assert!(full.full && held.take(&full).unwrap().resources == newest.resources);
        // And a full one that does not add up is not sent for ever.
        assert!(session.refused(newest.version, &refusal));
        assert_eq!(session.next(&newest), Next::Nothing);
    }

    #[test]
    fn versions_coalesce_only_while_one_is_unacknowledged_and_the_fleet_alone_is_silent() {
        let mut session = offer(&Held::default());
        assert_eq!(update(session.next(&compiled(version(1, 0), &[("mesh", 1)]))).version, Some(version(1, 0).into()));
        for revision in 2..4 {
            assert_eq!(session.next(&compiled(version(revision, 0), &[("mesh", 2)])), Next::Nothing);
        }
        assert!(!session.acknowledged(version(9, 0)) && session.acknowledged(version(1, 0)));
        let next = update(session.next(&compiled(version(3, 0), &[("mesh", 3)])));
        assert_eq!((next.version, names(&next)), (Some(version(3, 0).into()), vec!["mesh"]));
        assert!(session.acknowledged(version(3, 0)) && session.acknowledged(version(3, 0)));
        assert_eq!(session.next(&compiled(version(3, 8), &[("mesh", 3)])), Next::Nothing, "the fleet alone moved");
        let bookmark = update(session.next(&compiled(version(4, 8), &[("mesh", 3)])));
        assert!(bookmark.upserts.is_empty() && bookmark.removals.is_empty() && !bookmark.full);
    }

    #[test]
    fn an_update_that_cannot_be_used_is_not_repeated_and_the_next_is_a_delta_to_what_is_held() {
        let mut session = offer(&Held::default());
        update(session.next(&compiled(version(1, 0), &[("mesh", 1)])));
        assert!(session.acknowledged(version(1, 0)));
        let bad = compiled(version(2, 0), &[("mesh", 1), ("service/a/b", 1)]);
        update(session.next(&bad));
        assert!(session.refused(version(2, 0), &Refusal::Unusable("foreign".into())));
        assert_eq!(session.next(&bad), Next::Nothing);
        let next = update(session.next(&compiled(version(3, 0), &[("mesh", 1), ("service/a/b", 2)])));
        assert_eq!(names(&next), ["service/a/b"]);
    }

    proptest! {
        /// A gateway that takes what it is sent ends with exactly the newest configuration, whatever it held and however
        /// often its sessions break.
        #[test]
        fn deltas_add_up(
            revisions in prop::collection::vec(prop::collection::btree_map("[a-e]", 0u8..3, 0..5), 1..12),
            breaks in prop::collection::vec(any::<(bool, bool)>(), 12),
            start in prop::collection::btree_map("[a-e]", 0u8..3, 0..5),
        ) {
            fn list(rows: &std::collections::BTreeMap<String, u8>) -> Vec<(&str, u8)> {
                rows.iter().map(|(name, version)| (name.as_str(), *version)).collect()
            }
            let mut held = Held { version: Version::default(), resources: compiled(Version::default(), &list(&start)).resources.clone() };
            let mut session = offer(&held);
            for (index, rows) in revisions.iter().enumerate() {
                let newest = compiled(version(index as u64 + 1, 0), &list(rows));
                if breaks[index].0 {
                    session = offer(&held);
                }
                let mut next = session.next(&newest);
                if next == Next::AskHeld {
                    session.held(held.resources.iter().map(|row| (row.name.clone(), row.version.to_vec())));
                    next = session.next(&newest);
                }
                let update = update(next);
                held = held.take(&update).unwrap();
                prop_assert_eq!(&held.resources, &newest.resources);
                if breaks[index].1 {
                    // The acknowledgement is lost with the connection.
                    session = offer(&held);
                } else {
                    prop_assert!(session.acknowledged(newest.version));
                }
            }
        }
    }
}
