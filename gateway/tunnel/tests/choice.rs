//! To which gateways tunnels are kept, over real sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as such")]

mod common;

use archipelago_identity::{SpiffeId, testing::TestAuthority};
use archipelago_tunnel::{Incoming, Peer, PeerName, PeerState, ServiceHealth, Tunnels};
use common::*;
use std::collections::BTreeMap;

const GATEWAYS: usize = 5;

/// tokyo, with its gateways by name.
struct Tokyo {
    peers: Vec<Peer>,
    running: BTreeMap<String, (Tunnels, Incoming)>,
}

impl Tokyo {
    fn start(authority: &TestAuthority) -> Self {
        let mut tokyo = Self { peers: Vec::new(), running: BTreeMap::new() };
        for n in 0..GATEWAYS {
            let name = format!("gw-{n}");
            let (tunnels, incoming) = Tunnels::bind(config(authority.gateway("tokyo", &name), "tokyo", &name)).unwrap();
            tokyo.peers.push(Peer {
                cluster: "tokyo".to_owned(),
                gateway: name.clone(),
                spiffe_id: SpiffeId::gateway(authority.trust_domain(), "tokyo", &name),
                addresses: vec![tunnels.local_addr()],
            });
            tokyo.running.insert(name, (tunnels, incoming));
        }
        tokyo
    }
}

fn up(tunnels: &Tunnels) -> Vec<PeerName> {
    let up = tunnels.peers().into_iter().filter(|peer| peer.state() == PeerState::Up);
    up.map(|peer| peer.name().clone()).collect()
}

#[tokio::test]
async fn a_dead_or_draining_gateway_is_replaced_at_once_and_others_are_dialled_on_demand() {
    let authority = TestAuthority::new("archipelago.test");
    let mut tokyo = Tokyo::start(&authority);
    let mut own = config(authority.gateway("paris", "gw"), "paris", "gw");
    own.peers_per_cluster = 2;
    let (paris, _requests) = Tunnels::bind(own).unwrap();
    paris.set_peers(tokyo.peers.clone());
    until(&paris, "two tunnels", || up(&paris).len() == 2).await;
    let homes = up(&paris);
    assert_eq!(paris.peers().len(), 2, "the others are not dialled");

    // One leaves in an orderly way.
    let (leaving, _incoming) = tokyo.running.remove(&homes[0].gateway).unwrap();
    let began = std::time::Instant::now();
    let draining = tokio::spawn(async move { leaving.drain(PATIENCE).await });
    until(&paris, "a stand-in for the one that drains", || {
        let up = up(&paris);
        up.len() == 2 && !up.contains(&homes[0])
    })
    .await;
    println!("a draining gateway was replaced after {:?}", began.elapsed());
    within("drained", draining).await.unwrap();

    // The other is told to go by the configuration.
    let left: Vec<_> = tokyo.peers.iter().filter(|peer| peer.name() != homes[1]).cloned().collect();
    paris.set_peers(left);
    until(&paris, "the next", || up(&paris).len() == 2 && !up(&paris).contains(&homes[1])).await;

    // Nobody of those knows the service; the one that does is dialled once requests ask for it.
    let chosen: Vec<_> = paris.peers().iter().map(|peer| peer.name().clone()).collect();
    let knows = tokyo
        .running
        .iter()
        .find(|(name, _)| homes[1].gateway != **name && !chosen.iter().any(|chosen| chosen.gateway == **name));
    let (_, (knows, _)) = knows.expect("five gateways, three of them in use");
    let health = vec![ServiceHealth { service: "shop/rare".into(), version: String::new(), ready: 1 }];
    knows.publish_health(health.clone());
    let found = || paris.peers().iter().any(|peer| peer.health("shop/rare") == health);
    assert!(!found());
    paris.demand("tokyo");
    until(&paris, "the service is found", found).await;
}
