//! Issued certificates, seen with the eyes of a verifier.

use std::time::Duration;

use archipelago_identity::{SpiffeId, TrustDomain};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::*;

fn domain() -> TrustDomain {
    "mesh.example".parse().unwrap()
}

fn authority() -> Authority {
    let genesis = found(&domain(), &[1, 2], OffsetDateTime::now_utc()).unwrap();
    let (member, key) = &genesis.seal_keys[0];
    Authority::unseal(&genesis.ca, *member, key).unwrap()
}

fn csr(key: &KeyPair, uris: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn parse(der: &CertificateDer<'static>) -> X509Certificate<'static> {
    x509_parser::parse_x509_certificate(Box::leak(der.to_vec().into_boxed_slice())).unwrap().1
}

#[test]
fn an_svid_is_what_the_specification_asks_for() {
    let authority = authority();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let id = SpiffeId::gateway(&domain(), "paris", "gw-1");
    let now = OffsetDateTime::now_utc();
    let request = CertificateRequest::parse(&csr(&key, &[])).unwrap();
    let issued = authority.issue(&request, &id, Duration::from_secs(3_600), now).unwrap();
    assert_eq!(issued.chain.len(), 2);
    let leaf = parse(&issued.chain[0]);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "without a subject the name must be critical (RFC 5280 §4.2.1.6)");
    assert!(matches!(
        names.value.general_names[..],
        [GeneralName::URI("spiffe://mesh.example/cluster/paris/gateway/gw-1")]
    ));
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(leaf.raw_serial().len(), 16);
    assert_eq!(leaf.validity().not_before.timestamp(), now.unix_timestamp() - 60);
    assert_eq!(leaf.validity().not_after.timestamp(), now.unix_timestamp() + 3_600);
    let issuer = parse(&issued.chain[1]);
    leaf.verify_signature(Some(issuer.public_key())).unwrap();
    let root = parse(&authority.bundle()[0]);
    issuer.verify_signature(Some(root.public_key())).unwrap();
    root.verify_signature(None).unwrap();
    for (certificate, path_length) in [(&issuer, 0), (&root, 1)] {
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(path_length));
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert!(matches!(names.value.general_names[..], [GeneralName::URI("spiffe://mesh.example")]));
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
        assert!(certificate.name_constraints().unwrap().is_some());
    }
}

#[test]
fn the_credential_works_with_what_verifies_it() {
    let authority = authority();
    let own = crate::authority::issue_own(&authority, 1, Duration::from_secs(60)).unwrap();
    // Chain, key, bundle and identity are checked by the crate that every process verifies with.
    assert_eq!(own.spiffe_id, SpiffeId::control_plane(&domain(), 1));
    archipelago_identity::LiveCredential::new(own).unwrap();
}

#[test]
fn serials_differ_and_lives_end_with_the_issuer() {
    let authority = authority();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let request = CertificateRequest::parse(&csr(&key, &[])).unwrap();
    let id = SpiffeId::agent(&domain(), "paris", "agent");
    let now = OffsetDateTime::now_utc();
    let long = Duration::from_secs(3_600 * 24 * 365 * 100);
    let one = authority.issue(&request, &id, long, now).unwrap();
    let two = authority.issue(&request, &id, long, now).unwrap();
    assert_ne!(one.serial, two.serial);
    let issuer = parse(&one.chain[1]);
    assert_eq!(one.not_after.unix_timestamp(), issuer.validity().not_after.timestamp());
    let later = now + time::Duration::days(4_000);
    let error = authority.issue(&request, &id, Duration::from_secs(60), later).unwrap_err();
    assert!(matches!(error, CaError::IssuerExpired { .. }), "{error}");
}

#[test]
fn identities_of_others_are_never_issued() {
    let authority = authority();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let request = CertificateRequest::parse(&csr(&key, &[])).unwrap();
    let now = OffsetDateTime::now_utc();
    for foreign in ["spiffe://other.example/cluster/paris/gateway/gw-1", "spiffe://mesh.example"] {
        let id = foreign.parse().unwrap();
        let error = authority.issue(&request, &id, Duration::from_secs(60), now).unwrap_err();
        assert!(matches!(error, CaError::WrongTrustDomain { .. }), "{error}");
    }
}

