//! A provider with something to say and to hear, between its gateways and a control plane that a test drives.

use archipelago_proto::v1::{
    AgentHello, AgentPolicies, Capture, Captures, ClusterPolicy, Exporter, Import, Imports as ImportsMessage,
    PolicyStatus, PolicyStatuses, ReviewAsk, agent_directive::Body as Said,
};
use tokio::sync::oneshot;

use super::*;
use crate::provider::{Addresses, Workload, Workloads};

/// Hands its link to the test.
struct Puppet {
    link: oneshot::Sender<Link>,
}

impl Provider for Puppet {
    fn name(&self) -> &'static str {
        "puppet"
    }

    fn is_replicated(&self) -> bool {
        true
    }

    async fn follow(self, link: Link, shutdown: Shutdown) {
        self.link.send(link).unwrap();
        shutdown.requested().await;
    }
}

/// A stream that an agent opened: what it says, and a way to answer.
struct Session {
    hello: AgentHello,
    messages: mpsc::Receiver<Body>,
    directives: mpsc::Sender<Result<AgentDirective, Status>>,
}

impl Session {
    async fn next<T>(&mut self, wanted: impl Fn(Body) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = wanted(self.messages.recv().await.expect("the stream ended")) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("no such message")
    }

    async fn say(&self, body: Said) {
        self.directives.send(Ok(AgentDirective { body: Some(body) })).await.unwrap();
    }

    async fn ended(&mut self) {
        let wait = async { while self.messages.recv().await.is_some() {} };
        timeout(PATIENCE, wait).await.expect("the stream does not end");
    }
}

