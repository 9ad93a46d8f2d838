//! What every installation keeps to: no privilege, limits everywhere, and no right that nobody uses.

mod common;

use std::collections::BTreeSet;

use archipelago_manifests::identity;
use serde_json::{Value, json};

fn pods() -> Vec<(String, Value)> {
    let pods: Vec<(String, Value)> = common::all()
        .into_iter()
        .filter_map(|(case, object)| {
            let spec = object.pointer("/spec/template/spec")?.clone();
            Some((format!("{case}: {:?}", identity(&object)), spec))
        })
        .collect();
    assert_eq!(pods.len(), 8, "three cases with agent and gateway, two with a control plane");
    pods
}

fn containers(pod: &Value) -> impl Iterator<Item = (bool, &Value)> {
    let list = |name: &str| pod.get(name).and_then(Value::as_array).into_iter().flatten();
    list("containers").map(|one| (false, one)).chain(list("initContainers").map(|one| (true, one)))
}

#[test]
fn no_container_has_a_privilege() {
    for (name, pod) in pods() {
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{name}");
        assert!(context["runAsUser"].as_u64().is_some_and(|id| id >= 10_000), "{name}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for forbidden in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert_eq!(pod.get(forbidden), None, "{name}");
        }
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().all(|volume| volume.get("hostPath").is_none()), "{name}");
        for (_, container) in containers(&pod) {
            let expected = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
            });
            assert_eq!(container["securityContext"], expected, "{name}");
        }
    }
}

#[test]
fn only_the_gateway_is_on_the_network_of_its_node_and_it_declares_no_port() {
    for (name, pod) in pods() {
        let gateway = pod["serviceAccountName"] == "archipelago-gateway";
        assert_eq!(pod.get("hostNetwork").is_some(), gateway, "{name}");
        for (_, container) in containers(&pod).filter(|_| gateway) {
            assert_eq!(container.get("ports"), None, "{name}: a declared port is a hostPort, and maxSurge would hang");
            assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet", "{name}");
        }
    }
}

#[test]
fn every_container_has_limits_probes_and_a_fixed_image() {
    for (name, pod) in pods() {
        for (init, container) in containers(&pod) {
            for pointer in ["/resources/limits/memory", "/resources/requests/memory", "/resources/requests/cpu"] {
                assert!(container.pointer(pointer).is_some(), "{name}: {pointer}");
            }
            let image = container["image"].as_str().unwrap();
            let tag = image.rsplit_once('/').map_or(image, |(_, rest)| rest);
            assert!(tag.contains(':') && !tag.ends_with(":latest"), "{name}: {image}");
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                assert_eq!(container.get(probe).is_some(), !init, "{name}: {probe}");
            }
        }
    }
}

#[test]
fn a_token_of_the_api_is_mounted_only_where_the_api_is_called() {
    for (name, pod) in pods() {
        let agent = pod["serviceAccountName"] == "archipelago-agent";
        assert_eq!(pod.get("automountServiceAccountToken"), (!agent).then_some(&Value::Bool(false)), "{name}");
    }
}

#[test]
fn selectors_select_what_they_are_for() {
    for (case, _, values) in common::cases() {
        let objects = common::rendered("ns", &values);
        let labels: Vec<&Value> =
            objects.iter().filter_map(|object| object.pointer("/spec/template/metadata/labels")).collect();
        let kinds = ["Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "DaemonSet", "StatefulSet"];
        for object in objects.iter().filter(|object| kinds.iter().any(|kind| object["kind"] == *kind)) {
            let spec = &object["spec"];
            let selector = [&spec["selector"]["matchLabels"], &spec["podSelector"]["matchLabels"], &spec["selector"]]
                .into_iter()
                .find_map(Value::as_object)
                .unwrap_or_else(|| panic!("{case}: {:?} selects nothing", identity(object)));
            // Set by the StatefulSet's controller.
            let given = |key: &&String| *key != "apps.kubernetes.io/pod-index";
            let matches = |labels: &&&Value| selector.keys().filter(given).all(|key| labels[key] == selector[key]);
            assert_eq!(labels.iter().filter(matches).count(), 1, "{case}: {:?}", identity(object));
        }
    }
}

#[test]
fn the_namespace_is_privileged_only_for_the_network_of_its_nodes() {
    for (case, object) in common::all().into_iter().filter(|(_, object)| object["kind"] == "Namespace") {
        let expected = if case == "control-plane" { "restricted" } else { "privileged" };
        assert_eq!(object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], expected, "{case}");
    }
}

