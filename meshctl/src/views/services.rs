//! `services`.

use archipelago_proto::v1;
use serde::Serialize;

use super::qualified;
use crate::output::{Cell, Table, Text};

/// `services`: one.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceView {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) protocol: &'static str,
    pub(crate) port: u32,
    /// All of them, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<PortView>,
    /// It is listed, and not carried between clusters.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) headless: bool,
    pub(crate) clusters: Vec<ServiceClusterView>,
    /// TCP services: where to connect, at each gateway.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tcp: Vec<TcpView>,
    /// Clusters that say something else of it than the one that said it first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) disagreements: Vec<DisagreementView>,
}

/// `services`: one port of a service that has several.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PortView {
    pub(crate) name: String,
    pub(crate) port: u32,
    pub(crate) protocol: &'static str,
    /// Who has it.
    pub(crate) clusters: Vec<String>,
}

/// `services`: a cluster that speaks of a service as of something else.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DisagreementView {
    pub(crate) cluster: String,
    pub(crate) protocol: &'static str,
    pub(crate) port: u32,
    /// Nothing is sent there.
    pub(crate) ignored: bool,
    /// In a sentence.
    pub(crate) why: String,
}

/// `services`: one cluster of one service.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServiceClusterView {
    pub(crate) name: String,
    pub(crate) ready: u32,
    pub(crate) total: u32,
    /// Percent of the split; null without a split.
    pub(crate) weight: Option<f64>,
    pub(crate) state: String,
    pub(crate) versions: Vec<String>,
    /// Endpoints that were not asked yet.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) unknown: u32,
    /// What the latest failing health check heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

/// Where a TCP service is reached at one gateway.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TcpView {
    /// `cluster/gateway`.
    pub(crate) gateway: String,
    pub(crate) cluster: String,
    pub(crate) address: String,
    /// Port of the service, where it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u32>,
}

impl ServiceView {
    /// From the control plane's answer.
    pub(crate) fn new(service: v1::ServiceStatus) -> Self {
        let meant = (protocol(service.protocol()), service.port);
        let disagreements = service.disagreements.iter().map(|said| {
            let (cluster, protocol, port) = (said.cluster.clone(), protocol(said.protocol()), said.port);
            let effect = if said.ignored { "nothing is sent there" } else { "that port is not used" };
            let why = format!(
                "{cluster} reports {protocol} on port {port}, {} reported {} on port {} first: {effect}",
                service.said_by, meant.0, meant.1
            );
            DisagreementView { cluster, protocol, port, ignored: said.ignored, why }
        });
        let several = service.ports.len() > 1;
        let port = |port: &v1::PortStatus| PortView {
            name: port.name.clone(),
            port: port.port,
            protocol: protocol(port.protocol()),
            clusters: port.exporters.clone(),
        };
        Self {
            name: format!("{}/{}", service.namespace, service.name),
            ports: if several { service.ports.iter().map(port).collect() } else { Vec::new() },
            headless: service.headless,
            disagreements: disagreements.collect(),
            protocol: meant.0,
            hosts: service.hosts,
            port: service.port,
            clusters: service
                .clusters
                .into_iter()
                .map(|cluster| ServiceClusterView {
                    name: cluster.cluster,
                    ready: cluster.ready,
                    total: cluster.total,
                    weight: cluster.weight,
                    state: cluster.state,
                    versions: cluster.versions,
                    unknown: cluster.unknown,
                    failure: cluster.last_failure.as_ref().map(failure),
                })
                .collect(),
            tcp: service
                .tcp_addresses
                .into_iter()
                .map(|tcp| TcpView {
                    gateway: qualified(&tcp.cluster, &tcp.gateway),
                    cluster: tcp.cluster,
                    address: tcp.address,
                    port: several.then_some(tcp.port),
                })
                .collect(),
        }
    }
}

impl ServiceView {
    /// What it speaks, and where when that is not one.
    fn spoken(&self) -> String {
        match self.ports.as_slice() {
            _ if self.headless => "headless".to_owned(),
            [] => self.protocol.to_owned(),
            ports => ports.iter().map(|port| format!("{}:{}", port.protocol, port.port)).collect::<Vec<_>>().join(","),
        }
    }
}

/// `services` for people.
///
/// `wide`: with what health checks heard.
pub(crate) fn service_text(services: &[ServiceView], wide: bool) -> Text {
    let mut names = vec!["SERVICE", "PROTOCOL", "CLUSTER", "READY", "WEIGHT", "STATE", "VERSIONS", "HOSTS"];
    if wide {
        names.extend(["UNCHECKED", "LAST FAILURE"]);
    }
    let mut table = Table::new(&names);
    for service in services {
        for (index, cluster) in service.clusters.iter().enumerate() {
            let first = index == 0;
            let once = |text: &str| Cell::from(if first { text } else { "" });
            let mut cells = vec![
                once(&service.name),
                once(&service.spoken()),
                cluster.name.clone().into(),
                format!("{}/{}", cluster.ready, cluster.total).into(),
                cluster.weight.map_or_else(|| "-".to_owned(), percent).into(),
                Cell::state(&cluster.state),
                cluster.versions.join(",").into(),
                once(&service.hosts.join(",")),
            ];
            if wide {
                cells.push(u64::from(cluster.unknown).into());
                cells.push(cluster.failure.as_deref().unwrap_or("-").into());
            }
            table.row(cells);
        }
    }
    let mut tcp = Table::new(&["TCP SERVICE", "GATEWAY", "CONNECT TO"]);
    for service in services {
        for address in &service.tcp {
            tcp.row([
                address.port.map_or_else(|| service.name.clone(), |port| format!("{}:{port}", service.name)).into(),
                address.gateway.clone().into(),
                address.address.clone().into(),
            ]);
        }
    }
    let mut text = Text::from(table);
    if !tcp.is_empty() {
        text = text.line("").table(tcp);
    }
    for service in services {
        for disagreement in &service.disagreements {
            text = text.line("").line(format!("{}: {}", service.name, disagreement.why));
        }
    }
    text
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What a health check heard, in words of a closed set and a status.
fn failure(failure: &v1::CheckFailure) -> String {
    use v1::CheckFailureReason as Reason;
    let words = match failure.reason() {
        Reason::Connect => "nobody accepts connections",
        Reason::Closed => "closed without an answer",
        Reason::Protocol => "answered in another protocol",
        Reason::Status => return format!("answered {}", failure.status),
        Reason::GrpcStatus => return format!("gRPC's health check answered code {}", failure.status),
        Reason::NotServing => "not serving, says its gRPC health check",
        Reason::Timeout => "no answer in time",
        Reason::Request => "host or path of the check are not valid",
        Reason::Provider => "not ready, says its provider",
        Reason::Unspecified => "failed",
    };
    words.to_owned()
}

fn protocol(protocol: v1::Protocol) -> &'static str {
    match protocol {
        v1::Protocol::Http1 => "http",
        v1::Protocol::H2c => "h2c",
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Unspecified => "unknown",
    }
}

fn percent(share: f64) -> String {
    if (share - share.round()).abs() < 0.05 { format!("{share:.0}%") } else { format!("{share:.1}%") }
}
