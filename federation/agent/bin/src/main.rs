//! `archipelago-agent`: learns, checks and reports the services of one cluster.

use std::{path::PathBuf, process::ExitCode};

use archipelago_agent::{Args, provider::file::ServiceFiles};
use clap::{CommandFactory, Parser, error::ErrorKind};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "archipelago-agent", version, about = "Learns, checks and reports the services of one cluster")]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Follow the service files in this directory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubernetes", "kubeconfig"])]
    services: Option<PathBuf>,
    #[command(flatten)]
    kubernetes: archipelago_kubernetes::Flags,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("archipelago-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.services {
        Some(services) => archipelago_agent::run(cli.args, ServiceFiles { services }),
        None if cli.kubernetes.is_kubernetes() => archipelago_agent::run(cli.args, cli.kubernetes.provider()?),
        None => Cli::command()
            .error(
                ErrorKind::MissingRequiredArgument,
                "where are the services? Say --services DIR, --kubernetes in a pod, or --kubeconfig FILE",
            )
            .exit(),
    }
}
