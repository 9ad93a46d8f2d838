//! Endpoints that die, hang or hold a request up, and clients that do. Every case on both paths: an endpoint of the client's own
//! cluster, and one behind a tunnel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use archipelago_gateway::Limits;
use archipelago_proto::v1::Protocol;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use harness::{Mesh, backend, empty, eventually, get, raw, request, send, service, text};

const HOST: &str = "checkout.shop";

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

/// Two endpoints that know of each other: what each of them does with a request depends on whether the other has it already.
#[derive(Default)]
struct Pair {
    /// How often each path arrived, at either.
    arrived: Mutex<HashMap<String, usize>>,
    /// Told at each arrival, and when all that is held is let go.
    moved: Notify,
    is_released: AtomicBool,
    /// Requests whose sender gave them up.
    cancelled: AtomicUsize,
}

impl Pair {
    fn arrived(&self, path: &str) -> usize {
        self.arrived.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    fn total(&self) -> usize {
        self.arrived.lock().unwrap().iter().filter(|(path, _)| !path.starts_with("/warm")).map(|(_, n)| n).sum()
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if condition() {
                return;
            }
            moved.await;
        }
    }

    /// `/warm…`: at once. `/second…`: whoever has it first never answers. `/first…`: whoever has it first answers when the other has
    /// it too, which never does. `/held…`: when it is released.
    async fn answer(self: Arc<Self>, path: String) -> &'static str {
        let place = {
            let mut arrived = self.arrived.lock().unwrap();
            let count = arrived.entry(path.clone()).or_insert(0);
            *count += 1;
            *count
        };
        self.moved.notify_waiters();
        let given_up = GivenUp(&self, false);
        match path.split('/').nth(1) {
            Some("second") if place == 1 => std::future::pending().await,
            Some("first") if place == 1 => self.until(|| self.arrived(&path) > 1).await,
            Some("first") => std::future::pending().await,
            Some("held") => self.until(|| self.is_released.load(Ordering::SeqCst)).await,
            _ => {}
        }
        given_up.done();
        if place == 1 { "first" } else { "second" }
    }

    async fn endpoint(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let pair = Arc::clone(&pair);
                tokio::spawn(async move {
                    let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (pair, path) = (Arc::clone(&pair), request.uri().path().to_owned());
                        async move {
                            let said = pair.answer(path).await;
                            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(said))))
                        }
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        address
    }
}

struct GivenUp<'a>(&'a Pair, bool);

impl GivenUp<'_> {
    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A mesh of two whose service is served by the two endpoints, in tokyo, and each worker there knows what they usually take.
async fn served_by(pair: &Arc<Pair>, protocol: Protocol) -> Mesh {
    let limits = Limits { request_timeout: Duration::from_secs(60), ..Limits::default() };
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let config = service("checkout", protocol, &["tokyo"], &[]);
    let (one, other) = (pair.endpoint().await, pair.endpoint().await);
    mesh.configure(vec![config], &[("checkout", "tokyo", one, ""), ("checkout", "tokyo", other, "")]).await;
    for entry in ["tokyo", "paris"] {
        let mut rounds = 0;
        eventually("everybody is served", async || {
            rounds += 1;
            let lines = burst(&mesh, entry, HOST, &format!("warm/{entry}-{rounds}"), 100, &[]).await;
            lines.iter().all(|(code, _)| *code == 200)
        })
        .await;
    }
    mesh
}

/// What the gateway of `cluster` wrote down of a path, once it has.
async fn logged(mesh: &Mesh, cluster: &str, path: &str) -> Value {
    let file = mesh.state_dir(cluster).join("access.log");
    let mut line = Value::Null;
    eventually("it is in the access log", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut parsed = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        line = parsed.find(|line| line["path"] == path).unwrap_or_default();
        !line.is_null()
    })
    .await;
    line
}

