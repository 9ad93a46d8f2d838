//! The streams of gateways and agents, and what operators see of them, over three members.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::time::Duration;

use archipelago_identity::LiveCredential;
use archipelago_model::{feature, stream::Held};
use archipelago_proto::v1::{
    AgentDirective, AgentHello, AgentMessage, AgentReport, AgentWelcome, ConfigAck, ConfigUpdate, ExplainQuery,
    ExplainReply, ExplainRequest, ExplainResponse, GatewayAddresses, GatewayDirective, GatewayHello, GatewayMessage,
    GatewayReport, HasLeader, HeldResources, JoinRole, Kept, NoLeader, Notice, Problem, Protocol, ReportedPort,
    ResourceKey, ResourceRejection, ServiceReport, ServicesRequest, StatusRequest, TunnelStatus, TunnelsRequest,
    UpdateRefusal, WaitAppliedProgress, WaitAppliedRequest, agent_control_client::AgentControlClient, agent_directive,
    agent_message, config_resource, fleet_client::FleetClient, gateway_control_client::GatewayControlClient,
    gateway_directive, gateway_message::Body, notice, update_refusal::Reason,
};
use common::{ControlPlane, PATIENCE, cluster, eventually};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A gateway as the control plane sees it.
struct Gateway {
    messages: mpsc::Sender<GatewayMessage>,
    directives: Streaming<GatewayDirective>,
    held: Held,
}

impl Gateway {
    async fn connect(
        control_plane: &ControlPlane,
        member: u64,
        credential: &LiveCredential,
        hello: GatewayHello,
    ) -> Result<Self, Status> {
        Self::connect_with(control_plane, member, credential, hello, Held::default()).await
    }

