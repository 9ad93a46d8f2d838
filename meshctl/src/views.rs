//! What commands print: the JSON shapes that scripts rely on, and the same as tables.
//!
//! Field names are an interface; a golden test below holds them. One thing has one name in all of them: a gateway is `cluster/gateway`,
//! a service `namespace/service`, a cluster its name. What is not known is null, never zero.

mod events;
mod services;
mod tap;
mod top;
mod writes;

use std::time::Duration;

use archipelago_proto::v1;
use serde::{Deserialize, Serialize};

pub(crate) use self::events::{EventView, EventsView, SourceView};
pub(crate) use self::services::{ServiceClusterView, ServiceView, service_text};
pub(crate) use self::tap::TapView;
pub(crate) use self::top::{MissingView, TopView};
pub(crate) use self::writes::{ChangeView, WriteView};
use crate::duration;
use crate::output::{Cell, Table, Text};

/// `status`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusView {
    /// Current revision; absent when no control plane answered.
    pub(crate) revision: Option<u64>,
    /// Moves with registrations and reports; absent like `revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fleet: Option<u64>,
    /// How often a restore was declared; absent like `revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) restore_epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trust_domain: Option<String>,
    pub(crate) control_plane: ControlPlaneView,
    pub(crate) clusters: Vec<ClusterView>,
    /// Whose clocks are far from the control plane's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) clocks: Vec<ClockView>,
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
    /// Null when it does not answer, like `term`.
    pub(crate) applied_index: Option<u64>,
    pub(crate) term: Option<u64>,
    /// Newest log format that it knows; absent when it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format_supported: Option<u32>,
    /// Log format in use there; absent when it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format_version: Option<u32>,
    /// What an operator must see to there; absent if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
}

/// `.clocks[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClockView {
    pub(crate) identity: String,
    /// How far ahead it was; behind when negative.
    pub(crate) offset_ms: i64,
    /// The member whose clock it was compared with.
    pub(crate) member: u64,
    pub(crate) measured: Option<String>,
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
    /// `cluster/gateway`.
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) state: String,
    /// Last acknowledged; null when it never acknowledged one to this control plane.
    pub(crate) revision: Option<u64>,
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
    /// Null when it never was connected.
    pub(crate) workers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The version that it will not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<VersionView>,
    /// It runs a newer version than the control plane has.
    pub(crate) ahead: bool,
    /// What it cannot use of its configuration, and what it said of itself and nobody uses, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<String>,
}

/// A version of the configuration; ordered by epoch, revision and fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VersionView {
    pub(crate) restore_epoch: u64,
    pub(crate) revision: u64,
    pub(crate) fleet: u64,
}

