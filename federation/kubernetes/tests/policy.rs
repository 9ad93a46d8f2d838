//! Policies of a cluster, up and down, through an API server.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_base::shutdown::{Shutdown, ShutdownTrigger};
use archipelago_kubernetes::{
    client,
    policy::{self, Feeds, Wires},
    watch::{Selection, follow},
};
use archipelago_kubernetes_fake::{ApiServer, Fault};
use archipelago_proto::v1::{AgentPolicies, PolicyStatus};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

struct Agent {
    policies: watch::Receiver<Option<Arc<AgentPolicies>>>,
    statuses: watch::Sender<Arc<Vec<PolicyStatus>>>,
    _leading: watch::Sender<Option<u64>>,
    _running: ShutdownTrigger,
}

impl Agent {
    fn start(api: &ApiServer) -> Self {
        let (running, shutdown) = Shutdown::manual();
        let client = client::new(kube::Config::new(api.url().parse().unwrap())).unwrap();
        let feeds = Feeds {
            splits: follow(client.clone(), Selection::default(), shutdown.clone()),
            failovers: follow(client.clone(), Selection::default(), shutdown.clone()),
        };
        let (policies, listed) = watch::channel(None);
        let (statuses, said) = watch::channel(Arc::default());
        let (leading, leads) = watch::channel(Some(1));
        tokio::spawn(policy::run(client, feeds, Wires { policies, statuses: said, leading: leads }, shutdown));
        Self { policies: listed, statuses, _leading: leading, _running: running }
    }

    async fn until_listed(&mut self, count: usize) -> Arc<AgentPolicies> {
        let listed =
            |listed: &Option<Arc<AgentPolicies>>| listed.as_ref().is_some_and(|all| all.policies.len() == count);
        let listed = timeout(Duration::from_secs(60), self.policies.wait_for(listed)).await;
        listed.expect("a list in time").unwrap().clone().unwrap()
    }

    fn say(&self, programmed: u32, expected: u32) {
        self.statuses.send_replace(Arc::new(vec![PolicyStatus {
            kind: "TrafficSplit".into(),
            namespace: "shop".into(),
            name: "checkout".into(),
            generation: 1,
            reason: "Accepted".into(),
            revision: 7,
            gateways_programmed: programmed,
            gateways_expected: expected,
            ..PolicyStatus::default()
        }]));
    }
}

fn split(name: &str) -> Value {
    json!({
        "apiVersion": "archipelago.dev/v1alpha1", "kind": "TrafficSplit",
        "metadata": { "namespace": "shop", "name": name },
        "spec": { "service": "checkout", "backends": [{ "cluster": "paris", "weight": 1 }] },
    })
}

fn gateways(api: &ApiServer) -> String {
    let split = api.get("TrafficSplit", "shop", "checkout").unwrap();
    split["status"]["gateways"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_list_goes_up_only_when_it_is_complete_and_then_with_every_change() {
    let api = ApiServer::start().await;
    api.put(split("checkout"));
    api.fault(Fault::status(403).on("/failoverpolicies"));
    let mut agent = Agent::start(&api);
    api.wait("a refusal", |api| api.seen().iter().any(|seen| seen.uri.contains("/failoverpolicies")).then_some(()))
        .await;
    api.wait("the splits", |api| (api.watchers() > 0).then_some(())).await;
    assert!(agent.policies.borrow().is_none(), "half a list would have the other half deleted");
    api.heal();
    let listed = agent.until_listed(1).await;
    assert!(listed.policies[0].json.contains("\"service\":\"checkout\""));
    api.put(split("cart"));
    agent.until_listed(2).await;
    api.remove("TrafficSplit", "shop", "checkout");
    assert_eq!(agent.until_listed(1).await.policies[0].name, "cart");
}

#[tokio::test]
async fn a_status_is_there_within_a_second_and_a_fleet_that_acknowledges_is_no_storm() {
    let api = ApiServer::start().await;
    api.put(split("checkout"));
    let mut agent = Agent::start(&api);
    agent.until_listed(1).await;
    let said = Instant::now();
    agent.say(0, 100);
    api.wait("the first status", |api| (gateways(api) == "0/100").then_some(())).await;
    println!("status after {:?}", said.elapsed());
    let began = Instant::now();
    for programmed in 1..=100 {
        agent.say(programmed, 100);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    api.wait("the last status", |api| (gateways(api) == "100/100").then_some(())).await;
    let took = began.elapsed();
    let writes = api.seen().iter().filter(|seen| seen.method == "PATCH").count() as u128;
    assert!(writes <= 3 + took.as_millis() / 400, "{writes} writes in {took:?}");
    let split = api.get("TrafficSplit", "shop", "checkout").unwrap();
    let programmed = &split["status"]["conditions"][1];
    assert_eq!((&programmed["type"], &programmed["status"]), (&json!("Programmed"), &json!("True")));
    assert_eq!(programmed["message"], "100 of 100 gateways run revision 7");
}
