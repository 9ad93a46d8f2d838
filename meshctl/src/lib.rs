//! The command line, and a whole federation on one machine.
//!
//! [`run`] is the whole program: it reads arguments, does one thing, and says how it went by its exit code.
//! Policy lives elsewhere: resources are judged by `archipelago-model`, committed by the control plane.

mod bundle;
mod checks;
mod cli;
mod client;
mod commands;
mod complete;
mod duration;
mod exit;
mod names;
mod ordered;
mod output;
mod slow;
mod underway;
mod up;
mod views;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::FromArgMatches as _;

use crate::cli::Called;
use crate::exit::Exit;

/// Runs `meshctl` with these arguments, the first of which is the program's name.
///
/// Exit codes: 0 done, 1 refused, 2 not acknowledged by all in time, 3 rejected by a gateway, 4 no control plane.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let called = Called::of(args.first().map(OsString::as_os_str));
    if complete::answers(called, &args) {
        return code(Exit::Done);
    }
    let parsed = cli::command(called).try_get_matches_from(args);
    let read = |matches: clap::ArgMatches| Ok((verb(&matches), cli::Cli::from_arg_matches(&matches)?));
    let (verb, cli) = match parsed.and_then(read) {
        Ok(read) => read,
        Err(error) => {
            // clap exits with 2 for usage, which here means something else.
            let _ = error.print();
            return code(if error.use_stderr() { Exit::Refused } else { Exit::Done });
        }
    };
    match commands::run(cli) {
        Ok(()) => code(Exit::Done),
        Err(failure) => {
            let failure = failure.or_hint(|| format!("`meshctl{verb} --help` has examples"));
            let _ = std::io::stderr().lock().write_all(called.says(&failure.render()).as_bytes());
            code(failure.exit())
        }
    }
}

/// What was asked for, such as ` split set`.
fn verb(matches: &clap::ArgMatches) -> String {
    matches.subcommand().map_or_else(String::new, |(name, inner)| format!(" {name}{}", verb(inner)))
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit.code())
}
