//! A port on real sockets, with clients that want nothing good.

use std::{
    net::{Ipv4Addr, TcpListener as StdListener},
    time::{Instant, SystemTime},
};

use archipelago_identity::{
    Credential,
    revocation::{Revocations, Subject},
    testing::TestAuthority,
    tls::Expect,
};
use archipelago_proto::v1::{
    AgentDirective, AgentMessage, ChallengeRequest, ChallengeResponse, CreateOperatorRequest, CreateTokenRequest,
    CreateTokenResponse, JoinRequest, ListIdentitiesRequest, ListIdentitiesResponse, ListTokensRequest,
    ListTokensResponse, RecoverRequest, RenewRequest, RevokeRequest, RevokeResponse, SvidResponse,
    agent_control_client::AgentControlClient,
    agent_control_server::{AgentControl, AgentControlServer},
    identity_client::IdentityClient,
    identity_server::{Identity, IdentityServer},
    tokens_client::TokensClient,
    tokens_server::{Tokens, TokensServer},
};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::*;
use crate::grpc;

const ACCESS: Access = Access(&[
    Rule { path: "/archipelago.v1.Identity/Join", callers: &Caller::ALL, call: SMALL },
    Rule { path: "/archipelago.v1.Tokens/", callers: &[Caller::Operator], call: SMALL },
    Rule { path: "/archipelago.v1.AgentControl/", callers: &[Caller::Agent], call: Call::Streaming },
]);
const SMALL: Call = Call::Unary { request_bytes_max: 1_024, time_max: Duration::from_secs(2) };

/// Answers at once, or never when asked for the cluster `never`.
struct Service;

