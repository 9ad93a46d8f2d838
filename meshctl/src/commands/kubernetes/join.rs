//! `cluster join`: everything that a Kubernetes cluster needs to become one of the federation's, in one stream.

use archipelago_manifests::{NAMESPACE, Release, crds, render, to_yaml, values};
use archipelago_proto::v1;
use archipelago_rpc::enrol::JoinToken;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{deliver, read_values, refused};
use crate::cli::ClusterJoinArgs;
use crate::client::Client;
use crate::commands::resources::documents;
use crate::commands::{Context, write};
use crate::exit::{Failure, Outcome};
use crate::output;

/// `cluster join`.
pub(crate) async fn run(context: &Context, args: &ClusterJoinArgs) -> Outcome {
    // Before anything changes: values that cannot be used would have spent a token.
    let given = read_values(&args.manifests)?;
    let namespace = args.manifests.namespace.as_deref().unwrap_or(NAMESPACE);
    let rehearsal = JoinToken {
        control_plane: vec!["rehearsal:7400".to_owned()],
        trust_domain: "rehearsal".to_owned(),
        cluster: args.name.clone(),
        role: "agent".to_owned(),
        name: "agent".to_owned(),
        secret: [0; 32],
        ca_sha256: [0; 32],
        expires_unix: 0,
    };
    render(&with_join(&rehearsal, "rehearsal", &given), &Release { namespace }).map_err(refused)?;

    let client = context.client()?;
    ensure_cluster(&client, args).await?;
    let created = client.create_token(&args.name, v1::JoinRole::Agent, "", args.ttl).await?;
    let token: JoinToken = created.token.parse().map_err(anyhow::Error::from)?;
    let all = with_join(&token, &created.token, &given);
    if args.helm {
        output::write_stdout(&to_yaml(&[all]).map_err(refused)?)?;
        output::talk(format!(
            "helm install archipelago topologies/kubernetes/chart -n {namespace} --create-namespace -f THIS"
        ));
        return Ok(());
    }
    let mut objects = if args.skip_crds { Vec::new() } else { crds() };
    objects.extend(
        render(&values::merge(&json!({ "createNamespace": true }), &all), &Release { namespace }).map_err(refused)?,
    );
    deliver(&objects, args.manifests.out.as_deref())?;
    output::talk(format!("the token in it works once, for {}", crate::duration::display(args.ttl)));
    Ok(())
}

/// The given values with what this cluster knows of its federation.
fn with_join(token: &JoinToken, text: &str, given: &Value) -> Value {
    let join = json!({ "join": {
        "cluster": token.cluster,
        "trustDomain": token.trust_domain,
        "controlPlane": token.control_plane,
        "caSha256": BASE64_URL_SAFE_NO_PAD.encode(token.ca_sha256),
        "token": text,
    } });
    values::merge(&join, given)
}

/// Makes the Cluster, or checks that the one that is there is meant.
async fn ensure_cluster(client: &Client, args: &ClusterJoinArgs) -> Outcome {
    let found = client.get("Cluster", "", &args.name).await?;
    let document = match documents(&found.resources)?.into_iter().next() {
        None => {
            let region = args.region.as_deref().ok_or_else(|| {
                Failure::refused(format!("there is no cluster `{}` yet, and a new one needs a region", args.name))
                    .hint(format!("meshctl cluster join {} --region eu-west", args.name))
            })?;
            let mut spec = json!({ "region": region });
            if args.policies {
                set(&mut spec, "policies", Value::Bool(true));
            }
            json!({ "apiVersion": "archipelago.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": args.name }, "spec": spec })
        }
        Some(mut cluster) => {
            let region = cluster.pointer("/spec/region").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(asked) = args.region.as_ref().filter(|asked| **asked != region) {
                return Err(Failure::refused(format!("cluster `{}` is in region {region}, not {asked}", args.name))
                    .hint("leave --region out, or change the Cluster with `meshctl apply`"));
            }
            let allowed = cluster.pointer("/spec/policies") == Some(&Value::Bool(true));
            if !args.policies || allowed {
                return Ok(());
            }
            if let Some(spec) = cluster.get_mut("spec") {
                set(spec, "policies", Value::Bool(true));
            }
            cluster
        }
    };
    let request = vec![v1::Document { file: format!("cluster join {}", args.name), text: document.to_string() }];
    let answer = client.apply(request, Vec::new(), false).await?;
    if !answer.problems.is_empty() {
        return Err(write::refused(answer.problems));
    }
    write::warn(&answer.warnings);
    for change in &answer.changes {
        output::talk(format!("Cluster {} {}", change.name, change.what));
    }
    Ok(())
}

fn set(spec: &mut Value, name: &str, value: Value) {
    if let Some(spec) = spec.as_object_mut() {
        spec.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_told_what_its_token_says_and_no_more() {
        let token = JoinToken {
            control_plane: vec!["203.0.113.1:30741".into()],
            trust_domain: "mesh.example".into(),
            cluster: "paris".into(),
            role: "agent".into(),
            name: "agent".into(),
            secret: [7; 32],
            ca_sha256: [9; 32],
            expires_unix: 1,
        };
        let values = with_join(&token, "amt1.text", &json!({ "agent": { "replicas": 1 } }));
        let objects = render(&values, &Release { namespace: NAMESPACE }).unwrap();
        let named = |kind: &str, name: &str| {
            objects
                .iter()
                .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
                .unwrap_or_else(|| panic!("no {kind} {name}"))
        };
        let config: Value =
            serde_json::from_str(named("ConfigMap", "archipelago")["data"]["join.json"].as_str().unwrap()).unwrap();
        assert_eq!(
            config,
            json!({ "controlPlane": ["203.0.113.1:30741"], "trustDomain": "mesh.example", "cluster": "paris",
                    "caSha256": BASE64_URL_SAFE_NO_PAD.encode([9; 32]) })
        );
        assert_eq!(named("Secret", "archipelago-join")["stringData"]["token"], "amt1.text");
        let with_the_token: Vec<_> = objects.iter().filter(|object| object.to_string().contains("amt1.text")).collect();
        assert_eq!(with_the_token.len(), 1, "nothing but the Secret holds the token");
        assert_eq!(named("Deployment", "archipelago-agent")["spec"]["replicas"], 1);
    }
}
