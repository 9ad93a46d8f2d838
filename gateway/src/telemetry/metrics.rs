//! Every metric of a gateway. Labels come from closed sets: configuration, status codes, enums; never paths or addresses.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use archipelago_base::metrics::{Exemplars, Natives};
use archipelago_proto::v1::TunnelStatus;
use archipelago_tunnel::TunnelStats;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::authorize::Refusal;
use crate::balance::budget::Purpose;
use crate::exchange::books::{Done, Hedge, Reporter};
use crate::exchange::failure::{Cut, Failure};
use crate::telemetry::events::{Counts, Event, Events};
use crate::telemetry::flows::{Between, Carried, WorkerFlows};
use crate::telemetry::latency::{Latencies, WorkerLatencies};
use crate::telemetry::requests::{Key, Labels, Requests, SERIES_MAX, folded};
use crate::telemetry::series::Series;
use crate::telemetry::tunnels::{TrafficShown, Tunnels};
use crate::telemetry::vitals::Vitals;
use crate::visitors::Full;
use archipelago_http::h1::Refusal as RefusedHead;

/// The gateway's metrics, shared by all threads.
#[derive(Debug, Clone)]
pub struct GatewayMetrics {
    requests: Arc<Requests>,
    events: Arc<Events>,
    /// How long requests took, for whoever asks.
    pub latencies: Arc<Latencies>,
    tunnels: Arc<Tunnels>,
    traffic: Arc<TrafficShown>,
    /// What is under way, and how much may be.
    pub vitals: Vitals,
    refused_tunnels: Family<[(&'static str, &'static str); 1], Counter>,
    accepted_tunnels: Counter,
    failed_dials: Counter,
    rejected_requests: Counter,
    connections: Family<[(&'static str, &'static str); 1], Gauge>,
    refused_connections: Counter,
    refused_captures: Counter,
    unreachable_endpoints: Gauge,
    /// TCP services whose port cannot be had.
    pub unserved_services: Gauge,
    /// Ports for clients of the node that cannot be had.
    pub unserved_captures: Gauge,
    /// Revision of the configuration in use.
    pub config_revision: Gauge<i64, AtomicI64>,
    /// Configurations refused.
    pub config_rejected: Counter,
    /// Lines of the access log that a slow writer lost.
    pub access_log_dropped: Counter,
}

