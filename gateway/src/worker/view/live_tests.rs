//! Pictures made from the one before are those that would be made of everything, and cost what happened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use archipelago_model::version::Version;
use archipelago_model::{compile, stream::Resource};
use archipelago_proto::v1::{
    self as proto, Backend, ClusterConfig, Endpoint as Reported, FailoverChain, HttpListener, LocalService, MeshConfig,
    RouteRule, ServiceConfig, ServicePort, Tier, config_resource::Body, service_port::Listener,
};
use archipelago_tunnel::{PeerState, ServiceHealth};

use super::super::{RouteQuery, Target, Tried};
use super::*;
use crate::balance::cluster::NoTrace;
use crate::balance::failback::Failback;
use crate::balance::hash::{self, Key};
use crate::config::ConfigState;
use archipelago_model::delta::Shared;

/// A gateway of another cluster that is whatever a test says.
#[derive(Debug, Clone)]
struct Fake(Rc<FakeInner>);

#[derive(Debug)]
struct FakeInner {
    name: PeerName,
    state: RefCell<PeerState>,
    since: Instant,
    health: RefCell<BTreeMap<String, u32>>,
}

impl PeerFacts for Fake {
    fn name(&self) -> &PeerName {
        &self.0.name
    }
    fn state(&self) -> PeerState {
        *self.0.state.borrow()
    }
    fn since(&self) -> Instant {
        self.0.since
    }
    fn rtt(&self) -> std::time::Duration {
        std::time::Duration::from_millis(1)
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn health(&self, service: &str) -> Vec<ServiceHealth> {
        let ready = self.0.health.borrow().get(service).copied();
        let version = "v1".to_owned();
        ready.map(|ready| ServiceHealth { service: service.to_owned(), version, ready }).into_iter().collect()
    }
    fn services(&self) -> Vec<String> {
        self.0.health.borrow().keys().cloned().collect()
    }
    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// A worker without I/O: what happens to it, and what it knows.
struct World {
    config: ConfigState,
    snapshot: Arc<Snapshot>,
    peers: BTreeMap<PeerName, Fake>,
    news: News,
    live: LiveState<Fake>,
    view: View<Fake>,
    now: Instant,
    seed: u64,
}

impl World {
    fn new(clusters: &[&str], seed: u64) -> Self {
        let cluster = |name: &&str| {
            compile::resource(Body::Cluster(ClusterConfig {
                name: (*name).into(),
                region: "eu".into(),
                drained: false,
            }))
        };
        let mesh = Body::Mesh(MeshConfig { trust_domain: "mesh.test".into(), bundle_der: vec![] });
        let resources = clusters.iter().map(cluster).chain([compile::resource(mesh)]);
        let mut world = Self {
            config: ConfigState::new(Version { revision: 1, ..Version::default() }, resources),
            snapshot: Arc::new(Snapshot::empty()),
            peers: BTreeMap::new(),
            news: News::default(),
            live: LiveState::default(),
            view: View::empty(),
            now: Instant::now(),
            seed,
        };
        world.build();
        world
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(1);
        hash::mix(self.seed)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.random() % count as u64).unwrap()
    }

    fn put(&mut self, body: Body) {
        self.config.held.resources.put(Resource::from(compile::resource(body)));
    }

    fn local(&mut self, key: &str, addresses: &[String]) {
        let endpoint = |address: &String| Reported {
            address: address.clone(),
            version: "v1".into(),
            readiness: Readiness::Ready.into(),
            ..Reported::default()
        };
        let local = LocalService { endpoints: addresses.iter().map(endpoint).collect(), ..LocalService::default() };
        self.config.local.insert(key.to_owned(), Shared::new(local));
    }

    fn build(&mut self) {
        let built = Snapshot::build(&self.config, "c0", "mesh.test", &self.snapshot).unwrap();
        assert_eq!(built.rejected, []);
        self.snapshot = Arc::new(built.snapshot);
    }

    fn peer(&mut self, cluster: &str, gateway: &str) -> Fake {
        let name = PeerName { cluster: cluster.into(), gateway: gateway.into() };
        let (state, health) = (RefCell::new(PeerState::Up), RefCell::default());
        let inner = FakeInner { name: name.clone(), state, since: self.now, health };
        let fake = Fake(Rc::new(inner));
        self.peers.insert(name, fake.clone());
        self.news.chosen = true;
        fake
    }

    fn says(&mut self, peer: &Fake, service: &str, ready: Option<u32>) {
        match ready {
            Some(ready) => peer.0.health.borrow_mut().insert(service.to_owned(), ready),
            None => peer.0.health.borrow_mut().remove(service),
        };
        let health = HealthNews::Services([service.to_owned()].into());
        self.news.peers.entry(peer.0.name.clone()).or_default().health.add(health);
    }

    fn is(&mut self, peer: &Fake, state: PeerState) {
        peer.0.state.replace(state);
        self.news.peers.entry(peer.0.name.clone()).or_default().state = true;
    }

    fn follow(&mut self) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let (news, peers) = (std::mem::take(&mut self.news), self.peers.values().cloned().collect());
        let mut seed = self.random();
        let mut random = || {
            seed = hash::mix(seed);
            seed
        };
        let followed = self.live.follow(&self.view, &self.snapshot, news, || peers, self.now, &mut random);
        self.view = followed.view;
        (followed.rebuilt, followed.renewed)
    }

