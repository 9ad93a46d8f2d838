//! Services with several ports.

use super::*;

/// TCP first, then two that speak HTTP.
fn several() -> ServiceConfig {
    let mut service = checkout();
    let mut bytes = ledger("checkout", 7).ports.remove(0);
    (bytes.port, bytes.name) = (5432, "db".into());
    let mut admin = service.ports[0].clone();
    (admin.port, admin.name) = (8080, "admin".into());
    service.ports.insert(0, bytes);
    service.ports.push(admin);
    service
}

fn port(port: u32, address: &str) -> proto::LocalPort {
    let endpoint =
        Endpoint { address: address.into(), readiness: proto::Readiness::Ready.into(), ..Endpoint::default() };
    proto::LocalPort { port, endpoints: vec![endpoint], ..proto::LocalPort::default() }
}

fn with_several() -> Draft {
    let mut state = good();
    state.put(Body::Service(several()));
    state
}

#[test]
fn each_port_is_a_unit_that_is_found_by_key_and_by_host() {
    let snapshot = fresh(&with_several());
    let keys: Vec<_> = units(&snapshot).into_iter().map(|unit| (&*unit.key, unit.place, &*unit.port_name)).collect();
    let ledger = ("shop/ledger", 0, "");
    let expected =
        [("shop/checkout:5432", 0, "db"), ("shop/checkout:80", 1, ""), ("shop/checkout:8080", 2, "admin"), ledger];
    assert_eq!(keys, expected);
    for (key, place) in [
        ("shop/checkout", Some(0)),
        ("shop/checkout:5432", Some(0)),
        ("shop/checkout:80", Some(1)),
        ("shop/checkout:8080", Some(2)),
        ("shop/checkout:81", None),
        ("shop/checkout:", None),
        ("shop/checkout:080x", None),
        // The only port of a service, by number.
        ("shop/ledger", Some(3)),
        ("shop/ledger:80", Some(3)),
        ("shop/ledger:81", None),
        ("shop", None),
    ] {
        assert_eq!(snapshot.service_by_key(key), place, "{key}");
    }
    for (host, place) in [
        ("checkout.shop", 1),
        ("Checkout.Shop", 1),
        ("checkout.shop:80", 1),
        ("checkout.shop:8080", 2),
        ("checkout.shop.svc.clusterset.local.:8080", 2),
        ("checkout.shop:5432", 0),
        // The gateway's own.
        ("checkout.shop:15080", 1),
        ("checkout.shop:99999", 1),
        ("ledger.shop:5432", 3),
    ] {
        assert_eq!(snapshot.service_by_host(host), Some(place), "{host}");
    }
    assert_eq!(units(&snapshot)[0].tcp_offset(), Some(7));
}

#[test]
fn endpoints_go_to_the_port_that_they_serve() {
    let addresses = |state: &Draft| {
        let snapshot = fresh(state);
        let of = |(_, unit): &(usize, Arc<Service>)| {
            unit.local.iter().map(|local| local.address.to_string()).collect::<Vec<_>>()
        };
        snapshot.ports_of("shop/checkout").iter().map(of).collect::<Vec<_>>()
    };
    let mut state = with_several();
    let local = state.local.get_mut("shop/checkout").unwrap();
    // An older agent knows of one port, and says which.
    local.port = 80;
    assert_eq!(addresses(&state), [vec![], vec!["10.0.0.1:80"], vec![]]);
    let local = state.local.get_mut("shop/checkout").unwrap();
    local.ports = vec![port(80, "10.0.0.2:80"), port(8080, "10.0.0.2:81"), port(9, "10.0.0.2:9")];
    assert_eq!(addresses(&state), [vec![], vec!["10.0.0.2:80"], vec!["10.0.0.2:81"]]);
    // One port on both sides: the numbers may differ for a moment, or because the oldest export decides.
    state.put(Body::Service(checkout()));
    assert_eq!(addresses(&state), [["10.0.0.2:80"]]);
    state.local.get_mut("shop/checkout").unwrap().ports = vec![port(8080, "10.0.0.3:80")];
    assert_eq!(addresses(&state), [["10.0.0.3:80"]]);
}

#[test]
fn a_change_of_one_port_s_endpoints_leaves_the_others_alone() {
    let mut state = with_several();
    state.local.get_mut("shop/checkout").unwrap().ports = vec![port(80, "10.0.0.2:80"), port(8080, "10.0.0.2:81")];
    let before = fresh(&state);
    state.local.get_mut("shop/checkout").unwrap().ports[1] = port(8080, "10.0.0.3:81");
    let after = build(&state, &before).snapshot;
    let shared = units(&before).into_iter().zip(units(&after)).map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>();
    assert_eq!(shared, [true, true, false, true]);
}

#[test]
fn a_service_is_taken_with_all_of_its_ports_or_with_none() {
    let before = fresh(&good());
    let mut bad = with_several();
    bad.edit_checkout(|service| service.ports[2].rules.clear());
    let built = build(&bad, &before);
    assert_eq!(built.rejected[0].reason, "port 8080: the last rule must match everything");
    assert_eq!(shown(&built.snapshot), shown(&before));
    // Two ports of one service cannot have one TCP port any more than those of two.
    let mut clash = with_several();
    clash.edit_checkout(|service| {
        let again = ServicePort { port: 5433, ..service.ports[0].clone() };
        service.ports.push(again);
    });
    let built = build(&clash, &Snapshot::empty());
    assert_eq!(built.rejected[0].reason, "TCP port offset 7 already belongs to shop/checkout:5432");
    assert!(built.snapshot.ports_of("shop/checkout").is_empty());
    // It stays as it was, with all ports, when the next form is bad, also among other clusters.
    let (good, mut next) = (with_several(), bad);
    let before = fresh(&good);
    next.put(Body::Cluster(ClusterConfig { name: "lyon".into(), region: "eu".into(), drained: false }));
    let mut expected = shown(&before);
    let built = build(&next, &before);
    expected.insert("cluster/lyon".into(), format!("{:?}", built.snapshot.clusters[0]));
    assert_eq!(shown(&built.snapshot), expected);
}

#[test]
fn users_stay_where_they_are_on_every_port() {
    let mut state = with_several();
    state.edit_checkout(|service| {
        for port in &mut service.ports {
            port.sticky = Some(proto::Sticky { key: Some(proto::sticky::Key::Header("x-user".into())) });
        }
    });
    let snapshot = fresh(&state);
    let mut headers = Fields::new();
    headers.push_named(b"X-User", b"alice").unwrap();
    let hash = |place: usize| units(&snapshot)[place].sticky_hash(&headers);
    assert_eq!((hash(1), hash(0)), (hash(2), Some(hash::sticky_key("shop/checkout", b"alice"))));
}
