//! `top`: TCP services in one window.

use archipelago_proto::v1::{MissingGateway, TopBy, TopTcpRow};
use serde::Serialize;

use super::{LatencyView, MissingView, clusters, latency_cells, percent, rate, share};
use crate::output::{Cell, Table};

/// `.tcp`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcpView {
    /// The busiest first.
    pub(super) rows: Vec<TcpRowView>,
    pub(super) rows_left_off: u32,
    /// Gateways whose requests are counted and whose TCP connections are not.
    pub(super) not_reported: Vec<MissingView>,
}

/// `.tcp.rows[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcpRowView {
    /// Null: of services that gateways do not count apart.
    service: Option<String>,
    /// Null unless by version.
    version: Option<String>,
    sources: Vec<String>,
    destinations: Vec<String>,
    /// Of services beyond those that gateways count apart.
    overflow: bool,
    /// Begun in a second, whether somebody took them or not.
    connections_per_second: f64,
    connected: u64,
    failed: u64,
    /// Null: none began.
    success_percent: Option<f64>,
    /// Now, those that began before the window as well.
    open: u64,
    /// Towards the service.
    sent_bytes_per_second: f64,
    /// Towards clients.
    received_bytes_per_second: f64,
    /// Until somebody had taken them. Null: nobody took any.
    connect_micros: Option<LatencyView>,
}

impl TcpView {
    pub(super) fn new(rows: Vec<TopTcpRow>, rows_left_off: u32, missing: Vec<MissingGateway>) -> Self {
        Self {
            rows: rows.into_iter().map(TcpRowView::new).collect(),
            rows_left_off,
            not_reported: missing.into_iter().map(MissingView::new).collect(),
        }
    }

    /// For people.
    pub(super) fn table(&self, by: TopBy) -> Table {
        let mut headings = vec!["TCP SERVICE"];
        headings.extend((by == TopBy::Version).then_some("VERSION"));
        headings.extend(["FROM", "TO", "CONN/S", "CONNECTED", "OPEN", "SENT/S", "RECEIVED/S"]);
        headings.extend(["P50", "P90", "P99", "P99.9"]);
        let mut table = Table::new(&headings);
        for row in &self.rows {
            let mut cells: Vec<Cell> = vec![row.service.as_deref().unwrap_or("(others)").into()];
            if by == TopBy::Version {
                cells.push(row.version.as_deref().unwrap_or("-").into());
            }
            cells.push(clusters(&row.sources).into());
            cells.push(clusters(&row.destinations).into());
            cells.push(rate(row.connections_per_second).into());
            cells.push(row.success_percent.map_or_else(|| "-".to_owned(), percent).into());
            cells.push(row.open.into());
            cells.push(bytes(row.sent_bytes_per_second).into());
            cells.push(bytes(row.received_bytes_per_second).into());
            cells.extend(latency_cells(row.connect_micros.as_ref()));
            table.row(cells);
        }
        table
    }
}

impl TcpRowView {
    fn new(row: TopTcpRow) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            service: some(row.service),
            version: some(row.version),
            sources: row.sources,
            destinations: row.destinations,
            overflow: row.overflow,
            connections_per_second: row.connections_per_second,
            connected: row.connected,
            failed: row.failed,
            success_percent: share(row.connected, row.failed),
            open: row.open,
            sent_bytes_per_second: row.sent_bytes_per_second,
            received_bytes_per_second: row.received_bytes_per_second,
            connect_micros: LatencyView::new([row.p50_micros, row.p90_micros, row.p99_micros, row.p999_micros]),
        }
    }
}

/// Bytes in a second, in the unit that has three digits of them at most.
fn bytes(per_second: f64) -> String {
    let mut value = per_second;
    for unit in ["B", "KB", "MB", "GB"] {
        if value < 999.5 {
            return if value < 9.95 && unit != "B" { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") };
        }
        value /= 1e3;
    }
    format!("{value:.1}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_their_unit() {
        let all = [0.0, 0.4, 999.4, 999.6, 9_940.0, 9_960.0, 12_345.0, 5.5e6, 1.25e9, 3e12].map(bytes);
        assert_eq!(all, ["0B", "0B", "999B", "1.0KB", "9.9KB", "10KB", "12KB", "5.5MB", "1.2GB", "3.0TB"]);
    }
}
