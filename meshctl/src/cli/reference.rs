//! `docs/reference/meshctl.md` is what `--help` says. `UPDATE=1 cargo test -p archipelago-meshctl --lib reference` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::Cli;

#[test]
fn the_reference_is_what_the_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/meshctl.md");
    let wanted = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is not what the help says: run this again with UPDATE=1", path.display());
}

fn page() -> String {
    let mut root = plain(Cli::command());
    root.build();
    let mut page = INTRODUCTION.to_owned();
    let help = help(&root);
    let global = help.find(GLOBAL).map(|at| &help[at..]).expect("global options stand in every help");
    let global = global.split("\n\n").next().expect("a first part");
    let _ = writeln!(page, "\n## Global options\n\n```text\n{}\n```", global.trim_end());
    visit(&root, "meshctl", &mut page);
    page
}

/// Every command that can be called.
fn visit(command: &Command, path: &str, page: &mut String) {
    for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
        let path = format!("{path} {}", child.get_name());
        if child.has_subcommands() {
            visit(child, &path, page);
            continue;
        }
        let help = help(child);
        // Global options are said once; what comes behind them in the help belongs to the command.
        let own = match help.split_once(GLOBAL) {
            None => help,
            Some((before, after)) => match after.split_once("\n\n") {
                None => before.to_owned(),
                Some((_, behind)) => format!("{before}{behind}"),
            },
        };
        let _ = writeln!(page, "\n## {path}\n\n```text\n{}\n```", own.trim_end());
    }
}

fn help(command: &Command) -> String {
    let text = command.clone().render_help().to_string();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Without what the environment and the terminal of the caller say.
fn plain(command: Command) -> Command {
    command.term_width(100).mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(plain)
}

const GLOBAL: &str = "Global options:";

const INTRODUCTION: &str = "\
# meshctl, command by command

What `meshctl COMMAND --help` prints, generated from the program (`UPDATE=1 cargo test -p archipelago-meshctl --lib reference`).

## Exit codes

Scripts may rely on these; they do not change ([versioning](../versioning.md)).

| code | means |
| --- | --- |
| 0 | done |
| 1 | refused input or usage; nothing changed |
| 2 | committed, but not every gateway acknowledged in time (stragglers are named) |
| 3 | a gateway rejected the revision (who, and why) |
| 4 | no control plane answered (with the command that starts one) |

Data goes to standard output, everything else to standard error: problems first, one a line, as `file:line:column: field: reason` where a file is meant, then
`error: …`, then `hint: …` with what to try. The words of errors and hints, and the layout of tables, are for people and may change; the names in `-o json` and `-o yaml` are
for programs: [which](json.md).
";
