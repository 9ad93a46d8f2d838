//! The words the core speaks: events, actions, and what they carry.

use std::path::PathBuf;

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, Entry, HardState, Message, Snapshot};

use super::{MembershipChange, Persisted, Write};
use crate::{
    config::{Limits, Timing},
    digest::{Divergence, StateDigest},
    error::{MembershipError, ProposeError, ReadError},
};

/// What a core is made from.
pub(crate) struct Setup {
    pub(crate) node_id: u64,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
    pub(crate) boot_nonce: u64,
    pub(crate) recovered: Recovered,
    pub(crate) logger: slog::Logger,
}

/// What the disk held, made consistent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) hard_state: HardState,
    /// Membership at `applied`.
    pub(crate) conf_state: ConfState,
    /// The state machine's checkpoint.
    pub(crate) applied: Position,
    /// The last entry that is no longer in the log; its term is still needed.
    pub(crate) truncated: Position,
    /// Everything after it.
    pub(crate) entries: Vec<Entry>,
}

/// A place in the log and the term of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) log_index: u64,
    pub(crate) term: u64,
}

impl Position {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self { log_index: entry.index, term: entry.term }
    }
}

/// The driver's number for a request; never reused by one node in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// One tick passed.
    Tick,
    /// A peer's message; that `from` sent it was verified by the transport.
    Message(Message),
    /// A client's command.
    Propose { request: RequestId, command: Bytes },
    /// A client's linearizable read.
    ReadIndex { request: RequestId },
    /// An operator's membership change.
    Change { request: RequestId, change: MembershipChange },
    /// The disk is full: whoever waits for a proposal must not wait for room.
    DiskFull,
    /// Hand leadership to `to`, or to the most advanced voter.
    Transfer { to: Option<u64> },
    /// A [`Write`] and all before it are durable.
    Persisted(Persisted),
    /// The state machine has applied everything up to here.
    Applied(Position),
    /// The state machine's state after `position`, answering [`Action::TakeSnapshot`] at any later time.
    SnapshotTaken { position: Position, conf_state: ConfState, data: Bytes },
    /// A checkpoint at `log_index` is durable.
    CheckpointDurable { log_index: u64 },
    /// Messages to `peer` are being lost.
    Unreachable { peer: u64 },
    /// How the delivery of a snapshot ended.
    SnapshotSent { peer: u64, delivered: bool },
}

/// What the driver must do, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Send these.
    Send(Vec<Message>),
    /// Make this durable, in order with the other writes, then report [`Event::Persisted`].
    Write(Write),
    /// Apply these, then report [`Event::Applied`] with `last`. None goes beyond a multiple of
    /// [`Limits::checkpoint_entries`].
    Apply { commands: Vec<Command>, last: Position },
    /// Replace the state machine's state.
    Restore(Snapshot),
    /// A peer needs a snapshot: report [`Event::SnapshotTaken`]. Not asked again until then.
    TakeSnapshot,
    /// Answer a request.
    Reply(RequestId, Reply),
}

/// One committed command.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) log_index: u64,
    pub(crate) data: Bytes,
    /// Who waits for its outcome, on the node that proposed it.
    pub(crate) request: Option<RequestId>,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// To a proposal. Success comes from the replica, which knows the outcome.
    Proposed(Result<(u64, Vec<u8>), ProposeError>),
    /// To a read.
    Read(Result<u64, ReadError>),
    /// To a membership change.
    Changed(Result<ConfState, MembershipError>),
}

/// Role, term, leader and progress of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node_id: u64,
    /// What it is at the moment.
    pub role: Role,
    /// Newest term it knows.
    pub term: u64,
    /// The leader it follows, itself included.
    pub leader: Option<u64>,
    /// End of its log.
    pub last_index: u64,
    /// Highest index it knows to be committed.
    pub commit: u64,
    /// Highest index its state machine has applied.
    pub applied_index: u64,
    /// Members with a vote.
    pub voters: Vec<u64>,
    /// Members without.
    pub learners: Vec<u64>,
    /// What the state was after this node's newest checkpoint: the same on every node that took one there.
    pub checkpoint: Option<StateDigest>,
    /// Members whose states differ, as far as this node knows. It is not in the minority, or it would have stopped.
    pub divergence: Option<Divergence>,
    /// A file of this node that cannot grow because the disk is full; the node takes no proposals meanwhile.
    pub disk_full: Option<PathBuf>,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes entries from a leader.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Takes proposals and replicates them.
    Leader,
    /// Takes entries, has no vote.
    Learner,
}

impl Role {
    /// The role in lower case, as `status` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
        }
    }
}
