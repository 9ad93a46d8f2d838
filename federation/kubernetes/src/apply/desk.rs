//! Which writes are sent now, which later, and which are done.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use archipelago_base::backoff::Backoff;

use super::{Done, Target, What, Write};

/// Remembers what was sent, so that a want that is repeated until its effect is seen is not a write that is repeated.
#[derive(Debug, Default)]
pub struct Desk {
    records: HashMap<Slot, Record>,
    under_way: usize,
}

/// An object, or its status.
type Slot = (Target, bool);

#[derive(Debug)]
struct Record {
    /// Of what was sent last.
    digest: u64,
    state: State,
    backoff: Backoff,
}

#[derive(Debug, PartialEq)]
enum State {
    UnderWay,
    Done {
        at: Instant,
    },
    /// Not again before then.
    Failed {
        until: Instant,
    },
}

/// What to do now.
#[derive(Debug, Default)]
pub struct Choice {
    /// To be sent; each must come back to [`Desk::done`].
    pub now: Vec<Write>,
    /// When the same wants would lead to another choice, if nothing else happens.
    pub again: Option<Instant>,
}

impl Desk {
    /// Chooses among everything that is wanted. What is no longer wanted is forgotten after a while.
    pub fn choose(&mut self, wanted: Vec<Write>, now: Instant) -> Choice {
        let mut choice = Choice::default();
        let mut slots = HashSet::with_capacity(wanted.len());
        for write in wanted {
            let slot = slot(&write);
            slots.insert(slot.clone());
            let digest = digest(&write.what);
            let wait = self.records.get(&slot).map_or(Wait::No, |record| record.wait(&write.what, digest, now));
            match wait {
                Wait::No if self.under_way < WRITES_MAX => {
                    self.under_way += 1;
                    let record = self.records.entry(slot).or_insert_with(|| Record {
                        digest,
                        state: State::UnderWay,
                        backoff: Backoff::new(RETRY_MIN, RETRY_FIRST, RETRY_MAX),
                    });
                    (record.digest, record.state) = (digest, State::UnderWay);
                    choice.now.push(write);
                }
                Wait::Until(at) => choice.again = Some(choice.again.map_or(at, |earliest| earliest.min(at))),
                // Something that is under way will end, and then the choice is made anew.
                Wait::No | Wait::ForAnEnd | Wait::ForEver => {}
            }
        }
        self.records.retain(|slot, record| record.matters(now) || slots.contains(slot));
        choice
    }

    /// A write ended. Returns how many times in a row this object could not be written.
    pub fn done(&mut self, done: &Done, now: Instant, random: f64) -> u32 {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(record) = self.records.get_mut(&slot(&done.write)) else { return 0 };
        match &done.result {
            Ok(()) => {
                record.backoff.reset();
                record.state = State::Done { at: now };
            }
            Err(failure) => {
                let asked = failure.retry_after.unwrap_or_default().min(RETRY_MAX);
                record.state = State::Failed { until: now + asked + record.backoff.next_delay(random) };
            }
        }
        record.backoff.failures()
    }
}

enum Wait {
    No,
    Until(Instant),
    ForAnEnd,
    ForEver,
}

impl Record {
    /// It still holds something back, even if nobody wants anything of the object right now.
    fn matters(&self, now: Instant) -> bool {
        match self.state {
            State::UnderWay => true,
            State::Done { at } => at + ECHO_TIME_MAX > now,
            State::Failed { until } => until > now,
        }
    }

    fn wait(&self, what: &What, digest: u64, now: Instant) -> Wait {
        let until = |at: Instant| if at <= now { Wait::No } else { Wait::Until(at) };
        match self.state {
            State::UnderWay => Wait::ForAnEnd,
            State::Failed { until: at } => until(at),
            State::Done { at } if self.digest == digest => match what {
                What::ApplyOnce(_) => Wait::ForEver,
                What::Apply(_) | What::ApplyStatus(_) | What::Delete { .. } => until(at + ECHO_TIME_MAX),
            },
            // Progress that comes in many small steps is written in a few larger ones.
            State::Done { at } => match what {
                What::ApplyStatus(_) => until(at + STATUS_INTERVAL),
                What::Apply(_) | What::ApplyOnce(_) | What::Delete { .. } => Wait::No,
            },
        }
    }
}

fn slot(write: &Write) -> Slot {
    (write.target.clone(), matches!(write.what, What::ApplyStatus(_)))
}

fn digest(what: &What) -> u64 {
    let mut hasher = DefaultHasher::new();
    match what {
        What::Apply(body) | What::ApplyOnce(body) | What::ApplyStatus(body) => (0_u8, body).hash(&mut hasher),
        What::Delete { uid } => (1_u8, uid).hash(&mut hasher),
    }
    hasher.finish()
}

