//! `Tokens`: single-use join tokens.

use std::{ops::Bound, sync::Arc};

use archipelago_proto::v1::{
    CreateTokenRequest, CreateTokenResponse, JoinRole, ListTokensRequest, ListTokensResponse, TokenInfo,
    tokens_server::Tokens,
};
use archipelago_rpc::enrol::JoinToken;
use data_encoding::HEXLOWER;
use tonic::{Request, Response, Status};

use super::{
    Context, operator, or_random,
    page::{self, Page},
};
use crate::{
    digest::sha256,
    machine::{
        command::{Action, TokenCreate},
        convert, gateway_problem, label_problem, role_name,
    },
    refusal::answer,
};

pub(super) struct TokensService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Tokens for TokensService {
    async fn create(&self, request: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        let actor = operator(&request)?.to_string();
        let CreateTokenRequest { cluster, role, name, ttl_ms, request_id } = request.into_inner();
        let (role, name) = match (JoinRole::try_from(role), name) {
            (Ok(JoinRole::Agent), name) if name.is_empty() => (JoinRole::Agent, "agent".to_owned()),
            (Ok(role @ (JoinRole::Agent | JoinRole::Gateway)), name) => (role, name),
            _ => return Err(Status::invalid_argument("a token is for an agent or for a gateway")),
        };
        let name_problem = match role {
            // May be named after its node.
            JoinRole::Gateway => gateway_problem(&name),
            JoinRole::Agent | JoinRole::Unspecified => label_problem("agent", &name),
        };
        let role = i32::from(convert::role_of(role));
        if let Some(problem) = label_problem("cluster", &cluster).or(name_problem) {
            return Err(Status::invalid_argument(problem));
        }
        let ttl_ms = if ttl_ms == 0 { TTL_MS_DEFAULT } else { i64::try_from(ttl_ms).unwrap_or(i64::MAX) };
        if ttl_ms > TTL_MS_MAX {
            return Err(Status::invalid_argument("a token lives at most 7 days"));
        }

        let authority = self.0.authority.get()?;
        // Derived, not drawn: the control plane keeps only its hash, and a retried request must get the same token.
        let request_id = or_random(request_id);
        let secret = authority.token_secret(&actor, &request_id);
        let secret_sha256 = sha256(&secret);
        let action = Action::TokenCreate(TokenCreate {
            secret_sha256: secret_sha256.to_vec(),
            cluster: cluster.clone(),
            role,
            name: name.clone(),
            ttl_ms,
        });
        let outcome = self.0.consensus.commit(&request_id, &actor, action).await?;
        answer(outcome)?;
        let expires_unix_ms =
            self.0.consensus.read(|state| state.tokens().get(&secret_sha256).map(|t| t.expires_unix_ms));
        let expires_unix = match expires_unix_ms {
            Some(at) => at / 1_000,
            None => {
                // Committed, but this member is more than a second behind.
                self.0.consensus.barrier().await?;
                let at = self.0.consensus.read(|state| state.tokens().get(&secret_sha256).map(|t| t.expires_unix_ms));
                at.ok_or_else(|| Status::unavailable("the token is not visible here yet, try again"))? / 1_000
            }
        };
        let token = JoinToken {
            control_plane: self.0.roster.addresses(),
            trust_domain: self.0.trust_domain.to_string(),
            cluster,
            role: role_name(role).to_owned(),
            name,
            secret,
            ca_sha256: authority.root_sha256(),
            expires_unix,
        };
        tracing::info!(actor, cluster = token.cluster, role = token.role, name = token.name, "join token created");
        Ok(Response::new(CreateTokenResponse { token: token.to_string(), expires_unix }))
    }

    async fn list(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        operator(&request)?;
        let ListTokensRequest { page_size, page_token } = request.into_inner();
        let after = page::parse(&page_token)?.map(|[id]: [String; 1]| last_of(&id)).transpose()?;
        self.0.consensus.barrier().await?;
        let state = self.0.consensus.state();
        let mut page = Page::new(page_size);
        let listed: Vec<_> = state
            .tokens()
            .range((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))
            .take_while(|_| page.takes(TOKEN_INFO_BYTES))
            .collect();
        let last = listed.last().filter(|_| page.is_full());
        let next_page_token = last.map_or_else(String::new, |(secret, _)| {
            HEXLOWER.encode(secret.get(..PAGE_TOKEN_BYTES).unwrap_or_default())
        });
        let info = |(secret, token): (&[u8; 32], &crate::machine::Token)| TokenInfo {
            id: HEXLOWER.encode(secret).chars().take(8).collect(),
            cluster: token.cluster.clone(),
            role: convert::role(token.role).into(),
            name: token.name.clone(),
            expires_unix: token.expires_unix_ms / 1_000,
            used_unix: token.used_unix_ms.map_or(0, |used| used / 1_000),
        };
        let tokens = listed.into_iter().map(info).collect();
        Ok(Response::new(ListTokensResponse { tokens, next_page_token }))
    }
}

/// The greatest hash that begins as a page token says: the whole hash is nobody's business.
fn last_of(page_token: &str) -> Result<[u8; 32], Status> {
    let wrong = || Status::invalid_argument("the page token is not one of this listing");
    let begin = HEXLOWER.decode(page_token.as_bytes()).map_err(|_| wrong())?;
    let mut last = [0xff; 32];
    last.get_mut(..begin.len()).ok_or_else(wrong)?.copy_from_slice(&begin);
    Ok(last)
}

/// kubeadm's choice; long enough to copy a token to a machine, short enough to forget one.
const TTL_MS_DEFAULT: i64 = 15 * 60 * 1_000;
/// Enough that two tokens never begin alike.
const PAGE_TOKEN_BYTES: usize = 16;
/// Two names of 63 bytes with what belongs to them.
const TOKEN_INFO_BYTES: usize = 160;
const TTL_MS_MAX: i64 = 7 * 24 * 3_600 * 1_000;
