//! The first SVID: for a join token, or for a ServiceAccount token that the cluster itself vouches for.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use archipelago_identity::{
    Credential, CredentialDir, LiveCredential, MeshRole, TrustDomain,
    tls::{self, IdentityError},
};
use archipelago_proto::v1::{JoinRequest, KubernetesProof, identity_client::IdentityClient};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::Rng;
use zeroize::Zeroizing;

use super::{
    EnrolError, JoinConfig, JoinToken,
    candidate::{credential_from, key_and_csr},
    renew::unix_ms,
};
use crate::grpc;

/// What lets a process in that has no identity.
#[derive(Debug, Clone)]
pub enum Joining {
    /// A token that works once.
    Token(JoinToken),
    /// The ServiceAccount that it runs as.
    ServiceAccount(ServiceAccount),
}

impl Joining {
    /// Goes this way once.
    ///
    /// # Errors
    /// See [`EnrolError`].
    pub async fn join(&self) -> Result<Joined, EnrolError> {
        match self {
            Self::Token(token) => join(token).await,
            Self::ServiceAccount(account) => join_with_service_account(account).await,
        }
    }
}

impl From<JoinToken> for Joining {
    fn from(token: JoinToken) -> Self {
        Self::Token(token)
    }
}

/// A gateway on a Kubernetes node, and how it proves that.
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    /// The federation that it joins.
    pub config: JoinConfig,
    /// Projected token, with the audience [`JoinConfig::audience`]; read anew at every attempt, because it is rotated.
    pub token_file: PathBuf,
    /// Name that the gateway goes by: the node's.
    pub gateway: String,
}

/// What joining gives.
#[derive(Debug)]
pub struct Joined {
    /// The first SVID.
    pub credential: Credential,
    /// host:port of every control-plane member, as the control plane itself knows them.
    pub control_plane: Vec<String>,
}

/// The credential in `dir`, also one that has run out, or a first one by `joining`.
///
/// # Errors
/// The stored one is unusable, or joining failed, or there is no way to join.
pub async fn ensure(dir: &CredentialDir, joining: Option<&Joining>) -> Result<LiveCredential, EnrolError> {
    if let Some(stored) = dir.load()? {
        if stored.not_after <= SystemTime::now() {
            tracing::warn!(
                spiffe_id = %stored.spiffe_id,
                "the stored SVID has run out: no connections until a control plane gives another"
            );
        }
        return Ok(LiveCredential::new(stored)?);
    }
    let joined = joining.ok_or(EnrolError::NoCredential)?.join().await?;
    dir.store(&joined.credential)?;
    Ok(LiveCredential::new(joined.credential)?)
}

/// Exchanges `token` for an SVID, over a connection whose server must chain to the token's root.
///
/// # Errors
/// See [`EnrolError`]; a refusal by the control plane carries its words (unknown, used, expired, …).
pub async fn join(token: &JoinToken) -> Result<Joined, EnrolError> {
    let malformed = |_| EnrolError::MalformedToken { what: "its trust domain is invalid".to_owned() };
    let trust_domain: TrustDomain = token.trust_domain.parse().map_err(malformed)?;
    let contact = Contact {
        control_plane: &token.control_plane,
        trust_domain,
        ca_sha256: token.ca_sha256,
        attempts_max: TOKEN_ATTEMPTS_MAX,
    };
    let mut request_id = [0u8; 16];
    rand::rng().fill_bytes(&mut request_id);
    let request = JoinRequest {
        token_secret: token.secret.to_vec(),
        // Retries are the same request: a token spent by an attempt whose answer got lost still answers it.
        request_id: BASE64_URL_SAFE_NO_PAD.encode(request_id),
        ..JoinRequest::default()
    };
    contact.join(request).await
}

