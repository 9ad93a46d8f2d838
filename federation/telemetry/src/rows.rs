//! What happened in a window, by what people ask for.

use std::collections::{BTreeMap, BTreeSet};

use crate::counts::Counts;
use crate::flow::{Flow, FlowKey};
use crate::key::{Key, Reporter};
use crate::window::Snapshot;

/// What is told apart, beside services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// Nothing.
    #[default]
    Service,
    /// The cluster that served.
    Destination,
    /// The cluster at which requests entered, and the one that served.
    Source,
    /// The version that served, and its cluster. As the gateways beside the endpoints saw it: without the tunnel, and each attempt.
    Version,
}

/// Requests that have in common what was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// `None`: no service was found for them.
    pub service: Option<Box<str>>,
    /// Only by version; `None`: no endpoint was reached, or it names none.
    pub version: Option<Box<str>>,
    /// Where they entered.
    pub sources: BTreeSet<Box<str>>,
    /// Where they were sent.
    pub destinations: BTreeSet<Box<str>>,
    /// Of series beyond those that a gateway keeps: their services are not known.
    pub overflow: bool,
    /// In a second.
    pub per_second: f64,
    /// Responses below 500 that arrived.
    pub succeeded: u64,
    /// Responses from 500 on, and those that broke off.
    pub failed: u64,
    /// Given up by their clients.
    pub abandoned: u64,
    /// How long all of them took.
    pub counts: Counts,
}

impl Row {
    /// All of them.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.succeeded + self.failed + self.abandoned
    }
}

/// Rows by `by`, the busiest first.
#[must_use]
pub fn rows(snapshot: &Snapshot, by: By) -> Vec<Row> {
    let mut rows: BTreeMap<(bool, &str, &str, &str, &str), Row> = BTreeMap::new();
    for (key, measured) in &snapshot.measured {
        if !is_counted(key, by) {
            continue;
        }
        let none = "";
        let (version, source, destination) = match by {
            By::Service => (none, none, none),
            By::Destination => (none, none, &*key.destination),
            By::Source => (none, &*key.source, &*key.destination),
            By::Version => (&*key.version, none, &*key.destination),
        };
        let row = rows.entry((key.overflow, &key.service, version, source, destination)).or_insert_with(|| Row {
            service: (!key.service.is_empty()).then(|| key.service.clone()),
            version: (!version.is_empty()).then(|| version.into()),
            overflow: key.overflow,
            ..Row::default()
        });
        row.sources.extend((!key.source.is_empty()).then(|| key.source.clone()));
        row.destinations.extend((!key.destination.is_empty()).then(|| key.destination.clone()));
        row.per_second += measured.per_second;
        let requests = measured.counts.total();
        *match key.outcome.is_success() {
            Some(true) => &mut row.succeeded,
            Some(false) => &mut row.failed,
            None => &mut row.abandoned,
        } += requests;
        row.counts.add(&measured.counts);
    }
    // By name where they are alike, which the order of the keys is.
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
    rows
}

/// TCP connections that have in common what was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FlowRow {
    /// `None`: of series beyond those that a gateway keeps.
    pub service: Option<Box<str>>,
    /// Only by version; `None`: nobody took them, or who did names none.
    pub version: Option<Box<str>>,
    /// Where they entered.
    pub sources: BTreeSet<Box<str>>,
    /// Who took them.
    pub destinations: BTreeSet<Box<str>>,
    /// Of series beyond those that a gateway keeps.
    pub overflow: bool,
    /// Begun in a second.
    pub per_second: f64,
    /// What came.
    pub flow: Flow,
    /// Open at the end.
    pub open: u64,
    /// Bytes towards the service in a second.
    pub sent_per_second: f64,
    /// Bytes towards clients in a second.
    pub received_per_second: f64,
}

/// Rows of TCP connections by `by`, those with most new ones first, then those with most open ones.
#[must_use]
pub fn flow_rows(snapshot: &Snapshot, by: By) -> Vec<FlowRow> {
    let mut rows: BTreeMap<(bool, &str, &str, &str, &str), FlowRow> = BTreeMap::new();
    for (key, measured) in &snapshot.flows {
        let is_counted = match (by, key.reporter) {
            (By::Service | By::Destination | By::Source, reporter) => reporter == Reporter::Source,
            (By::Version, Reporter::Source) => key.overflow || key.source == key.destination,
            (By::Version, Reporter::Destination) => !key.overflow,
        };
        if !is_counted {
            continue;
        }
        let row = rows.entry(place(key, by)).or_insert_with(|| FlowRow {
            service: (!key.service.is_empty()).then(|| key.service.clone()),
            version: (by == By::Version && !key.version.is_empty()).then(|| key.version.clone()),
            overflow: key.overflow,
            ..FlowRow::default()
        });
        row.sources.extend((!key.source.is_empty()).then(|| key.source.clone()));
        row.destinations.extend((!key.destination.is_empty()).then(|| key.destination.clone()));
        row.per_second += measured.per_second;
        row.sent_per_second += measured.sent_per_second;
        row.received_per_second += measured.received_per_second;
        row.open += measured.open;
        row.flow.add(&measured.flow);
    }
    let mut rows: Vec<FlowRow> = rows.into_values().collect();
    rows.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then(b.open.cmp(&a.open)));
    rows
}

fn place(key: &FlowKey, by: By) -> (bool, &str, &str, &str, &str) {
    let (version, source, destination) = match by {
        By::Service => ("", "", ""),
        By::Destination => ("", "", &*key.destination),
        By::Source => ("", &*key.source, &*key.destination),
        By::Version => (&*key.version, "", &*key.destination),
    };
    (key.overflow, &key.service, version, source, destination)
}

