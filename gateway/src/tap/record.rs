//! What is said of a request: facts for the filter, and a record of those that it takes.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use archipelago_http::RequestHead;
use archipelago_proto::v1::TapRecord;
use archipelago_telemetry::filter::{Fact, Field};

use crate::exchange::books::{Done, Record, Text};
use crate::ledger::report;
use crate::ledger::trail::endpoint_of;
use crate::worker::Worker;
use crate::worker::view::Target;

/// One fact of a request that has its texts.
pub(super) fn fact<'a>(worker: &'a Worker, done: &'a Done<'a>, field: Field) -> Fact<'a> {
    let record = done.record;
    let known = |text: Option<&'a str>| {
        text.filter(|text| !text.is_empty()).map_or(Fact::Unknown, |text| Fact::Text(text.into()))
    };
    let text = |get: fn(&'a Text) -> &'a String| known(record.text.as_deref().map(|text| get(text).as_str()));
    match field {
        Field::Service => known(record.service.as_deref()),
        Field::Source => known(Some(&record.source_cluster)),
        Field::Destination => known(record.destination_cluster.as_deref()),
        Field::Gateway => Fact::Text(format!("{}/{}", worker.identity.cluster, worker.identity.gateway).into()),
        Field::Peer => match target(record) {
            Some(Target::Remote(remote)) => Fact::Text(remote.name.to_string().into()),
            _ => Fact::Unknown,
        },
        Field::Endpoint => match endpoint_of(target(record), record.trail.far()) {
            Some(address) => Fact::Text(address.to_string().into()),
            None => Fact::Unknown,
        },
        Field::Version => known(record.version.as_deref()),
        Field::Rule => text(|t| &t.rule),
        Field::Workload => text(|t| &t.source),
        Field::Method => text(|t| &t.method),
        Field::Host => text(|t| &t.authority),
        Field::Path => text(|t| &t.path),
        Field::Protocol => text(|t| &t.protocol),
        Field::RequestId => text(|t| &t.request_id),
        Field::TraceId => text(|t| &t.trace_id),
        // Its sender was gone before there was one.
        Field::Status if record.code == 0 => Fact::Unknown,
        Field::Status => Fact::Number(record.code.into()),
        Field::Flags => Fact::Text(record.flags.into()),
        Field::Attempts => Fact::Number(record.attempts.into()),
        Field::Duration => Fact::Number(u64::try_from(done.duration.as_micros()).unwrap_or(u64::MAX)),
        Field::Received => Fact::Number(done.bytes_received),
        Field::Sent => Fact::Number(done.bytes_sent),
    }
}

/// A record without its number.
pub(super) fn of(done: &Done<'_>, head: Option<&RequestHead>, end: Instant) -> TapRecord {
    let record = done.record;
    let mut request = report::entry(record, head, end);
    let short = |text: &str| report::short(text);
    let Some(text) = record.text.as_deref() else { return TapRecord::default() };
    // Also of one that was sent to nobody, whose head is gone.
    (request.method, request.path) = (short(&text.method), short(&text.path));
    request.trace_id = short(&text.trace_id);
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    TapRecord {
        sequence: 0,
        ended_unix_ms: i64::try_from(ended).unwrap_or(i64::MAX),
        service: record.service.as_deref().unwrap_or_default().to_owned(),
        request: Some(request),
        authority: short(&text.authority),
        protocol: short(&text.protocol),
        rule: short(&text.rule),
        version: short(record.version.as_deref().unwrap_or_default()),
        workload: short(&text.source),
        request_id: short(&text.request_id),
        received: done.bytes_received,
        sent: done.bytes_sent,
        revision: record.revision,
    }
}

fn target(record: &Record) -> Option<&Target> {
    record.trail.target().or(record.trail.lost_at())
}
