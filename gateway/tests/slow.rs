//! Clients and endpoints that are slow: who is blamed, what they are told, and what is free again. Every case at the gateway of the
//! endpoint's own cluster and at one behind a tunnel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use archipelago_gateway::Limits;
use archipelago_proto::v1::{BackendSettings, Protocol, ServiceConfig, StreamLimits};
use bytes::Bytes;
use futures_util::future::join_all;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use harness::{Mesh, backend, eventually, patient, raw, service};

const HOST: &str = "checkout.shop";
const ENTRIES: [&str; 2] = ["tokyo", "paris"];

/// Limits that nothing in a test comes near, but for what it says itself.
const WIDE: StreamLimits = StreamLimits {
    upload_idle_ms: Some(0),
    upload_rate_min: Some(0),
    upload_grace_ms: Some(0),
    download_idle_ms: Some(0),
    endpoint_idle_ms: Some(0),
    stream_idle_ms: Some(0),
};

/// Gateways of tokyo and paris, and one service in tokyo, at this address, with these limits.
struct World {
    mesh: Mesh,
    /// Of each gateway, how often each metric had been counted.
    address: SocketAddr,
}

impl World {
    async fn start(address: SocketAddr, limits: Limits) -> Self {
        Self { mesh: Mesh::start_with(&["paris", "tokyo"], limits).await, address }
    }

    async fn limit(&mut self, protocol: Protocol, limits: StreamLimits) {
        let config = ServiceConfig {
            backend_settings: Some(BackendSettings { limits: Some(limits), ..Default::default() }),
            ..service("checkout", protocol, &["tokyo"], &[])
        };
        self.mesh.configure(vec![config], &[("checkout", "tokyo", self.address, "")]).await;
        self.mesh.serves(HOST, "tokyo").await;
    }

