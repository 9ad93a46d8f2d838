//! Issuing SVIDs with the unsealed issuing key.

use std::time::Duration;

use archipelago_identity::{SpiffeId, TrustDomain};
use archipelago_proto::log::v1::{CaInit, WrappedKey};
use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use data_encoding::HEXLOWER;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SignatureAlgorithm, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519},
    prelude::FromDer,
};
use zeroize::Zeroizing;

use super::seal::{KEY_BYTES, SealError, SealKey};
use crate::digest::sha256;

/// An authority whose issuing key is open in memory.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, SigningKey>,
    issuer_der: CertificateDer<'static>,
    issuer_not_after: OffsetDateTime,
    root_der: CertificateDer<'static>,
    /// Known to every unsealed member and nobody else.
    token_key: hmac::Key,
    challenge_key: hmac::Key,
}

/// A share of the authority for a new member: what opens it, which belongs to that member alone, and what it opens. `member` is one
/// that has a share.
///
/// # Errors
/// As [`Authority::unseal`].
pub(crate) fn share(
    ca: &CaInit,
    member: u64,
    seal_key: &SealKey,
    new_member: u64,
) -> Result<(SealKey, WrappedKey), CaError> {
    let data_key = data_key(ca, member, seal_key)?;
    let new_key = SealKey::generate()?;
    let key = new_key.seal(&member_context(&ca.trust_domain, new_member), data_key.bytes())?;
    Ok((new_key, WrappedKey { member: new_member, key: Some(key) }))
}

fn data_key(ca: &CaInit, member: u64, seal_key: &SealKey) -> Result<SealKey, CaError> {
    let wrapped = ca
        .data_keys
        .iter()
        .find(|wrapped| wrapped.member == member)
        .and_then(|wrapped| wrapped.key.as_ref())
        .ok_or(CaError::NotForMember { member })?;
    let data_key = seal_key.open(&member_context(&ca.trust_domain, member), wrapped)?;
    let data_key: [u8; KEY_BYTES] = data_key.as_slice().try_into().map_err(|_| SealError::Open)?;
    Ok(SealKey::from_bytes(Zeroizing::new(data_key))?)
}

impl Authority {
    /// Opens the issuing key with the seal key of `member`. The root key stays sealed.
    ///
    /// # Errors
    /// [`CaError::NotForMember`] when nothing is sealed for this member; otherwise wrong key or damaged state.
    pub fn unseal(ca: &CaInit, member: u64, seal_key: &SealKey) -> Result<Self, CaError> {
        let data_key = data_key(ca, member, seal_key)?;
        let sealed = ca.issuer_key.as_ref().ok_or(SealError::Open)?;
        let key = SigningKey::from_pkcs8(&data_key.open(&issuer_context(&ca.issuer_der), sealed)?)?;

        let issuer_der = CertificateDer::from(ca.issuer_der.clone());
        let (_, parsed) = x509_parser::parse_x509_certificate(&issuer_der).map_err(|_| CaError::Certificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Key);
        }
        let issuer_not_after = parsed.validity().not_after.to_datetime();
        Ok(Self {
            trust_domain: ca.trust_domain.parse().map_err(|_| CaError::Certificate)?,
            issuer: Issuer::from_ca_cert_der(&issuer_der, key)?,
            issuer_not_after,
            root_der: CertificateDer::from(ca.root_der.clone()),
            token_key: derive(&data_key, b"archipelago token secrets 1"),
            challenge_key: derive(&data_key, b"archipelago recovery challenges 1"),
            issuer_der,
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trust bundle: the root.
    #[must_use]
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root_der.clone()]
    }

    /// SHA-256 of the root certificate, as join tokens carry it.
    #[must_use]
    pub fn root_sha256(&self) -> [u8; 32] {
        sha256(&self.root_der)
    }

    /// The secret of the join token that `actor` asked for under `request_id`: unpredictable to anybody without the
    /// data key, and the same on every member, so that a retried request gets the same token.
    #[must_use]
    pub fn token_secret(&self, actor: &str, request_id: &str) -> [u8; 32] {
        let mut secret = [0; 32];
        let tag = hmac::sign(&self.token_key, format!("{actor}\n{request_id}").as_bytes());
        secret.copy_from_slice(tag.as_ref());
        secret
    }

