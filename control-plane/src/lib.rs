//! The replicated control plane: state machine, certificate authority, and the streams of agents and gateways.
//!
//! - [`machine`]: what is replicated, and how commands change it. Pure.
//! - [`ca`]: the sealed authority and the certificates it issues.
//! - [`bootstrap`]: founding a federation.
//! - `consensus`: writing and reading linearizably from any member; `published`, `policy`: the applied state, watched and parsed.
//! - `quota`: how often agents and gateways may write.
//! - `upgrade`: the log's format rises when every member knows more.
//! - `refusal`: words for what the state machine refuses.
//! - `sessions`, `config`, `api`: who is connected, what they should run, and the gRPC services.
//! - `dashboard`: the page for operators.
//! - `chronicle`: what happened, as this member knows it.
//! - `net`: Raft between members. `roster`: who they are; `group`: changing that.
//!
//! [`run`] is a whole member; `main.rs` only parses arguments.

pub mod bootstrap;
pub mod ca;
pub mod machine;
pub mod seed;

mod api;
mod audit;
mod authority;
mod chronicle;
mod config;
mod consensus;
mod dashboard;
mod digest;
mod group;
mod metrics;
mod net;
mod policy;
mod published;
mod quota;
mod refusal;
mod revocations;
mod roster;
mod server;
mod sessions;
mod started;
mod upgrade;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use archipelago_base::{logging, shutdown::Shutdown};

use self::bootstrap::Member;
pub use self::dashboard::DashboardArgs;
pub use self::started::MARKER_SUFFIX;

/// A member of the control plane.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Raft id of this member; also of one that is in the place of another member, if it was added as such.
    #[arg(long)]
    pub node_id: u64,
    /// Directory that `bootstrap` made for this member; holds everything it must keep.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// File that remembers that this member was started; on another disk it outlives the data directory. Default:
    /// beside the data directory, named as it and `.started`.
    #[arg(long)]
    pub marker: Option<PathBuf>,
    /// Address for operators, agents and gateways.
    #[arg(long, default_value = "0.0.0.0:7400")]
    pub listen_client: SocketAddr,
    /// Address for the other members.
    #[arg(long, default_value = "0.0.0.0:7401")]
    pub listen_peer: SocketAddr,
    /// Address for metrics and health.
    #[arg(long, default_value = "127.0.0.1:7490")]
    pub listen_metrics: SocketAddr,
    /// The page for operators.
    #[command(flatten)]
    pub dashboard: DashboardArgs,
    /// Every member, this one included, as ID=CLIENT/PEER; repeated, with the ids that their processes are started with. Default: as
    /// bootstrapped, and as changed since.
    #[arg(long = "member", value_name = "ID=CLIENT/PEER")]
    pub members: Vec<Member>,
    /// Life of the certificates it issues; gateways and agents renew after a quarter of it.
    #[arg(long, env = "ARCHIPELAGO_SVID_TTL", default_value = "48h", value_parser = duration)]
    pub svid_ttl: Duration,
    /// How long after its end the certificate of a gateway or an agent may still be exchanged for another one, by its key.
    #[arg(long, env = "ARCHIPELAGO_RECOVERY_GRACE", default_value = "720h", value_parser = duration)]
    pub recovery_grace: Duration,
    /// File with this member's seal key; default: seal.key in the data directory, beside what it opens.
    #[arg(long, env = "ARCHIPELAGO_SEAL_KEY_FILE", value_name = "FILE")]
    pub seal_key_file: Option<PathBuf>,
    /// Log entries kept for members that were away; one further behind gets a snapshot.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_entries: u64,
    /// Timing of elections: `lan` within a data centre, `wan` for members up to 150 ms apart.
    #[arg(long, value_enum, default_value_t = Profile::Lan)]
    pub profile: Profile,
    /// Behave as the version before this one: for tests, and to hold an upgrade back on purpose.
    #[arg(long, env = "ARCHIPELAGO_COMPATIBILITY", value_enum, default_value_t = Compatibility::Current, hide = true)]
    pub compatibility: Compatibility,
}

/// As which version a member behaves: what it says it knows, and what it applies and restores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compatibility {
    /// As what it is.
    #[default]
    Current,
    /// As the version before.
    Previous,
}

impl Compatibility {
    /// The newest log format that is known.
    #[must_use]
    pub fn format(self) -> u32 {
        match self {
            Self::Current => machine::format::CURRENT,
            Self::Previous => machine::format::PREVIOUS,
        }
    }
}

/// How fast a missing leader is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Heartbeats every 50 ms, elections after 300 to 600 ms.
    Lan,
    /// Heartbeats every 200 ms, elections after 2 to 4 s.
    Wan,
}

/// Runs a member until SIGTERM or SIGINT, or until its storage fails.
///
/// # Errors
/// It could not start, or stopped by itself; the message says what to do.
pub fn run(args: Args) -> anyhow::Result<()> {
    logging::init("control-plane");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control-plane")
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::install().context("cannot install signal handlers")?;
        server::serve(args, shutdown).await
    });
    // A connection that does not end must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|error| format!("{text:?} is not a duration such as 48h or 90s: {error}"))?;
    let duration = Duration::try_from(parsed).map_err(|_| format!("{text:?} is negative"))?;
    if duration < SVID_TTL_MIN || duration > SVID_TTL_MAX {
        return Err(format!("{text:?} is not within 10 s and 90 days"));
    }
    Ok(duration)
}

/// Shorter, and renewal could not keep up with a retry.
const SVID_TTL_MIN: Duration = Duration::from_secs(10);
const SVID_TTL_MAX: Duration = Duration::from_secs(90 * 24 * 3_600);
