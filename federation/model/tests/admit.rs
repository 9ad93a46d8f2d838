//! What an operator reads when policies are wrong, and what is let in.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeMap;

use archipelago_model::{
    admit::{self, Reports, Resources},
    document::Document,
    resource::{Resource, ResourceKey},
};
use archipelago_proto::v1::{Protocol, ServiceReport};

fn document(file: &str, text: &str) -> Document {
    Document { file: file.into(), text: text.into() }
}

fn collect(resources: Vec<Resource>) -> Resources {
    resources.into_iter().map(|resource| (resource.key(), resource)).collect()
}

fn clusters() -> Resources {
    let text = [("paris", "eu-west"), ("frankfurt", "eu-central"), ("tokyo", "ap-northeast")]
        .map(|(name, region)| {
            format!("---\napiVersion: archipelago.dev/v1alpha1\nkind: Cluster\nmetadata: {{ name: {name} }}\nspec: {{ region: {region} }}\n")
        })
        .concat();
    collect(admit::admit(&[document("clusters.yaml", &text)], &BTreeMap::new()).unwrap())
}

fn refused(text: &str, current: &Resources) -> Vec<String> {
    admit::admit(&[document("p.yaml", text)], current).unwrap_err().iter().map(ToString::to_string).collect()
}

const SPLIT: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  sticky: { header: X-User }
  routes:
    - match: { headers: { X-Preview: pr-42 } }
      backends: [{ cluster: tokyo, version: v2, weight: 1 }]
  backends: [{ cluster: paris, weight: 90 }, { cluster: tokyo, weight: 10 }]
";