    /// What a worker that starts now would know.
    fn afresh(&self) -> (LiveState<Fake>, View<Fake>) {
        let mut live = LiveState::default();
        let (news, peers) = (News { chosen: true, ..News::default() }, self.peers.values().cloned().collect());
        let followed = live.follow(&View::empty(), &self.snapshot, news, || peers, self.now, &mut || 7);
        (live, followed.view)
    }
}

fn service(name: &str, exporters: &[&str], first: &str) -> ServiceConfig {
    let backend = |cluster: &str| Backend { cluster: cluster.into(), weight: 1, ..Backend::default() };
    let tiers = exporters.iter().map(|cluster| Tier { backends: vec![backend(cluster)] }).collect();
    ServiceConfig {
        namespace: "shop".into(),
        name: name.into(),
        hosts: compile::hosts("shop", name),
        ports: vec![ServicePort {
            port: 80,
            protocol: proto::Protocol::Http1.into(),
            listener: Some(Listener::Http(HttpListener::default())),
            rules: vec![RouteRule {
                name: "default".into(),
                backends: vec![backend(first)],
                chain: Some(0),
                ..RouteRule::default()
            }],
            chains: vec![FailoverChain { tiers }],
            ..ServicePort::default()
        }],
        exporters: exporters.iter().map(ToString::to_string).collect(),
        ..ServiceConfig::default()
    }
}

/// Everything that decides, by name, without what only a worker that was there knows: failback states and draws.
fn shown(view: &View<Fake>) -> BTreeMap<String, String> {
    let show = |(index, config): (usize, &Arc<Service>)| {
        let live = view.service(index).expect("the snapshot has it");
        let endpoints: Vec<_> =
            live.endpoints.iter().map(|e| (e.endpoint.address(), &e.version, e.readiness)).collect();
        let peers: Vec<_> = live
            .clusters
            .iter()
            .map(|peers| peers.iter().map(|p| (&p.remote.name, &p.ready)).collect::<Vec<_>>())
            .collect();
        let told = view.health(index, Instant::now());
        (config.key.to_string(), format!("{endpoints:?} {peers:?} {told:?} {:?}", live.preference))
    };
    view.snapshot.services().map(show).collect()
}

