//! `metav1.Condition`, and how one follows another.

use serde::{Deserialize, Serialize};

/// One aspect of an object's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect.
    pub r#type: String,
    /// Whether it holds.
    pub status: Status,
    /// `metadata.generation` that was judged.
    #[serde(default)]
    pub observed_generation: i64,
    /// When `status` became what it is; RFC 3339.
    #[serde(default)]
    pub last_transition_time: String,
    /// Why, in one word.
    #[serde(default)]
    pub reason: String,
    /// Why, in sentences.
    #[serde(default)]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can say yet.
    Unknown,
}

impl Condition {
    /// A condition that begins now; see [`Condition::after`].
    #[must_use]
    pub fn new(
        r#type: &str,
        status: Status,
        reason: impl Into<String>,
        message: impl Into<String>,
        generation: i64,
        now: &str,
    ) -> Self {
        let mut message: String = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
        }
        Self {
            r#type: r#type.into(),
            status,
            observed_generation: generation,
            last_transition_time: now.into(),
            reason: reason.into(),
            message,
        }
    }

    /// The same as the successor of what is there: while the status stays, so does the time of its last transition.
    #[must_use]
    pub fn after(mut self, before: &[Self]) -> Self {
        let same = before.iter().find(|condition| condition.r#type == self.r#type && condition.status == self.status);
        if let Some(same) = same.filter(|same| !same.last_transition_time.is_empty()) {
            self.last_transition_time.clone_from(&same.last_transition_time);
        }
        self
    }
}

/// The API allows 32,768; a person reads the first lines.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_transition_stays_while_the_status_does() {
        let ready = |status, now: &str| Condition::new("Ready", status, "Ready", "", 1, now);
        let before = vec![ready(Status::True, "2026-01-01T00:00:00Z")];
        let after = ready(Status::True, "2026-01-02T00:00:00Z").after(&before);
        assert_eq!(after.last_transition_time, "2026-01-01T00:00:00Z");
        let after = ready(Status::False, "2026-01-02T00:00:00Z").after(&before);
        assert_eq!(after.last_transition_time, "2026-01-02T00:00:00Z");
    }

    #[test]
    fn a_message_fits_the_api_whatever_it_says() {
        let condition = Condition::new("Ready", Status::False, "Failed", "ü".repeat(40_000), 1, "");
        assert!(condition.message.len() <= MESSAGE_BYTES_MAX && condition.message.ends_with('ü'));
    }
}