impl GatewayMetrics {
    /// Declares everything in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self {
            requests: Arc::default(),
            events: Arc::default(),
            latencies: Arc::new(Latencies::new(rand::random())),
            tunnels: Arc::default(),
            traffic: Arc::default(),
            vitals: Vitals::register(registry),
            refused_tunnels: Family::default(),
            accepted_tunnels: Counter::default(),
            failed_dials: Counter::default(),
            rejected_requests: Counter::default(),
            connections: Family::default(),
            refused_connections: Counter::default(),
            refused_captures: Counter::default(),
            unreachable_endpoints: Gauge::default(),
            unserved_services: Gauge::default(),
            unserved_captures: Gauge::default(),
            config_revision: Gauge::default(),
            config_rejected: Counter::default(),
            access_log_dropped: Counter::default(),
        };
        for refusal in Refusal::ALL {
            drop(this.refused_tunnels.get_or_create(&[("reason", refusal.reason())]));
        }
        registry.register_collector(Box::new(Arc::clone(&this.requests)));
        registry.register_collector(Box::new(Arc::clone(&this.events)));
        registry.register_collector(Box::new(Arc::clone(&this.tunnels)));
        registry.register_collector(Box::new(Arc::clone(&this.traffic)));
        registry.register(
            "mesh_gateway_tunnel_refused",
            "Handshakes refused and tunnels closed",
            this.refused_tunnels.clone(),
        );
        registry.register(
            "mesh_gateway_tunnel_accepted",
            "Tunnels that other gateways opened",
            this.accepted_tunnels.clone(),
        );
        registry.register(
            "mesh_gateway_tunnel_dial_failures",
            "Attempts to dial another gateway that failed",
            this.failed_dials.clone(),
        );
        registry.register(
            "mesh_gateway_tunnel_requests_rejected",
            "Requests out of tunnels that came when too many waited",
            this.rejected_requests.clone(),
        );
        registry.register("mesh_gateway_connections", "Connections open", this.connections.clone());
        registry.register(
            "mesh_gateway_connections_refused",
            "Connections closed at once because there were too many",
            this.refused_connections.clone(),
        );
        registry.register(
            "mesh_gateway_captures_refused",
            "Connections to the ports of the node's clients that came from elsewhere",
            this.refused_captures.clone(),
        );
        registry.register(
            "mesh_gateway_endpoints_unreachable",
            "Endpoints to which no connection comes about, as each worker sees them",
            this.unreachable_endpoints.clone(),
        );
        registry.register(
            "mesh_gateway_captures_unserved",
            "Ports for the node's clients that cannot be had here",
            this.unserved_captures.clone(),
        );
        registry.register(
            "mesh_gateway_tcp_services_unserved",
            "TCP services whose port cannot be had here",
            this.unserved_services.clone(),
        );
        registry.register(
            "mesh_gateway_config_revision",
            "Revision of the configuration in use",
            this.config_revision.clone(),
        );
        registry.register("mesh_gateway_config_rejected", "Configurations refused", this.config_rejected.clone());
        registry.register(
            "mesh_gateway_access_log_dropped",
            "Lines that a slow access log lost",
            this.access_log_dropped.clone(),
        );
        this
    }

    /// Replaces the state of the tunnels.
    pub fn set_tunnels(&self, tunnels: Vec<TunnelStatus>) {
        self.tunnels.set(tunnels, std::time::Instant::now());
    }

    /// Which traces are examples of which samples; see [`archipelago_base::metrics::Exemplars`].
    pub fn exemplars(&self) -> Exemplars {
        let requests = Arc::clone(&self.requests);
        Arc::new(move || requests.exemplars())
    }

    /// Native histograms of requests; see [`archipelago_base::metrics::Native`].
    pub fn natives(&self) -> Natives {
        let requests = Arc::clone(&self.requests);
        Arc::new(move || requests.natives())
    }

    /// The state of the tunnels as last collected.
    pub fn tunnels(&self) -> Vec<TunnelStatus> {
        self.tunnels.get()
    }

    /// Says to which cluster the gateway belongs.
    pub fn set_cluster(&self, cluster: &str) {
        self.traffic.set_cluster(cluster);
    }
}

/// One worker's hand on the metrics.
#[derive(Debug)]
pub struct WorkerMetrics {
    shared: GatewayMetrics,
    requests: RefCell<HashMap<Key, Series, foldhash::fast::RandomState>>,
    events: Arc<Counts>,
    latencies: WorkerLatencies,
    flows: WorkerFlows,
    http_connections: Gauge,
    tcp_open: Gauge,
    /// What this worker has added to the gauge of all.
    unreachable_endpoints: Cell<i64>,
}

impl WorkerMetrics {
    /// For one worker.
    pub fn new(shared: &GatewayMetrics) -> Self {
        let open = |protocol| shared.connections.get_or_create(&[("protocol", protocol)]).clone();
        Self {
            requests: RefCell::default(),
            events: shared.events.of_worker(),
            latencies: WorkerLatencies::new(&shared.latencies),
            flows: WorkerFlows::default(),
            http_connections: open("http"),
            tcp_open: open("tcp"),
            unreachable_endpoints: Cell::default(),
            shared: shared.clone(),
        }
    }

    /// Counts a finished request.
    pub fn request(&self, done: &Done<'_>) {
        self.latencies.record(done);
        let record = &done.record;
        let key = Key {
            reporter: record.reporter,
            source: record.source_cluster.clone(),
            destination: record.destination_cluster.clone(),
            service: record.service.clone(),
            code: folded(record.code),
            grpc: record.grpc.status(),
            flags: record.flags,
        };
        let trace = record.trace.as_deref().map(|trace| trace.trace_id);
        self.requests.borrow_mut().entry(key).or_default().observe(done.duration, trace);
    }