    /// How many exchanges a gateway has cut, for this reason or, without one, for any.
    async fn cut(&self, cluster: &str, why: &str) -> u64 {
        let text =
            raw(self.mesh.metrics(cluster), b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await;
        let of = text
            .lines()
            .filter_map(|line| line.strip_prefix("mesh_gateway_exchanges_cut_total{why=\"")?.split_once("\"} "));
        of.filter(|(label, _)| why.is_empty() || *label == why)
            .map(|(_, count)| count.trim().parse::<u64>().unwrap())
            .sum()
    }

    /// Nobody carries a request any more.
    async fn nothing_is_carried(&self) {
        for cluster in ENTRIES {
            eventually("nothing is carried any more", async || {
                self.mesh.gateways[cluster].workers().reports().await.iter().all(|report| report.requests == 0)
            })
            .await;
        }
    }

    /// What the access log of a gateway says of the request with this path.
    async fn logged(&self, cluster: &str, path: &str) -> Value {
        let file = self.mesh.state_dir(cluster).join("access.log");
        let mut found = None;
        eventually("the log has it", async || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            found = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|line| line["path"] == path);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    async fn http1(&self, entry: &str, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.mesh.http(entry)).await.unwrap();
        stream.write_all(format!("{head}\r\nHost: {HOST}\r\n").as_bytes()).await.unwrap();
        stream
    }

    async fn http2(&self, entry: &str) -> SendRequest<Bytes> {
        let stream = TcpStream::connect(self.mesh.http(entry)).await.unwrap();
        let (sender, connection) = h2::client::Builder::new().handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.ready().await.unwrap()
    }
}

fn post(sender: &mut SendRequest<Bytes>, path: &str, fields: &[(&str, &str)]) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = Request::post(format!("http://{HOST}{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(()).unwrap(), false).unwrap()
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn body(mut stream: h2::RecvStream) -> Result<String, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        let _ = stream.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// Sends a byte now and then, for ever.
async fn trickle(stream: &mut SendStream<Bytes>) {
    let mut pauses = tokio::time::interval(Duration::from_millis(40));
    loop {
        pauses.tick().await;
        if stream.send_data(Bytes::from_static(b"x"), false).is_err() {
            return std::future::pending().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_is_told_so_and_holds_nothing() {
    let (address, seen) = backend("tokyo").await;
    let mut world = World::start(address, patient()).await;
    let idle = StreamLimits { upload_idle_ms: Some(300), ..WIDE };
    let rate = StreamLimits { upload_rate_min: Some(10_000_000), upload_grace_ms: Some(300), ..WIDE };
    for (protocol, limits, flags, reason, why) in [
        (Protocol::Http1, idle, "SI", "request-idle", "client_upload_idle"),
        (Protocol::H2c, rate, "DT", "request-slow", "client_upload_rate"),
        (Protocol::Http1, rate, "DT", "request-slow", "client_upload_rate"),
        (Protocol::H2c, idle, "SI", "request-idle", "client_upload_idle"),
    ] {
        world.limit(protocol, limits).await;
        for entry in ENTRIES {
            let before = world.cut(entry, why).await;
            let path = format!("/count/{protocol:?}/{reason}");

            // HTTP/1.1: its connection, which nobody can use any more, ends.
            let mut stream = world.http1(entry, &format!("POST {path}/1 HTTP/1.1")).await;
            stream.write_all(b"Content-Length: 1000000\r\n\r\nx").await.unwrap();
            let (mut reading, mut writing) = stream.split();
            let mut answer = String::new();
            let trickling = async {
                let mut pauses = tokio::time::interval(Duration::from_millis(40));
                loop {
                    pauses.tick().await;
                    if reason == "request-idle" || writing.write_all(b"x").await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                read = reading.read_to_string(&mut answer) => drop(read),
                () = trickling => {}
            }
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            assert!(answer.contains(&format!("mesh-failure: {reason}\r\n")), "{answer}");
            assert!(answer.to_lowercase().contains("connection: close\r\n"), "{answer}");
            assert!(answer.ends_with("although there was room for it\n"), "{answer}");

            // HTTP/2: its stream does, without a length and with one, and the others go on.
            let mut sender = world.http2(entry).await;
            for (n, fields) in [&[][..], &[("content-length", "1000000")]].into_iter().enumerate() {
                let (response, mut upload) = post(&mut sender, &format!("{path}/2/{n}"), fields);
                upload.send_data(Bytes::from_static(b"x"), false).unwrap();
                let response = match reason {
                    "request-idle" => response.await,
                    _ => {
                        tokio::select! { response = response => response, () = trickle(&mut upload) => unreachable!() }
                    }
                };
                let (head, stream) = response.unwrap().into_parts();
                assert_eq!((head.status.as_u16(), &head.headers["mesh-failure"]), (408, &reason.parse().unwrap()));
                assert!(body(stream).await.unwrap().ends_with("although there was room for it\n"));
            }
            let (response, mut upload) = post(&mut sender, "/count", &[]);
            upload.send_data(Bytes::from_static(b"abc"), true).unwrap();
            assert_eq!(body(response.await.unwrap().into_body()).await.unwrap(), "3");

            world.nothing_is_carried().await;
            let line = world.logged(entry, &format!("{path}/1")).await;
            assert_eq!((line["response_code"].as_u64(), &line["response_flags"]), (Some(408), &flags.into()), "{line}");
            assert!(line["failure"].as_str().unwrap().contains("of the request"), "{line}");
            assert_eq!(world.cut(entry, why).await, before + 3);
        }
    }
    // Behind the tunnel nobody was blamed twice, and the endpoint for nothing.
    for cluster in ENTRIES {
        for why in ["endpoint_upload_idle", "endpoint_response_idle", "stream_idle"] {
            assert_eq!(world.cut(cluster, why).await, 0, "{cluster}: {why}");
        }
    }
    assert_eq!(world.cut("tokyo", "").await, 12);
    assert!(seen.requests.load(Ordering::SeqCst) >= 24);
}

/// Ten kilobytes a second, as from a bad mobile network: far above what is asked, and far longer than a request mostly takes.
#[tokio::test]
async fn a_client_that_is_slow_and_honest_is_served() {
    let (address, _) = backend("tokyo").await;
    let mut world = World::start(address, patient()).await;
    let limits = StreamLimits {
        upload_idle_ms: Some(10_000),
        upload_rate_min: Some(2_000),
        upload_grace_ms: Some(10_000),
        endpoint_idle_ms: Some(10_000),
        ..WIDE
    };
    world.limit(Protocol::Http1, limits).await;
    let uploads = ENTRIES.map(|entry| {
        let world = &world;
        async move {
            let mut stream = world.http1(entry, "POST /count HTTP/1.1").await;
            stream.write_all(b"Content-Length: 30000\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut pauses = tokio::time::interval(Duration::from_millis(100));
            for _ in 0..30 {
                pauses.tick().await;
                stream.write_all(&[b'x'; 1_000]).await.unwrap();
            }
            rest(&mut stream).await
        }
    });
    for answer in join_all(uploads).await {
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("30000"), "{answer}");
    }
    assert_eq!(world.cut("tokyo", "").await + world.cut("paris", "").await, 0);
}

/// An endpoint that takes connections and requests, and nothing of their bodies until it is told to: of HTTP/1.1, and of HTTP/2.
async fn stuck(protocol: Protocol) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let release = watch::Sender::new(false);
    let released = release.subscribe();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut released = released.clone();
            tokio::spawn(async move {
                if protocol == Protocol::Http1 {
                    let _ = released.wait_for(|released| *released).await;
                    let mut buffer = vec![0; 1 << 20];
                    let (mut head, mut taken) = (Vec::new(), 0);
                    while taken < UPLOAD {
                        let n = stream.read(&mut buffer).await.unwrap_or(0);
                        if n == 0 {
                            return;
                        }
                        head.extend_from_slice(&buffer[..n]);
                        let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n");
                        taken = end.map_or(0, |end| head.len() - end - 4);
                    }
                    let text = taken.to_string();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
                    let _ = stream.write_all(answer.as_bytes()).await;
                    return;
                }
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let mut released = released.clone();
                    tokio::spawn(async move {
                        let _ = released.wait_for(|released| *released).await;
                        let Ok(all) = body(request.into_body()).await else { return };
                        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                        stream.send_data(Bytes::from(all.len().to_string()), true).unwrap();
                    });
                }
            });
        }
    });
    (address, release)
}

/// More than all buffers on the way hold.
const UPLOAD: usize = 48 << 20;

#[tokio::test]
async fn an_endpoint_that_takes_nothing_of_an_upload_is_blamed_for_it() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (address, _release) = stuck(protocol).await;
        let mut world = World::start(address, patient()).await;
        let limits = StreamLimits { upload_idle_ms: Some(20_000), endpoint_idle_ms: Some(500), ..WIDE };
        world.limit(protocol, limits).await;
        for (n, entry) in ENTRIES.into_iter().enumerate() {
            let path = format!("/stuck/{protocol:?}");
            let mut stream = world.http1(entry, &format!("POST {path} HTTP/1.1")).await;
            stream.write_all(format!("Content-Length: {UPLOAD}\r\n\r\n").as_bytes()).await.unwrap();
            let (mut reading, mut writing) = stream.split();
            let mut answer = String::new();
            let sending = async {
                let _ = writing.write_all(&vec![b'x'; UPLOAD]).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                read = reading.read_to_string(&mut answer) => drop(read),
                () = sending => {}
            }
            assert!(answer.starts_with("HTTP/1.1 504 "), "{protocol:?} at {entry}: {answer}");
            assert!(answer.contains("mesh-failure: upstream-stalled\r\n"), "{answer}");
            assert!(answer.contains("took nothing of the body of the request"), "{answer}");
            world.nothing_is_carried().await;
            // Where the endpoint is, and only there.
            assert_eq!(world.cut("tokyo", "endpoint_upload_idle").await, n as u64 + 1);
            let line = world.logged("tokyo", &path).await;
            assert_eq!((&line["response_flags"], line["response_code"].as_u64()), (&"UT".into(), Some(504)), "{line}");
        }
        assert_eq!((world.cut("tokyo", "").await, world.cut("paris", "").await), (2, 0), "nobody else");
    }
}

