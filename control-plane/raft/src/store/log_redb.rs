//! The log in one redb file: a table of entries by index, and a table of two singletons.
//!
//! A group of writes is one transaction of `Durability::Immediate`, which costs one fsync (redb's checksummed
//! one-phase commit): so a commit of the group costs one fsync on each member, in parallel.

use std::path::PathBuf;

use prost::Message as _;
use raft_proto::eraftpb::{Entry, HardState};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition};

use super::{LogContents, LogStore, StoreError, codec};
use crate::core::{Fsynced, Position, Write};

pub(crate) struct RedbLog {
    database: Database,
    /// For messages only.
    path: PathBuf,
}

impl RedbLog {
    /// Opens the log in `backend`; an empty one becomes an empty log.
    pub(crate) fn open(path: PathBuf, backend: impl StorageBackend) -> Result<Self, StoreError> {
        // Every page is verified at the start, where a damaged file can still be refused with a clear message.
        let opened = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend);
        let database = opened.map_err(|error| StoreError::redb(&path, "open the log", error))?;
        Ok(Self { database, path })
    }

    fn failed<E: Into<redb::Error>>(&self) -> impl Fn(E) -> StoreError + '_ {
        |error| StoreError::redb(&self.path, "write the log", error)
    }

    fn corrupt(&self, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), what: what.into() }
    }

    /// Runs `change` in one durable transaction.
    fn commit(
        &self,
        change: impl FnOnce(&mut Table<'_, u64, &[u8]>, &mut Table<'_, u8, &[u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<Fsynced, StoreError> {
        let mut transaction = self.database.begin_write().map_err(self.failed())?;
        transaction.set_durability(Durability::Immediate).map_err(self.failed())?;
        {
            let mut entries = transaction.open_table(ENTRIES).map_err(self.failed())?;
            let mut singletons = transaction.open_table(SINGLETONS).map_err(self.failed())?;
            change(&mut entries, &mut singletons).map_err(self.failed())?;
        }
        transaction.commit().map_err(self.failed())?;
        Ok(Fsynced::after_fsync())
    }

    fn singleton<T>(
        &self,
        table: &impl ReadableTable<u8, &'static [u8]>,
        key: u8,
        read: impl FnOnce(Position, &[u8]) -> Result<T, String>,
    ) -> Result<Option<T>, StoreError> {
        let Some(guard) = table.get(key).map_err(self.failed())? else { return Ok(None) };
        let value = codec::decode(guard.value()).map_err(|what| self.corrupt(what))?;
        read(value.0, value.1).map(Some).map_err(|what| self.corrupt(what))
    }
}

impl LogStore for RedbLog {
    fn load(&self) -> Result<LogContents, StoreError> {
        let transaction = self.database.begin_read().map_err(self.failed())?;
        let (entries, singletons) = match (transaction.open_table(ENTRIES), transaction.open_table(SINGLETONS)) {
            (Ok(entries), Ok(singletons)) => (entries, singletons),
            (Err(redb::TableError::TableDoesNotExist(_)), Err(redb::TableError::TableDoesNotExist(_))) => {
                return Ok(LogContents::default());
            }
            (Err(error), _) | (_, Err(error)) => return Err(self.failed()(error)),
        };
        let truncated = self.singleton(&singletons, TRUNCATED, |position, _| Ok(position))?;
        let hard_state = self.singleton(&singletons, HARD_STATE, |_, payload| {
            HardState::decode(payload).map_err(|error| format!("hard state: {error}"))
        })?;
        let mut contents = LogContents {
            truncated: truncated.unwrap_or_default(),
            hard_state: hard_state.unwrap_or_default(),
            entries: Vec::new(),
        };
        let mut expected = contents.truncated;
        for item in entries.iter().map_err(self.failed())? {
            let (key, value) = item.map_err(self.failed())?;
            let (key, value) = (key.value(), value.value());
            let (position, payload) =
                codec::decode(value).map_err(|what| self.corrupt(format!("entry {key}: {what}")))?;
            let entry = Entry::decode(payload).map_err(|error| self.corrupt(format!("entry {key}: {error}")))?;
            expected = Position { log_index: expected.log_index + 1, term: expected.term.max(position.term) };
            if position != Position::of(&entry) || position != expected || position.log_index != key {
                return Err(self.corrupt(format!("entry {key} claims to be {position:?} and should be {expected:?}")));
            }
            contents.entries.push(entry);
        }
        Ok(contents)
    }

    fn append(&mut self, writes: &[Write]) -> Result<Fsynced, StoreError> {
        if writes.iter().all(Write::is_empty) {
            // Whatever was handed in before is durable: its call returned.
            return Ok(Fsynced::after_fsync());
        }
        self.commit(|entries, singletons| {
            for write in writes {
                if let Some(snapshot) = &write.snapshot {
                    let metadata = snapshot.get_metadata();
                    let position = Position { log_index: metadata.index, term: metadata.term };
                    entries.retain(|_, _| false)?;
                    singletons.insert(TRUNCATED, codec::encode(position, &[]).as_slice())?;
                }
                if let Some(first) = write.entries.first() {
                    entries.retain_in(first.index.., |_, _| false)?;
                }
                for entry in &write.entries {
                    let value = codec::encode(Position::of(entry), &entry.encode_to_vec());
                    entries.insert(entry.index, value.as_slice())?;
                }
                if let Some(position) = write.truncated {
                    entries.retain_in(..=position.log_index, |_, _| false)?;
                    singletons.insert(TRUNCATED, codec::encode(position, &[]).as_slice())?;
                }
                if let Some(hard_state) = &write.hard_state {
                    insert_hard_state(singletons, hard_state)?;
                }
            }
            Ok(())
        })
    }

    fn reset(&mut self, truncated: Position, hard_state: &HardState) -> Result<Fsynced, StoreError> {
        self.commit(|entries, singletons| {
            entries.retain(|_, _| false)?;
            singletons.insert(TRUNCATED, codec::encode(truncated, &[]).as_slice())?;
            insert_hard_state(singletons, hard_state)
        })
    }
}

fn insert_hard_state(singletons: &mut Table<'_, u8, &[u8]>, hard_state: &HardState) -> Result<(), redb::StorageError> {
    let position = Position { log_index: hard_state.commit, term: hard_state.term };
    singletons.insert(HARD_STATE, codec::encode(position, &hard_state.encode_to_vec()).as_slice())?;
    Ok(())
}

/// Entries by log index, framed by [`codec`].
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
/// The two values below, framed alike.
const SINGLETONS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("singletons");
const HARD_STATE: u8 = 1;
/// The place of the last entry that was deleted.
const TRUNCATED: u8 = 2;
/// The log is read once, at the start; a commit touches the right edge of a small tree.
const CACHE_BYTES: usize = 16 << 20;
