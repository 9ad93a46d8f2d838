//! HTTP/2 frame by frame, from clients and endpoints that break its rules: each costs itself at most.

use archipelago_proto::v1::Protocol;

use crate::harness::{self, Mesh, eventually, service};
use crate::tools::{python, script, server, succeeds};

#[tokio::test]
async fn a_client_that_breaks_the_rules_hears_so_and_harms_nobody() {
    let Some(python) = python() else { return };
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (backend, _) = harness::backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", backend, "")]).await;
    mesh.serves("checkout.shop", "tokyo").await;
    for entry in ["tokyo", "paris"] {
        let address = mesh.http(entry).to_string();
        succeeds(script(&python, "h2_client.py", &[&address, "checkout.shop"])).await;
    }
    for (cluster, gateway) in &mesh.gateways {
        eventually(&format!("{cluster} carries nothing any more"), async || {
            gateway.workers().reports().await.iter().all(|report| report.requests == 0 && report.connections == 0)
        })
        .await;
    }
}

#[tokio::test]
async fn an_endpoint_that_breaks_the_rules_costs_its_request_at_most() {
    let Some(python) = python() else { return };
    let (address, _server) = server(script(&python, "h2_server.py", &["serve"])).await;
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let config = service("checkout", Protocol::H2c, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", address, "")]).await;
    mesh.serves("checkout.shop", "tokyo").await;
    for entry in ["tokyo", "paris"] {
        let address = mesh.http(entry).to_string();
        succeeds(script(&python, "h2_server.py", &["ask", &address, "checkout.shop"])).await;
    }
}
