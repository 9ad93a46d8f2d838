//! What this gateway saw, for operators: which peers it reaches, who serves each service and why, which endpoints sit out.
//!
//! Workers say how things are for them ([`Journal::peer`] and its like), the [`Desk`] makes one account of it and tells what moved, a
//! ring keeps the newest, and the stream to the control plane carries it on. Nothing of it is on the request path.

mod desk;
mod words;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use archipelago_identity::LiveCredential;
use archipelago_model::event::{Draft, Limits, Reason, Ring};
use archipelago_proto::v1::{EventsFrom, GatewayEvents};
use archipelago_tunnel::{PeerName, PeerState};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::desk::Desk;
pub use self::desk::{Cause, Out, PeerWord, Standing};

/// The account of all workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    inner: Mutex<Inner>,
    /// Something is to be settled sooner than was known.
    wake: Notify,
    said: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    desk: Desk,
    ring: Ring,
}

impl Journal {
    /// An empty one, of the start `boot` of the gateway `name`.
    pub fn new(name: &str, boot: u64) -> Self {
        let ring = Ring::new(name, boot, Limits::default(), now_ms());
        let inner = Mutex::new(Inner { desk: Desk::default(), ring });
        let (wake, said) = (Notify::new(), watch::Sender::new(0));
        Self(Arc::new(Shared { name: name.to_owned(), inner, wake, said }))
    }

    /// How a worker stands with a peer; `None`: it has nothing to do with it any more.
    pub fn peer(&self, worker: usize, name: &PeerName, state: Option<PeerState>) {
        let key = (name.cluster.clone(), name.gateway.clone());
        self.say(|desk, now| desk.peers.say(worker, key, state.map(PeerWord::from), now));
    }

    /// Who serves a service, by its key, as a worker sees it; `None`: the service is gone.
    pub fn service(&self, worker: usize, key: &Arc<str>, standing: Option<Standing>) {
        self.say(|desk, now| desk.services.say(worker, Arc::clone(key), standing, now));
    }

    /// Which endpoints of a service, by its key, sit out for a worker.
    pub fn endpoints(&self, worker: usize, key: &Arc<str>, out: BTreeMap<Arc<str>, Out>) {
        let out = (!out.is_empty()).then_some(out);
        self.say(|desk, now| desk.endpoints.say(worker, Arc::clone(key), out, now));
    }

    /// How services stand, by their keys, as all workers together see it.
    pub fn services(&self) -> Services<'_> {
        Services { journal: self, page: Vec::new().into_iter(), last: None }
    }

    /// Moves with everything that is said.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.said.subscribe()
    }

    /// Where to go on for a reader that has heard this much: of another start, or of the future, everything is said again.
    pub fn resume(&self, from: EventsFrom) -> u64 {
        let inner = self.lock();
        let knows_us = from.incarnation == inner.ring.incarnation() && from.sequence <= inner.ring.sequence();
        if knows_us { from.sequence } else { 0 }
    }

    /// What was said after `sequence`, at most as much as one message should hold, and where to go on.
    pub fn after(&self, sequence: u64) -> (GatewayEvents, u64) {
        let inner = self.lock();
        let mut events: Vec<_> = inner.ring.after(sequence).into_iter().take(BATCH_MAX).cloned().collect();
        events.iter_mut().for_each(|event| event.source.clear());
        let next = events.last().map_or(sequence, |event| event.sequence);
        let said = GatewayEvents {
            incarnation: inner.ring.incarnation(),
            events,
            first_id: inner.ring.first_id(),
            since_unix_ms: inner.ring.since_unix_ms(),
        };
        (said, next)
    }

    /// Settles what workers said, and watches the certificate and the drain, for ever.
    pub async fn run(self, credential: LiveCredential, drain: CancellationToken) {
        let mut certificate = words::Certificate::default();
        let mut is_draining = false;
        loop {
            let now = now_ms();
            let current = credential.current();
            let validity = (millis(current.not_before), millis(current.not_after));
            let pause = {
                let mut inner = self.lock();
                let Inner { desk, ring } = &mut *inner;
                for (draft, at) in desk.settle(now) {
                    ring.note(draft, at);
                }
                if let Some(draft) = certificate.look(validity, now) {
                    ring.note(Draft { gateway: self.0.name.clone(), ..draft }, now);
                }
                if drain.is_cancelled() && !std::mem::replace(&mut is_draining, true) {
                    let message = format!("{} drains: it finishes what it has, and takes nothing new", self.0.name);
                    let draft = Draft::new(Reason::GatewayDraining, message);
                    ring.note(Draft { gateway: self.0.name.clone(), ..draft }, now);
                }
                ring.flush(now);
                let due = desk.due().map_or(LOOK_MS, |due| due.saturating_sub(now).clamp(1, LOOK_MS));
                let sequence = ring.sequence();
                self.0.said.send_if_modified(|said| std::mem::replace(said, sequence) != sequence);
                Duration::from_millis(due.unsigned_abs())
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.wake.notified() => {}
                () = drain.cancelled(), if !is_draining => {}
            }
        }
    }

    fn say(&self, say: impl FnOnce(&mut Desk, i64)) {
        let mut inner = self.lock();
        let before = inner.desk.due();
        say(&mut inner.desk, now_ms());
        let sooner = match (before, inner.desk.due()) {
            (Some(before), Some(due)) => due < before,
            (before, due) => before.is_none() && due.is_some(),
        };
        drop(inner);
        if sooner {
            self.0.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A walk over the services, a few at a time: no worker waits for it longer than for another worker.
#[derive(Debug)]
pub struct Services<'a> {
    journal: &'a Journal,
    page: std::vec::IntoIter<(Arc<str>, Standing)>,
    last: Option<Arc<str>>,
}

impl Iterator for Services<'_> {
    type Item = (Arc<str>, Standing);

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.len() == 0 {
            self.page = self.journal.lock().desk.services.after(self.last.as_ref(), SERVICES_AT_ONCE).into_iter();
        }
        let (key, standing) = self.page.next()?;
        self.last = Some(Arc::clone(&key));
        Some((key, standing))
    }
}