#[tonic::async_trait]
impl Identity for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<SvidResponse>, Status> {
        let spiffe_id = request.get_ref().request_id.clone();
        Ok(Response::new(SvidResponse { spiffe_id, ..SvidResponse::default() }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<SvidResponse>, Status> {
        Err(nobody_comes_here())
    }

    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeResponse>, Status> {
        Err(nobody_comes_here())
    }

    async fn recover(&self, _: Request<RecoverRequest>) -> Result<Response<SvidResponse>, Status> {
        Err(nobody_comes_here())
    }

    async fn list(&self, _: Request<ListIdentitiesRequest>) -> Result<Response<ListIdentitiesResponse>, Status> {
        Err(nobody_comes_here())
    }

    async fn revoke(&self, _: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        Err(nobody_comes_here())
    }

    async fn create_operator(&self, _: Request<CreateOperatorRequest>) -> Result<Response<SvidResponse>, Status> {
        Err(nobody_comes_here())
    }
}

fn nobody_comes_here() -> Status {
    Status::internal("no rule lets anybody come here")
}

#[tonic::async_trait]
impl Tokens for Service {
    async fn create(&self, request: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        if request.get_ref().cluster == "never" {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(CreateTokenResponse::default()))
    }

    async fn list(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        grpc::require(&request, |role| matches!(role, archipelago_identity::MeshRole::Operator { .. }))?;
        Ok(Response::new(ListTokensResponse::default()))
    }
}

#[tonic::async_trait]
impl AgentControl for Service {
    type StreamStream = ReceiverStream<Result<AgentDirective, Status>>;

    async fn stream(&self, _: Request<Streaming<AgentMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            sender.closed().await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Fixture {
    authority: TestAuthority,
    server: LiveCredential,
    address: String,
}

impl Fixture {
    fn new(limits: Limits) -> Self {
        let authority = TestAuthority::new("mesh.example");
        let server = authority.live(&SpiffeId::control_plane(authority.trust_domain(), 1));
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let port =
            Server { name: "test", credential: server.clone(), auth: ClientAuth::Optional, access: ACCESS, limits };
        let mut routes = Routes::builder();
        routes
            .add_service(IdentityServer::new(Service))
            .add_service(TokensServer::new(Service))
            .add_service(AgentControlServer::new(Service));
        tokio::spawn(port.serve(listener, routes.routes(), std::future::pending()));
        Self { authority, server, address }
    }

    fn id(&self, path: &str) -> SpiffeId {
        format!("spiffe://mesh.example{path}").parse().unwrap()
    }

    async fn channel(&self, credential: &LiveCredential) -> Channel {
        grpc::connect(std::slice::from_ref(&self.address), credential, Expect::control_plane()).await.unwrap()
    }

    async fn stranger(&self) -> Channel {
        grpc::connect_with(std::slice::from_ref(&self.address), tls::recovery_config(&self.server)).await.unwrap()
    }

    fn lasting(&self, path: &str, life: Duration) -> LiveCredential {
        let credential: Credential = self.authority.issue_for(&self.id(path), life);
        LiveCredential::new(credential).unwrap()
    }
}

fn limits() -> Limits {
    Limits {
        handshakes_max: 64,
        handshakes_per_source_max: 8,
        strangers_max: 16,
        strangers_per_source_max: 4,
        connections_max: 64,
    }
}

#[tokio::test]
async fn calls_are_judged_before_their_bodies_and_bounded_in_bytes_and_time() {
    let port = Fixture::new(limits());
    let stranger = port.stranger().await;
    let join = |bytes: usize| JoinRequest { csr_der: vec![0; bytes], request_id: "a".into(), ..JoinRequest::default() };
    let mut anybody = IdentityClient::new(stranger.clone());
    assert_eq!(anybody.join(join(10)).await.unwrap().into_inner().spiffe_id, "a");
    assert!(anybody.join(join(2_000)).await.is_err(), "more than the rule allows is not read");
    assert_eq!(anybody.renew(RenewRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    let list = |channel: Channel| async move { TokensClient::new(channel).list(ListTokensRequest::default()).await };
    assert_eq!(list(stranger).await.unwrap_err().code(), Code::Unauthenticated);

    let gateway = port.channel(&port.lasting("/cluster/paris/gateway/gw-1", HOUR)).await;
    assert_eq!(list(gateway).await.unwrap_err().code(), Code::PermissionDenied);
    let operator = port.channel(&port.lasting("/operator/admin", HOUR)).await;
    list(operator.clone()).await.unwrap();
    let begun = Instant::now();
    let request = CreateTokenRequest { cluster: "never".into(), ..CreateTokenRequest::default() };
    let status = TokensClient::new(operator).create(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn silent_sockets_are_dropped_for_newer_ones_and_keep_nobody_out() {
    let port = Fixture::new(limits());
    // Whoever had to wait for one of them would wait until it has had its time.
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(&port.address).await.unwrap());
    }
    let operator = port.channel(&port.lasting("/operator/admin", HOUR)).await;
    TokensClient::new(operator).list(ListTokensRequest::default()).await.unwrap();
    assert!(begun.elapsed() < HANDSHAKE_TIMEOUT, "{:?}", begun.elapsed());
    // The oldest went: its socket reads as closed before its deadline.
    let mut byte = [0];
    let oldest = timeout(HANDSHAKE_TIMEOUT.saturating_sub(begun.elapsed()), silent[0].read(&mut byte))
        .await
        .expect("it was dropped");
    assert!(matches!(oldest, Ok(0) | Err(_)), "{oldest:?}");
}

#[tokio::test]
async fn connections_without_a_certificate_are_few_and_the_oldest_goes() {
    let port = Fixture::new(limits());
    let oldest = port.stranger().await;
    let mut client = IdentityClient::new(oldest);
    client.join(JoinRequest::default()).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..4 {
        let channel = port.stranger().await;
        IdentityClient::new(channel.clone()).join(JoinRequest::default()).await.unwrap();
        others.push(channel);
    }
    // The channel of the oldest notices and connects anew, which costs the next oldest its place.
    let again = async { while client.join(JoinRequest::default()).await.is_err() {} };
    timeout(PATIENCE, again).await.expect("a displaced client comes back");
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_it_began_with() {
    let port = Fixture::new(limits());
    let agent = port.lasting("/cluster/paris/agent/agent", Duration::from_secs(3));
    let ends = agent.current().not_after;
    let channel = port.channel(&agent).await;
    let mut stream =
        AgentControlClient::new(channel).stream(tokio_stream::pending::<AgentMessage>()).await.unwrap().into_inner();
    let ended = timeout(PATIENCE, stream.message()).await.expect("the stream ends");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    assert!(SystemTime::now() + EXPIRY_NOTICE >= ends, "not before the notice");
}

#[tokio::test]
async fn a_revoked_identity_loses_its_streams_at_once_and_may_not_come_back() {
    let port = Fixture::new(limits());
    let agent = port.lasting("/cluster/paris/agent/agent", HOUR);
    let bystander = port.lasting("/cluster/tokyo/agent/agent", HOUR);
    let open = |channel: Channel| async move {
        AgentControlClient::new(channel).stream(tokio_stream::pending::<AgentMessage>()).await
    };
    let mut revoked = open(port.channel(&agent).await).await.unwrap().into_inner();
    let mut spared = open(port.channel(&bystander).await).await.unwrap().into_inner();

    let mut list = Revocations::default();
    list.refuse(Subject::Cluster("paris".into()), SystemTime::now());
    port.server.revocations().replace(list);
    let ended = timeout(PATIENCE, revoked.message()).await.expect("the stream ends");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    assert!(timeout(Duration::from_millis(100), spared.message()).await.is_err(), "others are left alone");

    let refused = match grpc::connect(std::slice::from_ref(&port.address), &agent, Expect::control_plane()).await {
        Ok(channel) => open(channel).await.map(drop).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(!refused.is_empty());
}

const HOUR: Duration = Duration::from_secs(3_600);
/// What waits on a starved machine is not wrong.
const PATIENCE: Duration = Duration::from_secs(60);
