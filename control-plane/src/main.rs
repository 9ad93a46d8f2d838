//! `archipelago-control-plane`: a member of the control plane, and the founding of a federation.

use std::{path::PathBuf, process::ExitCode};

use archipelago_control_plane::{
    Args, Compatibility,
    bootstrap::{self, Member, Plan},
    seed::{self, Seed},
};
use archipelago_identity::TrustDomain;
use clap::{Parser, Subcommand};

/// Control plane of an Archipelago federation.
#[derive(Debug, Parser)]
#[command(name = "archipelago-control-plane", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a member.
    Run(Box<Args>),
    /// Fill the data directory of a member that begins, where an orchestrator starts it on an empty disk.
    Seed(Seed),
    /// Found a federation: authority, member identities, and the first operator's credential.
    Bootstrap {
        /// Trust domain of every identity.
        #[arg(long)]
        trust_domain: TrustDomain,
        /// A member, as ID=CLIENT/PEER; repeated.
        #[arg(long = "member", value_name = "ID=CLIENT/PEER", required = true)]
        members: Vec<Member>,
        /// Where to put member-<ID>/ and operator/.
        #[arg(long)]
        out: PathBuf,
        /// Where to put each member's seal key, as seal-<ID>.key; default: into its data directory, beside what it opens.
        #[arg(long, value_name = "DIR")]
        seal_key_dir: Option<PathBuf>,
        /// A new file for the root key, in the clear, to be taken offline; default: it stays with the members, sealed.
        #[arg(long, value_name = "FILE")]
        root_key_out: Option<PathBuf>,
        /// Found it as the version before this one would.
        #[arg(long, env = "ARCHIPELAGO_COMPATIBILITY", value_enum, default_value_t = Compatibility::Current, hide = true)]
        compatibility: Compatibility,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => archipelago_control_plane::run(*args),
        Command::Seed(args) => {
            archipelago_base::logging::init("seed");
            seed::seed(&args)
        }
        Command::Bootstrap { trust_domain, members, out, compatibility, seal_key_dir, root_key_out } => {
            bootstrap::bootstrap_at(
                &Plan { trust_domain, members, out, seal_key_dir, root_key_out },
                compatibility.format(),
            )
            .map_err(anyhow::Error::from)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