    /// Issues an SVID for `spiffe_id` to the key in `request`. Nothing else of the request is used.
    ///
    /// Valid from up to a minute ago, so that a verifier whose clock is behind accepts it, and never beyond the issuer.
    ///
    /// # Errors
    /// The id is of another trust domain, or the random source failed.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        spiffe_id: &SpiffeId,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Issued, CaError> {
        self.issue_to(&request.public_key, spiffe_id, life, now, None)
    }

    /// As [`Self::issue`], with a validity that begins at `earliest` at the earliest: what was revoked is not issued again
    /// by dating it back.
    ///
    /// # Errors
    /// As there, and [`CaError::TooEarly`] before that moment.
    pub fn issue_from(
        &self,
        request: &CertificateRequest,
        spiffe_id: &SpiffeId,
        life: Duration,
        now: OffsetDateTime,
        earliest: Option<OffsetDateTime>,
    ) -> Result<Issued, CaError> {
        self.issue_to(&request.public_key, spiffe_id, life, now, earliest)
    }

    /// Something to sign for whoever wants a certificate back; any member knows it again for [`CHALLENGE_LIFE`].
    ///
    /// # Errors
    /// The random source failed.
    pub fn challenge(&self, now: OffsetDateTime) -> Result<Vec<u8>, CaError> {
        let mut challenge = now.unix_timestamp().to_be_bytes().to_vec();
        challenge.extend_from_slice(&serial()?);
        let tag = hmac::sign(&self.challenge_key, &challenge);
        challenge.extend_from_slice(tag.as_ref());
        Ok(challenge)
    }

    /// Whether a member of this federation made `challenge` a short time ago.
    #[must_use]
    pub fn knows_challenge(&self, challenge: &[u8], now: OffsetDateTime) -> bool {
        let Some((signed, tag)) = challenge.split_at_checked(8 + SERIAL_BYTES) else { return false };
        let Some(made) = signed.first_chunk().map(|bytes| i64::from_be_bytes(*bytes)) else { return false };
        let age = i128::from(now.unix_timestamp()) - i128::from(made);
        // Another member's clock may be ahead.
        age.unsigned_abs() <= u128::from(CHALLENGE_LIFE.as_secs())
            && hmac::verify(&self.challenge_key, signed, tag).is_ok()
    }

    /// As [`Self::issue`], for a key whose possession needs no proof because this process made it.
    pub(crate) fn issue_to(
        &self,
        public_key: &impl PublicKeyData,
        spiffe_id: &SpiffeId,
        life: Duration,
        now: OffsetDateTime,
        earliest: Option<OffsetDateTime>,
    ) -> Result<Issued, CaError> {
        if *spiffe_id.trust_domain() != self.trust_domain || spiffe_id.path().is_empty() {
            return Err(CaError::WrongTrustDomain { spiffe_id: spiffe_id.clone() });
        }
        let life = time::Duration::try_from(life).map_err(|_| CaError::Life)?;
        let not_after = now.checked_add(life).ok_or(CaError::Life)?.min(self.issuer_not_after);
        if not_after <= now {
            return Err(CaError::IssuerExpired { at: self.issuer_not_after });
        }
        // A short life is backdated less: it is renewed after a quarter of its span, which must not lie in the past.
        let backdated = now - BACKDATE.min(life / 8);
        let not_before = earliest.map_or(backdated, |earliest| backdated.max(earliest));
        if not_before > now {
            return Err(CaError::TooEarly);
        }
        let number = serial()?;
        let mut params = CertificateParams::default();
        // SPIFFE X509-SVID §2: the one URI SAN is the identity; without a subject it must be critical, which rcgen does.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(spiffe_id.to_string().try_into()?)];
        params.serial_number = Some(SerialNumber::from_slice(&number));
        params.not_before = not_before;
        params.not_after = not_after;
        params.is_ca = IsCa::ExplicitNoCa;
        // X509-SVID §4.3 and Appendix A: digitalSignature; both EKUs, for every process of ours dials and listens.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(public_key, &self.issuer)?;
        Ok(Issued { chain: vec![certificate.der().clone(), self.issuer_der.clone()], serial: number, not_after })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// A certificate as it was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf, then issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// Serial number of the leaf, 128 random bits.
    pub serial: [u8; SERIAL_BYTES],
    /// End of the leaf's validity.
    pub not_after: OffsetDateTime,
}

/// What is taken from a PKCS#10 request: a public key whose holder signed the request.
#[derive(Debug)]
pub struct CertificateRequest {
    public_key: SubjectPublicKeyInfo,
    public_key_sha256: [u8; 32],
    uris: Vec<String>,
}

