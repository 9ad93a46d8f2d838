//! WebSocket through one gateway and through two, from every protocol that clients speak to every one that endpoints do.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use archipelago_proto::v1::{BackendSettings, Protocol, StreamLimits};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use harness::{Mesh, eventually, get, patient, raw, service, text};

const HOST: &str = "checkout.shop";
/// RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What a backend does with a connection on which it was asked to switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Switches and sends back what comes, until the client's direction ends; then says "bye" and ends its own.
    Echo,
    /// Answers as if nothing had been asked.
    Ignore,
    /// Refuses.
    Refuse,
    /// Switches without the proof that it read the key.
    Forge,
    /// Switches, says "bye" and ends its own direction; then counts what comes until the client's ends.
    Leave,
    /// Switches, says something at once with its head, and resets.
    Reset,
    /// Takes the request and closes, the first time; then as `Echo`.
    Die,
}

#[derive(Debug, Default)]
struct Seen {
    asked: AtomicUsize,
    open: AtomicUsize,
    /// Bytes that came of those that `Leave`.
    left: AtomicUsize,
    ended: AtomicUsize,
    heads: std::sync::Mutex<Vec<String>>,
}

/// A backend of HTTP/1.1.
async fn http1(manner: Manner) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&shared);
            tokio::spawn(async move {
                let _ = answer(stream, manner, &seen).await;
            });
        }
    });
    (address, seen)
}

async fn answer(mut stream: TcpStream, manner: Manner, seen: &Seen) -> std::io::Result<()> {
    while let Some(head) = head_of(&mut stream).await {
        let is_asked = head.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n");
        seen.heads.lock().unwrap().push(head.clone());
        if !is_asked || manner == Manner::Ignore {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain").await?;
            continue;
        }
        let nth = seen.asked.fetch_add(1, Ordering::SeqCst);
        if manner == Manner::Die && nth == 0 {
            return Ok(());
        }
        if manner == Manner::Refuse {
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await?;
            continue;
        }
        let key = field(&head, "sec-websocket-key").unwrap();
        assert_ne!(key, KEY, "a key is of one connection");
        let proof = if manner == Manner::Forge { ACCEPT.to_owned() } else { proof_of(key) };
        let early = if manner == Manner::Reset { "early" } else { "" };
        let accepted = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {proof}\r\nSec-WebSocket-Protocol: chat\r\n\r\n{early}"
        );
        stream.write_all(accepted.as_bytes()).await?;
        seen.open.fetch_add(1, Ordering::SeqCst);
        let result = talk(&mut stream, manner, seen).await;
        seen.open.fetch_sub(1, Ordering::SeqCst);
        seen.ended.fetch_add(1, Ordering::SeqCst);
        return result;
    }
    Ok(())
}

async fn talk(stream: &mut TcpStream, manner: Manner, seen: &Seen) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    match manner {
        Manner::Leave => {
            stream.write_all(b"bye").await?;
            stream.shutdown().await?;
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                seen.left.fetch_add(n, Ordering::SeqCst);
            }
        }
        Manner::Reset => {
            // Once the other end has it all.
            let _ = stream.read(&mut buffer).await?;
            stream.set_zero_linger()
        }
        _ => loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                stream.write_all(b"bye").await?;
                return stream.shutdown().await;
            }
            stream.write_all(&buffer[..n]).await?;
        },
    }
}

/// RFC 6455 §4.2.2.
fn proof_of(key: &str) -> String {
    let input = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, input.as_bytes()))
}

/// Reads a head, not a byte more.
async fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (given, value) = line.split_once(": ")?;
        given.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A backend of HTTP/2 that sends back what comes on an extended CONNECT, until the client's direction ends; then says "bye" and ends its own. `announces` that it can.
