//! Stable storage: the log, the checkpoints, and the directory that holds them.
//!
//! Two files, so that a checkpoint never makes a commit wait: `log.redb` takes one fsync per group of writes,
//! `state.redb` one per checkpoint. The log is the truth; a checkpoint shortens the replay.
//!
//! A write that finds no room on the disk waits for it (`room.rs`). Nothing else is retried after a failure, and nothing is ever initialised twice: a node that lost its log and came
//! back empty would vote against what it had promised.

mod backend;
mod codec;
mod dir;
mod log_redb;
mod room;
mod state_redb;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

use archipelago_base::durable::LockError;
use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, Entry, HardState, Snapshot};

pub(crate) use backend::Watched;
pub(crate) use dir::{DataDir, Guard, Ident};
pub use dir::{forget_replaced, refuse_lost};
pub(crate) use log_redb::RedbLog;
pub(crate) use room::Room;
pub(crate) use state_redb::RedbState;

use crate::{
    core::{Fsynced, Persisted, Position, Recovered, Write},
    digest::{self, StateDigest},
};

/// Keeps entries and hard state.
pub(crate) trait LogStore: Send {
    /// Everything that is stored, verified.
    fn load(&self) -> Result<LogContents, StoreError>;

    /// Makes a group of writes durable, in order, all or none, with one fsync; none at all if the group is empty.
    fn append(&mut self, writes: &[Write]) -> Result<Fsynced, StoreError>;

    /// Forgets all entries: the log now begins after `truncated`, which `hard_state` is at least as new as.
    fn reset(&mut self, truncated: Position, hard_state: &HardState) -> Result<Fsynced, StoreError>;
}

/// Keeps the newest checkpoint.
pub(crate) trait StateStore: Send + Sync {
    /// The newest checkpoint, verified; none in a directory that was never started.
    fn load(&self) -> Result<Option<Checkpoint>, StoreError>;

    /// Replaces the checkpoint, durably. An older one than the stored is ignored.
    fn save(&self, checkpoint: &Checkpoint) -> Result<(), StoreError>;
}

/// What a log store holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogContents {
    pub(crate) hard_state: HardState,
    pub(crate) truncated: Position,
    pub(crate) entries: Vec<Entry>,
}

/// The state machine's state after a log index.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    pub(crate) conf_state: ConfState,
    /// It came from the leader and replaces the log too, rather than summing up the log of this node.
    pub(crate) installed: bool,
    /// Of this member's newest checkpoints, oldest first; the last is that of `data`.
    pub(crate) digests: Vec<StateDigest>,
    /// Sealed by [`digest::seal`].
    pub(crate) data: Bytes,
}

impl Checkpoint {
    /// What a member's first start leaves: the state that every founder begins with, or nothing.
    pub(crate) fn genesis(founders: Option<(ConfState, Vec<u8>)>) -> Self {
        let Some((conf_state, state)) = founders else { return Self::default() };
        let (digest, data) = digest::seal(&state);
        let digests = vec![StateDigest { log_index: GENESIS.log_index, digest }];
        Self { position: GENESIS, conf_state, installed: false, digests, data }
    }

    fn of_snapshot(snapshot: &Snapshot) -> Self {
        let metadata = snapshot.get_metadata();
        let digest = digest::claimed(&snapshot.data);
        Self {
            position: Position { log_index: metadata.index, term: metadata.term },
            conf_state: metadata.get_conf_state().clone(),
            installed: true,
            digests: digest.map(|digest| StateDigest { log_index: metadata.index, digest }).into_iter().collect(),
            data: snapshot.data.clone(),
        }
    }
}

/// Makes a group of writes durable: a snapshot's checkpoint before the log that builds on it.
///
/// # Errors
/// [`StoreError`]: the node must stop, its messages unsent.
pub(crate) fn persist(
    log: &mut dyn LogStore,
    state: &dyn StateStore,
    writes: Vec<Write>,
) -> Result<Vec<Persisted>, StoreError> {
    for snapshot in writes.iter().filter_map(|write| write.snapshot.as_ref()) {
        state.save(&Checkpoint::of_snapshot(snapshot))?;
    }
    let proof = log.append(&writes)?;
    Ok(writes.into_iter().map(|write| write.durable(&proof)).collect())
}

