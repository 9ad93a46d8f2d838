//! What every Archipelago process does: logs, signals, durable files, the metrics port.
//!
//! Nothing here knows what a mesh is. Each process calls [`logging::init`] first, takes its state directory with
//! [`durable::DirLock`], and ends when [`shutdown::Shutdown`] says so.

pub mod durable;
pub mod logging;
pub mod metrics;
pub mod shutdown;
