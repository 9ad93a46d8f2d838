//! What one request holds until its last byte, and what is written down about it then.
//!
//! [`Books`] is the one guard of a request: its admission slot, its place among those in flight, what is kept of its body, and its
//! [`Record`]. It travels from the first line of the request to the last byte of the response, and wherever it is dropped the
//! request is over: answered, failed, or given up by its sender.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use archipelago_http::{Fields, Known, Pooled, RequestHead};
use http::{HeaderMap, StatusCode};

use super::body::Replayable;
use super::failure::Cut;
use super::grpc::{Grpc, Status};
use super::upstream::InFlight;
use crate::ledger::{Keeper, Trail, report};
use crate::pace::Limits;
use crate::tap;
use crate::telemetry::Name;
use crate::tls::Facts;
use crate::trace::Traced;
use crate::visitors::Asking;
use crate::worker::Worker;
use crate::worker::streams::Stream;
use crate::worker::under_way::Entered;
use crate::worker::view::{ServiceView, Target};

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

/// Whose answer counted of an attempt whose endpoint hung and the one that was begun beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// The endpoint that was taken for hung was the first to answer.
    First,
    /// Another one.
    Second,
    /// Neither has answered.
    None,
}

impl Hedge {
    /// Label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::None => "none",
        }
    }
}

/// Everything known about one request. Its text is only filled in when there is an access log, or somebody looks.
#[derive(Debug, Clone)]
pub struct Record {
    /// For durations.
    pub started: Instant,
    /// Which side reports.
    pub reporter: Reporter,
    /// Cluster at which the request entered.
    pub source_cluster: Name,
    /// Cluster that served it, or was last tried.
    pub destination_cluster: Option<Name>,
    /// Version of the endpoint here that served it, or was last tried; `None`: it was sent elsewhere, or has none.
    pub version: Option<Name>,
    /// [`Service::key`](crate::config::Service::key).
    pub service: Option<Name>,
    /// Revision of the policy under which it was served, all of it.
    pub revision: u64,
    /// Status sent; 0 when the client was gone before there was one.
    pub code: u16,
    /// Whether it is a gRPC call, and how that ended.
    pub grpc: Grpc,
    /// Envoy's letters, comma separated; empty when all went well.
    pub flags: &'static str,
    /// Attempts made.
    pub attempts: u32,
    /// Whose answer counted where two attempts ran side by side.
    pub hedge: Option<Hedge>,
    /// Its way through this gateway.
    pub trail: Trail,
    /// What its client's connection has agreed on, if that speaks TLS.
    pub tls: Option<Rc<Facts>>,
    /// Its client may see where its time went.
    pub shows_timing: bool,
    /// Who keeps the slowest of its service; only where it entered.
    pub keeper: Option<Rc<Keeper>>,
    /// What its spans are made of, if it is recorded.
    pub trace: Option<Rc<Traced>>,
    /// From its first byte to the last of what followed it, if it switched to another protocol.
    pub lasted: Option<Duration>,
    /// Text of the access log, and of who looks.
    pub text: Option<Box<Text>>,
}

/// The part of a record that only the access log and who looks at requests need.
#[derive(Debug, Clone)]
pub struct Text {
    /// For people.
    pub start_time: SystemTime,
    /// Name of the rule.
    pub rule: String,
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
    /// Of the trace that it belongs to.
    pub trace_id: String,
    /// SPIFFE id of the workload that sent it, as far as that is known.
    pub source: String,
    /// The gateway behind the tunnel, or empty.
    pub peer_spiffe_id: String,
    /// Detail of a failure.
    pub failure: String,
}

impl Text {
    /// As much of a value as is worth writing down: a head may have a hundred kilobytes.
    pub fn short(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes)).into_owned()
    }
}

impl Record {
    /// A record that begins now.
    pub fn new(reporter: Reporter, source_cluster: Name, now: Instant) -> Self {
        Self {
            started: now,
            reporter,
            source_cluster,
            destination_cluster: None,
            version: None,
            service: None,
            revision: 0,
            code: 0,
            grpc: Grpc::No,
            flags: "",
            attempts: 0,
            hedge: None,
            trail: Trail::default(),
            tls: None,
            shows_timing: false,
            keeper: None,
            trace: None,
            lasted: None,
            text: None,
        }
    }
}

