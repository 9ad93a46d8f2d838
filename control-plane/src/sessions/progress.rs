//! How far a version got, judged exactly: never complete before every expected gateway said so.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_model::version::Version;
use archipelago_proto::v1::{GatewaySession, Rejection, Straggler, WaitAppliedProgress};

/// What one gateway did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AckView {
    /// It has a session now.
    pub(crate) connected: bool,
    /// Newest version it acknowledged: in this session when connected, else ever.
    pub(crate) acked: Version,
    /// From the commit of the revision asked for to its acknowledgement.
    pub(crate) micros: Option<u64>,
    /// A version that it refused whole, unless it acknowledged another one since.
    pub(crate) refused: Option<Version>,
    /// Why it does not go on; empty: nothing keeps it.
    pub(crate) held_back: String,
    /// Resources that it cannot use or lacks a feature for.
    pub(crate) unusable: Vec<Unusable>,
}

/// A resource that a gateway does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) resource: String,
    pub(crate) reason: String,
    /// Policy revision with which it came to be so.
    pub(crate) since: u64,
}

impl AckView {
    /// Of a gateway that is connected.
    pub(super) fn of(session: &GatewaySession, micros: Option<u64>) -> Self {
        let rejected = session.rejections.iter().map(|rejection| (&rejection.resource, &rejection.reason));
        let unsupported = session.unsupported.iter().map(|problem| (&problem.subject, &problem.reason));
        Self {
            connected: true,
            acked: session.acked.map_or_else(Version::default, Version::from),
            micros,
            refused: session.refused.map(Version::from),
            held_back: session.held_back.clone(),
            unusable: rejected
                .chain(unsupported)
                .map(|(resource, reason)| Unusable {
                    resource: resource.clone(),
                    reason: reason.clone(),
                    since: session.unusable_since.get(resource).copied().unwrap_or(0),
                })
                .collect(),
        }
    }
}

