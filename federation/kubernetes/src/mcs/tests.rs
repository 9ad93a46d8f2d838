//! The controller against a cluster in memory: what it writes comes back as an API server would return it.

mod world;

use archipelago_proto::v1::{ExportFacts, ExportType, Exporter, Protocol, ReportedPort, UncarriedPort};

use self::world::{World, exporter, import};
use super::*;

fn port(name: &str, port: u32) -> ReportedPort {
    let protocol = if name == "http" { Protocol::Http1 } else { Protocol::Tcp };
    ReportedPort { name: name.into(), port, protocol: protocol.into(), app_protocol: String::new() }
}

/// Two nodes with gateways, the namespace `shop`, and `shop/checkout` exported by tokyo.
fn cluster() -> World {
    let mut world = World::new("paris");
    world.namespace("shop");
    world.gateway("node-a", "10.0.0.1", true);
    world.gateway("node-b", "10.0.0.2", true);
    world.imports(&[import("shop", "checkout", vec![exporter("tokyo", 1, vec![port("http", 80)])])]);
    world
}

#[test]
fn an_import_becomes_a_service_that_leads_to_the_gateway_of_every_node() {
    let mut world = cluster();
    world.settle();
    let import = world.get("serviceimports", "shop", "checkout").unwrap();
    assert_eq!(import["spec"]["type"], "ClusterSetIP");
    assert_eq!(import["spec"]["ports"][0]["port"], 80);
    assert_eq!(import["status"]["clusters"][0]["cluster"], "tokyo");
    assert_eq!(import["status"]["conditions"][0]["status"], "True");
    let derived = names::derived("checkout");
    let service = world.get("services", "shop", &derived).unwrap();
    assert_eq!(import["spec"]["ips"], service["spec"]["clusterIPs"]);
    assert_eq!(import["spec"]["ipFamilies"], service["spec"]["ipFamilies"]);
    assert_eq!(service["spec"]["internalTrafficPolicy"], "Local");
    assert!(service["spec"].get("selector").is_none());
    assert_eq!(service["metadata"]["ownerReferences"][0]["uid"], import["metadata"]["uid"]);
    let slice = world.get("endpointslices", "shop", &names::slice(&derived, "IPv4", 0)).unwrap();
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], derived.as_str());
    assert_eq!(slice["endpoints"][0]["addresses"][0], "10.0.0.1");
    assert_eq!(slice["endpoints"][1]["nodeName"], "node-b");
    assert_eq!(slice["ports"][0]["name"], service["spec"]["ports"][0]["name"]);
    // Every replica reads the same off these objects.
    let captures = plan::captures(&world.seen()).captures;
    assert_eq!(captures.len(), 1);
    assert_eq!(u64::from(captures[0].listen), slice["ports"][0]["port"].as_u64().unwrap());
    assert_eq!((captures[0].port, &*captures[0].port_name), (80, "http"));
    assert_eq!(captures[0].protocol(), Protocol::Http1);
    assert_eq!(serde_json::json!(captures[0].cluster_ips), service["spec"]["clusterIPs"]);
    for (name, value) in [("cluster.clusterset.k8s.io", "paris"), ("clusterset.k8s.io", "archipelago.test")] {
        assert_eq!(world.get("clusterproperties", "", name).unwrap()["spec"]["value"], value);
    }
}

#[test]
fn everything_goes_with_the_last_export_and_nothing_before() {
    let mut world = cluster();
    let both = vec![exporter("tokyo", 1, vec![port("http", 80)]), exporter("oslo", 2, vec![port("http", 80)])];
    world.imports(&[import("shop", "checkout", both)]);
    world.settle();
    let before = world.get("serviceimports", "shop", "checkout").unwrap()["spec"].clone();
    world.imports(&[import("shop", "checkout", vec![exporter("oslo", 2, vec![port("http", 80)])])]);
    world.settle();
    let after = world.get("serviceimports", "shop", "checkout").unwrap();
    assert_eq!(after["spec"], before, "the addresses stay");
    assert_eq!(after["status"]["clusters"].as_array().unwrap().len(), 1);
    world.imports(&[]);
    world.settle();
    assert_eq!(world.names("serviceimports"), [""; 0]);
    assert_eq!(world.names("services"), [""; 0]);
    assert_eq!(world.names("endpointslices"), [""; 0]);
    assert!(plan::captures(&world.seen()).captures.is_empty());
}

