//! Events that workers count: each in counters of its own, added up when somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::exchange::books::{Hedge, Reporter};
use crate::exchange::failure::Failure;

/// What is counted, in the order in which it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// An attempt beyond the first, by purpose and reason.
    Replay,
    /// A request that the gateway answered itself, by reason.
    Failure,
    /// A request that was asked of a second endpoint beside one that hung, by whose answer counted.
    Hedge,
    /// A request whose head was refused, by reason.
    RefusedHead,
    /// A connection or request of a client that has as many as it may, by what it is.
    RefusedClient,
    /// A response cut because its client took nothing of it, by protocol.
    Stalled,
    /// An exchange that was cut because somebody was too slow, by who and with what.
    Cut,
    /// A peer changed its state, by state.
    Verdict,
    /// A stream out of a tunnel that may not be forwarded, by reason.
    RefusedStream,
    /// A TCP connection, by reporter.
    TcpOpened,
    /// Bytes of TCP connections, by direction.
    TcpBytes,
}

/// All workers' counters.
#[derive(Debug, Default)]
pub struct Events(Mutex<Vec<Arc<Counts>>>);

/// One worker's counters, by event and the values of its labels. Its lock is contended only while somebody asks.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<(Event, [&'static str; 2]), u64>>);

impl Events {
    /// Counters for one more worker.
    pub fn of_worker(&self) -> Arc<Counts> {
        let counts = Arc::<Counts>::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counts));
        counts
    }
}

impl Counts {
    /// Counts `by` more. An event with one label leaves the second value empty.
    pub fn add(&self, event: Event, labels: [&'static str; 2], by: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((event, labels)).or_default() += by;
    }
}

impl Event {
    fn describe(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::Replay => ("mesh_gateway_replays", "Attempts beyond the first", &["purpose", "reason"]),
            Self::Failure => ("mesh_gateway_failures", "Requests that the gateway answered itself", &["reason"]),
            Self::Hedge => (
                "mesh_gateway_hedges",
                "Requests that were asked of a second endpoint beside one that hung, by whose answer counted",
                &["answered"],
            ),
            Self::RefusedHead => ("mesh_gateway_refused_heads", "Requests whose head was refused", &["reason"]),
            Self::RefusedClient => (
                "mesh_gateway_clients_refused",
                "Connections and requests refused because their client had as many as it may",
                &["what"],
            ),
            Self::Stalled => (
                "mesh_gateway_clients_stalled",
                "Responses cut because their client took nothing of them",
                &["protocol"],
            ),
            Self::Cut => (
                "mesh_gateway_exchanges_cut",
                "Requests and responses cut because a client or an endpoint was too slow, by who and with what",
                &["why"],
            ),
            Self::Verdict => ("mesh_gateway_detector_verdicts", "Changes of a peer's state", &["state"]),
            Self::RefusedStream => {
                ("mesh_gateway_refused_streams", "Streams of other gateways that the authoriser refused", &["reason"])
            }
            Self::TcpOpened => ("mesh_tcp_connections_opened", "TCP connections proxied", &["reporter"]),
            Self::TcpBytes => (
                "mesh_tcp_bytes",
                "Bytes of proxied TCP connections towards services (sent) and from them (received), as they pass",
                &["direction"],
            ),
        }
    }
}

impl Event {
    /// Series that are there from the start, so that the first of a kind is seen as an increase: those that can be listed.
    fn expected(self) -> Vec<[&'static str; 2]> {
        let first = |values: &[&'static str]| values.iter().map(|value| [*value, ""]).collect();
        match self {
            Self::Failure => first(&Failure::EACH.map(Failure::reason)),
            Self::Hedge => first(&[Hedge::First, Hedge::Second, Hedge::None].map(Hedge::label)),
            Self::RefusedClient => first(&["connection", "request"]),
            Self::Stalled => first(&["http1", "http2"]),
            Self::Verdict => first(&["up", "draining", "dialing", "suspect", "dead"]),
            Self::TcpOpened => first(&[Reporter::Source, Reporter::Destination].map(Reporter::label)),
            Self::TcpBytes => first(&["sent", "received"]),
            Self::Replay | Self::RefusedHead | Self::RefusedStream | Self::Cut => Vec::new(),
        }
    }

    const ALL: [Self; 11] = [
        Self::Replay,
        Self::Failure,
        Self::Hedge,
        Self::RefusedHead,
        Self::RefusedClient,
        Self::Stalled,
        Self::Cut,
        Self::Verdict,
        Self::RefusedStream,
        Self::TcpOpened,
        Self::TcpBytes,
    ];
}

impl Collector for Events {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut sums: BTreeMap<Event, BTreeMap<[&'static str; 2], u64>> = BTreeMap::new();
        for event in Event::ALL {
            sums.insert(event, event.expected().into_iter().map(|labels| (labels, 0)).collect());
        }
        for worker in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for ((event, labels), count) in worker.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                *sums.entry(*event).or_default().entry(*labels).or_default() += count;
            }
        }
        for (event, series) in sums {
            let (name, help, names) = event.describe();
            let mut counters = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (values, count) in series {
                let labels: Vec<(&str, &str)> = names.iter().copied().zip(values).collect();
                ConstCounter::new(count).encode(counters.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_added_up() {
        let events = Arc::<Events>::default();
        let (one, other) = (events.of_worker(), events.of_worker());
        one.add(Event::Failure, [Failure::Timeout.reason(), ""], 1);
        other.add(Event::Failure, ["timeout", ""], 2);
        other.add(Event::Failure, ["no-healthy-upstream", ""], 1);
        other.add(Event::Replay, ["retry", "endpoint_broken"], 1);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(Arc::clone(&events)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0")).collect();
        assert!(text.contains("mesh_tcp_bytes_total{direction=\"sent\"} 0\n"), "from the start:\n{text}");
        assert_eq!(
            series,
            [
                r#"mesh_gateway_replays_total{purpose="retry",reason="endpoint_broken"} 1"#,
                r#"mesh_gateway_failures_total{reason="no-healthy-upstream"} 1"#,
                r#"mesh_gateway_failures_total{reason="timeout"} 3"#,
            ]
        );
    }
}
