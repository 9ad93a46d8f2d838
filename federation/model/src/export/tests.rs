use archipelago_proto::v1::UncarriedPort;
use proptest::prelude::*;

use super::*;

fn port(name: &str, number: u32, protocol: Protocol) -> ReportedPort {
    ReportedPort { name: name.into(), port: number, protocol: protocol.into(), app_protocol: String::new() }
}

fn http(name: &str, number: u32) -> ReportedPort {
    port(name, number, Protocol::Http1)
}

/// Through the Multi-Cluster Services API, at this time.
fn export(cluster: &str, created: i64, ports: Vec<ReportedPort>) -> Exporter {
    let facts = ExportFacts {
        created_unix_ms: created,
        r#type: ExportType::ClusterSetIp.into(),
        session_affinity: "None".into(),
        ..ExportFacts::default()
    };
    Exporter { cluster: cluster.into(), ports, facts: Some(facts), since: 0 }
}

/// From a service file.
fn file(cluster: &str, since: u64, ports: Vec<ReportedPort>) -> Exporter {
    Exporter { cluster: cluster.into(), ports, facts: None, since }
}

fn with(exporter: Exporter, change: impl FnOnce(&mut ExportFacts)) -> Exporter {
    let mut facts = exporter.facts.unwrap();
    change(&mut facts);
    Exporter { facts: Some(facts), ..exporter }
}

fn uncarried(exporter: Exporter, ports: &[(&str, u32, &str)]) -> Exporter {
    with(exporter, |facts| {
        let port = |(name, port, transport): &(&str, u32, &str)| UncarriedPort {
            name: (*name).into(),
            port: *port,
            transport: (*transport).into(),
            app_protocol: String::new(),
        };
        facts.uncarried_ports = ports.iter().map(port).collect();
    })
}

/// `name:port/protocol < exporters`, one line per port.
fn shown(merged: &Merged) -> Vec<String> {
    let line = |port: &MergedPort| {
        let protocol = match port.protocol {
            Protocol::Unspecified => port.transport.as_str(),
            Protocol::Http1 => "http",
            Protocol::H2c => "h2c",
            Protocol::Tcp => "tcp",
        };
        format!("{}:{}/{protocol} < {}", port.name, port.port, port.exporters.join(" "))
    };
    merged.ports.iter().map(line).collect()
}

fn reasons(merged: &Merged) -> Vec<&'static str> {
    merged.conflicts.iter().map(|conflict| conflict.kind.reason()).collect()
}

/// What it is about; the exports; ports and reasons of the result.
type Row<'a> = (&'a str, Vec<Exporter>, &'a [&'a str], &'a [&'a str]);