fn now_ms() -> i64 {
    millis(SystemTime::now())
}

fn millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// At most 3 MB, and 100 KB of usual ones.
const BATCH_MAX: usize = 256;
/// At two microseconds or so each.
const SERVICES_AT_ONCE: usize = 16;
/// Certificates and counts are looked at so often.
const LOOK_MS: i64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(said: &GatewayEvents) -> Vec<String> {
        said.events.iter().map(|event| format!("{}x{} {}", event.reason, event.count, event.gateway)).collect()
    }

    /// What happened, without waiting for it.
    fn settle(journal: &Journal, now: i64) {
        let mut inner = journal.lock();
        let Inner { desk, ring } = &mut *inner;
        for (draft, at) in desk.settle(now) {
            ring.note(draft, at);
        }
    }

    #[test]
    fn services_are_as_all_workers_together_see_them() {
        let journal = Journal::new("paris/gw-1", 7);
        let standing = |tokyo: u64, failed_over: bool| Standing {
            ready: [("paris", 1), ("tokyo", tokyo)].map(|(name, count)| (Arc::from(name), count)).into(),
            failed_over,
            ..Standing::default()
        };
        // More than one look takes.
        let keys: Vec<Arc<str>> = (0..3 * SERVICES_AT_ONCE + 1).map(|n| format!("shop/web-{n:03}").into()).collect();
        for key in &keys {
            journal.service(0, key, Some(standing(2, true)));
            journal.service(1, key, Some(standing(0, false)));
        }
        journal.service(1, &keys[3], Some(standing(3, true)));
        journal.service(0, &keys[5], None);
        journal.service(1, &keys[5], None);
        let said: Vec<_> = journal.services().map(|(key, of)| (key, of.ready["tokyo"], of.failed_over)).collect();
        let expected = keys.iter().enumerate().filter(|(n, _)| *n != 5).map(|(n, key)| match n {
            3 => (Arc::clone(key), 3, true),
            _ => (Arc::clone(key), 2, false),
        });
        assert_eq!(said, expected.collect::<Vec<_>>());

        // Many that go at once hide none of those behind them, even before that is settled.
        settle(&journal, now_ms() + 10_000);
        for key in &keys[..2 * SERVICES_AT_ONCE] {
            (0..2).for_each(|worker| journal.service(worker, key, None));
        }
        assert_eq!(journal.services().count(), SERVICES_AT_ONCE + 1);
    }

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let journal = Journal::new("paris/gw-1", 7);
        let peer = |gateway: &str| PeerName { cluster: "tokyo".into(), gateway: gateway.into() };
        let later = now_ms() + 10_000;
        journal.peer(0, &peer("gw-1"), Some(PeerState::Up));
        journal.peer(0, &peer("gw-2"), Some(PeerState::Up));
        settle(&journal, later);
        journal.peer(0, &peer("gw-1"), Some(PeerState::Dead));
        settle(&journal, later);
        let begin = journal.resume(EventsFrom { incarnation: 6, sequence: 1 });
        assert_eq!(begin, 0, "that was another process");
        let (said, next) = journal.after(begin);
        assert_eq!(
            (names(&said), said.incarnation, said.first_id),
            (vec!["GatewayUnreachablex1 tokyo/gw-1".to_owned()], 7, 1)
        );
        assert_eq!(journal.resume(EventsFrom { incarnation: 7, sequence: next }), next);
        assert_eq!(journal.resume(EventsFrom { incarnation: 7, sequence: 99 }), 0);
        assert_eq!(names(&journal.after(next).0), [""; 0]);
        journal.peer(0, &peer("gw-2"), Some(PeerState::Dead));
        settle(&journal, later);
        let (said, _) = journal.after(next);
        assert_eq!(names(&said), ["GatewayUnreachablex1 tokyo/gw-2", "ClusterUnreachablex1 "]);
    }
}
