//! Gateways in this process, with real certificates, sockets, tunnels and backends.

#![allow(dead_code, unused_imports, reason = "each file of tests uses a part of it")]

mod backends;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use archipelago_gateway::Limits;
use archipelago_gateway::internals::{Applied, Change, Heard, Update};
use archipelago_gateway::{Gateway, Settings};
use archipelago_identity::testing::TestAuthority;
use archipelago_identity::{LiveCredential, SpiffeId};
use archipelago_model::stream::{Refusal, Resources};
use archipelago_proto::v1::{
    self as proto, config_resource::Body as Resource, r#match::On, named_match::How, service_port::Listener,
};
use archipelago_tunnel::{DetectorConfig, Peer, PeerHandle, PeerState, ServiceHealth, TunnelConfig, Tunnels};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

pub(crate) use backends::{Seen, backend, refusing, tcp_backend};

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One gateway per cluster.
pub(crate) struct Mesh {
    pub(crate) authority: TestAuthority,
    dir: tempfile::TempDir,
    pub(crate) gateways: BTreeMap<String, Gateway>,
    tcp_bases: BTreeMap<String, u16>,
    limits: Limits,
    /// Where the spans of gateways go that are started from then on.
    pub(crate) otlp: Option<archipelago_otlp::Config>,
    /// Of gateways that start from now on.
    pub(crate) telemetry: archipelago_gateway::Telemetry,
    /// Certificates that clients are shown by gateways that are started from then on; `None`: they do not speak TLS.
    certificates: Option<PathBuf>,
    revoked: Vec<proto::Revocation>,
    revision: u64,
    /// Gateways in other processes, by cluster, with their tunnels.
    elsewhere: BTreeMap<String, Vec<String>>,
    /// What they have to serve with, as configured last.
    endpoints_elsewhere: Vec<(String, proto::LocalService)>,
    /// Other addresses at which the gateway of a cluster is dialled: of links that are not as they are here.
    pub(crate) links: BTreeMap<String, Vec<String>>,
    /// What each cluster's gateway was given last.
    sent: BTreeMap<String, Resources>,
}

impl Mesh {
    pub(crate) async fn start(clusters: &[&str]) -> Self {
        Self::start_with(clusters, patient()).await
    }

    pub(crate) async fn start_with(clusters: &[&str], limits: Limits) -> Self {
        Self::start_traced(clusters, limits, None).await
    }

    /// The same, with a collector for spans.
    pub(crate) async fn start_traced(
        clusters: &[&str],
        limits: Limits,
        otlp: Option<archipelago_otlp::Config>,
    ) -> Self {
        static LOGS: std::sync::Once = std::sync::Once::new();
        if std::env::var_os("ARCHIPELAGO_LOG").is_some() {
            LOGS.call_once(|| archipelago_base::logging::init("test"));
        }
        let mut mesh = Self {
            authority: TestAuthority::new("mesh.test"),
            dir: tempfile::tempdir().unwrap(),
            gateways: BTreeMap::new(),
            tcp_bases: BTreeMap::new(),
            limits,
            otlp,
            telemetry: archipelago_gateway::Telemetry::Full,
            certificates: None,
            revoked: vec![],
            revision: 0,
            elsewhere: BTreeMap::new(),
            endpoints_elsewhere: vec![],
            links: BTreeMap::new(),
            sent: BTreeMap::new(),
        };
        for cluster in clusters {
            mesh.tcp_bases.insert((*cluster).to_owned(), free_port());
            mesh.start_gateway(cluster).await;
        }
        mesh
    }

    /// The same, whose gateways show clients the certificates in a directory.
    pub(crate) async fn start_secured(clusters: &[&str], limits: Limits, certificates: &Path) -> Self {
        let mut mesh = Self::start_with(&[], limits).await;
        mesh.certificates = Some(certificates.to_owned());
        for cluster in clusters {
            mesh.tcp_bases.insert((*cluster).to_owned(), free_port());
            mesh.start_gateway(cluster).await;
        }
        mesh
    }

