//! Who may connect to whom, over real sockets with real certificates.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use archipelago_identity::{
    CredentialDir, LiveCredential, SpiffeId,
    revocation::{Revocations, Subject},
    testing::TestAuthority,
    tls::{self, ClientAuth, Expect, certificate_sha256, peer_spiffe_id},
};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// One handshake and one byte each way; what the client and the server say of each other, or why not.
async fn meet(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Result<SpiffeId, String>, Result<SpiffeId, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut tls = TlsAcceptor::from(server).accept(stream).await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        tls.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        tls.write_all(&byte).await.map_err(|error| error.to_string())?;
        tls.flush().await.map_err(|error| error.to_string())?;
        let chain = tls.get_ref().1.peer_certificates().ok_or("no certificate")?;
        peer_spiffe_id(chain).map_err(|error| error.to_string())
    });
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from("mesh.internal").unwrap();
        let mut tls = TlsConnector::from(client).connect(name, stream).await.map_err(|error| error.to_string())?;
        tls.write_all(b"x").await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        tls.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        peer_spiffe_id(tls.get_ref().1.peer_certificates().unwrap()).map_err(|error| error.to_string())
    };
    let client_side = connecting.await;
    (client_side, serving.await.unwrap())
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let authority = TestAuthority::new("mesh.example");
    let (paris, tokyo) = (authority.gateway("paris", "gw-1"), authority.gateway("tokyo", "gw-1"));
    let expected = tokyo.current().spiffe_id.clone();
    let (client, server) = meet(
        tls::client_config(&paris, Expect::Id(expected.clone()), &[b"h2"]),
        tls::server_config(&tokyo, ClientAuth::Required, &[b"h2"]),
    )
    .await;
    assert_eq!(client.unwrap(), expected);
    assert_eq!(server.unwrap(), paris.current().spiffe_id);
}

#[tokio::test]
async fn another_clusters_gateway_is_refused_by_name() {
    let authority = TestAuthority::new("mesh.example");
    let (paris, frankfurt) = (authority.gateway("paris", "gw-1"), authority.gateway("frankfurt", "gw-1"));
    let wanted = id("spiffe://mesh.example/cluster/tokyo/gateway/gw-1");
    let (client, _) = meet(
        tls::client_config(&paris, Expect::Id(wanted.clone()), &[]),
        tls::server_config(&frankfurt, ClientAuth::Required, &[]),
    )
    .await;
    let error = client.unwrap_err();
    assert!(error.contains(&wanted.to_string()) && error.contains("cluster/frankfurt"), "{error}");
}

#[tokio::test]
async fn a_foreign_ca_is_refused_even_with_our_names() {
    let ours = TestAuthority::new("mesh.example");
    let forger = TestAuthority::new("mesh.example");
    let (server, client) = (ours.gateway("paris", "gw-1"), forger.gateway("tokyo", "gw-1"));
    let expect = Expect::Id(server.current().spiffe_id.clone());
    let (_, seen) =
        meet(tls::client_config(&client, expect, &[]), tls::server_config(&server, ClientAuth::Required, &[])).await;
    assert!(seen.is_err(), "the server must refuse a client of a foreign CA");
    let expect = Expect::Id(client.current().spiffe_id.clone());
    let (seen, _) =
        meet(tls::client_config(&server, expect, &[]), tls::server_config(&client, ClientAuth::Required, &[])).await;
    assert!(seen.unwrap_err().contains("invalid peer certificate"));
}

#[tokio::test]
async fn an_id_of_another_trust_domain_is_refused_under_our_root() {
    let authority = TestAuthority::new("mesh.example");
    let server = authority.gateway("paris", "gw-1");
    let stranger = authority.live(&id("spiffe://other.example/cluster/paris/gateway/gw-1"));
    let expect = Expect::Role(Arc::new(|_| Ok(())));
    let (seen, _) =
        meet(tls::client_config(&server, expect, &[]), tls::server_config(&stranger, ClientAuth::Optional, &[])).await;
    let error = seen.unwrap_err();
    assert!(error.contains("not of the trust domain mesh.example"), "{error}");
}

