//! TCP services: their ports, their connections, and what ends them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::time::Duration;

use archipelago_gateway::Limits;
use archipelago_gateway::internals::Change;
use archipelago_proto::v1::{self as proto, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use harness::{Mesh, admin, apply, eventually, on_port, patient, service, tcp_backend};

/// Connects to a TCP service and says one word, which its backend keeps.
async fn talk(address: std::net::SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"hello").await?;
    Ok(stream)
}

#[tokio::test]
async fn a_removed_tcp_service_ends_its_connections_after_a_grace() {
    let limits = Limits { tcp_grace: Duration::from_millis(300), drain_timeout: Duration::from_secs(1), ..patient() };
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let ledger = tcp_backend().await;
    let orders = tcp_backend().await;
    let tcp = |name: &str, offset| on_port(service(name, Protocol::Tcp, &["tokyo"], &[]), offset);
    let endpoints = [("ledger", "tokyo", ledger, ""), ("orders", "tokyo", orders, "")];
    mesh.configure(vec![tcp("ledger", 1), tcp("orders", 2)], &endpoints).await;
    // All three are through before the configuration changes; anew when a starved machine broke a tunnel under one of them.
    let three = tokio::sync::Mutex::new(None);
    eventually("three connections are open", async || {
        let mut three = three.lock().await;
        let (Ok(near), Ok(far), Ok(kept)) =
            tokio::join!(talk(mesh.tcp("tokyo", 1)), talk(mesh.tcp("paris", 1)), talk(mesh.tcp("paris", 2)))
        else {
            return false;
        };
        *three = Some((near, far, kept));
        let are_open = async {
            loop {
                let mut open = 0;
                for gateway in mesh.gateways.values() {
                    open +=
                        gateway.workers().reports().await.iter().map(|report| report.tcp_connections).sum::<usize>();
                }
                // Each of the two from paris counts at both gateways.
                if open == 5 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3), are_open).await.is_ok()
    })
    .await;
    let (mut near, mut far, mut kept) = three.into_inner().unwrap();
    mesh.configure(vec![tcp("orders", 2)], &endpoints[1..]).await;
    for (what, stream) in [("at the gateway of its cluster", &mut near), ("through a tunnel", &mut far)] {
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await;
        let error = ended.unwrap_or_else(|_| panic!("{what}: lives on")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}");
    }
    kept.shutdown().await.unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "read 5 bytes");
}

#[tokio::test]
async fn a_port_that_is_taken_is_never_shared() {
    let mut mesh = Mesh::start(&["paris"]).await;
    let address = mesh.tcp("paris", 1);
    // Another process of the same user, which shares where it can.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(16).unwrap();
    let ledger = tcp_backend().await;
    let config = on_port(service("ledger", Protocol::Tcp, &["paris"], &[]), 1);
    mesh.configure(vec![config], &[("ledger", "paris", ledger, "")]).await;
    let state = async || admin(&mesh.state_dir("paris"), "GET", "/state", "").await.unwrap();
    let taken = state().await;
    assert!(taken.contains(&format!("port {} is taken; shop/ledger is not served here", address.port())), "{taken}");
    drop(socket);
    eventually("the port is ours", async || talk(address).await.is_ok()).await;
    eventually("it is served", async || state().await.contains("\"unserved\":[]")).await;
}

#[tokio::test]
async fn tcp_with_half_close() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let ledger = tcp_backend().await;
    let config = on_port(service("ledger", Protocol::Tcp, &["tokyo"], &[]), 1);
    mesh.configure(vec![config], &[("ledger", "tokyo", ledger, "")]).await;
    for entry in ["tokyo", "paris"] {
        let port = mesh.tcp(entry, 1);
        let answer = std::cell::RefCell::new(String::new());
        eventually(&format!("ledger through {entry}"), async || {
            let Ok(mut stream) = TcpStream::connect(port).await else { return false };
            let sent = async {
                stream.write_all(&vec![1; 3_000_000]).await?;
                stream.shutdown().await?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await?;
                std::io::Result::Ok(text)
            };
            *answer.borrow_mut() = sent.await.unwrap_or_default();
            !answer.borrow().is_empty()
        })
        .await;
        assert_eq!(answer.into_inner(), "read 3000000 bytes");
    }
    // Nobody left: the connection is reset, not ended.
    apply(&mesh.gateways["tokyo"], Change::Local(proto::LocalUpdate { full: true, ..Default::default() }))
        .await
        .unwrap();
    // The reset may come before the client has noticed that it is connected.
    let read = async { TcpStream::connect(mesh.tcp("tokyo", 1)).await?.read_u8().await };
    let error = read.await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
