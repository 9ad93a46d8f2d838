use std::collections::BTreeMap;

use archipelago_model::compile;
use archipelago_proto::v1::{
    self as proto, Backend, ClusterConfig, ConfigResource, Endpoint, FailoverChain, HttpListener, LocalService, Match,
    MeshConfig, NamedMatch, PeerConfig, RouteRule, ServiceConfig, ServicePort, TcpListener, Tier,
    config_resource::Body, r#match::On, named_match::How, service_port,
};
use proptest::prelude::*;

use super::*;
use crate::config::ConfigState;
use archipelago_model::delta::Shared;
use archipelago_model::version::Version;

mod changes;
mod ports;

fn header_is(name: &str, value: &str) -> Match {
    Match { on: Some(On::Header(NamedMatch { name: name.into(), how: Some(How::Exact(value.into())) })) }
}

fn backend(cluster: &str, subset: &str, weight: u32) -> Backend {
    Backend { cluster: cluster.into(), subset: subset.into(), weight, ..Backend::default() }
}

fn checkout() -> ServiceConfig {
    ServiceConfig {
        namespace: "shop".into(),
        name: "checkout".into(),
        hosts: vec!["checkout.shop".into(), "checkout.shop.svc.clusterset.local".into()],
        ports: vec![ServicePort {
            protocol: proto::Protocol::Http1 as i32,
            port: 80,
            listener: Some(service_port::Listener::Http(HttpListener::default())),
            rules: vec![
                RouteRule {
                    name: "routes[0]".into(),
                    matches: vec![header_is("X-Preview", "pr-42")],
                    backends: vec![backend("tokyo", "v2", 1)],
                    ..RouteRule::default()
                },
                RouteRule {
                    name: "backends".into(),
                    backends: vec![backend("paris", "", 90)],
                    chain: Some(0),
                    ..RouteRule::default()
                },
            ],
            chains: vec![FailoverChain { tiers: vec![Tier { backends: vec![backend("tokyo", "", 1)] }] }],
            ..ServicePort::default()
        }],
        exporters: vec!["paris".into(), "tokyo".into()],
        ..ServiceConfig::default()
    }
}

fn ledger(name: &str, port_offset: u32) -> ServiceConfig {
    let mut service = checkout();
    service.name = name.into();
    service.hosts = vec![format!("{name}.shop")];
    service.ports[0].protocol = proto::Protocol::Tcp as i32;
    service.ports[0].listener = Some(service_port::Listener::Tcp(TcpListener { port_offset }));
    service
}

fn peer(spiffe_id: &str, address: &str) -> Body {
    Body::Peer(PeerConfig {
        cluster: "tokyo".into(),
        gateway: "gw-1".into(),
        spiffe_id: spiffe_id.into(),
        tunnel_addresses: vec![address.into()],
    })
}

const PEER: &str = "spiffe://mesh.test/cluster/tokyo/gateway/gw-1";

/// A resource under a name that may not be its own.
fn under(name: &str, body: Body) -> proto::ConfigResource {
    proto::ConfigResource { name: name.into(), ..compile::resource(body) }
}

/// paris and tokyo, a peer, a revocation, an HTTP and a TCP service, and endpoints of one of them.
/// A state that is easy to spoil.
#[derive(Clone, Default)]
struct Draft {
    revision: u64,
    resources: BTreeMap<String, ConfigResource>,
    local: BTreeMap<String, LocalService>,
}

fn good() -> Draft {
    let cluster = |name: &str| Body::Cluster(ClusterConfig { name: name.into(), region: "eu".into(), drained: false });
    let revocation = proto::Revocation {
        subject: Some(proto::revocation::Subject::Cluster("lyon".into())),
        issued_before_unix: 100,
    };
    let bodies = [
        Body::Mesh(MeshConfig { trust_domain: "mesh.test".into(), bundle_der: vec![] }),
        cluster("paris"),
        cluster("tokyo"),
        peer(PEER, "1.2.3.4:1"),
        Body::Revocations(proto::Revocations { revocations: vec![revocation] }),
        Body::Service(checkout()),
        Body::Service(ledger("ledger", 3)),
    ];
    let resource = |body| {
        let resource = compile::resource(body);
        (resource.name.clone(), resource)
    };
    let endpoint = |address: &str| Endpoint {
        address: address.into(),
        version: "v1".into(),
        instance: "a".into(),
        readiness: proto::Readiness::Ready.into(),
        locality: 0,
    };
    let local = LocalService {
        endpoints: ["10.0.0.1:80", "nonsense", "10.0.0.1:80"].map(endpoint).into(),
        ..LocalService::default()
    };
    Draft {
        revision: 3,
        resources: bodies.into_iter().map(resource).collect(),
        local: [("shop/checkout".to_owned(), local)].into(),
    }
}

