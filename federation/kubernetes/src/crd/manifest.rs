//! Our own kinds as CustomResourceDefinitions, out of the schema that the decoder of `meshctl validate` is tested against.

use archipelago_model::{
    resource::{API_VERSION, Kind},
    schema,
};
use serde_json::{Value, json};

/// A file of `topologies/kubernetes/crds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its name.
    pub file: String,
    /// YAML.
    pub text: String,
}

/// The definitions of every kind that the users of a cluster may write.
#[must_use]
pub fn manifests() -> Vec<Manifest> {
    Kind::ALL.into_iter().filter_map(manifest).collect()
}

fn manifest(kind: Kind) -> Option<Manifest> {
    let names = names(kind)?;
    let (group, version) = API_VERSION.split_once('/')?;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{group}", names.plural),
            "labels": { REVISION_LABEL: REVISION },
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name(),
                "listKind": format!("{}List", kind.name()),
                "plural": names.plural,
                "singular": kind.name().to_lowercase(),
                "shortNames": names.short,
                "categories": ["archipelago"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(),
                "schema": { "openAPIV3Schema": root(kind)? },
            }],
        },
    });
    let yaml = serde_saphyr::to_string(&definition).ok()?;
    let text = format!(
        "# Generated from federation/model/src/schema: `UPDATE=1 cargo test -p archipelago-kubernetes crd`.\n{yaml}"
    );
    Some(Manifest { file: format!("{group}_{}.yaml", names.plural), text })
}

/// The whole object.
fn root(kind: Kind) -> Option<Value> {
    let spec = schema::spec(kind)?;
    Some(json!({
        "type": "object",
        "description": spec.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": spec.to_openapi(),
            "status": status(),
        },
        "x-kubernetes-validations": [schema::name_rule().to_openapi()],
    }))
}

/// What the agent writes back. Bounds are those of the API conventions; nothing here is a user's to set.
fn status() -> Value {
    json!({
        "type": "object",
        "description": "What became of it in the federation.",
        "properties": {
            "revision": {
                "type": "integer", "format": "int64", "minimum": 0,
                "description": "Policy revision of the federation that carries it.",
            },
            "gateways": {
                "type": "string", "maxLength": 64,
                "description": "Gateways that run that revision, of those that should: `6/6`.",
            },
            "conditions": {
                "type": "array",
                "description": "`Accepted`: whether the federation took it. `Programmed`: whether every gateway runs it.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": { "type": "string", "maxLength": 316 },
                        "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                        "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                        "lastTransitionTime": { "type": "string", "format": "date-time" },
                        "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                        "message": { "type": "string", "maxLength": 32768 },
                    },
                },
            },
        },
    })
}

fn columns() -> Value {
    let condition = |name: &str| json!({ "name": name, "type": "string", "jsonPath": format!(".status.conditions[?(@.type==\"{name}\")].status") });
    json!([
        { "name": "Service", "type": "string", "jsonPath": ".spec.service" },
        condition("Accepted"),
        condition("Programmed"),
        { "name": "Gateways", "type": "string", "jsonPath": ".status.gateways" },
        { "name": "Revision", "type": "integer", "jsonPath": ".status.revision" },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
        {
            "name": "Reason", "type": "string", "priority": 1,
            "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].message",
        },
    ])
}

struct Names {
    plural: &'static str,
    short: &'static [&'static str],
}

/// Short names that no widespread kind has: `ts` and `fp` are taken.
fn names(kind: Kind) -> Option<Names> {
    match kind {
        Kind::TrafficSplit => Some(Names { plural: "trafficsplits", short: &["tsplit"] }),
        Kind::FailoverPolicy => Some(Names { plural: "failoverpolicies", short: &["fpolicy"] }),
        Kind::Cluster | Kind::ServiceExport | Kind::BackendPolicy => None,
    }
}

/// An installer replaces a definition only by one of the same revision or a later one.
pub const REVISION_LABEL: &str = "archipelago.dev/crd-revision";
/// Grows with every change of a schema.
pub const REVISION: &str = "1";

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    #[test]
    fn the_files_are_what_the_rules_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../topologies/kubernetes/crds");
        let manifests = manifests();
        assert_eq!(manifests.len(), 2);
        for manifest in manifests {
            let path = folder.join(&manifest.file);
            if env::var_os("UPDATE").is_some() {
                fs::write(&path, &manifest.text).unwrap();
            }
            let written = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                written == manifest.text,
                "{} is stale: run `UPDATE=1 cargo test -p archipelago-kubernetes crd` and raise `REVISION`",
                path.display()
            );
        }
    }
}