#[test]
fn kep_1645_ports_are_united_and_the_oldest_export_wins() {
    let (http80, tcp80, h2c80) = (http("http", 80), port("http", 80, Protocol::Tcp), port("http", 80, Protocol::H2c));
    let table: Vec<Row<'_>> = vec![
        (
            "identical",
            vec![export("paris", 1, vec![http80.clone()]), export("tokyo", 2, vec![http80.clone()])],
            &["http:80/http < paris tokyo"],
            &[],
        ),
        (
            "the union, in the order of the oldest",
            vec![
                export("paris", 2, vec![http80.clone(), http("admin", 81)]),
                export("tokyo", 1, vec![http("metrics", 9090), http80.clone()]),
            ],
            &["metrics:9090/http < tokyo", "http:80/http < paris tokyo", "admin:81/http < paris"],
            &["PortConflict"],
        ),
        (
            "one name for two numbers: the younger is left out, and gets no traffic of the older",
            vec![export("paris", 1, vec![http80.clone()]), export("tokyo", 2, vec![http("http", 81)])],
            &["http:80/http < paris"],
            &["PortConflict"],
        ),
        (
            "an empty name is a name",
            vec![export("paris", 1, vec![http("", 80)]), export("tokyo", 2, vec![http("", 81)])],
            &[":80/http < paris"],
            &["PortConflict"],
        ),
        (
            "two names for one number: the older name, the traffic of both",
            vec![export("paris", 2, vec![http("web", 80)]), export("tokyo", 1, vec![http80.clone()])],
            &["http:80/http < paris tokyo"],
            &["PortConflict"],
        ),
        (
            "two protocols on one number: only those who speak the older's",
            vec![
                export("lyon", 3, vec![http80.clone()]),
                export("paris", 1, vec![http80.clone()]),
                export("tokyo", 2, vec![tcp80.clone()]),
            ],
            &["http:80/http < lyon paris"],
            &["PortConflict"],
        ),
        (
            "of the same age the first by name",
            vec![export("tokyo", 5, vec![h2c80.clone()]), export("paris", 5, vec![http80.clone()])],
            &["http:80/http < paris"],
            &["PortConflict"],
        ),
        (
            "other transports are listed, and have numbers of their own",
            vec![
                uncarried(export("paris", 1, vec![port("tcp", 42, Protocol::Tcp)]), &[("udp", 42, "UDP")]),
                uncarried(export("tokyo", 2, vec![port("tcp", 42, Protocol::Tcp)]), &[("stcp", 142, "SCTP")]),
            ],
            &["tcp:42/tcp < paris tokyo", "udp:42/UDP < paris", "stcp:142/SCTP < tokyo"],
            &["PortConflict"],
        ),
        (
            "a file gives ports no names: it repeats none and contradicts none",
            vec![export("paris", 9, vec![http80.clone()]), file("machines", 1, vec![http("", 80)])],
            &["http:80/http < machines paris"],
            &[],
        ),
        (
            "files are younger than exports, and a port beside others needs a name",
            vec![
                file("machines", 1, vec![port("", 80, Protocol::Tcp)]),
                file("racks", 2, vec![http("", 8080)]),
                export("paris", 9, vec![http80.clone()]),
            ],
            &["http:80/http < paris", "port-8080:8080/http < racks"],
            &["PortConflict"],
        ),
        (
            "among files the one that reports it longer",
            vec![file("a", 7, vec![http("", 80)]), file("b", 3, vec![port("", 80, Protocol::Tcp)])],
            &[":80/tcp < b"],
            &["PortConflict"],
        ),
        (
            "files that name other numbers mean the same port; one that speaks another protocol does not serve it",
            vec![
                file("a", 3, vec![http("", 80)]),
                file("b", 7, vec![http("", 8080)]),
                file("c", 8, vec![port("", 9000, Protocol::Tcp)]),
            ],
            &[":80/http < a b"],
            &["PortConflict"],
        ),
        (
            "what speaks nothing that gateways know is none",
            vec![file("a", 7, vec![port("", 80, Protocol::Unspecified)])],
            &[],
            &[],
        ),
        ("nobody", vec![], &[], &[]),
    ];
    for (what, exporters, ports, conflicts) in table {
        let merged = merge(&exporters);
        assert_eq!(shown(&merged), ports, "{what}");
        assert_eq!(reasons(&merged), conflicts, "{what}: {:?}", merged.conflicts);
        assert!(merged.conflicts.iter().all(|conflict| conflict.clusters.len() == exporters.len()), "{what}");
    }
}

#[test]
fn the_message_says_whose_word_counts_and_what_does_not() {
    let merged = merge(&[
        export("paris", 1, vec![http("http", 80), http("admin", 81)]),
        export("tokyo", 2, vec![port("http", 80, Protocol::Tcp), http("admin", 82)]),
    ]);
    assert_eq!(
        merged.conflicts[0].message,
        "ports differ, the export of paris is the oldest: tokyo speaks tcp on port 80/TCP, where paris speaks http, and gets no traffic for it; tokyo has no port 81/TCP, and gets no traffic for it; port 82/TCP of tokyo is not used: its name \"admin\" is that of port 81"
    );
    let many: Vec<Exporter> =
        (0..40).map(|n| export(&format!("c{n:02}"), n, vec![http("", 1_000 + u32::try_from(n).unwrap())])).collect();
    let message = &merge(&many).conflicts[0].message;
    assert!(message.ends_with("more") && message.len() < 1_024, "{message}");
    let files = merge(&[file("a", 1, vec![http("", 80)]), file("b", 2, vec![http("", 81)])]);
    assert!(files.conflicts[0].message.ends_with(": b has port 80/TCP under another number"), "{files:?}");
}

