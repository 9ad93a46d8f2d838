//! Joining: every wrong way is refused with a message that says which, and spends nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::time::Duration;

use archipelago_identity::{Credential, LiveCredential, MeshRole, proof, tls};
use archipelago_proto::v1::{
    AgentDirective, AgentHello, AgentMessage, ChallengeRequest, CreateOperatorRequest, CreateTokenRequest, GetRequest,
    JoinRequest, JoinRole, ListIdentitiesRequest, ListTokensRequest, ReadIndexRequest, RecoverRequest, RenewRequest,
    RevokeRequest, StatusRequest, SvidResponse, agent_control_client::AgentControlClient, agent_message,
    fleet_client::FleetClient, identity_client::IdentityClient, members_client::MembersClient,
    resources_client::ResourcesClient, tokens_client::TokensClient,
};
use archipelago_rpc::{enrol, enrol::JoinToken, grpc, wall_clock::sleep_until_wall};
use common::{ControlPlane, PATIENCE, eventually, free_port, path_text, run_to_end};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming};

fn csr(key: &KeyPair, uri: Option<&str>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uri.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())).collect();
    params.serialize_request(key).unwrap().der().to_vec()
}

async fn join_raw(control_plane: &ControlPlane, member: u64, request: JoinRequest) -> Result<String, Status> {
    let mut client = IdentityClient::new(control_plane.channel(member).await?);
    client.join(request).await.map(|response| response.into_inner().spiffe_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_for_one_join_of_one_identity_in_time() {
    let control_plane = ControlPlane::start(3, &[]).await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = |token: &JoinToken, csr_der: Vec<u8>, id: &str| JoinRequest {
        token_secret: token.secret.to_vec(),
        csr_der,
        request_id: id.to_owned(),
        client_unix_ms: 0,
        ..JoinRequest::default()
    };

    // Created at one member, used at another a moment later.
    let token = control_plane.token(1, "paris", JoinRole::Gateway, "gw-1").await;
    assert_eq!((token.control_plane.len(), &*token.trust_domain, &*token.role), (3, "mesh.example", "gateway"));

    let tokyo = "spiffe://mesh.example/cluster/tokyo/gateway/gw-1";
    let wrong_cluster = join_raw(&control_plane, 2, request(&token, csr(&key, Some(tokyo)), "a")).await.unwrap_err();
    assert_eq!(wrong_cluster.code(), Code::PermissionDenied);
    assert!(
        wrong_cluster.message().contains("wrong cluster") && wrong_cluster.message().contains(tokyo),
        "{wrong_cluster}"
    );

    let junk = join_raw(&control_plane, 2, request(&token, b"junk".to_vec(), "b")).await.unwrap_err();
    assert_eq!(junk.code(), Code::InvalidArgument);
    assert!(junk.message().contains("certificate request is refused"), "{junk}");
    let mut forged = csr(&key, None);
    *forged.last_mut().unwrap() ^= 1;
    let forged = join_raw(&control_plane, 2, request(&token, forged, "c")).await.unwrap_err();
    assert!(forged.message().contains("not made by the key"), "{forged}");

    // None of these spent it.
    let joined = join_raw(&control_plane, 3, request(&token, csr(&key, None), "d")).await.unwrap();
    assert_eq!(joined, "spiffe://mesh.example/cluster/paris/gateway/gw-1");
    let repeated = join_raw(&control_plane, 1, request(&token, csr(&key, None), "d")).await.unwrap();
    assert_eq!(repeated, joined, "the same request may be repeated at any member");
    let used = join_raw(&control_plane, 2, request(&token, csr(&key, None), "e")).await.unwrap_err();
    assert_eq!(used.code(), Code::PermissionDenied);
    assert!(used.message().contains("already used by /cluster/paris/gateway/gw-1 at 2"), "{used}");

    let mut unknown = token.clone();
    unknown.secret = [1; 32];
    let unknown = join_raw(&control_plane, 1, request(&unknown, csr(&key, None), "f")).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::Unauthenticated, "this join token is unknown here"));

    let mut tokens = TokensClient::new(control_plane.channel(1).await.unwrap());
    let short = CreateTokenRequest {
        cluster: "paris".into(),
        role: JoinRole::Agent.into(),
        name: String::new(),
        ttl_ms: 1,
        request_id: "short".into(),
    };
    let created = tokens.create(short.clone()).await.unwrap().into_inner();
    let mut elsewhere = TokensClient::new(control_plane.channel(2).await.unwrap());
    let again = elsewhere.create(short).await.unwrap().into_inner();
    assert_eq!(again.token, created.token, "a retried request gets the same token, from any member");
    let expired: JoinToken = created.token.parse().unwrap();
    assert_eq!(expired.name, "agent");
    let expired = join_raw(&control_plane, 2, request(&expired, csr(&key, None), "g")).await.unwrap_err();
    assert!(expired.message().contains("expired at"), "{expired}");

    let list = tokens.list(ListTokensRequest::default()).await.unwrap().into_inner().tokens;
    let first = tokens.list(ListTokensRequest { page_size: 1, ..Default::default() }).await.unwrap().into_inner();
    let rest = ListTokensRequest { page_token: first.next_page_token, ..Default::default() };
    let rest = tokens.list(rest).await.unwrap().into_inner();
    assert_eq!([first.tokens, rest.tokens].concat(), list);
    assert!(rest.next_page_token.is_empty());
    assert_eq!(list.iter().filter(|token| token.used_unix > 0).count(), 1);
    for (cluster, role, name) in
        [("Paris", JoinRole::Gateway, "gw-1"), ("paris", JoinRole::Gateway, ""), ("paris", JoinRole::Unspecified, "x")]
    {
        let request =
            CreateTokenRequest { cluster: cluster.into(), role: role.into(), name: name.into(), ..Default::default() };
        assert_eq!(tokens.create(request).await.unwrap_err().code(), Code::InvalidArgument);
    }

    // Another federation's root: the joiner refuses before it sends its secret.
    let mut wrong_ca = control_plane.token(1, "paris", JoinRole::Gateway, "gw-2").await;
    wrong_ca.ca_sha256[0] ^= 1;
    let error = enrol::join(&wrong_ca).await.unwrap_err().to_string();
    assert!(error.contains("wrong CA"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_open_what_their_identity_may_use_and_nothing_else() {
    let control_plane = ControlPlane::start(1, &[]).await;
    let gateway = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let channel = control_plane.channel_as(1, &gateway).await.unwrap();
    let denied = [
        ResourcesClient::new(channel.clone()).get(GetRequest::default()).await.unwrap_err(),
        TokensClient::new(channel.clone()).list(ListTokensRequest::default()).await.unwrap_err(),
        FleetClient::new(channel.clone()).status(StatusRequest {}).await.unwrap_err(),
        MembersClient::new(channel.clone()).read_index(ReadIndexRequest {}).await.unwrap_err(),
    ];
    for status in denied {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("spiffe://mesh.example/cluster/paris/gateway/gw-1"), "{status}");
    }
    let operator = control_plane.channel(1).await.unwrap();
    let status = MembersClient::new(operator).read_index(ReadIndexRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "an operator is no member");

    // Renewal: for the caller's own identity, a new key, and no other name.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut client = IdentityClient::new(channel);
    let renewed =
        client.renew(RenewRequest { csr_der: csr(&key, None), client_unix_ms: 1 }).await.unwrap().into_inner();
    assert_eq!(renewed.spiffe_id, "spiffe://mesh.example/cluster/paris/gateway/gw-1");
    assert!(renewed.clock_offset_ms < -1_000_000_000, "a clock that stands at 1970 is told so");
    let other = csr(&key, Some("spiffe://mesh.example/operator/admin"));
    let status = client.renew(RenewRequest { csr_der: other, client_unix_ms: 0 }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let fresh = enrol::renew(&gateway, &[control_plane.members[0].client.clone()]).await.unwrap();
    LiveCredential::new(fresh).unwrap();

    // A certificate of another federation does not even connect.
    let stranger = ControlPlane::start(1, &[]).await;
    let refused = eventually("the handshake is refused", || async {
        match control_plane.channel_as(1, &stranger.operator).await {
            Err(status) => Ok(status),
            Ok(_) => Err("connected".to_owned()),
        }
    })
    .await;
    assert!(refused.message().contains(&control_plane.members[0].client), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_renew_themselves_and_a_sealed_member_still_serves() {
    let mut control_plane = ControlPlane::start(1, &["--svid-ttl", "10s"]).await;
    eventually("the member renews its own certificate", || async {
        if control_plane.log(1).contains("SVID of this member renewed") { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    control_plane.get(1, "").await.unwrap();
    control_plane.kill(1);

    // A certificate file that a crash of the file system cut short is replaced, for the member can issue.
    let key = control_plane.data_dir(1).join("identity").join("key.pem");
    let text = std::fs::read(&key).unwrap();
    std::fs::write(&key, &text[..100]).unwrap();
    control_plane.start_member(1);
    control_plane.ready().await;
    assert!(control_plane.log(1).contains("the stored certificate is unusable and is replaced"));
    control_plane.kill(1);

    // Without its seal key it cannot issue, and says so; everything else works.
    std::fs::remove_file(control_plane.data_dir(1).join("seal.key")).unwrap();
    control_plane.start_member(1);
    control_plane.ready().await;
    let mut tokens = TokensClient::new(control_plane.channel(1).await.unwrap());
    let request = CreateTokenRequest {
        cluster: "paris".into(),
        role: JoinRole::Gateway.into(),
        name: "gw-1".into(),
        ..Default::default()
    };
    let status = tokens.create(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("seal.key"), "{status}");
}

/// An agent's stream, as the longest call there is.
async fn agent_stream(
    control_plane: &ControlPlane,
    credential: &LiveCredential,
) -> Result<Streaming<AgentDirective>, Status> {
    let channel = control_plane.channel_as(1, credential).await?;
    let Some(MeshRole::Agent { cluster, .. }) = credential.current().spiffe_id.role() else { panic!("no agent") };
    let hello = AgentHello { cluster, ..AgentHello::default() };
    let messages = tokio_stream::once(AgentMessage { body: Some(agent_message::Body::Hello(hello)) });
    let mut client = AgentControlClient::new(channel);
    Ok(client.stream(messages.chain(tokio_stream::pending())).await?.into_inner())
}

/// Returns when the stream has ended.
async fn ends(mut stream: Streaming<AgentDirective>) {
    let ended = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream does not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_or_deleted_ends_at_once_and_gets_no_certificate() {
    let control_plane = ControlPlane::start(3, &[]).await;
    let members = [control_plane.members[0].client.clone()];
    for cluster in ["paris", "tokyo", "lyon"] {
        control_plane.apply(1, "", &common::cluster(cluster, "eu-west")).await.unwrap();
    }
    let token = control_plane.token(1, "paris", JoinRole::Agent, "agent").await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let join = |token: &JoinToken| JoinRequest {
        token_secret: token.secret.to_vec(),
        csr_der: csr(&key, None),
        request_id: "again".into(),
        client_unix_ms: 0,
        ..JoinRequest::default()
    };
    join_raw(&control_plane, 1, join(&token)).await.unwrap();
    let paris = control_plane.join("paris", JoinRole::Agent, "second").await;
    let tokyo = control_plane.join("tokyo", JoinRole::Agent, "agent").await;
    let gateway = control_plane.join("lyon", JoinRole::Gateway, "gw-1").await;
    let mut operators = IdentityClient::new(control_plane.channel(2).await.unwrap());
    let revoke = |id: &str| RevokeRequest {
        spiffe_id: format!("spiffe://mesh.example{id}"),
        reason: "lost laptop".into(),
        request_id: String::new(),
    };

    // One identity, revoked at another member than the one that serves it.
    let stream = agent_stream(&control_plane, &tokyo).await.unwrap();
    let spared = agent_stream(&control_plane, &paris).await.unwrap();
    let ended = tokio::spawn(ends(stream));
    let revoked = operators.revoke(revoke("/cluster/tokyo/agent/agent")).await.unwrap().into_inner();
    assert!(revoked.revision > 0 && revoked.issued_before_unix > 0);
    ended.await.unwrap();
    agent_stream(&control_plane, &tokyo).await.unwrap_err();
    enrol::renew(&tokyo, &members).await.unwrap_err();
    let recovered = enrol::recover(&tokyo, &members).await.unwrap_err().to_string();
    assert!(recovered.contains("tokyo/agent/agent was revoked"), "{recovered}");
    // A new token is a new beginning.
    let again = control_plane.join("tokyo", JoinRole::Agent, "agent").await;
    agent_stream(&control_plane, &again).await.unwrap();

    // A whole cluster, by deleting it: sessions, unspent tokens, and the answer to a repeated join.
    let unspent = control_plane.token(1, "paris", JoinRole::Gateway, "gw-9").await;
    let ended = tokio::spawn(ends(spared));
    control_plane.delete_cluster(2, "paris").await;
    ended.await.unwrap();
    agent_stream(&control_plane, &paris).await.unwrap_err();
    let repeated = join_raw(&control_plane, 1, join(&token)).await.unwrap_err();
    assert!(repeated.message().contains("paris was deleted"), "{repeated}");
    let repeated = join_raw(&control_plane, 1, join(&unspent)).await.unwrap_err();
    assert_eq!(repeated.code(), Code::Unauthenticated, "{repeated}");
    let recovered = enrol::recover(&paris, &members).await.unwrap_err().to_string();
    assert!(recovered.contains("cluster paris was deleted"), "{recovered}");
    // Nor does a cluster of the same name let its former agents back in.
    control_plane.apply(1, "", &common::cluster("paris", "eu-west")).await.unwrap();
    let recovered = enrol::recover(&paris, &members).await.unwrap_err().to_string();
    assert!(recovered.contains("cluster paris was revoked"), "{recovered}");

    // What operators see of it, page by page; what was issued is noted a moment later.
    let newest = || async {
        let mut operators = IdentityClient::new(control_plane.channel(2).await.map_err(|status| status.to_string())?);
        let path_prefix = "/cluster/tokyo/agent/agent".to_owned();
        let request = ListIdentitiesRequest { path_prefix, ..ListIdentitiesRequest::default() };
        let list = operators.list(request).await.map_err(|status| status.to_string())?.into_inner();
        if list.identities.iter().any(|info| !info.revoked) { Ok(()) } else { Err(format!("{list:?}")) }
    };
    eventually("the newest certificate is listed", newest).await;
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListIdentitiesRequest { page_size: 2, page_token, path_prefix: String::new() };
        let page = operators.list(request).await.unwrap().into_inner();
        assert!(page.identities.len() <= 2);
        seen.extend(page.identities);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let state = |path: &str| {
        let id = format!("spiffe://mesh.example{path}");
        seen.iter().find(|info| info.spiffe_id == id).map(|info| (info.revoked, info.reason.clone())).unwrap()
    };
    assert_eq!(state("/cluster/tokyo/agent/agent"), (false, "lost laptop".into()), "its newest certificate is good");
    assert_eq!(state("/cluster/paris/agent/second"), (true, String::new()));
    assert_eq!(state("/cluster/lyon/gateway/gw-1"), (false, String::new()));
    assert_eq!(state("/operator/admin"), (false, String::new()), "the founding credential is listed, too");

    // Who cannot be revoked, and who may not.
    for (id, code) in [
        ("/operator/admin", Code::FailedPrecondition),
        ("/control-plane/1", Code::InvalidArgument),
        ("/ns/shop/sa/web", Code::InvalidArgument),
        ("/nonsense", Code::InvalidArgument),
    ] {
        assert_eq!(operators.revoke(revoke(id)).await.unwrap_err().code(), code, "{id}");
    }
    let mut as_gateway = IdentityClient::new(control_plane.channel_as(1, &gateway).await.unwrap());
    let status = as_gateway.revoke(revoke("/cluster/tokyo/agent/agent")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_make_and_unmake_each_other() {
    let control_plane = ControlPlane::start(1, &[]).await;
    let mut admin = IdentityClient::new(control_plane.channel(1).await.unwrap());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let create = |name: &str, key: &KeyPair, ttl_ms| CreateOperatorRequest {
        name: name.into(),
        csr_der: csr(key, None),
        ttl_ms,
    };
    let made = admin.create_operator(create("ada", &key, 3_600_000)).await.unwrap().into_inner();
    assert_eq!(made.spiffe_id, "spiffe://mesh.example/operator/ada");
    admin
        .create_operator(create("ada", &key, 3_600_000))
        .await
        .expect("a retry with the same key is no second operator");
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let taken = admin.create_operator(create("ada", &other, 0)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    for (name, ttl) in [("Ada Lovelace", 0), ("", 0), ("bob", 1), ("bob", u64::MAX)] {
        let status = admin.create_operator(create(name, &other, ttl)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name} {ttl}: {status}");
    }

    let ada = LiveCredential::new(credential(&made, &key)).unwrap();
    let channel = control_plane.channel_as(1, &ada).await.unwrap();
    ResourcesClient::new(channel.clone()).get(GetRequest::default()).await.unwrap();
    let renewed = enrol::renew(&ada, &[control_plane.members[0].client.clone()]).await.unwrap();
    let life = renewed.not_after.duration_since(renewed.not_before).unwrap();
    assert!(life < Duration::from_secs(3_900), "who was admitted for an hour is renewed for an hour: {life:?}");

    let revoke = RevokeRequest { spiffe_id: made.spiffe_id.clone(), ..RevokeRequest::default() };
    admin.revoke(revoke).await.unwrap();
    eventually("the revoked operator is refused", || async {
        match control_plane.channel_as(1, &ada).await {
            Ok(channel) => match ResourcesClient::new(channel).get(GetRequest::default()).await {
                Ok(_) => Err("it still answers".to_owned()),
                Err(_) => Ok(()),
            },
            Err(_) => Ok(()),
        }
    })
    .await;
    eventually("the name may be given again", || async {
        let request = create("ada", &other, 0);
        let mut admin = IdentityClient::new(control_plane.channel(1).await.map_err(|status| status.to_string())?);
        admin.create_operator(request).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

fn credential(response: &SvidResponse, key: &KeyPair) -> Credential {
    let certificates = |ders: &[Vec<u8>]| ders.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Credential::new(certificates(&response.chain_der), key.into(), certificates(&response.bundle_der)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_exchanged_by_its_key_within_the_grace() {
    let mut control_plane = ControlPlane::start(1, &["--svid-ttl", "10s", "--recovery-grace", "15s"]).await;
    let members = [control_plane.members[0].client.clone()];
    let gateway = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let late = control_plane.join("paris", JoinRole::Gateway, "gw-2").await;
    control_plane.kill(1);
    // Certificates are good through their last second.
    sleep_until_wall(late.current().not_after + Duration::from_millis(1_100)).await;
    control_plane.start_member(1);
    control_plane.ready().await;

    let channel = control_plane.channel_as(1, &gateway).await;
    let expired = match channel {
        Ok(channel) => IdentityClient::new(channel)
            .renew(RenewRequest { csr_der: Vec::new(), client_unix_ms: 0 })
            .await
            .map(drop)
            .unwrap_err(),
        Err(status) => status,
    };
    assert_ne!(expired.code(), Code::InvalidArgument, "an expired certificate opens no connection: {expired}");
    let recovered = enrol::recover(&gateway, &members).await.unwrap();
    assert!(recovered.not_after > std::time::SystemTime::now());
    gateway.replace(recovered).unwrap();
    enrol::renew(&gateway, &members).await.unwrap();

    // Every other way is refused by name.
    let mut stranger =
        IdentityClient::new(grpc::connect_with(&members, tls::recovery_config(&control_plane.operator)).await.unwrap());
    let challenge = stranger.challenge(ChallengeRequest {}).await.unwrap().into_inner().challenge;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = csr(&key, None);
    let by = |credential: &LiveCredential, challenge: &[u8], signed: &[u8]| {
        let current = credential.current();
        RecoverRequest {
            chain_der: current.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            csr_der: request.clone(),
            challenge: challenge.to_vec(),
            signature: proof::sign(&current, &enrol::recovery_message(signed, &request)).unwrap(),
            client_unix_ms: 0,
        }
    };
    for (request, says) in [
        (by(&late, b"a challenge of my own", b"a challenge of my own"), "not of this federation"),
        (by(&late, &challenge, b"another"), "not made by the key"),
        (by(&control_plane.operator, &challenge, &challenge), "neither a gateway nor an agent"),
    ] {
        let status = stranger.recover(request).await.unwrap_err();
        assert!(status.message().contains(says), "{says}: {status}");
    }
    sleep_until_wall(late.current().not_after + Duration::from_secs(16)).await;
    let error = enrol::recover(&late, &members).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("give a new join token"), "{error}");
}

#[test]
fn what_keeps_a_member_from_starting_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Vec<String> = (0..5).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let member = format!("1={}/{}", ports[0], ports[1]);
    let out = path_text(dir.path());
    let founding = ["bootstrap", "--trust-domain", "mesh.example", "--member", &member, "--out", out];
    assert_eq!(run_to_end(&founding), (0, String::new()));
    let (code, error) = run_to_end(&founding);
    assert!(code == 1 && error.contains("exists already"), "{error}");

    let data = dir.path().join("member-1");
    let data = path_text(&data);
    let run = |extra: &[&str]| {
        let mut arguments = vec![
            "run",
            "--data-dir",
            data,
            "--listen-client",
            &ports[2],
            "--listen-peer",
            &ports[3],
            "--listen-metrics",
            &ports[4],
        ];
        arguments.extend(extra);
        run_to_end(&arguments)
    };
    let (code, error) = run(&["--node-id", "7"]);
    assert!(code == 1 && error.contains("member 7 does not belong to this federation"), "{error}");
    let (code, error) = run(&["--node-id", "1", "--member", "2=127.0.0.1:1/127.0.0.1:2"]);
    assert!(code == 1 && error.contains("--member names the members {2}, this federation has {1}"), "{error}");
    let taken = std::net::TcpListener::bind(&ports[2]).unwrap();
    let (code, error) = run(&["--node-id", "1"]);
    assert!(code == 1 && error.contains(&format!("cannot listen on {} (--listen-client)", ports[2])), "{error}");
    drop(taken);
    let empty = dir.path().join("operator");
    let (code, error) = run_to_end(&["run", "--node-id", "1", "--data-dir", path_text(&empty)]);
    assert!(code == 1 && error.contains("federation.json") && error.contains("bootstrap"), "{error}");
    let (code, error) = run_to_end(&["run", "--node-id", "1", "--data-dir", "/nonexistent/data"]);
    assert!(code == 1 && error.contains("hint: found a federation"), "{error}");
    std::fs::write(dir.path().join("member-1").join("ca.sealed"), b"\xff\xff").unwrap();
    let (code, error) = run(&["--node-id", "1"]);
    assert!(code == 1 && error.contains("ca.sealed is damaged"), "{error}");
}
