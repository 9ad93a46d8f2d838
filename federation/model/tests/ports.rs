//! Services with several ports, as the compiler unites them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use archipelago_model::{
    admit,
    compile::{FederationState, Index, Meaning, compile, meaning},
    document::Document,
    feature,
    id::ServiceKey,
};
use archipelago_proto::v1::{
    ExportFacts, ExportType, Protocol, ReportedPort, RouteRule, ServiceConfig, ServicePort, ServiceReport,
    UncarriedPort, config_resource::Body, service_port::Listener,
};

const HEAD: &str = "apiVersion: archipelago.dev/v1alpha1\n";
const HTTP: Protocol = Protocol::Http1;
const TCP: Protocol = Protocol::Tcp;

fn with(state: &mut FederationState, yaml: &str) {
    let document = Document { file: "p.yaml".into(), text: format!("{HEAD}{yaml}") };
    let admitted = admit::admit(&[document], &state.resources).unwrap_or_else(|problems| panic!("{problems:#?}"));
    state.resources.extend(admitted.into_iter().map(|resource| (resource.key(), resource)));
}

/// The service `db` of a cluster, exported there at this time.
fn export(state: &mut FederationState, cluster: &str, created: i64, ports: &[(&str, u32, Protocol)]) {
    let port = |(name, port, protocol): &(&str, u32, Protocol)| ReportedPort {
        name: (*name).into(),
        port: *port,
        protocol: (*protocol).into(),
        app_protocol: String::new(),
    };
    let ports: Vec<ReportedPort> = ports.iter().map(port).collect();
    let facts = ExportFacts {
        created_unix_ms: created,
        r#type: ExportType::ClusterSetIp.into(),
        labels: [("team".to_owned(), cluster.to_owned())].into(),
        ..ExportFacts::default()
    };
    let report = ServiceReport {
        namespace: "shop".into(),
        name: "db".into(),
        protocol: ports[0].protocol,
        port: ports[0].port,
        exported: true,
        versions: vec!["v1".into()],
        ports,
        export: Some(facts),
        ..ServiceReport::default()
    };
    state.reports.insert(cluster.into(), vec![report]);
}

fn federation() -> FederationState {
    let mut state = FederationState { trust_domain: "mesh.example".into(), ..FederationState::default() };
    for (name, region) in [("lyon", "eu"), ("paris", "eu"), ("tokyo", "ap")] {
        with(&mut state, &format!("kind: Cluster\nmetadata: {{ name: {name} }}\nspec: {{ region: {region} }}\n"));
    }
    export(&mut state, "paris", 2, &[("web", 80, HTTP), ("pg", 5_432, TCP), ("admin", 8_080, HTTP)]);
    export(&mut state, "tokyo", 3, &[("pg", 5_432, TCP), ("web", 80, HTTP)]);
    export(&mut state, "lyon", 4, &[("web", 80, HTTP)]);
    for (slot, port) in [(4, 5_432), (9, 5_433)] {
        state.tcp_slots.insert(("shop".into(), "db".into(), port), slot);
    }
    state
}

fn db(state: &FederationState, cluster: &str) -> Option<ServiceConfig> {
    match &compile(state, cluster).get("service/shop/db")?.body {
        Some(Body::Service(service)) => Some(service.clone()),
        other => panic!("{other:?}"),
    }
}

fn meaning_of(state: &FederationState) -> Meaning {
    meaning(&Index::of(state), &ServiceKey::new("shop", "db")).unwrap()
}

/// `name:port listener`, then one line per rule.
fn shown(port: &ServicePort) -> Vec<String> {
    let listener = match &port.listener {
        Some(Listener::Http(http)) => format!("http {}", http.hosts.join(" ")),
        Some(Listener::Tcp(tcp)) => format!("tcp +{}", tcp.port_offset),
        None => "none".to_owned(),
    };
    let rule = |rule: &RouteRule| {
        let list = |backends: &[archipelago_proto::v1::Backend]| {
            let names: Vec<String> =
                backends.iter().map(|backend| format!("{}:{}", backend.cluster, backend.weight)).collect();
            names.join(" ")
        };
        let chain = rule.chain.map(|chain| port.chains[chain as usize].tiers.as_slice()).unwrap_or_default();
        let tiers: Vec<String> = chain.iter().map(|tier| list(&tier.backends)).collect();
        format!("{}: {} → {}", rule.name, list(&rule.backends), tiers.join(" | "))
    };
    std::iter::once(format!("{}:{} {listener}", port.name, port.port)).chain(port.rules.iter().map(rule)).collect()
}

