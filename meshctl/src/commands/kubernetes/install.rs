//! `install`: the manifests of agent and gateways, or of a control plane in a cluster.

use archipelago_manifests::{CONTROL_PLANE_NAMESPACE, NAMESPACE, Release, crds, render, values};
use serde_json::json;

use super::{deliver, found, read_values, refused};
use crate::cli::InstallArgs;
use crate::commands::Context;
use crate::exit::{Failure, Outcome};

/// `install`.
pub(crate) fn run(context: &Context, args: &InstallArgs) -> Outcome {
    if args.crds {
        return deliver(&crds(), args.manifests.out.as_deref());
    }
    if args.control_plane {
        return control_plane(context, args);
    }
    if !args.clients.is_empty() || args.trust_domain.is_some() {
        return Err(Failure::refused("--client and --trust-domain are of a control plane")
            .hint("meshctl install --control-plane --client HOST:PORT"));
    }
    let values = values::merge(&json!({ "createNamespace": true }), &read_values(&args.manifests)?);
    let namespace = args.manifests.namespace.as_deref().unwrap_or(NAMESPACE);
    let objects = render(&values, &Release { namespace }).map_err(refused)?;
    deliver(&objects, args.manifests.out.as_deref())
}

/// Founds the federation below the state directory, unless that was done, and prints its members with what they begin with.
fn control_plane(context: &Context, args: &InstallArgs) -> Outcome {
    let given = read_values(&args.manifests)?;
    let namespace = args.manifests.namespace.as_deref().unwrap_or(CONTROL_PLANE_NAMESPACE);
    let defaults = values::merge(&values::defaults(), &given);
    let domain = defaults.get("clusterDomain").and_then(|domain| domain.as_str()).unwrap_or_default();
    let plan = found::Plan {
        trust_domain: args.trust_domain.clone(),
        clients: &args.clients,
        peers: &format!("archipelago-control-plane.{namespace}.svc.{domain}"),
    };
    let federation = found::found(context.state(), &plan)?;
    let node_ports = defaults.pointer("/controlPlane/service/type").and_then(|kind| kind.as_str()) == Some("NodePort");
    let mut members = Vec::new();
    for member in &federation.members {
        let port = member.client.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).unwrap_or_default();
        members.push(if node_ports {
            json!({ "client": member.client, "nodePort": port })
        } else {
            json!({ "client": member.client })
        });
    }
    let own = json!({
        "createNamespace": true,
        "controlPlane": { "enabled": true, "trustDomain": federation.trust_domain, "members": members },
    });
    let objects = render(&values::merge(&own, &given), &Release { namespace }).map_err(refused)?;
    // Secrets before what mounts them, the namespace before all.
    let (mut all, rest): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| object.get("kind") == Some(&json!("Namespace")));
    all.extend(found::secrets(context.state(), namespace, &federation)?);
    all.extend(rest);
    deliver(&all, args.manifests.out.as_deref())
}
