//! Completion of names that only a federation knows: services, clusters, gateways, resources.
//!
//! The shell calls `meshctl` with what was typed so far. The control plane is asked for a moment; where nobody answers there is nothing to
//! complete, and no word of it: whoever presses a key is not told about certificates.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use archipelago_model::resource::Kind;
use archipelago_proto::v1;
use clap::Command;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate as Candidate};

use crate::cli::{self, Called, STATE_DEFAULT};
use crate::client::Client;
use crate::commands::block_on;
use crate::exit::Outcome;

/// Answers a shell that asks, by the variable `COMPLETE`; false when it is something else that is wanted.
pub(crate) fn answers(called: Called, args: &[OsString]) -> bool {
    let here = std::env::current_dir().ok();
    let completed = CompleteEnv::with_factory(move || with_names(cli::command(called)))
        .try_complete(args.to_vec(), here.as_deref());
    // A shell that is not known is said by `completion`; here there is nobody to read it.
    completed.unwrap_or(true)
}

/// The command line with all that takes a name knowing how to complete it, by the name of the argument.
fn with_names(command: Command) -> Command {
    let verb = command.get_name().to_owned();
    let known = |id: &str| -> Option<fn(&OsStr) -> Vec<Candidate>> {
        Some(match (verb.as_str(), id) {
            (_, "service" | "services") | ("explain", "to") => services,
            ("switch", "to") | ("trigger" | "release", "from") | (_, "cluster" | "clusters") => clusters,
            ("explain", "from") | ("kill", "target") => sources,
            (_, "shares") => shares,
            ("get" | "delete", "kind") => kinds,
            ("get" | "delete", "name") => resources,
            (_, "spiffe_id") => identities,
            _ => return None,
        })
    };
    let completers =
        command.get_arguments().filter_map(|arg| Some((arg.get_id().clone(), known(arg.get_id().as_str())?)));
    let completers: Vec<_> = completers.collect();
    let command = completers
        .into_iter()
        .fold(command, |command, (id, complete)| command.mut_arg(id, |arg| arg.add(ArgValueCompleter::new(complete))));
    let verbs: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    verbs.into_iter().fold(command, |command, verb| command.mut_subcommand(verb, with_names))
}

/// Services: `namespace/name`.
fn services(current: &OsStr) -> Vec<Candidate> {
    let services = ask(async |client| client.services().await);
    matching(current, services.iter().flatten().map(|service| format!("{}/{}", service.namespace, service.name)))
}

/// Clusters.
fn clusters(current: &OsStr) -> Vec<Candidate> {
    let names = status().map(|status| status.clusters.into_iter().map(|cluster| cluster.name));
    matching(current, names.into_iter().flatten())
}

/// Shares of a split: a cluster and the sign behind it.
fn shares(current: &OsStr) -> Vec<Candidate> {
    let names = status().map(|status| status.clusters.into_iter().map(|cluster| format!("{}=", cluster.name)));
    matching(current, names.into_iter().flatten())
}

/// Clusters, and gateways as `cluster/gateway`.
fn sources(current: &OsStr) -> Vec<Candidate> {
    let clusters = status().map(|status| status.clusters).unwrap_or_default();
    let names = clusters.into_iter().flat_map(|cluster| {
        let name = cluster.name.clone();
        let gateways = cluster.gateways.into_iter().map(move |gateway| crate::views::qualified(&name, &gateway.name));
        std::iter::once(cluster.name).chain(gateways)
    });
    matching(current, names)
}

/// Kinds of resources.
fn kinds(current: &OsStr) -> Vec<Candidate> {
    matching(current, Kind::ALL.iter().map(|kind| kind.name().to_owned()))
}

/// Resources of the kind that stands before: `namespace/name`, or a name alone.
fn resources(current: &OsStr) -> Vec<Candidate> {
    let words: Vec<String> = std::env::args().collect();
    let kind = Kind::ALL.iter().find(|kind| words.iter().any(|word| word.eq_ignore_ascii_case(kind.name())));
    let kind = kind.map_or("", |kind| kind.name());
    let answer = ask(async |client| client.get(kind, "", "").await);
    let resources = answer.map(|answer| answer.resources).unwrap_or_default();
    let names = resources.into_iter().map(|resource| match resource.namespace.as_str() {
        "" => resource.name,
        namespace => format!("{namespace}/{}", resource.name),
    });
    matching(current, names)
}

