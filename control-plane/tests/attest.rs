//! Clusters with an API server of their own: gateways that their agent vouches for, replicas of an agent, and what the federation
//! exports. Real members, real agents; the cluster is played.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod agent;
mod common;

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use agent::{Agent, Memory, token_file};
use archipelago_base::shutdown::Shutdown;
use archipelago_identity::{CredentialDir, LiveCredential, SpiffeId, testing::TestAuthority};
use archipelago_proto::v1::{
    AgentHello, AgentMessage, ApplyRequest, CreateOperatorRequest, CreateTokenRequest, JoinRole, Protocol,
    RenewRequest, RevokeRequest, StatusRequest, agent_control_client::AgentControlClient, agent_message,
    fleet_client::FleetClient, gateway_control_client::GatewayControlClient, identity_client::IdentityClient,
    members_client::MembersClient, resources_client::ResourcesClient, tokens_client::TokensClient,
};
use archipelago_rpc::enrol::{self, EnrolError, JoinConfig, Joining, ServiceAccount};
use common::{ControlPlane, PATIENCE, cluster, eventually};
use tokio::time::timeout;
use tonic::Code;

/// A gateway on a node, with its ServiceAccount token in a file.
struct Node {
    dir: tempfile::TempDir,
    account: ServiceAccount,
}

impl Node {
    async fn new(control_plane: &ControlPlane, cluster: &str, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = control_plane.token(1, cluster, JoinRole::Agent, "agent").await;
        let config = JoinConfig::of(&token).unwrap();
        let account = ServiceAccount { config, token_file: dir.path().join("token"), gateway: name.to_owned() };
        Self { dir, account }
    }

    async fn join(&self, token: &str) -> Result<LiveCredential, EnrolError> {
        fs::write(&self.account.token_file, token).unwrap();
        let dir = CredentialDir::new(self.dir.path().join("identity"));
        enrol::ensure(&dir, Some(&Joining::ServiceAccount(self.account.clone()))).await
    }

    /// Waits until what keeps it from joining is `reason`.
    async fn refused_for(&self, token: &str, reason: &str) {
        let refused = || async {
            match self.join(token).await {
                Err(error) if error.to_string().contains(reason) => Ok(()),
                Err(error) => Err(error.to_string()),
                Ok(_) => Err("it joined".to_owned()),
            }
        };
        eventually(reason, refused).await;
    }
}

