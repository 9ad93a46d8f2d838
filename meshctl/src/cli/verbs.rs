//! What each command takes.

use std::path::PathBuf;
use std::time::Duration;

use archipelago_control_plane::Compatibility;
use clap::{Args, Subcommand, ValueEnum};

use crate::duration;
use crate::edit::split::{RouteMatch, Sticky};
use crate::names::{self, ServiceName, Share, Source, Target};

#[derive(Args, Clone)]
pub(crate) struct UpArgs {
    /// File with a Topology, and resources to apply at the first start
    pub(crate) topology: Option<PathBuf>,
    /// Return when everything is ready; `down` ends it
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// First port; every process gets its ports above it [default: 7400]
    #[arg(long, value_name = "PORT")]
    pub(crate) base_port: Option<u16>,
    /// Workers per gateway; one suffices where many gateways share few cores [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<u16>,
    /// Let the gateways write access logs, below logs/; they grow with every request
    #[arg(long)]
    pub(crate) access_log: bool,
    /// Start Prometheus too, if this machine has it, and write provisioning for Grafana
    #[arg(long)]
    pub(crate) observe: bool,
    /// Found it as the version before this one would: for tests of upgrades
    #[arg(long, env = "ARCHIPELAGO_COMPATIBILITY", value_enum, default_value_t = Compatibility::Current, hide = true)]
    pub(crate) compatibility: Compatibility,
    /// How long everything may take to get ready
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration::parse)]
    pub(crate) ready_timeout: Duration,
}

#[derive(Args)]
pub(crate) struct DownArgs {
    /// Keep the state directory: the next `up` resumes this federation
    #[arg(long)]
    pub(crate) keep_state: bool,
}

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Only what must hold before another cluster joins
    #[arg(long)]
    pub(crate) pre: bool,
    /// Check again until everything works, for so long
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration::parse)]
    pub(crate) wait: Duration,
}

