//! What is written down about a request: one line of the access log and its place in the metrics.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::body::{BoxError, Replayable};
use super::upstream::InFlight;
use crate::worker;

/// Which side of a tunnel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reporter {
    /// The gateway at which the client's request entered.
    #[default]
    Source,
    /// The gateway that took it from a tunnel.
    Destination,
}

impl Reporter {
    /// Label value, Istio's vocabulary.
    pub fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Everything known about one request. Text for the access log is only filled in when there is one.
#[derive(Debug, Clone)]
pub struct Record {
    /// For durations.
    pub started: Instant,
    /// For people.
    pub start_time: SystemTime,
    /// Which side reports.
    pub reporter: Reporter,
    /// Cluster at which the request entered.
    pub source_cluster: Arc<str>,
    /// Cluster that served it, or was last tried.
    pub destination_cluster: Option<Arc<str>>,
    /// [`Service::key`](crate::config::Service::key).
    pub service: Option<Arc<str>>,
    /// Name of the rule.
    pub rule: Option<Arc<str>>,
    /// Status sent; 0 when the client was gone before there was one.
    pub code: u16,
    /// Envoy's letters, comma separated; empty when all went well.
    pub flags: &'static str,
    /// Attempts made.
    pub attempts: u32,
    /// Text of the access log.
    pub text: Option<Box<Text>>,
}

/// The part of a record that only the access log needs.
#[derive(Debug, Clone, Default)]
pub struct Text {
    /// Request method.
    pub method: String,
    /// Path without its query, which may hold secrets.
    pub path: String,
    /// "HTTP/1.1" or "HTTP/2.0".
    pub protocol: String,
    /// Host that was asked for.
    pub authority: String,
    /// Endpoint or gateway that served.
    pub upstream_host: String,
    /// Id given by the client.
    pub request_id: String,
    /// From `traceparent`.
    pub trace_id: String,
    /// SPIFFE id of the workload that sent it, as far as that is known.
    pub source: String,
    /// The gateway behind the tunnel, or empty.
    pub peer_spiffe_id: String,
    /// Detail of a failure.
    pub failure: String,
}

impl Record {
    /// A record that begins now.
    pub fn new(reporter: Reporter, source_cluster: Arc<str>, now: Instant) -> Self {
        Self {
            started: now,
            start_time: SystemTime::now(),
            reporter,
            source_cluster,
            destination_cluster: None,
            service: None,
            rule: None,
            code: 0,
            flags: "",
            attempts: 0,
            text: None,
        }
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody polled it to its end: the client went away.
    Abandoned,
    Clean,
    Broken,
}

/// Closes the books of one request when dropped.
#[derive(Debug)]
pub struct Finish {
    record: Option<Record>,
    request: Replayable,
    bytes_sent: u64,
    end: End,
    _in_flight: Option<InFlight>,
}

impl Finish {
    /// For a response whose head is about to leave.
    pub fn new(record: Record, request: Replayable, in_flight: Option<InFlight>) -> Self {
        Self { record: Some(record), request, bytes_sent: 0, end: End::Abandoned, _in_flight: in_flight }
    }

    /// Counts body bytes.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes_sent += bytes as u64;
    }

    /// The body ended as it should.
    pub fn clean(&mut self) {
        self.end = End::Clean;
    }

    /// The body broke off.
    pub fn broken(&mut self, error: &BoxError) {
        self.end = End::Broken;
        if let Some(text) = self.record.as_mut().and_then(|r| r.text.as_mut()) {
            text.failure = error.to_string();
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        record.flags = match (self.end, record.flags) {
            (End::Clean, flags) => flags,
            (End::Abandoned, "") => "DC",
            (End::Broken, "") => "UC",
            (_, flags) => flags,
        };
        let done = Done {
            duration: record.started.elapsed(),
            bytes_received: self.request.bytes(),
            bytes_sent: self.bytes_sent,
            record,
        };
        worker::with_current(|worker| worker.finished(&done));
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// What happened.
    pub record: Record,
    /// From the first byte of the head to the end of the response.
    pub duration: Duration,
    /// Of the request body.
    pub bytes_received: u64,
    /// Of the response body.
    pub bytes_sent: u64,
}