/// Each request once: where it entered, or where it was served.
fn is_counted(key: &Key, by: By) -> bool {
    match (by, key.reporter) {
        (By::Service | By::Destination | By::Source, reporter) => reporter == Reporter::Source,
        (By::Version, Reporter::Source) => key.overflow || key.source == key.destination,
        (By::Version, Reporter::Destination) => !key.overflow,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::counts::Tally;
    use crate::key::Outcome;
    use crate::window::Measured;

    /// Service, version, source, destination, who reports, how it ended, how long they took.
    type Series<'a> = (&'a str, &'a str, &'a str, &'a str, Reporter, Outcome, &'a [u64]);

    fn snapshot(series: &[Series<'_>]) -> Snapshot {
        let measured = series.iter().map(|(service, version, source, destination, reporter, outcome, micros)| {
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
            micros.iter().for_each(|micros| tally.record(*micros));
            (key, Measured { counts: tally.counted(), per_second: micros.len() as f64 })
        });
        Snapshot { measured: measured.collect(), elapsed: Duration::from_secs(1), ..Snapshot::default() }
    }

    #[test]
    fn each_request_is_counted_once_whoever_reports_it() {
        use Outcome::{Abandoned, Broken, Status2xx, Status5xx};
        use Reporter::{Destination, Source};
        let snapshot = snapshot(&[
            ("shop/web", "v1", "paris", "paris", Source, Status2xx, &[100, 100, 100]),
            ("shop/web", "", "paris", "tokyo", Source, Status2xx, &[200]),
            ("shop/web", "", "paris", "", Source, Status5xx, &[50]),
            ("shop/web", "", "paris", "tokyo", Source, Broken, &[60]),
            ("shop/web", "", "tokyo", "tokyo", Source, Abandoned, &[70]),
            ("shop/web", "v2", "paris", "tokyo", Destination, Status2xx, &[150, 155]),
            ("", "", "paris", "", Source, Status5xx, &[1; 9]),
        ]);
        let of = |by| {
            let show = |names: &BTreeSet<Box<str>>| names.iter().map(|name| &**name).collect::<Vec<_>>().join(",");
            let row = |row: Row| {
                let name = row.service.as_deref().unwrap_or("-");
                let (version, from, to) =
                    (row.version.as_deref().unwrap_or("-"), show(&row.sources), show(&row.destinations));
                let (good, bad, gone) = (row.succeeded, row.failed, row.abandoned);
                assert_eq!(row.requests(), row.counts.total());
                assert_eq!(row.requests() as f64, row.per_second);
                format!("{name} {version} {from}>{to} {good}/{bad}/{gone} {:?}", row.counts.quantile(1.0))
            };
            rows(&snapshot, by).into_iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(of(By::Service), ["- - paris> 0/9/0 Some(1)", "shop/web - paris,tokyo>paris,tokyo 4/2/1 Some(200)"]);
        assert_eq!(
            of(By::Destination),
            [
                "- - paris> 0/9/0 Some(1)",
                "shop/web - paris>paris 3/0/0 Some(100)",
                "shop/web - paris,tokyo>tokyo 1/1/1 Some(200)",
                "shop/web - paris> 0/1/0 Some(50)",
            ]
        );
        assert_eq!(of(By::Source).len(), 5);
        assert_eq!(
            of(By::Version),
            [
                "shop/web v1 paris>paris 3/0/0 Some(100)",
                "shop/web v2 paris>tokyo 2/0/0 Some(155)",
                "shop/web - tokyo>tokyo 0/0/1 Some(70)",
            ]
        );
    }

    #[test]
    fn each_connection_is_counted_once_whoever_reports_it() {
        use crate::window::MeasuredFlow;
        let flow = |service: &str, source: &str, destination: &str, reporter, version: &str, per_second, open| {
            let key = FlowKey {
                service: service.into(),
                version: version.into(),
                source: source.into(),
                destination: destination.into(),
                reporter,
                overflow: false,
            };
            (
                key,
                MeasuredFlow {
                    per_second,
                    open,
                    flow: Flow { failed: 1, ..Flow::default() },
                    ..MeasuredFlow::default()
                },
            )
        };
        let flows = [
            flow("shop/ledger", "paris", "tokyo", Reporter::Source, "", 1.0, 2),
            flow("shop/ledger", "paris", "paris", Reporter::Source, "v1", 2.0, 3),
            flow("shop/ledger", "paris", "tokyo", Reporter::Destination, "v2", 1.0, 2),
            flow("shop/ledger", "paris", "", Reporter::Source, "", 4.0, 0),
            flow("shop/quiet", "paris", "tokyo", Reporter::Source, "", 0.0, 9),
        ];
        let snapshot = Snapshot { flows: flows.into(), ..Snapshot::default() };
        let of = |by| {
            let row = |row: FlowRow| {
                let list = |names: &BTreeSet<Box<str>>| names.iter().map(|name| &**name).collect::<Vec<_>>().join(",");
                let version = row.version.as_deref().unwrap_or("-").to_owned();
                let (from, to) = (list(&row.sources), list(&row.destinations));
                format!(
                    "{} {version} {from}>{to} {} {} {}",
                    row.service.unwrap(),
                    row.per_second,
                    row.open,
                    row.flow.failed
                )
            };
            flow_rows(&snapshot, by).into_iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(of(By::Service), ["shop/ledger - paris>paris,tokyo 7 5 3", "shop/quiet - paris>tokyo 0 9 1"]);
        assert_eq!(of(By::Source).len(), 4);
        assert_eq!(of(By::Version), ["shop/ledger v1 paris>paris 2 3 1", "shop/ledger v2 paris>tokyo 1 2 1"]);
    }
}
