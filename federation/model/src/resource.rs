//! The kinds a federation agrees on, as validated types with one canonical JSON form.
//!
//! | kind | namespaced | says |
//! | --- | --- | --- |
//! | [`Cluster`] | no | a cluster belongs to the federation, in which region, whether it is drained, and whether its users may write policies |
//! | [`ServiceExport`] | yes | other clusters may use this service |
//! | [`TrafficSplit`] | yes | which share of which requests goes where |
//! | [`FailoverPolicy`] | yes | where requests go when that fails, and where they never may |
//! | [`BackendPolicy`] | yes | how slow clients and endpoints of a service may be |
//!
//! [`Topology`] is not a resource: it describes the processes that `meshctl up` starts.
//! From YAML they are read by [`crate::admit`], which knows lines and columns; JSON is for machines.

mod backend_policy;
mod cluster;
mod failover_policy;
mod metadata;
mod service_export;
mod topology;
mod traffic_split;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{
    backend_policy::{BackendPolicySpec, StreamLimits},
    cluster::ClusterSpec,
    failover_policy::{Failback, FailbackMode, FailoverPolicySpec, FailoverTier, LOCAL, Residency, SAME},
    metadata::{DEFAULT_NAMESPACE, Metadata},
    service_export::ServiceExportSpec,
    topology::{OwnServers, Topology, TopologyCluster, TopologyControlPlane, TopologyService, TopologySpec},
    traffic_split::{Backend, Route, RouteMatch, Sticky, TrafficSplitSpec},
};
use crate::document::{
    decode::{Cursor, Fields, Mistakes},
    suggest,
};

/// Group and version of every kind here.
pub const API_VERSION: &str = "archipelago.dev/v1alpha1";

/// A cluster of the federation.
pub type Cluster = Object<ClusterSpec>;
/// Offers a service to the other clusters.
pub type ServiceExport = Object<ServiceExportSpec>;
/// Shares of a service's requests.
pub type TrafficSplit = Object<TrafficSplitSpec>;
/// Order, residency and failback of a service.
pub type FailoverPolicy = Object<FailoverPolicySpec>;

/// How gateways treat the clients and endpoints of a service.
pub type BackendPolicy = Object<BackendPolicySpec>;

/// Metadata and specification of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<S> {
    /// Name, namespace, annotations.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: S,
}

/// One resource of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// See [`Cluster`].
    Cluster(Cluster),
    /// See [`ServiceExport`].
    ServiceExport(ServiceExport),
    /// See [`TrafficSplit`].
    TrafficSplit(TrafficSplit),
    /// See [`FailoverPolicy`].
    FailoverPolicy(FailoverPolicy),
    /// See [`BackendPolicy`].
    BackendPolicy(BackendPolicy),
}

impl Resource {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cluster(_) => Kind::Cluster,
            Self::ServiceExport(_) => Kind::ServiceExport,
            Self::TrafficSplit(_) => Kind::TrafficSplit,
            Self::FailoverPolicy(_) => Kind::FailoverPolicy,
            Self::BackendPolicy(_) => Kind::BackendPolicy,
        }
    }

    /// Name, namespace and annotations.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Cluster(object) => &object.metadata,
            Self::ServiceExport(object) => &object.metadata,
            Self::TrafficSplit(object) => &object.metadata,
            Self::FailoverPolicy(object) => &object.metadata,
            Self::BackendPolicy(object) => &object.metadata,
        }
    }

    /// What identifies it among all resources.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        let metadata = self.metadata();
        ResourceKey { kind: self.kind(), namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }

    /// Canonical JSON of the whole resource: fixed field order, defaults left out, so equal resources give equal text.
    /// JSON is YAML: the text can be applied again as it is.
    #[must_use]
    pub fn to_json(&self) -> String {
        match self {
            Self::Cluster(object) => encode(Kind::Cluster, object),
            Self::ServiceExport(object) => encode(Kind::ServiceExport, object),
            Self::TrafficSplit(object) => encode(Kind::TrafficSplit, object),
            Self::FailoverPolicy(object) => encode(Kind::FailoverPolicy, object),
            Self::BackendPolicy(object) => encode(Kind::BackendPolicy, object),
        }
    }

    /// Reads what [`Resource::to_json`] wrote.
    ///
    /// # Errors
    /// [`JsonError`] when the text is no JSON, of another API version or kind, or has unknown or missing fields.
    pub fn from_json(text: &str) -> Result<Self, JsonError> {
        let head: Head = serde_json::from_str(text)?;
        if head.api_version != API_VERSION {
            return Err(JsonError::ApiVersion(head.api_version));
        }
        Ok(match head.kind.parse()? {
            Kind::Cluster => Self::Cluster(object(text)?),
            Kind::ServiceExport => Self::ServiceExport(object(text)?),
            Kind::TrafficSplit => Self::TrafficSplit(object(text)?),
            Kind::FailoverPolicy => Self::FailoverPolicy(object(text)?),
            Kind::BackendPolicy => Self::BackendPolicy(object(text)?),
        })
    }
}

