//! The one verifier of the other side of a connection, as server or as client.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{
    LiveCredential, TrustDomain,
    tls::{ClientAuth, Expect, IdentityError, certificate_sha256, peer_certificate, provider},
};

/// Verifies path, validity, trust domain, revocation and identity of whoever is there.
pub(crate) struct Verifier {
    anchor: Anchor,
    /// Asked of servers; clients are asked per call, where it is known what they want.
    expect: Option<Expect>,
    auth: ClientAuth,
    algorithms: WebPkiSupportedAlgorithms,
}

/// What a path must lead to.
pub(crate) enum Anchor {
    /// The bundle of our credential, as it is renewed; its revocations count too.
    Live(LiveCredential),
    /// A root with this SHA-256, which the server shows itself: a join token carries the hash.
    Pinned {
        /// Whose members may answer.
        trust_domain: TrustDomain,
        /// Of the root's DER.
        ca_sha256: [u8; 32],
    },
}

impl Verifier {
    pub(crate) fn new(anchor: Anchor, expect: Option<Expect>, auth: ClientAuth) -> Self {
        Self { anchor, expect, auth, algorithms: provider().signature_verification_algorithms }
    }

    /// The roots that a path may end at.
    fn roots(&self, intermediates: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, TlsError> {
        match &self.anchor {
            Anchor::Live(credential) => Ok(credential.load().roots.clone()),
            Anchor::Pinned { ca_sha256, .. } => {
                let root = intermediates
                    .iter()
                    .find(|certificate| certificate_sha256(certificate) == *ca_sha256)
                    .ok_or_else(|| IdentityError::WrongRoot { expected: data_encoding::HEXLOWER.encode(ca_sha256) })?;
                let mut roots = RootCertStore::empty();
                roots.add(root.clone().into_owned()).map_err(IdentityError::Bundle)?;
                Ok(Arc::new(roots))
            }
        }
    }

    /// The part that client and server checks share, after the path was verified.
    fn identify(&self, leaf: &CertificateDer<'_>) -> Result<(), TlsError> {
        let peer = peer_certificate(std::slice::from_ref(leaf))?;
        let ours = match &self.anchor {
            Anchor::Live(credential) => credential.current().spiffe_id.trust_domain().clone(),
            Anchor::Pinned { trust_domain, .. } => trust_domain.clone(),
        };
        if *peer.spiffe_id.trust_domain() != ours {
            return Err(IdentityError::WrongTrustDomain { presented: peer.spiffe_id, trust_domain: ours }.into());
        }
        if let Anchor::Live(credential) = &self.anchor
            && credential.revocations().check(&peer.spiffe_id, peer.not_before).is_some()
        {
            // Of all alerts the one that tells the peer why.
            return Err(TlsError::InvalidCertificate(CertificateError::Revoked));
        }
        if let Some(expect) = &self.expect {
            expect.check(&peer.spiffe_id)?;
        }
        Ok(())
    }

    fn tls12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Verifier").field("expect", &self.expect).field("auth", &self.auth).finish_non_exhaustive()
    }
}

/// The methods that both traits of rustls ask for in the same words.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            self.tls12(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            self.tls13(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    /// RFC 5280 path validation for serverAuth, without a host name: the SPIFFE id takes its place.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let roots = self.roots(intermediates)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, self.algorithms.all)?;
        self.identify(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        verify_client_path(self.roots(intermediates)?, end_entity, intermediates, now)?;
        self.identify(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// RFC 5280 path validation for clientAuth at the given moment.
pub(crate) fn verify_client_path(
    roots: Arc<RootCertStore>,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), TlsError> {
    // The web PKI verifier checks path, validity and the clientAuth key usage; it is cheap to make from shared roots.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| TlsError::General(error.to_string()))?;
    verifier.verify_client_cert(end_entity, intermediates, now).map(drop)
}
