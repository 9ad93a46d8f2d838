//! A gateway in the hands of its operator: restarts, configurations that cannot be used, drains, DNS, the admin socket.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_gateway::internals::Change;
use archipelago_model::stream::Refusal;
use archipelago_proto::v1::{self as proto, Protocol, config_resource::Body};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use harness::{admin, apply, eventually, full_update, get, service, text, two_clusters};

const CHECKOUT: &str = "checkout.shop";

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
async fn dns_over_udp_and_tcp() {
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
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = async |method: &str, target: &str, body: &str| {
        let answer = admin(&mesh.state_dir("paris"), method, target, body).await.unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
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
