//! The log as the raft crate reads it: all retained entries, in memory.
//!
//! The crate calls its storage from the middle of a step, so nothing here may wait for a disk. Memory is bounded by
//! compaction ([`Limits::log_tail_bytes`](crate::Limits::log_tail_bytes)) and by back-pressure on what is not yet
//! committed. The disk's copy is read only at the start.

use std::{cell::Cell, collections::VecDeque};

use bytes::Bytes;
use prost::Message as _;
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use raft_proto::eraftpb::{ConfState, Entry, Snapshot, SnapshotMetadata};

use super::{Position, Recovered};

pub(crate) struct LogCache {
    initial: RaftState,
    truncated: Position,
    entries: VecDeque<Entry>,
    bytes: u64,
    snapshot: Option<Snapshot>,
    /// Set while the raft crate looks for a snapshot in vain; it asks through `&self`.
    snapshot_wanted: Cell<bool>,
}

impl LogCache {
    pub(crate) fn new(recovered: Recovered) -> Self {
        let Recovered { hard_state, conf_state, truncated, entries, .. } = recovered;
        Self {
            initial: RaftState { hard_state, conf_state },
            truncated,
            bytes: entries.iter().map(weight).sum(),
            entries: entries.into(),
            snapshot: None,
            snapshot_wanted: Cell::new(false),
        }
    }

    /// Adds entries, replacing from the first one on whatever stood there.
    ///
    /// # Errors
    /// The entries leave a gap, or would replace what is compacted: a bug in the caller.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> std::result::Result<(), String> {
        let Some(first) = entries.first() else { return Ok(()) };
        let keep = first.index.checked_sub(self.truncated.log_index + 1).and_then(|keep| usize::try_from(keep).ok());
        let Some(keep) = keep.filter(|keep| *keep <= self.entries.len()) else {
            return Err(format!("append at {} to a log of {}..={}", first.index, self.first(), self.last()));
        };
        for entry in self.entries.drain(keep..) {
            self.bytes = self.bytes.saturating_sub(weight(&entry));
        }
        self.bytes += entries.iter().map(weight).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
        Ok(())
    }

    /// Replaces everything by a snapshot's place in the log.
    pub(crate) fn install(&mut self, snapshot: &Snapshot) {
        let metadata = snapshot.get_metadata();
        self.truncated = Position { log_index: metadata.index, term: metadata.term };
        self.entries.clear();
        self.bytes = 0;
        self.snapshot = None;
    }

    /// Drops entries up to `bound` at most, so that no more than the tail's entries and bytes remain; returns the new
    /// truncation point if it moved.
    pub(crate) fn compact(&mut self, bound: u64, tail_entries: u64, tail_bytes: u64) -> Option<Position> {
        let before = self.truncated;
        while let Some(first) = self.entries.front()
            && first.index <= bound
            && (self.entries.len() as u64 > tail_entries || self.bytes > tail_bytes)
        {
            self.bytes = self.bytes.saturating_sub(weight(first));
            self.truncated = Position::of(first);
            self.entries.pop_front();
        }
        // A snapshot from before the truncation point helps nobody: what follows it is gone.
        let truncated = self.truncated.log_index;
        self.snapshot.take_if(|snapshot| snapshot.get_metadata().index < truncated);
        (self.truncated != before).then_some(self.truncated)
    }

    /// Keeps a snapshot for peers whose next entry is compacted.
    pub(crate) fn offer_snapshot(&mut self, position: Position, conf_state: ConfState, data: Bytes) {
        self.snapshot_wanted.set(false);
        let metadata =
            SnapshotMetadata { conf_state: Some(conf_state), index: position.log_index, term: position.term };
        self.snapshot = Some(Snapshot { data, metadata: Some(metadata) });
    }

    /// Whether a peer waits for a snapshot that does not exist yet.
    pub(crate) fn snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.get()
    }

    fn first(&self) -> u64 {
        self.truncated.log_index + 1
    }

    fn last(&self) -> u64 {
        self.truncated.log_index + self.entries.len() as u64
    }

    fn get(&self, log_index: u64) -> Option<&Entry> {
        let offset = log_index.checked_sub(self.first())?;
        self.entries.get(usize::try_from(offset).ok()?)
    }
}

