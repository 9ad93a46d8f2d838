//! Where services could be served from now, as metrics.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// One service, as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Its key.
    pub service: String,
    /// Ready endpoints by cluster, of those that export it, and of our own.
    pub ready: Vec<(String, u64)>,
    /// No cluster or version that a request of no other rule should go to can serve.
    pub failed_over: bool,
}

/// All of them, as last collected.
#[derive(Debug, Default)]
pub struct ServingShown(Mutex<Vec<Serving>>);

impl ServingShown {
    /// Replaces them.
    pub fn set(&self, mut serving: Vec<Serving>) {
        serving.truncate(SERVICES_MAX);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = serving;
    }
}

impl Collector for ServingShown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let services = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "Endpoints that could serve now, by cluster, as this gateway sees it; at most 2 seconds old";
        let mut ready = encoder.encode_descriptor("mesh_service_endpoints_ready", help, None, MetricType::Gauge)?;
        for service in &services {
            for (cluster, count) in &service.ready {
                let labels = [("destination_service", &*service.service), ("destination_cluster", &**cluster)];
                ConstGauge::new(*count).encode(ready.encode_family(&labels)?)?;
            }
        }
        let help = "1 while nothing of a service's first choice can serve, by the rule that takes all other requests";
        let mut failover = encoder.encode_descriptor("mesh_service_failover_active", help, None, MetricType::Gauge)?;
        for service in &services {
            let labels = [("destination_service", &*service.service)];
            ConstGauge::new(i64::from(service.failed_over)).encode(failover.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Ports of services, each with a series per cluster that has it.
const SERVICES_MAX: usize = 10_000;
