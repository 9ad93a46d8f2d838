//! The messages themselves, and the accessors the raft crate calls on them.
//!
//! Meaning of the fields: the Raft paper, Figure 2 and §7, and the Raft thesis §4.3, §6.4 and §9.6.

use std::mem;

use bytes::Bytes;

/// What an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryType {
    /// A command for the state machine; empty for the entry a new leader commits first.
    EntryNormal = 0,
    /// An encoded [`ConfChange`].
    EntryConfChange = 1,
    /// An encoded [`ConfChangeV2`].
    EntryConfChangeV2 = 2,
}

/// One slot of the replicated log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// An [`EntryType`].
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    /// Term of the leader that created it.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Position in the log, from 1.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// The command.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// Bytes the proposer attaches to recognise its own entry.
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
    /// Deprecated in raft-rs; kept because it is on the wire.
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
}

/// Where in the log a snapshot stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotMetadata {
    /// Membership at `index`.
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    /// Last entry contained in the snapshot.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Term of that entry.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// A state machine's state after some log index.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    /// The state, opaque to Raft.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Its place in the log.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// What a [`Message`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MessageType {
    /// Local: campaign now.
    MsgHup = 0,
    /// Local: the leader's heartbeat timer fired.
    MsgBeat = 1,
    /// Entries to append, asked of the leader.
    MsgPropose = 2,
    /// AppendEntries.
    MsgAppend = 3,
    /// Answer to AppendEntries.
    MsgAppendResponse = 4,
    /// RequestVote.
    MsgRequestVote = 5,
    /// Answer to RequestVote.
    MsgRequestVoteResponse = 6,
    /// InstallSnapshot.
    MsgSnapshot = 7,
    /// Heartbeat, also carrying a read context.
    MsgHeartbeat = 8,
    /// Answer to a heartbeat.
    MsgHeartbeatResponse = 9,
    /// Local: the transport lost a peer.
    MsgUnreachable = 10,
    /// Local: how sending a snapshot ended.
    MsgSnapStatus = 11,
    /// Local: the leader asks itself whether a quorum is still heard.
    MsgCheckQuorum = 12,
    /// Local or forwarded: hand leadership over.
    MsgTransferLeader = 13,
    /// To the chosen successor: campaign at once.
    MsgTimeoutNow = 14,
    /// A linearizable read asks for the commit index.
    MsgReadIndex = 15,
    /// Its answer.
    MsgReadIndexResp = 16,
    /// RequestVote of the pre-vote phase (thesis §9.6).
    MsgRequestPreVote = 17,
    /// Its answer.
    MsgRequestPreVoteResponse = 18,
}

/// Everything Raft peers say to each other; which fields count depends on `msg_type`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    /// A [`MessageType`].
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    /// Receiver.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// Sender.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// The sender's term; 0 in local messages.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// Term of the entry before `entries`, or of the candidate's last entry.
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    /// Index of that entry, or the index acknowledged.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Entries to append.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    /// Term of the entry at `commit`.
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    /// State to install.
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    /// Smallest index a follower wants a snapshot to have; 0 when it wants none.
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    /// The request was refused.
    #[prost(bool, tag = "10")]
    pub reject: bool,
    /// Where the refusing log ends, so that the leader can skip back.
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    /// Read context, or the kind of campaign.
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    /// Priority as releases before 0.7 encoded it.
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    /// Campaign priority.
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

/// What a node must not forget (Figure 2, "persistent state", plus the commit index).
#[derive(Clone, PartialEq, prost::Message)]
pub struct HardState {
    /// Newest term seen.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Who got this node's vote in `term`; 0 for nobody.
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    /// Highest index known to be committed.
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// How a membership change passes through the joint configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeTransition {
    /// Joint only when needed, then left automatically.
    Auto = 0,
    /// Joint, left automatically.
    Implicit = 1,
    /// Joint, left by a second change.
    Explicit = 2,
}

/// Who belongs to the group, in which role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfState {
    /// Voters (the incoming ones while joint).
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    /// Learners: they replicate and do not vote.
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    /// Voters of the configuration being left; empty unless joint.
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Outgoing voters that become learners once the joint state is left.
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    /// The joint state is left without a further request.
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

/// What a membership step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    /// Make the node a voter.
    AddNode = 0,
    /// Remove it.
    RemoveNode = 1,
    /// Make it a learner.
    AddLearnerNode = 2,
}

/// A membership change of one step, in the older form.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChange {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    /// Whom it concerns.
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// Bytes for the proposer.
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
    /// The proposer's number for it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// One step of a [`ConfChangeV2`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChangeSingle {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    /// Whom it concerns.
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