/// While an endpoint takes nothing its clients cannot send: they owe nothing for that time. On one connection of HTTP/2 those are more
/// than its window has room for, so that some wait for the others.
#[tokio::test]
async fn a_client_owes_nothing_for_the_time_of_its_endpoint() {
    const IDLE: Duration = Duration::from_secs(5);
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (address, release) = stuck(protocol).await;
        let mut world = World::start(address, patient()).await;
        let idle_ms = u32::try_from(IDLE.as_millis()).unwrap();
        let limits = StreamLimits {
            upload_idle_ms: Some(idle_ms),
            upload_rate_min: Some(240),
            upload_grace_ms: Some(idle_ms),
            ..WIDE
        };
        world.limit(protocol, limits).await;
        let sent = Arc::new(AtomicU64::new(0));
        let mut uploads = Vec::new();
        for entry in ENTRIES {
            let mut stream = world.http1(entry, "POST /upload HTTP/1.1").await;
            stream
                .write_all(format!("Content-Length: {UPLOAD}\r\nConnection: close\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let sent = Arc::clone(&sent);
            uploads.push(tokio::spawn(async move {
                let piece = vec![b'x'; 64 << 10];
                for _ in 0..UPLOAD / piece.len() {
                    stream.write_all(&piece).await.unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
                let answer = rest(&mut stream).await;
                assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&format!("\r\n{UPLOAD}")), "{answer}");
            }));
        }
        let mut senders = Vec::new();
        if protocol == Protocol::H2c {
            for entry in ENTRIES {
                let mut sender = world.http2(entry).await;
                for _ in 0..6 {
                    let (response, mut upload) = post(&mut sender, "/upload", &[]);
                    let sent = Arc::clone(&sent);
                    uploads.push(tokio::spawn(async move {
                        let mut left = 2 << 20;
                        while left > 0 {
                            upload.reserve_capacity(left.min(16 << 10));
                            let room =
                                std::future::poll_fn(|cx| upload.poll_capacity(cx)).await.unwrap().unwrap().min(left);
                            left -= room;
                            upload.send_data(Bytes::from(vec![b'x'; room]), left == 0).unwrap();
                            sent.fetch_add(1, Ordering::SeqCst);
                        }
                        let response = response.await.unwrap();
                        assert_eq!(response.status(), 200);
                        assert_eq!(body(response.into_body()).await.unwrap(), (2 << 20).to_string());
                    }));
                }
                senders.push(sender);
            }
        }
        // Nobody can send anything for longer than the limits.
        let (mut moved, mut at) = (Instant::now(), 0);
        eventually("nobody can send anything", async || {
            let now = sent.load(Ordering::SeqCst);
            if std::mem::replace(&mut at, now) != now {
                moved = Instant::now();
            }
            moved.elapsed() > IDLE + IDLE / 2
        })
        .await;
        assert!(uploads.iter().all(|upload| !upload.is_finished()), "nobody is answered");
        release.send_replace(true);
        for upload in uploads {
            upload.await.unwrap();
        }
        assert_eq!(world.cut("tokyo", "").await + world.cut("paris", "").await, 0);
    }
}

