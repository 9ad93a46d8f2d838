//! Requests as metrics: a counter and a histogram for each label set, which are a closed number.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use archipelago_base::metrics::Native;
use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::exchange::books::Reporter;
use crate::exchange::grpc::Status;
use crate::telemetry::Name;
use crate::telemetry::series::Series;

/// Labels as a worker knows them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) reporter: Reporter,
    pub(super) source: Name,
    pub(super) destination: Option<Name>,
    pub(super) service: Option<Name>,
    pub(super) code: u16,
    pub(super) grpc: Option<Status>,
    pub(super) flags: &'static str,
}

/// The same as text, equal for all workers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    pub(super) reporter: Reporter,
    pub(super) source: Box<str>,
    pub(super) destination: Box<str>,
    pub(super) service: Box<str>,
    pub(super) code: u16,
    pub(super) grpc: Option<Status>,
    pub(super) flags: &'static str,
}

impl Labels {
    pub(super) fn of(key: &Key) -> Self {
        let or_unknown = |name: &Option<Name>| name.as_deref().unwrap_or("unknown").into();
        Self {
            reporter: key.reporter,
            source: (*key.source).into(),
            destination: or_unknown(&key.destination),
            service: or_unknown(&key.service),
            code: key.code,
            grpc: key.grpc,
            flags: key.flags,
        }
    }

    /// Without names: for what there is no room for, so that sums stay true.
    pub(super) fn nameless(self) -> Self {
        Self { source: OTHER.into(), destination: OTHER.into(), service: OTHER.into(), ..self }
    }

    fn encoded(&self) -> Vec<(&'static str, String)> {
        let mut labels = vec![
            ("reporter", self.reporter.label().to_owned()),
            ("source_cluster", self.source.to_string()),
            ("destination_cluster", self.destination.to_string()),
            ("destination_service", self.service.to_string()),
            ("response_code", code_text(self.code)),
            ("response_flags", if self.flags.is_empty() { "-" } else { self.flags }.to_owned()),
        ];
        // Only calls have one: to Prometheus a label without a value is none.
        labels.extend(self.grpc.map(|status| ("grpc_response_status", status.label().to_owned())));
        labels
    }
}

/// A status that has a name (RFC 9110 and IANA's registry) as it is; of any other only its class: services may answer with any of
/// 900 codes, and some would. 0: there was none.
pub(super) fn folded(code: u16) -> u16 {
    match StatusCode::from_u16(code) {
        Ok(status) if status.canonical_reason().is_none() => (code / 100).min(UNKNOWN_CLASS),
        _ => code,
    }
}

/// The label's value for what [`folded`] gives.
pub(super) fn code_text(code: u16) -> String {
    match code {
        1..UNKNOWN_CLASS => format!("{code}xx"),
        UNKNOWN_CLASS => OTHER.to_owned(),
        _ => code.to_string(),
    }
}

/// All workers' requests, as scrapers see them.
#[derive(Debug, Default)]
pub(super) struct Requests(pub(super) Mutex<HashMap<Labels, Series, foldhash::fast::RandomState>>);

impl Requests {
    /// See [`archipelago_base::metrics::Exemplars`].
    pub(super) fn exemplars(&self) -> HashMap<String, String> {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::new();
        for (key, series) in series.iter().filter(|(_, series)| series.has_exemplars()) {
            let labels: Vec<_> = key.encoded().iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            for (upper, exemplar) in series.exemplars() {
                let sample = format!("{DURATION}_bucket{{le=\"{upper}\",{}}}", labels.join(","));
                all.insert(sample, exemplar.to_string());
            }
        }
        all
    }
}

impl Requests {
    /// See [`Native`].
    pub(super) fn natives(&self) -> HashMap<String, Native> {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        series.iter().map(|(labels, series)| (Native::key(DURATION, &labels.encoded()), series.native())).collect()
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "Label sets of mesh_requests_total here; beyond 20,000, names become \"other\"";
        let many = encoder.encode_descriptor("mesh_gateway_request_series", help, None, MetricType::Gauge)?;
        ConstGauge::new(series.len() as u64).encode(many)?;
        let mut counts = encoder.encode_descriptor("mesh_requests", "Requests finished", None, MetricType::Counter)?;
        for (key, series) in &series {
            ConstCounter::new(series.count()).encode(counts.encode_family(&key.encoded())?)?;
        }
        let mut durations = encoder.encode_descriptor(
            DURATION,
            "From the head of the request to the end of the response",
            None,
            MetricType::Histogram,
        )?;
        for (key, series) in &series {
            let buckets = series.buckets();
            let labels = key.encoded();
            let mut metric = durations.encode_family(&labels)?;
            metric.encode_histogram::<prometheus_client::encoding::NoLabelSet>(
                series.seconds(),
                series.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

const DURATION: &str = "mesh_request_duration_seconds";
/// 1,000 services × a few clusters × a few codes.
pub(super) const SERIES_MAX: usize = 20_000;
/// Classes 1xx to 5xx are known.
const UNKNOWN_CLASS: u16 = 6;
pub(super) const OTHER: &str = "other";
