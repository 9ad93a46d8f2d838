//! What an operator reads when policies are wrong, and what is let in.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeMap;

use archipelago_model::{
    admit::{self, Resources},
    document::Document,
    resource::{Resource, ResourceKey},
};

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
    assert_eq!(admit::check(&resources), Vec::<String>::new());
    let tokyo = resources.keys().find(|key| key.name == "tokyo").cloned().unwrap();
    resources.remove(&tokyo);
    assert_eq!(
        admit::check(&resources),
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