/// One of a worker's admission slots, until dropped.
#[derive(Debug)]
pub struct Slot(Rc<Worker>);

impl Slot {
    /// Takes a slot if one is free.
    pub fn take(worker: &Rc<Worker>) -> Option<Self> {
        let carried = worker.requests.get();
        if carried >= worker.limits.requests_max {
            return None;
        }
        worker.requests.set(carried + 1);
        Some(Self(Rc::clone(worker)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get().saturating_sub(1));
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody took it to its end: the client went away.
    Abandoned,
    Clean,
    Broken,
}

/// The guard of one request.
#[derive(Debug)]
pub struct Books {
    // In a box, since bodies that hold it are moved about.
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    worker: Rc<Worker>,
    record: Record,
    /// The head of the request, once it has been sent on.
    head: Option<Pooled<RequestHead>>,
    request: Replayable,
    limits: Limits,
    sent: u64,
    end: End,
    slot: Option<Slot>,
    asking: Option<Asking>,
    in_flight: Option<InFlight>,
    under_way: Option<Entered>,
    /// It switched to another protocol, for as long as the configuration allows it.
    stream: Option<Rc<Stream>>,
}

impl Books {
    /// Opens the books of a request.
    pub fn open(worker: &Rc<Worker>, record: Record, request: Replayable) -> Self {
        let worker = Rc::clone(worker);
        let inner = Inner {
            worker,
            record,
            head: None,
            request,
            limits: Limits::NONE,
            sent: 0,
            end: End::Abandoned,
            slot: None,
            asking: None,
            in_flight: None,
            under_way: None,
            stream: None,
        };
        Self { inner: Box::new(inner) }
    }

    /// Takes an admission slot; false when none is free.
    pub fn admit(&mut self) -> bool {
        self.inner.slot = Slot::take(&self.inner.worker);
        self.inner.slot.is_some()
    }

    /// Counts it among those of its client.
    pub fn ask(&mut self, asking: Asking) {
        self.inner.asking = Some(asking);
    }

    /// Nobody may be slower than this with it.
    pub fn limit(&mut self, limits: Limits) {
        self.inner.limits = limits;
        self.inner.request.police(limits);
    }

    /// How slow one may be with it.
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// The body of the request.
    pub fn request(&self) -> &Replayable {
        &self.inner.request
    }

    /// Who carries it.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.inner.worker
    }

    /// Which side this is.
    pub fn reporter(&self) -> Reporter {
        self.inner.record.reporter
    }

    /// Counts it among those that an endpoint works on; instead of where it was counted before.
    pub fn enter(&mut self, in_flight: Option<InFlight>) {
        self.inner.in_flight = in_flight;
    }

    /// A gateway or endpoint of `cluster` is to serve it.
    pub fn goes_to(&mut self, cluster: Name, service: Option<&ServiceView>) {
        self.inner.under_way = service.map(|service| service.under_way().enter(&cluster));
        self.inner.record.destination_cluster = Some(cluster);
    }

    /// An earlier attempt was answered first, by `cluster`.
    pub fn went_to(&mut self, cluster: Name) {
        if let Some(under_way) = &mut self.inner.under_way {
            under_way.moves_to(&cluster);
        }
        self.inner.record.destination_cluster = Some(cluster);
    }

    /// It is sent to `target`, by this rule.
    pub fn names(&mut self, target: &Target, rule: Option<&str>) {
        if let Some(trace) = &self.inner.record.trace {
            rule.unwrap_or_default().clone_into(&mut trace.rule.borrow_mut());
        }
        if let Some(text) = self.text() {
            text.rule = rule.unwrap_or_default().to_owned();
            text.upstream_host = target.to_string();
        }
    }

    /// Nobody sends it any more: it was answered, or given up. Its head is kept for what may be written down of it.
    pub fn is_sent(&mut self, head: Pooled<RequestHead>) {
        let received = self.inner.request.received();
        self.inner.record.trail.uploaded(received);
        self.inner.head = Some(head);
    }

    /// Says in a response how long what took here, to the gateway that asked.
    pub fn tell(&self, status: StatusCode, fields: &mut Fields) {
        if !self.inner.worker.counts_requests {
            return;
        }
        let record = &self.inner.record;
        let until = record.trail.head_at().unwrap_or_else(Instant::now);
        let far = record.trail.as_far(record.started, until, record.attempts, status.as_u16());
        fields.push(Known::MeshLedger, far.encode().as_bytes());
    }

    /// It switches to another protocol.
    pub fn switches(&mut self, stream: Rc<Stream>) {
        self.inner.stream = Some(stream);
    }

    /// Ready when it switched and the configuration allows it no more.
    pub fn poll_reset(&self, cx: &Context<'_>) -> Poll<()> {
        self.inner.stream.as_ref().map_or(Poll::Pending, |stream| stream.poll_reset(cx))
    }

    /// True once another protocol is spoken, for as long as its two ends like.
    pub fn is_switched(&self) -> bool {
        self.inner.record.code == SWITCHED
    }

    /// What is written down.
    pub fn record(&mut self) -> &mut Record {
        &mut self.inner.record
    }

    /// What the access log needs, if there is one, or somebody looks.
    pub fn text(&mut self) -> Option<&mut Text> {
        self.inner.record.text.as_deref_mut()
    }

    /// If it is a gRPC call, it failed here.
    pub fn calls_failed(&mut self, status: u8) {
        let record = &mut self.inner.record;
        if record.grpc != Grpc::No {
            record.grpc = Grpc::Status(Status::new(status));
        }
    }

    /// The response ends with these.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.inner.record.grpc.trailers(trailers);
    }