    pub(crate) async fn start_gateway(&mut self, cluster: &str) {
        let settings = self.settings(cluster);
        std::fs::create_dir_all(&settings.state_dir).unwrap();
        let credential = self.authority.gateway(cluster, "gw-1");
        let gateway = tokio::task::spawn_blocking(move || Gateway::start(settings, credential).unwrap()).await.unwrap();
        self.gateways.insert(cluster.to_owned(), gateway);
    }

    pub(crate) async fn stop_gateway(&mut self, cluster: &str) {
        let gateway = self.gateways.remove(cluster).unwrap();
        tokio::task::spawn_blocking(move || gateway.stop()).await.unwrap();
    }

    pub(crate) fn state_dir(&self, cluster: &str) -> PathBuf {
        self.dir.path().join(cluster)
    }

    fn settings(&self, cluster: &str) -> Settings {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let state_dir = self.state_dir(cluster);
        Settings {
            cluster: cluster.into(),
            name: "gw-1".into(),
            zone: String::new(),
            control_plane: vec![],
            agent: None,
            http: any,
            https: self
                .certificates
                .clone()
                .map(|certificates| archipelago_gateway::Https { address: any, certificates }),
            tunnel: any,
            dns: any,
            health: any,
            metrics: any,
            tcp_base: SocketAddr::new(any.ip(), self.tcp_bases[cluster]),
            admin_socket: state_dir.join("admin.sock"),
            tcp_ports: u16::MAX,
            capture_ports: 1..=u16::MAX,
            capture_from: archipelago_gateway::CaptureFrom::OwnNode,
            access_log: state_dir.join("access.log").to_string_lossy().into_owned(),
            access_log_sample: 1.0,
            telemetry: self.telemetry,
            server_timing: vec!["shop/timed".into()],
            otlp: self.otlp.clone(),
            state_dir,
            peers_per_cluster: 4,
            workers: 2,
            limits: self.limits,
            share: archipelago_gateway::Share {
                connections_max: usize::MAX,
                requests_max: usize::MAX,
                all_connections_max: usize::MAX,
            },
            unbounded_clients: vec![],
        }
    }

    /// Refuses certificates of an identity that were issued before a moment, from the next configuration on.
    pub(crate) fn revoke(&mut self, spiffe_id: &str, issued_before_unix: i64) {
        let subject = Some(proto::revocation::Subject::SpiffeId(spiffe_id.to_owned()));
        self.revoked.push(proto::Revocation { subject, issued_before_unix });
    }

    /// Somebody else with a certificate of the mesh, whose only peer is the first worker of the gateway of `cluster`.
    pub(crate) fn stranger(&self, credential: LiveCredential, cluster: &str) -> (Tunnels, PeerHandle) {
        let local = "127.0.0.1:0".parse().unwrap();
        let config = TunnelConfig::new("stranger", "gw", credential, local);
        let (tunnels, _incoming) = Tunnels::bind(TunnelConfig { detector: patient().detector, ..config }).unwrap();
        let peer = Peer {
            cluster: cluster.to_owned(),
            gateway: "gw-1".to_owned(),
            spiffe_id: SpiffeId::gateway(self.authority.trust_domain(), cluster, "gw-1"),
            addresses: vec![self.gateways[cluster].addresses().tunnel[0].parse().unwrap()],
        };
        let name = peer.name();
        tunnels.set_peers(vec![peer]);
        let handle = tunnels.peer(&name).unwrap();
        (tunnels, handle)
    }

    /// There is a gateway of `cluster` in another process, from the next configuration on.
    pub(crate) fn set_elsewhere(&mut self, cluster: &str, tunnels: Vec<String>) {
        self.elsewhere.insert(cluster.to_owned(), tunnels);
    }

