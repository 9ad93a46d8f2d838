//! Compiles OpenTelemetry's `.proto` files, which lie here as their project publishes them, with `protox`.

use std::{error::Error, path::Path};

const FILE: &str = "opentelemetry/proto/collector/trace/v1/trace_service.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([FILE], [Path::new("proto")])?;
    // Messages only: the one call is made by hand.
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(descriptors)?;
    Ok(())
}
