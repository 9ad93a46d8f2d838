//! curl, h2load and nghttp, as people use them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use archipelago_proto::v1::Protocol;
use tokio::process::Command;

use crate::harness::{self, Mesh, service};
use crate::tools::{program, succeeds};

const HOST: &str = "checkout.shop";

/// A mesh in which tokyo has a backend; the gateways of both clusters.
async fn mesh(protocol: Protocol) -> (Mesh, [SocketAddr; 2]) {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (backend, _) = harness::backend("tokyo").await;
    mesh.configure(vec![service("checkout", protocol, &["tokyo"], &[])], &[("checkout", "tokyo", backend, "")]).await;
    mesh.serves(HOST, "tokyo").await;
    let entries = [mesh.http("tokyo"), mesh.http("paris")];
    (mesh, entries)
}

fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn curl_gets_what_it_asks_for() {
    let Some(curl) = program("curl", "curl") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![b'x'; 1_000_000]).unwrap();
    let upload = format!("@{}", file.display());
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (_mesh, entries) = mesh(protocol).await;
        for (entry, version) in
            entries.iter().flat_map(|entry| [(entry, "--http1.1"), (entry, "--http2-prior-knowledge")])
        {
            let host = format!("Host: {HOST}");
            let curl = |path: &str, more: &[&str]| {
                let url = format!("http://{entry}{path}");
                let always = ["-sS", "--fail", "--max-time", "60", version, "-H", &host, &url];
                succeeds(command(&curl, &[&always, more].concat()))
            };
            assert_eq!(curl("/", &[]).await, "tokyo");
            assert_eq!(curl("/bytes/3000000", &[]).await.len(), 3_000_000);
            // The backend's library sends a body with answers to HEAD in HTTP/2.
            if protocol == Protocol::Http1 {
                let head = curl("/bytes/3000000", &["--head"]).await;
                assert!(head.contains(" 200") && !head.contains("xxx"), "{head}");
            }
            assert_eq!(curl("/count", &["--data-binary", &upload]).await, "1000000");
            assert_eq!(curl("/count", &["--data-binary", &upload, "-H", "Expect: 100-continue"]).await, "1000000");
            assert_eq!(curl("/count", &["--data-binary", &upload, "-H", "Expect:"]).await, "1000000");
            let chunked = ["--data-binary", &upload, "-H", "Transfer-Encoding: chunked"];
            if version == "--http1.1" {
                assert_eq!(curl("/count", &chunked).await, "1000000");
            }
            let headers = curl("/headers", &["--range", "5-10", "--compressed", "--user-agent", "me"]).await;
            for part in ["\"range\": \"bytes=5-10\"", "\"accept-encoding\"", "\"user-agent\": \"me\""] {
                assert!(headers.contains(part), "{part} in {headers}");
            }
            assert_eq!(curl("/trailers", &[]).await, "body");
        }
    }
}

#[tokio::test]
async fn h2load_loses_no_request_of_many() {
    let Some(h2load) = program("h2load", "nghttp2-client") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![b'x'; 20_000]).unwrap();
    let upload = file.to_string_lossy().into_owned();
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (_mesh, entries) = mesh(protocol).await;
        for entry in entries {
            let authority = format!(":authority: {HOST}");
            let h2load = |path: &str, more: &[&str]| {
                let url = format!("http://{entry}{path}");
                let always = ["-n", "600", "-c", "3", "-m", "100", "-H", &authority, &url];
                succeeds(command(&h2load, &[more, &always].concat()))
            };
            for (path, more) in [("/", vec![]), ("/bytes/20000", vec![]), ("/count", vec!["-d", &upload])] {
                let said = h2load(path, &more).await;
                assert!(said.contains("600 succeeded, 0 failed, 0 errored, 0 timeout"), "{path}: {said}");
                assert!(said.contains("600 2xx"), "{path}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn nghttp_gets_trailers_and_no_pushes_whatever_its_priorities() {
    let Some(nghttp) = program("nghttp", "nghttp2-client") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let upload = file.to_string_lossy().into_owned();
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (_mesh, entries) = mesh(protocol).await;
        for entry in entries {
            let authority = format!(":authority: {HOST}");
            let nghttp = |path: &str, more: &[&str]| {
                let url = format!("http://{entry}{path}");
                succeeds(command(&nghttp, &[more, &["-t", "60", "-H", &authority, &url]].concat()))
            };
            // Weights, and the streams that stand for priorities.
            assert_eq!(nghttp("/", &["-p", "256"]).await, "tokyo");
            let seen = nghttp("/trailers", &["-v", "-H", "te: trailers"]).await;
            assert!(seen.contains("x-checksum: abc") && !seen.contains("PUSH_PROMISE"), "{seen}");
            // With the length that nghttp says, HTTP/1.1 has no room for trailers.
            if protocol == Protocol::H2c {
                let seen = nghttp("/seen-trailers", &["-d", &upload, "--trailer", "x-sum: 17"]).await;
                assert!(seen.contains("\"x-sum\": \"17\""), "{seen}");
            }
            // Small windows: of a stream, and of the connection.
            assert_eq!(nghttp("/bytes/300000", &["-w", "10", "-W", "10"]).await.len(), 300_000);
        }
    }
}
