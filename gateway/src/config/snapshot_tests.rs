use super::*;
use proto::{
    ClusterConfig, ConfigResource, Endpoint, LocalService, MeshConfig, PeerConfig, RouteMatch, RouteRule,
    ServiceConfig, WeightedBackend,
};

fn state(bodies: Vec<(&str, Body)>) -> ConfigState {
    let resource = |(name, body): (&str, Body)| {
        (
            name.to_owned(),
            ConfigResource { name: name.into(), version: Vec::new().into(), body: Some(body), ..Default::default() },
        )
    };
    ConfigState { revision: 3, resources: bodies.into_iter().map(resource).collect(), ..ConfigState::default() }
}

fn mesh() -> (&'static str, Body) {
    ("mesh", Body::Mesh(MeshConfig { trust_domain: "mesh.test".into(), bundle_der: vec![] }))
}

fn cluster(name: &str) -> (String, Body) {
    (format!("cluster/{name}"), Body::Cluster(ClusterConfig { name: name.into(), region: "eu".into(), drained: false }))
}

fn checkout() -> ServiceConfig {
    ServiceConfig {
        namespace: "shop".into(),
        name: "checkout".into(),
        hosts: vec!["checkout.shop".into(), "checkout.shop.svc.clusterset.local".into()],
        protocol: proto::Protocol::Http1 as i32,
        port: 80,
        rules: vec![
            RouteRule {
                name: "routes[0]".into(),
                r#match: Some(RouteMatch {
                    headers: [("X-Preview".to_owned(), "pr-42".to_owned())].into(),
                    ..RouteMatch::default()
                }),
                backends: vec![WeightedBackend { cluster: "tokyo".into(), version: "v2".into(), weight: 1 }],
                tiers: vec![],
            },
            RouteRule {
                name: "backends".into(),
                r#match: None,
                backends: vec![WeightedBackend { cluster: "paris".into(), version: String::new(), weight: 90 }],
                tiers: vec![],
            },
        ],
        exporters: vec!["paris".into(), "tokyo".into()],
        ..ServiceConfig::default()
    }
}

fn build(change: impl FnOnce(&mut Vec<(String, Body)>, &mut ServiceConfig)) -> Result<Snapshot, String> {
    let mut bodies = vec![(mesh().0.to_owned(), mesh().1), cluster("paris"), cluster("tokyo")];
    let mut service = checkout();
    change(&mut bodies, &mut service);
    bodies.push(("service/shop/checkout".into(), Body::Service(service)));
    let mut state = state(bodies.iter().map(|(n, b)| (n.as_str(), b.clone())).collect());
    state.local.insert(
        "shop/checkout".into(),
        LocalService {
            endpoints: ["10.0.0.1:80", "nonsense", "10.0.0.1:80"]
                .map(|address| Endpoint {
                    address: address.into(),
                    version: "v1".into(),
                    instance: "a".into(),
                    readiness: archipelago_proto::v1::Readiness::Ready.into(),
                })
                .into(),
            ..LocalService::default()
        },
    );
    Snapshot::build(&state, "paris", "mesh.test").map_err(|e| e.to_string())
}

#[test]
fn a_good_configuration_compiles() {
    let snapshot = build(|_, _| ()).unwrap();
    assert_eq!(snapshot.revision, 3);
    assert_eq!(snapshot.own_cluster, Some(0));
    let index = snapshot.service_by_host("Checkout.Shop:15080").unwrap();
    assert_eq!(snapshot.service_by_host("checkout.shop.svc.clusterset.local."), Some(index));
    assert_eq!(snapshot.service_by_key("shop/checkout"), Some(index));
    assert_eq!(snapshot.service_by_host("web.shop"), None);
    let service = &snapshot.services[index];
    assert_eq!(service.local.len(), 1, "unusable and double endpoints are left out");
    let mut headers = HeaderMap::new();
    assert_eq!(&*service.rule(&Method::GET, "/", &headers).unwrap().name, "backends");
    headers.insert("x-preview", "pr-42".parse().unwrap());
    assert_eq!(&*service.rule(&Method::GET, "/", &headers).unwrap().name, "routes[0]");
}

