//! What commands print: the JSON shapes that scripts rely on, and the same as tables.
//!
//! Field names are an interface; a golden test below holds them.

use archipelago_proto::v1;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::output::{Cell, Table, Text};

/// `status`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusView {
    /// Current revision; absent when no control plane answered.
    pub(crate) revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trust_domain: Option<String>,
    pub(crate) control_plane: ControlPlaneView,
    pub(crate) clusters: Vec<ClusterView>,
    /// Under `meshctl up`: every process of this federation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<Vec<ProcessView>>,
}

/// `.controlPlane`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ControlPlaneView {
    pub(crate) members: Vec<MemberView>,
}

/// `.controlPlane.members[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberView {
    pub(crate) id: u64,
    pub(crate) role: String,
    pub(crate) address: String,
    pub(crate) applied_index: u64,
    pub(crate) term: u64,
    /// What an operator must see to there; absent if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
}

/// `.clusters[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterView {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) state: String,
    pub(crate) agent: String,
    pub(crate) gateways: Vec<GatewayView>,
    /// What the agent reported and nobody uses, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<String>,
}

/// `.clusters[].gateways[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayView {
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) state: String,
    pub(crate) revision: u64,
    /// URL for curl, with the service's name as Host header.
    pub(crate) http: String,
    /// UDP socket address of worker 0.
    pub(crate) tunnel: String,
    /// One per worker.
    pub(crate) tunnels: Vec<String>,
    pub(crate) dns: String,
    /// URL of the Prometheus metrics.
    pub(crate) metrics: String,
    /// URL of the readiness check.
    pub(crate) health: String,
    pub(crate) tcp_base: String,
    pub(crate) workers: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// What it cannot use of its configuration, and what it said of itself and nobody uses, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<String>,
}

/// `.processes[]`, and what the supervisor answers on its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessView {
    pub(crate) name: String,
    pub(crate) role: String,
    /// Absent for the control plane.
    pub(crate) cluster: Option<String>,
    /// Absent while it is down.
    pub(crate) pid: Option<u32>,
    pub(crate) state: String,
    pub(crate) restarts: u64,
}

impl StatusView {
    /// From the control plane's answer.
    pub(crate) fn new(status: v1::StatusResponse, processes: Option<Vec<ProcessView>>) -> Self {
        Self {
            revision: Some(status.revision),
            trust_domain: Some(status.trust_domain),
            control_plane: ControlPlaneView { members: status.members.into_iter().map(MemberView::new).collect() },
            clusters: status.clusters.into_iter().map(ClusterView::new).collect(),
            processes,
        }
    }

    /// What is known without a control plane.
    pub(crate) fn only_processes(processes: Vec<ProcessView>) -> Self {
        Self {
            revision: None,
            trust_domain: None,
            control_plane: ControlPlaneView::default(),
            clusters: Vec::new(),
            processes: Some(processes),
        }
    }

    /// All gateways.
    pub(crate) fn gateways(&self) -> Vec<GatewayView> {
        self.clusters.iter().flat_map(|cluster| cluster.gateways.clone()).collect()
    }

    /// For people.
    pub(crate) fn text(&self) -> Text {
        let mut text = Text::default();
        if let Some(revision) = self.revision {
            let domain = self.trust_domain.as_deref().unwrap_or_default();
            text = text.line(format!("trust domain {domain}, revision {revision}")).line("");
            let mut members = Table::new(&["CONTROL PLANE", "ROLE", "ADDRESS", "APPLIED", "TERM"]);
            for member in &self.control_plane.members {
                members.row([
                    format!("cp-{}", member.id).into(),
                    Cell::state(&member.role),
                    member.address.clone().into(),
                    member.applied_index.into(),
                    member.term.into(),
                ]);
            }
            let mut clusters = Table::new(&["CLUSTER", "REGION", "STATE", "AGENT", "GATEWAYS SYNCED"]);
            for cluster in &self.clusters {
                let synced = cluster.gateways.iter().filter(|gateway| gateway.state == "synced").count();
                clusters.row([
                    cluster.name.clone().into(),
                    cluster.region.clone().into(),
                    Cell::state(&cluster.state),
                    Cell::state(&cluster.agent),
                    format!("{synced}/{}", cluster.gateways.len()).into(),
                ]);
            }
            text = text.table(members);
            for member in self.control_plane.members.iter().filter(|member| !member.problem.is_empty()) {
                text = text.line(format!("cp-{}: {}", member.id, member.problem));
            }
            text = text.line("").table(clusters);
            let gateways = gateway_table(&self.gateways());
            if !gateways.is_empty() {
                text = text.line("").table(gateways);
            }
            for cluster in &self.clusters {
                for problem in &cluster.problems {
                    text = text.line(format!("agent of {}: {problem}", cluster.name));
                }
                for gateway in &cluster.gateways {
                    for problem in &gateway.problems {
                        text = text.line(format!("gateway {}/{}: {problem}", gateway.cluster, gateway.name));
                    }
                }
            }
        }
        if let Some(processes) = &self.processes {
            if self.revision.is_some() {
                text = text.line("");
            }
            text = text.table(process_table(processes));
        }
        text
    }
}

