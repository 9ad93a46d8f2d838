use std::time::Duration;

use archipelago_identity::{SpiffeId, TrustDomain};
use archipelago_proto::v1::{self as proto, config_resource::Body, service_port::Listener};

use super::*;
use crate::config::ConfigState;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A certificate issued a minute ago, good for an hour.
fn certificate(spiffe_id: &SpiffeId) -> PeerCertificate {
    PeerCertificate { spiffe_id: spiffe_id.clone(), not_before: at(NOW - 60), not_after: at(NOW + 3600) }
}

fn trust_domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn gateway(cluster: &str) -> PeerCertificate {
    certificate(&SpiffeId::gateway(&trust_domain("mesh.test"), cluster, "gw-1"))
}

fn service(name: &str, protocol: proto::Protocol, exporters: &[&str], residency: &[&str]) -> proto::ServiceConfig {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    proto::ServiceConfig {
        namespace: "bank".into(),
        name: name.into(),
        hosts: vec![format!("{name}.bank")],
        ports: vec![proto::ServicePort {
            port: 80,
            protocol: protocol as i32,
            listener: Some(match protocol {
                proto::Protocol::Tcp => Listener::Tcp(proto::TcpListener::default()),
                _ => Listener::Http(proto::HttpListener::default()),
            }),
            rules: vec![proto::RouteRule { name: "default".into(), ..Default::default() }],
            ..Default::default()
        }],
        exporters: names(exporters),
        residency_clusters: names(residency),
        ..Default::default()
    }
}

/// Bytes on port 5432, HTTP on port 80.
fn both() -> proto::ServiceConfig {
    let mut both = service("both", proto::Protocol::Tcp, &["tokyo"], &[]);
    both.ports[0].port = 5432;
    both.ports[0].listener = Some(Listener::Tcp(proto::TcpListener { port_offset: 1 }));
    both.ports.extend(service("both", proto::Protocol::Http1, &[], &[]).ports);
    both
}

/// tokyo's view of paris, tokyo and lyon.
fn snapshot() -> Snapshot {
    let cluster =
        |name: &str| Body::Cluster(proto::ClusterConfig { name: name.into(), region: "eu".into(), drained: false });
    let http = proto::Protocol::Http1;
    let bodies = [
        Body::Mesh(proto::MeshConfig { trust_domain: "mesh.test".into(), bundle_der: vec![] }),
        cluster("paris"),
        cluster("tokyo"),
        cluster("lyon"),
        Body::Service(service("accounts", http, &["paris", "tokyo"], &[])),
        Body::Service(service("rpc", proto::Protocol::H2c, &["tokyo"], &["tokyo"])),
        Body::Service(service("ledger", proto::Protocol::Tcp, &["tokyo"], &[])),
        Body::Service(both()),
        // Exported by paris alone, though tokyo's agent may well run one.
        Body::Service(service("secret", http, &["paris"], &[])),
        Body::Service(service("european", http, &["paris", "tokyo"], &["paris"])),
        Body::Revocations(proto::Revocations {
            revocations: vec![
                revocation(proto::revocation::Subject::Cluster("lyon".into()), NOW - 30),
                revocation(
                    proto::revocation::Subject::SpiffeId("spiffe://mesh.test/cluster/paris/gateway/gw-2".into()),
                    NOW - 30,
                ),
            ],
        }),
    ];
    let resources = bodies.map(archipelago_model::compile::resource);
    let state = ConfigState::new(archipelago_model::version::Version::default(), resources);
    Snapshot::build(&state, "tokyo", "mesh.test", &Snapshot::empty()).unwrap().snapshot
}

fn revocation(subject: proto::revocation::Subject, issued_before: u64) -> proto::Revocation {
    proto::Revocation { subject: Some(subject), issued_before_unix: issued_before.try_into().unwrap() }
}

