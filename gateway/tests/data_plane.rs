//! The data path over real sockets: two gateways, real tunnels, real backends.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_gateway::Limits;
use archipelago_gateway::internals::Change;
use archipelago_http::{Fields, Known, RequestHead, ResponseHead};
use archipelago_model::stream::Refusal;
use archipelago_proto::v1::{self as proto, Protocol, config_resource::Body};
use archipelago_tunnel::{Cut, DetectorConfig, PeerHandle, PeerState, RecvHalf, SendHalf, TunnelError};
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use harness::{
    Mesh, apply, backend, bytes, empty, eventually, full_update, get, on_port, patient, raw, refusing, request, send,
    service, tcp_backend, text,
};

const CHECKOUT: &str = "checkout.shop";

/// paris and tokyo, one HTTP backend each, a split as given.
async fn two_clusters(weights: &[(&str, u32)]) -> (Mesh, [std::sync::Arc<harness::Seen>; 2]) {
    two_clusters_with(weights, patient()).await
}

async fn two_clusters_with(weights: &[(&str, u32)], limits: Limits) -> (Mesh, [std::sync::Arc<harness::Seen>; 2]) {
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let (paris, seen_paris) = backend("paris").await;
    let (tokyo, seen_tokyo) = backend("tokyo").await;
    let services = vec![
        service("checkout", Protocol::Http1, &["paris", "tokyo"], weights),
        service("catalog", Protocol::H2c, &["tokyo"], &[]),
    ];
    mesh.configure(
        services,
        &[("checkout", "paris", paris, "v1"), ("checkout", "tokyo", tokyo, "v2"), ("catalog", "tokyo", tokyo, "v1")],
    )
    .await;
    mesh.serves(CHECKOUT, "paris").await;
    mesh.serves(CHECKOUT, "tokyo").await;
    mesh.serves("catalog.shop", "tokyo").await;
    (mesh, [seen_paris, seen_tokyo])
}

#[tokio::test]
async fn a_split_and_sticky_users() {
    let (mut mesh, _) = two_clusters(&[("paris", 90), ("tokyo", 10)]).await;
    let entry = mesh.http("paris");
    let mut served: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        let response = get(entry, CHECKOUT, "/", &[]).await.unwrap();
        let by = response.headers()["mesh-served-by"].to_str().unwrap().to_owned();
        let cluster = text(response).await;
        assert_eq!(by, format!("{cluster}/gw-1"));
        *served.entry(cluster).or_default() += 1;
    }
    // Two workers with a sequence each: within a few of 90/10.
    assert!(served["tokyo"].abs_diff(40) <= 8, "{served:?}");

    let mut config = service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("paris", 50), ("tokyo", 50)]);
    config.ports[0].sticky = Some(proto::Sticky { key: Some(proto::sticky::Key::Header("x-user".into())) });
    let (paris, _) = backend("paris").await;
    let (tokyo, _) = backend("tokyo").await;
    mesh.configure(vec![config], &[("checkout", "paris", paris, ""), ("checkout", "tokyo", tokyo, "")]).await;
    mesh.serves(CHECKOUT, "paris").await;
    mesh.serves(CHECKOUT, "tokyo").await;
    let mut homes = BTreeMap::new();
    for user in 0..20 {
        let name = format!("user-{user}");
        let mut homes_of_user = Vec::new();
        for entry in ["paris", "tokyo", "paris"] {
            homes_of_user.push(text(get(mesh.http(entry), CHECKOUT, "/", &[("x-user", &name)]).await.unwrap()).await);
        }
        homes_of_user.dedup();
        assert_eq!(homes_of_user.len(), 1, "{name} moved: {homes_of_user:?}");
        *homes.entry(homes_of_user.remove(0)).or_insert(0) += 1;
    }
    assert_eq!(homes.len(), 2, "{homes:?}");
}

