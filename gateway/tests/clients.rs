//! What one client may take of a gateway, and what becomes of the others: a gateway as a process of its own, with the descriptors
//! that it is given.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use archipelago_gateway::internals::{ConfigState, Store};
use archipelago_identity::CredentialDir;
use archipelago_model::version::Version;
use archipelago_proto::v1::Protocol;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use harness::{Mesh, empty, eventually, free_port, raw, request, service};

const HOST: &str = "checkout.shop";

/// A gateway in a process, which serves one service from one endpoint.
struct Process {
    child: Child,
    http: SocketAddr,
    metrics: SocketAddr,
    _dir: tempfile::TempDir,
    _mesh: Mesh,
}

impl Process {
    /// With so many descriptors, and these flags.
    async fn start(endpoint: SocketAddr, descriptors: usize, flags: &[&str]) -> Self {
        let mut mesh = Mesh::start(&[]).await;
        mesh.set_elsewhere("paris", vec![]);
        let dir = tempfile::tempdir().unwrap();
        let credential = mesh.authority.gateway("paris", "gw-1").current();
        CredentialDir::new(dir.path().join("identity")).store(&credential).unwrap();
        let config = service("checkout", Protocol::Http1, &["paris"], &[]);
        let resources = mesh.resources("paris", &[config]);
        let known = ConfigState::new(Version { revision: 1, ..Version::default() }, resources)
            .with_local(Mesh::local("paris", &[("checkout", "paris", endpoint, "")]));
        Store::new(dir.path(), "paris", "gw-1").save(&known).unwrap();
        let port = free_port();
        let at = |offset: u16| SocketAddr::from(([127, 0, 0, 1], port + offset));
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_archipelago-gateway"));
        command.args(["--cluster", "paris", "--name", "gw-1", "--workers", "2"]).args(flags);
        command.arg("--state-dir").arg(dir.path());
        let addresses =
            [("--http", 0), ("--dns", 1), ("--health", 2), ("--metrics", 3), ("--tcp-base", 4), ("--tunnel", 6)];
        for (flag, offset) in addresses {
            command.arg(flag).arg(at(offset).to_string());
        }
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let process = Self { child, http: at(0), metrics: at(3), _dir: dir, _mesh: mesh };
        eventually("it serves", async || process.asks(LATER, "/").await.contains("200 OK")).await;
        process
    }

    /// A connection from an address of this machine.
    async fn connect(&self, from: Ipv4Addr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        socket.connect(self.http).await
    }

