//! Where requests go and how long they take, out of what all gateways have counted between two questions.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_page::state::{About, Flow, Missing, Rate, VersionShare};
use archipelago_proto::v1::NoAnswerReason;
use archipelago_telemetry::{
    Counts, Snapshot, Window,
    rows::{By, Row, rows},
    window::Limits,
};
use tokio::time::{MissedTickBehavior, interval};

use super::Desk;
use crate::{
    api::{Context, telemetry::top},
    sessions::gateway_key,
};

/// Asks all gateways what they have counted, again and again.
pub(super) async fn ask(context: Arc<Context>, desk: Arc<Desk>) {
    let began = Instant::now();
    let mut window = Window::new(Vec::new(), Limits::default(), Duration::ZERO);
    let mut due = interval(PACE);
    // Who is slow has longer windows, not more of them.
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_first = true;
    loop {
        due.tick().await;
        if let Err(status) = top::ask(&context, &mut window, began).await {
            let missing = Missing {
                about: About::Traffic,
                who: format!("cp-{}", context.consensus.node_id),
                why: status.message().to_owned(),
            };
            desk.note(|gathered| {
                gathered.traffic = None;
                gathered.missing.insert(About::Traffic, vec![missing]);
            });
            continue;
        }
        let snapshot = window.close(began.elapsed());
        let missing = missing(&snapshot);
        let connected: Vec<String> = context.sessions.gateways().into_keys().collect();
        // Where figures begin is no figure.
        let traffic = (!is_first).then(|| Arc::new(Traffic::of(&snapshot, &connected)));
        is_first = false;
        desk.note(|gathered| {
            gathered.traffic = traffic;
            gathered.missing.insert(About::Traffic, missing);
        });
    }
}

fn missing(snapshot: &Snapshot) -> Vec<Missing> {
    let missing = snapshot.missing.iter().map(|((cluster, gateway), why)| Missing {
        about: About::Traffic,
        who: gateway_key(cluster, gateway),
        why: if why.reason() == NoAnswerReason::NotSupported {
            "is not reported: it runs a version from before latencies".to_owned()
        } else {
            why.detail.clone()
        },
    });
    missing.collect()
}

/// What happened in one window.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) window_seconds: f64,
    services: HashMap<String, Sums>,
    /// Service → from, to.
    flows: HashMap<String, BTreeMap<(String, String), Sums>>,
    /// Service → cluster, version.
    versions: HashMap<String, BTreeMap<(String, String), Sums>>,
    pairs: HashMap<(String, String), Sums>,
    entering: HashMap<String, Sums>,
    serving: HashMap<String, Sums>,
    /// Clusters with a gateway whose figures are in it.
    reporting: BTreeSet<String>,
}

/// Requests that have something in common.
#[derive(Debug, Default, Clone)]
struct Sums {
    per_second: f64,
    succeeded: u64,
    failed: u64,
    counts: Counts,
}

impl Traffic {
    fn of(snapshot: &Snapshot, connected: &[String]) -> Self {
        let mut traffic = Self { window_seconds: rounded(snapshot.elapsed.as_secs_f64()), ..Self::default() };
        let reports = connected.iter().filter_map(|key| {
            let (cluster, gateway) = key.split_once('/')?;
            let is_missing = snapshot.missing.contains_key(&(cluster.to_owned(), gateway.to_owned()));
            (!is_missing).then(|| cluster.to_owned())
        });
        traffic.reporting = reports.collect();
        for row in rows(snapshot, By::Source) {
            let (from, to) = (only(&row.sources), only(&row.destinations));
            traffic.entering.entry(from.clone()).or_default().add(&row);
            if !to.is_empty() {
                traffic.serving.entry(to.clone()).or_default().add(&row);
                if from != to {
                    traffic.pairs.entry((from.clone(), to.clone())).or_default().add(&row);
                }
            }
            let Some(service) = &row.service else { continue };
            let service = without_port(service).to_owned();
            traffic.services.entry(service.clone()).or_default().add(&row);
            traffic.flows.entry(service).or_default().entry((from, to)).or_default().add(&row);
        }
        for row in rows(snapshot, By::Version) {
            let cluster = only(&row.destinations);
            let Some(service) = row.service.as_deref().filter(|_| !cluster.is_empty()) else { continue };
            let version = row.version.as_deref().unwrap_or_default().to_owned();
            let versions = traffic.versions.entry(without_port(service).to_owned()).or_default();
            versions.entry((cluster, version)).or_default().add(&row);
        }
        traffic
    }

