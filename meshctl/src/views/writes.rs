//! `apply`, `delete` and every verb that writes.

use archipelago_proto::v1;
use serde::Serialize;

use crate::duration;
use crate::output::Text;

/// `apply`, `delete`, `split set`, `switch` and every other write.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WriteView {
    pub(crate) revision: u64,
    /// Server-side time from receipt to commit.
    pub(crate) commit_millis: f64,
    /// From commit to the first acknowledgement; null without one.
    pub(crate) first_ack_millis: Option<f64>,
    /// From commit to the last acknowledgement; null without one.
    pub(crate) last_ack_millis: Option<f64>,
    /// How many gateways were expected to acknowledge; null when nobody waited.
    pub(crate) expected: Option<u32>,
    /// How many did; null when nobody waited.
    pub(crate) acknowledged: Option<u32>,
    /// `cluster/gateway` of those that did not acknowledge in time.
    pub(crate) stragglers: Vec<String>,
    pub(crate) rejections: Vec<RejectionView>,
    pub(crate) changes: Vec<ChangeView>,
    /// Accepted, but perhaps not what was meant; people read them on stderr.
    pub(crate) warnings: Vec<String>,
}

/// A gateway that refused the revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RejectionView {
    pub(crate) gateway: String,
    /// Empty: the whole revision.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) resource: String,
    pub(crate) error: String,
}

/// What became of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ChangeView {
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) what: String,
}

impl WriteView {
    /// From the commit and, when someone waited, from the last progress message.
    pub(crate) fn new(commit: v1::ApplyResponse, applied: Option<&v1::WaitAppliedProgress>) -> Self {
        let acknowledged = applied.map_or(0, |applied| applied.acknowledged);
        let some = |value: u64| (acknowledged > 0).then(|| millis(value));
        Self {
            revision: commit.revision,
            commit_millis: millis(commit.commit_micros),
            first_ack_millis: applied.and_then(|applied| some(applied.first_ack_micros)),
            last_ack_millis: applied.and_then(|applied| some(applied.last_ack_micros)),
            expected: applied.map(|applied| applied.expected),
            acknowledged: applied.map(|applied| applied.acknowledged),
            stragglers: applied
                .map(|applied| applied.stragglers.iter().map(|straggler| straggler.gateway.clone()).collect())
                .unwrap_or_default(),
            rejections: applied
                .map(|applied| {
                    let view = |rejection: &v1::Rejection| RejectionView {
                        gateway: rejection.gateway.clone(),
                        resource: rejection.resource.clone(),
                        error: rejection.error.clone(),
                    };
                    applied.rejections.iter().map(view).collect()
                })
                .unwrap_or_default(),
            warnings: commit.warnings,
            changes: commit
                .changes
                .into_iter()
                .map(|change| ChangeView {
                    kind: change.kind,
                    namespace: change.namespace,
                    name: change.name,
                    what: change.what,
                })
                .collect(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> Text {
        let mut text = Text::default();
        for change in &self.changes {
            let name = if change.namespace.is_empty() {
                change.name.clone()
            } else {
                format!("{}/{}", change.namespace, change.name)
            };
            text = text.line(format!("{} {name} {}", change.kind, change.what));
        }
        let mut summary = format!("revision {} committed in {}", self.revision, show_millis(self.commit_millis));
        if let (Some(expected), Some(acknowledged)) = (self.expected, self.acknowledged) {
            summary.push_str(&format!(", {acknowledged}/{expected} gateways"));
            if let (Some(first), Some(last)) = (self.first_ack_millis, self.last_ack_millis) {
                summary.push_str(&format!(
                    ", first acknowledgement after {}, last after {}",
                    show_millis(first),
                    show_millis(last)
                ));
            }
        }
        text = text.line(summary);
        if !self.stragglers.is_empty() {
            text = text.line(format!("stragglers: {}", self.stragglers.join(", ")));
        }
        for rejection in &self.rejections {
            let RejectionView { gateway, resource, error } = rejection;
            let what = if resource.is_empty() { String::new() } else { format!("{resource}: ") };
            text = text.line(format!("rejected by {gateway}: {what}{error}"));
        }
        text
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds of a command fit a double exactly")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made from a u64 of microseconds by `millis` above"
)]
fn show_millis(millis: f64) -> String {
    duration::measured((millis * 1e3).round() as u64)
}
