//! A worker's thread: how it starts, what runs on it beside requests, and how it ends.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_tunnel::{BindError, Incoming, TunnelConfig, Tunnels};
use http::Method;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;

use super::command::{self, Command};
use super::{Shared, Worker, listen, probe, statements};
use crate::authorize;
use crate::config::Snapshot;
use crate::handover::{Phase, Turn};

/// Sockets of one worker, bound before its thread starts.
#[derive(Debug)]
pub struct Sockets {
    /// Clients, HTTP; at least one.
    pub http: Vec<std::net::TcpListener>,
    /// Clients, HTTP in TLS.
    pub https: Vec<std::net::TcpListener>,
    /// Tunnels.
    pub tunnel: SocketAddr,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    /// Asks something of it.
    pub commands: mpsc::Sender<Command>,
    /// Where its tunnels arrive.
    pub tunnel: SocketAddr,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    /// Waits until it has drained and ended.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its thread or runtime.
    #[error("cannot start a worker thread")]
    Thread(#[from] std::io::Error),
    /// Its tunnels.
    #[error(transparent)]
    Tunnels(#[from] BindError),
    /// It ended before it had started.
    #[error("a worker ended while starting")]
    Ended,
}

/// Starts worker `index`; returns once its sockets are open.
pub fn start(index: usize, shared: Shared, sockets: Sockets) -> Result<Handle, StartError> {
    let (commands, queue) = mpsc::channel(COMMANDS_QUEUED_MAX);
    let (started, outcome) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // Not a LocalSet inside a runtime: that is a second scheduler, through which every wake-up would pass as well.
        let runtime =
            match tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(StartError::Thread(error)))),
            };
        runtime.block_on(async move {
            let mut config = TunnelConfig::new(
                &*shared.identity.cluster,
                &*shared.identity.gateway,
                shared.credential.clone(),
                sockets.tunnel,
            );
            config.worker = index;
            config.peers_per_cluster = shared.peers_per_cluster;
            // Until the first snapshot says who belongs to the federation.
            config.gate = authorize::gate(Arc::clone(&Snapshot::empty().membership));
            config.detector = shared.limits.detector;
            let (tunnels, incoming) = match Tunnels::bind(config) {
                Ok(bound) => bound,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            let address = tunnels.local_addr();
            let worker = Rc::new(Worker::new(index, &shared, tunnels));
            let listeners = match (registered(sockets.http), registered(sockets.https)) {
                (Ok(http), Ok(https)) => [http, https],
                (Err(error), _) | (_, Err(error)) => return drop(started.send(Err(error.into()))),
            };
            let _ = started.send(Ok(address));
            run(worker, shared, listeners, incoming, queue).await;
        });
    })?;
    let tunnel = outcome.recv().map_err(|_| StartError::Ended)??;
    Ok(Handle { commands, tunnel, thread })
}

fn registered(listeners: Vec<std::net::TcpListener>) -> std::io::Result<Vec<tokio::net::TcpListener>> {
    listeners.into_iter().map(tokio::net::TcpListener::from_std).collect()
}

async fn run(
    worker: Rc<Worker>,
    shared: Shared,
    [http, https]: [Vec<tokio::net::TcpListener>; 2],
    incoming: Incoming,
    commands: mpsc::Receiver<Command>,
) {
    let background = [
        tokio::task::spawn_local(super::follow::follow(Rc::clone(&worker), shared.clone())),
        tokio::task::spawn_local(command::answer(Rc::clone(&worker), commands)),
        tokio::task::spawn_local(serve_tunnels(Rc::clone(&worker), incoming)),
        tokio::task::spawn_local(keep_house(Rc::clone(&worker))),
        tokio::task::spawn_local(note_clients(Rc::clone(&worker))),
        tokio::task::spawn_local(statements::say(Rc::clone(&worker))),
        tokio::task::spawn_local(Rc::clone(&worker.timers).run()),
        tokio::task::spawn_local(note_successors(Rc::clone(&worker), shared.turn.clone())),
    ];
    let mut accepting = tokio::task::JoinSet::new();
    for listener in http {
        accepting.spawn_local(listen::http(Rc::clone(&worker), listener, shared.drain.clone(), shared.turn.clone()));
    }
    for listener in https {
        let Some(tls) = shared.tls.clone() else { break };
        let (drain, turn) = (shared.drain.clone(), shared.turn.clone());
        accepting.spawn_local(listen::https(Rc::clone(&worker), tls, listener, drain, turn));
    }
    shared.drain.cancelled().await;
    worker.is_draining.set(true);
    worker.timers.wake_all();

    // New work stops: no accepts, GOAWAY on HTTP/2 (by each connection) and on the tunnels. Then what is in flight ends.
    let deadline = Instant::now() + worker.limits.drain_timeout;
    while accepting.join_next().await.is_some() {}
    // Idle client connections close at once; those that just sent a request may still need a tunnel.
    let grace = Instant::now() + CLIENT_GRACE;
    while Instant::now() < grace && worker.connections.get() > 0 {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    worker.tunnels.drain(deadline.saturating_duration_since(Instant::now())).await;
    while Instant::now() < deadline
        && (worker.requests.get() > 0 || worker.connections.get() > 0 || worker.tcp_connections.get() > 0)
    {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    worker.metrics.flush();
    background.iter().for_each(tokio::task::JoinHandle::abort);
    worker.tunnels.close().await;
}

async fn serve_tunnels(worker: Rc<Worker>, mut incoming: Incoming) {
    let mut burst = 0u32;
    while let Some(request) = incoming.next().await {
        burst = burst.wrapping_add(1);
        if burst.is_multiple_of(REQUESTS_PER_TURN) {
            // Thousands may wait: clients of this worker get their turn in between.
            tokio::task::yield_now().await;
        }
        let worker = Rc::clone(&worker);
        if request.head.method == Method::CONNECT && request.head.protocol.is_none() {
            if worker.tcp_connections.get() >= worker.limits.tcp_connections_max {
                request.responder.reject();
                continue;
            }
            // In boxes: what is spawned is copied about, and these futures are kilobytes.
            tokio::task::spawn_local(Box::pin(async move {
                let _open = listen::Count::new(Rc::clone(&worker), |w| &w.tcp_connections);
                crate::tcp::serve_peer(Rc::clone(&worker), *request).await;
            }));
        } else if probe::is_probe(&request.head) {
            tokio::task::spawn_local(Box::pin(probe::answer(worker, request)));
        } else {
            tokio::task::spawn_local(Box::pin(crate::exchange::serve_peer(worker, request)));
        }
    }
}

/// A number of the worker's own, so that a request does not look at one that all workers share.
async fn note_clients(worker: Rc<Worker>) {
    let mut changes = worker.clients.changes();
    loop {
        worker.clients_seen.set(*changes.borrow_and_update());
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn note_successors(worker: Rc<Worker>, mut turn: Turn) {
    loop {
        turn.until(|phase| phase == Phase::Yielded).await;
        worker.is_leaving.set(true);
        turn.until(|phase| phase != Phase::Yielded).await;
        worker.is_leaving.set(false);
    }
}

async fn keep_house(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.housekeeping();
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

const REQUESTS_PER_TURN: u32 = 64;
const COMMANDS_QUEUED_MAX: usize = 64;
/// Metrics may be this old; the failback ramp moves in such steps.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(250);
const CLIENT_GRACE: Duration = Duration::from_millis(250);
const DRAIN_POLL: Duration = Duration::from_millis(20);
