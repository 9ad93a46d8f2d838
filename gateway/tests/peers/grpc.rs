//! grpcio as client and as server, with gateways between.

use std::net::SocketAddr;

use archipelago_proto::v1::Protocol;

use crate::harness::{Mesh, eventually, service};
use crate::tools::{python, script, server, succeeds};

/// A mesh in which tokyo has the gRPC server at `address`, and a service that nobody serves.
async fn mesh(address: SocketAddr) -> Mesh {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let services =
        vec![service("calls", Protocol::H2c, &["tokyo"], &[]), service("empty", Protocol::H2c, &["tokyo"], &[])];
    mesh.configure(services, &[("calls", "tokyo", address, "")]).await;
    mesh
}

/// Runs scenarios of `grpc_client.py` on both paths: at the gateway of the server's own cluster, and through a tunnel.
async fn run(arguments: &[&str], scenarios: &[&str]) {
    let Some(python) = python() else { return };
    let (address, _server) = server(script(&python, "grpc_server.py", arguments)).await;
    let mesh = mesh(address).await;
    for entry in ["tokyo", "paris"] {
        let address = mesh.http(entry).to_string();
        succeeds(script(&python, "grpc_client.py", &[&[address.as_str()], scenarios].concat())).await;
    }
    for (cluster, gateway) in &mesh.gateways {
        eventually(&format!("{cluster} carries nothing any more"), async || {
            gateway.workers().reports().await.iter().all(|report| report.requests == 0 && report.connections == 0)
        })
        .await;
    }
}

#[tokio::test]
async fn calls_of_all_kinds_are_as_if_nobody_stood_between() {
    run(&[], &["kinds", "metadata", "status", "own_errors"]).await;
}

#[tokio::test]
async fn a_server_hears_deadlines_and_cancellations() {
    run(&[], &["deadlines", "cancellation"]).await;
}

#[tokio::test]
async fn a_thousand_streams_are_carried_at_once() {
    run(&[], &["thousand"]).await;
}

#[tokio::test]
async fn a_quiet_stream_is_no_hung_endpoint() {
    run(&[], &["quiet"]).await;
}

#[tokio::test]
async fn connections_that_age_are_not_noticed() {
    run(&["--max-age-ms", "150"], &["ages"]).await;
}

#[tokio::test]
async fn a_server_of_few_streams_gets_more_connections() {
    run(&["--max-streams", "10"], &["few_streams"]).await;
}
