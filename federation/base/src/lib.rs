//! What every Archipelago process needs and no mesh is needed for: logs, signals, durable files, the metrics port, pauses
//! between attempts, error chains, seeded randomness, the limit of open files, numbers of starts, what a process says of itself.
//!
//! Each process calls [`logging::init`] first, takes its state directory with [`durable::DirLock`], and ends when
//! [`shutdown::Shutdown`] says so.

pub mod backoff;
pub mod boot;
pub mod durable;
pub mod error;
pub mod logging;
pub mod metrics;
pub mod open_files;
pub mod process;
pub mod random;
pub mod shutdown;