/// Who knows whom, by index.
fn kept(live: &LiveState<Fake>) -> impl PartialEq + std::fmt::Debug + use<> {
    let services = |known: &Known| known.services.iter().copied().collect::<BTreeSet<_>>();
    let endpoints: BTreeMap<_, _> = live.endpoints.iter().map(|(at, known)| (*at, services(known))).collect();
    let remotes: BTreeMap<_, _> = live
        .remotes
        .iter()
        .map(|(name, serving)| (name.clone(), (serving.services.clone(), serving.is_reachable)))
        .collect();
    let by_cluster: Vec<Vec<_>> =
        live.by_cluster.iter().map(|all| all.iter().map(|remote| Arc::clone(&remote.name)).collect()).collect();
    (endpoints, remotes, by_cluster)
}

fn change(world: &mut World) {
    let name = format!("s{}", world.below(8));
    let key = format!("shop/{name}");
    let all = ["c0", "c1", "c2", "c3"];
    match world.below(12) {
        0..3 => {
            let exporters: Vec<_> = all.into_iter().filter(|_| world.below(2) == 0).collect();
            let first = all[world.below(4)];
            let mut service = service(&name, &exporters, first);
            if world.below(3) == 0 {
                let mut second = service.ports[0].clone();
                second.port = 8080;
                service.ports.push(second);
            }
            if world.below(3) == 0 {
                service.residency_clusters = vec!["c0".into(), "c1".into()];
            }
            world.put(Body::Service(service));
        }
        3 => world.config.held.resources.remove(&format!("service/{key}")),
        4 | 5 => {
            let addresses: Vec<_> = (0..world.below(4)).map(|_| format!("10.0.0.{}:80", 1 + world.below(6))).collect();
            world.local(&key, &addresses);
        }
        6 => {
            let cluster = all[1 + world.below(3)];
            match world.below(3) {
                0 => world.config.held.resources.remove(&format!("cluster/{cluster}")),
                drained => {
                    let drained = drained == 1;
                    world.put(Body::Cluster(ClusterConfig { name: cluster.into(), region: "eu".into(), drained }));
                }
            }
        }
        7 => {
            let (cluster, gateway) = (all[1 + world.below(3)], ["gw-1", "gw-2"][world.below(2)]);
            if world.below(3) == 0 {
                world.peers.remove(&PeerName { cluster: cluster.into(), gateway: gateway.into() });
                world.news.chosen = true;
            } else {
                let peer = world.peer(cluster, gateway);
                for n in 0..world.below(8) {
                    peer.0.health.borrow_mut().insert(format!("shop/s{n}"), 1);
                }
            }
        }
        _ => {
            let peers: Vec<Fake> = world.peers.values().cloned().collect();
            let Some(peer) = peers.get(world.below(peers.len().max(1))) else { return };
            match world.below(4) {
                0 => {
                    let state = [PeerState::Up, PeerState::Suspect, PeerState::Dead][world.below(3)];
                    world.is(peer, state);
                }
                1 => {
                    peer.0
                        .health
                        .borrow_mut()
                        .retain(|service, _| service.ends_with(|c: char| (c as u32).is_multiple_of(2)));
                    world.news.peers.entry(peer.0.name.clone()).or_default().health.add(HealthNews::Everything);
                }
                ready => {
                    let key = if world.below(4) == 0 { format!("{key}:8080") } else { key };
                    let ready = (ready == 2).then_some(u32::try_from(world.below(3)).unwrap());
                    world.says(peer, &key, ready);
                }
            }
        }
    }
}

