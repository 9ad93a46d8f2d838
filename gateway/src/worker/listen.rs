//! Accepting: one HTTP listener per worker, all on one port, and for each TCP service a clone of the one listener on its port.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::ports::{Claim, TcpPorts};
use crate::config::Snapshot;
use crate::exchange::client::{self, Entrance};
use crate::handover::{Phase, Turn};
use crate::tls::Terminator;
use crate::visitors::{Full, Visit};

/// Accepts HTTP clients until `drain`, whenever it is our turn.
pub async fn http(worker: Rc<Worker>, listener: TcpListener, drain: CancellationToken, mut turn: Turn) {
    loop {
        let Some((stream, peer)) = accept(&listener, &drain, &mut turn).await else { return };
        let Some(visit) = enter(&worker, &stream, peer) else { continue };
        let open = Count::new(Rc::clone(&worker), |w| &w.connections);
        let entrance = Entrance { source: worker.source(peer.ip()), capture: None, visit, tls: None };
        let serve = client::serve(Rc::clone(&worker), stream, entrance, drain.clone(), turn.clone());
        tokio::task::spawn_local(async move {
            serve.await;
            drop(open);
        });
    }
}

/// The same for clients that speak TLS first.
pub async fn https(
    worker: Rc<Worker>,
    tls: Terminator,
    listener: TcpListener,
    drain: CancellationToken,
    mut turn: Turn,
) {
    loop {
        let Some((stream, peer)) = accept(&listener, &drain, &mut turn).await else { return };
        // Who is one too many cannot be told: nothing that is said in the clear would be understood.
        let Ok(visit) = admit(&worker, peer) else { continue };
        let open = Count::new(Rc::clone(&worker), |w| &w.connections);
        let entrance = Entrance { source: worker.source(peer.ip()), capture: None, visit, tls: None };
        let serve = client::serve_tls(Rc::clone(&worker), tls.clone(), stream, entrance, drain.clone(), turn.clone());
        tokio::task::spawn_local(async move {
            serve.await;
            drop(open);
        });
    }
}

/// Lets an HTTP client in, or tells it why not.
pub fn enter(worker: &Worker, stream: &TcpStream, peer: SocketAddr) -> Option<Rc<Visit>> {
    match admit(worker, peer) {
        Ok(visit) => return Some(visit),
        Err(Full::Gateway) => {
            refuse(stream, "503 Service Unavailable", "overloaded", "this gateway has as many connections as it may");
        }
        Err(Full::Client) => {
            let line = "this client address has as many connections as it may";
            refuse(stream, "429 Too Many Requests", "client-limit", line);
        }
    }
    None
}

fn admit(worker: &Worker, peer: SocketAddr) -> Result<Rc<Visit>, Full> {
    let full = match worker.visitors.enter(peer.ip()) {
        Ok(visit) if worker.connections.get() < worker.limits.connections_max => return Ok(visit),
        Ok(_) => Full::Gateway,
        Err(full) => full,
    };
    worker.metrics.connection_refused(full);
    Err(full)
}

/// The same for a client of a TCP service, who cannot be told.
pub fn enter_tcp(worker: &Worker, peer: SocketAddr) -> Option<Rc<Visit>> {
    let full = match worker.visitors.enter(peer.ip()) {
        Ok(visit) if worker.tcp_connections.get() < worker.limits.tcp_connections_max => return Some(visit),
        Ok(_) => Full::Gateway,
        Err(full) => full,
    };
    worker.metrics.connection_refused(full);
    None
}

/// Says why a connection is closed that nobody has read from: as much as a socket takes that has just been opened, which is all of it.
fn refuse(stream: &TcpStream, status: &str, reason: &str, line: &str) {
    let length = line.len() + 1;
    let said = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\
         mesh-failure: {reason}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{line}\n"
    );
    let socket = SockRef::from(stream);
    let _ = socket.send(said.as_bytes());
    let _ = socket.shutdown(std::net::Shutdown::Write);
}

/// One worker's listeners of TCP services; they come and go with the configuration.
#[derive(Debug)]
pub struct TcpListeners {
    ports: Arc<TcpPorts>,
    drain: CancellationToken,
    turn: Turn,
    open: HashMap<u16, (Arc<str>, JoinHandle<()>)>,
}

impl TcpListeners {
    /// None yet.
    pub fn new(ports: Arc<TcpPorts>, drain: CancellationToken, turn: Turn) -> Self {
        Self { ports, drain, turn, open: HashMap::new() }
    }

    /// Opens and closes listeners so that they fit `snapshot`. False when a port could not be had; call again in a while.
    pub fn follow(&mut self, worker: &Rc<Worker>, snapshot: &Snapshot) -> bool {
        // Clients of a cluster with captures come by those, and nobody by these; the ranges may well overlap.
        let offsets = snapshot.tcp().iter().filter(|_| snapshot.captures.is_none());
        let wanted: HashMap<u16, &Arc<str>> = offsets.map(|(offset, key)| (*offset, key)).collect();
        self.open.retain(|offset, (service, task)| {
            let keep = wanted.get(offset) == Some(&&*service) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        self.ports.retain(&wanted.keys().copied().collect());
        if self.drain.is_cancelled() {
            return true;
        }
        let mut complete = true;
        for (offset, service) in wanted {
            if self.open.contains_key(&offset) {
                continue;
            }
            let claim = self.ports.claim(offset, service);
            let Some((claim, Ok(listener))) = claim.map(|claim| (Arc::clone(&claim), claim.listener())) else {
                complete = false;
                continue;
            };
            let serve =
                tcp(Rc::clone(worker), claim, listener, Arc::clone(service), self.drain.clone(), self.turn.clone());
            self.open.insert(offset, (Arc::clone(service), tokio::task::spawn_local(serve)));
        }
        complete
    }
}

async fn tcp(
    worker: Rc<Worker>,
    _claim: Arc<Claim>,
    listener: TcpListener,
    service: Arc<str>,
    drain: CancellationToken,
    mut turn: Turn,
) {
    loop {
        let Some((stream, peer)) = accept(&listener, &drain, &mut turn).await else { return };
        let Some(visit) = enter_tcp(&worker, peer) else { continue };
        let open = Count::new(Rc::clone(&worker), |w| &w.tcp_connections);
        let serve =
            crate::tcp::serve_client(Rc::clone(&worker), Arc::clone(&service), worker.source(peer.ip()), stream);
        tokio::task::spawn_local(async move {
            serve.await;
            drop((open, visit));
        });
    }
}

/// The next client, when it is our turn; `None` once `drain` is cancelled.
pub async fn accept(
    listener: &TcpListener,
    drain: &CancellationToken,
    turn: &mut Turn,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => return None,
            () = turn.until(Phase::accepts) => {}
        }
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return None,
            () = turn.until(|phase| !phase.accepts()) => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
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