#[tokio::test]
async fn an_enrolling_client_finds_the_pinned_root_and_no_other() {
    let authority = TestAuthority::new("mesh.example");
    let member = authority.live(&SpiffeId::control_plane(authority.trust_domain(), 1));
    let server = tls::server_config(&member, ClientAuth::Optional, &[b"h2"]);
    let pinned = certificate_sha256(authority.root());
    let domain = authority.trust_domain().clone();
    let (client, seen) = meet(tls::enrolment_config(domain.clone(), pinned), server.clone()).await;
    assert_eq!(client.unwrap(), member.current().spiffe_id);
    assert_eq!(seen.unwrap_err(), "no certificate");
    let (client, _) = meet(tls::enrolment_config(domain.clone(), [1; 32]), server).await;
    assert!(client.unwrap_err().contains("wrong CA"));
    let gateway = authority.gateway("paris", "gw-1");
    let (client, _) =
        meet(tls::enrolment_config(domain, pinned), tls::server_config(&gateway, ClientAuth::Optional, &[b"h2"])).await;
    assert!(client.unwrap_err().contains("a member of the control plane"));
}

#[tokio::test]
async fn a_renewed_credential_is_used_by_configurations_made_before() {
    let authority = TestAuthority::new("mesh.example");
    let first = SpiffeId::gateway(authority.trust_domain(), "paris", "gw-1");
    let second = SpiffeId::gateway(authority.trust_domain(), "paris", "gw-2");
    let live = authority.live(&first);
    let server = tls::server_config(&authority.gateway("tokyo", "gw-1"), ClientAuth::Required, &[]);
    let client = tls::client_config(&live, Expect::Role(Arc::new(|_| Ok(()))), &[]);
    let mut changes = live.subscribe();
    assert_eq!(meet(client.clone(), server.clone()).await.1.unwrap(), first);
    live.replace(authority.issue_for(&second, Duration::from_secs(60))).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(meet(client, server).await.1.unwrap(), second);
}

#[tokio::test]
async fn revoked_certificates_are_refused_by_both_sides_and_later_ones_are_not() {
    let authority = TestAuthority::new("mesh.example");
    let (paris, tokyo) = (authority.gateway("paris", "gw-1"), authority.gateway("tokyo", "gw-1"));
    let anybody = || Expect::Role(Arc::new(|_| Ok(())));
    let both = async |client: &LiveCredential, server: &LiveCredential| {
        meet(tls::client_config(client, anybody(), &[]), tls::server_config(server, ClientAuth::Required, &[])).await
    };
    let server = tls::server_config(&tokyo, ClientAuth::Required, &[]);
    let mut revocations = Revocations::default();
    revocations.refuse(Subject::Cluster("paris".into()), SystemTime::now());
    tokyo.revocations().replace(revocations.clone());

    let (client, seen) = meet(tls::client_config(&paris, anybody(), &[]), server.clone()).await;
    assert!(seen.unwrap_err().contains("Revoked"), "the list counts for configurations made before it");
    assert!(client.unwrap_err().contains("CertificateRevoked"), "and the peer is told why");
    let (client, _) = both(&tokyo, &paris).await;
    assert!(client.unwrap_err().contains("Revoked"), "dialling too");

    let again = SpiffeId::gateway(authority.trust_domain(), "paris", "gw-1");
    let soon = SystemTime::now() + Duration::from_secs(1);
    let later = authority.issue_between(&again, soon, soon + Duration::from_secs(60));
    let mut earlier = Revocations::default();
    earlier.refuse(Subject::Cluster("paris".into()), later.not_before);
    tokyo.revocations().replace(earlier);
    paris.replace(later).unwrap();
    eventually_valid(&paris).await;
    let (client, seen) = both(&paris, &tokyo).await;
    assert_eq!(seen.unwrap(), again);
    client.unwrap();
}

/// Waits until the validity of a credential that begins in a moment has begun.
async fn eventually_valid(credential: &LiveCredential) {
    while credential.current().not_before > SystemTime::now() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_credential_survives_its_directory_and_damage_is_named() {
    let authority = TestAuthority::new("mesh.example");
    let dir = tempfile::tempdir().unwrap();
    let stored = CredentialDir::new(dir.path().join("identity"));
    assert!(stored.load().unwrap().is_none());
    let credential = authority.gateway("paris", "gw-1").current();
    stored.store(&credential).unwrap();
    let loaded = stored.load().unwrap().unwrap();
    assert_eq!(
        (loaded.spiffe_id.clone(), loaded.chain.clone()),
        (credential.spiffe_id.clone(), credential.chain.clone())
    );
    LiveCredential::new(loaded).unwrap();
    std::fs::write(stored.path().join("key.pem"), "garbage").unwrap();
    assert!(stored.load().unwrap_err().to_string().contains("key.pem"));
    stored.store(&credential).unwrap();
    std::fs::remove_file(stored.path().join("bundle.pem")).unwrap();
    assert!(stored.load().unwrap_err().to_string().contains("bundle.pem"));
}
