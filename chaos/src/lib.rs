//! Open-loop load generator and userspace link emulator, for tests, drills and benchmarks.
//!
//! [`load`] sends HTTP requests by a schedule and measures from the intended send time; [`link`] carries
//! UDP or TCP between two addresses with delay, jitter, loss, a bandwidth, or not at all. Both are
//! libraries first; [`cli`] is the command line `chaos load|link` on top of them.
//!
//! Nothing here ships in a production binary: other crates may use this one in tests only.

pub mod cli;
pub mod link;
pub mod load;
mod timer;
pub mod units;
