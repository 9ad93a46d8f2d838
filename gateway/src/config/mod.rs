//! What this gateway runs: deltas in, one immutable [`Snapshot`] out, the last good state on disk.
//!
//! [`state::ConfigState`] is the set of resources as received; [`Snapshot::build`] validates and compiles it, purely; and
//! [`Published`] hands one snapshot at a time to the workers and waits until all of them use it.

pub mod captures;
pub mod publish;
pub mod snapshot;
pub mod state;
pub mod store;

pub use captures::{Capture, Captures};
pub use publish::Published;
pub use snapshot::{Backend, Built, Kept, Protocol, Rejected, Rule, Service, Snapshot, StickyKey};
pub use state::ConfigState;
