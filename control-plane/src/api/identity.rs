//! `Identity`: the first certificate by token, later ones by the certificate in hand.

use std::sync::Arc;

use archipelago_identity::{MeshRole, SpiffeId};
use archipelago_proto::v1::{JoinRequest, JoinRole, RenewRequest, SvidResponse, identity_server::Identity};
use archipelago_rpc::grpc;
use data_encoding::HEXLOWER;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::Context;
use crate::{
    bootstrap::OPERATOR_LIFE,
    ca::{CaError, CertificateRequest},
    consensus::CommitError,
    digest::sha256,
    machine::{
        command::{Action, Answer, TokenConsume},
        convert,
    },
    refusal::answer,
};

pub(super) struct IdentityService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<SvidResponse>, Status> {
        let result = self.join_by_token(request.into_inner()).await;
        self.0.metrics.join(result.as_ref().map(|_| ()).map_err(Status::code));
        if let Err(status) = &result {
            tracing::info!(reason = status.message(), "join refused");
        }
        result.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<SvidResponse>, Status> {
        let caller = grpc::require(&request, |role| !matches!(role, MeshRole::Workload { .. }))?;
        let request = CertificateRequest::parse(&request.get_ref().csr_der).map_err(ca_status)?;
        request.expect(&caller).map_err(ca_status)?;
        if let Some(MeshRole::Gateway { cluster, .. } | MeshRole::Agent { cluster, .. }) = caller.role()
            && self.0.consensus.read(|state| state.is_deleted_cluster(&cluster))
        {
            return Err(Status::permission_denied(format!("cluster {cluster} was deleted: {caller} is not renewed")));
        }
        self.issue(&request, &caller).map(Response::new)
    }
}

impl IdentityService {
    async fn join_by_token(&self, request: JoinRequest) -> Result<SvidResponse, Status> {
        let _slot =
            self.0.joins.try_acquire().map_err(|_| Status::unavailable("too many joins are under way, try again"))?;
        let JoinRequest { token_secret, csr_der, request_id } = request;
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
        self.issue(&csr, &spiffe_id)
    }

    fn issue(&self, request: &CertificateRequest, spiffe_id: &SpiffeId) -> Result<SvidResponse, Status> {
        let authority = self.0.authority.get()?;
        let life = match spiffe_id.role() {
            Some(MeshRole::Operator { .. }) => OPERATOR_LIFE,
            _ => self.0.svid_ttl,
        };
        let issued = authority.issue(request, spiffe_id, life, OffsetDateTime::now_utc()).map_err(ca_status)?;
        self.0.audit.record(&issued, spiffe_id, request.public_key_sha256());
        self.0.metrics.issued();
        Ok(SvidResponse {
            spiffe_id: spiffe_id.to_string(),
            trust_domain: self.0.trust_domain.to_string(),
            chain_der: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle_der: authority.bundle().iter().map(|certificate| certificate.to_vec()).collect(),
            not_after_unix: issued.not_after.unix_timestamp(),
            control_plane: self.0.addresses.clone(),
        })
    }
}

fn ca_status(error: CaError) -> Status {
    let text = error.to_string();
    match error {
        CaError::Request { .. } => Status::invalid_argument(text),
        CaError::OtherIdentity { .. } | CaError::WrongTrustDomain { .. } => Status::permission_denied(text),
        CaError::IssuerExpired { .. } => Status::failed_precondition(text),
        _ => Status::internal(text),
    }
}
