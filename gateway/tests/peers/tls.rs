//! curl and OpenSSL as clients that speak TLS.

use std::path::Path;
use std::process::Stdio;

use archipelago_proto::v1::Protocol;
use tokio::process::Command;

use crate::harness::{self, Mesh, patient, service};
use crate::tools::{program, succeeds};

const HOST: &str = "checkout.shop";

/// A mesh of one cluster, and in the folder what its gateway shows clients, of either kind of key.
async fn mesh(folder: &Path, algorithm: &'static rcgen::SignatureAlgorithm) -> Mesh {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let certificate = rcgen::CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(&key).unwrap();
    // As a Secret is mounted.
    std::fs::create_dir(folder.join("web")).unwrap();
    std::fs::write(folder.join("web/tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("web/tls.key"), key.serialize_pem()).unwrap();
    let mut mesh = Mesh::start_secured(&["paris"], patient(), folder).await;
    let (backend, _) = harness::backend("paris").await;
    let services = vec![service("checkout", Protocol::Http1, &["paris"], &[])];
    mesh.configure(services, &[("checkout", "paris", backend, "")]).await;
    mesh.serves(HOST, "paris").await;
    mesh
}

fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn curl_speaks_tls_of_either_version_with_either_kind_of_key() {
    let Some(curl) = program("curl", "curl") else { return };
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256] {
        let folder = tempfile::tempdir().unwrap();
        let mesh = mesh(folder.path(), algorithm).await;
        let upload = folder.path().join("body");
        std::fs::write(&upload, vec![b'x'; 1_000_000]).unwrap();
        let (upload, root) = (format!("@{}", upload.display()), folder.path().join("web/tls.crt"));
        let port = mesh.https("paris").port();
        let (resolve, base) = (format!("{HOST}:{port}:127.0.0.1"), format!("https://{HOST}:{port}"));
        for (least, most) in [("--tlsv1.2", "1.2"), ("--tlsv1.3", "1.3")] {
            for (protocol, spoken) in [("--http1.1", "1.1"), ("--http2", "2")] {
                let curl = |path: &str, more: &[&str]| {
                    let url = format!("{base}{path}");
                    let root = root.to_str().unwrap();
                    let always = ["-sS", "--fail", "--max-time", "60", "--cacert", root, "--resolve", &resolve];
                    let how = [least, "--tls-max", most, protocol, &url];
                    succeeds(command(&curl, &[&always[..], &how, more].concat()))
                };
                assert_eq!(curl("/", &["-w", " %{http_version}"]).await, format!("paris {spoken}"));
                assert_eq!(curl("/bytes/3000000", &[]).await.len(), 3_000_000);
                assert_eq!(curl("/count", &["--data-binary", &upload]).await, "1000000");
            }
        }
    }
}

#[tokio::test]
async fn openssl_agrees_on_names_protocols_and_resumption() {
    let Some(openssl) = program("openssl", "openssl") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mesh = mesh(folder.path(), &rcgen::PKCS_ECDSA_P256_SHA256).await;
    let (address, root) = (mesh.https("paris").to_string(), folder.path().join("web/tls.crt"));
    let ticket = folder.path().join("ticket");
    let (root, ticket) = (root.to_str().unwrap(), ticket.to_str().unwrap());
    let client = |more: &[&str]| {
        let always = ["s_client", "-connect", &address, "-CAfile", root, "-verify_return_error", "-ign_eof"];
        let mut command = command(&openssl, &[&always[..], more].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // It ends with the connection: after one response, which is when tickets have come, too.
        async move {
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, request.as_bytes()).await;
            let output = child.wait_with_output().await.unwrap();
            drop(stdin);
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        }
    };
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let first = client(&[version, "-servername", HOST, "-alpn", "http/1.1", "-sess_out", ticket]).await;
        assert!(first.contains("New, ") && first.contains(name), "{first}");
        assert!(first.contains("ALPN protocol: http/1.1") && first.contains("Verify return code: 0"), "{first}");
        assert!(first.contains("HTTP/1.1 200") && first.contains("paris"), "{first}");
        let second = client(&[version, "-servername", HOST, "-alpn", "http/1.1", "-sess_in", ticket]).await;
        assert!(second.contains("Reused, ") && second.contains("HTTP/1.1 200"), "{second}");
    }
    let stranger = client(&["-servername", "other.example"]).await;
    assert!(stranger.contains("unrecognized name"), "{stranger}");
    let old = client(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-servername", HOST]).await;
    assert!(!old.contains("HTTP/1.1 200"), "{old}");
}
