//! Gateways in this process, with real certificates, sockets, tunnels and backends.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use archipelago_gateway::Limits;
use archipelago_gateway::internals::{Applied, Change, Update};
use archipelago_gateway::{Gateway, Settings};
use archipelago_identity::testing::TestAuthority;
use archipelago_identity::{LiveCredential, SpiffeId};
use archipelago_model::stream::{Refusal, Resources};
use archipelago_proto::v1::{
    self as proto, config_resource::Body as Resource, r#match::On, named_match::How, service_port::Listener,
};
use archipelago_tunnel::{Peer, PeerHandle, TunnelConfig, Tunnels};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One gateway per cluster.
pub(crate) struct Mesh {
    pub(crate) authority: TestAuthority,
    dir: tempfile::TempDir,
    pub(crate) gateways: BTreeMap<String, Gateway>,
    tcp_bases: BTreeMap<String, u16>,
    limits: Limits,
    revoked: Vec<proto::Revocation>,
    revision: u64,
    /// Gateways in other processes, by cluster, with their tunnels.
    elsewhere: BTreeMap<String, Vec<String>>,
    /// What each cluster's gateway was given last.
    sent: BTreeMap<String, Resources>,
}

impl Mesh {
    pub(crate) async fn start(clusters: &[&str]) -> Self {
        let limits = Limits {
            request_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(3),
            ..Limits::default()
        };
        Self::start_with(clusters, limits).await
    }

    pub(crate) async fn start_with(clusters: &[&str], limits: Limits) -> Self {
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
            revoked: vec![],
            revision: 0,
            elsewhere: BTreeMap::new(),
            sent: BTreeMap::new(),
        };
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
        let (tunnels, _incoming) = Tunnels::bind(TunnelConfig::new("stranger", "gw", credential, local)).unwrap();
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
            gateways.insert(other.clone(), gateway.addresses().tunnel.clone());
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
        for (cluster, gateway) in &self.gateways {
            let resources = self.resources(cluster, &services);
            let local = Self::local(cluster, endpoints);
            apply(gateway, Change::Local(local)).await.unwrap();
            self.sent.insert(cluster.clone(), resources.iter().cloned().map(Into::into).collect());
            apply(gateway, Change::Config(full_update(self.revision, resources))).await.unwrap();
        }
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

    /// Waits until every gateway's tunnels to all others are up, and it would serve `host` from `cluster`.
    pub(crate) async fn serves(&self, host: &str, cluster: &str) {
        for (name, gateway) in &self.gateways {
            eventually(&format!("{name} serves {host} from {cluster}"), async || {
                let mut query = proto::ExplainQuery { host: host.into(), ..Default::default() };
                query.headers.insert("x-only".into(), cluster.into());
                gateway.workers().explain(query).await.is_some_and(|e| e.chosen_cluster == cluster)
                    && gateway.workers().reports().await.iter().all(|r| r.tunnels.iter().all(|t| t.state == "up"))
            })
            .await;
        }
        // The first worker explains; the others learn of health on their own tunnels.
        for gateway in self.gateways.values() {
            for _ in 0..8 {
                eventually("all workers serve", async || {
                    get(gateway.http(), host, "/", &[("x-only", cluster)]).await.is_ok_and(|r| r.status() == 200)
                })
                .await;
            }
        }
    }

    pub(crate) fn metrics(&self, cluster: &str) -> SocketAddr {
        self.gateways[cluster].addresses().metrics.parse().unwrap()
    }

    pub(crate) fn http(&self, cluster: &str) -> SocketAddr {
        self.gateways[cluster].http()
    }

    pub(crate) fn tcp(&self, cluster: &str, slot: u16) -> SocketAddr {
        SocketAddr::new("127.0.0.1".parse().unwrap(), self.tcp_bases[cluster] + slot)
    }
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

/// What a backend saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    pub(crate) cancelled: AtomicUsize,
}

/// An HTTP backend, HTTP/1.1 and HTTP/2.
pub(crate) async fn backend(cluster: &'static str) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let counters = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            let seen = Arc::clone(&counters);
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(cluster, Arc::clone(&seen), request));
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, seen)
}

async fn answer(
    cluster: &'static str,
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let response = match (parts.next(), parts.next()) {
        (Some("headers"), _) => full(format!("{:?}", request.headers())),
        (Some("seen-trailers"), _) => {
            let collected = request.into_body().collect().await.map_err(std::io::Error::other)?;
            full(format!("{:?}", collected.trailers()))
        }
        (Some("echo"), _) => Response::new(request.into_body().map_err(std::io::Error::other).boxed_unsync()),
        (Some("count"), _) => {
            let mut bytes = 0;
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                bytes += frame.map_err(std::io::Error::other)?.data_ref().map_or(0, Bytes::len);
            }
            full(bytes.to_string())
        }
        (Some("bytes"), Some(n)) => {
            let n: usize = n.parse().unwrap();
            let chunk = Bytes::from(vec![b'x'; 16 * 1024]);
            let chunks = (0..n.div_ceil(chunk.len()))
                .map(move |i| Ok(Frame::data(chunk.slice(..chunk.len().min(n - i * chunk.len())))));
            Response::new(StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync())
        }
        (Some("delay"), Some(ms)) => {
            let guard = Waiting::new(&seen);
            tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
            guard.done();
            full(cluster)
        }
        (Some("trailers"), _) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("abc"));
            trailers.insert("mesh-source", HeaderValue::from_static("forged"));
            let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
            response
        }
        (Some("status"), Some(code)) => {
            let mut response = full(code.to_owned());
            *response.status_mut() = code.parse::<StatusCode>().unwrap();
            response
        }
        (Some("break"), _) => {
            let frames =
                [Ok(Frame::data(Bytes::from_static(b"half"))), Err(std::io::Error::other("broken on purpose"))];
            Response::new(
                StreamBody::new(futures_util::stream::iter(frames).then(|f| async {
                    tokio::task::yield_now().await;
                    f
                }))
                .boxed_unsync(),
            )
        }
        _ => full(cluster),
    };
    Ok(response)
}

fn full(text: impl Into<String>) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text.into())).map_err(|never| match never {}).boxed_unsync())
}

struct Waiting(Arc<Seen>, bool);

impl Waiting {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.waiting.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen), false)
    }

    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A TCP backend: reads to the end, then answers with what it read, and closes.
pub(crate) async fn tcp_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() {
                    let _ = stream.write_all(format!("read {} bytes", all.len()).as_bytes()).await;
                }
            });
        }
    });
    address
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

/// What a gateway answers to raw bytes, up to the end of the connection or two silent seconds.
pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(2), stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits for a condition with a deadline.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port below the range from which the kernel hands out ports, with free ones after it.
pub(crate) fn free_port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 1_000).unwrap() * 10;
    loop {
        let base = first + NEXT.fetch_add(1, Ordering::SeqCst) * 10 % 2_000;
        if (base..base + 10).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}