const POLICY: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: FailoverPolicy
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  order:
    - { clusters: [\"@local\"] }
    - { regions: [\"@same\"] }
    - { clusters: [frankfurt, tokyo] }
  residency: { regions: [eu-west, eu-central] }
  failback: { after: 10m, ramp: 5m, mode: auto }
";

#[test]
fn the_documented_split_is_admitted_and_survives_json() {
    let admitted = admit::admit(&[document("p.yaml", SPLIT)], &clusters()).unwrap();
    let [split] = &admitted[..] else { panic!("{admitted:?}") };
    assert_eq!(&Resource::from_json(&split.to_json()).unwrap(), split);
    // The canonical JSON is itself a document that can be applied.
    let again = admit::admit(&[document("p.json", &split.to_json())], &clusters()).unwrap();
    assert_eq!(again, admitted);
    let Resource::TrafficSplit(split) = split else { panic!() };
    assert_eq!(split.spec.routes[0].matches.headers.keys().collect::<Vec<_>>(), ["x-preview"]);
}

#[test]
fn a_chain_that_leaves_its_residency_is_shown() {
    assert_eq!(
        refused(POLICY, &clusters()),
        [
            "p.yaml:9:31: spec.order[2].clusters[1]: paris → frankfurt → tokyo: tokyo is in ap-northeast, outside residency regions eu-west, eu-central"
        ]
    );
    let region = POLICY.replace("{ clusters: [frankfurt, tokyo] }", "{ regions: [eu-central, ap-northeast] }");
    assert_eq!(
        refused(&region, &clusters()),
        [
            "p.yaml:9:31: spec.order[2].regions[1]: paris → frankfurt → tokyo: tokyo is in ap-northeast, outside residency regions eu-west, eu-central"
        ]
    );
}

#[test]
fn a_split_and_a_policy_are_judged_together_whichever_comes_first() {
    let policy = POLICY.replace("frankfurt, tokyo", "frankfurt");
    let leak = "TrafficSplit shop/checkout sends requests where FailoverPolicy shop/checkout forbids it: shop/checkout → tokyo: \
         tokyo is in ap-northeast, outside residency regions eu-west, eu-central";

    let mut current = clusters();
    current.extend(collect(admit::admit(&[document("p.yaml", &policy)], &current).unwrap()));
    assert_eq!(
        refused(SPLIT, &current),
        [
            format!("p.yaml:9:29: spec.routes[0].backends[0].cluster: {leak}"),
            format!("p.yaml:10:57: spec.backends[1].cluster: {leak}"),
        ]
    );

    let mut current = clusters();
    current.extend(collect(admit::admit(&[document("p.yaml", SPLIT)], &current).unwrap()));
    let problems = refused(&policy, &current);
    assert_eq!(problems, [format!("p.yaml:10:14: spec.residency: {leak}")]);

    // Moving a cluster out of the region leaks as well.
    let mut current = clusters();
    current.extend(collect(admit::admit(&[document("p.yaml", &policy)], &current).unwrap()));
    let moved = "apiVersion: archipelago.dev/v1alpha1\nkind: Cluster\nmetadata: { name: frankfurt }\nspec: { region: us-east }\n";
    let problems = refused(moved, &current);
    assert!(
        problems.iter().any(|p| p.starts_with("p.yaml:4:17: spec.region: paris → frankfurt: frankfurt is in us-east")),
        "{problems:?}"
    );
}

#[test]
fn several_problems_come_at_once_with_guesses() {
    let text = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  backend: []
  backends:
    - { cluster: pariss, weight: -1 }
    - { cluster: tokyo, wieght: 10 }
    - { cluster: tokyo, weight: 2000000 }
---
apiVersion: archipelago.dev/v1alpha1
kind: TraficSplit
metadata: { name: web, namespace: shop }
spec: { service: web }
---
a: [
---
apiVersion: archipelago.dev/v1
kind: ServiceExport
metadata: { name: Web, labels: {} }
";
    assert_eq!(
        refused(text, &clusters()),
        [
            "p.yaml:6:3: spec.backend: unknown field `backend`, did you mean `backends`?",
            "p.yaml:8:34: spec.backends[0].weight: expected a whole number from 0 to 1000000, found the number -1",
            "p.yaml:9:25: spec.backends[1].wieght: unknown field `wieght`, did you mean `weight`?",
            "p.yaml:10:18: spec.backends[2].cluster: cluster `tokyo` is already a backend at spec.backends[1]",
            "p.yaml:10:33: spec.backends[2].weight: expected a whole number from 0 to 1000000, found the number 2000000",
            "p.yaml:13:7: kind: unknown kind `TraficSplit`, did you mean `TrafficSplit`?",
            "p.yaml:17:4: unclosed bracket '['",
            "p.yaml:19:13: apiVersion: unknown API version `archipelago.dev/v1`, expected `archipelago.dev/v1alpha1`",
            "p.yaml:21:19: metadata.name: `Web` is no valid name: 1 to 63 lower-case letters, digits and dashes, not at the ends",
            "p.yaml:21:24: metadata.labels: unknown field `labels`, expected `name`, `namespace`, `annotations`",
        ]
    );
    let unknown = SPLIT.replace("cluster: tokyo, version", "cluster: tokio, version");
    assert_eq!(
        refused(&unknown, &clusters()),
        ["p.yaml:9:29: spec.routes[0].backends[0].cluster: no cluster `tokio` (did you mean `tokyo`?)"]
    );
}

#[test]
fn a_second_split_names_the_place_of_the_first() {
    let second = SPLIT.replace("name: checkout, namespace", "name: canary, namespace");
    let both = format!("{SPLIT}---\n{second}");
    assert_eq!(
        refused(&both, &clusters()),
        [
            "p.yaml:16:12: spec.service: service `shop/checkout` already has a TrafficSplit: `TrafficSplit shop/checkout` at p.yaml:5:12"
        ]
    );
    let mut current = clusters();
    current.extend(collect(admit::admit(&[document("p.yaml", SPLIT)], &current).unwrap()));
    assert_eq!(
        refused(&second, &current),
        [
            "p.yaml:5:12: spec.service: service `shop/checkout` already has a TrafficSplit: `TrafficSplit shop/checkout`, applied earlier"
        ]
    );
    // The same resource again is an update, twice in one request is a mistake.
    assert!(admit::admit(&[document("p.yaml", SPLIT)], &current).is_ok());
    let problems = admit::admit(&[document("a.yaml", SPLIT), document("b.yaml", SPLIT)], &current).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "b.yaml:3:19: metadata.name: TrafficSplit shop/checkout is already given at a.yaml:3:19"
    );
}

#[test]
fn a_cluster_that_is_still_named_cannot_be_deleted() {
    let mut resources = clusters();
    resources.extend(collect(admit::admit(&[document("p.yaml", SPLIT)], &resources).unwrap()));
    assert_eq!(admit::check(&resources), []);
    let tokyo = resources.keys().find(|key| key.name == "tokyo").cloned().unwrap();
    resources.remove(&tokyo);
    let found = admit::check(&resources);
    assert_eq!((found[1].key.name.as_str(), found[1].path.as_str()), ("checkout", "spec.backends[1].cluster"));
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "TrafficSplit shop/checkout: spec.routes[0].backends[0].cluster: no cluster `tokyo`",
            "TrafficSplit shop/checkout: spec.backends[1].cluster: no cluster `tokyo`",
        ]
    );
}

#[test]
fn a_service_may_be_named_before_it_exists() {
    let text = SPLIT.replace("service: checkout", "service: not-yet-deployed");
    assert!(admit::admit(&[document("p.yaml", &text)], &clusters()).is_ok());
}

#[test]
fn an_old_mistake_does_not_block_an_unrelated_change() {
    let mut current = clusters();
    current.extend(collect(admit::admit(&[document("p.yaml", SPLIT)], &current).unwrap()));
    current.retain(|key: &ResourceKey, _| key.name != "tokyo");
    let export =
        "apiVersion: archipelago.dev/v1alpha1\nkind: ServiceExport\nmetadata: { name: web, namespace: shop }\n";
    assert!(admit::admit(&[document("e.yaml", export)], &current).is_ok());
}

#[test]
fn a_topology_cannot_be_applied_but_validates() {
    let text = "apiVersion: archipelago.dev/v1alpha1\nkind: Topology\nmetadata: { name: one }\nspec:\n  trustDomain: mesh.example\n  clusters: [{ name: paris, region: eu-west }]\n";
    assert!(refused(text, &clusters())[0].contains("a Topology is what `meshctl up` starts"));
    assert_eq!(admit::validate(&[document("t.yaml", text), document("p.yaml", SPLIT)]).unwrap_err().len(), 2);
    let twice =
        text.replace("[{ name: paris, region: eu-west }]", "[{ name: paris, region: a }, { name: paris, region: b }]");
    let problems = admit::topology(&document("t.yaml", &twice)).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "t.yaml:6:50: spec.clusters[1].name: `paris` is already the name of spec.clusters[0]"
    );
    // Without any cluster in sight, names of clusters cannot be judged offline.
    assert!(admit::validate(&[document("p.yaml", SPLIT)]).is_ok());
}

/// paris and tokyo run checkout, paris as v1 and v2; paris runs ledger, over TCP; frankfurt has an agent, lyon has none.
fn reports() -> Reports {
    let report = |name: &str, protocol: Protocol, versions: &[&str]| ServiceReport {
        namespace: "shop".into(),
        name: name.into(),
        protocol: protocol.into(),
        port: 80,
        versions: versions.iter().map(ToString::to_string).collect(),
        ..ServiceReport::default()
    };
    let checkout = |versions: &[&str]| report("checkout", Protocol::Http1, versions);
    Reports::from([
        ("frankfurt".into(), vec![report("web", Protocol::Http1, &["v1"])]),
        ("paris".into(), vec![checkout(&["v1", "v2"]), report("ledger", Protocol::Tcp, &["v1"])]),
        ("tokyo".into(), vec![checkout(&["v1"])]),
        ("nowhere".into(), vec![report("ghost", Protocol::Http1, &["v1"])]),
    ])
}

fn warned(text: &str) -> Vec<String> {
    let mut current = clusters();
    let lyon =
        "apiVersion: archipelago.dev/v1alpha1\nkind: Cluster\nmetadata: { name: lyon }\nspec: { region: eu-west }\n";
    current.extend(collect(admit::admit(&[document("l.yaml", lyon)], &current).unwrap()));
    let written =
        admit::admit(&[document("p.yaml", text)], &current).unwrap_or_else(|problems| panic!("{problems:#?}"));
    current.extend(collect(written.clone()));
    admit::warnings(&written, &current, &reports()).iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_probably_not_meant_is_said() {
    let split = |service: &str, rest: &str| {
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: s, namespace: shop }}\nspec:\n  service: {service}\n{rest}"
        )
    };
    let policy = |rest: &str| {
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {{ name: p, namespace: shop }}\nspec:\n  service: checkout\n{rest}"
        )
    };
    let export = |name: &str, rest: &str| {
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: ServiceExport\nmetadata: {{ name: {name}, namespace: shop }}\n{rest}"
        )
    };
    let backend = |service: &str, limits: &str| {
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: b, namespace: shop }}\nspec: {{ service: {service}, limits: {{ {limits} }} }}\n"
        )
    };
    let both =
        format!("{}---\n{}", policy("  avoid: [paris]\n"), split("checkout", "  backends: [{ cluster: paris }]\n"));
    let drained = format!(
        "apiVersion: archipelago.dev/v1alpha1\nkind: Cluster\nmetadata: {{ name: paris }}\nspec: {{ region: eu-west, drained: true }}\n---\n{}",
        split("checkout", "  backends: [{ cluster: paris }]\n")
    );
    let cases: Vec<(String, &[&str])> = vec![
        (split("checkout", "  backends: [{ cluster: paris, version: v2 }, { cluster: tokyo, version: v1 }]\n"), &[]),
        (
            split("chekout", "  backends: [{ cluster: paris }]\n"),
            &[
                "TrafficSplit shop/s: spec.service: no cluster has reported a service `shop/chekout` yet (did you mean `shop/checkout`?)",
            ],
        ),
        (
            split(
                "checkout",
                "  backends: [{ cluster: paris, version: v22 }, { cluster: tokyo, version: v2, weight: 0 }]\n",
            ),
            &[
                "TrafficSplit shop/s: spec.backends[0].version: nobody runs version `v22` of shop/checkout in `paris` (did you mean `v2`?): it reports v1, v2",
            ],
        ),
        (
            split(
                "ledger",
                "  sticky: { header: x-user }\n  routes: [{ match: { method: GET }, backends: [{ cluster: paris }] }]\n",
            ),
            &[
                "TrafficSplit shop/s: spec.routes: shop/ledger is a TCP service: routes match HTTP requests, so none is ever used",
                "TrafficSplit shop/s: spec.sticky: shop/ledger is a TCP service: its connections carry no header or cookie",
            ],
        ),
        (
            split("checkout", "  backends: [{ cluster: frankfurt }, { cluster: lyon }]\n"),
            &[
                "TrafficSplit shop/s: spec.backends[0].cluster: cluster `frankfurt` does not report shop/checkout",
                "TrafficSplit shop/s: spec.backends[1].cluster: cluster `lyon` has reported nothing yet",
            ],
        ),
        (
            policy("  order: [{ clusters: [\"@local\"] }, { clusters: [lyon] }]\n"),
            &["FailoverPolicy shop/p: spec.order[1].clusters[0]: cluster `lyon` has reported nothing yet"],
        ),
        (backend("checkout", "uploadIdle: 45s, uploadMinRate: 500, uploadGrace: 20s, endpointIdle: none"), &[]),
        (
            backend("checkout", "uploadMinRate: 0, uploadGrace: 20s"),
            &["BackendPolicy shop/b: spec.limits.uploadGrace: nothing is measured over it: `uploadMinRate` is 0"],
        ),
        (
            backend("checkout", "uploadMinRate: 20000"),
            &[
                "BackendPolicy shop/b: spec.limits.uploadMinRate: clients of mobile networks often send less than 10000 bytes a second: they will be refused",
            ],
        ),
        (
            backend("ledger", "uploadIdle: 45s"),
            &[
                "BackendPolicy shop/b: spec.service: shop/ledger is a TCP service: these limits are for requests of HTTP",
            ],
        ),
        (
            backend("chekout", "uploadIdle: 45s"),
            &[
                "BackendPolicy shop/b: spec.service: no cluster has reported a service `shop/chekout` yet (did you mean `shop/checkout`?)",
            ],
        ),
        (
            both,
            &[
                "TrafficSplit shop/s: spec.backends[0].cluster: requests do not go to `paris` while another cluster can serve: FailoverPolicy shop/p keeps them away (`meshctl failover trigger`)",
            ],
        ),
        (
            drained,
            &[
                "TrafficSplit shop/s: spec.backends[0].cluster: requests do not go to `paris` while another cluster can serve: it is drained",
            ],
        ),
        (
            // A cluster that is no part of the federation is no witness.
            export("ghost", ""),
            &["ServiceExport shop/ghost: metadata.name: no cluster has reported a service `shop/ghost` yet"],
        ),
        (
            export("checkout", "spec: { clusters: [paris, lyon] }\n"),
            &["ServiceExport shop/checkout: spec.clusters[1]: cluster `lyon` has reported nothing yet"],
        ),
    ];
    for (text, says) in cases {
        assert_eq!(warned(&text), says, "{text}");
    }
}

