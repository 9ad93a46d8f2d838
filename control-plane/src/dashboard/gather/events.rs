//! What happened, as all members tell it: the newest of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use archipelago_page::state::{About, Event, Missing, Severity};
use archipelago_proto::v1::{self, EventSeverity, EventSourceState, ListEventsRequest};
use tokio::{sync::mpsc, time::sleep};

use super::{Desk, federation::some};
use crate::api::{Context, events};

/// The newest events, each once, whatever is said again of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ring {
    by_key: BTreeMap<Key, v1::Event>,
    /// By their last time.
    by_time: BTreeSet<(i64, Key)>,
}

/// Source, incarnation, id.
type Key = (String, u64, u64);

impl Ring {
    /// Takes one in, or the next word on one that is there. The oldest goes when there are too many.
    pub(super) fn take(&mut self, event: v1::Event) {
        let key = (event.source.clone(), event.incarnation, event.id);
        if let Some(known) = self.by_key.get(&key) {
            if known.count > event.count {
                return;
            }
            self.by_time.remove(&(known.last_unix_ms, key.clone()));
        }
        self.by_time.insert((event.last_unix_ms, key.clone()));
        self.by_key.insert(key, event);
        while self.by_key.len() > KEPT_MAX {
            let Some((_, oldest)) = self.by_time.pop_first() else { return };
            self.by_key.remove(&oldest);
        }
    }

    /// For a page: the newest last.
    pub(super) fn newest(&self) -> Vec<Event> {
        let mut newest: Vec<Event> = self.newest_first().take(SHOWN_MAX).map(shown).collect();
        newest.reverse();
        newest
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &v1::Event> {
        self.by_time.iter().rev().filter_map(|(_, key)| self.by_key.get(key))
    }
}

pub(super) fn severity(event: &v1::Event) -> Severity {
    match event.severity() {
        EventSeverity::Warning => Severity::Warning,
        EventSeverity::Error => Severity::Error,
        EventSeverity::Info | EventSeverity::Unspecified => Severity::Info,
    }
}

fn shown(event: &v1::Event) -> Event {
    Event {
        key: format!("{} {} {}", event.source, event.incarnation, event.id),
        unix_ms: event.last_unix_ms,
        first_unix_ms: event.first_unix_ms,
        count: event.count,
        severity: severity(event),
        kind: event.kind.clone(),
        reason: event.reason.clone(),
        message: event.message.clone(),
        service: some(&event.service),
        cluster: some(&event.cluster),
        gateway: some(&event.gateway),
        subject: some(&event.subject),
        actor: some(&event.actor),
        revision: (event.revision > 0).then_some(event.revision),
        source: event.source.clone(),
    }
}

/// Follows all members, again when that breaks.
pub(super) async fn follow(context: Arc<Context>, desk: Arc<Desk>) {
    loop {
        // As operators who follow: there are so many at most.
        if let Ok(_slot) = context.chronicle.followers.try_acquire() {
            let (out, mut said) = mpsc::channel::<Result<v1::FollowedEvents, tonic::Status>>(1);
            let request = ListEventsRequest { limit: LISTED, ..ListEventsRequest::default() };
            let desk = &desk;
            let take = async move {
                while let Some(Ok(said)) = said.recv().await {
                    desk.note(|gathered| {
                        if !said.sources.is_empty() {
                            gathered.missing.insert(About::Events, missing(&said.sources));
                        }
                        let events = Arc::make_mut(&mut gathered.events);
                        said.events.into_iter().for_each(|event| events.take(event));
                    });
                }
            };
            tokio::join!(events::follow(&context, request, &out), take);
        } else {
            let why = "too many follow the events of this member".to_owned();
            let who = format!("cp-{}", context.consensus.node_id);
            desk.note(|gathered| {
                gathered.missing.insert(About::Events, vec![Missing { about: About::Events, who, why }]);
            });
        }
        sleep(AGAIN).await;
    }
}

fn missing(sources: &[v1::EventSource]) -> Vec<Missing> {
    let why = |source: &v1::EventSource| match source.state() {
        EventSourceState::NotReported => Some("runs a version from before events".to_owned()),
        EventSourceState::Unreachable => Some("did not answer".to_owned()),
        EventSourceState::Heard | EventSourceState::Unspecified if source.lost > 0 => {
            Some(format!("forgot {} events before anybody heard of them", source.lost))
        }
        EventSourceState::Heard | EventSourceState::Unspecified => None,
    };
    let missing = |source: &v1::EventSource| {
        Some(Missing { about: About::Events, who: source.source.clone(), why: why(source)? })
    };
    sources.iter().filter_map(missing).collect()
}

const SHOWN_MAX: usize = 200;
/// What stands behind the state of services may have happened before those that are shown.
const KEPT_MAX: usize = 1_024;
const LISTED: u32 = 1_024;
const AGAIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64, last_unix_ms: i64, count: u32) -> v1::Event {
        v1::Event { source: "paris/gw-1".into(), incarnation: 1, id, last_unix_ms, count, ..v1::Event::default() }
    }

    #[test]
    fn an_event_that_is_said_again_moves_and_the_oldest_goes() {
        let mut ring = Ring::default();
        ring.take(event(1, 10, 1));
        ring.take(event(2, 20, 1));
        ring.take(event(1, 30, 2));
        ring.take(event(1, 10, 1));
        let seen: Vec<(i64, u32)> = ring.newest().iter().map(|event| (event.unix_ms, event.count)).collect();
        assert_eq!(seen, [(20, 1), (30, 2)], "the newest last, each once, and an old word changes nothing");
        for id in 3..2_000 {
            ring.take(event(id, i64::try_from(id).unwrap() * 100, 1));
        }
        assert_eq!((ring.by_key.len(), ring.by_time.len()), (KEPT_MAX, KEPT_MAX));
        assert_eq!((ring.newest().len(), ring.newest().last().map(|event| event.unix_ms)), (SHOWN_MAX, Some(199_900)));
    }
}
