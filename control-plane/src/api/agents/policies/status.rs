//! What a cluster is told of its policies: the verdict, the revision that carries it, and how far that got.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_model::version::Version;
use archipelago_proto::v1::{ClusterPolicy, PolicyStatus, Rejection, ResourceKey};

use super::plan::{Reason, Verdict};
use crate::{
    api::{Context, fleet::configured_by, resources::rivals},
    machine::{Key, State},
    sessions::{
        gateway_key,
        progress::{AckView, judge},
    },
};

/// One for each that is listed. `failure`: why what was accepted could not be written yet.
pub(super) fn statuses(
    context: &Context,
    cluster: &str,
    listed: &[ClusterPolicy],
    verdicts: &[Verdict],
    failure: Option<&str>,
) -> Vec<PolicyStatus> {
    let state = context.consensus.state();
    let rivals = rivals(&context.sessions, Some(cluster));
    let expected: Vec<String> =
        state.gateways().keys().map(|(cluster, gateway)| gateway_key(cluster, gateway)).collect();
    let acks = context.sessions.acks(state.version());
    let fleet = Fleet { state: &state, expected: &expected, acks: &acks };
    let one = |(policy, verdict): (&ClusterPolicy, &Verdict)| {
        let key = verdict.key.as_ref().map(Key::from);
        let stored = key.as_ref().and_then(|key| state.resources().get(key)).filter(|stored| stored.origin == cluster);
        let mut status = PolicyStatus {
            kind: policy.kind.clone(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            generation: policy.generation,
            reason: verdict.reason.word().to_owned(),
            message: verdict.message.clone(),
            rivals: verdict.rivals.clone(),
            revision: stored.map_or(0, |stored| stored.modified_revision),
            ..PolicyStatus::default()
        };
        match (verdict.reason, failure, stored) {
            (Reason::Accepted, Some(why), _) => {
                status.reason = PENDING.to_owned();
                status.message = format!("not written yet: {why}");
            }
            (Reason::Accepted, None, None) => status.reason = PENDING.to_owned(),
            (Reason::Accepted, None, Some(_)) => {
                if let Some(others) = key.as_ref().and_then(|key| rivals.get(key)) {
                    status.rivals.clone_from(others);
                    status.message =
                        format!("{} wants to write it, too, and is told that it may not", others.join(", "));
                }
            }
            (_, _, Some(stored)) => {
                status.message.push_str(&format!("\nrevision {}, its last good form, stays", stored.modified_revision));
            }
            (_, _, None) => {}
        }
        if let Some(key) = key.filter(|_| stored.is_some()) {
            fleet.count(&key, &mut status);
        }
        status
    };
    listed.iter().zip(verdicts).map(one).collect()
}

/// Who should run a revision, and who does.
struct Fleet<'a> {
    state: &'a State,
    expected: &'a [String],
    acks: &'a BTreeMap<String, AckView>,
}

impl Fleet<'_> {
    /// As `WaitApplied` counts.
    fn count(&self, key: &Key, status: &mut PolicyStatus) {
        let target = Version { restore_epoch: self.state.version().restore_epoch, revision: status.revision, fleet: 0 };
        let Key { kind, namespace, name } = key.clone();
        let concerned: BTreeSet<String> =
            configured_by(self.state, &ResourceKey { kind, namespace, name }).into_iter().collect();
        let progress = judge(target, &concerned, self.expected, self.acks, 0);
        status.gateways_programmed = progress.acknowledged;
        status.gateways_expected = progress.expected;
        let about_it =
            |rejection: &&Rejection| rejection.resource.is_empty() || concerned.contains(&rejection.resource);
        let sentence = |rejection: &Rejection| format!("{}: {}", rejection.gateway, rejection.error);
        status.rejections =
            progress.rejections.iter().filter(about_it).take(REJECTIONS_SHOWN_MAX).map(sentence).collect();
    }
}

/// Accepted, and not in the federation yet.
const PENDING: &str = "Pending";
/// A hundred gateways that refuse one thing have one fault.
const REJECTIONS_SHOWN_MAX: usize = 10;
