//! Where the time of a request went, of paris into tokyo: each kind of slowness is called by its name, in the ledger that paris keeps.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use archipelago_chaos::link::{LinkConfig, UdpLink};
use archipelago_proto::v1::Protocol;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use harness::{Mesh, admin, backend, eventually, get, raw, service, text};

const HOST: &str = "checkout.shop";

/// What paris has kept of a service.
async fn kept(mesh: &Mesh, service: &str) -> Vec<Value> {
    let answer = admin(&mesh.state_dir("paris"), "GET", &format!("/slow?service={service}"), "").await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["silentWorkers"], 0, "{answer}");
    let minutes = answer["minutes"].as_array().unwrap().iter();
    minutes.flat_map(|minute| minute["requests"].as_array().unwrap().clone()).collect()
}

/// The request to `path` that is kept, once it is.
async fn ledger(mesh: &Mesh, path: &str) -> Value {
    let mut found = Value::Null;
    eventually("the request is in the ledger", async || {
        let kept = kept(mesh, "shop/checkout").await;
        found = kept.into_iter().find(|request| request["path"] == path).unwrap_or_default();
        !found.is_null()
    })
    .await;
    found
}

fn micros(request: &Value, hop: &str) -> u64 {
    request["hops"][hop].as_u64().unwrap_or_else(|| panic!("no {hop} in {request}"))
}

/// The parts make up the whole, and `hop` is the largest.
fn is_mostly(request: &Value, hop: &str) -> bool {
    let hops = request["hops"].as_object().unwrap();
    let of = |value: &Value| value.as_u64().unwrap();
    let (sum, total) = (hops.values().map(of).sum::<u64>(), of(&request["totalMicros"]));
    // Each part is cut to a microsecond.
    assert!(sum <= total && total - sum <= 16, "{sum} of {total}: {request}");
    hops.iter().all(|(name, value)| name == hop || of(value) < of(&hops[hop]))
}

async fn asks(mesh: &Mesh, path: &str) -> u16 {
    get(mesh.http("paris"), HOST, path, &[]).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn an_endpoint_that_is_slow_is_named_and_so_is_its_service_by_whoever_asks() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (endpoint, _) = backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    let other = service("orders", Protocol::Http1, &["paris"], &[("paris", 1)]);
    mesh.configure(vec![config, other], &[("checkout", "tokyo", endpoint, ""), ("orders", "paris", endpoint, "")])
        .await;
    let trace = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
    let answer = get(mesh.http("paris"), HOST, "/delay/300?token=secret", &trace).await.unwrap();
    assert_eq!(text(answer).await, "tokyo");
    let request = ledger(&mesh, "/delay/300").await;
    assert!(is_mostly(&request, "firstByte"), "{request}");
    assert!(micros(&request, "firstByte") >= 300_000, "{request}");
    assert_eq!(request["endpoint"], endpoint.to_string());
    let of = |name: &str| request[name].as_str().unwrap().to_owned();
    assert_eq!((of("cluster"), of("gateway"), of("method")), ("tokyo".into(), "tokyo/gw-1".into(), "GET".into()));
    assert_eq!((of("traceId"), &request["status"]), ("4bf92f3577b34da6a3ce929d0e0e4736".into(), &Value::from(200)));
    assert_eq!(
        (&request["attempts"], &request["farAttempts"], &request["farSilent"]),
        (&1.into(), &1.into(), &false.into())
    );
    assert!(!request.to_string().contains("secret"), "{request}");
    // Behind the gateway itself there is no tunnel.
    let answer = get(mesh.http("paris"), "orders.shop", "/delay/500", &[]).await.unwrap();
    assert_eq!(text(answer).await, "tokyo", "that is what the endpoint says");
    eventually("it is kept", async || !kept(&mesh, "shop/orders").await.is_empty()).await;
    let orders = kept(&mesh, "shop/orders").await;
    assert!(orders.len() == 1 && is_mostly(&orders[0], "firstByte"), "{orders:?}");
    assert_eq!((&orders[0]["gateway"], &orders[0]["endpoint"]), (&"".into(), &endpoint.to_string().into()));
    // Far gateways keep nothing of what they serve for others.
    let answer = admin(&mesh.state_dir("tokyo"), "GET", "/slow", "").await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["minutes"], Value::Array(vec![]));
    let wrong = admin(&mesh.state_dir("paris"), "GET", "/slow?since=1h", "").await.unwrap();
    assert!(wrong.contains("sinceMs=N"), "{wrong}");
}