    /// What the gateway of `cluster` is told by the control plane.
    pub(crate) fn resources(&self, cluster: &str, services: &[proto::ServiceConfig]) -> Vec<proto::ConfigResource> {
        let mut resources = vec![resource(
            "mesh",
            Resource::Mesh(proto::MeshConfig { trust_domain: "mesh.test".into(), bundle_der: vec![] }),
        )];
        let mut gateways = self.elsewhere.clone();
        for (other, gateway) in &self.gateways {
            let addresses = self.links.get(other).unwrap_or(&gateway.addresses().tunnel);
            gateways.insert(other.clone(), addresses.clone());
        }
        gateways.entry(cluster.to_owned()).or_default();
        for (other, tunnels) in gateways {
            let config = proto::ClusterConfig { name: other.clone(), region: "eu".into(), drained: false };
            resources.push(resource(&format!("cluster/{other}"), Resource::Cluster(config)));
            if other != cluster {
                let config = proto::PeerConfig {
                    cluster: other.clone(),
                    gateway: "gw-1".into(),
                    spiffe_id: format!("spiffe://mesh.test/cluster/{other}/gateway/gw-1"),
                    tunnel_addresses: tunnels,
                };
                resources.push(resource(&format!("peer/{other}/gw-1"), Resource::Peer(config)));
            }
        }
        for service in services {
            let name = format!("service/{}/{}", service.namespace, service.name);
            resources.push(resource(&name, Resource::Service(service.clone())));
        }
        let revoked = proto::Revocations { revocations: self.revoked.clone() };
        resources.push(resource("revocations", Resource::Revocations(revoked)));
        resources
    }

    /// What the gateway of `cluster` is told by its agent.
    pub(crate) fn local(cluster: &str, endpoints: &[(&str, &str, SocketAddr, &str)]) -> proto::LocalUpdate {
        let mut local: BTreeMap<&str, proto::LocalService> = BTreeMap::new();
        for (service, _, address, version) in endpoints.iter().filter(|e| e.1 == cluster) {
            let entry = local.entry(service).or_insert_with(|| proto::LocalService {
                namespace: "shop".into(),
                name: (*service).into(),
                ..Default::default()
            });
            entry.endpoints.push(proto::Endpoint {
                address: address.to_string(),
                version: (*version).into(),
                instance: "i".into(),
                readiness: proto::Readiness::Ready.into(),
                locality: 0,
            });
        }
        proto::LocalUpdate { full: true, upserts: local.into_values().collect(), ..Default::default() }
    }

    /// Gives every gateway the same services, and each its own endpoints; returns once all workers of all gateways serve it.
    pub(crate) async fn configure(
        &mut self,
        services: Vec<proto::ServiceConfig>,
        endpoints: &[(&str, &str, SocketAddr, &str)],
    ) {
        self.revision += 1;
        self.endpoints_elsewhere.clear();
        for cluster in self.elsewhere.keys() {
            let told = Self::local(cluster, endpoints).upserts;
            self.endpoints_elsewhere.extend(told.into_iter().map(|told| (cluster.clone(), told)));
        }
        for (cluster, gateway) in &self.gateways {
            let resources = self.resources(cluster, &services);
            let local = Self::local(cluster, endpoints);
            apply(gateway, Change::Local(local)).await.unwrap();
            self.sent.insert(cluster.clone(), resources.iter().cloned().map(Into::into).collect());
            apply(gateway, Change::Config(full_update(self.revision, resources))).await.unwrap();
        }
        self.settled().await;
    }

    /// Tells the gateway of `cluster` something more; returns once all workers of all gateways know what follows from it.
    pub(crate) async fn tell(&self, cluster: &str, change: Change) -> Applied {
        let applied = apply(&self.gateways[cluster], change).await.unwrap();
        self.settled().await;
        applied
    }

    /// Waits until every worker of every gateway serves with the newest configuration, has tunnels to all other gateways, and has
    /// heard through them of every endpoint that there is, and of none that there is not.
    ///
    /// Each worker learns it for itself, and the kernel deals connections out among them: that one connection is answered says
    /// nothing about the next.
    pub(crate) async fn settled(&self) {
        let missing = std::cell::RefCell::new(String::new());
        eventually_or("all workers know all endpoints", &missing, async || {
            let found = self.missing().await;
            let is_settled = found.is_none();
            *missing.borrow_mut() = found.unwrap_or_default();
            is_settled
        })
        .await;
    }

