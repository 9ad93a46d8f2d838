//! How a process gets its first SVID, and the next ones.
//!
//! A [`JoinToken`] carries everything a machine needs for its first contact: where the control plane is, the hash of the
//! root it must show, and a secret that works once. From then on the SVID itself authenticates: [`keep_renewed`] asks for a new
//! one when a quarter of its life has passed, so that three quarters are left to outlive a missing control plane.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use archipelago_base::shutdown::Shutdown;
use archipelago_identity::{
    Credential, CredentialDir, CredentialError, LiveCredential, TrustDomain,
    tls::{self, Expect, IdentityError},
};
use archipelago_proto::v1::{JoinRequest, RenewRequest, SvidResponse, identity_client::IdentityClient};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::{Rng, RngExt};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use crate::grpc::{self, ConnectError};

/// What `meshctl token create` prints and a joining process is given: `amt1.` and base64url of JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// host:port of every control-plane member.
    #[serde(rename = "cp")]
    pub control_plane: Vec<String>,
    /// Trust domain of the federation.
    #[serde(rename = "td")]
    pub trust_domain: String,
    /// Cluster the token is bound to.
    #[serde(rename = "c")]
    pub cluster: String,
    /// `agent` or `gateway`.
    #[serde(rename = "r")]
    pub role: String,
    /// Name within the cluster.
    #[serde(rename = "n")]
    pub name: String,
    /// 256 random bits; the control plane keeps only their hash.
    #[serde(rename = "s", with = "base64_bytes")]
    pub secret: [u8; 32],
    /// SHA-256 of the root certificate's DER.
    #[serde(rename = "ca", with = "base64_bytes")]
    pub ca_sha256: [u8; 32],
    /// Unix seconds after which the control plane refuses it.
    #[serde(rename = "exp")]
    pub expires_unix: i64,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(out, "{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for JoinToken {
    type Err = EnrolError;

    fn from_str(text: &str) -> Result<Self, EnrolError> {
        let malformed = |what: &str| EnrolError::MalformedToken { what: what.to_owned() };
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let base64 = text.strip_prefix(TOKEN_PREFIX).ok_or_else(|| malformed("it does not begin with `amt1.`"))?;
        let json = BASE64_URL_SAFE_NO_PAD.decode(base64).map_err(|_| malformed("it is cut off or mistyped"))?;
        serde_json::from_slice(&json).map_err(|_| malformed("its content is not that of a token"))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret.
        write!(out, "JoinToken({} {} of {}, {})", self.role, self.name, self.cluster, self.trust_domain)
    }
}

/// What joining gives.
#[derive(Debug)]
pub struct Joined {
    /// The first SVID.
    pub credential: Credential,
    /// host:port of every control-plane member, as the control plane itself knows them.
    pub control_plane: Vec<String>,
}

/// Exchanges `token` for an SVID, over a connection whose server must chain to the token's root.
///
/// # Errors
/// See [`EnrolError`]; a refusal by the control plane carries its words (unknown, used, expired, …).
pub async fn join(token: &JoinToken) -> Result<Joined, EnrolError> {
    let trust_domain: TrustDomain = token
        .trust_domain
        .parse()
        .map_err(|_| EnrolError::MalformedToken { what: "its trust domain is invalid".to_owned() })?;
    let (key, csr_der) = key_and_csr()?;
    let config = tls::enrolment_config(trust_domain.clone(), token.ca_sha256);
    let mut request_id = [0u8; 16];
    rand::rng().fill_bytes(&mut request_id);
    let request = JoinRequest {
        token_secret: token.secret.to_vec(),
        csr_der,
        // Retries below are the same request: a token spent by an attempt whose answer got lost still answers it.
        request_id: BASE64_URL_SAFE_NO_PAD.encode(request_id),
    };
    let mut attempt = 0;
    let response = loop {
        attempt += 1;
        let answer = match grpc::connect_with(&token.control_plane, config.clone()).await {
            Ok(channel) => match IdentityClient::new(channel).join(request.clone()).await {
                Ok(response) => break response.into_inner(),
                Err(status) => EnrolError::from_status(status),
            },
            Err(error) => EnrolError::Connect(error),
        };
        if attempt == JOIN_ATTEMPTS_MAX || !answer.is_retryable() {
            return Err(answer);
        }
        tokio::time::sleep(RETRY_DELAY).await;
    };
    let control_plane = response.control_plane.clone();
    let credential = credential_from(response, key)?;
    if *credential.spiffe_id.trust_domain() != trust_domain {
        return Err(EnrolError::Identity(IdentityError::WrongTrustDomain {
            presented: credential.spiffe_id,
            trust_domain,
        }));
    }
    Ok(Joined { credential, control_plane })
}