#[test]
fn a_namespace_that_is_not_here_gets_nothing_until_it_is_and_nothing_more_once_it_goes() {
    let mut world = cluster();
    world.remove("namespaces", "", "shop");
    world.settle();
    assert_eq!(world.names("serviceimports"), [""; 0]);
    world.namespace("shop");
    world.settle();
    assert_eq!(world.names("serviceimports"), ["checkout"]);
    // The API server refuses every new object in it, and takes the others away by itself.
    world.terminate("shop");
    world.imports(&[import("shop", "other", vec![exporter("tokyo", 1, vec![port("", 1)])])]);
    let derived = names::derived("checkout");
    world.remove("services", "shop", &derived);
    assert!(world.writes().iter().all(|write| &*write.target.key.namespace != "shop"), "{:?}", world.writes());
    world.remove("serviceimports", "shop", "checkout");
    assert!(world.writes().iter().all(|write| &*write.target.key.namespace != "shop"));
}

#[test]
fn what_somebody_else_made_is_left_alone_and_reported() {
    let mut world = cluster();
    let foreign = world.put(
        "serviceimports",
        "shop",
        "checkout",
        serde_json::json!({
            "metadata": { "labels": { "app.kubernetes.io/managed-by": "another" } },
            "spec": { "type": "ClusterSetIP", "ports": [{ "port": 1 }] },
        }),
    );
    world.settle();
    assert_eq!(world.get("serviceimports", "shop", "checkout").unwrap(), foreign);
    assert_eq!(world.names("services"), [""; 0]);
    assert_eq!(world.plan().foreign.len(), 1);
    world.imports(&[]);
    world.settle();
    assert_eq!(world.get("serviceimports", "shop", "checkout").unwrap(), foreign, "not even deleted");
    // A Service under the very name that the derived one would have.
    world.remove("serviceimports", "shop", "checkout");
    let derived = names::derived("checkout");
    let squatter = world.put("services", "shop", &derived, serde_json::json!({
        "spec": { "type": "ClusterIP", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"], "ports": [{ "port": 1 }] },
    }));
    world.imports(&[import("shop", "checkout", vec![exporter("tokyo", 1, vec![port("http", 80)])])]);
    world.settle();
    assert_eq!(world.get("services", "shop", &derived).unwrap(), squatter);
    let import = world.get("serviceimports", "shop", "checkout").unwrap();
    assert!(import["spec"].get("ips").is_none());
    assert_eq!(import["status"]["conditions"][0]["reason"], "Failed");
}

#[test]
fn labels_that_others_add_stay_and_those_no_longer_exported_go() {
    let mut world = cluster();
    let labelled = |labels: &[(&str, &str)]| {
        let mut exporter = exporter("tokyo", 1, vec![port("http", 80)]);
        let facts = exporter.facts.as_mut().unwrap();
        facts.labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        import("shop", "checkout", vec![exporter])
    };
    world.imports(&[labelled(&[("tier", "front"), ("not a label", "x")])]);
    world.settle();
    world.label("serviceimports", "shop", "checkout", "somebody", "else");
    world.settle();
    world.imports(&[labelled(&[("colour", "blue")])]);
    world.settle();
    let labels = &world.get("serviceimports", "shop", "checkout").unwrap()["metadata"]["labels"];
    assert_eq!(
        *labels,
        serde_json::json!({ "app.kubernetes.io/managed-by": "archipelago", "somebody": "else", "colour": "blue" })
    );
}

#[test]
fn a_leader_that_takes_over_half_way_keeps_every_address_and_port() {
    let mut world = cluster();
    let ports = vec![port("http", 80), port("admin", 81)];
    world.imports(&[import("shop", "checkout", vec![exporter("tokyo", 1, ports)])]);
    world.settle();
    let before = plan::captures(&world.seen());
    for rounds in 0..4 {
        // A third port appears; the old leader dies after some rounds of it.
        let ports = vec![port("http", 80), port("admin", 81), port("extra", 82 + rounds)];
        world.imports(&[import("shop", "checkout", vec![exporter("tokyo", 1, ports)])]);
        (0..rounds).for_each(|_| _ = world.round());
        world.new_leader();
        world.settle();
        let after = plan::captures(&world.seen());
        assert_eq!(after.captures.len(), 3);
        assert!(before.captures.iter().all(|capture| after.captures.contains(capture)), "{after:?}");
    }
}

#[test]
fn without_a_control_plane_nothing_goes_and_slices_follow_the_gateways() {
    let mut world = cluster();
    world.settle();
    world.new_leader();
    world.silence();
    world.gateway("node-b", "10.0.0.2", false);
    world.gateway("node-c", "10.0.0.3", true);
    world.settle();
    assert_eq!(world.names("serviceimports"), ["checkout"]);
    let slice = world.get("endpointslices", "shop", &names::slice(&names::derived("checkout"), "IPv4", 0)).unwrap();
    let ready: Vec<bool> =
        slice["endpoints"].as_array().unwrap().iter().map(|e| e["conditions"]["ready"].as_bool().unwrap()).collect();
    assert_eq!(ready, [true, false, true]);
    // A derived Service that somebody deleted comes back, with the listen port that its slice kept.
    let before = plan::captures(&world.seen()).captures[0].listen;
    world.remove("services", "shop", &names::derived("checkout"));
    world.settle();
    assert_eq!(plan::captures(&world.seen()).captures[0].listen, before);
}

#[test]
fn a_derived_service_comes_back_with_its_addresses_or_with_others() {
    let mut world = cluster();
    world.settle();
    let derived = names::derived("checkout");
    let addresses = |world: &World| world.get("services", "shop", &derived).unwrap()["spec"]["clusterIPs"].clone();
    let import = |world: &World| world.get("serviceimports", "shop", "checkout").unwrap();
    let before = addresses(&world);
    world.remove("services", "shop", &derived);
    world.round();
    let meanwhile = import(&world);
    assert_eq!(meanwhile["spec"]["ips"], before);
    assert_eq!(meanwhile["status"]["conditions"][0]["reason"], "Pending");
    world.settle();
    assert_eq!((addresses(&world), &import(&world)["spec"]["ips"]), (before.clone(), &before));
    assert_eq!(import(&world)["status"]["conditions"][0]["reason"], "Ready");

    // Somebody has them by now.
    world.remove("services", "shop", &derived);
    world.refuse();
    world.settle();
    let after = addresses(&world);
    assert!(after != before && import(&world)["spec"]["ips"] == after, "{after}");
    // And the next time it is those.
    world.remove("services", "shop", &derived);
    world.settle();
    assert_eq!(addresses(&world), after);
}

#[test]
fn a_headless_service_has_no_address_and_says_that_nothing_answers() {
    let mut world = cluster();
    world.settle();
    let mut headless = exporter("tokyo", 1, vec![port("http", 80)]);
    headless.facts.as_mut().unwrap().r#type = ExportType::Headless.into();
    world.imports(&[import("shop", "checkout", vec![headless])]);
    world.settle();
    let import = world.get("serviceimports", "shop", "checkout").unwrap();
    assert_eq!(import["spec"]["type"], "Headless");
    assert!(import["spec"].get("ips").is_none());
    assert_eq!(import["spec"]["ipFamilies"], serde_json::json!(["IPv4"]));
    assert_eq!(import["status"]["conditions"][0]["status"], "False");
    assert_eq!(world.names("services"), [""; 0], "what it was before is gone");
    assert_eq!(world.names("endpointslices"), [""; 0]);
}

#[test]
fn ports_that_are_not_carried_are_shown_and_lead_nowhere() {
    let mut world = cluster();
    let mut tokyo = exporter("tokyo", 1, vec![port("tcp", 42)]);
    let udp = UncarriedPort { name: "udp".into(), port: 42, transport: "UDP".into(), app_protocol: String::new() };
    tokyo.facts.as_mut().unwrap().uncarried_ports = vec![udp];
    world.imports(&[import("shop", "checkout", vec![tokyo])]);
    world.settle();
    let import = world.get("serviceimports", "shop", "checkout").unwrap();
    let ports: Vec<(&str, u64)> = import["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (port["protocol"].as_str().unwrap(), port["port"].as_u64().unwrap()))
        .collect();
    assert_eq!(ports, [("TCP", 42), ("UDP", 42)]);
    assert!(import["status"]["conditions"][0]["message"].as_str().unwrap().contains("42/UDP"));
    let slice = world.get("endpointslices", "shop", &names::slice(&names::derived("checkout"), "IPv4", 0)).unwrap();
    assert_eq!(slice["ports"].as_array().unwrap().len(), 1);
    assert_eq!(plan::captures(&world.seen()).captures.len(), 1);
}

#[test]
fn what_a_port_speaks_can_be_read_off_its_import_whoever_exports_it() {
    let mut world = cluster();
    let said = |name: &str, port, protocol: Protocol| ReportedPort {
        name: name.into(),
        port,
        protocol: protocol.into(),
        app_protocol: String::new(),
    };
    // A cluster described by files: no names that mean anything, and no facts.
    let ports = vec![said("", 80, Protocol::Http1), said("b", 81, Protocol::H2c), said("http", 82, Protocol::Tcp)];
    let files = Exporter { facts: None, ..exporter("oslo", 1, ports) };
    world.imports(&[import("shop", "checkout", vec![files])]);
    world.settle();
    let captures = plan::captures(&world.seen()).captures;
    let spoken: Vec<(u32, Protocol)> = captures.iter().map(|capture| (capture.port, capture.protocol())).collect();
    assert_eq!(spoken, [(80, Protocol::Http1), (81, Protocol::H2c), (82, Protocol::Tcp)]);
    let import = world.get("serviceimports", "shop", "checkout").unwrap();
    assert_eq!(import["spec"]["ports"][1]["appProtocol"], "kubernetes.io/h2c");
}

#[test]
fn an_import_whose_ports_find_no_listen_port_says_so() {
    let mut world = cluster();
    world.capture_ports(17_000..=17_001);
    let ports = (1..=3).map(|number| port(&format!("p{number}"), number)).collect();
    world.imports(&[import("shop", "checkout", vec![exporter("tokyo", 1, ports)])]);
    world.settle();
    let import = world.get("serviceimports", "shop", "checkout").unwrap();
    assert!(import["status"]["conditions"][0]["message"].as_str().unwrap().contains("--capture-ports"));
    assert_eq!(plan::captures(&world.seen()).captures.len(), 2);
}

#[test]
fn gateways_are_pods_of_their_account_and_ready_if_one_of_a_node_is() {
    let mut world = World::new("paris");
    world.gateway("node-a", "10.0.0.1", false);
    world.pod("archipelago-system", "new", "node-a", "archipelago-gateway", true);
    world.gateway("node-b", "10.0.0.2", false);
    world.pod("shop", "pretender", "node-b", "archipelago-gateway", true);
    world.pod("archipelago-system", "agent", "node-b", "archipelago-agent", true);
    let gateways = world.seen().gateways;
    let ready: BTreeMap<&str, bool> = gateways.iter().map(|(node, gateway)| (&**node, gateway.is_ready)).collect();
    assert_eq!(ready, BTreeMap::from([("node-a", true), ("node-b", false)]));
}

#[test]
fn two_thousand_imports_cost_little_to_look_at_and_nothing_to_keep() {
    let mut world = World::new("paris");
    world.namespace("shop");
    for node in 0..20 {
        world.gateway(&format!("node-{node}"), &format!("10.0.0.{}", node + 1), true);
    }
    let imports: Vec<_> = (0..2_000)
        .map(|index| import("shop", &format!("s{index}"), vec![exporter("tokyo", 1, vec![port("http", 80)])]))
        .collect();
    world.imports(&imports);
    world.settle();
    assert_eq!(plan::captures(&world.seen()).captures.len(), 2_000);
    let seen = world.seen();
    let began = Instant::now();
    let writes = world.plan_of(&seen).writes;
    let took = began.elapsed();
    let needed: Vec<_> =
        writes.iter().filter(|write| !matches!(write.what, crate::apply::What::ApplyOnce(_))).collect();
    assert!(needed.is_empty(), "{needed:?}");
    // Some milliseconds optimised, a tenth of a second as it is, minutes if it were the square of it; the rest is for a busy machine.
    assert!(took < std::time::Duration::from_secs(30), "{took:?}");
    println!("2,000 imports on 20 nodes: {took:?}");
}

mod exporting;
