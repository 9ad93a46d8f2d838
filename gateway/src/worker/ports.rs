//! The ports of TCP services: each belongs to one service of one gateway, or to nobody here.
//!
//! With SO_REUSEPORT the kernel lets any process of the same user listen beside us, and gives each a share of the other's
//! clients. So a port is bound once, alone, and the workers accept from clones of that one socket.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prometheus_client::metrics::gauge::Gauge;

use crate::handover::Sockets;

/// All of a gateway's.
#[derive(Debug)]
pub struct TcpPorts {
    base: SocketAddr,
    count: u16,
    state: Mutex<State>,
    unserved: Gauge,
    sockets: Arc<Sockets>,
}

#[derive(Debug, Default)]
struct State {
    claims: HashMap<u16, Weak<Claim>>,
    /// Why a service is not served here, by offset.
    unserved: BTreeMap<u16, String>,
}

/// A port that is ours, for one service, as long as a worker holds it.
#[derive(Debug)]
pub struct Claim {
    service: Arc<str>,
    listener: Arc<TcpListener>,
}

impl Claim {
    /// A listener of one worker's own; all of them take from one queue.
    pub fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener.try_clone()?)
    }
}

impl TcpPorts {
    /// At most `count` from `base` on: those behind them are somebody else's.
    pub fn new(base: SocketAddr, count: u16, unserved: Gauge, sockets: Arc<Sockets>) -> Self {
        Self { base, count, state: Mutex::default(), unserved, sockets }
    }

    /// The port for `service`; `None`, which is said once, when it cannot be had now.
    pub fn claim(&self, offset: u16, service: &Arc<str>) -> Option<Arc<Claim>> {
        let mut state = self.state();
        if let Some(claim) = state.claims.get(&offset).and_then(Weak::upgrade) {
            // Of another service: the other workers are about to let go of it.
            return (claim.service == *service).then_some(claim);
        }
        match self.bind(offset) {
            Ok(listener) => {
                let claim = Arc::new(Claim { service: Arc::clone(service), listener });
                state.claims.insert(offset, Arc::downgrade(&claim));
                if state.unserved.remove(&offset).is_some() {
                    tracing::info!(%service, "this TCP service is served here now");
                }
                self.count(&state);
                Some(claim)
            }
            Err(error) => {
                let why = self.why(offset, service, &error);
                if state.unserved.get(&offset) != Some(&why) {
                    tracing::warn!(%service, base = %self.base, offset, error = %why, "a TCP service is not served here; trying on");
                    state.unserved.insert(offset, why);
                }
                self.count(&state);
                None
            }
        }
    }

    /// Forgets what is not wanted any more.
    pub fn retain(&self, wanted: &HashSet<u16>) {
        let mut state = self.state();
        state.claims.retain(|_, claim| claim.strong_count() > 0);
        state.unserved.retain(|offset, _| wanted.contains(offset));
        self.count(&state);
    }

    /// One sentence for each service that is not served here.
    pub fn unserved(&self) -> Vec<String> {
        self.state().unserved.values().cloned().collect()
    }

    fn bind(&self, offset: u16) -> io::Result<Arc<TcpListener>> {
        if offset >= self.count {
            let message = format!("only {} ports are set aside for TCP services (--tcp-ports)", self.count);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let beyond =
            || io::Error::new(io::ErrorKind::InvalidInput, "the TCP base port plus its offset is beyond 65535");
        let port = self.base.port().checked_add(offset).ok_or_else(beyond)?;
        self.sockets.listen_alone(SocketAddr::new(self.base.ip(), port))
    }

    fn why(&self, offset: u16, service: &str, error: &io::Error) -> String {
        let port = u32::from(self.base.port()) + u32::from(offset);
        match error.kind() {
            io::ErrorKind::AddrInUse => format!("port {port} is taken; {service} is not served here"),
            _ => format!("port {port}: {error}; {service} is not served here"),
        }
    }

    fn count(&self, state: &State) {
        self.unserved.set(i64::try_from(state.unserved.len()).unwrap_or(i64::MAX));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_one_services_and_one_gateways() {
        // As another gateway of the same user would hold it.
        let shared = crate::tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let ports = TcpPorts::new(shared.local_addr().unwrap(), 2, Gauge::default(), Arc::default());
        let (ledger, orders): (Arc<str>, Arc<str>) = ("shop/ledger".into(), "shop/orders".into());
        assert!(ports.claim(0, &ledger).is_none());
        let port = ports.base.port();
        assert_eq!(ports.unserved(), [format!("port {port} is taken; shop/ledger is not served here")]);
        assert!(ports.claim(2, &orders).is_none());
        assert_eq!(ports.unserved.get(), 2);
        assert!(ports.unserved()[1].contains("only 2 ports"), "{:?}", ports.unserved());
        ports.retain(&HashSet::from([0]));
        assert_eq!(ports.unserved.get(), 1);

        drop(shared);
        let first = ports.claim(0, &ledger).unwrap();
        let second = ports.claim(0, &ledger).unwrap();
        assert!(ports.unserved().is_empty());
        assert!(first.listener().is_ok() && second.listener().is_ok());
        let neighbour = crate::tcp::listen(ports.base);
        assert_eq!(neighbour.unwrap_err().kind(), io::ErrorKind::AddrInUse, "nobody else gets a share");
        assert!(ports.claim(0, &orders).is_none(), "not while it is another's");
        drop((first, second));
        assert!(ports.claim(0, &orders).is_some());
    }
}
