//! Installing on Kubernetes: manifests are printed or written, and `kubectl` or a GitOps tool applies them.
//!
//! Nothing here talks to a Kubernetes API: what a cluster's own people may do there stays with them.

mod found;
pub(super) mod install;
pub(super) mod join;
pub(super) mod uninstall;

use std::fs;
use std::path::Path;

use archipelago_base::durable;
use archipelago_manifests::{RenderError, to_yaml, values};
use archipelago_proto::v1::AddMemberResponse;
use serde_json::{Map, Value, json};

use crate::cli::ManifestArgs;
use crate::exit::{Failure, Outcome};
use crate::output;

/// The values of `-f` and `--set`, the later over the earlier.
fn read_values(args: &ManifestArgs) -> Outcome<Value> {
    let mut all = Value::Object(Map::new());
    for path in &args.values {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::refused(format!("cannot read {}: {error}", path.display())))?;
        let over =
            values::from_yaml(&text).map_err(|error| Failure::refused(format!("{}: {error}", path.display())))?;
        all = values::merge(&all, &over);
    }
    for assignment in &args.set {
        values::set(&mut all, assignment)
            .map_err(|error| Failure::refused(error).hint("for example --set agent.replicas=3"))?;
    }
    Ok(all)
}

/// What the chart has against the values.
fn refused(error: RenderError) -> Failure {
    let hint = "topologies/kubernetes/chart/values.yaml names every value";
    match error {
        RenderError::Values(problems) => {
            let count = problems.len();
            Failure::refused(format!("{count} of the values cannot be used"))
                .problems(problems.iter().map(ToString::to_string))
                .hint(hint)
        }
        error => Failure::refused(error.to_string()).hint(hint),
    }
}

/// What a member that is added begins with, as its pod finds it.
pub(super) fn member_secrets(namespace: &str, added: &AddMemberResponse) -> Vec<Value> {
    found::of_member(namespace, added)
}

/// Prints objects.
pub(super) fn print(objects: &[Value]) -> Outcome {
    deliver(objects, None)
}

/// Prints `objects` for `kubectl apply -f -`, or writes them as files.
fn deliver(objects: &[Value], out: Option<&Path>) -> Outcome {
    match out {
        None => output::write_stdout(&to_yaml(objects).map_err(refused)?),
        Some(dir) => write(objects, dir),
    }
}

/// One file per concern, and a kustomization over them: what is secret is apart, to be sealed or left out.
fn write(objects: &[Value], dir: &Path) -> Outcome {
    let failed = |error: std::io::Error| Failure::refused(format!("cannot write {}: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    let is = |object: &Value, kind: &str| object.get("kind").and_then(Value::as_str) == Some(kind);
    let filled = |object: &Value| object.get("data").is_some() || object.get("stringData").is_some();
    let (crds, rest): (Vec<Value>, Vec<Value>) =
        objects.iter().cloned().partition(|object| KINDS.iter().any(|kind| is(object, kind)));
    let (secrets, rest): (Vec<Value>, Vec<Value>) =
        rest.into_iter().partition(|object| is(object, "Secret") && filled(object));
    let mut resources = Vec::new();
    for (name, objects, mode) in
        [("crds.yaml", crds, 0o644), ("archipelago.yaml", rest, 0o644), ("secrets.yaml", secrets, 0o600)]
    {
        if !objects.is_empty() {
            let text = to_yaml(&objects).map_err(refused)?;
            durable::write(&dir.join(name), text.as_bytes(), mode).map_err(failed)?;
            resources.push(name);
        }
    }
    let kustomization =
        json!({ "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources });
    let text = to_yaml(&[kustomization]).map_err(refused)?;
    durable::write(&dir.join("kustomization.yaml"), text.as_bytes(), 0o644).map_err(failed)?;
    output::talk(format!("wrote {} and kustomization.yaml to {}", resources.join(", "), dir.display()));
    if resources.contains(&"secrets.yaml") {
        output::talk("secrets.yaml is secret: seal it, or apply it by hand and leave it out of the repository");
    }
    Ok(())
}

/// What says which kinds a cluster has, and keeps them from being replaced by older ones.
const KINDS: [&str; 3] = ["CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_secret_is_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let secret = |name: &str, data: Value| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "data": data });
        let objects = [
            json!({ "kind": "CustomResourceDefinition", "metadata": { "name": "c" } }),
            json!({ "kind": "Secret", "metadata": { "name": "empty" } }),
            secret("join", json!({ "token": "dG9r" })),
        ];
        write(&objects, dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("secrets.yaml").contains("dG9r") && !read("archipelago.yaml").contains("dG9r"));
        assert!(read("archipelago.yaml").contains("empty") && read("crds.yaml").contains("name: c"));
        let mode = fs::metadata(dir.path().join("secrets.yaml")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for name in ["crds.yaml", "archipelago.yaml", "secrets.yaml"] {
            assert!(read("kustomization.yaml").contains(name));
        }
    }

    #[test]
    fn later_values_win_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v.yaml");
        fs::write(&file, "agent: { replicas: 3 }\ngateway: { workers: 1 }\n").unwrap();
        let args = |set: &[&str]| ManifestArgs {
            values: vec![file.clone()],
            set: set.iter().map(|one| (*one).to_owned()).collect(),
            namespace: None,
            out: None,
        };
        let read = read_values(&args(&["agent.replicas=1"])).unwrap();
        assert_eq!(read, json!({ "agent": { "replicas": 1 }, "gateway": { "workers": 1 } }));
        assert!(read_values(&args(&["agent"])).unwrap_err().render().contains("KEY=VALUE"));
        let missing = ManifestArgs { values: vec!["/nowhere".into()], ..args(&[]) };
        assert!(read_values(&missing).unwrap_err().render().contains("/nowhere"));
    }
}
