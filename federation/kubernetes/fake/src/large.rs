//! A large cluster, with objects as fat as real ones: managedFields, annotations, specifications that nobody here reads.

use serde_json::{Value, json};

use crate::ApiServer;

/// Fills `api` with 100 nodes, 50 namespaces and `services` Services of `endpoints` pods each, all of them exported.
pub fn fill(api: &ApiServer, services: usize, endpoints: usize) {
    for n in 0..NODES {
        api.put(node(n));
    }
    for s in 0..services {
        let namespace = format!("team-{}", s % NAMESPACES);
        if s < NAMESPACES {
            api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        }
        api.put(service(s, &namespace));
        api.put(json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": { "namespace": namespace, "name": format!("service-{s:05}") },
        }));
        for e in 0..endpoints {
            api.put(pod(s, e, endpoints, &namespace));
        }
        api.put(slice(s, endpoints, &namespace));
    }
}

fn node(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node-{n}"), "labels": { "topology.kubernetes.io/zone": format!("zone-{}", n % 3) } },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.2.{}", n + 1) }] },
    })
}

fn service(s: usize, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "namespace": namespace, "name": format!("service-{s:05}"),
            "labels": { "app": format!("service-{s:05}") },
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(600) },
            "managedFields": managed_fields(),
        },
        "spec": {
            "clusterIP": format!("10.96.{}.{}", s / 250, s % 250 + 1), "clusterIPs": [format!("10.96.{}.{}", s / 250, s % 250 + 1)],
            "ipFamilies": ["IPv4"], "selector": { "app": format!("service-{s:05}") }, "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

fn pod(s: usize, e: usize, endpoints: usize, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": pod_name(s, e), "uid": uid(s, e),
            "labels": { "app": format!("service-{s:05}"), "app.kubernetes.io/version": "v1", "pod-template-hash": "5d8f9c7b6" },
            "annotations": { "example.com/config-hash": "y".repeat(64) },
            "managedFields": managed_fields(),
        },
        "spec": {
            "nodeName": format!("node-{}", e % NODES), "serviceAccountName": format!("account-{}", s % 100),
            "containers": [{ "name": "app", "image": "registry.example/app:v1", "env": [{ "name": "A", "value": "z".repeat(200) }] }],
        },
        "status": { "phase": "Running", "podIP": ip(s, e, endpoints), "podIPs": [{ "ip": ip(s, e, endpoints) }],
                    "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

fn slice(s: usize, endpoints: usize, namespace: &str) -> Value {
    let list = (0..endpoints).map(|e| {
        json!({
            "addresses": [ip(s, e, endpoints)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node-{}", e % NODES), "zone": format!("zone-{}", e % NODES % 3),
            "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod_name(s, e), "uid": uid(s, e) },
        })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": namespace, "name": format!("service-{s:05}-x7k2p"),
            "labels": {
                "kubernetes.io/service-name": format!("service-{s:05}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "managedFields": managed_fields(),
        },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": list.collect::<Vec<_>>(),
    })
}

fn pod_name(s: usize, e: usize) -> String {
    format!("service-{s:05}-5d8f9c7b6-{:05x}", s * 31 + e)
}

fn uid(s: usize, e: usize) -> String {
    format!("{s:08x}-0000-4000-8000-{e:012x}")
}

fn ip(s: usize, e: usize, endpoints: usize) -> String {
    let n = s * endpoints + e;
    format!("10.{}.{}.{}", 100 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

/// What the API server adds to every object, about as much of it.
fn managed_fields() -> Value {
    let fields = json!({ "f:metadata": { "f:labels": { ".": {}, "f:app": {} } }, "f:spec": { "f:ports": {}, "f:selector": {} } });
    let entry =
        |manager: &str| json!({ "manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsV1": fields });
    json!([entry("kubectl"), entry("kube-controller-manager"), entry("kubelet")])
}

const NODES: usize = 100;
const NAMESPACES: usize = 50;
