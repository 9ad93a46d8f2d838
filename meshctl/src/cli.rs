//! The command line, as clap reads it.

mod dashboard;
#[cfg(test)]
mod reference;
mod verbs;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub(crate) use self::dashboard::DashboardArgs;
pub(crate) use self::verbs::*;
use crate::duration;
use crate::output::Format;

/// One mesh out of many clusters: splits, switches and failover of traffic between them
#[derive(Parser)]
#[command(
    name = "meshctl",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Exit codes:
  0  done
  1  refused input or usage; nothing changed
  2  committed, but not every gateway acknowledged in time (stragglers are named)
  3  a gateway rejected the revision (who, and why)
  4  no control plane answered

Examples:
  meshctl up --detach                                    start three clusters on this machine
  meshctl status                                         what runs, and is it in step
  meshctl split set shop/checkout paris=90 tokyo=10      move a tenth of the traffic
  meshctl switch shop/checkout --to tokyo                move all of it, everywhere
  meshctl switch shop/checkout --undo                    and back
  meshctl down                                           end it; nothing is left behind"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone)]
pub(crate) struct Global {
    /// State directory of the federation: its operator credential, and under `up` everything else
    #[arg(long, global = true, value_name = "DIR", default_value = STATE_DEFAULT, env = "ARCHIPELAGO_STATE", help_heading = "Global options")]
    pub(crate) state: PathBuf,
    /// Print tables for people (wide: with more columns), or JSON or YAML for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub(crate) output: Format,
    /// How long to try to reach a control plane, and then to wait for acknowledgements
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = duration::parse, help_heading = "Global options")]
    pub(crate) timeout: Duration,
}

/// Default of `--state`.
pub(crate) const STATE_DEFAULT: &str = "./.archipelago";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a whole federation on this machine, as real processes
    #[command(after_help = "\
Without a TOPOLOGY this is topologies/three-clusters.yaml: paris, frankfurt and tokyo.
A state directory that an earlier `up` left is resumed, with the same ports and identities.

Examples:
  meshctl up                                   in the foreground; Ctrl-C ends it and keeps the state
  meshctl up --detach                          return when everything is ready
  meshctl --state /tmp/b up --base-port 9400   a second one beside it
  meshctl up my-clusters.yaml")]
    Up(UpArgs),
    /// End what `up` started; leaves no process, no socket and no file behind
    #[command(after_help = "\
Examples:
  meshctl down                 end every process and remove the state directory
  meshctl down --keep-state    keep it: the next `up` resumes the same federation, with its logs and data")]
    Down(DownArgs),
    /// Control plane, clusters, gateways, and under `up` the processes
    #[command(after_help = "Examples:\n  meshctl status\n  meshctl status --watch\n  meshctl status -o json")]
    Status(WatchArgs),
    /// Whether everything works, and what to do where it does not
    #[command(after_help = "\
The control plane is asked, and the tunnels are judged by the beats that gateways send through them all the time. Warnings do
not fail it; the exit code is 1 when something does not work.

Examples:
  meshctl check
  meshctl check --wait 2m           until everything works and has joined, after an installation
  meshctl check -w                  again and again, until Ctrl-C
  meshctl check --pre               before another cluster joins
  meshctl check -o json")]
    Check(CheckArgs),
    /// Services, where they are ready, and their share of the traffic
    #[command(
        after_help = "Examples:\n  meshctl services\n  meshctl services -o wide    what failing health checks heard\n  meshctl services -w\n  meshctl services -o json"
    )]
    Services(WatchArgs),
    /// Tunnels between gateways, with their state and round-trip time
    #[command(
        after_help = "Examples:\n  meshctl tunnels\n  meshctl tunnels -w --interval 500ms\n  meshctl tunnels -o json"
    )]
    Tunnels(WatchArgs),
    /// Requests per second, success and percentiles of latency, live
    #[command(after_help = "\
Each request is counted once, at the gateway where it entered, from its first byte to the last of its response. Percentiles are of
all gateways together, at most 0.8 % above the true ones; beyond 60 s they say 60 s. A request succeeds with a status below 500; those
that their clients gave up count neither way. A gateway that does not report is named, and nothing is made up for it.
On a terminal the figures follow each other until Ctrl-C; elsewhere one set is printed.

