//! The policy compiler: golden results, and what holds for every federation.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use archipelago_model::{
    admit,
    compile::{
        Changed, FederationState, GatewayRecord, Index, compile, compile_service, compile_shared, exporters, hosts,
        meaning,
    },
    document::Document,
    id::{ClusterId, GatewayId, ServiceKey},
    resource::{
        Backend, Cluster, ClusterSpec, FailoverPolicy, FailoverPolicySpec, FailoverTier, Metadata, Residency, Resource,
        ServiceExport, ServiceExportSpec, TrafficSplit, TrafficSplitSpec,
    },
    selector,
};
use archipelago_proto::v1::{
    Backend as CompiledBackend, ConfigResource, ExportFacts, GatewayAddresses, Match, NamedMatch, Protocol,
    ReportedPort, RouteRule, ServiceConfig, ServicePort, ServiceReport, Tier, config_resource::Body, r#match::On,
    named_match::How, service_port::Listener,
};
use proptest::prelude::*;

const REGIONS: [(&str, &str); 4] =
    [("frankfurt", "eu-central"), ("lyon", "eu-west"), ("paris", "eu-west"), ("tokyo", "ap-northeast")];

fn report(name: &str, protocol: Protocol, versions: &[&str]) -> ServiceReport {
    ServiceReport {
        namespace: "shop".into(),
        name: name.into(),
        protocol: protocol.into(),
        port: 80,
        exported: false,
        versions: versions.iter().map(ToString::to_string).collect(),
        ready: 1,
        total: 1,
        ..ServiceReport::default()
    }
}

fn with(state: &mut FederationState, yaml: &str) {
    let document = Document { file: "p.yaml".into(), text: yaml.into() };
    let admitted = admit::admit(&[document], &state.resources).unwrap_or_else(|problems| panic!("{problems:#?}"));
    state.resources.extend(admitted.into_iter().map(|resource| (resource.key(), resource)));
}

/// Four clusters, two in one region; checkout everywhere, v2 only in paris and tokyo; ledger over TCP in two.
fn federation() -> FederationState {
    let mut state =
        FederationState { trust_domain: "mesh.example".into(), bundle_der: vec![vec![1, 2]], ..Default::default() };
    for (name, region) in REGIONS {
        with(&mut state, &format!("{HEAD}kind: Cluster\nmetadata: {{ name: {name} }}\nspec: {{ region: {region} }}\n"));
        let versions: &[&str] = if matches!(name, "paris" | "tokyo") { &["v1", "v2"] } else { &["v1"] };
        state.reports.insert(name.into(), vec![report("checkout", Protocol::Http1, versions)]);
        for gateway in ["gw-1", "gw-2"] {
            let record = GatewayRecord {
                spiffe_id: format!("spiffe://mesh.example/cluster/{name}/gateway/{gateway}"),
                addresses: GatewayAddresses { tunnel: vec!["10.0.0.1:15443".into()], ..Default::default() },
            };
            state.gateways.insert((name.into(), gateway.into()), record);
        }
    }
    state.reports.get_mut("paris").unwrap().push(report("ledger", Protocol::Tcp, &["v1"]));
    state.reports.get_mut("tokyo").unwrap().push(report("ledger", Protocol::Tcp, &["v1"]));
    for service in ["checkout", "ledger"] {
        with(&mut state, &format!("{HEAD}kind: ServiceExport\nmetadata: {{ name: {service}, namespace: shop }}\n"));
    }
    state
}

const HEAD: &str = "apiVersion: archipelago.dev/v1alpha1\n";

fn service(config: &BTreeMap<String, ConfigResource>, name: &str) -> ServiceConfig {
    match &config[&format!("service/shop/{name}")].body {
        Some(Body::Service(service)) => service.clone(),
        other => panic!("{other:?}"),
    }
}

fn port(config: &BTreeMap<String, ConfigResource>, name: &str) -> ServicePort {
    let service = service(config, name);
    let [port] = service.ports.as_slice() else { panic!("{service:?}") };
    port.clone()
}

