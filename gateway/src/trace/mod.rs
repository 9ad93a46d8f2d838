//! Distributed traces: which requests are recorded, what they tell whoever is asked next, and the spans that are made of them.
//!
//! | module | what | I/O |
//! | --- | --- | --- |
//! | [`context`] | `traceparent` and `tracestate`, read and written | none |
//! | [`traced`] | what a recorded request notes on its way | none |
//! | [`spans`] | spans, made of that once the request is over | none |
//!
//! A gateway makes one span for a request and one for each attempt. Those that it asks are told the attempt's span as their parent,
//! so that the gateway behind a tunnel and the backend hang where they belong. Where a request enters, the sampler decides, or the
//! client has decided; a gateway behind a tunnel begins no trace, so that there is none without a beginning.
//!
//! A request that is not recorded passes with whatever it has, byte for byte (Trace Context §3.4), and costs a look at one field.
//! Without a collector nothing is recorded.

pub mod context;
pub mod spans;
pub mod traced;

use std::rc::Rc;
use std::time::Instant;

use archipelago_http::{Fields, Known, RequestHead};
use archipelago_otlp::{Sampler, Spans};

use crate::exchange::books::{Record, Reporter};
use context::State;
pub use traced::Traced;

/// Decides which requests are recorded, and hands their spans on. Each worker has one.
#[derive(Debug, Clone)]
pub struct Tracer {
    sampler: Sampler,
    spans: Spans,
}

impl Tracer {
    /// Spans go to `spans`.
    pub fn new(sampler: Sampler, spans: Spans) -> Self {
        Self { sampler, spans }
    }

    /// Begins to record a request that arrived at `now` here, if it is one to be recorded. Its context is taken out of its head then:
    /// each attempt has its own.
    #[inline]
    pub fn record(&self, head: &mut RequestHead, reporter: Reporter, now: Instant) -> Option<Rc<Traced>> {
        match context::parent(&head.fields) {
            Some(parent) => {
                let is_recorded = self.sampler.follows(parent.trace_id, parent.is_sampled());
                is_recorded.then(|| traced(head, Some(parent), parent.trace_id, now))
            }
            None if reporter == Reporter::Destination || self.sampler.never_begins() => None,
            None => {
                let trace_id = rand::random::<u128>().max(1);
                self.sampler.begins(trace_id).then(|| traced(head, None, trace_id, now))
            }
        }
    }

    /// Hands on the spans of a request that ended at `end`.
    pub fn finish(&self, traced: &Traced, record: &Record, bytes: [u64; 2], end: Instant) {
        spans::of(traced, record, bytes, end).for_each(|span| self.spans.put(span));
    }
}

#[cold]
fn traced(head: &mut RequestHead, parent: Option<context::Parent>, trace_id: u128, now: Instant) -> Rc<Traced> {
    let state = if parent.is_some() { context::state(&head.fields) } else { State::Invalid };
    if state == State::Invalid {
        head.fields.remove(Known::Tracestate);
    }
    head.fields.remove(Known::Traceparent);
    let state = if let State::Valid(state) = state { state } else { String::new() };
    Rc::new(Traced::new(head, parent, trace_id, state, now))
}

/// The id of a request's trace, for people: of the one that is recorded, or else of what its sender says; empty if there is none.
pub fn id(traced: Option<&Traced>, fields: Option<&Fields>) -> String {
    let said = || context::parent(fields?).map(|parent| parent.trace_id);
    traced.map(|traced| traced.trace_id).or_else(said).map(|id| format!("{id:032x}")).unwrap_or_default()
}
