//! Founding an authority: done once, by `bootstrap`, on the operator's machine.

use archipelago_identity::{SpiffeId, TrustDomain};
use archipelago_proto::log::v1::{CaInit, WrappedKey};
use aws_lc_rs::signature::EcdsaKeyPair;
use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{
    issue::{CaError, SigningKey, issuer_context, member_context, root_context, serial},
    seal::SealKey,
};

/// What [`found`] makes.
pub struct Genesis {
    /// Certificates and sealed keys, as they go into the replicated state.
    pub ca: CaInit,
    /// One per member, in the order given; each belongs into that member's directory and nowhere else.
    pub seal_keys: Vec<(u64, SealKey)>,
    /// PKCS#8 of the root key. It signs issuers and nothing else: nobody needs it until an issuer is replaced.
    pub root_key: Zeroizing<Vec<u8>>,
}

/// Makes root, issuing certificate, and a seal key per member. All but the root key leave this function only sealed.
///
/// # Errors
/// The random source failed, or the trust domain cannot stand in a certificate.
pub fn found(trust_domain: &TrustDomain, members: &[u64], now: OffsetDateTime) -> Result<Genesis, CaError> {
    let root_key = new_key()?;
    let issuer_key = new_key()?;

    let root = authority_params(trust_domain, "root", 1, now, ROOT_LIFE)?;
    let root_signer = SigningKey::from_pkcs8(&root_key)?;
    let root_certificate = root.self_signed(&root_signer)?;
    let root_issuer = rcgen::Issuer::from_params(&root, &root_signer);

    let issuer = authority_params(trust_domain, "issuer", 0, now, ISSUER_LIFE)?;
    let issuer_certificate = issuer.signed_by(&SigningKey::from_pkcs8(&issuer_key)?, &root_issuer)?;

    let data_key = SealKey::generate()?;
    let mut seal_keys = Vec::with_capacity(members.len());
    let mut data_keys = Vec::with_capacity(members.len());
    for member in members {
        let seal_key = SealKey::generate()?;
        let key = seal_key.seal(&member_context(trust_domain.as_str(), *member), data_key.bytes())?;
        data_keys.push(WrappedKey { member: *member, key: Some(key) });
        seal_keys.push((*member, seal_key));
    }
    let ca = CaInit {
        trust_domain: trust_domain.to_string(),
        root_key: Some(data_key.seal(&root_context(root_certificate.der()), &root_key)?),
        issuer_key: Some(data_key.seal(&issuer_context(issuer_certificate.der()), &issuer_key)?),
        root_der: root_certificate.der().to_vec(),
        issuer_der: issuer_certificate.der().to_vec(),
        data_keys,
        ..CaInit::default()
    };
    Ok(Genesis { ca, seal_keys, root_key })
}

/// SPIFFE X509-SVID §3: a signing certificate carries the SPIFFE id of the trust domain, without a path.
fn authority_params(
    trust_domain: &TrustDomain,
    kind: &str,
    path_length: u8,
    now: OffsetDateTime,
    life: Duration,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Archipelago");
    // The serial in the name keeps two authorities of one trust domain apart in path building.
    let number = serial()?;
    name.push(DnType::CommonName, format!("{trust_domain} {kind} {}", HEXLOWER.encode(&number[..4])));
    params.distinguished_name = name;
    params.serial_number = Some(SerialNumber::from_slice(&number));
    params.not_before = now - super::issue::BACKDATE;
    params.not_after = now + life;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let id = SpiffeId::trust_domain_id(trust_domain).to_string();
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    // URI constraints (RFC 5280 §4.2.1.10) cannot be used: verifiers built on webpki reject any chain that has them.
    // What can be said is that this authority never speaks for a DNS name or an address.
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![
            GeneralSubtree::DnsName(String::new()),
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    Ok(params)
}

/// PKCS#8 of a new P-256 key.
fn new_key() -> Result<Zeroizing<Vec<u8>>, CaError> {
    let key =
        EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| CaError::Key)?;
    let pkcs8 = key.to_pkcs8v1().map_err(|_| CaError::Key)?;
    Ok(Zeroizing::new(pkcs8.as_ref().to_vec()))
}

/// Roots are rotated by operators; ten years is what Istio settled on after its one-year outage (istio#14516).
const ROOT_LIFE: Duration = Duration::days(3_650);
/// Until issuers rotate by themselves, an issuer must outlive the federation's first operators' attention.
const ISSUER_LIFE: Duration = Duration::days(1_095);
