//! The last good state on disk, so that a gateway starts and serves with control plane and agent absent.
//!
//! `config.log`: `"AGWCFG\0\x02"`, then records `length: u32 LE | crc32 of the payload: u32 LE | payload`, each payload a prost
//! [`Record`]. The first says whose file it is and everything there is, each later one what changed. A record that is cut off
//! or damaged ends the file: what was before it counts. When the changes outweigh the state the file is written anew, whole,
//! by rename.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archipelago_model::delta::{Delta, Shared};
use archipelago_model::stream::{Held, Resource, Resources};
use archipelago_model::version::Version;
use archipelago_proto::v1::{Captures, ConfigResource, ConfigVersion, LocalService};
use prost::Message as _;

use super::ConfigState;
use crate::balance::topology::Place;

/// The file in which one gateway keeps its state.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    cluster: String,
    gateway: String,
    open: Option<Open>,
}

/// The file as it was written by this process.
#[derive(Debug)]
struct Open {
    file: File,
    kept: ConfigState,
    whole_bytes: usize,
    change_bytes: usize,
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
    /// Not even its first record is whole.
    #[error("{path} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
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
        let (cluster, gateway) = (cluster.to_owned(), gateway.to_owned());
        Self { path: state_dir.join("config.log"), cluster, gateway, open: None }
    }

    /// Reads the last good state; `None` when there never was one.
    ///
    /// # Errors
    /// Not one whole record of this gateway is there.
    pub fn load(&self) -> Result<Option<ConfigState>, LoadError> {
        let path = || self.path.clone();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Read { path: path(), source }),
        };
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return Err(LoadError::Foreign { path: path() }) };
        let mut state = None;
        while let Some((record, after)) = Record::read(rest) {
            if state.is_none() && (&record.cluster, &record.gateway) != (&self.cluster, &self.gateway) {
                return Err(LoadError::OtherGateway {
                    path: path(),
                    found: format!("{}/{}", record.cluster, record.gateway),
                    expected: format!("{}/{}", self.cluster, self.gateway),
                });
            }
            state = Some(record.follow(state.unwrap_or_default()));
            rest = after;
        }
        if state.is_some() && !rest.is_empty() {
            tracing::warn!(path = %self.path.display(), bytes = rest.len(), "the end of the file is damaged; what is before it counts");
        }
        state.map(Some).ok_or_else(|| LoadError::Damaged { path: path() })
    }

    /// Writes a state that was built and published: durable when this returns.
    ///
    /// Costs what changed since the last call; the first one writes everything, as does one after a failure.
    ///
    /// # Errors
    /// The disk failed; what was there before is still readable.
    pub fn save(&mut self, state: &ConfigState) -> io::Result<()> {
        match self.open.take() {
            Some(open) if open.change_bytes <= open.whole_bytes.max(COMPACT_MIN_BYTES) => {
                // Not put back when this fails: a torn record must not be followed by another one.
                self.open = Some(open.append(state)?);
            }
            _ => self.open = Some(self.write_whole(state)?),
        }
        Ok(())
    }

    fn write_whole(&self, state: &ConfigState) -> io::Result<Open> {
        let record = Record {
            cluster: self.cluster.clone(),
            gateway: self.gateway.clone(),
            ..Record::of(
                state,
                state.held.resources.in_full(),
                Delta::full(&state.local),
                Delta::full(&state.last_good),
            )
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(record.to_bytes()?);
        archipelago_base::durable::write(&self.path, &bytes, 0o600)?;
        let file = OpenOptions::new().append(true).open(&self.path)?;
        Ok(Open { file, kept: state.clone(), whole_bytes: bytes.len(), change_bytes: 0 })
    }
}

impl Open {
    fn append(mut self, state: &ConfigState) -> io::Result<Self> {
        let config = state.held.resources.since(&self.kept.held.resources);
        let local = Delta::between(&self.kept.local, &state.local);
        let last_good = Delta::between(&self.kept.last_good, &state.last_good);
        let mut record = Record::of(state, config, local, last_good);
        if self.kept.captures == state.captures {
            record.captures = None;
        }
        if self.kept.place == state.place {
            record.zone = None;
        }
        let bytes = record.to_bytes()?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.kept = state.clone();
        self.change_bytes += bytes.len();
        Ok(self)
    }
}

