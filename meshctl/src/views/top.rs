//! `top`: figures of one window.

mod tcp;

use archipelago_proto::v1::{self, NoAnswerReason, TopBy, TopRow, TopSnapshot};
use archipelago_telemetry::Counts;
use serde::Serialize;

use self::tcp::TcpView;
use super::qualified;
use crate::exit::{Failure, Outcome};
use crate::output::{Cell, Table, Text};

/// One window.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TopView {
    seconds: f64,
    gateways: GatewaysView,
    /// The busiest first.
    rows: Vec<RowView>,
    rows_left_off: u32,
    /// Null: the member that was asked does not report TCP connections.
    tcp: Option<TcpView>,
    #[serde(skip)]
    by: TopBy,
}

/// `.gateways`: whose figures are in it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewaysView {
    expected: usize,
    reported: u32,
    missing: Vec<MissingView>,
    restarted: Vec<RestartedView>,
    silent_workers: u32,
}

/// `.gateways.missing[]`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MissingView {
    /// `cluster/gateway`.
    pub(crate) name: String,
    cluster: String,
    reason: &'static str,
    pub(crate) detail: String,
}

/// `.gateways.restarted[]`: what each counted last before that is lost.
#[derive(Debug, Clone, Serialize)]
struct RestartedView {
    /// `cluster/gateway`.
    name: String,
    cluster: String,
    times: u32,
}

/// `.rows[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct RowView {
    /// Null: no service was found for these requests, or they are of services that gateways do not count apart.
    service: Option<String>,
    /// Null unless by version.
    version: Option<String>,
    sources: Vec<String>,
    destinations: Vec<String>,
    /// Of services beyond those that gateways count apart.
    overflow: bool,
    requests_per_second: f64,
    requests: u64,
    succeeded: u64,
    failed: u64,
    abandoned: u64,
    /// Null: nothing succeeded or failed.
    success_percent: Option<f64>,
    /// Null: there were no requests.
    latency_micros: Option<LatencyView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    histogram: Option<Vec<BucketView>>,
}

/// `.rows[].latencyMicros`.
#[derive(Debug, Clone, Serialize)]
struct LatencyView {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
}

/// `.rows[].histogram[]`: requests that took so long, both ends included.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct BucketView {
    from_micros: u64,
    to_micros: u64,
    requests: u64,
}

impl TopView {
    /// Out of a member's answer.
    ///
    /// # Errors
    /// Its histograms cannot be read.
    pub(crate) fn new(snapshot: TopSnapshot, by: TopBy) -> Outcome<Self> {
        let rows: Outcome<Vec<RowView>> = snapshot.rows.into_iter().map(RowView::new).collect();
        let missing: Vec<MissingView> = snapshot.missing.into_iter().map(MissingView::new).collect();
        let restarted = snapshot.restarted.into_iter().map(|restarted| RestartedView {
            name: qualified(&restarted.cluster, &restarted.gateway),
            cluster: restarted.cluster,
            times: restarted.times,
        });
        #[allow(clippy::cast_precision_loss, reason = "a window of microseconds fits 52 bits")]
        let seconds = snapshot.elapsed_micros as f64 / 1e6;
        let gateways = GatewaysView {
            expected: missing.len() + snapshot.gateways_reported as usize,
            reported: snapshot.gateways_reported,
            missing,
            restarted: restarted.collect(),
            silent_workers: snapshot.silent_workers,
        };
        let tcp = TcpView::new(snapshot.tcp_rows, snapshot.tcp_rows_left_off, snapshot.tcp_missing);
        let tcp = snapshot.tells_tcp.then_some(tcp);
        Ok(Self { seconds, gateways, rows: rows?, rows_left_off: snapshot.rows_left_off, tcp, by })
    }

