//! Listening where clients of an orchestrated cluster arrive: one port for one port of a service, see [`Captures`].
//!
//! A port is bound once and every worker accepts from a clone of that one socket, as for TCP services. What a connection is
//! for is asked when it comes: a port that is for something else now keeps its socket, and connections that are open stay
//! with what they were opened for.
//!
//! [`Captures`]: crate::config::Captures

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::listen::{Count, accept, enter, enter_tcp};
use crate::callers::{CaptureFrom, Entry, Table};
use crate::config::{Capture, Protocol, Snapshot};
use crate::exchange::client::{self, Entrance};
use crate::handover::{Sockets, Turn};

/// The gateway's sockets on such ports.
#[derive(Debug)]
pub struct CapturePorts {
    ip: IpAddr,
    range: RangeInclusive<u16>,
    state: Mutex<State>,
    unserved: Gauge,
    sockets: Arc<Sockets>,
}

#[derive(Debug, Default)]
struct State {
    /// Each as long as a worker holds it.
    sockets: HashMap<u16, Weak<TcpListener>>,
    /// Why a port is not served here.
    unserved: BTreeMap<u16, String>,
}

impl CapturePorts {
    /// On this address, within this range and nowhere else.
    pub fn new(ip: IpAddr, range: RangeInclusive<u16>, unserved: Gauge, sockets: Arc<Sockets>) -> Self {
        Self { ip, range, state: Mutex::default(), unserved, sockets }
    }

    /// The socket on this port; `None`, which is said once, when it cannot be had now.
    fn socket(&self, capture: &Capture) -> Option<Arc<TcpListener>> {
        let mut state = self.state();
        let port = capture.listen;
        if let Some(socket) = state.sockets.get(&port).and_then(Weak::upgrade) {
            return Some(socket);
        }
        let bound = self.bind(port);
        match &bound {
            Ok(socket) => {
                state.sockets.insert(port, Arc::downgrade(socket));
                if state.unserved.remove(&port).is_some() {
                    tracing::info!(service = %capture.key, port, "clients of this service are taken here now");
                }
            }
            Err(error) => {
                let key = &capture.key;
                let why = match error.kind() {
                    io::ErrorKind::AddrInUse => format!("port {port} is taken; clients of {key} are not taken here"),
                    _ => format!("port {port}: {error}; clients of {key} are not taken here"),
                };
                if state.unserved.get(&port) != Some(&why) {
                    tracing::warn!(service = %key, port, error = %why, "clients of a service are not taken here; trying on");
                    state.unserved.insert(port, why);
                }
            }
        }
        self.count(&state);
        bound.ok()
    }