/// Judges `version` over the gateways that must run it; `done` when nothing that is still connected can change the
/// verdict: enough acknowledged, or every one acknowledged or refused.
///
/// A gateway that acknowledged the version, or a later one, and cannot use some resource since this version or later, or one
/// that the write is about (`concerned`), counts as refusing, with one rejection per such resource: what the operator asked
/// for is not everywhere. What it could not use before says nothing about this write, and holds up nobody's.
pub(crate) fn judge(
    version: Version,
    concerned: &BTreeSet<String>,
    expected: &[String],
    acks: &BTreeMap<String, AckView>,
    percent: u32,
) -> WaitAppliedProgress {
    let mut progress = WaitAppliedProgress {
        revision: version.revision,
        expected: u32::try_from(expected.len()).unwrap_or(u32::MAX),
        ..WaitAppliedProgress::default()
    };
    let mut times = Vec::new();
    let counts = |unusable: &&Unusable| unusable.since >= version.revision || concerned.contains(&unusable.resource);
    for gateway in expected {
        let straggler = |reason: String| Straggler { gateway: gateway.clone(), reason };
        let rejection = |resource: &str, error: &str| Rejection {
            gateway: gateway.clone(),
            error: error.to_owned(),
            resource: resource.to_owned(),
        };
        match acks.get(gateway) {
            Some(view) if view.acked >= version && !view.unusable.iter().any(|unusable| counts(&unusable)) => {
                progress.acknowledged += 1;
                times.extend(view.micros);
            }
            Some(view) if view.acked >= version => {
                let unusable = view.unusable.iter().filter(counts);
                progress.rejections.extend(unusable.map(|unusable| rejection(&unusable.resource, &unusable.reason)));
            }
            Some(view) if view.refused.is_some_and(|refused| refused >= version) => {
                progress.rejections.push(rejection("", &view.held_back));
            }
            Some(view) if view.connected && !view.held_back.is_empty() => {
                progress.stragglers.push(straggler(view.held_back.clone()));
            }
            Some(view) if view.connected => {
                progress.stragglers.push(straggler(format!("at revision {}", view.acked.revision)));
            }
            Some(_) | None => progress.stragglers.push(straggler("not connected".to_owned())),
        }
    }
    progress.first_ack_micros = times.iter().copied().min().unwrap_or(0);
    progress.last_ack_micros = times.iter().copied().max().unwrap_or(0);
    let share = if percent == 0 { 100 } else { u64::from(percent.min(100)) };
    let enough = u64::from(progress.acknowledged) * 100 >= u64::from(progress.expected) * share;
    progress.done = enough || progress.stragglers.is_empty();
    progress
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(revision: u64) -> Version {
        Version { revision, ..Version::default() }
    }

    fn view(connected: bool, acked: u64, refused: Option<u64>, unusable: &[&str]) -> AckView {
        AckView {
            connected,
            acked: version(acked),
            micros: (acked >= 5).then_some(acked * 100),
            refused: refused.map(version),
            held_back: if refused.is_some() { "bad".to_owned() } else { String::new() },
            unusable: unusable
                .iter()
                .map(|name| Unusable { resource: (*name).to_owned(), reason: "no".to_owned(), since: 5 })
                .collect(),
        }
    }

    #[test]
    fn stragglers_and_rejections_are_named_with_their_reason() {
        let expected: Vec<String> = ["a/1", "a/2", "b/1", "b/2", "c/1", "d/1"].map(String::from).to_vec();
        let acks = BTreeMap::from([
            ("a/1".to_owned(), view(true, 5, None, &[])),
            ("a/2".to_owned(), view(true, 4, None, &["service/x/y"])),
            ("b/1".to_owned(), view(true, 4, Some(5), &[])),
            ("b/2".to_owned(), view(false, 4, None, &[])),
            ("d/1".to_owned(), view(true, 6, None, &["service/x/y", "peer/q/r"])),
            ("x/9".to_owned(), view(true, 9, None, &[])),
        ]);
        let progress = judge(version(5), &BTreeSet::new(), &expected, &acks, 0);
        assert_eq!((progress.expected, progress.acknowledged, progress.done), (6, 1, false));
        let stragglers: Vec<_> = progress.stragglers.iter().map(|s| format!("{} {}", s.gateway, s.reason)).collect();
        assert_eq!(stragglers, ["a/2 at revision 4", "b/2 not connected", "c/1 not connected"]);
        let rejections: Vec<_> =
            progress.rejections.iter().map(|r| format!("{} {} {}", r.gateway, r.resource, r.error)).collect();
        assert_eq!(rejections, ["b/1  bad", "d/1 service/x/y no", "d/1 peer/q/r no"]);
        assert_eq!((progress.first_ack_micros, progress.last_ack_micros), (500, 500));
        assert!(judge(version(5), &BTreeSet::new(), &expected, &acks, 15).done, "one of six is a sixth");
        assert!(judge(version(5), &BTreeSet::new(), &[], &acks, 0).done, "nobody to wait for");
        assert!(judge(version(5), &BTreeSet::new(), &["b/1".to_owned()], &acks, 0).done, "a refusal is a verdict too");
    }

    #[test]
    fn what_was_unusable_before_the_write_and_is_no_part_of_it_holds_up_nothing() {
        let gateway = ["a/1".to_owned()];
        let acks = BTreeMap::from([("a/1".to_owned(), view(true, 6, None, &["service/x/y", "service/x/z"]))]);
        let rejected = |revision: u64, concerned: &[&str]| {
            let concerned = concerned.iter().map(|name| (*name).to_owned()).collect();
            let progress = judge(version(revision), &concerned, &gateway, &acks, 0);
            assert!(progress.done && usize::from(progress.rejections.is_empty()) == progress.acknowledged as usize);
            progress.rejections.into_iter().map(|rejection| rejection.resource).collect::<Vec<_>>()
        };
        assert_eq!(rejected(5, &[]), ["service/x/y", "service/x/z"], "since this very revision");
        assert_eq!(rejected(6, &[]), [""; 0], "those were there before");
        assert_eq!(rejected(6, &["service/x/z", "service/x/fine"]), ["service/x/z"], "but this one was written");
    }

    /// What was acknowledged before a restore says nothing about what was restored.
    #[test]
    fn an_acknowledgement_of_an_earlier_restore_epoch_does_not_count() {
        let acks = BTreeMap::from([("a/1".to_owned(), view(true, 14, None, &[]))]);
        let restored = Version { restore_epoch: 1, revision: 12, fleet: 0 };
        let progress = judge(restored, &BTreeSet::new(), &["a/1".to_owned()], &acks, 0);
        assert_eq!((progress.acknowledged, progress.stragglers.len(), progress.done), (0, 1, false));
    }

    proptest! {
        #[test]
        fn it_is_never_done_early(
            gateways in prop::collection::vec((any::<bool>(), 0u64..8, prop::option::of(0u64..8), any::<bool>()), 0..12),
            revision in 1u64..8,
        ) {
            let expected: Vec<String> = (0..gateways.len()).map(|n| format!("c/{n}")).collect();
            let acks: BTreeMap<_, _> = gateways
                .iter()
                .zip(&expected)
                .map(|((connected, acked, refused, unusable), key)| {
                    let unusable: &[&str] = if *unusable { &["service/x/y"] } else { &[] };
                    (key.clone(), view(*connected, *acked, refused.filter(|refused| refused > acked), unusable))
                })
                .collect();
            let progress = judge(version(revision), &BTreeSet::new(), &expected, &acks, 0);
            let all = gateways.iter().all(|(_, acked, _, unusable)| *acked >= revision && !(*unusable && revision <= 5));
            prop_assert_eq!(progress.done && progress.rejections.is_empty(), all);
            let total = progress.acknowledged as usize + progress.stragglers.len() + progress.rejections.len();
            prop_assert_eq!(total, expected.len());
        }
    }
}