#[tokio::test]
async fn headers_on_both_paths() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    for cluster in ["paris", "tokyo"] {
        let extra = [
            ("x-only", cluster),
            ("mesh-source", "forged"),
            ("connection", "x-private"),
            ("x-private", "1"),
            ("traceparent", "00-a-b-01"),
        ];
        let seen = text(get(mesh.http("paris"), CHECKOUT, "/headers", &extra).await.unwrap()).await;
        for expected in [
            r#""host": "checkout.shop""#,
            r#""mesh-source": "spiffe://mesh.test/cluster/paris/gateway/gw-1""#,
            r#""mesh-cluster": "paris""#,
            r#""mesh-attempt": "1""#,
            r#""mesh-deadline-ms""#,
            r#""traceparent": "00-a-b-01""#,
        ] {
            assert!(seen.contains(expected), "{expected} missing for {cluster} in {seen}");
        }
        assert!(!seen.contains("forged") && !seen.contains("x-private"), "{seen}");
        assert!(seen.contains(if cluster == "paris" { r#""mesh-hop": "1""# } else { r#""mesh-hop": "2""# }), "{seen}");
    }
    let unknown = get(mesh.http("paris"), "nobody.shop", "/", &[]).await.unwrap();
    assert_eq!((unknown.status().as_u16(), unknown.headers()["mesh-failure"].to_str().unwrap()), (404, "unknown-host"));
    let passed_on = get(mesh.http("paris"), CHECKOUT, "/status/503", &[("x-only", "tokyo")]).await.unwrap();
    assert_eq!(passed_on.status(), 503);
    assert!(!passed_on.headers().contains_key("mesh-failure"), "the backend's own answer is passed on");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    for host in [CHECKOUT, "catalog.shop"] {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed_unsync();
        let mut response =
            send(mesh.http("paris"), request("POST", host, "/echo", &[("x-only", "tokyo")], body)).await.unwrap();
        for round in 0..5 {
            let said = Bytes::from(format!("round {round}"));
            sender.send(Ok(Frame::data(said.clone()))).await.unwrap();
            // The echo arrives before the request goes on: nothing waits for the end of the body.
            let frame = tokio::time::timeout(Duration::from_secs(10), response.body_mut().frame())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            assert_eq!(frame.into_data().unwrap(), said, "{host}");
        }
        drop(sender);
        assert!(response.body_mut().frame().await.is_none());
    }
}

#[tokio::test]
async fn big_bodies_arrive_whole() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    let n = 8 * 1024 * 1024 + 13;
    for cluster in ["paris", "tokyo"] {
        let down = get(mesh.http("paris"), CHECKOUT, &format!("/bytes/{n}"), &[("x-only", cluster)]).await.unwrap();
        assert_eq!(down.into_body().collect().await.unwrap().to_bytes().len(), n, "download from {cluster}");
        let body = bytes(vec![7; n]);
        let up =
            send(mesh.http("paris"), request("POST", CHECKOUT, "/count", &[("x-only", cluster)], body)).await.unwrap();
        assert_eq!(text(up).await, n.to_string(), "upload to {cluster}");
    }
}

#[tokio::test]
async fn trailers_cross_both_gateways() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    for host in [CHECKOUT, "catalog.shop"] {
        let response = get(
            mesh.http("paris"),
            host,
            "/trailers",
            &[("x-only", "tokyo"), ("te", "trailers"), ("connection", "te")],
        )
        .await
        .unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(
            collected.trailers().and_then(|t| t.get("x-checksum")).map(|v| v.as_bytes()),
            Some(&b"abc"[..]),
            "{host}"
        );
        assert!(collected.trailers().is_some_and(|t| !t.contains_key("mesh-source")), "{host}");
        assert_eq!(collected.to_bytes(), "body");

        let trailers = http::HeaderMap::from_iter([
            (http::HeaderName::from_static("x-checksum"), http::HeaderValue::from_static("abc")),
            (http::HeaderName::from_static("mesh-source"), http::HeaderValue::from_static("forged")),
            (http::HeaderName::from_static("mesh_source"), http::HeaderValue::from_static("forged")),
        ]);
        let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let with_trailers = [("x-only", "tokyo"), ("trailer", "x-checksum, mesh-source, mesh_source")];
        let response =
            send(mesh.http("paris"), request("POST", host, "/seen-trailers", &with_trailers, body)).await.unwrap();
        let seen = text(response).await;
        assert!(seen.contains("x-checksum") && !seen.contains("forged"), "{host}: {seen}");
    }
}