#[test]
fn a_thousand_slips_are_one_warning_and_thousands_of_routes_are_admitted() {
    let routes = |count: usize| {
        let route = |n: usize| {
            format!("    - {{ match: {{ headers: {{ x-preview: pr-{n} }} }}, backends: [{{ cluster: lyon }}] }}\n")
        };
        let routes: String = (0..count).map(route).collect();
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: s, namespace: shop }}\nspec:\n  service: checkout\n  routes:\n{routes}"
        )
    };
    assert_eq!(
        warned(&routes(4_096)),
        ["TrafficSplit shop/s: spec.routes[0].backends[0].cluster: cluster `lyon` has reported nothing yet"]
    );
    assert!(refused(&routes(4_097), &clusters())[0].contains("4097 items, at most 4096"));
}

const SERVICE: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata: { name: checkout, namespace: shop }
spec:
  port: 80
  endpoints:
    - { address: \"127.0.0.1:8080\", version: v1 }
  healthCheck: { http: /healthz, interval: 1s }
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
";

#[test]
fn files_of_any_kind_are_validated_together() {
    let good = admit::validate_any(&[document("s.yaml", SERVICE), document("p.yaml", SPLIT)]).unwrap();
    assert_eq!((good.services.len(), good.resources.len(), good.topology), (1, 1, None));
    assert!(good.services[0].exported);
    let alone = admit::validate_any(&[document("s.yaml", SERVICE)]).unwrap();
    assert_eq!((alone.services.len(), alone.resources.len()), (1, 0));
    let wrong = SERVICE.replace("kind: Service\n", "kind: Servce\n");
    let problems = admit::validate_any(&[document("s.yaml", &wrong), document("p.yaml", "kind: [")]).unwrap_err();
    let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(shown[0].starts_with("p.yaml:1:"), "{shown:?}");
    assert!(
        shown.iter().any(|p| p.contains("s.yaml:2:7: kind: unknown kind `Servce`, did you mean `Service`?")),
        "{shown:?}"
    );
    assert!(admit::validate_any(&[document("e.yaml", "")]).is_err());
}