#[test]
fn cluster_selectors_are_a_conflict_of_their_own() {
    const OWN: &str = r#"[{"propertySelector":{"matchProperties":{"cluster.clusterset.k8s.io":"@SameAsImporter@"}}}]"#;
    let select = |cluster: &str, created: i64, text: &str| {
        with(export(cluster, created, vec![http("http", 80)]), |facts| {
            facts.annotations = [(selector::ANNOTATION.to_owned(), text.to_owned())].into();
        })
    };
    let plain = export("lyon", 3, vec![http("http", 80)]);
    let merged = merge(&[plain.clone(), select("paris", 1, OWN), select("tokyo", 2, OWN)]);
    assert_eq!(merged.cluster_selectors(), Some(ClusterSelectors::parse(OWN).unwrap()));
    assert_eq!(reasons(&merged), ["ClusterSelectorsConflict"]);
    assert_eq!(merged.conflicts[0].clusters, ["lyon", "paris", "tokyo"]);
    let message = &merged.conflicts[0].message;
    assert!(message.starts_with("archipelago.dev/cluster-selectors is [{"), "{message}");
    assert!(message.ends_with("as paris says, whose export is the oldest; lyon says not said"), "{message}");
    // The oldest counts, also when it has none.
    let oldest = with(plain, |facts| facts.created_unix_ms = 0);
    assert_eq!(merge(&[oldest, select("paris", 1, OWN)]).cluster_selectors(), None);
    assert_eq!(reasons(&merge(&[select("paris", 1, OWN), select("tokyo", 2, OWN)])), [""; 0]);
}

#[test]
fn everything_else_is_as_the_oldest_export_says() {
    let ports = || vec![http("http", 80)];
    let labels = |value: &str| BTreeMap::from([("team".to_owned(), value.to_owned())]);
    let paris = with(export("paris", 2, ports()), |facts| {
        facts.session_affinity = "ClientIP".into();
        facts.session_affinity_seconds = Some(10);
        facts.internal_traffic_policy = "Local".into();
        facts.ip_families = vec!["IPv6".into(), "IPv4".into()];
        facts.labels = labels("shop");
    });
    let tokyo = with(export("tokyo", 3, ports()), |facts| {
        facts.r#type = ExportType::Headless.into();
        facts.traffic_distribution = "PreferClose".into();
        facts.labels = labels("shop");
        facts.annotations = labels("x".repeat(500).as_str());
    });
    let machines = file("machines", 1, ports());
    let merged = merge(&[tokyo.clone(), machines.clone(), paris.clone()]);
    assert_eq!((merged.kind, &*merged.session_affinity), (ExportType::ClusterSetIp, "ClientIP"));
    assert_eq!((merged.session_affinity_seconds, &*merged.internal_traffic_policy), (Some(10), "Local"));
    assert_eq!((merged.ip_families.as_slice(), &merged.labels), (&["IPv6".into(), "IPv4".into()][..], &labels("shop")));
    assert!(merged.annotations.is_empty() && merged.traffic_distribution.is_empty());
    assert_eq!(
        reasons(&merged),
        [
            "TypeConflict",
            "SessionAffinityConflict",
            "SessionAffinityConfigConflict",
            "AnnotationsConflict",
            "InternalTrafficPolicyConflict",
            "TrafficDistributionConflict"
        ]
    );
    assert_eq!(merged.conflicts[0].clusters, ["machines", "paris", "tokyo"], "a file is an export of that type, too");
    assert_eq!(merged.conflicts[1].clusters, ["paris", "tokyo"], "and says nothing of the rest");
    assert_eq!(
        merged.conflicts[1].message,
        "sessionAffinity is ClientIP as paris says, whose export is the oldest; tokyo says None"
    );
    assert!(merged.conflicts.iter().all(|conflict| conflict.message.len() < 300), "{:?}", merged.conflicts);

    let headless = merge(&[with(paris, |facts| facts.created_unix_ms = 4), tokyo]);
    assert_eq!(headless.kind, ExportType::Headless, "the oldest is");
    assert_eq!(merge(&[machines]).session_affinity, "None");
}

