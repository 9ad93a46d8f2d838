//! The streams of gateways and agents, and what operators see of them, over three members.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use archipelago_identity::LiveCredential;
use archipelago_proto::v1::{
    AgentMessage, ConfigAck, ConfigUpdate, ExplainQuery, ExplainReply, ExplainRequest, ExplainResponse,
    GatewayAddresses, GatewayDirective, GatewayHello, GatewayMessage, GatewayReport, JoinRole, Protocol, ServiceReport,
    ServicesRequest, TunnelStatus, TunnelsRequest, WaitAppliedProgress, WaitAppliedRequest,
    agent_control_client::AgentControlClient, fleet_client::FleetClient, gateway_control_client::GatewayControlClient,
    gateway_directive, gateway_message::Body,
};
use common::{ControlPlane, PATIENCE, cluster, eventually};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A gateway as the control plane sees it.
struct Gateway {
    messages: mpsc::Sender<GatewayMessage>,
    directives: Streaming<GatewayDirective>,
    have: BTreeMap<String, Vec<u8>>,
}

impl Gateway {
    async fn connect(
        control_plane: &ControlPlane,
        member: u64,
        credential: &LiveCredential,
        hello: GatewayHello,
    ) -> Result<Self, Status> {
        let have = hello.versions.clone();
        let (messages, outgoing) = mpsc::channel(16);
        messages.send(GatewayMessage { body: Some(Body::Hello(hello)) }).await.unwrap();
        let channel = control_plane.channel_as(member, credential).await?;
        let directives = GatewayControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { messages, directives, have })
    }

    async fn directive(&mut self) -> gateway_directive::Body {
        let directive = timeout(PATIENCE, self.directives.message()).await.expect("a directive in time").unwrap();
        directive.expect("the stream goes on").body.unwrap()
    }

    async fn update(&mut self) -> ConfigUpdate {
        match self.directive().await {
            gateway_directive::Body::Update(update) => update,
            other => panic!("not an update: {other:?}"),
        }
    }

    /// Takes an update in, as a gateway would.
    async fn accept(&mut self, update: &ConfigUpdate) {
        if update.full {
            self.have.clear();
        }
        for name in &update.removals {
            self.have.remove(name);
        }
        for resource in &update.upserts {
            self.have.insert(resource.name.clone(), resource.version.to_vec());
        }
        self.ack(update.revision, "").await;
    }

    async fn ack(&self, revision: u64, error: &str) {
        self.send(Body::Ack(ConfigAck { revision, error: error.to_owned() })).await;
    }

    async fn send(&self, body: Body) {
        self.messages.send(GatewayMessage { body: Some(body) }).await.unwrap();
    }

    /// Accepts updates until one reaches `revision`.
    async fn follow_to(&mut self, revision: u64) {
        loop {
            let update = self.update().await;
            self.accept(&update).await;
            if update.revision >= revision {
                return;
            }
        }
    }
}

fn hello(cluster: &str, gateway: &str, port: u16) -> GatewayHello {
    GatewayHello {
        cluster: cluster.into(),
        gateway: gateway.into(),
        addresses: Some(GatewayAddresses {
            http: format!("127.0.0.1:{port}"),
            tunnel: vec![format!("127.0.0.1:{}", port + 1)],
            tcp_base: format!("127.0.0.1:{}", port + 100),
            ..Default::default()
        }),
        workers: 1,
        ..Default::default()
    }
}

