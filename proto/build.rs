//! Compiles the `.proto` files with `protox`, so that no `protoc` is needed on the builder's machine.

use std::{error::Error, path::Path};

const FILES: &[&str] = &[
    "archipelago/v1/config.proto",
    "archipelago/v1/agent.proto",
    "archipelago/v1/identity.proto",
    "archipelago/v1/resources.proto",
    "archipelago/v1/session.proto",
    "archipelago/v1/fleet.proto",
    "archipelago/v1/telemetry.proto",
    "archipelago/v1/events.proto",
    "archipelago/v1/dashboard.proto",
    "archipelago/v1/membership.proto",
    "archipelago/v1/gateway_control.proto",
    "archipelago/v1/agent_control.proto",
    "archipelago/v1/peers.proto",
    "archipelago/v1/slow.proto",
    "archipelago/v1/tap.proto",
    "archipelago/log/v1/log.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, [Path::new(".")])?;
    tonic_prost_build::configure()
        // Ordered maps: equal messages encode to equal bytes, which the config versions rely on.
        .btree_map(".")
        .bytes(".archipelago.v1.ConfigResource.version")
        .bytes(".archipelago.log.v1.ResourceWrite.canonical")
        .bytes(".archipelago.log.v1.StoredResource.canonical")
        .compile_fds(descriptors)?;
    Ok(())
}
