//! How long gateways wait for clients, and for whom they wait longer.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_gateway::Limits;
use archipelago_proto::v1::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{self, Mesh, eventually, get, request, send, service};

const HOST: &str = "checkout.shop";

/// A mesh in which tokyo has the endpoints at these addresses; the gateways of both clusters.
async fn mesh(endpoints: &[SocketAddr], limits: Limits) -> (Mesh, [SocketAddr; 2]) {
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    let endpoints: Vec<_> = endpoints.iter().map(|address| ("checkout", "tokyo", *address, "")).collect();
    mesh.configure(vec![config], &endpoints).await;
    mesh.serves(HOST, "tokyo").await;
    let entries = [mesh.http("tokyo"), mesh.http("paris")];
    (mesh, entries)
}

/// All that comes until the other end closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut text)).await;
    ended.expect("the gateway ends it").unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_body_sent_without_waiting_for_100_keeps_its_connection() {
    let (backend, _) = harness::backend("tokyo").await;
    let (_mesh, entries) = mesh(&[backend], harness::patient()).await;
    for entry in entries {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        let ask = format!(
            "POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello\
             GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        let text = rest(&mut stream).await;
        assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
        assert_eq!(text.matches("connection: close").count() + text.matches("Connection: close").count(), 1, "{text}");
    }
}

/// What a gRPC server does not say for a while is between it and its caller; of other requests, several would show that it hangs.
#[tokio::test]
async fn quiet_grpc_calls_do_not_make_an_endpoint_look_hung() {
    let (one, seen_by_one) = harness::backend("tokyo").await;
    let (two, seen_by_two) = harness::backend("tokyo").await;
    let (_mesh, entries) = mesh(&[one, two], harness::patient()).await;
    for entry in entries {
        // What is usual.
        for _ in 0..100 {
            assert_eq!(get(entry, HOST, "/", &[]).await.unwrap().status(), 200);
        }
        let count = || seen_by_one.requests.load(Ordering::SeqCst) + seen_by_two.requests.load(Ordering::SeqCst);
        let before = count();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..16 {
            // GET, because that would be sent again to somebody else.
            let headers = [("content-type", "application/grpc"), ("te", "trailers")];
            let call = request("GET", HOST, "/delay/2500", &headers, harness::empty());
            calls.spawn(async move { send(entry, call).await.unwrap().status() });
        }
        while let Some(status) = calls.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
        assert_eq!(count() - before, 16, "each was sent once");
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_in_time_is_refused() {
    let (backend, _) = harness::backend("tokyo").await;
    let limits = Limits { head_timeout: Duration::from_millis(300), ..harness::patient() };
    let (mesh, [entry, _]) = mesh(&[backend], limits).await;
    let mut nothing = TcpStream::connect(entry).await.unwrap();
    assert_eq!(rest(&mut nothing).await, "");
    let mut half = TcpStream::connect(entry).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let answer = rest(&mut half).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not come in time"), "{answer}");
    // The same of the second request of a connection, and of a preface that is not finished.
    let mut second = TcpStream::connect(entry).await.unwrap();
    second.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET").as_bytes()).await.unwrap();
    let answer = rest(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 408 "), "{answer}");
    let mut preface = TcpStream::connect(entry).await.unwrap();
    preface.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    assert_eq!(rest(&mut preface).await, "");
    drop(mesh);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let (backend, _) = harness::backend("tokyo").await;
    let limits = Limits { idle_timeout: Duration::from_millis(300), ..harness::patient() };
    let (_mesh, [entry, _]) = mesh(&[backend], limits).await;
    let mut stream = TcpStream::connect(entry).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("tokyo"), "{answer}");
}

/// What was buffered goes out in one write, with nothing asked of the body before it: that must not be the end of it.
#[tokio::test]
async fn a_reader_that_pauses_gets_the_rest() {
    let (backend, _) = harness::backend("tokyo").await;
    let limits = harness::with_stall(Duration::from_secs(600));
    let (_mesh, entries) = mesh(&[backend], limits).await;
    for entry in entries {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        let ask = format!("GET /bytes/{BYTES} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        let (mut waiting, mut same, mut buffer) = (0, 0, vec![0; 16 << 20]);
        eventually("nothing more comes", async || {
            let now = stream.peek(&mut buffer).await.unwrap();
            same = if now == waiting { same + 1 } else { 0 };
            waiting = now;
            same > 200
        })
        .await;
        assert!(waiting < BYTES, "all of it fits into the buffers on the way");
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "{} bytes after a pause, {waiting} of them before it ended", rest.len());
        assert!(rest.len() > BYTES, "{}", rest.len());
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut() {
    let (backend, _) = harness::backend("tokyo").await;
    let limits = harness::with_stall(Duration::from_millis(500));
    let (mesh, entries) = mesh(&[backend], limits).await;
    for (cluster, entry) in [("tokyo", entries[0]), ("paris", entries[1])] {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        let ask = format!("GET /bytes/100000000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        // It begins, so that it is there.
        stream.read_exact(&mut [0; 12]).await.unwrap();
        for gateway in ["tokyo", "paris"] {
            eventually(&format!("{gateway} holds nothing of what nobody reads"), async || {
                let reports = mesh.gateways[gateway].workers().reports().await;
                reports.iter().all(|report| report.requests == 0 && report.connections == 0)
            })
            .await;
        }
        let mut left = Vec::new();
        let _ = stream.read_to_end(&mut left).await;
        assert!(left.len() < 100_000_000, "{cluster}: {} bytes", left.len());
    }
}

/// More than all buffers on the way hold.
const BYTES: usize = 100_000_000;