    /// Counts body bytes of the response.
    pub fn sent(&mut self, bytes: usize) {
        self.inner.sent += bytes as u64;
    }

    /// The response ended as it should.
    pub fn clean(&mut self) {
        self.inner.end = End::Clean;
    }

    /// What came from the service broke off.
    pub fn broken(&mut self, error: &dyn std::error::Error) {
        self.inner.end = End::Broken;
        self.note(error);
    }

    /// The response could not be sent on.
    pub fn unsent(&mut self, error: &dyn std::error::Error) {
        if self.inner.end != End::Broken {
            self.inner.end = End::Abandoned;
            self.note(error);
        }
    }

    /// It went wrong here: a word of a closed set.
    pub fn fails(&self, reason: &'static str) {
        if let Some(trace) = &self.inner.record.trace {
            trace.failure.set(Some(reason));
        }
    }

    /// Somebody was too slow with it.
    pub fn cut(&mut self, cut: Cut) {
        self.inner.worker.metrics.cut(cut);
        self.fails(cut.label());
        self.inner.record.flags = cut.flags();
        if let Some(text) = self.text() {
            cut.line().clone_into(&mut text.failure);
        }
    }

    fn note(&mut self, error: &dyn std::error::Error) {
        if let Some(text) = self.text() {
            text.failure = error.to_string();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.record.flags = match (self.end, self.record.flags) {
            (End::Clean, flags) => flags,
            (End::Abandoned, "") => "DC",
            (End::Broken, "") => "UC",
            (_, flags) => flags,
        };
        if self.end == End::Clean {
            self.record.grpc.ends(self.record.code);
        }
        let end = Instant::now();
        // Whoever counts how long requests take wants to know when this one was answered, not how long its ends had something to say.
        let answered = match self.record.code {
            SWITCHED => {
                self.record.lasted = Some(end.saturating_duration_since(self.record.started));
                self.record.trail.head_at().unwrap_or(end)
            }
            _ => end,
        };
        let done = Done {
            duration: answered.saturating_duration_since(self.record.started),
            bytes_received: self.request.bytes(),
            bytes_sent: self.sent,
            record: &self.record,
        };
        self.worker.finished(&done, end);
        tap::finished(&self.worker, &done, self.head.as_deref(), answered);
        report::finished(&self.worker, &self.record, self.head.as_deref(), answered);
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Done<'a> {
    /// What happened.
    pub record: &'a Record,
    /// From the first byte of the head to the end of the response, or to the answer that switches to another protocol.
    pub duration: Duration,
    /// Of the request body.
    pub bytes_received: u64,
    /// Of the response body.
    pub bytes_sent: u64,
}

/// The status of what has switched to another protocol, whatever each edge says in its place.
const SWITCHED: u16 = 101;
/// Of each value that a client chooses.
const TEXT_BYTES_MAX: usize = 1_024;