    /// The same for people.
    pub(crate) fn text(&self) -> Text {
        let GatewaysView { expected, reported, missing, restarted, silent_workers } = &self.gateways;
        let seconds = self.seconds;
        let mut text = Text::default().line(format!("{seconds:.1} s at {reported} of {expected} gateways"));
        if !missing.is_empty() {
            let who = listed(missing.iter().map(|m| format!("{} ({})", m.name, m.detail)));
            text = text.line(format!("{} of {expected} gateways not reported: {who}", missing.len()));
        }
        if !restarted.is_empty() {
            let who = listed(restarted.iter().map(|r| r.name.clone()));
            text = text.line(format!("began again, and what they counted last before that is lost: {who}"));
        }
        if *silent_workers > 0 {
            text = text.line(format!("{silent_workers} workers do not answer; their latest requests come later"));
        }
        text = self.requests(text);
        let Some(tcp) = &self.tcp else {
            return text.line("the member that was asked is of a build that does not report TCP connections");
        };
        if !tcp.not_reported.is_empty() {
            let who = listed(tcp.not_reported.iter().map(|m| m.name.clone()));
            text = text.line(format!("TCP connections not reported, by gateways of a build before this: {who}"));
        }
        if !tcp.rows.is_empty() {
            text = text.line("").table(tcp.table(self.by));
        }
        match tcp.rows_left_off {
            0 => text,
            more => text.line(format!("{more} more, with fewer connections; name services to see them")),
        }
    }

    fn requests(&self, text: Text) -> Text {
        if self.rows.is_empty() {
            let none = if self.gateways.reported == 0 { "nothing is known" } else { "no requests" };
            return text.line(none);
        }
        let mut headings = vec!["SERVICE"];
        headings.extend((self.by == TopBy::Version).then_some("VERSION"));
        headings.extend(["FROM", "TO", "REQ/S", "SUCCESS", "P50", "P90", "P99", "P99.9"]);
        let mut table = Table::new(&headings);
        for row in &self.rows {
            let mut cells: Vec<Cell> = vec![row.name().into()];
            if self.by == TopBy::Version {
                cells.push(row.version.as_deref().unwrap_or("-").into());
            }
            cells.push(clusters(&row.sources).into());
            cells.push(clusters(&row.destinations).into());
            cells.push(rate(row.requests_per_second).into());
            cells.push(row.success_percent.map_or_else(|| "-".to_owned(), percent).into());
            cells.extend(latency_cells(row.latency_micros.as_ref()));
            table.row(cells);
        }
        let text = text.table(table);
        match self.rows_left_off {
            0 => text,
            more => text.line(format!("{more} more, with fewer requests; name services to see them")),
        }
    }
}

impl RowView {
    fn new(row: TopRow) -> Outcome<Self> {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let counts = Counts::decode(&row.counts)
            .map_err(|error| Failure::refused(format!("the member's histogram cannot be read: {error}")))?;
        let buckets =
            counts.filled().map(|(from_micros, to_micros, requests)| BucketView { from_micros, to_micros, requests });
        let judged = row.succeeded + row.failed;
        let latency_micros = LatencyView::new([row.p50_micros, row.p90_micros, row.p99_micros, row.p999_micros]);
        Ok(Self {
            histogram: (!counts.is_empty()).then(|| buckets.collect()),
            service: some(row.service),
            version: some(row.version),
            sources: row.sources,
            destinations: row.destinations,
            overflow: row.overflow,
            requests_per_second: row.requests_per_second,
            requests: judged + row.abandoned,
            succeeded: row.succeeded,
            failed: row.failed,
            abandoned: row.abandoned,
            success_percent: share(row.succeeded, row.failed),
            latency_micros,
        })
    }

    fn name(&self) -> String {
        match (&self.service, self.overflow) {
            (Some(service), _) => service.clone(),
            (None, true) => "(others)".to_owned(),
            (None, false) => "(no service)".to_owned(),
        }
    }
}

impl LatencyView {
    /// Null where any of them is missing: there was nothing.
    fn new(percentiles: [Option<u64>; 4]) -> Option<Self> {
        let [Some(p50), Some(p90), Some(p99), Some(p999)] = percentiles else { return None };
        Some(Self { p50, p90, p99, p999 })
    }
}

/// Percentiles as cells, dashes where there are none.
fn latency_cells(latency: Option<&LatencyView>) -> [Cell; 4] {
    let shown = latency.map(|l| [l.p50, l.p90, l.p99, l.p999].map(time));
    shown.unwrap_or_else(|| ["-"; 4].map(str::to_owned)).map(Cell::from)
}