impl MemberView {
    fn new(member: v1::MemberStatus) -> Self {
        Self {
            id: member.id,
            role: member.role,
            address: member.address,
            applied_index: member.applied_index,
            term: member.term,
            problem: member.problem,
        }
    }
}

impl ClusterView {
    fn new(cluster: v1::ClusterStatus) -> Self {
        Self {
            name: cluster.name,
            region: cluster.region,
            state: cluster.state,
            agent: cluster.agent_state,
            gateways: cluster.gateways.into_iter().map(GatewayView::new).collect(),
            problems: problems(cluster.problems),
        }
    }
}

fn problems(problems: Vec<v1::Problem>) -> Vec<String> {
    problems.into_iter().map(|problem| format!("{}: {}", problem.subject, problem.reason)).collect()
}

impl GatewayView {
    fn new(gateway: v1::GatewayStatus) -> Self {
        let addresses = gateway.addresses.unwrap_or_default();
        Self {
            name: gateway.name,
            cluster: gateway.cluster,
            state: gateway.state,
            revision: gateway.revision,
            http: url(&addresses.http, ""),
            tunnel: addresses.tunnel.first().cloned().unwrap_or_default(),
            tunnels: addresses.tunnel,
            dns: addresses.dns,
            metrics: url(&addresses.metrics, "/metrics"),
            health: url(&addresses.health, "/readyz"),
            tcp_base: addresses.tcp_base,
            workers: gateway.workers,
            certificate_expires: timestamp(gateway.svid_not_after_unix.saturating_mul(1_000)),
            last_seen: timestamp(gateway.last_seen_unix_ms),
            error: (!gateway.error.is_empty()).then_some(gateway.error),
            problems: problems(gateway.problems),
        }
    }
}

/// `gateways`.
pub(crate) fn gateway_table(gateways: &[GatewayView]) -> Table {
    let mut table = Table::new(&["GATEWAY", "STATE", "REVISION", "HTTP", "TUNNEL", "DNS", "METRICS"]);
    for gateway in gateways {
        let mut cells = vec![
            format!("{}/{}", gateway.cluster, gateway.name).into(),
            Cell::state(&gateway.state),
            gateway.revision.into(),
            gateway.http.clone().into(),
            gateway.tunnel.clone().into(),
            gateway.dns.clone().into(),
            gateway.metrics.clone().into(),
        ];
        if let Some(error) = &gateway.error {
            cells.push(error.clone().into());
        }
        table.row(cells);
    }
    table
}

/// Processes under `up`.
pub(crate) fn process_table(processes: &[ProcessView]) -> Table {
    let mut table = Table::new(&["PROCESS", "ROLE", "PID", "STATE", "RESTARTS"]);
    for process in processes {
        table.row([
            process.name.clone().into(),
            process.role.clone().into(),
            process.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()).into(),
            Cell::state(&process.state),
            process.restarts.into(),
        ]);
    }
    table
}

/// `services`: one.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceView {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) protocol: &'static str,
    pub(crate) port: u32,
    pub(crate) clusters: Vec<ServiceClusterView>,
    /// TCP services: where to connect, at each gateway.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tcp: Vec<TcpView>,
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
    pub(crate) gateway: String,
    pub(crate) cluster: String,
    pub(crate) address: String,
}