fn asked(method: &str, uri: &str, service: &str, extra: &[(&'static str, &str)]) -> http::Request<harness::Body> {
    let mut request = http::Request::builder().method(method).uri(uri).body(harness::empty()).unwrap();
    for (name, value) in [("mesh-service", service), ("mesh-hop", "1")].iter().chain(extra) {
        request.headers_mut().insert(*name, http::HeaderValue::from_str(value).unwrap());
    }
    request
}

/// Asks for bytes of `service`.
async fn connect(
    peer: &PeerHandle,
    to: &str,
    service: &str,
) -> Result<(ResponseHead, SendHalf, RecvHalf), TunnelError> {
    let mut head = RequestHead::new();
    head.method = http::Method::CONNECT;
    assert!(head.set_authority(to.as_bytes()));
    head.fields.push(Known::MeshService, service.as_bytes());
    head.fields.push(Known::MeshHop, b"1");
    peer.open().await?.connect(&head, &Fields::new()).await
}

#[tokio::test]
async fn a_revoked_gateway_and_one_of_an_undeclared_cluster_are_cut_and_stay_out() {
    let (mut mesh, _) = two_clusters(&[("paris", 1)]).await;
    let (_berlin, berlin) = mesh.stranger(mesh.authority.gateway("berlin", "gw-1"), "tokyo");
    eventually("berlin is refused", async || {
        berlin.last_error().is_some_and(|error| error.contains("undeclared_cluster"))
    })
    .await;
    let (_paris, paris) = mesh.stranger(mesh.authority.gateway("paris", "gw-9"), "tokyo");
    eventually("a gateway of paris is in", async || paris.state() == PeerState::Up).await;
    let waiting = tokio::spawn({
        let paris = paris.clone();
        async move { paris.request(asked("GET", "http://checkout.shop/delay/600000", "shop/checkout", &[])).await.map(drop) }
    });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    mesh.revoke("spiffe://mesh.test/cluster/paris/gateway/gw-9", now.try_into().unwrap());
    mesh.configure(vec![service("checkout", Protocol::Http1, &["paris", "tokyo"], &[])], &[]).await;
    assert!(waiting.await.unwrap().is_err(), "what was in flight ends");
    eventually("it is refused from now on", async || paris.last_error().is_some()).await;
    assert_ne!(paris.state(), PeerState::Up);
}

/// The gateway of a cluster that claims more than it has, at the tunnel of another.
#[tokio::test]
async fn a_peer_gets_what_is_exported_and_nothing_else() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (address, seen) = backend("tokyo").await;
    let ledger = tcp_backend().await;
    let services = vec![
        service("checkout", Protocol::Http1, &["paris", "tokyo"], &[]),
        // paris exports it, or says so; tokyo runs one and keeps it to itself.
        service("secret", Protocol::Http1, &["paris"], &[]),
        service("vault", Protocol::Tcp, &["paris"], &[]),
        on_port(service("ledger", Protocol::Tcp, &["tokyo"], &[]), 1),
    ];
    let endpoints = [
        ("checkout", "tokyo", address, ""),
        ("secret", "tokyo", address, ""),
        ("vault", "tokyo", ledger, ""),
        ("ledger", "tokyo", ledger, ""),
    ];
    mesh.configure(services, &endpoints).await;
    let (_tunnels, tokyo) = mesh.stranger(mesh.authority.gateway("paris", "gw-9"), "tokyo");
    eventually("the tunnel is up", async || tokyo.state() == PeerState::Up).await;

    let honest = asked(
        "GET",
        "http://checkout.shop/headers",
        "shop/checkout",
        &[("mesh-source", "forged"), ("mesh_source", "forged"), ("mesh-cluster", "forged")],
    );
    let response = tokyo.request(honest).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("spiffe://mesh.test/cluster/paris/gateway/gw-9") && !body.contains("forged"), "{body}");
    let before = seen.requests.load(Ordering::SeqCst);

    for (what, uri, key) in [
        ("unexported", "http://secret.shop/", "shop/secret"),
        ("unknown", "http://nothing.shop/", "shop/nothing"),
        ("a TCP service", "http://ledger.shop/", "shop/ledger"),
    ] {
        let error = tokyo.request(asked("GET", uri, key, &[])).await.map(|r| r.status()).unwrap_err();
        assert!(error.never_processed(), "{what}: {error}");
    }
    let looped = tokyo.request(asked("GET", "http://checkout.shop/", "shop/checkout", &[("mesh-hop", "2")])).await;
    assert_eq!(looped.unwrap().status(), 508);
    for (what, key) in [("past the proxy", "shop/checkout"), ("unexported", "shop/secret"), ("TCP", "shop/vault")] {
        let error = connect(&tokyo, "checkout.shop:80", key).await.map(|(response, ..)| response.status).unwrap_err();
        assert!(error.never_processed(), "CONNECT {what}: {error}");
    }
    let (response, mut send, mut recv) = connect(&tokyo, "ledger.shop:80", "shop/ledger").await.unwrap();
    assert_eq!(response.status, 200);
    send.finish().await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "read 0 bytes");
    assert_eq!(seen.requests.load(Ordering::SeqCst), before, "nothing else reached an endpoint");
}

