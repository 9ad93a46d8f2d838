//! The other direction: what an owner of a ServiceExport is told.

use archipelago_model::selector;
use serde_json::json;

use crate::discovery::Exports;

use super::{
    world::{exporter, import},
    *,
};

fn exporting(service: Option<serde_json::Value>) -> World {
    let mut world = World::new("paris");
    world.namespace("shop");
    world.put("serviceexports", "shop", "checkout", json!({}));
    if let Some(spec) = service {
        world.put("services", "shop", "checkout", json!({ "spec": spec }));
    }
    world
}

fn cluster_ip(ports: serde_json::Value) -> Option<serde_json::Value> {
    Some(json!({ "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": ports }))
}

/// type → status, reason
fn said(world: &World) -> BTreeMap<String, (String, String)> {
    let export = world.get("serviceexports", "shop", "checkout").unwrap();
    let conditions = export["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |condition: &serde_json::Value, field: &str| condition[field].as_str().unwrap().to_owned();
    conditions.iter().map(|it| (text(it, "type"), (text(it, "status"), text(it, "reason")))).collect()
}

fn is(world: &World, r#type: &str, status: &str, reason: &str) -> bool {
    said(world).get(r#type) == Some(&(status.to_owned(), reason.to_owned()))
}

#[test]
fn an_export_is_valid_by_its_service_and_ready_once_the_federation_lists_it() {
    let mut world = exporting(cluster_ip(json!([{ "name": "http", "port": 80 }])));
    world.settle();
    assert!(is(&world, "Valid", "True", "Valid") && is(&world, "Ready", "False", "Pending"), "{:?}", said(&world));
    let facts = exports(&world.seen().exports, &world.seen().services, &Exports::default());
    assert_eq!(facts.len(), 1);
    world.imports(&[import("shop", "checkout", vec![exporter("paris", 1, vec![port("http", 80)])])]);
    world.settle();
    assert!(is(&world, "Ready", "True", "Exported") && is(&world, "Conflict", "False", "NoConflicts"));
    assert_eq!(world.names("serviceimports"), ["checkout"], "exporters import too");
    // Without a control plane what was true stays.
    world.silence();
    let before = world.get("serviceexports", "shop", "checkout");
    world.settle();
    assert_eq!(world.get("serviceexports", "shop", "checkout"), before);
}

#[test]
fn what_cannot_be_exported_is_named() {
    let udp = cluster_ip(json!([{ "port": 53, "protocol": "UDP" }]));
    let external = Some(json!({ "type": "ExternalName", "externalName": "example.com" }));
    for (service, valid, ready) in [
        (None, ("False", "NoService"), ("False", "Failed")),
        (external, ("False", "InvalidServiceType"), ("False", "Failed")),
        (udp, ("True", "Valid"), ("False", "Failed")),
    ] {
        let mut world = exporting(service.clone());
        world.settle();
        assert!(is(&world, "Valid", valid.0, valid.1), "{service:?} {:?}", said(&world));
        assert!(is(&world, "Ready", ready.0, ready.1), "{service:?} {:?}", said(&world));
        assert!(exports(&world.seen().exports, &world.seen().services, &Exports::default()).is_empty());
    }
}

#[test]
fn cluster_selectors_are_carried_in_one_form_or_refused_in_words() {
    const KEY: &str = selector::ANNOTATION;
    let selecting = |service: Option<serde_json::Value>, text: &str| {
        let mut world = exporting(service);
        world.put("serviceexports", "shop", "checkout", json!({ "metadata": { "annotations": { KEY: text } } }));
        world.settle();
        world
    };
    let carried = |world: &World| {
        let facts = exports(&world.seen().exports, &world.seen().services, &Exports::default());
        facts.get(&Key::new("shop", "checkout")).and_then(|facts| facts.annotations.get(KEY).cloned())
    };
    let condition = "archipelago.dev/ClusterSelectors";
    let ip = || cluster_ip(json!([{ "name": "http", "port": 80 }]));
    let local =
        r#"[ { "propertySelector": { "matchProperties": { "region.topology.k8s.io": "@SameAsImporter@" } } } ]"#;
    let mut world = selecting(ip(), local);
    assert_eq!(carried(&world).unwrap(), local.replace(' ', ""));
    assert!(is(&world, condition, "True", "Accepted") && is(&world, "Valid", "True", "Valid"), "{:?}", said(&world));

    // A slip loses nothing but itself.
    let broken = selecting(ip(), "region");
    assert!(is(&broken, condition, "False", "InvalidClusterSelector") && is(&broken, "Valid", "True", "Valid"));
    let export = broken.get("serviceexports", "shop", "checkout").unwrap();
    let message = export["status"]["conditions"][1]["message"].as_str().unwrap();
    assert!(
        message.contains("exported as without it") && message.contains("expected a JSON list such as"),
        "{message}"
    );
    assert_eq!(exports(&broken.seen().exports, &broken.seen().services, &Exports::default()).len(), 1);
    let headless = selecting(Some(json!({ "clusterIP": "None", "ports": [{ "port": 80 }] })), local);
    assert!(is(&headless, condition, "False", "InvalidServiceType"), "{:?}", said(&headless));
    assert_eq!((carried(&broken), carried(&headless)), (None, None));

    // Without the annotation nothing is said of it.
    let before = world.get("serviceexports", "shop", "checkout").unwrap();
    world.put("serviceexports", "shop", "checkout", json!({ "status": before["status"] }));
    world.settle();
    assert!(!said(&world).contains_key(condition) && carried(&world).is_none(), "{:?}", said(&world));
}

#[test]
fn a_service_that_stands_for_an_import_is_not_exported_again() {
    let mut world = cluster();
    world.settle();
    let derived = names::derived("checkout");
    world.put("serviceexports", "shop", &derived, json!({}));
    world.settle();
    assert!(exports(&world.seen().exports, &world.seen().services, &Exports::default()).is_empty());
    let export = world.get("serviceexports", "shop", &derived).unwrap();
    assert_eq!(export["status"]["conditions"][0]["reason"], "InvalidServiceType");
}

#[test]
fn a_conflict_shows_on_every_export_that_has_a_part_in_it_and_clears() {
    let mut world = exporting(cluster_ip(json!([{ "name": "http", "port": 80 }])));
    let ours = || exporter("paris", 2, vec![port("http", 80)]);
    world.imports(&[import("shop", "checkout", vec![exporter("tokyo", 1, vec![port("http", 81)]), ours()])]);
    world.settle();
    assert!(is(&world, "Conflict", "True", "PortConflict"), "{:?}", said(&world));
    let import_ports = &world.get("serviceimports", "shop", "checkout").unwrap()["spec"]["ports"];
    assert_eq!(import_ports[0]["port"], 81, "the oldest export counts");
    let since = |world: &World| {
        let export = world.get("serviceexports", "shop", "checkout").unwrap();
        export["status"]["conditions"][2]["lastTransitionTime"].clone()
    };
    let began = since(&world);
    world.settle();
    assert_eq!(since(&world), began);
    world.imports(&[import("shop", "checkout", vec![ours()])]);
    world.settle();
    assert!(is(&world, "Conflict", "False", "NoConflicts"));
}

#[test]
fn the_facts_of_an_export_are_those_of_its_service_and_of_the_export_alone() {
    let mut world = World::new("paris");
    world.namespace("shop");
    world.put(
        "serviceexports",
        "shop",
        "checkout",
        json!({
            "metadata": { "labels": { "not": "exported" }, "creationTimestamp": "2026-01-01T00:00:01Z" },
            "spec": { "exportedLabels": { "tier": "front" }, "exportedAnnotations": { "note": "a" } },
        }),
    );
    world.put("services", "shop", "checkout", json!({
        "metadata": { "labels": { "not": "exported" } },
        "spec": {
            "clusterIP": "None", "ipFamilies": ["IPv6"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10 } },
            "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
            "ports": [{ "name": "tcp", "port": 42 }, { "name": "udp", "port": 42, "protocol": "UDP", "appProtocol": "x" }],
        },
    }));
    let facts = exports(&world.seen().exports, &world.seen().services, &Exports::default());
    let facts = facts.get(&Key::new("shop", "checkout")).unwrap();
    assert_eq!(
        **facts,
        ExportFacts {
            created_unix_ms: 1_767_225_601_000,
            r#type: ExportType::Headless.into(),
            session_affinity: "ClientIP".into(),
            session_affinity_seconds: Some(10),
            internal_traffic_policy: "Local".into(),
            traffic_distribution: "PreferClose".into(),
            ip_families: vec!["IPv6".into()],
            labels: BTreeMap::from([("tier".into(), "front".into())]),
            annotations: BTreeMap::from([("note".into(), "a".into())]),
            uncarried_ports: vec![UncarriedPort {
                name: "udp".into(),
                port: 42,
                transport: "UDP".into(),
                app_protocol: "x".into(),
            }],
        }
    );
}
