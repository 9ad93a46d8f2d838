//! The controller against a real API server, which validates, allocates addresses and merges field by field.
//!
//! `MESH_TEST_KUBECONFIG=FILE cargo test -p archipelago-kubernetes --test real_api_server`: a cluster that may be written to,
//! with the definitions of `topologies/kubernetes/crds`. Without it there is nothing to test, and that is said.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::{collections::BTreeMap, env, path::PathBuf, sync::Arc, time::Duration};

use archipelago_base::shutdown::Shutdown;
use archipelago_kubernetes::{
    client,
    crd::{ImportType, ServiceExport, ServiceImport, Status},
    mcs::{self, Feeds, Setup, Wires},
    policy,
    types::{Key, Kind, Service},
    watch::{Feed, Index, Selection, follow},
};
use archipelago_model::{id::ServiceKey, selector};
use archipelago_proto::v1::{ExportFacts, Exporter, Import, PolicyStatus, Protocol, ReportedPort, UncarriedPort};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

async fn send(client: &Client, method: &str, path: &str, body: &Value) {
    let kind = if method == "PATCH" { "application/apply-patch+yaml" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(body.to_string().into_bytes()).unwrap();
    if let Err(failure) = client::fetch(client, request).await {
        assert!(failure.is_not_found() || failure.is_conflict(), "{method} {path}: {failure}");
    }
}

async fn until<K: Kind + std::fmt::Debug>(
    feed: &Feed<K>,
    what: &str,
    wanted: impl FnMut(&Index<K>) -> bool,
) -> Index<K> {
    let mut index = feed.index();
    let found = timeout(Duration::from_secs(60), index.wait_for(wanted)).await;
    found.unwrap_or_else(|_| panic!("in vain: {what}; there is {:?}", feed.now().objects)).unwrap().clone()
}

#[tokio::test]
async fn a_real_api_server_takes_everything_that_is_written() {
    let Some(kubeconfig) = env::var_os("MESH_TEST_KUBECONFIG").map(PathBuf::from) else {
        eprintln!("SKIPPED: set MESH_TEST_KUBECONFIG to the kubeconfig of a cluster that may be written to");
        return;
    };
    let client = client::new(client::kubeconfig(&kubeconfig).await.unwrap()).unwrap();
    let (_running, shutdown) = Shutdown::manual();
    fn feed<K: Kind>(client: &Client, shutdown: &Shutdown) -> Feed<K> {
        follow(client.clone(), Selection::default(), shutdown.clone())
    }
    let namespace = format!("archipelago-test-{}", std::process::id());
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": namespace } });
    send(&client, "POST", "/api/v1/nodes", &node).await;
    let addresses = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] } });
    let node =
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": namespace }, "status": addresses["status"] });
    send(&client, "PATCH", &format!("/api/v1/nodes/{namespace}/status?fieldManager=test"), &node).await;
    send(&client, "POST", "/api/v1/namespaces", &json!({ "metadata": { "name": namespace } })).await;
    let base = format!("/api/v1/namespaces/{namespace}");
    send(
        &client,
        "POST",
        &format!("{base}/serviceaccounts"),
        &json!({ "metadata": { "name": "archipelago-gateway" } }),
    )
    .await;
    let pod = json!({
        "metadata": { "name": "gateway" },
        "spec": {
            "nodeName": namespace, "serviceAccountName": "archipelago-gateway", "hostNetwork": true,
            "containers": [{ "name": "gateway", "image": "none" }],
        },
    });
    send(&client, "POST", &format!("{base}/pods"), &pod).await;
    let ready = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "gateway" },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    send(&client, "PATCH", &format!("{base}/pods/gateway/status?fieldManager=test"), &ready).await;
    let service = json!({
        "metadata": { "name": "checkout" },
        "spec": { "ports": [{ "name": "tcp", "port": 42 }, { "name": "udp", "port": 42, "protocol": "UDP" }] },
    });
    send(&client, "POST", &format!("{base}/services"), &service).await;
    let mcs_base = format!("/apis/multicluster.x-k8s.io/v1beta1/namespaces/{namespace}");
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": { "name": "checkout" },
    });
    send(&client, "POST", &format!("{mcs_base}/serviceexports"), &export).await;
    let split = json!({
        "apiVersion": "archipelago.dev/v1alpha1", "kind": "TrafficSplit", "metadata": { "name": "checkout" },
        "spec": { "service": "checkout", "backends": [{ "cluster": "paris" }] },
    });
    send(&client, "POST", &format!("/apis/archipelago.dev/v1alpha1/namespaces/{namespace}/trafficsplits"), &split)
        .await;

    let feeds = Feeds {
        namespaces: feed(&client, &shutdown),
        nodes: feed(&client, &shutdown),
        pods: feed(&client, &shutdown),
        services: feed(&client, &shutdown),
        slices: feed(&client, &shutdown),
        exports: feed(&client, &shutdown),
        service_imports: feed(&client, &shutdown),
    };
    let setup = Setup {
        cluster: "paris".into(),
        trust_domain: "archipelago.test".into(),
        namespace: namespace.clone(),
        capture_ports: 17_000..=24_999,
    };
    let facts = ExportFacts {
        session_affinity: "ClientIP".into(),
        session_affinity_seconds: Some(10),
        internal_traffic_policy: "Cluster".into(),
        labels: BTreeMap::from([("tier".to_owned(), "front".to_owned())]),
        uncarried_ports: vec![UncarriedPort {
            name: "udp".into(),
            port: 42,
            transport: "UDP".into(),
            app_protocol: String::new(),
        }],
        ..ExportFacts::default()
    };
    let port =
        ReportedPort { name: "tcp".into(), port: 42, protocol: Protocol::Tcp.into(), app_protocol: String::new() };
    let exporter = Exporter { cluster: "paris".into(), ports: vec![port], facts: Some(facts), ..Exporter::default() };
    let import = Import { namespace: namespace.clone(), name: "checkout".into(), exporters: vec![exporter] };
    let key = ServiceKey::new(&*namespace, "checkout");
    let (imports, said) = watch::channel(Some(Arc::new(BTreeMap::from([(key, import)]))));
    let (_leading, leads) = watch::channel(Some(1));
    let (captures, mut captured) = watch::channel(Arc::default());
    let wires = Wires { imports: said, leading: leads.clone(), captures };
    tokio::spawn(mcs::run(client.clone(), feeds.clone(), setup, wires, shutdown.clone()));

    let at = Key::new(&*namespace, "checkout");
    let is_ready =
        |import: &ServiceImport| import.status.conditions.iter().any(|condition| condition.status == Status::True);
    let found = until(&feeds.service_imports, "an import that is ready", |index: &Index<ServiceImport>| {
        index.objects.get(&at).is_some_and(|import| is_ready(import))
    });
    let found = found.await.objects.get(&at).unwrap().clone();
    assert_eq!((found.spec.r#type, found.spec.ports.len()), (ImportType::ClusterSetIP, 2));
    assert_eq!(found.spec.ips.len(), found.spec.ip_families.len());
    assert_eq!(found.labels.get("tier").map(String::as_str), Some("front"));
    let valid = |export: &ServiceExport| export.conditions.iter().filter(|it| it.status == Status::True).count() == 2;
    until(&feeds.exports, "an export that is valid and ready", |index| {
        index.objects.get(&at).is_some_and(|export| valid(export))
    })
    .await;
    let captures = timeout(Duration::from_secs(60), captured.wait_for(|captures| !captures.captures.is_empty())).await;
    assert_eq!(captures.unwrap().unwrap().captures[0].cluster_ips, found.spec.ips);

    // Cluster selectors have a condition of a type of ours, for as long as there are any.
    let selecting = |selectors: Option<&str>| {
        let annotations: BTreeMap<&str, &str> =
            selectors.map(|text| (selector::ANNOTATION, text)).into_iter().collect();
        json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": { "name": "checkout", "annotations": annotations },
        })
    };
    for (selectors, said) in [(Some("[]"), Some(Status::True)), (Some("?"), Some(Status::False)), (None, None)] {
        let path = format!("{mcs_base}/serviceexports/checkout?fieldManager=test&force=true");
        send(&client, "PATCH", &path, &selecting(selectors)).await;
        until(&feeds.exports, "what is said of cluster selectors", |index| {
            let conditions = index.objects.get(&at).map(|export| export.conditions.as_slice()).unwrap_or_default();
            let found = conditions.iter().find(|it| it.r#type == "archipelago.dev/ClusterSelectors");
            conditions.iter().any(|it| it.r#type == "Valid") && found.map(|it| it.status) == said
        })
        .await;
    }

    // Somebody deletes the Service that stands for it: another object, and the same address.
    let derived = |index: &Index<Service>| {
        let ours = index.objects.iter().find(|(key, service)| {
            *key.namespace == *namespace && service.imported_name.is_some() && !service.cluster_ips.is_empty()
        });
        ours.map(|(key, service)| (key.clone(), service.clone()))
    };
    let (key, before) = derived(&feeds.services.now()).unwrap();
    send(&client, "DELETE", &format!("{base}/services/{}", key.name), &json!({})).await;
    let again = until(&feeds.services, "another Service", |index| {
        derived(index).is_some_and(|(_, service)| service.uid != before.uid)
    });
    assert_eq!(derived(&again.await).unwrap().1.cluster_ips, before.cluster_ips);

    let splits = feed(&client, &shutdown);
    let policy_feeds = policy::Feeds { splits, failovers: feed(&client, &shutdown) };
    let status = PolicyStatus {
        kind: "TrafficSplit".into(),
        namespace: namespace.clone(),
        name: "checkout".into(),
        generation: 1,
        reason: "Accepted".into(),
        revision: 3,
        gateways_programmed: 1,
        gateways_expected: 2,
        ..PolicyStatus::default()
    };
    let (policies, _listed) = watch::channel(None);
    let (_statuses, said) = watch::channel(Arc::new(vec![status]));
    let wires = policy::Wires { policies, statuses: said, leading: leads };
    tokio::spawn(policy::run(client.clone(), policy_feeds.clone(), wires, shutdown.clone()));
    until(&policy_feeds.splits, "a status", |index| {
        index.objects.get(&at).is_some_and(|split| split.0.status.gateways == "1/2")
    })
    .await;

    // What is no longer exported is gone, by our own hand: nothing here collects garbage.
    imports.send_replace(Some(Arc::default()));
    until(&feeds.services, "no derived Service", |index: &Index<Service>| {
        index.objects.iter().all(|(key, service)| *key.namespace != *namespace || service.imported_name.is_none())
    })
    .await;
    until(&feeds.service_imports, "no import", |index| !index.objects.contains_key(&at)).await;
    for path in [format!("/api/v1/nodes/{namespace}"), format!("/api/v1/namespaces/{namespace}")] {
        send(&client, "DELETE", &path, &json!({})).await;
    }
}
