//! The whole provider, from the API server to the link that the rest of the agent hears.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says by panicking that it failed")]

use std::{sync::Arc, time::Duration};

use archipelago_agent::{
    catalog::{self, Catalog, Check},
    provider::{Link, Nodes, Provider},
};
use archipelago_base::shutdown::{Shutdown, ShutdownTrigger};
use archipelago_kubernetes::Kubernetes;
use archipelago_kubernetes_fake::{ApiServer, Fault};
use archipelago_model::id::ServiceKey;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

struct Agent {
    catalog: watch::Receiver<Arc<Catalog>>,
    workloads: watch::Receiver<Nodes>,
    leading: watch::Receiver<Option<u64>>,
    running: ShutdownTrigger,
    task: JoinHandle<()>,
}

impl Agent {
    fn new(api: &ApiServer, restored: Catalog) -> Self {
        let config = kube::Config::new(api.url().parse().unwrap());
        let provider = Kubernetes::new(config, "system".into(), "agent-0".into(), 17_000..=17_999);
        let (catalog, catalogs) = watch::channel(Arc::new(restored));
        let (workloads, lists) = watch::channel(Nodes::default());
        let (leading, leads) = watch::channel(None);
        let link = Link {
            cluster: "paris".into(),
            trust_domain: "test".into(),
            catalog,
            captures: watch::Sender::new(Arc::default()),
            workloads,
            policies: watch::Sender::new(None),
            leading,
            imports: watch::channel(None).1,
            statuses: watch::channel(Arc::default()).1,
            reviews: mpsc::channel(1).1,
        };
        let (running, shutdown) = Shutdown::manual();
        let task = tokio::spawn(provider.follow(link, shutdown));
        Self { catalog: catalogs, workloads: lists, leading: leads, running, task }
    }

    async fn until(&mut self, what: &str, wanted: impl FnMut(&Arc<Catalog>) -> bool) -> Arc<Catalog> {
        let found = timeout(Duration::from_secs(60), self.catalog.wait_for(wanted)).await;
        found.unwrap_or_else(|_| panic!("in vain: {what}")).unwrap().clone()
    }

    async fn stop(self) {
        self.running.request();
        timeout(Duration::from_secs(10), self.task).await.expect("it ends").unwrap();
    }
}

fn web() -> ServiceKey {
    ServiceKey::new("shop", "web")
}

fn put_web(api: &ApiServer) {
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": "web" },
        "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{ "name": "http", "port": 80 }] },
    }));
    api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": "web-x", "uid": "u1", "labels": { "version": "v1" } },
        "spec": { "nodeName": "n1", "serviceAccountName": "shopper" },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] },
    }));
    api.put(slice(true));
}

fn slice(ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "shop", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": [{
            "addresses": ["10.0.0.1"], "conditions": { "ready": ready, "serving": ready },
            "targetRef": { "kind": "Pod", "name": "web-x" },
        }],
    })
}

fn export(api: &ApiServer) {
    api.put(json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": { "namespace": "shop", "name": "web" },
    }));
}

#[tokio::test]
async fn what_is_exported_is_offered_and_pods_have_names() {
    let api = ApiServer::start().await;
    put_web(&api);
    let mut agent = Agent::new(&api, Catalog::default());
    let catalog = agent.until("the first look", |catalog| catalog.read).await;
    assert!(catalog.services.is_empty(), "nothing is exported yet");
    export(&api);
    let catalog = agent.until("the export", |catalog| catalog.services.contains_key(&web())).await;
    let port = &catalog.services[&web()].ports[0];
    assert_eq!((port.port, port.endpoints[0].address.to_string()), (80, "10.0.0.1:8080".to_owned()));
    assert_eq!((&*port.endpoints[0].version, port.endpoints[0].ready), ("v1", true));

    api.put(slice(false));
    agent.until("not ready", |catalog| !catalog.services[&web()].ports[0].endpoints[0].ready).await;
    let lists = timeout(Duration::from_secs(60), agent.workloads.wait_for(|lists| lists.contains_key("n1")));
    let list = lists.await.unwrap().unwrap()["n1"].clone();
    assert!(list.fresh);
    let (ip, who) = list.known().next().unwrap();
    assert_eq!((ip.to_string().as_str(), &*who.service_account), ("10.0.0.1", "shopper"));

    timeout(Duration::from_secs(60), agent.leading.wait_for(Option::is_some)).await.unwrap().unwrap();
    api.remove("ServiceExport", "shop", "web");
    agent.until("the export is gone", |catalog| catalog.services.is_empty()).await;
    agent.stop().await;
    let lease = api.get("Lease", "system", "archipelago-agent").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "", "given back at the end");
}

#[tokio::test]
async fn an_agent_that_starts_while_the_api_server_is_away_keeps_what_it_knew() {
    let api = ApiServer::start().await;
    put_web(&api);
    export(&api);
    api.stop();
    let old = catalog::Service {
        ports: Vec::new(),
        exported: true,
        check: Check::Provider,
        origin: String::new(),
        export: None,
    };
    let gone = ServiceKey::new("shop", "gone-meanwhile");
    let restored = Catalog { services: [(gone.clone(), Arc::new(old))].into_iter().collect(), read: false };
    let mut agent = Agent::new(&api, restored.clone());

    // It is there again, and everything can be read but one kind: half of the truth is not shown.
    api.fault(Fault::status(500).on("/endpointslices"));
    api.restart().await;
    let asked = |api: &ApiServer| {
        let seen = api.seen();
        (seen.iter().filter(|seen| seen.uri.contains("/endpointslices")).count() > 2).then_some(())
    };
    api.wait("several attempts", asked).await;
    assert_eq!(**agent.catalog.borrow(), restored);
    api.heal();
    let catalog = agent.until("the truth", |catalog| catalog.read).await;
    assert!(catalog.services.contains_key(&web()) && !catalog.services.contains_key(&gone));

    // Away again: nothing changes.
    api.stop();
    assert!(agent.catalog.borrow_and_update().services.contains_key(&web()));
    api.remove("Service", "shop", "web");
    api.compact();
    api.restart().await;
    agent.until("what happened meanwhile", |catalog| catalog.services.is_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn without_a_right_to_see_pods_services_are_offered_without_versions() {
    let api = ApiServer::start().await;
    put_web(&api);
    export(&api);
    api.fault(Fault::status(403).on("/pods"));
    let mut agent = Agent::new(&api, Catalog::default());
    let catalog = agent.until("the service", |catalog| catalog.services.contains_key(&web())).await;
    assert_eq!(catalog.services[&web()].ports[0].endpoints[0].version.len(), 0);
    assert!(agent.workloads.borrow().is_empty(), "nobody is identified");
    api.heal();
    agent.until("the version", |catalog| *catalog.services[&web()].ports[0].endpoints[0].version == *"v1").await;
    agent.stop().await;
}
