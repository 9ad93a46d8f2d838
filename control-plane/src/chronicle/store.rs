//! What a member remembers of everybody, bounded: each source has its share, and no source can push out the others.
//!
//! Pure. Every change gets a number, so that whoever follows asks for what is newer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use archipelago_model::event;
use archipelago_proto::v1::{Event, EventsFrom, GatewayEvents};

/// Events by source, and in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    by_version: BTreeMap<u64, Arc<Event>>,
    sources: BTreeMap<String, Source>,
    /// Numbers of the last that were forgotten.
    forgotten: VecDeque<u64>,
    /// Of gateways.
    total: usize,
}

/// One source.
#[derive(Debug, Default)]
struct Source {
    is_gateway: bool,
    incarnation: u64,
    sequence: u64,
    last_id: u64,
    since_unix_ms: i64,
    lost: u64,
    /// Where its events are, by incarnation and id: the first is the oldest.
    places: BTreeMap<(u64, u64), u64>,
}

impl Store {
    /// Takes an event in, or its newer form.
    pub(super) fn put(&mut self, event: Event) {
        self.take(event, false);
    }

    /// Takes what a gateway says, which is believed only of itself; how many events it forgot before they were heard here.
    pub(super) fn hear(&mut self, gateway: &str, said: GatewayEvents, now_unix_ms: i64) -> u64 {
        let GatewayEvents { incarnation, events, first_id, since_unix_ms } = said;
        let source = self.sources.entry(gateway.to_owned()).or_default();
        source.is_gateway = true;
        if source.incarnation != incarnation {
            (source.incarnation, source.sequence, source.last_id, source.lost) = (incarnation, 0, 0, 0);
        }
        let missed = first_id.saturating_sub(source.last_id + 1);
        // What was before the first that is heard at all is what `since` is about.
        let lost = if source.last_id == 0 { 0 } else { missed };
        source.lost = source.lost.saturating_add(lost);
        source.since_unix_ms = since_unix_ms.clamp(0, now_unix_ms);
        for event in events.into_iter().take(GATEWAY_EVENTS_MAX) {
            let Some(mut event) = event::admit(event) else { continue };
            gateway.clone_into(&mut event.source);
            event.incarnation = incarnation;
            event.actor.clear();
            let latest = now_unix_ms.saturating_add(CLOCK_AHEAD_MAX_MS);
            event.first_unix_ms = event.first_unix_ms.clamp(0, latest);
            event.last_unix_ms = event.last_unix_ms.clamp(0, latest);
            self.take(event, true);
        }
        lost
    }

    /// What a gateway should begin with.
    pub(super) fn heard_of(&self, gateway: &str) -> EventsFrom {
        let source = self.sources.get(gateway);
        source.map_or_else(EventsFrom::default, |source| EventsFrom {
            incarnation: source.incarnation,
            sequence: source.sequence,
        })
    }

    /// Since when a gateway remembers, and what was lost of it.
    pub(super) fn source(&self, gateway: &str) -> Option<(i64, u64)> {
        self.sources.get(gateway).map(|source| (source.since_unix_ms, source.lost))
    }

    /// Number of the latest change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// What changed after `version`, in that order.
    pub(super) fn after(&self, version: u64) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.by_version.range(version.saturating_add(1)..).map(|(_, event)| event)
    }

    /// How many changes after `version` are forgotten already; of many, some.
    pub(super) fn forgotten_after(&self, version: u64) -> u64 {
        self.forgotten.iter().filter(|forgotten| **forgotten > version).count().try_into().unwrap_or(u64::MAX)
    }

    /// Events of one source that are kept.
    #[cfg(test)]
    pub(super) fn len(&self, source: &str) -> usize {
        self.sources.get(source).map_or(0, |source| source.places.len())
    }

    fn take(&mut self, event: Event, is_gateway: bool) {
        let source = self.sources.entry(event.source.clone()).or_default();
        let place = (event.incarnation, event.id);
        if let Some(known) = source.places.get(&place).copied() {
            if self.by_version.get(&known).is_some_and(|known| known.sequence >= event.sequence) {
                return;
            }
            self.by_version.remove(&known);
            self.total -= usize::from(is_gateway);
        }
        if event.incarnation == source.incarnation {
            source.sequence = source.sequence.max(event.sequence);
            source.last_id = source.last_id.max(event.id);
        }
        self.version += 1;
        source.places.insert(place, self.version);
        self.total += usize::from(is_gateway);
        let max = if is_gateway { GATEWAY_EVENTS_MAX } else { OWN_EVENTS_MAX };
        let name = (source.places.len() > max).then(|| event.source.clone());
        self.by_version.insert(self.version, Arc::new(event));
        if let Some(name) = name {
            self.forget_oldest(&name);
        }
        while self.total > TOTAL_MAX {
            let gateways = self.sources.iter().filter(|(_, source)| source.is_gateway);
            let Some(name) = gateways.max_by_key(|(_, s)| s.places.len()).map(|(name, _)| name.clone()) else { return };
            self.forget_oldest(&name);
        }
        if self.sources.len() > SOURCES_MAX {
            // Gateways come and go under new names.
            let emptied = |source: &Source| source.is_gateway && source.places.is_empty();
            self.sources.retain(|_, source| !emptied(source));
        }
    }

    fn forget_oldest(&mut self, name: &str) {
        let Some(source) = self.sources.get_mut(name) else { return };
        if let Some((_, version)) = source.places.pop_first() {
            self.by_version.remove(&version);
            self.total -= usize::from(source.is_gateway);
            if self.forgotten.len() >= FORGOTTEN_MAX {
                self.forgotten.pop_front();
            }
            self.forgotten.push_back(version);
        }
    }
}