    /// Connects as one that holds something already.
    async fn connect_with(
        control_plane: &ControlPlane,
        member: u64,
        credential: &LiveCredential,
        hello: GatewayHello,
        held: Held,
    ) -> Result<Self, Status> {
        let hello = GatewayHello {
            running: Some(held.version.into()),
            held_digest: held.resources.digest().to_bytes(),
            features: feature::ALL.iter().map(ToString::to_string).collect(),
            ..hello
        };
        let (messages, outgoing) = mpsc::channel(16);
        messages.send(GatewayMessage { body: Some(Body::Hello(hello)) }).await.unwrap();
        let channel = control_plane.channel_as(member, credential).await?;
        let directives = GatewayControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { messages, directives, held })
    }

    async fn directive(&mut self) -> gateway_directive::Body {
        let directive = timeout(PATIENCE, self.directives.message()).await.expect("a directive in time").unwrap();
        directive.expect("the stream goes on").body.unwrap()
    }

    /// The next update; a question for what is held is answered on the way.
    async fn update(&mut self) -> ConfigUpdate {
        loop {
            match self.directive().await {
                gateway_directive::Body::Update(update) => return update,
                gateway_directive::Body::SendHeld(_) => {
                    let versions = self.held.resources.iter().map(|row| (row.name.clone(), row.version.to_vec()));
                    self.send(Body::Held(HeldResources { versions: versions.collect() })).await;
                }
                // Said again whenever what the federation has moves, as a registration makes it.
                gateway_directive::Body::Notice(Notice { notice: Some(notice::Notice::Behind(_)) }) => {}
                other => panic!("not an update: {other:?}"),
            }
        }
    }

    /// Takes an update in, as a gateway would.
    async fn accept(&mut self, update: &ConfigUpdate) {
        self.accept_but(update, &[]).await;
    }

    /// The same, and cannot use some resources of it.
    async fn accept_but(&mut self, update: &ConfigUpdate, rejections: &[ResourceRejection]) {
        self.held = self.held.take(update).unwrap();
        let ack = ConfigAck { version: update.version, rejections: rejections.to_vec(), ..ConfigAck::default() };
        self.send(Body::Ack(ack)).await;
    }

    fn has(&self, name: &str) -> bool {
        self.held.resources.get(name).is_some()
    }

    async fn send(&self, body: Body) {
        self.messages.send(GatewayMessage { body: Some(body) }).await.unwrap();
    }

    /// Accepts updates until one reaches `revision`.
    async fn follow_to(&mut self, revision: u64) {
        loop {
            let update = self.update().await;
            self.accept(&update).await;
            if self.held.version.revision >= revision {
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

/// The stream of an agent that says hello for `cluster`.
async fn agent_stream(
    control_plane: &ControlPlane,
    member: u64,
    credential: &LiveCredential,
    cluster: &str,
) -> Result<(mpsc::Sender<AgentMessage>, Streaming<AgentDirective>), Status> {
    let (messages, outgoing) = mpsc::channel(4);
    let hello = AgentHello { cluster: cluster.into(), ..AgentHello::default() };
    messages.send(AgentMessage { body: Some(agent_message::Body::Hello(hello)) }).await.unwrap();
    let channel = control_plane.channel_as(member, credential).await?;
    let directives = AgentControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await?.into_inner();
    Ok((messages, directives))
}

fn reporting(services: Vec<ServiceReport>) -> AgentMessage {
    AgentMessage { body: Some(agent_message::Body::Report(AgentReport { services })) }
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
    let agent = control_plane.join("paris", JoinRole::Agent, "").await;
    let refused = agent_stream(&control_plane, 1, &agent, "tokyo").await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    // Each at another member. The first update is complete; the registration of the peers arrives as a delta.
    let mut first = Gateway::connect(&control_plane, 2, &paris, hello("paris", "gw-1", 15_000)).await.unwrap();
    let update = first.update().await;
    assert!(update.full && update.upserts.iter().any(|resource| resource.name == "cluster/tokyo"), "{update:?}");
    first.accept(&update).await;
    let mut second = Gateway::connect(&control_plane, 3, &tokyo, hello("tokyo", "gw-1", 16_000)).await.unwrap();
    while !first.has("peer/tokyo/gw-1") {
        let update = first.update().await;
        assert!(!update.full && update.upserts.len() <= 1, "a delta: {update:?}");
        first.accept(&update).await;
    }
    while !second.has("peer/paris/gw-1") {
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

    // What one gateway cannot use is told with resource and reason, holds up nothing, and is mended by the next revision.
    let revision = control_plane.apply(2, "", &cluster("rome", "eu-south")).await.unwrap().revision;
    let update = first.update().await;
    assert_eq!(update.version.unwrap().revision, revision);
    let rejection = ResourceRejection {
        resource: "cluster/rome".into(),
        reason: "no such port".into(),
        kept: Kept::Closed.into(),
        ..ResourceRejection::default()
    };
    first.accept_but(&update, std::slice::from_ref(&rejection)).await;
    second.follow_to(revision).await;
    let refused = wait_applied(&control_plane, 3, revision, 20_000).await;
    assert_eq!((refused.acknowledged, refused.stragglers.len()), (1, 0));
    let named: Vec<_> = refused.rejections.iter().map(|r| (&*r.gateway, &*r.resource, &*r.error)).collect();
    assert_eq!(named, [("paris/gw-1", "cluster/rome", "no such port")]);
    let status = control_plane.status(1).await.unwrap();
    let state = |name: &str| {
        let cluster = status.clusters.iter().find(|cluster| cluster.name == name).unwrap();
        let gateway = cluster.gateways.first().map(|gateway| (gateway.state.clone(), gateway.problems.len()));
        (cluster.state.clone(), gateway)
    };
    assert_eq!(state("paris"), ("active".to_owned(), Some(("synced".to_owned(), 1))));
    assert_eq!(state("tokyo"), ("active".to_owned(), Some(("synced".to_owned(), 0))));
    assert_eq!(state("oslo"), ("pending".to_owned(), None));
    // A later write is not held up by it, unless it is about the same; and it stays in sight.
    let later = control_plane.apply(2, "", &cluster("nice", "eu-south")).await.unwrap().revision;
    let update = first.update().await;
    first.accept_but(&update, &[rejection]).await;
    second.follow_to(later).await;
    for (kind, name, rejected) in [("Cluster", "nice", 0), ("Cluster", "rome", 1), ("Cluster", "nobody", 0)] {
        let wrote = ResourceKey { kind: kind.into(), namespace: String::new(), name: name.into() };
        let request =
            WaitAppliedRequest { revision: later, timeout_ms: 20_000, wrote: vec![wrote], ..Default::default() };
        let mut fleet = FleetClient::new(control_plane.channel(3).await.unwrap());
        let mut progress = fleet.wait_applied(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(message) = progress.message().await.unwrap() {
            last = Some(message);
        }
        let last = last.unwrap();
        assert_eq!(
            (last.rejections.len(), last.acknowledged),
            (rejected, 2 - u32::try_from(rejected).unwrap()),
            "{name}"
        );
    }
    let paris = control_plane.status(1).await.unwrap().clusters.into_iter().find(|cluster| cluster.name == "paris");
    assert_eq!(paris.unwrap().gateways[0].problems.len(), 1);
    let revision = control_plane.apply(2, "", &cluster("lima", "sa-west")).await.unwrap().revision;
    let update = first.update().await;
    let names: Vec<_> = update.upserts.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["cluster/lima"], "the difference to what it holds");
    first.accept(&update).await;
    second.follow_to(revision).await;
    assert_eq!(wait_applied(&control_plane, 1, revision, 20_000).await.acknowledged, 2);

    // An update that is refused whole is told too, and the stream goes on.
    let revision = control_plane.apply(2, "", &cluster("bern", "eu-west")).await.unwrap().revision;
    let update = first.update().await;
    let refused = UpdateRefusal { reason: Some(Reason::Unusable("foreign".into())) };
    let ack = ConfigAck { version: update.version, refused: Some(refused), ..ConfigAck::default() };
    first.send(Body::Ack(ack)).await;
    second.follow_to(revision).await;
    let progress = wait_applied(&control_plane, 3, revision, 20_000).await;
    assert_eq!((&*progress.rejections[0].resource, &*progress.rejections[0].error), ("", "foreign"));
    let revision = control_plane.apply(2, "", &cluster("kyiv", "eu-east")).await.unwrap().revision;
    first.follow_to(revision).await;
    second.follow_to(revision).await;

    // A gateway that left is a straggler by name; when it returns with what it had, it costs a bookmark.
    let held = second.held.clone();
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
    let mut second =
        Gateway::connect_with(&control_plane, 1, &tokyo, hello("tokyo", "gw-1", 16_000), held).await.unwrap();
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
    assert!(!first.has("peer/tokyo/gw-1") && !first.has("cluster/tokyo"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_reports_tunnels_and_questions_cross_members() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let agent = control_plane.join("paris", JoinRole::Agent, "").await;
    let (reports, mut directives) = agent_stream(&control_plane, 2, &agent, "paris").await.unwrap();
    let welcome = directives.message().await.unwrap().unwrap();
    assert_eq!(
        welcome.body,
        Some(agent_directive::Body::Welcome(AgentWelcome { member: 2, trust_domain: "mesh.example".into() }))
    );
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
    let port = |name: &str, port: u32, protocol: Protocol| ReportedPort {
        name: name.into(),
        port,
        protocol: protocol.into(),
        app_protocol: String::new(),
    };
    let report = |ready: u32| {
        let ports = vec![port("books", 8080, Protocol::Tcp), port("admin", 8081, Protocol::Http1)];
        let ledger = ServiceReport { ports, ..service("ledger", Protocol::Tcp, ready) };
        reporting(vec![service("checkout", Protocol::Http1, ready), ledger])
    };
    reports.send(report(2)).await.unwrap();

    let credential = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let mut gateway = Gateway::connect(&control_plane, 3, &credential, hello("paris", "gw-1", 15_000)).await.unwrap();
    while !gateway.has("service/shop/ledger") {
        let update = gateway.update().await;
        gateway.accept(&update).await;
    }
    let services = |member: u64| {
        let control_plane = &control_plane;
        async move {
            let mut fleet = FleetClient::new(control_plane.channel(member).await.map_err(|status| status.to_string())?);
            fleet
                .services(ServicesRequest::default())
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
        let ports: Vec<_> = ledger.ports.iter().map(|port| (&*port.name, port.port, port.tcp_slot)).collect();
        assert_eq!(ports, [("books", 8080, Some(0)), ("admin", 8081, None)]);
    }
    let ledger = gateway.held.resources.get("service/shop/ledger").unwrap();
    assert!(ledger.required_features.contains(&feature::SERVICE_PORTS.to_owned()), "{ledger:?}");
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
    let taken = Problem { subject: "TCP service".into(), reason: "port 7522 is taken".into() };
    gateway.send(Body::Report(GatewayReport { tunnels: vec![tunnel], unserved: vec![taken.clone()] })).await;
    let tunnels = eventually("the tunnel is seen", || async {
        let mut fleet = FleetClient::new(control_plane.channel(1).await.map_err(|status| status.to_string())?);
        let tunnels = fleet.tunnels(TunnelsRequest {}).await.map_err(|status| status.to_string())?.into_inner().tunnels;
        if tunnels.len() == 1 { Ok(tunnels) } else { Err(format!("{tunnels:?}")) }
    })
    .await;
    assert_eq!((&*tunnels[0].from_cluster, &*tunnels[0].from), ("paris", "paris/gw-1"), "a gateway speaks for itself");
    let mut fleet = FleetClient::new(control_plane.channel(1).await.unwrap());
    let status = fleet.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.clusters[0].gateways[0].problems, [taken], "what it cannot serve is seen everywhere");
    assert!(status.fleet > 0, "a gateway was registered: {status:?}");

    // Asked at member 1, answered by a gateway of member 3.
    let mut fleet = FleetClient::new(control_plane.channel(1).await.unwrap());
    let query = ExplainQuery { host: "checkout.shop".into(), ..Default::default() };
    let question = ExplainRequest { cluster: "paris".into(), gateway: String::new(), query: Some(query) };
    let asked = tokio::spawn(async move { fleet.explain(question).await });
    let ask = loop {
        match gateway.directive().await {
            gateway_directive::Body::Explain(ask) => break ask,
            gateway_directive::Body::Update(update) => gateway.accept(&update).await,
            other => panic!("neither a question nor an update: {other:?}"),
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

    // The member that served the gateway dies; the gateway goes elsewhere, and is seen there.
    control_plane.kill(3);
    let held = gateway.held.clone();
    let mut gateway =
        Gateway::connect_with(&control_plane, 2, &credential, hello("paris", "gw-1", 15_000), held).await.unwrap();
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

/// A member without a majority keeps the session, says so and offers nothing, however long it takes; and goes on when it has one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_majority_offers_nothing_and_says_so() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    let credential = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let alone = control_plane.follower().await;
    let others: Vec<u64> = control_plane.running().into_iter().filter(|id| *id != alone).collect();
    others.iter().for_each(|id| control_plane.kill(*id));
    let mut gateway =
        Gateway::connect(&control_plane, alone, &credential, hello("paris", "gw-1", 15_000)).await.unwrap();
    let no_leader = Notice { notice: Some(notice::Notice::NoLeader(NoLeader { member: alone })) };
    assert_eq!(gateway.directive().await, gateway_directive::Body::Notice(no_leader));
    // Longer than it takes to give up on a barrier.
    let until = tokio::time::Instant::now() + Duration::from_secs(12);
    while tokio::time::Instant::now() < until {
        // Signs of life, so that silence is not what ends it.
        gateway.send(Body::Report(GatewayReport::default())).await;
        let heard = timeout(Duration::from_secs(1), gateway.directives.message()).await;
        assert!(heard.is_err(), "nothing is offered: {heard:?}");
    }
    control_plane.start_member(others[0]);
    let has_leader = Notice { notice: Some(notice::Notice::HasLeader(HasLeader { member: alone })) };
    assert_eq!(gateway.directive().await, gateway_directive::Body::Notice(has_leader));
    assert!(gateway.update().await.full);
}

/// What one agent or gateway says that nobody could use is left out alone, told to whoever said it, and shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_peer_says_can_poison_what_others_get() {
    let control_plane = ControlPlane::start(1, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let liar = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let mut said = hello("paris", "gw-1", 15_000);
    said.addresses.as_mut().unwrap().tunnel.insert(0, "nonsense".into());
    let mut liar = Gateway::connect(&control_plane, 1, &liar, said).await.unwrap();
    let gateway_directive::Body::Notice(Notice { notice: Some(notice::Notice::Problems(told)) }) =
        liar.directive().await
    else {
        panic!("it is told first")
    };
    assert_eq!((told.problems.len(), &*told.problems[0].subject), (1, "tunnel address 1"));

    let agent = control_plane.join("paris", JoinRole::Agent, "").await;
    let (reports, mut directives) = agent_stream(&control_plane, 1, &agent, "paris").await.unwrap();
    let service = |name: &str, protocol: i32, port: u32| ServiceReport {
        namespace: "shop".into(),
        name: name.into(),
        protocol,
        port,
        exported: true,
        ..ServiceReport::default()
    };
    let http = Protocol::Http1.into();
    let bad = [service("far", http, 70_000), service("odd", 99, 80), service("Not A Name", http, 80)];
    reports.send(reporting([&bad[..], &[service("web", http, 80)]].concat())).await.unwrap();
    let problems = loop {
        let directive = timeout(PATIENCE, directives.message()).await.expect("a notice in time").unwrap().unwrap();
        if let Some(agent_directive::Body::Notice(Notice { notice: Some(notice::Notice::Problems(told)) })) =
            directive.body
        {
            break told.problems;
        }
    };
    let subjects: Vec<_> = problems.iter().map(|problem| &*problem.subject).collect();
    assert_eq!(subjects, ["service shop/far", "service shop/odd", "service shop/Not A Name"]);

    // Others get what is good, and can use all of it.
    let tokyo = control_plane.join("tokyo", JoinRole::Gateway, "gw-1").await;
    let mut tokyo = Gateway::connect(&control_plane, 1, &tokyo, hello("tokyo", "gw-1", 16_000)).await.unwrap();
    while !(tokyo.has("service/shop/web") && tokyo.has("peer/paris/gw-1")) {
        let update = tokyo.update().await;
        tokyo.accept(&update).await;
    }
    for resource in tokyo.held.resources.iter() {
        match resource.body.as_ref().unwrap() {
            config_resource::Body::Peer(peer) => assert_eq!(peer.tunnel_addresses, ["127.0.0.1:15001"]),
            config_resource::Body::Service(service) => assert_eq!(service.name, "web"),
            _ => {}
        }
    }
    let status = control_plane.status(1).await.unwrap();
    let paris = status.clusters.iter().find(|cluster| cluster.name == "paris").unwrap();
    assert_eq!((paris.problems.len(), paris.gateways[0].problems.len()), (3, 1), "{paris:?}");
}

/// A backup that is put back under a gateway that runs something newer: nothing is offered and both sides say so, until the
/// restore is declared; then the gateway takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_is_obeyed_once_it_is_declared() {
    let mut control_plane = ControlPlane::start(1, &[]).await;
    let credential = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let mut gateway = Gateway::connect(&control_plane, 1, &credential, hello("paris", "gw-1", 15_000)).await.unwrap();
    let update = gateway.update().await;
    gateway.accept(&update).await;
    control_plane.kill(1);
    let backup = control_plane.dir.path().join("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&control_plane.data_dir(1), &backup);
    control_plane.start_member(1);
    let written = eventually("a write after the backup", || async {
        control_plane.apply(1, "", &cluster("oslo", "eu-north")).await.map_err(|status| status.to_string())
    })
    .await;
    let held = gateway.held;
    let mut gateway =
        Gateway::connect_with(&control_plane, 1, &credential, hello("paris", "gw-1", 15_000), held).await.unwrap();
    gateway.follow_to(written.revision).await;
    control_plane.kill(1);
    copy(&backup, &control_plane.data_dir(1));
    control_plane.start_member(1);
    let held = gateway.held;
    let running = held.version;
    let mut gateway = eventually("the member answers again", || async {
        Gateway::connect_with(&control_plane, 1, &credential, hello("paris", "gw-1", 15_000), held.clone())
            .await
            .map_err(|status| status.to_string())
    })
    .await;
    let gateway_directive::Body::Notice(Notice { notice: Some(notice::Notice::Behind(behind)) }) =
        gateway.directive().await
    else {
        panic!("nothing older is offered")
    };
    assert_eq!(behind.running, Some(running.into()));
    let told = eventually("status says what to do", || async {
        let status = control_plane.status(1).await.map_err(|status| status.to_string())?;
        let gateway = status.clusters.iter().flat_map(|cluster| &cluster.gateways).next().ok_or("no gateway")?.clone();
        if gateway.error.is_empty() { Err(format!("{gateway:?}")) } else { Ok(gateway.error) }
    })
    .await;
    assert!(told.contains("runs revision") && told.contains("meshctl raft restored"), "{told}");
    let mut resources =
        archipelago_proto::v1::resources_client::ResourcesClient::new(control_plane.channel(1).await.unwrap());
    resources.raise_restore_epoch(archipelago_proto::v1::RaiseRestoreEpochRequest::default()).await.unwrap();
    let update = gateway.update().await;
    gateway.accept(&update).await;
    assert!(gateway.held.version > running && !gateway.has("cluster/oslo"));
}
