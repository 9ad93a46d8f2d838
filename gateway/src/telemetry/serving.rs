//! Where services could be served from now, as metrics: what the journal knows of them, asked when somebody looks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::journal::Journal;

/// All of them.
#[derive(Debug)]
pub struct ServingShown(Journal);

impl ServingShown {
    /// Of what `journal` knows.
    pub fn new(journal: Journal) -> Self {
        Self(journal)
    }
}

impl Collector for ServingShown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let services: Vec<_> = self.0.services().take(SERVICES_MAX).collect();
        let help = "Endpoints that could serve now, by cluster, as this gateway sees it";
        let mut ready = encoder.encode_descriptor("mesh_service_endpoints_ready", help, None, MetricType::Gauge)?;
        for (service, standing) in &services {
            for (cluster, count) in &standing.ready {
                let labels = [("destination_service", &**service), ("destination_cluster", &**cluster)];
                ConstGauge::new(*count).encode(ready.encode_family(&labels)?)?;
            }
        }
        let help = "1 while nothing of a service's first choice can serve, by the rule that takes all other requests";
        let mut failover = encoder.encode_descriptor("mesh_service_failover_active", help, None, MetricType::Gauge)?;
        for (service, standing) in &services {
            let labels = [("destination_service", &**service)];
            ConstGauge::new(i64::from(standing.failed_over)).encode(failover.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Ports of services, each with a series per cluster that has it.
const SERVICES_MAX: usize = 10_000;
