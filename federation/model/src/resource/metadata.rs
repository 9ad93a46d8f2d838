//! Name, namespace and annotations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::document::decode::{Cursor, Mistakes};

/// The namespace of a namespaced resource that names none, as in Kubernetes.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What every resource has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// RFC 1123 label.
    pub name: String,
    /// RFC 1123 label; empty for kinds without a namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Free text for tools and people; never changes what a gateway does.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    pub(crate) fn decode(at: Option<Cursor<'_>>, namespaced: bool, out: &mut Mistakes) -> Self {
        let Some(at) = at else { return Self::default() };
        let Some(mut fields) = at.fields(out) else { return Self::default() };
        let name = fields.text("name", out);
        let namespace = match fields.optional("namespace") {
            Some(cursor) if namespaced => cursor.text(out),
            Some(cursor) => {
                cursor.wrong(out, "this kind has no namespace");
                String::new()
            }
            None if namespaced => DEFAULT_NAMESPACE.to_owned(),
            None => String::new(),
        };
        let annotations = fields.optional("annotations").map_or_else(BTreeMap::new, |cursor| cursor.text_map(out));
        fields.finish(out);
        Self { name, namespace, annotations }
    }
}