/// A step from one state to the next.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    /// In the first record of a file.
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    gateway: String,
    #[prost(message, optional, tag = "3")]
    version: Option<ConfigVersion>,
    #[prost(bool, tag = "4")]
    full: bool,
    #[prost(message, repeated, tag = "5")]
    upserts: Vec<ConfigResource>,
    #[prost(string, repeated, tag = "6")]
    removals: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    local_upserts: Vec<LocalService>,
    #[prost(string, repeated, tag = "8")]
    local_removals: Vec<String>,
    /// What runs in the place of resources that cannot be used.
    #[prost(message, repeated, tag = "9")]
    last_good_upserts: Vec<ConfigResource>,
    #[prost(string, repeated, tag = "10")]
    last_good_removals: Vec<String>,
    /// All of them, in a record after which they are others.
    #[prost(message, optional, tag = "11")]
    captures: Option<Captures>,
    /// That of the gateway, in a record after which it is another one.
    #[prost(string, optional, tag = "12")]
    zone: Option<String>,
}

impl Record {
    fn of(
        state: &ConfigState,
        config: Delta<String, Resource>,
        local: Delta<String, Shared<LocalService>>,
        last_good: Delta<String, Resource>,
    ) -> Self {
        let plain = |upserts: Vec<(String, Resource)>| {
            upserts.into_iter().map(|(_, resource)| ConfigResource::clone(&resource)).collect()
        };
        Self {
            version: Some(state.held.version.into()),
            full: config.full,
            upserts: plain(config.upserts),
            removals: config.removals,
            local_upserts: local.upserts.into_iter().map(|(_, service)| LocalService::clone(&service)).collect(),
            local_removals: local.removals,
            last_good_upserts: plain(last_good.upserts),
            last_good_removals: last_good.removals,
            captures: state.captures.as_deref().cloned(),
            zone: Some(state.place.zone.to_string()),
            ..Self::default()
        }
    }

    fn follow(self, before: ConfigState) -> ConfigState {
        let mut resources = if self.full { Resources::default() } else { before.held.resources };
        self.removals.iter().for_each(|name| resources.remove(name));
        self.upserts.into_iter().for_each(|resource| resources.put(resource.into()));
        let mut local = before.local;
        let upserts = self.local_upserts.into_iter();
        let upserts = upserts.map(|service| (format!("{}/{}", service.namespace, service.name), Shared::new(service)));
        Delta { full: self.full, upserts: upserts.collect(), removals: self.local_removals }.apply_to(&mut local);
        let mut last_good = before.last_good;
        let upserts =
            self.last_good_upserts.into_iter().map(|form| (form.name.clone(), Resource::from(form))).collect();
        Delta { full: self.full, upserts, removals: self.last_good_removals }.apply_to(&mut last_good);
        let version = self.version.map_or_else(Version::default, Version::from);
        let captures = self.captures.map(Arc::new).or(before.captures);
        let place = self.zone.map_or(before.place, |zone| Place { zone: zone.into(), ..Place::default() });
        ConfigState { held: Held { version, resources }, local, captures, place, last_good }
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let payload = self.encode_to_vec();
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    /// The first record of `bytes` and what follows it; `None` when it is cut off or damaged.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (sum, rest) = rest.split_first_chunk::<4>()?;
        let (payload, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        if crc32fast::hash(payload) != u32::from_le_bytes(*sum) {
            return None;
        }
        Some((Self::decode(payload).ok()?, rest))
    }
}

const MAGIC: &[u8] = b"AGWCFG\0\x02";
const HEAD_BYTES: usize = 8;
/// Below this a longer file costs less than writing it anew.
const COMPACT_MIN_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use imbl::OrdMap;
    use proptest::prelude::*;

    use super::*;

    fn state(revision: u64, resources: &[(&str, u8)], local: &[(&str, u32)]) -> ConfigState {
        let version = Version { revision, ..Version::default() };
        let resource = |(name, version): &(&str, u8)| ConfigResource {
            name: (*name).to_owned(),
            version: vec![*version; 16].into(),
            ..ConfigResource::default()
        };
        let mut state = ConfigState::new(version, resources.iter().map(resource));
        for (name, port) in local {
            let service =
                LocalService { namespace: "shop".into(), name: (*name).into(), port: *port, ..LocalService::default() };
            state.local.insert(format!("shop/{name}"), Shared::new(service));
        }
        state
    }

