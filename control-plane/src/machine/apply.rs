//! How commands change the state. Pure: the result depends on the state and the command alone.
//!
//! Nothing here reads what a resource says: it was admitted by the proposer, on the revision that the command names.

use std::{collections::BTreeSet, sync::Arc};

use prost::Message;

use super::{
    command::{
        Action, Answer, Applied, ApplyResources, CaInit, Change, ChangeKind, Command, Conflict, Done, Expect, Outcome,
        OwnedResource, Precondition, RaiseFormat, RefusalCode, Refused,
    },
    dedup::{Remembered, RequestKey},
    format,
    state::{Key, State, Stored},
};
use crate::digest::sha256;

impl State {
    /// Applies one command and returns its encoded [`Outcome`]; a request id seen before returns the outcome of then.
    pub(super) fn apply(&mut self, command: Command) -> Vec<u8> {
        let Command { request_id, actor, proposed_unix_ms, action, .. } = command;
        let Some(action) = action else {
            return self.refused(Refusal::of(RefusalCode::Malformed)).encode_to_vec();
        };
        if request_id.is_empty() {
            return self.perform(action, proposed_unix_ms).encode_to_vec();
        }
        if request_id.len() > REQUEST_ID_BYTES_MAX {
            let refusal = Refusal::full(RefusalCode::Malformed, REQUEST_ID_BYTES_MAX);
            return self.refused(refusal).encode_to_vec();
        }
        let fingerprint = fingerprint(&action);
        let key = RequestKey { actor, request_id };
        if let Some(remembered) = self.dedup.get(&key) {
            if remembered.fingerprint != fingerprint {
                let refusal = Refusal::of(RefusalCode::RequestIdReused).about(&key.request_id);
                return self.refused(refusal).encode_to_vec();
            }
            return match self.refuse_retry(&action, proposed_unix_ms) {
                Ok(()) => remembered.outcome.clone(),
                Err(refusal) => self.refused(refusal).encode_to_vec(),
            };
        }
        let outcome = self.perform(action, proposed_unix_ms);
        let admit_again = matches!(
            &outcome.answer,
            Some(Answer::Refused(refused)) if refused.code() == RefusalCode::AdmissionStale
        );
        let outcome = outcome.encode_to_vec();
        // The proposer admits again and tries again, under the same id.
        if !admit_again {
            self.dedup.insert(key, Remembered { fingerprint, outcome: outcome.clone() });
        }
        outcome
    }

    /// What the state as it is would refuse anyway. Only reports and registrations: they come by themselves and again and
    /// again, so that a refused one must not cost a log entry.
    ///
    /// # Errors
    /// The outcome that proposing `action` would have.
    pub fn check(&self, action: &Action) -> Result<(), Box<Outcome>> {
        let checked = match action {
            Action::ReportExports(report) => self.check_report(report),
            Action::RegisterGateway(register) => self.check_registration(register),
            _ => Ok(()),
        };
        checked.map_err(|refusal| Box::new(self.refused(refusal)))
    }

    fn perform(&mut self, action: Action, now_unix_ms: i64) -> Outcome {
        let result = match action {
            Action::ApplyResources(apply) => self.apply_resources(apply, now_unix_ms),
            Action::ReportExports(report) => self.report_exports(report, now_unix_ms),
            Action::RegisterGateway(gateway) => self.register_gateway(gateway),
            Action::CaInit(ca) => self.ca_init(ca),
            Action::TokenCreate(token) => self.token_create(token, now_unix_ms),
            Action::TokenConsume(token) => self.token_consume(&token, now_unix_ms),
            Action::RecordIssued(records) => Ok(self.record_issued(records)),
            Action::RaiseFormat(raise) => Ok(self.raise_format(raise, now_unix_ms)),
            Action::RaiseRestoreEpoch(_) => Ok(self.raise_restore_epoch()),
            Action::RevokeIdentity(revoke) => self.revoke_identity(revoke, now_unix_ms),
            Action::PutMember(put) => self.put_member(put),
            Action::RetireMember(retire) => self.retire_member(retire, now_unix_ms),
        };
        match result {
            Ok(answer) => Outcome { revision: self.revision, answer: Some(answer) },
            Err(refusal) => self.refused(refusal),
        }
    }

    fn refused(&self, refusal: Refusal) -> Outcome {
        Outcome { revision: self.revision, answer: Some(Answer::Refused(refusal.0)) }
    }

