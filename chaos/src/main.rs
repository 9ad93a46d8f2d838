//! `chaos`: load and link emulation from the command line.

use std::process::ExitCode;

use archipelago_chaos::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