impl Draft {
    fn state(&self) -> ConfigState {
        let version = Version { revision: self.revision, ..Version::default() };
        let mut state = ConfigState::new(version, self.resources.values().cloned());
        state.local = self.local.iter().map(|(key, local)| (key.clone(), Shared::new(local.clone()))).collect();
        state
    }

    fn put(&mut self, body: Body) {
        let resource = compile::resource(body);
        self.resources.insert(resource.name.clone(), resource);
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut ServiceConfig)) {
        let Some(Body::Service(mut service)) = self.resources[name].body.clone() else { panic!("{name}") };
        change(&mut service);
        let resource = under(name, Body::Service(service));
        self.resources.insert(name.into(), resource);
    }

    fn edit_checkout(&mut self, change: impl FnOnce(&mut ServiceConfig)) {
        self.edit("service/shop/checkout", change);
    }
}

fn build(state: &Draft, previous: &Snapshot) -> Built {
    Snapshot::build(&state.state(), "paris", "mesh.test", previous).unwrap()
}

fn fresh(state: &Draft) -> Snapshot {
    let built = build(state, &Snapshot::empty());
    assert_eq!(built.rejected, []);
    built.snapshot
}

/// The ports of all services, by name.
fn units(snapshot: &Snapshot) -> Vec<&Arc<Service>> {
    snapshot.services().map(|(_, unit)| unit).collect()
}

/// Everything that a gateway does with a snapshot, by name, so that snapshots with other clusters compare.
fn shown(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let name = |place: &usize| snapshot.cluster_name(*place).to_owned();
    let names = |list: &[usize]| list.iter().map(name).collect::<Vec<_>>();
    let backends = |list: &[super::Backend]| {
        list.iter().map(|b| format!("{}/{:?}:{}", name(&b.cluster), b.version, b.weight)).collect::<Vec<_>>()
    };
    let mut all = BTreeMap::from([
        ("mesh".to_owned(), snapshot.membership.trust_domain.clone()),
        ("revocations".to_owned(), format!("{:?}", snapshot.membership.revocations)),
    ]);
    for cluster in snapshot.clusters.iter() {
        all.insert(format!("cluster/{}", cluster.name), format!("{cluster:?}"));
    }
    for peer in snapshot.peers.values() {
        let shown = format!("{} {:?}", peer.spiffe_id, peer.addresses);
        all.insert(format!("peer/{}/{}", name(&peer.cluster), peer.gateway), shown);
    }
    for (place, service) in snapshot.services() {
        assert_eq!(snapshot.service_by_key(&service.key), Some(place));
        let selected = |host: &String| snapshot.service_by_host(&format!("{host}:{}", service.port));
        assert!(service.hosts.iter().all(|host| selected(host) == Some(place)));
        let rules: Vec<String> = service
            .rules
            .as_slice()
            .iter()
            .map(|rule| {
                let tiers: Vec<_> = rule.tiers.iter().map(|tier| backends(tier)).collect();
                format!("{} {:?} {:?} {tiers:?}", rule.name, rule.matcher, backends(&rule.backends))
            })
            .collect();
        let shown = format!(
            "{:?} {:?} {} {:?} {:?} {rules:?} {:?} {:?} {:?} {:?} {:?}",
            service.hosts,
            service.protocol,
            service.port,
            service.listener,
            service.sticky,
            service.failback,
            service.residency.as_deref().map(names),
            names(&service.exporters),
            names(&service.avoid),
            service.local
        );
        all.insert(format!("service/{}", service.key), shown);
    }
    all
}