/// A client that waits to be told to go on is not waited for: the endpoint is.
#[tokio::test]
async fn a_client_that_waits_for_100_owes_nothing() {
    let (address, _) = backend("tokyo").await;
    let mut world = World::start(address, patient()).await;
    world.limit(Protocol::Http1, StreamLimits { upload_idle_ms: Some(200), ..WIDE }).await;
    for entry in ENTRIES {
        let mut stream = world.http1(entry, "POST /delay/1000 HTTP/1.1").await;
        stream.write_all(b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n").await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("tokyo"), "{answer}");
    }
}

#[tokio::test]
async fn an_endpoint_that_gives_nothing_of_what_it_announced_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
                }
            });
        }
    });
    let mut world = World::start(address, patient()).await;
    world.limit(Protocol::Http1, StreamLimits { endpoint_idle_ms: Some(300), ..WIDE }).await;
    for (n, entry) in ENTRIES.into_iter().enumerate() {
        let mut stream = world.http1(entry, &format!("GET /{entry} HTTP/1.1")).await;
        stream.write_all(b"\r\n").await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nabc"), "{answer}");
        world.nothing_is_carried().await;
        assert_eq!(world.cut("tokyo", "endpoint_response_idle").await, n as u64 + 1);
        let line = world.logged("tokyo", &format!("/{entry}")).await;
        assert_eq!(line["response_flags"], "UT", "{line}");
        assert!(line["failure"].as_str().unwrap().contains("gave nothing of a response"), "{line}");
    }
    assert_eq!((world.cut("tokyo", "").await, world.cut("paris", "").await), (2, 0));
}

