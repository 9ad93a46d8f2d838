//! `archipelago-agent`: learns, checks and reports the services of one cluster.

use std::process::ExitCode;

use archipelago_agent::Args;
use clap::Parser;

#[derive(Parser)]
#[command(name = "archipelago-agent", version, about = "Learns, checks and reports the services of one cluster")]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match archipelago_agent::run(cli.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("archipelago-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
