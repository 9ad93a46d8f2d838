//! Userspace link emulator: UDP or TCP between two addresses, with delay, jitter, loss, a bandwidth,
//! or cut.
//!
//! ```text
//! client ──► listen  ─── forward: delay, loss, … ──►  to
//!        ◄──         ◄── back:    delay, loss, … ───
//! ```
//!
//! [`Conduit`] is one direction without I/O; [`UdpLink`] and [`TcpLink`] drive two of them. Both start
//! inside a tokio runtime, are steered through [`LinkControl`] while they carry traffic, and end when
//! they are dropped.
//!
//! A UDP link keeps a socket towards `to` for each client address, so that the far end tells clients
//! apart and answers find their way. Packets keep their bounds; ECN marks and fragmentation bits are
//! not carried. On a TCP link, loss cannot take bytes away: a lost read delays all bytes behind it by
//! a retransmission instead, and a cut holds bytes back until it heals (the kernel still accepts
//! connections at `listen` meanwhile).

mod conduit;
mod control;
mod tcp;
mod udp;

use std::net::SocketAddr;

pub use conduit::{Carries, Conduit, DropReason, Offered, QUEUE_BYTES, Shape};
pub use control::{Direction, LinkControl, LinkStats, WayStats};
pub use tcp::TcpLink;
pub use udp::UdpLink;

/// What a link connects, and how it behaves at first.
#[derive(Debug, Clone, Copy)]
pub struct LinkConfig {
    /// Where clients connect; port 0 for any.
    pub listen: SocketAddr,
    /// Where the link leads.
    pub to: SocketAddr,
    /// Both directions at first.
    pub shape: Shape,
    /// Seed of jitter and loss.
    pub seed: u64,
}

impl LinkConfig {
    /// A link from any loopback port to `to` that changes nothing.
    pub fn transparent(to: SocketAddr) -> Self {
        let loopback = match to {
            SocketAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
            SocketAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)),
        };
        Self { listen: loopback, to, shape: Shape::default(), seed: 1 }
    }
}
