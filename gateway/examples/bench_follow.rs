//! What one change costs among many services: making the next snapshot (control thread), and following it (each worker's thread).
//!
//! `bench_follow [SERVICES] [CLUSTERS]`, by default 2000 and 10: each service is exported by four clusters, has two endpoints here, and
//! every other cluster has two gateways. Prints the median of 200 changes of each kind in microseconds, and of making everything, which
//! is what a worker that starts does, and what every change cost before there was anything else.

#![allow(clippy::indexing_slicing, reason = "a benchmark may panic")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_gateway::internals::{ConfigState, LiveState, PeerFacts, Snapshot, View};
use archipelago_model::{compile, stream::Resource, version::Version};
use archipelago_proto::v1::{
    Backend, ClusterConfig, Endpoint, FailoverChain, HttpListener, LocalService, LocalUpdate, MeshConfig, Protocol,
    Readiness, RouteRule, ServiceConfig, ServicePort, Tier, config_resource::Body, service_port::Listener,
};
use archipelago_tunnel::{HealthNews, News, PeerName, PeerNews, PeerState, ServiceHealth};

#[derive(Debug, Clone)]
struct Peer(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    name: PeerName,
    state: Cell<PeerState>,
    since: Instant,
    says: RefCell<BTreeMap<String, u32>>,
}