/// Waits until every member knows the session of a cluster's agent.
async fn connected(control_plane: &ControlPlane, cluster: &str) {
    for member in control_plane.running() {
        eventually("the agent is connected", || async move {
            let status = control_plane.status(member).await.map_err(|status| status.to_string())?;
            let found = status.clusters.iter().find(|found| found.name == cluster);
            match found {
                Some(found) if found.agent_state == "connected" => Ok(()),
                _ => Err(format!("{found:?}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_joins_by_its_service_account_and_by_no_other_way_around() {
    let control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let name = "ip-10-0-0-1.eu-west-3.compute.internal";
    let node = Node::new(&control_plane, "paris", name).await;
    let good = format!("node-{name}");

    // Before its agent is there nobody can say who it is; that passes.
    let error = node.join(&good).await.unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("the agent of cluster paris is not connected"),
        "{error}"
    );
    let file = token_file(&control_plane, temp.path(), "paris").await;
    let agent = Agent::start("paris", &file, None, 1).await;
    connected(&control_plane, "paris").await;

    // A token that is no good today may be another one tomorrow: the kubelet rotates it.
    for (token, says) in [
        ("stale", "the agent of cluster paris does not vouch for it: the token has expired"),
        ("not a token", "this is no ServiceAccount token"),
        ("node-Wrong_Name", "named it wrongly"),
    ] {
        let error = node.join(token).await.unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains(says), "{error}");
    }
    let error = node.join("node-another").await.unwrap_err();
    assert!(error.to_string().contains("as --name says"), "{error}");
    assert!(CredentialDir::new(node.dir.path().join("identity")).load().unwrap().is_none());
    let gateway = node.join(&good).await.unwrap();
    let id = gateway.current().spiffe_id.to_string();
    assert_eq!(id, format!("spiffe://mesh.example/cluster/paris/gateway/{name}"));
    // Whichever member is asked.
    for member in 1..=3_u64 {
        let mut another = Node::new(&control_plane, "paris", "node").await;
        another.account.config.control_plane = vec![control_plane.members[member as usize - 1].client.clone()];
        another.join("node-node").await.unwrap();
    }

    // It is what it says: it can open its session, under its name with dots, and renew.
    let channel = control_plane.channel_as(2, &gateway).await.unwrap();
    let hello =
        archipelago_proto::v1::GatewayHello { cluster: "paris".into(), gateway: name.into(), ..Default::default() };
    let body = Some(archipelago_proto::v1::gateway_message::Body::Hello(hello));
    let messages = tokio_stream::StreamExt::chain(
        tokio_stream::once(archipelago_proto::v1::GatewayMessage { body }),
        tokio_stream::pending(),
    );
    let mut updates = GatewayControlClient::new(channel).stream(messages).await.unwrap().into_inner();
    timeout(PATIENCE, updates.message()).await.unwrap().unwrap().unwrap();
    eventually("the gateway is registered", || async {
        let status = control_plane.status(3).await.map_err(|status| status.to_string())?;
        let paris = status.clusters.iter().find(|found| found.name == "paris").ok_or("no paris")?;
        paris.gateways.iter().find(|gateway| gateway.name == name).map(|_| ()).ok_or(format!("{paris:?}"))
    })
    .await;
    let members: Vec<String> = control_plane.members.iter().map(|member| member.client.clone()).collect();
    enrol::renew(&gateway, &members).await.unwrap();

    // Its agent answers for its own cluster: not for tokyo, which has none.
    let foreign = Node::new(&control_plane, "tokyo", name).await;
    foreign.refused_for(&good, "the agent of cluster tokyo is not connected").await;

    // Who was revoked does not come back by itself, only by an operator.
    let mut operators = IdentityClient::new(control_plane.channel(2).await.unwrap());
    let revoke = RevokeRequest { spiffe_id: id, reason: "stolen".into(), request_id: String::new() };
    operators.revoke(revoke).await.unwrap();
    let revoked = Node::new(&control_plane, "paris", name).await;
    let error = revoked.join(&good).await.unwrap_err().to_string();
    assert!(error.contains("was revoked") && error.contains("meshctl token create --cluster paris"), "{error}");
    control_plane.join("paris", JoinRole::Gateway, name).await;

    // And nobody joins a cluster that was deleted.
    control_plane.delete_cluster(1, "paris").await;
    revoked.refused_for(&good, "cluster paris was deleted").await;
    drop(agent);
    for member in 1..=3 {
        assert!(!control_plane.log(member).contains(&good), "a token reached the log of member {member}");
    }
}

/// With a certificate that is over and cannot be exchanged: it is of a federation that was founded anew since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_cannot_recover_joins_again() {
    let control_plane = ControlPlane::start(1, &[]).await;
    control_plane.apply(1, "", &cluster("paris", "eu-west")).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = token_file(&control_plane, temp.path(), "paris").await;
    let _agent = Agent::start("paris", &file, None, 1).await;
    connected(&control_plane, "paris").await;
    let node = Node::new(&control_plane, "paris", "node-1").await;
    fs::write(&node.account.token_file, "node-node-1").unwrap();

    let former = TestAuthority::new("mesh.example");
    let id = SpiffeId::gateway(former.trust_domain(), "paris", "node-1");
    let day = Duration::from_secs(86_400);
    let over = former.issue_between(&id, SystemTime::now() - 3 * day, SystemTime::now() - day);
    let dir = CredentialDir::new(node.dir.path().join("identity"));
    dir.store(&over).unwrap();
    let joining = Some(Joining::ServiceAccount(node.account.clone()));
    let credential = enrol::ensure(&dir, joining.as_ref()).await.unwrap();
    let mut changes = credential.subscribe();
    let members = vec![control_plane.members[0].client.clone()];
    let (trigger, shutdown) = Shutdown::manual();
    let keeping = tokio::spawn(enrol::keep_renewed(credential.clone(), dir.clone(), members, joining, shutdown));
    timeout(PATIENCE, changes.changed()).await.expect("no new certificate").unwrap();
    let current = credential.current();
    assert!(current.spiffe_id == id && current.bundle != over.bundle && current.not_after > SystemTime::now());
    assert_eq!(dir.load().unwrap().unwrap().chain, current.chain);
    trigger.request();
    keeping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_an_agent_share_one_token_and_one_identity() {
    let control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &cluster("paris", "eu-west")).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = token_file(&control_plane, temp.path(), "paris").await;
    let memory = Arc::new(Memory::default());
    let (one, two) = tokio::join!(
        Agent::start_idle("paris", &file, Some(Arc::clone(&memory))),
        Agent::start_idle("paris", &file, Some(Arc::clone(&memory))),
    );
    // Nobody leads, nobody is connected; then one, then the other, whose word counts from there on.
    let session = |agent: &'static str| {
        let control_plane = &control_plane;
        async move {
            let status = control_plane.status(2).await.map_err(|status| status.to_string())?;
            let paris = status.clusters.into_iter().find(|found| found.name == "paris").ok_or("no paris")?;
            if paris.agent_state == agent { Ok(()) } else { Err(format!("{paris:?}")) }
        }
    };
    eventually("nobody leads", || session("disconnected")).await;
    one.link.leading.send_replace(Some(5));
    eventually("one leads", || session("connected")).await;
    two.link.leading.send_replace(Some(6));
    one.stop().await;
    eventually("the other leads", || session("connected")).await;
    // The token is spent, and a third replica on an empty disk needs it no more.
    let mut three = Agent::start_idle("paris", &file, Some(memory)).await;
    two.stop().await;
    eventually("nobody leads again", || session("disconnected")).await;
    three.link.leading.send_replace(Some(7));
    timeout(PATIENCE, three.link.imports.changed()).await.expect("nothing was said").unwrap();
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_hear_what_the_federation_exports_as_it_changes() {
    let control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let mut agents = Vec::new();
    for name in ["paris", "tokyo"] {
        let file = token_file(&control_plane, temp.path(), name).await;
        agents.push(Agent::start(name, &file, None, 1).await);
    }
    let [paris, tokyo] = &mut agents[..] else { panic!("two agents") };
    offer(paris, &[("web", true), ("private", false)]);
    offer(tokyo, &[("web", true)]);
    imports(tokyo, &["shop/web: paris tokyo"]).await;
    imports(paris, &["shop/web: paris tokyo"]).await;
    // An operator's word counts for more than the cluster's own, both ways.
    let export = |name: &str, clusters: &str| {
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: ServiceExport\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ clusters: [{clusters}] }}\n---\n"
        )
    };
    control_plane.apply(2, "", &(export("private", "paris") + &export("web", "paris"))).await.unwrap();
    imports(tokyo, &["shop/private: paris", "shop/web: paris"]).await;
    // Of a cluster that is gone nothing is exported any more.
    control_plane.apply(2, "", &export("web", "paris, tokyo")).await.unwrap();
    imports(paris, &["shop/private: paris", "shop/web: paris tokyo"]).await;
    offer(paris, &[]);
    imports(paris, &["shop/web: tokyo"]).await;
    control_plane.apply(3, "", &export("web", "tokyo")).await.unwrap();
    imports(tokyo, &["shop/web: tokyo"]).await;
}