#[test]
fn who_may_connect() {
    let ours = trust_domain("mesh.test");
    let renewed = |peer: PeerCertificate| PeerCertificate { not_before: at(NOW - 30), ..peer };
    let second = certificate(&SpiffeId::gateway(&ours, "paris", "gw-2"));
    let cases: &[(&str, PeerCertificate, Result<&str, Refusal>)] = &[
        ("a gateway of another cluster", gateway("paris"), Ok("paris")),
        ("a gateway of our own", gateway("tokyo"), Ok("tokyo")),
        ("a cluster that nobody declared", gateway("berlin"), Err(Refusal::UndeclaredCluster)),
        ("a name that only begins like one", gateway("pari"), Err(Refusal::UndeclaredCluster)),
        (
            "another trust domain",
            certificate(&SpiffeId::gateway(&trust_domain("other.test"), "paris", "gw-1")),
            Err(Refusal::TrustDomain),
        ),
        ("an agent", certificate(&SpiffeId::agent(&ours, "paris", "agent")), Err(Refusal::NotAGateway)),
        ("a member of the control plane", certificate(&SpiffeId::control_plane(&ours, 1)), Err(Refusal::NotAGateway)),
        ("an operator", certificate(&SpiffeId::operator(&ours, "root")), Err(Refusal::NotAGateway)),
        ("a revoked identity", second.clone(), Err(Refusal::Revoked)),
        ("a revoked identity with a newer certificate", renewed(second), Ok("paris")),
        ("a revoked cluster", gateway("lyon"), Err(Refusal::Revoked)),
        ("a revoked cluster that enrolled again", renewed(gateway("lyon")), Ok("lyon")),
        (
            "a certificate that ran out",
            PeerCertificate { not_after: at(NOW), ..gateway("paris") },
            Err(Refusal::Expired),
        ),
    ];
    let snapshot = snapshot();
    for (name, peer, expected) in cases {
        let got = admit(&snapshot.membership, peer, at(NOW));
        assert_eq!(got.as_ref().map(|peer| &**peer.cluster()).map_err(|refusal| *refusal), *expected, "{name}");
    }
    let nothing = Snapshot::empty();
    assert_eq!(admit(&nothing.membership, &gateway("paris"), at(NOW)), Err(Refusal::NoConfiguration));
}

#[test]
fn what_a_peer_may_ask_for() {
    use Kind::{Connect, ExtendedConnect, Request, WebSocket};
    type Case<'a> = (&'a str, Kind, Option<&'a str>, Option<&'a str>, Result<(), Refusal>);
    let hop = Some(INGRESS_HOP);
    let cases: &[Case<'_>] = &[
        ("a request for an exported service", Request, hop, Some("bank/accounts"), Ok(())),
        ("a request for an HTTP/2 service", Request, hop, Some("bank/rpc"), Ok(())),
        ("a WebSocket of an HTTP service", WebSocket, hop, Some("bank/accounts"), Ok(())),
        ("a WebSocket of an HTTP/2 service", WebSocket, hop, Some("bank/rpc"), Ok(())),
        ("a byte stream for a TCP service", Connect, hop, Some("bank/ledger"), Ok(())),
        ("no hop count", Request, None, Some("bank/accounts"), Err(Refusal::Hops)),
        ("a second hop", Request, Some("2"), Some("bank/accounts"), Err(Refusal::Hops)),
        ("a hop count that is no number", Request, Some("1 "), Some("bank/accounts"), Err(Refusal::Hops)),
        ("no service", Request, hop, None, Err(Refusal::NoService)),
        ("an unknown service", Request, hop, Some("bank/nothing"), Err(Refusal::UnknownService)),
        ("an unexported service", Request, hop, Some("bank/secret"), Err(Refusal::NotExported)),
        ("a byte stream to an unexported service", Connect, hop, Some("bank/secret"), Err(Refusal::NotExported)),
        ("a service that may not reside here", Request, hop, Some("bank/european"), Err(Refusal::Residency)),
        ("a byte stream past the proxy", Connect, hop, Some("bank/accounts"), Err(Refusal::Kind)),
        ("a byte stream to an HTTP/2 service", Connect, hop, Some("bank/rpc"), Err(Refusal::Kind)),
        ("a request to a TCP service", Request, hop, Some("bank/ledger"), Err(Refusal::Kind)),
        ("a WebSocket to a TCP service", WebSocket, hop, Some("bank/ledger"), Err(Refusal::Kind)),
        ("another protocol to HTTP", ExtendedConnect, hop, Some("bank/accounts"), Err(Refusal::Kind)),
        ("another protocol to TCP", ExtendedConnect, hop, Some("bank/ledger"), Err(Refusal::Kind)),
    ];
    let snapshot = snapshot();
    let peer = admit(&snapshot.membership, &gateway("paris"), at(NOW)).unwrap();
    for (name, kind, hop, service, expected) in cases {
        let got = authorize(&snapshot, &peer, Asked { kind: *kind, hop: *hop, service: *service, port: None });
        assert_eq!(got.as_ref().map(|_| ()).map_err(|refusal| *refusal), *expected, "{name}");
        if let Ok(authorized) = got {
            assert_eq!(Some(&**authorized.service()), *service);
        }
    }
}

