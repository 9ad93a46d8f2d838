//! What Prometheus and Grafana need for Archipelago: where to scrape, the rules, the dashboards.
//!
//! Dashboards are made here, from panels that know their own rules, rather than kept as thousands of lines of JSON that nobody can
//! review. What is made is checked in all the same (`dashboards/`, and the chart's templates), so that it can be used without this
//! crate, and a test holds the two together: `UPDATE=1 cargo test -p archipelago-observability` writes them anew. Rules are YAML
//! written by hand (`rules/`), with their own tests beside them.

pub mod dashboard;
pub mod dashboards;
pub mod manifests;
pub mod prometheus;

/// The recording rules, as Prometheus reads them.
pub const RECORDING_RULES: &str = include_str!("../rules/recording.yaml");
/// The alerting rules, as Prometheus reads them.
pub const ALERTING_RULES: &str = include_str!("../rules/alerts.yaml");

/// Jobs by which the processes are scraped; dashboards and rules know them by these names.
pub mod job {
    /// Gateways.
    pub const GATEWAY: &str = "archipelago-gateway";
    /// Agents.
    pub const AGENT: &str = "archipelago-agent";
    /// Members of the control plane.
    pub const CONTROL_PLANE: &str = "archipelago-control-plane";
}
