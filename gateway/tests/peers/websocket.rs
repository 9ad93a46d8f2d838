//! WebSocket of another implementation at both ends (`websockets` for Python, and frames written by hand), case by case as a fuzzing client has
//! them: what each comes to must be what it comes to without gateways between.

use archipelago_proto::v1::Protocol;

use crate::harness::{Mesh, eventually, service};
use crate::tools::{python_with, script, server, succeeds};

#[tokio::test]
async fn every_case_is_as_if_nobody_stood_between() {
    let Some(python) = python_with("websockets") else { return };
    let (address, _server) = server(script(&python, "websocket_server.py", &[])).await;
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", address, "")]).await;
    let run = async |address: String| {
        succeeds(script(&python, "websocket_client.py", &[address.as_str(), "checkout.shop"])).await
    };
    let expected = run(address.to_string()).await;
    assert!(expected.lines().count() >= 80, "{expected}");
    for cluster in ["tokyo", "paris"] {
        let found = run(mesh.http(cluster).to_string()).await;
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected, "at the gateway of {cluster}");
        }
        assert_eq!(found.lines().count(), expected.lines().count());
    }
    for (cluster, gateway) in &mesh.gateways {
        eventually(&format!("{cluster} carries nothing any more"), async || {
            gateway.workers().reports().await.iter().all(|report| report.requests == 0 && report.connections == 0)
        })
        .await;
    }
}