/// Exchanges a ServiceAccount token for an SVID, over a connection whose server must chain to the configuration's root.
///
/// # Errors
/// See [`EnrolError`]. Most of them pass: the cluster's agent may not be connected yet, and the token is rotated.
async fn join_with_service_account(account: &ServiceAccount) -> Result<Joined, EnrolError> {
    let ServiceAccount { config, token_file, gateway } = account;
    let token = read_token(token_file)
        .map_err(|source| EnrolError::ServiceAccountToken { path: token_file.clone(), source })?;
    let contact = Contact {
        control_plane: &config.control_plane,
        trust_domain: config.trust_domain.clone(),
        ca_sha256: config.ca_sha256,
        // The next attempt reads the token again.
        attempts_max: 1,
    };
    let proof = KubernetesProof { cluster: config.cluster.clone(), service_account_token: String::clone(&token) };
    let request = JoinRequest { kubernetes: Some(proof), ..JoinRequest::default() };
    let joined = contact.join(request).await.map_err(|error| match error {
        EnrolError::Refused(reason) => EnrolError::NotVouchedFor(reason),
        error => error,
    })?;
    let expected = MeshRole::Gateway { cluster: config.cluster.clone(), name: gateway.clone() };
    if joined.credential.spiffe_id.role().as_ref() != Some(&expected) {
        let expected = format!("gateway {gateway} of cluster {}, as --name says", config.cluster);
        return Err(EnrolError::Identity(IdentityError::Unexpected {
            presented: joined.credential.spiffe_id,
            expected,
        }));
    }
    Ok(joined)
}

/// A control plane that is known by the hash of its root.
struct Contact<'a> {
    control_plane: &'a [String],
    trust_domain: TrustDomain,
    ca_sha256: [u8; 32],
    attempts_max: u32,
}

impl Contact<'_> {
    async fn join(&self, request: JoinRequest) -> Result<Joined, EnrolError> {
        let (key, csr_der) = key_and_csr()?;
        let config = tls::enrolment_config(self.trust_domain.clone(), self.ca_sha256);
        let request = JoinRequest { csr_der, ..request };
        let mut attempt = 0;
        let response = loop {
            attempt += 1;
            let request = JoinRequest { client_unix_ms: unix_ms(), ..request.clone() };
            let answer = match grpc::connect_with(self.control_plane, config.clone()).await {
                Ok(channel) => match IdentityClient::new(channel).join(request).await {
                    Ok(response) => break response.into_inner(),
                    Err(status) => EnrolError::from_status(status),
                },
                Err(error) => EnrolError::Connect(error),
            };
            if attempt == self.attempts_max || !answer.is_retryable() {
                return Err(answer);
            }
            tokio::time::sleep(RETRY_DELAY).await;
        };
        let control_plane = response.control_plane.clone();
        let credential = credential_from(response, key)?;
        if *credential.spiffe_id.trust_domain() != self.trust_domain {
            return Err(EnrolError::Identity(IdentityError::WrongTrustDomain {
                presented: credential.spiffe_id,
                trust_domain: self.trust_domain.clone(),
            }));
        }
        Ok(Joined { credential, control_plane })
    }
}

fn read_token(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let limit = SERVICE_ACCOUNT_TOKEN_BYTES_MAX as u64 + 2;
    File::open(path)?.take(limit).read_to_string(&mut text)?;
    let token = text.trim();
    match token.len() {
        0 => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty")),
        1..=SERVICE_ACCOUNT_TOKEN_BYTES_MAX => Ok(Zeroizing::new(token.to_owned())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large for a ServiceAccount token")),
    }
}

/// Projected tokens are below 2 KiB; whoever sends more wants to find out what happens.
pub const SERVICE_ACCOUNT_TOKEN_BYTES_MAX: usize = 8 * 1024;
/// With the delays below about ten seconds: an election and a bit.
const TOKEN_ATTEMPTS_MAX: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_as_it_is_now_and_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert_eq!(read_token(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_token(&path).map(|token| token.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(read("abc.def.ghi\n"), Ok("abc.def.ghi".to_owned()));
        assert_eq!(read("rotated"), Ok("rotated".to_owned()));
        assert_eq!(read(" \n"), Err("it is empty".to_owned()));
        assert_eq!(read(&"x".repeat(SERVICE_ACCOUNT_TOKEN_BYTES_MAX)).unwrap().len(), SERVICE_ACCOUNT_TOKEN_BYTES_MAX);
        assert!(read(&"x".repeat(SERVICE_ACCOUNT_TOKEN_BYTES_MAX + 1)).unwrap_err().contains("too large"));
    }
}