#[test]
fn a_good_configuration_compiles() {
    let snapshot = fresh(&good());
    assert_eq!(snapshot.revision, 3);
    assert_eq!(snapshot.own_cluster, Some(0));
    let index = snapshot.service_by_host("Checkout.Shop:15080").unwrap();
    assert_eq!(snapshot.service_by_host("checkout.shop.svc.clusterset.local."), Some(index));
    assert_eq!(snapshot.service_by_key("shop/checkout"), Some(index));
    assert_eq!(snapshot.service_by_host("web.shop"), None);
    let service = snapshot.service(index).unwrap();
    assert_eq!(service.local.len(), 1, "unusable and double endpoints are left out");
    let mut headers = Fields::new();
    let rule = service.rule(&Method::GET, b"/", &headers).unwrap();
    assert_eq!((&*rule.name, rule.tiers.len()), ("backends", 1));
    headers.push_named(b"x-preview", b"pr-42").unwrap();
    assert_eq!(&*service.rule(&Method::GET, b"/", &headers).unwrap().name, "routes[0]");
    assert_eq!(units(&snapshot)[1].tcp_offset(), Some(3));
}

#[test]
fn another_trust_domain_is_refused_as_a_whole() {
    let mut state = good();
    state.put(Body::Mesh(MeshConfig { trust_domain: "other".into(), bundle_der: vec![] }));
    let error = Snapshot::build(&state.state(), "paris", "mesh.test", &fresh(&good())).unwrap_err();
    assert_eq!(error.to_string(), "mesh: trust domain \"other\", this gateway belongs to \"mesh.test\"");
}

type Poison = fn(&mut ServiceConfig);

/// What can be wrong with `service/shop/checkout`, and what is said of it.
fn poisons() -> Vec<(Poison, &'static str)> {
    fn rule(service: &mut ServiceConfig) -> &mut RouteRule {
        &mut service.ports[0].rules[0]
    }
    vec![
        (|s| drop(s.ports[0].rules.pop()), "the last rule must match everything"),
        (|s| s.ports[0].rules.clear(), "the last rule must match everything"),
        (|s| s.ports[0].protocol = 0, "needs unknown"),
        (|s| s.ports[0].protocol = 99, "needs unknown"),
        (|s| s.ports[0].port = 70_000, "port 70000 is out of range"),
        (|s| s.ports[0].listener = None, "needs unknown"),
        (|s| s.ports[0].protocol = 3, "its listener does not fit its protocol"),
        (|s| s.ports.clear(), "it has no ports"),
        (|s| s.ports.push(s.ports[0].clone()), "port 80 appears twice"),
        (|s| s.ports[0].sticky = Some(proto::Sticky::default()), "needs unknown"),
        (
            |s| s.ports[0].sticky = Some(proto::Sticky { key: Some(proto::sticky::Key::Header("x user".into())) }),
            "\"x user\" is not a header name",
        ),
        (|s| rule(s).matches.push(Match { on: None }), "needs unknown"),
        (
            |s| rule(s).matches = vec![Match { on: Some(On::Header(NamedMatch { name: "a".into(), how: None })) }],
            "needs unknown",
        ),
        (
            |s| {
                let how = Some(How::RegularExpression(".*".into()));
                rule(s).matches = vec![Match { on: Some(On::Header(NamedMatch { name: "a".into(), how })) }];
            },
            "needs match.header.regular-expression",
        ),
        (|s| rule(s).matches.push(Match { on: Some(On::Method("G T".into())) }), "\"G T\" is not an HTTP method"),
        (|s| rule(s).filters.push(proto::Filter {}), "needs filter"),
        (|s| rule(s).timeouts = Some(proto::Timeouts::default()), "needs timeouts"),
        (|s| rule(s).retry = Some(proto::Retry::default()), "needs retry"),
        (
            |s| s.backend_settings = Some(proto::BackendSettings { requests_max: Some(1), ..Default::default() }),
            "needs backend-settings",
        ),
        (|s| rule(s).backends[0].service = "shop/web".into(), "needs backend.service"),
        (|s| rule(s).chain = Some(7), "routes[0]: no failover chain 7"),
        (|s| rule(s).backends.push(backend("tokyo", "v2", 3)), "routes[0]: tokyo/v2 appears twice"),
        (|s| s.name = "web".into(), "it is about service/shop/web"),
        (|s| s.hosts.push("ledger.shop".into()), "host \"ledger.shop\" already selects shop/ledger"),
        (
            |s| *s = ServiceConfig { name: "checkout".into(), ..ledger("checkout", 3) },
            "TCP port offset 3 already belongs to shop/ledger",
        ),
    ]
}

