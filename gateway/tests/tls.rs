//! TLS ends at the gateway: which certificate, which protocol, renewal, and who gets no session.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use archipelago_proto::v1::Protocol;
use harness::*;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const HOST: &str = "checkout.shop";

/// Issues what gateways show their clients.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    roots: RootCertStore,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), issuer: Issuer::new(params, key), roots }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a pair, one file after the other, as `cp` would; returns its certificate.
    fn issue(&self, pair: &str, names: &[&str]) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path().join(format!("{pair}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path().join(format!("{pair}.key")), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Of any version, with HTTP/1.1.
    fn any_client(&self) -> Arc<ClientConfig> {
        self.client(rustls::ALL_VERSIONS, &["http/1.1"])
    }
}

async fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await
}

/// One request over HTTP/1.1 on a connection of its own: its head and body, as far as they came whole and with a proper end.
async fn ask(address: SocketAddr, config: &Arc<ClientConfig>, path: &str) -> std::io::Result<String> {
    let mut stream = connect(address, config, HOST).await?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nx-forwarded-proto: http\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut said = String::new();
    // An error unless the session ends with close_notify.
    stream.read_to_string(&mut said).await?;
    Ok(said)
}

/// What a client is shown.
async fn shown(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<CertificateDer<'static>> {
    let stream = connect(address, config, name).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}

