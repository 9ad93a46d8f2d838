//! Replicates a state machine over a few nodes: a sans-IO Raft core over the `raft` crate, its durable stores, the
//! threads that drive it, and its seeded simulation.
//!
//! [`Raft::start`] runs one node; the caller brings a [`StateMachine`] and a [`Transport`].
//!
//! - A proposal is acknowledged once a majority has it on disk and this node applied it.
//! - A read that waits for [`RaftHandle::read_index`] sees every write acknowledged before it began.
//! - Nothing is answered from memory that the disk does not back: a message that promises durability is typed as held
//!   until an fsync returned (`core/write.rs`).
//! - Members compare digests of their states at the same log indices; one that differs from a majority stops.
//! - A failed fsync, a damaged, foreign or missing file stops the node with a sentence that says what to do.
//!
//! # The code, in reading order
//! `core/` decides and does no I/O; `replica.rs` joins it to the state machine; `store/` is the disk; `driver/` the
//! threads; `sim/` (tests only) runs whole clusters in one thread on a seeded network and on disks that lose what was
//! not synced.
//!
//! # Simulation
//! `cargo test -p archipelago-raft` runs 200 seeds. A failure prints its seed; `SIM_SEED=n` runs only that one, and
//! `SIM_SEEDS=10000` that many:
//! ```text
//! SIM_SEEDS=10000 cargo test -p archipelago-raft --release sim:: -- --nocapture
//! ```

mod config;
mod core;
mod digest;
mod driver;
mod error;
mod machine;
mod replica;
#[cfg(test)]
mod sim;
mod store;

pub use config::{Config, Limits, Timing};
pub use core::{MembershipChange, Role, Status};
pub use digest::{Digest, Divergence, StateDigest};
pub use driver::{LogWrites, NodeStopped, Proposed, Raft, RaftHandle, RaftMessage};
pub use error::{Fatal, MembershipError, ProposeError, ReadError, StartError, Stopped};
pub use machine::{CannotApply, Encode, StateMachine, Transport};
pub use store::{StoreError, forget_replaced, refuse_lost};

pub use raft_proto::eraftpb::{ConfState, Message, MessageType, Snapshot};
