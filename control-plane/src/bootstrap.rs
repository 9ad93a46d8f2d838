//! Founding a federation: the authority, an identity and a seal key per member, and the first operator.
//!
//! ```text
//! out/member-<id>/   the data directory of that member
//!     federation.json     who belongs to it
//!     ca.sealed           certificates, and keys sealed for the members
//!     seal.key            0600, opens this member's share; in a directory of its own when one is given
//!     identity/           its SVID
//! out/operator/      svid.pem  key.pem  bundle.pem  control-plane.json
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use archipelago_base::durable;
use archipelago_identity::{CredentialDir, SpiffeId, TrustDomain, pem};
use prost::Message;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    authority::issue_with_new_key,
    ca::{self, Authority, CaError},
    machine::{command::CaInit, format},
    started::marker,
};

/// What to found.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// One, three or five members; any number works.
    pub members: Vec<Member>,
    /// Where the directories are made.
    pub out: PathBuf,
    /// Where each member's seal key goes, as `seal-<id>.key`; `None`: into its data directory, beside what it opens.
    pub seal_key_dir: Option<PathBuf>,
    /// A new file for the root key, in the clear, to be taken offline; `None`: it stays with the members, sealed.
    pub root_key_out: Option<PathBuf>,
}

impl Plan {
    /// Keys in their default places.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, members: Vec<Member>, out: PathBuf) -> Self {
        Self { trust_domain, members, out, seal_key_dir: None, root_key_out: None }
    }

    fn seal_key_path(&self, id: u64) -> PathBuf {
        match &self.seal_key_dir {
            Some(dir) => seal_key_file(dir, id),
            None => member_dir(&self.out, id).join(SEAL_KEY_FILE),
        }
    }
}

/// A member's seal key in a directory of such keys.
#[must_use]
pub fn seal_key_file(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("seal-{id}.key"))
}

/// A member of the control plane and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Member {
    /// Raft id, from 1.
    pub id: u64,
    /// host:port of the client API.
    pub client: String,
    /// host:port for the other members.
    pub peer: String,
    /// Of a member that was added later: the number that its process is started with, its own or that of the first member in
    /// whose place it is. `None`: a founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<u64>,
}

impl Member {
    /// The number that its process is started with.
    #[must_use]
    pub fn place(&self) -> u64 {
        self.place.unwrap_or(self.id)
    }
}

impl FromStr for Member {
    type Err = String;

    /// Reads `ID=CLIENT/PEER`, for example `1=10.0.0.1:7400/10.0.0.1:7401`.
    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text:?} is not ID=CLIENT_HOST:PORT/PEER_HOST:PORT");
        let (id, addresses) = text.split_once('=').ok_or_else(malformed)?;
        let (client, peer) = addresses.split_once('/').ok_or_else(malformed)?;
        let id = id.parse().map_err(|_| malformed())?;
        if id == 0 {
            return Err(format!("{text:?}: member id 0 is reserved"));
        }
        for address in [client, peer] {
            let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return Err(malformed());
            }
        }
        Ok(Self { id, client: client.to_owned(), peer: peer.to_owned(), place: None })
    }
}

/// Content of `federation.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FederationFile {
    /// 128 random bits, hexadecimal: tells two federations apart even when they share a trust domain.
    pub(crate) federation: String,
    pub(crate) trust_domain: String,
    pub(crate) members: Vec<Member>,
}

impl FederationFile {
    /// The member whose process is started with this number. An id is never given twice, so whoever is in the place of a member that
    /// was lost has another one, and is started as that one was.
    pub(crate) fn member(&self, node_id: u64) -> Option<&Member> {
        let own = self.members.iter().find(|member| member.id == node_id);
        own.or_else(|| self.members.iter().filter(|member| member.place() == node_id).max_by_key(|member| member.id))
    }
}

/// Content of `operator/control-plane.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ControlPlaneFile<'a> {
    trust_domain: &'a str,
    control_plane: Vec<&'a str>,
}

/// Founds a federation. Nothing that exists is overwritten: the first step checks that nothing is there.
///
/// # Errors
/// See [`BootstrapError`].
pub fn bootstrap(plan: &Plan) -> Result<(), BootstrapError> {
    bootstrap_at(plan, format::CURRENT)
}

