use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Condition, FullMeta, MCS_GROUP, MCS_VERSION};
use crate::types::{Kind, MANAGED_BY, Names, Resource};

/// A service of the clusterset as this cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceImport {
    /// Unique over time.
    pub uid: String,
    /// Counts changes of its spec.
    pub generation: i64,
    /// Labels, all of them.
    pub labels: BTreeMap<String, String>,
    /// Annotations, all of them.
    pub annotations: BTreeMap<String, String>,
    /// What it offers.
    pub spec: ImportSpec,
    /// What is said of it.
    pub status: ImportStatus,
    /// It is being deleted.
    pub is_terminating: bool,
}

impl ServiceImport {
    /// Who made it, by its label.
    #[must_use]
    pub fn managed_by(&self) -> Option<&str> {
        self.labels.get(MANAGED_BY).map(String::as_str)
    }
}

/// `spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImportSpec {
    /// Ports, in the order of the oldest export.
    pub ports: Vec<ImportPort>,
    /// Virtual addresses, one per family and in the order of `ip_families`; none for a headless service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Whether it has virtual addresses.
    pub r#type: ImportType,
    /// `None` or `ClientIP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// How long affinity lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `IPv4`, `IPv6`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// `Cluster` or `Local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// `PreferClose` and its relatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

/// `spec.type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportType {
    /// Reached by virtual addresses.
    #[default]
    ClusterSetIP,
    /// Reached by the addresses of its pods.
    Headless,
}

/// An entry of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportPort {
    /// Empty: the only one, without a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// What is spoken there, if anybody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Where clients connect.
    pub port: i64,
}

fn tcp() -> String {
    "TCP".into()
}

/// `spec.sessionAffinityConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(default, rename = "clientIP", skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<ClientIp>,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIp {
    /// How long a client stays with its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
}

/// `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImportStatus {
    /// Whether slices of the exporting clusters' own endpoints are here: `Present` or `Absent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_slice_objects: Option<String>,
    /// Who exports it, by name.
    pub clusters: Vec<ClusterName>,
    /// `Ready`.
    pub conditions: Vec<Condition>,
}

/// An entry of `status.clusters`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterName {
    /// Name of the cluster.
    pub cluster: String,
}

/// As the API server sends it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: FullMeta,
    spec: ImportSpec,
    status: Option<ImportStatus>,
}

impl Kind for ServiceImport {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: MCS_GROUP, version: MCS_VERSION, plural: "serviceimports" };

    fn keep(raw: Raw, _: &mut Names) -> Option<Self> {
        let Raw { metadata, spec, status } = raw;
        Some(Self {
            uid: metadata.uid,
            generation: metadata.generation,
            labels: metadata.labels,
            annotations: metadata.annotations,
            spec,
            status: status.unwrap_or_default(),
            is_terminating: metadata.deletion_timestamp.is_some(),
        })
    }
}