    /// The services whose requests take longest now.
    pub(super) fn slowest(&self, max: usize) -> Vec<String> {
        let slow = |(name, sums): (&String, &Sums)| Some((sums.counts.quantile(0.99)?, name.clone()));
        let mut slow: Vec<(u64, String)> = self.services.iter().filter_map(slow).collect();
        slow.sort_unstable_by(|a, b| b.cmp(a));
        slow.into_iter().take(max).map(|(_, name)| name).collect()
    }

    /// Of a service; none is known when nobody reports.
    pub(super) fn rate(&self, service: &str) -> Option<Rate> {
        self.known(self.services.get(service))
    }

    pub(super) fn flows(&self, service: &str) -> Option<Vec<Flow>> {
        if self.reporting.is_empty() {
            return None;
        }
        let flows = self.flows.get(service);
        let mut by_source: HashMap<&str, f64> = HashMap::new();
        for ((from, _), sums) in flows.into_iter().flatten() {
            *by_source.entry(from).or_default() += sums.per_second;
        }
        let flow = |((from, to), sums): (&(String, String), &Sums)| Flow {
            share_percent: share(sums.per_second, by_source.get(from.as_str()).copied().unwrap_or_default()),
            from: from.clone(),
            to: (!to.is_empty()).then(|| to.clone()),
            rate: sums.rate(),
        };
        let mut flows: Vec<Flow> = flows.into_iter().flatten().map(flow).collect();
        flows.sort_by(|a, b| b.rate.requests_per_second.total_cmp(&a.rate.requests_per_second));
        flows.truncate(FLOWS_MAX);
        Some(flows)
    }

    pub(super) fn versions(&self, service: &str) -> Option<Vec<VersionShare>> {
        if self.reporting.is_empty() {
            return None;
        }
        let versions = self.versions.get(service);
        let all: f64 = versions.into_iter().flatten().map(|(_, sums)| sums.per_second).sum();
        let version = |((cluster, version), sums): (&(String, String), &Sums)| VersionShare {
            cluster: cluster.clone(),
            version: (!version.is_empty()).then(|| version.clone()),
            rate: sums.rate(),
            share_percent: share(sums.per_second, all),
        };
        let mut versions: Vec<VersionShare> = versions.into_iter().flatten().map(version).collect();
        versions.sort_by(|a, b| b.rate.requests_per_second.total_cmp(&a.rate.requests_per_second));
        versions.truncate(FLOWS_MAX);
        Some(versions)
    }

    /// Requests that enter at a cluster: none is known when its gateways do not report.
    pub(super) fn entering(&self, cluster: &str) -> Option<Rate> {
        self.reporting.contains(cluster).then(|| of(self.entering.get(cluster)))
    }

    /// Requests that a cluster serves, wherever they enter.
    pub(super) fn serving(&self, cluster: &str) -> Option<Rate> {
        self.known(self.serving.get(cluster))
    }

    /// Requests from one cluster to another, as the one says where they enter.
    pub(super) fn between(&self, from: &str, to: &str) -> Option<Rate> {
        let sums = self.pairs.get(&(from.to_owned(), to.to_owned()));
        self.reporting.contains(from).then(|| of(sums))
    }

    fn known(&self, sums: Option<&Sums>) -> Option<Rate> {
        (!self.reporting.is_empty()).then(|| of(sums))
    }
}

impl Sums {
    fn add(&mut self, row: &Row) {
        self.per_second += row.per_second;
        self.succeeded += row.succeeded;
        self.failed += row.failed;
        self.counts.add(&row.counts);
    }

    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    fn rate(&self) -> Rate {
        let ended = self.succeeded + self.failed;
        Rate {
            requests_per_second: rounded(self.per_second),
            success_percent: (ended > 0).then(|| percent(self.succeeded as f64, ended as f64)),
            p50_micros: self.counts.quantile(0.5),
            p99_micros: self.counts.quantile(0.99),
        }
    }
}

fn of(sums: Option<&Sums>) -> Rate {
    sums.cloned().unwrap_or_default().rate()
}

/// "namespace/name:port" is a port of that service.
fn without_port(service: &str) -> &str {
    service.split(':').next().unwrap_or(service)
}

/// Rows by source have one of each, or none.
fn only(names: &BTreeSet<Box<str>>) -> String {
    names.first().map(ToString::to_string).unwrap_or_default()
}

fn share(part: f64, all: f64) -> f64 {
    if all > 0.0 { rounded(part * 100.0 / all) } else { 0.0 }
}

/// Never 100 while something failed.
fn percent(part: f64, all: f64) -> f64 {
    (part * 1e5 / all).floor() / 1e3
}

