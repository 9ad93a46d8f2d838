//! Endpoints of the own zone come first, for clients and for what comes through a tunnel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use archipelago_gateway::internals::{Change, Store};
use archipelago_proto::v1::{self as proto, Protocol};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use harness::{Mesh, backend, eventually, get, service, text};

const CHECKOUT: &str = "checkout.shop";

/// What an agent says of `shop/checkout`: endpoints with the zones that they are in and meant for.
fn endpoints(list: &[(SocketAddr, &str)]) -> Change {
    let locality = |(_, zone): &(SocketAddr, &str)| proto::Locality {
        zone: (*zone).into(),
        for_zones: vec![(*zone).into()],
        ..Default::default()
    };
    let endpoint = |(place, (address, _)): (usize, &(SocketAddr, &str))| proto::Endpoint {
        address: address.to_string(),
        readiness: proto::Readiness::Ready.into(),
        locality: u32::try_from(place + 1).unwrap(),
        ..Default::default()
    };
    let checkout = proto::LocalService {
        namespace: "shop".into(),
        name: "checkout".into(),
        endpoints: list.iter().enumerate().map(endpoint).collect(),
        localities: list.iter().map(locality).collect(),
        ..Default::default()
    };
    Change::Local(proto::LocalUpdate { full: true, upserts: vec![checkout], ..Default::default() })
}

/// What an agent says of a gateway's node.
fn node(zone: &str) -> Change {
    let workloads = proto::Workloads { fresh: true, zone: zone.into(), ..Default::default() };
    // No captures: clients come by host name here, as where the agent says nothing of pods.
    Change::Local(proto::LocalUpdate { workloads: Some(workloads), ..Default::default() })
}

/// A backend that can be killed: what it has accepted is closed with it.
async fn mortal(name: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let (behind, _) = backend(name).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, task)
}

async fn ask(gateway: SocketAddr) -> String {
    let response = get(gateway, CHECKOUT, "/", &[]).await.unwrap();
    assert_eq!(response.status(), 200);
    text(response).await
}

#[tokio::test]
async fn the_own_zone_is_preferred_and_without_it_the_other_answers() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (near, kill) = mortal("near").await;
    let (far, seen_far) = backend("far").await;
    mesh.configure(vec![service("checkout", Protocol::Http1, &["tokyo"], &[])], &[]).await;
    mesh.tell("tokyo", endpoints(&[(near, "a"), (far, "b")])).await;
    mesh.tell("tokyo", node("a")).await;
    mesh.serves(CHECKOUT, "tokyo").await;

    // In tokyo, and from paris, whose own zone has no say there.
    mesh.tell("paris", node("b")).await;
    seen_far.requests.store(0, Ordering::SeqCst);
    for entry in [mesh.http("tokyo"), mesh.http("paris")] {
        for _ in 0..40 {
            assert_eq!(ask(entry).await, "near");
        }
    }
    assert_eq!(seen_far.requests.load(Ordering::SeqCst), 0);

    // Nobody has told the gateway: it finds out, and no client notices.
    kill.abort();
    let _ = kill.await;
    for entry in [mesh.http("tokyo"), mesh.http("paris")] {
        for _ in 0..40 {
            assert_eq!(ask(entry).await, "far");
        }
    }
}

#[tokio::test]
async fn a_gateway_that_starts_again_knows_its_zone() {
    let mut mesh = Mesh::start(&["tokyo"]).await;
    let (near, _) = backend("near").await;
    let (far, _) = backend("far").await;
    mesh.configure(vec![service("checkout", Protocol::Http1, &["tokyo"], &[])], &[]).await;
    mesh.tell("tokyo", endpoints(&[(near, "a"), (far, "b")])).await;
    // Without a zone all are the same.
    let entry = mesh.http("tokyo");
    eventually("both serve", async || ask(entry).await == "far" && ask(entry).await == "near").await;
    mesh.tell("tokyo", node("b")).await;
    let store = Store::new(&mesh.state_dir("tokyo"), "tokyo", "gw-1");
    let stored = || store.load().unwrap().map(|state| state.place.zone.to_string());
    eventually("the zone is on disk", async || stored().as_deref() == Some("b")).await;
    mesh.stop_gateway("tokyo").await;
    mesh.start_gateway("tokyo").await;
    for _ in 0..40 {
        assert_eq!(ask(mesh.http("tokyo")).await, "far");
    }
}
