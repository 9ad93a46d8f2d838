//! What other threads ask of a worker: explanations, reports, drills. Never on the request path.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use archipelago_proto::v1::{ExplainQuery, ExplainResponse, SlowMinute, TunnelProbe, TunnelStatus, UnderWayRow};
use archipelago_tunnel::{Cut, PeerHandle, PeerState, ServiceHealth};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Reply, Worker, health, probe};
use crate::ledger::report;

/// A question or an order.
#[derive(Debug)]
pub enum Command {
    /// What would happen to this request?
    Explain(Box<ExplainQuery>, Reply<ExplainResponse>),
    /// What comes back through every tunnel?
    Probe(Reply<Vec<TunnelProbe>>),
    /// Hand over how long requests took.
    FlushLatencies(Reply<()>),
    /// How are the tunnels, and what is being carried?
    Report(Reply<Report>),
    /// Which requests of this service, or of all, took long within this time, and on what?
    Slow(String, Duration, Reply<Vec<SlowMinute>>),
    /// What is under way that this cluster, or any, serves?
    UnderWay(String, Reply<Vec<UnderWayRow>>),
    /// What is ready, here and elsewhere?
    Knowledge(Reply<Knowledge>),
    /// Drop packets in silence.
    Cut(Cut, Reply<()>),
    /// End that.
    Heal(Reply<()>),
}

/// One worker's state, for operators.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Which worker.
    pub worker: usize,
    /// Revision it serves with.
    pub revision: u64,
    /// Requests carried now.
    pub requests: usize,
    /// HTTP connections.
    pub connections: usize,
    /// TCP connections.
    pub tcp_connections: usize,
    /// Requests and TCP connections that wait for somebody to serve them.
    pub seeking: usize,
    /// See [`Knowledge::is_settled`].
    #[serde(skip)]
    pub is_settled: bool,
    /// One per peer.
    #[serde(skip)]
    pub tunnels: Vec<TunnelStatus>,
}

/// What one worker tells its peers is ready here, and what each of them has told it. Every worker has tunnels of its own, and hears
/// of a change when its tunnel brings it.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// Which worker.
    pub worker: usize,
    /// It serves with the newest configuration, and every peer has been reached and has said what is ready there, or cannot be
    /// reached now.
    pub is_settled: bool,
    /// What it tells.
    pub tells: Vec<ServiceHealth>,
    /// What it hears, by peer.
    pub hears: Vec<Heard>,
}

/// What one peer has told one worker.
#[derive(Debug, Clone)]
pub struct Heard {
    /// "cluster/gateway".
    pub from: String,
    /// Of the tunnel.
    pub state: PeerState,
    /// By service or port, as configured here; empty: nothing was said of it.
    pub services: BTreeMap<String, Vec<ServiceHealth>>,
}

/// Answers until nobody can ask any more.
pub async fn answer(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        // A reply that nobody waits for any more is no error.
        match command {
            Command::Explain(query, reply) => drop(reply.send(crate::explain::explain(
                &worker.view(),
                &worker.identity,
                &query,
                worker.random(),
                Instant::now(),
            ))),
            // Answers take as long as the slowest peer, and reports must not wait for it.
            Command::Probe(reply) => {
                let worker = Rc::clone(&worker);
                drop(tokio::task::spawn_local(async move { drop(reply.send(probe::all(worker).await)) }));
            }
            Command::FlushLatencies(reply) => {
                worker.metrics.flush_latencies();
                let _ = reply.send(());
            }
            Command::Report(reply) => drop(reply.send(report(&worker))),
            Command::Slow(service, since, reply) => drop(reply.send(report::of_worker(&worker, &service, since))),
            Command::UnderWay(cluster, reply) => drop(reply.send(under_way(&worker, &cluster))),
            Command::Knowledge(reply) => drop(reply.send(knowledge(&worker))),
            Command::Cut(cut, reply) => {
                worker.tunnels.cut(cut);
                let _ = reply.send(());
            }
            Command::Heal(reply) => {
                worker.tunnels.heal();
                let _ = reply.send(());
            }
        }
    }
}

/// Whether requests find what the peers have said.
fn is_settled(worker: &Worker) -> bool {
    let has_said = |peer: &PeerHandle| match peer.state() {
        // One that failed may be about to succeed: how long that may take is bounded by who asks.
        PeerState::Dialing => false,
        PeerState::Up => peer.has_said_health(),
        PeerState::Suspect | PeerState::Dead | PeerState::Draining => true,
    };
    let is_current = worker.generation_seen.get() == worker.published.generation()
        && worker.tunnels_seen.get() == *worker.tunnels.changes().borrow()
        && worker.clients_seen.get() == *worker.clients.changes().borrow();
    is_current && worker.tunnels.peers().iter().all(has_said)
}

fn knowledge(worker: &Worker) -> Knowledge {
    let view = worker.view();
    let keys: BTreeSet<&str> =
        view.snapshot.services().flat_map(|(_, config)| health::names(config)).map(|name| &**name).collect();
    let told = view.snapshot.services().flat_map(|(index, _)| view.health(index, Instant::now()));
    let told = told.flat_map(|(service, versions)| {
        versions.into_iter().map(move |(version, ready)| ServiceHealth { service: service.clone(), version, ready })
    });
    let heard = |peer: PeerHandle| Heard {
        from: peer.name().to_string(),
        state: peer.state(),
        services: keys.iter().map(|key| ((*key).to_owned(), peer.health(key))).collect(),
    };
    Knowledge {
        worker: worker.index,
        is_settled: is_settled(worker),
        tells: told.collect(),
        hears: worker.tunnels.peers().into_iter().map(heard).collect(),
    }
}

