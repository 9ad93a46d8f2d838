//! `docs/reference/policies.md` is what the types say. `UPDATE=1 cargo test -p archipelago-model --test reference` writes it anew.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use archipelago_model::admit;
use archipelago_model::document::Document;
use archipelago_model::resource::{API_VERSION, DEFAULT_NAMESPACE, Kind};
use archipelago_model::schema::{self, Pattern, Schema, Shape};

#[test]
fn the_reference_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/policies.md");
    let wanted = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is not what the types say: run this again with UPDATE=1", path.display());
}

#[test]
fn every_example_is_admitted() {
    for example in Kind::ALL.map(example).into_iter().chain([TOPOLOGY, SERVICE]) {
        let document = Document { file: "example.yaml".into(), text: example.to_owned() };
        let read = admit::validate_any(&[document]).unwrap_or_else(|problems| panic!("{problems:#?}\n{example}"));
        let count = read.resources.len() + read.services.len() + usize::from(read.topology.is_some());
        assert!(count > 0, "{example}");
    }
    for kind in Kind::ALL {
        assert!(example(kind).contains(&format!("kind: {kind}")), "{kind}");
    }
}

fn page() -> String {
    let mut page = INTRODUCTION.replace("API_VERSION", API_VERSION).replace("DEFAULT_NAMESPACE", DEFAULT_NAMESPACE);
    for kind in Kind::ALL {
        let schema = schema::of(kind);
        let place = if kind.namespaced() { "in a namespace" } else { "without a namespace" };
        let writers = if schema::spec(kind).is_some() {
            "Operators, and clusters that joined with `--policies`, as objects in their Kubernetes API."
        } else {
            "Operators."
        };
        let _ = writeln!(page, "\n## {kind}\n\n{}\n\nLives {place}. Who may write it: {writers}\n", schema.description);
        page.push_str(
            "| field | what it may be | absent | meaning | gateways need |\n| --- | --- | --- | --- | --- |\n",
        );
        let mut rules = Vec::new();
        rows(&schema, "spec", &mut page, &mut rules);
        if !rules.is_empty() {
            page.push_str("\nBeyond that:\n\n");
            page.extend(rules.iter().map(|rule| format!("- {rule}\n")));
        }
        let _ = writeln!(page, "\n```yaml\n{}```", example(kind));
    }
    page.push_str(&format!("{FILES}\n```yaml\n{TOPOLOGY}```\n{SERVICES}\n```yaml\n{SERVICE}```\n"));
    page
}

/// One row for each field below `at`.
fn rows(schema: &Schema, at: &str, page: &mut String, rules: &mut Vec<String>) {
    for rule in &schema.rules {
        rules.push(format!("`{at}`: {}", rule.message));
    }
    match &schema.shape {
        Shape::Object(fields) => {
            for field in fields {
                let path = format!("{at}.{}", field.name);
                let absent = match (field.required, field.default) {
                    (true, _) => "refused".to_owned(),
                    (false, Some("[]")) => "empty".to_owned(),
                    (false, Some(default)) => format!("`{}`", default.trim_matches('"')),
                    (false, None) => "-".to_owned(),
                };
                let feature = field.feature.map_or_else(|| "-".to_owned(), |name| format!("`{name}`"));
                let shape = shape(&field.schema.shape);
                let _ = writeln!(page, "| `{path}` | {shape} | {absent} | {} | {feature} |", field.schema.description);
                rows(&field.schema, &path, page, rules);
            }
        }
        Shape::List { items, .. } => rows(items, &format!("{at}[]"), page, rules),
        Shape::Text(_) | Shape::Boolean | Shape::Word(_) | Shape::Number { .. } | Shape::Texts(_) => {}
    }
}

fn shape(shape: &Shape) -> String {
    match shape {
        Shape::Text(pattern) => text(pattern),
        Shape::Boolean => "`true` or `false`".to_owned(),
        Shape::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or "),
        Shape::Number { min, max } => format!("whole number, {min} to {max}"),
        Shape::List { items, min, max, set } => {
            let what = match &items.shape {
                Shape::Object(_) => "objects".to_owned(),
                other => self::shape(other),
            };
            let twice = if *set { ", none twice" } else { "" };
            format!("list of {min} to {max}{twice}: {what}")
        }
        Shape::Texts(values) => format!("map; values: {}", text(values)),
        Shape::Object(_) => "object".to_owned(),
    }
}

