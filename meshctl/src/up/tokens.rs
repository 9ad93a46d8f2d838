//! Join tokens for the agents and gateways that `up` starts.

use std::time::{Duration, SystemTime};

use archipelago_base::durable;
use archipelago_identity::CredentialDir;

use super::plan::Join;
use super::state::StateDir;
use crate::client::Client;
use crate::exit::{Failure, Outcome};

/// How much a process needs a token before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Its certificate is valid.
    Nothing,
    /// Its certificate ran out: it recovers by its key, and by a token only where that is refused. It serves its own cluster
    /// meanwhile, so a control plane that is away must not hold it back.
    Spare,
    /// It has no identity.
    Token,
}

/// What the identity that the process has stored leaves to wish for.
pub(crate) fn needed(join: &Join) -> Need {
    let stored = |dir: std::path::PathBuf| CredentialDir::new(dir).load().ok().flatten();
    match stored(join.state_dir.join(IDENTITY)).or_else(|| stored(join.state_dir.clone())) {
        None => Need::Token,
        Some(credential) if credential.not_after <= SystemTime::now() => Need::Spare,
        Some(_) => Need::Nothing,
    }
}

/// Asks the control plane for a token and writes it where the process will look.
pub(crate) async fn mint(state: &StateDir, join: &Join, need: Need) -> Outcome {
    let timeout = if need == Need::Token { TIMEOUT } else { SPARE_TIMEOUT };
    let client = Client::open(state.root(), timeout)?;
    let answer = client.create_token(&join.cluster, join.role, &join.name, TOKEN_TTL).await?;
    durable::write(&join.token_file, answer.token.as_bytes(), 0o600)
        .map_err(|error| Failure::refused(format!("cannot write {}: {error}", join.token_file.display())))
}

/// Where agents and gateways keep their SVID below their state directory.
const IDENTITY: &str = "identity";
const TIMEOUT: Duration = Duration::from_secs(10);
/// Traffic of the process's own cluster waits for this.
const SPARE_TIMEOUT: Duration = Duration::from_secs(1);
/// The process that uses it starts next.
const TOKEN_TTL: Duration = Duration::from_secs(600);