/// Asks for a new SVID of the same identity.
///
/// # Errors
/// No control plane answered, it refused, or its answer is not usable.
pub async fn renew(credential: &LiveCredential, control_plane: &[String]) -> Result<Credential, EnrolError> {
    let (key, csr_der) = key_and_csr()?;
    let channel = grpc::connect(control_plane, credential, Expect::control_plane()).await?;
    let response =
        IdentityClient::new(channel).renew(RenewRequest { csr_der }).await.map_err(EnrolError::from_status)?;
    let renewed = credential_from(response.into_inner(), key)?;
    let ours = credential.current().spiffe_id.clone();
    if renewed.spiffe_id != ours {
        return Err(EnrolError::Identity(IdentityError::Unexpected {
            presented: renewed.spiffe_id,
            expected: ours.to_string(),
        }));
    }
    Ok(renewed)
}

/// The credential in `dir`, or a first one by `token`.
///
/// # Errors
/// The stored one is unusable or has expired, or joining failed, or there is neither credential nor token.
pub async fn ensure(dir: &CredentialDir, token: Option<JoinToken>) -> Result<LiveCredential, EnrolError> {
    if let Some(stored) = dir.load()? {
        if stored.not_after > SystemTime::now() {
            return Ok(LiveCredential::new(stored)?);
        }
        if token.is_none() {
            return Err(EnrolError::Expired { spiffe_id: stored.spiffe_id.to_string() });
        }
    }
    let token = token.ok_or(EnrolError::NoCredential)?;
    let joined = join(&token).await?;
    dir.store(&joined.credential)?;
    Ok(LiveCredential::new(joined.credential)?)
}

/// Renews `credential` for as long as the process runs: at a quarter of its life, then again until it works.
pub async fn keep_renewed(
    credential: LiveCredential,
    dir: CredentialDir,
    control_plane: Vec<String>,
    shutdown: Shutdown,
) {
    let mut failures = 0u32;
    loop {
        let current = credential.current();
        let jitter = rand::rng().random_range(-1.0..=1.0);
        let due = renewal_due(current.not_before, current.not_after, jitter);
        let wait = if failures == 0 { until(due) } else { retry_delay(failures) };
        tokio::select! {
            () = shutdown.requested() => return,
            () = sleep_by_wall_clock(wait) => {}
        }
        match renew(&credential, &control_plane).await {
            Ok(renewed) => {
                failures = 0;
                // Used even when the disk refuses it: the process goes on, and the next start joins with what it had.
                if let Err(error) = dir.store(&renewed) {
                    tracing::error!(error = %describe(&error), "the renewed SVID could not be stored");
                }
                match credential.replace(renewed) {
                    Ok(()) => tracing::info!(spiffe_id = %current.spiffe_id, "SVID renewed"),
                    Err(error) => tracing::error!(%error, "the renewed SVID could not be used"),
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let left = current.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                tracing::warn!(error = %describe(&error), failures, seconds_left = left.as_secs(), "SVID renewal failed");
            }
        }
    }
}

/// When an SVID with this validity is to be renewed: a quarter into its life, give or take a tenth of that.
///
/// `jitter` is in -1.0..=1.0 and keeps a fleet that joined together from renewing together.
#[must_use]
pub fn renewal_due(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_before + life.mul_f64(0.25 * (1.0 + 0.1 * jitter.clamp(-1.0, 1.0)))
}

/// Why a process has no SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// No member of the control plane could be reached, or none showed an acceptable identity.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stored credential cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The stored SVID has expired and there is no token to join anew.
    #[error("the stored SVID of {spiffe_id} has expired; give a new join token (meshctl token create)")]
    Expired {
        /// Whose it was.
        spiffe_id: String,
    },
    /// A certificate is not acceptable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Making a key or a CSR failed.
    #[error("a key could not be made")]
    Key(#[from] rcgen::Error),
    /// The token text is damaged.
    #[error("this is not a join token: {what}")]
    MalformedToken {
        /// What is wrong with it.
        what: String,
    },
    /// Neither a stored credential nor a token.
    #[error("no identity yet: give a join token (meshctl token create)")]
    NoCredential,
    /// The control plane said no, in its words.
    #[error("the control plane refused: {0}")]
    Refused(String),
    /// The control plane cannot answer now.
    #[error("the control plane cannot answer now: {0}")]
    Unavailable(String),
}

impl EnrolError {
    fn from_status(status: Status) -> Self {
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Aborted | Code::Cancelled => {
                Self::Unavailable(status.message().to_owned())
            }
            _ => Self::Refused(status.message().to_owned()),
        }
    }

    /// Whether the same attempt may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(error) => !error.is_identity_refusal(),
            Self::Unavailable(_) => true,
            _ => false,
        }
    }
}