    /// What some worker does not know yet.
    async fn missing(&self) -> Option<String> {
        let mut known = BTreeMap::new();
        for (cluster, gateway) in &self.gateways {
            let workers = gateway.workers().knowledge().await;
            if workers.len() != gateway.workers().len() {
                return Some(format!("a worker of {cluster} does not answer"));
            }
            known.insert(cluster.as_str(), workers);
        }
        for (cluster, workers) in &known {
            for worker in workers {
                let who = format!("worker {} of {cluster}", worker.worker);
                if !worker.is_settled {
                    return Some(format!("{who} is not settled: {worker:?}"));
                }
                for heard in &worker.hears {
                    if heard.state != PeerState::Up {
                        return Some(format!("{who}: {} is {}", heard.from, heard.state));
                    }
                    let peer = heard.from.trim_end_matches("/gw-1");
                    match known.get(peer) {
                        Some(others) => {
                            if let Some(other) = others.iter().find(|other| !agree(heard, &other.tells)) {
                                return Some(format!("{who} has heard {heard:?}, but {:?} is so", other.tells));
                            }
                        }
                        None => {
                            let told = self.endpoints_elsewhere.iter().filter(|(cluster, _)| cluster == peer);
                            let is_ready = |told: &proto::LocalService| {
                                let of = heard.services.get(&format!("{}/{}", told.namespace, told.name));
                                let ready: u32 = of.into_iter().flatten().map(|health| health.ready).sum();
                                usize::try_from(ready).unwrap() == told.endpoints.len()
                            };
                            if let Some((_, told)) = told.into_iter().find(|(_, told)| !is_ready(told)) {
                                return Some(format!("{who} has heard {heard:?}, but {told:?} is so"));
                            }
                        }
                    }
                }
            }
        }
        None
    }

    /// A difference to what `cluster`'s gateway was given last.
    pub(crate) fn difference(
        &self,
        cluster: &str,
        revision: u64,
        upserts: Vec<proto::ConfigResource>,
    ) -> proto::ConfigUpdate {
        let base = &self.sent[cluster];
        let mut next = base.clone();
        upserts.iter().cloned().for_each(|resource| next.put(resource.into()));
        proto::ConfigUpdate {
            version: Some(proto::ConfigVersion { revision, ..Default::default() }),
            base_digest: base.digest().to_bytes(),
            digest: next.digest().to_bytes(),
            upserts,
            ..Default::default()
        }
    }

    /// Waits until all is settled and every worker of every gateway would serve `host` from `cluster`.
    pub(crate) async fn serves(&self, host: &str, cluster: &str) {
        self.settled().await;
        let mut query = proto::ExplainQuery { host: host.into(), ..Default::default() };
        query.headers.insert("x-only".into(), cluster.into());
        for (name, gateway) in &self.gateways {
            eventually(&format!("{name} serves {host} from {cluster}"), async || {
                let answers = gateway.workers().explain_each(&query).await;
                answers.len() == gateway.workers().len() && answers.iter().all(|e| e.chosen_cluster == cluster)
            })
            .await;
        }
    }

    pub(crate) fn metrics(&self, cluster: &str) -> SocketAddr {
        self.gateways[cluster].addresses().metrics.parse().unwrap()
    }

    pub(crate) fn http(&self, cluster: &str) -> SocketAddr {
        self.gateways[cluster].http()
    }

    pub(crate) fn https(&self, cluster: &str) -> SocketAddr {
        self.gateways[cluster].https().unwrap()
    }

    pub(crate) fn tcp(&self, cluster: &str, slot: u16) -> SocketAddr {
        SocketAddr::new("127.0.0.1".parse().unwrap(), self.tcp_bases[cluster] + slot)
    }
}

