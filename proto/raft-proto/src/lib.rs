//! Messages of the raft crate on prost 0.14.
//!
//! The `raft` crate takes its message types from a crate of this name. The published one generates them with
//! `protoc` for prost 0.11 or rust-protobuf 2; this one states them by hand, so the build needs neither. Field
//! numbers are those of `eraftpb.proto` as raft-rs 0.7 speaks it: they are a wire contract and never change.
//!
//! Byte fields are [`bytes::Bytes`], so cloning an entry for one more follower copies no payload.

mod confchange;
pub mod eraftpb;
pub mod util;

pub use confchange::{ConfChangeI, conf_state_eq, new_conf_change_single};

/// Everything a user of the raft crate names.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
        HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}
