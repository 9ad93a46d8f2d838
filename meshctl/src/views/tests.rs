//! Golden shapes: these field names and types are what scripts read.

use serde_json::json;

use super::*;

fn status() -> v1::StatusResponse {
    v1::StatusResponse {
        revision: 42,
        fleet: 7,
        restore_epoch: 0,
        trust_domain: "archipelago.local".into(),
        members: vec![v1::MemberStatus {
            id: 1,
            role: "leader".into(),
            address: "127.0.0.1:7400".into(),
            applied_index: 99,
            term: 3,
            format_supported: 2,
            format_version: 2,
            ..v1::MemberStatus::default()
        }],
        clusters: vec![v1::ClusterStatus {
            name: "paris".into(),
            region: "eu-west".into(),
            state: "active".into(),
            agent_state: "connected".into(),
            gateways: vec![v1::GatewayStatus {
                name: "gw-1".into(),
                cluster: "paris".into(),
                state: "synced".into(),
                revision: 42,
                addresses: Some(v1::GatewayAddresses {
                    http: "127.0.0.1:7510".into(),
                    tunnel: vec!["127.0.0.1:7514".into(), "127.0.0.1:7515".into()],
                    dns: "127.0.0.1:7511".into(),
                    metrics: "127.0.0.1:7513".into(),
                    health: "127.0.0.1:7512".into(),
                    tcp_base: "127.0.0.1:7522".into(),
                }),
                workers: 2,
                ..v1::GatewayStatus::default()
            }],
            problems: vec![],
        }],
        clocks: vec![],
    }
}

fn process() -> ProcessView {
    ProcessView {
        name: "paris/gw-1".into(),
        role: "gateway".into(),
        cluster: Some("paris".into()),
        pid: Some(4711),
        state: "running".into(),
        restarts: 1,
    }
}

#[test]
fn status_json() {
    let view = StatusView::new(status(), Some(vec![process()]));
    assert_eq!(
        serde_json::to_value(&view).unwrap(),
        json!({
            "revision": 42, "fleet": 7, "restoreEpoch": 0,
            "trustDomain": "archipelago.local",
            "controlPlane": { "members": [
                { "id": 1, "role": "leader", "address": "127.0.0.1:7400", "appliedIndex": 99, "term": 3,
                  "formatSupported": 2, "formatVersion": 2 },
            ]},
            "clusters": [{
                "name": "paris", "region": "eu-west", "state": "active", "agent": "connected",
                "gateways": [{
                    "name": "paris/gw-1", "cluster": "paris", "state": "synced", "revision": 42,
                    "http": "http://127.0.0.1:7510", "tunnel": "127.0.0.1:7514",
                    "tunnels": ["127.0.0.1:7514", "127.0.0.1:7515"], "dns": "127.0.0.1:7511",
                    "metrics": "http://127.0.0.1:7513/metrics", "health": "http://127.0.0.1:7512/readyz",
                    "tcpBase": "127.0.0.1:7522", "workers": 2, "ahead": false,
                }],
            }],
            "processes": [{
                "name": "paris/gw-1", "role": "gateway", "cluster": "paris", "pid": 4711,
                "state": "running", "restarts": 1,
            }],
        })
    );
    let without_up = serde_json::to_value(StatusView::new(status(), None)).unwrap();
    assert_eq!(without_up.get("processes"), None);
}

#[test]
fn status_without_a_control_plane_still_shows_processes() {
    let view = StatusView::only_processes(vec![process()]);
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!((&json["revision"], &json["clusters"]), (&json!(null), &json!([])));
    assert_eq!(
        view.text().render(false),
        "PROCESS      ROLE      PID    STATE     RESTARTS\nparis/gw-1   gateway   4711   running   1\n"
    );
}

#[test]
fn status_table() {
    let text = StatusView::new(status(), None).text().render(false);
    let expected = "\
trust domain archipelago.local, revision 42, fleet version 7

CONTROL PLANE   ROLE     ADDRESS          APPLIED   TERM
cp-1            leader   127.0.0.1:7400   99        3

CLUSTER   REGION    STATE    AGENT       GATEWAYS SYNCED
paris     eu-west   active   connected   1/1

GATEWAY      STATE    REVISION   HTTP                    TUNNEL           DNS              METRICS
paris/gw-1   synced   42         http://127.0.0.1:7510   127.0.0.1:7514   127.0.0.1:7511   http://127.0.0.1:7513/metrics
";
    assert_eq!(text, expected);
}