#[tokio::test]
async fn an_overloaded_far_gateway_says_that_it_did_nothing() {
    let limits = Limits { requests_max: 1, drain_timeout: Duration::from_secs(1), ..patient() };
    let mut mesh = Mesh::start_with(&["paris", "tokyo"], limits).await;
    let (address, seen) = backend("tokyo").await;
    let services = vec![service("checkout", Protocol::Http1, &["tokyo"], &[])];
    mesh.configure(services, &[("checkout", "tokyo", address, "")]).await;
    let (_tunnels, tokyo) = mesh.stranger(mesh.authority.gateway("paris", "gw-9"), "tokyo");
    eventually("the tunnel is up", async || tokyo.state() == PeerState::Up).await;
    let request = |path: &str| asked("POST", &format!("http://checkout.shop{path}"), "shop/checkout", &[]);
    let slow = tokio::spawn({
        let (tokyo, request) = (tokyo.clone(), request("/delay/600000"));
        async move { tokyo.request(request).await.map(drop) }
    });
    eventually("the slot is taken", async || seen.waiting.load(Ordering::SeqCst) == 1).await;
    let error = tokyo.request(request("/")).await.map(|r| r.status()).unwrap_err();
    assert!(error.never_processed(), "{error}");
    slow.abort();
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_backend() {
    let (mesh, [paris, tokyo]) = two_clusters(&[("paris", 1)]).await;
    for (cluster, seen) in [("paris", paris), ("tokyo", tokyo)] {
        let waiting = tokio::spawn({
            let entry = mesh.http("paris");
            async move { get(entry, CHECKOUT, "/delay/60000", &[("x-only", cluster)]).await.map(|r| r.status()) }
        });
        eventually("the backend has the request", async || seen.waiting.load(Ordering::SeqCst) == 1).await;
        waiting.abort();
        eventually(&format!("the backend in {cluster} is cancelled"), async || {
            seen.cancelled.load(Ordering::SeqCst) == 1
        })
        .await;
    }
}

#[tokio::test]
async fn a_broken_body_never_ends_cleanly() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    for cluster in ["paris", "tokyo"] {
        let response = get(mesh.http("paris"), CHECKOUT, "/break", &[("x-only", cluster)]).await;
        if let Ok(response) = response {
            if response.status() == 200 {
                assert!(response.into_body().collect().await.is_err(), "a broken body from {cluster} looked whole");
            } else {
                assert_eq!(response.status(), 502);
            }
        }
    }
}

#[tokio::test]
async fn a_silent_cut_costs_no_idempotent_request() {
    // Seen before QUIC sees it, and not by a thread that was off the processor for a moment.
    let (suspect_floor, dead_floor) = (Duration::from_millis(500), Duration::from_secs(1));
    let detector = DetectorConfig { suspect_floor, dead_floor, ..DetectorConfig::default() };
    let limits = Limits { detector, request_timeout: Duration::from_secs(60), ..patient() };
    let (mesh, [paris, tokyo]) = two_clusters_with(&[("tokyo", 100)], limits).await;
    let entry = mesh.http("paris");
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..20 {
        requests.spawn(async move {
            let response = get(entry, CHECKOUT, "/delay/1500", &[]).await.unwrap();
            (response.status().as_u16(), text(response).await)
        });
    }
    eventually("tokyo has them all", async || tokyo.waiting.load(Ordering::SeqCst) == 20).await;
    mesh.gateways["paris"].workers().cut(&Cut { clusters: vec!["tokyo".into()], ..Cut::default() }).await;
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.unwrap(), (200, "paris".to_owned()));
    }
    assert_eq!(paris.waiting.load(Ordering::SeqCst), 20);
    // Without replay there is no answer for what may not be repeated; a new one goes elsewhere.
    let post = send(entry, request("POST", CHECKOUT, "/", &[], bytes("x"))).await.unwrap();
    assert_eq!(text(post).await, "paris");
    mesh.gateways["paris"].workers().heal().await;
    eventually("tokyo takes its share again", async || {
        text(get(entry, CHECKOUT, "/", &[]).await.unwrap()).await == "tokyo"
    })
    .await;
}

