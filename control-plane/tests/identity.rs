//! Joining: every wrong way is refused with a message that says which, and spends nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use archipelago_identity::LiveCredential;
use archipelago_proto::v1::{
    CreateTokenRequest, GetRequest, JoinRequest, JoinRole, ListTokensRequest, ReadIndexRequest, RenewRequest,
    StatusRequest, fleet_client::FleetClient, identity_client::IdentityClient, members_client::MembersClient,
    resources_client::ResourcesClient, tokens_client::TokensClient,
};
use archipelago_rpc::{enrol, enrol::JoinToken};
use common::{ControlPlane, eventually, free_port, path_text, run_to_end};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tonic::{Code, Status};

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
    let renewed = client.renew(RenewRequest { csr_der: csr(&key, None) }).await.unwrap().into_inner();
    assert_eq!(renewed.spiffe_id, "spiffe://mesh.example/cluster/paris/gateway/gw-1");
    let other = csr(&key, Some("spiffe://mesh.example/operator/admin"));
    let status = client.renew(RenewRequest { csr_der: other }).await.unwrap_err();
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
