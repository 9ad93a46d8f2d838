//! How a gateway is: what is under way and how much may be, and whether it follows the control plane.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::worker::Limits;
use crate::worker::command::Report;

/// Gauges that are set once a second.
#[derive(Debug, Clone, Default)]
pub struct Vitals {
    requests: Gauge,
    requests_limit: Gauge,
    connections_limit: Family<[(&'static str, &'static str); 1], Gauge>,
    /// 1 while the stream to the control plane is open.
    pub connected: Gauge,
    /// Resources of the configuration that cannot be used here.
    pub unusable: Gauge,
}

impl Vitals {
    /// Declares them in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        for (name, help, gauge) in [
            ("mesh_gateway_requests_in_flight", "Requests under way", &this.requests),
            ("mesh_gateway_requests_limit", "Requests that may be under way on all workers", &this.requests_limit),
            (
                "mesh_gateway_control_plane_connected",
                "1 while the stream to the control plane is open",
                &this.connected,
            ),
            (
                "mesh_gateway_resources_unusable",
                "Resources of the configuration in use that cannot be used here",
                &this.unusable,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "mesh_gateway_connections_limit",
            "Connections that may be open on all workers",
            this.connections_limit.clone(),
        );
        this
    }

    /// How much `workers` workers may carry.
    pub fn limits(&self, limits: &Limits, workers: usize) {
        let all = |each: usize| whole(each.saturating_mul(workers));
        self.requests_limit.set(all(limits.requests_max));
        self.connections_limit.get_or_create(&[("protocol", "http")]).set(all(limits.connections_max));
        self.connections_limit.get_or_create(&[("protocol", "tcp")]).set(all(limits.tcp_connections_max));
    }

    /// What the workers say.
    pub fn observe(&self, reports: &[Report]) {
        self.requests.set(whole(reports.iter().map(|report| report.requests).sum()));
    }
}

/// A count as a gauge holds it.
pub(super) fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
