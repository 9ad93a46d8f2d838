//! The command line, and a whole federation on one machine.
//!
//! [`run`] is the whole program: it reads arguments, does one thing, and says how it went by its exit code.
//! Policy lives elsewhere: resources are judged by `archipelago-model`, committed by the control plane.

mod checks;
mod cli;
mod client;
mod commands;
mod duration;
mod exit;
mod names;
mod ordered;
mod output;
mod slow;
mod up;
mod views;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::exit::Exit;

/// Runs `meshctl` with these arguments, the first of which is the program's name.
///
/// Exit codes: 0 done, 1 refused, 2 not acknowledged by all in time, 3 rejected by a gateway, 4 no control plane.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap exits with 2 for usage, which here means something else.
            let _ = error.print();
            return code(if error.use_stderr() { Exit::Refused } else { Exit::Done });
        }
    };
    match commands::run(cli) {
        Ok(()) => code(Exit::Done),
        Err(failure) => {
            let _ = std::io::stderr().lock().write_all(failure.render().as_bytes());
            code(failure.exit())
        }
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit.code())
}