impl Storage for LogCache {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let mut left = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        for log_index in low..high {
            let entry = self.get(log_index).ok_or(Error::Store(StorageError::Unavailable))?;
            let size = entry.encoded_len() as u64;
            // The first one goes whatever its size, else it could never go.
            if size > left && !entries.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, log_index: u64) -> Result<u64> {
        if log_index == self.truncated.log_index {
            return Ok(self.truncated.term);
        }
        let absent = if log_index < self.first() { StorageError::Compacted } else { StorageError::Unavailable };
        self.get(log_index).map(|entry| entry.term).ok_or(Error::Store(absent))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let usable = self.snapshot.as_ref().filter(|snapshot| {
            let metadata = snapshot.get_metadata();
            let members = metadata.get_conf_state();
            metadata.index >= request_index.max(self.truncated.log_index)
                // A node that does not find itself in a snapshot's membership refuses it.
                && [&members.voters, &members.learners, &members.voters_outgoing].iter().any(|ids| ids.contains(&to))
        });
        if usable.is_none() {
            self.snapshot_wanted.set(true);
        }
        usable.cloned().ok_or(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// Bytes an entry is counted with.
fn weight(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES
}

/// What an entry costs beside its payload: the struct and its slot in the queue.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn log(first: u64, last: u64) -> LogCache {
        let truncated = Position { log_index: first - 1, term: 1 };
        let entries = (first..=last).map(|index| entry(index, 2)).collect();
        LogCache::new(Recovered { truncated, entries, ..Recovered::default() })
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![b'x'; 100].into(), ..Entry::default() }
    }

    fn read(log: &LogCache, low: u64, high: u64, max: Option<u64>) -> Result<Vec<u64>> {
        let entries = log.entries(low, high, max, GetEntriesContext::empty(false))?;
        Ok(entries.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn reads_stay_within_size_but_give_at_least_one() {
        let log = log(5, 9);
        assert_eq!(read(&log, 5, 10, None).unwrap(), [5, 6, 7, 8, 9]);
        assert_eq!(read(&log, 6, 10, Some(250)).unwrap(), [6, 7]);
        assert_eq!(read(&log, 6, 10, Some(0)).unwrap(), [6]);
        assert_eq!(read(&log, 4, 6, None), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(read(&log, 9, 11, None), Err(Error::Store(StorageError::Unavailable)));
    }

    #[test]
    fn terms_reach_back_to_the_truncation_point() {
        let log = log(5, 6);
        assert_eq!((log.term(4), log.term(5)), (Ok(1), Ok(2)));
        assert_eq!(log.term(3), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(log.term(7), Err(Error::Store(StorageError::Unavailable)));
    }

    #[test]
    fn append_replaces_conflicts_and_refuses_gaps() {
        let mut log = log(5, 9);
        log.append(&[entry(7, 3)]).unwrap();
        assert_eq!((log.last(), log.term(7)), (7, Ok(3)));
        assert_eq!(log.bytes, 3 * (100 + ENTRY_OVERHEAD_BYTES));
        assert!(log.append(&[entry(9, 3)]).is_err());
        assert!(log.append(&[entry(4, 3)]).is_err());
    }

    #[test]
    fn compaction_keeps_the_tail_unless_its_bytes_exceed() {
        let mut log = log(5, 9);
        assert_eq!(log.compact(9, 10, u64::MAX), None);
        assert_eq!(log.compact(9, 3, u64::MAX), Some(Position { log_index: 6, term: 2 }));
        assert_eq!(log.compact(7, 0, u64::MAX), Some(Position { log_index: 7, term: 2 }), "never past the bound");
        assert_eq!(log.compact(9, 10, 250), Some(Position { log_index: 8, term: 2 }));
    }

    #[test]
    fn a_snapshot_is_asked_for_until_one_fits() {
        let mut log = log(5, 9);
        assert!(log.snapshot(0, 3).is_err() && log.snapshot_wanted());
        log.offer_snapshot(Position { log_index: 8, term: 2 }, ConfState::from((vec![1, 2], vec![])), "s".into());
        assert!(!log.snapshot_wanted());
        assert_eq!(log.snapshot(0, 2).unwrap().get_data(), b"s");
        assert!(log.snapshot(0, 3).is_err() && log.snapshot_wanted(), "node 3 is not in it");
        assert!(log.snapshot(9, 2).is_err(), "too old for what was asked");
    }
}
