//! The life of tunnels: identities, cuts, kills, renewal, drain, garbage.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as such")]

mod common;

use archipelago_identity::{SpiffeId, testing::TestAuthority};
use archipelago_tunnel::{Cut, Peer, PeerState, ServiceHealth, TunnelError, Tunnels};
use common::*;
use http_body_util::BodyExt;
use std::{net::SocketAddr, time::Duration};
use tokio::sync::{mpsc, oneshot};

fn health(ready: u32) -> Vec<ServiceHealth> {
    vec![ServiceHealth { service: "shop/checkout".into(), version: "v1".into(), ready }]
}

#[tokio::test]
async fn health_travels_when_it_changes() {
    let pair = Pair::start().await;
    assert!(pair.handle.health("shop/checkout").is_empty());
    pair.tokyo.publish_health(health(2));
    until(&pair.paris, "first health", || pair.handle.health("shop/checkout") == health(2)).await;
    pair.tokyo.publish_health(health(0));
    until(&pair.paris, "second health", || pair.handle.health("shop/checkout") == health(0)).await;
    pair.tokyo.publish_health(vec![]);
    until(&pair.paris, "no health", || pair.handle.health("shop/checkout").is_empty()).await;
}

#[tokio::test]
async fn a_server_with_the_wrong_id_is_refused_by_name() {
    let authority = TestAuthority::new("archipelago.test");
    let (paris, _requests) = gateway(&authority, "paris");
    let (lyon, _lyon_requests) = gateway(&authority, "lyon");
    paris.set_peers(vec![peer(&authority, "tokyo", lyon.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    let error = within("a refusal", async {
        loop {
            if let Some(error) = handle.last_error() {
                break error;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(error.contains("spiffe://archipelago.test/cluster/lyon/gateway/gw"), "{error}");
    assert!(error.contains("spiffe://archipelago.test/cluster/tokyo/gateway/gw"), "{error}");
    assert_eq!(handle.state(), PeerState::Dialing);
    let error = handle.request(get("/")).await.unwrap_err();
    assert!(matches!(error, TunnelError::NotConnected { .. }) && error.never_processed());
}

#[tokio::test]
async fn a_client_that_is_no_gateway_is_refused_by_name() {
    let authority = TestAuthority::new("archipelago.test");
    let agent = SpiffeId::agent(authority.trust_domain(), "paris", "agent");
    let (paris, _requests) = Tunnels::bind(config(authority.live(&agent), "paris", "agent")).unwrap();
    let (tokyo, _tokyo_requests) = gateway(&authority, "tokyo");
    paris.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    let error = within("a refusal", async {
        loop {
            if let Some(error) = handle.last_error() {
                break error;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(error.contains("spiffe://archipelago.test/cluster/paris/agent/agent is not a gateway"), "{error}");
    assert_ne!(handle.state(), PeerState::Up);
    assert!(tokyo.stats().refused["not_a_gateway"] >= 1);
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let ours = TestAuthority::new("archipelago.test");
    let theirs = TestAuthority::new("archipelago.test"); // the same name, another root
    let (paris, _requests) = gateway(&theirs, "paris");
    let (tokyo, _tokyo_requests) = gateway(&ours, "tokyo");
    paris.set_peers(vec![peer(&ours, "tokyo", tokyo.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    within("a refusal on each side", async {
        while handle.last_error().is_none() || tokyo.stats().refused.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_ne!(handle.state(), PeerState::Up);
    assert_eq!(tokyo.stats().accepted, 0);
}

#[tokio::test]
async fn a_cut_is_noticed_and_heals() {
    let mut pair = Pair::start().await;
    let handle = pair.handle.clone();
    let waiting = tokio::spawn(async move { handle.request(get("/hang")).await.map(drop) });
    assert_eq!(pair.event().await, "hanging");
    let died = pair.handle.clone();
    let died = tokio::spawn(async move { died.died().await });
    let began = std::time::Instant::now();
    pair.paris.cut(Cut { clusters: vec!["tokyo".to_owned()], ..Cut::default() });
    within("death", died).await.unwrap();
    println!("silent cut noticed after {:?}", began.elapsed());
    until_state(&pair.paris, &pair.handle, PeerState::Dead).await;
    let error = pair.handle.request(get("/bytes/1")).await.unwrap_err();
    assert!(error.never_processed(), "{error}");
    pair.paris.heal();
    let began = std::time::Instant::now();
    until_state(&pair.paris, &pair.handle, PeerState::Up).await;
    println!("healed after {:?}", began.elapsed());
    within("request after healing", pair.handle.request(get("/bytes/1"))).await.unwrap();
    waiting.abort();
}

/// A gateway on a thread of its own, which can be killed: its runtime vanishes without a word to anyone.
struct Victim {
    address: SocketAddr,
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Victim {
    fn start(credential: archipelago_identity::LiveCredential, bind: SocketAddr) -> Self {
        let (kill, killed) = oneshot::channel::<()>();
        let (report_address, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut config = config(credential, "tokyo", "gw");
                config.bind = bind;
                let (tunnels, incoming) = Tunnels::bind(config).unwrap();
                report_address.send(tunnels.local_addr()).unwrap();
                let (report, mut events) = mpsc::channel(1000);
                tokio::spawn(serve(incoming, report));
                tokio::spawn(async move { while events.recv().await.is_some() {} });
                let _ = killed.await;
            });
        });
        Self { address: address.recv().unwrap(), kill, thread }
    }

    fn kill(self) {
        drop(self.kill);
        self.thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_killed_peer_is_noticed_and_returns() {
    let authority = TestAuthority::new("archipelago.test");
    let credential = authority.gateway("tokyo", "gw");
    let victim = Victim::start(credential.clone(), localhost());
    let address = victim.address;
    let (paris, _requests) = gateway(&authority, "paris");
    paris.set_peers(vec![peer(&authority, "tokyo", address)]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    within("before", handle.request(get("/bytes/10"))).await.unwrap();
    let waiting = handle.clone();
    let waiting = tokio::spawn(async move { waiting.request(get("/hang")).await.map(drop) });
    tokio::task::yield_now().await;

    let began = std::time::Instant::now();
    victim.kill();
    within("death", handle.died()).await;
    println!("kill noticed after {:?}", began.elapsed());
    let victim = Victim::start(credential, address);
    let began = std::time::Instant::now();
    until_state(&paris, &handle, PeerState::Up).await;
    println!("return noticed after {:?}", began.elapsed());
    // The new process knows nothing of the old requests, and says so by being another incarnation.
    let error = within("the old request ends", waiting).await.unwrap().unwrap_err();
    assert!(matches!(error, TunnelError::ConnectionLost { never_processed: false, .. }), "{error}");
    within("after", handle.request(get("/bytes/10"))).await.unwrap();
    victim.kill();
}

/// The same gateway as another process at another address, beside the one before.
#[tokio::test]
async fn a_peer_that_moves_is_followed_and_ends_in_peace_what_it_had_begun() {
    let mut pair = Pair::start().await;
    let (mut sender, body) = channel();
    let mut echo = within("echo", pair.handle.request(post("/echo", body))).await.unwrap().into_body();
    let (successor, incoming) = gateway(&pair.authority, "tokyo");
    let (report, _events) = mpsc::channel(1000);
    tokio::spawn(serve(incoming, report));
    let moved = |to: &Tunnels| vec![peer(&pair.authority, "tokyo", to.local_addr())];
    let died = pair.handle.clone();
    let died = tokio::spawn(async move { died.died().await });

    pair.paris.set_peers(moved(&successor));
    within("the successor's tunnel", async {
        while successor.stats().accepted == 0 {
            // Until there is one, the one before serves.
            within("between", pair.handle.request(get("/bytes/10"))).await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    let draining = pair.tokyo.clone();
    let draining = tokio::spawn(async move { draining.drain(PATIENCE).await });
    for _ in 0..20 {
        within("after", pair.handle.request(get("/bytes/10"))).await.unwrap();
        assert_eq!(pair.handle.state(), PeerState::Up);
    }
    sender.send_data("begun before".into()).await.unwrap();
    assert_eq!(next_data(&mut echo).await, "begun before");
    drop(sender);
    assert!(within("end", echo.frame()).await.is_none());
    within("drained", draining).await.unwrap();
    within("after the end", pair.handle.request(get("/bytes/10"))).await.unwrap();
    assert!(!died.is_finished(), "to its peers it was never gone");
    assert_eq!((pair.paris.stats().deaths, pair.handle.state()), (0, PeerState::Up));
    died.abort();

    // Back where nobody is any more: the tunnel that there is goes on.
    pair.paris.set_peers(moved(&pair.tokyo));
    within("a failed dial", async {
        while pair.handle.last_error().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("without the new place", pair.handle.request(get("/bytes/10"))).await.unwrap();
    assert_eq!(pair.handle.state(), PeerState::Up);
    pair.events.close();
}

#[tokio::test]
async fn a_process_that_dies_after_it_was_replaced_keeps_nobody_waiting() {
    let authority = TestAuthority::new("archipelago.test");
    let credential = authority.gateway("tokyo", "gw");
    let victim = Victim::start(credential.clone(), localhost());
    let (paris, _requests) = gateway(&authority, "paris");
    paris.set_peers(vec![peer(&authority, "tokyo", victim.address)]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    let (_sender, body) = channel();
    let mut echo = within("echo", handle.request(post("/echo", body))).await.unwrap().into_body();
    let (successor, incoming) = gateway(&authority, "tokyo");
    let (report, _events) = mpsc::channel(1000);
    tokio::spawn(serve(incoming, report));
    paris.set_peers(vec![peer(&authority, "tokyo", successor.local_addr())]);
    within("the successor's tunnel", async {
        while successor.stats().accepted == 0 || handle.addresses()[0] == victim.address {
            within("between", handle.request(get("/bytes/10"))).await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    let began = std::time::Instant::now();
    victim.kill();
    let error = within("the old request ends", echo.frame()).await.unwrap().unwrap_err();
    println!("noticed after {:?}", began.elapsed());
    assert!(matches!(error, TunnelError::ConnectionLost { .. }), "{error}");
    assert_eq!(handle.state(), PeerState::Up);
}

#[tokio::test]
async fn renewal_drops_no_request() {
    let pair = Pair::start_with(|config| config.limits.connection_age_max = Some(Duration::from_millis(150))).await;
    let (mut sender, body) = channel();
    let mut long = within("long", pair.handle.request(post("/echo", body))).await.unwrap().into_body();
    let mut requests = 0;
    while pair.tokyo.stats().accepted < 4 {
        let response = within("response", pair.handle.request(get("/bytes/1000"))).await.unwrap();
        assert_eq!(within("body", response.into_body().collect()).await.unwrap().to_bytes().len(), 1000);
        requests += 1;
    }
    println!("{requests} requests over {} connections", pair.tokyo.stats().accepted);
    // The stream that began on the first connection is still there.
    sender.send_data("still here".into()).await.unwrap();
    drop(sender);
    assert_eq!(next_data(&mut long).await, "still here");
    assert!(within("end", long.frame()).await.is_none());
}

#[tokio::test]
async fn drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let pair = Pair::start().await;
    let (mut sender, body) = channel();
    let mut echo = within("echo", pair.handle.request(post("/echo", body))).await.unwrap().into_body();
    let draining = pair.tokyo.clone();
    let draining = tokio::spawn(async move { draining.drain(PATIENCE).await });
    until_state(&pair.paris, &pair.handle, PeerState::Draining).await;
    let error = pair.handle.request(get("/bytes/1")).await.unwrap_err();
    assert!(error.never_processed(), "{error}");
    sender.send_data("in flight".into()).await.unwrap();
    assert_eq!(next_data(&mut echo).await, "in flight");
    assert!(!draining.is_finished());
    drop(sender);
    assert!(within("end", echo.frame()).await.is_none());
    within("drained", draining).await.unwrap();
    until_state(&pair.paris, &pair.handle, PeerState::Dead).await;
}

#[tokio::test]
async fn garbage_disturbs_nobody() {
    let pair = Pair::start().await;
    let noise = std::net::UdpSocket::bind(localhost()).unwrap();
    let address = pair.tokyo.local_addr();
    for round in 0..2000usize {
        let mut datagram = pattern(round * 977, round % 1400 + 1);
        if round % 3 == 0 {
            // Looks like an Initial of QUIC version 1.
            for (to, from) in datagram.iter_mut().zip([0xc3, 0, 0, 0, 1, 8]) {
                *to = from;
            }
        }
        noise.send_to(&datagram, address).unwrap();
        if round % 100 == 0 {
            let response = within("response", pair.handle.request(get("/bytes/5000"))).await.unwrap();
            assert_eq!(within("body", response.into_body().collect()).await.unwrap().to_bytes().len(), 5000);
        }
    }
    assert_eq!(pair.tokyo.stats().accepted, 1);
}

#[tokio::test]
async fn peers_come_and_go() {
    let mut pair = Pair::start().await;
    let handle = pair.handle.clone();
    let waiting = tokio::spawn(async move { handle.request(get("/hang")).await.map(drop) });
    assert_eq!(pair.event().await, "hanging");
    let unreachable = Peer { cluster: "lyon".into(), ..peer(&pair.authority, "lyon", "127.0.0.1:9".parse().unwrap()) };
    pair.paris.set_peers(vec![unreachable]);
    assert!(pair.paris.peer(&name("tokyo")).is_none());
    let error = pair.handle.request(get("/")).await.unwrap_err();
    assert!(error.never_processed());
    assert!(!waiting.is_finished(), "what is in flight may finish");
    waiting.abort();
    let _ = waiting.await;
    assert_eq!(pair.event().await, "cancelled: the peer reset the stream: H3_REQUEST_CANCELLED");
    pair.paris.set_peers(vec![peer(&pair.authority, "tokyo", pair.tokyo.local_addr())]);
    let handle = pair.paris.peer(&name("tokyo")).unwrap();
    until_state(&pair.paris, &handle, PeerState::Up).await;
}
