//! What can go wrong, split by what the caller does next.

use std::{path::PathBuf, sync::Arc};

use crate::{
    digest::{Digest, Divergence},
    store::{REPLACE, StoreError},
};

/// Why a proposal was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed. Ask the leader.
    #[error("this node does not lead{}", hint.map_or(String::new(), |id| format!("; node {id} does")))]
    NotLeader {
        /// The leader this node follows, if it knows one.
        hint: Option<u64>,
    },
    /// Leadership changed while it was under way: it may take effect or not. Retry with the same request id.
    #[error("leadership changed before the outcome was known")]
    Lost,
    /// Nothing was proposed: a queue is full. Retry after a pause.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Nothing was proposed: the command is too large.
    #[error("command of {bytes} bytes exceeds the maximum of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`Limits::command_bytes_max`](crate::Limits::command_bytes_max).
        bytes_max: usize,
    },
    /// Nothing was proposed: the disk is full. It takes proposals again by itself once there is room.
    #[error("no space left on device for {}; free some and it continues by itself", path.display())]
    DiskFull {
        /// The file that cannot grow.
        path: PathBuf,
    },
    /// This node has stopped; if it was under way, its effect is unknown.
    #[error("the node has stopped")]
    Stopped,
}

/// Why a linearizable read got no index. Reads have no effect, so any of them may be retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader.
    #[error("this node does not lead{}", hint.map_or(String::new(), |id| format!("; node {id} does")))]
    NotLeader {
        /// The leader this node follows, if it knows one.
        hint: Option<u64>,
    },
    /// No majority confirmed the leadership in time.
    #[error("no majority confirmed the leader in time")]
    Timeout,
    /// Too many reads are waiting.
    #[error("too many reads are waiting")]
    Overloaded,
    /// This node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// Why a membership change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Nothing was proposed. Ask the leader.
    #[error("this node does not lead{}", hint.map_or(String::new(), |id| format!("; node {id} does")))]
    NotLeader {
        /// The leader this node follows, if it knows one.
        hint: Option<u64>,
    },
    /// Another change is not finished yet. Retry after it.
    #[error("another membership change is under way")]
    Busy,
    /// The learner would hold up commits if it voted now. Retry once it caught up.
    #[error("node {node_id} is {lag} entries behind; promotion needs at most {lag_max}")]
    NotCaughtUp {
        /// The learner.
        node_id: u64,
        /// Entries it misses.
        lag: u64,
        /// Entries it may miss.
        lag_max: u64,
    },
    /// Too few of the voters that would be left answer: nothing could be written any more.
    #[error("of the voters {voters:?} that would be left, {silent:?} do not answer: nothing could be written any more")]
    NoMajority {
        /// Who would vote.
        voters: Vec<u64>,
        /// Those of them that were not heard for an election timeout.
        silent: Vec<u64>,
    },
    /// The leader would take itself out.
    #[error("it leads; leadership has to go to another member first")]
    Leads,
    /// The change makes no sense for this membership.
    #[error("{0}")]
    Refused(String),
    /// Leadership changed while it was under way: it may take effect or not.
    #[error("leadership changed before the outcome was known")]
    Lost,
    /// This node has stopped; if it was under way, its effect is unknown.
    #[error("the node has stopped")]
    Stopped,
}

/// Why a node did not start. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is impossible.
    #[error("configuration: {0}")]
    Config(String),
    /// The data directory cannot be used as it is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored snapshot was refused by the state machine.
    #[error("{}: the state machine refused the stored snapshot: {reason}", path.display())]
    Restore {
        /// The file it came from.
        path: PathBuf,
        /// The machine's words.
        reason: String,
    },
    /// Raft refused the stored state.
    #[error("raft: {0}")]
    Raft(String),
    /// A thread could not be created.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Why a running node stopped by itself. Its process should exit and say so.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// The disk failed. Never retried: after a failed fsync the page cache may claim what the disk does not hold.
    #[error("storage failed: {0}")]
    Store(Arc<StoreError>),
    /// The leader counts on entries that this node acknowledged and no longer has.
    #[error(
        "node {node_id} acknowledged log index {acknowledged} but its log ends at {last_index}: the disk lost durable \
         writes. hint: it stays stopped; {}",
        REPLACE
    )]
    LogLost {
        /// This node.
        node_id: u64,
        /// What the leader counts on.
        acknowledged: u64,
        /// What is there.
        last_index: u64,
    },
    /// A message contradicts an entry that is committed here.
    #[error(
        "node {from} sent an entry {log_index} of term {term} that contradicts the committed log: the data directory \
         of one of the two was altered or copied"
    )]
    Diverged {
        /// Sender.
        from: u64,
        /// Where.
        log_index: u64,
        /// Its term there.
        term: u64,
    },
    /// The state machine refused a snapshot from the leader.
    #[error("the state machine refused the snapshot at log index {log_index}: {reason}")]
    Restore {
        /// Where the snapshot stands.
        log_index: u64,
        /// The machine's words.
        reason: String,
    },
    /// The state machine does not know a committed command.
    #[error(
        "log index {log_index} cannot be applied by this version: {reason}; everything before it is applied, nothing is \
         lost. hint: upgrade this member; it continues from there"
    )]
    CannotApply {
        /// The command's place.
        log_index: u64,
        /// The machine's words.
        reason: String,
    },
    /// This node's state is not what a majority of the voters agrees on.
    #[error(
        "{divergence}: this member, {node_id}, has {own} there and must not serve it. hint: leave it stopped, and keep its \
         data directory for diagnosis; {}",
        REPLACE
    )]
    StateDiverged {
        /// This node.
        node_id: u64,
        /// Where, and who agrees.
        divergence: Divergence,
        /// This node's digest.
        own: Digest,
    },
    /// A broken invariant in this node, the raft crate or the state machine.
    #[error("internal error: {0}")]
    Internal(String),
}

/// How a node ended.
#[derive(Clone, Debug)]
pub enum Stopped {
    /// By [`shutdown`](crate::RaftHandle::shutdown).
    Shutdown,
    /// By itself.
    Failed(Fatal),
}
