//! Policies that the users of a cluster write there: up to the federation, and back into their status.
//!
//! What was written goes up as it is, as one complete list; whether it counts is the control plane's to say, by the same
//! rules as for a file of an operator. What it says comes back into the conditions `Accepted`, `Programmed` and `Conflict`.
//! The pure part is [`list`] and [`statuses`]; [`run`] does it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_base::shutdown::Shutdown;
use archipelago_model::resource;
use archipelago_proto::v1;
use kube::Client;
use serde_json::json;
use tokio::{sync::watch, time::sleep_until};

use crate::{
    apply::{Desk, Target, What, Write, Writer},
    crd::{Condition, FailoverPolicy, Policy, PolicyStatus, Status, TrafficSplit},
    mcs::timestamp,
    types::{Key, Kind, Resource},
    watch::{Feed, Objects},
};

/// What connects policies with the rest of the agent: see [`archipelago_agent::provider::Link`].
#[derive(Debug)]
pub struct Wires {
    /// The complete list, once it is known.
    pub policies: watch::Sender<Option<Arc<v1::AgentPolicies>>>,
    /// What became of it.
    pub statuses: watch::Receiver<Arc<Vec<v1::PolicyStatus>>>,
    /// Whether this replica leads; without it nothing is written.
    pub leading: watch::Receiver<Option<u64>>,
}

/// Policies of a cluster, by kind.
#[derive(Debug, Clone)]
pub struct Feeds {
    /// All TrafficSplits.
    pub splits: Feed<TrafficSplit>,
    /// All FailoverPolicies.
    pub failovers: Feed<FailoverPolicy>,
}

/// Carries policies up and their statuses down until `shutdown`.
pub async fn run(client: Client, feeds: Feeds, wires: Wires, shutdown: Shutdown) {
    tokio::select! {
        () = follow(client, feeds, wires) => {}
        () = shutdown.requested() => {}
    }
}

async fn follow(client: Client, feeds: Feeds, mut wires: Wires) {
    // Half a list would have the other half deleted from the federation.
    tokio::join!(feeds.splits.complete(), feeds.failovers.complete());
    let (mut splits, mut failovers) = (feeds.splits.index(), feeds.failovers.index());
    let mut desk = Desk::default();
    let mut writer = Writer::new(client.clone());
    let mut term = None;
    let mut last = None;
    let mut stale: Option<Arc<Vec<v1::PolicyStatus>>> = None;
    loop {
        let policies = policies(&feeds.splits.now().objects, &feeds.failovers.now().objects);
        let listed = list(&policies);
        wires.policies.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&listed);
            if changed {
                *current = Some(Arc::new(listed));
            }
            changed
        });
        let leads = *wires.leading.borrow_and_update();
        if leads != term {
            term = leads;
            // What was said in another term is of objects as they were then.
            stale = last.take();
            // What the leader before has not sent yet is not to be sent after it.
            (desk, writer) = (Desk::default(), Writer::new(client.clone()));
        }
        let now = Instant::now();
        let mut until = now + LOOK_AGAIN;
        let said = wires.statuses.borrow_and_update().clone();
        last = Some(said.clone());
        if term.is_some() && !stale.as_ref().is_some_and(|stale| Arc::ptr_eq(stale, &said)) {
            let choice = desk.choose(statuses(&policies, &said, &timestamp()), now);
            choice.now.into_iter().for_each(|write| writer.begin(write));
            until = choice.again.unwrap_or(until);
        }
        tokio::select! {
            () = sleep_until(until.into()) => {}
            done = writer.done() => {
                let failures = desk.done(&done, Instant::now(), rand::random());
                crate::apply::log(&done, failures);
            }
            Ok(()) = splits.changed() => {}
            Ok(()) = failovers.changed() => {}
            Ok(()) = wires.statuses.changed() => {}
            Ok(()) = wires.leading.changed() => {}
        }
    }
}

