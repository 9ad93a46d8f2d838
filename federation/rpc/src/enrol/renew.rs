//! The next SVID: over a connection that the last one authenticates, or by its key after it ran out.

use std::time::SystemTime;

use archipelago_identity::{
    Credential, LiveCredential, proof,
    tls::{self, Expect, certificate_sha256},
};
use archipelago_proto::v1::{
    ChallengeRequest, RecoverRequest, RenewRequest, SvidResponse, identity_client::IdentityClient,
};
use rustls::pki_types::CertificateDer;

use super::{
    EnrolError,
    candidate::{credential_from, key_and_csr, same_identity},
};
use crate::grpc;

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

pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Half of what certificates are backdated by: beyond it, peers begin to refuse each other.
const CLOCK_OFFSET_MAX_MS: u64 = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_not_told_is_not_judged() {
        assert_eq!(clock_offset_ms(0, 1_000_000), 0);
        assert_eq!(clock_offset_ms(1_000_500, 1_000_000), 500);
        assert_eq!(clock_offset_ms(1, 7_200_001), -7_200_000);
    }
}
