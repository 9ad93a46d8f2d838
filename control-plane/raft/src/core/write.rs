//! What goes to the disk, and what may not leave the node before it is there.

use raft_proto::eraftpb::{Entry, HardState, Message, Snapshot};

use super::Position;

/// One step's changes to stable storage. Writes become durable in the order they were issued.
#[derive(Debug, Default)]
pub(crate) struct Write {
    /// The newest `Ready` that is durable once this write is.
    pub(crate) number: u64,
    /// Entries to append, replacing from the first one on whatever stood there.
    pub(crate) entries: Vec<Entry>,
    /// Term, vote and commit index, when they changed.
    pub(crate) hard_state: Option<HardState>,
    /// A snapshot from the leader: it replaces checkpoint and log, before `entries` are appended.
    pub(crate) snapshot: Option<Snapshot>,
    /// Entries up to here may be deleted.
    pub(crate) truncated: Option<Position>,
    /// Messages that promise what this write, or one before it, makes durable.
    pub(crate) held: HeldUntilDurable,
}

impl Write {
    /// Whether there is nothing to write: only messages wait for the writes before.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.hard_state.is_none() && self.snapshot.is_none() && self.truncated.is_none()
    }

    /// This write as the core wants to hear of it, now that it is on disk.
    pub(crate) fn durable(self, proof: &Fsynced) -> Persisted {
        let position = |snapshot: Snapshot| {
            let metadata = snapshot.get_metadata();
            Position { log_index: metadata.index, term: metadata.term }
        };
        Persisted { number: self.number, snapshot: self.snapshot.map(position), messages: self.held.release(proof) }
    }
}

/// Messages that may leave this node only once its log is durable (Raft paper, Figure 2: state is "updated on stable
/// storage before responding to RPCs").
#[derive(Debug, Default)]
pub(crate) struct HeldUntilDurable(Vec<Message>);

impl HeldUntilDurable {
    pub(crate) fn new(messages: Vec<Message>) -> Self {
        Self(messages)
    }

    /// The messages, to whoever can show that the disk has what they promise.
    pub(crate) fn release(self, _proof: &Fsynced) -> Vec<Message> {
        self.0
    }
}

/// Proof that everything handed to a [`LogStore`](crate::store::LogStore) is on disk; it returns one after its fsync.
#[derive(Debug)]
pub(crate) struct Fsynced(());

impl Fsynced {
    /// Only for stores, right after an fsync that succeeded, and for the simulation's planted bugs.
    pub(crate) fn after_fsync() -> Self {
        Self(())
    }
}

/// A [`Write`] that is durable, as are all before it.
#[derive(Debug)]
pub(crate) struct Persisted {
    /// Its number.
    pub(crate) number: u64,
    /// The place of the snapshot it installed.
    pub(crate) snapshot: Option<Position>,
    /// What may now be sent.
    pub(crate) messages: Vec<Message>,
}