/// The share of those that went well, in percent.
#[allow(clippy::cast_precision_loss, reason = "a share is for people")]
fn share(good: u64, bad: u64) -> Option<f64> {
    let judged = good + bad;
    (judged > 0).then(|| good as f64 * 100.0 / judged as f64)
}

impl MissingView {
    pub(crate) fn new(missing: v1::MissingGateway) -> Self {
        let v1::MissingGateway { cluster, gateway, why } = missing;
        let why = why.unwrap_or_default();
        let reason = match why.reason() {
            NoAnswerReason::Unspecified => "unknown",
            NoAnswerReason::NotConnected => "notConnected",
            NoAnswerReason::NotSupported => "notSupported",
            NoAnswerReason::TimedOut => "timedOut",
            NoAnswerReason::Busy => "busy",
            NoAnswerReason::TooLarge => "tooLarge",
            NoAnswerReason::Failed => "failed",
            NoAnswerReason::First => "first",
        };
        Self { name: qualified(&cluster, &gateway), cluster, reason, detail: why.detail }
    }
}

/// The first few, and how many more.
fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut names: Vec<String> = names.take(NAMES_MAX).collect();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

fn clusters(names: &[String]) -> String {
    if names.is_empty() {
        return "-".to_owned();
    }
    let shown: Vec<&str> = names.iter().take(CLUSTERS_MAX).map(String::as_str).collect();
    match names.len().saturating_sub(CLUSTERS_MAX) {
        0 => shown.join(","),
        more => format!("{},+{more}", shown.join(",")),
    }
}

fn rate(per_second: f64) -> String {
    if per_second < 100.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
}

/// Never 100 % unless all of them succeeded.
fn percent(percent: f64) -> String {
    let shown = if percent < 100.0 { percent.min(99.99) } else { percent };
    format!("{shown:.2}%")
}

fn time(micros: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "at most 60 s")]
    let millis = micros as f64 / 1e3;
    match micros {
        60_000_000.. => ">60s".to_owned(),
        10_000_000.. => format!("{:.1}s", millis / 1e3),
        1_000_000.. => format!("{:.2}s", millis / 1e3),
        100_000.. => format!("{millis:.0}ms"),
        10_000.. => format!("{millis:.1}ms"),
        _ => format!("{millis:.2}ms"),
    }
}