Examples:
  meshctl top
  meshctl top shop/checkout --by source           from which cluster to which
  meshctl top shop/checkout --by version          v1 beside v2
  meshctl top --once --interval 10s
  meshctl top -n 60 --interval 1s -o json         one JSON value per second, for a minute")]
    Top(TopArgs),
    /// Requests as they end, over all clusters: those that a filter takes
    #[command(after_help = "\
Each request is told once, by the gateway where it entered, when its response has ended; those that began before are not. Of a gateway there
are so many a second at most: how many more there were is said on standard error. Paths come without their query, and there are no values of
header fields. Nothing is kept, and nobody is told once nobody looks. A filter is made of comparisons, `and` (or a blank), `or`, `not` and
parentheses; texts have =, !=, ^= (begins), $= (ends) and *= (contains), numbers =, !=, <, <=, > and >=. Its fields: docs/tap.md.

Examples:
  meshctl tap
  meshctl tap --where 'service=shop/checkout status>=500'
  meshctl tap --service shop/checkout --where 'duration>250ms or flags=UH' -o wide
  meshctl tap --cluster tokyo --where 'not (method=GET or path^=/healthz)' --limit 100
  meshctl tap --where 'status=5xx' --for 30s -o json           one JSON value per line")]
    Tap(TapArgs),
    /// Gateways, their addresses and the revision they run
    #[command(after_help = "Examples:\n  meshctl gateways\n  meshctl gateways -o yaml")]
    Gateways(WatchArgs),
    /// What changed, when, by whom, and what the mesh did about it
    #[command(after_help = "\
Each event has a reason, one word for programs; docs/events.md lists them. Times are those of who says it: what several gateways say
is in order as far as their clocks agree. Events are kept in memory, by members and gateways: what nobody remembers any more is said
on standard error.

Examples:
  meshctl events
  meshctl events --follow
  meshctl events --service shop/checkout --since 10m
  meshctl events --cluster tokyo --kind failover --kind ejection -o json")]
    Events(EventsArgs),
    /// A page in the browser that shows the federation live
    #[command(after_help = "\
A member that was started with --dashboard serves it; under `up` all of them do. The link is good once and for a minute, and the
session acts as you. Its secret stands behind `#`, which browsers send to nobody.

Examples:
  meshctl dashboard
  meshctl dashboard --print             print the link only
  meshctl dashboard --read-only         for a screen on a wall
  meshctl dashboard -o json")]
    Dashboard(DashboardArgs),
    /// Check files: policies, topologies and service files, with the code that the control plane and agents run
    #[command(after_help = "\
A control plane that can be reached is asked what it would say; without one, what only it can know is named.

Examples:
  meshctl validate -f checkout.yaml
  meshctl validate -f /etc/archipelago/services
  meshctl validate -f policies/ -f topologies/three-clusters.yaml
  helm template … | meshctl validate -f -")]
    Validate(FileArgs),
    /// Commit resources and wait until the gateways run them
    #[command(after_help = "\
Examples:
  meshctl apply -f checkout.yaml
  meshctl apply -f policies/ --timeout 30s
  meshctl get -o yaml | meshctl --state ../other apply -f - --wait quorum")]
    Apply(ApplyArgs),
    /// Show resources; as YAML they can be applied again
    #[command(after_help = "\
Examples:
  meshctl get
  meshctl get trafficsplit -n shop
  meshctl get trafficsplit -w -o json                         a line whenever one has changed
  meshctl get TrafficSplit checkout -n shop -o yaml")]
    Get(GetArgs),
    /// Delete resources and wait until the gateways run without them
    #[command(after_help = "\
Examples:
  meshctl delete TrafficSplit checkout -n shop
  meshctl delete -f checkout.yaml")]
    Delete(DeleteArgs),
    /// Shares of a service's traffic
    #[command(subcommand)]
    Split(SplitCommand),
    /// Move all of a service's traffic to one cluster, everywhere; and back
    #[command(after_help = "\
Routes by header, cookie or path stay as they are, and so does stickiness. --undo restores exactly the
split before the switch, also when there was none; it can be repeated, switch by switch.

