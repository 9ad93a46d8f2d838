//! What one source remembers: the newest of what it said, bounded, with what repeats itself counted.
//!
//! What happens again within [`Limits::fold`] is the same event with a greater count, as in Kubernetes. Being told of it again costs
//! its readers something, so a repeated event is told again when its count doubled, and otherwise every [`Limits::repeat`]: whoever
//! flaps a thousand times is a few lines, and nobody waits for the last number longer than that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use archipelago_proto::v1::Event;

use super::{Reason, admit};

/// What happened, without who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Why there is an event.
    pub reason: Reason,
    /// One sentence.
    pub message: String,
    /// "namespace/name"; may be empty, like all that follow.
    pub service: String,
    /// A cluster.
    pub cluster: String,
    /// "cluster/gateway".
    pub gateway: String,
    /// A resource, an endpoint or an identity.
    pub subject: String,
    /// Whose doing it was.
    pub actor: String,
    /// Policy revision.
    pub revision: u64,
}

impl Draft {
    /// About nothing in particular.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let [service, cluster, gateway, subject, actor] = [const { String::new() }; 5];
        Self { reason, message: message.into(), service, cluster, gateway, subject, actor, revision: 0 }
    }

    /// As an event that happened once.
    #[must_use]
    pub fn into_event(self, source: &str, incarnation: u64, (id, sequence): (u64, u64), unix_ms: i64) -> Event {
        let info = self.reason.info();
        let event = Event {
            source: source.to_owned(),
            incarnation,
            id,
            sequence,
            first_unix_ms: unix_ms,
            last_unix_ms: unix_ms,
            count: 1,
            kind: info.kind.to_owned(),
            reason: info.name.to_owned(),
            severity: info.severity.into(),
            message: self.message,
            service: self.service,
            cluster: self.cluster,
            gateway: self.gateway,
            subject: self.subject,
            actor: self.actor,
            revision: self.revision,
        };
        // Names that others chose are in there.
        admit(event.clone()).unwrap_or(event)
    }
}

/// What a ring keeps.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Events kept. One is 400 bytes or so, and never more than 12 KiB.
    pub events_max: usize,
    /// What happens again so soon is the same event.
    pub fold: Duration,
    /// How long a reader waits for the newest count, at most.
    pub repeat: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { events_max: 1_024, fold: Duration::from_secs(600), repeat: Duration::from_secs(10) }
    }
}

/// The newest events of one source.
#[derive(Debug)]
pub struct Ring {
    source: String,
    incarnation: u64,
    limits: Limits,
    /// By id, without gaps.
    events: VecDeque<Kept>,
    /// Where what may happen again is: id by what it is about.
    open: BTreeMap<About, u64>,
    /// Happened again, and nobody was told.
    quiet: BTreeSet<u64>,
    next_id: u64,
    sequence: u64,
    since_unix_ms: i64,
}

#[derive(Debug)]
struct Kept {
    event: Event,
    about: About,
    told_unix_ms: i64,
}

type About = (Reason, String, String, String, String);

impl Ring {
    /// An empty one that remembers from `now` on.
    #[must_use]
    pub fn new(source: impl Into<String>, incarnation: u64, limits: Limits, now_unix_ms: i64) -> Self {
        let (events, open, quiet) = (VecDeque::new(), BTreeMap::new(), BTreeSet::new());
        let since_unix_ms = now_unix_ms;
        Self { source: source.into(), incarnation, limits, events, open, quiet, next_id: 1, sequence: 0, since_unix_ms }
    }

    /// Notes what happened at `unix_ms`.
    pub fn note(&mut self, draft: Draft, unix_ms: i64) {
        let about =
            (draft.reason, draft.service.clone(), draft.cluster.clone(), draft.gateway.clone(), draft.subject.clone());
        let (fold, repeat) = (millis(self.limits.fold), millis(self.limits.repeat));
        let known = self.open.get(&about).copied().and_then(|id| Some((id, self.place(id)?)));
        let again = known.and_then(|(id, place)| Some((id, self.events.get_mut(place)?)));
        if let Some((id, kept)) = again
            && unix_ms.saturating_sub(kept.event.last_unix_ms) <= fold
        {
            let event = &mut kept.event;
            event.count = event.count.saturating_add(1);
            event.last_unix_ms = event.last_unix_ms.max(unix_ms);
            let fresh = draft.into_event("", 0, (id, 0), unix_ms);
            (event.message, event.actor, event.revision) = (fresh.message, fresh.actor, fresh.revision);
            if event.count.is_power_of_two() || unix_ms.saturating_sub(kept.told_unix_ms) >= repeat {
                self.sequence += 1;
                event.sequence = self.sequence;
                kept.told_unix_ms = unix_ms;
                self.quiet.remove(&id);
            } else {
                self.quiet.insert(id);
            }
            return;
        }
        let id = self.next_id;
        (self.next_id, self.sequence) = (id + 1, self.sequence + 1);
        let event = draft.into_event(&self.source, self.incarnation, (id, self.sequence), unix_ms);
        self.open.insert(about.clone(), id);
        self.events.push_back(Kept { event, about, told_unix_ms: unix_ms });
        while self.events.len() > self.limits.events_max {
            self.forget();
        }
    }

