//! `clusterset.local` by the Multi-Cluster Services DNS specification 1.0.0, answered from the snapshot.
//!
//! [`answer`] is the whole of it, pure; [`server`] puts it behind UDP and TCP sockets.

pub mod answer;
pub mod server;
mod udp;

pub use answer::{Answer, Zone};
