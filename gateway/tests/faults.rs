//! Endpoints that die, hang or hold a request up, and clients that do. Every case on both paths: an endpoint of the client's own
//! cluster, and one behind a tunnel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::time::Duration;

use archipelago_proto::v1::Protocol;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use harness::{Mesh, backend, eventually, get, raw, service};

/// A socket that listens and whose queue is full: the kernel answers nobody any more, as if the address led nowhere.
struct Silent {
    socket: Socket,
    _queued: Vec<std::net::TcpStream>,
    address: SocketAddr,
}

impl Silent {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
        }
        Self { socket, _queued: queued, address }
    }

    /// From now on it answers.
    fn revive(self) {
        let Self { socket, _queued, .. } = self;
        // As long a queue as others have.
        socket.listen(1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(socket.into()).unwrap();
        tokio::spawn(async move {
            let _queued = _queued;
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(async move {
                    let answer = service_fn(async |_| {
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from("revived"))))
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
    }
}

/// The value of a metric, named with its labels.
async fn metric(mesh: &Mesh, cluster: &str, name: &str) -> i64 {
    let text = raw(mesh.metrics(cluster), b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Sends `count` requests at once; what their clients got, and what the access log says of them, once it says something of each.
async fn burst(
    mesh: &Mesh,
    cluster: &str,
    host: &str,
    tag: &str,
    count: usize,
    headers: &[(&str, &str)],
) -> Vec<(u16, Value)> {
    let entry = mesh.http(cluster);
    let asked = (0..count).map(|n| {
        let path = format!("/{tag}/{n}");
        async move { get(entry, host, &path, headers).await.unwrap().status().as_u16() }
    });
    let answered = futures_util::future::join_all(asked).await;
    let path = mesh.state_dir(cluster).join("access.log");
    let mut lines = Vec::new();
    eventually("the access log has all of it", async || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let parsed = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines = parsed
            .filter(|line| line["reporter"] == "source" && line["authority"] == host)
            .filter_map(|line| {
                let n = line["path"].as_str()?.strip_prefix(&format!("/{tag}/"))?.parse::<usize>().ok()?;
                Some((*answered.get(n)?, line))
            })
            .collect();
        lines.len() >= count
    })
    .await;
    lines
}

/// Every pod of a cluster dies with its node: their addresses answer nothing, and nobody says so.
#[tokio::test]
async fn endpoints_that_are_gone_cost_their_first_requests_and_none_after_those() {
    let silent: Vec<Silent> = (0..4).map(|_| Silent::new()).collect();
    let (alive, _) = backend("paris").await;
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let hosts = ["checkout.shop", "orders.shop"];
    let config = [
        service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("tokyo", 1)]),
        service("orders", Protocol::H2c, &["paris", "tokyo"], &[("tokyo", 1)]),
    ];
    let at = |place: usize| silent[place].address;
    let endpoints = [
        ("checkout", "tokyo", at(0), ""),
        ("checkout", "tokyo", at(1), ""),
        ("orders", "tokyo", at(2), ""),
        ("orders", "tokyo", at(3), ""),
        ("checkout", "paris", alive, ""),
        ("orders", "paris", alive, ""),
    ];
    mesh.configure(config.to_vec(), &endpoints).await;
    let mut tag = 0;
    let mut next = || {
        tag += 1;
        format!("burst-{tag}")
    };
    // Each worker finds out for itself: four endpoints on two of them. Nobody's request fails meanwhile. Each round costs it two
    // timeouts, and over HTTP/2 shows it no more than those.
    let mut rounds = 0;
    while metric(&mesh, "tokyo", "mesh_gateway_endpoints_unreachable").await < 8 {
        rounds += 1;
        assert!(rounds <= 20, "tokyo's gateway does not know that its endpoints are gone");
        let (one, other) = (next(), next());
        let both = [(hosts[0], one), (hosts[1], other)];
        let both = both.iter().map(|(host, tag)| burst(&mesh, "tokyo", host, tag, 16, &[]));
        for lines in futures_util::future::join_all(both).await {
            assert!(lines.iter().all(|(code, _)| *code == 200), "{lines:?}");
        }
    }
    let is_direct =
        |(code, line): &(u16, Value)| *code == 200 && line["attempt"] == 1 && line["upstream_cluster"] == "paris";
    for entry in ["tokyo", "paris"] {
        for host in hosts {
            // What tokyo says of itself reaches each worker of paris by a tunnel of its own.
            eventually("everybody knows", async || {
                burst(&mesh, entry, host, &next(), 24, &[]).await.iter().all(is_direct)
            })
            .await;
            let lines = burst(&mesh, entry, host, &next(), 100, &[]).await;
            assert!(lines.iter().all(is_direct), "{entry} {host}: {lines:?}");
            // Where nobody else can serve, the sender hears it without anybody having been asked.
            let lines = burst(&mesh, entry, host, &next(), 24, &[("x-only", "tokyo")]).await;
            let is_refused = |(code, line): &(u16, Value)| {
                *code == 503 && line["response_flags"] == "UH" && line["upstream_host"] == ""
            };
            assert!(lines.iter().all(is_refused), "{entry} {host}: {lines:?}");
        }
    }
    silent.into_iter().for_each(Silent::revive);
    for entry in ["tokyo", "paris"] {
        for host in hosts {
            eventually("tokyo serves again", async || {
                let lines = burst(&mesh, entry, host, &next(), 24, &[]).await;
                assert!(lines.iter().all(|(code, _)| *code == 200), "{lines:?}");
                lines.iter().all(|(_, line)| line["attempt"] == 1 && line["upstream_cluster"] == "tokyo")
            })
            .await;
        }
    }
    // One of two was enough for that; each worker finds the other one by itself.
    eventually("all of them are back", async || {
        metric(&mesh, "tokyo", "mesh_gateway_endpoints_unreachable").await == 0
    })
    .await;
}