async fn wait_applied(
    control_plane: &ControlPlane,
    member: u64,
    revision: u64,
    timeout_ms: u64,
) -> WaitAppliedProgress {
    let mut fleet = FleetClient::new(control_plane.channel(member).await.unwrap());
    let request = WaitAppliedRequest { revision, timeout_ms, ..Default::default() };
    let mut progress = fleet.wait_applied(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(next) = timeout(PATIENCE, progress.message()).await.expect("progress in time").unwrap() {
        assert!(!last.as_ref().is_some_and(|last: &WaitAppliedProgress| last.done), "nothing follows the last message");
        last = Some(next);
    }
    let last = last.expect("at least one message");
    assert!(last.done);
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_reach_every_gateway_and_the_wait_for_them_is_exact() {
    let control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let paris = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let tokyo = control_plane.join("tokyo", JoinRole::Gateway, "gw-1").await;

    // Nobody acts as another cluster, another gateway, or in the role of an agent.
    for wrong in [hello("tokyo", "gw-1", 1), hello("paris", "gw-2", 1)] {
        let refused = Gateway::connect(&control_plane, 1, &paris, wrong).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(
            refused.message().contains("spiffe://mesh.example/cluster/paris/gateway/gw-1 may not act as"),
            "{refused}"
        );
    }
    let refused =
        Gateway::connect(&control_plane, 1, &control_plane.operator, hello("paris", "gw-1", 1)).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let channel = control_plane.channel_as(1, &paris).await.unwrap();
    let (_agent, outgoing) = mpsc::channel(1);
    let refused = AgentControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // Each at another member. The first update is complete; the registration of the peers arrives as a delta.
    let mut first = Gateway::connect(&control_plane, 2, &paris, hello("paris", "gw-1", 15_000)).await.unwrap();
    let update = first.update().await;
    assert!(update.full && update.upserts.iter().any(|resource| resource.name == "cluster/tokyo"), "{update:?}");
    first.accept(&update).await;
    let mut second = Gateway::connect(&control_plane, 3, &tokyo, hello("tokyo", "gw-1", 16_000)).await.unwrap();
    while !first.have.contains_key("peer/tokyo/gw-1") {
        let update = first.update().await;
        assert!(!update.full && update.upserts.len() <= 1, "a delta: {update:?}");
        first.accept(&update).await;
    }
    while !second.have.contains_key("peer/paris/gw-1") {
        let update = second.update().await;
        second.accept(&update).await;
    }

    // A revision is done when both acknowledged it, and not before; any member can be asked.
    let revision = control_plane.apply(1, "", &cluster("oslo", "eu-north")).await.unwrap().revision;
    let straggling = wait_applied(&control_plane, 1, revision, 300).await;
    assert_eq!((straggling.expected, straggling.acknowledged), (2, 0));
    first.follow_to(revision).await;
    let half = eventually("one acknowledgement is seen", || async {
        let progress = wait_applied(&control_plane, 1, revision, 100).await;
        if progress.acknowledged == 1 { Ok(progress) } else { Err(format!("{progress:?}")) }
    })
    .await;
    assert_eq!(half.stragglers.len(), 1);
    assert_eq!(half.stragglers[0].gateway, "tokyo/gw-1");
    assert!(half.stragglers[0].reason.starts_with("at revision "), "{:?}", half.stragglers);
    let waiting = wait_applied(&control_plane, 1, revision, 20_000);
    let (done, ()) = tokio::join!(waiting, second.follow_to(revision));
    assert_eq!((done.expected, done.acknowledged, done.stragglers.len()), (2, 2, 0));
    assert!(done.first_ack_micros > 0 && done.first_ack_micros <= done.last_ack_micros, "{done:?}");

    // A refusal is told with its reason, the last good configuration stays, and the next revision mends it.
    let revision = control_plane.apply(2, "", &cluster("rome", "eu-south")).await.unwrap().revision;
    let update = first.update().await;
    assert_eq!(update.revision, revision);
    first.ack(revision, "no such port").await;
    second.follow_to(revision).await;
    let refused = wait_applied(&control_plane, 3, revision, 20_000).await;
    assert_eq!((refused.acknowledged, refused.stragglers.len()), (1, 0));
    assert_eq!((&*refused.rejections[0].gateway, &*refused.rejections[0].error), ("paris/gw-1", "no such port"));
    let status = control_plane.status(1).await.unwrap();
    let state = |name: &str| {
        let cluster = status.clusters.iter().find(|cluster| cluster.name == name).unwrap();
        (cluster.state.clone(), cluster.gateways.first().map(|gateway| gateway.state.clone()))
    };
    assert_eq!(state("paris"), ("active".to_owned(), Some("rejected".to_owned())));
    assert_eq!(state("tokyo"), ("active".to_owned(), Some("synced".to_owned())));
    assert_eq!(state("oslo"), ("pending".to_owned(), None));
    let revision = control_plane.apply(2, "", &cluster("lima", "sa-west")).await.unwrap().revision;
    let update = first.update().await;
    let names: Vec<_> = update.upserts.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["cluster/lima", "cluster/rome"], "the difference to what it still has");
    first.accept(&update).await;
    second.follow_to(revision).await;
    assert_eq!(wait_applied(&control_plane, 1, revision, 20_000).await.acknowledged, 2);

    // A gateway that left is a straggler by name; when it returns with what it had, it costs a bookmark.
    let have = second.have.clone();
    drop(second);
    eventually("the member notices", || async {
        let progress = wait_applied(&control_plane, 1, revision + 1, 50).await;
        if progress.stragglers.iter().any(|s| s.gateway == "tokyo/gw-1" && s.reason == "not connected") {
            Ok(())
        } else {
            Err(format!("{progress:?}"))
        }
    })
    .await;
    let returning = GatewayHello { versions: have, revision, ..hello("tokyo", "gw-1", 16_000) };
    let mut second = Gateway::connect(&control_plane, 1, &tokyo, returning).await.unwrap();
    let bookmark = second.update().await;
    assert_eq!((bookmark.full, bookmark.upserts.len(), bookmark.removals.len()), (false, 0, 0));
    second.accept(&bookmark).await;

    // Deleting a cluster takes its gateways out of what is waited for.
    let key =
        archipelago_proto::v1::ResourceKey { kind: "Cluster".into(), namespace: String::new(), name: "tokyo".into() };
    let mut resources =
        archipelago_proto::v1::resources_client::ResourcesClient::new(control_plane.channel(3).await.unwrap());
    let delete = archipelago_proto::v1::DeleteRequest { keys: vec![key], ..Default::default() };
    let deleted = resources.delete(delete).await.unwrap().into_inner();
    assert_eq!(deleted.problems, Vec::<String>::new());
    first.follow_to(deleted.revision).await;
    let done = wait_applied(&control_plane, 2, deleted.revision, 20_000).await;
    assert_eq!((done.expected, done.acknowledged), (1, 1));
    assert!(!first.have.contains_key("peer/tokyo/gw-1") && !first.have.contains_key("cluster/tokyo"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_reports_tunnels_and_questions_cross_members() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let agent = control_plane.join("paris", JoinRole::Agent, "").await;
    let (reports, outgoing) = mpsc::channel(4);
    let channel = control_plane.channel_as(2, &agent).await.unwrap();
    let mut directives =
        AgentControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    assert!(directives.message().await.unwrap().unwrap().revision > 0);
    let service = |name: &str, protocol: Protocol, ready: u32| ServiceReport {
        namespace: "shop".into(),
        name: name.into(),
        protocol: protocol.into(),
        port: 8080,
        exported: true,
        versions: vec!["v1".into()],
        ready,
        total: 2,
        ..ServiceReport::default()
    };
    let report = |ready: u32| AgentMessage {
        cluster: "paris".into(),
        services: vec![service("checkout", Protocol::Http1, ready), service("ledger", Protocol::Tcp, ready)],
    };
    reports.send(report(2)).await.unwrap();

    let credential = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let mut gateway = Gateway::connect(&control_plane, 3, &credential, hello("paris", "gw-1", 15_000)).await.unwrap();
    while !gateway.have.contains_key("service/shop/ledger") {
        let update = gateway.update().await;
        gateway.accept(&update).await;
    }
    let services = |member: u64| {
        let control_plane = &control_plane;
        async move {
            let mut fleet = FleetClient::new(control_plane.channel(member).await.map_err(|status| status.to_string())?);
            fleet
                .services(ServicesRequest {})
                .await
                .map(|answer| answer.into_inner().services)
                .map_err(|status| status.to_string())
        }
    };
    for member in 1..=3 {
        let ledger = eventually("the service is seen with its endpoints", || async {
            let services = services(member).await?;
            let ledger = services.into_iter().find(|service| service.name == "ledger").ok_or("no ledger")?;
            if ledger.clusters[0].state == "ready" && !ledger.tcp_addresses.is_empty() {
                Ok(ledger)
            } else {
                Err(format!("{ledger:?}"))
            }
        })
        .await;
        assert_eq!((ledger.clusters[0].ready, ledger.clusters[0].total), (2, 2));
        assert_eq!(ledger.tcp_addresses[0].address, "127.0.0.1:15100");
        assert_eq!(ledger.hosts[0], "ledger.shop.svc.clusterset.local");
    }
    // Counts are soft: they change without a revision.
    let before = control_plane.get(1, "").await.unwrap().revision;
    reports.send(report(1)).await.unwrap();
    eventually("the counts arrive", || async {
        let services = services(1).await?;
        if services.iter().all(|service| service.clusters[0].state == "degraded") {
            Ok(())
        } else {
            Err(format!("{services:?}"))
        }
    })
    .await;
    assert_eq!(control_plane.get(1, "").await.unwrap().revision, before);

    let tunnel = TunnelStatus {
        to: "gw-1".into(),
        to_cluster: "tokyo".into(),
        from: "liar".into(),
        from_cluster: "oslo".into(),
        state: "up".into(),
        ..Default::default()
    };
    gateway.send(Body::Report(GatewayReport { tunnels: vec![tunnel] })).await;
    let tunnels = eventually("the tunnel is seen", || async {
        let mut fleet = FleetClient::new(control_plane.channel(1).await.map_err(|status| status.to_string())?);
        let tunnels = fleet.tunnels(TunnelsRequest {}).await.map_err(|status| status.to_string())?.into_inner().tunnels;
        if tunnels.len() == 1 { Ok(tunnels) } else { Err(format!("{tunnels:?}")) }
    })
    .await;
    assert_eq!((&*tunnels[0].from_cluster, &*tunnels[0].from), ("paris", "paris/gw-1"), "a gateway speaks for itself");

    // Asked at member 1, answered by a gateway of member 3.
    let mut fleet = FleetClient::new(control_plane.channel(1).await.unwrap());
    let query = ExplainQuery { host: "checkout.shop".into(), ..Default::default() };
    let question = ExplainRequest { cluster: "paris".into(), gateway: String::new(), query: Some(query) };
    let asked = tokio::spawn(async move { fleet.explain(question).await });
    let ask = loop {
        match gateway.directive().await {
            gateway_directive::Body::Explain(ask) => break ask,
            gateway_directive::Body::Update(update) => gateway.accept(&update).await,
        }
    };
    assert_eq!(ask.query.unwrap().host, "checkout.shop");
    let response = ExplainResponse { chosen_cluster: "paris".into(), ..Default::default() };
    gateway.send(Body::Explain(ExplainReply { id: ask.id, response: Some(response) })).await;
    let answer = asked.await.unwrap().unwrap().into_inner();
    assert_eq!((&*answer.cluster, &*answer.gateway, &*answer.chosen_cluster), ("paris", "gw-1", "paris"));
    let mut fleet = FleetClient::new(control_plane.channel(1).await.unwrap());
    let nobody =
        ExplainRequest { cluster: "tokyo".into(), gateway: String::new(), query: Some(ExplainQuery::default()) };
    let status = fleet.explain(nobody).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no gateway of cluster tokyo is connected"));

    // An agent of paris that names another cluster loses its stream.
    reports.send(AgentMessage { cluster: "tokyo".into(), services: Vec::new() }).await.unwrap();
    let refused = loop {
        match timeout(PATIENCE, directives.message()).await.expect("an end in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    // The member that served the gateway dies; the gateway goes elsewhere, and is seen there.
    control_plane.kill(3);
    let have = gateway.have.clone();
    let returning = GatewayHello { versions: have, ..hello("paris", "gw-1", 15_000) };
    let mut gateway = Gateway::connect(&control_plane, 2, &credential, returning).await.unwrap();
    let update = gateway.update().await;
    assert!(!update.full);
    gateway.accept(&update).await;
    eventually("the gateway is synced as seen from the other member", || async {
        let status = control_plane.status(1).await.map_err(|status| status.to_string())?;
        let paris = status.clusters.iter().find(|cluster| cluster.name == "paris").ok_or("no paris")?;
        if paris.gateways[0].state == "synced" { Ok(()) } else { Err(format!("{paris:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_sends_its_gateways_elsewhere() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    let credential = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let alone = control_plane.follower().await;
    let mut gateway =
        Gateway::connect(&control_plane, alone, &credential, hello("paris", "gw-1", 15_000)).await.unwrap();
    let update = gateway.update().await;
    gateway.accept(&update).await;
    for id in control_plane.running().into_iter().filter(|id| *id != alone).collect::<Vec<_>>() {
        control_plane.kill(id);
    }
    let status = loop {
        // Signs of life, so that silence is not what ends it.
        gateway.send(Body::Report(GatewayReport::default())).await;
        match timeout(Duration::from_secs(2), gateway.directives.message()).await {
            Ok(Err(status)) => break status,
            Ok(Ok(Some(GatewayDirective { body: Some(gateway_directive::Body::Update(update)) }))) => {
                gateway.accept(&update).await;
            }
            Ok(Ok(other)) => panic!("it ended without a reason: {other:?}"),
            Err(_) => {}
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("cut off"), "{status}");
    // When there is no better member, it is served here as before.
    let mut gateway =
        Gateway::connect(&control_plane, alone, &credential, hello("paris", "gw-1", 15_000)).await.unwrap();
    assert!(gateway.update().await.full);
}
