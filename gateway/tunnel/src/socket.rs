//! The UDP socket of a worker, with a switch that silently drops packets (drills).

use crate::config::PeerName;
use arc_swap::ArcSwapOption;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use std::{
    collections::HashSet,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Whose packets a drill drops, both ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// Every gateway of these clusters.
    pub clusters: Vec<String>,
    /// These gateways.
    pub peers: Vec<PeerName>,
    /// These addresses, whoever is there.
    pub addresses: Vec<SocketAddr>,
}

impl Cut {
    /// True when it drops the packets of that gateway.
    pub fn covers(&self, peer: &PeerName) -> bool {
        self.clusters.contains(&peer.cluster) || self.peers.contains(peer)
    }
}

/// The addresses being dropped; shared between the socket and [`crate::Tunnels::cut`].
#[derive(Debug, Default)]
pub(crate) struct CutSet(ArcSwapOption<HashSet<SocketAddr>>);

impl CutSet {
    pub(crate) fn replace(&self, addresses: HashSet<SocketAddr>) {
        let addresses: HashSet<SocketAddr> = addresses.into_iter().map(canonical).collect();
        self.0.store((!addresses.is_empty()).then(|| Arc::new(addresses)));
    }
}

/// A socket whose packets to and from some addresses vanish. Unused, it costs one atomic load per batch.
#[derive(Debug)]
pub(crate) struct CutSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    cut: Arc<CutSet>,
}

impl CutSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, cut: Arc<CutSet>) -> Self {
        Self { inner, cut }
    }
}

impl AsyncUdpSocket for CutSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(cut) = &*self.cut.0.load()
            && cut.contains(&canonical(transmit.destination))
        {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        if let Some(cut) = &*self.cut.0.load() {
            for meta in meta.iter_mut().take(count) {
                if cut.contains(&canonical(meta.addr)) {
                    meta.len = 0; // quinn reads a slot of no bytes as no datagram
                }
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// A dual-stack socket shows IPv4 peers as mapped addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}