/// A membership change of any number of steps, made at once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChangeV2 {
    /// A [`ConfChangeTransition`].
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    /// The steps; none to leave a joint configuration.
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    /// Bytes for the proposer.
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// Accessors in the manner of rust-protobuf, one line per field: the raft crate was written against them.
///
/// `copy` fields are read by value, `plain` ones by reference, `optional` messages read as empty when absent.
macro_rules! accessors {
    ($message:ident: $($kind:ident $field:ident: $type:ty => $names:tt;)*) => {
        impl $message { $(accessors!(@$kind $field: $type => $names);)* }
    };
    (@copy $field:ident: $type:ty => [$get:ident $set:ident]) => {
        #[doc = concat!("Value of `", stringify!($field), "`.")]
        #[inline]
        pub fn $get(&self) -> $type { self.$field }
        #[doc = concat!("Sets `", stringify!($field), "`.")]
        #[inline]
        pub fn $set(&mut self, value: $type) { self.$field = value; }
    };
    (@enumeration $field:ident: $type:ty => [$get:ident]) => {
        #[doc = concat!("Value of `", stringify!($field), "`; an unknown one reads as the first.")]
        #[inline]
        pub fn $get(&self) -> $type { self.$field() }
    };
    (@plain $field:ident: $type:ty => [$get:ident -> $seen:ty, $set:ident $mut:ident $take:ident]) => {
        #[doc = concat!("Borrows `", stringify!($field), "`.")]
        #[inline]
        pub fn $get(&self) -> &$seen { &self.$field }
        #[doc = concat!("Sets `", stringify!($field), "`.")]
        #[inline]
        pub fn $set(&mut self, value: $type) { self.$field = value; }
        #[doc = concat!("Borrows `", stringify!($field), "` for a change.")]
        #[inline]
        pub fn $mut(&mut self) -> &mut $type { &mut self.$field }
        #[doc = concat!("Takes `", stringify!($field), "`, leaving it empty.")]
        #[inline]
        pub fn $take(&mut self) -> $type { mem::take(&mut self.$field) }
    };
    (@optional $field:ident: $type:ty => [$get:ident $set:ident $mut:ident $take:ident, $empty:expr]) => {
        #[doc = concat!("Borrows `", stringify!($field), "`; an absent one reads as empty.")]
        #[inline]
        pub fn $get(&self) -> &$type {
            static EMPTY: $type = $empty;
            self.$field.as_ref().unwrap_or(&EMPTY)
        }
        #[doc = concat!("Sets `", stringify!($field), "`.")]
        #[inline]
        pub fn $set(&mut self, value: $type) { self.$field = Some(value); }
        #[doc = concat!("Borrows `", stringify!($field), "` for a change, present from now on.")]
        #[inline]
        pub fn $mut(&mut self) -> &mut $type { self.$field.get_or_insert_default() }
        #[doc = concat!("Takes `", stringify!($field), "`, leaving it absent.")]
        #[inline]
        pub fn $take(&mut self) -> $type { self.$field.take().unwrap_or_default() }
    };
}

accessors! { Entry:
    enumeration entry_type: EntryType => [get_entry_type];
    copy term: u64 => [get_term set_term];
    copy index: u64 => [get_index set_index];
    plain data: Bytes => [get_data -> [u8], set_data mut_data take_data];
    plain context: Bytes => [get_context -> [u8], set_context mut_context take_context];
}
accessors! { SnapshotMetadata:
    optional conf_state: ConfState => [get_conf_state set_conf_state mut_conf_state take_conf_state, ConfState {
        voters: Vec::new(), learners: Vec::new(), voters_outgoing: Vec::new(), learners_next: Vec::new(), auto_leave: false,
    }];
    copy index: u64 => [get_index set_index];
    copy term: u64 => [get_term set_term];
}
accessors! { Snapshot:
    plain data: Bytes => [get_data -> [u8], set_data mut_data take_data];
    optional metadata: SnapshotMetadata => [get_metadata set_metadata mut_metadata take_metadata,
        SnapshotMetadata { conf_state: None, index: 0, term: 0 }];
}
accessors! { Message:
    enumeration msg_type: MessageType => [get_msg_type];
    copy to: u64 => [get_to set_to];
    copy from: u64 => [get_from set_from];
    copy term: u64 => [get_term set_term];
    copy log_term: u64 => [get_log_term set_log_term];
    copy index: u64 => [get_index set_index];
    plain entries: Vec<Entry> => [get_entries -> [Entry], set_entries mut_entries take_entries];
    copy commit: u64 => [get_commit set_commit];
    copy commit_term: u64 => [get_commit_term set_commit_term];
    optional snapshot: Snapshot => [get_snapshot set_snapshot mut_snapshot take_snapshot,
        Snapshot { data: Bytes::new(), metadata: None }];
    copy request_snapshot: u64 => [get_request_snapshot set_request_snapshot];
    copy reject: bool => [get_reject set_reject];
    copy reject_hint: u64 => [get_reject_hint set_reject_hint];
    plain context: Bytes => [get_context -> [u8], set_context mut_context take_context];
    copy priority: i64 => [get_priority set_priority];
}
accessors! { HardState:
    copy term: u64 => [get_term set_term];
    copy vote: u64 => [get_vote set_vote];
    copy commit: u64 => [get_commit set_commit];
}
accessors! { ConfState:
    plain voters: Vec<u64> => [get_voters -> [u64], set_voters mut_voters take_voters];
    plain learners: Vec<u64> => [get_learners -> [u64], set_learners mut_learners take_learners];
    plain voters_outgoing: Vec<u64> => [get_voters_outgoing -> [u64], set_voters_outgoing mut_voters_outgoing take_voters_outgoing];
    plain learners_next: Vec<u64> => [get_learners_next -> [u64], set_learners_next mut_learners_next take_learners_next];
    copy auto_leave: bool => [get_auto_leave set_auto_leave];
}
accessors! { ConfChange:
    enumeration change_type: ConfChangeType => [get_change_type];
    copy node_id: u64 => [get_node_id set_node_id];
    plain context: Bytes => [get_context -> [u8], set_context mut_context take_context];
}
accessors! { ConfChangeSingle:
    enumeration change_type: ConfChangeType => [get_change_type];
    copy node_id: u64 => [get_node_id set_node_id];
}
accessors! { ConfChangeV2:
    enumeration transition: ConfChangeTransition => [get_transition];
    plain changes: Vec<ConfChangeSingle> => [get_changes -> [ConfChangeSingle], set_changes mut_changes take_changes];
    plain context: Bytes => [get_context -> [u8], set_context mut_context take_context];
}