/// Reads both stores and makes them agree, finishing what a crash interrupted.
///
/// # Errors
/// [`StoreError::Inconsistent`] when the two cannot come from one history.
pub(crate) fn recover(log: &mut dyn LogStore, state: &dyn StateStore) -> Result<(Recovered, Checkpoint), StoreError> {
    let inconsistent = |what: String| StoreError::Inconsistent { what };
    let checkpoint = state.load()?.ok_or_else(|| inconsistent("the state file holds no checkpoint".into()))?;
    let Checkpoint { position: applied, ref conf_state, installed, .. } = checkpoint;
    let conf_state = conf_state.clone();
    let LogContents { mut hard_state, mut truncated, mut entries } = log.load()?;

    let last_index = truncated.log_index + entries.len() as u64;
    let covered = truncated == applied || entries.iter().any(|entry| Position::of(entry) == applied);
    if truncated.log_index > applied.log_index {
        return Err(inconsistent(format!(
            "the log begins after index {}, the checkpoint ends at {}: the state file is older than the log",
            truncated.log_index, applied.log_index
        )));
    }
    hard_state.commit = hard_state.commit.max(applied.log_index);
    if !covered {
        if !installed {
            return Err(inconsistent(format!(
                "the checkpoint at index {} of term {} is not in the log, which ends at {last_index}: the disk lost \
                 durable writes, or the log file is older than the state file",
                applied.log_index, applied.term
            )));
        }
        // A crash came between saving the leader's snapshot and resetting the log. Nothing was answered yet.
        truncated = applied;
        entries.clear();
        if hard_state.term < applied.term {
            hard_state = HardState { term: applied.term, vote: raft::INVALID_ID, commit: hard_state.commit };
        }
        hard_state.commit = applied.log_index;
        log.reset(truncated, &hard_state)?;
    } else if entries.last().is_some_and(|last| last.term > hard_state.term) {
        return Err(inconsistent(format!(
            "the log has entries of a later term than the stored one, {}",
            hard_state.term
        )));
    } else if hard_state.commit > last_index {
        return Err(inconsistent(format!(
            "commit index {} lies beyond the log's end at {last_index}",
            hard_state.commit
        )));
    }
    Ok((Recovered { hard_state, conf_state, applied, truncated, entries }, checkpoint))
}

/// What to do about a member that has lost its disk.
pub(crate) const REPLACE: &str = "the other members go on as long as they are a majority; put a new member in its place with \
     `meshctl member replace` (docs/operations.md)";

/// Why storage cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory belongs to somebody else.
    #[error("{}: belongs to {found}, this is {expected}. hint: point the node at its own data directory", path.display())]
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// The node was started before, and what it has promised is gone.
    #[error(
        "{}: {found} was started before and has voted, but its Raft state is not here: starting empty it could contradict \
         what it promised. hint: restore the directory as it was; {}; only to found another federation here, \
         remove {} too", path.display(), REPLACE, marker.display()
    )]
    Lost {
        /// The directory.
        path: PathBuf,
        /// The file that remembers.
        marker: PathBuf,
        /// Who was started.
        found: String,
    },
    /// A file that must be there is not.
    #[error(
        "{}: missing, though the directory has been in use. hint: restore the whole directory; {}", path.display(), REPLACE
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file is not what was written.
    #[error(
        "{}: damaged: {what}. hint: restore the whole directory; {}", path.display(), REPLACE
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Log and checkpoint contradict each other.
    #[error("log and checkpoint do not belong together: {what}. hint: keep the directory for diagnosis; {}", REPLACE)]
    Inconsistent {
        /// How.
        what: String,
    },
    /// An earlier run stopped because an fsync failed.
    #[error(
        "{}: an earlier run could not make its writes durable: {why}. hint: this member stays stopped; {}", path.display(), REPLACE
    )]
    Tainted {
        /// The marker.
        path: PathBuf,
        /// What the earlier run wrote into it.
        why: String,
    },
    /// Another process uses the directory.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// No space. Nothing that was acknowledged is lost.
    #[error("{}: no space left on device. hint: free some and start the node again", path.display())]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Any other failure of the operating system.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), action, source },
        }
    }

    /// Sorts redb's errors by what an operator does next.
    pub(crate) fn redb(path: &Path, action: &'static str, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(source)
                if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Corrupt { path: path.to_owned(), what: source.to_string() }
            }
            redb::Error::Io(source) => Self::io(path, action, source),
            redb::Error::Corrupted(what) => Self::Corrupt { path: path.to_owned(), what },
            other => Self::Corrupt { path: path.to_owned(), what: other.to_string() },
        }
    }
}

/// Where a group's log begins: every founder starts as if it had applied this entry, of term 1, that nobody wrote.
/// A node that joins later has an older log than that, so its only way in is a snapshot with the membership in it.
pub(crate) const GENESIS: Position = Position { log_index: 1, term: 1 };