/// Three digits: more would be news at every look, and is not true.
pub(super) fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let unit = 10_f64.powf(value.abs().log10().floor() - 2.0);
    // Tenths that binary fractions cannot say are not spelt out.
    let shown = (value / unit).round() * unit;
    (shown * 1e4).round() / 1e4
}

const PACE: Duration = Duration::from_secs(2);
/// Of one service: pairs of clusters, or versions in clusters.
const FLOWS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use archipelago_telemetry::{Key, Outcome, Reporter, Tally, window::Measured};

    use super::*;

    fn snapshot(series: &[(&str, &str, &str, &str, Reporter, Outcome, u64)]) -> Snapshot {
        let measured = series.iter().map(|(service, version, source, destination, reporter, outcome, requests)| {
            let key = Key {
                service: (*service).into(),
                version: (*version).into(),
                source: (*source).into(),
                destination: (*destination).into(),
                reporter: *reporter,
                outcome: *outcome,
                overflow: false,
            };
            let mut tally = Tally::default();
            (0..*requests).for_each(|_| tally.record(100));
            (key, Measured { counts: tally.counted(), per_second: *requests as f64 / 2.0 })
        });
        Snapshot { measured: measured.collect(), elapsed: Duration::from_secs(2), ..Snapshot::default() }
    }

    #[test]
    fn each_request_has_one_way_and_what_nobody_reports_is_not_known() {
        use Outcome::{Status2xx, Status5xx};
        use Reporter::{Destination, Source};
        let snapshot = snapshot(&[
            ("shop/web", "v1", "paris", "paris", Source, Status2xx, 60),
            ("shop/web", "", "paris", "tokyo", Source, Status2xx, 19),
            ("shop/web:8080", "", "paris", "tokyo", Source, Status5xx, 1),
            ("shop/web", "v2", "paris", "tokyo", Destination, Status2xx, 20),
            ("", "", "paris", "", Source, Status5xx, 4),
        ]);
        let connected = ["paris/gw-1".to_owned(), "tokyo/gw-1".to_owned()];
        let traffic = Traffic::of(&snapshot, &connected);
        let flows = traffic.flows("shop/web").unwrap();
        let seen: Vec<_> = flows.iter().map(|flow| (&*flow.from, flow.to.as_deref(), flow.share_percent)).collect();
        assert_eq!(seen, [("paris", Some("paris"), 75.0), ("paris", Some("tokyo"), 25.0)]);
        let to_tokyo = &flows[1].rate;
        assert_eq!((to_tokyo.requests_per_second, to_tokyo.success_percent), (10.0, Some(95.0)));
        assert_eq!(traffic.rate("shop/web").unwrap().requests_per_second, 40.0);
        assert_eq!(traffic.entering("paris").unwrap().requests_per_second, 42.0, "those without a service, too");
        let serving = |cluster: &str| traffic.serving(cluster).map(|rate| rate.requests_per_second);
        assert_eq!((serving("paris"), serving("tokyo")), (Some(30.0), Some(10.0)));
        let between = |from: &str, to: &str| traffic.between(from, to).map(|rate| rate.requests_per_second);
        assert_eq!((between("paris", "tokyo"), between("tokyo", "paris")), (Some(10.0), Some(0.0)));
        assert_eq!(between("berlin", "paris"), None, "nobody there says anything");
        let versions = traffic.versions("shop/web").unwrap();
        let seen: Vec<_> =
            versions.iter().map(|one| (&*one.cluster, one.version.as_deref(), one.share_percent)).collect();
        assert_eq!(seen, [("paris", Some("v1"), 75.0), ("tokyo", Some("v2"), 25.0)]);
        let idle = traffic.rate("shop/idle").unwrap();
        assert_eq!((idle.requests_per_second, idle.success_percent, idle.p50_micros), (0.0, None, None));

        let silent = Traffic::of(&Snapshot::default(), &[]);
        assert!(silent.rate("shop/web").is_none() && silent.flows("shop/web").is_none());
        assert!(silent.entering("paris").is_none() && silent.serving("paris").is_none());
    }

    #[test]
    fn figures_have_three_digits_and_a_failure_is_never_rounded_away() {
        let all = [0.0, 0.123_456, 1.0 / 3.0, 33.333_3, 99.96, 12_345.6, f64::NAN].map(rounded);
        assert_eq!(all, [0.0, 0.123, 0.333, 33.3, 100.0, 12_300.0, 0.0]);
        assert_eq!(percent(999_999.0, 1_000_000.0), 99.999);
        assert_eq!(percent(9_999_999.0, 10_000_000.0), 99.999);
        assert_eq!(percent(5.0, 5.0), 100.0);
    }
}