    #[test]
    fn written_and_read_back_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path(), "paris", "gw-1");
        assert_eq!(store.load().unwrap(), None);
        let first = state(7, &[("mesh", 1)], &[("web", 80)]);
        store.save(&first).unwrap();
        assert_eq!(store.load().unwrap(), Some(first.clone()));
        let other = Store::new(dir.path(), "tokyo", "gw-1").load();
        assert!(matches!(other, Err(LoadError::OtherGateway { .. })), "{other:?}");
        // A new process begins a new file; its directory is found as it was left.
        let mut store = Store::new(dir.path(), "paris", "gw-1");
        let second = state(8, &[("mesh", 1), ("peer/x/y", 2)], &[]);
        store.save(&first).unwrap();
        store.save(&second).unwrap();
        assert_eq!(store.load().unwrap(), Some(second));
        std::fs::write(dir.path().join("config.log"), b"something else").unwrap();
        assert!(matches!(store.load(), Err(LoadError::Foreign { .. })));
    }

    #[test]
    fn an_endpoint_flap_costs_its_own_size_and_the_file_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path(), "paris", "gw-1");
        let names: Vec<String> = (0..2_000).map(|n| format!("service/shop/s-{n}")).collect();
        let resources: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mut state = state(1, &resources, &[("web", 0)]);
        let size = || usize::try_from(std::fs::metadata(dir.path().join("config.log")).unwrap().len()).unwrap();
        store.save(&state).unwrap();
        let whole = size();
        let mut largest = 0;
        for port in 0..20_000 {
            let flap = LocalService { namespace: "shop".into(), name: "web".into(), port, ..LocalService::default() };
            state.local.insert("shop/web".to_owned(), Shared::new(flap));
            // The disk is not what is measured here.
            let open = store.open.as_mut().unwrap();
            let local = Delta::between(&open.kept.local, &state.local);
            let cost = Record::of(
                &state,
                state.held.resources.since(&open.kept.held.resources),
                local,
                Delta::full(&OrdMap::new()),
            )
            .to_bytes()
            .unwrap();
            assert!(cost.len() < 64, "{} bytes for one flap", cost.len());
            if port % 200 == 0 {
                open.change_bytes += 200 * cost.len();
                store.save(&state).unwrap();
                largest = largest.max(size());
            }
        }
        assert!(largest < 3 * whole.max(COMPACT_MIN_BYTES), "{largest} bytes, {whole} whole");
        store.save(&state).unwrap();
        assert!(store.load().unwrap() == Some(state));
    }

    proptest! {
            #![proptest_config(ProptestConfig::with_cases(40))]
            /// Cut anywhere or damaged anywhere, the file gives a state that was saved, never another; and one that was complete
            /// before the damage is not lost.
            #[test]
            fn it_survives_being_cut_and_damaged_anywhere(
                steps in prop::collection::vec(
                    (prop::collection::btree_map("[a-d]", 0u8..3, 0..4), prop::collection::btree_map("[a-c]", 0u32..3, 0..3),
                        prop::collection::btree_map("[a-d]", 3u8..6, 0..3)), 1..6),
                places in prop::collection::vec(any::<prop::sample::Index>(), 24),
            ) {
                let dir = tempfile::tempdir().unwrap();
                let mut store = Store::new(dir.path(), "paris", "gw-1");
                let path = dir.path().join("config.log");
                let mut saved = Vec::new();
                for (index, (resources, local, last_good)) in steps.iter().enumerate() {
                    let resources: Vec<_> = resources.iter().map(|(name, version)| (name.as_str(), *version)).collect();
                    let local: Vec<_> = local.iter().map(|(name, port)| (name.as_str(), *port)).collect();
                    let mut state = state(index as u64, &resources, &local);
                    let form = |(name, version): (&String, &u8)| {
                        let version = vec![*version; 16].into();
                        let form = ConfigResource { name: name.clone(), version, ..ConfigResource::default() };
    (name.clone(), Resource::from(form))
                    };
                    state.last_good = last_good.iter().map(form).collect();
                    // They never go away again.
                    state.captures = index.checked_sub(1).map(|step| {
                        let listen = step as u32 / 2;
                        let capture = archipelago_proto::v1::Capture { listen, ..Default::default() };
                        Arc::new(Captures { captures: vec![capture] })
                    });
                    store.save(&state).unwrap();
                    saved.push((std::fs::metadata(&path).unwrap().len() as usize, state));
                }
                let good = std::fs::read(&path).unwrap();
                let complete = |bytes: usize| saved.iter().rev().find(|(end, _)| *end <= bytes).map(|(_, state)| state.clone());
                for place in places {
                    let at = place.index(good.len());
                    std::fs::write(&path, &good[..at]).unwrap();
                    prop_assert_eq!(store.load().ok().flatten(), complete(at), "cut at {}", at);
                    let mut bad = good.clone();
                    bad[at] ^= 0x40;
                    std::fs::write(&path, &bad).unwrap();
                    prop_assert_eq!(store.load().ok().flatten(), complete(at), "damaged at {}", at);
                }
            }
        }
}
