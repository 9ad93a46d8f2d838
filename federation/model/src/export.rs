//! What a service is when several clusters export it: the conflict resolution of the Multi-Cluster Services API (KEP-1645).
//!
//! [`merge`] is a pure function of what the exporting clusters say, whatever their order, so that the compiler of the control
//! plane and the controller in every cluster come to the same result by themselves.
//!
//! - Where exports contradict each other **the oldest counts**: by `creationTimestamp` of the ServiceExport. A cluster that
//!   exports otherwise (a service file) has no such time and is younger than all that do; among those the one that reports
//!   the service longer counts, and then the name of the cluster decides.
//! - **Ports** are united, oldest export first. One that repeats the transport and number of an earlier one is that port; one
//!   that repeats the name of an earlier one under another number is left out.
//! - A port is **served by every cluster that has it**: the same number, speaking the same protocol. Names do not matter for
//!   that, and a cluster without the port gets nothing of its traffic.
//! - A cluster that exports otherwise gives ports no names, and has one. Among such clusters it is the same port whatever its
//!   number, and the oldest says the number; beside named ports the number tells which it is.
//! - Everything else is as the oldest export says it. Clusters that export otherwise say nothing of it, but for the type: they
//!   are never headless.
//!
//! IP families are no conflict here: gateways reach endpoints of either family whatever family a client came by.

mod conflicts;
mod ports;

use std::{collections::BTreeMap, fmt};

use archipelago_proto::v1::{ExportFacts, ExportType, Exporter, Protocol, ReportedPort, ServiceReport};

use crate::selector::{self, ClusterSelectors};

/// What an import of the service says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Oldest export's first. Each name once, each transport and number once.
    pub ports: Vec<MergedPort>,
    /// Whether it has an address, or is headless.
    pub kind: ExportType,
    /// `None` or `ClientIP`.
    pub session_affinity: String,
    /// Seconds, where the oldest export says it.
    pub session_affinity_seconds: Option<u32>,
    /// Empty: not said.
    pub internal_traffic_policy: String,
    /// Empty: not said.
    pub traffic_distribution: String,
    /// `IPv4`, `IPv6`, in the oldest export's order; empty: not said.
    pub ip_families: Vec<String>,
    /// Exported labels, all of one export.
    pub labels: BTreeMap<String, String>,
    /// Exported annotations, all of one export; its cluster selectors are one of them.
    pub annotations: BTreeMap<String, String>,
    /// What the exports contradict each other about; each kind once, in the order of [`ConflictKind`].
    pub conflicts: Vec<Conflict>,
}

/// A port of the service as the federation knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedPort {
    /// Empty only while it is the only port.
    pub name: String,
    /// Under which clients know it.
    pub port: u32,
    /// Below what it speaks. Only TCP is carried between clusters.
    pub transport: Transport,
    /// What its endpoints speak; unspecified for a transport that is not carried.
    pub protocol: Protocol,
    /// As the Service says it; empty: it does not.
    pub app_protocol: String,
    /// Clusters that have exactly this port, sorted.
    pub exporters: Vec<String>,
}

/// Of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Carried.
    Tcp,
    /// Listed.
    Udp,
    /// Listed.
    Sctp,
}

impl Transport {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The transport of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|transport| transport.as_str() == text)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that exports of one service say differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// About what.
    pub kind: ConflictKind,
    /// Who has a part in it, the winner included, sorted: the condition is for all of them.
    pub clusters: Vec<String>,
    /// A sentence for people: whose word counts, and what of whom does not.
    pub message: String,
}

/// What exports can contradict each other about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConflictKind {
    /// The lists of ports are not identical.
    Port,
    /// Headless here, not there.
    Type,
    /// `sessionAffinity`.
    SessionAffinity,
    /// `sessionAffinityConfig`.
    SessionAffinityConfig,
    /// `exportedLabels`.
    Labels,
    /// `exportedAnnotations`.
    Annotations,
    /// `internalTrafficPolicy`.
    InternalTrafficPolicy,
    /// `trafficDistribution`.
    TrafficDistribution,
    /// Cluster selectors.
    ClusterSelectors,
}

