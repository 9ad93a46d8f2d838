//! Metrics and the access log. Workers count in memory of their own; shared memory sees sums four times a second.

pub mod access_log;
mod events;
pub mod flows;
mod latency;
mod level;
mod loss;
pub mod metrics;
mod name;
mod requests;
mod series;
mod serving;
mod tunnels;
mod vitals;

pub use access_log::AccessLog;
pub use latency::Latencies;
pub use level::{NOT_COUNTED, Telemetry};
pub use metrics::{GatewayMetrics, WorkerMetrics};
pub use name::{Name, Names};
pub use serving::ServingShown;
pub use vitals::Vitals;
