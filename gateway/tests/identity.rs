//! Who a client is, from its pod's address to the backend in another cluster.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use archipelago_gateway::internals::Change;
use archipelago_proto::v1::{self as proto, Protocol};
use archipelago_tunnel::PeerState;
use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use harness::{Body, Mesh, backend, empty, eventually, get, on_port, request, service, tcp_backend, text};

const CHECKOUT: &str = "checkout.shop";
const WEB: &str = "spiffe://mesh.test/cluster/paris/ns/shop/sa/web";

/// An address of this machine that stands for a pod's: whoever comes from 127.0.0.1 is the node itself. `None`, loudly, where there is
/// no other.
fn pod_address() -> Option<IpAddr> {
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|address| address.ip());
    let own = own.ok().filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    if own.is_none() {
        eprintln!("SKIPPED: this machine has no address but 127.0.0.1, so that nobody can be told from the node");
    }
    own
}

async fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// paris and tokyo, each with a backend that shows what it was sent; paris knows who has `ip`.
async fn federation() -> Mesh {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (paris, _) = backend("paris").await;
    let (tokyo, _) = backend("tokyo").await;
    let ledger = tcp_backend().await;
    let services = vec![
        service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("paris", 1)]),
        on_port(service("ledger", Protocol::Tcp, &["tokyo"], &[]), 1),
    ];
    let endpoints =
        [("checkout", "paris", paris, ""), ("checkout", "tokyo", tokyo, ""), ("ledger", "tokyo", ledger, "")];
    mesh.configure(services, &endpoints).await;
    mesh.serves(CHECKOUT, "paris").await;
    mesh.serves(CHECKOUT, "tokyo").await;
    mesh
}

/// What paris's agent says of the node.
async fn owns(mesh: &Mesh, ip: IpAddr, service_account: &str, uid: &str, fresh: bool) {
    let workload = proto::Workload {
        ip: ip.to_string(),
        namespace: "shop".into(),
        service_account: service_account.into(),
        pod_uid: uid.into(),
    };
    let workloads = Some(proto::Workloads { fresh, workloads: vec![workload], ..Default::default() });
    let update = proto::LocalUpdate { workloads, ..Default::default() };
    mesh.tell("paris", Change::Local(update)).await;
}

/// A question for what the backend of `cluster` is sent, with lies about who asks.
fn question(cluster: &str) -> hyper::Request<Body> {
    let lies = [
        ("x-only", cluster),
        ("x-forwarded-client-cert", "URI=spiffe://forged"),
        ("x_forwarded_client_cert", "URI=spiffe://forged"),
        ("mesh-source", "spiffe://forged"),
    ];
    request("GET", CHECKOUT, "/headers", &lies, empty())
}

struct Client(http1::SendRequest<Body>);

impl Client {
    async fn new(from: IpAddr, to: SocketAddr) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(connect(from, to).await.unwrap())).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, cluster: &str) -> String {
        self.0.ready().await.unwrap();
        let seen = text(self.0.send_request(question(cluster)).await.unwrap()).await;
        assert!(!seen.contains("forged"), "{seen}");
        seen
    }
}

fn is_known_as(seen: &str, id: &str) -> bool {
    seen.contains(&format!("\"x-forwarded-client-cert\": \"URI={id}\""))
        && seen.contains(&format!("\"mesh-source\": \"{id}\""))
}

fn is_unknown(seen: &str) -> bool {
    !seen.contains("forwarded-client-cert") && seen.contains("/cluster/paris/gateway/gw-1\"")
}

