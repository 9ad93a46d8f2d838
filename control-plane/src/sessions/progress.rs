//! How far a revision got, judged exactly: never complete before every expected gateway said so.

use std::collections::BTreeMap;

use archipelago_proto::v1::{Rejection, Straggler, WaitAppliedProgress};

/// What one gateway did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AckView {
    /// It has a session now.
    pub(crate) connected: bool,
    /// Highest revision it acknowledged: in this session when connected, else ever.
    pub(crate) acked: u64,
    /// From the commit of the revision asked for to its acknowledgement.
    pub(crate) micros: Option<u64>,
    /// The revision it refused, and why, unless it applied a later one.
    pub(crate) rejected: Option<(u64, String)>,
}

/// Judges `revision` over the gateways that must apply it; `done` when nothing that is still connected can change the
/// verdict: enough acknowledged, or every one acknowledged or refused.
pub(crate) fn judge(
    revision: u64,
    expected: &[String],
    acks: &BTreeMap<String, AckView>,
    percent: u32,
) -> WaitAppliedProgress {
    let mut progress = WaitAppliedProgress {
        revision,
        expected: u32::try_from(expected.len()).unwrap_or(u32::MAX),
        ..WaitAppliedProgress::default()
    };
    let mut times = Vec::new();
    for gateway in expected {
        match acks.get(gateway) {
            Some(view) if view.acked >= revision => {
                progress.acknowledged += 1;
                times.extend(view.micros);
            }
            Some(AckView { rejected: Some((refused, error)), .. }) if *refused >= revision => {
                progress.rejections.push(Rejection { gateway: gateway.clone(), error: error.clone() });
            }
            Some(view) if view.connected => {
                let reason = format!("at revision {}", view.acked);
                progress.stragglers.push(Straggler { gateway: gateway.clone(), reason });
            }
            Some(_) | None => {
                let reason = "not connected".to_owned();
                progress.stragglers.push(Straggler { gateway: gateway.clone(), reason });
            }
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

    fn view(connected: bool, acked: u64, rejected: Option<u64>) -> AckView {
        let micros = (acked >= 5).then_some(acked * 100);
        AckView { connected, acked, micros, rejected: rejected.map(|revision| (revision, "bad".to_owned())) }
    }

    #[test]
    fn stragglers_and_rejections_are_named_with_their_reason() {
        let expected: Vec<String> = ["a/1", "a/2", "b/1", "b/2", "c/1"].map(String::from).to_vec();
        let acks = BTreeMap::from([
            ("a/1".to_owned(), view(true, 5, None)),
            ("a/2".to_owned(), view(true, 4, None)),
            ("b/1".to_owned(), view(true, 4, Some(5))),
            ("b/2".to_owned(), view(false, 4, None)),
            ("x/9".to_owned(), view(true, 9, None)),
        ]);
        let progress = judge(5, &expected, &acks, 0);
        assert_eq!((progress.expected, progress.acknowledged, progress.done), (5, 1, false));
        let stragglers: Vec<_> = progress.stragglers.iter().map(|s| format!("{} {}", s.gateway, s.reason)).collect();
        assert_eq!(stragglers, ["a/2 at revision 4", "b/2 not connected", "c/1 not connected"]);
        assert_eq!(progress.rejections.len(), 1);
        assert_eq!((progress.first_ack_micros, progress.last_ack_micros), (500, 500));
        assert!(judge(5, &expected, &acks, 20).done, "one of five is a fifth");
        assert!(judge(5, &[], &acks, 0).done, "nobody to wait for");
        assert!(judge(5, &["b/1".to_owned()], &acks, 0).done, "a refusal is a verdict too");
    }

    proptest! {
        #[test]
        fn it_is_never_done_early(
            gateways in prop::collection::vec((any::<bool>(), 0u64..8, prop::option::of(0u64..8)), 0..12),
            revision in 1u64..8,
        ) {
            let expected: Vec<String> = (0..gateways.len()).map(|n| format!("c/{n}")).collect();
            let acks: BTreeMap<_, _> = gateways
                .iter()
                .zip(&expected)
                .map(|((connected, acked, rejected), key)| {
                    (key.clone(), view(*connected, *acked, rejected.filter(|refused| refused > acked)))
                })
                .collect();
            let progress = judge(revision, &expected, &acks, 0);
            let all = gateways.iter().all(|(_, acked, _)| *acked >= revision);
            prop_assert_eq!(progress.done && progress.rejections.is_empty(), all);
            let total = progress.acknowledged as usize + progress.stragglers.len() + progress.rejections.len();
            prop_assert_eq!(total, expected.len());
        }
    }
}
