//! The controller of the Multi-Cluster Services API against an API server that does what API servers do.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_agent::provider::Imports;
use archipelago_base::shutdown::{Shutdown, ShutdownTrigger};
use archipelago_kubernetes::{
    client,
    mcs::{self, Feeds, Setup, Wires},
    types::Kind,
    watch::{Feed, Selection, follow},
};
use archipelago_kubernetes_fake::{ApiServer, Fault};
use archipelago_model::id::ServiceKey;
use archipelago_proto::v1::{Captures, ExportFacts, Exporter, Import, Protocol, ReportedPort};
use serde_json::{Value, json};
use tokio::sync::watch;

/// An agent: what it is told, and what it publishes.
struct Replica {
    leading: watch::Sender<Option<u64>>,
    imports: watch::Sender<Option<Arc<Imports>>>,
    captures: watch::Receiver<Arc<Captures>>,
    _running: ShutdownTrigger,
}

impl Replica {
    fn start(api: &ApiServer) -> Self {
        let (running, shutdown) = Shutdown::manual();
        let client = client::new(kube::Config::new(api.url().parse().unwrap())).unwrap();
        fn feed<K: Kind>(client: &kube::Client, shutdown: &Shutdown) -> Feed<K> {
            follow(client.clone(), Selection::default(), shutdown.clone())
        }
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
            namespace: "archipelago-system".into(),
            capture_ports: 17_000..=24_999,
        };
        let (leading, leads) = watch::channel(None);
        let (imports, said) = watch::channel(None);
        let (captures, captured) = watch::channel(Arc::default());
        let wires = Wires { imports: said, leading: leads, captures };
        tokio::spawn(mcs::run(client, feeds, setup, wires, shutdown));
        Self { leading, imports, captures: captured, _running: running }
    }

    fn lead(&self, term: u64) {
        self.leading.send_replace(Some(term));
    }

    /// What it was told before stays, as in an agent.
    fn follow(&self) {
        self.leading.send_replace(None);
    }

    async fn until_captured(&self, count: usize) -> Arc<Captures> {
        let mut captures = self.captures.clone();
        let found = captures.wait_for(|captures| captures.captures.len() == count);
        tokio::time::timeout(Duration::from_secs(60), found).await.expect("captures in time").unwrap().clone()
    }

    fn import(&self, names: impl IntoIterator<Item = String>) {
        let imports = names.into_iter().map(|name| {
            let port = ReportedPort {
                name: "http".into(),
                port: 80,
                protocol: Protocol::Http1.into(),
                ..ReportedPort::default()
            };
            let exporter = Exporter {
                cluster: "tokyo".into(),
                ports: vec![port],
                facts: Some(ExportFacts::default()),
                ..Exporter::default()
            };
            (ServiceKey::new("shop", &*name), Import { namespace: "shop".into(), name, exporters: vec![exporter] })
        });
        self.imports.send_replace(Some(Arc::new(imports.collect())));
    }
}

/// A cluster of one node with a gateway, and the namespace `shop`.
async fn cluster() -> Arc<ApiServer> {
    let api = Arc::new(ApiServer::start().await);
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-a" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] },
    }));
    api.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "archipelago-system", "name": "gateway" },
        "spec": { "nodeName": "node-a", "serviceAccountName": "archipelago-gateway", "hostNetwork": true },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
    }));
    tokio::spawn(allocate(Arc::downgrade(&api)));
    api
}

