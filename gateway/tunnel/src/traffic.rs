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