impl CertificateRequest {
    /// Parses a request and verifies its proof of possession.
    ///
    /// # Errors
    /// Not PKCS#10, a signature by another key, or a key of a kind that TLS 1.3 peers here would not accept.
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(CaError::Request { reason: format!("larger than {REQUEST_BYTES_MAX} bytes") });
        }
        let bad = |reason: &str| CaError::Request { reason: reason.to_owned() };
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| bad("it is not a PKCS#10 request"))?;
        if !rest.is_empty() {
            return Err(bad("bytes follow the PKCS#10 request"));
        }
        request.verify_signature().map_err(|_| bad("its signature was not made by the key in it"))?;

        let spki = &request.certification_request_info.subject_pki;
        let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let accepted = if spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
        } else {
            spki.algorithm.algorithm == OID_SIG_ED25519
        };
        if !accepted {
            return Err(bad("its key is none of P-256, P-384 and Ed25519"));
        }
        let uris = request
            .requested_extensions()
            .into_iter()
            .flatten()
            .filter_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => Some(names),
                _ => None,
            })
            .flat_map(|names| &names.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self { public_key: SubjectPublicKeyInfo::from_der(spki.raw)?, public_key_sha256: sha256(spki.raw), uris })
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    #[must_use]
    pub fn public_key_sha256(&self) -> [u8; 32] {
        self.public_key_sha256
    }

    /// Refuses a request that names another identity than the one it may have: somebody expects the wrong thing.
    ///
    /// # Errors
    /// [`CaError::OtherIdentity`].
    pub fn expect(&self, authorised: &SpiffeId) -> Result<(), CaError> {
        let authorised = authorised.to_string();
        match self.uris.iter().find(|uri| **uri != authorised) {
            None => Ok(()),
            Some(asked) => Err(CaError::OtherIdentity { asked: asked.chars().take(200).collect(), authorised }),
        }
    }
}

/// A P-256 key that signs certificates. The private part lives in aws-lc, which wipes it when it is dropped.
pub(super) struct SigningKey(EcdsaKeyPair);

impl SigningKey {
    pub(super) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CaError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).map(Self).map_err(|_| CaError::Key)
    }
}

impl PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// Nothing is sealed for this member.
    #[error("no authority key is sealed for member {member}")]
    NotForMember {
        /// Raft id.
        member: u64,
    },
    /// A sealed key cannot be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The key is unusable or does not fit its certificate.
    #[error("the authority's key is unusable, or is not the one of its certificate")]
    Key,
    /// The authority's certificate cannot be parsed.
    #[error("the authority's certificate cannot be parsed")]
    Certificate,
    /// The request is unacceptable.
    #[error("the certificate request is refused: {reason}")]
    Request {
        /// Which part.
        reason: String,
    },
    /// The request names another identity.
    #[error("the certificate request asks for {asked}, but may only have {authorised}")]
    OtherIdentity {
        /// What the request says.
        asked: String,
        /// What its holder is entitled to.
        authorised: String,
    },
    /// The identity is not of this authority's trust domain, or is the trust domain itself.
    #[error("{spiffe_id} cannot be issued by this trust domain")]
    WrongTrustDomain {
        /// The identity.
        spiffe_id: SpiffeId,
    },
    /// A lifetime beyond what time can express.
    #[error("the requested lifetime is out of range")]
    Life,
    /// The issuing certificate is over.
    #[error("the issuing certificate expired at {at}")]
    IssuerExpired {
        /// When.
        at: OffsetDateTime,
    },
    /// The identity was revoked this very moment.
    #[error("the identity was revoked just now: a certificate that begins later can be issued in a moment")]
    TooEarly,
    /// The certificate could not be built.
    #[error("the certificate could not be built: {0}")]
    Build(#[from] rcgen::Error),
}

/// 16 random bytes; the top bit is clear so that the DER integer stays positive and 16 bytes long.
pub(super) fn serial() -> Result<[u8; SERIAL_BYTES], CaError> {
    let mut serial = [0; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| SealError::Random)?;
    let [first, ..] = &mut serial;
    *first = (*first & 0x7f) | 0x40;
    Ok(serial)
}

fn derive(data_key: &SealKey, label: &[u8]) -> hmac::Key {
    // One-step derivation (NIST SP 800-56C §4.1, option 2): the data key itself is used for AES-GCM only.
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, data_key.bytes()), label);
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

/// Bind a ciphertext to its place, so that one cannot be moved to another.
pub(super) fn member_context(trust_domain: &str, member: u64) -> String {
    format!("archipelago data key 1 {trust_domain} member {member}")
}

pub(super) fn root_context(root_der: &[u8]) -> String {
    format!("archipelago root key 1 {}", HEXLOWER.encode(&sha256(root_der)))
}

pub(super) fn issuer_context(issuer_der: &[u8]) -> String {
    format!("archipelago issuer key 1 {}", HEXLOWER.encode(&sha256(issuer_der)))
}

/// From one answer to the next request, over a slow line.
const CHALLENGE_LIFE: Duration = Duration::from_secs(60);
/// A verifier's clock may be this far behind.
pub(super) const BACKDATE: time::Duration = time::Duration::seconds(60);
const SERIAL_BYTES: usize = 16;
/// A request with one key and one name is about 300 bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
