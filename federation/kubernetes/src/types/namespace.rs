use serde::Deserialize;

use super::{Kind, Meta, Names, Resource};

/// A namespace: that it exists, and whether it is going.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// It is being deleted: nothing can be created in it any more.
    pub is_terminating: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
/// As the API server sends it.
pub struct Raw {
    metadata: Meta,
}

impl Kind for Namespace {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "", version: "v1", plural: "namespaces" };

    fn keep(raw: Raw, _: &mut Names) -> Option<Self> {
        Some(Self { is_terminating: raw.metadata.deletion_timestamp.is_some() })
    }
}