impl PeerFacts for Peer {
    fn name(&self) -> &PeerName {
        &self.0.name
    }
    fn state(&self) -> PeerState {
        self.0.state.get()
    }
    fn since(&self) -> Instant {
        self.0.since
    }
    fn rtt(&self) -> Duration {
        Duration::from_millis(1)
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn health(&self, service: &str) -> Vec<ServiceHealth> {
        let ready = self.0.says.borrow().get(service).copied();
        let health = |ready| ServiceHealth { service: service.to_owned(), version: "v1".to_owned(), ready };
        ready.map(health).into_iter().collect()
    }
    fn services(&self) -> Vec<String> {
        self.0.says.borrow().keys().cloned().collect()
    }
    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

struct Bench {
    config: ConfigState,
    snapshot: Arc<Snapshot>,
    peers: Vec<Peer>,
    live: LiveState<Peer>,
    view: View<Peer>,
}

fn main() -> anyhow::Result<()> {
    let mut sizes = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let services = sizes.next().transpose()?.unwrap_or(2000);
    let clusters = sizes.next().transpose()?.unwrap_or(10).max(5);
    let mut bench = Bench::new(services, clusters)?;
    println!("{services} services, {clusters} clusters\n\n| change | snapshot µs | worker µs |\n| --- | --- | --- |");

    let everything = (0..10).map(|_| {
        let began = Instant::now();
        let snapshot = build(&bench.config, &Snapshot::empty())?;
        let built = began.elapsed();
        let (mut live, began) = (LiveState::default(), Instant::now());
        let news = News { chosen: true, ..News::default() };
        live.follow(&View::empty(), &Arc::new(snapshot), news, || bench.peers.clone(), began, &mut || 1);
        Ok((built, began.elapsed()))
    });
    report("everything", everything.collect::<anyhow::Result<_>>()?);

    let mut times = Vec::new();
    for n in 0..ROUNDS {
        bench.local(n * 7 % services, 3 + n % 2);
        times.push(bench.follow(News::default())?);
    }
    report("an endpoint", std::mem::take(&mut times));
    for n in 0..ROUNDS {
        let avoid = if n % 2 == 0 { "c1" } else { "c2" };
        bench.put(Body::Service(ServiceConfig {
            avoid_clusters: vec![avoid.into()],
            ..service(n * 5 % services, clusters)
        }));
        times.push(bench.follow(News::default())?);
    }
    report("a service", std::mem::take(&mut times));
    for n in 0..ROUNDS {
        let name = services + n / 2;
        match n % 2 {
            0 => bench.put(Body::Service(service(name, clusters))),
            _ => bench.config.held.resources.remove(&format!("service/bench/s{name:05}")),
        }
        times.push(bench.follow(News::default())?);
    }
    report("a service that comes or goes", std::mem::take(&mut times));
    for n in 0..ROUNDS {
        let peer = bench.peers[n % bench.peers.len()].clone();
        let said = peer.0.says.borrow().keys().nth(n).cloned().unwrap_or_default();
        peer.0.says.borrow_mut().insert(said.clone(), 3 + u32::from(n % 2 == 0));
        let health = HealthNews::Services([said].into());
        times.push(bench.follow(news(&peer, PeerNews { state: false, health }))?);
    }
    report("what a peer says of a service", std::mem::take(&mut times));
    for n in 0..ROUNDS {
        let peer = bench.peers[0].clone();
        peer.0.state.set(if n % 2 == 0 { PeerState::Suspect } else { PeerState::Up });
        times.push(bench.follow(news(&peer, PeerNews { state: true, health: HealthNews::Nothing }))?);
    }
    report("a peer that is suspect or not", std::mem::take(&mut times));
    for n in 0..ROUNDS {
        let peer = bench.peers[0].clone();
        peer.0.state.set(if n % 2 == 0 { PeerState::Dead } else { PeerState::Up });
        times.push(bench.follow(news(&peer, PeerNews { state: true, health: HealthNews::Nothing }))?);
    }
    report("a peer that dies or is back: all that it serves", std::mem::take(&mut times));
    for n in 0..ROUNDS {
        bench.put(Body::Cluster(ClusterConfig { name: "c1".into(), region: "eu".into(), drained: n % 2 == 0 }));
        times.push(bench.follow(News::default())?);
    }
    report("a cluster that is drained or not", times);
    Ok(())
}

impl Bench {
    fn new(services: usize, clusters: usize) -> anyhow::Result<Self> {
        let cluster = |n| Body::Cluster(ClusterConfig { name: format!("c{n}"), region: "eu".into(), drained: false });
        let mesh = Body::Mesh(MeshConfig { trust_domain: "bench.test".into(), bundle_der: vec![] });
        let all = (0..services).map(|n| Body::Service(service(n, clusters)));
        let bodies = (0..clusters).map(cluster).chain([mesh]).chain(all);
        let peers = (1..clusters).flat_map(|cluster| (0..2).map(move |gateway| (cluster, gateway)));
        let peer = |(cluster, gateway)| {
            let says = (0..services).filter(|n| exporters(*n, clusters).contains(&cluster));
            let says = says.map(|n| (format!("bench/s{n:05}"), 2)).collect();
            let name = PeerName { cluster: format!("c{cluster}"), gateway: format!("gw-{gateway}") };
            let (state, since) = (Cell::new(PeerState::Up), Instant::now());
            Peer(Rc::new(Inner { name, state, since, says: RefCell::new(says) }))
        };
        let mut this = Self {
            config: ConfigState::new(Version { revision: 1, ..Version::default() }, bodies.map(compile::resource)),
            snapshot: Arc::new(Snapshot::empty()),
            peers: peers.map(peer).collect(),
            live: LiveState::default(),
            view: View::empty(),
        };
        (0..services).for_each(|n| this.local(n, 2));
        this.follow(News { chosen: true, ..News::default() })?;
        Ok(this)
    }

    fn put(&mut self, body: Body) {
        self.config.held.resources.put(Resource::from(compile::resource(body)));
    }

    fn local(&mut self, n: usize, endpoints: usize) {
        let endpoint = |k: usize| Endpoint {
            address: format!("10.{}.{}.{k}:80", n / 250, n % 250),
            version: "v1".into(),
            instance: format!("s{n:05}-{k}"),
            readiness: Readiness::Ready.into(),
            locality: 0,
        };
        let endpoints = (1..=endpoints).map(endpoint).collect();
        let (namespace, name) = ("bench".into(), format!("s{n:05}"));
        let service = LocalService { namespace, name, port: 80, endpoints, ..LocalService::default() };
        self.config = self.config.with_local(LocalUpdate { upserts: vec![service], ..LocalUpdate::default() });
    }

    /// How long the next snapshot takes, and the next picture.
    fn follow(&mut self, news: News) -> anyhow::Result<(Duration, Duration)> {
        let began = Instant::now();
        let snapshot = Arc::new(build(&self.config, &self.snapshot)?);
        let built = began.elapsed();
        let (peers, began) = (&self.peers, Instant::now());
        let followed = self.live.follow(&self.view, &snapshot, news, || peers.clone(), began, &mut || 1);
        let followed_in = began.elapsed();
        (self.view, self.snapshot) = (followed.view, snapshot);
        Ok((built, followed_in))
    }
}

fn build(config: &ConfigState, previous: &Snapshot) -> anyhow::Result<Snapshot> {
    Ok(Snapshot::build(config, "c0", "bench.test", previous)?.snapshot)
}

fn news(peer: &Peer, news: PeerNews) -> News {
    News { chosen: false, peers: [(peer.name().clone(), news)].into() }
}

fn exporters(n: usize, clusters: usize) -> [usize; 4] {
    [0, 1, 2, 3].map(|k| (n + k) % clusters)
}

fn service(n: usize, clusters: usize) -> ServiceConfig {
    let exporters = exporters(n, clusters).map(|cluster| format!("c{cluster}"));
    let backend = |cluster: &String| Backend { cluster: cluster.clone(), weight: 1, ..Backend::default() };
    let name = format!("s{n:05}");
    ServiceConfig {
        namespace: "bench".into(),
        hosts: compile::hosts("bench", &name),
        name,
        ports: vec![ServicePort {
            port: 80,
            protocol: Protocol::Http1.into(),
            listener: Some(Listener::Http(HttpListener::default())),
            rules: vec![RouteRule { name: "default".into(), chain: Some(0), ..RouteRule::default() }],
            chains: vec![FailoverChain {
                tiers: exporters.iter().map(|cluster| Tier { backends: vec![backend(cluster)] }).collect(),
            }],
            ..ServicePort::default()
        }],
        exporters: exporters.to_vec(),
        ..ServiceConfig::default()
    }
}

fn report(change: &str, mut times: Vec<(Duration, Duration)>) {
    let mut median = |of: fn(&(Duration, Duration)) -> Duration| {
        times.sort_by_key(of);
        times.get(times.len() / 2).map_or(0.0, |time| of(time).as_secs_f64() * 1e6)
    };
    println!("| {change} | {:.1} | {:.1} |", median(|time| time.0), median(|time| time.1));
}

const ROUNDS: usize = 200;
