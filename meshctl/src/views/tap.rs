//! `tap`: one request.

use std::collections::BTreeMap;

use archipelago_proto::v1::TapRecord;
use serde::Serialize;

use super::events::time;
use super::qualified;
use crate::duration::measured;
use crate::output::{Cell, Table, Text};
use crate::slow::Hop;

/// A line of `tap -o json`. Under the names that filters use, numbers with their units behind them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TapView {
    /// When it ended, by its gateway's clock.
    time: Option<String>,
    unix_ms: i64,
    /// Null: no service was found.
    service: Option<String>,
    source: String,
    /// Null: it was sent nowhere.
    destination: Option<String>,
    /// `cluster/gateway` where it entered.
    gateway: String,
    /// `cluster/gateway` behind the tunnel.
    peer: Option<String>,
    endpoint: Option<String>,
    /// Null: it has none, or is known by the other cluster only.
    version: Option<String>,
    rule: Option<String>,
    workload: Option<String>,
    method: Option<String>,
    host: Option<String>,
    path: Option<String>,
    protocol: Option<String>,
    /// Null: its sender was gone before there was one.
    status: Option<u32>,
    /// Envoy's letters; empty: all went well.
    flags: String,
    attempts: u32,
    duration_micros: u64,
    received_bytes: u64,
    sent_bytes: u64,
    request_id: Option<String>,
    trace_id: Option<String>,
    revision: u64,
    /// Microseconds by hop, as `slow` names them.
    hops: BTreeMap<&'static str, u64>,
}

impl TapView {
    /// What the gateway of this cluster told.
    pub(crate) fn new(cluster: &str, gateway: &str, record: TapRecord) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let request = record.request.unwrap_or_default();
        let hops = request.hops.unwrap_or_default();
        Self {
            time: time(record.ended_unix_ms),
            unix_ms: record.ended_unix_ms,
            service: some(record.service),
            source: cluster.to_owned(),
            destination: some(request.cluster),
            gateway: qualified(cluster, gateway),
            peer: some(request.gateway),
            endpoint: some(request.endpoint),
            version: some(record.version),
            rule: some(record.rule),
            workload: some(record.workload),
            method: some(request.method),
            host: some(record.authority),
            path: some(request.path),
            protocol: some(record.protocol),
            status: (request.status > 0).then_some(request.status),
            flags: request.flags,
            attempts: request.attempts,
            duration_micros: request.total_us,
            received_bytes: record.received,
            sent_bytes: record.sent,
            request_id: some(record.request_id),
            trace_id: some(request.trace_id),
            revision: record.revision,
            hops: Hop::ALL.into_iter().map(|hop| (hop.word(), hop.of(&hops))).collect(),
        }
    }

    /// Of a table that is printed row by row.
    pub(crate) fn headings(wide: bool) -> Text {
        let names: &[&str] = match wide {
            true => &["TIME", "STATUS", "TOOK", "FROM", "TO", "SERVICE", "FLAGS", "ENDPOINT", "WORKLOAD", "REQUEST"],
            false => &["TIME", "STATUS", "TOOK", "FROM", "TO", "SERVICE", "REQUEST"],
        };
        line(names.iter().map(|name| Cell::from(*name)), wide)
    }

    /// A row by itself.
    pub(crate) fn line(&self, wide: bool) -> Text {
        let known = |text: &Option<String>| Cell::from(text.clone().unwrap_or_else(|| "-".to_owned()));
        let status = self.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        let mut cells = vec![
            known(&self.time),
            status.into(),
            measured(self.duration_micros).into(),
            self.source.clone().into(),
            known(&self.destination),
            known(&self.service),
        ];
        if wide {
            let flags = if self.flags.is_empty() { "-" } else { &self.flags };
            cells.extend([flags.into(), known(&self.endpoint), known(&self.workload)]);
        }
        let path = self.path.as_deref().unwrap_or_default();
        let host = self.host.as_deref().filter(|_| wide).unwrap_or_default();
        cells.push(format!("{} {host}{path}", self.method.as_deref().unwrap_or("-")).into());
        line(cells.into_iter(), wide)
    }
}

/// As wide as what usually stands there.
fn line(cells: impl Iterator<Item = Cell>, wide: bool) -> Text {
    let mut table = Table::new(&[]);
    let widths = if wide { &WIDTHS[..] } else { &WIDTHS[..6] };
    let widths = widths.iter().copied().chain(std::iter::repeat(0));
    table.row(cells.zip(widths).map(|(cell, width)| cell.padded(width)));
    table.into()
}