/// Kind, then name.
type PolicyKey = (&'static str, Key);

/// All policies that are not going.
fn policies(splits: &Objects<TrafficSplit>, failovers: &Objects<FailoverPolicy>) -> BTreeMap<PolicyKey, Policy> {
    let splits =
        splits.iter().map(|(key, split)| ((resource::Kind::TrafficSplit.name(), key.clone()), split.0.clone()));
    let failovers =
        failovers.iter().map(|(key, policy)| ((resource::Kind::FailoverPolicy.name(), key.clone()), policy.0.clone()));
    splits.chain(failovers).filter(|(_, policy)| !policy.is_terminating).collect()
}

/// As the control plane is told.
fn list(policies: &BTreeMap<PolicyKey, Policy>) -> v1::AgentPolicies {
    let policies = policies.iter().map(|((kind, key), policy)| v1::ClusterPolicy {
        kind: (*kind).to_owned(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        generation: policy.generation,
        json: policy.json.clone(),
    });
    v1::AgentPolicies { policies: policies.collect() }
}

/// Statuses that are not yet as the control plane says.
fn statuses(policies: &BTreeMap<PolicyKey, Policy>, said: &[v1::PolicyStatus], now: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for said in said {
        let (kind, resource) = match said.kind.as_str() {
            "TrafficSplit" => ("TrafficSplit", TrafficSplit::RESOURCE),
            "FailoverPolicy" => ("FailoverPolicy", FailoverPolicy::RESOURCE),
            _ => continue,
        };
        let key = Key::new(said.namespace.as_str(), said.name.as_str());
        let Some(policy) = policies.get(&(kind, key.clone())) else { continue };
        let status = status(said, &policy.status.conditions, now);
        if status != policy.status {
            writes.push(write(resource, kind, key, &status));
        }
    }
    writes
}

fn write(resource: Resource, kind: &str, key: Key, status: &PolicyStatus) -> Write {
    let body = json!({
        "apiVersion": resource::API_VERSION, "kind": kind,
        "metadata": { "name": key.name, "namespace": key.namespace },
        "status": status,
    });
    Write { target: Target { resource, key }, what: What::ApplyStatus(body.into()) }
}

/// What the control plane says, in the words of conditions.
fn status(said: &v1::PolicyStatus, before: &[Condition], now: &str) -> PolicyStatus {
    let condition = |r#type: &str, (status, reason, message): (Status, &str, String)| {
        Condition::new(r#type, status, word(reason), message, said.generation, now).after(before)
    };
    let has_gateways = said.revision > 0 && said.gateways_expected > 0;
    PolicyStatus {
        revision: Some(said.revision).filter(|revision| *revision > 0),
        gateways: match has_gateways {
            true => format!("{}/{}", said.gateways_programmed, said.gateways_expected),
            false => String::new(),
        },
        conditions: vec![
            condition("Accepted", accepted(said)),
            condition("Programmed", programmed(said)),
            condition("Conflict", conflict(said)),
        ],
    }
}

fn accepted(said: &v1::PolicyStatus) -> (Status, &str, String) {
    let status = match said.reason.as_str() {
        "Accepted" => Status::True,
        "Pending" | "" => Status::Unknown,
        _ => Status::False,
    };
    (status, &said.reason, said.message.clone())
}

fn programmed(said: &v1::PolicyStatus) -> (Status, &'static str, String) {
    let v1::PolicyStatus { revision, gateways_programmed: done, gateways_expected: all, rejections, .. } = said;
    let progress = format!("{done} of {all} gateways run revision {revision}");
    if said.reason != "Accepted" {
        // A form that was good before may go on; what stands here is not it.
        let message = match revision {
            0 => "no revision of the federation carries it".to_owned(),
            _ => format!("not this generation: the form before it stays, {progress}"),
        };
        (Status::False, "NotAccepted", message)
    } else if *revision == 0 {
        (Status::Unknown, "Pending", "no revision of the federation carries it yet".to_owned())
    } else if !rejections.is_empty() {
        (Status::False, "Rejected", format!("{progress}. {}", rejections.join(". ")))
    } else if *all == 0 {
        (Status::Unknown, "NoGateways", "no gateway is connected that could run it".to_owned())
    } else if done < all {
        (Status::False, "Pending", progress)
    } else {
        (Status::True, "Programmed", progress)
    }
}

fn conflict(said: &v1::PolicyStatus) -> (Status, &'static str, String) {
    match said.rivals.as_slice() {
        [] => (Status::False, "NoConflicts", String::new()),
        rivals => {
            let message = format!("also written by {}: one of them has to give way", rivals.join(", "));
            (Status::True, "Rivals", message)
        }
    }
}

/// A reason is one word that begins with a letter; anything else the API server would refuse, with the whole status.
fn word(reason: &str) -> String {
    let word: String = reason.chars().filter(|char| char.is_ascii_alphanumeric() || *char == '_').take(64).collect();
    if word.starts_with(|first: char| first.is_ascii_alphabetic()) { word } else { "Pending".to_owned() }
}

/// In case that something was missed; nothing should be.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
