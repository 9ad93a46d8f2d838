//! What the user of this crate brings: the state that is replicated, and the network.

use raft_proto::eraftpb::Message;

use crate::digest::StateDigest;

/// The replicated state. Every node applies the same commands in the same order, so each method must depend on
/// nothing but the state and its arguments: no clock, no randomness, no iteration order of hash maps.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one committed command and returns its outcome for whoever proposed it.
    ///
    /// What the state makes of a command, a refusal too, is an outcome: every member must come to the same one.
    ///
    /// # Errors
    /// [`CannotApply`]: this version does not know the command. The state must be as before the call. The node stops
    /// before the command and stops there again at every start, until a version runs that knows it.
    /// Called in log order. `log_index` has gaps: Raft's own entries are not shown. After a restart, commands
    /// above the restored snapshot are applied again, to the same state as before. A proposal that was answered
    /// [`Lost`](crate::ProposeError::Lost) may be applied later, so a client that retries must put a request id
    /// into its command, and the machine must recognise it.
    fn apply(&mut self, log_index: u64, command: &[u8]) -> Result<Vec<u8>, CannotApply>;

    /// The whole state as it is now, to be encoded later for [`restore`](Self::restore).
    ///
    /// Called on the thread that keeps the heartbeats going, so it must be cheap, as a clone of persistent maps is. The
    /// encoding runs on another thread, one at a time. Equal states give equal bytes, on every version that can hold
    /// them: members compare digests of these bytes.
    fn snapshot(&self) -> Encode;

    /// Replaces the whole state.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the bytes; the node then stops rather than run on half a state.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String>;
}

/// Turns a snapshot into bytes, on whatever thread calls it.
pub type Encode = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// A committed command that this version of the state machine does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CannotApply {
    /// What is unknown about it, for an operator.
    pub reason: String,
}

/// Carries messages to other members.
///
/// Messages may be lost, delayed, reordered or doubled, never altered. `MsgSnapshot` carries a whole state in
/// `message.snapshot.data`: a transport should send it apart from the others, so that no heartbeat waits behind it,
/// and must then call [`RaftHandle::report_snapshot`](crate::RaftHandle::report_snapshot) with how that ended. When
/// it loses a peer, it should call [`RaftHandle::report_unreachable`](crate::RaftHandle::report_unreachable).
pub trait Transport: Send + 'static {
    /// Hands messages over, each to `message.to`. Must return at once: it runs on the thread that keeps the
    /// heartbeats going. Bound the queues behind it and drop what does not fit.
    fn send(&mut self, messages: Vec<Message>);

    /// Tells every other member this member's newest state digests, for
    /// [`RaftHandle::peer_digests`](crate::RaftHandle::peer_digests) there. They are repeated every few elections, so
    /// they may be lost; otherwise as [`send`](Self::send).
    fn send_digests(&mut self, digests: Vec<StateDigest>);
}
