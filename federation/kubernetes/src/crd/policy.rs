use archipelago_model::resource::{self, API_VERSION};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Condition, FullMeta};
use crate::types::{Kind, Names, Resource};

/// A policy object, whatever its kind: its specification is the federation's to read, not the agent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Counts changes of its spec.
    pub generation: i64,
    /// apiVersion, kind, name and namespace, spec: as an operator could apply it.
    pub json: String,
    /// What was said of it.
    pub status: PolicyStatus,
    /// It is being deleted.
    pub is_terminating: bool,
}

/// `kind: TrafficSplit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficSplit(pub Policy);

/// `kind: FailoverPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverPolicy(pub Policy);

/// `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Policy revision of the federation that carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Gateways that run that revision, of those that should: `6/6`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateways: String,
    /// `Accepted`, `Programmed`.
    pub conditions: Vec<Condition>,
}

/// As the API server sends it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: FullMeta,
    spec: Value,
    status: Option<PolicyStatus>,
}

impl Policy {
    fn keep(kind: resource::Kind, raw: Raw) -> Self {
        let Raw { metadata, spec, status } = raw;
        let json = json!({
            "apiVersion": API_VERSION,
            "kind": kind.name(),
            "metadata": { "name": metadata.name, "namespace": metadata.namespace },
            "spec": spec,
        });
        Self {
            generation: metadata.generation,
            json: json.to_string(),
            status: status.unwrap_or_default(),
            is_terminating: metadata.deletion_timestamp.is_some(),
        }
    }
}

impl Kind for TrafficSplit {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "archipelago.dev", version: "v1alpha1", plural: "trafficsplits" };

    fn keep(raw: Raw, _: &mut Names) -> Option<Self> {
        Some(Self(Policy::keep(resource::Kind::TrafficSplit, raw)))
    }
}

impl Kind for FailoverPolicy {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "archipelago.dev", version: "v1alpha1", plural: "failoverpolicies" };

    fn keep(raw: Raw, _: &mut Names) -> Option<Self> {
        Some(Self(Policy::keep(resource::Kind::FailoverPolicy, raw)))
    }
}
