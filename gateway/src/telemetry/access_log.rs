//! One JSON object per request, written by a thread of its own. The queue is bounded: a slow disk loses lines (counted), never
//! requests.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::exchange::books::{Done, Hedge};

/// Where workers hand lines in; cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer: `-` is standard output, `off` is no log at all.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn start(target: &str, dropped: Counter) -> io::Result<Option<Self>> {
        let out: Box<dyn Write + Send> = match target {
            "off" => return Ok(None),
            "-" => Box::new(io::stdout()),
            path => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (lines, queue) = sync_channel(LINES_QUEUED_MAX);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&queue, BufWriter::with_capacity(BUFFER_BYTES, out)))?;
        Ok(Some(Self { lines, dropped }))
    }

    /// Hands in one request.
    pub fn log(&self, done: &Done<'_>) {
        let line = Line::new(done);
        let Ok(mut bytes) = serde_json::to_vec(&line) else { return };
        bytes.push(b'\n');
        if self.lines.try_send(bytes).is_err() {
            self.dropped.inc();
        }
    }
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
            response_flags: record.flags,
            bytes_received: done.bytes_received,
            bytes_sent: done.bytes_sent,
            duration: (done.duration.as_secs_f64() * 1e6).round() / 1e3,
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
            failure: of(|t| &t.failure),
        }
    }
}

/// At 200 bytes a line, 3 MiB.
const LINES_QUEUED_MAX: usize = 16_384;
const BUFFER_BYTES: usize = 64 * 1024;
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