    /// Whether a repeated request may have its first answer still.
    fn refuse_retry(&self, action: &Action, now_unix_ms: i64) -> Result<(), Refusal> {
        match action {
            Action::TokenConsume(consume) => self.refuse_spent_retry(consume, now_unix_ms),
            Action::TokenCreate(create) => self.refuse_deleted(&create.cluster),
            _ => Ok(()),
        }
    }

    fn apply_resources(&mut self, apply: ApplyResources, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let ApplyResources { upserts, deletes, admitted_revision, preconditions, origin, takes_over, .. } = apply;
        self.refuse_conflicts(&preconditions)?;
        if admitted_revision.is_some_and(|seen| self.policy_revision > seen) {
            return Err(Refusal::of(RefusalCode::AdmissionStale));
        }
        let mut upserted = Vec::with_capacity(upserts.len());
        for write in upserts {
            let key = Key::from(write.key.ok_or(Refusal::of(RefusalCode::Malformed))?);
            upserted.push((key, write.canonical));
        }
        let new: BTreeSet<&Key> =
            upserted.iter().map(|(key, _)| key).filter(|key| !self.resources.contains_key(*key)).collect();
        let mut deleted = BTreeSet::new();
        let mut missing = Vec::new();
        for key in deletes.into_iter().map(Key::from) {
            let exists = self.resources.contains_key(&key) || new.contains(&key);
            if !exists || deleted.contains(&key) {
                missing.push(key.into());
            } else {
                deleted.insert(key);
            }
        }
        if !missing.is_empty() {
            let mut refusal = Refusal::of(RefusalCode::ResourceNotFound);
            refusal.0.missing = missing;
            return Err(refusal);
        }
        if !takes_over {
            self.refuse_others(upserted.iter().map(|(key, _)| key).chain(&deleted), &origin)?;
        }
        if self.resources.len() + new.len() > RESOURCES_MAX + deleted.len() {
            return Err(Refusal::full(RefusalCode::ResourcesFull, RESOURCES_MAX));
        }
        if !origin.is_empty() && !new.is_empty() {
            let own = self.resources.values().filter(|stored| stored.origin == origin).count();
            if own + new.len() > POLICIES_PER_CLUSTER_MAX + deleted.len() {
                return Err(Refusal::full(RefusalCode::PoliciesFull, POLICIES_PER_CLUSTER_MAX).about(&origin));
            }
        }

        let next = self.revision + 1;
        let mut changes = Vec::with_capacity(upserted.len() + deleted.len());
        for (key, canonical) in upserted {
            let before = self.resources.get(&key);
            let kind = match before {
                None => ChangeKind::Created,
                Some(stored) if stored.canonical == canonical && stored.origin == origin => ChangeKind::Unchanged,
                Some(_) => ChangeKind::Updated,
            };
            changes.push(Change { key: Some(key.clone().into()), kind: kind.into() });
            if kind == ChangeKind::Unchanged {
                continue;
            }
            let created_revision = before.map_or(next, |stored| stored.created_revision);
            if kind == ChangeKind::Created {
                self.resource_created(&key, now_unix_ms);
            }
            let origin = origin.clone();
            let stored = Stored { canonical, created_revision, modified_revision: next, origin };
            self.resources.insert(key, Arc::new(stored));
        }
        for key in deleted {
            self.resources.remove(&key);
            self.resource_deleted(&key, now_unix_ms);
            changes.push(Change { key: Some(key.into()), kind: ChangeKind::Deleted.into() });
        }
        if changes.iter().any(|change| change.kind() != ChangeKind::Unchanged) {
            self.revision = next;
            self.policy_revision = next;
        }
        Ok(Answer::Applied(Applied { changes }))
    }

