//! What went over the connections with each cluster.

use archipelago_identity::{MeshRole, tls::PeerCertificate};
use quinn::ConnectionStats;
use std::collections::BTreeMap;

/// Totals of QUIC connections, as counted by this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes of UDP payload sent.
    pub sent_bytes: u64,
    /// Bytes of UDP payload received.
    pub received_bytes: u64,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// Of those, how many were found lost.
    pub lost_packets: u64,
}

/// How the connections with one gateway are, those that it dialled as well, as this end counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// QUIC packets sent on connections that are open.
    pub sent_packets: u64,
    /// Of those, how many were found lost.
    pub lost_packets: u64,
    /// The smallest congestion window of them, in bytes.
    pub congestion_window_bytes: u64,
    /// How often a path was found to swallow large packets.
    pub black_holes: u64,
}

impl Path {
    /// One more connection, or more of them.
    pub fn add(&mut self, other: Self) {
        let is_first = *self == Self::default();
        self.congestion_window_bytes = match is_first {
            true => other.congestion_window_bytes,
            false => self.congestion_window_bytes.min(other.congestion_window_bytes),
        };
        self.sent_packets = self.sent_packets.saturating_add(other.sent_packets);
        self.lost_packets = self.lost_packets.saturating_add(other.lost_packets);
        self.black_holes = self.black_holes.saturating_add(other.black_holes);
    }
}

impl From<quinn::PathStats> for Path {
    fn from(stats: quinn::PathStats) -> Self {
        Self {
            sent_packets: stats.sent_packets,
            lost_packets: stats.lost_packets,
            congestion_window_bytes: stats.cwnd,
            black_holes: stats.black_holes_detected,
        }
    }
}

/// By cluster: what connections that are over have carried.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ended(pub(crate) BTreeMap<String, Traffic>);

impl Ended {
    /// One more connection, with the gateway that proved to be `peer`.
    pub(crate) fn add(&mut self, peer: &PeerCertificate, stats: ConnectionStats) {
        // Only who the gate let in gets here, so this is a gateway of a cluster that there is.
        let Some(MeshRole::Gateway { cluster, .. }) = peer.spiffe_id.role() else { return };
        if self.0.len() >= CLUSTERS_MAX && !self.0.contains_key(&cluster) {
            return;
        }
        let totals = self.0.entry(cluster).or_default();
        totals.sent_bytes += stats.udp_tx.bytes;
        totals.received_bytes += stats.udp_rx.bytes;
        totals.sent_packets += stats.path.sent_packets;
        totals.lost_packets += stats.path.lost_packets;
    }
}

/// More clusters than a federation has, even counting those that left it while this process ran.
const CLUSTERS_MAX: usize = 1024;
