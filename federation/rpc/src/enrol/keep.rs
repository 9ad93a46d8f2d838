//! Keeps an SVID valid for as long as a process runs.

use std::time::{Duration, SystemTime};

use archipelago_base::{error::chain, shutdown::Shutdown};
use archipelago_identity::{CredentialDir, LiveCredential};
use rand::RngExt;

use super::{EnrolError, How, Joining, Renewal, candidate::same_identity, recover, renew};

/// Keeps `credential` valid for as long as the process runs: renews it in time, recovers it when that failed for too long, and
/// joins again by `joining` when even that is refused.
pub async fn keep_renewed(
    credential: LiveCredential,
    dir: CredentialDir,
    control_plane: Vec<String>,
    joining: Option<Joining>,
    shutdown: Shutdown,
) {
    let current = credential.current();
    let jitter = || rand::rng().random_range(-1.0..=1.0);
    let mut renewal = Renewal::new((current.not_before, current.not_after), joining.is_some(), jitter());
    loop {
        let (at, how) = renewal.next(SystemTime::now());
        let clock = tokio::select! {
            () = shutdown.requested() => return,
            clock = wait_until(at) => clock,
        };
        if let Clock::Jumped(by) = clock {
            tracing::info!(seconds = by, "the wall clock of this machine was set, or it slept");
            renewal.doubt();
            continue;
        }
        let outcome = match (how, &joining) {
            (How::Join, Some(joining)) => {
                joining.join().await.and_then(|joined| same_identity(&credential, joined.credential))
            }
            (How::Renew, _) => renew(&credential, &control_plane).await,
            (How::Recover, _) | (How::Join, None) => recover(&credential, &control_plane).await,
        };
        match outcome {
            Ok(renewed) => {
                renewal.succeeded((renewed.not_before, renewed.not_after), jitter());
                // Used even when the disk refuses it: the process goes on, and the next start goes on with what it had.
                if let Err(error) = dir.store(&renewed) {
                    tracing::error!(error = %chain(&error), "the renewed SVID could not be stored");
                }
                let spiffe_id = renewed.spiffe_id.clone();
                match credential.replace(renewed) {
                    Ok(()) => tracing::info!(%spiffe_id, ?how, "SVID renewed"),
                    Err(error) => tracing::error!(%error, "the renewed SVID could not be used"),
                }
            }
            Err(error) => {
                let left = credential.current().not_after.duration_since(SystemTime::now()).unwrap_or_default();
                if let EnrolError::Connect(error) = &error
                    && let Some(behind) = error.clock_behind()
                {
                    let behind = behind.as_secs();
                    tracing::warn!(seconds = behind, "the clock of this machine is behind by at least so much: set it");
                }
                renewal.failed(how, error.is_retryable(), rand::random());
                let (error, failures) = (chain(&error), renewal.failures());
                tracing::warn!(error, failures, ?how, seconds_left = left.as_secs(), "SVID renewal failed");
            }
        }
    }
}

/// What a pause showed of the wall clock.
enum Clock {
    /// It went on as time did.
    Steady,
    /// It was set by so many seconds; a machine that slept looks alike.
    Jumped(i64),
}

/// Sleeps until `at` by the wall clock, in steps, and ends early when that clock is set.
async fn wait_until(at: SystemTime) -> Clock {
    loop {
        let (wall, steady) = (SystemTime::now(), std::time::Instant::now());
        let left = at.duration_since(wall).unwrap_or_default();
        if left.is_zero() {
            return Clock::Steady;
        }
        tokio::time::sleep(left.min(CLOCK_STEP)).await;
        let expected = wall + steady.elapsed();
        let (by, sign) = match SystemTime::now().duration_since(expected) {
            Ok(ahead) => (ahead, 1),
            Err(behind) => (behind.duration(), -1),
        };
        if by > CLOCK_JUMP_MIN {
            return Clock::Jumped(i64::try_from(by.as_secs()).unwrap_or(i64::MAX).saturating_mul(sign));
        }
    }
}

const CLOCK_STEP: Duration = Duration::from_secs(5);
/// Beyond what adjusting a clock step by step does within [`CLOCK_STEP`].
const CLOCK_JUMP_MIN: Duration = Duration::from_secs(5);