/// `backends → tier | tier`, each backend as cluster[@version]:weight.
fn show(port: &ServicePort, rule: &RouteRule) -> String {
    let list = |backends: &[CompiledBackend]| {
        let one = |backend: &CompiledBackend| {
            let version = if backend.subset.is_empty() { String::new() } else { format!("@{}", backend.subset) };
            format!("{}{version}:{}", backend.cluster, backend.weight)
        };
        backends.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let chain = rule.chain.map(|chain| port.chains[chain as usize].tiers.as_slice()).unwrap_or_default();
    let tiers: Vec<String> = chain.iter().map(|tier| list(&tier.backends)).collect();
    format!("{}: {} → {}", rule.name, list(&rule.backends), tiers.join(" | "))
}

fn rules(state: &FederationState, cluster: &str, name: &str) -> Vec<String> {
    let port = port(&compile(state, cluster), name);
    port.rules.iter().map(|rule| show(&port, rule)).collect()
}

#[test]
fn the_resources_of_a_gateway() {
    let config = compile(&federation(), "paris");
    let names: Vec<&str> = config.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "cluster/frankfurt",
            "cluster/lyon",
            "cluster/paris",
            "cluster/tokyo",
            "mesh",
            "peer/frankfurt/gw-1",
            "peer/frankfurt/gw-2",
            "peer/lyon/gw-1",
            "peer/lyon/gw-2",
            "peer/tokyo/gw-1",
            "peer/tokyo/gw-2",
            // ledger has no slot yet.
            "service/shop/checkout",
        ]
    );
    for (name, resource) in &config {
        assert_eq!(name, &resource.name);
        assert_eq!(resource.version.len(), 16);
    }
    let mut state = federation();
    state.tcp_slots.insert(("shop".into(), "ledger".into(), 0), 3);
    let config = compile(&state, "paris");
    let (ledger, at) = (service(&config, "ledger"), port(&config, "ledger"));
    assert!(matches!(&at.listener, Some(Listener::Tcp(tcp)) if tcp.port_offset == 3));
    assert_eq!(at.protocol(), Protocol::Tcp);
    assert_eq!(config["service/shop/ledger"].required_features, ["listener.tcp", "protocol.tcp"]);
    assert_eq!(ledger.exporters, ["paris", "tokyo"]);
    assert_eq!(ledger.hosts, ["ledger.shop.svc.clusterset.local", "ledger.shop"]);
    assert_eq!(ledger.hosts, hosts("shop", "ledger"));
}

#[test]
fn without_policy_the_order_is_local_region_rest() {
    let state = federation();
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → paris:1 | lyon:1 | frankfurt:1 tokyo:1"]);
    assert_eq!(rules(&state, "tokyo", "checkout"), ["default:  → tokyo:1 | frankfurt:1 lyon:1 paris:1"]);
    let failback = service(&compile(&state, "paris"), "checkout").failback.unwrap();
    assert_eq!((failback.after_ms, failback.ramp_ms, failback.automatic), (2_000, 5_000, true));
}

#[test]
fn an_order_is_relative_and_leaves_out_what_it_does_not_name() {
    let mut state = federation();
    with(
        &mut state,
        &format!(
            "{HEAD}kind: FailoverPolicy\nmetadata: {{ name: checkout, namespace: shop }}\nspec:\n  service: checkout\n  order:\n    - {{ clusters: [\"@local\"] }}\n    - {{ regions: [\"@same\"] }}\n    - {{ clusters: [frankfurt] }}\n  residency: {{ regions: [eu-west, eu-central] }}\n  failback: {{ after: 10m, ramp: 5m, mode: manual }}\n  avoid: [lyon]\n"
        ),
    );
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → paris:1 | lyon:1 | frankfurt:1"]);
    // tokyo lies outside the residency: what enters there leaves at once.
    assert_eq!(rules(&state, "tokyo", "checkout"), ["default:  → frankfurt:1"]);
    let checkout = service(&compile(&state, "lyon"), "checkout");
    assert_eq!(checkout.residency_clusters, ["frankfurt", "lyon", "paris"]);
    assert_eq!(checkout.avoid_clusters, ["lyon"]);
    assert_eq!(checkout.exporters, ["frankfurt", "lyon", "paris", "tokyo"]);
    let failback = checkout.failback.unwrap();
    assert_eq!((failback.after_ms, failback.ramp_ms, failback.automatic), (600_000, 300_000, false));
}