#[derive(Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens, until Ctrl-C
    #[arg(long, short)]
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
pub(crate) struct GetArgs {
    /// Cluster, ServiceExport, TrafficSplit, FailoverPolicy or BackendPolicy, in any case; all kinds without it
    pub(crate) kind: Option<String>,
    /// Name
    pub(crate) name: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
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
    #[command(after_help = "Examples:\n  meshctl split get shop/checkout\n  meshctl split get shop/checkout -o yaml")]
    Get {
        /// namespace/name
        service: ServiceName,
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
pub(crate) enum ClusterCommand {
    /// List clusters
    #[command(after_help = "Examples:\n  meshctl cluster list")]
    List,
    /// Print everything that a Kubernetes cluster needs to join, its token included
    #[command(after_help = "\
A cluster that is not known yet is made first. The stream is for that cluster's own kubectl; with --out it is files, with
--helm values for the chart. A token that was not used is replaced by running this again.

Examples:
  meshctl cluster join paris --region eu-west | kubectl apply --server-side --field-manager=archipelago -f -
  meshctl cluster join paris --region eu-west --policies --out ./clusters/paris
  meshctl cluster join paris --region eu-west --helm > paris.yaml")]
    Join(ClusterJoinArgs),
    /// Send new requests elsewhere, as long as another cluster can take them
    #[command(after_help = "Examples:\n  meshctl cluster drain paris\n  meshctl cluster uncordon paris")]
    Drain {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a drained cluster take requests again
    #[command(after_help = "Examples:\n  meshctl cluster uncordon paris")]
    Uncordon {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Subcommand)]
pub(crate) enum FailoverCommand {
    /// Where services are away from by hand, and where their clusters stand
    #[command(after_help = "Examples:\n  meshctl failover status\n  meshctl failover status shop/checkout")]
    Status {
        /// namespace/name
        service: Option<ServiceName>,
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

#[derive(Subcommand)]
pub(crate) enum RaftCommand {
    /// Make gateways follow a control plane that was restored from a backup
    #[command(after_help = "\
Without --yes it says what it would do, and does nothing.

Examples:
  meshctl raft restored
  meshctl raft restored --yes")]
    Restored {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum IdentityCommand {
    /// List identities with their newest certificate
    #[command(after_help = "\
Examples:
  meshctl identity list
  meshctl identity list --prefix /cluster/paris/ -o json")]
    List {
        /// Only ids whose path begins so
        #[arg(long, value_name = "PATH")]
        prefix: Option<String>,
    },
    /// Everything that is known of one identity
    #[command(after_help = "Examples:\n  meshctl identity describe spiffe://mesh.local/cluster/paris/gateway/gw-1")]
    Describe {
        /// Its SPIFFE id
        #[arg(value_name = "SPIFFE_ID")]
        spiffe_id: String,
    },
    /// Refuse every certificate that it was given until now, and end its sessions
    #[command(after_help = "\
Within a second its sessions with the control plane end, and gateways refuse it. A new join token lets it back in.

Examples:
  meshctl identity revoke spiffe://mesh.local/cluster/paris/gateway/gw-1 --reason \"node stolen\"")]
    Revoke {
        /// Its SPIFFE id
        #[arg(value_name = "SPIFFE_ID")]
        spiffe_id: String,
        /// Why, for whoever lists it later
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum OperatorCommand {
    /// Make another operator
    #[command(after_help = "\
The directory works as --state. With --csr the key stays on the machine that made the request.

Examples:
  meshctl operator create ada
  meshctl operator create ci --ttl 30d --out ./ci
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj / -keyout key.pem -out ada.csr
  meshctl operator create ada --csr ada.csr --out ./ada")]
    Create {
        /// Lower-case letters, digits and dashes
        name: String,
        /// How long the certificate is good; it is renewed for as long again
        #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration::parse)]
        ttl: Duration,
        /// Directory for the credential [default: ./operator-NAME]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// A certificate request (PKCS#10) that was made elsewhere
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
    },
    /// List operators
    #[command(after_help = "Examples:\n  meshctl operator list")]
    List,
    /// Renew the credential in use, with a new key
    #[command(after_help = "Examples:\n  meshctl operator renew\n  meshctl --state ./ci operator renew")]
    Renew,
    /// Refuse an operator's certificates from now on
    #[command(after_help = "Examples:\n  meshctl operator revoke ada --reason \"left\"")]
    Revoke {
        /// As it was created
        name: String,
        /// Why, for whoever lists it later
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown once and works once
    #[command(after_help = "\
Examples:
  meshctl token create --cluster lyon                            for the agent of a new cluster
  meshctl token create --cluster lyon --role gateway --name gw-1")]
    Create {
        /// Cluster it is for
        #[arg(long)]
        cluster: String,
        /// What may join with it
        #[arg(long, value_enum, default_value_t = JoinAs::Agent)]
        role: JoinAs,
        /// Name it is bound to [default: agent; required for a gateway]
        #[arg(long)]
        name: Option<String>,
        /// How long it works
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
    },
    /// List tokens; their secrets are not kept anywhere
    #[command(after_help = "Examples:\n  meshctl token list")]
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum JoinAs {
    /// The agent of a cluster
    Agent,
    /// A gateway
    Gateway,
}

/// What every command takes that prints manifests.
#[derive(Args)]
pub(crate) struct ManifestArgs {
    /// File with values of the chart; may be repeated, later ones win
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    pub(crate) values: Vec<PathBuf>,
    /// One value, such as agent.replicas=3; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Namespace [default: archipelago-system; archipelago-control-plane for a control plane]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Write files into this directory, with a kustomization.yaml, instead of printing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct InstallArgs {
    /// Only the definitions of kinds
    #[arg(long, conflicts_with = "control_plane")]
    pub(crate) crds: bool,
    /// A control plane; the first time this founds the federation, below the state directory
    #[arg(long)]
    pub(crate) control_plane: bool,
    /// Where clusters and operators will reach a member; one per member, 1, 3 or 5 of them
    #[arg(long = "client", value_name = "HOST:PORT")]
    pub(crate) clients: Vec<String>,
    /// Trust domain of the federation [default: mesh.local]
    #[arg(long, value_name = "NAME")]
    pub(crate) trust_domain: Option<String>,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
}

#[derive(Args)]
pub(crate) struct UninstallArgs {
    /// The definitions of kinds too, and with them every object of these kinds, whoever made it
    #[arg(long)]
    pub(crate) crds: bool,
    /// A control plane, in the place of agent and gateways
    #[arg(long)]
    pub(crate) control_plane: bool,
    /// Print a script that deletes all of it, and what the agent made
    #[arg(long)]
    pub(crate) script: bool,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
}

#[derive(Args)]
pub(crate) struct ClusterJoinArgs {
    /// Name of the cluster
    pub(crate) name: String,
    /// Its region, for a cluster that is not known yet
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// Let the cluster's own users write policies for the whole federation
    #[arg(long)]
    pub(crate) policies: bool,
    /// How long its token works
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    pub(crate) ttl: Duration,
    /// Print values for Helm instead of manifests
    #[arg(long, conflicts_with = "out")]
    pub(crate) helm: bool,
    /// Leave the definitions of kinds out
    #[arg(long)]
    pub(crate) skip_crds: bool,
    #[command(flatten)]
    pub(crate) manifests: ManifestArgs,
}

#[derive(Args)]
pub(crate) struct JoinArgs {
    /// What `meshctl token create` printed
    pub(crate) token: String,
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

#[derive(Subcommand)]
pub(crate) enum Role {
    /// Control-plane member
    ControlPlane(archipelago_control_plane::Args),
    /// Agent of a cluster
    Agent(AgentArgs),
    /// Gateway
    Gateway(Box<archipelago_gateway::Args>),
    /// Demo backend
    Demo(archipelago_demo::Args),
    /// Supervisor behind `up --detach`
    Supervisor(SupervisorArgs),
}

#[derive(Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) agent: archipelago_agent::Args,
    #[command(flatten)]
    pub(crate) files: archipelago_agent::provider::file::ServiceFiles,
}

#[derive(Args)]
pub(crate) struct SupervisorArgs {
    /// State directory
    #[arg(long = "for", value_name = "DIR")]
    pub(crate) state: PathBuf,
    #[command(flatten)]
    pub(crate) up: UpArgs,
}
