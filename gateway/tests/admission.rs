//! What one gateway lets another do at its tunnel: who may come in, and what he gets.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::sync::atomic::Ordering;

use archipelago_gateway::Limits;
use archipelago_http::{Fields, Known, Pooled, RequestHead, ResponseHead};
use archipelago_proto::v1::Protocol;
use archipelago_tunnel::{PeerHandle, PeerState, RecvHalf, SendHalf, TunnelError};
use http_body_util::BodyExt as _;
use std::time::Duration;

use harness::{Mesh, backend, eventually, on_port, patient, service, tcp_backend, two_clusters};

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
) -> Result<(Pooled<ResponseHead>, SendHalf, RecvHalf), TunnelError> {
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