/// The response has begun, and the rest of the request, whose length was said, does not come.
#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_what_it_announced_is_cut() {
    let (address, _) = backend("tokyo").await;
    let mut world = World::start(address, patient()).await;
    for protocol in [Protocol::Http1, Protocol::H2c] {
        world.limit(protocol, StreamLimits { upload_idle_ms: Some(500), ..WIDE }).await;
        for entry in ENTRIES {
            let before = world.cut(entry, "client_upload_idle").await;
            let path = format!("/echo/{protocol:?}");
            let mut stream = world.http1(entry, &format!("POST {path} HTTP/1.1")).await;
            stream.write_all(b"Content-Length: 1000\r\n\r\nabc").await.unwrap();
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("abc"), "{answer}");
            assert!(!answer.ends_with("0\r\n\r\n"), "no clean end: {answer}");
            world.nothing_is_carried().await;
            assert_eq!(world.cut(entry, "client_upload_idle").await, before + 1);
            assert_eq!(world.logged(entry, &path).await["response_flags"], "SI");
        }
    }
    assert_eq!((world.cut("tokyo", "").await, world.cut("paris", "").await), (2, 2));
}

/// All limits but that on streams are far exceeded by a call that is silent in both directions, which is its right.
#[tokio::test]
async fn a_quiet_stream_of_grpc_goes_on_until_a_limit_on_streams_ends_it() {
    const LIMIT: Duration = Duration::from_millis(300);
    let (address, _) = backend("tokyo").await;
    let mut world = World::start(address, patient()).await;
    let limit = Some(u32::try_from(LIMIT.as_millis()).unwrap());
    let tight = StreamLimits {
        upload_idle_ms: limit,
        upload_rate_min: Some(1_000_000),
        upload_grace_ms: limit,
        endpoint_idle_ms: limit,
        ..WIDE
    };
    world.limit(Protocol::H2c, tight).await;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    for entry in ENTRIES {
        let mut sender = world.http2(entry).await;
        let (response, mut upload) = post(&mut sender, "/echo/quiet", &grpc);
        let mut echoed = response.await.unwrap().into_body();
        for said in ["one", "two", "three"] {
            // Another request measures the time: it takes longer than all limits.
            let (slow, mut end) = post(&mut sender, "/delay/900", &grpc);
            end.send_data(Bytes::new(), true).unwrap();
            assert_eq!(slow.await.unwrap().status(), 200);
            upload.send_data(Bytes::from(said), said == "three").unwrap();
            assert_eq!(echoed.data().await.unwrap().unwrap(), said);
        }
        assert_eq!(body(echoed).await.unwrap(), "");
    }
    assert_eq!(world.cut("tokyo", "").await + world.cut("paris", "").await, 0);

    world.limit(Protocol::H2c, StreamLimits { stream_idle_ms: limit, ..WIDE }).await;
    for (n, entry) in ENTRIES.into_iter().enumerate() {
        let mut sender = world.http2(entry).await;
        let (response, _upload) = post(&mut sender, "/echo/silent", &grpc);
        let ended = body(response.await.unwrap().into_body()).await;
        assert!(ended.is_err(), "a reset, not an end");
        world.nothing_is_carried().await;
        assert_eq!(world.cut("tokyo", "stream_idle").await, n as u64 + 1, "where the endpoint is");
    }
    assert_eq!(world.cut("paris", "").await, 0);
}

#[tokio::test]
async fn an_idle_connection_of_http2_is_told_goodbye() {
    let (address, _) = backend("tokyo").await;
    let world_limits = Limits { idle_timeout: Duration::from_millis(300), ..patient() };
    let mut world = World::start(address, world_limits).await;
    world.limit(Protocol::Http1, WIDE).await;
    // One that has asked for something: not while it waits for that, but after it.
    let stream = TcpStream::connect(world.mesh.http("tokyo")).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(connection);
    let mut sender: SendRequest<Bytes> = sender.ready().await.unwrap();
    let (response, mut end) = post(&mut sender, "/delay/1500", &[]);
    end.send_data(Bytes::new(), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(body(response.into_body()).await.unwrap(), "tokyo");
    ended.await.unwrap().unwrap();
    assert!(sender.ready().await.is_err(), "it takes no more requests");

    // One that says nothing and answers nothing: GOAWAY, and then the end.
    let mut silent = TcpStream::connect(world.mesh.http("tokyo")).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frames = Vec::new();
    silent.read_to_end(&mut frames).await.unwrap();
    let (mut kinds, mut left) = (Vec::new(), frames.as_slice());
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = left {
        kinds.push(*kind);
        left = &rest[usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)..];
    }
    assert!(kinds.contains(&7), "no GOAWAY among {kinds:?}");
    eventually("nothing is connected any more", async || {
        world.mesh.gateways["tokyo"].workers().reports().await.iter().all(|report| report.connections == 0)
    })
    .await;
}
