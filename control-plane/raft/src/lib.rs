//! Sans-IO Raft core over the raft crate, its durable stores, and its seeded simulation.

pub use raft::RawNode;
