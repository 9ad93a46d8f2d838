//! The agent's identity: from its disk, from where it survives the process, or a first one by token.
//!
//! Replicas that start at once hold the same token, which works for one of them: the others wait until that one has stored
//! what it got.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use archipelago_base::{backoff::Backoff, error::chain, shutdown::Shutdown};
use archipelago_identity::{Credential, CredentialDir, LiveCredential, MeshRole};
use archipelago_rpc::enrol::{self, EnrolError, JoinToken};
use tokio::time::{Instant, sleep};

use crate::provider::IdentityStore;

/// Whose identity it must be.
pub(super) struct Expected<'a> {
    pub(super) cluster: &'a str,
    pub(super) name: &'a str,
}

impl Expected<'_> {
    /// A state directory, a store or a token of another agent must not go unnoticed.
    pub(super) fn check(&self, credential: &Credential) -> anyhow::Result<()> {
        let id = &credential.spiffe_id;
        let expected = MeshRole::Agent { cluster: self.cluster.to_owned(), name: self.name.to_owned() };
        ensure!(
            id.role().as_ref() == Some(&expected),
            "the identity is {id}, but this is agent {} of cluster {}: a token or state directory of another process?",
            self.name,
            self.cluster
        );
        Ok(())
    }
}

/// The identity of an agent that keeps it in `store` as well as in `dir`.
///
/// # Errors
/// What is stored is another agent's or cannot be read as an identity; or the token is refused, and nobody stored what it
/// was spent for.
pub(super) async fn obtain(
    dir: &CredentialDir,
    store: &Arc<dyn IdentityStore>,
    token: Option<JoinToken>,
    expected: &Expected<'_>,
) -> anyhow::Result<LiveCredential> {
    let stored = loaded(store).await?;
    // Of two the one that lasts longer: the other replica may have renewed while this one was away.
    let on_disk = dir.load().unwrap_or_else(|error| {
        tracing::warn!(error = %chain(&error), "the identity on this disk is unusable");
        None
    });
    let known = [stored, on_disk].into_iter().flatten().max_by_key(|credential| credential.not_after);
    let credential = match known {
        Some(credential) => credential,
        None => join(store, token).await?,
    };
    expected.check(&credential)?;
    dir.store(&credential)?;
    keep_once(store, &credential).await;
    LiveCredential::new(credential).context("the identity cannot be used")
}

/// A first identity: by the token, or what another replica got for it.
async fn join(store: &Arc<dyn IdentityStore>, token: Option<JoinToken>) -> anyhow::Result<Credential> {
    let token = token.ok_or(EnrolError::NoCredential)?;
    let mut backoff = retry();
    let mut told = String::new();
    loop {
        let error = match enrol::join(&token).await {
            Ok(joined) => return Ok(joined.credential),
            Err(error) if error.is_retryable() => error,
            Err(refused) => return shared(store, &refused).await,
        };
        tell(&mut told, chain(&error), "cannot join yet");
        sleep(backoff.next_delay(rand::random())).await;
    }
}

/// What another replica stored, after this one was refused.
async fn shared(store: &Arc<dyn IdentityStore>, refused: &EnrolError) -> anyhow::Result<Credential> {
    let refused = chain(refused);
    tracing::info!(reason = refused, "the token is refused: another replica may have used it, waiting for what it got");
    let deadline = Instant::now() + SHARED_WAIT_MAX;
    while Instant::now() < deadline {
        if let Some(credential) = loaded(store).await? {
            return Ok(credential);
        }
        sleep(SHARED_LOOK).await;
    }
    bail!(
        "{refused}; and no other replica of this agent stored an identity within {} s\nhint: make a new token with \
         `meshctl token create` and put it in the place of this one",
        SHARED_WAIT_MAX.as_secs()
    )
}

/// What is stored; waits for a store that cannot be read now.
async fn loaded(store: &Arc<dyn IdentityStore>) -> anyhow::Result<Option<Credential>> {
    let mut backoff = retry();
    let mut told = String::new();
    loop {
        match store.load().await {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => {
                let parsed = Credential::from_pem(&bytes, Path::new("the stored identity"));
                return parsed
                    .map(Some)
                    .context("the stored identity is damaged; remove it, and give a new join token");
            }
            Err(error) => {
                tell(&mut told, format!("{error:#}"), "the stored identity cannot be read yet");
                sleep(backoff.next_delay(rand::random())).await;
            }
        }
    }
}

/// Stores what is in use now, and whatever takes its place, until `shutdown`.
pub(super) async fn keep_stored(store: Arc<dyn IdentityStore>, credential: LiveCredential, shutdown: Shutdown) {
    let mut changes = credential.subscribe();
    let storing = async {
        loop {
            keep(&store, &credential.current()).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = storing => {}
        () = shutdown.requested() => {}
    }
}

/// Tries once: the start of an agent does not wait for it, [`keep_stored`] tries again.
async fn keep_once(store: &Arc<dyn IdentityStore>, credential: &Credential) {
    if let Err(error) = store.store(credential.to_pem().as_bytes()).await {
        tracing::warn!(error = format!("{error:#}"), "the identity could not be stored yet");
    }
}

async fn keep(store: &Arc<dyn IdentityStore>, credential: &Credential) {
    let mut backoff = retry();
    let mut told = String::new();
    let pem = credential.to_pem();
    while let Err(error) = store.store(pem.as_bytes()).await {
        let what = "the identity cannot be stored: a restart of every replica now would need a new join token";
        tell(&mut told, format!("{error:#}"), what);
        sleep(backoff.next_delay(rand::random())).await;
    }
}

/// Once per reason, not once per attempt.
fn tell(told: &mut String, reason: String, what: &'static str) {
    if *told != reason {
        tracing::warn!(reason, "{what}");
        *told = reason;
    }
}

const fn retry() -> Backoff {
    Backoff::new(RETRY_MIN, RETRY_MIN, RETRY_MAX)
}

const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A replica stores what it got at once; an API server that is being upgraded may take this long.
const SHARED_WAIT_MAX: Duration = Duration::from_secs(60);
const SHARED_LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