#[test]
fn every_port_goes_only_to_the_clusters_that_have_it() {
    let mut state = federation();
    let service = db(&state, "paris").unwrap();
    let ports: Vec<Vec<String>> = service.ports.iter().map(shown).collect();
    let hosts = "db.shop.svc.clusterset.local db.shop";
    assert_eq!(
        ports,
        [
            [format!("web:80 http {hosts}"), "default:  → paris:1 | lyon:1 | tokyo:1".to_owned()],
            ["pg:5432 tcp +4".to_owned(), "default:  → paris:1 | tokyo:1".to_owned()],
            [format!("admin:8080 http {hosts}"), "default:  → paris:1".to_owned()],
        ]
    );
    assert_eq!(service.exporters, ["lyon", "paris", "tokyo"]);

    // One rule set for all ports, as far as a cluster has the port.
    with(
        &mut state,
        "kind: TrafficSplit\nmetadata: { name: db, namespace: shop }\nspec: { service: db, sticky: { header: x-user }, backends: [{ cluster: tokyo, weight: 3 }, { cluster: lyon, weight: 1 }] }\n",
    );
    with(
        &mut state,
        "kind: FailoverPolicy\nmetadata: { name: db, namespace: shop }\nspec: { service: db, order: [{ clusters: [lyon] }, { clusters: [tokyo] }] }\n",
    );
    let service = db(&state, "paris").unwrap();
    let rules: Vec<String> = service.ports.iter().map(|port| shown(port).remove(1)).collect();
    assert_eq!(rules, ["backends: tokyo:3 lyon:1 → lyon:1 | tokyo:1", "backends: tokyo:3 → tokyo:1", "backends:  → "]);
    assert!(service.ports.iter().all(|port| port.sticky.is_some()));
}

#[test]
fn more_than_one_port_asks_gateways_for_a_feature_and_one_does_not() {
    let mut state = federation();
    let features = |state: &FederationState| compile(state, "paris")["service/shop/db"].required_features.clone();
    assert!(features(&state).contains(&feature::SERVICE_PORTS.to_owned()));
    state.reports.retain(|cluster, _| cluster == "lyon");
    assert!(!features(&state).contains(&feature::SERVICE_PORTS.to_owned()));
    let service = db(&state, "paris").unwrap();
    assert_eq!((service.ports.len(), &*service.ports[0].name), (1, ""), "as it always was");
    // A TCP port without a port of the gateways is not there yet; the others are.
    let mut state = federation();
    state.tcp_slots.clear();
    let ports =
        |state: &FederationState| db(state, "paris").unwrap().ports.iter().map(|port| port.port).collect::<Vec<_>>();
    assert_eq!(ports(&state), [80, 8_080]);
    // From before slots had numbers: for the first TCP port.
    state.tcp_slots.insert(("shop".into(), "db".into(), 0), 7);
    export(&mut state, "paris", 2, &[("web", 80, HTTP), ("pg", 5_432, TCP), ("pg2", 5_433, TCP)]);
    assert_eq!(ports(&state), [80, 5_432]);
}

#[test]
fn the_oldest_export_decides_and_those_who_contradict_it_are_named() {
    let mut state = federation();
    export(&mut state, "lyon", 1, &[("web", 81, HTTP), ("pg", 5_432, HTTP)]);
    let said = meaning_of(&state);
    assert_eq!((said.said_by.as_str(), said.port, said.protocol, said.headless), ("lyon", 81, HTTP, false));
    let ports: Vec<_> = said.ports.iter().map(|port| (port.port, port.exporters.join(" "))).collect();
    assert_eq!(ports, [(81, "lyon".into()), (5_432, "lyon".into()), (8_080, "paris".into())]);
    let named: Vec<_> = said.disagreeing.iter().map(|(cluster, _, port)| (cluster.as_str(), *port)).collect();
    assert_eq!(named, [("paris", 80), ("paris", 5_432), ("tokyo", 5_432), ("tokyo", 80)]);
    assert_eq!(said.exporters.len(), 2, "tokyo has no port that counts");
    assert_eq!(db(&state, "tokyo").unwrap().exporters, ["lyon", "paris"]);

    // Nobody says anything else: nobody disagrees, however different the lists.
    let said = meaning_of(&federation());
    assert_eq!((said.disagreeing.len(), said.ports.len()), (0, 3));
}

#[test]
fn a_headless_service_is_known_and_not_carried() {
    let mut state = federation();
    let facts = |state: &mut FederationState, cluster: &str, kind: ExportType| {
        state.reports.get_mut(cluster).unwrap()[0].export.as_mut().unwrap().r#type = kind.into();
    };
    facts(&mut state, "tokyo", ExportType::Headless);
    assert!(db(&state, "paris").is_some(), "not the oldest");
    facts(&mut state, "paris", ExportType::Headless);
    assert_eq!(db(&state, "paris"), None);
    assert!(meaning_of(&state).headless);
}

#[test]
fn what_only_imports_show_changes_no_configuration() {
    let mut state = federation();
    let before = compile(&state, "tokyo");
    let facts = state.reports.get_mut("paris").unwrap()[0].export.as_mut().unwrap();
    facts.labels.clear();
    facts.session_affinity = "ClientIP".into();
    facts.uncarried_ports =
        vec![UncarriedPort { name: "dns".into(), port: 53, transport: "UDP".into(), app_protocol: String::new() }];
    assert_eq!(compile(&state, "tokyo"), before);
}