/// As many as a gateway keeps itself.
const GATEWAY_EVENTS_MAX: usize = 1_024;
/// Of this member, and of the log: a day with a write every ten seconds.
const OWN_EVENTS_MAX: usize = 8_192;
/// Of all gateways: 13 MB of usual ones.
const TOTAL_MAX: usize = 32_768;
const FORGOTTEN_MAX: usize = 4_096;
const SOURCES_MAX: usize = 16_384;
/// A clock that is further ahead would keep its events the newest for ever.
const CLOCK_AHEAD_MAX_MS: i64 = 60_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(id: u64, sequence: u64) -> Event {
        Event {
            source: "someone else".into(),
            id,
            sequence,
            kind: "failover".into(),
            reason: "Failover".into(),
            actor: "spiffe://mesh/operator/admin".into(),
            last_unix_ms: 50,
            ..Event::default()
        }
    }

    fn said(incarnation: u64, first_id: u64, events: &[(u64, u64)]) -> GatewayEvents {
        let events = events.iter().map(|(id, sequence)| event(*id, *sequence)).collect();
        GatewayEvents { incarnation, events, first_id, since_unix_ms: 10 }
    }

    fn kept(store: &Store) -> Vec<(u64, u64, u64)> {
        store.after(0).map(|event| (event.incarnation, event.id, event.sequence)).collect()
    }

    #[test]
    fn a_gateway_speaks_for_itself_and_goes_on_where_it_was() {
        let mut store = Store::default();
        assert_eq!(store.heard_of("paris/gw-1"), EventsFrom::default());
        assert_eq!(store.hear("paris/gw-1", said(3, 1, &[(1, 1), (2, 2)]), 100), 0);
        let first = store.after(0).next().unwrap();
        assert_eq!((&*first.source, &*first.actor, first.incarnation), ("paris/gw-1", "", 3));
        assert_eq!(store.heard_of("paris/gw-1"), EventsFrom { incarnation: 3, sequence: 2 });
        // Said again, and in a newer form.
        assert_eq!(store.hear("paris/gw-1", said(3, 1, &[(1, 1), (2, 2), (1, 4)]), 100), 0);
        assert_eq!(kept(&store), [(3, 2, 2), (3, 1, 4)]);
        assert_eq!(store.after(2).map(|event| event.id).collect::<Vec<_>>(), [1], "what is new since then");
        // It forgot 3 to 6 while nobody listened.
        assert_eq!(store.hear("paris/gw-1", said(3, 7, &[(7, 9)]), 100), 4);
        assert_eq!(store.source("paris/gw-1"), Some((10, 4)));
        // Another start of it is another count.
        assert_eq!(store.hear("paris/gw-1", said(4, 1, &[(1, 1)]), 100), 0);
        assert_eq!(store.heard_of("paris/gw-1"), EventsFrom { incarnation: 4, sequence: 1 });
        assert_eq!(store.len("paris/gw-1"), 4, "and what was said before is kept");
    }

    #[test]
    fn a_clock_from_the_future_does_not_stay_the_newest() {
        let mut store = Store::default();
        let mut ahead = said(1, 1, &[(1, 1)]);
        ahead.events[0].last_unix_ms = i64::MAX;
        ahead.since_unix_ms = i64::MAX;
        store.hear("paris/gw-1", ahead, 1_000);
        assert_eq!(store.after(0).next().unwrap().last_unix_ms, 61_000);
        assert_eq!(store.source("paris/gw-1"), Some((1_000, 0)));
    }

    #[test]
    fn nobody_pushes_out_the_others() {
        let mut store = Store::default();
        store.put(Event { source: "log".into(), ..event(1, 1) });
        store.hear("tokyo/gw-1", said(1, 1, &[(1, 1)]), 100);
        for n in 1..=3 * GATEWAY_EVENTS_MAX as u64 {
            store.hear("paris/gw-1", said(1, 1, &[(n, n)]), 100);
        }
        assert_eq!(store.len("paris/gw-1"), GATEWAY_EVENTS_MAX);
        let read = 2 * GATEWAY_EVENTS_MAX as u64 + 2 - 10;
        assert_eq!(store.forgotten_after(read), 10, "a reader from there on would miss these");
        assert_eq!(store.forgotten_after(store.version()), 0);
        for gateway in 0..40 {
            let all: Vec<_> = (1..=GATEWAY_EVENTS_MAX as u64).map(|n| (n, n)).collect();
            store.hear(&format!("lyon/gw-{gateway}"), said(1, 1, &all), 100);
        }
        assert_eq!(store.total, TOTAL_MAX);
        assert_eq!((store.len("log"), store.len("tokyo/gw-1")), (1, 1));
    }

    proptest! {
        /// Whatever comes: the two indexes agree, and every event is there in the newest form that came.
        #[test]
        fn it_holds_the_newest_form_of_each(all in prop::collection::vec((0u8..3, 1u64..3, 1u64..9, 1u64..20), 0..80)) {
            let mut store = Store::default();
            let mut newest = BTreeMap::new();
            for (gateway, incarnation, id, sequence) in all {
                store.hear(&format!("c/{gateway}"), said(incarnation, 1, &[(id, sequence)]), 100);
                let known = newest.entry((gateway, incarnation, id)).or_insert(sequence);
                *known = sequence.max(*known);
            }
            prop_assert_eq!(store.after(0).count(), newest.len());
            prop_assert_eq!(store.total, newest.len());
            for event in store.after(0) {
                let gateway: u8 = event.source[2..].parse().unwrap();
                prop_assert_eq!(newest.get(&(gateway, event.incarnation, event.id)), Some(&event.sequence));
            }
        }
    }
}