#[test]
fn refusals_name_the_resource_and_the_reason() {
    let peer = |spiffe_id: &str, address: &str| {
        Body::Peer(PeerConfig {
            cluster: "tokyo".into(),
            gateway: "gw-1".into(),
            spiffe_id: spiffe_id.into(),
            tunnel_addresses: vec![address.into()],
        })
    };
    let cases: Vec<(Result<Snapshot, String>, &str)> = vec![
        (build(|_, s| s.rules.truncate(1)), "service/shop/checkout: the last rule must match everything"),
        (build(|_, s| s.rules[1].backends[0].cluster = "lyon".into()), "service/shop/checkout: no cluster \"lyon\""),
        (build(|_, s| s.protocol = 0), "service/shop/checkout: unknown protocol"),
        (build(|_, s| s.protocol = 99), "service/shop/checkout: unknown protocol"),
        (build(|_, s| s.port = 70_000), "service/shop/checkout: port 70000 is out of range"),
        (
            build(|_, s| s.sticky = Some(proto::Sticky { key: Some(proto::sticky::Key::Header("x user".into())) })),
            "service/shop/checkout: \"x user\" is not a header name",
        ),
        (
            build(|_, s| {
                let again = s.rules[1].backends[0].clone();
                s.rules[1].backends.push(again);
            }),
            "service/shop/checkout: backends: paris/ appears twice",
        ),
        (
            build(|b, _| b[0].1 = Body::Mesh(MeshConfig { trust_domain: "other".into(), bundle_der: vec![] })),
            "mesh: trust domain \"other\", this gateway belongs to \"mesh.test\"",
        ),
        (
            build(|b, _| {
                b.push(("peer/tokyo/gw-1".into(), peer("spiffe://mesh.test/cluster/lyon/gateway/gw-1", "1.2.3.4:1")))
            }),
            "peer/tokyo/gw-1: spiffe://mesh.test/cluster/lyon/gateway/gw-1 is not the identity of gateway tokyo/gw-1",
        ),
        (
            build(|b, _| {
                b.push(("peer/tokyo/gw-1".into(), peer("spiffe://mesh.test/cluster/tokyo/gateway/gw-1", "tokyo:1")))
            }),
            "peer/tokyo/gw-1: tunnel address \"tokyo:1\" is not ip:port",
        ),
        (
            build(|b, s| {
                b.push(("service/shop/web".into(), Body::Service(ServiceConfig { name: "web".into(), ..s.clone() })))
            }),
            "shop/web: host \"checkout.shop\" already selects another service",
        ),
    ];
    for (result, expected) in cases {
        assert_eq!(result.map(|_| ()), Err(expected.to_owned()));
    }
}

#[test]
fn an_unsupported_service_is_known_by_its_hosts_and_closed() {
    let snapshot = build(|bodies, _| {
        let web = proto::UnsupportedService {
            namespace: "shop".into(),
            name: "web".into(),
            hosts: vec!["web.shop".into()],
            missing_features: vec!["tea".into()],
        };
        bodies.push(("service/shop/web".into(), Body::UnsupportedService(web)));
    })
    .unwrap();
    assert_eq!(snapshot.service_by_host("web.shop"), None);
    let closed = snapshot.closed_by_host("Web.Shop:80").unwrap();
    assert_eq!((&*closed.key, closed.why.as_str()), ("shop/web", "this gateway lacks tea"));
    assert!(snapshot.closed_by_host("checkout.shop").is_none() && snapshot.service_by_host("checkout.shop").is_some());
}

#[test]
fn revocations_are_about_certificates_older_than_the_revocation() {
    use proto::revocation::Subject;
    let revoke = |subject| proto::Revocation { subject: Some(subject), issued_before_unix: 100 };
    let id = "spiffe://mesh.test/cluster/lyon/gateway/gw-1";
    let list = vec![revoke(Subject::SpiffeId(id.into())), revoke(Subject::Cluster("tokyo".into()))];
    let snapshot = build(|bodies, _| {
        bodies.push(("revocations".into(), Body::Revocations(proto::Revocations { revocations: list })));
    })
    .unwrap();
    let revoked = |path: &str, issued| snapshot.revoked(&format!("spiffe://mesh.test{path}").parse().unwrap(), issued);
    assert!(revoked("/cluster/lyon/gateway/gw-1", 99) && !revoked("/cluster/lyon/gateway/gw-1", 100));
    assert!(!revoked("/cluster/lyon/gateway/gw-2", 0));
    assert!(revoked("/cluster/tokyo/agent/a", 0) && !revoked("/cluster/tokyo-2/agent/a", 0));
    let unknown = build(|bodies, _| {
        let list = vec![proto::Revocation::default()];
        bodies.push(("revocations".into(), Body::Revocations(proto::Revocations { revocations: list })));
    });
    assert_eq!(unknown.map(|_| ()), Err("revocations: a revocation of an unknown kind of subject".into()));
}

#[test]
fn residency_and_sticky_keys() {
    let snapshot = build(|_, s| {
        s.residency_clusters = vec!["tokyo".into(), "not-joined-yet".into()];
        s.sticky = Some(proto::Sticky { key: Some(proto::sticky::Key::Cookie("user".into())) });
    })
    .unwrap();
    let service = &snapshot.services[0];
    assert!(!service.may_reside_in(Some(0)) && service.may_reside_in(Some(1)) && !service.may_reside_in(None));
    let mut headers = HeaderMap::new();
    assert_eq!(service.sticky_hash(&headers), None);
    headers.insert("cookie", "a=b; user=alice".parse().unwrap());
    assert_eq!(service.sticky_hash(&headers), Some(hash::sticky_key("shop/checkout", b"alice")));
}