#[test]
fn a_service_that_cannot_be_used_keeps_its_last_good_form_or_is_closed_and_nothing_else_changes() {
    let name = "service/shop/checkout";
    let before = fresh(&good());
    for (poison, says) in poisons() {
        let mut state = good();
        state.revision = 4;
        state.edit_checkout(poison);
        let built = build(&state, &before);
        let [rejected] = built.rejected.as_slice() else { panic!("{says}: {:?}", built.rejected) };
        assert!(rejected.reason.contains(says), "{rejected:?}, not {says}");
        assert_eq!((rejected.resource.as_str(), rejected.kept), (name, Kept::LastGood));
        assert_eq!(rejected.version, state.resources[name].version);
        assert_eq!((built.snapshot.revision, shown(&built.snapshot)), (4, shown(&before)));
        // It stays so for as long as the resource is bad, and ends with it.
        let again = build(&state, &built.snapshot);
        assert_eq!(shown(&again.snapshot), shown(&before));
        assert_eq!(build(&good(), &again.snapshot).rejected, []);

        if says.starts_with("TCP port") {
            // Nothing tells which of two strangers is right.
            continue;
        }
        let built = build(&state, &Snapshot::empty());
        assert_eq!(built.rejected.iter().map(|r| (&*r.resource, r.kept)).collect::<Vec<_>>(), [(name, Kept::Closed)]);
        let mut others = shown(&before);
        others.remove(name);
        assert_eq!(shown(&built.snapshot), others);
        assert_eq!(&*built.snapshot.closed_by_host("checkout.shop").unwrap().key, "shop/checkout");
        assert!(built.snapshot.closed_by_host("ledger.shop").is_none());
    }
}

#[test]
fn the_encoding_of_something_newer_is_never_wider() {
    // Field 200 of a match, as a newer control plane might send it: without a feature, to be sure.
    let mut state = good();
    let resource = state.resources.get_mut("service/shop/checkout").unwrap();
    let Some(Body::Service(service)) = &mut resource.body else { panic!() };
    service.ports[0].rules[0].matches = vec![prost::Message::decode(&[0xc2, 0x0c, 0x01, b'x'][..]).unwrap()];
    let built = build(&state, &Snapshot::empty());
    assert_eq!(built.rejected[0].reason, "routes[0]: an unknown kind of match");
    assert_eq!(built.snapshot.service_by_host("checkout.shop"), None);
    // A whole resource of an unknown kind.
    let mut state = good();
    state
        .resources
        .insert("tea/green".into(), proto::ConfigResource { name: "tea/green".into(), ..Default::default() });
    let built = build(&state, &Snapshot::empty());
    assert_eq!((built.rejected.len(), shown(&built.snapshot)), (1, shown(&fresh(&good()))));
}

#[test]
fn peers_clusters_and_revocations_stay_as_they_were() {
    let before = fresh(&good());
    let revocations = |subject| {
        let revocation = proto::Revocation { subject, issued_before_unix: 200 };
        Body::Revocations(proto::Revocations { revocations: vec![revocation] })
    };
    for (name, body, says) in [
        (
            "peer/tokyo/gw-1",
            peer("spiffe://mesh.test/cluster/lyon/gateway/gw-1", "1.2.3.4:1"),
            "spiffe://mesh.test/cluster/lyon/gateway/gw-1 is not the identity of gateway tokyo/gw-1",
        ),
        ("peer/tokyo/gw-1", peer(PEER, "tokyo:1"), "tunnel address \"tokyo:1\" is not ip:port"),
        (
            "cluster/tokyo",
            Body::Cluster(ClusterConfig { name: "paris".into(), ..Default::default() }),
            "about cluster/paris",
        ),
        (
            "cluster/tokyo",
            Body::Mesh(MeshConfig { trust_domain: "mesh.test".into(), bundle_der: vec![] }),
            "it is about mesh",
        ),
        ("revocations", revocations(None), "a revocation of an unknown kind of subject"),
    ] {
        let mut state = good();
        state.resources.insert(name.into(), under(name, body));
        let built = build(&state, &before);
        let [rejected] = built.rejected.as_slice() else { panic!("{:?}", built.rejected) };
        assert!(rejected.reason.contains(says), "{rejected:?}");
        assert_eq!((rejected.resource.as_str(), rejected.kept), (name, Kept::LastGood));
        assert_eq!(shown(&built.snapshot), shown(&before), "{says}");
        // Without a last good form nothing else is lost either; a cluster that is not known serves nothing.
        let built = build(&state, &Snapshot::empty());
        assert_eq!(built.rejected.len(), if name == "cluster/tokyo" { 2 } else { 1 }, "{:?}", built.rejected);
        assert_eq!(units(&built.snapshot).len(), 2);
        assert!(built.snapshot.peers.is_empty() || name == "revocations");
    }
}