/// Gives Services their addresses, as an API server does.
async fn allocate(api: std::sync::Weak<ApiServer>) {
    let mut next = 1;
    while let Some(api) = api.upgrade() {
        for service in api.all("Service") {
            let (namespace, name) = (text(&service, "namespace"), text(&service, "name"));
            if service["spec"].get("clusterIPs").is_none() {
                let address = format!("10.96.{}.{}", next / 250, next % 250 + 1);
                next += 1;
                api.edit("Service", &namespace, &name, |service| {
                    service["spec"]["clusterIP"] = json!(address);
                    service["spec"]["clusterIPs"] = json!([address]);
                    service["spec"]["ipFamilies"] = json!(["IPv4"]);
                });
            }
        }
        drop(api);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}

/// And that is said of the object as it is now: its addresses are a change, after which it is said once more.
fn is_ready(import: &Value) -> bool {
    let ready = &import["status"]["conditions"][0];
    ready["status"] == "True" && ready["observedGeneration"] == import["metadata"]["generation"]
}

/// All imports are there and ready, and as many slices.
async fn until_ready(api: &ApiServer, count: usize) {
    let ready = |api: &ApiServer| {
        let imports = api.all("ServiceImport");
        let all = imports.len() == count && imports.iter().all(is_ready) && api.all("EndpointSlice").len() == count;
        all.then_some(())
    };
    api.wait(&format!("{count} imports"), ready).await;
}

fn writes(api: &ApiServer) -> usize {
    api.seen().iter().filter(|seen| seen.method != "GET").count()
}

#[tokio::test]
async fn imports_come_and_go_through_conflicts_and_broken_answers() {
    let api = cluster().await;
    for fault in [Fault::status(409), Fault::status(500), Fault::drop(), Fault::busy(1)] {
        api.fault(fault.method("PATCH").times(2));
    }
    let replica = Replica::start(&api);
    replica.lead(1);
    replica.import((0..20).map(|index| format!("s{index}")));
    until_ready(&api, 20).await;
    replica.until_captured(20).await;
    replica.import([]);
    let gone = |api: &ApiServer| {
        let left = ["ServiceImport", "Service", "EndpointSlice"].iter().map(|kind| api.all(kind).len()).sum::<usize>();
        (left == 0).then_some(())
    };
    api.wait("nothing", gone).await;
}

#[tokio::test]
async fn a_service_whose_addresses_are_taken_gets_others() {
    let api = cluster().await;
    let replica = Replica::start(&api);
    replica.lead(1);
    replica.import(["checkout".to_owned()]);
    until_ready(&api, 1).await;
    let service = || api.all("Service").first().cloned();
    let (name, before) = (text(&service().unwrap(), "name"), service().unwrap()["spec"]["clusterIPs"].clone());
    let again = |api: &ApiServer| {
        let (service, import) = (api.get("Service", "shop", &name)?, api.get("ServiceImport", "shop", "checkout")?);
        let addresses = service["spec"].get("clusterIPs")?;
        (is_ready(&import) && import["spec"]["ips"] == *addresses).then(|| addresses.clone())
    };
    api.remove("Service", "shop", &name);
    assert_eq!(api.wait("the Service with its addresses", again).await, before);
    // What an API server says of an address that somebody else has by now.
    api.fault(Fault::status(422).method("PATCH").on("/services/").times(1));
    api.remove("Service", "shop", &name);
    let moved = |api: &ApiServer| again(api).filter(|addresses| *addresses != before);
    api.wait("the Service with others", moved).await;
}

#[tokio::test]
async fn a_replica_that_does_not_lead_writes_nothing_and_knows_the_captures_all_the_same() {
    let api = cluster().await;
    let (leader, follower) = (Replica::start(&api), Replica::start(&api));
    leader.lead(1);
    leader.import(["checkout".to_owned()]);
    until_ready(&api, 1).await;
    let known = follower.until_captured(1).await;
    let slice = &api.all("EndpointSlice")[0];
    assert_eq!(u64::from(known.captures[0].listen), slice["ports"][0]["port"].as_u64().unwrap());
}

#[tokio::test]
async fn the_next_leader_goes_on_where_the_last_one_stopped() {
    let api = cluster().await;
    let (old, new) = (Replica::start(&api), Replica::start(&api));
    old.lead(1);
    old.import(["kept".to_owned()]);
    until_ready(&api, 1).await;
    let before = api.all("EndpointSlice")[0]["ports"].clone();
    // The old one loses its lease in the middle of many.
    old.import((0..60).map(|index| format!("s{index}")).chain(["kept".to_owned()]));
    api.wait("some", |api| (api.all("ServiceImport").len() > 10).then_some(())).await;
    old.follow();
    new.lead(2);
    new.import((0..60).map(|index| format!("s{index}")).chain(["kept".to_owned()]));
    until_ready(&api, 61).await;
    let kept = api.all("EndpointSlice").into_iter().find(|slice| text(slice, "name").contains("-kept-")).unwrap();
    assert_eq!(kept["ports"], before);
    let ports: std::collections::BTreeSet<u64> =
        api.all("EndpointSlice").iter().map(|slice| slice["ports"][0]["port"].as_u64().unwrap()).collect();
    assert_eq!(ports.len(), 61, "no port twice");
    // And once it is done, it is done: nothing is written without a reason.
    let quiet = writes(&api);
    api.edit("Pod", "archipelago-system", "gateway", |pod| pod["metadata"]["labels"] = json!({ "a": "b" }));
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "another" } }));
    api.edit("Pod", "archipelago-system", "gateway", |pod| {
        pod["status"]["conditions"][0]["status"] = json!("False");
    });
    let unready = |api: &ApiServer| {
        let slices = api.all("EndpointSlice");
        slices.iter().all(|slice| slice["endpoints"][0]["conditions"]["ready"] == false).then_some(())
    };
    api.wait("slices that follow the gateway", unready).await;
    let since: Vec<String> =
        api.seen().into_iter().filter(|seen| seen.method != "GET").skip(quiet).map(|seen| seen.uri).collect();
    let mut each = since.clone();
    each.sort();
    each.dedup();
    assert!(each.len() == 61 && since.len() == 61, "each slice once: {since:#?}");
}

