//! `events`: what happened, and who says it.

use archipelago_proto::v1::{self, EventSeverity, EventSourceState};
use serde::Serialize;

use crate::output::{Cell, Table, Text};

/// `events`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventsView {
    pub(crate) events: Vec<EventView>,
    pub(crate) sources: Vec<SourceView>,
}

/// `.events[]`, and a line of `events --follow -o json`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    /// Of the last time.
    pub(crate) time: Option<String>,
    pub(crate) unix_ms: i64,
    /// Of the first time, of what happened more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_unix_ms: Option<i64>,
    pub(crate) count: u32,
    pub(crate) severity: &'static str,
    pub(crate) kind: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// "cluster/gateway".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
    /// A resource, an endpoint or an identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
    /// "cluster/gateway", a member such as "cp-1", or "log".
    pub(crate) source: String,
    /// Names the event among those of its source, together with `id`.
    pub(crate) incarnation: u64,
    pub(crate) id: u64,
}

/// `.sources[]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SourceView {
    pub(crate) name: String,
    /// "heard", "not reported", "unreachable".
    pub(crate) state: &'static str,
    /// What happened from here on is known; absent: that is not known.
    pub(crate) since: Option<String>,
    /// Events that were forgotten before anybody heard of them.
    pub(crate) lost: u64,
}

impl EventsView {
    pub(crate) fn new(answer: v1::ListEventsResponse) -> Self {
        Self {
            events: answer.events.into_iter().map(EventView::new).collect(),
            sources: answer.sources.into_iter().map(SourceView::new).collect(),
        }
    }

    /// The rows, oldest first.
    pub(crate) fn text(&self, wide: bool) -> Text {
        let mut table = Table::new(EventView::headings(wide));
        for event in &self.events {
            table.row(event.cells(wide));
        }
        table.into()
    }
}

impl EventView {
    pub(crate) fn new(event: v1::Event) -> Self {
        let severity = match event.severity() {
            EventSeverity::Warning => "warning",
            EventSeverity::Error => "error",
            EventSeverity::Info | EventSeverity::Unspecified => "info",
        };
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            time: time(event.last_unix_ms),
            unix_ms: event.last_unix_ms,
            first_unix_ms: (event.count > 1).then_some(event.first_unix_ms),
            count: event.count,
            severity,
            kind: event.kind,
            reason: event.reason,
            message: event.message,
            service: some(event.service),
            cluster: some(event.cluster),
            gateway: some(event.gateway),
            subject: some(event.subject),
            actor: some(event.actor),
            revision: (event.revision > 0).then_some(event.revision),
            source: event.source,
            incarnation: event.incarnation,
            id: event.id,
        }
    }

    pub(crate) fn headings(wide: bool) -> &'static [&'static str] {
        match wide {
            true => &["TIME", "SEVERITY", "REASON", "SAID BY", "REVISION", "BY", "MESSAGE"],
            false => &["TIME", "SEVERITY", "REASON", "SAID BY", "MESSAGE"],
        }
    }

    /// A row of a table.
    pub(crate) fn cells(&self, wide: bool) -> Vec<Cell> {
        let again = if self.count > 1 { format!(" (×{})", self.count) } else { String::new() };
        let mut cells = vec![
            self.time.clone().unwrap_or_default().into(),
            Cell::state(self.severity),
            self.reason.clone().into(),
            self.source.clone().into(),
        ];
        if wide {
            cells.push(self.revision.map(|revision| revision.to_string()).unwrap_or_default().into());
            cells.push(self.actor.clone().unwrap_or_default().into());
        }
        cells.push(format!("{}{again}", self.message).into());
        cells
    }

    /// A row by itself: as wide as what usually stands there.
    pub(crate) fn line(&self, wide: bool) -> Text {
        let mut table = Table::new(&[]);
        let widths = WIDTHS.iter().copied().chain(std::iter::repeat(0));
        table.row(self.cells(wide).into_iter().zip(widths).map(|(cell, width)| cell.padded(width)));
        table.into()
    }
}

impl SourceView {
    pub(crate) fn new(source: v1::EventSource) -> Self {
        let state = match source.state() {
            EventSourceState::Heard => "heard",
            EventSourceState::NotReported => "not reported",
            EventSourceState::Unreachable | EventSourceState::Unspecified => "unreachable",
        };
        Self { name: source.source, state, since: time(source.since_unix_ms), lost: source.lost }
    }

    /// What people should know who read the list; `since_unix_ms`: how far back they asked.
    pub(crate) fn note(&self) -> Option<String> {
        let Self { name, state, lost, .. } = self;
        match *state {
            "not reported" => Some(format!("{name} does not say what it sees: it runs a version from before events")),
            "unreachable" => Some(format!("{name} did not answer: what only it saw is missing")),
            _ if *lost > 0 => Some(format!("{name} forgot {lost} events before anybody heard of them")),
            _ => None,
        }
    }
}

/// With milliseconds, always; `None` where nothing is known.
pub(super) fn time(unix_ms: i64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(unix_ms).ok().filter(|_| unix_ms > 0)?;
    Some(format!("{time:.3}"))
}

/// A time, a severity, the longest reasons, and a gateway.
const WIDTHS: [usize; 4] = [24, 8, 20, 14];

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> v1::Event {
        v1::Event {
            source: "paris/gw-1".into(),
            incarnation: 3,
            id: 7,
            sequence: 9,
            first_unix_ms: 1_700_000_000_000,
            last_unix_ms: 1_700_000_001_500,
            count: 4,
            kind: "failover".into(),
            reason: "Failover".into(),
            severity: EventSeverity::Warning.into(),
            message: "tokyo serves shop/checkout".into(),
            service: "shop/checkout".into(),
            cluster: "paris".into(),
            revision: 12,
            ..v1::Event::default()
        }
    }

    /// Programs rely on these names.
    #[test]
    fn golden_json() {
        let source = v1::EventSource {
            source: "tokyo/gw-2".into(),
            state: EventSourceState::NotReported.into(),
            ..v1::EventSource::default()
        };
        let view = EventsView::new(v1::ListEventsResponse { events: vec![event()], sources: vec![source] });
        assert_eq!(
            serde_json::to_value(&view).unwrap(),
            serde_json::json!({
                "events": [{
                    "time": "2023-11-14T22:13:21.500Z", "unixMs": 1_700_000_001_500_i64, "firstUnixMs": 1_700_000_000_000_i64,
                    "count": 4, "severity": "warning", "kind": "failover", "reason": "Failover",
                    "message": "tokyo serves shop/checkout", "service": "shop/checkout", "cluster": "paris", "revision": 12,
                    "source": "paris/gw-1", "incarnation": 3, "id": 7,
                }],
                "sources": [{ "name": "tokyo/gw-2", "state": "not reported", "since": null, "lost": 0 }],
            })
        );
        assert!(view.sources[0].note().unwrap().contains("tokyo/gw-2"));
    }

    #[test]
    fn rows_are_the_same_one_by_one_and_do_nothing_to_a_terminal() {
        let hostile = v1::Event { message: "\u{1b}]0;mine\u{7}".into(), source: "paris/\u{1b}[2J".into(), ..event() };
        let row = EventView::new(hostile).line(true).render(false);
        assert!(!row.contains(|c: char| c.is_control() && c != '\n'), "{row:?}");
        let row = EventView::new(event()).line(false).render(false);
        assert_eq!(
            row,
            "2023-11-14T22:13:21.500Z   warning    Failover               paris/gw-1       tokyo serves shop/checkout (×4)\n"
        );
    }
}
