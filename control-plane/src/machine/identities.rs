//! Who was given certificates, and whose are refused.

use std::sync::Arc;

use super::{
    apply::Refusal,
    command::{Answer, Done, IssuedRecord, RecordIssued, RefusalCode, RevokeIdentity},
    format,
    state::{Revocation, State},
};

impl State {
    pub(super) fn record_issued(&mut self, records: RecordIssued) -> Answer {
        let records: Vec<Arc<IssuedRecord>> = records.certificates.into_iter().map(Arc::new).collect();
        if self.format_version >= format::REVOCATIONS {
            records.iter().for_each(|record| self.note_operator(record));
        }
        self.issued.extend(records);
        while self.issued.len() > ISSUED_MAX {
            self.issued.pop_front();
        }
        Answer::Done(Done {})
    }

    /// What earlier formats did not keep apart is taken from what they kept.
    pub(super) fn begin_operators(&mut self) {
        for record in self.issued.clone() {
            self.note_operator(&record);
        }
    }

    fn note_operator(&mut self, record: &Arc<IssuedRecord>) {
        if !is_operator(&record.spiffe_id) {
            return;
        }
        self.operators.insert(record.spiffe_id.clone(), Arc::clone(record));
        if self.operators.len() > OPERATORS_MAX {
            let first_to_end = self.operators.iter().min_by_key(|(_, record)| record.not_after_unix);
            if let Some(name) = first_to_end.map(|(name, _)| name.clone()) {
                self.operators.remove(&name);
            }
        }
    }

    pub(super) fn revoke_identity(&mut self, revoke: RevokeIdentity, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let RevokeIdentity { spiffe_id, reason, by } = revoke;
        // Rounded up: a certificate of this very second is one from before.
        let issued_before_unix = now_unix_ms.div_euclid(1_000).saturating_add(1);
        let known = self.revocations.get(&spiffe_id);
        if known.is_some_and(|known| known.issued_before_unix >= issued_before_unix) {
            return Ok(Answer::Done(Done {}));
        }
        if known.is_none() {
            let horizon = issued_before_unix.saturating_sub(RETENTION_SECONDS);
            if self.revocations.len() >= REVOCATIONS_MAX {
                let kept = self.revocations.iter().filter(|(_, revocation)| revocation.issued_before_unix > horizon);
                self.revocations = kept.map(|(id, revocation)| (id.clone(), Arc::clone(revocation))).collect();
            }
            if self.revocations.len() >= REVOCATIONS_MAX {
                return Err(Refusal::full(RefusalCode::RevocationsFull, REVOCATIONS_MAX));
            }
        }
        self.revocations.insert(spiffe_id, Arc::new(Revocation { issued_before_unix, reason, by }));
        self.revision += 1;
        Ok(Answer::Done(Done {}))
    }
}

/// By its path alone: `spiffe://<trust domain>/operator/<name>`.
fn is_operator(spiffe_id: &str) -> bool {
    spiffe_id
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, path)| path.starts_with("operator/"))
}

/// A thousand gateways that renew twice a day fill it in five days.
const ISSUED_MAX: usize = 10_000;
const OPERATORS_MAX: usize = 10_000;
/// All gateways of a federation at once; each costs every gateway a few hundred bytes.
const REVOCATIONS_MAX: usize = 10_000;
/// Longer than any certificate lives (an operator's: a year) and may come back after its end (at most 90 days).
const RETENTION_SECONDS: i64 = 500 * 24 * 3_600;
