//! Where a supervisor's words go: its log always, and to whoever started it until everything is ready.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::state::StateDir;
use crate::exit::Failure;
use crate::output;

/// Says things; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    log: File,
    audience: Audience,
    /// The starter went away before it was told that everything is ready.
    abandoned: bool,
}

/// Who listens besides the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// A person at this process's terminal.
    Terminal,
    /// `meshctl up --detach`, at the other end of stdout, as JSON lines of [`Word`].
    Starter,
    /// Nobody.
    Nobody,
}

/// One line from a detached supervisor to the command that started it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Word {
    /// Progress.
    Line(String),
    /// Everything runs; the guide to print.
    Ready(String),
    /// It does not, and why.
    Failed(Failure),
}

impl Reporter {
    /// Appends to `logs/supervisor.log`.
    pub(crate) fn new(state: &StateDir, audience: Audience) -> io::Result<Self> {
        let log = state.open_log(SUPERVISOR)?;
        Ok(Self { inner: Arc::new(Mutex::new(Inner { log, audience, abandoned: false })) })
    }

    /// Says a line.
    pub(crate) fn say(&self, line: impl Into<String>) {
        let line = line.into();
        let mut inner = self.lock();
        inner.note(&line);
        match inner.audience {
            Audience::Terminal => output::talk(&line),
            Audience::Starter => inner.abandoned |= !send(&Word::Line(line)),
            Audience::Nobody => {}
        }
    }

    /// Everything runs: a starter gets the guide and goes home. Returns the guide for a terminal to print.
    pub(crate) fn ready(&self, guide: String) -> Option<String> {
        let mut inner = self.lock();
        inner.note("ready");
        match inner.audience {
            Audience::Terminal => Some(guide),
            Audience::Starter => {
                send(&Word::Ready(guide));
                inner.audience = Audience::Nobody;
                None
            }
            Audience::Nobody => None,
        }
    }

    /// It does not run: a starter is told; otherwise the caller prints the failure.
    pub(crate) fn failed(&self, failure: Failure) -> Option<Failure> {
        let mut inner = self.lock();
        inner.note(failure.render().trim_end());
        match inner.audience {
            Audience::Starter => {
                send(&Word::Failed(failure));
                inner.audience = Audience::Nobody;
                None
            }
            _ => Some(failure),
        }
    }

    /// Whether a starter went away (Ctrl-C) before everything was ready.
    pub(crate) fn abandoned(&self) -> bool {
        self.lock().abandoned
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note(&mut self, line: &str) {
        // A full disk must not end the supervisor of processes that may be about to free it.
        let _ = writeln!(self.log, "{:.3} {line}", jiff::Timestamp::now());
    }
}

/// False when the starter is gone.
fn send(word: &Word) -> bool {
    let Ok(mut line) = serde_json::to_vec(word) else { return true };
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush()).is_ok()
}

/// The last lines of a process's log, to be shown when it fails.
pub(crate) fn tail(state: &StateDir, process: &str) -> Vec<String> {
    let Ok(file) = File::open(state.log(process)) else { return Vec::new() };
    let mut last = std::collections::VecDeque::with_capacity(TAIL_LINES);
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if last.len() == TAIL_LINES {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    last.into()
}

/// Name of the supervisor in logs and tables.
pub(crate) const SUPERVISOR: &str = "supervisor";
const TAIL_LINES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_everything_and_tail_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        let reporter = Reporter::new(&state, Audience::Nobody).unwrap();
        for number in 0..8 {
            reporter.say(format!("line {number}"));
        }
        let tail = tail(&state, SUPERVISOR);
        assert_eq!(tail.len(), TAIL_LINES);
        assert!(tail[4].ends_with("line 7"), "{tail:?}");
    }

    #[test]
    fn words_cross_the_pipe() {
        let failed = Word::Failed(Failure::refused("no").hint("yes"));
        let text = serde_json::to_string(&failed).unwrap();
        let Word::Failed(failure) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!(failure.render(), "error: no\nhint: yes\n");
    }
}
