//! `completion`: the script by which a shell asks this program, and where it belongs.

use std::fs;
use std::path::{Path, PathBuf};

use clap_complete::env::Shells;

use crate::cli::{CompletionArgs, CompletionFor, Shell};
use crate::exit::{Failure, Outcome};
use crate::output::{self, talk};

/// `completion …`.
pub(super) fn run(args: &CompletionArgs) -> Outcome {
    let shell = match (args.shell, args.of) {
        (CompletionFor::Bash, _) => Shell::Bash,
        (CompletionFor::Zsh, _) => Shell::Zsh,
        (CompletionFor::Fish, _) => Shell::Fish,
        (CompletionFor::Elvish, _) => Shell::Elvish,
        (CompletionFor::Powershell, _) => Shell::Powershell,
        (CompletionFor::Install, shell) => return install(shell),
    };
    output::write_stdout(&script(shell)?)
}

/// Writes the script to where the shell looks for it.
fn install(shell: Option<Shell>) -> Outcome {
    let of_login = || Shell::of(&std::env::var_os("SHELL")?.to_string_lossy());
    let shell = shell.or_else(of_login).ok_or_else(|| {
        Failure::refused("which shell is it for? SHELL does not say").hint("name it: meshctl completion install fish")
    })?;
    let folder = |variable: &str, below_home: &str| {
        let given = std::env::var_os(variable).filter(|given| !given.is_empty()).map(PathBuf::from);
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        given.or_else(|| home.map(|home| home.join(below_home))).ok_or_else(|| {
            Failure::refused(format!("neither {variable} nor HOME says where files of yours belong"))
                .hint("print the script instead: meshctl completion SHELL")
        })
    };
    let path = match shell {
        Shell::Bash => folder("XDG_DATA_HOME", ".local/share")?.join("bash-completion/completions/meshctl"),
        Shell::Zsh => folder("XDG_DATA_HOME", ".local/share")?.join("zsh/site-functions/_meshctl"),
        Shell::Fish => folder("XDG_CONFIG_HOME", ".config")?.join("fish/completions/meshctl.fish"),
        Shell::Elvish | Shell::Powershell => {
            let name = shell.name();
            return Err(Failure::refused(format!("{name} looks for completions in no folder"))
                .hint(format!("add what `meshctl completion {name}` prints to the file that it reads at its start")));
        }
    };
    write(&path, &script(shell)?)?;
    talk(format!("written to {}; new shells complete commands, and names of the federation", path.display()));
    if shell == Shell::Zsh {
        let folder = path.parent().unwrap_or(Path::new("")).display();
        talk(format!("hint: zsh looks there if ~/.zshrc says so, before compinit: fpath=({folder} $fpath)"));
    }
    Ok(())
}

fn write(path: &Path, script: &str) -> Outcome {
    let failed = |error| {
        Failure::refused(format!("cannot write {}: {error}", path.display()))
            .hint("print the script instead: meshctl completion SHELL")
    };
    fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    fs::write(path, script).map_err(failed)
}

fn script(shell: Shell) -> Outcome<String> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let known = shells.completer(shell.name());
    let known = known.ok_or_else(|| Failure::refused(format!("no completion for {}", shell.name())))?;
    known
        .write_registration("COMPLETE", "meshctl", "meshctl", "meshctl", &mut script)
        .map_err(|error| Failure::refused(format!("cannot make the script: {error}")))?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}
