//! What a hostile service or client cannot do to metrics: make more of them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;

use archipelago_proto::v1::Protocol;
use harness::{Mesh, eventually, raw, service};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HOST: &str = "checkout.shop";
const REQUESTS: usize = 20_000;
const CODES: usize = 5_000;
const CLIENTS: usize = 8;

/// Answers with whatever code the path asks for, one that HTTP does not have as well as one that it does.
async fn hostile() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            tokio::spawn(answer(stream));
        }
    });
    address
}

async fn answer(mut stream: TcpStream) {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
        seen.extend_from_slice(&chunk[..read]);
        while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&seen[..end]).into_owned();
            seen.drain(..end + 4);
            let code = head.split(['/', ' ']).nth(2).unwrap_or("200").to_owned();
            let finally = match code.parse::<u16>() {
                // Not the answer yet; 101 would be the end of HTTP.
                Ok(100 | 102..200) => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                _ => "",
            };
            let text = format!("HTTP/1.1 {code} a\tb\r\ncontent-length: 0\r\n\r\n{finally}");
            if stream.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Asks for every `CLIENTS`th path from `first` on, on one connection as long as that is kept.
async fn ask(entry: SocketAddr, first: usize, hosts: bool) {
    let mut sender = None;
    for n in (first..REQUESTS).step_by(CLIENTS) {
        let connection = match sender.take() {
            Some(sender) => sender,
            None => connect(entry).await,
        };
        let host = if hosts { format!("host-{n}.evil") } else { HOST.to_owned() };
        let request = http::Request::get(format!("/{}/{n}?{n}", n % CODES)).header("host", host);
        let mut connection: hyper::client::conn::http1::SendRequest<Empty<bytes::Bytes>> = connection;
        let response = connection.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        let _ = response.into_body().collect().await;
        if connection.ready().await.is_ok() {
            sender = Some(connection);
        }
    }
}

async fn connect(entry: SocketAddr) -> hyper::client::conn::http1::SendRequest<Empty<bytes::Bytes>> {
    let stream = TcpStream::connect(entry).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn scrape(mesh: &Mesh, cluster: &str) -> String {
    raw(mesh.metrics(cluster), b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await
}

/// Requests that `reporter` counted.
fn counted(text: &str, reporter: &str) -> usize {
    let start = format!("mesh_requests_total{{reporter=\"{reporter}\"");
    let lines = text.lines().filter(|line| line.starts_with(&start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_paths_and_hosts_do_not_grow_the_series() {
    let endpoint = hostile().await;
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    let entry = mesh.http("paris");
    futures_util::future::join_all((0..CLIENTS).map(|first| ask(entry, first, false))).await;
    let mut text = String::new();
    eventually("every request is counted once", async || {
        text = scrape(&mesh, "paris").await;
        counted(&text, "source") == REQUESTS
    })
    .await;
    // Each named code, each class, each of them with the flags it can have; the gateway's own answers.
    let series = |text: &str| text.lines().filter(|line| line.starts_with("mesh_requests_total{")).count();
    assert!(series(&text) <= 100, "{} series:\n{text}", series(&text));
    assert!(text.contains(r#"response_code="4xx""#) && text.contains(r#"response_code="other""#), "{text}");
    let there = scrape(&mesh, "tokyo").await;
    assert!(counted(&there, "destination") > 0 && series(&there) <= 100, "{} series:\n{there}", series(&there));
    // Whatever the next 20,000 are called, they find their series there.
    let before = text.lines().count();
    futures_util::future::join_all((0..CLIENTS).map(|first| ask(entry, first, true))).await;
    eventually("strangers are counted, too", async || {
        text = scrape(&mesh, "paris").await;
        counted(&text, "source") == 2 * REQUESTS
    })
    .await;
    assert!(!text.contains("evil"), "{text}");
    // One more label set, which is one counter and one histogram.
    assert!(text.lines().count() <= before + 30, "{} lines became {}", before, text.lines().count());
}