#[test]
fn what_did_not_change_is_shared() {
    let before = fresh(&good());
    let mut state = good();
    state.edit_checkout(|s| s.avoid_clusters = vec!["tokyo".into()]);
    let after = build(&state, &before).snapshot;
    let shared = |a: &Snapshot, b: &Snapshot| {
        units(a).into_iter().zip(units(b)).map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>()
    };
    assert_eq!(shared(&before, &after), [false, true]);
    // An endpoint that becomes unready changes its service; the rules stay where they are.
    state.local.get_mut("shop/checkout").unwrap().endpoints[0].readiness = proto::Readiness::NotReady.into();
    let flapped = build(&state, &after).snapshot;
    assert_eq!(shared(&after, &flapped), [false, true]);
    assert_eq!(units(&flapped)[0].local[0].readiness, proto::Readiness::NotReady);
    assert!(std::ptr::eq(units(&after)[0].rules.as_slice(), units(&flapped)[0].rules.as_slice()));
    // Another cluster moves the places of all.
    state.put(Body::Cluster(ClusterConfig { name: "lyon".into(), region: "eu".into(), drained: false }));
    let moved = build(&state, &flapped).snapshot;
    assert_eq!(shared(&flapped, &moved), [false, false]);
    let mut expected = shown(&flapped);
    expected.insert("cluster/lyon".into(), format!("{:?}", moved.clusters[0]));
    assert_eq!(shown(&moved), expected);
}

#[test]
fn a_last_good_form_follows_clusters_and_endpoints() {
    let mut state = good();
    let before = fresh(&state);
    state.edit_checkout(|s| s.ports.clear());
    state.put(Body::Cluster(ClusterConfig { name: "lyon".into(), region: "eu".into(), drained: false }));
    state.local.clear();
    let after = build(&state, &before).snapshot;
    let service = &units(&after)[0];
    assert_eq!((service.local.len(), service.exporters.as_slice()), (0, &[1, 2][..]));
    assert_eq!(after.cluster_name(service.rules.as_slice()[0].backends[0].cluster), "tokyo");
    // tokyo leaves: the old form of the service cannot send anyone there.
    state.resources.remove("cluster/tokyo");
    state.resources.remove("peer/tokyo/gw-1");
    let after = build(&state, &after).snapshot;
    assert!(units(&after)[0].rules.as_slice()[0].backends.is_empty());
    assert_eq!(units(&after)[0].exporters, [1]);
}

#[test]
fn ports_may_be_swapped_in_one_update() {
    let mut state = good();
    state.put(Body::Service(ledger("cash", 4)));
    let before = fresh(&state);
    state.put(Body::Service(ledger("cash", 3)));
    state.put(Body::Service(ledger("ledger", 4)));
    let built = build(&state, &before);
    assert_eq!(built.rejected, []);
    let offsets: Vec<_> = units(&built.snapshot).into_iter().map(|s| s.tcp_offset()).collect();
    assert_eq!(offsets, [Some(3), None, Some(4)]);
}

proptest! {
    /// Whatever is broken in whatever resource: with a snapshot before, nothing at all changes.
    #[test]
    fn poisoning_any_resource_changes_no_other(
        which in any::<prop::sample::Index>(),
        how in 0u8..3,
        name in "[a-z]{1,8}",
    ) {
        let before = fresh(&good());
        let mut state = good();
        let names: Vec<String> = state.resources.keys().cloned().collect();
        let target = which.get(&names);
        let resource = state.resources.get_mut(target).unwrap();
        match how {
            0 => resource.body = None,
            1 => resource.required_features.push(name),
            _ => resource.body = Some(Body::Peer(PeerConfig { cluster: name, ..PeerConfig::default() })),
        }
        resource.version = vec![9; 16].into();
        let built = build(&state, &before);
        prop_assert_eq!(built.rejected.iter().map(|r| &r.resource).collect::<Vec<_>>(), [target]);
        prop_assert_eq!(built.rejected[0].kept, Kept::LastGood);
        prop_assert_eq!(shown(&built.snapshot), shown(&before));
        // And without one, all but that one are there, as far as they do not stand on it.
        let built = build(&state, &Snapshot::empty());
        let left = shown(&built.snapshot);
        if !target.starts_with("cluster/") {
            for (name, form) in shown(&before) {
                prop_assert!(name == *target || left.get(&name) == Some(&form), "{}", name);
            }
        }
        prop_assert_eq!(units(&built.snapshot).len(), if target.starts_with("service/") { 1 } else { 2 });
    }
}

