//! Proving possession of an SVID's key outside of a TLS handshake, also after the SVID ran out.
//!
//! Who lost the right to a connection by the clock alone may still show that it holds the key of a certificate that this
//! trust domain issued. What is signed begins with a label of its own, so that no signature made for another purpose fits.

use std::{sync::Arc, time::SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey};
use rustls::{
    RootCertStore, SignatureScheme,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519};

use crate::{
    Credential,
    tls::{IdentityError, PeerCertificate, peer_certificate},
    verifier::verify_client_path,
};

/// Signs `message` with the credential's key.
///
/// # Errors
/// The key is of a kind that [`verify`] does not know.
pub fn sign(credential: &Credential, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let key = credential.certified_key()?.key.clone();
    let schemes =
        [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384, SignatureScheme::ED25519];
    let signer = key.choose_scheme(&schemes).ok_or(IdentityError::Proof)?;
    signer.sign(&labelled(message)).map_err(IdentityError::Key)
}

/// Verifies that `chain` was good during its own validity, and that its key signed `message`.
///
/// Whether that validity is over, and for how long, is the caller's to judge.
///
/// # Errors
/// The chain does not lead to `roots`, is no SVID, or the signature is not by its key.
pub fn verify(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    message: &[u8],
    signature: &[u8],
) -> Result<PeerCertificate, IdentityError> {
    let (leaf, intermediates) = chain.split_first().ok_or(IdentityError::NoCertificate)?;
    let svid = peer_certificate(chain)?;
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(IdentityError::Bundle)?;
    }
    // Its last second: the issuer's certificate is judged for then, too.
    let since = svid.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verify_client_path(Arc::new(store), leaf, intermediates, UnixTime::since_unix_epoch(since))
        .map_err(IdentityError::Path)?;

    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| IdentityError::Malformed)?;
    let key = parsed.public_key();
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let bytes = key.subject_public_key.data.as_ref();
    let message = labelled(message);
    let kind = &key.algorithm.algorithm;
    let verified = if *kind == OID_SIG_ED25519 {
        UnparsedPublicKey::new(&ED25519, bytes).verify(&message, signature)
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256) {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, bytes).verify(&message, signature)
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_NIST_EC_P384) {
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, bytes).verify(&message, signature)
    } else {
        return Err(IdentityError::Proof);
    };
    verified.map_err(|_| IdentityError::Proof)?;
    Ok(svid)
}

fn labelled(message: &[u8]) -> Vec<u8> {
    [LABEL, message].concat()
}

/// As TLS 1.3 sets its signatures apart (RFC 8446 §4.4.3): spaces, a name, a zero byte.
const LABEL: &[u8] =
    b"                                                                archipelago proof of possession 1\0";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{SpiffeId, testing::TestAuthority};

    #[test]
    fn the_holder_of_an_expired_svid_proves_it_and_nobody_else_does() {
        let authority = TestAuthority::new("mesh.example");
        let roots = [authority.root().clone()];
        let id = SpiffeId::gateway(authority.trust_domain(), "paris", "gw-1");
        let expired = authority.issue_between(
            &id,
            SystemTime::now() - Duration::from_secs(7_200),
            SystemTime::now() - Duration::from_secs(3_600),
        );
        let signature = sign(&expired, b"challenge").unwrap();
        let svid = verify(&expired.chain, &roots, b"challenge", &signature).unwrap();
        assert_eq!((svid.spiffe_id, svid.not_after), (id.clone(), expired.not_after));

        let other = authority.issue_for(&id, Duration::from_secs(60));
        let forged = sign(&other, b"challenge").unwrap();
        let stranger = TestAuthority::new("mesh.example").issue_for(&id, Duration::from_secs(60));
        let strange = sign(&stranger, b"challenge").unwrap();
        let refused = [
            verify(&expired.chain, &roots, b"another challenge", &signature),
            verify(&expired.chain, &roots, b"challenge", &forged),
            verify(&expired.chain, &roots, b"challenge", b""),
            verify(&stranger.chain, &roots, b"challenge", &strange),
            verify(&[], &roots, b"challenge", &signature),
            verify(&[CertificateDer::from(b"junk".to_vec())], &roots, b"challenge", &signature),
        ];
        let reasons: Vec<String> = refused.into_iter().map(|result| result.unwrap_err().to_string()).collect();
        assert!(reasons[0].contains("not made by the key") && reasons[1] == reasons[0] && reasons[2] == reasons[0]);
        assert!(reasons[3].contains("does not lead to"), "{reasons:?}");
        assert!(reasons[4].contains("no certificate") && reasons[5].contains("cannot be parsed"), "{reasons:?}");
    }
}