#[tokio::test]
async fn refused_endpoints_and_empty_clusters_fail_over() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (alive, _) = backend("paris").await;
    let (nobody, _refusing) = refusing();
    let config = service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "paris", alive, ""), ("checkout", "tokyo", nobody, "")]).await;
    mesh.serves(CHECKOUT, "paris").await;
    let entry = mesh.http("paris");
    // tokyo says that it has an endpoint, but nobody listens there: rejected as never processed, so even a POST moves on.
    for _ in 0..20 {
        let response = send(entry, request("POST", CHECKOUT, "/count", &[], bytes("hello"))).await.unwrap();
        assert_eq!(text(response).await, "5");
    }
    let nowhere = get(entry, CHECKOUT, "/", &[("x-only", "tokyo")]).await.unwrap();
    assert_eq!(
        (nowhere.status().as_u16(), nowhere.headers()["mesh-failure"].to_str().unwrap()),
        (503, "no-healthy-upstream")
    );
}

/// What the admin socket of a gateway answers to a GET.
async fn admin(state_dir: &std::path::Path, target: &str) -> String {
    let mut stream = tokio::net::UnixStream::connect(state_dir.join("admin.sock")).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

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
    let state = admin(&mesh.state_dir("paris"), "/state").await;
    assert!(state.contains(&format!("port {} is taken; shop/ledger is not served here", address.port())), "{state}");
    drop(socket);
    eventually("the port is ours", async || talk(address).await.is_ok()).await;
    let state = admin(&mesh.state_dir("paris"), "/state").await;
    assert!(state.contains("\"unserved\":[]"), "{state}");
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

#[tokio::test]
async fn smuggling_and_garbage_are_refused() {
    let (mesh, [paris, _]) = two_clusters(&[("paris", 1)]).await;
    let entry = mesh.http("paris");
    let before = paris.requests.load(Ordering::SeqCst);
    let head = "POST / HTTP/1.1\r\nHost: checkout.shop\r\n";
    for rest in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "Content-Length: +5\r\n\r\nhello",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X: a\r\n folded\r\n\r\n",
        "X: a\nContent-Length: 5\r\n\r\nhello",
        "Host: other\r\nContent-Length: 0\r\n\r\n",
    ] {
        let answer = raw(entry, format!("{head}{rest}").as_bytes()).await;
        // A coding that is not known, with an end that is (RFC 9112 §6.1).
        let status = if rest.contains("gzip") { 501 } else { 400 };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{rest:?} got {answer:?}");
        assert!(answer.split_once("\r\n\r\n").is_some_and(|(_, why)| !why.is_empty()), "no reason: {answer:?}");
    }
    assert_eq!(paris.requests.load(Ordering::SeqCst), before, "none of them reached the backend");
    for bad in
        ["Transfer-Encoding: chunked\r\n\r\nG\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n"]
    {
        let answer = raw(entry, format!("{head}{bad}").as_bytes()).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{bad:?} got {answer:?}");
    }
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let answer = raw(entry, garbage).await;
        assert!(
            answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5") || answer.is_empty(),
            "{garbage:?} got {answer:?}"
        );
    }
    let oversized = format!("GET / HTTP/1.1\r\nHost: checkout.shop\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let answer = raw(entry, oversized.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer:?}");
    assert_eq!(get(entry, CHECKOUT, "/", &[]).await.unwrap().status(), 200);
}

#[tokio::test]
async fn restarts_from_its_disk_and_survives_a_damaged_one() {
    let (mut mesh, _) = two_clusters(&[("paris", 1)]).await;
    let config = mesh.state_dir("paris").join("config.log");
    eventually("the configuration is on disk", async || config.exists()).await;
    // And this a moment later: nothing that was acknowledged is lost with a gateway that is told to stop.
    let update = mesh.difference("paris", 2, vec![]);
    apply(&mesh.gateways["paris"], Change::Config(update)).await.unwrap();
    mesh.stop_gateway("paris").await;
    mesh.start_gateway("paris").await;
    assert_eq!(mesh.gateways["paris"].revision(), 2);
    let entry = mesh.http("paris");
    eventually("serves without control plane and agent", async || {
        get(entry, CHECKOUT, "/", &[]).await.is_ok_and(|r| r.status() == 200)
    })
    .await;
    let answer = get(entry, CHECKOUT, "/", &[]).await.unwrap();
    assert_eq!(text(answer).await, "paris");

    mesh.stop_gateway("paris").await;
    std::fs::write(&config, b"not ours").unwrap();
    mesh.start_gateway("paris").await;
    assert_eq!(mesh.gateways["paris"].revision(), 0);
    assert_eq!(get(mesh.http("paris"), CHECKOUT, "/", &[]).await.unwrap().status(), 404);
}

