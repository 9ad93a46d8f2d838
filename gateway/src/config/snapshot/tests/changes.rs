//! A snapshot made from the one before is the one that would be made of everything.

use super::*;
use crate::balance::hash;

/// A state that changes at random, among few names so that services claim what others have.
struct Random {
    draft: Draft,
    seed: u64,
}

impl Random {
    fn below(&mut self, count: u64) -> u64 {
        self.seed = self.seed.wrapping_add(1);
        hash::mix(self.seed) % count
    }

    fn one(&mut self) -> bool {
        self.below(2) == 0
    }

    fn service(&mut self) -> ServiceConfig {
        let name = format!("s{}", self.below(6));
        let mut service = if self.below(3) == 0 { ledger(&name, 1) } else { checkout() };
        service.hosts = compile::hosts("shop", &name);
        service.name = name;
        if self.below(3) == 0 {
            service.hosts.push(format!("s{}.shop", self.below(6)));
        }
        if self.one() {
            let mut other = service.ports[0].clone();
            other.port = 8080;
            service.ports.push(other);
        }
        for port in &mut service.ports {
            if port.protocol() == proto::Protocol::Tcp {
                let port_offset = u32::try_from(self.below(4)).unwrap();
                port.listener = Some(service_port::Listener::Tcp(TcpListener { port_offset }));
            }
        }
        if self.below(4) == 0 {
            service.avoid_clusters = vec!["tokyo".into()];
        }
        if self.below(6) == 0 {
            service.ports.clear();
        }
        service
    }

    fn local(&mut self) -> LocalService {
        let endpoint = |n| Endpoint {
            address: format!("10.0.0.{n}:80"),
            version: "v1".into(),
            readiness: if n % 2 == 0 { proto::Readiness::Ready.into() } else { proto::Readiness::NotReady.into() },
            ..Endpoint::default()
        };
        LocalService { endpoints: (0..self.below(3)).map(endpoint).collect(), ..LocalService::default() }
    }

    fn change(&mut self) {
        let key = format!("s{}", self.below(6));
        match self.below(12) {
            0..4 => {
                let service = self.service();
                self.draft.put(Body::Service(service));
            }
            4 => drop(self.draft.resources.remove(&format!("service/shop/{key}"))),
            5..7 => {
                let local = self.local();
                self.draft.local.insert(format!("shop/{key}"), local);
            }
            7 => drop(self.draft.local.remove(&format!("shop/{key}"))),
            8 => {
                let name = ["lyon", "tokyo", "oslo"][usize::try_from(self.below(3)).unwrap()];
                if self.one() {
                    let drained = self.one();
                    self.draft.put(Body::Cluster(ClusterConfig { name: name.into(), region: "eu".into(), drained }));
                } else {
                    self.draft.resources.remove(&format!("cluster/{name}"));
                }
            }
            9 => {
                let names: Vec<_> = self.draft.resources.keys().cloned().collect();
                let name = &names[usize::try_from(self.below(names.len() as u64)).unwrap()];
                let version = self.below(1 << 40).to_le_bytes().to_vec();
                let resource = self.draft.resources.get_mut(name).unwrap();
                (resource.body, resource.version) = (None, version.into());
            }
            10 => {
                let unsupported =
                    compile::unsupported(&format!("shop/{key}").parse().unwrap(), vec![format!("{key}.shop")], vec![]);
                self.draft.resources.insert(unsupported.name.clone(), unsupported);
            }
            _ => {
                let address = format!("1.2.3.4:{}", 1 + self.below(9));
                self.draft.put(peer(PEER, &address));
            }
        }
    }
}

/// Everything that can be asked of a snapshot.
fn asked(snapshot: &Snapshot) -> impl PartialEq + std::fmt::Debug + use<> {
    let names = (0..6).flat_map(|n| compile::hosts("shop", &format!("s{n}")));
    let by_host = |host: String| {
        let found = snapshot.service_by_host(&host).and_then(|index| snapshot.service(index));
        (found.map(|unit| Arc::clone(&unit.key)), snapshot.closed_by_host(&host).cloned())
    };
    let (used, free) = (snapshot.services().count(), snapshot.free.len());
    assert_eq!(used + free, snapshot.units.len());
    assert_eq!(snapshot.units.iter().flatten().count(), used);
    let hosts: std::collections::BTreeSet<_> = snapshot.services().flat_map(|(_, unit)| &unit.hosts).collect();
    assert_eq!(snapshot.hosts.len(), hosts.len());
    let lookups: Vec<_> = names.map(by_host).collect();
    (
        shown(snapshot),
        lookups,
        snapshot.tcp.clone(),
        snapshot.closed().cloned().collect::<Vec<_>>(),
        snapshot.own_cluster,
        snapshot.has_namespace("shop"),
    )
}

#[test]
fn a_change_leads_where_building_everything_would_lead() {
    let runs = std::env::var("SNAPSHOT_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(60);
    for seed in 0..runs {
        let mut random = Random { draft: good(), seed: seed << 32 };
        let mut running = Snapshot::empty();
        for step in 0..40 {
            (0..=random.below(3)).for_each(|_| random.change());
            let built = build(&random.draft, &running);
            let mut before = running.clone();
            before.made.of = None;
            let whole = build(&random.draft, &before);
            assert_eq!(built.rejected, whole.rejected, "seed {seed}, step {step}");
            assert_eq!(asked(&built.snapshot), asked(&whole.snapshot), "seed {seed}, step {step}");
            let changes = built.snapshot.changes(&running);
            let changed: Vec<_> =
                changes.flat_map(|change| change.now).map(|(_, unit)| Arc::clone(&unit.key)).collect();
            for (index, unit) in built.snapshot.services() {
                let before = running.service_by_key(&unit.key).and_then(|index| running.service(index));
                let is_same = before.is_some_and(|before| Arc::ptr_eq(before, unit));
                assert!(is_same || changed.contains(&unit.key), "seed {seed}, step {step}, {index}: {}", unit.key);
            }
            running = built.snapshot;
        }
    }
}

#[test]
fn one_change_among_two_thousand_services_is_one_change() {
    let mut state = good();
    for n in 0..2000 {
        let mut service = checkout();
        service.name = format!("s{n:04}");
        service.hosts = compile::hosts("shop", &service.name);
        state.put(Body::Service(service));
    }
    let before = fresh(&state);
    let changed = |after: &Snapshot, before: &Snapshot| {
        after.changes(before).flat_map(|change| change.now).map(|(_, unit)| unit.key.to_string()).collect::<Vec<_>>()
    };
    state
        .local
        .insert("shop/s1234".into(), LocalService { endpoints: vec![Endpoint::default()], ..Default::default() });
    let endpoint = build(&state, &before).snapshot;
    assert_eq!(changed(&endpoint, &before), ["shop/s1234"]);
    state.edit("service/shop/s0007", |service| service.avoid_clusters = vec!["tokyo".into()]);
    let service = build(&state, &endpoint).snapshot;
    assert_eq!(changed(&service, &endpoint), ["shop/s0007"]);
    assert_eq!(changed(&service, &before), ["shop/s0007", "shop/s1234"], "two at a time");
    state.put(peer(PEER, "1.2.3.4:7"));
    let moved = build(&state, &service).snapshot;
    assert_eq!((changed(&moved, &service), moved.peers.diff(&service.peers).count()), (vec![], 1));
    assert!(Arc::ptr_eq(&moved.membership, &before.membership) && moved.tcp.ptr_eq(&before.tcp));
    assert_eq!(moved.service_by_key("shop/s1234"), before.service_by_key("shop/s1234"), "it stays where it is");
}