#[test]
fn an_unsupported_service_is_known_by_its_hosts_and_closed() {
    let mut state = good();
    let key = "shop/checkout".parse().unwrap();
    let resource = compile::unsupported(&key, vec!["Checkout.Shop".into()], vec!["tea".into()]);
    state.resources.insert(resource.name.clone(), resource);
    let snapshot = fresh(&state);
    assert_eq!(snapshot.service_by_host("checkout.shop"), None);
    let closed = snapshot.closed_by_host("checkout.shop:80").unwrap();
    assert_eq!((&*closed.key, closed.why.as_str()), ("shop/checkout", "this gateway lacks tea"));
    assert!(snapshot.closed_by_host("ledger.shop").is_none() && snapshot.service_by_host("ledger.shop").is_some());
}

#[test]
fn revocations_are_about_certificates_older_than_the_revocation() {
    use proto::revocation::Subject;
    let revoke = |subject| proto::Revocation { subject: Some(subject), issued_before_unix: 100 };
    let id = "spiffe://mesh.test/cluster/lyon/gateway/gw-1";
    let list = vec![revoke(Subject::SpiffeId(id.into())), revoke(Subject::Cluster("tokyo".into()))];
    let mut state = good();
    state.put(Body::Revocations(proto::Revocations { revocations: list }));
    let snapshot = fresh(&state);
    let revoked = |path: &str, issued| {
        let id = format!("spiffe://mesh.test{path}").parse().unwrap();
        let not_before = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(issued);
        snapshot.membership.revocations.as_ref().unwrap().check(&id, not_before).is_some()
    };
    assert!(revoked("/cluster/lyon/gateway/gw-1", 99) && !revoked("/cluster/lyon/gateway/gw-1", 100));
    assert!(!revoked("/cluster/lyon/gateway/gw-2", 0));
    assert!(revoked("/cluster/tokyo/agent/a", 0) && !revoked("/cluster/tokyo-2/agent/a", 0));
}

#[test]
fn a_first_list_of_revocations_that_cannot_be_read_leaves_nobody_to_trust() {
    let mut unreadable = good();
    let revocations = unreadable.resources.get_mut("revocations").unwrap();
    (revocations.body, revocations.version) = (None, vec![9; 16].into());
    let mut without = good();
    without.resources.remove("revocations");
    let mut empty = good();
    empty.put(Body::Revocations(proto::Revocations::default()));
    for before in [Snapshot::empty(), fresh(&without), fresh(&empty)] {
        let built = build(&unreadable, &before);
        assert_eq!(built.snapshot.membership.revocations, None);
        assert_eq!(built.rejected[0].kept, Kept::Closed);
        assert!(built.rejected[0].reason.ends_with("no gateway is let in, and none called, until it can be read"));
        let again = build(&unreadable, &built.snapshot);
        assert_eq!((again.snapshot.membership.revocations.clone(), again.rejected), (None, built.rejected));
        assert_eq!(
            build(&good(), &built.snapshot).snapshot.membership.revocations,
            fresh(&good()).membership.revocations
        );
    }
    // With a list before it, that one stays.
    assert_eq!(
        build(&unreadable, &fresh(&good())).snapshot.membership.revocations,
        fresh(&good()).membership.revocations
    );
}

#[test]
fn residency_and_sticky_keys() {
    let mut state = good();
    state.edit_checkout(|s| {
        s.residency_clusters = vec!["tokyo".into(), "not-joined-yet".into()];
        s.ports[0].sticky = Some(proto::Sticky { key: Some(proto::sticky::Key::Cookie("user".into())) });
    });
    let snapshot = fresh(&state);
    let service = &units(&snapshot)[0];
    assert!(!service.may_reside_in(Some(0)) && service.may_reside_in(Some(1)) && !service.may_reside_in(None));
    let mut headers = Fields::new();
    assert_eq!(service.sticky_hash(&headers), None);
    headers.push_named(b"cookie", b"a=b; user=alice").unwrap();
    assert_eq!(service.sticky_hash(&headers), Some(hash::sticky_key("shop/checkout", b"alice")));
}
