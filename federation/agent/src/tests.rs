//! The agent as its gateways and the control plane see it, over real sockets.

use std::{collections::BTreeMap, path::Path};

use archipelago_base::shutdown::ShutdownTrigger;
use archipelago_identity::{
    MeshRole, SpiffeId,
    testing::TestAuthority,
    tls::{ClientAuth, Expect},
};
use archipelago_proto::v1::{
    self, AgentDirective, AgentMessage, AgentReport, LocalUpdate, WatchLocalRequest,
    agent_control_server::{AgentControl, AgentControlServer},
    agent_message::Body,
    local_discovery_client::LocalDiscoveryClient,
};
use archipelago_rpc::{
    grpc,
    server::{Access, Call, Caller, Limits, Rule, Server},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

use super::*;
use crate::provider::file::ServiceFiles;

mod orchestrator;

/// Generous: the machine that runs this may be busy with something else.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    authority: TestAuthority,
    temp: tempfile::TempDir,
    address: String,
    control_plane: String,
    reports: mpsc::Receiver<(SpiffeId, AgentReport)>,
    trigger: ShutdownTrigger,
    agent: JoinHandle<anyhow::Result<()>>,
}

impl Fixture {
    async fn start(services: &[(&str, String)]) -> Self {
        let authority = TestAuthority::new("mesh.example");
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("services")).unwrap();
        for (name, text) in services {
            fs::write(temp.path().join("services").join(name), text).unwrap();
        }
        let (control_plane, reports) = control_plane(&authority).await;
        let (address, trigger, agent) = spawn(&authority, temp.path(), &control_plane);
        Self { authority, temp, address, control_plane, reports, trigger, agent }
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.temp.path().join("services").join(name);
        archipelago_base::durable::write(&file, text.as_bytes(), 0o644).unwrap();
    }

    async fn watch(&self, cluster: &str) -> Result<Streaming<LocalUpdate>, Status> {
        let credential = self.authority.gateway(cluster, "gw-1");
        let agent = Expect::Id(SpiffeId::agent(self.authority.trust_domain(), "paris", "agent"));
        let channel = grpc::connect(std::slice::from_ref(&self.address), &credential, agent).await.unwrap();
        let request = WatchLocalRequest { gateway: "gw-1".into() };
        LocalDiscoveryClient::new(channel).watch(request).await.map(Response::into_inner)
    }

    /// Waits for a report that `expected` accepts.
    async fn report(&mut self, expected: impl Fn(&AgentReport) -> bool) -> (SpiffeId, AgentReport) {
        let wait = async {
            loop {
                let (id, message) = self.reports.recv().await.unwrap();
                if expected(&message) {
                    return (id, message);
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("no such report")
    }

    async fn stop(self) -> (TestAuthority, tempfile::TempDir, String) {
        self.trigger.request();
        timeout(PATIENCE, self.agent).await.expect("did not stop").unwrap().unwrap();
        (self.authority, self.temp, self.control_plane)
    }
}

fn spawn(
    authority: &TestAuthority,
    dir: &Path,
    control_plane: &str,
) -> (String, ShutdownTrigger, JoinHandle<anyhow::Result<()>>) {
    spawn_with(authority, dir, control_plane, ServiceFiles { services: dir.join("services") })
}

fn spawn_with(
    authority: &TestAuthority,
    dir: &Path,
    control_plane: &str,
    provider: impl Provider,
) -> (String, ShutdownTrigger, JoinHandle<anyhow::Result<()>>) {
    let id = SpiffeId::agent(authority.trust_domain(), "paris", "agent");
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config {
        cluster: "paris".into(),
        state_dir: dir.to_owned(),
        control_plane: vec![control_plane.to_owned()],
        credential: authority.live(&id),
        listener: bind(local).unwrap(),
        metrics_listener: bind(local).unwrap(),
    };
    let address = config.listener.local_addr().unwrap().to_string();
    let (trigger, shutdown) = Shutdown::manual();
    let agent = tokio::spawn(serve(config, provider, State::load(dir), shutdown));
    (address, trigger, agent)
}

/// A control plane that writes down who reported what.
async fn control_plane(authority: &TestAuthority) -> (String, mpsc::Receiver<(SpiffeId, AgentReport)>) {
    const ACCESS: Access =
        Access(&[Rule { path: "/archipelago.v1.AgentControl/", callers: &[Caller::Agent], call: Call::Streaming }]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let credential = authority.live(&SpiffeId::control_plane(authority.trust_domain(), 1));
    let (sender, reports) = mpsc::channel(64);
    let server =
        Server { name: "test", credential, auth: ClientAuth::Required, access: ACCESS, limits: Limits::default() };
    let routes = Routes::new(AgentControlServer::new(Recorder { sender }));
    tokio::spawn(server.serve(listener, routes, std::future::pending()));
    (address, reports)
}

struct Recorder {
    sender: mpsc::Sender<(SpiffeId, AgentReport)>,
}

#[tonic::async_trait]
impl AgentControl for Recorder {
    type StreamStream = ReceiverStream<Result<AgentDirective, Status>>;

    async fn stream(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let id = grpc::require(&request, |role| matches!(role, MeshRole::Agent { .. }))?;
        let mut messages = request.into_inner();
        let (directives, stream) = mpsc::channel(1);
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let Ok(Some(AgentMessage { body: Some(Body::Hello(hello)) })) = messages.message().await else {
                panic!("the first message is no hello")
            };
            assert!(hello.cluster == "paris" && hello.order.is_some_and(|order| order.boot > 0 && order.session > 0));
            while let Ok(Some(AgentMessage { body: Some(Body::Report(report)) })) = messages.message().await {
                if sender.send((id.clone(), report)).await.is_err() {
                    break;
                }
            }
            drop(directives);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn service(name: &str, endpoints: &[(SocketAddr, &str)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(address, version)| format!("    - {{ address: \"{address}\", version: {version} }}\n"))
        .collect();
    let endpoints = if endpoints.is_empty() { " []\n".to_owned() } else { format!("\n{endpoints}") };
    format!(
        "apiVersion: archipelago.dev/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  port: 80\n  healthCheck: {{ tcp: true, interval: 50ms, timeout: 5s, unhealthyAfter: 1 }}\n  endpoints:{endpoints}---\napiVersion: archipelago.dev/v1alpha1\nkind: ServiceExport\nmetadata: {{ name: {name}, namespace: shop }}\n"
    )
}

/// Listens and never answers: enough for a TCP check.
async fn backend() -> (SocketAddr, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    (address, task)
}

/// An address on which nobody listens, for as long as the socket that keeps it lives.
fn nobody() -> (SocketAddr, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// The services of a reader that follows `updates` until `expected` holds.
async fn follow(
    updates: &mut Streaming<LocalUpdate>,
    known: &mut BTreeMap<String, Vec<(String, bool)>>,
    expected: impl Fn(&BTreeMap<String, Vec<(String, bool)>>) -> bool,
) {
    let wait = async {
        while known.is_empty() || !expected(known) {
            let update = updates.message().await.unwrap().expect("the stream ended");
            if update.full {
                known.clear();
            }
            for service in update.upserts {
                let endpoints = service
                    .endpoints
                    .into_iter()
                    .map(|endpoint| (endpoint.version.clone(), endpoint.readiness() == v1::Readiness::Ready))
                    .collect();
                known.insert(format!("{}/{}", service.namespace, service.name), endpoints);
            }
            for gone in update.removals {
                assert!(known.remove(&gone).is_some(), "{gone} was not known");
            }
        }
    };
    if timeout(PATIENCE, wait).await.is_err() {
        panic!("never as expected, last: {known:?}");
    }
}

fn ready(version: &str) -> (String, bool) {
    (version.to_owned(), true)
}

fn down(version: &str) -> (String, bool) {
    (version.to_owned(), false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_and_control_plane_hear_of_every_change() {
    let (one, one_task) = backend().await;
    let (two, _two_task) = backend().await;
    let (three, _kept) = nobody();
    let mut fixture =
        Fixture::start(&[("a.yaml", service("checkout", &[(one, "v1"), (two, "v2"), (three, "v3")]))]).await;
    let mut updates = fixture.watch("paris").await.unwrap();

    // The first message is complete, and made after every endpoint was asked.
    let first = timeout(PATIENCE, updates.message()).await.unwrap().unwrap().unwrap();
    assert!(first.full);
    let states: Vec<bool> =
        first.upserts[0].endpoints.iter().map(|endpoint| endpoint.readiness() == v1::Readiness::Ready).collect();
    assert_eq!(states, [true, true, false]);
    let mut known = BTreeMap::from([("shop/checkout".to_owned(), vec![ready("v1"), ready("v2"), down("v3")])]);
    let (id, report) = fixture.report(|message| message.services.iter().any(|service| service.ready == 2)).await;
    assert_eq!(id.to_string(), "spiffe://mesh.example/cluster/paris/agent/agent");
    assert_eq!((report.services[0].total, report.services[0].exported), (3, true));
    assert_eq!(report.services[0].versions, ["v1", "v2", "v3"]);

    // An endpoint dies.
    one_task.abort();
    follow(&mut updates, &mut known, |known| known["shop/checkout"] == [down("v1"), ready("v2"), down("v3")]).await;
    fixture.report(|message| message.services[0].ready == 1).await;

    // A file appears, one breaks (its last good state stays), one is repaired with less in it.
    fixture.write("b.yaml", &service("web", &[(two, "v1")]));
    follow(&mut updates, &mut known, |known| known.get("shop/web").is_some_and(|web| *web == [ready("v1")])).await;
    fixture.write("a.yaml", "kind: [");
    fixture.write("b.yaml", &service("store", &[(two, "v1")]));
    follow(&mut updates, &mut known, |known| known.contains_key("shop/store") && !known.contains_key("shop/web")).await;
    assert_eq!(known["shop/checkout"], [down("v1"), ready("v2"), down("v3")]);
    fixture.write("a.yaml", &service("checkout", &[]));
    follow(&mut updates, &mut known, |known| known["shop/checkout"].is_empty()).await;
    fixture
        .report(|message| message.services.iter().all(|service| service.name != "checkout" || service.total == 0))
        .await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_gateways_of_the_same_cluster_may_watch() {
    let fixture = Fixture::start(&[("a.yaml", service("web", &[]))]).await;
    let status = fixture.watch("tokyo").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("cluster/tokyo/gateway/gw-1"), "{status}");
    let operator = SpiffeId::operator(fixture.authority.trust_domain(), "me");
    let agent = Expect::Id(SpiffeId::agent(fixture.authority.trust_domain(), "paris", "agent"));
    let credential = fixture.authority.live(&operator);
    let channel = grpc::connect(std::slice::from_ref(&fixture.address), &credential, agent).await.unwrap();
    let refused = LocalDiscoveryClient::new(channel).watch(WatchLocalRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(fixture.watch("paris").await.is_ok());
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_control_plane_beside_a_broken_file_knows_what_was() {
    let (one, _task) = backend().await;
    let fixture = Fixture::start(&[("a.yaml", service("web", &[(one, "v1")]))]).await;
    let mut updates = fixture.watch("paris").await.unwrap();
    let mut known = BTreeMap::new();
    follow(&mut updates, &mut known, |known| known["shop/web"] == [ready("v1")]).await;
    let (authority, temp, _) = fixture.stop().await;
    assert_eq!(State::load(temp.path()).ready.len(), 1);

    let (absent, _kept) = nobody();
    fs::write(temp.path().join("services/a.yaml"), b"\xff\xfe broken").unwrap();
    let (address, trigger, agent) = spawn(&authority, temp.path(), &absent.to_string());
    let (_, unused) = mpsc::channel(1);
    let fixture = Fixture { authority, temp, address, control_plane: String::new(), reports: unused, trigger, agent };
    let mut updates = fixture.watch("paris").await.unwrap();
    let mut known = BTreeMap::new();
    follow(&mut updates, &mut known, |known| known["shop/web"] == [ready("v1")]).await;
    fixture.stop().await;
}

#[test]
fn a_token_for_something_else_is_refused_before_it_is_spent() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("token");
    let args = |token_file: Option<std::path::PathBuf>| Args {
        cluster: "paris".into(),
        name: "agent".into(),
        state_dir: temp.path().to_owned(),
        control_plane: Vec::new(),
        token_file,
        join_config: None,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    assert!(read_token(&args(None)).unwrap().is_none());
    assert!(read_token(&args(Some(file.clone()))).unwrap().is_none(), "a token file that is gone is no mistake");
    let token = enrol::JoinToken {
        control_plane: vec!["127.0.0.1:7400".into()],
        trust_domain: "mesh.example".into(),
        cluster: "paris".into(),
        role: "agent".into(),
        name: "agent".into(),
        secret: [7; 32],
        ca_sha256: [9; 32],
        expires_unix: 1_800_000_000,
    };
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        read_token(&args(Some(file.clone()))).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(read(&format!("{token}\n")).unwrap().unwrap().cluster, "paris");
    let tokyo = enrol::JoinToken { cluster: "tokyo".into(), role: "gateway".into(), name: "gw-1".into(), ..token };
    let error = read(&tokyo.to_string()).unwrap_err();
    assert!(
        error.contains("the token is for gateway gw-1 of cluster tokyo, but this is agent agent of cluster paris"),
        "{error}"
    );
    assert!(read("hello").unwrap_err().contains("not a join token"));
}