    /// Tells what was held back for long enough; true when there was anything.
    pub fn flush(&mut self, now_unix_ms: i64) -> bool {
        let repeat = millis(self.limits.repeat);
        let before = self.sequence;
        for id in std::mem::take(&mut self.quiet) {
            let Some(kept) = self.place(id).and_then(|place| self.events.get_mut(place)) else { continue };
            if now_unix_ms.saturating_sub(kept.told_unix_ms) < repeat {
                self.quiet.insert(id);
                continue;
            }
            self.sequence += 1;
            kept.event.sequence = self.sequence;
            kept.told_unix_ms = now_unix_ms;
        }
        self.sequence != before
    }

    /// What was said after `sequence`, in that order.
    #[must_use]
    pub fn after(&self, sequence: u64) -> Vec<&Event> {
        let mut news: Vec<_> = self.events.iter().map(|kept| &kept.event).filter(|e| e.sequence > sequence).collect();
        news.sort_by_key(|event| event.sequence);
        news
    }

    /// Which start of the source.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Of the newest that was said.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Ids below this one are forgotten.
    #[must_use]
    pub fn first_id(&self) -> u64 {
        self.events.front().map_or(self.next_id, |kept| kept.event.id)
    }

    /// Since when nothing is missing.
    #[must_use]
    pub fn since_unix_ms(&self) -> i64 {
        self.since_unix_ms
    }

    fn place(&self, id: u64) -> Option<usize> {
        usize::try_from(id.checked_sub(self.first_id())?).ok()
    }

    fn forget(&mut self) {
        let Some(Kept { event, about, .. }) = self.events.pop_front() else { return };
        self.quiet.remove(&event.id);
        if self.open.get(&about) == Some(&event.id) {
            self.open.remove(&about);
        }
        self.since_unix_ms = self.since_unix_ms.max(event.last_unix_ms);
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(service: &str) -> Draft {
        Draft { service: service.into(), ..Draft::new(Reason::Failover, format!("{service} moved")) }
    }

    fn ring(events_max: usize) -> Ring {
        Ring::new("paris/gw-1", 7, Limits { events_max, ..Limits::default() }, 0)
    }

    #[test]
    fn what_repeats_itself_is_counted_and_told_ever_more_rarely() {
        let mut ring = ring(8);
        let mut told = Vec::new();
        let mut seen = 0;
        for flap in 0..1_000 {
            ring.note(draft("shop/web"), flap * 5);
            let news = ring.after(seen);
            told.extend(news.iter().map(|event| event.count));
            seen = ring.sequence();
        }
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], "within ten seconds of the one before");
        assert!(!ring.flush(5_000), "not yet");
        assert!(ring.flush(20_000));
        let event = ring.after(seen)[0];
        assert_eq!((event.id, event.count, event.first_unix_ms, event.last_unix_ms), (1, 1_000, 0, 4_995));
        assert!(!ring.flush(99_999), "nothing is left to tell");
        ring.note(draft("shop/web"), 4_995 + 600_001);
        assert_eq!(ring.after(0).len(), 2, "that is another time");
    }

    #[test]
    fn the_oldest_is_forgotten_and_that_is_known() {
        let mut ring = ring(2);
        for (n, service) in ["a/a", "b/b", "c/c", "a/a"].into_iter().enumerate() {
            ring.note(draft(service), 100 + n as i64);
        }
        let ids: Vec<_> = ring.after(0).iter().map(|event| (event.id, event.count, &*event.service)).collect();
        assert_eq!(ids, [(3, 1, "c/c"), (4, 1, "a/a")], "what was forgotten begins anew");
        assert_eq!((ring.first_id(), ring.since_unix_ms()), (3, 101));
    }

    proptest! {
        /// Bounded, ids without gaps, every id told, and a reader that asks for what is new misses nothing that is kept.
        #[test]
        fn a_reader_has_what_the_ring_has(
            notes in prop::collection::vec((0u8..6, 0i64..40_000, any::<bool>(), any::<bool>()), 0..200),
        ) {
            let mut ring = ring(5);
            let (mut now, mut seen, mut known) = (0, 0, BTreeMap::new());
            for (service, pause, reads, flushes) in notes {
                now += pause;
                ring.note(draft(&format!("s/{service}")), now);
                if flushes {
                    ring.flush(now);
                }
                if reads {
                    for event in ring.after(seen) {
                        prop_assert!(event.sequence > seen);
                        known.insert(event.id, event.count);
                    }
                    seen = ring.sequence();
                }
            }
            now += 10_000;
            ring.flush(now);
            for event in ring.after(seen) {
                known.insert(event.id, event.count);
            }
            let kept = ring.after(0);
            prop_assert!(kept.len() <= 5);
            for event in &kept {
                prop_assert_eq!(known.get(&event.id), Some(&event.count));
            }
            let mut ids: Vec<_> = kept.iter().map(|event| event.id).collect();
            ids.sort_unstable();
            prop_assert!(ids.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            prop_assert_eq!(ring.first_id() + ids.len() as u64, ring.next_id);
        }
    }
}