impl ServiceView {
    /// From the control plane's answer.
    pub(crate) fn new(service: v1::ServiceStatus) -> Self {
        Self {
            name: format!("{}/{}", service.namespace, service.name),
            protocol: protocol(service.protocol()),
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
                .map(|tcp| TcpView { gateway: tcp.gateway, cluster: tcp.cluster, address: tcp.address })
                .collect(),
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
                once(service.protocol),
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
                service.name.clone().into(),
                qualified(&address.cluster, &address.gateway).into(),
                address.address.clone().into(),
            ]);
        }
    }
    let text = Text::from(table);
    if tcp.is_empty() { text } else { text.line("").table(tcp) }
}

/// `tunnels`: one.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TunnelView {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) from_cluster: String,
    pub(crate) to_cluster: String,
    pub(crate) state: String,
    pub(crate) rtt_micros: u64,
    pub(crate) transport: String,
    pub(crate) connections: u32,
}

impl TunnelView {
    /// From the control plane's answer.
    pub(crate) fn new(tunnel: v1::TunnelStatus) -> Self {
        Self {
            from: qualified(&tunnel.from_cluster, &tunnel.from),
            to: qualified(&tunnel.to_cluster, &tunnel.to),
            from_cluster: tunnel.from_cluster,
            to_cluster: tunnel.to_cluster,
            state: tunnel.state,
            rtt_micros: tunnel.rtt_micros,
            transport: tunnel.transport,
            connections: tunnel.connections,
        }
    }
}

/// `tunnels` for people.
pub(crate) fn tunnel_table(tunnels: &[TunnelView]) -> Table {
    let mut table = Table::new(&["FROM", "TO", "STATE", "RTT", "TRANSPORT", "CONNECTIONS"]);
    for tunnel in tunnels {
        let rtt = if tunnel.rtt_micros == 0 { "-".to_owned() } else { duration::measured(tunnel.rtt_micros) };
        table.row([
            tunnel.from.clone().into(),
            tunnel.to.clone().into(),
            Cell::state(&tunnel.state),
            rtt.into(),
            tunnel.transport.clone().into(),
            u64::from(tunnel.connections).into(),
        ]);
    }
    table
}

/// `apply`, `delete`, `split set`, `switch` and every other write.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WriteView {
    pub(crate) revision: u64,
    /// Server-side time from receipt to commit.
    pub(crate) commit_millis: f64,
    /// From commit to the first acknowledgement; null without one.
    pub(crate) first_ack_millis: Option<f64>,
    /// From commit to the last acknowledgement; null without one.
    pub(crate) last_ack_millis: Option<f64>,
    /// Gateways that were expected to acknowledge; null when nobody waited.
    pub(crate) gateways: Option<u32>,
    pub(crate) acknowledged: u32,
    /// `cluster/gateway` of those that did not acknowledge in time.
    pub(crate) stragglers: Vec<String>,
    pub(crate) rejections: Vec<RejectionView>,
    pub(crate) changes: Vec<ChangeView>,
    /// Accepted, but perhaps not what was meant; people read them on stderr.
    pub(crate) warnings: Vec<String>,
}

/// A gateway that refused the revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RejectionView {
    pub(crate) gateway: String,
    /// Empty: the whole revision.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) resource: String,
    pub(crate) error: String,
}

/// What became of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ChangeView {
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) what: String,
}