Examples:
  meshctl switch shop/checkout --to tokyo
  meshctl switch shop/checkout --to tokyo:v2
  meshctl switch shop/checkout --undo")]
    Switch(SwitchArgs),
    /// Clusters of the federation
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Move one service away from a cluster by hand
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Break things on purpose (under `up`)
    #[command(subcommand)]
    Drill(DrillCommand),
    /// The members of the control plane: list them, add one, replace a lost one, take one out
    #[command(subcommand)]
    Member(MemberCommand),
    /// The replicated log of the control plane
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Single-use tokens with which agents and gateways join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who holds certificates of the federation; refuse those of somebody
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// People and robots that operate the federation, each with a credential of its own
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Join this machine to a federation as an agent or a gateway
    #[command(after_help = "\
The identity is stored below the state directory, and the command that starts the process is printed.

Examples:
  meshctl join amt1.eyJjc…
  meshctl --state /var/lib/archipelago join \"$(cat token)\"")]
    Join(JoinArgs),
    /// Print the manifests of an installation on Kubernetes
    #[command(after_help = "\
The manifests are those of the Helm chart, with the same values. Nothing here needs a Kubernetes API: kubectl or a
GitOps tool applies what is printed. `meshctl cluster join` prints this for a cluster that joins.

Examples:
  meshctl install --control-plane --client 203.0.113.7:30741 | kubectl apply --server-side --field-manager=archipelago -f -
  meshctl install -f values.yaml --out ./clusters/paris
  meshctl install --crds | kubectl apply --server-side --field-manager=archipelago -f -")]
    Install(InstallArgs),
    /// Print what an installation put into a Kubernetes cluster, to delete it
    #[command(after_help = "\
Examples:
  meshctl uninstall --script | sh                       all of it, and what the agent made
  meshctl uninstall | kubectl delete --ignore-not-found -f -
  meshctl uninstall --control-plane | kubectl delete --ignore-not-found -f -")]
    Uninstall(UninstallArgs),
    /// Ask a live gateway what it would do with a request, and why
    #[command(after_help = "\
Examples:
  meshctl explain --from paris --to shop/checkout
  meshctl explain --from paris/gw-1 --to shop/checkout --path /cart --header x-preview=pr-42")]
    Explain(ExplainArgs),
    /// Where the time of a service's slowest requests goes, over all gateways
    #[command(after_help = "\
Gateways keep the ten slowest requests of each minute and sixteen at random, for a quarter of an hour. The slowest are held against
the others: the part of their time, and the place, that most of them have in common is named.

Examples:
  meshctl slow shop/checkout
  meshctl slow shop/checkout --since 5m
  meshctl slow shop/checkout --p99             the slowest hundredth, instead of the hundred slowest
  meshctl slow shop/checkout -o json")]
    Slow(SlowArgs),
    /// Let a shell complete commands, flags, and names of services, clusters, gateways and resources
    #[command(after_help = "\
`install` writes the script to where bash, zsh or fish look for it, and makes the folder if it is not there. Names are those that the
control plane under --state knows; where none answers, there are none.

Examples:
  meshctl completion install                 for the shell in SHELL
  meshctl completion install fish
  source <(meshctl completion bash)          for this shell only")]
    Completion(CompletionArgs),
    /// Print the manual page, or write one for every command
    #[command(after_help = "Examples:\n  meshctl man | man -l -\n  meshctl man --dir ~/.local/share/man/man1")]
    Man(ManArgs),
    /// Gather what whoever is asked for help will ask for into an archive, without secrets
    #[command(after_help = "\
Status, services, tunnels, gateways, events, resources, the findings of `check`, identities, metrics of gateways that can be reached, and
the logs of what `up` started. What looks like a secret is removed; nobody can recognise every one: look through it first.

Examples:
  meshctl bug-report
  meshctl bug-report --out /tmp/report.tar.gz")]
    BugReport(BugReportArgs),
    /// Run one process of a federation (what `up` starts)
    #[command(subcommand, hide = true)]
    Role(Role),
}

/// As what the program was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Called {
    /// `meshctl`.
    Meshctl,
    /// `kubectl-mesh`, which kubectl runs for `kubectl mesh`.
    KubectlMesh,
}

impl Called {
    /// By the name of the program's file.
    pub(crate) fn of(program: Option<&OsStr>) -> Self {
        let name = program.map(Path::new).and_then(Path::file_stem);
        if name.is_some_and(|name| name == "kubectl-mesh") { Self::KubectlMesh } else { Self::Meshctl }
    }