/// With `seed`s in the message of a failure; VIEW_RUNS for more of them.
#[test]
fn a_picture_made_from_the_one_before_is_the_one_made_of_everything() {
    let runs = std::env::var("VIEW_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(60);
    for seed in 0..runs {
        let mut world = World::new(&["c0", "c1", "c2", "c3"], seed << 32);
        world.follow();
        for step in 0..60 {
            for _ in 0..=world.below(3) {
                change(&mut world);
                // Workers may miss pictures in between.
                world.build();
            }
            let before: BTreeMap<String, Rc<ServiceView<Fake>>> = named(&world.view);
            let (rebuilt, renewed) = world.follow();
            let (live, view) = world.afresh();
            assert_eq!(shown(&world.view), shown(&view), "seed {seed}, step {step}");
            assert_eq!(kept(&world.live), kept(&live), "seed {seed}, step {step}");
            for (index, config) in world.snapshot.services() {
                let now = world.view.service(index).unwrap();
                let is_same = before.get(&*config.key).is_some_and(|before| Rc::ptr_eq(before, now));
                let is_named = rebuilt.contains(&index) || renewed.contains(&index);
                assert_ne!(is_same, is_named, "seed {seed}, step {step}: {}", config.key);
                // As every look at everything would leave them.
                let failback: Vec<_> = now.memory.failback.iter().map(Cell::get).collect();
                world.live.step(&world.view, index, 0..world.snapshot.clusters.len(), world.now);
                assert_eq!(
                    failback,
                    now.memory.failback.iter().map(Cell::get).collect::<Vec<_>>(),
                    "seed {seed}, step {step}"
                );
            }
        }
    }

    fn named(view: &View<Fake>) -> BTreeMap<String, Rc<ServiceView<Fake>>> {
        let all = view.snapshot.services();
        all.filter_map(|(index, config)| Some((config.key.to_string(), Rc::clone(view.service(index)?)))).collect()
    }
}

/// 2,000 services in ten clusters, each exported by four of them.
fn large() -> (World, Vec<Fake>) {
    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names, 1);
    let peers: Vec<Fake> = names[1..]
        .iter()
        .flat_map(|cluster| ["gw-1", "gw-2"].map(|gateway| (*cluster, gateway)))
        .map(|(c, g)| world.peer(c, g))
        .collect();
    for n in 0..2000_usize {
        let name = format!("s{n:04}");
        let exporters: Vec<&str> = (0..4).map(|k| names[(n + k * 3) % 10]).collect();
        world.put(Body::Service(service(&name, &exporters, exporters[0])));
        world.local(&format!("shop/{name}"), &[format!("10.1.{}.{}:80", n / 250, n % 250 + 1)]);
        for peer in peers.iter().filter(|peer| exporters.contains(&peer.0.name.cluster.as_str())) {
            peer.0.health.borrow_mut().insert(format!("shop/{name}"), 2);
        }
    }
    world.build();
    assert_eq!(world.follow().0.len(), 2000);
    (world, peers)
}

#[test]
fn one_change_costs_one_service_of_two_thousand() {
    let (mut world, peers) = large();
    let index = |world: &World, name: &str| world.snapshot.service_by_key(name).unwrap();
    let one = |world: &World, name: &str| BTreeSet::from([index(world, name)]);
    let none = BTreeSet::new();

    world.local("shop/s0017", &["10.1.0.18:80".into(), "10.9.9.9:80".into()]);
    world.build();
    assert_eq!(world.follow(), (one(&world, "shop/s0017"), none.clone()), "an endpoint");

    world.put(Body::Service(ServiceConfig {
        avoid_clusters: vec!["c1".into()],
        ..service("s0444", &["c0", "c1"], "c1")
    }));
    world.build();
    assert_eq!(world.follow(), (one(&world, "shop/s0444"), none.clone()), "a service");

    world.put(Body::Service(service("new", &["c0", "c1"], "c1")));
    world.build();
    assert_eq!(world.follow(), (one(&world, "shop/new"), none.clone()), "a new service");
    world.config.held.resources.remove("service/shop/new");
    world.build();
    assert_eq!(world.follow(), (none.clone(), none.clone()), "one that is gone");

    let speaks = |peer: &Fake, service: &str| peer.0.health.borrow().contains_key(service);
    let peer = peers.iter().find(|peer| speaks(peer, "shop/s0100")).unwrap().clone();
    world.says(&peer, "shop/s0100", Some(1));
    assert_eq!(world.follow(), (none.clone(), one(&world, "shop/s0100")), "what a peer says of a service");
    world.is(&peer, PeerState::Suspect);
    assert_eq!(world.follow(), (none.clone(), none.clone()), "where a peer stands is asked when it matters");

    world.put(Body::Cluster(ClusterConfig { name: "c3".into(), region: "eu".into(), drained: true }));
    world.build();
    assert_eq!(world.follow(), (none.clone(), none.clone()), "a cluster that is drained");
    assert_eq!(world.live.keep_house(&world.view, world.now), none);
    assert!(world.live.moving.is_empty());
}

