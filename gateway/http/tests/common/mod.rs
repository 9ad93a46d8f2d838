//! Shared by the tests of this crate.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::indexing_slicing, reason = "a test that panics has failed")]

pub mod corpus;
pub mod targets;
pub mod verdict;