/// Identities.
fn identities(current: &OsStr) -> Vec<Candidate> {
    let found = ask(async |client| crate::commands::identities(client).await);
    matching(current, found.unwrap_or_default().into_iter())
}

fn status() -> Option<v1::StatusResponse> {
    ask(async |client| client.status().await)
}

/// What a member answers at once, if one does.
fn ask<T>(question: impl AsyncFnOnce(&Client) -> Outcome<T>) -> Option<T> {
    let client = Client::open_quietly(&state(std::env::args_os()), TIME_MAX).ok()?;
    let answer = async {
        let answer = tokio::time::timeout(TIME_MAX, question(&client)).await;
        Ok(answer.ok().and_then(Result::ok))
    };
    block_on(answer).ok().flatten()
}

/// `--state`, out of words that may not be a command line yet.
fn state(words: impl Iterator<Item = OsString>) -> PathBuf {
    let mut words = words.skip_while(|word| word != "--").skip(1);
    let mut state = std::env::var_os("ARCHIPELAGO_STATE").unwrap_or_else(|| STATE_DEFAULT.into());
    while let Some(word) = words.next() {
        if word == "--state" {
            state = words.next().unwrap_or_default();
        } else if let Some(given) = word.to_str().and_then(|word| word.strip_prefix("--state=")) {
            state = given.into();
        }
    }
    state.into()
}

fn matching(current: &OsStr, names: impl Iterator<Item = String>) -> Vec<Candidate> {
    let current = current.to_string_lossy();
    let fits = |name: &String| name.starts_with(&*current) && !name.contains(char::is_control);
    names.filter(fits).take(CANDIDATES_MAX).map(Candidate::new).collect()
}

/// Longer than a member nearby takes, shorter than a person waits.
const TIME_MAX: Duration = Duration::from_millis(1_500);
/// More than a screen.
const CANDIDATES_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_is_the_one_that_was_typed() {
        let of = |line: &str| state(line.split(' ').map(OsString::from));
        assert_eq!(of("meshctl -- meshctl --state /s get "), PathBuf::from("/s"));
        assert_eq!(of("meshctl -- meshctl get --state=/t x"), PathBuf::from("/t"));
        assert_eq!(of("meshctl --state /no -- meshctl get --state"), PathBuf::from(""));
    }

    #[test]
    fn whatever_takes_a_name_of_the_federation_completes_it() {
        fn visit(command: &Command, path: &str, found: &mut Vec<String>) {
            for arg in command.get_arguments().filter(|arg| arg.get::<ArgValueCompleter>().is_some()) {
                found.push(format!("{path} {}", arg.get_id()));
            }
            for inner in command.get_subcommands() {
                visit(inner, format!("{path} {}", inner.get_name()).trim_start(), found);
            }
        }
        let mut found = Vec::new();
        visit(&with_names(cli::command(Called::Meshctl)), "", &mut found);
        for expected in [
            "top services",
            "tap service",
            "tap cluster",
            "events cluster",
            "slow service",
            "explain from",
            "explain to",
            "get kind",
            "get name",
            "delete name",
            "split set service",
            "split set shares",
            "switch to",
            "failover trigger from",
            "cluster drain cluster",
            "drill cut clusters",
            "drill kill target",
            "identity revoke spiffe_id",
        ] {
            assert!(found.iter().any(|one| one == expected), "{expected} is not in {found:?}");
        }
    }

    #[test]
    fn without_a_federation_there_is_nothing_to_complete() {
        for complete in [services, clusters, shares, sources, resources, identities] {
            assert!(complete(OsStr::new("")).is_empty());
        }
        assert_eq!(kinds(OsStr::new("Traf")).len(), 1);
    }
}
