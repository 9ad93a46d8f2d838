//! `man`: manual pages, out of the same words as the help.

use std::fs;

use crate::cli::{self, ManArgs};
use crate::exit::{Failure, Outcome};
use crate::output;

/// Prints the page of the program, or writes one for every command.
pub(super) fn run(args: &ManArgs) -> Outcome {
    let command = cli::command(cli::Called::Meshctl);
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        rendered.map_err(|error| Failure::refused(format!("cannot make the page: {error}")))?;
        return output::write_stdout(&String::from_utf8_lossy(&page));
    };
    let failed = |error| Failure::refused(format!("cannot write manual pages to {}: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(command, dir).map_err(failed)?;
    output::talk(format!("manual pages of meshctl and its commands are in {}", dir.display()));
    Ok(())
}
