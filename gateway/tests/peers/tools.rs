//! Programs of others. Without them the tests that need them say that they were skipped; with `ARCHIPELAGO_PEERS=required`, as in CI,
//! they fail.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Python with grpcio, hpack, websockets and OpenTelemetry's messages: `PEERS_PYTHON`, or what `gateway/tests/peers/tools` made.
pub(crate) fn python() -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers-tools/venv/bin/python");
    let python = std::env::var_os("PEERS_PYTHON").map(PathBuf::from).unwrap_or(made);
    if python.exists() {
        return Some(python);
    }
    missing(&format!("no Python with grpcio and hpack at {}; gateway/tests/peers/tools makes one", python.display()))
}

/// The same, if it has `module` as well: one made for an earlier version of the tests may not.
pub(crate) fn python_with(module: &str) -> Option<PathBuf> {
    let python = python()?;
    let found = std::process::Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    missing(&format!("no module {module} for {}; gateway/tests/peers/tools makes one that has it", python.display()))
}

/// A program in the path; `package` of Debian has it.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file());
    found.or_else(|| missing(&format!("no {name}; `apt install {package}` installs it")))
}

fn missing<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("ARCHIPELAGO_PEERS").is_none_or(|how| how != "required"), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

/// One of the scripts beside this file.
pub(crate) fn script(python: &Path, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)).args(arguments);
    command.stdin(Stdio::piped()).kill_on_drop(true);
    command
}

/// A script that prints its port, and runs until it is dropped.
pub(crate) async fn server(mut command: Command) -> (std::net::SocketAddr, Child) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = lines.next_line().await.unwrap().expect("it starts").parse().unwrap();
    (std::net::SocketAddr::new("127.0.0.1".parse().unwrap(), port), child)
}

/// Runs a program to its end, which must be a good one; gives what it printed.
pub(crate) async fn succeeds(mut command: Command) -> String {
    let output = command.output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{err}\n{out}", output.status);
    out.into_owned()
}
