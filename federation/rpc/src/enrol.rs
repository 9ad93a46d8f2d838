//! How a process gets its first SVID, the next ones, and one after its own ran out.
//!
//! A [`JoinToken`] carries everything a machine needs for its first contact: where the control plane is, the hash of the
//! root it must show, and a secret that works once. From then on the SVID itself authenticates: [`keep_renewed`] asks for a new
//! one when a quarter of its life has passed, so that three quarters are left to outlive a missing control plane.
//! When even that was not enough, the process goes on without connections and gets back by [`recover`]: it signs a challenge
//! with the old key. What to do when is decided by [`Renewal`], which has no clock and no sockets.

use std::{
    fmt, io,
    path::Path,
    str::FromStr,
    time::{Duration, SystemTime},
};

use archipelago_base::{backoff::Backoff, error::chain, shutdown::Shutdown};
use archipelago_identity::{
    Credential, CredentialDir, CredentialError, LiveCredential, TrustDomain, proof,
    tls::{self, Expect, IdentityError, certificate_sha256},
};
use archipelago_proto::v1::{
    ChallengeRequest, JoinRequest, RecoverRequest, RenewRequest, SvidResponse, identity_client::IdentityClient,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::{Rng, RngExt};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject,
};
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
        client_unix_ms: 0,
        kubernetes: None,
    };
    let mut attempt = 0;
    let response = loop {
        attempt += 1;
        let request = JoinRequest { client_unix_ms: unix_ms(), ..request.clone() };
        let answer = match grpc::connect_with(&token.control_plane, config.clone()).await {
            Ok(channel) => match IdentityClient::new(channel).join(request).await {
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
    let request = RenewRequest { csr_der, client_unix_ms: unix_ms() };
    let response = IdentityClient::new(channel).renew(request).await.map_err(EnrolError::from_status)?.into_inner();
    check_clock(&response);
    same_identity(credential, credential_from(response, key)?)
}

/// Gets a new SVID of the same identity after the old one ran out, by a signature with its key.
///
/// # Errors
/// As [`renew`]; refused when it ran out too long ago, was revoked, or its cluster was deleted.
pub async fn recover(credential: &LiveCredential, control_plane: &[String]) -> Result<Credential, EnrolError> {
    let (key, csr_der) = key_and_csr()?;
    let old = credential.current();
    let channel = grpc::connect_with(control_plane, tls::recovery_config(credential)).await?;
    let mut client = IdentityClient::new(channel);
    let challenge =
        client.challenge(ChallengeRequest {}).await.map_err(EnrolError::from_status)?.into_inner().challenge;
    let request = RecoverRequest {
        signature: proof::sign(&old, &recovery_message(&challenge, &csr_der))?,
        chain_der: old.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        csr_der,
        challenge,
        client_unix_ms: unix_ms(),
    };
    let response = client.recover(request).await.map_err(EnrolError::from_status)?.into_inner();
    check_clock(&response);
    same_identity(credential, credential_from(response, key)?)
}

/// What the old key signs: this challenge, for this request and no other.
#[must_use]
pub fn recovery_message(challenge: &[u8], csr_der: &[u8]) -> Vec<u8> {
    let csr_sha256 = certificate_sha256(&CertificateDer::from(csr_der));
    [&(challenge.len() as u64).to_be_bytes(), challenge, &csr_sha256].concat()
}

/// The credential in `dir`, also one that has run out, or a first one by `token`.
///
/// # Errors
/// The stored one is unusable, or joining failed, or there is neither credential nor token.
pub async fn ensure(dir: &CredentialDir, token: Option<JoinToken>) -> Result<LiveCredential, EnrolError> {
    if let Some(stored) = dir.load()? {
        if stored.not_after <= SystemTime::now() {
            tracing::warn!(
                spiffe_id = %stored.spiffe_id,
                "the stored SVID has run out: no connections until a control plane gives another"
            );
        }
        return Ok(LiveCredential::new(stored)?);
    }
    let joined = join(&token.ok_or(EnrolError::NoCredential)?).await?;
    dir.store(&joined.credential)?;
    Ok(LiveCredential::new(joined.credential)?)
}

/// Keeps `credential` valid for as long as the process runs: renews it in time, recovers it when that failed for too long, and
/// joins by `token` when even that is refused.
pub async fn keep_renewed(
    credential: LiveCredential,
    dir: CredentialDir,
    control_plane: Vec<String>,
    token: Option<JoinToken>,
    shutdown: Shutdown,
) {
    let current = credential.current();
    let jitter = || rand::rng().random_range(-1.0..=1.0);
    let mut renewal = Renewal::new((current.not_before, current.not_after), token.is_some(), jitter());
    loop {
        let (at, how) = renewal.next(SystemTime::now());
        let clock = tokio::select! {
            () = shutdown.requested() => return,
            clock = wait_until(at) => clock,
        };
        if let Clock::Jumped(by) = clock {
            tracing::info!(seconds = by, "the wall clock of this machine was set, or it slept");
            renewal.doubt();
            continue;
        }
        let outcome = match (how, &token) {
            (How::Join, Some(token)) => {
                join(token).await.and_then(|joined| same_identity(&credential, joined.credential))
            }
            (How::Renew, _) => renew(&credential, &control_plane).await,
            (How::Recover, _) | (How::Join, None) => recover(&credential, &control_plane).await,
        };
        match outcome {
            Ok(renewed) => {
                renewal.succeeded((renewed.not_before, renewed.not_after), jitter());
                // Used even when the disk refuses it: the process goes on, and the next start goes on with what it had.
                if let Err(error) = dir.store(&renewed) {
                    tracing::error!(error = %chain(&error), "the renewed SVID could not be stored");
                }
                let spiffe_id = renewed.spiffe_id.clone();
                match credential.replace(renewed) {
                    Ok(()) => tracing::info!(%spiffe_id, ?how, "SVID renewed"),
                    Err(error) => tracing::error!(%error, "the renewed SVID could not be used"),
                }
            }
            Err(error) => {
                let left = credential.current().not_after.duration_since(SystemTime::now()).unwrap_or_default();
                if let EnrolError::Connect(error) = &error
                    && let Some(behind) = error.clock_behind()
                {
                    let behind = behind.as_secs();
                    tracing::warn!(seconds = behind, "the clock of this machine is behind by at least so much: set it");
                }
                renewal.failed(how, error.is_retryable(), rand::random());
                let (error, failures) = (chain(&error), renewal.failures());
                tracing::warn!(error, failures, ?how, seconds_left = left.as_secs(), "SVID renewal failed");
            }
        }
    }
}

/// When to ask for the next SVID, and how. Pure: the time and randomness are passed in.
#[derive(Debug)]
pub struct Renewal {
    not_before: SystemTime,
    not_after: SystemTime,
    due: SystemTime,
    can_join: bool,
    /// The last recovery was refused for good; a token may help.
    recovery_refused: bool,
    backoff: Backoff,
    /// After a failure: not before this long.
    pause: Option<Duration>,
    in_doubt: bool,
}

/// A way to an SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By the token that was given.
    Join,
    /// By a signature with the key of an SVID that has run out.
    Recover,
    /// Over a connection that the SVID in hand authenticates.
    Renew,
}

impl Renewal {
    /// For an SVID with this validity; `can_join`: there is a token. `jitter` as in [`renewal_due`].
    #[must_use]
    pub fn new((not_before, not_after): (SystemTime, SystemTime), can_join: bool, jitter: f64) -> Self {
        Self {
            not_before,
            not_after,
            due: renewal_due(not_before, not_after, jitter),
            can_join,
            recovery_refused: false,
            backoff: Backoff::new(RETRY_DELAY, RETRY_DELAY, RETRY_DELAY_MAX),
            pause: None,
            in_doubt: false,
        }
    }

    /// What to do next, and when.
    #[must_use]
    pub fn next(&self, now: SystemTime) -> (SystemTime, How) {
        let how = match (now < self.not_after, self.recovery_refused && self.can_join) {
            (true, _) => How::Renew,
            (false, false) => How::Recover,
            (false, true) => How::Join,
        };
        let at = match self.pause {
            Some(pause) => now + pause,
            // Before its beginning: the clock jumped back, and nobody else may accept the SVID.
            None if self.in_doubt || now < self.not_before => now,
            None => self.due.max(now),
        };
        (at, how)
    }

    /// Another SVID is in use.
    pub fn succeeded(&mut self, validity: (SystemTime, SystemTime), jitter: f64) {
        *self = Self::new(validity, self.can_join, jitter);
    }

    /// An attempt failed; `random` in `[0, 1)`.
    pub fn failed(&mut self, how: How, retryable: bool, random: f64) {
        self.pause = Some(self.backoff.next_delay(random));
        self.in_doubt = false;
        // A token that is refused is spent or over: recovery may work again one day, once an operator allows it.
        self.recovery_refused = how == How::Recover && !retryable;
    }

    /// The clock is not what it was: ask at once, the answer tells the time.
    pub fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
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
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Aborted
            | Code::Cancelled
            | Code::ResourceExhausted => Self::Unavailable(chain(&status)),
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

/// A key made here and a request for its certificate, for somebody else's call to `Identity`.
pub struct Candidate {
    key: KeyPair,
    csr_der: Vec<u8>,
}

impl Candidate {
    /// A new key.
    ///
    /// # Errors
    /// The random source failed.
    pub fn generate() -> Result<Self, EnrolError> {
        let (key, csr_der) = key_and_csr()?;
        Ok(Self { key, csr_der })
    }

    /// PKCS#10, DER.
    #[must_use]
    pub fn csr_der(&self) -> &[u8] {
        &self.csr_der
    }

    /// The key with what was issued for it.
    ///
    /// # Errors
    /// The answer is not usable, or for another key.
    pub fn certify(self, response: SvidResponse) -> Result<Credential, EnrolError> {
        credential_from(response, self.key)
    }
}

/// Reads a PKCS#10 request as other tools write it: PEM, or DER.
///
/// # Errors
/// The file cannot be read, or is too large to be a request.
pub fn read_csr(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    if bytes.len() > CSR_FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large for a certificate request"));
    }
    Ok(CertificateSigningRequestDer::from_pem_slice(&bytes).map_or(bytes, |request| request.to_vec()))
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

fn same_identity(credential: &LiveCredential, renewed: Credential) -> Result<Credential, EnrolError> {
    let ours = credential.current().spiffe_id.clone();
    if renewed.spiffe_id != ours {
        let expected = ours.to_string();
        return Err(EnrolError::Identity(IdentityError::Unexpected { presented: renewed.spiffe_id, expected }));
    }
    Ok(renewed)
}

/// Says so when this machine's clock is not that of the control plane: certificates would be refused for it.
fn check_clock(response: &SvidResponse) {
    let offset = response.clock_offset_ms;
    if offset.unsigned_abs() > CLOCK_OFFSET_MAX_MS {
        tracing::warn!(
            clock_offset_ms = offset,
            "the clock of this machine differs from the control plane's: set one of them"
        );
    }
}

/// How far a caller's clock is ahead of ours, both Unix milliseconds; behind when negative, 0 when it did not say.
///
/// Half of the round trip is in it: for telling hours from seconds.
#[must_use]
pub fn clock_offset_ms(client_unix_ms: i64, server_unix_ms: i64) -> i64 {
    if client_unix_ms == 0 { 0 } else { client_unix_ms.saturating_sub(server_unix_ms) }
}

/// What a pause showed of the wall clock.
enum Clock {
    /// It went on as time did.
    Steady,
    /// It was set by so many seconds; a machine that slept looks alike.
    Jumped(i64),
}

/// Sleeps until `at` by the wall clock, in steps, and ends early when that clock is set.
async fn wait_until(at: SystemTime) -> Clock {
    loop {
        let (wall, steady) = (SystemTime::now(), std::time::Instant::now());
        let left = at.duration_since(wall).unwrap_or_default();
        if left.is_zero() {
            return Clock::Steady;
        }
        tokio::time::sleep(left.min(CLOCK_STEP)).await;
        let expected = wall + steady.elapsed();
        let (by, sign) = match SystemTime::now().duration_since(expected) {
            Ok(ahead) => (ahead, 1),
            Err(behind) => (behind.duration(), -1),
        };
        if by > CLOCK_JUMP_MIN {
            return Clock::Jumped(i64::try_from(by.as_secs()).unwrap_or(i64::MAX).saturating_mul(sign));
        }
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
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
/// A request with one key and a few names is below 1 KiB.
const CSR_FILE_BYTES_MAX: usize = 64 * 1024;
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
const CLOCK_STEP: Duration = Duration::from_secs(5);
/// Beyond what adjusting a clock step by step does within [`CLOCK_STEP`].
const CLOCK_JUMP_MIN: Duration = Duration::from_secs(5);
/// Half of what certificates are backdated by: beyond it, peers begin to refuse each other.
const CLOCK_OFFSET_MAX_MS: u64 = 30_000;

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

    /// Every situation of an SVID: what is done about it, and when.
    #[test]
    fn renewal_recovery_and_the_token_have_their_times() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let fresh = |can_join| Renewal::new((at(1_000), at(2_000)), can_join, 0.0);
        for (now, expected) in [
            (1_000, (at(1_250), How::Renew)),
            (1_500, (at(1_500), How::Renew)),
            (1_999, (at(1_999), How::Renew)),
            (2_000, (at(2_000), How::Recover)),
            (900, (at(900), How::Renew)),
        ] {
            assert_eq!(fresh(true).next(at(now)), expected, "at {now}");
        }
        let mut doubting = fresh(false);
        doubting.doubt();
        assert_eq!(doubting.next(at(1_001)), (at(1_001), How::Renew), "a set clock asks at once");

        for (can_join, retryable, then) in [
            (false, false, How::Recover),
            (false, true, How::Recover),
            (true, true, How::Recover),
            (true, false, How::Join),
        ] {
            let mut renewal = fresh(can_join);
            renewal.failed(How::Recover, retryable, 0.0);
            let (when, how) = renewal.next(at(3_000));
            assert_eq!((when, how), (at(3_000) + RETRY_DELAY, then), "token {can_join}, retryable {retryable}");
        }
        let mut renewal = fresh(true);
        renewal.failed(How::Recover, false, 0.0);
        renewal.failed(How::Join, false, 0.0);
        assert_eq!(renewal.next(at(3_000)).1, How::Recover, "a spent token is not tried for ever");
        assert_eq!(renewal.failures(), 2);
        for _ in 0..40 {
            renewal.failed(How::Recover, true, 1.0);
        }
        assert_eq!(renewal.next(at(3_000)).0, at(3_000) + RETRY_DELAY_MAX + RETRY_DELAY);
        renewal.succeeded((at(3_000), at(4_000)), 0.0);
        assert_eq!((renewal.next(at(3_000)), renewal.failures()), ((at(3_250), How::Renew), 0));
    }

    #[test]
    fn a_clock_that_is_not_told_is_not_judged() {
        assert_eq!(clock_offset_ms(0, 1_000_000), 0);
        assert_eq!(clock_offset_ms(1_000_500, 1_000_000), 500);
        assert_eq!(clock_offset_ms(1, 7_200_001), -7_200_000);
    }

    proptest! {
        #[test]
        fn no_text_panics_the_token_parser(text in "(amt1\\.)?.{0,300}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