#[test]
fn a_report_without_a_list_of_ports_has_one() {
    let mut report = ServiceReport { port: 80, protocol: Protocol::Tcp.into(), ..ServiceReport::default() };
    assert_eq!(exporter("paris", &report, 3), file("paris", 3, vec![port("", 80, Protocol::Tcp)]));
    report.ports = vec![port("tcp", 80, Protocol::Tcp), http("admin", 81)];
    assert_eq!(ports_of(&report), report.ports);
}

prop_compose! {
    fn any_port()(name in "[ab]?", number in 1u32..4, protocol in 0i32..4, app in "[xy]?") -> ReportedPort {
        ReportedPort { name, port: number, protocol, app_protocol: app }
    }
}

prop_compose! {
    fn any_exporter()(
        ports in prop::collection::vec(any_port(), 0..4),
        udp in prop::collection::vec(("[ab]?", 1u32..4, prop::sample::select(vec!["UDP", "SCTP", "TCP", "?"])), 0..3),
        created in prop::option::of(0i64..3),
        since in 0u64..3,
        (kind, affinity) in (0i32..3, "None|ClientIP|"),
        label in "[ab]?",
    ) -> Exporter {
        let facts = created.map(|created_unix_ms| ExportFacts {
            created_unix_ms,
            r#type: kind,
            session_affinity: affinity,
            labels: [("l".to_owned(), label)].into(),
            uncarried_ports: udp.into_iter().map(|(name, port, transport)| UncarriedPort {
                name, port, transport: transport.to_owned(), app_protocol: String::new(),
            }).collect(),
            ..ExportFacts::default()
        });
        Exporter { cluster: String::new(), ports, facts, since }
    }
}

proptest! {
    /// Whatever is exported in whatever order: one result, in which no name and no number stands twice, every port has
    /// somebody who serves it, and one export alone contradicts nothing.
    #[test]
    fn the_result_does_not_depend_on_the_order(
        mut exporters in prop::collection::vec(any_exporter(), 0..5),
        turn in 0usize..5,
    ) {
        for (n, exporter) in exporters.iter_mut().enumerate() {
            exporter.cluster = format!("c{n}");
            exporter.ports.sort_by_key(|port| port.port);
            exporter.ports.dedup_by_key(|port| port.port);
        }
        let merged = merge(&exporters);
        let mut turned = exporters.clone();
        turned.rotate_left(turn.min(exporters.len()));
        prop_assert_eq!(&merge(&turned), &merged);
        turned.reverse();
        prop_assert_eq!(&merge(&turned), &merged);

        let mut names: Vec<_> = merged.ports.iter().map(|port| port.name.as_str()).collect();
        let mut numbers: Vec<_> = merged.ports.iter().map(|port| (port.transport, port.port)).collect();
        names.sort_unstable();
        numbers.sort_unstable();
        prop_assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", merged.ports);
        prop_assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]), "{:?}", merged.ports);
        prop_assert!(merged.ports.iter().all(|port| !port.exporters.is_empty()));
        let kinds: Vec<_> = merged.conflicts.iter().map(|conflict| conflict.kind).collect();
        prop_assert!(kinds.is_sorted_by(|one, other| one < other));
        for exporter in &exporters {
            let alone = merge([exporter]);
            prop_assert!(alone.conflicts.iter().all(|conflict| conflict.kind == ConflictKind::Port), "{:?}", alone.conflicts);
        }
    }
}
