//! Counts and histograms of a run, without I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::report::{FAILURE_SAMPLES, FailureKind, FailureSample, Failures, Generator, Latency, Second};

/// Collects what became of each request.
///
/// A second keeps a histogram until every request sent in it must have ended, then only its row.
pub(super) struct Recorder {
    sent: u64,
    ok: u64,
    failed: u64,
    last_end: Duration,
    by_status: BTreeMap<u16, u64>,
    by_cluster: BTreeMap<String, u64>,
    by_version: BTreeMap<String, u64>,
    failures: Failures,
    samples: Vec<FailureSample>,
    latency: Distribution,
    lag: Distribution,
    connections_opened: u64,
    moved_unsent: u64,
    closed: Vec<Second>,
    open: VecDeque<OpenSecond>,
    /// After this long every request of a second has ended, one way or the other.
    settled_after: Duration,
}

/// How one request ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// Answered to the last byte, with an expected status or not.
    Answered(Answer),
    /// Not answered.
    Failed(Failure),
}

/// A complete response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) expected: bool,
    /// Who served it, as far as the response says.
    pub(super) cluster: Option<String>,
    /// The version that served it, as far as the response says.
    pub(super) version: Option<String>,
}

/// A request without a complete response.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

impl Recorder {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            sent: 0,
            ok: 0,
            failed: 0,
            last_end: Duration::ZERO,
            by_status: BTreeMap::new(),
            by_cluster: BTreeMap::new(),
            by_version: BTreeMap::new(),
            failures: Failures::default(),
            samples: Vec::new(),
            latency: Distribution::new(3),
            lag: Distribution::new(2),
            connections_opened: 0,
            moved_unsent: 0,
            closed: Vec::new(),
            open: VecDeque::new(),
            settled_after: timeout + SETTLING,
        }
    }

    /// A request that was due at `due` goes out at `now`; both from the start of the run.
    pub(super) fn sent(&mut self, due: Duration, now: Duration) {
        self.sent += 1;
        self.lag.record(now.saturating_sub(due));
        self.close_settled(now);
        if let Some(second) = self.open_second(due) {
            second.row.sent += 1;
        }
    }

    /// The request that was due at `due` ended at `now`; both from the start of the run.
    pub(super) fn ended(&mut self, due: Duration, now: Duration, ending: Ending) {
        self.last_end = self.last_end.max(now);
        let latency = now.saturating_sub(due);
        let (measured, failure, cluster) = match ending {
            Ending::Answered(answer) => {
                *self.by_status.entry(answer.status).or_default() += 1;
                if answer.expected {
                    if let Some(cluster) = &answer.cluster {
                        count(&mut self.by_cluster, cluster.clone());
                    }
                    if let (Some(cluster), Some(version)) = (&answer.cluster, &answer.version) {
                        count(&mut self.by_version, format!("{cluster}/{version}"));
                    }
                    (true, None, answer.cluster)
                } else {
                    let failure = Failure {
                        kind: FailureKind::Status,
                        message: match &answer.cluster {
                            Some(cluster) => format!("status {} from {cluster}", answer.status),
                            None => format!("status {}", answer.status),
                        },
                    };
                    (true, Some(failure), None)
                }
            }
            Ending::Failed(failure) => (failure.kind == FailureKind::Timeout, Some(failure), None),
        };
        let is_ok = failure.is_none();
        if measured {
            self.latency.record(latency);
        }
        match failure {
            None => self.ok += 1,
            Some(failure) => self.fail(due, failure),
        }
        if let Some(second) = self.open_second(due) {
            if measured {
                second.latency.record(latency);
            }
            if is_ok {
                second.row.ok += 1;
            } else {
                second.row.failed += 1;
            }
            if let Some(cluster) = cluster {
                count(&mut second.row.by_cluster, cluster);
            }
        }
    }

    pub(super) fn connection_opened(&mut self) {
        self.connections_opened += 1;
    }

    pub(super) fn moved_unsent(&mut self) {
        self.moved_unsent += 1;
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            sent: self.sent,
            ok: self.ok,
            failed: self.failed,
            in_flight: self.sent.saturating_sub(self.ok + self.failed),
        }
    }

    /// The second before the one of `now`, as far as its requests have ended.
    pub(super) fn last_second(&self, now: Duration) -> Option<Second> {
        let second = now.as_secs().checked_sub(1)?;
        self.open.iter().find(|open| open.row.second == second).map(OpenSecond::to_row)
    }

    pub(super) fn summary(&self) -> Summary {
        let open = self.open.iter().map(OpenSecond::to_row);
        Summary {
            counters: self.counters(),
            elapsed: self.last_end,
            by_status: self.by_status.clone(),
            by_cluster: self.by_cluster.clone(),
            by_version: self.by_version.clone(),
            failures: self.failures,
            failure_samples: self.samples.clone(),
            latency: self.latency.summary(),
            generator: Generator {
                lag_p99_micros: self.lag.quantile(0.99).unwrap_or(0),
                lag_max_micros: self.lag.max,
                connections_opened: self.connections_opened,
                moved_unsent: self.moved_unsent,
            },
            timeline: self.closed.iter().cloned().chain(open).collect(),
        }
    }

    fn fail(&mut self, due: Duration, failure: Failure) {
        self.failed += 1;
        self.failures.add(failure.kind);
        let of_this_kind = |sample: &&FailureSample| sample.kind == failure.kind;
        // Some room for each kind: a flood of one must not hide the only one of another.
        if self.samples.len() < FAILURE_SAMPLES && self.samples.iter().filter(of_this_kind).count() < SAMPLES_PER_KIND {
            self.samples.push(FailureSample {
                at_micros: whole_micros(due),
                kind: failure.kind,
                message: failure.message,
            });
        }
    }

    /// The second of `due`, opened if need be; none if it was closed long ago.
    fn open_second(&mut self, due: Duration) -> Option<&mut OpenSecond> {
        let second = due.as_secs();
        let first = match self.open.front() {
            Some(first) => first.row.second,
            // Empty seconds get rows too, so that a row's place is its second.
            None => self.closed.len() as u64,
        };
        let index = usize::try_from(second.checked_sub(first)?).ok()?;
        while self.open.len() <= index {
            let next = first + self.open.len() as u64;
            self.open.push_back(OpenSecond::new(next));
        }
        self.open.get_mut(index)
    }

    fn close_settled(&mut self, now: Duration) {
        while let Some(first) = self.open.front() {
            let settled = Duration::from_secs(first.row.second + 1) + self.settled_after;
            if now < settled {
                return;
            }
            self.closed.push(first.to_row());
            self.open.pop_front();
        }
    }
}