struct ControlPlane {
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl AgentControl for ControlPlane {
    type StreamStream = ReceiverStream<Result<AgentDirective, Status>>;

    async fn stream(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let mut stream = request.into_inner();
        let (directives, said) = mpsc::channel(8);
        let sessions = self.sessions.clone();
        tokio::spawn(async move {
            let Ok(Some(AgentMessage { body: Some(Body::Hello(hello)) })) = stream.message().await else {
                panic!("the first message is no hello")
            };
            let (sender, messages) = mpsc::channel(64);
            sessions.send(Session { hello, messages, directives }).await.unwrap();
            while let Ok(Some(AgentMessage { body: Some(body) })) = stream.message().await {
                if sender.send(body).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

struct Scene {
    fixture: Fixture,
    link: Link,
    sessions: mpsc::Receiver<Session>,
}

impl Scene {
    async fn start() -> Self {
        const ACCESS: Access =
            Access(&[Rule { path: "/archipelago.v1.AgentControl/", callers: &[Caller::Agent], call: Call::Streaming }]);
        let authority = TestAuthority::new("mesh.example");
        let temp = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let control_plane = listener.local_addr().unwrap().to_string();
        let credential = authority.live(&SpiffeId::control_plane(authority.trust_domain(), 1));
        let (sender, sessions) = mpsc::channel(4);
        let server =
            Server { name: "test", credential, auth: ClientAuth::Required, access: ACCESS, limits: Limits::default() };
        let routes = Routes::new(AgentControlServer::new(ControlPlane { sessions: sender }));
        tokio::spawn(server.serve(listener, routes, std::future::pending()));
        let (hand, handed) = oneshot::channel();
        let (address, trigger, agent) = spawn_with(&authority, temp.path(), &control_plane, Puppet { link: hand });
        let link = timeout(PATIENCE, handed).await.unwrap().unwrap();
        let (_, reports) = mpsc::channel(1);
        Self { fixture: Fixture { authority, temp, address, control_plane, reports, trigger, agent }, link, sessions }
    }

    async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("no session").unwrap()
    }
}

fn capture(listen: u32) -> Arc<Captures> {
    let capture = Capture { namespace: "shop".into(), name: "web".into(), port: 80, listen, ..Capture::default() };
    Arc::new(Captures { captures: vec![capture] })
}

fn pods(service_account: &str) -> Arc<Workloads> {
    let workload = Workload {
        namespace: "shop".into(),
        service_account: service_account.into(),
        uid: "u".into(),
        ips: Addresses::One("10.0.0.7".parse().unwrap()),
    };
    Arc::new(Workloads {
        fresh: true,
        workloads: vec![Arc::new(workload)],
        disputed: Vec::new(),
        node_ips: vec!["192.0.2.1".parse().unwrap()],
        zone: Some("z1".into()),
    })
}

async fn update(updates: &mut Streaming<LocalUpdate>) -> LocalUpdate {
    timeout(PATIENCE, updates.message()).await.expect("no update").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_hears_of_captures_and_of_who_runs_on_its_own_node() {
    let scene = Scene::start().await;
    let Scene { fixture, link, .. } = &scene;
    let mut first = fixture.watch("paris").await.unwrap();
    // Nothing was read yet, and so nothing is said: a gateway keeps what it had.
    let before = update(&mut first).await;
    assert!(before.full && before.captures.is_none() && before.workloads.is_none());
    link.captures.send_replace(capture(17_000));
    assert_eq!(
        update(&mut first).await,
        LocalUpdate { captures: Some(Captures::clone(&capture(17_000))), ..LocalUpdate::default() }
    );
    link.workloads.send_modify(|nodes| {
        nodes.insert("gw-1".into(), pods("web"));
        nodes.insert("gw-2".into(), pods("other"));
    });
    let said = update(&mut first).await;
    assert_eq!((said.captures, said.workloads), (None, Some(pods("web").to_proto())));

    // The first message to another has everything; what is said of other nodes is no news to this one.
    let mut second = fixture.watch("paris").await.unwrap();
    let whole = update(&mut second).await;
    assert!(whole.full);
    assert_eq!(whole.captures.as_ref(), Some(&*capture(17_000)));
    assert_eq!(whole.workloads, Some(pods("web").to_proto()));
    link.workloads.send_modify(|nodes| drop(nodes.insert("gw-2".into(), pods("another"))));
    link.captures.send_replace(capture(17_000));
    link.captures.send_replace(capture(17_001));
    for updates in [&mut first, &mut second] {
        assert_eq!(update(updates).await.captures, Some(Captures::clone(&capture(17_001))));
    }
    // A node that is gone has nobody, and that is said.
    link.workloads.send_modify(|nodes| drop(nodes.remove("gw-1")));
    assert_eq!(update(&mut first).await.workloads, Some(Workloads::default().to_proto()));
    scene.fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_while_it_leads_a_replica_speaks_with_the_control_plane() {
    let mut scene = Scene::start().await;
    scene.link.leading.send_replace(Some(7));
    let mut session = scene.session().await;
    let order = session.hello.order.unwrap();
    assert_eq!((order.boot, order.session), (7, 1));
    assert_eq!(session.hello.features, ["imports", "policies", "reviews"]);
    session.next(|body| matches!(body, Body::Report(_)).then_some(())).await;

    scene.link.leading.send_replace(None);
    session.ended().await;
    assert!(scene.sessions.try_recv().is_err());
    scene.link.leading.send_replace(Some(9));
    let mut session = scene.session().await;
    assert_eq!(session.hello.order.unwrap().boot, 9);
    // A later term of the same replica is another session, too.
    scene.link.leading.send_replace(Some(12));
    session.ended().await;
    assert_eq!(scene.session().await.hello.order.unwrap().boot, 12);
    scene.fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports_statuses_and_reviews_come_down_and_policies_go_up() {
    let mut scene = Scene::start().await;
    scene.link.leading.send_replace(Some(1));
    let mut session = scene.session().await;
    let link = &mut scene.link;

    // Policies: none before all were read, then each change.
    let policies = |name: &str| {
        let policy = ClusterPolicy { kind: "TrafficSplit".into(), name: name.into(), ..ClusterPolicy::default() };
        Some(Arc::new(AgentPolicies { policies: vec![policy] }))
    };
    for name in ["a", "b"] {
        link.policies.send_replace(policies(name));
        let sent = session.next(|body| if let Body::Policies(policies) = body { Some(policies) } else { None }).await;
        assert_eq!(sent.policies[0].name, name);
    }
    let status = PolicyStatus { name: "b".into(), reason: "Accepted".into(), ..PolicyStatus::default() };
    session.say(Said::Policies(PolicyStatuses { statuses: vec![status.clone()] })).await;
    timeout(PATIENCE, link.statuses.changed()).await.unwrap().unwrap();
    assert_eq!(**link.statuses.borrow_and_update(), [status]);

    // Imports: in parts, and then what changed.
    let import = |name: &str| Import {
        namespace: "shop".into(),
        name: name.into(),
        exporters: vec![Exporter { cluster: "tokyo".into(), ..Exporter::default() }],
    };
    let part = ImportsMessage { full: true, upserts: vec![import("a")], more: true, ..ImportsMessage::default() };
    session.say(Said::Imports(part)).await;
    session.say(Said::Imports(ImportsMessage { upserts: vec![import("b")], ..ImportsMessage::default() })).await;
    let names = |link: &mut Link| -> Vec<String> {
        let imports = link.imports.borrow_and_update();
        imports.as_ref().unwrap().keys().map(ToString::to_string).collect()
    };
    timeout(PATIENCE, link.imports.changed()).await.unwrap().unwrap();
    assert_eq!(names(link), ["shop/a", "shop/b"]);
    let change = ImportsMessage { removals: vec!["shop/a".into()], ..ImportsMessage::default() };
    session.say(Said::Imports(change)).await;
    timeout(PATIENCE, link.imports.changed()).await.unwrap().unwrap();
    assert_eq!(names(link), ["shop/b"]);

    // Reviews.
    let ask = ReviewAsk { id: 3, token: "t".into(), audience: "archipelago/mesh.example/paris".into() };
    session.say(Said::Review(ask)).await;
    let review = timeout(PATIENCE, link.reviews.recv()).await.unwrap().unwrap();
    review.answer.send(Ok("node-1.example".to_owned())).unwrap();
    let reply = session.next(|body| if let Body::Review(reply) = body { Some(reply) } else { None }).await;
    assert_eq!((reply.id, &*reply.gateway, &*reply.refusal), (3, "node-1.example", ""));

    // A change to what this session never sent ends it; the next begins with everything, and what was said stays.
    drop(session);
    let mut session = scene.session().await;
    session.say(Said::Imports(ImportsMessage::default())).await;
    session.ended().await;
    let mut session = scene.session().await;
    let sent = session.next(|body| if let Body::Policies(policies) = body { Some(policies) } else { None }).await;
    assert_eq!(sent.policies[0].name, "b");
    assert_eq!(names(&mut scene.link), ["shop/b"]);
    scene.fixture.stop().await;
}
