//! `member`: who the control plane is made of.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::WatchArgs;
use crate::duration;

#[derive(Subcommand)]
pub(crate) enum MemberCommand {
    /// List members: who votes, who leads, and how far each is
    #[command(after_help = "Examples:\n  meshctl member list\n  meshctl member list -w\n  meshctl member list -o json")]
    List(WatchArgs),
    /// Add a member; it votes once it has caught up
    #[command(after_help = "\
What the new member begins with is written into a directory, to be taken to its machine; the commands for there are printed. The
command goes on until the member has its vote, and may be run again to wait for longer. An even number of members stands no more
losses than one less.

Examples:
  meshctl member add --client 10.0.0.4:7400 --peer 10.0.0.4:7401
  meshctl member add --client cp-4.example:7400 --peer cp-4.example:7401 --out ./cp-4 --wait 30m")]
    Add(AddMemberArgs),
    /// Put a new member in the place of one that is lost with its disk
    #[command(after_help = "\
The new member has a number of its own, the process and the address of the lost one, and goes on from the log of the others. The lost
one is out in the step that gives the new one its vote, and its certificates are refused. Under `up` all of it happens by itself;
elsewhere the commands for the machine are printed. The command may be run again to wait for longer.

Examples:
  meshctl member replace 2
  meshctl member replace cp-2 --client 10.0.0.9:7400 --peer 10.0.0.9:7401     on another machine
  meshctl member replace 2 --secrets | kubectl apply -f -                     on Kubernetes, and then the first one")]
    Replace(ReplaceMemberArgs),
    /// Take a member out for good
    #[command(after_help = "\
Refused of the member that leads, and when too few of those that would be left answer. Its certificates are refused from then on; its
number is never given again.

Examples:
  meshctl member remove 4
  meshctl member remove cp-4 --reason \"machine returned\"")]
    Remove {
        /// Its number, or its name
        #[arg(value_name = "MEMBER", value_parser = number)]
        member: u64,
        /// Why, for whoever reads the events later
        #[arg(long)]
        reason: Option<String>,
    },
    /// Hand leadership over
    #[command(after_help = "Examples:\n  meshctl member transfer\n  meshctl member transfer --to 3")]
    Transfer {
        /// To this member [default: whichever is most advanced]
        #[arg(long, value_name = "MEMBER", value_parser = number)]
        to: Option<u64>,
    },
}

#[derive(Args)]
pub(crate) struct AddMemberArgs {
    /// Where operators, agents and gateways reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) client: String,
    /// Where the other members reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) follow: FollowArgs,
}

#[derive(Args)]
pub(crate) struct ReplaceMemberArgs {
    /// The lost one: its number, or its name
    #[arg(value_name = "MEMBER", value_parser = number)]
    pub(crate) member: u64,
    /// Where operators, agents and gateways reach the new one [default: where they reached the lost one]
    #[arg(long, value_name = "HOST:PORT", requires = "peer")]
    pub(crate) client: Option<String>,
    /// Where the other members reach it
    #[arg(long, value_name = "HOST:PORT", requires = "client")]
    pub(crate) peer: Option<String>,
    /// Why, for whoever reads the events later
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Print what the member begins with as Secrets for Kubernetes, and do not wait
    #[arg(long, conflicts_with = "out")]
    pub(crate) secrets: bool,
    /// With --secrets: namespace of the control plane
    #[arg(long, value_name = "NAME", default_value = archipelago_manifests::CONTROL_PLANE_NAMESPACE, requires = "secrets")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) follow: FollowArgs,
}

#[derive(Args)]
pub(crate) struct FollowArgs {
    /// Directory for what the member begins with, among it a secret [default: members/NAME below the state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// How long to wait until it has its vote
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    pub(crate) wait: Duration,
}

/// `2` or `cp-2`.
fn number(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("cp-").unwrap_or(text).parse::<u64>().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is no member, such as 2 or cp-2"))
}