async fn http2(announces: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                if announces {
                    builder.enable_connect_protocol();
                }
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let protocol = request.extensions().get::<h2::ext::Protocol>();
                        let is_asked = protocol.is_some_and(|protocol| protocol.as_str() == "websocket");
                        assert!(request.headers().get("sec-websocket-key").is_none(), "HTTP/2 has no keys");
                        let response = http::Response::builder().header("sec-websocket-protocol", "chat");
                        if !is_asked {
                            let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
                            return send.send_data(Bytes::from_static(b"plain"), true).unwrap();
                        }
                        assert_eq!(request.uri().path(), "/chat");
                        let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        send.send_data(Bytes::from_static(b"bye"), true).unwrap();
                    });
                }
            });
        }
    });
    address
}

/// A mesh of two with one service whose only endpoint, in tokyo, is `address`; the ways in: a gateway of its own cluster, and one of
/// the other.
async fn served_by(address: SocketAddr, protocol: Protocol) -> (Mesh, [SocketAddr; 2]) {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let config = service("checkout", protocol, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", address, "")]).await;
    let entries = [mesh.http("tokyo"), mesh.http("paris")];
    (mesh, entries)
}

fn offer() -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}

/// Asks to switch; the head of the answer.
async fn ask(entry: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(entry).await.unwrap();
    stream.write_all(offer().as_bytes()).await.unwrap();
    let head = within(head_of(&mut stream)).await.expect("an answer");
    (stream, head)
}

async fn switched(entry: SocketAddr) -> TcpStream {
    let (stream, head) = ask(entry).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}

async fn echoes(stream: &mut TcpStream, said: &[u8]) {
    stream.write_all(said).await.unwrap();
    let mut heard = vec![0; said.len()];
    within(stream.read_exact(&mut heard)).await.unwrap();
    assert!(heard == said);
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    rest
}

/// More than any buffer on the way.
fn much() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n % 251) as u8).collect()
}

async fn from_http1(entry: SocketAddr) {
    let (mut stream, head) = ask(entry).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(field(&head, "sec-websocket-accept"), Some(ACCEPT), "{head}");
    assert_eq!(field(&head, "upgrade"), Some("websocket"), "{head}");
    assert_eq!(field(&head, "connection"), Some("upgrade"), "{head}");
    assert_eq!(field(&head, "sec-websocket-protocol"), Some("chat"), "{head}");
    assert!(field(&head, "content-length").is_none() && field(&head, "transfer-encoding").is_none(), "{head}");
    echoes(&mut stream, b"hello").await;
    let said = much();
    let (mut reader, mut writer) = stream.split();
    let mut heard = vec![0; said.len()];
    let (sent, received) = tokio::join!(writer.write_all(&said), within(reader.read_exact(&mut heard)));
    sent.unwrap();
    received.unwrap();
    assert!(heard == said);
    // Half of it ends, the other half goes on.
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"bye");
}

/// Asks to switch over HTTP/2, once the gateway has said that it can; the answer, the way to send on, and what carries both.
async fn ask_http2(entry: SocketAddr) -> (http::Response<h2::RecvStream>, h2::SendStream<Bytes>, JoinHandle<()>) {
    let stream = TcpStream::connect(entry).await.unwrap();
    let (mut client, mut connection) = h2::client::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
    within(std::future::poll_fn(|cx| {
        let _ = Future::poll(std::pin::Pin::new(&mut connection), cx);
        if client.is_extended_connect_protocol_enabled() { Poll::Ready(()) } else { Poll::Pending }
    }))
    .await;
    let driver = tokio::spawn(async move { drop(connection.await) });
    let mut request = http::Request::connect(format!("http://{HOST}/chat")).body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let (response, send) = client.send_request(request, false).unwrap();
    (within(response).await.unwrap(), send, driver)
}

