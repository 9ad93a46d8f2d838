//! One JSON object per request, written by a thread of its own. The queue is bounded: a slow disk loses lines (counted), never
//! requests.
//!
//! Whatever clients and services say stands in strings of JSON in which nothing is left that ends a line or that a terminal obeys.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::exchange::books::{Done, Hedge, Reporter};
use crate::exchange::grpc::Status;
use crate::worker::view::Target;

/// Where workers hand lines in; cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    sample: f64,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer: `-` is standard output, `off` is no log at all. Of requests that went well it takes `sample`, from 0 to 1.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn start(target: &str, sample: f64, dropped: Counter) -> io::Result<Option<Self>> {
        let out: Box<dyn Write + Send> = match target {
            "off" => return Ok(None),
            "-" => Box::new(io::stdout()),
            path => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (lines, queue) = sync_channel(LINES_QUEUED_MAX);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&queue, BufWriter::with_capacity(BUFFER_BYTES, out)))?;
        Ok(Some(Self { lines, sample, dropped }))
    }

    /// Hands in one request, if it is one to be logged.
    pub fn log(&self, done: &Done<'_>, random: u64) {
        let has_failed = done.record.grpc.status().is_some_and(Status::is_failure);
        let is_ordinary = done.record.flags.is_empty() && (100..500).contains(&done.record.code) && !has_failed;
        // 53 bits, as many as such a number has: no rounding takes the last of them for one more than all.
        if is_ordinary && (random >> 11) as f64 >= self.sample * (1_u64 << 53) as f64 {
            return;
        }
        let Some(line) = line(&Line::new(done)) else { return };
        if self.lines.try_send(line.into_bytes()).is_err() {
            self.dropped.inc();
        }
    }
}

/// An object as a line. Control characters that JSON allows, and those that turn the order of others around, are escaped as well.
fn line(object: &impl Serialize) -> Option<String> {
    let mut text = serde_json::to_string(object).ok()?;
    if text.bytes().any(|byte| byte >= 0x7f) {
        let escaped = |text: String, char: char| match char {
            '\u{7f}'..='\u{9f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{200e}'..='\u{200f}'
            | '\u{feff}' => {
                format!("{text}\\u{:04x}", u32::from(char))
            }
            _ => text + char.encode_utf8(&mut [0; 4]),
        };
        text = text.chars().fold(String::with_capacity(text.len() + 1), escaped);
    }
    text.push('\n');
    Some(text)
}

fn write(queue: &Receiver<Vec<u8>>, mut out: impl Write) {
    let mut failing = false;
    loop {
        let result = match queue.recv_timeout(FLUSH_INTERVAL) {
            Ok(line) => out.write_all(&line),
            Err(RecvTimeoutError::Timeout) => out.flush(),
            Err(RecvTimeoutError::Disconnected) => {
                let _ = out.flush();
                return;
            }
        };
        match result {
            Err(error) if !failing => {
                tracing::warn!(%error, "the access log cannot be written; lines are lost until it can");
                failing = true;
            }
            Ok(()) => failing = false,
            Err(_) => {}
        }
    }
}

/// Keys as Envoy names them.
#[derive(Serialize)]
struct Line<'a> {
    start_time: String,
    method: &'a str,
    path: &'a str,
    protocol: &'a str,
    authority: &'a str,
    response_code: u16,
    /// Of a gRPC call.
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
    response_flags: &'a str,
    bytes_received: u64,
    bytes_sent: u64,
    /// Milliseconds.
    duration: f64,
    upstream_host: &'a str,
    upstream_cluster: &'a str,
    source_cluster: &'a str,
    service: &'a str,
    route_name: &'a str,
    revision: u64,
    reporter: &'a str,
    attempt: u32,
    /// Where two attempts ran side by side: which of them was answered first.
    #[serde(skip_serializing_if = "str::is_empty")]
    hedge: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    x_request_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    peer_spiffe_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    downstream_tls_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    downstream_tls_cipher: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    requested_server_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    upstream_tls_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    failure: &'a str,
}