/// A time, a status, a duration, two clusters, a service; flags, an address, and a workload, which are longer or not there.
const WIDTHS: [usize; 9] = [24, 6, 8, 9, 9, 16, 5, 20, 8];

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::{SlowHops, SlowRequest};
    use archipelago_telemetry::filter::Field;

    use super::*;

    fn record() -> TapRecord {
        let request = SlowRequest {
            total_us: 250_000,
            status: 503,
            flags: "UF,URX".into(),
            method: "GET".into(),
            path: "/pay".into(),
            cluster: "tokyo".into(),
            gateway: "tokyo/gw-2".into(),
            endpoint: "10.0.0.7:8080".into(),
            attempts: 2,
            hops: Some(SlowHops { queue: 7, ..SlowHops::default() }),
            ..SlowRequest::default()
        };
        TapRecord {
            sequence: 9,
            ended_unix_ms: 1_700_000_001_500,
            service: "shop/checkout".into(),
            request: Some(request),
            authority: "checkout.shop".into(),
            protocol: "HTTP/1.1".into(),
            sent: 12,
            revision: 4,
            ..TapRecord::default()
        }
    }

    /// Programs rely on these names.
    #[test]
    fn golden_json() {
        let shown = serde_json::to_value(TapView::new("paris", "gw-1", record())).unwrap();
        let hops = ["beyond", "body", "connect", "endpoint-wait", "far-lost", "far-queue", "first-byte", "lost"];
        let mut expected = serde_json::json!({
            "time": "2023-11-14T22:13:21.500Z", "unixMs": 1_700_000_001_500_i64, "service": "shop/checkout", "source": "paris",
            "destination": "tokyo", "gateway": "paris/gw-1", "peer": "tokyo/gw-2", "endpoint": "10.0.0.7:8080", "version": null,
            "rule": null, "workload": null, "method": "GET", "host": "checkout.shop", "path": "/pay", "protocol": "HTTP/1.1",
            "status": 503, "flags": "UF,URX", "attempts": 2, "durationMicros": 250_000, "receivedBytes": 0, "sentBytes": 12,
            "requestId": null, "traceId": null, "revision": 4,
            "hops": { "queue": 7, "tunnel": 0, "tunnel-wait": 0, "upload": 0 },
        });
        for hop in hops {
            expected["hops"][hop] = 0.into();
        }
        assert_eq!(shown, expected);
    }

    #[test]
    fn whatever_a_filter_asks_for_is_shown_under_its_name() {
        let shown = serde_json::to_value(TapView::new("paris", "gw-1", record())).unwrap();
        for (field, name, _) in Field::ALL {
            let unit = match field {
                Field::Duration => "Micros",
                Field::Received | Field::Sent => "Bytes",
                _ => "",
            };
            let words: Vec<&str> = name.split('-').collect();
            let name = words.iter().enumerate().map(|(index, word)| match (index, word.split_at(1)) {
                (0, _) => (*word).to_owned(),
                (_, (first, rest)) => first.to_uppercase() + rest,
            });
            let name = format!("{}{unit}", name.collect::<String>());
            assert!(shown.get(&name).is_some(), "{name}");
        }
    }

    #[test]
    fn rows_are_aligned_and_do_nothing_to_a_terminal() {
        let shown = TapView::new("paris", "gw-1", record());
        let rows = TapView::headings(false).render(false) + &shown.line(false).render(false);
        assert_eq!(
            rows,
            "\
TIME                       STATUS   TOOK       FROM        TO          SERVICE            REQUEST
2023-11-14T22:13:21.500Z   503      250.0 ms   paris       tokyo       shop/checkout      GET /pay
"
        );
        let wide = shown.line(true).render(false);
        assert!(wide.contains("UF,URX") && wide.ends_with("GET checkout.shop/pay\n"), "{wide}");
        let mut hostile = record();
        hostile.authority = "\u{1b}]0;mine\u{7}".into();
        hostile.request.as_mut().unwrap().path = "/\u{1b}[2J\n503\u{202e}".into();
        let row = TapView::new("paris", "gw-1", hostile).line(true).render(true);
        assert!(!row.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{row:?}");
        let gone = TapRecord { request: Some(SlowRequest::default()), ..TapRecord::default() };
        let row = TapView::new("paris", "gw-1", gone).line(false).render(false);
        assert!(row.starts_with("-                          -        0 µs"), "{row:?}");
    }
}
