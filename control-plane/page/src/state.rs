//! What a page is shown: the federation as one member sees it. `assets/js/contract.d.ts` says what each field means to a reader.
//!
//! `None` is "not known" or "there is none", never zero.
#![expect(missing_docs, reason = "the contract says what each field is")]

use serde::Serialize;

/// The whole of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub taken_unix_ms: i64,
    pub federation: String,
    pub member: u64,
    pub revision: u64,
    pub members: Vec<Member>,
    pub clusters: Vec<Cluster>,
    pub links: Vec<Link>,
    pub services: Vec<Service>,
    pub services_left_off: usize,
    pub rollout: Rollout,
    pub certificates: Vec<Certificate>,
    pub events: Vec<Event>,
    pub slowest: Option<Vec<SlowRequest>>,
    pub window_seconds: Option<f64>,
    pub missing: Vec<Missing>,
}

/// What a part of the state lacks, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Missing {
    pub about: About,
    pub who: String,
    pub why: String,
}

/// Parts of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    Traffic,
    Slowest,
    Events,
    Members,
    Tunnels,
}

/// A member of the control plane.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub id: u64,
    pub name: String,
    pub role: String,
    pub address: String,
    pub term: Option<u64>,
    pub applied_index: Option<u64>,
    pub problem: Option<String>,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    pub name: String,
    pub region: String,
    pub state: String,
    pub agent: String,
    pub gateways: Vec<Gateway>,
    pub entering: Option<Rate>,
    pub serving: Option<Rate>,
    pub problems: Vec<String>,
}

/// A gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    pub name: String,
    pub key: String,
    pub state: String,
    pub revision: Option<u64>,
    pub last_seen_unix_ms: Option<i64>,
    pub software_version: Option<String>,
    pub workers: Option<u32>,
    pub error: Option<String>,
    pub problems: Vec<String>,
}

/// How many requests there are, and how they end.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    pub requests_per_second: f64,
    pub success_percent: Option<f64>,
    pub p50_micros: Option<u64>,
    pub p99_micros: Option<u64>,
}

/// What is between two clusters.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    pub a: String,
    pub b: String,
    pub state: LinkState,
    pub tunnels: usize,
    pub tunnels_up: usize,
    pub rtt_micros: Option<u64>,
    pub loss_percent: Option<f64>,
    pub transports: Vec<String>,
    pub a_to_b: Option<Rate>,
    pub b_to_a: Option<Rate>,
    pub broken: Vec<String>,
}

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    Up,
    Degraded,
    Down,
    #[serde(rename = "not reported")]
    NotReported,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    pub name: String,
    pub hosts: Vec<String>,
    pub ports: Vec<Port>,
    pub headless: bool,
    pub state: ServiceState,
    pub clusters: Vec<ServiceCluster>,
    pub rate: Option<Rate>,
    pub flows: Option<Vec<Flow>>,
    pub versions: Option<Vec<VersionShare>>,
    pub split: Option<Split>,
    pub failover: Option<Failover>,
    pub reasons: Vec<Reason>,
}

/// What clients of a service can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    Ready,
    Degraded,
    Down,
    Unknown,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    pub name: String,
    pub port: u32,
    pub protocol: String,
    pub clusters: Vec<String>,
}

/// A cluster that has a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceCluster {
    pub cluster: String,
    pub state: String,
    pub ready: u32,
    pub total: u32,
    pub unknown: u32,
    pub versions: Vec<String>,
    pub weight_percent: Option<f64>,
    pub last_failure: Option<String>,
}

/// Requests from where they enter to where they are served.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    pub from: String,
    pub to: Option<String>,
    pub rate: Rate,
    pub share_percent: f64,
}

/// Requests that a version serves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionShare {
    pub cluster: String,
    pub version: Option<String>,
    pub rate: Rate,
    pub share_percent: f64,
}

/// A share of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    pub cluster: String,
    pub version: Option<String>,
    pub weight: u32,
    pub share_percent: f64,
}

/// A TrafficSplit.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    pub name: String,
    pub revision: u64,
    pub origin: Option<String>,
    pub sticky: Option<String>,
    pub routes: Vec<SplitRoute>,
    pub backends: Vec<Backend>,
    pub can_undo: bool,
}

/// Requests that a split singles out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitRoute {
    #[serde(rename = "match")]
    pub matches: String,
    pub backends: Vec<Backend>,
}

/// A FailoverPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failover {
    pub name: String,
    pub revision: u64,
    pub origin: Option<String>,
    pub order: Vec<String>,
    pub avoid: Vec<String>,
    pub residency: Option<Vec<String>>,
    pub failback: &'static str,
}

/// Why traffic is not where it would be otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    pub since_unix_ms: Option<i64>,
    pub severity: Severity,
    pub reason: String,
    pub text: String,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// How far the current revision got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rollout {
    pub revision: u64,
    pub expected: u32,
    pub acknowledged: u32,
    pub lagging: Vec<Lagging>,
    pub rejected: Vec<Rejected>,
}

/// A gateway that does not have a revision yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lagging {
    pub gateway: String,
    pub why: String,
}

/// A gateway that cannot use a revision as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    pub gateway: String,
    pub resource: Option<String>,
    pub why: String,
}

/// A certificate in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    pub who: String,
    pub expires_unix_ms: i64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub key: String,
    pub unix_ms: i64,
    pub first_unix_ms: i64,
    pub count: u32,
    pub severity: Severity,
    pub kind: String,
    pub reason: String,
    pub message: String,
    pub service: Option<String>,
    pub cluster: Option<String>,
    pub gateway: Option<String>,
    pub subject: Option<String>,
    pub actor: Option<String>,
    pub revision: Option<u64>,
    pub source: String,
}

/// One of the slowest requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowRequest {
    pub service: String,
    pub total_micros: u64,
    pub ended_unix_ms: i64,
    pub status: Option<u32>,
    pub flags: String,
    pub from: String,
    pub cluster: Option<String>,
    pub endpoint: Option<String>,
    pub method: String,
    pub path: String,
    pub trace_id: Option<String>,
    pub hops: Option<Vec<Hop>>,
}

/// A part of a request's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    pub hop: String,
    pub at: Option<String>,
    pub micros: u64,
}