impl<'a> Line<'a> {
    fn new(done: &'a Done<'a>) -> Self {
        let record = done.record;
        let text = record.text.as_deref();
        let of = |get: fn(&'a crate::exchange::books::Text) -> &'a String| text.map_or("", |t| get(t).as_str());
        Self {
            start_time: text
                .and_then(|text| jiff::Timestamp::try_from(text.start_time).ok())
                .map(|t| format!("{t:.3}"))
                .unwrap_or_default(),
            method: of(|t| &t.method),
            path: of(|t| &t.path),
            protocol: of(|t| &t.protocol),
            authority: of(|t| &t.authority),
            response_code: record.code,
            grpc_status: record.grpc.status().map(Status::number),
            response_flags: record.flags,
            bytes_received: done.bytes_received,
            bytes_sent: done.bytes_sent,
            duration: (record.lasted.unwrap_or(done.duration).as_secs_f64() * 1e6).round() / 1e3,
            upstream_host: of(|t| &t.upstream_host),
            upstream_cluster: record.destination_cluster.as_deref().unwrap_or(""),
            source_cluster: &record.source_cluster,
            service: record.service.as_deref().unwrap_or(""),
            route_name: of(|t| &t.rule),
            revision: record.revision,
            reporter: record.reporter.label(),
            attempt: record.attempts,
            hedge: record.hedge.map_or("", Hedge::label),
            x_request_id: of(|t| &t.request_id),
            trace_id: of(|t| &t.trace_id),
            source: of(|t| &t.source),
            peer_spiffe_id: of(|t| &t.peer_spiffe_id),
            downstream_tls_version: match &record.tls {
                Some(tls) => tls.version,
                None if record.reporter == Reporter::Destination => TLS_OF_QUIC,
                None => "",
            },
            downstream_tls_cipher: record.tls.as_ref().map_or("", |tls| &tls.cipher),
            requested_server_name: record.tls.as_ref().map_or("", |tls| &tls.server_name),
            upstream_tls_version: match record.trail.target() {
                Some(Target::Remote(_)) => TLS_OF_QUIC,
                _ => "",
            },
            failure: of(|t| &t.failure),
        }
    }
}

/// Tunnels are QUIC, which has no other (RFC 9001 §4.2); endpoints are spoken to in the clear.
const TLS_OF_QUIC: &str = "TLSv1.3";
/// At 500 bytes a line 8 MiB, and at the longest that a client can make it 100.
const LINES_QUEUED_MAX: usize = 16_384;
const BUFFER_BYTES: usize = 64 * 1024;
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::books::{Record, Text};
    use crate::exchange::grpc::Grpc;
    use proptest::prelude::*;
    use std::time::{Instant, SystemTime};

    fn text(hostile: &str) -> Text {
        let text = || hostile.to_owned();
        Text {
            start_time: SystemTime::now(),
            rule: text(),
            method: text(),
            path: text(),
            protocol: text(),
            authority: text(),
            upstream_host: text(),
            request_id: text(),
            trace_id: text(),
            source: text(),
            peer_spiffe_id: text(),
            failure: text(),
        }
    }

    fn record(code: u16, flags: &'static str) -> Record {
        let mut record = Record::new(Reporter::Destination, "paris".into(), Instant::now());
        (record.code, record.flags) = (code, flags);
        record
    }

    fn done(record: &Record) -> Done<'_> {
        Done { record, duration: Duration::from_micros(1_500), bytes_received: 0, bytes_sent: 0 }
    }

    proptest! {
        #[test]
        fn nothing_that_anybody_says_breaks_a_line(bytes: Vec<u8>, hostile in "\\PC*", controls in "[\u{0}-\u{20}\u{7e}-\u{a0}\u{2028}-\u{202e}\"\\\\]{0,20}") {
            for hostile in [&String::from_utf8_lossy(&bytes), &*hostile, &controls] {
                let mut record = record(200, "");
                record.text = Some(Box::new(text(hostile)));
                let line = line(&Line::new(&done(&record))).unwrap();
                prop_assert!(line.ends_with('\n') && !line.trim_end_matches('\n').contains(char::is_control), "{}", line);
                let turns = ['\u{2028}', '\u{2029}', '\u{202e}'];
                prop_assert!(!line.contains(turns));
                let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                prop_assert_eq!(&read["path"], hostile, "and it is read as it was");
                prop_assert_eq!(&read["authority"], hostile);
            }
        }
    }

    #[test]
    fn of_what_went_well_a_sample_is_enough() {
        let (lines, queue) = sync_channel(100);
        let log = AccessLog { lines, sample: 0.25, dropped: Counter::default() };
        let logged = |code, flags, random| {
            log.log(&done(&record(code, flags)), random);
            queue.try_recv().is_ok()
        };
        assert!(logged(200, "", 0) && logged(404, "", u64::MAX / 5) && !logged(200, "", u64::MAX / 3));
        for (code, flags) in [(500, ""), (503, "UH"), (200, "UC"), (0, "DC")] {
            assert!(logged(code, flags, u64::MAX), "{code} {flags}");
        }
        let call = |status| Record { grpc: Grpc::Status(Status::new(status)), ..record(200, "") };
        log.log(&done(&call(14)), u64::MAX);
        let failed: serde_json::Value = serde_json::from_slice(&queue.try_recv().unwrap()).unwrap();
        assert_eq!((&failed["response_code"], &failed["grpc_status"]), (&200.into(), &14.into()));
        log.log(&done(&call(5)), u64::MAX);
        assert!(queue.try_recv().is_err(), "what the service has not is no failure of it");
        let all = AccessLog { sample: 1.0, ..log.clone() };
        all.log(&done(&record(200, "")), u64::MAX);
        assert!(queue.try_recv().is_ok());
    }
}
