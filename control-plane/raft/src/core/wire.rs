//! What a peer may say, checked before the raft crate hears it: the crate trusts its messages and panics on some.

use raft::{RaftLog, Storage};
use raft_proto::eraftpb::{EntryType, Message, MessageType};

use crate::error::Fatal;

/// Whether a message may come from the network at all and holds together in itself.
///
/// Refused are local messages (a peer could make this node campaign, or report a peer as lost), forwarded proposals
/// (a follower's client asks the leader itself, so that it learns the outcome), forwarded reads (see `reads.rs`),
/// and anything of term 0, which the crate takes for local.
pub(super) fn admit(message: &Message, node_id: u64) -> Result<(), &'static str> {
    let Ok(kind) = MessageType::try_from(message.msg_type) else { return Err("unknown message type") };
    use MessageType as T;
    match kind {
        T::MsgHup | T::MsgBeat | T::MsgUnreachable | T::MsgSnapStatus | T::MsgCheckQuorum => {
            return Err("a local message on the network");
        }
        T::MsgPropose | T::MsgTransferLeader | T::MsgReadIndex | T::MsgReadIndexResp => {
            return Err("a request forwarded by a member");
        }
        T::MsgAppend
        | T::MsgAppendResponse
        | T::MsgRequestVote
        | T::MsgRequestVoteResponse
        | T::MsgSnapshot
        | T::MsgHeartbeat
        | T::MsgHeartbeatResponse
        | T::MsgTimeoutNow
        | T::MsgRequestPreVote
        | T::MsgRequestPreVoteResponse => {}
    }
    if message.term == 0 {
        return Err("term 0");
    }
    if message.to != node_id {
        return Err("addressed to another node");
    }
    if message.from == raft::INVALID_ID || message.from == node_id {
        return Err("an impossible sender");
    }
    if kind == T::MsgSnapshot {
        let metadata = message.get_snapshot().get_metadata();
        if metadata.index == 0 || metadata.term > message.term || metadata.get_conf_state().voters.is_empty() {
            return Err("an impossible snapshot");
        }
    }
    let (mut log_index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        let next = log_index.checked_add(1);
        let ordered = next == Some(entry.index) && entry.term >= term && entry.term <= message.term && entry.term > 0;
        if kind != T::MsgAppend || !ordered || EntryType::try_from(entry.entry_type).is_err() {
            return Err("entries out of order");
        }
        (log_index, term) = (entry.index, entry.term);
    }
    // The crate adds to these.
    if message.index == u64::MAX || message.term == u64::MAX || message.commit == u64::MAX {
        return Err("a number at its limit");
    }
    Ok(())
}

/// Whether a message of this term or a newer one can be true together with this node's log.
///
/// # Errors
/// [`Fatal::LogLost`] when the leader counts on entries that are not here: this node acknowledged them, so its disk
/// lost them. [`Fatal::Diverged`] when it contradicts a committed entry. The crate would panic on both; here they
/// stop the node with a sentence that says what to do.
pub(super) fn check_against_log<S: Storage>(message: &Message, log: &RaftLog<S>, node_id: u64) -> Result<(), Fatal> {
    match message.get_msg_type() {
        // A leader tells a follower at most the commit index up to which the follower acknowledged.
        MessageType::MsgHeartbeat if message.commit > log.last_index() => {
            Err(Fatal::LogLost { node_id, acknowledged: message.commit, last_index: log.last_index() })
        }
        MessageType::MsgAppend if log.match_term(message.index, message.log_term) => {
            let committed = message.entries.iter().take_while(|entry| entry.index <= log.committed);
            // Compacted entries are committed and equal by log matching; their term is no longer known.
            let known = committed.filter(|entry| entry.index >= log.first_index());
            match known.into_iter().find(|entry| !log.match_term(entry.index, entry.term)) {
                Some(entry) => Err(Fatal::Diverged { from: message.from, log_index: entry.index, term: entry.term }),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use raft_proto::eraftpb::Entry;

    use super::*;

    fn append(entries: &[(u64, u64)]) -> Message {
        let entries = entries.iter().map(|&(index, term)| Entry { index, term, ..Entry::default() }).collect();
        let msg_type = MessageType::MsgAppend.into();
        Message { msg_type, to: 1, from: 2, term: 5, index: 3, log_term: 2, entries, ..Message::default() }
    }

    #[test]
    fn only_peer_messages_pass() {
        let pass = [3, 4, 5, 6, 8, 9, 14, 17, 18];
        for kind in -1..30 {
            let message = Message { msg_type: kind, ..append(&[]) };
            assert_eq!(admit(&message, 1).is_ok(), pass.contains(&kind), "type {kind}");
        }
    }

    #[test]
    fn impossible_messages_are_refused() {
        let table = [
            (append(&[(4, 2), (5, 5)]), true),
            (append(&[(5, 2)]), false),
            (append(&[(4, 3), (5, 2)]), false),
            (append(&[(4, 6)]), false),
            (append(&[(4, 1)]), false),
            (Message { term: 0, ..append(&[]) }, false),
            (Message { to: 3, ..append(&[]) }, false),
            (Message { from: 1, ..append(&[]) }, false),
            (Message { from: 0, ..append(&[]) }, false),
            (Message { index: u64::MAX, ..append(&[]) }, false),
            (Message { msg_type: MessageType::MsgSnapshot.into(), ..append(&[]) }, false),
            (Message { msg_type: MessageType::MsgHeartbeat.into(), ..append(&[(4, 2)]) }, false),
        ];
        for (message, admitted) in table {
            assert_eq!(admit(&message, 1).is_ok(), admitted, "{message:?}");
        }
    }
}