/// Bounds of gateways in tests that are not about the failure detector: all of it shares a processor or two with whatever else runs
/// there, and a thread that is off it for 40 ms is not dead. QUIC's own idle timeout still finds out who is.
pub(crate) fn patient() -> Limits {
    let detector = DetectorConfig {
        suspect_floor: Duration::from_secs(10),
        dead_floor: Duration::from_secs(20),
        ..DetectorConfig::default()
    };
    Limits {
        request_timeout: Duration::from_secs(30),
        drain_timeout: Duration::from_secs(10),
        detector,
        ..Limits::default()
    }
}

/// The same, with another time for clients that take nothing of a response.
pub(crate) fn with_stall(time: Duration) -> Limits {
    let limits = patient();
    Limits { streams: limits.streams.with_download_idle(time), ..limits }
}

/// Whether what was heard of a peer is what its workers tell, as far as the service is known where it was heard.
fn agree(heard: &Heard, tells: &[ServiceHealth]) -> bool {
    let sorted = |health: &[&ServiceHealth]| {
        let mut all: Vec<_> = health.iter().map(|health| (health.version.clone(), health.ready)).collect();
        all.sort();
        all
    };
    heard.services.iter().all(|(service, health)| {
        let told: Vec<_> = tells.iter().filter(|told| told.service == *service).collect();
        sorted(&health.iter().collect::<Vec<_>>()) == sorted(&told)
    })
}

/// Everything at a policy revision, as a member sends it to a gateway of which it knows nothing.
pub(crate) fn full_update(revision: u64, resources: Vec<proto::ConfigResource>) -> proto::ConfigUpdate {
    let held: Resources = resources.iter().cloned().map(Into::into).collect();
    proto::ConfigUpdate {
        version: Some(proto::ConfigVersion { revision, ..Default::default() }),
        full: true,
        digest: held.digest().to_bytes(),
        upserts: resources,
        ..Default::default()
    }
}

/// One change for one gateway, which may be refused. Others have not heard of what follows from it when it returns: [`Mesh::tell`]
/// waits for them.
pub(crate) async fn apply(gateway: &Gateway, change: Change) -> Result<Applied, Refusal> {
    let (applied, outcome) = tokio::sync::oneshot::channel();
    gateway.updates().send(Update { change, applied }).await.unwrap();
    outcome.await.unwrap()
}

fn resource(name: &str, body: Resource) -> proto::ConfigResource {
    proto::ConfigResource { name: name.into(), ..archipelago_model::compile::resource(body) }
}

/// `shop/<name>` exported by `clusters`, split by `weights`, with one rule per cluster for requests that say `x-only: <cluster>`.
pub(crate) fn service(
    name: &str,
    protocol: proto::Protocol,
    clusters: &[&str],
    weights: &[(&str, u32)],
) -> proto::ServiceConfig {
    let backend = |cluster: &str, weight| proto::Backend { cluster: cluster.into(), weight, ..Default::default() };
    let tiers: Vec<_> = clusters.iter().map(|c| proto::Tier { backends: vec![backend(c, 1)] }).collect();
    let only = |cluster: &&str| proto::RouteRule {
        name: format!("only-{cluster}"),
        matches: vec![proto::Match {
            on: Some(On::Header(proto::NamedMatch {
                name: "x-only".into(),
                how: Some(How::Exact((*cluster).to_owned())),
            })),
        }],
        backends: vec![backend(cluster, 1)],
        ..Default::default()
    };
    let last = proto::RouteRule {
        name: "backends".into(),
        backends: weights.iter().map(|(c, w)| backend(c, *w)).collect(),
        chain: Some(0),
        ..Default::default()
    };
    let listener = match protocol {
        proto::Protocol::Tcp => Listener::Tcp(proto::TcpListener::default()),
        _ => Listener::Http(proto::HttpListener::default()),
    };
    proto::ServiceConfig {
        namespace: "shop".into(),
        name: name.into(),
        hosts: vec![format!("{name}.shop"), format!("{name}.shop.svc.clusterset.local")],
        ports: vec![proto::ServicePort {
            port: 80,
            protocol: protocol as i32,
            listener: Some(listener),
            rules: clusters.iter().map(only).chain([last]).collect(),
            chains: vec![proto::FailoverChain { tiers }],
            ..Default::default()
        }],
        exporters: clusters.iter().map(|c| (*c).to_owned()).collect(),
        ..Default::default()
    }
}