#[test]
fn a_request_proves_possession_and_may_not_ask_for_another() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let id = SpiffeId::gateway(&domain(), "paris", "gw-1");
    let good = csr(&key, &[&id.to_string()]);
    CertificateRequest::parse(&good).unwrap().expect(&id).unwrap();

    let other = csr(&key, &["spiffe://mesh.example/cluster/tokyo/gateway/gw-1"]);
    let error = CertificateRequest::parse(&other).unwrap().expect(&id).unwrap_err().to_string();
    assert!(
        error.contains("cluster/tokyo/gateway/gw-1, but may only have spiffe://mesh.example/cluster/paris"),
        "{error}"
    );

    let mut tampered = good.clone();
    *tampered.last_mut().unwrap() ^= 1;
    let mut trailing = good.clone();
    trailing.push(0);
    for (bytes, says) in [
        (tampered, "was not made by the key"),
        (trailing, "bytes follow"),
        (b"junk".to_vec(), "not a PKCS#10"),
        (Vec::new(), "not a PKCS#10"),
        (vec![0x30; 20_000], "larger than"),
    ] {
        let error = CertificateRequest::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn token_secrets_are_the_same_on_every_member_and_nowhere_else() {
    let genesis = found(&domain(), &[1, 2], OffsetDateTime::now_utc()).unwrap();
    let secret = |index: usize, actor: &str, id: &str| {
        let (member, key) = &genesis.seal_keys[index];
        Authority::unseal(&genesis.ca, *member, key).unwrap().token_secret(actor, id)
    };
    assert_eq!(secret(0, "a", "1"), secret(1, "a", "1"));
    assert_ne!(secret(0, "a", "1"), secret(0, "a", "2"));
    assert_ne!(secret(0, "a", "1"), secret(0, "b", "1"));
    assert_ne!(authority().token_secret("a", "1"), secret(0, "a", "1"), "another federation, another secret");
}

#[test]
fn a_sealed_key_moved_to_another_place_does_not_open() {
    let genesis = found(&domain(), &[1, 2], OffsetDateTime::now_utc()).unwrap();
    let (_, key) = &genesis.seal_keys[0];
    let mut swapped = genesis.ca.clone();
    std::mem::swap(&mut swapped.root_key, &mut swapped.issuer_key);
    assert!(matches!(Authority::unseal(&swapped, 1, key), Err(CaError::Seal(SealError::Open))));
    let mut damaged = genesis.ca.clone();
    damaged.issuer_key.as_mut().unwrap().ciphertext[0] ^= 1;
    assert!(matches!(Authority::unseal(&damaged, 1, key), Err(CaError::Seal(SealError::Open))));
    assert!(matches!(Authority::unseal(&genesis.ca, 9, key), Err(CaError::NotForMember { member: 9 })));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_request_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        // Must not panic; random bytes are never a signed request.
        proptest::prop_assert!(CertificateRequest::parse(&bytes).is_err());
    }
}

#[test]
fn nothing_is_dated_back_beyond_a_revocation() {
    let authority = authority();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateRequest::parse(&csr(&key, &[])).unwrap();
    let id = SpiffeId::gateway(&domain(), "paris", "gw-1");
    let now = OffsetDateTime::now_utc();
    let begins = |earliest: i64| {
        let earliest = Some(now + time::Duration::seconds(earliest));
        let issued = authority.issue_from(&request, &id, Duration::from_secs(3_600), now, earliest)?;
        Ok::<_, CaError>(parse(&issued.chain[0]).validity().not_before.timestamp() - now.unix_timestamp())
    };
    assert_eq!(begins(-3_600).unwrap(), -60, "long ago: as ever");
    assert_eq!(begins(-10).unwrap(), -10, "a moment ago: not before it");
    assert!(matches!(begins(1), Err(CaError::TooEarly)));
}

#[test]
fn challenges_are_known_for_a_minute_by_every_member_and_to_no_other_federation() {
    let genesis = found(&domain(), &[1, 2], OffsetDateTime::now_utc()).unwrap();
    let member = |index: usize| {
        let (member, key) = &genesis.seal_keys[index];
        Authority::unseal(&genesis.ca, *member, key).unwrap()
    };
    let now = OffsetDateTime::now_utc();
    let challenge = member(0).challenge(now).unwrap();
    assert_ne!(member(0).challenge(now).unwrap(), challenge);
    let later = |seconds: i64| now + time::Duration::seconds(seconds);
    assert!(member(1).knows_challenge(&challenge, later(60)) && member(1).knows_challenge(&challenge, later(-60)));
    assert!(!member(1).knows_challenge(&challenge, later(61)));
    assert!(!authority().knows_challenge(&challenge, now));
    for damaged in [&challenge[..challenge.len() - 1], &challenge[1..], &[][..], &[0; 56][..]] {
        assert!(!member(0).knows_challenge(damaged, now));
    }
}
