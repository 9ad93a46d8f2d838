//! `archipelago-gateway`: the data plane of one node.

use archipelago_gateway::{Args, run};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "archipelago-gateway", version, about = "The data plane of one node")]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    archipelago_base::logging::init("gateway");
    // Every worker has a descriptor for each port of the node's clients, and two for each connection it carries.
    archipelago_base::open_files::raise_limit();
    match run(cli.args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
