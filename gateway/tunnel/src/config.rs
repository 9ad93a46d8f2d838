//! What a worker's tunnels are configured with.

use crate::{accept::Gate, detector::DetectorConfig};
use archipelago_identity::{LiveCredential, SpiffeId};
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

/// Configuration of one worker's tunnels.
#[derive(Clone)]
pub struct TunnelConfig {
    /// Our cluster.
    pub cluster: String,
    /// Our gateway's name within it.
    pub gateway: String,
    /// Index of this worker; it dials the peer's address with the same index (modulo their number).
    pub worker: usize,
    /// Our SVID; renewals are followed.
    pub credential: LiveCredential,
    /// UDP address of this worker.
    pub bind: SocketAddr,
    /// Thresholds of failure detection.
    pub detector: DetectorConfig,
    /// Bounds.
    pub limits: TunnelLimits,
    /// Gateways of each cluster to keep tunnels to. With four, the loss of one
    /// leaves a third more for each of the others until another stands in.
    pub peers_per_cluster: usize,
    /// Who may keep a tunnel with us, among the gateways of our trust domain, until [`crate::Tunnels::set_gate`] says otherwise.
    pub gate: Gate,
}

impl TunnelConfig {
    /// Configuration of worker 0 with default thresholds and bounds.
    pub fn new(
        cluster: impl Into<String>,
        gateway: impl Into<String>,
        credential: LiveCredential,
        bind: SocketAddr,
    ) -> Self {
        Self {
            cluster: cluster.into(),
            gateway: gateway.into(),
            worker: 0,
            credential,
            bind,
            detector: DetectorConfig::default(),
            limits: TunnelLimits::default(),
            peers_per_cluster: 4,
            gate: Arc::new(|_| Ok(())),
        }
    }
}

/// Bounds of one worker's tunnels.
#[derive(Debug, Clone)]
pub struct TunnelLimits {
    /// Requests in flight per connection, at most: it begins with 256 and grows with use. QUIC's usual 100 would queue invisibly.
    pub streams: u32,
    /// Unread bytes of one stream. Throughput of a stream is at most this per round trip: 2 MiB carry 200 Mbit/s at 80 ms.
    pub stream_window_bytes: u32,
    /// Unread bytes of one connection, to begin with.
    pub connection_window_bytes: u32,
    /// The same once readers have stalled or the path turned out to hold more. A reader that stalls keeps a stream's window of it:
    /// with less than 64 of those, a few slow clients would stop everybody behind the same tunnel.
    pub connection_window_bytes_max: u32,
    /// What all connections of the worker may hold beyond their first window. Unread bytes are at most this and 8 MiB per connection.
    pub window_budget_bytes: u64,
    /// Unacknowledged bytes of one connection. With the windows above the bound on a connection's memory: 8 + 8 MiB, 128 + 8 MiB.
    pub send_window_bytes: u64,
    /// Kernel socket buffers, each way. The default of 208 KiB holds a hundred packets, less than one scheduling stall.
    pub socket_buffer_bytes: usize,
    /// Handshakes of others at a time, each a few KiB and a millisecond of work. From half of it on addresses must prove themselves
    /// first; beyond it the oldest makes room.
    pub handshakes: usize,
    /// The same of one source: more than the gateways behind one address that start together.
    pub handshakes_per_source: usize,
    /// Accepted connections per peer identity: one per worker of it, and those being replaced.
    pub connections_per_peer: usize,
    /// Accepted connections of all peers. A hundred clusters of fifty gateways, four tunnels from each gateway to each cluster, are
    /// about four hundred.
    pub connections: usize,
    /// Requests that wait for [`crate::Incoming::next`]; more are rejected as never processed.
    pub incoming_queue: usize,
    /// How long a stream may take to deliver its request head.
    pub head_timeout: Duration,
    /// How long the far side may leave a message unread that fills its window, before the stream is reset.
    pub unread_timeout: Duration,
    /// How long a handshake may take.
    pub dial_timeout: Duration,
    /// Longest pause between two attempts to dial.
    pub redial_delay_max: Duration,
    /// QUIC's own idle timeout: the backstop that frees what a dead peer holds.
    pub idle_timeout: Duration,
    /// Oldest a connection gets before it is replaced; absent: half the SVID's lifetime.
    pub connection_age_max: Option<Duration>,
    /// How long a replaced connection is kept for its last requests.
    pub retire_timeout: Duration,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            streams: 16_384,
            stream_window_bytes: 2 << 20,
            connection_window_bytes: 8 << 20,
            connection_window_bytes_max: 128 << 20,
            window_budget_bytes: 512 << 20,
            send_window_bytes: 8 << 20,
            socket_buffer_bytes: 4 << 20,
            handshakes: 256,
            handshakes_per_source: 64,
            connections_per_peer: 64,
            connections: 4096,
            incoming_queue: 4096,
            head_timeout: Duration::from_secs(10),
            unread_timeout: Duration::from_secs(120),
            dial_timeout: Duration::from_millis(1500),
            redial_delay_max: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(3),
            connection_age_max: None,
            retire_timeout: Duration::from_secs(600),
        }
    }
}

/// A gateway to keep a tunnel to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its cluster.
    pub cluster: String,
    /// Its name within the cluster.
    pub gateway: String,
    /// Who it must prove to be.
    pub spiffe_id: SpiffeId,
    /// One UDP address per worker of it, worker 0 first.
    pub addresses: Vec<SocketAddr>,
}

impl Peer {
    /// Its name.
    pub fn name(&self) -> PeerName {
        PeerName { cluster: self.cluster.clone(), gateway: self.gateway.clone() }
    }
}

/// Name of a gateway across the federation; displayed as `cluster/gateway`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    /// Its cluster.
    pub cluster: String,
    /// Its name within the cluster.
    pub gateway: String,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.gateway)
    }
}
