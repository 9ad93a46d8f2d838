use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{Kind, Meta, Names, Resource, meta::MANAGED_BY};

/// A Service: what it offers and how it wants to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Unique over time.
    pub uid: Arc<str>,
    /// RFC 3339, in UTC and whole seconds.
    pub created: Arc<str>,
    /// How it is reached.
    pub kind: ServiceType,
    /// In the order of the object.
    pub ports: Vec<ServicePort>,
    /// Its virtual addresses; empty while it has none, and for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// `IPv4`, `IPv6`, in the order of the object.
    pub ip_families: Vec<Arc<str>>,
    /// `None` or `ClientIP`.
    pub session_affinity: Arc<str>,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds`.
    pub session_affinity_timeout_seconds: Option<i32>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<Arc<str>>,
    /// `PreferClose` and its relatives.
    pub traffic_distribution: Option<Arc<str>>,
    /// Endpoints count as ready before they are.
    pub publish_not_ready_addresses: bool,
    /// Label `app.kubernetes.io/managed-by`.
    pub managed_by: Option<Arc<str>>,
    /// Label `multicluster.kubernetes.io/service-name`: of a Service that stands for an import.
    pub imported_name: Option<Arc<str>>,
    /// The owner that manages it: `kind`, `name`, `uid`.
    pub owner: Option<(Arc<str>, Arc<str>, Arc<str>)>,
    /// It is being deleted.
    pub is_terminating: bool,
}

impl Service {
    /// It was made from a ServiceImport, by us or by another implementation, and offers what other clusters export.
    #[must_use]
    pub fn stands_for_import(&self) -> bool {
        self.imported_name.is_some() || self.owner.as_ref().is_some_and(|(kind, _, _)| &**kind == "ServiceImport")
    }
}

/// How a Service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceType {
    /// By a virtual address (`ClusterIP`, and `NodePort` and `LoadBalancer`, which have one too).
    ClusterIp,
    /// By the addresses of its endpoints (`clusterIP: None`).
    Headless,
    /// It is another name for something outside.
    ExternalName,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty: the only one, without a name.
    pub name: Arc<str>,
    /// Where clients connect.
    pub port: u16,
    /// By what.
    pub transport: Transport,
    /// What is spoken there, if anybody said.
    pub app_protocol: Option<Arc<str>>,
}

/// `protocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// As the API says it; what it does not know is nothing that anybody could connect to.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// As the API says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
/// As the API server sends it.
pub struct Raw {
    metadata: Meta,
    spec: RawSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    r#type: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    ip_families: Vec<String>,
    ports: Vec<RawPort>,
    session_affinity: Option<String>,
    session_affinity_config: Option<RawAffinity>,
    internal_traffic_policy: Option<String>,
    traffic_distribution: Option<String>,
    publish_not_ready_addresses: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPort {
    name: Option<String>,
    protocol: Option<String>,
    app_protocol: Option<String>,
    port: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Option<RawClientIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClientIp {
    timeout_seconds: Option<i32>,
}

impl Kind for Service {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "", version: "v1", plural: "services" };

    fn keep(raw: Raw, names: &mut Names) -> Option<Self> {
        let Raw { metadata, spec } = raw;
        let kind = match (spec.r#type.as_str(), spec.cluster_ip.as_deref()) {
            ("ExternalName", _) => ServiceType::ExternalName,
            (_, Some("None")) => ServiceType::Headless,
            _ => ServiceType::ClusterIp,
        };
        let owner = metadata.owner_references.iter().find(|owner| owner.controller);
        let owner = owner.or(metadata.owner_references.first());
        let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
        Some(Self {
            uid: metadata.uid.into(),
            created: names.intern(&metadata.creation_timestamp),
            kind,
            ports: spec.ports.iter().filter_map(|port| ServicePort::keep(port, names)).collect(),
            cluster_ips: spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            ip_families: spec.ip_families.iter().map(|family| names.intern(family)).collect(),
            session_affinity: names.intern(spec.session_affinity.as_deref().unwrap_or("None")),
            session_affinity_timeout_seconds: timeout,
            internal_traffic_policy: names.intern_some(spec.internal_traffic_policy.as_deref()),
            traffic_distribution: names.intern_some(spec.traffic_distribution.as_deref()),
            publish_not_ready_addresses: spec.publish_not_ready_addresses,
            managed_by: names.intern_some(metadata.labels.get(MANAGED_BY)),
            imported_name: names.intern_some(metadata.labels.get(IMPORTED_NAME)),
            owner: owner.map(|owner| (names.intern(&owner.kind), names.intern(&owner.name), names.intern(&owner.uid))),
            is_terminating: metadata.deletion_timestamp.is_some(),
        })
    }
}

impl ServicePort {
    fn keep(raw: &RawPort, names: &mut Names) -> Option<Self> {
        Some(Self {
            name: names.intern(raw.name.as_deref().unwrap_or_default()),
            port: u16::try_from(raw.port).ok().filter(|port| *port != 0)?,
            transport: Transport::parse(raw.protocol.as_deref())?,
            app_protocol: names.intern_some(raw.app_protocol.as_deref()),
        })
    }
}

const IMPORTED_NAME: &str = "multicluster.kubernetes.io/service-name";