/// Live totals of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests whose time has come.
    pub sent: u64,
    /// Of these, answered as expected.
    pub ok: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Of these, still under way.
    pub in_flight: u64,
}

/// Everything a report takes from the recorder.
pub(super) struct Summary {
    pub(super) counters: Counters,
    pub(super) elapsed: Duration,
    pub(super) by_status: BTreeMap<u16, u64>,
    pub(super) by_cluster: BTreeMap<String, u64>,
    pub(super) by_version: BTreeMap<String, u64>,
    pub(super) failures: Failures,
    pub(super) failure_samples: Vec<FailureSample>,
    pub(super) latency: Option<Latency>,
    pub(super) generator: Generator,
    pub(super) timeline: Vec<Second>,
}

struct OpenSecond {
    row: Second,
    latency: Distribution,
}

impl OpenSecond {
    fn new(second: u64) -> Self {
        Self { row: Second { second, ..Second::default() }, latency: Distribution::new(2) }
    }

    fn to_row(&self) -> Second {
        Second {
            p50_micros: self.latency.quantile(0.5),
            p99_micros: self.latency.quantile(0.99),
            max_micros: Some(self.latency.max).filter(|_| self.latency.count > 0),
            ..self.row.clone()
        }
    }
}

/// A histogram of microseconds that also keeps what buckets round away.
struct Distribution {
    histogram: Option<Histogram<u64>>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Distribution {
    fn new(significant_digits: u8) -> Self {
        Self {
            // Grows with the values seen; fails only for more than five digits.
            histogram: Histogram::new(significant_digits).ok(),
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    fn record(&mut self, latency: Duration) {
        let micros = whole_micros(latency);
        self.count += 1;
        self.sum += u128::from(micros);
        self.max = self.max.max(micros);
        if let Some(histogram) = &mut self.histogram {
            // Grows to hold any value; its saturating cousin would clamp instead.
            let _ = histogram.record(micros);
        }
    }

    fn quantile(&self, quantile: f64) -> Option<u64> {
        let histogram = self.histogram.as_ref().filter(|_| self.count > 0)?;
        // A bucket's upper end may lie above the largest value in it.
        Some(histogram.value_at_quantile(quantile).min(self.max))
    }

    fn summary(&self) -> Option<Latency> {
        Some(Latency {
            count: self.count,
            mean: self.sum as f64 / self.count as f64,
            p50: self.quantile(0.5)?,
            p90: self.quantile(0.9)?,
            p99: self.quantile(0.99)?,
            p999: self.quantile(0.999)?,
            max: self.max,
        })
    }
}

/// Counts `key`, or `other` once there are too many keys: names come from responses.
fn count(counts: &mut BTreeMap<String, u64>, key: String) {
    let key = if counts.len() < NAMES_MAX || counts.contains_key(&key) { key } else { "other".to_owned() };
    *counts.entry(key).or_default() += 1;
}

fn whole_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Distinct clusters, and versions, that are counted by name.
const NAMES_MAX: usize = 256;
const SAMPLES_PER_KIND: usize = 5;
/// Between a deadline and the record that it passed.
const SETTLING: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn from(cluster: &str) -> Ending {
        Ending::Answered(Answer {
            status: 200,
            expected: true,
            cluster: Some(cluster.to_owned()),
            version: Some("v1".to_owned()),
        })
    }

    fn failed(kind: FailureKind) -> Ending {
        Ending::Failed(Failure { kind, message: "why".to_owned() })
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let mut recorder = Recorder::new(TIMEOUT);
        // The generator was stalled for a second: the request was due at 0, sent at 1 s, quick then.
        recorder.sent(ms(0), ms(1000));
        recorder.ended(ms(0), ms(1001), from("paris"));
        let summary = recorder.summary();
        assert_eq!(summary.latency.unwrap().max, 1_001_000);
        assert_eq!(summary.generator.lag_max_micros, 1_000_000);
        assert_eq!(summary.timeline[0].max_micros, Some(1_001_000));
    }

    #[test]
    fn percentiles_are_within_their_digits() {
        let mut recorder = Recorder::new(TIMEOUT);
        for micros in 1..=10_000_u64 {
            recorder.sent(ms(0), ms(0));
            recorder.ended(ms(0), Duration::from_micros(micros), from("paris"));
        }
        let latency = recorder.summary().latency.unwrap();
        for (found, exact) in
            [(latency.p50, 5_000.0), (latency.p90, 9_000.0), (latency.p99, 9_900.0), (latency.p999, 9_990.0)]
        {
            assert!((found as f64 / exact - 1.0).abs() < 0.001, "{found} {exact}");
        }
        assert_eq!((latency.max, latency.mean), (10_000, 5_000.5));
    }

    #[test]
    fn a_request_belongs_to_the_second_it_was_due_in() {
        let mut recorder = Recorder::new(TIMEOUT);
        recorder.sent(ms(999), ms(999));
        recorder.sent(ms(3000), ms(3000));
        recorder.ended(ms(999), ms(3100), failed(FailureKind::Reset));
        recorder.ended(ms(3000), ms(3001), from("tokyo"));
        let timeline = recorder.summary().timeline;
        let counts: Vec<_> = timeline.iter().map(|row| (row.second, row.sent, row.ok, row.failed)).collect();
        assert_eq!(counts, [(0, 1, 0, 1), (1, 0, 0, 0), (2, 0, 0, 0), (3, 1, 1, 0)]);
        assert_eq!(timeline[0].p99_micros, None);
        assert_eq!(timeline[3].by_cluster["tokyo"], 1);
    }

    #[test]
    fn settled_seconds_keep_their_rows_and_lose_their_histograms() {
        let mut recorder = Recorder::new(TIMEOUT);
        for second in 0..100 {
            recorder.sent(ms(second * 1000), ms(second * 1000));
            recorder.ended(ms(second * 1000), ms(second * 1000 + 5), from("paris"));
        }
        assert!(recorder.open.len() <= 9, "{}", recorder.open.len());
        let timeline = recorder.summary().timeline;
        assert_eq!(timeline.len(), 100);
        assert!(
            timeline
                .iter()
                .enumerate()
                .all(|(index, row)| { row.second == index as u64 && row.ok == 1 && row.max_micros == Some(5000) })
        );
    }

    #[test]
    fn timeouts_are_latencies_and_refusals_are_not() {
        let mut recorder = Recorder::new(TIMEOUT);
        for _ in 0..2 {
            recorder.sent(ms(0), ms(0));
        }
        recorder.ended(ms(0), ms(2000), failed(FailureKind::Timeout));
        recorder.ended(ms(0), ms(1), failed(FailureKind::Connect));
        let summary = recorder.summary();
        let latency = summary.latency.unwrap();
        assert_eq!((latency.count, latency.max), (1, 2_000_000));
        assert_eq!((summary.failures.timeout, summary.failures.connect), (1, 1));
    }

    #[test]
    fn no_answer_means_no_latency() {
        assert_eq!(Recorder::new(TIMEOUT).summary().latency, None);
    }

    #[test]
    fn samples_and_names_are_bounded() {
        let mut recorder = Recorder::new(TIMEOUT);
        for number in 0..1000 {
            recorder.sent(ms(0), ms(0));
            recorder.ended(ms(0), ms(1), failed(FailureKind::Connect));
            recorder.sent(ms(0), ms(0));
            recorder.ended(ms(0), ms(1), from(&format!("cluster-{number}")));
        }
        recorder.sent(ms(0), ms(0));
        recorder.ended(ms(0), ms(1), failed(FailureKind::Reset));
        let summary = recorder.summary();
        assert_eq!(summary.failure_samples.len(), SAMPLES_PER_KIND + 1);
        assert_eq!(summary.by_cluster.len(), NAMES_MAX + 1);
        assert_eq!(summary.by_cluster.values().sum::<u64>(), 1000);
    }

    #[test]
    fn counters_add_up() {
        let mut recorder = Recorder::new(TIMEOUT);
        for _ in 0..3 {
            recorder.sent(ms(0), ms(0));
        }
        recorder.ended(ms(0), ms(1), from("paris"));
        recorder.ended(ms(0), ms(1), failed(FailureKind::Protocol));
        let expected = Counters { sent: 3, ok: 1, failed: 1, in_flight: 1 };
        assert_eq!(recorder.counters(), expected);
    }
}