    /// Which of `keys` were written by somebody else than `origin`: a cluster's users, or an operator where it is empty.
    #[must_use]
    pub fn others<'k>(&self, keys: impl IntoIterator<Item = &'k Key>, origin: &str) -> Vec<OwnedResource> {
        keys.into_iter()
            .filter_map(|key| Some((key, self.resources.get(key)?)))
            .filter(|(_, stored)| stored.origin != origin)
            .map(|(key, stored)| OwnedResource { key: Some(key.clone().into()), origin: stored.origin.clone() })
            .collect()
    }

    fn refuse_others<'k>(&self, keys: impl IntoIterator<Item = &'k Key>, origin: &str) -> Result<(), Refusal> {
        let owned = self.others(keys, origin);
        if owned.is_empty() {
            return Ok(());
        }
        let mut refusal = Refusal::of(RefusalCode::OtherOrigin);
        refusal.0.owned = owned;
        Err(refusal)
    }

    /// Which of `preconditions` do not hold.
    #[must_use]
    pub fn conflicts(&self, preconditions: &[Precondition]) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        for Precondition { key, expect } in preconditions {
            let key = Key::from(key.clone().unwrap_or_default());
            let current_revision = self.resources.get(&key).map_or(0, |stored| stored.modified_revision);
            let holds = match expect {
                Some(Expect::Revision(revision)) => current_revision == *revision,
                Some(Expect::Absent(absent)) => (current_revision == 0) == *absent,
                None => false,
            };
            if !holds {
                conflicts.push(Conflict { key: Some(key.into()), current_revision });
            }
        }
        conflicts
    }

    fn refuse_conflicts(&self, preconditions: &[Precondition]) -> Result<(), Refusal> {
        let conflicts = self.conflicts(preconditions);
        if conflicts.is_empty() {
            return Ok(());
        }
        let mut refusal = Refusal::of(RefusalCode::Precondition);
        refusal.0.conflicts = conflicts;
        Err(refusal)
    }

    /// Two kinds mean something to the state itself, by their name alone.
    fn resource_created(&mut self, key: &Key, now_unix_ms: i64) {
        match key.kind.as_str() {
            CLUSTER => self.cluster_declared(&key.name),
            SERVICE_EXPORT => {
                self.slots.operator_exports(&(key.namespace.clone(), key.name.clone()), true, now_unix_ms);
            }
            _ => {}
        }
    }

    fn resource_deleted(&mut self, key: &Key, now_unix_ms: i64) {
        match key.kind.as_str() {
            CLUSTER => self.forget_cluster(&key.name, now_unix_ms),
            SERVICE_EXPORT => {
                self.slots.operator_exports(&(key.namespace.clone(), key.name.clone()), false, now_unix_ms);
            }
            _ => {}
        }
    }

    fn ca_init(&mut self, ca: CaInit) -> Result<Answer, Refusal> {
        match self.ca.as_deref() {
            Some(present) if *present == ca => Ok(Answer::Done(Done {})),
            Some(_) => Err(Refusal::of(RefusalCode::OtherAuthority)),
            None => {
                self.format_version = self.format_version.max(ca.founded_format);
                self.revision += 1;
                self.ca = Some(Arc::new(ca));
                Ok(Answer::Done(Done {}))
            }
        }
    }

    fn raise_format(&mut self, raise: RaiseFormat, now_unix_ms: i64) -> Answer {
        let before = self.format_version;
        self.format_version = before.max(raise.format_version);
        if before < format::REVOCATIONS && self.format_version >= format::REVOCATIONS {
            self.begin_operators();
        }
        if before < format::PORTS && self.format_version >= format::PORTS {
            self.begin_ports(now_unix_ms);
        }
        Answer::Done(Done {})
    }

    fn raise_restore_epoch(&mut self) -> Answer {
        self.restore_epoch += 1;
        self.revision += 1;
        Answer::Done(Done {})
    }
}

/// Why a command changed nothing.
#[derive(Debug)]
pub(super) struct Refusal(Refused);

impl Refusal {
    pub(super) fn of(code: RefusalCode) -> Self {
        Self(Refused { code: code.into(), ..Refused::default() })
    }

    /// A bound is reached.
    pub(super) fn full(code: RefusalCode, bound: usize) -> Self {
        Self(Refused { code: code.into(), bound: u64::try_from(bound).unwrap_or(u64::MAX), ..Refused::default() })
    }

    pub(super) fn about(self, subject: &str) -> Self {
        Self(Refused { subject: subject.to_owned(), ..self.0 })
    }

    pub(super) fn at(self, unix_ms: i64) -> Self {
        Self(Refused { at_unix_ms: unix_ms, ..self.0 })
    }
}

/// Over what the client asked for; what the proposer's admission read may differ between two tries.
fn fingerprint(action: &Action) -> [u8; 32] {
    let mut bytes = Vec::new();
    match action {
        Action::ApplyResources(apply) => {
            Action::ApplyResources(ApplyResources { admitted_revision: None, ..apply.clone() }).encode(&mut bytes);
        }
        other => other.encode(&mut bytes),
    }
    sha256(&bytes)
}

pub(super) const CLUSTER: &str = "Cluster";
pub(super) const SERVICE_EXPORT: &str = "ServiceExport";
const REQUEST_ID_BYTES_MAX: usize = 128;
const RESOURCES_MAX: usize = 100_000;
/// One of each kind for half the services that a cluster may report: no cluster can fill the federation for the others.
const POLICIES_PER_CLUSTER_MAX: usize = 10_000;