    /// Adds what was counted since the last time to what the scraper sees.
    pub fn flush(&self) {
        self.flush_latencies();
        let mut local = self.requests.borrow_mut();
        if local.is_empty() {
            return;
        }
        let mut shared = match self.shared.requests.0.try_lock() {
            Ok(shared) => shared,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A scrape copies it, or another worker is at it: next time, since clients must not wait for either.
            Err(TryLockError::WouldBlock) => return,
        };
        for (key, series) in local.drain() {
            let mut labels = Labels::of(&key);
            if shared.len() >= SERIES_MAX && !shared.contains_key(&labels) {
                labels = labels.nameless();
            }
            shared.entry(labels).or_default().add(series);
        }
    }

    /// Hands over how long requests took and what TCP connections did, for whoever asks now.
    pub fn flush_latencies(&self) {
        self.latencies.flush();
        if self.flows.is_empty() {
            return;
        }
        self.latencies.flush_flows(|| {
            let (flows, [sent, received]) = self.flows.take();
            self.events.add(Event::TcpBytes, ["sent", ""], sent);
            self.events.add(Event::TcpBytes, ["received", ""], received);
            flows
        });
    }

    /// Somebody has taken a TCP connection, after so long.
    pub fn tcp_connected(&self, between: Between, took: Duration) -> Carried {
        self.flows.connected(between, took)
    }

    /// Nobody took a TCP connection.
    pub fn tcp_failed(&self, between: Between) {
        self.flows.failed(between);
    }

    /// An attempt was begun beside one that hung.
    pub fn hedge(&self, hedge: Hedge) {
        self.events.add(Event::Hedge, [hedge.label(), ""], 1);
    }

    /// An attempt beyond the first.
    pub fn replay(&self, purpose: Purpose, reason: &'static str) {
        let purpose = if purpose == Purpose::Failover { "failover" } else { "retry" };
        self.events.add(Event::Replay, [purpose, reason], 1);
    }

    /// A request that the gateway answered itself.
    pub fn failure(&self, failure: Failure) {
        self.events.add(Event::Failure, [failure.reason(), ""], 1);
        if failure == Failure::ClientLimit {
            self.client_refused("request");
        }
    }

    /// A request whose head was refused.
    pub fn refused_head(&self, refusal: RefusedHead) {
        self.events.add(Event::RefusedHead, [refusal.reason(), ""], 1);
    }

    /// A stream out of a tunnel that may not be forwarded.
    pub fn refused_stream(&self, refusal: Refusal) {
        self.events.add(Event::RefusedStream, [refusal.reason(), ""], 1);
    }

    /// What happened to a worker's tunnels between two looks at them.
    pub fn tunnels(&self, before: &TunnelStats, now: &TunnelStats) {
        for (reason, count) in &now.refused {
            let seen = before.refused.get(reason).copied().unwrap_or(0);
            self.shared.refused_tunnels.get_or_create(&[("reason", *reason)]).inc_by(count.saturating_sub(seen));
        }
        self.shared.accepted_tunnels.inc_by(now.accepted.saturating_sub(before.accepted));
        self.shared.failed_dials.inc_by(now.failed_dials.saturating_sub(before.failed_dials));
        self.shared.rejected_requests.inc_by(now.rejected_requests.saturating_sub(before.rejected_requests));
        self.shared.traffic.add(before, now);
    }

    /// A peer changed its state.
    pub fn verdict(&self, state: &'static str) {
        self.events.add(Event::Verdict, [state, ""], 1);
    }

    /// An HTTP connection, open until the guard is dropped.
    pub fn http_connection(&self) -> OpenGuard {
        OpenGuard::new(&self.http_connections)
    }

