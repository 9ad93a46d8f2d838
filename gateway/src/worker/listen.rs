//! Accepting: one HTTP listener per worker, one TCP listener per TCP service and worker, all sharing ports with the other workers.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::config::Snapshot;

/// Accepts HTTP clients until `drain`.
pub async fn http(worker: Rc<Worker>, listener: TcpListener, drain: CancellationToken) {
    loop {
        let Some(stream) = accept(&listener, &drain).await else { return };
        if worker.connections.get() >= worker.limits.connections_max {
            worker.metrics.connection_refused();
            continue;
        }
        let open = Count::new(Rc::clone(&worker), |w| &w.connections);
        let serve = crate::proxy::client::serve(Rc::clone(&worker), stream, drain.clone());
        tokio::task::spawn_local(async move {
            serve.await;
            drop(open);
        });
    }
}

/// The listeners of TCP services; they come and go with the configuration.
#[derive(Debug)]
pub struct TcpListeners {
    base: SocketAddr,
    ports: u16,
    drain: CancellationToken,
    open: HashMap<u16, (Arc<str>, JoinHandle<()>)>,
    /// Slots whose port could not be had, so that it is said once.
    failed: HashSet<u16>,
}

impl TcpListeners {
    /// None yet; at most `ports` from `base` on, since those behind them are somebody else's, and a port that two share by
    /// accident gives each the other's clients.
    pub fn new(base: SocketAddr, ports: u16, drain: CancellationToken) -> Self {
        Self { base, ports, drain, open: HashMap::new(), failed: HashSet::new() }
    }

    /// Opens and closes listeners so that they fit `snapshot`. False when a port could not be had; call again in a while.
    pub fn follow(&mut self, worker: &Rc<Worker>, snapshot: &Snapshot) -> bool {
        let wanted: HashMap<u16, &Arc<str>> =
            snapshot.services.iter().filter_map(|s| Some((s.tcp_offset()?, &s.key))).collect();
        self.open.retain(|slot, (service, task)| {
            let keep = wanted.get(slot) == Some(&&*service) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        self.failed.retain(|slot| wanted.contains_key(slot));
        if self.drain.is_cancelled() {
            return true;
        }
        for (slot, service) in wanted {
            if self.open.contains_key(&slot) {
                continue;
            }
            match self.listen(slot) {
                Ok(listener) => {
                    let serve = tcp(Rc::clone(worker), listener, Arc::clone(service), self.drain.clone());
                    self.open.insert(slot, (Arc::clone(service), tokio::task::spawn_local(serve)));
                    self.failed.remove(&slot);
                }
                Err(error) if self.failed.insert(slot) => {
                    tracing::warn!(%service, base = %self.base, slot, %error, "cannot listen for this TCP service; trying on");
                }
                Err(_) => {}
            }
        }
        self.failed.is_empty()
    }

    fn listen(&self, slot: u16) -> io::Result<TcpListener> {
        if slot >= self.ports {
            let message = format!("only {} ports are set aside for TCP services (--tcp-ports)", self.ports);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let beyond = || io::Error::new(io::ErrorKind::InvalidInput, "the TCP base port plus the slot is beyond 65535");
        let port = self.base.port().checked_add(slot).ok_or_else(beyond)?;
        TcpListener::from_std(crate::tcp::listen(SocketAddr::new(self.base.ip(), port))?)
    }
}

async fn tcp(worker: Rc<Worker>, listener: TcpListener, service: Arc<str>, drain: CancellationToken) {
    loop {
        let Some(stream) = accept(&listener, &drain).await else { return };
        if worker.tcp_connections.get() >= worker.limits.tcp_connections_max {
            worker.metrics.connection_refused();
            continue;
        }
        let open = Count::new(Rc::clone(&worker), |w| &w.tcp_connections);
        let serve = crate::tcp::serve_client(Rc::clone(&worker), Arc::clone(&service), stream);
        tokio::task::spawn_local(async move {
            serve.await;
            drop(open);
        });
    }
}

async fn accept(listener: &TcpListener, drain: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) => {
                // Out of descriptors passes when connections end; spinning on it would keep them from ending.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Counts one connection on its worker until dropped.
#[derive(Debug)]
pub struct Count {
    worker: Rc<Worker>,
    counter: fn(&Worker) -> &Cell<usize>,
}

impl Count {
    /// Counts it.
    pub fn new(worker: Rc<Worker>, counter: fn(&Worker) -> &Cell<usize>) -> Self {
        let cell = counter(&worker);
        cell.set(cell.get() + 1);
        Self { worker, counter }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let cell = (self.counter)(&self.worker);
        cell.set(cell.get().saturating_sub(1));
    }
}

const ACCEPT_RETRY: Duration = Duration::from_millis(20);