#[test]
fn a_port_is_asked_for_by_its_number() {
    use Kind::{Connect, Request};
    type Case<'a> = (Kind, &'a str, Option<&'a str>, Result<&'a str, Refusal>);
    let cases: &[Case<'_>] = &[
        (Connect, "bank/both", None, Ok("bank/both:5432")),
        (Connect, "bank/both", Some("5432"), Ok("bank/both:5432")),
        (Request, "bank/both", Some("80"), Ok("bank/both:80")),
        (Request, "bank/both", Some("5432"), Err(Refusal::Kind)),
        (Connect, "bank/both", Some("80"), Err(Refusal::Kind)),
        (Request, "bank/both", Some("81"), Err(Refusal::UnknownService)),
        (Request, "bank/both", Some(""), Err(Refusal::UnknownService)),
        (Request, "bank/both", Some("65616"), Err(Refusal::UnknownService)),
        (Request, "bank/accounts", Some("80"), Ok("bank/accounts")),
        (Request, "bank/accounts", Some("8080"), Err(Refusal::UnknownService)),
        (Request, "bank/secret", Some("80"), Err(Refusal::NotExported)),
    ];
    let snapshot = snapshot();
    let peer = admit(&snapshot.membership, &gateway("paris"), at(NOW)).unwrap();
    for (kind, service, port, expected) in cases {
        let asked = Asked { kind: *kind, hop: Some(INGRESS_HOP), service: Some(service), port: *port };
        let got = authorize(&snapshot, &peer, asked);
        assert_eq!(got.as_ref().map(|got| &**got.service()).map_err(|refusal| *refusal), *expected, "{asked:?}");
    }
}

#[test]
fn a_cluster_that_is_not_declared_itself_serves_nobody() {
    let mut snapshot = snapshot();
    let peer = admit(&snapshot.membership, &gateway("paris"), at(NOW)).unwrap();
    snapshot.own_cluster = None;
    Arc::make_mut(&mut snapshot.membership).own_cluster = None;
    let asked = Asked { kind: Kind::Request, hop: Some(INGRESS_HOP), service: Some("bank/accounts"), port: None };
    assert_eq!(authorize(&snapshot, &peer, asked), Err(Refusal::NotExported));
    // And lets nobody in, nor calls anyone for its clients: what others export is not for a cluster that was deleted.
    assert_eq!(admit(&snapshot.membership, &gateway("paris"), at(NOW)), Err(Refusal::OwnCluster));
}

#[test]
fn nobody_is_let_in_while_it_cannot_be_read_who_was_revoked() {
    let mut snapshot = snapshot();
    Arc::make_mut(&mut snapshot.membership).revocations = None;
    assert_eq!(admit(&snapshot.membership, &gateway("paris"), at(NOW)), Err(Refusal::UnreadableRevocations));
}

#[test]
fn every_refusal_has_a_label_of_its_own() {
    let reasons: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
    assert_eq!(reasons.len(), Refusal::ALL.len());
    assert!(reasons.iter().all(|reason| reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
}
