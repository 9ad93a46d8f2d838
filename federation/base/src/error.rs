//! An error with its causes, for a log line or a message to a person.

use std::error::Error;

/// The messages of `error` and of everything that caused it, outermost first, joined by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[from] std::fmt::Error);

    #[test]
    fn names_every_cause() {
        assert_eq!(chain(&Outer(std::fmt::Error)), "outer: an error occurred when formatting an argument");
    }
}