#[test]
fn a_cluster_that_comes_back_is_held_whatever_changes_meanwhile() {
    let mut world = World::new(&["c0", "c1", "c2"], 5);
    let peer = world.peer("c1", "gw-1");
    let other = world.peer("c2", "gw-1");
    for peer in [&peer, &other] {
        peer.0.health.borrow_mut().insert("shop/web".into(), 1);
    }
    let held = |avoid: &[&str]| ServiceConfig {
        failback: Some(proto::Failback { after_ms: 60_000, ramp_ms: 0, automatic: true }),
        avoid_clusters: avoid.iter().map(ToString::to_string).collect(),
        ..service("web", &["c1", "c2"], "c1")
    };
    world.put(Body::Service(held(&[])));
    world.build();
    world.follow();
    let chosen = |world: &World| {
        let index = world.snapshot.service_by_key("shop/web").unwrap();
        let rule = world.snapshot.service(index).unwrap().rules.as_slice().last().unwrap();
        let (tried, key) = (Tried::default(), Key::Fresh(Sequence::new(1).next_draw()));
        let query = RouteQuery { service: index, rule, key, tried: &tried, random: 1, now: world.now };
        match world.view.decide(&query, &mut NoTrace).unwrap().target {
            Target::Remote(remote) => remote.cluster.to_string(),
            Target::Local(_) => panic!(),
        }
    };
    let state = |world: &World| {
        let index = world.snapshot.service_by_key("shop/web").unwrap();
        let place = world.snapshot.clusters.iter().position(|cluster| *cluster.name == *"c1").unwrap();
        world.view.service(index).unwrap().memory.failback[place].get()
    };
    assert_eq!((chosen(&world), state(&world)), ("c1".into(), Failback::In));
    world.is(&peer, PeerState::Dead);
    world.follow();
    assert_eq!((chosen(&world), state(&world)), ("c2".into(), Failback::Away));
    world.is(&peer, PeerState::Up);
    world.follow();
    let since = world.now;
    assert_eq!((chosen(&world), state(&world)), ("c2".into(), Failback::Holding { since }));
    // Another cluster moves the places of all, and another endpoint makes the service anew: the state stays.
    world.put(Body::Cluster(ClusterConfig { name: "a".into(), region: "eu".into(), drained: false }));
    world.local("shop/web", &["10.0.0.1:80".into()]);
    world.build();
    world.now += std::time::Duration::from_secs(30);
    world.follow();
    assert_eq!(state(&world), Failback::Holding { since });
    assert_eq!(world.live.moving.len(), 1);
    world.now += std::time::Duration::from_secs(31);
    world.live.keep_house(&world.view, world.now);
    assert_eq!((chosen(&world), state(&world)), ("c1".into(), Failback::In));
    assert!(world.live.moving.is_empty());
    // An operator moves it away and takes that back, while the cluster waits: it is released.
    world.is(&peer, PeerState::Dead);
    world.follow();
    world.is(&peer, PeerState::Up);
    world.put(Body::Service(held(&["c1"])));
    world.build();
    world.follow();
    assert!(matches!(state(&world), Failback::Holding { .. }));
    world.put(Body::Service(held(&[])));
    world.build();
    world.follow();
    assert_eq!((chosen(&world), state(&world)), ("c1".into(), Failback::In));
}

