//! One module per family of commands.

mod bug_report;
mod check;
mod cluster;
mod complete;
mod dashboard;
mod drain;
mod drill;
mod events;
mod explain;
mod failover;
mod files;
mod identity;
mod join;
mod kubernetes;
mod man;
mod member;
mod operator;
mod raft;
mod resources;
mod scrape;
mod show;
mod slow;
mod split;
mod tap;
mod token;
mod top;
mod validate;
mod watch;
mod write;

use std::path::Path;
use std::time::Duration;

pub(crate) use self::write::Enough;

use crate::cli::{AgentArgs, Cli, Command, Global, Role};
use crate::client::{self, Client};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::Output;
use crate::up;

/// Runs one command.
pub(crate) fn run(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    let context = Context { output: Output::new(global.output), global };
    match command {
        Command::Up(args) => up::up(&context.global, args),
        Command::Down(args) => up::down(&context.global, &args),
        Command::Status(watch) => block_on(watch::run(&context, watch, show::status)),
        Command::Check(args) => block_on(check::run(&context, args)),
        Command::Services(watch) => block_on(watch::run(&context, watch, show::services)),
        Command::Tunnels(watch) => block_on(watch::run(&context, watch, show::tunnels)),
        Command::Top(args) => block_on(top::run(&context, args)),
        Command::Tap(args) => block_on(tap::run(&context, args)),
        Command::Gateways(watch) => block_on(watch::run(&context, watch, show::gateways)),
        Command::Events(args) => block_on(events::run(&context, args)),
        Command::Dashboard(args) => block_on(dashboard::run(&context, args)),
        Command::Validate(args) => block_on(validate::validate(&context, &args)),
        Command::Apply(args) => block_on(resources::apply(&context, args)),
        Command::Get(args) => block_on(resources::get(&context, args)),
        Command::Delete(args) => block_on(resources::delete(&context, args)),
        Command::Split(command) => block_on(split::split(&context, command)),
        Command::Switch(args) => block_on(split::switch(&context, args)),
        Command::Cluster(command) => block_on(cluster::run(&context, command)),
        Command::Failover(command) => block_on(failover::run(&context, command)),
        Command::Member(command) => block_on(member::run(&context, command)),
        Command::Raft(command) => block_on(raft::run(&context, command)),
        Command::Drill(command) => block_on(drill::run(&context, command)),
        Command::Token(command) => block_on(token::run(&context, command)),
        Command::Identity(command) => block_on(identity::run(&context, command)),
        Command::Operator(command) => block_on(operator::run(&context, command)),
        Command::Join(args) => block_on(join::run(&context, &args)),
        Command::Install(args) => kubernetes::install::run(&context, &args),
        Command::Uninstall(args) => kubernetes::uninstall::run(&args),
        Command::Explain(args) => block_on(explain::run(&context, args)),
        Command::Slow(args) => block_on(slow::run(&context, args)),
        Command::Completion(args) => complete::run(&args),
        Command::BugReport(args) => block_on(bug_report::run(&context, args)),
        Command::Man(args) => man::run(&args),
        Command::Role(role) => run_role(role),
    }
}

/// What every command has at hand.
pub(crate) struct Context {
    global: Global,
    output: Output,
}

impl Context {
    /// The control plane of the federation under `--state`.
    fn client(&self) -> Outcome<Client> {
        Client::open(&self.global.state, self.global.timeout)
    }

    fn timeout(&self) -> Duration {
        self.global.timeout
    }

    fn state(&self) -> &Path {
        &self.global.state
    }
}

/// Runs a future on a runtime of one thread: commands wait more than they compute.
pub(crate) fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("cannot start: {error}")))?
        .block_on(future)
}

/// SPIFFE ids that were ever issued.
pub(crate) async fn identities(client: &Client) -> Outcome<Vec<String>> {
    Ok(identity::list(client, "").await?.into_iter().map(|view| view.spiffe_id).collect())
}

/// Becomes one process of a federation.
fn run_role(role: Role) -> Outcome {
    match role {
        Role::ControlPlane(args) => archipelago_control_plane::run(args)?,
        Role::Agent(AgentArgs { agent, files }) => archipelago_agent::run(agent, files)?,
        Role::Gateway(args) => {
            archipelago_base::logging::init("gateway");
            archipelago_gateway::run(*args)?;
        }
        Role::Demo(args) => {
            archipelago_base::logging::init("demo");
            archipelago_demo::run(args)?;
        }
        Role::Supervisor(args) => up::supervisor_role(args)?,
    }
    Ok(())
}

/// The failure of a command that found no control plane, or no supervisor, under this state directory.
fn nothing_runs(state: &Path, why: &str) -> Failure {
    let failure = client::nobody(state, why);
    debug_assert_eq!(failure.exit(), Exit::NoControlPlane);
    failure
}