/// An endpoint takes a request and says nothing. It is asked of the other one as well, and whoever answers first is heard.
#[tokio::test]
async fn whoever_answers_first_counts_when_an_endpoint_hangs() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let pair = Arc::new(Pair::default());
        let mesh = served_by(&pair, protocol).await;
        for entry in ["tokyo", "paris"] {
            for first in ["second", "first"] {
                let path = format!("/{first}/{entry}");
                let cancelled = pair.cancelled.load(Ordering::SeqCst);
                let response = get(mesh.http(entry), HOST, &path, &[]).await.unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(text(response).await, first);
                assert_eq!(pair.arrived(&path), 2);
                eventually("the other one is told that nobody waits for it", async || {
                    pair.cancelled.load(Ordering::SeqCst) > cancelled
                })
                .await;
                let line = logged(&mesh, "tokyo", &path).await;
                assert_eq!((&line["hedge"], &line["attempt"]), (&Value::from(first), &Value::from(2)), "{line}");
            }
        }
        for answered in ["first", "second"] {
            let name = format!("mesh_gateway_hedges_total{{answered=\"{answered}\"}}");
            assert_eq!(metric(&mesh, "tokyo", &name).await, 2);
        }
        // What may not be done twice is waited for, however long.
        let entry = mesh.http("tokyo");
        let post = tokio::spawn(async move { send(entry, request("POST", HOST, "/held/post", &[], empty())).await });
        pair.until(|| pair.arrived("/held/post") == 1).await;
        let response = get(entry, HOST, "/second/meanwhile", &[]).await.unwrap();
        assert_eq!(text(response).await, "second");
        pair.is_released.store(true, Ordering::SeqCst);
        pair.moved.notify_waiters();
        assert_eq!(text(post.await.unwrap().unwrap()).await, "first");
        assert_eq!(pair.arrived("/held/post"), 1);
    }
}

/// More requests hang than the budget has second attempts for: the others wait for the first, and get what it answers.
#[tokio::test]
async fn what_the_budget_refuses_goes_on_waiting() {
    let pair = Arc::new(Pair::default());
    let mesh = served_by(&pair, Protocol::Http1).await;
    let entry = mesh.http("tokyo");
    let asked = (0..700).map(|n| async move {
        let response = get(entry, HOST, &format!("/held/{n}"), &[]).await.unwrap();
        response.status().as_u16()
    });
    let asked = tokio::spawn(futures_util::future::join_all(asked.collect::<Vec<_>>()));
    // Each worker has 200, and ten more each second.
    pair.until(|| pair.total() >= 1_000).await;
    pair.is_released.store(true, Ordering::SeqCst);
    pair.moved.notify_waiters();
    let answers = asked.await.unwrap();
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    let most = pair.arrived.lock().unwrap().values().copied().max();
    assert_eq!(most, Some(2), "no more than two are asked");
}

/// A client asks for much and takes nothing: what that holds is free again, and the client hears why it gets no more.
#[tokio::test]
async fn who_takes_nothing_of_a_response_is_cut() {
    let limits = harness::with_stall(Duration::from_millis(300));
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let (address, _) = backend("tokyo").await;
    for (n, protocol) in [Protocol::Http1, Protocol::H2c].into_iter().enumerate() {
        mesh.configure(vec![service("checkout", protocol, &["tokyo"], &[])], &[("checkout", "tokyo", address, "")])
            .await;
        mesh.serves(HOST, "tokyo").await;
        for entry in ["tokyo", "paris"] {
            let before = metric(&mesh, entry, "mesh_gateway_clients_stalled_total{protocol=\"http2\"}").await;
            let stream = TcpStream::connect(mesh.http(entry)).await.unwrap();
            let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let path = format!("/bytes/{}", 16 * 1024 * 1024 + n);
            let asked = http::Request::get(format!("http://{HOST}{path}")).body(()).unwrap();
            let (response, _) = sender.send_request(asked, true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            // A window of 64 KiB is all that the client allows.
            let mut body = response.into_body();
            eventually("it is cut", async || {
                metric(&mesh, entry, "mesh_gateway_clients_stalled_total{protocol=\"http2\"}").await > before
            })
            .await;
            for cluster in ["tokyo", "paris"] {
                eventually("nothing is carried any more", async || {
                    mesh.gateways[cluster].workers().reports().await.iter().all(|report| report.requests == 0)
                })
                .await;
            }
            let file = mesh.state_dir(entry).join("access.log");
            eventually("the log says why", async || {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                text.lines().any(|line| line.contains(&path) && line.contains("took nothing of the response"))
            })
            .await;
            let mut taken = 0;
            let end = loop {
                match body.data().await {
                    Some(Ok(data)) => {
                        taken += data.len();
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                    end => break end,
                }
            };
            assert!(matches!(end, Some(Err(_))), "a reset, not an end, after {taken} bytes");
        }
    }
}