#[test]
fn status_names_what_an_operator_must_see_to() {
    let mut status = status();
    let newer = v1::ConfigVersion { restore_epoch: 0, revision: 50, fleet: 1 };
    let current = v1::ConfigVersion { restore_epoch: 0, revision: 42, fleet: 7 };
    let problem = |subject: &str, reason: &str| v1::Problem { subject: subject.into(), reason: reason.into() };
    let gateway = &mut status.clusters[0].gateways[0];
    (gateway.running, gateway.refused) = (Some(newer), Some(current));
    gateway.error = "runs revision 50".into();
    gateway.problems = vec![problem("TCP service", "port 7522 is taken; shop/ledger is not served here")];
    status.clocks = vec![v1::ClockOffset {
        spiffe_id: "spiffe://archipelago.local/cluster/paris/gateway/gw-1".into(),
        offset_ms: -7_200_400,
        member: 1,
        measured_unix_ms: 1_700_000_000_000,
    }];
    let member = |id, format_supported| v1::MemberStatus {
        id,
        role: "follower".into(),
        format_supported,
        format_version: format_supported.min(1),
        ..v1::MemberStatus::default()
    };
    status.members[0].format_version = 1;
    status.members.extend([member(2, 1), member(3, 0)]);
    status.members[0].problem = "no space left on device for /data".into();

    let view = StatusView::new(status, None);
    let text = view.text().render(false);
    for line in [
        "cp-1: no space left on device for /data",
        "cp-2 knows log format 1 only and holds the members back from 2",
        "cp-3 does not answer and holds the members back from log format 2",
        "gateway paris/gw-1: TCP service: port 7522 is taken; shop/ledger is not served here",
        "cluster/paris/gateway/gw-1: its clock was 2h behind that of cp-1 at 2023-11-14T22:13:20Z",
        "some gateway runs a newer version than the control plane has; after a restore from a backup run `meshctl raft restored`",
    ] {
        assert!(text.lines().any(|shown| shown == line), "no line {line:?} in\n{text}");
    }
    let json = serde_json::to_value(&view).unwrap();
    let gateway = &json["clusters"][0]["gateways"][0];
    assert_eq!(gateway["refused"], json!({ "restoreEpoch": 0, "revision": 42, "fleet": 7 }));
    assert_eq!(gateway["ahead"], json!(true));
    assert_eq!(json["clocks"][0]["offsetMs"], json!(-7_200_400));
    assert_eq!(json["controlPlane"]["members"][2].get("formatSupported"), None);
}

#[test]
fn a_gateway_that_cannot_use_an_update_is_not_ahead() {
    let mut status = status();
    let version = |revision| Some(v1::ConfigVersion { restore_epoch: 0, revision, fleet: 7 });
    let gateway = &mut status.clusters[0].gateways[0];
    (gateway.running, gateway.refused) = (version(41), version(42));
    let view = StatusView::new(status, None);
    assert!(!view.gateways()[0].ahead);
    assert!(!view.text().render(false).contains("raft restored"));
}

