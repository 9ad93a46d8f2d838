//! Every path and the TCP protocol, over real sockets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use archipelago_demo::{Identity, Protocol, pattern_byte, serve};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// SHA-256 of the empty string and of "abc" (FIPS 180-2, appendix B.1).
const SHA256_EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SHA256_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[tokio::test]
async fn says_who_it_is() {
    for client in both().await {
        let request = Request::get(client.uri("/"))
            .header("mesh-source", "spiffe://demo/cluster/paris/gateway/g1")
            .header("x-forwarded-client-cert", "URI=spiffe://demo/cluster/paris/ns/shop/sa/web");
        let response = client.send(request.body(empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(response.headers().contains_key("content-length"));
        assert_eq!(
            read_json(response).await,
            json!({
                "service": "shop/checkout", "cluster": "paris", "version": "v2", "instance": "checkout-1",
                "protocol": client.protocol(), "source": "spiffe://demo/cluster/paris/gateway/g1",
                "caller": "spiffe://demo/cluster/paris/ns/shop/sa/web",
            })
        );
        let anonymous = client.get_json("/").await;
        assert_eq!((&anonymous["source"], &anonymous["caller"]), (&Value::Null, &Value::Null));
        for nobody in ["URI=spiffe://a/b,URI=spiffe://c/d", "URI=spiffe://a/b;URI=spiffe://c/d", "By=spiffe://a/b"] {
            let request = Request::get(client.uri("/")).header("x-forwarded-client-cert", nobody);
            let introduction = read_json(client.send(request.body(empty()).unwrap()).await).await;
            assert_eq!(introduction["caller"], Value::Null, "{nobody}");
        }
    }
}

#[tokio::test]
async fn sends_as_many_bytes_as_asked() {
    for client in both().await {
        for length in [0_u64, 1, 65_536, 1_000_003] {
            let response = client.get(&format!("/bytes/{length}")).await;
            assert_eq!(response.headers()["content-length"], length.to_string());
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.iter().copied().eq((0..length).map(pattern_byte)));
        }
    }
}

#[tokio::test]
async fn digests_what_it_receives() {
    for client in both().await {
        let abc = post(&client, "/digest", full("abc")).await;
        assert_eq!(read_json(abc).await, json!({"bytes": 3, "sha256": SHA256_ABC}));
        let nothing = post(&client, "/digest", empty()).await;
        assert_eq!(read_json(nothing).await, json!({"bytes": 0, "sha256": SHA256_EMPTY}));
        let large = post(&client, "/digest", full(vec![7_u8; 3 << 20])).await;
        assert_eq!(read_json(large).await["bytes"], 3 << 20);
    }
}

#[tokio::test]
async fn echoes_while_the_request_is_still_open() {
    for client in both().await {
        let (sender, body) = open_body();
        let mut response = post(&client, "/echo", body).await;
        assert_eq!(response.headers()["content-type"], "text/x-test");
        for word in ["one", "two", "three"] {
            sender.send(Ok(Frame::data(Bytes::from(word)))).await.unwrap();
            // The answer to this word arrives before the next is sent: full duplex.
            let mut echoed = Vec::new();
            while echoed.len() < word.len() {
                let frame = response.body_mut().frame().await.unwrap().unwrap();
                echoed.extend_from_slice(&frame.into_data().unwrap());
            }
            assert_eq!(echoed, word.as_bytes());
        }
        drop(sender);
        let rest = response.body_mut().collect().await.unwrap().to_bytes();
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn delays_and_answers() {
    for client in both().await {
        let started = std::time::Instant::now();
        assert_eq!(client.get_json("/delay/30").await["cluster"], "paris");
        assert!(started.elapsed() >= Duration::from_millis(30));
    }
}

#[tokio::test]
async fn becomes_slower_and_is_as_before() {
    for client in both().await {
        let slower = async |ms: u64| read_json(post(&client, &format!("/slower/{ms}"), empty()).await).await;
        assert_eq!(slower(30).await["slowerMs"], 30);
        let started = std::time::Instant::now();
        assert_eq!(client.get_json("/").await["cluster"], "paris");
        assert!(started.elapsed() >= Duration::from_millis(30));
        assert_eq!(slower(0).await["slowerMs"], 0);
        assert_eq!(client.get("/slower/30").await.status(), 405, "looking at it does not change it");
    }
}

#[tokio::test]
async fn answers_with_the_status_asked_for() {
    for client in both().await {
        for code in [200, 201, 404, 429, 503, 599] {
            let response = client.get(&format!("/status/{code}")).await;
            assert_eq!(response.status(), code);
            assert_eq!(read_json(response).await["version"], "v2");
        }
        for code in [204, 205, 304] {
            let response = client.get(&format!("/status/{code}")).await;
            assert_eq!(response.status(), code);
            assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }
}

#[tokio::test]
async fn shows_headers_as_they_arrived() {
    for client in both().await {
        let request = Request::get(client.uri("/headers?a=1&b")).header("x-two", "first").header("x-two", "second");
        let response = client.send(request.body(empty()).unwrap()).await;
        let arrived = read_json(response).await;
        assert_eq!(arrived["method"], "GET");
        assert_eq!(arrived["path"], "/headers?a=1&b");
        assert_eq!(arrived["authority"], "checkout.shop");
        let twos: Vec<&Value> = arrived["headers"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|header| header[0] == "x-two")
            .map(|header| &header[1])
            .collect();
        assert_eq!(twos, ["first", "second"]);
    }
}

#[tokio::test]
async fn ends_a_body_with_trailers() {
    for client in both().await {
        let request = Request::get(client.uri("/trailers")).header("te", "trailers");
        let response = client.send(request.body(empty()).unwrap()).await;
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().unwrap().clone();
        let text = body.to_bytes();
        assert_eq!(trailers["x-demo-bytes"], text.len().to_string());
        let digest = read_json(post(&client, "/digest", full(text)).await).await;
        assert_eq!(trailers["x-demo-sha256"], digest["sha256"].as_str().unwrap());
    }
}

#[tokio::test]
async fn streams_one_line_at_a_time() {
    for client in both().await {
        let mut response = client.get("/stream/4/5").await;
        let mut frames = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            frames.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(frames.concat(), b"0\n1\n2\n3\n");
    }
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    for client in both().await {
        let get = client.get("/").await;
        let length = get.headers()["content-length"].clone();
        get.into_body().collect().await.unwrap();
        for (path, length) in [("/", length.to_str().unwrap()), ("/bytes/123456", "123456")] {
            let request = Request::head(client.uri(path)).body(empty()).unwrap();
            let response = client.send(request).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["content-length"], length);
            assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }
}

#[tokio::test]
async fn refuses_what_it_does_not_know() {
    for client in both().await {
        for (method, path, status) in [
            (Method::GET, "/nowhere", 404),
            (Method::GET, "/bytes", 404),
            (Method::GET, "/bytes/1/2", 404),
            (Method::GET, "/bytes/-1", 400),
            (Method::GET, "/bytes/+1", 400),
            (Method::GET, "/bytes/18446744073709551616", 400),
            (Method::GET, "/delay/600001", 400),
            (Method::GET, "/status/101", 400),
            (Method::GET, "/status/999", 400),
            (Method::GET, "/digest", 405),
            (Method::PUT, "/echo", 405),
            (Method::TRACE, "/", 405),
        ] {
            let request = Request::builder().method(&method).uri(client.uri(path));
            let response = client.send(request.body(empty()).unwrap()).await;
            assert_eq!(response.status(), status, "{method} {path}");
            assert!(read_json(response).await["error"].is_string());
        }
    }
}

#[tokio::test]
async fn keeps_the_connection_after_a_body_it_had_no_use_for() {
    let client = Client::start(Protocol::Http).await;
    for _ in 0..3 {
        let response = post(&client, "/", full(vec![1_u8; 1 << 20])).await;
        assert_eq!(read_json(response).await["cluster"], "paris");
    }
}

#[tokio::test]
async fn counts_clients_that_left() {
    for protocol in [Protocol::Http, Protocol::H2c] {
        let server = Server::start(protocol).await;
        let observer = Client::connect(&server, protocol).await;
        for path in ["/delay/600000", "/bytes/1000000000000", "/stream/1000000/10"] {
            let before = cancelled(&observer).await;
            eventually(async || {
                let leaving = Client::connect(&server, protocol).await;
                let request = Request::get(leaving.uri(path)).body(empty()).unwrap();
                // A machine too slow to begin in this time gets another chance; none of these
                // paths comes to an end by itself.
                let begun = leaving.send(request);
                let _ = tokio::time::timeout(Duration::from_millis(50), begun).await;
                drop(leaving);
                tokio::time::sleep(Duration::from_millis(5)).await;
                cancelled(&observer).await > before
            })
            .await;
        }
        assert_eq!(observer.get("/").await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn ledger_reads_to_the_end_then_answers() {
    let server = Server::start(Protocol::Tcp).await;
    for (sent, sha256) in [(&b""[..], SHA256_EMPTY), (&b"abc"[..], SHA256_ABC)] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let line = answer.strip_suffix('\n').unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(line).unwrap(),
            json!({"service": "shop/checkout", "cluster": "paris", "bytes": sent.len(), "sha256": sha256})
        );
    }
}

#[tokio::test]
async fn garbage_harms_nobody_else() {
    for protocol in [Protocol::Http, Protocol::H2c] {
        let server = Server::start(protocol).await;
        for garbage in [&b"\0\xff\x16\x03\x01"[..], b"GET / HTTP/9.9\r\n\r\n", &[b'a'; 1 << 19]] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            // The server may close before it took everything.
            let _ = stream.write_all(garbage).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        let client = Client::connect(&server, protocol).await;
        assert_eq!(client.get_json("/").await["service"], "shop/checkout");
    }
}

#[tokio::test]
async fn a_stop_lets_the_open_response_finish() {
    for protocol in [Protocol::Http, Protocol::H2c] {
        let server = Server::start(protocol).await;
        let client = Client::connect(&server, protocol).await;
        let (sender, body) = open_body();
        let mut response = post(&client, "/echo", body).await;
        server.stop.cancel();
        eventually(async || TcpStream::connect(server.address).await.is_err()).await;
        sender.send(Ok(Frame::data(Bytes::from("late")))).await.unwrap();
        drop(sender);
        let body = response.body_mut().collect().await.unwrap().to_bytes();
        assert_eq!(body, "late");
        drop((response, client));
        tokio::time::timeout(Duration::from_secs(9), server.task).await.expect("ends once the response ended").unwrap();
    }
}

struct Server {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(protocol: Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Arc::new(Identity {
            service: "shop/checkout".into(),
            cluster: "paris".into(),
            version: "v2".into(),
            instance: "checkout-1".into(),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, identity, protocol, stop.clone()));
        Self { address, stop, task }
    }
}

struct Client {
    sender: Sender,
    connection: tokio::task::JoinHandle<()>,
}

enum Sender {
    Http1(tokio::sync::Mutex<conn::http1::SendRequest<Body>>),
    Http2(conn::http2::SendRequest<Body>),
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    /// A client of a backend of its own, which ends with the test's runtime.
    async fn start(protocol: Protocol) -> Self {
        Self::connect(&Server::start(protocol).await, protocol).await
    }

    async fn connect(server: &Server, protocol: Protocol) -> Self {
        let stream = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
        match protocol {
            Protocol::Http => {
                let (sender, connection) = conn::http1::handshake(stream).await.unwrap();
                Self {
                    sender: Sender::Http1(sender.into()),
                    connection: tokio::spawn(async { drop(connection.await) }),
                }
            }
            _ => {
                let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                Self { sender: Sender::Http2(sender), connection: tokio::spawn(async { drop(connection.await) }) }
            }
        }
    }

    fn protocol(&self) -> &'static str {
        match self.sender {
            Sender::Http1(_) => "HTTP/1.1",
            Sender::Http2(_) => "HTTP/2",
        }
    }

    fn uri(&self, path: &str) -> String {
        match self.sender {
            Sender::Http1(_) => path.to_owned(),
            Sender::Http2(_) => format!("http://checkout.shop{path}"),
        }
    }

    async fn send(&self, mut request: Request<Body>) -> Response<Incoming> {
        match &self.sender {
            Sender::Http1(sender) => {
                let host = http::HeaderValue::from_static("checkout.shop");
                request.headers_mut().insert("host", host);
                let mut sender = sender.lock().await;
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
            Sender::Http2(sender) => sender.clone().send_request(request).await.unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Response<Incoming> {
        let request = Request::get(self.uri(path)).body(empty()).unwrap();
        self.send(request).await
    }

    async fn get_json(&self, path: &str) -> Value {
        read_json(self.get(path).await).await
    }
}

async fn both() -> [Client; 2] {
    [Client::start(Protocol::Http).await, Client::start(Protocol::H2c).await]
}

async fn post(client: &Client, path: &str, body: Body) -> Response<Incoming> {
    let request = Request::post(client.uri(path)).header("content-type", "text/x-test");
    client.send(request.body(body).unwrap()).await
}

async fn read_json(response: Response<Incoming>) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn open_body() -> (mpsc::Sender<std::io::Result<Frame<Bytes>>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = ReceiverStream::new(receiver).boxed();
    (sender, StreamBody::new(frames).boxed_unsync())
}

async fn cancelled(observer: &Client) -> u64 {
    let count = observer.get_json("/cancelled").await;
    count["cancelled"].as_u64().unwrap()
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "did not happen in ten seconds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
