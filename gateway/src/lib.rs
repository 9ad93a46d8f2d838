//! The data plane: listeners, routing, balancing, replay, DNS and telemetry of one gateway.
//!
//! | module | what | may block or lock |
//! | --- | --- | --- |
//! | [`authorize`], [`source`], [`route`], [`balance`], [`pace`], [`config`], [`explain`], [`dns::answer`] | decisions, pure | no |
//! | [`ledger`] | where the time of requests went: parts, which are kept; pure but for stamps | no |
//! | [`tls`] | TLS towards clients: certificates, handshakes, sessions | files, beside requests |
//! | [`trace`] | distributed traces: which requests are recorded, and their spans | no |
//! | [`worker`], [`exchange`], [`tcp`] | one thread per core: sockets to tunnels and back | no |
//! | [`visitors`] | what one client has open, on all workers together | one shard, per connection |
//! | [`handover`] | one process of a gateway follows another | yes |
//! | [`journal`] | what this gateway saw, for operators | for a moment, beside requests |
//! | [`control`], [`admin`], [`dns::server`], [`telemetry`] | everything beside the data path, on threads of its own | yes |
//!
//! [`Gateway::start`] puts them together; [`run`] adds enrolment and signals.

#![allow(
    unreachable_pub,
    reason = "modules are private, so that the compiler finds what nobody uses; `pub` is for their siblings"
)]

mod admin;
mod args;
mod authorize;
mod balance;
mod callers;
mod config;
mod control;
mod dns;
mod exchange;
mod explain;
mod gateway;
mod handover;
mod journal;
mod ledger;
mod pace;
mod route;
mod source;
mod tap;
mod tcp;
mod telemetry;
mod tls;
mod trace;
mod visitors;
mod worker;
mod workers;

pub use args::Args;
pub use callers::CaptureFrom;
pub use gateway::{Gateway, Settings};
pub use telemetry::Telemetry;
pub use tls::Https;
pub use visitors::{Network, Share};
pub use worker::Limits;

/// What tests and benchmarks of this crate drive beside a whole [`Gateway`].
#[doc(hidden)]
pub mod internals {
    pub use crate::config::{ConfigState, Snapshot, store::Store};
    pub use crate::control::apply::{Applied, Change, Update};
    pub use crate::route::{Condition, Matcher, PathPattern, Pattern, RouteInput, index::RuleIndex};
    pub use crate::worker::command::{Heard, Knowledge};
    pub use crate::worker::view::{LiveState, PeerFacts, View};
    pub use crate::workers::Workers;
}

use std::time::Duration;

use anyhow::Context as _;
use archipelago_base::backoff::Backoff;
use archipelago_base::durable::DirLock;
use archipelago_base::error::chain;
use archipelago_base::shutdown::Shutdown;
use archipelago_identity::{CredentialDir, LiveCredential, MeshRole};
use archipelago_rpc::enrol::{self, Joining};

use handover::{Hello, Phase};

/// Runs a gateway until SIGTERM or SIGINT and drains it. Blocks; makes its own threads and runtimes.
///
/// # Errors
/// What keeps a gateway from starting: the state directory, a taken port, a token that is refused.
pub fn run(args: Args) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let shutdown = Shutdown::install()?;
        let _lock = DirLock::acquire(&settings.state_dir)?;
        // First of all: until then whoever asks about us hears of the gateway before us, which is ready.
        let (cluster, gateway, http) = (settings.cluster.clone(), settings.name.clone(), settings.http);
        let handover = handover::inherit(Hello { cluster, gateway, http }).await?;
        let mut turn = handover.turn();
        let dir = CredentialDir::new(settings.state_dir.join("identity"));
        let joining = args.joining()?;
        let Some(credential) = enrol(&dir, joining.as_ref(), &shutdown).await? else { return Ok(()) };
        let id = credential.current().spiffe_id.clone();
        let expected = MeshRole::Gateway { cluster: settings.cluster.clone(), name: settings.name.clone() };
        anyhow::ensure!(
            id.role().as_ref() == Some(&expected),
            "the credential in {} is for {id}, not for gateway {} of cluster {}",
            dir.path().display(),
            settings.name,
            settings.cluster
        );
        let members = settings.control_plane.clone();
        let renewal = enrol::keep_renewed(credential.clone(), dir, members, joining, shutdown.clone());
        let gateway = Gateway::start_in(handover.seat(), settings, credential)?;
        if let Some(https) = gateway.https() {
            tracing::info!(%https, "gateway speaks TLS");
        }
        tracing::info!(gateway = %id, http = %gateway.http(), revision = gateway.revision(), "gateway serves");
        {
            let handing_over = handover.run(gateway.settled(), gateway.offered());
            let ended = async {
                tokio::select! {
                    () = shutdown.requested() => {}
                    () = gateway.drain_requested() => {}
                }
                // A successor that is about to serve: with us would go what nobody accepts yet.
                let _ = tokio::time::timeout(SUCCESSOR_PATIENCE, turn.until(|phase| phase != Phase::Offered)).await;
            };
            tokio::pin!(renewal, handing_over, ended);
            let (mut renewed, mut handed_over) = (false, false);
            loop {
                tokio::select! {
                    () = &mut ended => break,
                    () = &mut renewal, if !renewed => renewed = true,
                    () = &mut handing_over, if !handed_over => handed_over = true,
                }
            }
            // From here on a successor sees that we are gone, and serves whether it is ready or not.
        }
        tokio::task::spawn_blocking(move || gateway.stop()).await.context("the gateway did not drain")?;
        tracing::info!("drained");
        Ok(())
    })
}

/// The credential on disk, or a first one by joining; waits for a control plane that is not there yet. `None`: shutdown came first.
async fn enrol(
    dir: &CredentialDir,
    joining: Option<&Joining>,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<LiveCredential>> {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100), Duration::from_secs(3));
    let mut told = String::new();
    loop {
        let error = match enrol::ensure(dir, joining).await {
            Ok(credential) => return Ok(Some(credential)),
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error.into()),
        };
        // Once per reason: whoever starts before the rest of a cluster has several, one after another.
        let reason = chain(&error);
        if told != reason {
            tracing::warn!(error = reason, "cannot join yet");
            told = reason;
        }
        let pause: Duration = backoff.next_delay(rand::random());
        tokio::select! {
            () = shutdown.requested() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Much longer than a gateway takes to get a configuration and open its tunnels; below a pod's usual grace of 30 s.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(15);