fn alert(refused: &std::io::Error) -> Option<AlertDescription> {
    match refused.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// The backend is in tokyo, for clients of paris beyond a tunnel.
async fn mesh(authority: &Authority, limits: archipelago_gateway::Limits) -> Mesh {
    let mut mesh = Mesh::start_secured(&["paris", "tokyo"], limits, authority.path()).await;
    let (backend, _) = backend("tokyo").await;
    let services = vec![service("checkout", Protocol::Http1, &["tokyo"], &[])];
    mesh.configure(services, &[("checkout", "tokyo", backend, "")]).await;
    mesh.serves(HOST, "tokyo").await;
    mesh
}

async fn metric(mesh: &Mesh, cluster: &str, line: &str) -> bool {
    let text = text(get(mesh.metrics(cluster), "metrics", "/metrics", &[]).await.unwrap()).await;
    text.lines().any(|told| told == line)
}

#[tokio::test]
async fn both_protocols_pass_in_both_versions_of_tls() {
    let authority = Authority::new();
    authority.issue("web", &[HOST]);
    let mesh = mesh(&authority, patient()).await;
    for (version, logged) in [(&rustls::version::TLS12, "TLSv1.2"), (&rustls::version::TLS13, "TLSv1.3")] {
        for cluster in ["tokyo", "paris"] {
            let http1 = authority.client(&[version], &["http/1.1"]);
            let said = ask(mesh.https(cluster), &http1, "/headers").await.unwrap();
            assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
            assert!(said.contains(r#""x-forwarded-proto": "https""#) && !said.contains(r#"proto": "http""#), "{said}");
            let said = ask(mesh.https(cluster), &authority.client(&[version], &[]), "/bytes/3000000").await.unwrap();
            assert!(said.len() > 3_000_000, "without ALPN it is HTTP/1.1");

            let http2 = authority.client(&[version], &["h2", "http/1.1"]);
            let stream = connect(mesh.https(cluster), &http2, HOST).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            for size in [0, 1, 20_000, 3_000_000] {
                let body = vec![b'x'; size];
                let request = http::Request::post(format!("https://{HOST}/echo")).body(bytes(body.clone())).unwrap();
                let echoed =
                    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
                assert!(echoed == body, "{size} bytes at {cluster} by {logged}");
            }

            let stranger = authority.client(&[version], &["spdy/3"]);
            let refused = connect(mesh.https(cluster), &stranger, HOST).await.unwrap_err();
            assert_eq!(alert(&refused), Some(AlertDescription::NoApplicationProtocol), "{refused}");
        }
    }
    let log = mesh.state_dir("paris").join("access.log");
    eventually("the access log says how TLS was spoken", async || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        ["TLSv1.2", "TLSv1.3"].iter().all(|version| {
            text.lines().any(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                line["path"] == "/headers"
                    && line["downstream_tls_version"] == *version
                    && line["downstream_tls_cipher"].as_str().is_some_and(|cipher| cipher.starts_with("TLS_"))
                    && line["requested_server_name"] == HOST
            })
        })
    })
    .await;
    assert!(metric(&mesh, "paris", r#"mesh_gateway_tls_handshake_failures_total{reason="no_protocol"} 2"#).await);
}

#[tokio::test]
async fn a_name_finds_its_certificate_and_no_other_client_gets_one() {
    let authority = Authority::new();
    let exact = authority.issue("exact", &["www.example.org"]);
    let wildcard = authority.issue("wild", &["*.example.org"]);
    let mesh = Mesh::start_secured(&["paris"], patient(), authority.path()).await;
    let (address, client) = (mesh.https("paris"), authority.any_client());
    assert_eq!(shown(address, &client, "www.example.org").await.unwrap(), exact);
    assert_eq!(shown(address, &client, "a.example.org").await.unwrap(), wildcard);
    // An address is no name (RFC 6066 §3): such a client names none.
    for stranger in ["a.b.example.org", "example.org", "other.example", "127.0.0.1"] {
        let refused = shown(address, &client, stranger).await.unwrap_err();
        assert_eq!(alert(&refused), Some(AlertDescription::UnrecognisedName), "{stranger}: {refused}");
    }
    assert!(metric(&mesh, "paris", r#"mesh_gateway_tls_handshake_failures_total{reason="unknown_name"} 4"#).await);
    assert!(metric(&mesh, "paris", "mesh_gateway_tls_certificates 2").await);

    let rest = authority.issue("default", &["other.example", "127.0.0.1"]);
    for name in ["other.example", "127.0.0.1"] {
        eventually("the default certificate is for all other names", async || {
            shown(address, &client, name).await.is_ok_and(|shown| shown == rest)
        })
        .await;
    }
    std::fs::remove_file(authority.path().join("exact.crt")).unwrap();
    std::fs::remove_file(authority.path().join("exact.key")).unwrap();
    eventually("a certificate that is gone is shown to nobody", async || {
        shown(address, &authority.any_client(), "www.example.org").await.is_ok_and(|shown| shown == wildcard)
    })
    .await;
}

#[tokio::test]
async fn renewal_fails_no_request_and_a_broken_pair_changes_nothing() {
    let authority = Authority::new();
    let first = authority.issue("web", &[HOST]);
    let mesh = mesh(&authority, patient()).await;
    let (address, client) = (mesh.https("paris"), authority.any_client());
    let kept = connect(address, &client, HOST).await.unwrap();
    let (mut kept, connection) = hyper::client::conn::http1::handshake(TokioIo::new(kept)).await.unwrap();
    tokio::spawn(connection);
    let mut ask_kept = async || {
        let response = kept.send_request(request("GET", HOST, "/", &[], empty())).await.unwrap();
        assert_eq!(text(response).await, "tokyo");
    };
    ask_kept().await;

    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop, asked) = (Arc::clone(&client), Arc::clone(&stop), Arc::clone(&asked));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let said = ask(address, &client, "/").await.unwrap();
                    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("tokyo"), "{said}");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let is_shown = async |certificate: &CertificateDer<'static>| {
        // A client that resumes is shown none: one without a memory.
        let shown = shown(address, &authority.any_client(), HOST).await.unwrap();
        shown == *certificate
    };
    assert!(is_shown(&first).await);
    let mut last = first;
    for _ in 0..2 {
        last = authority.issue("web", &[HOST]);
        eventually("the renewed certificate is shown", async || is_shown(&last).await).await;
    }
    std::fs::write(authority.path().join("web.key"), "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
    eventually("a broken pair is counted", async || {
        metric(&mesh, "paris", "mesh_gateway_tls_certificates_unusable 1").await
    })
    .await;
    assert!(is_shown(&last).await, "the one before stays");
    ask_kept().await;
    last = authority.issue("web", &[HOST]);
    eventually("the mended pair is shown", async || is_shown(&last).await).await;
    eventually("no pair is broken", async || metric(&mesh, "paris", "mesh_gateway_tls_certificates_unusable 0").await)
        .await;
    let before = asked.load(Ordering::SeqCst);
    eventually("clients go on", async || asked.load(Ordering::SeqCst) > before + 8).await;
    stop.store(true, Ordering::SeqCst);
    for client in load {
        client.await.unwrap();
    }
    ask_kept().await;
}

#[tokio::test]
async fn a_session_is_resumed_at_either_worker() {
    let authority = Authority::new();
    authority.issue("web", &[HOST]);
    let mesh = mesh(&authority, patient()).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = authority.client(&[version], &["http/1.1"]);
        ask(mesh.https("paris"), &client, "/").await.unwrap();
        // The kernel deals connections out among the workers: all sixteen to one of them is one chance in 32,768.
        for _ in 0..16 {
            let mut stream = connect(mesh.https("paris"), &client, HOST).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
            // So that the next has a ticket: those of TLS 1.3 come after the handshake, and each is used once.
            stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
            assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
        }
    }
    assert!(metric(&mesh, "paris", r#"mesh_gateway_tls_handshakes_total{version="TLSv1.3",kind="resumed"} 16"#).await);
}

/// The first message of a client that asks for [`HOST`].
fn hello(authority: &Authority) -> Vec<u8> {
    let mut client = ClientConnection::new(authority.any_client(), HOST.try_into().unwrap()).unwrap();
    let mut hello = vec![];
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn who_gets_no_session_is_told_and_keeps_nobody_waiting() {
    let authority = Authority::new();
    authority.issue("web", &[HOST]);
    let limits = archipelago_gateway::Limits { head_timeout: Duration::from_secs(2), ..patient() };
    let mesh = mesh(&authority, limits).await;
    let (address, client) = (mesh.https("paris"), authority.any_client());
    let hello = hello(&authority);
    // Nothing, half of a message, and all of it but never its answer's answer.
    let mut silent = vec![];
    for said in [&hello[..0], &hello[..hello.len() / 2], &hello] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            silent.push(stream);
        }
    }
    for (what, said) in [
        ("plain HTTP", &b"GET / HTTP/1.1\r\nhost: checkout.shop\r\n\r\n"[..]),
        ("a record that is too long", &[22, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xff]),
        ("a message of no kind", &[22, 3, 1, 0, 4, 99, 0, 0, 0]),
        ("a message that is longer than any", &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]),
        ("data before a handshake", &[23, 3, 3, 0, 1, 0]),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.first(), Some(&21), "{what} is answered with an alert: {answer:?}");
        assert!(ask(address, &client, "/").await.unwrap().ends_with("tokyo"));
    }
    for mut stream in silent {
        let mut answer = vec![];
        // What was sent before may be answered; then it ends, in order or with a reset.
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "who says nothing is not waited for for ever");
    }
    let counted = async || {
        metric(&mesh, "paris", r#"mesh_gateway_tls_handshake_failures_total{reason="timeout"} 60"#).await
            && metric(&mesh, "paris", r#"mesh_gateway_tls_handshake_failures_total{reason="malformed"} 5"#).await
    };
    eventually("each is counted", counted).await;
}

#[tokio::test]
async fn a_first_message_may_come_in_any_pieces() {
    let authority = Authority::new();
    authority.issue("web", &[HOST]);
    let mesh = mesh(&authority, patient()).await;
    let hello = hello(&authority);
    // In bytes of the stream; and in records of a few bytes each (RFC 8446 §5.1).
    let message = &hello[5..];
    let records: Vec<u8> = message
        .chunks(50)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, part].concat()
        })
        .collect();
    for said in [&hello, &records] {
        let mut stream = TcpStream::connect(mesh.https("paris")).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for part in said.chunks(7) {
            stream.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello");
    }
}
