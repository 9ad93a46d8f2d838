//! Services with several ports, and clients that come by ports of the gateway instead of host names.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;

use archipelago_gateway::internals::Change;
use archipelago_proto::v1::{self as proto, Protocol};
use http::StatusCode;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use harness::{Mesh, backend, empty, eventually, get, on_port, request, service, tcp_backend, text};

/// `shop/checkout` of tokyo: HTTP on 80 and 8080, bytes on 5432.
fn checkout() -> proto::ServiceConfig {
    let mut checkout = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    let mut admin = checkout.ports[0].clone();
    (admin.port, admin.name) = (8080, "admin".into());
    let mut bytes = on_port(service("checkout", Protocol::Tcp, &["tokyo"], &[]), 1).ports.remove(0);
    (bytes.port, bytes.name) = (5432, "db".into());
    checkout.ports.extend([admin, bytes]);
    checkout
}

/// A service that this gateway cannot run.
fn newer() -> proto::ServiceConfig {
    let mut newer = service("newer", Protocol::Http1, &["tokyo"], &[]);
    newer.backend_settings = Some(proto::BackendSettings { requests_max: Some(1), ..Default::default() });
    newer
}

/// What tokyo's agent says of it.
fn endpoints(ports: &[(u32, SocketAddr)]) -> proto::LocalUpdate {
    let port = |(port, address): &(u32, SocketAddr)| proto::LocalPort {
        port: *port,
        endpoints: vec![proto::Endpoint {
            address: address.to_string(),
            readiness: proto::Readiness::Ready.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let checkout = proto::LocalService {
        namespace: "shop".into(),
        name: "checkout".into(),
        ports: ports.iter().map(port).collect(),
        ..Default::default()
    };
    proto::LocalUpdate { full: true, upserts: vec![checkout], ..Default::default() }
}

async fn federation() -> Mesh {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (shop, _) = backend("tokyo").await;
    let (admin, _) = backend("tokyo-admin").await;
    let bytes = tcp_backend().await;
    let catalog = service("catalog", Protocol::Http1, &["paris"], &[("paris", 1)]);
    let (paris, _) = backend("paris").await;
    mesh.configure(vec![checkout(), catalog, newer()], &[("catalog", "paris", paris, "")]).await;
    let local = endpoints(&[(80, shop), (8080, admin), (5432, bytes)]);
    mesh.tell("tokyo", Change::Local(local)).await;
    mesh
}

/// What `address` answers to a request for `host`: status and body.
async fn ask(address: SocketAddr, host: &str) -> (StatusCode, String) {
    match get(address, host, "/", &[]).await {
        Ok(response) => (response.status(), text(response).await),
        Err(error) => (StatusCode::IM_A_TEAPOT, error.to_string()),
    }
}

async fn answers(address: SocketAddr, host: &str, status: u16, body: &str) {
    eventually(&format!("{host} at {address} answers {status} {body}"), async || {
        let (got, text) = ask(address, host).await;
        got == status && text.trim_end() == body
    })
    .await;
}

/// Sends three bytes and ends; what comes back until the end.
async fn talk(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"abc").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn each_port_of_a_service_goes_to_its_own_endpoints_in_another_cluster() {
    let mesh = federation().await;
    for entry in [mesh.http("paris"), mesh.http("tokyo")] {
        answers(entry, "checkout.shop", 200, "tokyo").await;
        answers(entry, "checkout.shop:8080", 200, "tokyo-admin").await;
        answers(entry, "checkout.shop:80", 200, "tokyo").await;
        let (status, body) = ask(entry, "checkout.shop:5432").await;
        assert_eq!((status.as_u16(), body.as_str()), (404, "this service is TCP; it has a port of its own\n"));
        assert_eq!(ask(entry, "checkout.shop").await.1, "tokyo", "not the port that was asked for before");
    }
    for entry in ["paris", "tokyo"] {
        let address = mesh.tcp(entry, 1);
        eventually("bytes", async || talk(address).await.is_ok_and(|answer| answer == "read 3 bytes")).await;
    }
}

fn captures(list: &[(&str, u32, Protocol, SocketAddr)]) -> Change {
    let capture = |(name, port, protocol, at): &(&str, u32, Protocol, SocketAddr)| proto::Capture {
        namespace: "shop".into(),
        name: (*name).into(),
        port: *port,
        protocol: (*protocol).into(),
        listen: at.port().into(),
        cluster_ips: vec!["10.96.0.7".into()],
        ..Default::default()
    };
    let captures = Some(proto::Captures { captures: list.iter().map(capture).collect() });
    Change::Local(proto::LocalUpdate { captures, ..Default::default() })
}

#[tokio::test]
async fn the_port_says_which_service_is_meant_whatever_the_request_says() {
    let mut mesh = federation().await;
    let at = [2, 3, 4, 5, 6, 7].map(|slot| mesh.tcp("paris", slot));
    let [shop, admin, bytes, ghost, ghost_bytes, closed] = at;
    let http = Protocol::Http1;
    let all = [
        ("checkout", 80, http, shop),
        // What the federation says counts: it is HTTP.
        ("checkout", 8080, Protocol::Tcp, admin),
        ("checkout", 5432, Protocol::Tcp, bytes),
        ("ghost", 80, http, ghost),
        ("ghost", 5432, Protocol::Tcp, ghost_bytes),
        ("newer", 80, http, closed),
    ];
    mesh.tell("paris", captures(&all)).await;
    for host in ["checkout.shop.svc.cluster.local", "catalog.shop", "10.96.0.7", "checkout.shop:8080"] {
        answers(shop, host, 200, "tokyo").await;
        assert_eq!(ask(shop, host).await.1, "tokyo", "{host}");
    }
    answers(admin, "catalog.shop", 200, "tokyo-admin").await;
    eventually("bytes", async || talk(bytes).await.is_ok_and(|answer| answer == "read 3 bytes")).await;
    answers(ghost, "checkout.shop", 503, "no cluster exports this port of this service, as far as this gateway knows")
        .await;
    answers(closed, "checkout.shop", 503, "this gateway cannot run the configuration of this service").await;
    let reset = async { TcpStream::connect(ghost_bytes).await?.read_u8().await };
    assert_eq!(reset.await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // By host name it goes as ever; ports of TCP services are not for clients who come by captures.
    answers(mesh.http("paris"), "catalog.shop", 200, "paris").await;
    eventually("the slot of the TCP service is closed", async || talk(mesh.tcp("paris", 1)).await.is_err()).await;

    // Another service behind the same port: who is connected stays where he is.
    let stream = TcpStream::connect(shop).await.unwrap();
    let (mut kept, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let again = async |kept: &mut http1::SendRequest<harness::Body>| {
        kept.ready().await.unwrap();
        text(kept.send_request(request("GET", "a", "/", &[], empty())).await.unwrap()).await
    };
    assert_eq!(again(&mut kept).await, "tokyo");
    mesh.tell("paris", captures(&[("catalog", 80, http, shop)])).await;
    answers(shop, "checkout.shop", 200, "paris").await;
    assert_eq!(again(&mut kept).await, "tokyo");
    drop(kept);
    eventually("ports that are for nothing any more are closed", async || TcpStream::connect(bytes).await.is_err())
        .await;

    // It boots with them, before anybody has said anything.
    mesh.stop_gateway("paris").await;
    mesh.start_gateway("paris").await;
    eventually("the port is open again", async || TcpStream::connect(shop).await.is_ok()).await;
    answers(shop, "checkout.shop", 200, "paris").await;
}