#[test]
fn an_endpoint_keeps_its_connections_when_its_service_changes() {
    let mut world = World::new(&["c0", "c1"], 9);
    world.put(Body::Service(service("web", &["c0"], "c0")));
    world.local("shop/web", &["10.0.0.1:80".into(), "10.0.0.2:80".into()]);
    world.build();
    world.follow();
    let endpoints = |world: &World| {
        let index = world.snapshot.service_by_key("shop/web").unwrap();
        let live = world.view.service(index).unwrap();
        live.endpoints.iter().map(|view| Rc::clone(&view.endpoint)).collect::<Vec<_>>()
    };
    let before = endpoints(&world);
    let draws = |world: &World| {
        let index = world.snapshot.service_by_key("shop/web").unwrap();
        format!("{:?}", world.view.service(index).unwrap().memory.sequence.get())
    };
    let drawn = draws(&world);
    world.local("shop/web", &["10.0.0.2:80".into(), "10.0.0.3:80".into()]);
    world.put(Body::Service(service("web", &["c0", "c1"], "c0")));
    world.build();
    world.follow();
    let after = endpoints(&world);
    assert!(Rc::ptr_eq(&before[1], &after[0]) && world.live.endpoints.len() == 2);
    assert_eq!(draws(&world), drawn, "draws go on where they were");
    // Whoever has an endpoint that sits out says so at the next look, once.
    let now = world.now;
    (0..5).for_each(|_| after[0].judge(crate::balance::outlier::Verdict::Failed, 100, 0, now));
    let index = world.snapshot.service_by_key("shop/web").unwrap();
    assert_eq!(world.live.keep_house(&world.view, now), BTreeSet::from([index]));
    assert_eq!(world.view.health(index, now), [("shop/web".to_owned(), vec![("v1".to_owned(), 1)])]);
    assert!(world.live.keep_house(&world.view, now).is_empty());
}

/// Who serves, how many could, and whether that is not the first choice.
type Said = (BTreeSet<Arc<str>>, BTreeMap<Arc<str>, u64>, bool);

/// What is said to operators is what requests meet: of every service the very clusters that are chosen, and when that changes,
/// it is known which services to look at.
#[test]
fn what_is_said_of_a_service_is_what_requests_meet() {
    let mut moved = 0;
    for seed in 0..40 {
        let mut world = World::new(&["c0", "c1", "c2", "c3"], seed << 32);
        world.follow();
        let mut before: BTreeMap<String, Said> = BTreeMap::new();
        for step in 0..60 {
            for _ in 0..=world.below(3) {
                change(&mut world);
                world.build();
            }
            let clusters = Arc::clone(&world.view.snapshot.clusters);
            world.follow();
            let turned = world.live.take_turned();
            let is_every = !Arc::ptr_eq(&clusters, &world.snapshot.clusters);
            // Suspicion moves requests for a moment, and is not told.
            let suspects = world.peers.values().any(|peer| peer.state() == PeerState::Suspect);
            let mut now = BTreeMap::new();
            for (index, config) in world.snapshot.services() {
                let rule = config.rules.as_slice().last().unwrap();
                let standing = world.view.standing(index, world.now).unwrap();
                let chosen = (0..8).filter_map(|draw| {
                    let key = Key::Fresh(hash::Draw(hash::mix(draw)));
                    let tried = Tried::default();
                    let query = RouteQuery { service: index, rule, key, tried: &tried, random: draw, now: world.now };
                    let decision = world.view.decide(&query, &mut NoTrace)?;
                    Some(Arc::clone(&world.snapshot.clusters[decision.cluster].name))
                });
                let chosen: BTreeSet<_> = chosen.collect();
                if !suspects {
                    assert_eq!(standing.serving, chosen, "seed {seed}, step {step}: {}", config.key);
                }
                assert!(standing.out.keys().all(|cluster| !standing.serving.contains(cluster)));
                let said = (standing.serving, standing.ready, standing.failed_over);
                let is_other = before.get(&*config.key).is_none_or(|known| *known != said);
                if is_other {
                    moved += 1;
                    assert!(
                        is_every || turned.contains(&index),
                        "seed {seed}, step {step}: {} is overlooked",
                        config.key
                    );
                }
                now.insert(config.key.to_string(), said);
            }
            before = now;
        }
    }
    assert!(moved > 1_000, "{moved} times somebody else served");
}
