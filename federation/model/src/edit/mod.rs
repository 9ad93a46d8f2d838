//! What the verbs do to resources, as pure functions: the document before, the document after.
//!
//! They work on canonical JSON and touch only the fields they are about, so that everything else an
//! operator wrote stays as it was, also what a newer control plane knows and this program does not. Whether the result is allowed is the control plane's to say.

pub mod cluster;
pub mod failover;
pub mod names;
pub mod split;
pub mod switch;

use serde_json::{Map, Value, json};

pub use self::names::{ServiceName, Share, Target};
use crate::resource::API_VERSION;

/// A new document of `kind` about a service.
fn document(kind: &str, service: &ServiceName) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": { "name": service.name, "namespace": service.namespace },
        "spec": { "service": service.name },
    })
}

/// The object under `key`, made when it is absent or of another type.
fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let Value::Object(map) = parent else { unreachable!("made an object above") };
    let child = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child
}

/// Sets `key` of an object, or removes it for `None`.
fn set(parent: &mut Value, key: &str, value: Option<Value>) {
    if let Value::Object(map) = parent {
        match value {
            Some(value) => map.insert(key.to_owned(), value),
            None => map.remove(key),
        };
    }
}

/// An annotation's text.
fn annotation<'a>(document: &'a Value, key: &str) -> Option<&'a str> {
    document.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// Sets or removes an annotation; an empty map of annotations is removed too.
fn annotate(document: &mut Value, key: &str, value: Option<String>) {
    let metadata = object(document, "metadata");
    let annotations = object(metadata, "annotations");
    set(annotations, key, value.map(Value::String));
    if annotations.as_object().is_some_and(Map::is_empty) {
        set(metadata, "annotations", None);
    }
}

/// Whether a document's `spec.service` is this service.
#[must_use]
pub fn is_about(document: &Value, service: &ServiceName) -> bool {
    let text = |section: &str, key: &str| document.get(section)?.get(key)?.as_str();
    text("metadata", "namespace") == Some(&service.namespace) && text("spec", "service") == Some(&service.name)
}

/// Of all documents of one kind, the one about this service.
#[must_use]
pub fn about<'a>(documents: &'a [Value], service: &ServiceName) -> Option<&'a Value> {
    documents.iter().find(|document| is_about(document, service))
}

/// `metadata.name`.
#[must_use]
pub fn name(document: &Value) -> &str {
    document.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Value::as_str).unwrap_or_default()
}

/// What a verb asks the control plane to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Write this document.
    Apply(Value),
    /// Remove the document that was read.
    Delete,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_found_by_the_service_it_is_about() {
        let shop: ServiceName = "shop/checkout".parse().unwrap();
        let mut named_otherwise = document("TrafficSplit", &shop);
        named_otherwise["metadata"]["name"] = json!("weekend");
        let other_namespace = document("TrafficSplit", &"bank/checkout".parse().unwrap());
        let documents = [other_namespace, named_otherwise];
        assert_eq!(about(&documents, &shop).map(name), Some("weekend"));
        assert_eq!(about(&documents, &"shop/web".parse().unwrap()), None);
    }

    #[test]
    fn annotations_leave_no_empty_map_behind() {
        let mut document = document("TrafficSplit", &"shop/checkout".parse().unwrap());
        let before = document.clone();
        annotate(&mut document, "a/b", Some("x".to_owned()));
        assert_eq!(annotation(&document, "a/b"), Some("x"));
        annotate(&mut document, "a/b", None);
        assert_eq!(document, before);
    }
}
