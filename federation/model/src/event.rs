//! What happened, as everybody says it: the words ([`Reason`]), a list that forgets and counts what repeats itself ([`Ring`]), and
//! many lists made into one ([`merge`], [`HoldBack`]).
//!
//! Pure: time is passed in, by the wall clock, in Unix milliseconds. There is no clock that all sources share, so the order over
//! sources is that of their clocks, and within a source that in which it saw things.

mod merge;
mod reason;
mod ring;

use archipelago_proto::v1::{Event, EventFilter};

pub use self::merge::{HoldBack, merge};
pub use self::reason::{KINDS, REASONS, Reason, ReasonInfo};
pub use self::ring::{Draft, Limits, Ring};

/// Takes what another process says of itself: what is too long is cut, what no terminal should see is left out, and what names no
/// reason is no event.
#[must_use]
pub fn admit(mut event: Event) -> Option<Event> {
    let is_word =
        |text: &str| (1..=WORD_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_word(&event.reason) || !is_word(&event.kind) || event.id == 0 {
        return None;
    }
    for name in [&mut event.source, &mut event.service, &mut event.cluster, &mut event.gateway, &mut event.subject] {
        *name = cut(name, NAME_CHARS_MAX);
    }
    event.actor = cut(&event.actor, NAME_CHARS_MAX);
    event.message = cut(&event.message, MESSAGE_CHARS_MAX);
    event.count = event.count.max(1);
    event.first_unix_ms = event.first_unix_ms.min(event.last_unix_ms);
    Some(event)
}

/// Whether an event is among those asked for.
#[must_use]
pub fn matches(filter: &EventFilter, event: &Event) -> bool {
    let said_there = || event.source.split_once('/').is_some_and(|(cluster, _)| cluster == filter.cluster);
    let of_gateway = || event.gateway.split_once('/').is_some_and(|(cluster, _)| cluster == filter.cluster);
    (filter.service.is_empty() || event.service == filter.service)
        && (filter.cluster.is_empty() || event.cluster == filter.cluster || of_gateway() || said_there())
        && (filter.kinds.is_empty() || filter.kinds.contains(&event.kind))
        && event.last_unix_ms >= filter.since_unix_ms
}

/// At most so many characters of a text, none of which does anything to a terminal.
fn cut(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| !is_unprintable(*c)).take(chars_max).collect()
}

/// Control characters, and those that turn the direction of what follows.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

const WORD_BYTES_MAX: usize = 63;
/// A SPIFFE id with the longest trust domain and two labels.
const NAME_CHARS_MAX: usize = 420;
/// Two names and a sentence around them.
const MESSAGE_CHARS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            source: "paris/gw-1".into(),
            id: 1,
            kind: "failover".into(),
            reason: "Failover".into(),
            service: "shop/checkout".into(),
            cluster: "tokyo".into(),
            first_unix_ms: 10,
            last_unix_ms: 20,
            ..Event::default()
        }
    }

    #[test]
    fn what_a_terminal_must_not_see_is_left_out_and_what_is_long_is_cut() {
        let hostile = Event {
            message: format!("\u{1b}]0;owned\u{7}a\u{202e}b\r\n{}", "x".repeat(9_000)),
            subject: "v\u{9b}31m1".into(),
            gateway: "g".repeat(9_000),
            count: 0,
            first_unix_ms: 99,
            ..event()
        };
        let admitted = admit(hostile).unwrap();
        assert!(admitted.message.starts_with("]0;ownedabxx") && admitted.message.chars().count() == MESSAGE_CHARS_MAX);
        assert_eq!((&*admitted.subject, admitted.gateway.len()), ("v31m1", NAME_CHARS_MAX));
        assert_eq!((admitted.count, admitted.first_unix_ms), (1, 20));
        assert_eq!(admit(admitted.clone()), Some(admitted), "what was admitted is admitted again as it is");
        for bad in ["", "Two Words", "a\u{1b}[2J", &"x".repeat(64)] {
            assert_eq!(admit(Event { reason: bad.into(), ..event() }), None, "{bad:?}");
        }
        assert_eq!(admit(Event { id: 0, ..event() }), None);
    }

    #[test]
    fn filters() {
        let filter = EventFilter::default;
        let takes = |filter: EventFilter| matches(&filter, &event());
        assert!(takes(filter()));
        assert!(takes(EventFilter { service: "shop/checkout".into(), ..filter() }));
        assert!(!takes(EventFilter { service: "shop/check".into(), ..filter() }));
        assert!(takes(EventFilter { cluster: "tokyo".into(), ..filter() }), "what it is about");
        assert!(takes(EventFilter { cluster: "paris".into(), ..filter() }), "who says it");
        assert!(!takes(EventFilter { cluster: "par".into(), ..filter() }));
        assert!(takes(EventFilter { kinds: vec!["drain".into(), "failover".into()], ..filter() }));
        assert!(!takes(EventFilter { kinds: vec!["drain".into()], ..filter() }));
        assert!(takes(EventFilter { since_unix_ms: 20, ..filter() }), "it happened again then");
        assert!(!takes(EventFilter { since_unix_ms: 21, ..filter() }));
    }
}
