//! Gateways that write nothing down of requests serve as ever, and say that they count none.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use archipelago_gateway::Telemetry;
use archipelago_proto::v1::Protocol;
use harness::{Mesh, admin, backend, eventually, get, raw, service, text};
use serde_json::Value;

const HOST: &str = "checkout.shop";

async fn scrape(mesh: &Mesh, cluster: &str) -> String {
    raw(mesh.metrics(cluster), b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await
}

#[tokio::test]
async fn nothing_is_counted_and_that_is_said() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    mesh.stop_gateway("tokyo").await;
    mesh.telemetry = Telemetry::Minimal;
    mesh.start_gateway("tokyo").await;
    let (endpoint, _) = backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", endpoint, "")]).await;
    for entry in ["paris", "tokyo"] {
        assert_eq!(text(get(mesh.http(entry), HOST, "/", &[]).await.unwrap()).await, "tokyo");
    }
    // Paris counts, and knows nothing of the part of tokyo: not that it took no time.
    let mut kept = Value::Null;
    eventually("paris has kept a request", async || {
        let answer = admin(&mesh.state_dir("paris"), "GET", "/slow?service=shop/checkout", "").await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let requests =
            answer["minutes"].as_array().unwrap().iter().flat_map(|m| m["requests"].as_array().unwrap().clone());
        kept = requests.into_iter().find(|request| request["status"] == 200).unwrap_or_default();
        !kept.is_null()
    })
    .await;
    assert_eq!(kept["farSilent"], true, "{kept}");
    eventually("paris has counted", async || scrape(&mesh, "paris").await.contains("mesh_requests_total{")).await;
    let slow = admin(&mesh.state_dir("tokyo"), "GET", "/slow", "").await.unwrap();
    assert!(slow.contains("--telemetry minimal"), "{slow}");
    let metrics = scrape(&mesh, "tokyo").await;
    assert!(metrics.contains("mesh_tunnel_state{") && !metrics.contains("mesh_requests_total{"), "{metrics}");
    // What it writes for every request is written when it is asked for.
    eventually("the access log goes on", async || {
        let log = std::fs::read_to_string(mesh.state_dir("tokyo").join("access.log")).unwrap_or_default();
        log.lines().any(|line| line.contains("\"reporter\":\"source\""))
    })
    .await;
}