/// An endpoint that was replaced is unknown until its first check: it serves while nothing better is there, and only then.
#[tokio::test]
async fn an_unchecked_endpoint_is_better_than_nothing_and_worse_than_a_ready_one() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (old, seen_old) = backend("old").await;
    let (new, seen_new) = backend("new").await;
    let services = vec![service("checkout", Protocol::Http1, &["tokyo"], &[])];
    mesh.configure(services, &[("checkout", "tokyo", old, "v1")]).await;
    mesh.serves(CHECKOUT, "tokyo").await;
    let tell = async |mesh: &Mesh, endpoints: &[(std::net::SocketAddr, proto::Readiness)]| {
        let endpoint = |(address, readiness): &(std::net::SocketAddr, proto::Readiness)| proto::Endpoint {
            address: address.to_string(),
            version: "v1".into(),
            instance: "i".into(),
            readiness: (*readiness).into(),
            locality: 0,
        };
        let local = proto::LocalService {
            namespace: "shop".into(),
            name: "checkout".into(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..Default::default()
        };
        let update = proto::LocalUpdate { full: true, upserts: vec![local], ..Default::default() };
        mesh.tell("tokyo", Change::Local(update)).await;
    };
    let (ready, unknown, down) = (proto::Readiness::Ready, proto::Readiness::Unknown, proto::Readiness::NotReady);

    // Beside a ready one it gets nothing.
    tell(&mesh, &[(old, ready), (new, unknown)]).await;
    let before = seen_new.requests.load(Ordering::SeqCst);
    for _ in 0..40 {
        assert_eq!(text(get(mesh.http("tokyo"), CHECKOUT, "/", &[]).await.unwrap()).await, "old");
    }
    assert_eq!(seen_new.requests.load(Ordering::SeqCst), before);

    // Alone it gets everything, from here and from afar, without one failure.
    tell(&mesh, &[(old, down), (new, unknown)]).await;
    let before = seen_old.requests.load(Ordering::SeqCst);
    for entry in ["tokyo", "paris", "tokyo", "paris", "tokyo", "paris"] {
        let response = get(mesh.http(entry), CHECKOUT, "/", &[]).await.unwrap();
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "new"), "from {entry}");
    }
    assert_eq!(seen_old.requests.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_refused_configuration_changes_nothing() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    let other = proto::MeshConfig { trust_domain: "other.test".into(), ..Default::default() };
    let other = archipelago_model::compile::resource(Body::Mesh(other));
    let gateway = &mesh.gateways["paris"];
    let bad = mesh.difference("paris", 99, vec![other]);
    let error = apply(gateway, Change::Config(bad)).await.unwrap_err();
    assert!(error.to_string().contains("trust domain \"other.test\""), "{error}");
    // What is older than what runs is not looked into, however complete it is.
    let regression = apply(gateway, Change::Config(full_update(0, vec![]))).await.unwrap_err();
    assert!(regression.to_string().contains("meshctl raft restored"), "{regression}");
    // A difference to something that is not held.
    let difference = proto::ConfigUpdate { base_digest: vec![1; 16], ..mesh.difference("paris", 99, vec![]) };
    let wrong = apply(gateway, Change::Config(difference)).await.unwrap_err();
    assert!(matches!(wrong, Refusal::WrongBase { .. }), "{wrong}");
    assert_eq!(mesh.gateways["paris"].revision(), 1);
    assert_eq!(get(mesh.http("paris"), CHECKOUT, "/", &[]).await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_cannot_be_used_is_closed_or_stays_and_the_rest_goes_on() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    let broken = |name: &str| {
        let mut config = service(name, Protocol::Http1, &["paris", "tokyo"], &[("tokyo", 1)]);
        config.ports[0].rules[0].matches = vec![proto::Match { on: None }];
        archipelago_model::compile::resource(Body::Service(config))
    };
    let upserts = vec![broken("checkout"), broken("web")];
    let update = mesh.difference("paris", 2, upserts);
    let applied = apply(&mesh.gateways["paris"], Change::Config(update)).await.unwrap();
    let kept: Vec<_> = applied.rejections.iter().map(|r| (r.resource.as_str(), r.kept())).collect();
    assert_eq!(kept, [("service/shop/checkout", proto::Kept::LastGood), ("service/shop/web", proto::Kept::Closed)]);
    assert_eq!(mesh.gateways["paris"].revision(), 2);
    // Never seen before: known, and closed. Seen before: as it was.
    let closed = get(mesh.http("paris"), "web.shop", "/", &[]).await.unwrap();
    assert_eq!((closed.status().as_u16(), closed.headers()["mesh-failure"].to_str().unwrap()), (503, "service-closed"));
    assert_eq!(text(get(mesh.http("paris"), CHECKOUT, "/", &[]).await.unwrap()).await, "paris");
}

#[tokio::test]
async fn a_drain_loses_nothing() {
    let (mut mesh, [paris, _]) = two_clusters(&[("paris", 1)]).await;
    let entry = mesh.http("paris");
    let slow = tokio::spawn(async move { get(entry, CHECKOUT, "/delay/700", &[]).await.map(|r| r.status().as_u16()) });
    eventually("the request is on its way", async || paris.waiting.load(Ordering::SeqCst) == 1).await;
    mesh.stop_gateway("paris").await;
    assert_eq!(slow.await.unwrap().unwrap(), 200);
    assert!(TcpStream::connect(entry).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn http2_clients_share_the_split() {
    let (mesh, _) = two_clusters(&[("paris", 50), ("tokyo", 50)]).await;
    let stream = TcpStream::connect(mesh.http("paris")).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake::<_, _, harness::Body>(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut sender = sender.clone();
        let uri = format!("http://{CHECKOUT}/");
        requests.spawn(async move {
            let response = sender.send_request(http::Request::get(uri).body(empty()).unwrap()).await.unwrap();
            text(response).await
        });
    }
    let clusters = requests.join_all().await;
    let tokyo = clusters.iter().filter(|c| *c == "tokyo").count();
    assert!(tokyo.abs_diff(50) <= 2, "{tokyo} of 100");
}

#[tokio::test]
async fn dns_over_udp_and_tcp() {
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    let server: std::net::SocketAddr = mesh.gateways["paris"].addresses().dns.parse().unwrap();
    let ask = |name: &str, kind: RecordType, edns: bool| {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if edns {
            message.set_edns(Edns::new());
        }
        message.to_vec().unwrap()
    };
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let over_udp = async |question: Vec<u8>| {
        let mut buffer = vec![0; 4096];
        let mut size = 0;
        eventually("an answer over UDP", async || {
            socket.send_to(&question, server).await.unwrap();
            match tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await {
                Ok(Ok(n)) => size = n,
                _ => return false,
            }
            true
        })
        .await;
        Message::from_vec(&buffer[..size]).unwrap()
    };
    let found = over_udp(ask("CheckOut.shop.svc.clusterset.local.", RecordType::A, true)).await;
    assert_eq!(found.metadata.response_code, ResponseCode::NoError);
    assert!(found.metadata.authoritative && found.edns.is_some());
    assert_eq!(found.answers[0].data.to_string(), "127.0.0.1");
    let service = over_udp(ask("checkout.shop.svc.clusterset.local.", RecordType::SRV, false)).await;
    let port = mesh.http("paris").port();
    assert_eq!(service.answers[0].data.to_string(), format!("0 100 {port} checkout.shop.svc.clusterset.local."));
    assert_eq!(
        over_udp(ask("no.shop.svc.clusterset.local.", RecordType::A, false)).await.metadata.response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(over_udp(ask("example.com.", RecordType::A, false)).await.metadata.response_code, ResponseCode::Refused);

    let mut tcp = TcpStream::connect(server).await.unwrap();
    let question = ask("dns-version.clusterset.local.", RecordType::TXT, false);
    tcp.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes()).await.unwrap();
    tcp.write_all(&question).await.unwrap();
    let size = tcp.read_u16().await.unwrap();
    let mut answer = vec![0; usize::from(size)];
    tcp.read_exact(&mut answer).await.unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers[0].data.to_string(), "1.0.0");
}

#[tokio::test]
async fn the_admin_socket() {
    let (mesh, _) = two_clusters(&[("paris", 1)]).await;
    let path = mesh.state_dir("paris").join("admin.sock");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = async |method: &str, target: &str, body: &str| {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, json) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str::<serde_json::Value>(json).unwrap()
    };
    let state = ask("GET", "/state", "").await;
    assert_eq!(
        (&state["cluster"], &state["revision"], state["workers"].as_array().unwrap().len()),
        (&"paris".into(), &1.into(), 2)
    );
    let tunnels = ask("GET", "/tunnels", "").await;
    assert_eq!((&tunnels[0]["to"], &tunnels[0]["state"]), (&"tokyo/gw-1".into(), &"up".into()));
    let endpoints = ask("GET", "/endpoints", "").await;
    for worker in endpoints.as_array().unwrap() {
        let heard = &worker["hears"][0];
        assert_eq!((&worker["settled"], &heard["from"]), (&true.into(), &"tokyo/gw-1".into()), "{endpoints}");
        let catalog = serde_json::json!({ "service": "shop/catalog", "version": "v1", "ready": 1 });
        assert!(heard["services"].as_array().unwrap().contains(&catalog), "{endpoints}");
    }
    let explained = ask("POST", "/explain", r#"{"host":"checkout.shop","headers":{"x-only":"tokyo"}}"#).await;
    assert_eq!(
        (&explained["rule"], &explained["chosenCluster"], &explained["chosenGateway"]),
        (&"only-tokyo".into(), &"tokyo".into(), &"gw-1".into())
    );
    ask("POST", "/drill/cut", r#"{"clusters":["tokyo"],"forMs":600000}"#).await;
    eventually("the cut is seen", async || ask("GET", "/tunnels", "").await[0]["state"] == "dead").await;
    ask("POST", "/drill/end", "{}").await;
    eventually("the tunnel is back", async || ask("GET", "/tunnels", "").await[0]["state"] == "up").await;
    assert!(ask("POST", "/drill/cut", "nonsense").await["error"].is_string());
    ask("POST", "/drain", "").await;
    mesh.gateways["paris"].drain_requested().await;
}

#[tokio::test]
async fn no_answer_in_time_is_a_504_and_cancels() {
    let limits = Limits { request_timeout: Duration::from_secs(3), ..patient() };
    let (mesh, [paris, tokyo]) = two_clusters_with(&[("paris", 1)], limits).await;
    let entry = mesh.http("paris");
    let ask = async |cluster| {
        let response = get(entry, CHECKOUT, "/delay/60000", &[("x-only", cluster)]).await.unwrap();
        (response.status().as_u16(), response.headers()["mesh-failure"].to_str().unwrap().to_owned())
    };
    let (here, there) = tokio::join!(ask("paris"), ask("tokyo"));
    assert_eq!((here, there), ((504, "timeout".to_owned()), (504, "timeout".to_owned())));
    for seen in [paris, tokyo] {
        eventually("the backend is cancelled", async || seen.cancelled.load(Ordering::SeqCst) == 1).await;
    }
}

#[tokio::test]
async fn a_broken_exchange_is_repeated_only_if_it_may_be() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    // Reads a request and closes, every other time.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let flaky = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for turn in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap_or(0);
            if n > 0 && turn % 2 == 1 {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
            }
        }
    });
    let config = service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("tokyo", 1)]);
    mesh.configure(vec![config], &[("checkout", "tokyo", flaky, "")]).await;
    for entry in ["tokyo", "paris"] {
        let entry = mesh.http(entry);
        // The endpoint answers every second exchange, so a GET that is repeated always succeeds.
        for _ in 0..10 {
            assert_eq!(get(entry, CHECKOUT, "/", &[]).await.unwrap().status(), 200);
        }
        let mut statuses = Vec::new();
        for _ in 0..6 {
            let response = send(entry, request("POST", CHECKOUT, "/", &[], bytes("once"))).await.unwrap();
            statuses.push(response.status().as_u16());
        }
        assert!(statuses.contains(&502), "a POST was repeated: {statuses:?}");
        assert!(statuses.iter().all(|s| [200, 502].contains(s)), "{statuses:?}");
    }
}
