//! What those take by which operators look at a federation, and change nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::duration;
use crate::names::{self, ServiceName, Source};

/// What every listing takes.
#[derive(Args, Clone, Copy)]
pub(crate) struct WatchArgs {
    /// Go on until Ctrl-C: on a terminal in the place of what stood there, elsewhere what has changed
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// With --watch: how often to look
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse, requires = "watch")]
    pub(crate) interval: Duration,
}

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Only what must hold before another cluster joins
    #[arg(long)]
    pub(crate) pre: bool,
    /// Check again until everything works and every declared cluster has joined, for so long
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration::parse, conflicts_with = "watch")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

#[derive(Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens, until Ctrl-C
    #[arg(long, short, visible_alias = "watch", visible_short_alias = 'w')]
    pub(crate) follow: bool,
    /// Only what is about this service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) service: Option<ServiceName>,
    /// Only what is about this cluster, or said by its gateways
    #[arg(long)]
    pub(crate) cluster: Option<String>,
    /// Only these kinds; may be repeated
    #[arg(long = "kind", value_parser = clap::builder::PossibleValuesParser::new(archipelago_model::event::KINDS))]
    pub(crate) kinds: Vec<String>,
    /// Only what happened within this time
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) since: Option<Duration>,
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) limit: u32,
}

#[derive(Args)]
pub(crate) struct GetArgs {
    /// Cluster, ServiceExport, TrafficSplit, FailoverPolicy or BackendPolicy, in any case; all kinds without it
    pub(crate) kind: Option<String>,
    /// Name
    pub(crate) name: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// Where the request enters: CLUSTER or CLUSTER/GATEWAY
    #[arg(long, value_name = "CLUSTER[/GATEWAY]")]
    pub(crate) from: Source,
    /// Service it is for
    #[arg(long, value_name = "SERVICE")]
    pub(crate) to: ServiceName,
    /// Method
    #[arg(long, default_value = "GET")]
    pub(crate) method: String,
    /// Path
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Header; may be repeated
    #[arg(long = "header", value_name = "K=V", value_parser = names::pair)]
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Args)]
pub(crate) struct SlowArgs {
    /// namespace/name
    pub(crate) service: ServiceName,
    /// How far back, in whole minutes upwards; 15m is all that is kept
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    pub(crate) since: Duration,
    /// Look at the slowest hundredth of the requests, instead of the hundred slowest
    #[arg(long)]
    pub(crate) p99: bool,
}

#[derive(Args)]
pub(crate) struct TopArgs {
    /// Services to look at, such as shop/checkout; none: all
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<ServiceName>,
    /// How long to count for one set of figures
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse)]
    pub(crate) interval: Duration,
    /// Print one set of figures and end, also on a terminal
    #[arg(long, conflicts_with = "count")]
    pub(crate) once: bool,
    /// Print so many sets of figures and end
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// What to tell apart beside services
    #[arg(long, value_enum)]
    pub(crate) by: Option<TopBy>,
    /// Show at most so many rows, the busiest [default: 20 on a terminal, else 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rows: Option<u32>,
    /// With -o json or yaml: the whole histogram of every row
    #[arg(long)]
    pub(crate) histogram: bool,
}

/// `top --by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopBy {
    /// Clusters that serve
    Cluster,
    /// Versions that serve, as the gateways beside their endpoints see it: without the tunnel
    Version,
    /// Clusters at which requests enter, and which serve
    Source,
}

#[derive(Args)]
pub(crate) struct TapArgs {
    /// Only what this takes, such as 'status>=500 path^=/pay'
    #[arg(long = "where", value_name = "FILTER")]
    pub(crate) filter: Option<String>,
    /// Only requests for this service
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<ServiceName>,
    /// Only requests that enter at this cluster, or that it serves
    #[arg(long)]
    pub(crate) cluster: Option<String>,
    /// End after so many requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    pub(crate) time: Option<Duration>,
    /// At most so many a second of each gateway
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=250))]
    pub(crate) rate: u32,
}

#[derive(Args)]
pub(crate) struct BugReportArgs {
    /// File to make [default: ./archipelago-bug-report-TIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ManArgs {
    /// Write a page for every command into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct CompletionArgs {
    /// Shell to print the script of; or `install`
    pub(crate) shell: CompletionFor,
    /// With `install`: the shell [default: that in SHELL]
    #[arg(value_name = "SHELL")]
    pub(crate) of: Option<Shell>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionFor {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
    /// Write the script to where the shell looks for it
    Install,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
}

impl Shell {
    /// The shell at a path.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next()?;
        Self::value_variants().iter().copied().find(|shell| shell.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
            Self::Elvish => "elvish",
            Self::Powershell => "powershell",
        }
    }
}
