//! One X.509-SVID with its key and the bundle that others are verified against.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use archipelago_base::durable;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::pem;
use crate::{
    SpiffeId,
    revocation::RevocationList,
    tls::{IdentityError, PeerCertificate, at, peer_certificate, provider},
};

/// An X.509-SVID (SPIFFE X509-SVID §4): certificate chain, private key, and the trust bundle of its trust domain.
pub struct Credential {
    /// The one URI SAN of the leaf.
    pub spiffe_id: SpiffeId,
    /// Leaf first, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// Roots that identities of the trust domain chain to.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl Credential {
    /// Puts the parts together and reads identity and validity from the leaf.
    ///
    /// # Errors
    /// The chain is empty, its leaf is no SVID, the key does not fit it, or the bundle holds no usable root.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let PeerCertificate { spiffe_id, not_before, not_after } = peer_certificate(&chain)?;
        let credential = Self { spiffe_id, chain, key, bundle, not_before, not_after };
        credential.certified_key()?;
        credential.roots()?;
        Ok(credential)
    }

    /// All of it as one text: the key, its chain, and behind a line that says so the bundle.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let key = pem::encode("PRIVATE KEY", self.key.secret_der());
        let chain = encode_all("CERTIFICATE", self.chain.iter().map(AsRef::as_ref));
        let bundle = encode_all("CERTIFICATE", self.bundle.iter().map(AsRef::as_ref));
        // All of it at once: a text that grows leaves copies behind.
        let mut text =
            Zeroizing::new(String::with_capacity(key.len() + chain.len() + BUNDLE_LINE.len() + bundle.len()));
        for part in [key.as_str(), &chain, BUNDLE_LINE, &bundle] {
            text.push_str(part);
        }
        text
    }

    /// Reads what [`Credential::to_pem`] wrote; `place` is for errors.
    ///
    /// # Errors
    /// It is something else, or its parts do not fit each other.
    pub fn from_pem(text: &[u8], place: &Path) -> Result<Self, CredentialError> {
        let malformed = |what: String| CredentialError::Malformed { path: place.to_owned(), what };
        let at = text.windows(BUNDLE_LINE.len()).position(|window| window == BUNDLE_LINE.as_bytes());
        let (own, bundle) = at
            .and_then(|at| text.split_at_checked(at))
            .ok_or_else(|| malformed("no trust bundle is in it".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(own).map_err(|error| malformed(format!("no private key ({error})")))?;
        let (chain, bundle) = (certificates(own).map_err(malformed)?, certificates(bundle).map_err(malformed)?);
        Self::new(chain, key, bundle).map_err(|source| CredentialError::Identity { path: place.to_owned(), source })
    }

    /// When its certificates run out, by what they are: "svid" is its own, "issuer" the first of those between it and a root to do so,
    /// "root" the first of the bundle.
    #[must_use]
    pub fn expiries(&self) -> Vec<(&'static str, SystemTime)> {
        let first = |certificates: &[CertificateDer<'_>]| {
            let read = certificates.iter().filter_map(|der| x509_parser::parse_x509_certificate(der).ok());
            read.map(|(_, certificate)| at(certificate.validity().not_after)).min()
        };
        let issuer = self.chain.get(1..).and_then(first).map(|time| ("issuer", time));
        let root = first(&self.bundle).map(|time| ("root", time));
        [("svid", self.not_after)].into_iter().chain(issuer).chain(root).collect()
    }

    pub(crate) fn certified_key(&self) -> Result<CertifiedKey, IdentityError> {
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider()).map_err(IdentityError::Key)
    }

    fn roots(&self) -> Result<RootCertStore, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in &self.bundle {
            roots.add(root.clone()).map_err(IdentityError::Bundle)?;
        }
        if roots.is_empty() {
            return Err(IdentityError::EmptyBundle);
        }
        Ok(roots)
    }
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Self {
            spiffe_id: self.spiffe_id.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            bundle: self.bundle.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key never reaches a log.
        write!(out, "Credential({})", self.spiffe_id)
    }
}

/// The credential in use, and whose certificates are revoked: every TLS configuration made from it follows both.
#[derive(Clone)]
pub struct LiveCredential {
    current: Arc<ArcSwap<Loaded>>,
    changes: Arc<watch::Sender<u64>>,
    revocations: RevocationList,
}

/// A credential with what rustls needs of it, made once per renewal and not once per handshake.
pub(crate) struct Loaded {
    pub(crate) credential: Arc<Credential>,
    pub(crate) certified_key: Arc<CertifiedKey>,
    /// The same with the bundle's roots at the end of the chain, for peers that pin a root they do not have yet.
    pub(crate) certified_key_with_roots: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
}

impl LiveCredential {
    /// Starts with `credential`.
    ///
    /// # Errors
    /// Its key or bundle cannot be used.
    pub fn new(credential: Credential) -> Result<Self, IdentityError> {
        let loaded = Loaded::new(credential)?;
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(loaded)),
            changes: Arc::new(watch::channel(0).0),
            revocations: RevocationList::default(),
        })
    }

    /// The credential in use now.
    #[must_use]
    pub fn current(&self) -> Arc<Credential> {
        self.current.load().credential.clone()
    }

    /// Uses `credential` from the next handshake on; connections in being keep what they have.
    ///
    /// # Errors
    /// Its key or bundle cannot be used; the old one then stays.
    pub fn replace(&self, credential: Credential) -> Result<(), IdentityError> {
        self.current.store(Arc::new(Loaded::new(credential)?));
        self.changes.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// A counter that moves with each [`LiveCredential::replace`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whose certificates are refused though they have not run out: as this process was told, at first nobody's.
    #[must_use]
    pub fn revocations(&self) -> &RevocationList {
        &self.revocations
    }

    pub(crate) fn load(&self) -> Arc<Loaded> {
        self.current.load_full()
    }
}

