//! `completion SHELL`.

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::exit::Outcome;
use crate::output;

/// Prints the completion script of a shell.
pub(super) fn run(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
    output::write_stdout(&String::from_utf8_lossy(&script))
}
