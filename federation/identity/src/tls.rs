//! Mutual TLS by SPIFFE id (SPIFFE X509-SVID §5): both sides verify the other's path against the bundle of their trust domain,
//! read its one URI SAN, and then ask whether that id may stand there.
//!
//! Session resumption is off everywhere: a resumed session skips the certificate check, and would outlive the SVID it began with.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, Error as TlsError, OtherError, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    pki_types::CertificateDer,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::extensions::GeneralName;

use crate::{
    LiveCredential, SpiffeId, TrustDomain,
    verifier::{Anchor, Verifier},
};

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection.
    Required,
    /// A certificate is verified when shown; calls decide what they need. The server also sends its roots, so that an
    /// enrolling client, which pins a root by hash, can find it (see [`crate::enrol`]).
    Optional,
}

/// Who the other side must be.
#[derive(Clone)]
pub enum Expect {
    /// Exactly this id.
    Id(SpiffeId),
    /// Whoever the function accepts; its error says what was wanted.
    Role(RoleCheck),
}

/// Accepts an id, or says in a few words who was expected.
pub type RoleCheck = Arc<dyn Fn(&SpiffeId) -> Result<(), String> + Send + Sync>;

impl Expect {
    /// Any member of the control plane.
    #[must_use]
    pub fn control_plane() -> Self {
        Self::Role(Arc::new(|id| match id.role() {
            Some(crate::MeshRole::ControlPlane { .. }) => Ok(()),
            _ => Err("a member of the control plane".to_owned()),
        }))
    }

    pub(crate) fn check(&self, presented: &SpiffeId) -> Result<(), IdentityError> {
        let expected = match self {
            Self::Id(id) if id == presented => return Ok(()),
            Self::Id(id) => id.to_string(),
            Self::Role(accepts) => match accepts(presented) {
                Ok(()) => return Ok(()),
                Err(expected) => expected,
            },
        };
        Err(IdentityError::Unexpected { presented: presented.clone(), expected })
    }
}

impl fmt::Debug for Expect {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(out, "Id({id})"),
            Self::Role(_) => out.write_str("Role(..)"),
        }
    }
}

/// A server configuration that follows `credential` through renewals. ALPN protocols in order of preference.
///
/// # Panics
/// Never: the one fallible step names protocol versions that the provider has.
#[must_use]
pub fn server_config(credential: &LiveCredential, auth: ClientAuth, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let verifier = Arc::new(Verifier::new(Anchor::Live(credential.clone()), None, auth));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Resolver {
            credential: credential.clone(),
            send_roots: auth == ClientAuth::Optional,
        }));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// A client configuration that follows `credential` through renewals and connects only to whom `expect` accepts.
///
/// # Panics
/// Never, as [`server_config`].
#[must_use]
pub fn client_config(credential: &LiveCredential, expect: Expect, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let verifier = Arc::new(Verifier::new(Anchor::Live(credential.clone()), Some(expect), ClientAuth::Required));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Resolver { credential: credential.clone(), send_roots: false }));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A client configuration without a certificate of its own that trusts only a chain whose root has this SHA-256.
///
/// For the first contact of an enrolling process ([`crate::enrol`]); the server must be a control-plane member of `trust_domain`.
///
/// # Panics
/// Never, as [`server_config`].
#[must_use]
pub fn enrolment_config(trust_domain: TrustDomain, ca_sha256: [u8; 32]) -> Arc<ClientConfig> {
    anonymous_config(Anchor::Pinned { trust_domain, ca_sha256 })
}

/// A client configuration without a certificate of its own that trusts the bundle of `credential`.
///
/// For a process whose certificate has run out: it still knows whom to believe, but cannot show who it is.
///
/// # Panics
/// Never, as [`server_config`].
#[must_use]
pub fn recovery_config(credential: &LiveCredential) -> Arc<ClientConfig> {
    anonymous_config(Anchor::Live(credential.clone()))
}

fn anonymous_config(anchor: Anchor) -> Arc<ClientConfig> {
    let verifier = Verifier::new(anchor, Some(Expect::control_plane()), ClientAuth::Required);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// What the leaf of a chain says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its one URI SAN (SPIFFE X509-SVID §2).
    pub spiffe_id: SpiffeId,
    /// Start of its validity: when it was issued, as far as revocations go.
    pub not_before: SystemTime,
    /// End of its validity: no connection that began with it may outlast it.
    pub not_after: SystemTime,
}

