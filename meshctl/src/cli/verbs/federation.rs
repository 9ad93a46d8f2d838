//! What those take by which a federation comes about: processes, clusters, identities, tokens, manifests.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use archipelago_control_plane::Compatibility;
use clap::{Args, Subcommand, ValueEnum};

use super::{WaitArgs, WatchArgs};
use crate::duration;

#[derive(Args, Clone)]
pub(crate) struct UpArgs {
    /// File with a Topology, and resources to apply at the first start
    pub(crate) topology: Option<PathBuf>,
    /// Return when everything is ready; `down` ends it
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Where every process listens, for example ::1 [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<IpAddr>,
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
pub(crate) struct DrainArgs {
    /// Cluster
    pub(crate) cluster: String,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    /// How long to wait until requests and TCP connections under way have ended; 0s: do not wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    pub(crate) empty_within: Duration,
    /// Also where no other cluster can serve a service
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// List clusters
    #[command(after_help = "Examples:\n  meshctl cluster list\n  meshctl cluster list -w")]
    List(WatchArgs),
    /// Print everything that a Kubernetes cluster needs to join, its token included
    #[command(after_help = "\
A cluster that is not known yet is made first. The stream is for that cluster's own kubectl; with --out it is files, with
--helm values for the chart. A token that was not used is replaced by running this again.

Examples:
  meshctl cluster join paris --region eu-west | kubectl apply --server-side --field-manager=archipelago -f -
  meshctl cluster join paris --region eu-west --policies --out ./clusters/paris
  meshctl cluster join paris --region eu-west --helm > paris.yaml")]
    Join(ClusterJoinArgs),
    /// Send new requests elsewhere, and count down what is under way
    #[command(after_help = "\
Ends with 0 once the cluster serves nothing any more, and with 2 if that takes too long: it is drained all the same. Refused
where no other cluster can serve a service, since its requests would go on to this one.

Examples:
  meshctl cluster drain paris
  meshctl cluster drain paris --empty-within 30m
  meshctl cluster uncordon paris")]
    Drain(DrainArgs),
    /// What a cluster serves at this moment
    #[command(after_help = "Examples:\n  meshctl cluster underway paris\n  meshctl cluster underway paris -w")]
    Underway {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        watch: WatchArgs,
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
        #[command(flatten)]
        watch: WatchArgs,
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
    List(WatchArgs),
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
    List(WatchArgs),
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
