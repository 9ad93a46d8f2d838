//! The replicated state of the simulation: every command ever applied, so that nothing can hide.

use archipelago_base::random::mix;

use crate::machine::{CannotApply, Encode, StateMachine};

/// All applied commands with their log index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) applied: Vec<(u64, u64)>,
    /// Follows from the commands, and no check of the simulation looks at it: only digests show when it is wrong.
    pub(crate) hidden: u64,
    pub(crate) version: Version,
}

/// What the member's binary knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    #[default]
    New,
    /// From before the commands that carry [`NEW`].
    Old,
    /// The planted bug: an old one that skips what it does not know.
    OldAndSkips,
    /// The planted bug: one that gets some commands wrong.
    Faulty,
}

impl StateMachine for History {
    fn apply(&mut self, log_index: u64, command: &[u8]) -> Result<Vec<u8>, CannotApply> {
        let id = u64::from_be_bytes(command.try_into().unwrap());
        match self.version {
            Version::Old if id & NEW != 0 => return Err(CannotApply { reason: "a command of a later version".into() }),
            Version::OldAndSkips if id & NEW != 0 => {}
            _ => self.applied.push((log_index, id)),
        }
        let wrong = self.version == Version::Faulty && mix(id).is_multiple_of(32);
        self.hidden = mix(self.hidden ^ id) ^ u64::from(wrong);
        Ok(id.to_be_bytes().to_vec())
    }

    fn snapshot(&self) -> Encode {
        let mut applied = self.applied.clone();
        applied.push((self.hidden, 0));
        let pair = |(log_index, id): (u64, u64)| [log_index.to_be_bytes(), id.to_be_bytes()];
        Box::new(move || applied.into_iter().flat_map(pair).flatten().collect())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let (words, []) = snapshot.as_chunks::<16>() else { return Err("not whole pairs".into()) };
        let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        let mut applied: Vec<_> = words.iter().map(|pair| (word(&pair[..8]), word(&pair[8..]))).collect();
        let (hidden, _) = applied.pop().ok_or("nothing")?;
        if self.version == Version::Old && applied.iter().any(|(_, id)| id & NEW != 0) {
            return Err("a state of a later version".into());
        }
        (self.applied, self.hidden) = (applied, hidden);
        Ok(())
    }
}

/// Marks the commands that only the new version knows.
pub(crate) const NEW: u64 = 1 << 63;