/// Reads the leaf of `certificates`. The chain is not verified here.
///
/// # Errors
/// No certificate, not X.509, no or more than one URI SAN, or a URI that is no SPIFFE id.
pub fn peer_certificate(certificates: &[CertificateDer<'_>]) -> Result<PeerCertificate, IdentityError> {
    let leaf = certificates.first().ok_or(IdentityError::NoCertificate)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| IdentityError::Malformed)?;
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let spiffe_id = match uris[..] {
        [uri] => uri.parse()?,
        _ => return Err(IdentityError::UriCount(uris.len())),
    };
    let validity = certificate.validity();
    Ok(PeerCertificate { spiffe_id, not_before: at(validity.not_before), not_after: at(validity.not_after) })
}

/// A time in a certificate.
pub(crate) fn at(time: x509_parser::time::ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// The SPIFFE id in the leaf of `certificates`.
///
/// # Errors
/// As [`peer_certificate`].
pub fn peer_spiffe_id(certificates: &[CertificateDer<'_>]) -> Result<SpiffeId, IdentityError> {
    peer_certificate(certificates).map(|certificate| certificate.spiffe_id)
}

/// SHA-256 over a certificate's DER, as join tokens pin it.
#[must_use]
pub fn certificate_sha256(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest.as_ref());
    sha256
}

/// The one crypto provider of every process: aws-lc-rs, X25519MLKEM768 first, AES-128-GCM before AES-256-GCM.
///
/// Between gateways every byte is encrypted twice over a request's way; the shorter key costs a fifth less per byte.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{self, cipher_suite};
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            let mut provider = aws_lc_rs::default_provider();
            provider.cipher_suites = vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ];
            Arc::new(provider)
        })
        .clone()
}

/// Why a peer's certificate is not accepted, or a credential of ours not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A root of the bundle cannot be used.
    #[error("the trust bundle holds a certificate that cannot be a root")]
    Bundle(#[source] TlsError),
    /// The bundle has no root.
    #[error("the trust bundle is empty")]
    EmptyBundle,
    /// The private key cannot be used or does not fit the certificate.
    #[error("the private key does not fit the certificate")]
    Key(#[source] TlsError),
    /// Not an X.509 certificate.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// The other side showed no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// The certificate path does not hold.
    #[error("the certificate does not lead to a root of this trust domain")]
    Path(#[source] TlsError),
    /// A signature is not by the key that it should be by.
    #[error("the signature was not made by the key of the certificate")]
    Proof,
    /// The URI is no SPIFFE id.
    #[error(transparent)]
    SpiffeId(#[from] crate::SpiffeIdError),
    /// The id is valid and verified, but not the one wanted here.
    #[error("the peer is {presented}, expected {expected}")]
    Unexpected {
        /// Who is there.
        presented: SpiffeId,
        /// Who should be.
        expected: String,
    },
    /// An SVID has exactly one URI SAN.
    #[error("the certificate has {0} URI names, an SVID has exactly one")]
    UriCount(usize),
    /// The id belongs to another trust domain.
    #[error("{presented} is not of the trust domain {trust_domain}")]
    WrongTrustDomain {
        /// Who is there.
        presented: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// No presented certificate has the pinned hash.
    #[error(
        "wrong CA: none of the certificates the server showed is the root this token was made for (sha256 {expected})"
    )]
    WrongRoot {
        /// The pinned hash, hexadecimal.
        expected: String,
    },
}

impl From<IdentityError> for TlsError {
    fn from(error: IdentityError) -> Self {
        // The caller finds the error itself inside (see [`identity_error`]); the peer gets an alert without the reason.
        Self::Other(OtherError(Arc::new(error)))
    }
}

/// The reason of ours that a handshake failed for, if one of ours it was.
#[must_use]
pub fn identity_error(error: &TlsError) -> Option<&IdentityError> {
    match error {
        TlsError::Other(other) => other.0.downcast_ref(),
        _ => None,
    }
}

/// Hands rustls the credential in use at the moment of the handshake.
#[derive(Debug)]
struct Resolver {
    credential: LiveCredential,
    send_roots: bool,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let loaded = self.credential.load();
        Some(if self.send_roots { loaded.certified_key_with_roots.clone() } else { loaded.certified_key.clone() })
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.credential.load().certified_key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
