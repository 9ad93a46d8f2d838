//! `uninstall`: what an installation put into a cluster, and what its agent made there.
//!
//! The agent marks everything that it makes with [`MADE_BY_AGENT`], so labels find it. It goes after the agent: a running one would make
//! it again.

use std::fmt::Write as _;

use archipelago_manifests::{CONTROL_PLANE_NAMESPACE, NAMESPACE, Release, crds, identity, render, to_yaml, values};
use serde_json::{Value, json};

use super::{read_values, refused};
use crate::cli::UninstallArgs;
use crate::exit::Outcome;
use crate::output;

/// `uninstall`.
pub(crate) fn run(args: &UninstallArgs) -> Outcome {
    let installed = installed(args)?;
    let removed: Vec<Value> =
        installed.into_iter().chain(if args.crds { crds() } else { Vec::new() }).map(bare).collect();
    if args.script {
        return output::write_stdout(&script(&removed, args)?);
    }
    output::write_stdout(&to_yaml(&removed).map_err(refused)?)?;
    output::talk("once that is deleted, what the agent made goes with:");
    for command in commands(args) {
        output::talk(format!("  {command}"));
    }
    if !args.crds {
        output::talk("definitions of kinds are kept, with every object of them: --crds removes them too");
    }
    Ok(())
}

/// Everything that an installation of any values may consist of.
fn installed(args: &UninstallArgs) -> Outcome<Vec<Value>> {
    let given = read_values(&args.manifests)?;
    let namespace = args.manifests.namespace.as_deref();
    let (own, namespace) = if args.control_plane {
        let own = json!({ "createNamespace": true, "controlPlane": { "enabled": true, "members": members() } });
        (own, namespace.unwrap_or(CONTROL_PLANE_NAMESPACE))
    } else {
        let own = json!({
            "createNamespace": true,
            "join": { "cluster": "any", "trustDomain": "any", "caSha256": "any", "token": "any" },
        });
        (own, namespace.unwrap_or(NAMESPACE))
    };
    let mut objects = render(&values::merge(&own, &given), &Release { namespace }).map_err(refused)?;
    // In the reverse order: agents and gateways first, the namespace last.
    objects.reverse();
    Ok(objects)
}

/// As many as a control plane may have; those that are not there are not missed.
fn members() -> Vec<Value> {
    (0..MEMBERS_MAX).map(|_| json!({ "client": "any:7400" })).collect()
}

/// An object without what is of no interest to who deletes it; no Secret is printed.
fn bare(object: Value) -> Value {
    let (_, namespace, name) = identity(&object);
    let metadata =
        if namespace.is_empty() { json!({ "name": name }) } else { json!({ "name": name, "namespace": namespace }) };
    json!({ "apiVersion": object.get("apiVersion"), "kind": object.get("kind"), "metadata": metadata })
}

/// Removes what the agent made. With the definitions every object of them goes anyway.
fn commands(args: &UninstallArgs) -> Vec<String> {
    if args.control_plane {
        return Vec::new();
    }
    let kinds = if args.crds {
        "services,endpointslices"
    } else {
        "serviceimports.multicluster.x-k8s.io,services,endpointslices"
    };
    let mut commands = vec![format!("kubectl delete --ignore-not-found -A -l {MADE_BY_AGENT} {kinds}")];
    if !args.crds {
        commands.push(format!("kubectl delete --ignore-not-found -l {MADE_BY_AGENT} clusterproperties.about.k8s.io"));
    }
    commands
}

/// All of it as a script that says what it does.
fn script(removed: &[Value], args: &UninstallArgs) -> Outcome<String> {
    let mut text = "#!/bin/sh\nset -eu\n".to_owned();
    let yaml = to_yaml(removed).map_err(refused)?;
    // The agent first, and gone, before what it would make again.
    let _ = write!(text, "kubectl delete --ignore-not-found --wait -f - <<'OBJECTS'\n{yaml}OBJECTS\n");
    for command in commands(args) {
        let _ = writeln!(text, "{command}");
    }
    Ok(text)
}

/// On everything that the agent makes.
const MADE_BY_AGENT: &str = "app.kubernetes.io/managed-by=archipelago";
const MEMBERS_MAX: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ManifestArgs;

    fn args(crds: bool, control_plane: bool) -> UninstallArgs {
        let manifests = ManifestArgs { values: Vec::new(), set: Vec::new(), namespace: None, out: None };
        UninstallArgs { crds, control_plane, script: false, manifests }
    }

    #[test]
    fn all_that_an_installation_prints_is_removed_again() {
        let given = json!({ "createNamespace": true, "join": { "cluster": "paris", "trustDomain": "mesh.example",
            "controlPlane": ["a:1"], "caSha256": "x", "token": "secret-token" } });
        let objects = render(&given, &Release { namespace: NAMESPACE }).unwrap();
        let removed: Vec<Value> = installed(&args(false, false)).unwrap().into_iter().map(bare).collect();
        for object in &objects {
            assert!(removed.iter().any(|one| identity(one) == identity(object)), "{:?}", identity(object));
        }
        assert_eq!(removed.last().unwrap()["kind"], "Namespace", "last, or its deletion would hold up the rest");
    }

    #[test]
    fn definitions_are_removed_only_when_asked() {
        let text = |args: &UninstallArgs| script(&[], args).unwrap();
        assert!(text(&args(false, false)).contains("serviceimports.multicluster.x-k8s.io,services,endpointslices"));
        assert!(!text(&args(true, false)).contains("serviceimports"));
        assert!(!text(&args(false, true)).contains("-A"));
    }
}