    /// A text about commands, with what people type here.
    pub(crate) fn says(self, text: &str) -> String {
        match self {
            Self::Meshctl => text.to_owned(),
            Self::KubectlMesh => text.replace("meshctl ", "kubectl mesh ").replace("`meshctl`", "`kubectl mesh`"),
        }
    }
}

/// The whole command line.
pub(crate) fn command(called: Called) -> clap::Command {
    let command = Cli::command();
    match called {
        Called::Meshctl => command,
        Called::KubectlMesh => as_plugin(command).name("kubectl-mesh").bin_name("kubectl mesh"),
    }
}

fn as_plugin(command: clap::Command) -> clap::Command {
    let says = |text: &clap::builder::StyledStr| Called::KubectlMesh.says(&text.to_string());
    let help = command.get_after_help().map(says);
    let command = match help {
        Some(help) => command.after_help(help),
        None => command,
    };
    let command = command.mut_args(|arg| match arg.get_help().map(says) {
        Some(help) => arg.help(help),
        None => arg,
    });
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, as_plugin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
                let path = format!("{path} {}", child.get_name());
                if child.has_subcommands() {
                    visit(child, &path);
                } else {
                    let help = child.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(
                        help.contains(&format!("{path} "))
                            || help.contains(&format!("{path}\n"))
                            || help.ends_with(&path),
                        "{path}"
                    );
                }
            }
        }
        visit(&Cli::command(), "meshctl");
    }

    /// The words of a line as a shell would see them, up to a pipe, a redirection, or what is explained behind three blanks.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.trim().chars() {
            match (c, quote) {
                (c, Some(quoted)) if c == quoted => quote = None,
                (c, None) if matches!(c, '\'' | '"') => quote = Some(c),
                ('|' | '>' | ')', None) => break,
                (' ', None) => {
                    if words.last().is_some_and(String::is_empty) {
                        break;
                    }
                    words.push(String::new());
                }
                (c, _) => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_example_is_a_command_line() {
        fn visit(command: &clap::Command, called: Called, count: &mut usize) {
            let program = called.says("meshctl x").replace(" x", " ");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = help.split_once("Examples:").map(|(_, examples)| examples).unwrap_or_default();
            for line in examples.lines().filter(|line| !line.trim().starts_with("openssl")) {
                for (at, _) in line.match_indices(&program) {
                    let words = words(&line[at + program.len()..]);
                    let args = std::iter::once("meshctl".to_owned()).chain(words);
                    let parsed = super::command(Called::Meshctl).try_get_matches_from(args);
                    assert!(parsed.is_ok(), "{line}\n{}", parsed.unwrap_err());
                    *count += 1;
                }
            }
            command.get_subcommands().for_each(|inner| visit(inner, called, count));
        }
        for called in [Called::Meshctl, Called::KubectlMesh] {
            let mut count = 0;
            visit(&super::command(called), called, &mut count);
            assert!(count > 90, "{count}");
        }
    }

    #[test]
    fn as_a_plugin_of_kubectl_it_calls_itself_so() {
        let of = |path: &str| Called::of(Some(OsStr::new(path)));
        assert_eq!(
            (of("/bin/kubectl-mesh"), of("meshctl"), Called::of(None)),
            (Called::KubectlMesh, Called::Meshctl, Called::Meshctl)
        );
        let help =
            |args: &[&str]| super::command(Called::KubectlMesh).try_get_matches_from(args).unwrap_err().to_string();
        for args in [
            &["kubectl-mesh", "--help"][..],
            &["kubectl-mesh", "split", "set", "--help"],
            &["kubectl-mesh", "split", "set"],
        ] {
            let help = help(args);
            assert!(help.contains("Usage: kubectl mesh") && !help.contains("meshctl"), "{help}");
        }
    }

    #[test]
    fn global_flags_work_on_both_sides_of_a_command() {
        for args in [["meshctl", "--state", "/s", "status"], ["meshctl", "status", "--state", "/s"]] {
            assert_eq!(Cli::try_parse_from(args).unwrap().global.state, PathBuf::from("/s"));
        }
    }
}
