//! Keys made here, and what was issued for them.

use std::{io, path::Path};

use archipelago_identity::{Credential, LiveCredential, tls::IdentityError};
use archipelago_proto::v1::SvidResponse;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject,
};

use super::EnrolError;

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

pub(super) fn key_and_csr() -> Result<(KeyPair, Vec<u8>), EnrolError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    // The issuer takes nothing but the public key from a CSR, so it names nothing.
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr: CertificateSigningRequestDer<'static> = params.serialize_request(&key)?.into();
    Ok((key, csr.to_vec()))
}

pub(super) fn credential_from(response: SvidResponse, key: KeyPair) -> Result<Credential, EnrolError> {
    let certificates = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Credential::new(certificates(response.chain_der), key, certificates(response.bundle_der))?)
}

pub(super) fn same_identity(credential: &LiveCredential, renewed: Credential) -> Result<Credential, EnrolError> {
    let ours = credential.current().spiffe_id.clone();
    if renewed.spiffe_id != ours {
        let expected = ours.to_string();
        return Err(EnrolError::Identity(IdentityError::Unexpected { presented: renewed.spiffe_id, expected }));
    }
    Ok(renewed)
}

/// A request with one key and a few names is below 1 KiB.
const CSR_FILE_BYTES_MAX: usize = 64 * 1024;
