//! The only gateway that could serve is away for a moment: requests wait for it instead of failing.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_gateway::Limits;
use archipelago_proto::v1::Protocol;
use archipelago_tunnel::{Cut, DetectorConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use harness::{
    Mesh, Seen, backend, bytes, eventually, get, on_port, patient, request, send, service, tcp_backend, text,
};

const HOST: &str = "checkout.shop";

/// Two gateways; all services are of tokyo alone. paris takes tokyo for dead soon, and waits for it as long as `away_timeout`.
async fn served_by_tokyo(away_timeout: Duration) -> (Mesh, Arc<Seen>) {
    let (suspect_floor, dead_floor) = (Duration::from_millis(300), Duration::from_millis(600));
    let detector = DetectorConfig { suspect_floor, dead_floor, ..DetectorConfig::default() };
    let limits = Limits { detector, away_timeout, request_timeout: Duration::from_secs(100), ..patient() };
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let (tokyo, seen) = backend("tokyo").await;
    let services = vec![
        service("checkout", Protocol::Http1, &["tokyo"], &[]),
        on_port(service("ledger", Protocol::Tcp, &["tokyo"], &[]), 1),
    ];
    let ledger = tcp_backend().await;
    mesh.configure(services, &[("checkout", "tokyo", tokyo, "v1"), ("ledger", "tokyo", ledger, "")]).await;
    mesh.serves(HOST, "tokyo").await;
    (mesh, seen)
}

/// Silences the tunnels until every worker of paris has given tokyo up.
async fn lose(mesh: &Mesh) {
    let workers = mesh.gateways["paris"].workers();
    workers.cut(&Cut { clusters: vec!["tokyo".into()], ..Cut::default() }).await;
    eventually("tokyo is given up by all", async || {
        workers.reports().await.iter().all(|report| report.tunnels.iter().all(|tunnel| tunnel.state == "dead"))
    })
    .await;
}

async fn seeking(mesh: &Mesh) -> usize {
    mesh.gateways["paris"].workers().reports().await.iter().map(|report| report.seeking).sum()
}

#[tokio::test]
async fn requests_wait_for_a_gateway_that_was_lost_a_moment_ago() {
    let (mesh, tokyo) = served_by_tokyo(Duration::from_secs(90)).await;
    let (entry, ledger) = (mesh.http("paris"), mesh.tcp("paris", 1));
    let mut answers = JoinSet::new();
    // These are under way when it is lost. What may not be repeated waits for its one answer.
    for n in 0..20 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        answers.spawn(async move {
            let response = send(entry, request(method, HOST, "/delay/1000", &[], bytes(""))).await.unwrap();
            (response.status().as_u16(), text(response).await)
        });
    }
    eventually("tokyo has them", async || tokyo.waiting.load(Ordering::SeqCst) == 20).await;
    lose(&mesh).await;
    // And these begin when it is known to be lost: nothing of them may be sent twice.
    let before = tokyo.requests.load(Ordering::SeqCst);
    for n in 0..20 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        answers.spawn(async move {
            let response = send(entry, request(method, HOST, "/", &[], bytes("x"))).await.unwrap();
            (response.status().as_u16(), text(response).await)
        });
    }
    let talk = tokio::spawn(async move {
        let mut stream = TcpStream::connect(ledger).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    });
    // Beside them may wait what was lost with its connection.
    eventually("all of them wait", async || seeking(&mesh).await >= 21).await;
    assert_eq!(tokyo.requests.load(Ordering::SeqCst), before, "nothing went through the cut");
    mesh.gateways["paris"].workers().heal().await;
    let mut posts_lost = 0;
    while let Some(answer) = answers.join_next().await {
        match answer.unwrap() {
            (200, body) => assert_eq!(body, "tokyo"),
            // QUIC gave the connection up before it was healed, which it does after three seconds.
            (502, _) => posts_lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(posts_lost <= 10, "{posts_lost}");
    assert_eq!(talk.await.unwrap().unwrap(), "read 5 bytes");
    assert_eq!(seeking(&mesh).await, 0);
}

#[tokio::test]
async fn nobody_waits_for_a_gateway_that_stays_away() {
    let (mesh, tokyo) = served_by_tokyo(Duration::from_millis(1)).await;
    lose(&mesh).await;
    let before = tokyo.requests.load(Ordering::SeqCst);
    let answer = get(mesh.http("paris"), HOST, "/", &[]).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["mesh-failure"].to_str().unwrap()),
        (503, "no-healthy-upstream")
    );
    // Reset at once, which a client may see before it is told that it is connected.
    let read = async { TcpStream::connect(mesh.tcp("paris", 1)).await?.read_u8().await };
    assert_eq!(read.await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!((tokyo.requests.load(Ordering::SeqCst), seeking(&mesh).await), (before, 0));
}
