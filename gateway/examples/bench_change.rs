//! Changes of the configuration under load: how long each takes until every worker serves with it, and how many requests fail.
//!
//! `bench_change [SERVICES] [CHANGES]`, by default 2000 and 100: one gateway with two workers in this process, eight clients who ask one
//! of the services without a pause, and an agent that moves this service's only endpoint from one backend to the other and back. Prints
//! what the clients saw, and the times from the update to its acknowledgement, which is given once no worker begins a request with the
//! configuration before. Exit code 1 when a request failed, or was answered by the old backend after the acknowledgement.

#![allow(clippy::indexing_slicing, reason = "a benchmark may panic")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use archipelago_gateway::internals::{Change, ConfigState, Store, Update};
use archipelago_gateway::{CaptureFrom, Gateway, Limits, Settings};
use archipelago_identity::testing::TestAuthority;
use archipelago_model::{compile, version::Version};
use archipelago_proto::v1::{
    Backend, ClusterConfig, Endpoint, FailoverChain, HttpListener, LocalService, LocalUpdate, MeshConfig, Protocol,
    Readiness, RouteRule, ServiceConfig, ServicePort, Tier, config_resource::Body, service_port::Listener,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut sizes = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let services = sizes.next().transpose()?.unwrap_or(2000);
    let changes = sizes.next().transpose()?.unwrap_or(100);
    let backends = [backend(b'a').await?, backend(b'b').await?];
    let dir = tempfile::tempdir()?;
    let gateway = gateway(dir.path(), services, backends[0])?;
    let (http, updates) = (gateway.http(), gateway.updates());

    let seen = Arc::new(Seen::default());
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(http, Arc::clone(&seen)))).collect();
    let mut times = Vec::with_capacity(changes);
    for n in 1..=changes {
        let update = LocalUpdate { upserts: vec![local(0, backends[n % 2])], ..LocalUpdate::default() };
        let (applied, outcome) = oneshot::channel();
        let began = Instant::now();
        updates.send(Update { change: Change::Local(update), applied }).await?;
        let applied = outcome.await?.context("the update was refused")?;
        anyhow::ensure!(applied.late_workers.is_empty(), "workers hang");
        times.push(began.elapsed());
        // Whoever asks from now on is answered by the new one.
        let answer = ask(&mut TcpStream::connect(http).await?).await?;
        anyhow::ensure!(answer == Some([b'a', b'b'][n % 2]), "after the acknowledgement came {answer:?}");
        tokio::time::sleep(PAUSE).await;
    }
    seen.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await??;
    }
    tokio::task::spawn_blocking(move || gateway.stop()).await?;
    times.sort();
    let at = |part: usize| times.get((times.len() - 1) * part / 100).copied().unwrap_or_default().as_secs_f64() * 1e3;
    let (answered, failed) = (seen.answered.load(Ordering::Relaxed), seen.failed.load(Ordering::Relaxed));
    println!("{services} services, {changes} changes: {answered} answered, {failed} failed");
    println!(
        "until every worker serves with it: median {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        at(50),
        at(99),
        at(100)
    );
    anyhow::ensure!(failed == 0, "requests failed");
    Ok(())
}

#[derive(Debug, Default)]
struct Seen {
    over: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
}

async fn client(http: SocketAddr, seen: Arc<Seen>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(http).await?;
    while !seen.over.load(Ordering::Relaxed) {
        match ask(&mut stream).await? {
            Some(_) => seen.answered.fetch_add(1, Ordering::Relaxed),
            None => seen.failed.fetch_add(1, Ordering::Relaxed),
        };
    }
    Ok(())
}

