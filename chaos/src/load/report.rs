//! What a run found out, as JSON and as text.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Duration,
};

use serde::Serialize;

use super::{plan::Protocol, schedule::Arrivals};

/// Result of a run; its JSON form is the output of `chaos load -o json`.
///
/// Latencies run from the intended send time of a request, not from when the generator got round to
/// it, to the last byte of its response. They cover every request that was answered or timed out, a
/// timeout counting as long as it lasted; requests that found no connection or were reset have none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where requests went.
    pub target: Target,
    /// What was asked for.
    pub plan: Asked,
    /// When arrivals began, milliseconds since the Unix epoch.
    pub started_unix_millis: u64,
    /// From the first intended send time to the end of the last request.
    pub elapsed_millis: u64,
    /// Requests whose time had come; `ok + failed` once the run is over.
    pub sent: u64,
    /// Answered with an expected status, to the last byte.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Requests still under way; 0 once the run is over.
    pub in_flight: u64,
    /// Responses by status code.
    pub by_status: BTreeMap<u16, u64>,
    /// Successful responses by serving cluster.
    pub by_cluster: BTreeMap<String, u64>,
    /// Successful responses by `cluster/version`, where the body names a version.
    pub by_version: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failures: Failures,
    /// The first failures of each kind, at most [`FAILURE_SAMPLES`] in all.
    pub failure_samples: Vec<FailureSample>,
    /// Latency over the whole run; null when nothing was answered.
    pub latency_micros: Option<Latency>,
    /// How well the generator itself kept up.
    pub generator: Generator,
    /// One row for each second, by intended send time.
    pub timeline: Vec<Second>,
}

/// Where requests went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The URL as given.
    pub url: String,
    /// Host header or `:authority`.
    pub host: String,
    /// Request method.
    pub method: String,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: Protocol,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Arrivals a second.
    pub rate: f64,
    /// Length of the run; null when it went on until it was stopped.
    pub duration_millis: Option<u64>,
    /// Spacing of arrivals.
    pub arrivals: Arrivals,
    /// Timeout of a request.
    pub timeout_millis: u64,
}

/// Failures by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// No connection: refused, unreachable.
    pub connect: u64,
    /// The connection or the stream was reset or closed before the response was complete.
    pub reset: u64,
    /// Not complete within the timeout.
    pub timeout: u64,
    /// Complete, with a status that was not expected.
    pub status: u64,
    /// The answer was not HTTP.
    pub protocol: u64,
    /// The generator had too many requests under way to send this one: no fault of the target alone.
    pub overload: u64,
}

/// Why one request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// See [`Failures::connect`].
    Connect,
    /// See [`Failures::reset`].
    Reset,
    /// See [`Failures::timeout`].
    Timeout,
    /// See [`Failures::status`].
    Status,
    /// See [`Failures::protocol`].
    Protocol,
    /// See [`Failures::overload`].
    Overload,
}

/// One failure in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureSample {
    /// Intended send time, from the start of the run.
    pub at_micros: u64,
    /// Its kind.
    pub kind: FailureKind,
    /// What happened.
    pub message: String,
}

/// Percentiles in microseconds, to three significant digits; `max` and `mean` are exact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Requests measured.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

/// How well the generator itself kept up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Generator {
    /// 99th percentile of how late requests were handed to the network code. Part of every latency:
    /// if this is a large share of p99, the generator or its machine was the bottleneck.
    pub lag_p99_micros: u64,
    /// Largest such delay.
    pub lag_max_micros: u64,
    /// Connections opened over the run.
    pub connections_opened: u64,
    /// Requests that moved to another connection because theirs closed before any byte was sent.
    pub moved_unsent: u64,
}

/// One second of the run, by intended send time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Second {
    /// Seconds since the start.
    pub second: u64,
    /// Requests whose time came in this second.
    pub sent: u64,
    /// Of these, succeeded.
    pub ok: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Median latency, to two significant digits; null when nothing was answered.
    pub p50_micros: Option<u64>,
    /// 99th percentile, to two significant digits; null when nothing was answered.
    pub p99_micros: Option<u64>,
    /// Largest latency; null when nothing was answered.
    pub max_micros: Option<u64>,
    /// Successful responses by serving cluster.
    pub by_cluster: BTreeMap<String, u64>,
}