async fn from_http2(entry: SocketAddr) {
    let (response, mut send, driver) = ask_http2(entry).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut body = response.into_body();
    let said = Bytes::from(much());
    let expected = said.clone();
    let writing = async {
        let mut left = said;
        while !left.is_empty() {
            send.reserve_capacity(left.len());
            let room = within(std::future::poll_fn(|cx| send.poll_capacity(cx))).await.unwrap().unwrap();
            send.send_data(left.split_to(room.min(left.len())), false).unwrap();
        }
        send.send_data(Bytes::new(), true).unwrap();
    };
    let reading = async {
        let mut heard = Vec::new();
        while let Some(data) = within(body.data()).await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            heard.extend_from_slice(&data);
        }
        heard
    };
    let ((), heard) = tokio::join!(writing, reading);
    assert_eq!(heard.len(), expected.len() + 3);
    assert!(heard[..expected.len()] == expected && &heard[expected.len()..] == b"bye");
    driver.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_http1_to_http1() {
    let (backend, seen) = http1(Manner::Echo).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    for entry in entries {
        from_http1(entry).await;
    }
    assert_eq!(seen.asked.load(Ordering::SeqCst), 2);
    let head = seen.heads.lock().unwrap()[0].clone();
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
    assert_eq!(field(&head, "sec-websocket-version"), Some("13"));
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_http2_to_http1() {
    let (backend, _) = http1(Manner::Echo).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    for entry in entries {
        from_http2(entry).await;
    }
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_http1_to_http2() {
    let (mesh, entries) = served_by(http2(true).await, Protocol::H2c).await;
    for entry in entries {
        from_http1(entry).await;
    }
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_http2_to_http2() {
    let (mesh, entries) = served_by(http2(true).await, Protocol::H2c).await;
    for entry in entries {
        from_http2(entry).await;
    }
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_http2_that_does_not_announce_it_is_not_asked() {
    let (mesh, entries) = served_by(http2(false).await, Protocol::H2c).await;
    for entry in entries {
        let (_, head) = ask(entry).await;
        assert!(head.starts_with("HTTP/1.1 501 "), "{head}");
        assert_eq!(field(&head, "mesh-failure"), Some("unsupported"), "{head}");
        assert_eq!(text(get(entry, HOST, "/", &[]).await.unwrap()).await, "plain");
    }
    drop(mesh);
}

/// RFC 9110 §7.8: whoever does not switch answers, and the connection goes on as it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_switch_is_a_plain_one() {
    for (manner, status, body) in [(Manner::Refuse, "403", "no"), (Manner::Ignore, "200", "plain")] {
        let (backend, _) = http1(manner).await;
        let (mesh, entries) = served_by(backend, Protocol::Http1).await;
        for entry in entries {
            let mut stream = TcpStream::connect(entry).await.unwrap();
            for _ in 0..2 {
                stream.write_all(offer().as_bytes()).await.unwrap();
                let head = within(head_of(&mut stream)).await.unwrap();
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
                let mut answer = Vec::new();
                while !String::from_utf8_lossy(&answer).contains(body) || !is_whole(&head, &answer, body) {
                    answer.push(within(stream.read_u8()).await.unwrap());
                }
            }
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
            assert!(within(head_of(&mut stream)).await.unwrap().starts_with("HTTP/1.1 200 "));
            // Where 2xx switches, one that does not cannot be said.
            let (response, _, driver) = ask_http2(entry).await;
            assert_eq!(response.status().as_str(), if status == "200" { "502" } else { status });
            driver.abort();
        }
        drop(mesh);
    }
}

fn is_whole(head: &str, answer: &[u8], body: &str) -> bool {
    match field(head, "content-length") {
        Some(length) => answer.len() == length.parse::<usize>().unwrap() && answer == body.as_bytes(),
        None => answer.ends_with(b"0\r\n\r\n"),
    }
}

/// Whatever an endpoint was made to say, nothing of it is read as if nobody had asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_101_that_nobody_asked_for_is_a_broken_answer() {
    let (backend, _) = http1(Manner::Forge).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    for entry in entries {
        let (mut stream, head) = ask(entry).await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let length: usize = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        if length > 0 {
            within(stream.read_exact(&mut vec![0; length])).await.unwrap();
            // It is the same connection, and speaks HTTP.
            stream.write_all(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").await.unwrap();
            assert!(within(head_of(&mut stream)).await.unwrap().starts_with("HTTP/1.1 404 "));
        }
    }
    drop(mesh);
}

/// RFC 9110 §7.8, RFC 6455 §4.2.1.
#[tokio::test(flavor = "multi_thread")]
async fn what_offers_nothing_is_answered_as_http_and_what_offers_wrongly_refused() {
    let (backend, seen) = http1(Manner::Echo).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let up = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    for entry in entries {
        for (head, status) in [
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{up}\r\n"), 400),
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{up}Sec-WebSocket-Key: dGhl\r\n\r\n"), 400),
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{up}{key}{key}\r\n"), 400),
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\n{key}\r\n"), 200),
            (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n{key}\r\n"), 200),
            (format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{up}{key}Content-Length: 2\r\n\r\nhi"), 200),
            (format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n{up}{key}\r\n"), 200),
            (format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), 501),
            (
                format!(
                    "GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: h2c, websocket\r\nConnection: Upgrade\r\n{key}\r\n"
                ),
                101,
            ),
        ] {
            let mut stream = TcpStream::connect(entry).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let answer = within(head_of(&mut stream)).await.unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status.to_string().as_str()), "{head}\n{answer}");
        }
    }
    assert_eq!(seen.asked.load(Ordering::SeqCst), 2);
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_first_still_hears_its_client() {
    let (backend, seen) = http1(Manner::Leave).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    for (nth, entry) in entries.into_iter().enumerate() {
        let mut stream = switched(entry).await;
        assert_eq!(rest(&mut stream).await, b"bye");
        stream.write_all(&much()).await.unwrap();
        stream.shutdown().await.unwrap();
        eventually("all of it came", async || seen.ended.load(Ordering::SeqCst) == nth + 1).await;
        assert_eq!(seen.left.load(Ordering::SeqCst), (nth + 1) * much().len());
    }
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_is_no_end() {
    let (backend, _) = http1(Manner::Reset).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    for entry in entries {
        let mut stream = switched(entry).await;
        let mut early = [0; 5];
        within(stream.read_exact(&mut early)).await.unwrap();
        assert_eq!(&early, b"early", "what came with the head is not lost");
        stream.write_all(b"x").await.unwrap();
        let error = within(stream.read(&mut [0; 1])).await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    drop(mesh);
}

/// Nothing of it was answered, and it is a GET: another endpoint, or the same one, is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_dies_before_it_answers_is_asked_again() {
    for way in 0..2 {
        let (backend, seen) = http1(Manner::Die).await;
        let (mesh, entries) = served_by(backend, Protocol::Http1).await;
        let mut stream = switched(entries[way]).await;
        echoes(&mut stream, b"hello").await;
        assert_eq!(seen.asked.load(Ordering::SeqCst), 2);
        drop(mesh);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_is_cut_and_starves_nobody() {
    let (backend, seen) = http1(Manner::Echo).await;
    let mut limits = patient();
    limits.streams = limits.streams.with_download_idle(Duration::from_secs(1));
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    mesh.configure(vec![service("checkout", Protocol::Http1, &["tokyo"], &[])], &[("checkout", "tokyo", backend, "")])
        .await;
    for entry in [mesh.http("tokyo"), mesh.http("paris")] {
        let mut deaf = switched(entry).await;
        // Until nothing on the way takes more of it, or the gateway has had enough.
        let writing = tokio::spawn(async move { while deaf.write_all(&[7; 64 * 1024]).await.is_ok() {} });
        let mut other = switched(entry).await;
        echoes(&mut other, &[1; 100_000]).await;
        within(writing).await.unwrap();
        echoes(&mut other, b"still there").await;
        drop(other);
        eventually("both are over", async || seen.open.load(Ordering::SeqCst) == 0).await;
    }
    drop(mesh);
}

/// Silent for longer than the policy allows, it is over.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_limited_by_policy() {
    let (backend, seen) = http1(Manner::Echo).await;
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let mut config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    let limits = StreamLimits { stream_idle_ms: Some(3_000), ..Default::default() };
    config.backend_settings = Some(BackendSettings { limits: Some(limits), ..Default::default() });
    mesh.configure(vec![config], &[("checkout", "tokyo", backend, "")]).await;
    for entry in [mesh.http("tokyo"), mesh.http("paris")] {
        let mut stream = switched(entry).await;
        echoes(&mut stream, b"hello").await;
        let ended = within(stream.read(&mut [0; 1])).await;
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    }
    eventually("they are over", async || seen.open.load(Ordering::SeqCst) == 0).await;
    drop(mesh);
}

/// It holds a slot for as long as it lasts, is counted once as answered when it was, and its length is no latency.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_counted_by_its_answer_and_not_by_its_length() {
    let (backend, _) = http1(Manner::Echo).await;
    let (mesh, entries) = served_by(backend, Protocol::Http1).await;
    let began = std::time::Instant::now();
    let mut stream = switched(entries[1]).await;
    echoes(&mut stream, b"hello").await;
    let lasts = began.elapsed() * 20 + Duration::from_millis(500);
    // Its length is to be far beyond what its answer took.
    while began.elapsed() < lasts {
        echoes(&mut stream, &[2; 1000]).await;
    }
    let lasted = began.elapsed().as_secs_f64();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"bye");
    for cluster in ["paris", "tokyo"] {
        let mut seen = String::new();
        eventually("it is counted", async || {
            seen = raw(mesh.metrics(cluster), b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            value(&seen, "mesh_requests_total{").is_some()
        })
        .await;
        let line = seen.lines().find(|line| line.starts_with("mesh_requests_total{")).unwrap();
        assert!(line.contains(r#"response_code="101""#) && line.contains(r#"response_flags="-""#), "{line}");
        assert_eq!(value(&seen, "mesh_requests_total{"), Some(1.0));
        let took = value(&seen, "mesh_request_duration_seconds_sum{").unwrap();
        assert!(took < lasted / 2.0, "{cluster}: {took} of {lasted}");
    }
    drop(mesh);
}

fn value(metrics: &str, begins: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(begins))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A gateway that drains lets what is open go on until its time is over; what is new goes elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_outlives_a_change_of_where_new_ones_go() {
    let (old, old_seen) = http1(Manner::Echo).await;
    let (new, new_seen) = http1(Manner::Echo).await;
    let (mut mesh, entries) = served_by(old, Protocol::Http1).await;
    let mut before = [switched(entries[0]).await, switched(entries[1]).await];
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", new, "")]).await;
    for (entry, before) in entries.into_iter().zip(&mut before) {
        let mut after = switched(entry).await;
        echoes(&mut after, b"new").await;
        echoes(before, b"still here").await;
    }
    assert_eq!(old_seen.asked.load(Ordering::SeqCst), 2);
    assert_eq!(new_seen.asked.load(Ordering::SeqCst), 2);
    drop(mesh);
}

/// What the configuration does not allow any more ends as a TCP connection does: after the grace, with a reset.
#[tokio::test(flavor = "multi_thread")]
async fn what_residency_forbids_later_is_reset() {
    let (backend, _) = http1(Manner::Echo).await;
    let mut limits = patient();
    limits.tcp_grace = Duration::from_secs(1);
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let mut config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    let endpoints = [("checkout", "tokyo", backend, "")];
    mesh.configure(vec![config.clone()], &endpoints).await;
    let mut here = switched(mesh.http("tokyo")).await;
    let mut there = switched(mesh.http("paris")).await;
    echoes(&mut there, b"hello").await;
    config.exporters.clear();
    mesh.configure(vec![config], &endpoints).await;
    within(there.read(&mut [0; 1])).await.expect_err("a reset");
    echoes(&mut here, b"its own cluster's goes on").await;
    drop(mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_lets_it_go_on_until_its_time_is_over() {
    let (backend, _) = http1(Manner::Echo).await;
    let (mut mesh, entries) = served_by(backend, Protocol::Http1).await;
    let mut stream = switched(entries[1]).await;
    echoes(&mut stream, b"hello").await;
    let gateway = mesh.gateways.remove("paris").unwrap();
    let stopping = tokio::task::spawn_blocking(move || gateway.stop());
    eventually("nobody new is let in", async || TcpStream::connect(entries[1]).await.is_err()).await;
    echoes(&mut stream, b"still here").await;
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"bye");
    within(stopping).await.unwrap();
    drop(mesh);
}