fn offer(agent: &Agent, services: &[(&str, bool)]) {
    use archipelago_agent::catalog::{Catalog, Check, Port, Service};
    use archipelago_model::{id::ServiceKey, service::ServiceProtocol};
    let service = |(name, exported): &(&str, bool)| {
        let port = Port {
            name: String::new(),
            port: 80,
            protocol: ServiceProtocol::Http,
            app_protocol: String::new(),
            endpoints: Vec::new(),
        };
        let service = Service {
            ports: vec![port],
            exported: *exported,
            check: Check::Provider,
            origin: String::new(),
            export: None,
        };
        (ServiceKey::new("shop", *name), Arc::new(service))
    };
    agent.link.catalog.send_replace(Arc::new(Catalog { services: services.iter().map(service).collect(), read: true }));
}

/// Waits until the agent has heard of exactly these, each with who exports it.
async fn imports(agent: &mut Agent, expected: &[&str]) {
    let listed = |said: &Option<Arc<archipelago_agent::provider::Imports>>| -> Vec<String> {
        let rows = said.iter().flat_map(|imports| imports.iter());
        rows.map(|(key, import)| {
            assert!(import.exporters.iter().all(|exporter| {
                exporter.ports.len() == 1
                    && exporter.ports[0].port == 80
                    && exporter.ports[0].protocol() == Protocol::Http1
            }));
            let clusters: Vec<&str> = import.exporters.iter().map(|exporter| exporter.cluster.as_str()).collect();
            format!("{key}: {}", clusters.join(" "))
        })
        .collect()
    };
    let heard = timeout(PATIENCE, agent.link.imports.wait_for(|said| listed(said) == expected)).await.is_ok();
    if !heard {
        panic!("expected {expected:?}, last heard {:?}", listed(&agent.link.imports.borrow()));
    }
}

