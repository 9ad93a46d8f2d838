//! The newest checkpoint in one redb file.

use std::path::PathBuf;

use prost::Message as _;
use raft_proto::eraftpb::ConfState;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::{Checkpoint, StateStore, StoreError, codec};
use crate::{
    core::Position,
    digest::{Digest, StateDigest},
};

pub(crate) struct RedbState {
    database: Database,
    /// For messages only.
    path: PathBuf,
}

impl RedbState {
    /// Opens the file in `backend`; an empty one holds no checkpoint.
    pub(crate) fn open(path: PathBuf, backend: impl StorageBackend) -> Result<Self, StoreError> {
        let opened = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend);
        let database = opened.map_err(|error| StoreError::redb(&path, "open the checkpoint", error))?;
        Ok(Self { database, path })
    }

    fn failed<E: Into<redb::Error>>(&self) -> impl Fn(E) -> StoreError + '_ {
        |error| StoreError::redb(&self.path, "write a checkpoint", error)
    }

    fn corrupt(&self, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), what: what.into() }
    }
}

impl StateStore for RedbState {
    fn load(&self) -> Result<Option<Checkpoint>, StoreError> {
        let transaction = self.database.begin_read().map_err(self.failed())?;
        let table = match transaction.open_table(CHECKPOINT) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table.map_err(self.failed())?,
        };
        let value = |key: u8| {
            let guard = table.get(key).map_err(self.failed())?.ok_or_else(|| self.corrupt("half a checkpoint"))?;
            let (position, payload) = codec::decode(guard.value()).map_err(|what| self.corrupt(what))?;
            Ok::<_, StoreError>((position, payload.to_vec()))
        };
        let (position, conf_state) = value(CONF_STATE)?;
        let (origin_position, origin) = value(ORIGIN)?;
        let (data_position, data) = value(DATA)?;
        let (digests_position, digests) = value(DIGESTS)?;
        if [origin_position, data_position, digests_position] != [position; 3] {
            return Err(self.corrupt("parts of two checkpoints"));
        }
        let digests = decode_digests(&digests).ok_or_else(|| self.corrupt("digests of another length"))?;
        let conf_state = ConfState::decode(conf_state.as_slice()).map_err(|error| self.corrupt(error.to_string()))?;
        Ok(Some(Checkpoint { position, conf_state, installed: origin == INSTALLED, digests, data: data.into() }))
    }

    fn save(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let Checkpoint { position, conf_state, installed, digests, data } = checkpoint;
        let mut transaction = self.database.begin_write().map_err(self.failed())?;
        transaction.set_durability(Durability::Immediate).map_err(self.failed())?;
        {
            let mut table = transaction.open_table(CHECKPOINT).map_err(self.failed())?;
            let stored = table.get(CONF_STATE).map_err(self.failed())?;
            let stored = stored.map(|guard| codec::decode(guard.value()).map(|(position, _)| position)).transpose();
            let stored = stored.map_err(|what| self.corrupt(what))?;
            // Two threads save: the log's, when the leader sent a snapshot, and the checkpoint's. The newer one stays.
            // Of two at the same index, equal as they are, the leader's stays too: until the log is reset behind it, only
            // its mark tells the next start that the log's end is where it ought to be.
            let from_leader = |stored: Position| {
                let origin = table.get(ORIGIN).map_err(self.failed())?;
                let origin = origin.map(|guard| codec::decode(guard.value()).map(|(_, origin)| origin == INSTALLED));
                let installed = origin.transpose().map_err(|what| self.corrupt(what))?;
                Ok::<_, StoreError>(stored == *position && installed == Some(true))
            };
            let older = stored.is_some_and(|stored| stored.log_index > position.log_index);
            if older || stored.map_or(Ok(false), from_leader)? {
                // Dropping the transaction undoes it; it has changed nothing.
                return Ok(());
            }
            let origin: &[u8] = if *installed { INSTALLED } else { OWN };
            let parts = [
                (CONF_STATE, conf_state.encode_to_vec()),
                (ORIGIN, origin.to_vec()),
                (DIGESTS, encode_digests(digests)),
                (DATA, data.to_vec()),
            ];
            for (key, payload) in parts {
                table.insert(key, codec::encode(*position, &payload).as_slice()).map_err(self.failed())?;
            }
        }
        transaction.commit().map_err(self.failed())
    }
}

/// Layout: `(log_index: u64, big-endian | sha256: [u8; 32])*`.
fn encode_digests(digests: &[StateDigest]) -> Vec<u8> {
    digests.iter().flat_map(|at| at.log_index.to_be_bytes().into_iter().chain(at.digest.0)).collect()
}

fn decode_digests(bytes: &[u8]) -> Option<Vec<StateDigest>> {
    let (parts, []) = bytes.as_chunks::<DIGEST_BYTES>() else { return None };
    let part = |part: &[u8; DIGEST_BYTES]| {
        let (log_index, digest) = part.split_first_chunk()?;
        Some(StateDigest { log_index: u64::from_be_bytes(*log_index), digest: Digest(*digest.first_chunk()?) })
    };
    parts.iter().map(part).collect()
}

const DIGEST_BYTES: usize = 8 + 32;
/// The parts of the one checkpoint, framed by [`codec`] with its position.
const CHECKPOINT: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("checkpoint");
const CONF_STATE: u8 = 1;
const ORIGIN: u8 = 2;
const DATA: u8 = 3;
const DIGESTS: u8 = 4;
const OWN: &[u8] = b"own";
const INSTALLED: &[u8] = b"installed";
const CACHE_BYTES: usize = 4 << 20;
