//! `archipelago-agent`: learns, checks and reports the services of one cluster.

use std::process::ExitCode;

use archipelago_agent::{Args, provider::file::ServiceFiles};
use clap::Parser;

#[derive(Parser)]
#[command(name = "archipelago-agent", version, about = "Learns, checks and reports the services of one cluster")]
struct Cli {
    #[command(flatten)]
    args: Args,
    #[command(flatten)]
    files: ServiceFiles,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match archipelago_agent::run(cli.args, cli.files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("archipelago-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