/// The TCP service `config` on another port than the first.
pub(crate) fn on_port(mut config: proto::ServiceConfig, port_offset: u32) -> proto::ServiceConfig {
    config.ports[0].listener = Some(Listener::Tcp(proto::TcpListener { port_offset }));
    config
}

/// One request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

pub(crate) async fn get(
    address: SocketAddr,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Response<Incoming>, hyper::Error> {
    send(address, request("GET", host, path, headers, empty())).await
}

pub(crate) fn request(method: &str, host: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body).unwrap()
}

pub(crate) fn empty() -> Body {
    bytes("")
}

pub(crate) fn bytes(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
}

/// What a gateway answers to raw bytes, up to the end of the connection or two silent seconds after its last byte.
pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let patience = |answer: &Vec<u8>| if answer.is_empty() { PATIENCE } else { Duration::from_secs(2) };
    while let Ok(Ok(1..)) = tokio::time::timeout(patience(&answer), stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// paris and tokyo, one HTTP backend each, a split as given.
pub(crate) async fn two_clusters(weights: &[(&str, u32)]) -> (Mesh, [Arc<Seen>; 2]) {
    two_clusters_with(weights, patient()).await
}

pub(crate) async fn two_clusters_with(weights: &[(&str, u32)], limits: Limits) -> (Mesh, [Arc<Seen>; 2]) {
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let (paris, seen_paris) = backend("paris").await;
    let (tokyo, seen_tokyo) = backend("tokyo").await;
    let services = vec![
        service("checkout", proto::Protocol::Http1, &["paris", "tokyo"], weights),
        service("catalog", proto::Protocol::H2c, &["tokyo"], &[]),
    ];
    mesh.configure(
        services,
        &[("checkout", "paris", paris, "v1"), ("checkout", "tokyo", tokyo, "v2"), ("catalog", "tokyo", tokyo, "v1")],
    )
    .await;
    mesh.serves("checkout.shop", "paris").await;
    mesh.serves("checkout.shop", "tokyo").await;
    mesh.serves("catalog.shop", "tokyo").await;
    (mesh, [seen_paris, seen_tokyo])
}

/// What a gateway says on its admin socket, once it has one.
pub(crate) async fn admin(state_dir: &Path, method: &str, target: &str, body: &str) -> Option<String> {
    let mut stream = UnixStream::connect(state_dir.join("admin.sock")).await.ok()?;
    let length = body.len();
    let head =
        format!("{method} {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

/// Waits for a condition with a deadline.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_or(what, &std::cell::RefCell::default(), condition).await;
}

/// The same, and says `why` when it is too late.
async fn eventually_or(what: &str, why: &std::cell::RefCell<String>, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what} {}", why.borrow());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ten ports below the range from which the kernel hands out ports: nobody else who asks here gets one of them as long as this process
/// lives, whatever it opens and closes.
pub(crate) fn free_port() -> u16 {
    static HELD: Mutex<Vec<std::net::TcpListener>> = Mutex::new(Vec::new());
    let mut held = HELD.lock().unwrap();
    let listen = |port| std::net::TcpListener::bind(("127.0.0.1", port));
    // Processes of one user begin at places of their own: who comes second to a block only tries once more.
    let (blocks, first) = (PORTS.len() / 10, std::process::id() as usize * 7);
    for block in (0..blocks).map(|n| (first + n) % blocks) {
        let base = PORTS.start + u16::try_from(block).unwrap() * 10;
        // Whoever holds the last has all of them.
        let Ok(last) = listen(base + 9) else { continue };
        if (base..base + 9).all(|port| listen(port).is_ok()) {
            held.push(last);
            return base;
        }
    }
    panic!("no ten free ports in a row in {PORTS:?}");
}

/// Nothing on a working machine takes as long; what waits on a starved one is not wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tests of other crates take theirs above and below.
const PORTS: std::ops::Range<u16> = 20_000..26_000;
