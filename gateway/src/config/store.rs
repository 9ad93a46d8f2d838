//! The last good state on disk, so that a gateway starts and serves with control plane and agent absent.
//!
//! `config.bin`: `"AGWCFG\0\x01" | crc32: u32 LE | payload`, the payload a prost message. Written whole, durably, by rename.

use std::io;
use std::path::{Path, PathBuf};

use archipelago_proto::v1::{ConfigResource, LocalService};
use prost::Message as _;

use super::ConfigState;

/// The file in which one gateway keeps its state.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    cluster: String,
    gateway: String,
}

/// Why the state on disk cannot be used; the gateway starts empty and asks for everything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too short, or another file altogether.
    #[error("{path} is not a gateway's configuration file (foreign or truncated)")]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// The checksum does not match, or the payload does not decode.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In what way.
        what: String,
    },
    /// Written by another gateway.
    #[error("{path} belongs to gateway {found}, this is {expected}")]
    OtherGateway {
        /// Which file.
        path: PathBuf,
        /// Who wrote it.
        found: String,
        /// Who reads it.
        expected: String,
    },
}

impl Store {
    /// The store of one gateway under its state directory.
    pub fn new(state_dir: &Path, cluster: &str, gateway: &str) -> Self {
        Self { path: state_dir.join("config.bin"), cluster: cluster.to_owned(), gateway: gateway.to_owned() }
    }

    /// Reads the last good state; `None` when there never was one.
    pub fn load(&self) -> Result<Option<ConfigState>, LoadError> {
        let path = || self.path.clone();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Read { path: path(), source }),
        };
        let Some((sum, payload)) = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk::<4>()) else {
            return Err(LoadError::Foreign { path: path() });
        };
        if crc32fast::hash(payload) != u32::from_le_bytes(*sum) {
            return Err(LoadError::Damaged { path: path(), what: "the checksum does not match".into() });
        }
        let stored =
            Stored::decode(payload).map_err(|error| LoadError::Damaged { path: path(), what: error.to_string() })?;
        if (&stored.cluster, &stored.gateway) != (&self.cluster, &self.gateway) {
            return Err(LoadError::OtherGateway {
                path: path(),
                found: format!("{}/{}", stored.cluster, stored.gateway),
                expected: format!("{}/{}", self.cluster, self.gateway),
            });
        }
        Ok(Some(ConfigState {
            revision: stored.revision,
            resources: stored.resources.into_iter().map(|r| (r.name.clone(), r)).collect(),
            local: stored.local.into_iter().map(|s| (format!("{}/{}", s.namespace, s.name), s)).collect(),
        }))
    }

    /// Writes a state that was built and published.
    pub fn save(&self, state: &ConfigState) -> io::Result<()> {
        let stored = Stored {
            cluster: self.cluster.clone(),
            gateway: self.gateway.clone(),
            revision: state.revision,
            resources: state.resources.values().cloned().collect(),
            local: state.local.values().cloned().collect(),
        };
        let payload = stored.encode_to_vec();
        let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        archipelago_base::durable::write(&self.path, &bytes, 0o600)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    gateway: String,
    #[prost(uint64, tag = "3")]
    revision: u64,
    #[prost(message, repeated, tag = "4")]
    resources: Vec<ConfigResource>,
    #[prost(message, repeated, tag = "5")]
    local: Vec<LocalService>,
}

const MAGIC: &[u8] = b"AGWCFG\0\x01";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back_and_refused_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "paris", "gw-1");
        assert!(store.load().unwrap().is_none());
        let state = ConfigState {
            revision: 7,
            resources: [(
                "mesh".to_owned(),
                ConfigResource { name: "mesh".into(), version: vec![1; 16].into(), ..Default::default() },
            )]
            .into(),
            local: [(
                "shop/web".to_owned(),
                LocalService { namespace: "shop".into(), name: "web".into(), ..LocalService::default() },
            )]
            .into(),
        };
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap(), Some(state));

        let other = Store::new(dir.path(), "tokyo", "gw-1").load();
        assert!(matches!(other, Err(LoadError::OtherGateway { .. })), "{other:?}");

        let path = dir.path().join("config.bin");
        let good = std::fs::read(&path).unwrap();
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(store.load().is_err(), "cut at {cut}");
        }
        for flip in 0..good.len() {
            let mut bad = good.clone();
            bad[flip] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            assert!(store.load().is_err(), "flipped byte {flip}");
        }
    }
}