    /// A TCP connection, open until the guard is dropped.
    pub fn tcp_connection(&self, reporter: Reporter) -> OpenGuard {
        self.events.add(Event::TcpOpened, [reporter.label(), ""], 1);
        OpenGuard::new(&self.tcp_open)
    }

    /// A "connection" or "request" of a client that has as many as it may.
    fn client_refused(&self, what: &'static str) {
        self.events.add(Event::RefusedClient, [what, ""], 1);
    }

    /// A response was cut because its client took nothing of it.
    pub fn stalled(&self, protocol: &'static str) {
        self.events.add(Event::Stalled, [protocol, ""], 1);
        self.cut(Cut::ClientDownload);
    }

    /// An exchange was cut because somebody was too slow.
    pub fn cut(&self, cut: Cut) {
        self.events.add(Event::Cut, [cut.label(), ""], 1);
    }

    /// To so many endpoints no connection comes about.
    pub fn unreachable_endpoints(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.shared.unreachable_endpoints.inc_by(count - self.unreachable_endpoints.replace(count));
    }

    /// A connection that was closed at once.
    pub fn connection_refused(&self, full: Full) {
        match full {
            Full::Gateway => drop(self.shared.refused_connections.inc()),
            Full::Client => self.client_refused("connection"),
        }
    }

    /// A client of somewhere else came where clients of the node are expected.
    pub fn capture_refused(&self) {
        self.shared.refused_captures.inc();
    }
}

/// Counts something open until dropped.
#[derive(Debug)]
pub struct OpenGuard(Gauge);

