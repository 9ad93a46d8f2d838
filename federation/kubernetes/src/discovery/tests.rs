use std::sync::Arc;

use archipelago_agent::catalog::Locality;
use archipelago_model::service::ServiceProtocol;
use serde_json::{Value, json};

use super::*;
use crate::types::{Kind, Names};

/// What is kept of an object, as it would come from the API server.
fn object<K: Kind>(raw: Value) -> (Key, Arc<K>) {
    let text = |name: &str| raw["metadata"][name].as_str().unwrap_or_default().to_owned();
    let key = Key::new(text("namespace"), text("name"));
    (key, Arc::new(K::keep(serde_json::from_value(raw).unwrap(), &mut Names::default()).unwrap()))
}

fn service(name: &str, spec: Value) -> (Key, Arc<Service>) {
    object(json!({ "metadata": { "namespace": "shop", "name": name }, "spec": spec }))
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> (Key, Arc<EndpointSlice>) {
    let labels = json!({ "kubernetes.io/service-name": service });
    object(json!({
        "metadata": { "namespace": "shop", "name": name, "labels": labels },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    }))
}

fn pod(name: &str, labels: Value) -> (Key, Arc<Pod>) {
    object(json!({ "metadata": { "namespace": "shop", "name": name, "labels": labels }, "spec": { "nodeName": "n1" } }))
}

fn exports(names: &[&str]) -> Exports {
    names.iter().map(|name| (Key::new("shop", *name), Arc::default())).collect()
}

fn one(sources: Sources) -> catalog::Service {
    let catalog = Discovery::default().update(sources);
    assert_eq!(catalog.len(), 1, "{catalog:?}");
    catalog.values().next().map(|service| catalog::Service::clone(service)).unwrap()
}

/// `address version ready` of a port.
fn endpoints(port: &catalog::Port) -> Vec<String> {
    let line = |endpoint: &catalog::Endpoint| {
        format!("{} {} {}", endpoint.address, endpoint.version, endpoint.ready).replace("  ", " ")
    };
    port.endpoints.iter().map(line).collect()
}

#[test]
fn named_target_ports_protocols_and_transports() {
    let spec = json!({ "clusterIP": "10.96.0.1", "ports": [
        { "name": "http-web", "port": 80, "targetPort": "web" },
        { "name": "api", "port": 8443, "appProtocol": "grpc" },
        { "name": "db", "port": 5432 },
        { "name": "dns", "port": 53, "protocol": "UDP" },
    ]});
    // Pods of two generations have their named port in different places: two slices.
    let ports = |web: u16| json!([{ "name": "http-web", "port": web }, { "name": "api", "port": 9000 }, { "name": "db", "port": 5432 }]);
    let service = one(Sources {
        services: [service("web", spec)].into_iter().collect(),
        slices: [
            slice("web-1", "web", ports(8080), json!([{ "addresses": ["10.0.0.1"] }])),
            slice("web-2", "web", ports(8081), json!([{ "addresses": ["10.0.0.2"] }])),
        ]
        .into_iter()
        .collect(),
        exports: exports(&["web"]),
        ..Sources::default()
    });
    let shown: Vec<_> = service.ports.iter().map(|port| (port.name.as_str(), port.port, port.protocol)).collect();
    let expected = [
        ("http-web", 80, ServiceProtocol::Http),
        ("api", 8443, ServiceProtocol::H2c),
        ("db", 5432, ServiceProtocol::Tcp),
    ];
    assert_eq!(shown, expected);
    assert_eq!(endpoints(&service.ports[0]), ["10.0.0.1:8080 true", "10.0.0.2:8081 true"]);
    assert_eq!(endpoints(&service.ports[1]), ["10.0.0.1:9000 true", "10.0.0.2:9000 true"]);
    assert_eq!(service.ports[1].app_protocol, "grpc");
}

#[test]
fn protocols() {
    let of = |name: &str, app: Option<&str>| {
        let (_, service) = service("x", json!({ "ports": [{ "name": name, "port": 1, "appProtocol": app }] }));
        protocol(&service.ports[0])
    };
    for (name, app, expected) in [
        ("", None, ServiceProtocol::Tcp),
        ("http", None, ServiceProtocol::Http),
        ("http-admin", None, ServiceProtocol::Http),
        ("http2", None, ServiceProtocol::H2c),
        ("grpc-api", None, ServiceProtocol::H2c),
        ("https", None, ServiceProtocol::Tcp),
        ("httpd", None, ServiceProtocol::Tcp),
        ("x", Some("http"), ServiceProtocol::Http),
        ("x", Some("HTTP"), ServiceProtocol::Http),
        ("x", Some("kubernetes.io/ws"), ServiceProtocol::Http),
        ("x", Some("kubernetes.io/h2c"), ServiceProtocol::H2c),
        ("http", Some("https"), ServiceProtocol::Tcp),
        ("http", Some("example.com/own"), ServiceProtocol::Tcp),
    ] {
        assert_eq!(of(name, app), expected, "{name} {app:?}");
    }
}

#[test]
fn readiness_as_kube_proxy_reads_it() {
    let of = |conditions: &[Value]| {
        let list = conditions
            .iter()
            .enumerate()
            .map(|(n, conditions)| json!({ "addresses": [format!("10.0.0.{}", n + 1)], "conditions": conditions }));
        let slice = slice("web-1", "web", json!([{ "port": 80 }]), list.collect());
        let service = one(Sources {
            services: [service("web", json!({ "ports": [{ "port": 80 }] }))].into_iter().collect(),
            slices: [slice].into_iter().collect(),
            exports: exports(&["web"]),
            ..Sources::default()
        });
        service.ports[0].endpoints.iter().map(|endpoint| endpoint.ready).collect::<Vec<_>>()
    };
    let going = json!({ "ready": false, "serving": true, "terminating": true });
    let gone = json!({ "ready": false, "serving": false, "terminating": true });
    let starting = json!({ "ready": false, "serving": false, "terminating": false });
    // Nothing said is ready.
    assert_eq!(of(&[json!({}), json!({ "ready": true }), starting.clone()]), [true, true, false]);
    // publishNotReadyAddresses comes as ready, whatever else is said, of pods that are going, too.
    let published = json!({ "ready": true, "serving": false, "terminating": false });
    let published_going = json!({ "ready": true, "serving": false, "terminating": true });
    assert_eq!(of(&[published, published_going, going.clone()]), [true, true, false]);
    assert_eq!(of(&[json!({ "ready": true }), going.clone()]), [true, false]);
    assert_eq!(of(&[starting.clone(), going, gone]), [false, true, false]);
    assert_eq!(of(&[starting]), [false]);
}

/// A slice of either family with pods, or without: (pod, address, conditions).
fn of_family(name: &str, family: &str, endpoints: &[(&str, &str, Value)]) -> (Key, Arc<EndpointSlice>) {
    let endpoint = |(pod, address, conditions): &(&str, &str, Value)| {
        let mut endpoint = json!({ "addresses": [address], "conditions": conditions });
        if !pod.is_empty() {
            endpoint["targetRef"] = json!({ "kind": "Pod", "name": pod });
        }
        endpoint
    };
    object(json!({
        "metadata": { "namespace": "shop", "name": name, "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": family, "ports": [{ "port": 80 }], "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    }))
}

#[test]
fn each_address_once_and_a_pod_of_two_families_once() {
    let (ready, not) = (json!({}), json!({ "ready": false }));
    let v4 = [("a", "10.0.0.1", ready.clone()), ("b", "10.0.0.2", not.clone()), ("", "10.0.0.9", ready.clone())];
    let v6 = [
        ("a", "fd00::1", ready.clone()),
        ("b", "fd00::2", ready.clone()),
        ("only-6", "fd00::3", ready.clone()),
        ("", "fd00::9", ready.clone()),
    ];
    // Between two slices an address is in both for a moment.
    let moved = of_family("web-2", "IPv4", &[("a", "10.0.0.1", not)]);
    let slices = [of_family("web-1", "IPv4", &v4), moved, of_family("web-6", "IPv6", &v6)];
    let of = |families: Value| {
        let spec = json!({ "ipFamilies": families, "ports": [{ "port": 80 }] });
        let service = one(Sources {
            services: [service("web", spec)].into_iter().collect(),
            slices: slices.iter().cloned().collect(),
            exports: exports(&["web"]),
            ..Sources::default()
        });
        endpoints(&service.ports[0])
    };
    // By the family that the Service names first; what no pod stands behind cannot be told from another endpoint.
    let four = ["10.0.0.1:80 true", "10.0.0.2:80 false", "10.0.0.9:80 true", "[fd00::3]:80 true", "[fd00::9]:80 true"];
    assert_eq!(of(json!(["IPv4", "IPv6"])), four);
    assert_eq!(of(json!([])), four, "a Service of before dual stack");
    let six = ["10.0.0.9:80 true", "[fd00::1]:80 true", "[fd00::2]:80 true", "[fd00::3]:80 true", "[fd00::9]:80 true"];
    assert_eq!(of(json!(["IPv6", "IPv4"])), six);
}

#[test]
fn unusable_addresses_are_left_out() {
    let list =
        json!([{ "addresses": ["10.0.0.2", "10.0.0.3"] }, { "addresses": ["not an address"] }, { "addresses": [] }]);
    let service = one(Sources {
        services: [service("web", json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }))].into_iter().collect(),
        slices: [slice("web-1", "web", json!([{ "port": 80 }]), list)].into_iter().collect(),
        exports: exports(&["web"]),
        ..Sources::default()
    });
    assert_eq!(endpoints(&service.ports[0]), ["10.0.0.2:80 true"]);
}

#[test]
fn zones_and_hints_come_along_while_anybody_is_ready() {
    let of = |ready: bool| {
        let conditions = json!({ "ready": ready, "serving": true, "terminating": !ready });
        let list = json!([
            { "addresses": ["10.0.0.1"], "zone": "a", "conditions": conditions,
              "hints": { "forZones": [{ "name": "a" }, { "name": "b" }], "forNodes": [{ "name": "n1" }] } },
            { "addresses": ["10.0.0.2"], "zone": "a", "conditions": conditions, "hints": { "forZones": [{ "name": "a" }] } },
            { "addresses": ["10.0.0.3"], "zone": "a", "conditions": conditions, "hints": { "forZones": [{ "name": "a" }] } },
            { "addresses": ["10.0.0.4"], "conditions": conditions, "hints": { "forZones": null } },
        ]);
        let service = one(Sources {
            services: [service("web", json!({ "ports": [{ "port": 80 }] }))].into_iter().collect(),
            slices: [slice("web-1", "web", json!([{ "port": 80 }]), list)].into_iter().collect(),
            exports: exports(&["web"]),
            ..Sources::default()
        });
        assert!(service.ports[0].endpoints.iter().all(|endpoint| endpoint.ready));
        service.ports[0].endpoints.iter().map(|endpoint| endpoint.locality.clone()).collect::<Vec<_>>()
    };
    let found = of(true);
    let first = Locality {
        for_zones: ["a".into(), "b".into()].into(),
        for_nodes: ["n1".into()].into(),
        ..Locality::in_zone("a".into(), false)
    };
    assert_eq!(found[0].as_deref(), Some(&first));
    assert_eq!(found[1].as_deref(), Some(&Locality::in_zone("a".into(), true)));
    assert!(Arc::ptr_eq(found[1].as_ref().unwrap(), found[2].as_ref().unwrap()), "held once");
    assert_eq!(found[3], None);
    // Those that are going are better than nobody, wherever they are.
    assert_eq!(of(false), [None, None, None, None]);
}

#[test]
fn what_is_not_offered() {
    let ports = json!([{ "port": 80 }]);
    let imported = object(json!({
        "metadata": { "namespace": "shop", "name": "imp-1", "labels": { "multicluster.kubernetes.io/service-name": "web" } },
        "spec": { "ports": ports },
    }));
    let ours = object(json!({
        "metadata": { "namespace": "shop", "name": "ours", "labels": {
            "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "archipelago.dev",
        } },
        "addressType": "IPv4", "ports": ports, "endpoints": [{ "addresses": ["192.0.2.1"] }],
    }));
    let sources = Sources {
        services: [
            service("alias", json!({ "type": "ExternalName", "externalName": "example.com", "ports": ports })),
            service("udp", json!({ "ports": [{ "port": 53, "protocol": "UDP" }] })),
            service("kept", json!({ "ports": ports })),
            service("web", json!({ "ports": ports })),
            imported,
        ]
        .into_iter()
        .collect(),
        slices: [ours].into_iter().collect(),
        exports: exports(&["alias", "udp", "web", "imp-1", "absent"]),
        ..Sources::default()
    };
    let web = one(sources);
    assert_eq!(web.ports[0].endpoints, []);
    assert!(web.exported && web.export.is_some());
}

#[test]
fn only_what_changed_is_made_anew_and_versions_follow_pods() {
    let ports = json!([{ "port": 80 }]);
    let endpoint = |pod: &str, ip: &str| json!([{ "addresses": [ip], "targetRef": { "kind": "Pod", "name": pod } }]);
    let mut now = Sources {
        services: ["a", "b"].map(|name| service(name, json!({ "ports": ports }))).into_iter().collect(),
        slices: [
            slice("a-1", "a", ports.clone(), endpoint("a-x", "10.0.0.1")),
            slice("b-1", "b", ports.clone(), endpoint("b-x", "10.0.0.2")),
        ]
        .into_iter()
        .collect(),
        exports: exports(&["a", "b"]),
        ..Sources::default()
    };
    let mut discovery = Discovery::default();
    let first = discovery.update(now.clone());
    let (a, b) = (ServiceKey::new("shop", "a"), ServiceKey::new("shop", "b"));
    assert_eq!(endpoints(&first[&a].ports[0]), ["10.0.0.1:80 true"]);

    // The pod is seen after the slice that names it.
    let (key, labelled) = pod("a-x", json!({ "app.kubernetes.io/version": "v2", "version": "v1" }));
    now.pods.insert(key, labelled);
    let second = discovery.update(now.clone());
    assert_eq!(endpoints(&second[&a].ports[0]), ["10.0.0.1:80 v2 true"]);
    assert!(Arc::ptr_eq(&first[&b], &second[&b]));

    // A slice that changes its owner is in no two services.
    let (key, moved) = slice("a-1", "b", ports, endpoint("a-x", "10.0.0.1"));
    now.slices.insert(key, moved);
    let third = discovery.update(now.clone());
    assert_eq!(third[&a].ports[0].endpoints, []);
    assert_eq!(endpoints(&third[&b].ports[0]), ["10.0.0.1:80 v2 true", "10.0.0.2:80 true"]);

    now.exports = exports(&["b"]);
    assert!(!discovery.update(now.clone()).contains_key(&a));
    now.services.clear();
    assert!(discovery.update(now).is_empty());
}