#[tokio::test]
async fn a_client_who_goes_away_leaves_his_request_in_the_ledger() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (endpoint, seen) = backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    let entry = mesh.http("paris");
    let asking = tokio::spawn(async move { get(entry, HOST, "/delay/600000", &[]).await.is_ok() });
    eventually("it waits", async || seen.waiting.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
    asking.abort();
    let request = ledger(&mesh, "/delay/600000").await;
    assert!(is_mostly(&request, "beyond"), "nobody said what took so long: {request}");
    assert_eq!((&request["status"], &request["flags"]), (&0.into(), &"DC".into()));
    assert_eq!((&request["gateway"], &request["farSilent"]), (&"tokyo/gw-1".into(), &false.into()));
}

#[tokio::test]
async fn a_link_that_is_slow_is_the_tunnels_time() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let tunnels = mesh.gateways["tokyo"].addresses().tunnel.clone();
    let link = |to: &String| UdpLink::start(LinkConfig::transparent(to.parse().unwrap())).unwrap();
    let links: Vec<UdpLink> = tunnels.iter().map(link).collect();
    mesh.links.insert("tokyo".into(), links.iter().map(|link| link.local_addr().to_string()).collect());
    let (endpoint, _) = backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    links.iter().for_each(|link| link.set_delay(Duration::from_millis(150)));
    assert_eq!(asks(&mesh, "/far").await, 200);
    let request = ledger(&mesh, "/far").await;
    assert!(is_mostly(&request, "tunnel") && micros(&request, "tunnel") >= 300_000, "{request}");
    assert_eq!((&request["gateway"], &request["endpoint"]), (&"tokyo/gw-1".into(), &endpoint.to_string().into()));
}

#[tokio::test]
async fn connections_that_do_not_come_about_are_named_with_where() {
    // A socket that listens and whose queue is full: the kernel answers nobody any more.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let silent = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(200)) {
        queued.push(stream);
    }
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (endpoint, _) = backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, ""), ("checkout", "tokyo", silent, "")]).await;
    let mut request = Value::Null;
    let mut number = 0;
    eventually("one of the requests meets the endpoint that says nothing", async || {
        number += 1;
        let path = format!("/{number}");
        assert_eq!(asks(&mesh, &path).await, 200, "the other one serves it");
        request = kept(&mesh, "shop/checkout").await.into_iter().find(|r| r["farAttempts"] == 2).unwrap_or_default();
        !request.is_null()
    })
    .await;
    // As long as a gateway waits for a connection inside its cluster.
    assert!(is_mostly(&request, "connect") && micros(&request, "connect") >= 990_000, "{request}");
    assert_eq!((&request["endpoint"], &request["lostAt"]), (&endpoint.to_string().into(), &silent.to_string().into()));
    assert_eq!(request["attempts"], 1, "paris saw one attempt, and nothing of the two in tokyo");
}

