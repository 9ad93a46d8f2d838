use std::collections::BTreeMap;

use archipelago_model::selector;
use serde::Deserialize;

use super::{Condition, FullMeta, MCS_GROUP, MCS_VERSION, unix_ms};
use crate::types::{Kind, Names, Resource};

/// "Other clusters may use the Service of this name".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceExport {
    /// When it was made, Unix milliseconds: of exports that contradict each other the oldest counts.
    pub created_unix_ms: i64,
    /// Counts changes of its spec.
    pub generation: i64,
    /// `spec.exportedLabels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
    /// Annotation `archipelago.dev/cluster-selectors`, as it is written there.
    pub selectors: Option<String>,
    /// What was said of it.
    pub conditions: Vec<Condition>,
    /// It is being deleted.
    pub is_terminating: bool,
}

/// As the API server sends it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: FullMeta,
    spec: Option<RawSpec>,
    status: Option<RawStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    exported_labels: BTreeMap<String, String>,
    exported_annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    conditions: Vec<Condition>,
}

impl Kind for ServiceExport {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: MCS_GROUP, version: MCS_VERSION, plural: "serviceexports" };

    fn keep(raw: Raw, _: &mut Names) -> Option<Self> {
        let Raw { mut metadata, spec, status } = raw;
        let spec = spec.unwrap_or_default();
        Some(Self {
            created_unix_ms: unix_ms(&metadata.creation_timestamp),
            generation: metadata.generation,
            labels: spec.exported_labels,
            annotations: spec.exported_annotations,
            selectors: metadata.annotations.remove(selector::ANNOTATION),
            conditions: status.unwrap_or_default().conditions,
            is_terminating: metadata.deletion_timestamp.is_some(),
        })
    }
}
