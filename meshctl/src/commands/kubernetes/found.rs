//! Founding a federation whose control plane runs in a cluster: here, on the operator's machine.
//!
//! The authority is made below `--state`; its members get it as Secrets. The operator's credential stays where it is made.

use std::fs;
use std::path::Path;

use archipelago_control_plane::bootstrap::{self, Member, member_dir, seal_key_file};
use archipelago_proto::v1::AddMemberResponse;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exit::{Failure, Outcome};
use crate::output;

/// What to found.
pub(super) struct Plan<'a> {
    /// Default: [`TRUST_DOMAIN`].
    pub(super) trust_domain: Option<String>,
    /// One address per member, host:port.
    pub(super) clients: &'a [String],
    /// Domain of the pods, below which members find each other.
    pub(super) peers: &'a str,
}

/// What was founded, as `federation.json` says it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Federation {
    pub(super) trust_domain: String,
    pub(super) members: Vec<Member>,
}

/// Founds a federation below `state`, or reads the one that is there.
///
/// # Errors
/// Another one is there, no address was given, or the disk does not take it.
pub(super) fn found(state: &Path, plan: &Plan<'_>) -> Outcome<Federation> {
    if let Some(federation) = read(state)? {
        same(state, &federation, plan)?;
        output::talk(format!("{} holds this federation already; printing its members", state.display()));
        return Ok(federation);
    }
    if plan.clients.is_empty() {
        return Err(Failure::refused("where will operators and clusters reach the members?")
            .hint("one --client HOST:PORT per member: 1, 3 or 5; with node ports the ports are 30000 to 32767"));
    }
    let trust_domain = plan.trust_domain.as_deref().unwrap_or(TRUST_DOMAIN);
    let trust_domain = trust_domain
        .parse()
        .map_err(|_| Failure::refused(format!("{trust_domain:?} is no trust domain, such as mesh.example")))?;
    let mut members = Vec::new();
    for (id, client) in (1..).zip(plan.clients) {
        let peer = format!("archipelago-control-plane-{id}.{}:7401", plan.peers);
        members.push(format!("{id}={client}/{peer}").parse().map_err(Failure::refused)?);
    }
    let founding = bootstrap::Plan {
        seal_key_dir: Some(state.join(SEAL_KEYS)),
        ..bootstrap::Plan::new(trust_domain, members, state.to_owned())
    };
    bootstrap::bootstrap(&founding).map_err(anyhow::Error::from)?;
    output::talk(format!(
        "founded a federation below {}: keep it, it holds the operator's credential and what opens the authority",
        state.display()
    ));
    read(state)?.ok_or_else(|| Failure::refused("the federation that was just founded is gone"))
}

fn read(state: &Path) -> Outcome<Option<Federation>> {
    let path = member_dir(state, 1).join("federation.json");
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Failure::refused(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::refused(format!("cannot read {}: {error}", path.display()))),
    }
}

/// What is asked for again is what was founded.
fn same(state: &Path, federation: &Federation, plan: &Plan<'_>) -> Outcome {
    let there: Vec<&str> = federation.members.iter().map(|member| member.client.as_str()).collect();
    let other_members = !plan.clients.is_empty() && plan.clients != there;
    let other_domain = plan.trust_domain.as_ref().is_some_and(|asked| *asked != federation.trust_domain);
    if other_members || other_domain {
        return Err(Failure::refused(format!(
            "{} holds another federation: {}, members at {}",
            state.display(),
            federation.trust_domain,
            there.join(", ")
        ))
        .hint("name another directory with --state DIR, or leave --client and --trust-domain out"));
    }
    Ok(())
}

/// What the members begin with. The first is sealed, so no secret by itself; the others open it.
pub(super) fn secrets(state: &Path, namespace: &str, federation: &Federation) -> Outcome<Vec<Value>> {
    let content = |path: &Path| {
        fs::read(path)
            .map(|bytes| BASE64_STANDARD.encode(bytes))
            .map_err(|error| Failure::refused(format!("cannot read {}: {error}", path.display())))
    };
    let first = member_dir(state, 1);
    let founding = json!({
        "federation.json": content(&first.join("federation.json"))?,
        "ca.sealed": content(&first.join("ca.sealed"))?,
    });
    let mut secrets = vec![secret(namespace, "archipelago-founding", founding)];
    for Member { id, .. } in &federation.members {
        let key = content(&seal_key_file(&state.join(SEAL_KEYS), *id))?;
        secrets.push(secret(namespace, &format!("archipelago-seal-{id}"), json!({ "seal.key": key })));
    }
    Ok(secrets)
}

/// The same for a member that is added. Pods are numbered by place.
pub(super) fn of_member(namespace: &str, added: &AddMemberResponse) -> Vec<Value> {
    let place = added.member.as_ref().map_or(0, |member| member.place);
    let founding = json!({
        "federation.json": BASE64_STANDARD.encode(&added.federation_json),
        "ca.sealed": BASE64_STANDARD.encode(&added.ca_sealed),
    });
    let key = json!({ "seal.key": BASE64_STANDARD.encode(&added.seal_key) });
    vec![
        secret(namespace, "archipelago-founding", founding),
        secret(namespace, &format!("archipelago-seal-{place}"), key),
    ]
}

fn secret(namespace: &str, name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "name": name, "namespace": namespace,
                      "labels": { "app.kubernetes.io/name": "archipelago", "app.kubernetes.io/part-of": "archipelago" } },
        "data": data,
    })
}

/// Below the state directory.
const SEAL_KEYS: &str = "seal-keys";
const TRUST_DOMAIN: &str = "mesh.local";

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(clients: &[String]) -> Plan<'_> {
        Plan { trust_domain: Some("mesh.example".to_owned()), clients, peers: "cp.ns.svc.cluster.local" }
    }

    #[test]
    fn a_federation_is_founded_once_and_printed_again() {
        let state = tempfile::tempdir().unwrap();
        let clients = ["203.0.113.1:30741".to_owned(), "203.0.113.1:30742".to_owned()];
        let first = found(state.path(), &plan(&clients)).unwrap();
        assert_eq!(first.members[1].peer, "archipelago-control-plane-2.cp.ns.svc.cluster.local:7401");
        let secrets = secrets(state.path(), "ns", &first).unwrap();
        let again = found(state.path(), &Plan { trust_domain: None, ..plan(&[]) }).unwrap();
        assert_eq!(super::secrets(state.path(), "ns", &again).unwrap(), secrets);
        assert_eq!(secrets.len(), 3);
        // No key of the authority, of a member or of the operator is in clear in what everybody gets.
        let founding = secrets[0].to_string();
        for key in ["operator/key.pem", "member-1/identity/key.pem"] {
            let text = fs::read(state.path().join(key)).unwrap();
            assert!(!founding.contains(&BASE64_STANDARD.encode(text)), "{key}");
        }
        let other = ["198.51.100.1:30741".to_owned()];
        let refused = found(state.path(), &plan(&other)).unwrap_err().render();
        assert!(refused.contains("another federation") && refused.contains("203.0.113.1:30741"), "{refused}");
    }

    #[test]
    fn without_addresses_nothing_is_founded() {
        let state = tempfile::tempdir().unwrap();
        assert!(found(state.path(), &plan(&[])).unwrap_err().render().contains("--client"));
        let wrong = ["nowhere".to_owned()];
        assert!(found(state.path(), &plan(&wrong)).unwrap_err().render().contains("nowhere"));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }
}
