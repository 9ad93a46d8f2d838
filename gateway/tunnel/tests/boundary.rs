//! Who gets in, who is thrown out, and what a peer that misbehaves can hold.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as such")]

mod common;

use archipelago_identity::{LiveCredential, SpiffeId, testing::TestAuthority, tls};
use archipelago_tunnel::{Gate, PeerState, Tunnels};
use common::*;
use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    crypto::rustls::QuicClientConfig,
    udp::{RecvMeta, Transmit},
};
use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

fn only_from(cluster: &'static str) -> Gate {
    Arc::new(move |peer| match peer.spiffe_id.role() {
        Some(archipelago_identity::MeshRole::Gateway { cluster: of, .. }) if of == cluster => Ok(()),
        _ => Err("undeclared_cluster"),
    })
}

#[tokio::test]
async fn whoever_the_gate_refuses_loses_what_it_has_and_gets_nothing_new() {
    let mut pair = Pair::start().await;
    let handle = pair.handle.clone();
    let waiting = tokio::spawn(async move { handle.request(get("/hang")).await.map(drop) });
    assert_eq!(pair.event().await, "hanging");
    let began = std::time::Instant::now();
    pair.tokyo.set_gate(only_from("lyon"));
    let error = within("the request ends", waiting).await.unwrap().unwrap_err();
    println!("cut after {:?}: {error}", began.elapsed());
    within("refused anew", async {
        while !pair.handle.last_error().is_some_and(|error| error.contains("undeclared_cluster")) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_ne!(pair.handle.state(), PeerState::Up);
    pair.tokyo.set_gate(only_from("paris"));
    until_state(&pair.paris, &pair.handle, PeerState::Up).await;

    // The same rule for those whom we dial.
    pair.paris.set_gate(only_from("paris"));
    until_state(&pair.paris, &pair.handle, PeerState::Dead).await;
    within("not dialled", async {
        while !pair.handle.last_error().is_some_and(|error| error.contains("the peer is refused")) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_it_began_with() {
    let authority = TestAuthority::new("archipelago.test");
    let id = SpiffeId::gateway(authority.trust_domain(), "paris", "gw");
    let short = LiveCredential::new(authority.issue_for(&id, Duration::from_secs(3))).unwrap();
    let (paris, _requests) = Tunnels::bind(config(short, "paris", "gw")).unwrap();
    let (tokyo, _tokyo_requests) = gateway(&authority, "tokyo");
    paris.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    until_state(&paris, &handle, PeerState::Dead).await;
    within("the reason", async {
        while !tokyo.stats().refused.contains_key("expired") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What is under way on a connection that was replaced may end, however short the certificates live.
#[tokio::test]
async fn a_connection_outlives_its_certificate_while_a_newer_one_proves_the_same() {
    let authority = TestAuthority::new("archipelago.test");
    let id = SpiffeId::gateway(authority.trust_domain(), "paris", "gw");
    let live = LiveCredential::new(authority.issue_for(&id, Duration::from_secs(3))).unwrap();
    let (paris, _requests) = Tunnels::bind(config(live.clone(), "paris", "gw")).unwrap();
    let (tokyo, _tokyo_requests) = gateway(&authority, "tokyo");
    paris.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    // Another connection by a certificate that lives on, as renewal makes it.
    let longer = LiveCredential::new(authority.issue_for(&id, Duration::from_secs(60))).unwrap();
    let (again, _again_requests) = Tunnels::bind(config(longer, "paris", "gw")).unwrap();
    again.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
    let renewed = again.peer(&name("tokyo")).unwrap();
    until_state(&again, &renewed, PeerState::Up).await;
    // The other test shows that it would be gone by now.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(tokyo.stats().refused.get("expired"), None, "the first one lives on");
    assert_eq!(handle.state(), PeerState::Up);
}

#[tokio::test]
async fn an_unread_response_is_given_up() {
    let mut pair = Pair::start_with(|config| config.limits.unread_timeout = Duration::from_millis(300)).await;
    let _unread = within("response", pair.handle.request(get("/endless"))).await.unwrap();
    loop {
        let event = pair.event().await;
        if !event.starts_with("pulled") {
            assert_eq!(event, "endless: the far side does not read");
            break;
        }
    }
}

/// Hears nothing but the request to prove its address, so that it takes a place and leaves us waiting.
#[derive(Debug)]
struct Deaf(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Deaf {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.0.poll_recv(cx, bufs, meta))?;
        for (buf, meta) in bufs.iter().zip(meta.iter_mut()).take(count) {
            // RFC 9000 §17.2.5: a Retry packet.
            if buf.first().is_none_or(|first| first & 0xf0 != 0xf0) {
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[tokio::test]
async fn a_silent_flood_from_one_address_stops_nobody_else() {
    let authority = TestAuthority::new("archipelago.test");
    let (tokyo, _requests) = gateway(&authority, "tokyo");
    let address = tokyo.local_addr();
    let tokyo_id = SpiffeId::gateway(authority.trust_domain(), "tokyo", "gw");
    let credential = authority.gateway("paris", "flood");
    let socket = std::net::UdpSocket::bind(localhost()).unwrap();
    let socket = Arc::new(Deaf(TokioRuntime.wrap_udp_socket(socket).unwrap()));
    let flood =
        quinn::Endpoint::new_with_abstract_socket(Default::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
    let tls = tls::client_config(&credential, tls::Expect::Id(tokyo_id), &[b"h3"]);
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let flooding = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            for _ in 0..4 {
                open.push(flood.connect_with(client.clone(), address, "gateway.tunnel.archipelago.dev").unwrap());
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    });
    within("the flood displaces itself", async {
        while tokyo.stats().refused.get("displaced").is_none_or(|count| *count < 50) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut honest = config(authority.gateway("paris", "gw"), "paris", "gw");
    honest.bind = "127.0.0.2:0".parse().unwrap();
    let (paris, _paris_requests) = Tunnels::bind(honest).unwrap();
    let began = std::time::Instant::now();
    paris.set_peers(vec![peer(&authority, "tokyo", address)]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    println!("in after {:?}, {:?}", began.elapsed(), tokyo.stats());
    assert_eq!(paris.stats().failed_dials, 0, "{:?}", handle.last_error());
    assert!(!flooding.is_finished());
    flooding.abort();
}