impl WriteView {
    /// From the commit and, when someone waited, from the last progress message.
    pub(crate) fn new(commit: v1::ApplyResponse, applied: Option<&v1::WaitAppliedProgress>) -> Self {
        let acknowledged = applied.map_or(0, |applied| applied.acknowledged);
        let some = |value: u64| (acknowledged > 0).then(|| millis(value));
        Self {
            revision: commit.revision,
            commit_millis: millis(commit.commit_micros),
            first_ack_millis: applied.and_then(|applied| some(applied.first_ack_micros)),
            last_ack_millis: applied.and_then(|applied| some(applied.last_ack_micros)),
            gateways: applied.map(|applied| applied.expected),
            acknowledged,
            stragglers: applied
                .map(|applied| applied.stragglers.iter().map(|straggler| straggler.gateway.clone()).collect())
                .unwrap_or_default(),
            rejections: applied
                .map(|applied| {
                    let view = |rejection: &v1::Rejection| RejectionView {
                        gateway: rejection.gateway.clone(),
                        resource: rejection.resource.clone(),
                        error: rejection.error.clone(),
                    };
                    applied.rejections.iter().map(view).collect()
                })
                .unwrap_or_default(),
            warnings: commit.warnings,
            changes: commit
                .changes
                .into_iter()
                .map(|change| ChangeView {
                    kind: change.kind,
                    namespace: change.namespace,
                    name: change.name,
                    what: change.what,
                })
                .collect(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> Text {
        let mut text = Text::default();
        for change in &self.changes {
            let name = if change.namespace.is_empty() {
                change.name.clone()
            } else {
                format!("{}/{}", change.namespace, change.name)
            };
            text = text.line(format!("{} {name} {}", change.kind, change.what));
        }
        let mut summary = format!("revision {} committed in {}", self.revision, show_millis(self.commit_millis));
        if let Some(gateways) = self.gateways {
            summary.push_str(&format!(", {}/{gateways} gateways", self.acknowledged));
            if let (Some(first), Some(last)) = (self.first_ack_millis, self.last_ack_millis) {
                summary.push_str(&format!(
                    ", first acknowledgement after {}, last after {}",
                    show_millis(first),
                    show_millis(last)
                ));
            }
        }
        text = text.line(summary);
        if !self.stragglers.is_empty() {
            text = text.line(format!("stragglers: {}", self.stragglers.join(", ")));
        }
        for rejection in &self.rejections {
            let RejectionView { gateway, resource, error } = rejection;
            let what = if resource.is_empty() { String::new() } else { format!("{resource}: ") };
            text = text.line(format!("rejected by {gateway}: {what}{error}"));
        }
        text
    }
}

/// `token list`: one.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TokenView {
    pub(crate) id: String,
    pub(crate) cluster: String,
    pub(crate) role: &'static str,
    pub(crate) name: String,
    pub(crate) expires: Option<String>,
    pub(crate) used: Option<String>,
    /// "unused", "used" or "expired".
    pub(crate) state: &'static str,
}

impl TokenView {
    /// From the control plane's answer; `now_unix` in seconds decides what has expired.
    pub(crate) fn new(token: v1::TokenInfo, now_unix: i64) -> Self {
        Self {
            role: role(token.role()),
            state: if token.used_unix > 0 {
                "used"
            } else if token.expires_unix <= now_unix {
                "expired"
            } else {
                "unused"
            },
            expires: timestamp(token.expires_unix.saturating_mul(1_000)),
            used: timestamp(token.used_unix.saturating_mul(1_000)),
            id: token.id,
            cluster: token.cluster,
            name: token.name,
        }
    }
}

/// `agent` or `gateway`.
pub(crate) fn role(role: v1::JoinRole) -> &'static str {
    match role {
        v1::JoinRole::Agent => "agent",
        v1::JoinRole::Gateway => "gateway",
        v1::JoinRole::Unspecified => "unknown",
    }
}

/// RFC 3339 in UTC; absent for zero, which means never.
pub(crate) fn timestamp(unix_ms: i64) -> Option<String> {
    if unix_ms <= 0 {
        return None;
    }
    jiff::Timestamp::from_millisecond(unix_ms).ok().map(|time| time.to_string())
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

/// `cluster/gateway`, whether or not the name already has its cluster in front.
fn qualified(cluster: &str, gateway: &str) -> String {
    if gateway.contains('/') { gateway.to_owned() } else { format!("{cluster}/{gateway}") }
}

fn url(address: &str, path: &str) -> String {
    if address.is_empty() { String::new() } else { format!("http://{address}{path}") }
}

fn percent(share: f64) -> String {
    if (share - share.round()).abs() < 0.05 { format!("{share:.0}%") } else { format!("{share:.1}%") }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds of a command fit a double exactly")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made from a u64 of microseconds by `millis` above"
)]
fn show_millis(millis: f64) -> String {
    duration::measured((millis * 1e3).round() as u64)
}

#[cfg(test)]
mod tests;
