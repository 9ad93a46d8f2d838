use super::*;
use archipelago_model::version::Version;

use crate::config::{Captures, ConfigState};
use archipelago_proto::v1::{self as proto, config_resource::Body, service_port::Listener};

fn snapshot() -> Snapshot {
    let service = |name: &str, protocol: proto::Protocol, slot: Option<u32>, exporters: &[&str]| {
        Body::Service(proto::ServiceConfig {
            namespace: "shop".into(),
            name: name.into(),
            hosts: vec![format!("{name}.shop")],
            ports: vec![proto::ServicePort {
                port: 80,
                protocol: protocol as i32,
                listener: Some(match slot {
                    Some(port_offset) => Listener::Tcp(proto::TcpListener { port_offset }),
                    None => Listener::Http(proto::HttpListener::default()),
                }),
                rules: vec![proto::RouteRule { name: "default".into(), ..Default::default() }],
                ..Default::default()
            }],
            exporters: exporters.iter().map(|e| (*e).to_owned()).collect(),
            ..Default::default()
        })
    };
    let unsupported = |namespace: &str, name: &str| {
        Body::UnsupportedService(proto::UnsupportedService {
            namespace: namespace.into(),
            name: name.into(),
            ..Default::default()
        })
    };
    let resources = [
        ("cluster/paris", Body::Cluster(proto::ClusterConfig { name: "paris".into(), ..Default::default() })),
        ("service/shop/checkout", service("checkout", proto::Protocol::Http1, None, &["paris"])),
        ("service/shop/catalog", service("catalog", proto::Protocol::H2c, None, &["paris"])),
        ("service/shop/ledger", service("ledger", proto::Protocol::Tcp, Some(3), &["paris"])),
        ("service/shop/secret", service("secret", proto::Protocol::Http1, None, &[])),
        ("service/shop/newer", unsupported("shop", "newer")),
        ("service/lab/newer", unsupported("lab", "newer")),
        // Refused here, both of them: only who comes by HTTP can be told so.
        ("service/shop/broken", service("broken", proto::Protocol::Unspecified, None, &["paris"])),
        ("service/shop/bytes", service("bytes", proto::Protocol::Tcp, None, &["paris"])),
    ];
    let resources = resources.map(|(n, b)| proto::ConfigResource {
        name: n.into(),
        version: Vec::new().into(),
        body: Some(b),
        ..Default::default()
    });
    Snapshot::build(
        &ConfigState::new(Version { revision: 9, ..Version::default() }, resources),
        "paris",
        "mesh.test",
        &Snapshot::empty(),
    )
    .unwrap()
    .snapshot
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    ask_of(&snapshot(), zone, name, kind)
}

fn ask_of(snapshot: &Snapshot, zone: &Zone, name: &str, kind: RecordType) -> String {
    let reply = answer(snapshot, zone, &Name::from_ascii(name).unwrap(), kind);
    let data = reply.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" ");
    match (reply.code, data.is_empty()) {
        (ResponseCode::NoError, true) => "NODATA".into(),
        (ResponseCode::NoError, false) => data,
        (ResponseCode::NXDomain, _) => "NXDOMAIN".into(),
        (code, _) => format!("{code:?}"),
    }
}