impl ConflictKind {
    /// Reason of the condition `Conflict` of a ServiceExport.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Port => "PortConflict",
            Self::Type => "TypeConflict",
            Self::SessionAffinity => "SessionAffinityConflict",
            Self::SessionAffinityConfig => "SessionAffinityConfigConflict",
            Self::Labels => "LabelsConflict",
            Self::Annotations => "AnnotationsConflict",
            Self::InternalTrafficPolicy => "InternalTrafficPolicyConflict",
            Self::TrafficDistribution => "TrafficDistributionConflict",
            Self::ClusterSelectors => "ClusterSelectorsConflict",
        }
    }
}

impl Merged {
    /// Which clusters come first; `None`: nobody said, or not in words that this version knows.
    #[must_use]
    pub fn cluster_selectors(&self) -> Option<ClusterSelectors> {
        ClusterSelectors::parse(self.annotations.get(selector::ANNOTATION)?).ok()
    }
}

/// Merges what clusters export under one name; each cluster once. Nobody exports it: nothing.
#[must_use]
pub fn merge<'a>(exporters: impl IntoIterator<Item = &'a Exporter>) -> Merged {
    let by_age = oldest_first(exporters);
    let (ports, dropped) = ports::unite(&by_age);
    let mut conflicts = Vec::new();
    conflicts.extend(conflicts::of_ports(&by_age, &ports, &dropped));
    conflicts.extend(conflicts::of_facts(&by_age));
    // Of all exports the oldest that says such things at all.
    let said = by_age.iter().find_map(|exporter| exporter.facts.clone()).unwrap_or_default();
    let kind = by_age.first().map_or(ExportType::ClusterSetIp, |oldest| type_of(oldest));
    let ExportFacts {
        session_affinity,
        session_affinity_seconds,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        created_unix_ms: _,
        r#type: _,
        uncarried_ports: _,
    } = said;
    Merged {
        ports,
        kind,
        session_affinity: if session_affinity.is_empty() { NO_AFFINITY.to_owned() } else { session_affinity },
        session_affinity_seconds,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        conflicts,
    }
}

/// What a report says of an export, as [`merge`] takes it.
#[must_use]
pub fn exporter(cluster: &str, report: &ServiceReport, since: u64) -> Exporter {
    Exporter { cluster: cluster.to_owned(), ports: ports_of(report), facts: report.export.clone(), since }
}

/// All ports of a reported service; one that says nothing of ports has the one.
#[must_use]
pub fn ports_of(report: &ServiceReport) -> Vec<ReportedPort> {
    if report.ports.is_empty() {
        let only = ReportedPort { port: report.port, protocol: report.protocol, ..ReportedPort::default() };
        return vec![only];
    }
    report.ports.clone()
}

/// The order in which they are believed.
pub(crate) fn oldest_first<'a>(exporters: impl IntoIterator<Item = &'a Exporter>) -> Vec<&'a Exporter> {
    let mut by_age: Vec<&Exporter> = exporters.into_iter().collect();
    by_age.sort_by(|one, other| age(one).cmp(&age(other)));
    by_age
}

/// Smaller is older.
fn age(exporter: &Exporter) -> (bool, i64, u64, &str) {
    let created = exporter.facts.as_ref().map(|facts| facts.created_unix_ms);
    (created.is_none(), created.unwrap_or(0), if created.is_some() { 0 } else { exporter.since }, &exporter.cluster)
}

fn type_of(exporter: &Exporter) -> ExportType {
    match exporter.facts.as_ref().map(ExportFacts::r#type) {
        Some(ExportType::Headless) => ExportType::Headless,
        Some(ExportType::ClusterSetIp | ExportType::Unspecified) | None => ExportType::ClusterSetIp,
    }
}

/// Bytes of exported labels and annotations of one export that are carried: a handful of labels. Annotations can hold whole
/// documents, which are for their own cluster.
pub const WORDS_BYTES_MAX: usize = 4 * 1024;

/// Bytes of the exported labels and annotations.
#[must_use]
pub fn words_bytes(facts: &ExportFacts) -> usize {
    facts.labels.iter().chain(&facts.annotations).map(|(key, value)| key.len() + value.len()).sum()
}

const NO_AFFINITY: &str = "None";

#[cfg(test)]
mod tests;