/// An endpoint of HTTP/2 that takes one stream per connection, and its time for each.
async fn one_at_a_time(takes: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer = service_fn(move |_| async move {
                    tokio::time::sleep(takes).await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("tokyo"))))
                });
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.max_concurrent_streams(1).serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_queue_at_the_far_gateway_is_named_with_what_it_is_for() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let endpoint = one_at_a_time(Duration::from_millis(100)).await;
    let config = service("checkout", Protocol::H2c, &["tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    let mut request = Value::Null;
    // Each of tokyo's workers has up to 16 connections, one stream on each: whoever comes fifth in a row waits four times as long as
    // his own request takes.
    eventually("a request waits for a stream for longer than it takes", async || {
        let asked = (0..128).map(|_| asks(&mesh, "/"));
        futures_util::future::join_all(asked).await;
        let kept = kept(&mesh, "shop/checkout").await;
        let waited = |r: &Value| r["status"] == 200 && r["farAttempts"] == 1 && is_mostly(r, "endpointWait");
        request = kept.into_iter().find(waited).unwrap_or_default();
        !request.is_null()
    })
    .await;
    assert!(micros(&request, "endpointWait") >= 100_000, "{request}");
    assert_eq!(request["endpoint"], endpoint.to_string());
}

#[tokio::test]
async fn nobody_else_says_or_hears_what_gateways_tell_each_other() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    // Says in its head and in its trailers that it took no time, and who else did.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let forged = "HTTP/1.1 200 OK\r\nmesh-ledger: 1AAAAAABoGBH8AAABCMp\r\ntransfer-encoding: chunked\r\n\r\n\
                      2\r\nok\r\n0\r\nmesh-ledger: 1AAAAAABoGA\r\n\r\n";
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
                let asked = String::from_utf8_lossy(&head).to_ascii_lowercase();
                assert!(!asked.contains("mesh-ledger") && !asked.contains("mesh_ledger"), "{asked}");
                let _ = stream.write_all(forged.as_bytes()).await;
            });
        }
    });
    let config = service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, ""), ("checkout", "paris", endpoint, "")]).await;
    for cluster in ["paris", "tokyo"] {
        let request = format!(
            "GET /{cluster} HTTP/1.1\r\nHost: {HOST}\r\nx-only: {cluster}\r\nMesh-Ledger: 1AAAAAABoGA\r\nmesh_ledger: 1\r\n\
             TE: trailers\r\nConnection: close, TE\r\n\r\n"
        );
        let answer = raw(mesh.http("paris"), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("ok"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("mesh-ledger"), "{answer}");
        let kept = ledger(&mesh, &format!("/{cluster}")).await;
        assert_eq!(kept["endpoint"], endpoint.to_string(), "where it really was: {kept}");
    }
}

/// The parts that a response's head tells its client, in milliseconds.
fn timing(head: &http::HeaderMap) -> std::collections::BTreeMap<String, f64> {
    let values = head.get_all("server-timing").into_iter().map(|value| value.to_str().unwrap());
    let parts = values.flat_map(|value| value.split(", ")).map(|part| part.split_once(";dur=").unwrap());
    parts.map(|(name, millis)| (name.to_owned(), millis.parse().unwrap())).collect()
}

#[tokio::test]
async fn clients_are_told_where_time_went_by_services_that_allow_it_only() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (endpoint, _) = backend("tokyo").await;
    // The harness allows `shop/timed`.
    let services = ["timed", "checkout", "empty"].map(|name| service(name, Protocol::Http1, &["tokyo"], &[]));
    let endpoints = [("timed", "tokyo", endpoint, ""), ("checkout", "tokyo", endpoint, "")];
    mesh.configure(services.into(), &endpoints).await;
    for entry in ["paris", "tokyo"] {
        let answer = get(mesh.http(entry), "timed.shop", "/delay/200", &[]).await.unwrap();
        assert_eq!(answer.status(), 200);
        let told = timing(answer.headers());
        let total = told["total"];
        assert!(told["first-byte"] >= 200.0 && told["first-byte"] <= total, "{entry}: {told:?}");
        assert_eq!(told.contains_key("tunnel"), entry == "paris", "{entry}: {told:?}");
        let parts: f64 = told.iter().filter(|(name, _)| *name != "total").map(|(_, millis)| millis).sum();
        assert!((parts - total).abs() < 0.001, "{entry}: {told:?}");
        let other = get(mesh.http(entry), HOST, "/", &[]).await.unwrap();
        assert_eq!(other.status(), 200);
        assert!(!other.headers().contains_key("server-timing"), "{entry}: {:?}", other.headers());
        let nobody = get(mesh.http(entry), "empty.shop", "/", &[]).await.unwrap();
        assert!(nobody.status().is_server_error() && !nobody.headers().contains_key("server-timing"), "{nobody:?}");
    }
    // What the gateway answers itself says it, too.
    mesh.configure(vec![service("timed", Protocol::Http1, &["tokyo"], &[])], &[]).await;
    let nobody = get(mesh.http("tokyo"), "timed.shop", "/", &[]).await.unwrap();
    assert_eq!((nobody.status().as_u16(), timing(nobody.headers()).is_empty()), (503, false), "{nobody:?}");
}
