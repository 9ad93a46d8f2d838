//! The caller's side of a running node.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, Message};
use tokio::sync::{oneshot, watch};

use super::{
    Notice, Request,
    latency::{LogWrites, WriteTimes},
    mailbox::{Mailbox, Refused},
};
use crate::{
    core::{MembershipChange, Status},
    digest::StateDigest,
    error::{MembershipError, ProposeError, ReadError, Stopped},
    machine::StateMachine,
};

/// A running node, shared by clones. It runs until [`shutdown`](Self::shutdown), until it fails, or until the last clone
/// is dropped.
pub struct RaftHandle<M> {
    shared: Arc<Shared<M>>,
    /// Dropped with the last clone; the node's own threads do not hold it.
    _alive: Arc<Alive<M>>,
}

impl<M: StateMachine> RaftHandle<M> {
    /// Proposes a command and waits until it is applied here.
    ///
    /// Success means: on the disks of a majority, and applied. There is no timeout; a caller that gives up (drops
    /// the future) must treat the effect as unknown.
    ///
    /// # Errors
    /// [`ProposeError`] says whether the command may still take effect.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Proposed, ProposeError> {
        let bytes_max = self.shared.command_bytes_max;
        if command.len() > bytes_max {
            return Err(ProposeError::TooLarge { bytes: command.len(), bytes_max });
        }
        let (reply, answer) = oneshot::channel();
        self.shared.mailbox.request(Request::Propose { command: Bytes::from(command), reply }).map_err(|refused| {
            match refused {
                Refused::Full => ProposeError::Overloaded,
                Refused::Closed => ProposeError::Stopped,
            }
        })?;
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// A log index that a linearizable read must see applied: wait for it with
    /// [`wait_applied`](Self::wait_applied), then read with [`with_state`](Self::with_state).
    ///
    /// Answered by the leader only, after a majority confirmed that it still leads. A node that follows asks the
    /// leader through the caller's own protocol and then waits on itself.
    ///
    /// # Errors
    /// [`ReadError`]; every variant may be retried.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let (reply, answer) = oneshot::channel();
        self.shared.mailbox.request(Request::Read { reply }).map_err(|refused| match refused {
            Refused::Full => ReadError::Overloaded,
            Refused::Closed => ReadError::Stopped,
        })?;
        answer.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Waits until this node has applied `log_index`. No timeout: wrap it in one.
    ///
    /// # Errors
    /// [`NodeStopped`] when the node stops first.
    pub async fn wait_applied(&self, log_index: u64) -> Result<(), NodeStopped> {
        let mut applied = self.shared.applied.subscribe();
        let stopped = self.stopped();
        tokio::select! {
            reached = applied.wait_for(|applied| *applied >= log_index) => reached.map(drop).map_err(|_| NodeStopped),
            _ = stopped => Err(NodeStopped),
        }
    }

    /// Follows the applied log index.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Follows the node's role, term and leader; changes are coalesced.
    pub fn subscribe_status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Role, term, leader and progress as of the last step.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// How long the disk of the log took, since the start.
    pub fn log_writes(&self) -> LogWrites {
        self.shared.log_writes.read()
    }

    /// Reads the state machine. Applying waits meanwhile, so keep `read` short; it must not call this handle.
    pub fn with_state<R>(&self, read: impl FnOnce(&M) -> R) -> R {
        read(&self.shared.machine.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hands in a message from a peer. Never blocks; may drop it, as a network may. The caller vouches that
    /// `message.from` is who sent it.
    pub fn step(&self, message: Message) {
        self.shared.mailbox.message(message);
    }

    /// Says that messages to `peer` are being lost, so that the leader probes instead of streaming.
    pub fn report_unreachable(&self, peer: u64) {
        self.shared.mailbox.notice(Notice::Unreachable { peer });
    }

    /// Says how the delivery of a snapshot to `peer` ended.
    pub fn report_snapshot(&self, peer: u64, delivered: bool) {
        self.shared.mailbox.notice(Notice::SnapshotSent { peer, delivered });
    }

    /// Hands in the state digests that a peer told. The caller vouches that `peer` is who sent them.
    pub fn peer_digests(&self, peer: u64, digests: Vec<StateDigest>) {
        self.shared.mailbox.notice(Notice::PeerDigests { peer, digests });
    }

    /// Changes the membership by one step and waits until that is committed and in force here.
    ///
    /// # Errors
    /// [`MembershipError`] says whether the change may still take effect.
    pub async fn change_membership(&self, change: MembershipChange) -> Result<ConfState, MembershipError> {
        let (reply, answer) = oneshot::channel();
        self.shared.mailbox.request(Request::Change { change, reply }).map_err(|refused| match refused {
            Refused::Full => MembershipError::Busy,
            Refused::Closed => MembershipError::Stopped,
        })?;
        answer.await.unwrap_or(Err(MembershipError::Stopped))
    }

    /// Asks the leader, if this node is it, to hand over to `to`, or to the most advanced voter. Best effort: watch
    /// [`subscribe_status`](Self::subscribe_status) for the outcome.
    pub fn transfer_leadership(&self, to: Option<u64>) {
        self.shared.mailbox.notice(Notice::Transfer { to });
    }

    /// Hands leadership over, writes a checkpoint, and stops. Returns once the node's threads have ended.
    ///
    /// The handover is waited for at most one election timeout; the checkpoint only shortens the next start.
    pub async fn shutdown(&self) {
        self.shared.mailbox.notice(Notice::Shutdown);
        self.stopped().await;
    }

    /// Waits until the node has stopped, for whatever reason.
    pub fn stopped(&self) -> impl Future<Output = Stopped> + Send + 'static {
        let mut ended = self.shared.ended.subscribe();
        async move {
            let reason = match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone(),
                Err(_) => None,
            };
            reason.unwrap_or(Stopped::Shutdown)
        }
    }
}

impl<M> Clone for RaftHandle<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), _alive: Arc::clone(&self._alive) }
    }
}

impl<M> fmt::Debug for RaftHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftHandle").field("status", &*self.shared.status.borrow()).finish_non_exhaustive()
    }
}

impl<M> RaftHandle<M> {
    pub(super) fn new(shared: Arc<Shared<M>>) -> Self {
        let alive = Arc::new(Alive { shared: Arc::clone(&shared) });
        Self { shared, _alive: alive }
    }
}

/// A command that is committed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its place in the log.
    pub log_index: u64,
    /// What [`StateMachine::apply`] returned.
    pub outcome: Vec<u8>,
}

/// The node stopped before what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct NodeStopped;

/// Tells the node when nobody can reach it any more.
struct Alive<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Drop for Alive<M> {
    fn drop(&mut self) {
        self.shared.mailbox.notice(Notice::Abandoned);
    }
}

/// What the node's thread and its handles share.
pub(super) struct Shared<M> {
    pub(super) mailbox: Mailbox,
    pub(super) machine: Arc<RwLock<M>>,
    pub(super) applied: watch::Sender<u64>,
    pub(super) status: watch::Sender<Status>,
    pub(super) ended: watch::Sender<Option<Stopped>>,
    pub(super) command_bytes_max: usize,
    pub(super) log_writes: WriteTimes,
}
