//! Kinds that Kubernetes itself does not have: those of the Multi-Cluster Services API and our own.
//!
//! What is read of them implements [`crate::types::Kind`]; what is written of them serialises here, so that what was found
//! and what is wanted are values of one type and can be compared. [`manifest`] is their definition in the API server.

mod condition;
pub mod manifest;
mod policy;
mod service_export;
mod service_import;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use self::{
    condition::{Condition, Status},
    policy::{FailoverPolicy, Policy, PolicyStatus, TrafficSplit},
    service_export::ServiceExport,
    service_import::{
        ClientIp, ClusterName, ImportPort, ImportSpec, ImportStatus, ImportType, ServiceImport, SessionAffinityConfig,
    },
};

/// `metadata` with everything that is compared or copied.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FullMeta {
    name: String,
    namespace: String,
    uid: String,
    generation: i64,
    creation_timestamp: String,
    deletion_timestamp: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// API group of the Multi-Cluster Services API.
pub const MCS_GROUP: &str = "multicluster.x-k8s.io";
/// Its version; `v1alpha1` is served by the same definition with the same fields.
pub const MCS_VERSION: &str = "v1beta1";

/// RFC 3339 as Unix milliseconds; 0 for what is no time, so that it sorts as the oldest.
pub(crate) fn unix_ms(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond)
}
