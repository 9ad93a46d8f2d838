//! How a command ends: the exit codes that scripts rely on, and errors a tired person can act on.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Exit codes of `meshctl`; documented in the help and kept stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    /// 0: done.
    Done,
    /// 1: refused input or usage; nothing changed.
    Refused,
    /// 2: committed, but not every gateway acknowledged in time.
    Unacknowledged,
    /// 3: a gateway rejected the revision.
    Rejected,
    /// 4: no control plane answered.
    NoControlPlane,
}

impl Exit {
    /// The number a shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Unacknowledged => 2,
            Self::Rejected => 3,
            Self::NoControlPlane => 4,
        }
    }
}

/// Why a command did not end with 0, and what to try next.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    problems: Vec<String>,
    hint: Option<String>,
}

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Input or usage that is refused: exit code 1.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// A failure with the given exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), problems: Vec::new(), hint: None }
    }

    /// Adds what to try next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, unless there is a hint, or it is not what was asked that is wrong.
    #[must_use]
    pub(crate) fn or_hint(self, hint: impl FnOnce() -> String) -> Self {
        if self.hint.is_none() && self.exit == Exit::Refused { self.hint(hint()) } else { self }
    }

    /// Adds lines printed above the error, such as `file:line:column: path: reason`.
    #[must_use]
    pub(crate) fn problems(mut self, problems: impl IntoIterator<Item = String>) -> Self {
        self.problems.extend(problems);
        self
    }

    /// How the process exits.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// What goes to stderr: problems, one line each, then the error, then the hint.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            let _ = writeln!(text, "{problem}");
        }
        if !self.message.is_empty() {
            let _ = writeln!(text, "error: {}", self.message);
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
        text
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure,
            // `{:#}` prints the whole chain of causes on one line.
            Err(error) => Self::refused(format!("{error:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_documentation() {
        let all = [Exit::Done, Exit::Refused, Exit::Unacknowledged, Exit::Rejected, Exit::NoControlPlane];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn problems_come_first_and_the_hint_last() {
        let failure = Failure::refused("refused, nothing changed")
            .hint("meshctl validate -f F")
            .problems(["a.yaml:1:2: spec: bad".to_owned()]);
        assert_eq!(
            failure.render(),
            "a.yaml:1:2: spec: bad\nerror: refused, nothing changed\nhint: meshctl validate -f F\n"
        );
    }

    #[test]
    fn a_failure_survives_anyhow() {
        let wrapped = anyhow::Error::new(Failure::new(Exit::NoControlPlane, "nobody"));
        assert_eq!(Failure::from(wrapped).exit(), Exit::NoControlPlane);
        let chain = anyhow::anyhow!("inner").context("outer");
        assert_eq!(Failure::from(chain).render(), "error: outer: inner\n");
    }
}
