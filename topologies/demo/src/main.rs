//! `archipelago-demo`: one demo backend as a process.

use std::process::ExitCode;

use clap::Parser;

/// Demo backend of an Archipelago federation
#[derive(Parser)]
#[command(name = "archipelago-demo", disable_version_flag = true)]
struct Cli {
    #[command(flatten)]
    args: archipelago_demo::Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    archipelago_base::logging::init("demo");
    match archipelago_demo::run(cli.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
