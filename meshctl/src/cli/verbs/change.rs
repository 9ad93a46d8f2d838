//! What those take by which operators change what a federation does, and go back.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::WatchArgs;
use crate::duration;
use crate::names::{self, ServiceName, Share, Target};
use archipelago_model::edit::split::{RouteMatch, Sticky};

#[derive(Args)]
pub(crate) struct FileArgs {
    /// File, directory (its .yaml, .yml and .json files), or - for stdin; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// Ask the control plane whether it would take this, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Whom a write waits for.
#[derive(Args, Clone, Copy)]
pub(crate) struct WaitArgs {
    /// Return when these gateways run the revision
    #[arg(long, value_enum, default_value_t = Wait::All)]
    pub(crate) wait: Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    /// Every gateway
    All,
    /// More than half of them
    Quorum,
    /// None: return after the commit
    None,
}

#[derive(Args)]
pub(crate) struct DeleteArgs {
    /// Cluster, ServiceExport, TrafficSplit, FailoverPolicy or BackendPolicy, in any case
    #[arg(required_unless_present = "files", requires = "name")]
    pub(crate) kind: Option<String>,
    /// Name; namespace/name works too
    pub(crate) name: Option<String>,
    /// Namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Delete what these files name
    #[arg(short, long = "file", value_name = "FILE", conflicts_with = "kind")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Subcommand)]
pub(crate) enum SplitCommand {
    /// Set shares by cluster, or by cluster and version
    #[command(after_help = "\
Weights are relative. Without --header, --cookie, --path or --method they are for every request that no
route matches; with them they are for the requests that match all of them. What is not named stays.

Examples:
  meshctl split set shop/checkout paris=90 tokyo=10
  meshctl split set shop/checkout paris:v1=95 paris:v2=5
  meshctl split set shop/checkout tokyo:v2=1 --header x-preview=pr-42
  meshctl split set shop/checkout --sticky-header x-user")]
    Set(SplitSetArgs),
    /// Show the split of a service
    #[command(
        after_help = "Examples:\n  meshctl split get shop/checkout\n  meshctl split get shop/checkout -w\n  meshctl split get shop/checkout -o yaml"
    )]
    Get {
        /// namespace/name
        service: ServiceName,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Remove the split of a service, or one of its routes
    #[command(
        after_help = "Examples:\n  meshctl split clear shop/checkout\n  meshctl split clear shop/checkout --header x-preview=pr-42"
    )]
    Clear {
        /// namespace/name
        service: ServiceName,
        #[command(flatten)]
        route: RouteArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Args)]
pub(crate) struct SplitSetArgs {
    /// namespace/name
    pub(crate) service: ServiceName,
    /// CLUSTER[:VERSION]=WEIGHT, such as paris=90 or tokyo:v2=10
    #[arg(value_name = "SHARE")]
    pub(crate) shares: Vec<Share>,
    #[command(flatten)]
    pub(crate) route: RouteArgs,
    /// Keep a user where he is, by this request header
    #[arg(long, value_name = "HEADER", group = "stickiness")]
    sticky_header: Option<String>,
    /// Keep a user where he is, by this cookie
    #[arg(long, value_name = "COOKIE", group = "stickiness")]
    sticky_cookie: Option<String>,
    /// Let every request draw anew
    #[arg(long, group = "stickiness")]
    not_sticky: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

impl SplitSetArgs {
    /// What becomes of stickiness.
    pub(crate) fn sticky(&self) -> Sticky {
        match (&self.sticky_header, &self.sticky_cookie, self.not_sticky) {
            (Some(name), ..) => Sticky::Header(name.clone()),
            (_, Some(name), _) => Sticky::Cookie(name.clone()),
            (.., true) => Sticky::Off,
            _ => Sticky::Keep,
        }
    }
}

/// Which requests a route is for.
#[derive(Args)]
pub(crate) struct RouteArgs {
    /// Requests with this header; may be repeated
    #[arg(long = "header", value_name = "K=V", value_parser = names::pair)]
    headers: Vec<(String, String)>,
    /// Requests with this cookie; may be repeated
    #[arg(long = "cookie", value_name = "K=V", value_parser = names::pair)]
    cookies: Vec<(String, String)>,
    /// Requests whose path begins with this
    #[arg(long = "path", value_name = "PREFIX")]
    path_prefix: Option<String>,
    /// Requests with this method
    #[arg(long)]
    method: Option<String>,
}

impl From<RouteArgs> for RouteMatch {
    fn from(args: RouteArgs) -> Self {
        Self { headers: args.headers, cookies: args.cookies, path_prefix: args.path_prefix, method: args.method }
    }
}

#[derive(Args)]
pub(crate) struct SwitchArgs {
    /// namespace/name
    pub(crate) service: ServiceName,
    /// CLUSTER[:VERSION]
    #[arg(long, value_name = "CLUSTER", required_unless_present = "undo")]
    pub(crate) to: Option<Target>,
    /// Bring back the split before the latest switch
    #[arg(long, conflicts_with = "to")]
    pub(crate) undo: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Subcommand)]
pub(crate) enum FailoverCommand {
    /// Where services are away from by hand, and where their clusters stand
    #[command(after_help = "Examples:\n  meshctl failover status\n  meshctl failover status shop/checkout")]
    Status {
        /// namespace/name
        service: Option<ServiceName>,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Move a service away from a cluster
    #[command(after_help = "Examples:\n  meshctl failover trigger shop/checkout --from paris")]
    Trigger {
        /// namespace/name
        service: ServiceName,
        /// Cluster to leave
        #[arg(long, value_name = "CLUSTER")]
        from: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a service return
    #[command(
        after_help = "Examples:\n  meshctl failover release shop/checkout\n  meshctl failover release shop/checkout --from paris"
    )]
    Release {
        /// namespace/name
        service: ServiceName,
        /// Only this cluster; all of them without it
        #[arg(long, value_name = "CLUSTER")]
        from: Option<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Subcommand)]
pub(crate) enum DrillCommand {
    /// Kill -9 processes and keep them down
    #[command(after_help = "\
TARGET is a cluster (its agent, gateways and demo backends), control-plane, or one process of `status`.

Examples:
  meshctl drill kill paris --for 20s
  meshctl drill kill control-plane --for 1m
  meshctl drill kill paris/gw-1 --for 5s")]
    Kill {
        /// Cluster, control-plane, or process
        target: String,
        /// How long
        #[arg(long = "for", value_name = "TIME", default_value = "20s", value_parser = duration::parse)]
        time: Duration,
    },
    /// Drop the packets of tunnels in silence
    #[command(after_help = "\
A new cut replaces the one before.

Examples:
  meshctl drill cut paris --for 20s           paris from all others
  meshctl drill cut paris,tokyo --for 20s     only between these two")]
    Cut {
        /// CLUSTER, or A,B
        #[arg(value_delimiter = ',', required = true, value_name = "CLUSTER[,CLUSTER]")]
        clusters: Vec<String>,
        /// How long
        #[arg(long = "for", value_name = "TIME", default_value = "20s", value_parser = duration::parse)]
        time: Duration,
    },
    /// End every drill now
    #[command(after_help = "Examples:\n  meshctl drill end")]
    End,
}