impl From<v1::ConfigVersion> for VersionView {
    fn from(version: v1::ConfigVersion) -> Self {
        Self { restore_epoch: version.restore_epoch, revision: version.revision, fleet: version.fleet }
    }
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
        let (restore_epoch, revision, fleet) = (status.restore_epoch, status.revision, status.fleet);
        let current = VersionView { restore_epoch, revision, fleet };
        Self {
            revision: Some(status.revision),
            fleet: Some(status.fleet),
            restore_epoch: Some(status.restore_epoch),
            trust_domain: Some(status.trust_domain),
            control_plane: ControlPlaneView { members: status.members.into_iter().map(MemberView::new).collect() },
            clusters: status.clusters.into_iter().map(|cluster| ClusterView::new(cluster, current)).collect(),
            clocks: status.clocks.into_iter().map(ClockView::new).collect(),
            processes,
        }
    }

    /// What is known without a control plane.
    pub(crate) fn only_processes(processes: Vec<ProcessView>) -> Self {
        Self {
            revision: None,
            fleet: None,
            restore_epoch: None,
            trust_domain: None,
            control_plane: ControlPlaneView::default(),
            clusters: Vec::new(),
            clocks: Vec::new(),
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
            let fleet = self.fleet.unwrap_or_default();
            let epoch = self.restore_epoch.filter(|epoch| *epoch > 0);
            let epoch = epoch.map(|epoch| format!(", restore epoch {epoch}")).unwrap_or_default();
            let head = format!("trust domain {domain}, revision {revision}, fleet version {fleet}{epoch}");
            text = text.line(head).line("");
            let mut members = Table::new(&["CONTROL PLANE", "ROLE", "ADDRESS", "APPLIED", "TERM"]);
            for member in &self.control_plane.members {
                members.row([
                    format!("cp-{}", member.id).into(),
                    Cell::state(&member.role),
                    member.address.clone().into(),
                    Cell::known(member.applied_index),
                    Cell::known(member.term),
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
            for line in self.control_plane.held_back() {
                text = text.line(line);
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
                        text = text.line(format!("gateway {}: {problem}", gateway.name));
                    }
                }
            }
        }
        for clock in &self.clocks {
            text = text.line(clock.line());
        }
        if self.clusters.iter().flat_map(|cluster| &cluster.gateways).any(|gateway| gateway.ahead) {
            text = text.line(
                "some gateway runs a newer version than the control plane has; after a restore from a backup run `meshctl raft restored`",
            );
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

impl ControlPlaneView {
    /// One line for each member that keeps the others from the newest log format that one of them knows.
    fn held_back(&self) -> Vec<String> {
        let newest = self.members.iter().filter_map(|member| member.format_supported).max().unwrap_or(0);
        let line = |member: &MemberView| match (member.format_supported, member.format_version) {
            (Some(known), _) if known < newest => {
                Some(format!("cp-{} knows log format {known} only and holds the members back from {newest}", member.id))
            }
            // The leader waits for those that cannot be asked, too.
            (None, _) if self.members.iter().filter_map(|other| other.format_version).max() < Some(newest) => {
                Some(format!("cp-{} does not answer and holds the members back from log format {newest}", member.id))
            }
            _ => None,
        };
        self.members.iter().filter_map(line).collect()
    }
}

impl ClockView {
    fn new(clock: v1::ClockOffset) -> Self {
        Self {
            identity: clock.spiffe_id,
            offset_ms: clock.offset_ms,
            member: clock.member,
            measured: timestamp(clock.measured_unix_ms),
        }
    }

    fn line(&self) -> String {
        // `spiffe://domain/…`: the domain is the same everywhere.
        let name = self.identity.splitn(4, '/').nth(3).unwrap_or(&self.identity);
        let offset = duration::display(Duration::from_secs(self.offset_ms.unsigned_abs() / 1_000));
        let side = if self.offset_ms < 0 { "behind" } else { "ahead of" };
        let at = self.measured.as_deref().map(|at| format!(" at {at}")).unwrap_or_default();
        format!("{name}: its clock was {offset} {side} that of cp-{}{at}", self.member)
    }
}

impl MemberView {
    fn new(member: v1::MemberStatus) -> Self {
        // A term begins with the first election.
        let answers = member.term > 0;
        Self {
            id: member.id,
            role: member.role,
            address: member.address,
            applied_index: answers.then_some(member.applied_index),
            term: answers.then_some(member.term),
            format_supported: (member.format_supported > 0).then_some(member.format_supported),
            format_version: (member.format_supported > 0).then_some(member.format_version),
            problem: member.problem,
        }
    }
}

impl ClusterView {
    fn new(cluster: v1::ClusterStatus, current: VersionView) -> Self {
        Self {
            name: cluster.name,
            region: cluster.region,
            state: cluster.state,
            agent: cluster.agent_state,
            gateways: cluster.gateways.into_iter().map(|gateway| GatewayView::new(gateway, current)).collect(),
            problems: problems(cluster.problems),
        }
    }
}

fn problems(problems: Vec<v1::Problem>) -> Vec<String> {
    problems.into_iter().map(|problem| format!("{}: {}", problem.subject, problem.reason)).collect()
}

impl GatewayView {
    /// `current`: what the control plane has.
    fn new(gateway: v1::GatewayStatus, current: VersionView) -> Self {
        let addresses = gateway.addresses.unwrap_or_default();
        let refused = gateway.refused.map(VersionView::from);
        let ahead = refused.is_some() && gateway.running.is_some_and(|running| VersionView::from(running) > current);
        Self {
            name: qualified(&gateway.cluster, &gateway.name),
            cluster: gateway.cluster,
            state: gateway.state,
            revision: some(gateway.revision),
            http: url(&addresses.http, ""),
            tunnel: addresses.tunnel.first().cloned().unwrap_or_default(),
            tunnels: addresses.tunnel,
            dns: addresses.dns,
            metrics: url(&addresses.metrics, "/metrics"),
            health: url(&addresses.health, "/readyz"),
            tcp_base: addresses.tcp_base,
            workers: some(gateway.workers),
            certificate_expires: timestamp(gateway.svid_not_after_unix.saturating_mul(1_000)),
            last_seen: timestamp(gateway.last_seen_unix_ms),
            ahead,
            refused,
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
            gateway.name.clone().into(),
            Cell::state(&gateway.state),
            Cell::known(gateway.revision),
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

/// `tunnels`: one.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TunnelView {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) from_cluster: String,
    pub(crate) to_cluster: String,
    pub(crate) state: String,
    /// Null without a connection.
    pub(crate) rtt_micros: Option<u64>,
    pub(crate) transport: String,
    /// Null where it is not reported.
    pub(crate) tls_version: Option<String>,
    pub(crate) connections: u32,
    /// Of the packets of the last minute. Null where it is not reported, or too few were sent.
    pub(crate) loss_percent: Option<f64>,
    /// On connections that are open.
    pub(crate) sent_packets: Option<u64>,
    pub(crate) lost_packets: Option<u64>,
    pub(crate) congestion_window_bytes: Option<u64>,
    pub(crate) black_holes: Option<u64>,
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
            rtt_micros: some(tunnel.rtt_micros),
            transport: tunnel.transport,
            tls_version: tunnel.tls_version,
            connections: tunnel.connections,
            loss_percent: tunnel.lost_ppm.map(|ppm| f64::from(ppm) / 1e4),
            sent_packets: tunnel.sent_packets,
            lost_packets: tunnel.lost_packets,
            congestion_window_bytes: tunnel.congestion_window_bytes,
            black_holes: tunnel.black_holes,
        }
    }
}

/// `tunnels` for people.
pub(crate) fn tunnel_table(tunnels: &[TunnelView]) -> Table {
    let mut table = Table::new(&["FROM", "TO", "STATE", "RTT", "LOSS", "TRANSPORT", "TLS", "CONNECTIONS"]);
    for tunnel in tunnels {
        let rtt = tunnel.rtt_micros.map_or_else(|| "-".to_owned(), duration::measured);
        table.row([
            tunnel.from.clone().into(),
            tunnel.to.clone().into(),
            Cell::state(&tunnel.state),
            rtt.into(),
            tunnel.loss_percent.map_or_else(|| "-".to_owned(), loss).into(),
            tunnel.transport.clone().into(),
            tunnel.tls_version.as_deref().unwrap_or("-").into(),
            u64::from(tunnel.connections).into(),
        ]);
    }
    table
}

/// Never 0 unless nothing was lost.
fn loss(percent: f64) -> String {
    match percent {
        0.0 => "0%".to_owned(),
        ..0.01 => "<0.01%".to_owned(),
        _ => format!("{percent:.2}%"),
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

/// Zero says that a number is not known, where none can be zero.
fn some<N: Default + PartialEq>(number: N) -> Option<N> {
    (number != N::default()).then_some(number)
}

/// `cluster/gateway`, whether or not the name already has its cluster in front.
pub(crate) fn qualified(cluster: &str, gateway: &str) -> String {
    if gateway.contains('/') { gateway.to_owned() } else { format!("{cluster}/{gateway}") }
}

fn url(address: &str, path: &str) -> String {
    if address.is_empty() { String::new() } else { format!("http://{address}{path}") }
}

#[cfg(test)]
mod tests;