/// One request; the byte that the backend answered, `None` when that was not 200.
async fn ask(stream: &mut TcpStream) -> anyhow::Result<Option<u8>> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: s00000.bench\r\n\r\n").await?;
    let mut answer = Vec::new();
    loop {
        let mut piece = [0; 2048];
        let length = stream.read(&mut piece).await?;
        anyhow::ensure!(length > 0, "the gateway closed the connection");
        answer.extend_from_slice(&piece[..length]);
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(head) = head.filter(|_| answer.starts_with(b"HTTP/1.1 200")) {
            if let Some(body) = answer.get(head + 4) {
                return Ok(Some(*body));
            }
        } else if head.is_some() {
            return Ok(None);
        }
    }
}

/// Answers every request with one byte.
async fn backend(name: u8) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut piece = [0; 2048];
                while let Ok(length @ 1..) = stream.read(&mut piece).await {
                    request.extend_from_slice(&piece[..length]);
                    if request.ends_with(b"\r\n\r\n") {
                        request.clear();
                        let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n".as_slice(), &[name]].concat();
                        if stream.write_all(&answer).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    Ok(address)
}

fn gateway(dir: &std::path::Path, services: usize, backend: SocketAddr) -> anyhow::Result<Gateway> {
    let cluster = Body::Cluster(ClusterConfig { name: "c0".into(), region: "eu".into(), drained: false });
    let mesh = Body::Mesh(MeshConfig { trust_domain: "bench.test".into(), bundle_der: vec![] });
    let bodies = [cluster, mesh].into_iter().chain((0..services).map(|n| Body::Service(service(n))));
    let state = ConfigState::new(Version { revision: 1, ..Version::default() }, bodies.map(compile::resource));
    let upserts = (0..services).map(|n| local(n, backend)).collect();
    let state = state.with_local(LocalUpdate { full: true, upserts, ..LocalUpdate::default() });
    Store::new(dir, "c0", "gw-1").save(&state)?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings {
        cluster: "c0".into(),
        name: "gw-1".into(),
        zone: String::new(),
        state_dir: dir.to_owned(),
        control_plane: vec![],
        agent: None,
        http: any,
        https: None,
        tunnel: any,
        dns: any,
        health: any,
        metrics: any,
        tcp_base: SocketAddr::from(([127, 0, 0, 1], 40_000)),
        tcp_ports: 1,
        capture_ports: 1..=1,
        capture_from: CaptureFrom::OwnNode,
        admin_socket: dir.join("admin.sock"),
        peers_per_cluster: 4,
        workers: 2,
        access_log: "off".into(),
        access_log_sample: 1.0,
        telemetry: archipelago_gateway::Telemetry::Full,
        server_timing: vec![],
        otlp: None,
        limits: Limits::default(),
        share: archipelago_gateway::Share {
            connections_max: usize::MAX,
            requests_max: usize::MAX,
            all_connections_max: usize::MAX,
        },
        unbounded_clients: vec![],
    };
    Gateway::start(settings, TestAuthority::new("bench.test").gateway("c0", "gw-1"))
}

fn service(n: usize) -> ServiceConfig {
    let name = format!("s{n:05}");
    let backend = Backend { cluster: "c0".into(), weight: 1, ..Backend::default() };
    ServiceConfig {
        namespace: "bench".into(),
        hosts: compile::hosts("bench", &name),
        name,
        ports: vec![ServicePort {
            port: 80,
            protocol: Protocol::Http1.into(),
            listener: Some(Listener::Http(HttpListener::default())),
            rules: vec![RouteRule { name: "default".into(), chain: Some(0), ..RouteRule::default() }],
            chains: vec![FailoverChain { tiers: vec![Tier { backends: vec![backend] }] }],
            ..ServicePort::default()
        }],
        exporters: vec!["c0".into()],
        ..ServiceConfig::default()
    }
}

fn local(n: usize, backend: SocketAddr) -> LocalService {
    let endpoint = Endpoint {
        address: backend.to_string(),
        version: "v1".into(),
        instance: "backend".into(),
        readiness: Readiness::Ready.into(),
        locality: 0,
    };
    let (namespace, name) = ("bench".into(), format!("s{n:05}"));
    LocalService { namespace, name, port: 80, endpoints: vec![endpoint], ..LocalService::default() }
}

const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(20);
