//! What the agent counts.

use std::sync::Arc;

use archipelago_base::metrics::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::view::View;
use crate::health::{Health, driver::Observer};

/// Handles to every metric; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) watchers: Gauge,
    pub(super) connected: Gauge,
    services: Gauge,
    endpoints: Family<StateLabel, Gauge>,
    checks: Family<ResultLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            watchers: Gauge::default(),
            connected: Gauge::default(),
            services: Gauge::default(),
            endpoints: Family::default(),
            checks: Family::default(),
        }
    }

    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        registry.register("mesh_agent_watchers", "Gateways that watch the endpoints", self.watchers.clone());
        let help = "1 while the stream to the control plane is open";
        registry.register("mesh_agent_control_plane_connected", help, self.connected.clone());
        registry.register("mesh_agent_services", "Services in the service files", self.services.clone());
        registry.register("mesh_agent_endpoints", "Endpoints by state", self.endpoints.clone());
        registry.register("mesh_agent_health_checks", "Health checks by result", self.checks.clone());
        registry
    }

    /// Counts the answers of health checks.
    pub(super) fn observer(&self) -> Observer {
        let checks = self.checks.clone();
        Arc::new(move |answer: Result<(), &'static str>| {
            let result = answer.err().unwrap_or("ok");
            checks.get_or_create(&ResultLabel { result }).inc();
        })
    }

    pub(super) fn viewed(&self, view: &View) {
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let count = |wanted: fn(Health) -> bool| -> u64 {
            view.services.values().map(|shown| u64::from(shown.count(wanted))).sum()
        };
        let total = count(|_| true);
        let ready = count(|health| health == Health::Ready);
        let unknown = count(|health| health == Health::Unknown);
        self.services.set(i64::try_from(view.services.len()).unwrap_or(i64::MAX));
        self.endpoints.get_or_create(&StateLabel { state: "ready" }).set(gauge(ready));
        self.endpoints.get_or_create(&StateLabel { state: "unknown" }).set(gauge(unknown));
        let down = total.saturating_sub(ready).saturating_sub(unknown);
        self.endpoints.get_or_create(&StateLabel { state: "not_ready" }).set(gauge(down));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_is_the_documented_one() {
        let metrics = Metrics::new();
        metrics.observer()(Ok(()));
        metrics.observer()(Err("timeout"));
        metrics.viewed(&View::default());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let mut sorted = samples.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            [
                "mesh_agent_control_plane_connected 0",
                "mesh_agent_endpoints{state=\"not_ready\"} 0",
                "mesh_agent_endpoints{state=\"ready\"} 0",
                "mesh_agent_endpoints{state=\"unknown\"} 0",
                "mesh_agent_health_checks_total{result=\"ok\"} 1",
                "mesh_agent_health_checks_total{result=\"timeout\"} 1",
                "mesh_agent_services 0",
                "mesh_agent_watchers 0",
            ]
        );
    }
}
