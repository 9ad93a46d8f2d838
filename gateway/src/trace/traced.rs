//! What a recorded request notes on its way through this gateway.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use archipelago_http::RequestHead;
use http::Method;

use super::context::{self, Parent, SAMPLED};
use crate::exchange::books::Text;
use crate::exchange::upstream::Endpoint;
use crate::worker::view::Remote;

/// One recorded request.
#[derive(Debug)]
pub struct Traced {
    /// Of the whole trace.
    pub trace_id: u128,
    /// The span of this gateway.
    pub span_id: u64,
    /// Of the sender's span.
    pub parent: Option<u64>,
    /// As they are told onwards.
    pub flags: u8,
    /// `tracestate`, as its sender said it, if that may be.
    pub state: String,
    /// What was asked for.
    pub request: Asked,
    /// The workload that asked, if that is known.
    pub source: RefCell<String>,
    /// The gateway that handed it over.
    pub peer: RefCell<String>,
    /// Name of the rule.
    pub rule: RefCell<String>,
    /// Why it went wrong here: a word of a closed set.
    pub failure: Cell<Option<&'static str>>,
    /// Attempts, in the order in which they began.
    pub attempts: RefCell<Vec<Attempted>>,
    /// By two clocks.
    arrived: (Instant, Duration),
}

/// What of a request's head stands in its spans.
#[derive(Debug)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host, and port where there is one.
    pub authority: String,
    /// Without the query, which may hold secrets.
    pub path: String,
    /// Of HTTP: `1.1`, `2`, `3`.
    pub version: &'static str,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempted {
    /// From 1 on.
    pub number: u32,
    /// Who was asked.
    pub whom: Whom,
    /// When it began.
    pub began: Instant,
    /// How it ended; `None`: it was given up, or the request was.
    pub outcome: Option<(Instant, Outcome)>,
}

/// Who is asked in an attempt.
#[derive(Debug)]
pub enum Whom {
    /// An endpoint here.
    Endpoint(SocketAddr),
    /// A gateway, "cluster/gateway".
    Gateway(Arc<str>),
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// It was answered; how many microseconds it waited for a stream and for a connection.
    Answered {
        /// Of the response.
        status: u16,
        /// For a stream.
        waited: u32,
        /// For a connection.
        connected: u32,
    },
    /// It was not: a word of a closed set.
    Failed(&'static str),
}

impl Traced {
    /// Nothing has happened yet.
    pub fn new(head: &RequestHead, parent: Option<Parent>, trace_id: u128, state: String, now: Instant) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            trace_id,
            span_id: rand::random::<u64>().max(1),
            parent: parent.map(|parent| parent.span_id),
            flags: parent.map_or(0, |parent| parent.flags) | SAMPLED,
            state,
            request: Asked::of(head),
            source: RefCell::default(),
            peer: RefCell::default(),
            rule: RefCell::default(),
            failure: Cell::default(),
            attempts: RefCell::default(),
            arrived: (now, wall.saturating_sub(now.elapsed())),
        }
    }

    /// The span of an attempt.
    pub fn span_of(&self, attempt: u32) -> u64 {
        // One of a million million million: two spans of one trace do not meet, and nothing has to be kept for it.
        self.span_id.wrapping_add(u64::from(attempt)).max(1)
    }

    /// `traceparent` as an attempt tells it.
    pub fn parent_of(&self, attempt: u32) -> [u8; context::LENGTH] {
        context::write(self.trace_id, self.span_of(attempt), self.flags)
    }

    /// An attempt at an endpoint begins.
    pub fn asks_endpoint(&self, number: u32, endpoint: &Rc<Endpoint>, began: Instant) {
        self.begins(number, began, || Whom::Endpoint(endpoint.address()));
    }

    /// An attempt at a gateway begins.
    pub fn asks_gateway(&self, number: u32, remote: &Rc<Remote>, began: Instant) {
        self.begins(number, began, || Whom::Gateway(Arc::clone(&remote.name)));
    }

    fn begins(&self, number: u32, began: Instant, whom: impl FnOnce() -> Whom) {
        let mut attempts = self.attempts.borrow_mut();
        if attempts.len() < ATTEMPTS_MAX {
            attempts.push(Attempted { number, whom: whom(), began, outcome: None });
        }
    }

    /// An attempt ended.
    pub fn ended(&self, number: u32, outcome: Outcome, now: Instant) {
        let mut attempts = self.attempts.borrow_mut();
        if let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.number == number) {
            attempt.outcome = Some((now, outcome));
        }
    }

    /// When it arrived here.
    pub fn arrived(&self) -> Instant {
        self.arrived.0
    }

    /// A moment in nanoseconds since 1970, by the clock of people as it was when the request arrived.
    pub fn nanos(&self, moment: Instant) -> u64 {
        let (arrived, wall) = self.arrived;
        u64::try_from((wall + moment.saturating_duration_since(arrived)).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Asked {
    fn of(head: &RequestHead) -> Self {
        let path = head.path().split(|byte| *byte == b'?').next().unwrap_or_default();
        Self {
            method: head.method.clone(),
            scheme: head.scheme.as_str(),
            authority: Text::short(head.authority().unwrap_or_default()),
            path: if head.method == Method::CONNECT { String::new() } else { Text::short(path) },
            version: match head.version {
                http::Version::HTTP_10 => "1.0",
                http::Version::HTTP_2 => "2",
                http::Version::HTTP_3 => "3",
                _ => "1.1",
            },
        }
    }
}

/// A request of more attempts than this has met something else.
const ATTEMPTS_MAX: usize = 16;