const NAMES_MAX: usize = 5;
const CLUSTERS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use archipelago_telemetry::Tally;
    use v1::{MissingGateway, NoAnswer, RestartedGateway, TopTcpRow};

    use super::*;

    fn row(service: &str, per_second: f64, succeeded: u64, failed: u64) -> TopRow {
        TopRow {
            service: service.into(),
            sources: vec!["paris".into()],
            destinations: vec!["frankfurt".into(), "oslo".into(), "paris".into(), "tokyo".into()],
            requests_per_second: per_second,
            succeeded,
            failed,
            p50_micros: Some(850),
            p90_micros: Some(12_345),
            p99_micros: Some(1_234_567),
            p999_micros: Some(60_030_975),
            ..TopRow::default()
        }
    }

    #[test]
    fn a_window_as_people_see_it() {
        let missing = |gateway: &str| MissingGateway {
            cluster: "tokyo".into(),
            gateway: gateway.into(),
            why: Some(NoAnswer { reason: NoAnswerReason::NotConnected.into(), detail: "is not connected".into() }),
        };
        let nobody = TopRow { requests_per_second: 0.5, abandoned: 1, ..TopRow::default() };
        let other = TopRow { overflow: true, ..row("", 0.2, 1, 0) };
        let ledger = TopTcpRow {
            service: "shop/ledger".into(),
            sources: vec!["paris".into()],
            destinations: vec!["tokyo".into()],
            connections_per_second: 12.5,
            connected: 24,
            failed: 1,
            open: 31,
            sent_bytes_per_second: 1_234_567.0,
            received_bytes_per_second: 890.0,
            p50_micros: Some(150),
            p90_micros: Some(151_000),
            p99_micros: Some(152_000),
            p999_micros: Some(153_000),
            ..TopTcpRow::default()
        };
        let snapshot = TopSnapshot {
            elapsed_micros: 2_000_000,
            rows: vec![row("shop/checkout", 1234.5, 99_999, 1), row("shop/\u{1b}[2J", 7.25, 14, 0), nobody, other],
            rows_left_off: 3,
            gateways_reported: 4,
            missing: vec![missing("gw-1"), missing("gw-2")],
            restarted: vec![RestartedGateway { cluster: "paris".into(), gateway: "gw-1".into(), times: 1 }],
            silent_workers: 1,
            begins: false,
            tcp_rows: vec![ledger, TopTcpRow { service: "shop/quiet".into(), open: 7, ..TopTcpRow::default() }],
            tcp_rows_left_off: 1,
            tcp_missing: vec![missing("gw-3")],
            tells_tcp: true,
        };
        let view = TopView::new(snapshot, TopBy::Service).unwrap();
        let expected = "\
2.0 s at 4 of 6 gateways
2 of 6 gateways not reported: tokyo/gw-1 (is not connected), tokyo/gw-2 (is not connected)
began again, and what they counted last before that is lost: paris/gw-1
1 workers do not answer; their latest requests come later
SERVICE          FROM    TO                        REQ/S   SUCCESS   P50      P90      P99     P99.9
shop/checkout    paris   frankfurt,oslo,paris,+1   1234    99.99%    0.85ms   12.3ms   1.23s   >60s
shop/\\u{1b}[2J   paris   frankfurt,oslo,paris,+1   7.2     100.00%   0.85ms   12.3ms   1.23s   >60s
(no service)     -       -                         0.5     -         -        -        -       -
(others)         paris   frankfurt,oslo,paris,+1   0.2     100.00%   0.85ms   12.3ms   1.23s   >60s
3 more, with fewer requests; name services to see them
TCP connections not reported, by gateways of a build before this: tokyo/gw-3

TCP SERVICE   FROM    TO      CONN/S   CONNECTED   OPEN   SENT/S   RECEIVED/S   P50      P90     P99     P99.9
shop/ledger   paris   tokyo   12.5     96.00%      31     1.2MB    890B         0.15ms   151ms   152ms   153ms
shop/quiet    -       -       0.0      -           7      0B       0B           -        -       -       -
1 more, with fewer connections; name services to see them
";
        assert_eq!(view.text().render(false), expected);
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["gateways"]["missing"][0]["reason"], "notConnected");
        assert_eq!(json["gateways"]["missing"][0]["name"], "tokyo/gw-1");
        assert_eq!(json["rows"][2]["latencyMicros"], serde_json::Value::Null, "what is not known is not zero");
        assert_eq!(json["rows"][2]["successPercent"], serde_json::Value::Null);
        assert_eq!((&json["rows"][0]["requests"], json["gateways"]["expected"].as_u64()), (&100_000.into(), Some(6)));
        assert_eq!(json["tcp"]["rows"][0]["successPercent"], 96.0);
        assert_eq!(json["tcp"]["rows"][1]["connectMicros"], serde_json::Value::Null);
        assert_eq!(json["tcp"]["notReported"][0]["name"], "tokyo/gw-3");
        let version = TopView::new(TopSnapshot::default(), TopBy::Version).unwrap().text().render(false);
        let old = "the member that was asked is of a build that does not report TCP connections";
        assert_eq!(version, format!("0.0 s at 0 of 0 gateways\nnothing is known\n{old}\n"));
        let old = serde_json::to_value(TopView::new(TopSnapshot::default(), TopBy::Service).unwrap()).unwrap();
        assert_eq!(old["tcp"], serde_json::Value::Null, "what is not reported is not none");
    }

    #[test]
    fn histograms_are_shown_if_they_were_asked_for() {
        let mut tally = Tally::default();
        [5, 5, 1_000].into_iter().for_each(|micros| tally.record(micros));
        let row = RowView::new(TopRow { counts: tally.counted().encode(), ..row("shop/web", 1.0, 3, 0) }).unwrap();
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(
            json["histogram"],
            serde_json::json!([
                { "fromMicros": 5, "toMicros": 5, "requests": 2 },
                { "fromMicros": 1000, "toMicros": 1003, "requests": 1 },
            ])
        );
        assert!(RowView::new(TopRow { counts: vec![1], ..TopRow::default() }).is_err());
    }
}