    /// What a client at `from` is answered, on a connection of its own; empty if there is nothing.
    async fn asks(&self, from: Ipv4Addr, path: &str) -> String {
        let mut answer = Vec::new();
        if let Ok(mut stream) = self.connect(from).await {
            let asked = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(asked.as_bytes()).await;
            let _ = stream.read_to_end(&mut answer).await;
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn metric(&self, name: &str) -> i64 {
        let text = raw(self.metrics, b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An endpoint that answers at once, but for `/held`, which it answers when it is told. Returns how many of those it has.
async fn endpoint() -> (SocketAddr, Arc<AtomicUsize>, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let held = Arc::new(AtomicUsize::new(0));
    let release = watch::Sender::new(false);
    let (count, released) = (Arc::clone(&held), release.subscribe());
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (count, released) = (Arc::clone(&count), released.clone());
            tokio::spawn(async move {
                let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (count, mut released) = (Arc::clone(&count), released.clone());
                    async move {
                        if request.uri().path() == "/held" {
                            count.fetch_add(1, Ordering::SeqCst);
                            let _ = released.wait_for(|released| *released).await;
                        }
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from("served"))))
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (address, held, release)
}

const GREEDY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const LATER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 7, 0, 1);

#[tokio::test]
async fn a_client_that_has_its_share_is_told_so_and_others_are_served() {
    let (address, held, release) = endpoint().await;
    let flags = ["--client-connections-max", "16", "--client-requests-max", "4", "--unbounded-clients", "127.7.0.0/16"];
    let process = Process::start(address, 1_024, &flags).await;

    // Connections: whoever has sixteen that say nothing is told so at the next one.
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(process.connect(GREEDY).await.unwrap());
    }
    eventually("there are too many", async || {
        // Of the sixteen one may have been refused: workers accept in no order, and the asking one was there, too.
        silent.push(process.connect(GREEDY).await.unwrap());
        let answer = process.asks(GREEDY, "/").await;
        answer.starts_with("HTTP/1.1 429 ") && answer.contains("mesh-failure: client-limit")
    })
    .await;
    for _ in 0..32 {
        assert!(process.asks(LATER, "/").await.contains("200 OK"));
    }
    assert!(process.metric("mesh_gateway_clients_refused_total{what=\"connection\"}").await > 0);
    drop(silent);
    eventually("its connections count no more", async || process.asks(GREEDY, "/").await.contains("200 OK")).await;

    // Requests: the same on one connection of HTTP/2, and on several of HTTP/1.1.
    let stream = process.connect(GREEDY).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| {
        let mut sender = sender.clone();
        let asked = request("GET", HOST, &format!("http://{HOST}{path}"), &[], empty());
        async move { sender.send_request(asked).await.unwrap() }
    };
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(ask("/held"))).collect();
    eventually("four are under way", async || held.load(Ordering::SeqCst) == 4).await;
    let refused = ask("/").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["mesh-failure"]),
        (429, &"client-limit".parse().unwrap())
    );
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "this client address has as many requests under way as it may\n");
    assert!(process.asks(GREEDY, "/").await.starts_with("HTTP/1.1 429 "));
    assert!(process.asks(LATER, "/").await.contains("200 OK"));
    assert!(process.metric("mesh_gateway_clients_refused_total{what=\"request\"}").await >= 2);
    // Whoever stands for many clients is not counted.
    let many = (0..32).map(|_| process.connect(BALANCER));
    let many = futures_util::future::join_all(many).await;
    assert!(many.iter().all(Result::is_ok));
    assert!(process.asks(BALANCER, "/").await.contains("200 OK"));
    release.send_replace(true);
    for answered in waiting {
        assert_eq!(answered.await.unwrap().status(), 200);
    }
    eventually("its requests count no more", async || process.asks(GREEDY, "/").await.contains("200 OK")).await;
}

/// 1,024 descriptors and 1,000 clients that connect and say nothing: they take their share, and none that a connection to an endpoint
/// would need.
#[tokio::test]
async fn silent_clients_do_not_take_what_others_need() {
    let (address, ..) = endpoint().await;
    let process = Process::start(address, 1_024, &[]).await;
    // All from one address: half of the connections is all that it gets.
    let silent = futures_util::future::join_all((0..1_000).map(|_| process.connect(GREEDY))).await;
    for _ in 0..100 {
        assert!(process.asks(LATER, "/").await.contains("200 OK"));
    }
    drop(silent);
    // From a thousand addresses: all connections are theirs, until they go.
    let crowd = (0..1_000_u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        process.connect(Ipv4Addr::new(127, 1, high, low.max(1)))
    });
    let crowd = futures_util::future::join_all(crowd).await;
    eventually("everybody else is told that there are too many", async || {
        process.asks(LATER, "/").await.contains("mesh-failure: overloaded")
    })
    .await;
    drop(crowd);
    for _ in 0..16 {
        eventually("all is well again", async || process.asks(LATER, "/").await.contains("200 OK")).await;
    }
    // The endpoint had nothing to do with it.
    assert_eq!(process.metric("mesh_gateway_endpoints_unreachable").await, 0);
    assert_eq!(process.metric("mesh_gateway_replays_total{purpose=\"failover\",reason=\"local_shortage\"}").await, 0);
}
