//! The replicated state machine: resources, exports, the gateway registry, join tokens and the sealed authority.
//!
//! [`Machine`] is what the Raft driver applies committed commands to. Applying is deterministic: ordered maps, no clock,
//! no randomness, no floats, no parsing and no judging of policy; times and nonces come inside the [`command::Command`],
//! and resources are admitted by the proposer. What an entry asks and the state does not allow is an outcome; an entry that
//! this version does not know entirely is not applied at all, and stops the member.
//!
//! Two counters tell what moved: the **revision** with policy, the **fleet version** with registrations and reports.

mod apply;
pub mod command;
pub mod convert;
mod dedup;
mod fleet;
pub mod format;
mod identities;
mod image;
mod members;
mod names;
mod slots;
mod state;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;

use archipelago_model::version::Version;
use archipelago_raft::{CannotApply, Encode, StateMachine};

pub(crate) use self::command::role_name;
pub use self::{
    fleet::same_report,
    names::{gateway_problem, is_label, label_problem},
    state::{DeletedCluster, Gateway, Key, Revocation, State, Stored, Token},
};

/// The state, the formats this member knows, and who is told when the state moves.
pub struct Machine {
    state: State,
    supported: u32,
    observer: Observer,
    witness: Option<Witness>,
}

/// Called on the thread that applies, after every command that moved the version or installed the authority, and after a
/// restore. It must return at once.
pub type Observer = Box<dyn Fn(Version) + Send + Sync>;

/// Called on the thread that applies, with the state before a command; what it returns, with the state after it. Both only look.
pub type Witness = Box<dyn Fn(&State, &command::Command) -> Option<After> + Send + Sync>;

/// Called with the index of the entry, the state after it, and its encoded outcome.
pub type After = Box<dyn FnOnce(u64, &State, &[u8])>;

impl Machine {
    /// An empty machine that knows formats up to `supported`.
    #[must_use]
    pub fn new(supported: u32, observer: Observer) -> Self {
        Self { state: State::default(), supported, observer, witness: None }
    }

    /// The same with somebody who looks at every command.
    #[must_use]
    pub fn with_witness(self, witness: Witness) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// The state as of the last applied command.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The newest format that this member knows.
    #[must_use]
    pub fn supported(&self) -> u32 {
        self.supported
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, log_index: u64, command: &[u8]) -> Result<Vec<u8>, CannotApply> {
        let command =
            command::decode(command, self.supported).map_err(|error| CannotApply { reason: error.to_string() })?;
        let before = (self.state.version(), self.state.ca().is_some());
        let witnessed = self.witness.as_ref().and_then(|witness| witness(&self.state, &command));
        let outcome = self.state.apply(command);
        if let Some(after) = witnessed {
            after(log_index, &self.state, &outcome);
        }
        let after = (self.state.version(), self.state.ca().is_some());
        if after != before {
            (self.observer)(after.0);
        }
        Ok(outcome)
    }

    fn snapshot(&self) -> Encode {
        let state = self.state.clone();
        Box::new(move || image::encode(&state))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.state = image::decode(snapshot, self.supported).map_err(|error| error.to_string())?;
        (self.observer)(self.state.version());
        Ok(())
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Machine").field("version", &self.state.version()).field("supported", &self.supported).finish()
    }
}
