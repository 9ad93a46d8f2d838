//! Policies that the users of a cluster write there. Real members, real agents; the cluster is played.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod agent;
mod common;

use std::sync::Arc;

use agent::{Agent, token_file};
use archipelago_proto::v1::{
    AgentPolicies, ClusterPolicy, ConfigAck, DeleteRequest, GatewayHello, GatewayMessage, JoinRole, PolicyStatus,
    Resource, ResourceKey, SessionOrder, gateway_control_client::GatewayControlClient, gateway_directive,
    gateway_message::Body, resources_client::ResourcesClient,
};
use common::{ControlPlane, PATIENCE, cluster, eventually};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

fn split(name: &str, service: &str, weight: i64) -> ClusterPolicy {
    let json = format!(
        r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"TrafficSplit","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{{"service":"{service}","backends":[{{"cluster":"paris","weight":{weight}}}]}}}}"#
    );
    ClusterPolicy { kind: "TrafficSplit".into(), namespace: "shop".into(), name: name.into(), generation: weight, json }
}

fn list(agent: &Agent, policies: Vec<ClusterPolicy>) {
    agent.link.policies.send_replace(Some(Arc::new(AgentPolicies { policies })));
}

/// Waits until the agent was told these reasons, in the order of its list, of these generations.
async fn told(agent: &mut Agent, expected: &[(&str, i64)]) -> Vec<PolicyStatus> {
    let are = |statuses: &[PolicyStatus]| {
        statuses.iter().map(|status| (status.reason.clone(), status.generation)).collect::<Vec<_>>()
    };
    let wanted: Vec<(String, i64)> = expected.iter().map(|(reason, of)| ((*reason).to_owned(), *of)).collect();
    let told = timeout(PATIENCE, agent.link.statuses.wait_for(|statuses| are(statuses) == wanted)).await;
    let told = told.map(|statuses| statuses.unwrap().to_vec());
    if let Ok(statuses) = told {
        return statuses;
    }
    panic!("expected {expected:?}, last told {:?}", agent.link.statuses.borrow())
}

fn with_policies(name: &str) -> String {
    cluster(name, "eu-west").replace("region: eu-west", "region: eu-west, policies: true")
}

/// The format rises by itself, a moment after the start.
async fn allow(control_plane: &ControlPlane, names: &[&str]) {
    let text: String = names.iter().map(|name| with_policies(name)).collect();
    eventually("clusters may write policies", || async {
        let answer = control_plane.apply(1, "", &text).await.map_err(|status| status.to_string())?;
        if answer.problems.is_empty() { Ok(()) } else { Err(answer.problems.join("; ")) }
    })
    .await;
}

async fn start(control_plane: &ControlPlane, dir: &tempfile::TempDir, name: &str) -> Agent {
    let file = token_file(control_plane, dir.path(), name).await;
    Agent::start(name, &file, None, 1).await
}

async fn stored(control_plane: &ControlPlane, name: &str) -> Option<Resource> {
    control_plane.get(1, name).await.unwrap().resources.into_iter().find(|resource| resource.kind == "TrafficSplit")
}

