//! What objects have in common.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `metadata`, as far as anybody here reads it. Only while an object is read: what is kept is up to its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// Name within kind and namespace.
    pub name: String,
    /// Empty for what is in no namespace.
    pub namespace: String,
    /// Unique over time, unlike the name.
    pub uid: String,
    /// Opaque; for preconditions.
    pub resource_version: String,
    /// Counts changes of the spec.
    pub generation: i64,
    /// RFC 3339, in UTC and whole seconds.
    pub creation_timestamp: String,
    /// Set while it is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Who is to be deleted before.
    pub owner_references: Vec<OwnerReference>,
}

/// Whose part an object is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner.
    pub uid: String,
    /// The one owner that manages this object.
    pub controller: bool,
}

/// Label of an object that a tool made.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label of the objects that we made, with the value [`APP`].
pub const APP: &str = "archipelago";
/// Label of a slice: who keeps it.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value at slices that we keep.
pub const MANAGED_BY_US: &str = "archipelago.dev";
/// Who we are in managedFields.
pub const FIELD_MANAGER: &str = "archipelago-agent";
