use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use archipelago_base::error::chain as chain_of;
use archipelago_identity::{MeshRole, SpiffeId, proof, tls::PeerCertificate};
use archipelago_proto::v1::{
    ChallengeRequest, ChallengeResponse, ClockOffset, CreateOperatorRequest, JoinRequest, JoinRole,
    ListIdentitiesRequest, ListIdentitiesResponse, RecoverRequest, RenewRequest, RevokeRequest, RevokeResponse,
    SvidResponse, identity_server::Identity,
};
use archipelago_rpc::{enrol, grpc};
use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{Context, operator};
use crate::{
    bootstrap::OPERATOR_LIFE,
    ca::{CaError, CertificateRequest},
    consensus::{CommitError, unix_ms},
    digest::sha256,
    machine::{
        command::{Action, Answer, IssuedRecord, RecordIssued, TokenConsume},
        convert,
    },
    refusal::answer,
    revocations,
};

pub(super) struct IdentityService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<SvidResponse>, Status> {
        let request = request.into_inner();
        let result = match request.kubernetes.clone() {
            Some(proof) => self.join_by_kubernetes(request, proof).await,
            None => self.join_by_token(request).await,
        };
        self.0.metrics.join(result.as_ref().map(|_| ()).map_err(Status::code));
        if let Err(status) = &result {
            tracing::info!(reason = status.message(), "join refused");
        }
        result.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<SvidResponse>, Status> {
        let caller = grpc::require(&request, |role| !matches!(role, MeshRole::Workload { .. }))?;
        let certificate = grpc::certificate(&request).ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let RenewRequest { csr_der, client_unix_ms } = request.into_inner();
        let request = CertificateRequest::parse(&csr_der).map_err(ca_status)?;
        request.expect(&caller).map_err(ca_status)?;
        // A member that is cut off may not know of a revocation, and would undo it.
        self.0.consensus.barrier().await?;
        self.refuse_gone(&certificate)?;
        let life = match caller.role() {
            // Who was admitted for a month is renewed for a month.
            Some(MeshRole::Operator { .. }) => {
                certificate.not_after.duration_since(certificate.not_before).unwrap_or_default().min(OPERATOR_LIFE)
            }
            _ => self.0.svid_ttl,
        };
        self.issue(&request, &caller, life, client_unix_ms).map(Response::new)
    }