#[tokio::test]
async fn a_leader_of_old_deletes_nothing_that_came_since() {
    let api = cluster().await;
    let (old, other) = (Replica::start(&api), Replica::start(&api));
    old.lead(1);
    old.import(["first".to_owned()]);
    until_ready(&api, 1).await;
    old.follow();
    other.lead(2);
    other.import(["first".to_owned(), "second".to_owned()]);
    until_ready(&api, 2).await;
    other.follow();
    let quiet = writes(&api);
    // It leads again, and has not heard from the control plane yet; what it does first shows in the properties of the cluster.
    old.lead(3);
    api.wait("its first writes", |api| (writes(api) >= quiet + 2).then_some(())).await;
    api.edit("Pod", "archipelago-system", "gateway", |pod| {
        pod["status"]["conditions"][0]["status"] = json!("False");
    });
    let unready = |api: &ApiServer| {
        let slices = api.all("EndpointSlice");
        slices.iter().all(|slice| slice["endpoints"][0]["conditions"]["ready"] == false).then_some(())
    };
    api.wait("slices that follow the gateway", unready).await;
    assert!(api.seen().iter().all(|seen| seen.method != "DELETE"), "nothing is gone");
    old.import(["second".to_owned()]);
    api.wait("what is no longer exported to go", |api| (api.all("ServiceImport").len() == 1).then_some(())).await;
}

#[tokio::test]
async fn a_namespace_that_goes_in_the_middle_holds_nothing_else_up() {
    let api = cluster().await;
    let replica = Replica::start(&api);
    replica.lead(1);
    // What an API server says to every write into a namespace that is going.
    api.fault(Fault::status(403).method("PATCH").on("/namespaces/shop/"));
    replica.import(["checkout".to_owned()]);
    api.wait("a refusal", |api| (writes(api) > 0).then_some(())).await;
    api.put(json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": { "namespace": "other", "name": "web", "generation": 1 },
    }));
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "other" } }));
    let said = |api: &ApiServer| {
        let export = api.get("ServiceExport", "other", "web")?;
        (export["status"]["conditions"][0]["reason"] == "NoService").then_some(())
    };
    api.wait("the other's condition", said).await;
    api.edit("Namespace", "", "shop", |namespace| {
        namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    api.remove("Namespace", "", "shop");
    api.heal();
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    until_ready(&api, 1).await;
}

/// What a large federation costs at its start; the figure is printed.
#[tokio::test]
async fn many_imports_are_written_once_each() {
    let api = cluster().await;
    let replica = Replica::start(&api);
    replica.lead(1);
    let began = Instant::now();
    replica.import((0..IMPORTS).map(|index| format!("s{index}")));
    until_ready(&api, IMPORTS).await;
    let (took, writes) = (began.elapsed(), writes(&api));
    println!("{IMPORTS} imports: {took:?}, {writes} writes");
    // The import, its Service, its addresses, its slice, and its status, which may come in three steps: without addresses, with
    // them, and once more when the object says that they were a change. And two properties of the cluster.
    assert!(writes <= 7 * IMPORTS + 2, "{writes}");
}

/// Unoptimised, on a machine that tests share; by hand try 2,000.
const IMPORTS: usize = 300;