/// Given out at once. How many of them are on the wire is the [`super::Writer`]'s to bound; this is what it may have lying
/// there, so that it does not wait for the next look at everything.
const WRITES_MAX: usize = 256;
/// What was written is seen by our own watch well before this; if not, somebody has undone it.
const ECHO_TIME_MAX: Duration = Duration::from_secs(3);
/// A person who watches sees two steps a second; the first is written at once.
const STATUS_INTERVAL: Duration = Duration::from_millis(400);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        client::Failure,
        types::{Key, Resource},
    };

    const SERVICES: Resource = Resource { group: "", version: "v1", plural: "services" };

    fn write(name: &str, what: What) -> Write {
        Write { target: Target { resource: SERVICES, key: Key::new("shop", name) }, what }
    }

    fn apply(name: &str, value: u32) -> Write {
        write(name, What::Apply(json!({ "value": value }).into()))
    }

    fn status(value: u32) -> Write {
        write("a", What::ApplyStatus(json!({ "value": value }).into()))
    }

    fn values(choice: &Choice) -> Vec<Value> {
        let body = |write: &Write| match &write.what {
            What::Apply(body) | What::ApplyOnce(body) | What::ApplyStatus(body) => body.value()["value"].clone(),
            What::Delete { .. } => Value::Null,
        };
        choice.now.iter().map(body).collect()
    }

    fn ok(write: Write) -> Done {
        Done { write, result: Ok(()) }
    }

    #[test]
    fn what_was_written_is_not_written_again_until_its_effect_must_have_been_seen() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        assert_eq!(values(&desk.choose(vec![apply("a", 1)], now)), [json!(1)]);
        assert!(desk.choose(vec![apply("a", 1)], now).now.is_empty(), "it is under way");
        desk.done(&ok(apply("a", 1)), now, 0.5);
        let waits = desk.choose(vec![apply("a", 1)], now);
        assert!(waits.now.is_empty() && waits.again == Some(now + ECHO_TIME_MAX));
        assert_eq!(values(&desk.choose(vec![apply("a", 2)], now)), [json!(2)], "something else is news");
        desk.done(&ok(apply("a", 2)), now, 0.5);
        assert_eq!(values(&desk.choose(vec![apply("a", 2)], now + ECHO_TIME_MAX)), [json!(2)], "somebody undid it");
    }

    #[test]
    fn what_is_done_once_is_done_once() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let once = || write("a", What::ApplyOnce(json!({ "value": 1 }).into()));
        desk.choose(vec![once()], now);
        desk.done(&ok(once()), now, 0.5);
        let later = desk.choose(vec![once()], now + Duration::from_secs(3_600));
        assert!(later.now.is_empty() && later.again.is_none());
        assert_eq!(Desk::default().choose(vec![once()], now).now.len(), 1, "another leader asks again");
    }

    #[test]
    fn failures_are_retried_later_and_later_and_one_does_not_hold_up_others() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let failed = || Done { write: apply("a", 1), result: Err(Failure::transport("no")) };
        let mut at = now;
        for round in 1..12 {
            let choice = desk.choose(vec![apply("a", 1), apply("b", round)], at);
            assert_eq!(values(&choice), [json!(1), json!(round)]);
            assert_eq!(desk.done(&failed(), at, 1.0), round);
            desk.done(&ok(apply("b", round)), at, 1.0);
            let again = desk.choose(vec![apply("a", 1)], at).again.unwrap();
            assert!(again > at && again <= at + RETRY_MIN + RETRY_MAX);
            at = again;
        }
        assert!(at > now + Duration::from_secs(60));
    }

    #[test]
    fn a_bounded_number_is_under_way_and_the_rest_follows() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let count = u32::try_from(2 * WRITES_MAX + 8).unwrap();
        let wanted: Vec<Write> = (0..count).map(|index| apply(&format!("s{index}"), index)).collect();
        let first = desk.choose(wanted.clone(), now);
        assert_eq!(first.now.len(), WRITES_MAX);
        for write in first.now {
            desk.done(&ok(write), now, 0.5);
        }
        assert_eq!(desk.choose(wanted, now).now.len(), WRITES_MAX);
    }

    #[test]
    fn steps_of_a_status_are_gathered_even_while_each_is_seen_before_the_next() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        assert_eq!(desk.choose(vec![status(1)], now).now.len(), 1, "the first at once");
        desk.done(&ok(status(1)), now, 0.5);
        let mut writes = 0;
        for step in 2..100 {
            let at = now + Duration::from_millis(10 * u64::from(step));
            for write in desk.choose(vec![status(step)], at).now {
                writes += 1;
                desk.done(&ok(write), at, 0.5);
                assert!(desk.choose(Vec::new(), at).now.is_empty());
            }
        }
        assert_eq!(writes, 2, "in a second");
        // An object and its status are written apart.
        assert_eq!(desk.choose(vec![status(100), apply("a", 1)], now + Duration::from_secs(2)).now.len(), 2);
    }

    #[test]
    fn what_nobody_wants_any_more_is_forgotten() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        for index in 0..1_000 {
            let at = now + Duration::from_millis(100) * index;
            for write in desk.choose(vec![apply(&format!("s{index}"), 1)], at).now {
                desk.done(&ok(write), at, 0.5);
            }
        }
        assert!(desk.records.len() <= 31, "those of the last three seconds: {}", desk.records.len());
    }
}
