//! Whether a file says what its writer wants, or only the part that has been written so far. Without I/O.
//!
//! A file that is written in place is seen empty, then cut at any byte, and a cut file may be valid YAML that says less: an
//! endpoint short, an export short, port 80 instead of 8080. No text tells it apart, time does. A new content is believed
//!
//! - at once when the file was replaced by another one that was written elsewhere and moved here, which is how editors,
//!   configuration management and [`archipelago_base::durable`] write, or when it ends with the end of a YAML document (a
//!   line `...`);
//! - otherwise, and in any case when it says nothing at all, once it has not changed for [`SETTLE`].
//!
//! Until then the content before stands in. A file that is gone is gone at once: no writer leaves a file out halfway.

use std::time::{Duration, Instant};

/// A file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    /// Tells a file that was moved here from the one that was here before.
    pub(super) inode: u64,
    /// Its name or mode changed after its content: it was not written under this name.
    pub(super) moved: bool,
    /// Since its last modification, as far as clocks can be trusted.
    pub(super) age: Duration,
}

/// A file as it is known over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) bytes: Vec<u8>,
    inode: u64,
    quiet_since: Instant,
    /// Whether it may be believed.
    pub(super) whole: bool,
}

impl Watched {
    /// Takes what a look found in place of what the one before found.
    pub(super) fn new(before: Option<&Self>, found: Found, now: Instant) -> Self {
        let Found { bytes, inode, moved, age } = found;
        if let Some(before) = before
            && before.bytes == bytes
            && before.inode == inode
        {
            let whole = before.whole || now >= before.quiet_since + SETTLE;
            return Self { whole, ..before.clone() };
        }
        let replaced = moved && before.is_none_or(|before| before.inode != inode);
        let whole = age >= SETTLE || (!says_nothing(&bytes) && (replaced || ends_a_document(&bytes)));
        Self { bytes, inode, quiet_since: now.checked_sub(age).unwrap_or(now), whole }
    }

    /// When it can be believed if nothing changes; `None`: it can be already.
    pub(super) fn whole_at(&self) -> Option<Instant> {
        (!self.whole).then(|| self.quiet_since + SETTLE)
    }
}

/// Blank: what every file that is written in place is for a moment.
fn says_nothing(bytes: &[u8]) -> bool {
    bytes.trim_ascii().is_empty()
}

/// The last line is `...` (YAML 1.2 §9.1.2): its writer says that nothing follows.
fn ends_a_document(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_end();
    text == b"..." || text.ends_with(b"\n...")
}

/// Longer than a program takes between two writes of one file, short enough for a person who waits for the effect.
pub(super) const SETTLE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, inode: u64, moved: bool, age: Duration) -> Found {
        Found { bytes: text.into(), inode, moved, age }
    }

    #[test]
    fn what_is_believed_when() {
        let (now, young) = (Instant::now(), Duration::ZERO);
        let before = Watched::new(None, found("a", 1, false, SETTLE), now);
        for (what, text, inode, moved, age, whole) in [
            ("written in place", "b", 1, false, young, false),
            ("its mode changed meanwhile", "b", 1, true, young, false),
            ("removed and written anew", "b", 2, false, young, false),
            ("moved here", "b", 2, true, young, true),
            ("moved here, but blank", " \n", 2, true, young, false),
            ("with the end of a document", "b\n...\n", 1, false, young, true),
            ("cut just before it", "b\n..", 1, false, young, false),
            ("dots that end a line", "b...", 1, false, young, false),
            ("blank", "", 1, false, young, false),
            ("blank for long", "", 1, false, SETTLE, true),
            ("in place, and that is long ago", "b", 1, false, SETTLE, true),
            ("the same", "a", 1, false, young, true),
        ] {
            let after = Watched::new(Some(&before), found(text, inode, moved, age), now);
            assert_eq!(after.whole, whole, "{what}");
            assert_eq!(after.whole_at().is_none(), whole, "{what}");
        }
        assert!(!Watched::new(None, found("a", 1, false, young), now).whole, "a new file may be half written too");
        assert!(Watched::new(None, found("a", 1, true, young), now).whole);
    }

    #[test]
    fn every_change_begins_the_wait_anew() {
        let now = Instant::now();
        let step = SETTLE / 2 + Duration::from_millis(1);
        let young = Duration::ZERO;
        let first = Watched::new(None, found("a", 1, false, young), now);
        let second = Watched::new(Some(&first), found("ab", 1, false, young), now + step);
        let third = Watched::new(Some(&second), found("ab", 1, false, young), now + 2 * step);
        assert!(!third.whole);
        assert_eq!(third.whole_at(), Some(now + step + SETTLE));
        assert!(Watched::new(Some(&third), found("ab", 1, false, young), now + step + SETTLE).whole);
    }
}
