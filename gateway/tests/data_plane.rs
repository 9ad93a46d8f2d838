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
use archipelago_proto::v1::{self as proto, Protocol};
use archipelago_tunnel::{Cut, DetectorConfig};
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use harness::{
    Mesh, backend, bytes, empty, eventually, get, patient, raw, refusing, request, send, service, text, two_clusters,
    two_clusters_with,
};

const CHECKOUT: &str = "checkout.shop";

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
