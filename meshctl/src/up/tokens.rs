//! Join tokens for the agents and gateways that `up` starts.

use std::time::{Duration, SystemTime};

use archipelago_base::durable;
use archipelago_identity::CredentialDir;

use super::plan::Join;
use super::state::StateDir;
use crate::client::Client;
use crate::exit::{Failure, Outcome};

/// Whether the process has no identity that is still valid.
pub(crate) fn needed(join: &Join) -> bool {
    let valid = |dir: std::path::PathBuf| {
        let credential = CredentialDir::new(dir).load().ok().flatten();
        credential.is_some_and(|credential| credential.not_after > SystemTime::now())
    };
    !valid(join.state_dir.join(IDENTITY)) && !valid(join.state_dir.clone())
}

/// Asks the control plane for a token and writes it where the process will look.
pub(crate) async fn mint(state: &StateDir, join: &Join) -> Outcome {
    let client = Client::open(state.root(), TIMEOUT)?;
    let answer = client.create_token(&join.cluster, join.role, &join.name, TOKEN_TTL).await?;
    durable::write(&join.token_file, answer.token.as_bytes(), 0o600)
        .map_err(|error| Failure::refused(format!("cannot write {}: {error}", join.token_file.display())))
}

/// Where agents and gateways keep their SVID below their state directory.
const IDENTITY: &str = "identity";
const TIMEOUT: Duration = Duration::from_secs(10);
/// The process that uses it starts next.
const TOKEN_TTL: Duration = Duration::from_secs(600);