#[test]
fn limits_go_to_every_gateway_and_only_those_that_are_given() {
    let mut state = federation();
    assert_eq!(service(&compile(&state, "tokyo"), "checkout").backend_settings, None);
    let before = compile(&state, "tokyo");
    with(
        &mut state,
        &format!(
            "{HEAD}kind: BackendPolicy\nmetadata: {{ name: slow, namespace: shop }}\nspec:\n  service: checkout\n  limits: {{ uploadIdle: 45s, uploadMinRate: 0, endpointIdle: none }}\n"
        ),
    );
    for cluster in ["tokyo", "paris"] {
        let config = compile(&state, cluster);
        let resource = &config["service/shop/checkout"];
        assert!(resource.required_features.iter().any(|name| name == "stream-limits"), "{resource:?}");
        let settings = service(&config, "checkout").backend_settings.unwrap();
        let limits = settings.limits.unwrap();
        assert_eq!(
            (limits.upload_idle_ms, limits.upload_rate_min, limits.endpoint_idle_ms),
            (Some(45_000), Some(0), Some(0))
        );
        assert_eq!((limits.upload_grace_ms, limits.download_idle_ms, limits.stream_idle_ms), (None, None, None));
    }
    let after = compile(&state, "tokyo");
    let changed: Vec<_> =
        after.iter().filter(|(name, now)| before.get(*name) != Some(*now)).map(|(name, _)| name).collect();
    assert_eq!(changed, ["service/shop/checkout"]);
}

/// Exports of checkout through the Multi-Cluster Services API, each with cluster selectors, oldest first.
fn select(state: &mut FederationState, exports: &[(&str, &str)]) {
    for (created, (cluster, selectors)) in exports.iter().enumerate() {
        let facts = ExportFacts {
            created_unix_ms: i64::try_from(created + 1).unwrap(),
            annotations: [(selector::ANNOTATION.to_owned(), (*selectors).to_owned())].into(),
            ..ExportFacts::default()
        };
        state.reports.get_mut(*cluster).unwrap()[0].export = Some(facts);
    }
}