/// As [`bootstrap`], with members that all know the log format `founded_format`.
///
/// # Errors
/// See [`BootstrapError`].
pub fn bootstrap_at(plan: &Plan, founded_format: u32) -> Result<(), BootstrapError> {
    let mut ids: Vec<u64> = plan.members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() || ids.len() != plan.members.len() || ids.first() == Some(&0) {
        return Err(BootstrapError::Members);
    }
    let operator = plan.out.join("operator");
    for directory in ids.iter().map(|id| member_dir(&plan.out, *id)).chain([operator.clone()]) {
        if directory.exists() {
            return Err(BootstrapError::Exists { directory });
        }
        archipelago_raft::refuse_lost(&directory, &marker(&directory))?;
    }

    let keys = plan.seal_key_dir.iter().flat_map(|dir| ids.iter().map(|id| seal_key_file(dir, *id)));
    if let Some(directory) = keys.chain(plan.root_key_out.clone()).find(|path| path.exists()) {
        return Err(BootstrapError::Exists { directory });
    }

    let now = OffsetDateTime::now_utc();
    let mut genesis = ca::found(&plan.trust_domain, &ids, now)?;
    genesis.ca.founded_format = founded_format;
    if let Some(path) = &plan.root_key_out {
        // No member may recover what no member needs.
        genesis.ca.root_key = None;
        write(path, pem::encode("PRIVATE KEY", &genesis.root_key).as_bytes(), 0o600)?;
    }
    let federation = FederationFile {
        federation: format!("{:032x}", rand::random::<u128>()),
        trust_domain: plan.trust_domain.to_string(),
        members: plan.members.clone(),
    };
    let json = serde_json::to_vec_pretty(&federation).map_err(|error| BootstrapError::Identity(error.into()))?;
    let sealed = genesis.ca.encode_to_vec();
    let (first, first_key) = genesis.seal_keys.first().ok_or(BootstrapError::Members)?;
    let authority = Authority::unseal(&genesis.ca, *first, first_key)?;

    for (id, seal_key) in &genesis.seal_keys {
        let directory = member_dir(&plan.out, *id);
        make_private(&directory)?;
        write(&directory.join(SEALED_FILE), &sealed, 0o600)?;
        let path = plan.seal_key_path(*id);
        if let Some(parent) = path.parent() {
            make_private(parent)?;
        }
        seal_key.store(&path).map_err(|source| BootstrapError::Io { path, source })?;
        let spiffe_id = SpiffeId::control_plane(&plan.trust_domain, *id);
        let credential =
            issue_with_new_key(&authority, &spiffe_id, MEMBER_LIFE, now).map_err(BootstrapError::Identity)?;
        let identity = CredentialDir::new(directory.join(IDENTITY_DIR));
        identity.store(&credential).map_err(|error| BootstrapError::Identity(error.into()))?;
        // Last: a directory with it is complete.
        write(&directory.join(FEDERATION_FILE), &json, 0o600)?;
    }

    make_private(&operator)?;
    let spiffe_id = SpiffeId::operator(&plan.trust_domain, OPERATOR_NAME);
    let credential =
        issue_with_new_key(&authority, &spiffe_id, OPERATOR_LIFE, now).map_err(BootstrapError::Identity)?;
    CredentialDir::new(&operator).store(&credential).map_err(|error| BootstrapError::Identity(error.into()))?;
    let file = ControlPlaneFile {
        trust_domain: plan.trust_domain.as_str(),
        control_plane: plan.members.iter().map(|member| member.client.as_str()).collect(),
    };
    let json = serde_json::to_vec_pretty(&file).map_err(|error| BootstrapError::Identity(error.into()))?;
    write(&operator.join("control-plane.json"), &json, 0o600)
}

/// Reads `federation.json` of a data directory.
pub(crate) fn read_federation(data_dir: &Path) -> anyhow::Result<FederationFile> {
    use anyhow::Context;
    let path = data_dir.join(FEDERATION_FILE);
    let text = fs::read(&path).with_context(|| {
        format!("cannot read {}: is this the data directory that `bootstrap` made for this member?", path.display())
    })?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a federation file", path.display()))
}

/// Reads `ca.sealed` of a data directory.
pub(crate) fn read_sealed(data_dir: &Path) -> anyhow::Result<CaInit> {
    use anyhow::Context;
    let path = data_dir.join(SEALED_FILE);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    CaInit::decode(bytes.as_slice()).with_context(|| format!("{} is damaged", path.display()))
}

