//! Active health checks: who is asked when ([`schedule`], without I/O), how ([`probe`]), and the task between ([`driver`]).

pub mod driver;
pub mod probe;
pub mod schedule;

use std::net::SocketAddr;

/// One endpoint of one service: what is checked, and what is ready or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// `namespace/name`.
    pub service: String,
    /// Where it listens.
    pub address: SocketAddr,
}