fn key_and_csr() -> Result<(KeyPair, Vec<u8>), EnrolError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    // The issuer takes nothing but the public key from a CSR, so it names nothing.
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr: CertificateSigningRequestDer<'static> = params.serialize_request(&key)?.into();
    Ok((key, csr.to_vec()))
}

fn credential_from(response: SvidResponse, key: KeyPair) -> Result<Credential, EnrolError> {
    let certificates = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Credential::new(certificates(response.chain_der), key, certificates(response.bundle_der))?)
}

/// Sleeps in steps and looks at the wall clock between them: a jump of the clock, or a suspended machine, is noticed.
async fn sleep_by_wall_clock(wait: Duration) {
    let end = SystemTime::now() + wait;
    loop {
        let left = until(end);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_STEP)).await;
    }
}

fn until(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Full jitter below a doubling ceiling: the whole fleet retries after an outage of the control plane.
fn retry_delay(failures: u32) -> Duration {
    let ceiling = RETRY_DELAY.saturating_mul(1 << failures.min(7)).min(RETRY_DELAY_MAX);
    rand::rng().random_range(RETRY_DELAY..=ceiling.max(RETRY_DELAY))
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

mod base64_bytes {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("expected 32 bytes"))
    }
}

const TOKEN_PREFIX: &str = "amt1.";
/// A hundred members' addresses fit; garbage of any size is not decoded.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// With the delays below about ten seconds: an election and a bit.
const JOIN_ATTEMPTS_MAX: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
const CLOCK_STEP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            control_plane: vec!["127.0.0.1:7400".into()],
            trust_domain: "mesh.example".into(),
            cluster: "paris".into(),
            role: "gateway".into(),
            name: "gw-1".into(),
            secret: [7; 32],
            ca_sha256: [9; 32],
            expires_unix: 1_800_000_000,
        }
    }

    #[test]
    fn a_token_survives_its_text_form_and_hides_its_secret() {
        let text = token().to_string();
        assert!(text.starts_with("amt1."));
        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        assert!(!format!("{:?}", token()).contains('7'));
    }

    #[test]
    fn damage_to_a_token_is_told_apart() {
        let text = token().to_string();
        for (damaged, says) in [
            ("hello".to_owned(), "does not begin"),
            (text[..text.len() - 3].to_owned(), ""),
            (format!("amt1.{}", "A".repeat(20_000)), "too long"),
            ("amt1.!!!".to_owned(), "cut off or mistyped"),
        ] {
            let error = damaged.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.contains("not a join token") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn renewal_is_due_at_a_quarter_of_the_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_secs(48 * 3600);
        assert_eq!(renewal_due(start, end, 0.0), start + Duration::from_secs(12 * 3600));
        assert!(renewal_due(start, end, 1.0) < start + Duration::from_secs(14 * 3600));
        assert_eq!(renewal_due(end, start, 0.0), end, "a validity that ends before it begins is due at once");
    }

    proptest! {
        #[test]
        fn no_text_panics_the_token_parser(text in "(amt1\\.)?.{0,300}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