#[test]
fn the_table_of_the_specification() {
    let zone = Zone { http: "10.1.2.3:15080".parse().unwrap(), tcp_base: "10.1.2.3:16000".parse().unwrap() };
    use RecordType as T;
    for (name, kind, expected) in [
        ("checkout.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
        ("CheckOut.Shop.SVC.ClusterSet.Local.", T::A, "10.1.2.3"),
        ("checkout.shop.svc.clusterset.local.", T::AAAA, "NODATA"),
        ("checkout.shop.svc.clusterset.local.", T::MX, "NODATA"),
        ("checkout.shop.svc.clusterset.local.", T::SRV, "0 100 15080 checkout.shop.svc.clusterset.local."),
        ("_http._tcp.checkout.shop.svc.clusterset.local.", T::SRV, "0 100 15080 checkout.shop.svc.clusterset.local."),
        ("_http._tcp.checkout.shop.svc.clusterset.local.", T::A, "NODATA"),
        ("_tcp._tcp.ledger.shop.svc.clusterset.local.", T::SRV, "0 100 16003 ledger.shop.svc.clusterset.local."),
        ("_http2._tcp.catalog.shop.svc.clusterset.local.", T::SRV, "0 100 15080 catalog.shop.svc.clusterset.local."),
        ("_http._udp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("_other._tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("_tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NODATA"),
        ("shop.svc.clusterset.local.", T::A, "NODATA"),
        ("svc.clusterset.local.", T::A, "NODATA"),
        ("empty.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("nothing.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("secret.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("newer.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
        ("Newer.lab.svc.clusterset.local.", T::A, "10.1.2.3"),
        ("newer.lab.svc.clusterset.local.", T::AAAA, "NODATA"),
        ("lab.svc.clusterset.local.", T::A, "NODATA"),
        ("broken.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
        ("bytes.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("paris.checkout.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("dns-version.clusterset.local.", T::TXT, "1.0.0"),
        ("dns-version.clusterset.local.", T::A, "NODATA"),
        ("clusterset.local.", T::NS, "ns.dns.clusterset.local."),
        ("clusterset.local.", T::A, "NODATA"),
        ("ns.dns.clusterset.local.", T::A, "10.1.2.3"),
        ("dns.clusterset.local.", T::A, "NODATA"),
        ("elsewhere.clusterset.local.", T::A, "NXDOMAIN"),
        ("checkout.shop.svc.cluster.local.", T::A, "Refused"),
        ("example.com.", T::A, "Refused"),
        (".", T::NS, "Refused"),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
    let zone = Zone { http: "[2001:db8::1]:15080".parse().unwrap(), ..zone };
    assert_eq!(ask(&zone, "checkout.shop.svc.clusterset.local.", T::AAAA), "2001:db8::1");
    assert_eq!(ask(&zone, "checkout.shop.svc.clusterset.local.", T::A), "NODATA");
}

#[test]
fn negative_answers_carry_the_soa_and_answers_keep_the_case_asked() {
    let zone = Zone { http: "10.1.2.3:15080".parse().unwrap(), tcp_base: "10.1.2.3:16000".parse().unwrap() };
    let nothing = answer(&snapshot(), &zone, &Name::from_ascii("x.clusterset.local.").unwrap(), RecordType::A);
    assert_eq!(nothing.authority.len(), 1);
    assert_eq!(nothing.authority[0].record_type(), RecordType::SOA);
    let asked = Name::from_ascii("CheckOut.shop.svc.clusterset.local.").unwrap();
    let found = answer(&snapshot(), &zone, &asked, RecordType::A);
    assert!(found.answers[0].name.eq_case(&asked));
    assert!(found.authority.is_empty());
    let refused = answer(&snapshot(), &zone, &Name::from_ascii("example.com.").unwrap(), RecordType::A);
    assert!(refused.authority.is_empty(), "no SOA of ours for another zone");
}

/// The same federation, seen in a cluster whose clients know these services, at addresses of the cluster.
fn captured(captures: Vec<proto::Capture>) -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.captures = Some(Arc::new(Captures::read(&Arc::new(proto::Captures { captures }))));
    snapshot
}

fn capture(name: &str, port: (&str, u32), listen: u32, ips: &[&str]) -> proto::Capture {
    proto::Capture {
        namespace: "shop".into(),
        name: name.into(),
        port: port.1,
        port_name: port.0.into(),
        protocol: proto::Protocol::Http1.into(),
        listen,
        cluster_ips: ips.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn in_a_cluster_with_captures_a_name_is_what_the_cluster_made_of_the_service() {
    use RecordType as T;
    let zone = Zone { http: "192.0.2.1:15080".parse().unwrap(), tcp_base: "192.0.2.1:16000".parse().unwrap() };
    let both = ["10.96.0.7", "fd00::7"];
    let snapshot = captured(vec![
        // UDP and TCP of one number were two ports there; whatever was carried, it is one place.
        capture("checkout", ("http", 80), 17_000, &both),
        capture("checkout", ("metrics", 9090), 17_001, &both),
        capture("checkout", ("again", 80), 17_002, &both),
        capture("plain", ("", 42), 17_003, &["10.96.0.8"]),
        // Headless.
        capture("db", ("pg", 5432), 17_004, &[]),
        // Closed here: its gateway says so, at the cluster's address.
        capture("newer", ("http", 80), 17_005, &["10.96.0.9"]),
        // Not in the configuration yet.
        capture("fresh", ("http", 80), 17_006, &["10.96.0.10"]),
    ]);
    let checkout = "checkout.shop.svc.clusterset.local.";
    for (name, kind, expected) in [
        (checkout, T::A, "10.96.0.7"),
        (checkout, T::AAAA, "fd00::7"),
        (checkout, T::MX, "NODATA"),
        (
            checkout,
            T::SRV,
            "0 100 80 checkout.shop.svc.clusterset.local. 0 100 9090 checkout.shop.svc.clusterset.local.",
        ),
        ("_http._tcp.checkout.shop.svc.clusterset.local.", T::SRV, "0 100 80 checkout.shop.svc.clusterset.local."),
        ("_Metrics._TCP.Checkout.shop.svc.clusterset.local.", T::SRV, "0 100 9090 checkout.shop.svc.clusterset.local."),
        ("_http._tcp.checkout.shop.svc.clusterset.local.", T::A, "NODATA"),
        ("_http2._tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("_http._udp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("http._tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("_tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NODATA"),
        ("plain.shop.svc.clusterset.local.", T::A, "10.96.0.8"),
        ("plain.shop.svc.clusterset.local.", T::AAAA, "NODATA"),
        ("plain.shop.svc.clusterset.local.", T::SRV, "0 100 42 plain.shop.svc.clusterset.local."),
        ("_._tcp.plain.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("_tcp.plain.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("db.shop.svc.clusterset.local.", T::A, "NODATA"),
        ("db.shop.svc.clusterset.local.", T::SRV, "NODATA"),
        ("_pg._tcp.db.shop.svc.clusterset.local.", T::SRV, "NODATA"),
        ("newer.shop.svc.clusterset.local.", T::A, "10.96.0.9"),
        ("fresh.shop.svc.clusterset.local.", T::A, "10.96.0.10"),
        // The federation has these, this cluster does not.
        ("catalog.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("ledger.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
        ("newer.lab.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("lab.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("shop.svc.clusterset.local.", T::A, "NODATA"),
        ("svc.clusterset.local.", T::A, "NODATA"),
        ("paris.checkout.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
        ("dns-version.clusterset.local.", T::TXT, "1.0.0"),
        ("ns.dns.clusterset.local.", T::A, "192.0.2.1"),
        ("checkout.shop.svc.cluster.local.", T::A, "Refused"),
    ] {
        assert_eq!(ask_of(&snapshot, &zone, name, kind), expected, "{name} {kind}");
    }
    let located = answer(&snapshot, &zone, &Name::from_ascii(checkout).unwrap(), T::SRV);
    let beside: Vec<_> = located.additionals.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(beside, both);
    // None at all is not the same as never said.
    assert_eq!(ask_of(&captured(vec![]), &zone, checkout, T::A), "NXDOMAIN");
}

#[test]
fn every_port_of_a_service_has_a_place() {
    use RecordType as T;
    let zone = Zone { http: "10.1.2.3:15080".parse().unwrap(), tcp_base: "10.1.2.4:16000".parse().unwrap() };
    let port = |name: &str, port: u32, slot: Option<u32>| proto::ServicePort {
        name: name.into(),
        port,
        protocol: slot.map_or(proto::Protocol::Http1, |_| proto::Protocol::Tcp).into(),
        listener: Some(match slot {
            Some(port_offset) => Listener::Tcp(proto::TcpListener { port_offset }),
            None => Listener::Http(proto::HttpListener::default()),
        }),
        rules: vec![proto::RouteRule { name: "default".into(), ..Default::default() }],
        ..Default::default()
    };
    let service = proto::ServiceConfig {
        namespace: "shop".into(),
        name: "web".into(),
        ports: vec![port("db", 5432, Some(3)), port("", 80, None), port("admin", 8080, None)],
        exporters: vec!["paris".into()],
        ..Default::default()
    };
    let cluster = proto::ClusterConfig { name: "paris".into(), ..Default::default() };
    let resources = [Body::Service(service), Body::Cluster(cluster)].map(archipelago_model::compile::resource);
    let state = ConfigState::new(Version::default(), resources);
    let snapshot = Snapshot::build(&state, "paris", "mesh.test", &Snapshot::empty()).unwrap().snapshot;
    for (name, kind, expected) in [
        ("web.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
        ("_db._tcp.web.shop.svc.clusterset.local.", T::SRV, "0 100 16003 web.shop.svc.clusterset.local."),
        ("_http._tcp.web.shop.svc.clusterset.local.", T::SRV, "0 100 15080 web.shop.svc.clusterset.local."),
        ("_admin._tcp.web.shop.svc.clusterset.local.", T::SRV, "0 100 15080 web.shop.svc.clusterset.local."),
        (
            "web.shop.svc.clusterset.local.",
            T::SRV,
            "0 100 16003 web.shop.svc.clusterset.local. 0 100 15080 web.shop.svc.clusterset.local.",
        ),
    ] {
        assert_eq!(ask_of(&snapshot, &zone, name, kind), expected, "{name} {kind}");
    }
}