impl fmt::Debug for LiveCredential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LiveCredential({})", self.current().spiffe_id)
    }
}

impl Loaded {
    fn new(credential: Credential) -> Result<Self, IdentityError> {
        let certified_key = Arc::new(credential.certified_key()?);
        let mut chain_with_roots = credential.chain.clone();
        chain_with_roots.extend(credential.bundle.iter().cloned());
        Ok(Self {
            certified_key_with_roots: Arc::new(CertifiedKey::new(chain_with_roots, certified_key.key.clone())),
            roots: Arc::new(credential.roots()?),
            certified_key,
            credential: Arc::new(credential),
        })
    }
}

/// A directory that keeps a credential: `svid.pem` (chain), `key.pem` (mode 0600), `bundle.pem`.
///
/// The three are written in an order that leaves a usable set at every crash: the key and its chain travel in one file,
/// `key.pem`, which is written last and read first; `svid.pem` is there for people and other tools.
#[derive(Debug, Clone)]
pub struct CredentialDir {
    path: PathBuf,
}

impl CredentialDir {
    /// A credential kept in `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the credential; `None` when none was ever stored.
    ///
    /// # Errors
    /// A file is missing, unreadable, or not what it should be; the error names it.
    pub fn load(&self) -> Result<Option<Credential>, CredentialError> {
        let key_path = self.path.join(KEY_FILE);
        let key_pem = match fs::read(&key_path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.path.join(SVID_FILE).exists() => {
                return Ok(None);
            }
            Err(source) => return Err(CredentialError::Io { path: key_path, source }),
        };
        let malformed =
            |path: &Path, what: &str| CredentialError::Malformed { path: path.to_owned(), what: what.to_owned() };
        let key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|error| malformed(&key_path, &format!("no private key ({error})")))?;
        let mut chain = certificates(&key_pem).map_err(|what| malformed(&key_path, &what))?;
        if chain.is_empty() {
            // Provisioned by other tools: the chain stands in svid.pem alone.
            chain = self.certificates_in(SVID_FILE)?;
        }
        let bundle = self.certificates_in(BUNDLE_FILE)?;
        let credential = Credential::new(chain, key, bundle)
            .map_err(|source| CredentialError::Identity { path: key_path, source })?;
        Ok(Some(credential))
    }

    /// Writes the credential durably; a crash leaves the old or the new one.
    ///
    /// # Errors
    /// The directory cannot be created or written.
    pub fn store(&self, credential: &Credential) -> Result<(), CredentialError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CredentialError::Io { path, source }
        };
        fs::create_dir_all(&self.path).map_err(failed(&self.path))?;
        let chain = encode_all("CERTIFICATE", credential.chain.iter().map(AsRef::as_ref));
        let mut key = pem::encode("PRIVATE KEY", credential.key.secret_der());
        key.push_str(&chain);
        let bundle = encode_all("CERTIFICATE", credential.bundle.iter().map(AsRef::as_ref));
        for (file, text, mode) in
            [(BUNDLE_FILE, bundle.as_str(), 0o644), (SVID_FILE, chain.as_str(), 0o644), (KEY_FILE, key.as_str(), 0o600)]
        {
            let path = self.path.join(file);
            durable::write(&path, text.as_bytes(), mode).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Writes what is public of a credential whose key was made elsewhere: `key.pem` is its owner's to add.
    ///
    /// # Errors
    /// The directory cannot be created or written.
    pub fn store_public(&self, chain_der: &[Vec<u8>], bundle_der: &[Vec<u8>]) -> Result<(), CredentialError> {
        fs::create_dir_all(&self.path).map_err(|source| CredentialError::Io { path: self.path.clone(), source })?;
        for (file, ders) in [(BUNDLE_FILE, bundle_der), (SVID_FILE, chain_der)] {
            let path = self.path.join(file);
            let text = encode_all("CERTIFICATE", ders.iter().map(AsRef::as_ref));
            durable::write(&path, text.as_bytes(), 0o644).map_err(|source| CredentialError::Io { path, source })?;
        }
        Ok(())
    }

    fn certificates_in(&self, file: &str) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        let path = self.path.join(file);
        let pem = fs::read(&path).map_err(|source| CredentialError::Io { path: path.clone(), source })?;
        certificates(&pem).map_err(|what| CredentialError::Malformed { path, what })
    }
}

/// Why a stored credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The certificate or key is not usable.
    #[error("the credential in {} is not usable", path.display())]
    Identity {
        /// File that holds it.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The file system refused.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("not PEM certificates ({error})"))
}

fn encode_all<'a>(label: &str, ders: impl Iterator<Item = &'a [u8]>) -> String {
    ders.map(|der| pem::encode(label, der).to_string()).collect()
}

const BUNDLE_LINE: &str = "# trust bundle\n";
const KEY_FILE: &str = "key.pem";
const SVID_FILE: &str = "svid.pem";
const BUNDLE_FILE: &str = "bundle.pem";
