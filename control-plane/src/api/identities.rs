//! What operators see and do of identities: who holds certificates, whose are refused.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use archipelago_identity::{MeshRole, SpiffeId, tls::PeerCertificate};
use archipelago_proto::v1::{
    IdentityInfo, ListIdentitiesRequest, ListIdentitiesResponse, RevokeRequest, RevokeResponse,
};
use data_encoding::HEXLOWER;
use tonic::Status;

use super::{Context, or_random};
use crate::{
    machine::{
        State,
        command::{Action, IssuedRecord, RevokeIdentity},
        label_problem,
    },
    refusal::answer,
    revocations,
};

impl Context {
    pub(super) async fn list_identities(
        &self,
        caller: Option<&PeerCertificate>,
        request: ListIdentitiesRequest,
    ) -> Result<ListIdentitiesResponse, Status> {
        let ListIdentitiesRequest { page_size, page_token, path_prefix } = request;
        self.consensus.barrier().await?;
        let state = self.consensus.state();
        let mut known = newest(&state);
        if let Some(caller) = caller {
            // The founding credential was issued before there was a list.
            known.entry(caller.spiffe_id.to_string()).or_insert_with(|| Arc::new(founding(caller)));
        }
        for spiffe_id in state.revocations().keys() {
            known.entry(spiffe_id.clone()).or_default();
        }
        let page = match usize::try_from(page_size) {
            Ok(size @ 1..=PAGE_MAX) => size,
            Ok(0) => PAGE_DEFAULT,
            _ => PAGE_MAX,
        };
        let begin = format!("spiffe://{}{path_prefix}", self.trust_domain);
        let mut rest = known.into_iter().filter(|(id, _)| id.starts_with(&begin) && *id > page_token);
        let refused = revocations::in_force(&state);
        let identities: Vec<IdentityInfo> = rest
            .by_ref()
            .take(page)
            .map(|(spiffe_id, record)| {
                let id: Option<SpiffeId> = spiffe_id.parse().ok();
                let revocation = state.revocations().get(&spiffe_id);
                let before = id.as_ref().and_then(|id| refused.accepted_from(id));
                IdentityInfo {
                    not_after_unix: record.not_after_unix,
                    issued_unix_ms: record.issued_unix_ms,
                    member: record.member,
                    serial: HEXLOWER.encode(&record.serial),
                    revoked: before.is_some_and(|before| issued(&record) < before),
                    revoked_before_unix: before.map_or(0, unix),
                    reason: revocation.map(|revocation| revocation.reason.clone()).unwrap_or_default(),
                    revoked_by: revocation.map(|revocation| revocation.by.clone()).unwrap_or_default(),
                    clock_offset_ms: id.as_ref().and_then(|id| self.clocks.offset_ms(id)),
                    spiffe_id,
                }
            })
            .collect();
        let next_page_token = match (rest.next(), identities.last()) {
            (Some(_), Some(last)) => last.spiffe_id.clone(),
            _ => String::new(),
        };
        Ok(ListIdentitiesResponse { identities, next_page_token })
    }

    /// Of operators and members, as far as the list of issued certificates knows them: who, and until when, Unix seconds. Those that are
    /// over or revoked are not in use.
    pub(crate) fn certificates_of_others(&self, now_unix_ms: i64) -> Vec<(String, i64)> {
        let state = self.consensus.state();
        let refused = revocations::in_force(&state);
        let in_use = newest(&state).into_iter().filter_map(|(spiffe_id, record)| {
            let id: SpiffeId = spiffe_id.parse().ok()?;
            let who = match id.role()? {
                MeshRole::Operator { name } => format!("operator/{name}"),
                MeshRole::ControlPlane { id } => format!("cp-{id}"),
                MeshRole::Agent { cluster, name } => format!("{cluster}/{name}"),
                // The session of a gateway says which one it uses.
                MeshRole::Gateway { .. } | MeshRole::Workload { .. } => return None,
            };
            let is_in_use =
                record.not_after_unix > now_unix_ms / 1_000 && refused.check(&id, issued(&record)).is_none();
            is_in_use.then_some((who, record.not_after_unix))
        });
        in_use.collect()
    }