#[test]
fn services_json_and_table() {
    let ledger = ServiceView::new(v1::ServiceStatus {
        namespace: "shop".into(),
        name: "ledger".into(),
        hosts: vec!["ledger.shop".into()],
        protocol: v1::Protocol::Tcp.into(),
        port: 9000,
        tcp_slot: 0,
        clusters: vec![
            v1::ServiceClusterStatus {
                cluster: "paris".into(),
                ready: 1,
                total: 2,
                weight: Some(90.0),
                state: "degraded".into(),
                versions: vec!["v1".into()],
                unknown: 0,
                last_failure: Some(v1::CheckFailure { reason: v1::CheckFailureReason::Status.into(), status: 404 }),
            },
            v1::ServiceClusterStatus { cluster: "tokyo".into(), state: "down".into(), ..Default::default() },
        ],
        tcp_addresses: vec![v1::TcpAddress {
            gateway: "gw-1".into(),
            cluster: "paris".into(),
            address: "127.0.0.1:7522".into(),
            port: 9000,
        }],
        disagreements: vec![v1::Disagreement {
            cluster: "lima".into(),
            protocol: v1::Protocol::Http1.into(),
            port: 80,
            ignored: true,
        }],
        said_by: "paris".into(),
        ports: vec![v1::PortStatus {
            port: 9000,
            protocol: v1::Protocol::Tcp.into(),
            tcp_slot: Some(0),
            exporters: vec!["paris".into(), "tokyo".into()],
            ..Default::default()
        }],
        headless: false,
    });
    assert_eq!(
        serde_json::to_value(&ledger).unwrap(),
        json!({
            "name": "shop/ledger", "hosts": ["ledger.shop"], "protocol": "tcp", "port": 9000,
            "clusters": [
                { "name": "paris", "ready": 1, "total": 2, "weight": 90.0, "state": "degraded", "versions": ["v1"],
                  "failure": "answered 404" },
                { "name": "tokyo", "ready": 0, "total": 0, "weight": null, "state": "down", "versions": [] },
            ],
            "tcp": [{ "gateway": "paris/gw-1", "cluster": "paris", "address": "127.0.0.1:7522" }],
            "disagreements": [{ "cluster": "lima", "protocol": "http", "port": 80, "ignored": true,
                "why": "lima reports http on port 80, paris reported tcp on port 9000 first: nothing is sent there" }],
        })
    );
    let expected = "\
SERVICE       PROTOCOL   CLUSTER   READY   WEIGHT   STATE      VERSIONS   HOSTS
shop/ledger   tcp        paris     1/2     90%      degraded   v1         ledger.shop
                         tokyo     0/0     -        down

TCP SERVICE   GATEWAY      CONNECT TO
shop/ledger   paris/gw-1   127.0.0.1:7522

shop/ledger: lima reports http on port 80, paris reported tcp on port 9000 first: nothing is sent there
";
    assert_eq!(service_text(&[ledger], false).render(false), expected);
}

#[test]
fn a_service_with_several_ports_names_them_and_a_headless_one_says_so() {
    let port = |name: &str, port: u32, protocol: v1::Protocol| v1::PortStatus {
        name: name.into(),
        port,
        protocol: protocol.into(),
        exporters: vec!["paris".into()],
        ..Default::default()
    };
    let service = |headless: bool| {
        ServiceView::new(v1::ServiceStatus {
            namespace: "shop".into(),
            name: "db".into(),
            protocol: v1::Protocol::Http1.into(),
            port: 80,
            clusters: vec![v1::ServiceClusterStatus {
                cluster: "paris".into(),
                state: "ready".into(),
                ..Default::default()
            }],
            tcp_addresses: vec![v1::TcpAddress {
                gateway: "gw-1".into(),
                cluster: "paris".into(),
                address: "127.0.0.1:7522".into(),
                port: 5_432,
            }],
            ports: vec![port("web", 80, v1::Protocol::Http1), port("pg", 5_432, v1::Protocol::Tcp)],
            headless,
            ..Default::default()
        })
    };
    let json = serde_json::to_value(service(false)).unwrap();
    assert_eq!(json["ports"][1], json!({ "name": "pg", "port": 5_432, "protocol": "tcp", "clusters": ["paris"] }));
    assert_eq!((&json["tcp"][0]["port"], json.get("headless")), (&json!(5_432), None));
    let text = service_text(&[service(false)], false).render(false);
    assert!(text.contains("http:80,tcp:5432") && text.contains("shop/db:5432"), "{text}");
    assert!(service_text(&[service(true)], false).render(false).contains("headless"));
}