/// Verbs that the agent's code uses, and for what. A right more is a right that a thief of its token has, too.
const USED: &[(&str, &str, &str, &[&str])] = &[
    // federation/kubernetes/src/discovery: what there is.
    ("", "", "services", &["list", "watch"]),
    ("", "", "pods", &["list", "watch"]),
    ("", "", "namespaces", &["list", "watch"]),
    ("", "", "nodes", &["list", "watch"]),
    ("", "discovery.k8s.io", "endpointslices", &["list", "watch"]),
    ("", "multicluster.x-k8s.io", "serviceexports", &["list", "watch"]),
    ("", "multicluster.x-k8s.io", "serviceimports", &["list", "watch"]),
    // federation/kubernetes/src/mcs: what is made of the exports of others.
    ("", "multicluster.x-k8s.io", "serviceimports", &["create", "patch", "delete"]),
    ("", "multicluster.x-k8s.io", "serviceimports/status", &["patch"]),
    ("", "multicluster.x-k8s.io", "serviceexports/status", &["patch"]),
    ("", "", "services", &["create", "patch", "delete"]),
    ("", "discovery.k8s.io", "endpointslices", &["create", "patch", "delete"]),
    ("", "about.k8s.io", "clusterproperties", &["create", "patch"]),
    // federation/kubernetes/src/policy: policies that users wrote.
    ("", "archipelago.dev", "trafficsplits", &["list", "watch"]),
    ("", "archipelago.dev", "failoverpolicies", &["list", "watch"]),
    ("", "archipelago.dev", "trafficsplits/status", &["patch"]),
    ("", "archipelago.dev", "failoverpolicies/status", &["patch"]),
    // Gateways that join.
    ("", "authentication.k8s.io", "tokenreviews", &["create"]),
    // In its own namespace: who leads, and the credential that the replicas share.
    ("archipelago-system", "coordination.k8s.io", "leases", &["create"]),
    ("archipelago-system", "coordination.k8s.io", "leases/archipelago-agent", &["get", "update"]),
    ("archipelago-system", "", "secrets/archipelago-agent-identity", &["get", "patch"]),
];

#[test]
fn every_right_is_used_and_no_right_is_missing() {
    let (_, namespace, values) = common::cases().into_iter().next().unwrap();
    let mut granted = BTreeSet::new();
    for object in common::rendered(namespace, &values) {
        let scope = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
        for rule in object.get("rules").and_then(Value::as_array).into_iter().flatten() {
            let texts = |name: &str| -> Vec<String> {
                let list = rule.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
                list.iter().map(|one| one.as_str().unwrap().to_owned()).collect()
            };
            let names = texts("resourceNames");
            for (group, resource) in texts("apiGroups")
                .iter()
                .flat_map(|group| texts("resources").into_iter().map(move |one| (group.clone(), one)))
            {
                let named: Vec<String> = match &names[..] {
                    [] => vec![resource],
                    names => names.iter().map(|name| format!("{resource}/{name}")).collect(),
                };
                for (resource, verb) in
                    named.iter().flat_map(|one| texts("verbs").into_iter().map(move |verb| (one.clone(), verb)))
                {
                    assert!(granted.insert((scope.clone(), group.clone(), resource, verb)), "granted twice");
                }
            }
        }
    }
    let used: BTreeSet<_> = USED
        .iter()
        .flat_map(|(scope, group, resource, verbs)| {
            verbs
                .iter()
                .map(|verb| ((*scope).to_owned(), (*group).to_owned(), (*resource).to_owned(), (*verb).to_owned()))
        })
        .collect();
    assert_eq!(granted, used);
}

#[test]
fn only_the_agent_has_rights() {
    for (case, object) in common::all().into_iter().filter(|(_, object)| object.get("subjects").is_some()) {
        let subjects = object["subjects"].as_array().unwrap();
        assert!(
            subjects.iter().all(|subject| subject["name"] == "archipelago-agent"),
            "{case}: {:?}",
            identity(&object)
        );
    }
}
