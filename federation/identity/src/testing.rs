//! A throw-away certificate authority for tests: real keys, real chains, made in memory.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Credential, LiveCredential, SpiffeId, TrustDomain};

/// Issues SVIDs of one trust domain.
pub struct TestAuthority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl TestAuthority {
    /// A new root for `trust_domain`.
    ///
    /// # Panics
    /// The name is no trust domain.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        let trust_domain: TrustDomain = trust_domain.parse().expect("a valid trust domain");
        let key = KeyPair::generate().expect("key generation");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let id = SpiffeId::trust_domain_id(&trust_domain).to_string();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("an ASCII id"))];
        let root = params.self_signed(&key).expect("self-signing").der().clone();
        Self { trust_domain, root, issuer: Issuer::new(params, key) }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// An SVID for `id`, valid from a minute ago for `life` more.
    ///
    /// # Panics
    /// Never with a valid id.
    #[must_use]
    pub fn issue_for(&self, id: &SpiffeId, life: Duration) -> Credential {
        let now = SystemTime::now();
        self.issue_between(id, now - Duration::from_secs(60), now + life)
    }

    /// An SVID for `id` with this validity.
    ///
    /// # Panics
    /// Never with a valid id.
    #[must_use]
    pub fn issue_between(&self, id: &SpiffeId, not_before: SystemTime, not_after: SystemTime) -> Credential {
        let key = KeyPair::generate().expect("key generation");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().expect("an ASCII id"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let leaf = params.signed_by(&key, &self.issuer).expect("signing").der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Credential::new(vec![leaf], key, vec![self.root.clone()]).expect("a fresh SVID is usable")
    }

    /// A live SVID for `id`, valid for an hour.
    ///
    /// # Panics
    /// Never with a valid id.
    #[must_use]
    pub fn live(&self, id: &SpiffeId) -> LiveCredential {
        LiveCredential::new(self.issue_for(id, Duration::from_secs(3600))).expect("a fresh SVID is usable")
    }

    /// A live SVID for a gateway, valid for an hour.
    #[must_use]
    pub fn gateway(&self, cluster: &str, name: &str) -> LiveCredential {
        self.live(&SpiffeId::gateway(&self.trust_domain, cluster, name))
    }
}
