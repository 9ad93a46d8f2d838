//! Files that are checked in beside the chart are those that it makes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use archipelago_manifests::{NAMESPACE, Release, crds, render, to_yaml};
use serde_json::{Value, json};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// `UPDATE=1 cargo test -p archipelago-manifests` writes it.
#[test]
fn the_kustomize_base_is_what_the_chart_makes() {
    // An overlay says what cluster it is: see kustomize/example.
    let values = json!({
        "createNamespace": true,
        "join": { "cluster": "CLUSTER", "trustDomain": "TRUST-DOMAIN", "caSha256": "CA", "controlPlane": ["CONTROL-PLANE:7400"] },
    });
    let objects = render(&values, &Release { namespace: NAMESPACE }).unwrap();
    let text = format!(
        "# Made from ../../chart by `UPDATE=1 cargo test -p archipelago-manifests`; not to be edited.\n{}",
        to_yaml(&objects).unwrap()
    );
    let path = here("kustomize/base/archipelago.yaml");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == text, "{} is stale: UPDATE=1 cargo test -p archipelago-manifests writes it anew", path.display());
}

#[test]
fn the_definitions_of_kinds_are_whole_and_helm_installs_the_same() {
    let names = std::fs::read_dir(here("crds")).unwrap().map(|entry| entry.unwrap().path());
    let files = names.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).count();
    let (kinds, rest): (Vec<_>, Vec<_>) =
        crds().into_iter().partition(|object| object["kind"] == "CustomResourceDefinition");
    assert_eq!(kinds.len(), files - 1, "one definition per file, but for the policy's");
    assert_eq!(rest.len(), 2, "the policy and its binding");
    assert_eq!(std::fs::read_link(here("chart/crds")).unwrap(), Path::new("../crds"));
}

/// One that the policy forgot, or whose label it does not find, could be replaced by an older one.
#[test]
fn the_policy_on_older_kinds_knows_every_kind_that_says_its_version() {
    let objects = crds();
    let policy = objects.iter().find(|object| object["kind"] == "ValidatingAdmissionPolicy").unwrap();
    let text = policy["spec"]["variables"].to_string();
    let mut named: Vec<_> = policy["spec"]["matchConstraints"]["resourceRules"][0]["resourceNames"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    named.sort_unstable();
    let mut versioned = Vec::new();
    for kind in objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        let labels = kind["metadata"]["labels"].as_object();
        let versions: Vec<_> = labels
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.contains("revision") || name.contains("version"))
            .collect();
        for (label, _) in &versions {
            assert!(text.contains(label.as_str()), "the policy does not look at {label}");
        }
        if !versions.is_empty() {
            versioned.push(kind["metadata"]["name"].as_str().unwrap());
        }
    }
    versioned.sort_unstable();
    assert_eq!(named, versioned);
}

#[test]
fn what_is_missing_is_said_with_the_command_that_gives_it() {
    let error = |values| render(&values, &Release { namespace: "n" }).unwrap_err().to_string();
    assert!(error(json!({})).contains("meshctl cluster join"));
    assert!(error(json!({ "join": { "cluster": "paris" } })).contains("join.trustDomain is missing"));
    let join = json!({ "cluster": "paris", "trustDomain": "t", "caSha256": "c" });
    assert!(error(json!({ "join": join, "coredns": { "manage": true } })).contains("dns.clusterIP"));
}

/// A value stays a text, whatever is in it.
#[test]
fn no_value_breaks_out_of_its_place() {
    let hostile = "x\n  evil: \"1\" # {{ .Values }} 'y'";
    let join = json!({ "cluster": hostile, "trustDomain": hostile, "caSha256": hostile, "controlPlane": [hostile], "token": hostile });
    let values = json!({ "join": join, "clusterDomain": hostile, "gateway": { "capturePorts": hostile }, "log": { "filter": hostile } });
    let objects = render(&values, &Release { namespace: "n" }).unwrap();
    let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let container = &find("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"][0], format!("--cluster={hostile}"));
    assert_eq!(container["env"].as_array().unwrap().last().unwrap()["value"], hostile);
    assert_eq!(
        find("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"][3],
        format!("--control-plane={hostile}")
    );
}

/// What a collector needs reaches the gateways, and nothing that no gateway reads.
#[test]
fn the_variables_of_traces_reach_the_gateways() {
    let join = json!({ "cluster": "paris", "trustDomain": "t", "caSha256": "c", "controlPlane": ["a:1"] });
    let rendered = |gateway: Value| {
        let values = json!({ "join": join, "gateway": gateway });
        let objects = render(&values, &Release { namespace: "n" })?;
        let set = objects.into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
        Ok::<_, archipelago_manifests::RenderError>(set["spec"]["template"]["spec"]["containers"][0].clone())
    };
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    let endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    let container = rendered(json!({ "otel": [endpoint], "otelSecret": "headers" })).unwrap();
    assert!(container["env"].as_array().unwrap().contains(&endpoint), "{container}");
    assert_eq!(container["envFrom"], json!([{ "secretRef": { "name": "headers" } }]));
    assert!(rendered(json!({})).unwrap().get("envFrom").is_none());
    let refused = rendered(json!({ "otel": [variable("OTEL_ENDPOINT", "x")] })).unwrap_err().to_string();
    assert!(refused.contains("gateway.otel[0].name"), "{refused}");

    let schema: Value = serde_json::from_str(&fs::read_to_string(here("chart/values.schema.json")).unwrap()).unwrap();
    let names = &schema["properties"]["gateway"]["properties"]["otel"]["items"]["properties"]["name"]["enum"];
    let page = fs::read_to_string(here("../../docs/tracing.md")).unwrap();
    for name in names.as_array().unwrap().iter().filter_map(Value::as_str) {
        let named = page.contains(name) || name.strip_suffix("_ARG").is_some_and(|of| page.contains(of));
        assert!(named, "{name} is not in docs/tracing.md");
    }
}
