use super::*;

use crate::balance::hash;

/// `ready`, `unknown` or `down`, `near` or `far`, and maybe `out`: it sits out. At 10.0.0.1, .2 and so on.
fn service(endpoints: &[&str], now: Instant) -> ServiceView {
    let view = |(place, text): (usize, &&str)| {
        let words: Vec<&str> = text.split(' ').collect();
        let endpoint = Endpoint::new(SocketAddr::new([10, 0, 0, u8::try_from(place + 1).unwrap()].into(), 80), now);
        if words.contains(&"out") {
            (0..5).for_each(|_| endpoint.judge(Verdict::Failed, 100, 0, now));
            assert!(endpoint.ejected(now));
        }
        EndpointView {
            endpoint: Rc::new(endpoint),
            version: if words.contains(&"v2") { "v2" } else { "v1" }.into(),
            counted_as: None,
            instance: "".into(),
            readiness: match words[0] {
                "ready" => Readiness::Ready,
                "unknown" => Readiness::Unknown,
                _ => Readiness::NotReady,
            },
            preferred: words.contains(&"near"),
        }
    };
    ServiceView {
        name: "shop/web".into(),
        clusters: vec![],
        endpoints: endpoints.iter().enumerate().map(view).collect(),
        preference: Some(Preference::SameZone),
        memory: Rc::new(Memory::new(0, Sequence::new(1), Keeper::new(&Rc::default(), Instant::now()))),
    }
}

/// Last numbers of the addresses that requests go to.
fn served(service: &ServiceView, version: Option<&str>, tried: &[u8], now: Instant) -> Vec<u8> {
    let tried = Tried {
        endpoints: tried.iter().map(|last| SocketAddr::new([10, 0, 0, *last].into(), 80)).collect(),
        peers: vec![],
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut random = 7;
    for _ in 0..200 {
        random = hash::mix(random);
        let Some(endpoint) = service.pick_endpoint(version, &tried, random, now, &mut NoTrace) else { continue };
        if let std::net::IpAddr::V4(ip) = endpoint.address().ip() {
            seen.insert(ip.octets()[3]);
        }
    }
    seen.into_iter().collect()
}

#[test]
fn near_endpoints_come_first_and_never_alone_to_blame() {
    let now = Instant::now();
    // Name, endpoints, version that is asked for, what was tried, what serves.
    type Case<'a> = (&'a str, &'a [&'a str], Option<&'a str>, &'a [u8], &'a [u8]);
    let cases: &[Case<'_>] = &[
        ("near ones", &["ready near", "ready far", "ready near"], None, &[], &[1, 3]),
        ("a second attempt stays near", &["ready near", "ready far", "ready near"], None, &[1], &[3]),
        ("the next one goes on", &["ready near", "ready far", "ready far"], None, &[1], &[2, 3]),
        ("the version counts more", &["ready near", "ready far v2", "ready far"], Some("v2"), &[], &[2]),
        ("one of two sits out", &["ready near out", "ready near", "ready far"], None, &[], &[2]),
        ("most sit out: all", &["ready near out", "ready near out", "ready near", "ready far"], None, &[], &[3, 4]),
        ("all near ones sit out", &["ready near out", "ready far"], None, &[], &[2]),
        ("far before those that sit out", &["ready near out", "ready near out", "ready far"], None, &[], &[3]),
        ("all sit out: all", &["ready near out", "ready far out"], None, &[], &[1, 2]),
        ("only ready ones are near", &["unknown near", "ready far", "down near"], None, &[], &[2]),
        ("unchecked ones have no place", &["unknown near", "unknown far", "down near"], None, &[], &[1, 2]),
        ("nobody", &["down near", "down far"], None, &[], &[]),
    ];
    for (name, endpoints, version, tried, expected) in cases {
        assert_eq!(served(&service(endpoints, now), *version, tried, now), *expected, "{name}");
    }
}

#[test]
fn the_reason_names_the_place() {
    let now = Instant::now();
    let why = |endpoints: &[&str], preference: Option<Preference>| {
        let service = ServiceView { preference, ..service(endpoints, now) };
        let mut why = Vec::new();
        service.pick_endpoint(None, &Tried::default(), 1, now, &mut why).unwrap();
        why.remove(0)
    };
    let near = why(&["ready near", "ready far"], Some(Preference::SameZone));
    assert_eq!(near, "endpoint: 10.0.0.1:80 () chosen out of 1 ready of this zone");
    let far = why(&["ready near out", "ready far"], Some(Preference::SameNode));
    assert_eq!(far, "endpoint: 10.0.0.2:80 () chosen out of 1 ready, too few of this node can serve");
    assert_eq!(why(&["ready near"], None), "endpoint: 10.0.0.1:80 () chosen out of 1 ready");
}