/// What a stolen identity of an agent is good for: nothing but the words of its own cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_identity_opens_nothing_but_its_own_session() {
    let control_plane = ControlPlane::start(1, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let agent = control_plane.join("paris", JoinRole::Agent, "agent").await;
    let channel = control_plane.channel_as(1, &agent).await.unwrap();
    let denied = |what: &str, answer: Result<(), tonic::Status>| {
        assert_eq!(answer.map_err(|status| status.code()), Err(Code::PermissionDenied), "{what}");
    };
    let drop_answer = |_| ();
    let apply = ResourcesClient::new(channel.clone()).apply(ApplyRequest::default()).await.map(drop_answer);
    denied("apply", apply);
    let mut resources = ResourcesClient::new(channel.clone());
    denied("get", resources.get(archipelago_proto::v1::GetRequest::default()).await.map(|_| ()));
    denied("delete", resources.delete(archipelago_proto::v1::DeleteRequest::default()).await.map(|_| ()));
    denied("token", TokensClient::new(channel.clone()).create(CreateTokenRequest::default()).await.map(|_| ()));
    denied("status", FleetClient::new(channel.clone()).status(StatusRequest {}).await.map(|_| ()));
    let mut identity = IdentityClient::new(channel.clone());
    denied("operator", identity.create_operator(CreateOperatorRequest::default()).await.map(|_| ()));
    denied("revoke", identity.revoke(RevokeRequest::default()).await.map(|_| ()));
    let mut members = MembersClient::new(channel.clone());
    let review = archipelago_proto::v1::ReviewLocalRequest { cluster: "tokyo".into(), ask: None };
    denied("review", members.review_local(review).await.map(|_| ()));
    let gateway = GatewayControlClient::new(channel.clone()).stream(tokio_stream::pending()).await.map(|_| ());
    denied("a gateway's session", gateway);

    // Not another cluster's agent, not another identity.
    let hello = AgentHello { cluster: "tokyo".into(), ..AgentHello::default() };
    let messages = tokio_stream::once(AgentMessage { body: Some(agent_message::Body::Hello(hello)) });
    let foreign = AgentControlClient::new(channel.clone()).stream(messages).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);
    assert!(foreign.message().contains("may not report for cluster tokyo"), "{foreign}");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let operator = "spiffe://mesh.example/operator/admin".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(operator)];
    let csr_der = params.serialize_request(&key).unwrap().der().to_vec();
    let renew = RenewRequest { csr_der, client_unix_ms: 0 };
    denied("another identity", identity.renew(renew).await.map(|_| ()));

    // A gateway of a cluster whose agent does not review, and of one that it is not: no certificate.
    let node = Node::new(&control_plane, "tokyo", "node-1").await;
    node.refused_for("node-node-1", "the agent of cluster tokyo is not connected").await;
}