impl Snapshot {
    /// Whether there is no snapshot: index 0 comes before every log.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Field numbers are the contract with every other raft-rs 0.7 node, so each one is pinned here.
    #[test]
    fn wire_layout_is_pinned() {
        let entry = Entry { entry_type: 1, term: 2, index: 3, data: "d".into(), context: "c".into(), sync_log: true };
        assert_eq!(entry.encode_to_vec(), b"\x08\x01\x10\x02\x18\x03\x22\x01d\x28\x01\x32\x01c");

        let message = Message {
            msg_type: 3,
            to: 1,
            from: 2,
            term: 3,
            log_term: 4,
            index: 5,
            entries: vec![Entry::default()],
            commit: 6,
            commit_term: 7,
            snapshot: Some(Snapshot::default()),
            request_snapshot: 8,
            reject: true,
            reject_hint: 9,
            context: "x".into(),
            deprecated_priority: 10,
            priority: 11,
        };
        let expected: &[u8] = b"\x08\x03\x10\x01\x18\x02\x20\x03\x28\x04\x30\x05\x3a\x00\x40\x06\x4a\x00\x50\x01\x58\x09\x62\x01x\x68\x08\x70\x0a\x78\x07\x80\x01\x0b";
        assert_eq!(message.encode_to_vec(), expected);
        assert_eq!(Message::decode(expected).unwrap(), message);

        let conf = ConfState { auto_leave: true, ..ConfState::from((vec![1, 2], vec![3])) };
        let snapshot = Snapshot {
            data: "s".into(),
            metadata: Some(SnapshotMetadata { conf_state: Some(conf), index: 4, term: 5 }),
        };
        let expected: &[u8] = b"\x0a\x01s\x12\x0f\x0a\x09\x0a\x02\x01\x02\x12\x01\x03\x28\x01\x10\x04\x18\x05";
        assert_eq!(snapshot.encode_to_vec(), expected);

        let hard = HardState { term: 1, vote: 2, commit: 3 };
        assert_eq!(hard.encode_to_vec(), b"\x08\x01\x10\x02\x18\x03");
        let single = ConfChange { id: 1, change_type: 2, node_id: 3, context: "c".into() };
        assert_eq!(single.encode_to_vec(), b"\x08\x01\x10\x02\x18\x03\x22\x01c");
        let joint = ConfChangeV2 {
            transition: 2,
            changes: vec![ConfChangeSingle { change_type: 1, node_id: 9 }],
            context: "c".into(),
        };
        assert_eq!(joint.encode_to_vec(), b"\x08\x02\x12\x04\x08\x01\x10\x09\x1a\x01c");
    }

    #[test]
    fn absent_messages_read_as_empty_and_appear_on_change() {
        let mut message = Message::default();
        assert!(message.get_snapshot().is_empty());
        message.mut_snapshot().mut_metadata().set_index(7);
        assert_eq!(message.take_snapshot().get_metadata().get_index(), 7);
        assert_eq!(message.snapshot, None);
    }

    #[test]
    fn an_unknown_message_type_reads_as_the_first() {
        let message = Message { msg_type: 99, ..Message::default() };
        assert_eq!(message.get_msg_type(), MessageType::MsgHup);
    }
}
