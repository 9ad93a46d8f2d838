//! Compiles the `.proto` files with `protox`, so that no `protoc` is needed on the builder's machine.

use std::{error::Error, path::Path};

const FILES: [&str; 4] = [
    "archipelago/v1/config.proto",
    "archipelago/v1/agent.proto",
    "archipelago/v1/control_plane.proto",
    "archipelago/v1/peers.proto",
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
        .compile_fds(descriptors)?;
    Ok(())
}