    pub(super) async fn revoke_identity(
        &self,
        caller: &SpiffeId,
        request: RevokeRequest,
    ) -> Result<RevokeResponse, Status> {
        let RevokeRequest { spiffe_id, reason, request_id } = request;
        let id: SpiffeId =
            spiffe_id.parse().map_err(|error| Status::invalid_argument(format!("{spiffe_id:.100}: {error}")))?;
        if *id.trust_domain() != self.trust_domain {
            return Err(Status::invalid_argument(format!("{id} is not of the trust domain {}", self.trust_domain)));
        }
        match id.role() {
            Some(MeshRole::Gateway { .. } | MeshRole::Agent { .. } | MeshRole::Operator { .. }) => {}
            Some(MeshRole::ControlPlane { .. }) => {
                return Err(Status::invalid_argument("a member of the control plane issues its own certificates"));
            }
            Some(MeshRole::Workload { .. }) | None => {
                return Err(Status::invalid_argument(format!("{id} is no gateway, agent or operator")));
            }
        }
        // So there is always one left who can make others.
        if id == *caller {
            return Err(Status::failed_precondition("an operator cannot revoke itself: another one must"));
        }
        if reason.len() > REASON_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a reason is at most {REASON_BYTES_MAX} bytes")));
        }
        let action =
            Action::RevokeIdentity(RevokeIdentity { spiffe_id: id.to_string(), reason, by: caller.to_string() });
        let outcome = self.consensus.commit(&or_random(request_id), &caller.to_string(), action).await?;
        let (revision, _) = answer(outcome)?;
        let issued_before_unix =
            self.consensus.read(|state| state.revocations().get(&id.to_string()).map_or(0, |r| r.issued_before_unix));
        tracing::info!(actor = %caller, spiffe_id = %id, "identity revoked");
        Ok(RevokeResponse { revision, issued_before_unix })
    }

    /// The id of an operator that does not exist yet, or whose request was made with the same key before.
    pub(super) async fn new_operator(&self, name: &str, public_key_sha256: [u8; 32]) -> Result<SpiffeId, Status> {
        if let Some(problem) = label_problem("operator", name) {
            return Err(Status::invalid_argument(problem));
        }
        let id = SpiffeId::operator(&self.trust_domain, name);
        self.consensus.barrier().await?;
        let state = self.consensus.state();
        if let Some(record) = newest(&state).get(&id.to_string()) {
            let over = revocations::in_force(&state).check(&id, issued(record)).is_some()
                || record.not_after_unix <= unix(SystemTime::now());
            if !over && record.public_key_sha256 != public_key_sha256 {
                return Err(Status::already_exists(format!(
                    "operator {name} has a certificate; revoke it first, or choose another name"
                )));
            }
        }
        Ok(id)
    }
}

/// The newest certificate of every identity that the state knows of.
fn newest(state: &State) -> BTreeMap<String, Arc<IssuedRecord>> {
    let mut newest: BTreeMap<String, Arc<IssuedRecord>> = BTreeMap::new();
    for record in state.operators().values().chain(state.issued()) {
        let entry = newest.entry(record.spiffe_id.clone()).or_default();
        if record.issued_unix_ms >= entry.issued_unix_ms {
            *entry = Arc::clone(record);
        }
    }
    newest
}

fn founding(caller: &PeerCertificate) -> IssuedRecord {
    IssuedRecord {
        spiffe_id: caller.spiffe_id.to_string(),
        not_after_unix: unix(caller.not_after),
        issued_unix_ms: unix(caller.not_before).saturating_mul(1_000),
        ..IssuedRecord::default()
    }
}

fn issued(record: &IssuedRecord) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(record.issued_unix_ms).unwrap_or(0))
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

const PAGE_DEFAULT: usize = 500;
const PAGE_MAX: usize = 1_000;
const REASON_BYTES_MAX: usize = 256;