/// Why nothing, or not everything, was founded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// No member, an id twice, or id 0.
    #[error("a federation needs members with distinct ids, none of them 0")]
    Members,
    /// Something is there already.
    #[error("{} exists already: a federation is founded once", directory.display())]
    Exists {
        /// What is there.
        directory: PathBuf,
    },
    /// A member of an earlier federation was started there.
    #[error(transparent)]
    Started(#[from] archipelago_raft::StoreError),
    /// The authority could not be made.
    #[error("the certificate authority could not be made")]
    Ca(#[from] CaError),
    /// An identity could not be made or stored.
    #[error("an identity could not be made: {0:#}")]
    Identity(anyhow::Error),
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Data directory of a member under `out`.
#[must_use]
pub fn member_dir(out: &Path, id: u64) -> PathBuf {
    out.join(format!("member-{id}"))
}

fn make_private(directory: &Path) -> Result<(), BootstrapError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| BootstrapError::Io { path: directory.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), BootstrapError> {
    durable::write(path, bytes, mode).map_err(|source| BootstrapError::Io { path: path.to_owned(), source })
}

pub(crate) const FEDERATION_FILE: &str = "federation.json";
pub(crate) const SEALED_FILE: &str = "ca.sealed";
pub(crate) const SEAL_KEY_FILE: &str = "seal.key";
pub(crate) const IDENTITY_DIR: &str = "identity";
const OPERATOR_NAME: &str = "admin";
/// Members renew themselves from their first start on.
const MEMBER_LIFE: Duration = Duration::from_secs(48 * 3_600);
/// Operators are people with files; `Identity.Renew` gives them another year.
pub(crate) const OPERATOR_LIFE: Duration = Duration::from_secs(365 * 24 * 3_600);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ca::SealKey;

    fn plan(out: &Path) -> Plan {
        let members = (1..=3).map(|id| format!("{id}=127.0.0.1:740{id}/127.0.0.1:750{id}").parse().unwrap()).collect();
        Plan::new("mesh.example".parse().unwrap(), members, out.to_owned())
    }

    #[test]
    fn every_member_can_unseal_its_own_share_and_no_other() {
        let out = tempfile::tempdir().unwrap();
        bootstrap(&plan(out.path())).unwrap();
        for id in 1..=3 {
            let directory = member_dir(out.path(), id);
            let key = SealKey::load(&directory.join(SEAL_KEY_FILE)).unwrap();
            let ca = read_sealed(&directory).unwrap();
            Authority::unseal(&ca, id, &key).unwrap();
            assert!(Authority::unseal(&ca, id % 3 + 1, &key).is_err());
            let federation = read_federation(&directory).unwrap();
            assert_eq!(federation.members.len(), 3);
            let credential = CredentialDir::new(directory.join(IDENTITY_DIR)).load().unwrap().unwrap();
            assert_eq!(credential.spiffe_id.to_string(), format!("spiffe://mesh.example/control-plane/{id}"));
        }
        let operator = CredentialDir::new(out.path().join("operator")).load().unwrap().unwrap();
        assert_eq!(operator.spiffe_id.to_string(), "spiffe://mesh.example/operator/admin");
        let error = bootstrap(&plan(out.path())).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
    }

    #[test]
    fn a_seal_key_that_others_can_read_is_refused() {
        let out = tempfile::tempdir().unwrap();
        bootstrap(&plan(out.path())).unwrap();
        let path = member_dir(out.path(), 1).join(SEAL_KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SealKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("mode 640"), "{error}");
    }

    #[test]
    fn no_plaintext_key_of_the_authority_reaches_the_disk() {
        let out = tempfile::tempdir().unwrap();
        bootstrap(&plan(out.path())).unwrap();
        // PKCS#8 of a P-256 key begins with this algorithm identifier; only leaf keys (PEM) may be in the clear.
        let marker = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d];
        let sealed = read_sealed(&member_dir(out.path(), 1)).unwrap();
        for key in [sealed.root_key.unwrap(), sealed.issuer_key.unwrap()] {
            assert!(!key.ciphertext.windows(marker.len()).any(|window| window == marker));
        }
    }

    #[test]
    fn keys_go_where_they_are_told_and_the_root_key_stays_with_nobody() {
        let out = tempfile::tempdir().unwrap();
        let (keys, root) = (out.path().join("keys"), out.path().join("root.pem"));
        let plan = Plan {
            seal_key_dir: Some(keys.clone()),
            root_key_out: Some(root.clone()),
            ..plan(&out.path().join("members"))
        };
        bootstrap(&plan).unwrap();
        let directory = member_dir(&plan.out, 1);
        assert!(!directory.join(SEAL_KEY_FILE).exists());
        let sealed = read_sealed(&directory).unwrap();
        assert!(sealed.root_key.is_none() && sealed.issuer_key.is_some());
        Authority::unseal(&sealed, 1, &SealKey::load(&seal_key_file(&keys, 1)).unwrap()).unwrap();
        let text = fs::read_to_string(&root).unwrap();
        let key = rcgen::KeyPair::from_pem(&text).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&sealed.root_der).unwrap();
        let own = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(certificate.public_key().raw, own, "it is the key of the root");
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Plan { out: out.path().join("others"), ..plan };
        assert!(matches!(bootstrap(&again), Err(BootstrapError::Exists { .. })), "no key is overwritten");
    }

    #[test]
    fn members_are_read_from_their_flag() {
        let member: Member = "2=10.0.0.2:7400/10.0.0.2:7401".parse().unwrap();
        assert_eq!((member.id, &*member.client, &*member.peer), (2, "10.0.0.2:7400", "10.0.0.2:7401"));
        for wrong in ["", "1", "1=a:1", "0=a:1/b:2", "x=a:1/b:2", "1=a/b:2", "1=a:1/b:99999"] {
            assert!(wrong.parse::<Member>().is_err(), "{wrong}");
        }
    }
}