    fn bind(&self, port: u16) -> io::Result<Arc<TcpListener>> {
        if !self.range.contains(&port) {
            let (first, last) = (self.range.start(), self.range.end());
            let message = format!("it is outside of the ports set aside for this (--capture-ports {first}-{last})");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.sockets.listen_alone(SocketAddr::new(self.ip, port))
    }

    /// Forgets what is not wanted any more.
    fn retain(&self, snapshot: &Snapshot) {
        let wanted = |port: u16| snapshot.captures.as_ref().is_some_and(|captures| captures.at(port).is_some());
        let mut state = self.state();
        state.sockets.retain(|_, socket| socket.strong_count() > 0);
        state.unserved.retain(|port, _| wanted(*port));
        self.count(&state);
    }

    /// One sentence for each port that is not served here.
    pub fn unserved(&self) -> Vec<String> {
        self.state().unserved.values().cloned().collect()
    }

    fn count(&self, state: &State) {
        self.unserved.set(i64::try_from(state.unserved.len()).unwrap_or(i64::MAX));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's listeners; they come and go with the captures.
#[derive(Debug)]
pub struct CaptureListeners {
    ports: Arc<CapturePorts>,
    from: CaptureFrom,
    drain: CancellationToken,
    turn: Turn,
    open: HashMap<u16, JoinHandle<()>>,
}

impl CaptureListeners {
    /// None yet.
    pub fn new(ports: Arc<CapturePorts>, from: CaptureFrom, drain: CancellationToken, turn: Turn) -> Self {
        Self { ports, from, drain, turn, open: HashMap::new() }
    }

    /// Opens and closes listeners so that they fit `snapshot`. False when a port could not be had; call again in a while.
    pub fn follow(&mut self, worker: &Rc<Worker>, snapshot: &Snapshot) -> bool {
        let captures = snapshot.captures.as_deref();
        self.open.retain(|port, task| {
            let keep = captures.is_some_and(|captures| captures.at(*port).is_some()) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        self.ports.retain(snapshot);
        let Some(captures) = captures.filter(|_| !self.drain.is_cancelled()) else { return true };
        let mut complete = true;
        for port in captures.ports().filter(|port| !self.open.contains_key(port)).collect::<Vec<_>>() {
            let Some(socket) = captures.at(port).and_then(|capture| self.ports.socket(capture)) else {
                complete = false;
                continue;
            };
            let Ok(listener) = socket.try_clone().and_then(tokio::net::TcpListener::from_std) else {
                complete = false;
                continue;
            };
            let sockets = (socket, listener);
            let serve = take(Rc::clone(worker), port, sockets, self.from, self.drain.clone(), self.turn.clone());
            self.open.insert(port, tokio::task::spawn_local(serve));
        }
        complete
    }
}

/// Accepts clients until `drain`.
async fn take(
    worker: Rc<Worker>,
    port: u16,
    (_socket, listener): (Arc<TcpListener>, tokio::net::TcpListener),
    from: CaptureFrom,
    drain: CancellationToken,
    mut turn: Turn,
) {
    loop {
        let Some((stream, peer)) = accept(&listener, &drain, &mut turn).await else { return };
        let view = worker.view();
        let Some(capture) = view.snapshot.captures.as_ref().and_then(|captures| captures.at(port)) else {
            crate::tcp::reset(&stream);
            continue;
        };
        let capture = Arc::clone(capture);
        let leaving = (drain.clone(), turn.clone());
        tokio::task::spawn_local(serve(Rc::clone(&worker), (peer, capture), stream, from, leaving));
    }
}

async fn serve(
    worker: Rc<Worker>,
    (peer, capture): (SocketAddr, Arc<Capture>),
    stream: TcpStream,
    from: CaptureFrom,
    (drain, turn): (CancellationToken, Turn),
) {
    if !may_enter(&worker, peer.ip(), from).await {
        worker.metrics.capture_refused();
        tracing::debug!(%peer, "a client of another node is refused");
        return crate::tcp::reset(&stream);
    }
    // Only now: it may have become known while it waited.
    let source = worker.source(peer.ip());
    // As the federation has it; as the cluster has it while the federation does not know it.
    let view = worker.view();
    let unit = view.snapshot.service_by_key(&capture.key).and_then(|index| view.snapshot.service(index));
    let is_tcp = unit.map_or(capture.protocol, |unit| unit.protocol) == Protocol::Tcp;
    drop(view);
    if is_tcp {
        let Some(_visit) = enter_tcp(&worker, peer) else { return };
        let _open = Count::new(Rc::clone(&worker), |worker| &worker.tcp_connections);
        let key = Arc::clone(&capture.key);
        crate::tcp::serve_client(Rc::clone(&worker), key, source, stream).await;
    } else {
        let Some(visit) = enter(&worker, &stream, peer) else { return };
        let _open = Count::new(Rc::clone(&worker), |worker| &worker.connections);
        let entrance = Entrance { source, capture: Some(capture), visit, tls: None };
        client::serve(Rc::clone(&worker), stream, entrance, drain, turn).await;
    }
}

/// Whether whoever has this address may come in. A pod can begin to send before the cluster has said whose its address is:
/// one that nobody has is given a while.
async fn may_enter(worker: &Rc<Worker>, ip: IpAddr, from: CaptureFrom) -> bool {
    let mut changes = worker.clients.changes();
    if from.judge(&worker.clients.of(ip)) == Entry::Open {
        return true;
    }
    if worker.waiting.get() >= WAITING_MAX {
        return false;
    }
    let _waits = Count::new(Rc::clone(worker), |worker| &worker.waiting);
    becomes_known(&worker.clients, &mut changes, ip, from, KNOWN_WITHIN).await
}

/// Whether a change of the picture lets it in, in time.
async fn becomes_known(
    table: &Table,
    changes: &mut watch::Receiver<u64>,
    ip: IpAddr,
    from: CaptureFrom,
    within: Duration,
) -> bool {
    let known = async {
        while changes.changed().await.is_ok() {
            if from.judge(&table.of(ip)) == Entry::Open {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(within, known).await.unwrap_or(false)
}

/// A kubelet reports a new pod's address about a second after its first process runs, a busy one later.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// More than the pods that start on a node at a time; with one idle socket each.
const WAITING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(listen: u16) -> Capture {
        Capture {
            service: "shop/web".into(),
            key: "shop/web:80".into(),
            port: 80,
            port_name: String::new(),
            protocol: Protocol::Http1,
            listen,
            cluster_ips: Vec::new(),
        }
    }

    #[test]
    fn a_port_outside_of_the_range_or_taken_is_reported_and_a_free_one_is_bound_once() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let theirs = crate::tcp::listen(SocketAddr::new(ip, 0)).unwrap();
        let port = theirs.local_addr().unwrap().port();
        let ports = CapturePorts::new(ip, port..=port, Gauge::default(), Arc::default());
        assert!(ports.socket(&capture(port)).is_none());
        assert!(ports.socket(&capture(port - 1)).is_none());
        assert_eq!(ports.unserved.get(), 2);
        let outside = format!(
            "port {}: it is outside of the ports set aside for this (--capture-ports {port}-{port}); clients of shop/web:80 are not \
             taken here",
            port - 1
        );
        assert_eq!(
            ports.unserved(),
            [outside, format!("port {port} is taken; clients of shop/web:80 are not taken here")]
        );
        drop(theirs);
        let first = ports.socket(&capture(port)).unwrap();
        let again = ports.socket(&capture(port)).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(ports.unserved().len(), 1);
        ports.retain(&Snapshot::empty());
        assert!(ports.unserved().is_empty());
    }

    #[tokio::test]
    async fn an_address_that_nobody_has_is_given_a_while() {
        use archipelago_proto::v1::{Workload, Workloads};

        use crate::callers::Callers;
        let picture = |ips: &[&str]| {
            let workload = |ip: &&str| Workload { ip: (*ip).into(), ..Workload::default() };
            Callers::new(&Workloads {
                fresh: true,
                workloads: ips.iter().map(workload).collect(),
                ..Workloads::default()
            })
        };
        let (table, ip) = (Table::default(), IpAddr::from([10, 1, 0, 9]));
        table.publish(picture(&["10.1.0.1"]));
        let mut changes = table.changes();
        let (own, soon, late) = (CaptureFrom::OwnNode, Duration::from_millis(5), Duration::from_secs(60));
        assert!(!becomes_known(&table, &mut changes, ip, own, soon).await);
        // Somebody else's pod is no reason, its own is.
        let (known, ()) = tokio::join!(becomes_known(&table, &mut changes, ip, own, late), async {
            table.publish(picture(&["10.1.0.1", "10.1.0.2"]));
            tokio::task::yield_now().await;
            table.publish(picture(&["10.1.0.1", "10.1.0.9"]));
        });
        assert!(known);
    }
}