#[tokio::test]
async fn a_workload_is_known_to_backends_here_and_elsewhere() {
    let Some(ip) = pod_address() else { return };
    let mesh = federation().await;
    let entry = mesh.http("paris");
    let mut early = Client::new(ip, entry).await;
    assert!(is_unknown(&early.ask("paris").await), "nobody has said whose it is");
    owns(&mesh, ip, "web", "pod-a", true).await;
    for cluster in ["paris", "tokyo"] {
        let seen = Client::new(ip, entry).await.ask(cluster).await;
        assert!(is_known_as(&seen, WEB), "{cluster}: {seen}");
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(connect(ip, entry).await.unwrap())).await.unwrap();
        tokio::spawn(connection);
        let (mut parts, body) = question(cluster).into_parts();
        parts.uri = format!("http://{CHECKOUT}/headers").parse().unwrap();
        parts.headers.remove("host");
        let seen = text(sender.send_request(hyper::Request::from_parts(parts, body)).await.unwrap()).await;
        assert!(is_known_as(&seen, WEB) && !seen.contains("forged"), "HTTP/2, {cluster}: {seen}");
        let seen = text(get(entry, CHECKOUT, "/headers", &[("x-only", cluster)]).await.unwrap()).await;
        assert!(is_unknown(&seen), "a process of the node: {seen}");
        assert!(is_unknown(&early.ask(cluster).await), "whose connection it was when it began nobody can say");
    }
    // Bytes carry it to the other gateway and no further: the backend counts what it gets. Where pods are known, TCP services have
    // ports that the agent chose.
    let ledger = proto::Capture {
        namespace: "shop".into(),
        name: "ledger".into(),
        port: 80,
        protocol: Protocol::Tcp.into(),
        listen: mesh.tcp("paris", 1).port().into(),
        ..Default::default()
    };
    let captures = Some(proto::Captures { captures: vec![ledger] });
    mesh.tell("paris", Change::Local(proto::LocalUpdate { captures, ..Default::default() })).await;
    eventually("bytes", async || {
        let talked = async {
            // The port is opened a moment after the configuration is there.
            let mut stream = connect(ip, mesh.tcp("paris", 1)).await?;
            stream.write_all(b"abc").await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        talked.await.is_ok_and(|answer| answer == "read 3 bytes")
    })
    .await;
    for cluster in ["paris", "tokyo"] {
        let log = mesh.state_dir(cluster).join("access.log");
        eventually("the access logs of both name it", async || {
            std::fs::read_to_string(&log).unwrap().contains(&format!("\"source\":\"{WEB}\""))
        })
        .await;
    }
}

#[tokio::test]
async fn an_address_that_changes_hands_takes_no_name_along() {
    let Some(ip) = pod_address() else { return };
    let mesh = federation().await;
    let entry = mesh.http("paris");
    owns(&mesh, ip, "web", "pod-a", true).await;
    let (mut open, mut idle) = (Client::new(ip, entry).await, Client::new(ip, entry).await);
    assert!(is_known_as(&open.ask("tokyo").await, WEB));
    assert!(is_known_as(&idle.ask("tokyo").await, WEB));

    owns(&mesh, ip, "admin", "pod-b", true).await;
    let seen = Client::new(ip, entry).await.ask("tokyo").await;
    assert!(is_known_as(&seen, "spiffe://mesh.test/cluster/paris/ns/shop/sa/admin"), "{seen}");
    // Workers look at each picture a moment after it is there.
    let asking = tokio::sync::Mutex::new(&mut open);
    eventually("the open connection is nobody's", async || is_unknown(&asking.lock().await.ask("tokyo").await)).await;
    for _ in 0..20 {
        assert!(is_unknown(&open.ask("tokyo").await));
    }
    // The agent does not know its cluster any more.
    let mut admin = Client::new(ip, entry).await;
    owns(&mesh, ip, "admin", "pod-b", false).await;
    assert!(is_unknown(&Client::new(ip, entry).await.ask("tokyo").await));
    let asking = tokio::sync::Mutex::new(&mut admin);
    eventually("nobody vouches for anybody", async || is_unknown(&asking.lock().await.ask("tokyo").await)).await;
    assert!(is_unknown(&idle.ask("tokyo").await), "it slept through all of this");
}

#[tokio::test]
async fn a_gateway_speaks_for_workloads_of_its_own_cluster_only() {
    let mesh = federation().await;
    let (_tunnels, tokyo) = mesh.stranger(mesh.authority.gateway("paris", "gw-9"), "tokyo");
    eventually("the tunnel is up", async || tokyo.state() == PeerState::Up).await;
    let ask = async |sources: &[&str]| {
        let mut request =
            request("GET", CHECKOUT, "/headers", &[("mesh-service", "shop/checkout"), ("mesh-hop", "1")], empty());
        *request.uri_mut() = format!("http://{CHECKOUT}/headers").parse().unwrap();
        request.headers_mut().remove("host");
        request.headers_mut().insert("x-forwarded-client-cert", "URI=spiffe://forged".parse().unwrap());
        for source in sources {
            request.headers_mut().append("mesh-source", source.parse().unwrap());
        }
        let response = tokyo.request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
    };
    let seen = ask(&[WEB]).await;
    assert!(is_known_as(&seen, WEB) && !seen.contains("forged"), "{seen}");
    for bad in [
        &[][..],
        &["spiffe://mesh.test/cluster/tokyo/ns/shop/sa/web"],
        &["spiffe://other.test/cluster/paris/ns/shop/sa/web"],
        &["spiffe://mesh.test/cluster/tokyo/gateway/gw-1"],
        &["spiffe://mesh.test/cluster/paris/ns/shop/sa/web;By=spiffe://forged"],
        &[WEB, "spiffe://mesh.test/cluster/paris/ns/shop/sa/admin"],
    ] {
        let seen = ask(bad).await;
        let is_nobody = !seen.contains("forwarded-client-cert") && seen.contains("/cluster/paris/gateway/gw-9\"");
        assert!(is_nobody && !seen.contains("/ns/"), "{bad:?}: {seen}");
    }
}
