//! `meshctl` as a person or a script calls it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) line: String,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Itself, if it exited with `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Its stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{self}"))
    }

    /// Itself, if its stderr contains all of these.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "nothing says {word:?}\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} exited with {}\nstdout: {}\nstderr: {}", self.line, self.code, self.stdout, self.stderr)
    }
}

/// Runs `meshctl` to its end, in the directory `/`: nothing may depend on where it is called.
pub(crate) async fn meshctl(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    run(Path::new("/"), args, &[], None).await
}

/// The same with a working directory, environment variables and stdin.
pub(crate) async fn run(
    dir: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    environment: &[(&str, &OsStr)],
    stdin: Option<&str>,
) -> Ran {
    let mut command = tokio::process::Command::new(MESHCTL);
    command.args(args).current_dir(dir).env_remove("ARCHIPELAGO_STATE").env_remove("ARCHIPELAGO_UP");
    command.envs(environment.iter().copied());
    let line = format!("{:?}", command.as_std());
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        pipe.write_all(text.as_bytes()).await.unwrap();
    }
    let ended = tokio::time::timeout(COMMAND_MAX, child.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{line}: still running after {COMMAND_MAX:?}")).unwrap();
    Ran {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The binary under test.
pub(crate) const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");
/// `up` waits up to two minutes by itself.
const COMMAND_MAX: Duration = Duration::from_secs(150);
