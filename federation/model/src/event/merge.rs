//! Many lists made into one.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use archipelago_proto::v1::Event;

/// What is the same event, whoever passes it on.
type Identity = (String, u64, u64);

/// The newest `limit` events of several lists in order, each once, in its newest form.
#[must_use]
pub fn merge(lists: impl IntoIterator<Item = Vec<Event>>, limit: usize) -> Vec<Event> {
    let mut all: BTreeMap<Identity, Event> = BTreeMap::new();
    for event in lists.into_iter().flatten() {
        let identity = identity(&event);
        if all.get(&identity).is_none_or(|known| known.sequence < event.sequence) {
            all.insert(identity, event);
        }
    }
    let mut events: Vec<Event> = all.into_values().collect();
    events.sort_by(order);
    events.drain(..events.len().saturating_sub(limit));
    events
}

/// Lets what comes from several places wait for a moment, so that it goes on in order.
///
/// What comes later than that is out of order by its time, and not lost. In the order of one source nothing is ever before what it
/// said earlier, as long as what passes it on keeps that order.
#[derive(Debug)]
pub struct HoldBack {
    hold_ms: i64,
    held: Vec<(i64, Event)>,
    /// The newest form of what went on; bounded.
    shown: BTreeMap<Identity, (u64, i64)>,
}

impl HoldBack {
    /// One that lets an event wait for `hold_ms` at most.
    #[must_use]
    pub fn new(hold_ms: i64) -> Self {
        Self { hold_ms, held: Vec::new(), shown: BTreeMap::new() }
    }

    /// Takes what has come, unless that form of it has come before.
    pub fn take(&mut self, event: Event, now_ms: i64) {
        let known = self.shown.get(&identity(&event)).is_some_and(|(sequence, _)| *sequence >= event.sequence);
        if known {
            return;
        }
        match self.held.iter_mut().find(|(_, held)| identity_of(held) == identity_of(&event)) {
            Some((_, held)) if held.sequence < event.sequence => *held = event,
            Some(_) => {}
            None => self.held.push((now_ms, event)),
        }
    }

    /// What has waited for long enough, and whatever is before it, in order.
    pub fn due(&mut self, now_ms: i64) -> Vec<Event> {
        let ripe = |arrived: i64| now_ms.saturating_sub(arrived) >= self.hold_ms || self.held.len() > HELD_MAX;
        let Some(newest) =
            self.held.iter().filter(|(arrived, _)| ripe(*arrived)).map(|(_, event)| event).max_by(|a, b| order(a, b))
        else {
            return Vec::new();
        };
        let newest = newest.clone();
        let (due, held) =
            std::mem::take(&mut self.held).into_iter().partition(|(_, e)| order(e, &newest) != Ordering::Greater);
        self.held = held;
        let due: Vec<(i64, Event)> = due;
        let mut due: Vec<Event> = due.into_iter().map(|(_, event)| event).collect();
        due.sort_by(order);
        for event in &due {
            self.shown.insert(identity(event), (event.sequence, now_ms));
        }
        if self.shown.len() > SHOWN_MAX {
            let mut times: Vec<i64> = self.shown.values().map(|(_, at)| *at).collect();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or(now_ms);
            self.shown.retain(|_, (_, at)| *at > middle);
        }
        due
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// By time; of the same moment by source, and of the same source by what it saw first.
fn order(a: &Event, b: &Event) -> Ordering {
    let key = |event: &Event| (event.last_unix_ms, event.incarnation, event.id);
    let same_source = a.source == b.source;
    let by_source = if same_source { Ordering::Equal } else { a.source.cmp(&b.source) };
    a.last_unix_ms.cmp(&b.last_unix_ms).then(by_source).then(key(a).cmp(&key(b)))
}

fn identity(event: &Event) -> Identity {
    (event.source.clone(), event.incarnation, event.id)
}

fn identity_of(event: &Event) -> (&str, u64, u64) {
    (&event.source, event.incarnation, event.id)
}

/// Beyond this the oldest do not wait.
const HELD_MAX: usize = 8_192;
/// As many as members and gateways say again after a connection broke.
const SHOWN_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(source: &str, id: u64, sequence: u64, at: i64) -> Event {
        Event { source: source.into(), id, sequence, first_unix_ms: at, last_unix_ms: at, ..Event::default() }
    }

    fn names(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .map(|event| format!("{}:{}/{}@{}", event.source, event.id, event.sequence, event.last_unix_ms))
            .collect()
    }

    #[test]
    fn each_once_in_its_newest_form_and_in_order() {
        let one = vec![event("log", 5, 5, 30), event("a/g", 1, 1, 10), event("a/g", 2, 2, 50)];
        let other = vec![event("a/g", 1, 7, 40), event("log", 5, 5, 30), event("b/g", 1, 1, 40)];
        let merged = merge([one.clone(), other.clone()], 10);
        assert_eq!(names(&merged), ["log:5/5@30", "a/g:1/7@40", "b/g:1/1@40", "a/g:2/2@50"]);
        assert_eq!(merged, merge([other, one], 10), "whoever is asked first");
        assert_eq!(names(&merge([merged], 2)), ["b/g:1/1@40", "a/g:2/2@50"], "the newest");
    }

    #[test]
    fn what_comes_a_little_late_is_in_order_and_what_comes_again_is_not_said_again() {
        let mut held = HoldBack::new(500);
        held.take(event("b/g", 1, 1, 20), 1_000);
        held.take(event("a/g", 1, 1, 10), 1_300);
        held.take(event("c/g", 1, 1, 30), 1_400);
        assert!(held.due(1_499).is_empty());
        assert_eq!(names(&held.due(1_500)), ["a/g:1/1@10", "b/g:1/1@20"], "and c waits for its neighbours");
        held.take(event("a/g", 1, 1, 10), 1_600);
        held.take(event("c/g", 1, 3, 35), 1_600);
        assert_eq!(names(&held.due(1_900)), ["c/g:1/3@35"], "its newest form");
        held.take(event("a/g", 1, 2, 40), 2_000);
        assert_eq!(names(&held.due(2_500)), ["a/g:1/2@40"]);
        assert!(held.is_empty());
    }

    proptest! {
        /// Nothing is lost, nothing is said twice, and what waited together is in order.
        #[test]
        fn held_events_all_go_on_once(events in prop::collection::vec((0u8..3, 1u64..9, 0i64..2_000, 0i64..300), 0..60)) {
            let mut held = HoldBack::new(200);
            let (mut now, mut out, mut all) = (0, Vec::new(), std::collections::BTreeSet::new());
            for (source, id, at, pause) in events {
                now += pause;
                let source = format!("{source}/g");
                all.insert((source.clone(), id));
                // The same id is the same event: its time follows from it.
                held.take(event(&source, id, 1, at % 7 + id as i64 * 10), now);
                let due = held.due(now);
                prop_assert!(due.windows(2).all(|pair| order(&pair[0], &pair[1]) != Ordering::Greater));
                out.extend(due);
            }
            out.extend(held.due(now + 200));
            prop_assert!(held.is_empty());
            let shown: Vec<_> = out.iter().map(|event| (event.source.clone(), event.id)).collect();
            let distinct: std::collections::BTreeSet<_> = shown.iter().cloned().collect();
            prop_assert_eq!(shown.len(), distinct.len());
            prop_assert_eq!(distinct, all);
        }
    }
}
