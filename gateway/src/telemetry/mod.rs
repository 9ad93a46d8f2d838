//! Metrics and the access log. Workers count in memory of their own; shared memory sees sums four times a second.

pub mod access_log;
pub mod metrics;

pub use access_log::AccessLog;
pub use metrics::{GatewayMetrics, WorkerMetrics};