/// The kinds that are resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// See [`Cluster`].
    Cluster,
    /// See [`ServiceExport`].
    ServiceExport,
    /// See [`TrafficSplit`].
    TrafficSplit,
    /// See [`FailoverPolicy`].
    FailoverPolicy,
    /// See [`BackendPolicy`].
    BackendPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::Cluster, Self::ServiceExport, Self::TrafficSplit, Self::FailoverPolicy, Self::BackendPolicy];

    /// As it is written in a file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::ServiceExport => "ServiceExport",
            Self::TrafficSplit => "TrafficSplit",
            Self::FailoverPolicy => "FailoverPolicy",
            Self::BackendPolicy => "BackendPolicy",
        }
    }

    /// Whether its resources live in a namespace.
    #[must_use]
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Cluster)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Exact names only; the error suggests the nearest.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| UnknownKind { kind: text.to_owned(), hint: suggest::hint(text, Self::ALL.map(Self::name)) })
    }
}

/// A kind that does not exist here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kind `{kind}`{hint}")]
pub struct UnknownKind {
    kind: String,
    hint: String,
}

/// What identifies a resource; its order is the canonical order of resources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Empty for kinds without a namespace.
    pub namespace: String,
    /// Its name, unique within kind and namespace.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Why [`Resource::from_json`] refused a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON, or not the shape of its kind.
    #[error("not a resource: {0}")]
    Shape(#[from] serde_json::Error),
    /// Written by another version of this software.
    #[error("API version `{0}`, expected `{API_VERSION}`")]
    ApiVersion(String),
    /// No such kind.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
}

/// Reads the `spec` of a kind out of a document.
pub(crate) trait Spec: Sized {
    /// `None` stands for an absent `spec`.
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self>;
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a, S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: &'a Metadata,
    spec: &'a S,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Read<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: S,
}

fn encode<S: Serialize>(kind: Kind, object: &Object<S>) -> String {
    let written =
        Written { api_version: API_VERSION, kind: kind.name(), metadata: &object.metadata, spec: &object.spec };
    serde_json::to_string(&written).expect("maps have text keys and no value here can fail to serialize")
}

fn object<S: DeserializeOwned>(text: &str) -> Result<Object<S>, serde_json::Error> {
    let read: Read<S> = serde_json::from_str(text)?;
    Ok(Object { metadata: read.metadata, spec: read.spec })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn json_is_canonical_and_reads_back() {
        let text = r#"{"apiVersion":"archipelago.dev/v1alpha1","kind":"TrafficSplit","metadata":{"name":"checkout","namespace":"shop"},"spec":{"service":"checkout","sticky":{"header":"x-user"},"backends":[{"cluster":"paris","weight":90},{"cluster":"tokyo","weight":10}]}}"#;
        let resource = Resource::from_json(text).unwrap();
        assert_eq!(resource.to_json(), text);
        assert_eq!(resource.key().to_string(), "TrafficSplit shop/checkout");
    }

    #[test]
    fn limits_read_back_whether_they_are_none_or_not_given() {
        let text = r#"{"apiVersion":"archipelago.dev/v1alpha1","kind":"BackendPolicy","metadata":{"name":"checkout","namespace":"shop"},"spec":{"service":"checkout","limits":{"uploadIdle":"45s","uploadMinRate":0,"streamIdle":"none"}}}"#;
        let resource = Resource::from_json(text).unwrap();
        assert_eq!(resource.to_json(), text);
        let Resource::BackendPolicy(policy) = &resource else { panic!("{resource:?}") };
        assert_eq!((policy.spec.limits.stream_idle, policy.spec.limits.endpoint_idle), (Some(Duration::ZERO), None));
    }

    #[test]
    fn unknown_fields_kinds_and_versions_are_refused() {
        for (text, reason) in [
            (
                r#"{"apiVersion":"archipelago.dev/v1alpha1","kind":"Cluster","metadata":{"name":"a"},"spec":{"region":"r","x":1}}"#,
                "unknown field `x`",
            ),
            (
                r#"{"apiVersion":"archipelago.dev/v1alpha1","kind":"Clutser","metadata":{"name":"a"},"spec":{"region":"r"}}"#,
                "did you mean `Cluster`",
            ),
            (
                r#"{"apiVersion":"v2","kind":"Cluster","metadata":{"name":"a"},"spec":{"region":"r"}}"#,
                "API version `v2`",
            ),
            ("[", "not a resource"),
        ] {
            let error = Resource::from_json(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