    async fn challenge(&self, _request: Request<ChallengeRequest>) -> Result<Response<ChallengeResponse>, Status> {
        let challenge = self.0.authority.get()?.challenge(OffsetDateTime::now_utc()).map_err(ca_status)?;
        Ok(Response::new(ChallengeResponse { challenge }))
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<SvidResponse>, Status> {
        let result = self.recover_by_key(request.into_inner()).await;
        if let Err(status) = &result {
            tracing::info!(reason = status.message(), "recovery refused");
        }
        result.map(Response::new)
    }

    async fn list(&self, request: Request<ListIdentitiesRequest>) -> Result<Response<ListIdentitiesResponse>, Status> {
        operator(&request)?;
        let caller = grpc::certificate(&request);
        self.0.list_identities(caller.as_deref(), request.into_inner()).await.map(Response::new)
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let caller = operator(&request)?;
        self.0.revoke_identity(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn create_operator(&self, request: Request<CreateOperatorRequest>) -> Result<Response<SvidResponse>, Status> {
        let caller = operator(&request)?;
        let CreateOperatorRequest { name, csr_der, ttl_ms } = request.into_inner();
        let life = operator_life(ttl_ms)?;
        let csr = CertificateRequest::parse(&csr_der).map_err(ca_status)?;
        let spiffe_id = self.0.new_operator(&name, csr.public_key_sha256()).await?;
        csr.expect(&spiffe_id).map_err(ca_status)?;
        tracing::info!(actor = %caller, spiffe_id = %spiffe_id, "operator created");
        let (response, record) = self.certify(&csr, &spiffe_id, life, 0)?;
        // Listed before it can be used: an operator that nobody sees is not created.
        let records = RecordIssued { certificates: vec![record] };
        answer(self.0.consensus.commit("", &caller.to_string(), Action::RecordIssued(records)).await?)?;
        Ok(Response::new(response))
    }
}

impl IdentityService {
    /// A certificate for whoever holds the key of one that ran out, within the grace.
    async fn recover_by_key(&self, request: RecoverRequest) -> Result<SvidResponse, Status> {
        let _slot =
            self.0.joins.try_acquire().map_err(|_| Status::unavailable("too many joins are under way, try again"))?;
        let RecoverRequest { chain_der, csr_der, challenge, signature, client_unix_ms } = request;
        let authority = self.0.authority.get()?;
        let now = SystemTime::now();
        if !authority.knows_challenge(&challenge, now.into()) {
            return Err(Status::failed_precondition("this challenge is not of this federation, or too old"));
        }
        let csr = CertificateRequest::parse(&csr_der).map_err(ca_status)?;
        let chain: Vec<CertificateDer<'_>> = chain_der.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let message = enrol::recovery_message(&challenge, &csr_der);
        let old = proof::verify(&chain, &authority.bundle(), &message, &signature)
            .map_err(|error| Status::permission_denied(chain_of(&error)))?;
        let id = old.spiffe_id.clone();
        if !matches!(id.role(), Some(MeshRole::Gateway { .. } | MeshRole::Agent { .. })) {
            return Err(Status::permission_denied(format!("{id} is neither a gateway nor an agent")));
        }
        csr.expect(&id).map_err(ca_status)?;
        if now.duration_since(old.not_after).unwrap_or_default() > self.0.recovery_grace {
            return Err(Status::permission_denied(format!(
                "the certificate of {id} ended more than {} h ago; give a new join token (meshctl token create)",
                self.0.recovery_grace.as_secs() / 3_600
            )));
        }
        self.0.consensus.barrier().await?;
        self.refuse_gone(&old)?;
        tracing::info!(spiffe_id = %id, "recovered");
        self.issue(&csr, &id, self.0.svid_ttl, client_unix_ms)
    }

    /// Nobody gets a certificate by one that is refused, or for a cluster that is no more.
    fn refuse_gone(&self, certificate: &PeerCertificate) -> Result<(), Status> {
        let id = &certificate.spiffe_id;
        self.0.consensus.read(|state| {
            if let Some(MeshRole::Gateway { cluster, .. } | MeshRole::Agent { cluster, .. }) = id.role()
                && state.is_deleted_cluster(&cluster)
            {
                return Err(Status::permission_denied(format!("cluster {cluster} was deleted: {id} is not renewed")));
            }
            match revocations::in_force(state).check(id, certificate.not_before) {
                Some(revoked) => Err(Status::permission_denied(format!("{id} is not renewed: {revoked}"))),
                None => Ok(()),
            }
        })
    }

    async fn join_by_token(&self, request: JoinRequest) -> Result<SvidResponse, Status> {
        let _slot =
            self.0.joins.try_acquire().map_err(|_| Status::unavailable("too many joins are under way, try again"))?;
        let JoinRequest { token_secret, csr_der, request_id, client_unix_ms, kubernetes: _ } = request;
        if token_secret.len() != 32 {
            return Err(Status::unauthenticated("this join token is unknown here"));
        }
        let secret_sha256 = sha256(&token_secret);
        let find = || self.0.consensus.read(|state| state.tokens().get(&secret_sha256).cloned());
        let token = match find() {
            Some(token) => token,
            None => {
                // It may have been created at another member a moment ago.
                self.0.consensus.barrier().await?;
                find().ok_or_else(|| Status::unauthenticated("this join token is unknown here"))?
            }
        };
        // All that can be refused is refused before the token is spent.
        let csr = CertificateRequest::parse(&csr_der).map_err(ca_status)?;
        let spiffe_id = match convert::role(token.role) {
            JoinRole::Agent => SpiffeId::agent(&self.0.trust_domain, &token.cluster, &token.name),
            JoinRole::Gateway => SpiffeId::gateway(&self.0.trust_domain, &token.cluster, &token.name),
            JoinRole::Unspecified => return Err(Status::internal("the token has no role")),
        };
        csr.expect(&spiffe_id).map_err(|error| {
            Status::permission_denied(format!("wrong cluster, role or name for this join token: {error}"))
        })?;
        self.0.authority.get()?;

        let public_key_sha256 = csr.public_key_sha256();
        let action = Action::TokenConsume(TokenConsume {
            secret_sha256: secret_sha256.to_vec(),
            public_key_sha256: public_key_sha256.to_vec(),
        });
        // Without an id of the client's, the key is the id: a retry is for the same key, or it is another request.
        let request_id = if request_id.is_empty() { HEXLOWER.encode(&public_key_sha256) } else { request_id };
        let actor = format!("token:{}", HEXLOWER.encode(&secret_sha256));
        let outcome = self.0.consensus.commit(&request_id, &actor, action).await?;
        let (_, Answer::Consumed(_)) = answer(outcome)? else {
            return Err(CommitError::Incompatible.into());
        };
        tracing::info!(spiffe_id = %spiffe_id, "joined");
        self.issue(&csr, &spiffe_id, self.0.svid_ttl, client_unix_ms)
    }

    pub(super) fn issue(
        &self,
        request: &CertificateRequest,
        spiffe_id: &SpiffeId,
        life: Duration,
        client_unix_ms: i64,
    ) -> Result<SvidResponse, Status> {
        let (response, record) = self.certify(request, spiffe_id, life, client_unix_ms)?;
        self.0.audit.record(record);
        Ok(response)
    }

    fn certify(
        &self,
        request: &CertificateRequest,
        spiffe_id: &SpiffeId,
        life: Duration,
        client_unix_ms: i64,
    ) -> Result<(SvidResponse, IssuedRecord), Status> {
        let authority = self.0.authority.get()?;
        let now = OffsetDateTime::now_utc();
        let earliest = self.0.consensus.read(revocations::in_force).accepted_from(spiffe_id);
        let issued =
            authority.issue_from(request, spiffe_id, life, now, earliest.map(Into::into)).map_err(ca_status)?;
        let record = self.0.audit.describe(&issued, spiffe_id, request.public_key_sha256());
        self.0.metrics.issued();
        let server_unix_ms = unix_ms();
        let clock_offset_ms = enrol::clock_offset_ms(client_unix_ms, server_unix_ms);
        if client_unix_ms != 0 {
            self.0.clocks.note(spiffe_id, clock_offset_ms);
        }
        let response = SvidResponse {
            spiffe_id: spiffe_id.to_string(),
            trust_domain: self.0.trust_domain.to_string(),
            chain_der: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle_der: authority.bundle().iter().map(|certificate| certificate.to_vec()).collect(),
            not_after_unix: issued.not_after.unix_timestamp(),
            control_plane: self.0.roster.addresses(),
            server_unix_ms,
            clock_offset_ms,
        };
        Ok((response, record))
    }
}

/// How far the clocks of those who asked this member for a certificate were ahead of its own.
#[derive(Debug, Default)]
pub(crate) struct Clocks(Mutex<BTreeMap<SpiffeId, Measured>>);

#[derive(Debug, Clone, Copy)]
struct Measured {
    offset_ms: i64,
    at_unix_ms: i64,
}

impl Clocks {
    /// Milliseconds; `None` when it has not asked here.
    pub(crate) fn offset_ms(&self, id: &SpiffeId) -> Option<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|measured| measured.offset_ms)
    }

    /// Those that an operator should see to, for the status of `member`, which is this one.
    pub(crate) fn far_off(&self, member: u64) -> Vec<ClockOffset> {
        let offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let far_off = offsets.iter().filter(|(_, measured)| measured.offset_ms.unsigned_abs() > CLOCK_SHOWN_MIN_MS);
        let offset = |(id, measured): (&SpiffeId, &Measured)| ClockOffset {
            spiffe_id: id.to_string(),
            offset_ms: measured.offset_ms,
            member,
            measured_unix_ms: measured.at_unix_ms,
        };
        far_off.take(CLOCKS_SHOWN_MAX).map(offset).collect()
    }

    fn note(&self, id: &SpiffeId, offset_ms: i64) {
        if offset_ms.unsigned_abs() > CLOCK_OFFSET_MAX_MS {
            tracing::warn!(spiffe_id = %id, clock_offset_ms = offset_ms, "the clock of this machine and the caller's differ");
        }
        let mut offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offsets.len() >= CLOCKS_MAX && !offsets.contains_key(id) {
            offsets.pop_first();
        }
        offsets.insert(id.clone(), Measured { offset_ms, at_unix_ms: unix_ms() });
    }
}

fn operator_life(ttl_ms: u64) -> Result<Duration, Status> {
    match Duration::from_millis(ttl_ms) {
        Duration::ZERO => Ok(OPERATOR_LIFE),
        life if life < OPERATOR_LIFE_MIN || life > OPERATOR_LIFE => {
            Err(Status::invalid_argument("an operator's certificate lives between 10 s and 365 days"))
        }
        life => Ok(life),
    }
}

pub(super) fn ca_status(error: CaError) -> Status {
    let text = error.to_string();
    match error {
        CaError::Request { .. } => Status::invalid_argument(text),
        CaError::OtherIdentity { .. } | CaError::WrongTrustDomain { .. } => Status::permission_denied(text),
        CaError::IssuerExpired { .. } => Status::failed_precondition(text),
        CaError::TooEarly => Status::unavailable(text),
        _ => Status::internal(text),
    }
}

const OPERATOR_LIFE_MIN: Duration = Duration::from_secs(10);
/// Half of what certificates are backdated by.
const CLOCK_OFFSET_MAX_MS: u64 = 30_000;
/// Every gateway of a large federation.
const CLOCKS_MAX: usize = 100_000;
/// Above the time that a slow request takes.
const CLOCK_SHOWN_MIN_MS: u64 = 5_000;
/// More than that many wrong clocks are one wrong clock: the member's.
const CLOCKS_SHOWN_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use archipelago_identity::TrustDomain;

    use super::*;

    #[test]
    fn clocks_far_off_are_shown_until_they_are_right() {
        let domain: TrustDomain = "archipelago.local".parse().unwrap();
        let (late, right) = (SpiffeId::gateway(&domain, "paris", "gw-1"), SpiffeId::gateway(&domain, "paris", "gw-2"));
        let clocks = Clocks::default();
        clocks.note(&late, -7_200_000);
        clocks.note(&right, 5_000);
        let shown = clocks.far_off(2);
        assert_eq!(shown.len(), 1);
        assert_eq!(
            (shown[0].spiffe_id.clone(), shown[0].offset_ms, shown[0].member),
            (late.to_string(), -7_200_000, 2)
        );
        clocks.note(&late, 3);
        assert!(clocks.far_off(2).is_empty());
        assert_eq!(clocks.offset_ms(&late), Some(3));
    }
}