impl OpenGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::books::Record;
    use crate::exchange::grpc::Status;
    use crate::telemetry::Name;
    use crate::telemetry::requests::{OTHER, code_text};
    use std::time::Instant;

    #[test]
    fn the_text_of_metrics() {
        let mut registry = Registry::default();
        let shared = GatewayMetrics::register(&mut registry);
        let worker = WorkerMetrics::new(&shared);
        for millis in [1, 30, 20_000] {
            // Names that were made apart are one series all the same.
            let mut record = Record::new(Reporter::Source, "paris".into(), Instant::now());
            (record.destination_cluster, record.service, record.code) =
                (Some("tokyo".into()), Some("shop/checkout".into()), 200);
            worker.request(&Done {
                record: &record,
                duration: Duration::from_millis(millis),
                bytes_received: 0,
                bytes_sent: 0,
            });
        }
        worker.flush();
        worker.flush();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = r#"reporter="source",source_cluster="paris",destination_cluster="tokyo",destination_service="shop/checkout",response_code="200",response_flags="-""#;
        for line in [
            format!("mesh_requests_total{{{labels}}} 3"),
            format!("mesh_request_duration_seconds_count{{{labels}}} 3"),
            format!("mesh_request_duration_seconds_bucket{{le=\"0.001\",{labels}}} 1"),
            format!("mesh_request_duration_seconds_bucket{{le=\"0.05\",{labels}}} 2"),
            format!("mesh_request_duration_seconds_bucket{{le=\"+Inf\",{labels}}} 3"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} missing in:\n{text}");
        }
    }

    /// It would not return, if it waited.
    #[test]
    fn a_worker_does_not_wait_for_a_scrape() {
        let shared = GatewayMetrics::register(&mut Registry::default());
        let worker = WorkerMetrics::new(&shared);
        let record = Record::new(Reporter::Source, "paris".into(), Instant::now());
        let scrape = shared.requests.0.lock().unwrap();
        worker.request(&Done { record: &record, duration: Duration::ZERO, bytes_received: 0, bytes_sent: 0 });
        worker.flush();
        assert!(scrape.is_empty());
        drop(scrape);
        worker.flush();
        let requests = shared.requests.0.lock().unwrap();
        assert_eq!(requests.values().map(Series::count).sum::<u64>(), 1, "nothing is lost by that");
    }

    /// Only a sample that is there can have an exemplar, so what names it must be what prometheus-client writes.
    #[test]
    fn the_exemplars_of_metrics() {
        let mut registry = Registry::default();
        let shared = GatewayMetrics::register(&mut registry);
        let worker = WorkerMetrics::new(&shared);
        let (head, paris) = (archipelago_http::RequestHead::default(), Name::from("paris"));
        for (id, millis) in [(1, 0), (2, 1), (3, 1), (4, 30), (5, 700), (6, 5_000), (7, 20_000)] {
            let mut record = Record::new(Reporter::Source, paris.clone(), Instant::now());
            record.code = 200;
            let traced = crate::trace::Traced::new(&head, None, id, String::new(), Instant::now());
            record.trace = Some(std::rc::Rc::new(traced));
            let duration = Duration::from_millis(millis);
            worker.request(&Done { record: &record, duration, bytes_received: 0, bytes_sent: 0 });
        }
        assert!(shared.exemplars()().is_empty(), "until it is flushed");
        worker.flush();
        let exemplars = shared.exemplars()();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert_eq!(exemplars.len(), 6, "the last of each bucket: {exemplars:?}");
        assert!(!exemplars.values().any(|exemplar| exemplar.contains("000000002\"")), "{exemplars:?}");
        for sample in exemplars.keys() {
            assert!(text.lines().any(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == sample)), "{sample}");
        }
    }

    #[test]
    fn codes_without_a_name_are_counted_by_class() {
        let texts: std::collections::BTreeSet<_> =
            [0].into_iter().chain(100..=999).map(|code| code_text(folded(code))).collect();
        assert!(texts.len() < 80, "{texts:?}");
        for (code, text) in
            [(0, "0"), (200, "200"), (299, "2xx"), (429, "429"), (499, "4xx"), (600, "other"), (999, "other")]
        {
            assert_eq!(code_text(folded(code)), text);
        }
    }

    #[test]
    fn calls_have_a_status_of_their_own() {
        use crate::exchange::grpc::Grpc;
        let mut registry = Registry::default();
        let shared = GatewayMetrics::register(&mut registry);
        let worker = WorkerMetrics::new(&shared);
        let words: Vec<String> =
            (0..5_000).map(|n| n.to_string()).chain(["".into(), "\"\n".into(), "0x1".into()]).collect();
        for word in &words {
            let mut record = Record::new(Reporter::Source, "paris".into(), Instant::now());
            (record.code, record.grpc) = (200, Grpc::Status(Status::read(word.as_bytes())));
            worker.request(&Done { record: &record, duration: Duration::ZERO, bytes_received: 0, bytes_sent: 0 });
        }
        worker.flush();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let of = |status: &str| format!("response_flags=\"-\",grpc_response_status=\"{status}\"}}");
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("mesh_requests_total{")).collect();
        assert_eq!(lines.len(), 17, "{lines:?}");
        let count = |status| lines.iter().find_map(|line| line.split_once(&of(status))?.1.trim().parse().ok());
        assert_eq!((count("0"), count("14"), count("2")), (Some(1), Some(1), Some(words.len() - 16)));
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_without_names() {
        let mut registry = Registry::default();
        let shared = GatewayMetrics::register(&mut registry);
        let worker = WorkerMetrics::new(&shared);
        let extra = 50;
        for number in 0..SERIES_MAX + extra {
            let mut record = Record::new(Reporter::Source, "paris".into(), Instant::now());
            (record.service, record.code) = (Some(format!("shop/s{number}").as_str().into()), 200);
            worker.request(&Done { record: &record, duration: Duration::ZERO, bytes_received: 0, bytes_sent: 0 });
        }
        worker.flush();
        let requests = shared.requests.0.lock().unwrap();
        assert_eq!(requests.len(), SERIES_MAX + 1);
        let other = requests.iter().find(|(labels, _)| *labels.service == *OTHER).unwrap();
        assert_eq!(other.1.count(), extra as u64);
    }
}