fn text(pattern: &Pattern) -> String {
    let list = |texts: &[&str]| {
        let quoted = texts.iter().filter(|text| !text.is_empty()).take(3);
        quoted.map(|text| format!("`{}`", text.escape_debug())).collect::<Vec<_>>().join(", ")
    };
    let is_duration = pattern.regex.is_empty();
    let what = if is_duration {
        "duration".to_owned()
    } else {
        format!("text of {} to {} characters", pattern.min, pattern.max)
    };
    let not = if pattern.bad.is_empty() { String::new() } else { format!("; not {}", list(pattern.bad)) };
    format!("{what}, such as {}{not}", list(pattern.good))
}

fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => CLUSTER,
        Kind::ServiceExport => SERVICE_EXPORT,
        Kind::TrafficSplit => TRAFFIC_SPLIT,
        Kind::FailoverPolicy => FAILOVER_POLICY,
        Kind::BackendPolicy => BACKEND_POLICY,
    }
}

const INTRODUCTION: &str = "\
# Policies, field by field

What can be written with `meshctl apply -f FILE`, generated from the types that admit it (`UPDATE=1 cargo test -p archipelago-model --test reference`). A test admits
every example here.

Every document has `apiVersion: API_VERSION`, a `kind`, `metadata` and mostly a `spec`. An unknown field is refused, with its place and the nearest name that exists.

| field | what it may be |
| --- | --- |
| `metadata.name` | 1 to 63 lower-case letters, digits and dashes, not at the ends |
| `metadata.namespace` | the same; absent: `DEFAULT_NAMESPACE`; refused for kinds without a namespace |
| `metadata.annotations` | any texts, 16 KiB in all; they never change what a gateway does |

A duration is a whole number of milliseconds up to 7 days, such as `500ms`, `2s`, `1h 30m`. *Gateways need* names the feature that a gateway must have; one without it answers that
service closed, says so in `meshctl status`, and goes on with everything else ([versioning](../versioning.md)).

What needs the federation to be judged (whether a cluster exists, whether a chain leaves its residency) is refused by `apply` and `apply --dry-run`, not by `meshctl validate` alone.
";

const FILES: &str = "
## Files that are no resources

### Topology

What `meshctl up FILE` starts on one machine; resources may follow in the same file and are applied at the first start.
";

const SERVICES: &str = "
### Service

What an agent reads from its `--services` folder, where there is no Kubernetes. A `ServiceExport` beside it, without `clusters`, says that this cluster offers it.
";

const CLUSTER: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Cluster
metadata: { name: paris }
spec: { region: eu-west }
";

const SERVICE_EXPORT: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
spec: { clusters: [paris, tokyo] }
";

const TRAFFIC_SPLIT: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  sticky: { header: x-user }
  routes:
    - match: { headers: { x-preview: pr-42 }, pathPrefix: /cart, method: GET }
      backends: [{ cluster: tokyo, version: v2 }]
  backends:
    - { cluster: paris, weight: 90 }
    - { cluster: tokyo, weight: 10 }
";

const FAILOVER_POLICY: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: FailoverPolicy
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  order:
    - { clusters: [\"@local\"] }
    - { regions: [\"@same\"] }
    - { clusters: [frankfurt] }
  residency: { regions: [eu-west, eu-central] }
  failback: { after: 10s, ramp: 30s, mode: auto }
";

const BACKEND_POLICY: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: BackendPolicy
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  limits: { uploadIdle: 45s, uploadMinRate: 500, endpointIdle: 2m, streamIdle: none }
";

const TOPOLOGY: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Topology
metadata: { name: two-clusters }
spec:
  trustDomain: mesh.example
  controlPlane: { nodes: 3 }                  # 1, 3 or 5; absent: 3
  clusters:
    - name: paris
      region: eu-west
      gateways: 2                             # 1 to 16
      services:
        - name: checkout                      # demo processes: `versions` times `instances` (1 to 16) of them
          namespace: shop
          protocol: http                      # http, h2c or tcp; absent: http
          versions: [v1, v2]                  # absent: v1
          instances: 1
          port: 80
    - name: tokyo
      region: ap-northeast
      gateways: 1
      services:
        - name: checkout                      # servers of your own, one version
          namespace: shop
          port: 80
          endpoints: [\"127.0.0.1:8080\"]
          healthCheck: { http: /, host: localhost }
";

const SERVICE: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata: { name: checkout, namespace: shop }
spec:
  port: 80
  protocol: http                              # http, h2c or tcp; absent: http
  endpoints:
    - { address: \"10.0.0.7:8080\", version: v1, instance: checkout-1, zone: rack-1 }
  trafficDistribution: PreferSameZone         # absent: all endpoints are the same
  healthCheck: { http: /healthz, interval: 1s }    # or { tcp: true }, or none; absent: TCP
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
";