#[test]
fn tunnels_json() {
    let old = v1::TunnelStatus {
        from: "gw-1".into(),
        to: "tokyo/gw-2".into(),
        from_cluster: "paris".into(),
        to_cluster: "tokyo".into(),
        state: "up".into(),
        rtt_micros: 180,
        transport: "quic".into(),
        connections: 1,
        ..Default::default()
    };
    let new = v1::TunnelStatus {
        sent_packets: Some(40_000),
        lost_packets: Some(3),
        lost_ppm: Some(75),
        congestion_window_bytes: Some(64_000),
        black_holes: Some(0),
        tls_version: Some("TLSv1.3".into()),
        ..old.clone()
    };
    let (old, new) = (TunnelView::new(old), TunnelView::new(new));
    assert_eq!(
        serde_json::to_value(&new).unwrap(),
        json!({
            "from": "paris/gw-1", "to": "tokyo/gw-2", "fromCluster": "paris", "toCluster": "tokyo",
            "state": "up", "rttMicros": 180, "transport": "quic", "tlsVersion": "TLSv1.3", "connections": 1,
            "lossPercent": 0.0075, "sentPackets": 40_000, "lostPackets": 3, "congestionWindowBytes": 64_000, "blackHoles": 0,
        })
    );
    let json = serde_json::to_value(&old).unwrap();
    for name in ["tlsVersion", "lossPercent", "sentPackets", "lostPackets", "congestionWindowBytes", "blackHoles"] {
        assert_eq!(json[name], json!(null), "a build before this does not report {name}");
    }
    let lossy = TunnelView { loss_percent: Some(1.25), ..new.clone() };
    let table = Text::from(tunnel_table(&[old, new, lossy])).render(false);
    let shown: Vec<&str> =
        table.lines().map(|line| line.split("   ").filter(|cell| !cell.is_empty()).nth(4).unwrap().trim()).collect();
    assert_eq!(shown, ["LOSS", "-", "<0.01%", "1.25%"], "{table}");
}

fn commit() -> v1::ApplyResponse {
    v1::ApplyResponse {
        revision: 43,
        commit_micros: 3_210,
        changes: vec![v1::Change {
            kind: "TrafficSplit".into(),
            namespace: "shop".into(),
            name: "checkout".into(),
            what: "updated".into(),
        }],
        ..Default::default()
    }
}

#[test]
fn writes_json() {
    let progress = v1::WaitAppliedProgress {
        revision: 43,
        expected: 6,
        acknowledged: 5,
        first_ack_micros: 900,
        last_ack_micros: 4_500,
        stragglers: vec![v1::Straggler { gateway: "tokyo/gw-2".into(), reason: "not connected".into() }],
        rejections: Vec::new(),
        done: true,
    };
    let view = WriteView::new(commit(), Some(&progress));
    assert_eq!(
        serde_json::to_value(&view).unwrap(),
        json!({
            "revision": 43, "commitMillis": 3.21, "firstAckMillis": 0.9, "lastAckMillis": 4.5,
            "expected": 6, "acknowledged": 5, "stragglers": ["tokyo/gw-2"], "rejections": [],
            "changes": [{ "kind": "TrafficSplit", "namespace": "shop", "name": "checkout", "what": "updated" }],
            "warnings": [],
        })
    );
    assert_eq!(
        view.text().render(false),
        "TrafficSplit shop/checkout updated\n\
         revision 43 committed in 3.2 ms, 5/6 gateways, first acknowledgement after 900 µs, last after 4.5 ms\n\
         stragglers: tokyo/gw-2\n"
    );
}

#[test]
fn a_write_nobody_waited_for_has_no_acknowledgements() {
    let json = serde_json::to_value(WriteView::new(commit(), None)).unwrap();
    assert_eq!(
        (&json["expected"], &json["acknowledged"], &json["firstAckMillis"], &json["stragglers"]),
        (&json!(null), &json!(null), &json!(null), &json!([]))
    );
}

#[test]
fn tokens_are_unused_used_or_expired() {
    let state = |used_unix, expires_unix| {
        let token = v1::TokenInfo { used_unix, expires_unix, role: v1::JoinRole::Gateway.into(), ..Default::default() };
        TokenView::new(token, 1_000).state
    };
    assert_eq!([state(0, 1_001), state(0, 1_000), state(900, 500)], ["unused", "expired", "used"]);
}