fn under_way(worker: &Worker, cluster: &str) -> Vec<UnderWayRow> {
    let view = worker.view();
    let mut rows = Vec::new();
    let is_asked = |serving: &str| cluster.is_empty() || cluster == serving;
    for (index, config) in view.snapshot.services() {
        let counts = view.service(index).map(|live| live.under_way().counts()).unwrap_or_default();
        rows.extend(counts.into_iter().filter(|(serving, _)| is_asked(serving)).map(|(serving, requests)| {
            let (service, cluster) = (config.key.to_string(), serving.to_string());
            UnderWayRow { service, cluster, requests, connections: 0 }
        }));
    }
    for ((service, serving), connections) in worker.streams.counts(&worker.identity.cluster) {
        if is_asked(&serving) {
            let (service, cluster) = (service.to_string(), serving.to_string());
            rows.push(UnderWayRow { service, cluster, requests: 0, connections });
        }
    }
    rows
}

fn report(worker: &Worker) -> Report {
    let paths = worker.tunnels.paths();
    let tunnels = worker.tunnels.peers().into_iter().map(|peer| {
        let name = peer.name();
        let path = paths.get(peer.spiffe_id());
        TunnelStatus {
            from: format!("{}/{}", worker.identity.cluster, worker.identity.gateway),
            to: name.to_string(),
            from_cluster: worker.identity.cluster.to_string(),
            to_cluster: name.cluster.clone(),
            state: state_name(peer.state()).to_owned(),
            rtt_micros: micros(peer.rtt()),
            transport: "quic".to_owned(),
            connections: u32::from(matches!(peer.state(), PeerState::Up | PeerState::Suspect | PeerState::Draining)),
            sent_packets: path.map(|path| path.sent_packets),
            lost_packets: path.map(|path| path.lost_packets),
            // That is of a minute, and known of all workers together.
            lost_ppm: None,
            congestion_window_bytes: path.map(|path| path.congestion_window_bytes),
            black_holes: path.map(|path| path.black_holes),
            // QUIC has no other (RFC 9001 §4.2).
            tls_version: path.map(|_| "TLSv1.3".to_owned()),
        }
    });
    Report {
        worker: worker.index,
        revision: worker.view().snapshot.revision,
        requests: worker.requests.get(),
        connections: worker.connections.get(),
        tcp_connections: worker.tcp_connections.get(),
        seeking: worker.seeking.get(),
        is_settled: is_settled(worker),
        tunnels: tunnels.collect(),
    }
}

/// One entry per peer out of those of all workers: the worst state, connections and packets added up, the largest round trip, the
/// smallest window.
pub fn merge(reports: impl IntoIterator<Item = Vec<TunnelStatus>>) -> Vec<TunnelStatus> {
    let mut merged: Vec<TunnelStatus> = Vec::new();
    for tunnel in reports.into_iter().flatten() {
        match merged.iter_mut().find(|known| known.to == tunnel.to) {
            None => merged.push(tunnel),
            Some(known) => {
                known.connections += tunnel.connections;
                known.rtt_micros = known.rtt_micros.max(tunnel.rtt_micros);
                known.sent_packets = either(known.sent_packets, tunnel.sent_packets, u64::saturating_add);
                known.lost_packets = either(known.lost_packets, tunnel.lost_packets, u64::saturating_add);
                known.black_holes = either(known.black_holes, tunnel.black_holes, u64::saturating_add);
                let windows = (known.congestion_window_bytes, tunnel.congestion_window_bytes);
                known.congestion_window_bytes = either(windows.0, windows.1, u64::min);
                known.tls_version = known.tls_version.take().or(tunnel.tls_version);
                if severity(&tunnel.state) > severity(&known.state) {
                    known.state = tunnel.state;
                }
            }
        }
    }
    merged.sort_by(|a, b| a.to.cmp(&b.to));
    merged
}

/// What both say, or the one that says anything.
fn either(one: Option<u64>, other: Option<u64>, both: fn(u64, u64) -> u64) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(both(one, other)),
        (one, other) => one.or(other),
    }
}

/// The word for a state, in metrics, reports and logs alike.
pub fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Dialing => "dialing",
        PeerState::Up => "up",
        PeerState::Suspect => "suspect",
        PeerState::Dead => "dead",
        PeerState::Draining => "draining",
    }
}

fn severity(state: &str) -> u8 {
    match state {
        "up" => 0,
        "draining" => 1,
        "dialing" => 2,
        "suspect" => 3,
        _ => 4,
    }
}

/// Microseconds, as they are reported.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_the_workers_counts() {
        let tunnel = |to: &str, state: &str, rtt_micros| TunnelStatus {
            to: to.into(),
            state: state.into(),
            rtt_micros,
            connections: 1,
            ..Default::default()
        };
        let merged = merge([
            vec![tunnel("b", "up", 5), tunnel("a", "up", 1)],
            vec![tunnel("a", "dead", 3), tunnel("b", "up", 2)],
        ]);
        let seen: Vec<_> =
            merged.iter().map(|t| (t.to.as_str(), t.state.as_str(), t.rtt_micros, t.connections)).collect();
        assert_eq!(seen, [("a", "dead", 3, 2), ("b", "up", 5, 2)]);
        assert!(merged.iter().all(|t| t.sent_packets.is_none()), "what nobody says is not zero");
        let told = |sent, window| TunnelStatus {
            sent_packets: Some(sent),
            lost_packets: Some(1),
            congestion_window_bytes: Some(window),
            ..tunnel("a", "up", 1)
        };
        let [one] = &merge([vec![told(10, 5_000)], vec![tunnel("a", "dialing", 0)], vec![told(30, 4_000)]])[..] else {
            panic!("one peer")
        };
        assert_eq!((one.sent_packets, one.lost_packets, one.congestion_window_bytes), (Some(40), Some(2), Some(4_000)));
    }
}