#[test]
fn kep_5939_selectors_are_the_order_of_whoever_has_no_policy() {
    let mut state = federation();
    let by = |key: &str, value: &str| format!(r#"{{"propertySelector":{{"matchProperties":{{"{key}":"{value}"}}}}}}"#);
    let tokyo_then_region =
        format!("[{},{}]", by(selector::CLUSTER_ID, "tokyo"), by(selector::REGION, "@SameAsImporter@"));
    select(&mut state, &[("lyon", &tokyo_then_region), ("paris", "[]")]);
    // Relative to the importer, each cluster once, and whoever is not selected comes last.
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → tokyo:1 | lyon:1 paris:1 | frankfurt:1"]);
    assert_eq!(rules(&state, "frankfurt", "checkout"), ["default:  → tokyo:1 | frankfurt:1 | lyon:1 paris:1"]);
    let unknown = format!("[{}]", by("continent.topology.k8s.io", "@SameAsImporter@"));
    select(&mut state, &[("lyon", &unknown)]);
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → frankfurt:1 lyon:1 paris:1 tokyo:1"]);
    // What a newer agent says, or a broken one: as without it.
    select(&mut state, &[("lyon", r#"[{"cel":"true"}]"#)]);
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → paris:1 | lyon:1 | frankfurt:1 tokyo:1"]);

    select(&mut state, &[("lyon", &tokyo_then_region)]);
    let policy = |spec: &str| {
        let name = "metadata: { name: checkout, namespace: shop }";
        format!("{HEAD}kind: FailoverPolicy\n{name}\nspec:\n  service: checkout\n{spec}")
    };
    with(&mut state, &policy("  residency: { regions: [eu-west, eu-central] }\n"));
    assert_eq!(
        rules(&state, "paris", "checkout"),
        ["default:  → lyon:1 paris:1 | frankfurt:1"],
        "within the residency"
    );
    with(&mut state, &policy("  order: [{ clusters: [frankfurt] }]\n"));
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → frankfurt:1"], "a policy's order counts more");
}

#[test]
fn a_split_keeps_its_versions_when_it_fails_over() {
    let mut state = federation();
    with(
        &mut state,
        &format!(
            "{HEAD}kind: TrafficSplit\nmetadata: {{ name: any, namespace: shop }}\nspec:\n  service: checkout\n  sticky: {{ cookie: user }}\n  routes:\n    - match: {{ headers: {{ X-Preview: pr-42 }}, method: GET }}\n      backends: [{{ cluster: tokyo, version: v2, weight: 1 }}]\n    - match: {{ pathPrefix: /beta }}\n      backends: [{{ cluster: paris, version: v1, weight: 3 }}, {{ cluster: paris, version: v2, weight: 1 }}]\n  backends: [{{ cluster: paris, weight: 90 }}, {{ cluster: tokyo, weight: 10 }}]\n"
        ),
    );
    assert_eq!(
        rules(&state, "frankfurt", "checkout"),
        [
            // Only paris and tokyo have v2; the others answer with what they have rather than not at all.
            "routes[0]: tokyo@v2:1 → frankfurt:1 | lyon:1 paris@v2:1 tokyo@v2:1",
            "routes[1]: paris@v1:3 paris@v2:1 → frankfurt@v1:4 | lyon@v1:4 paris@v1:3 paris@v2:1 tokyo@v1:3 tokyo@v2:1",
            "backends: paris:90 tokyo:10 → frankfurt:1 | lyon:1 paris:1 tokyo:1",
        ]
    );
    let config = compile(&state, "paris");
    let checkout = port(&config, "checkout");
    let header = NamedMatch { name: "x-preview".into(), how: Some(How::Exact("pr-42".into())) };
    let conditions = [On::Method("GET".into()), On::Header(header)].map(|on| Match { on: Some(on) });
    assert_eq!(checkout.rules[0].matches, conditions);
    assert!(checkout.sticky.is_some());
    assert!(checkout.rules.last().unwrap().matches.is_empty());
    // The rules ask for versions in three ways.
    assert_eq!(checkout.chains.len(), 3);
    assert_eq!(
        config["service/shop/checkout"].required_features,
        ["listener.http", "match.header.exact", "match.method", "match.path.prefix", "protocol.http1", "sticky.cookie"]
    );
}

#[test]
fn exports_come_from_resources_and_from_the_cluster_itself() {
    let mut state = federation();
    state.resources.retain(|key, _| key.name != "checkout");
    assert_eq!(exporters(&state, "shop", "checkout"), Vec::<String>::new());
    state.reports.get_mut("lyon").unwrap()[0].exported = true;
    assert_eq!(exporters(&state, "shop", "checkout"), ["lyon"]);
    with(
        &mut state,
        &format!(
            "{HEAD}kind: ServiceExport\nmetadata: {{ name: checkout, namespace: shop }}\nspec: {{ clusters: [tokyo] }}\n"
        ),
    );
    // An operator who names clusters means those and no others, whatever an agent says.
    assert_eq!(exporters(&state, "shop", "checkout"), ["tokyo"]);
    with(
        &mut state,
        &format!(
            "{HEAD}kind: ServiceExport\nmetadata: {{ name: checkout, namespace: shop }}\nspec: {{ clusters: [lyon, tokyo] }}\n"
        ),
    );
    assert_eq!(exporters(&state, "shop", "checkout"), ["lyon", "tokyo"]);
    // A cluster that does not belong to the federation any more takes its services along.
    state.resources.retain(|key, _| key.name != "lyon");
    assert_eq!(exporters(&state, "shop", "checkout"), ["tokyo"]);
    assert!(!compile(&state, "paris").contains_key("peer/lyon/gw-1"));
}

#[test]
fn of_clusters_that_disagree_the_first_to_report_is_believed() {
    let mut state = federation();
    let key = ServiceKey::new("shop", "checkout");
    let since = |ages: [(&str, u64); 4]| ages.map(|(name, age)| (ClusterId::new(name), age)).into();
    for (protocol, name) in [(Protocol::Tcp, "frankfurt"), (Protocol::H2c, "lyon")] {
        state.reports.insert(name.into(), vec![report("checkout", protocol, &["v1"])]);
    }
    state.tcp_slots.insert(("shop".into(), "checkout".into(), 80), 3);
    for (first, protocol, exporters) in [
        ("paris", Protocol::Http1, &["paris", "tokyo"][..]),
        ("frankfurt", Protocol::Tcp, &["frankfurt"][..]),
        ("lyon", Protocol::H2c, &["lyon"][..]),
    ] {
        let age = |name: &str| if name == first { 3 } else { 7 };
        let ages = REGIONS.map(|(name, _)| (name, age(name)));
        state.reported_since.insert(key.clone(), since(ages));
        let config = compile(&state, "paris");
        assert_eq!(port(&config, "checkout").protocol(), protocol);
        assert_eq!(service(&config, "checkout").exporters, exporters);
        let meaning = meaning(&Index::of(&state), &key).unwrap();
        assert_eq!((meaning.said_by, meaning.protocol), (ClusterId::new(first), protocol));
        let named = |list: &[ClusterId]| list.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let disagreeing: Vec<ClusterId> = meaning.disagreeing.into_iter().map(|(cluster, ..)| cluster).collect();
        assert!(named(&disagreeing).is_disjoint(&named(&meaning.exporters)));
        assert_eq!(disagreeing.len() + meaning.exporters.len(), 4);
    }
    // Whoever does not export the service, or belongs to no federation, has no say.
    state.reported_since.insert(key.clone(), since([("frankfurt", 1), ("lyon", 2), ("paris", 3), ("tokyo", 4)]));
    state.resources.retain(|key, _| key.name != "frankfurt");
    assert_eq!(meaning(&Index::of(&state), &key).unwrap().said_by, ClusterId::new("lyon"));
    with(
        &mut state,
        &format!(
            "{HEAD}kind: ServiceExport\nmetadata: {{ name: checkout, namespace: shop }}\nspec: {{ clusters: [paris, tokyo] }}\n"
        ),
    );
    assert_eq!(meaning(&Index::of(&state), &key).unwrap().said_by, ClusterId::new("paris"));
    // A port alone is no reason to leave a cluster out: the endpoints have ports of their own.
    state.reports.get_mut("tokyo").unwrap()[0].port = 81;
    let meaning = meaning(&Index::of(&state), &key).unwrap();
    assert_eq!((meaning.port, meaning.exporters.len(), meaning.disagreeing.len()), (80, 2, 1));
}

#[test]
fn a_drained_cluster_stays_listed_and_is_marked() {
    let mut state = federation();
    with(
        &mut state,
        &format!("{HEAD}kind: Cluster\nmetadata: {{ name: lyon }}\nspec: {{ region: eu-west, drained: true }}\n"),
    );
    let config = compile(&state, "paris");
    let Some(Body::Cluster(lyon)) = &config["cluster/lyon"].body else { panic!() };
    assert!(lyon.drained);
    assert_eq!(rules(&state, "paris", "checkout"), ["default:  → paris:1 | lyon:1 | frankfurt:1 tokyo:1"]);
}

#[test]
fn a_change_touches_only_what_it_is_about() {
    let mut state = federation();
    state.tcp_slots.insert(("shop".into(), "ledger".into(), 80), 0);
    let before = compile(&state, "paris");
    with(
        &mut state,
        &format!(
            "{HEAD}kind: TrafficSplit\nmetadata: {{ name: checkout, namespace: shop }}\nspec: {{ service: checkout, backends: [{{ cluster: paris }}] }}\n"
        ),
    );
    state.reports.get_mut("paris").unwrap()[0].ready = 0;
    let after = compile(&state, "paris");
    let changed: Vec<&String> = before.keys().filter(|name| before[*name].version != after[*name].version).collect();
    assert_eq!(changed, ["service/shop/checkout"]);
}

// ---- properties -------------------------------------------------------------

const CLUSTERS: [&str; 6] = ["ams", "fra", "lis", "nrt", "par", "sin"];
const ZONES: [&str; 3] = ["ap", "eu", "us"];
const SERVICES: [&str; 3] = ["a", "b", "c"];
const VERSIONS: [&str; 2] = ["v1", "v2"];

fn metadata(name: &str, namespaced: bool) -> Metadata {
    let namespace = if namespaced { "shop".to_owned() } else { String::new() };
    Metadata { name: name.into(), namespace, ..Metadata::default() }
}

fn some_clusters() -> impl Strategy<Value = Vec<String>> {
    prop::sample::subsequence(CLUSTERS.to_vec(), 1..=4).prop_map(|names| names.into_iter().map(String::from).collect())
}

fn some_regions() -> impl Strategy<Value = Vec<String>> {
    prop::sample::subsequence(ZONES.to_vec(), 1..=2).prop_map(|names| names.into_iter().map(String::from).collect())
}

fn some_backends() -> impl Strategy<Value = Vec<Backend>> {
    let backend =
        (prop::sample::select(&CLUSTERS[..]), prop::option::of(prop::sample::select(&VERSIONS[..])), 0u32..=1_000_000)
            .prop_map(|(cluster, version, weight)| Backend {
                cluster: cluster.into(),
                version: version.map(String::from),
                weight,
            });
    prop::collection::vec(backend, 0..4)
}

fn some_policy() -> impl Strategy<Value = FailoverPolicySpec> {
    let tier = prop_oneof![
        some_clusters().prop_map(FailoverTier::Clusters),
        some_regions().prop_map(FailoverTier::Regions),
        Just(FailoverTier::Clusters(vec!["@local".into()])),
        Just(FailoverTier::Regions(vec!["@same".into()])),
    ];
    let residency = prop::option::of(
        (some_regions(), some_clusters()).prop_map(|(regions, clusters)| Residency { regions, clusters }),
    );
    (prop::collection::vec(tier, 0..4), residency, some_clusters())
        .prop_map(|(order, residency, avoid)| FailoverPolicySpec { order, residency, avoid, ..Default::default() })
}

fn some_state() -> impl Strategy<Value = FederationState> {
    let regions = prop::collection::vec(prop::sample::select(&ZONES[..]), CLUSTERS.len());
    let reports = prop::collection::vec(
        prop::collection::vec((any::<bool>(), 0u32..4, 0..3usize), SERVICES.len()),
        CLUSTERS.len(),
    );
    let splits = prop::collection::vec(prop::option::of(some_backends()), SERVICES.len());
    let policies = prop::collection::vec(prop::option::of(some_policy()), SERVICES.len());
    (regions, reports, splits, policies).prop_map(|(regions, reports, splits, policies)| {
        let mut state = FederationState { trust_domain: "mesh.example".into(), ..Default::default() };
        let mut add = |resource: Resource| drop(state.resources.insert(resource.key(), resource));
        for (name, region) in CLUSTERS.iter().zip(&regions) {
            add(Resource::Cluster(Cluster {
                metadata: metadata(name, false),
                spec: ClusterSpec { region: (*region).into(), drained: false, policies: false },
            }));
        }
        for ((service, split), policy) in SERVICES.iter().zip(splits).zip(policies) {
            add(Resource::ServiceExport(ServiceExport {
                metadata: metadata(service, true),
                spec: ServiceExportSpec::default(),
            }));
            if let Some(backends) = split {
                let spec = TrafficSplitSpec { service: (*service).into(), backends, ..Default::default() };
                add(Resource::TrafficSplit(TrafficSplit { metadata: metadata(service, true), spec }));
            }
            if let Some(spec) = policy {
                let spec = FailoverPolicySpec { service: (*service).into(), ..spec };
                add(Resource::FailoverPolicy(FailoverPolicy { metadata: metadata(service, true), spec }));
            }
        }
        for (cluster, services) in CLUSTERS.iter().zip(reports) {
            let record = GatewayRecord {
                spiffe_id: format!("spiffe://mesh.example/cluster/{cluster}/gateway/gw"),
                addresses: GatewayAddresses { tunnel: vec!["10.0.0.1:15443".into()], ..Default::default() },
            };
            if services[0].0 {
                state.gateways.insert(((*cluster).into(), "gw".into()), record);
            }
            for (age, (service, (_, ready, _))) in (0u64..).zip(SERVICES.iter().zip(&services)) {
                let since = state.reported_since.entry(ServiceKey::new("shop", *service)).or_default();
                since.insert(ClusterId::new(*cluster), age * u64::from(*ready));
            }
            let present = SERVICES.iter().zip(services).filter(|(_, (present, ..))| *present);
            let reports = present.map(|(service, (_, ready, versions))| ServiceReport {
                ready,
                // Some have a second port, which not all clusters have.
                ports: if ready == 1 { second_port(80 + versions as u32) } else { Vec::new() },
                ..report(service, if ready == 3 { Protocol::Tcp } else { Protocol::Http1 }, &VERSIONS[..versions])
            });
            state.reports.insert((*cluster).into(), reports.collect());
        }
        for (offset, service) in (0u32..).zip(SERVICES) {
            state.tcp_slots.insert(("shop".into(), service.into(), offset % 2 * 80), offset);
        }
        state
    })
}

fn second_port(number: u32) -> Vec<ReportedPort> {
    let port = |name: &str, port: u32, protocol: Protocol| ReportedPort {
        name: name.into(),
        port,
        protocol: protocol.into(),
        app_protocol: String::new(),
    };
    vec![port("http", 80, Protocol::Http1), port("second", number + 1, Protocol::H2c)]
}

/// Tells an index everything that is different.
fn update(index: &mut Index, before: &FederationState, after: &FederationState) -> Changed {
    let mut changed = index.set_authority(&after.trust_domain, &after.bundle_der);
    changed.merge(index.set_revocations(&after.revocations));
    for key in before.resources.keys().chain(after.resources.keys()).collect::<BTreeSet<_>>() {
        if before.resources.get(key) != after.resources.get(key) {
            changed.merge(index.set_resource(key, after.resources.get(key)));
        }
    }
    for cluster in before.reports.keys().chain(after.reports.keys()).collect::<BTreeSet<_>>() {
        let reports = after.reports.get(cluster).map(Vec::as_slice).unwrap_or_default();
        let id = ClusterId::new(cluster.as_str());
        let since = |key: &ServiceKey| after.reported_since.get(key).and_then(|at| at.get(&id)).copied().unwrap_or(0);
        changed.merge(index.set_reports(&id, reports, since));
    }
    for (cluster, name) in before.gateways.keys().chain(after.gateways.keys()) {
        let id = GatewayId::new(cluster.as_str(), name.as_str());
        changed.merge(index.set_gateway(&id, after.gateways.get(&(cluster.clone(), name.clone()))));
    }
    for slot in before.tcp_slots.keys().chain(after.tcp_slots.keys()) {
        let (namespace, name, port) = slot;
        let key = ServiceKey::new(namespace.as_str(), name.as_str());
        changed.merge(index.set_tcp_offset(&key, *port, after.tcp_slots.get(slot).copied()));
    }
    changed
}

fn clusters_of(port: &ServicePort, rule: &RouteRule) -> BTreeSet<String> {
    let tiers = tiers_of(port, rule).iter().flat_map(|tier| &tier.backends);
    rule.backends.iter().chain(tiers).map(|backend| backend.cluster.clone()).collect()
}

fn tiers_of<'p>(port: &'p ServicePort, rule: &RouteRule) -> &'p [Tier] {
    rule.chain.map(|chain| port.chains[chain as usize].tiers.as_slice()).unwrap_or_default()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn compiling_is_a_pure_function_and_every_hash_is_of_its_content(state in some_state()) {
        for cluster in CLUSTERS {
            let first = compile(&state, cluster);
            prop_assert_eq!(&first, &compile(&state.clone(), cluster));
            for other in CLUSTERS {
                for (name, resource) in compile(&state, other) {
                    if let Some(same) = first.get(&name) {
                        prop_assert_eq!(same.version == resource.version, same.body == resource.body);
                    }
                }
            }
        }
    }

    #[test]
    fn residency_never_lets_anyone_in(state in some_state()) {
        for cluster in CLUSTERS {
            for service in SERVICES {
                let policy = state.resources.values().find_map(|resource| match resource {
                    Resource::FailoverPolicy(policy) if policy.spec.service == service => policy.spec.residency.clone(),
                    _ => None,
                });
                let (Some(residency), config) = (policy, compile(&state, cluster)) else { continue };
                if !config.contains_key(&format!("service/shop/{service}")) { continue }
                let compiled = self::service(&config, service);
                let region = |name: &str| state.resources.values().find_map(|resource| match resource {
                    Resource::Cluster(cluster) if cluster.metadata.name == name => Some(cluster.spec.region.clone()),
                    _ => None,
                }).unwrap();
                prop_assert!(!compiled.residency_clusters.is_empty());
                for (port, rule) in compiled.ports.iter().flat_map(|port| port.rules.iter().map(move |rule| (port, rule))) {
                    for used in clusters_of(port, rule) {
                        prop_assert!(residency.allows(&used, &region(&used)), "{} in {:?}", used, rule);
                        prop_assert!(compiled.residency_clusters.contains(&used));
                    }
                }
            }
        }
    }

    #[test]
    fn the_default_order_reaches_every_exporter_and_no_tier_repeats_one(state in some_state()) {
        for cluster in CLUSTERS {
            for (_, resource) in compile(&state, cluster) {
                let Some(Body::Service(service)) = resource.body else { continue };
                let policy = state.resources.values().find_map(|resource| match resource {
                    Resource::FailoverPolicy(policy) if policy.spec.service == service.name => Some(policy.spec.clone()),
                    _ => None,
                });
                prop_assert!(!service.exporters.is_empty() && !service.ports.is_empty());
                let default = policy.is_none_or(|policy| policy.order.is_empty() && policy.residency.is_none());
                let mut reached = BTreeSet::new();
                for (port, rule) in service.ports.iter().flat_map(|port| port.rules.iter().map(move |rule| (port, rule))) {
                    prop_assert!(port.rules.last().unwrap().matches.is_empty());
                    let mut seen = BTreeSet::new();
                    for tier in tiers_of(port, rule) {
                        let here: BTreeSet<&String> = tier.backends.iter().map(|backend| &backend.cluster).collect();
                        prop_assert!(!here.is_empty());
                        prop_assert!(here.iter().all(|cluster| service.exporters.contains(cluster)));
                        prop_assert!(here.iter().all(|cluster| seen.insert((*cluster).clone())), "twice in {:?}", rule);
                        prop_assert!(tier.backends.iter().all(|backend| backend.weight > 0));
                    }
                    if default && seen.contains(cluster) {
                        prop_assert!(tiers_of(port, rule)[0].backends.iter().all(|backend| backend.cluster == cluster));
                    }
                    reached.extend(seen);
                }
                // By one port or another.
                prop_assert!(!default || reached.into_iter().collect::<Vec<_>>() == service.exporters);
            }
        }
    }

    #[test]
    fn an_unrelated_change_keeps_every_other_hash(state in some_state(), backends in some_backends()) {
        let mut changed = state.clone();
        let spec = TrafficSplitSpec { service: "a".into(), backends, ..Default::default() };
        let split = Resource::TrafficSplit(TrafficSplit { metadata: metadata("a", true), spec });
        changed.resources.insert(split.key(), split);
        let (before, after) = (compile(&state, "par"), compile(&changed, "par"));
        for (name, resource) in &before {
            if name != "service/shop/a" {
                prop_assert_eq!(&resource.version, &after[name].version);
            }
        }
    }

    /// An index that is told of every change, and what it says must be compiled again, give what compiling anew gives.
    #[test]
    fn an_index_kept_up_to_date_is_as_good_as_a_new_one(states in prop::collection::vec(some_state(), 2..5)) {
        let local = ClusterId::new("par");
        let mut index = Index::of(&states[0]);
        let mut config = compile(&states[0], "par");
        for pair in states.windows(2) {
            let changed = update(&mut index, &pair[0], &pair[1]);
            prop_assert_eq!(&index, &Index::of(&pair[1]));
            if changed.shared {
                config.retain(|name, _| name.starts_with("service/"));
                config.extend(compile_shared(&index, &local));
            }
            let touched: Vec<ServiceKey> = if changed.every_service {
                config.retain(|name, _| !name.starts_with("service/"));
                index.services().cloned().collect()
            } else {
                changed.services.into_iter().collect()
            };
            for key in touched {
                let name = format!("service/{key}");
                match compile_service(&index, &local, &key) {
                    Some(resource) => config.insert(name, resource),
                    None => config.remove(&name),
                };
            }
            prop_assert_eq!(&config, &compile(&pair[1], "par"));
        }
    }

    #[test]
    fn json_reads_back(state in some_state()) {
        for resource in state.resources.values() {
            let json = resource.to_json();
            let again = Resource::from_json(&json).unwrap();
            prop_assert_eq!(&again, resource);
            prop_assert_eq!(again.to_json(), json);
        }
    }

    /// The state machine may be handed anything that parses as JSON.
    #[test]
    fn checking_never_panics(state in some_state()) {
        let _ = admit::check(&state.resources);
    }
}