/// Takes whatever it is sent.
async fn gateway(control_plane: &ControlPlane, cluster: &str, name: &str) {
    let credential = control_plane.join(cluster, JoinRole::Gateway, name).await;
    let channel = control_plane.channel_as(1, &credential).await.unwrap();
    let (messages, outgoing) = mpsc::channel(4);
    let order = Some(SessionOrder { boot: 1, session: 1 });
    let hello = GatewayHello { cluster: cluster.into(), gateway: name.into(), order, ..GatewayHello::default() };
    messages.send(GatewayMessage { body: Some(Body::Hello(hello)) }).await.unwrap();
    let mut client = GatewayControlClient::new(channel);
    let mut directives = client.stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    tokio::spawn(async move {
        while let Ok(Some(directive)) = directives.message().await {
            if let Some(gateway_directive::Body::Update(update)) = directive.body {
                let ack = ConfigAck { version: update.version, ..ConfigAck::default() };
                if messages.send(GatewayMessage { body: Some(Body::Ack(ack)) }).await.is_err() {
                    return;
                }
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cluster_lists_is_in_the_federation_and_what_it_lists_no_more_is_not() {
    let control_plane = ControlPlane::start(3, &[]).await;
    allow(&control_plane, &["paris"]).await;
    gateway(&control_plane, "paris", "gw-1").await;
    let temp = tempfile::tempdir().unwrap();
    let mut paris = start(&control_plane, &temp, "paris").await;

    // A bad one is named as in a file, and in nobody's way.
    list(&paris, vec![split("web", "web", 10), split("cart", "cart", -1)]);
    let statuses = told(&mut paris, &[("Accepted", 10), ("Invalid", -1)]).await;
    assert!(statuses[1].message.starts_with("spec.backends[0].weight: "), "{:?}", statuses[1]);
    assert_eq!(statuses[1].revision, 0);
    let web = stored(&control_plane, "web").await.unwrap();
    assert_eq!((&*web.origin, web.modified_revision), ("paris", statuses[0].revision));
    assert!(stored(&control_plane, "cart").await.is_none());
    // How far it got is counted as `apply --wait` counts.
    let everywhere = |statuses: &Arc<Vec<PolicyStatus>>| {
        let of = |status: &PolicyStatus| (status.gateways_programmed, status.gateways_expected);
        statuses.first().is_some_and(|status| of(status) == (1, 1))
    };
    timeout(PATIENCE, paris.link.statuses.wait_for(everywhere)).await.expect("not programmed").unwrap();

    // Changed, wrong, gone.
    list(&paris, vec![split("web", "web", 20)]);
    let changed = told(&mut paris, &[("Accepted", 20)]).await;
    let revision = stored(&control_plane, "web").await.unwrap().modified_revision;
    assert!(revision > web.modified_revision && changed[0].revision <= revision);
    list(&paris, vec![split("web", "web", -2)]);
    let wrong = told(&mut paris, &[("Invalid", -2)]).await;
    assert!(wrong[0].message.ends_with(&format!("revision {revision}, its last good form, stays")), "{wrong:?}");
    assert!(stored(&control_plane, "web").await.unwrap().json.contains("20"));
    // A list that is too long is none: nothing of it is used, and nothing is taken for unwanted.
    list(&paris, (0..2_001).map(|number| split(&format!("s{number}"), &format!("s{number}"), 1)).collect());
    eventually("the problem is shown", || async {
        let status = control_plane.status(2).await.map_err(|status| status.to_string())?;
        let found = status.clusters[0].problems.iter().any(|problem| problem.reason.contains("2001 are listed"));
        if found { Ok(()) } else { Err(format!("{:?}", status.clusters[0].problems)) }
    })
    .await;
    assert!(stored(&control_plane, "web").await.is_some());
    list(&paris, Vec::new());
    told(&mut paris, &[]).await;
    eventually("it is gone", || async {
        match stored(&control_plane, "web").await {
            None => Ok(()),
            Some(left) => Err(format!("{left:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_want_to_write_is_a_conflict_that_both_see() {
    let control_plane = ControlPlane::start(3, &[]).await;
    allow(&control_plane, &["paris", "tokyo"]).await;
    control_plane.apply(1, "", &cluster("lima", "us-east")).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let mut paris = start(&control_plane, &temp, "paris").await;
    let mut tokyo = start(&control_plane, &temp, "tokyo").await;
    let mut lima = start(&control_plane, &temp, "lima").await;

    // Two clusters.
    list(&paris, vec![split("web", "web", 10)]);
    told(&mut paris, &[("Accepted", 10)]).await;
    list(&tokyo, vec![split("web", "web", 20), split("own", "own", 20)]);
    let conflict = told(&mut tokyo, &[("Conflict", 20), ("Accepted", 20)]).await;
    assert_eq!(conflict[0].rivals, ["cluster paris"]);
    assert!(conflict[0].message.contains("TrafficSplit shop/web was written in cluster paris"), "{conflict:?}");
    let both = |statuses: &Arc<Vec<PolicyStatus>>| statuses.first().is_some_and(|web| web.rivals == ["cluster tokyo"]);
    timeout(PATIENCE, paris.link.statuses.wait_for(both)).await.expect("paris does not see it").unwrap();

    // A cluster and an operator: neither writes what is the other's, and each is told.
    let yaml = |name: &str| split(name, name, 50).json;
    let refused = control_plane.apply(2, "", &yaml("web")).await.unwrap().problems.join("\n");
    assert!(refused.contains("TrafficSplit shop/web was written in cluster paris"), "{refused}");
    let key = ResourceKey { kind: "TrafficSplit".into(), namespace: "shop".into(), name: "web".into() };
    let delete = DeleteRequest { keys: vec![key], ..DeleteRequest::default() };
    let mut operator = ResourcesClient::new(control_plane.channel(2).await.unwrap());
    let refused = operator.delete(delete.clone()).await.unwrap().into_inner().problems.join("\n");
    assert!(refused.contains("was written in cluster paris"), "{refused}");
    assert_eq!(control_plane.apply(2, "", &yaml("cart")).await.unwrap().problems, Vec::<String>::new());
    list(&paris, vec![split("web", "web", 10), split("cart", "cart", 30)]);
    let conflict = told(&mut paris, &[("Accepted", 10), ("Conflict", 30)]).await;
    assert_eq!(conflict[1].rivals, ["operator"]);
    eventually("the operator sees who else wants it", || async {
        let resource = stored(&control_plane, "cart").await.ok_or("no cart")?;
        let status = control_plane.status(3).await.map_err(|status| status.to_string())?;
        let shown = status.clusters.iter().flat_map(|cluster| &cluster.problems);
        let shown: Vec<_> = shown.filter(|problem| problem.subject == "policy TrafficSplit shop/cart").collect();
        if resource.origin.is_empty() && resource.rivals == ["cluster paris"] && shown.len() == 1 {
            Ok(())
        } else {
            Err(format!("{resource:?} {shown:?}"))
        }
    })
    .await;

    // Who may not, writes nothing; and what it wrote while it might is the operator's to take.
    list(&lima, vec![split("api", "api", 1)]);
    let denied = told(&mut lima, &[("NotAllowed", 1)]).await;
    assert!(denied[0].message.contains("`policies: true` in the spec of Cluster lima"), "{denied:?}");
    control_plane.apply(1, "", &cluster("paris", "eu-west")).await.unwrap();
    told(&mut paris, &[("NotAllowed", 10), ("NotAllowed", 30)]).await;
    assert_eq!(stored(&control_plane, "web").await.unwrap().origin, "paris", "what it wrote stays");
    assert_eq!(control_plane.apply(2, "", &yaml("web")).await.unwrap().problems, Vec::<String>::new());
    assert_eq!(stored(&control_plane, "web").await.unwrap().origin, "");
    let deleted = operator.delete(delete).await.unwrap().into_inner();
    assert_eq!(deleted.problems, Vec::<String>::new());
    // What was in the way is gone: the other cluster's own counts now.
    told(&mut tokyo, &[("Accepted", 20), ("Accepted", 20)]).await;
    assert_eq!(stored(&control_plane, "web").await.unwrap().origin, "tokyo");
}