impl Report {
    /// Whether requests were sent and none failed.
    pub fn is_success(&self) -> bool {
        self.failed == 0 && self.ok > 0
    }

    /// The second with the most failures, or else with the largest p99.
    pub fn worst_second(&self) -> Option<&Second> {
        self.timeline.iter().filter(|second| second.sent > 0).max_by_key(|second| (second.failed, second.p99_micros))
    }
}

impl Failures {
    /// Counts one failure.
    pub(super) fn add(&mut self, kind: FailureKind) {
        let count = match kind {
            FailureKind::Connect => &mut self.connect,
            FailureKind::Reset => &mut self.reset,
            FailureKind::Timeout => &mut self.timeout,
            FailureKind::Status => &mut self.status,
            FailureKind::Protocol => &mut self.protocol,
            FailureKind::Overload => &mut self.overload,
        };
        *count += 1;
    }
}

/// The report for people: a dozen lines, every line with its subject first.
impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "target     {} {} (host {}) over {}",
            self.target.method,
            self.target.url,
            self.target.host,
            serde_plain(&self.target.protocol),
        )?;
        let seconds = self.elapsed_millis as f64 / 1e3;
        let achieved = self.ok as f64 / seconds.max(1e-3);
        writeln!(out, "load       {} requests/s asked, {achieved:.1} answered, {seconds:.1} s", self.plan.rate)?;
        writeln!(
            out,
            "requests   {} sent, {} ok, {} failed ({})",
            self.sent,
            self.ok,
            self.failed,
            percent(self.failed, self.sent)
        )?;
        if self.failed > 0 {
            writeln!(out, "failures   {}", failures_line(&self.failures))?;
            for sample in &self.failure_samples {
                let at = sample.at_micros as f64 / 1e6;
                writeln!(out, "           at {at:.3} s: {}: {}", serde_plain(&sample.kind), sample.message)?;
            }
        }
        writeln!(out, "status     {}", shares(&self.by_status))?;
        writeln!(out, "cluster    {}", shares(&self.by_cluster))?;
        if !self.by_version.is_empty() {
            writeln!(out, "version    {}", shares(&self.by_version))?;
        }
        match &self.latency_micros {
            None => writeln!(out, "latency    nothing was answered")?,
            Some(latency) => writeln!(
                out,
                "latency    p50 {}  p90 {}  p99 {}  p99.9 {}  max {}   (from the intended send time)",
                micros(latency.p50),
                micros(latency.p90),
                micros(latency.p99),
                micros(latency.p999),
                micros(latency.max)
            )?,
        }
        if let Some(worst) = self.worst_second() {
            writeln!(
                out,
                "worst      second {}: p99 {}, max {}, {} failed of {}",
                worst.second,
                worst.p99_micros.map_or_else(|| "-".to_owned(), micros),
                worst.max_micros.map_or_else(|| "-".to_owned(), micros),
                worst.failed,
                worst.sent
            )?;
        }
        writeln!(
            out,
            "generator  {} connections opened, sends late by p99 {}, max {}",
            self.generator.connections_opened,
            micros(self.generator.lag_p99_micros),
            micros(self.generator.lag_max_micros)
        )
    }
}

fn failures_line(failures: &Failures) -> String {
    let counts = [
        ("connect", failures.connect),
        ("reset", failures.reset),
        ("timeout", failures.timeout),
        ("status", failures.status),
        ("protocol", failures.protocol),
        ("overload", failures.overload),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{kind} {count}")).collect();
    counts.join(", ")
}

fn shares<K: fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
    let total: u64 = counts.values().sum();
    let mut text = String::new();
    for (key, count) in counts {
        let gap = if text.is_empty() { "" } else { "   " };
        // Writing into a String cannot fail.
        let _ = write!(text, "{gap}{key} {count} ({})", percent(*count, total));
    }
    if text.is_empty() { "-".to_owned() } else { text }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.2} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// Microseconds in the unit a person would choose.
pub(crate) fn micros(value: u64) -> String {
    let duration = Duration::from_micros(value);
    match value {
        0..1_000 => format!("{value} µs"),
        1_000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

/// The name that a unit variant has in JSON.
fn serde_plain(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Failures kept in words.
pub const FAILURE_SAMPLES: usize = 10;
