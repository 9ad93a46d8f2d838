//! The replicated state machine: resources, exports, the gateway registry, join tokens and the sealed authority.
//!
//! [`Machine`] is what the Raft driver applies committed commands to. Applying is deterministic: ordered maps, no clock,
//! no randomness, no floats; times and nonces come inside the [`command::Command`]. One dense **revision** moves only
//! when something a gateway could care about changed.

mod apply;
pub mod command;
mod dedup;
mod image;
mod names;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use archipelago_raft::{CannotApply, Encode, StateMachine};
use prost::Message;
use tokio::sync::watch;

pub(crate) use self::apply::{role_name, strip_counts};
use self::command::{Command, Outcome, RefusalKind};
pub use self::{
    names::{is_label, label_problem},
    state::{Gateway, Meta, State, Token, TokenUse},
};

/// The state and the channel that tells the rest of the process when its revision moves.
#[derive(Debug)]
pub struct Machine {
    state: State,
    published: Arc<Published>,
}

impl Machine {
    /// An empty machine, and the handle on which its revisions appear.
    #[must_use]
    pub fn new() -> (Self, Arc<Published>) {
        let published = Arc::new(Published::new());
        (Self { state: State::default(), published: Arc::clone(&published) }, published)
    }

    /// The state as of the last applied command.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl StateMachine for Machine {
    /// Applies one command; returns an encoded [`Outcome`]. Bytes that are no command are refused, never a panic:
    /// every member refuses them alike.
    fn apply(&mut self, _log_index: u64, command: &[u8]) -> Result<Vec<u8>, CannotApply> {
        let before = self.state.revision();
        let had_ca = self.state.ca().is_some();
        let outcome = match Command::decode(command) {
            Ok(command) => self.state.apply(command),
            Err(error) => {
                Outcome::refused(before, RefusalKind::Malformed, format!("not a command: {error}")).encode_to_vec()
            }
        };
        if self.state.revision() != before || self.state.ca().is_some() != had_ca {
            self.published.publish(self.state.revision());
        }
        Ok(outcome)
    }

    fn snapshot(&self) -> Encode {
        let state = self.state.clone();
        Box::new(move || image::encode(&state))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.state = image::decode(snapshot).map_err(|error| error.to_string())?;
        self.published.publish(self.state.revision());
        Ok(())
    }
}

/// Revisions as this member applied them. Written by the apply thread, read by everything else.
#[derive(Debug)]
pub struct Published {
    revision: watch::Sender<u64>,
    commits: Mutex<VecDeque<(u64, Instant)>>,
}

impl Published {
    fn new() -> Self {
        Self { revision: watch::Sender::new(0), commits: Mutex::default() }
    }

    /// The applied revision, and every later one. A slow reader sees the latest, not each.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The applied revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// When this member applied `revision`; `None` when that is too long ago or it arrived inside a snapshot.
    #[must_use]
    pub fn applied_at(&self, revision: u64) -> Option<Instant> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let place = commits.binary_search_by_key(&revision, |(revision, _)| *revision).ok()?;
        commits.get(place).map(|(_, at)| *at)
    }

    fn publish(&self, revision: u64) {
        {
            let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
            // A restored snapshot may only go forward; keep the list sorted whatever happens.
            while commits.back().is_some_and(|(last, _)| *last >= revision) {
                commits.pop_back();
            }
            if commits.len() >= COMMIT_TIMES_MAX {
                commits.pop_front();
            }
            commits.push_back((revision, Instant::now()));
        }
        self.revision.send_replace(revision);
    }
}

/// Commit times kept: at 100 changes a second, long enough for any `--timeout` in use (40 s).
const COMMIT_TIMES_MAX: usize = 4_096;
