//! Helm and `meshctl` print the same objects.
//!
//! Needs a `helm` binary: `HELM`, or the one that `topologies/kubernetes/tools` fetched. Without one it says that it was skipped.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use archipelago_manifests::identity;
use serde_json::Value;

fn helm() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kubernetes-tools/helm");
    let helm = std::env::var_os("HELM").map(PathBuf::from).unwrap_or(fetched);
    if helm.exists() {
        return Some(helm);
    }
    eprintln!("SKIPPED: no helm at {}; topologies/kubernetes/tools fetches one", helm.display());
    None
}

fn by_identity(objects: Vec<Value>) -> BTreeMap<(String, String, String), Value> {
    objects.into_iter().map(|object| (identity(&object), object)).collect()
}

#[test]
fn helm_and_meshctl_print_the_same_objects() {
    let Some(helm) = helm() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, namespace, values) in common::cases() {
        let file = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, values.to_string()).unwrap();
        let output = Command::new(&helm)
            .args(["template", "archipelago", "chart", "--namespace", namespace, "--values"])
            .arg(&file)
            .env("HELM_CACHE_HOME", dir.path())
            .env("HELM_CONFIG_HOME", dir.path())
            .env("HELM_DATA_HOME", dir.path())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let theirs: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let theirs = by_identity(theirs.into_iter().filter(|object| !object.is_null()).collect());
        let ours = by_identity(common::rendered(namespace, &values));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (identity, object) in &ours {
            assert_eq!(object, &theirs[identity], "{name}: {identity:?}");
        }
    }
}

#[test]
fn helm_refuses_what_meshctl_refuses() {
    let Some(helm) = helm() else { return };
    for set in ["agent.replica=3", "gateway.captureFrom=all", "join.cluster=paris"] {
        let status = Command::new(&helm)
            .args(["template", "archipelago", "chart", "--set", set])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap()
            .status;
        assert!(!status.success(), "{set}");
        let mut values = serde_json::json!({});
        archipelago_manifests::values::set(&mut values, set).unwrap();
        let release = archipelago_manifests::Release { namespace: "n" };
        assert!(archipelago_manifests::render(&values, &release).is_err(), "{set}");
    }
}
