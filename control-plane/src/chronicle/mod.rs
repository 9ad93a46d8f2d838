//! What this member remembers of what happened: what the log says, what it saw itself, and what the gateways that it serves say.
//!
//! Soft state but for the log: nothing here is replicated or on disk, so that a flapping gateway costs no entry. A member that starts
//! knows nothing; entries of the log that it applies again say the same as before, under the same ids, and gateways say again what
//! they remember. Whoever asks is answered from all members ([`crate::api`], `Events`).

mod entries;
pub(crate) mod sessions;
mod store;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archipelago_model::event::{self, Draft, Limits, Reason, Ring};
use archipelago_proto::v1::{Event, EventFilter, EventSource, EventSourceState, EventsFrom, GatewayEvents};
use prost::Message as _;
use tokio::sync::{Semaphore, watch as channel};

use self::store::Store;
use crate::consensus::unix_ms;
use crate::machine::Witness;

pub(crate) use self::watch::watch;

/// All of it.
#[derive(Debug)]
pub(crate) struct Chronicle {
    member: u64,
    inner: Mutex<Inner>,
    changed: channel::Sender<u64>,
    /// Operators who follow.
    pub(crate) followers: Semaphore,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    own: Ring,
    /// Time of the oldest entry from which on no entry is missing; 0: none was applied yet.
    log_since_unix_ms: i64,
}

impl Chronicle {
    /// An empty one, but for that this member started.
    pub(crate) fn new(member: u64) -> Self {
        let now = unix_ms();
        let limits = Limits { events_max: OWN_MAX, ..Limits::default() };
        // The start is what tells this memory from the one before.
        let incarnation = u64::try_from(now).unwrap_or(0);
        let own = Ring::new(source_of(member), incarnation, limits, now);
        let inner = Mutex::new(Inner { store: Store::default(), own, log_since_unix_ms: 0 });
        let chronicle =
            Self { member, inner, changed: channel::Sender::new(0), followers: Semaphore::new(FOLLOWERS_MAX) };
        let subject = source_of(member);
        let message = "this member started; it remembers what it and its gateways see from here on";
        chronicle.note(Draft { subject, ..Draft::new(Reason::MemberStarted, message) });
        chronicle
    }

    /// Notes what this member sees.
    pub(crate) fn note(&self, draft: Draft) {
        self.change(|inner| inner.own.note(draft, unix_ms()));
    }

    /// Tells what repeated itself and was held back.
    pub(crate) fn flush(&self) {
        let now = unix_ms();
        let mut due = false;
        self.change(|inner| due = inner.own.flush(now));
    }

    /// Takes what a gateway says.
    pub(crate) fn hear(&self, gateway: &str, said: GatewayEvents) {
        self.change(|inner| {
            let now = unix_ms();
            let lost = inner.store.hear(gateway, said, now);
            if lost > 0 {
                let message = format!("{gateway} forgot {lost} events before this member heard of them");
                inner.own.note(Draft { gateway: gateway.to_owned(), ..Draft::new(Reason::EventsLost, message) }, now);
            }
        });
    }

    /// What a gateway should begin with.
    pub(crate) fn heard_of(&self, gateway: &str) -> EventsFrom {
        self.lock().store.heard_of(gateway)
    }

    /// Moves with every change.
    pub(crate) fn subscribe(&self) -> channel::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What changed after `version` and matches, at most the newest `limit`, and the version now.
    pub(crate) fn after(&self, version: u64, filter: &EventFilter, limit: usize) -> (Vec<Event>, u64) {
        let inner = self.lock();
        let matching = inner.store.after(version).rev().filter(|event| event::matches(filter, event));
        let mut bytes = 0;
        let fits = matching.take(limit).take_while(|event| {
            bytes += event.encoded_len() + FRAME_BYTES;
            bytes <= BYTES_MAX
        });
        let mut events: Vec<Event> = fits.map(|event| Event::clone(event)).collect();
        events.reverse();
        (events, inner.store.version())
    }

    /// How many changes after `version` are forgotten already.
    pub(crate) fn forgotten_after(&self, version: u64) -> u64 {
        self.lock().store.forgotten_after(version)
    }

    /// For the machine: notes what entries of the log do.
    pub(crate) fn witness(self: &Arc<Self>) -> Witness {
        entries::witness(Arc::clone(self))
    }

    /// This member, the log, and these gateways that it serves, each with whether it says what it sees.
    pub(crate) fn sources<'g>(&self, gateways: impl IntoIterator<Item = (&'g str, bool)>) -> Vec<EventSource> {
        let heard = EventSourceState::Heard.into();
        let inner = self.lock();
        let own = EventSource {
            source: source_of(self.member),
            state: heard,
            since_unix_ms: inner.own.since_unix_ms(),
            lost: 0,
        };
        let log = EventSource { source: LOG.to_owned(), state: heard, since_unix_ms: inner.log_since_unix_ms, lost: 0 };
        let gateways = gateways.into_iter().map(|(gateway, says)| match (says, inner.store.source(gateway)) {
            (false, _) => EventSource {
                source: gateway.to_owned(),
                state: EventSourceState::NotReported.into(),
                ..EventSource::default()
            },
            (true, known) => {
                let (since_unix_ms, lost) = known.unwrap_or_default();
                EventSource { source: gateway.to_owned(), state: heard, since_unix_ms, lost }
            }
        });
        [own, log].into_iter().chain(gateways).collect()
    }

    /// Takes what an entry of the log did, which may be nothing to tell.
    fn entry(&self, events: Vec<Event>, proposed_unix_ms: i64) {
        let mut inner = self.lock();
        if inner.log_since_unix_ms == 0 {
            inner.log_since_unix_ms = proposed_unix_ms;
        }
        if events.is_empty() {
            return;
        }
        for event in events {
            inner.store.put(event);
        }
        let version = inner.store.version();
        drop(inner);
        self.changed.send_replace(version);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        let before = (inner.store.version(), inner.own.sequence());
        change(&mut inner);
        let news: Vec<Event> = inner.own.after(before.1).into_iter().cloned().collect();
        for event in news {
            inner.store.put(event);
        }
        let version = inner.store.version();
        drop(inner);
        if version != before.0 {
            self.changed.send_replace(version);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a member is called as a source.
pub(crate) fn source_of(member: u64) -> String {
    format!("cp-{member}")
}

/// The replicated log as a source.
const LOG: &str = "log";
/// A restart of a large federation's gateways, and what happened before.
const OWN_MAX: usize = 4_096;
/// Each costs a task, and a stream to every other member.
const FOLLOWERS_MAX: usize = 64;
/// Below what clients of gRPC take by default (4 MiB).
const BYTES_MAX: usize = 3 << 20;
/// Of a message within a message.
const FRAME_BYTES: usize = 8;
