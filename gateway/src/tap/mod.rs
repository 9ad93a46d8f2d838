//! Live requests, for who asks: those that a filter takes, as they end, at the gateway where they entered.
//!
//! | module | what |
//! | --- | --- |
//! | [`desk`] | the records of one tap, until they have arrived |
//! | [`record`] | what is said of a request |
//!
//! While nobody looks, a request costs one relaxed load where it begins and none where it ends. While somebody does, each request's texts are
//! kept as for the access log, its worker asks the filter, and one lock is held for as long as a record takes to be put down.

pub mod desk;
mod record;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use archipelago_http::RequestHead;
use archipelago_proto::v1::{TapAnswer, TapQuestion, TapRecord};
use archipelago_telemetry::Filter;
use prost::Message as _;

use self::desk::Desk;
use crate::exchange::books::{Done, Reporter};
use crate::worker::Worker;

/// Who looks at the requests of a gateway.
#[derive(Debug, Default)]
pub struct Taps {
    is_active: AtomicBool,
    taps: ArcSwap<Vec<Arc<Tap>>>,
    /// One at a time begins or ends them.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct Tap {
    id: u64,
    incarnation: u64,
    /// As it was asked.
    asked: (String, u32),
    filter: Filter,
    began: Instant,
    desk: Mutex<Desk<TapRecord>>,
}

impl Taps {
    /// Whether anybody looks. What a worker sees of it may be a moment old.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    /// Answers with what has been put down since, at most `bytes_max` of it; begins to look at the first question.
    ///
    /// # Errors
    /// Why there is no answer, fit to print.
    pub fn answer(&self, question: &TapQuestion, bytes_max: usize, now: Instant) -> Result<TapAnswer, String> {
        let tap = self.find(question, now)?;
        let after = if question.incarnation == tap.incarnation { question.after } else { 0 };
        let told = tap.desk.lock().unwrap_or_else(PoisonError::into_inner).tell(after, now);
        let mut bytes = 0;
        let records =
            told.records.iter().map(|(sequence, record)| TapRecord { sequence: *sequence, ..(**record).clone() });
        let records = records.take_while(|record| {
            bytes += record.encoded_len();
            bytes <= bytes_max
        });
        Ok(TapAnswer {
            records: records.collect(),
            incarnation: tap.incarnation,
            matched: told.matched,
            left_out: told.left_out,
        })
    }

    fn find(&self, question: &TapQuestion, now: Instant) -> Result<Arc<Tap>, String> {
        let asked = (question.filter.as_str(), question.rate_max.clamp(1, RATE_MAX));
        let is_meant = |tap: &&Arc<Tap>| tap.id == question.tap && (tap.asked.0.as_str(), tap.asked.1) == asked;
        if let Some(tap) = self.taps.load().iter().find(is_meant) {
            return Ok(Arc::clone(tap));
        }
        let filter = Filter::parse(&question.filter)
            .map_err(|error| format!("this gateway does not understand the filter, at {error}"))?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taps = self.remaining(now);
        taps.retain(|tap| tap.id != question.tap);
        if taps.len() >= TAPS_MAX {
            return Err(format!("{TAPS_MAX} others look at its requests already: try again when one has ended"));
        }
        let tap = Arc::new(Tap {
            id: question.tap,
            incarnation: rand::random::<u64>().max(1),
            asked: (asked.0.to_owned(), asked.1),
            filter,
            began: now,
            desk: Mutex::new(Desk::new(asked.1, now)),
        });
        taps.push(Arc::clone(&tap));
        self.replace(taps);
        Ok(tap)
    }

    /// Ends those for which nobody asks any more.
    pub fn expire(&self, now: Instant) {
        if !self.is_active() {
            return;
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let taps = self.remaining(now);
        if taps.len() < self.taps.load().len() {
            self.replace(taps);
        }
    }

    /// The same every so often, for ever.
    pub async fn expire_on(self: Arc<Self>, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            self.expire(Instant::now());
        }
    }

    fn remaining(&self, now: Instant) -> Vec<Arc<Tap>> {
        let is_asked = |tap: &&Arc<Tap>| !tap.desk.lock().unwrap_or_else(PoisonError::into_inner).is_abandoned(now);
        self.taps.load().iter().filter(is_asked).cloned().collect()
    }

    fn replace(&self, taps: Vec<Arc<Tap>>) {
        self.is_active.store(!taps.is_empty(), Ordering::Relaxed);
        self.taps.store(Arc::new(taps));
    }
}

/// Puts a request that ended down for those who look. One that began before somebody did has no texts, and is not told.
#[inline]
pub fn finished(worker: &Worker, done: &Done<'_>, head: Option<&RequestHead>, end: Instant) {
    if done.record.text.is_some() && worker.taps.is_active() && done.record.reporter == Reporter::Source {
        tell(worker, done, head, end);
    }
}

#[cold]
fn tell(worker: &Worker, done: &Done<'_>, head: Option<&RequestHead>, end: Instant) {
    for tap in worker.taps.taps.load().iter().filter(|tap| tap.began <= done.record.started) {
        if !tap.filter.takes(&|field| record::fact(worker, done, field)) {
            continue;
        }
        let desk = || tap.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if desk().counts(end) {
            let record = record::of(done, head, end);
            desk().put(record);
        }
    }
}

/// Questions of a look cost as much as its records.
const TAPS_MAX: usize = 4;
/// Each second of one tap; more is nothing that anybody reads.
const RATE_MAX: u32 = 250;

#[cfg(test)]
mod tests {
    use super::*;

    fn question(tap: u64, filter: &str) -> TapQuestion {
        TapQuestion { tap, filter: filter.to_owned(), rate_max: 10, ..TapQuestion::default() }
    }

    #[test]
    fn a_tap_begins_when_it_is_asked_and_ends_when_it_is_not() {
        let taps = Taps::default();
        let (start, bytes) = (Instant::now(), usize::MAX);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(!taps.is_active());
        let first = taps.answer(&question(1, "status>=500"), bytes, start).unwrap();
        assert!(taps.is_active() && first.incarnation != 0);
        let again = taps.answer(&question(1, "status>=500"), bytes, later(14)).unwrap();
        assert_eq!(again.incarnation, first.incarnation);
        taps.expire(later(29));
        assert!(taps.is_active());
        taps.expire(later(30));
        assert!(!taps.is_active(), "nobody asked for 16 s");
        let anew = taps.answer(&question(1, "status>=500"), bytes, later(31)).unwrap();
        assert_ne!(anew.incarnation, first.incarnation);
        // The same number for something else is another tap.
        let other = taps.answer(&question(1, "status>=400"), bytes, later(31)).unwrap();
        assert_ne!(other.incarnation, anew.incarnation);
        assert_eq!(taps.taps.load().len(), 1);
    }

    #[test]
    fn there_are_only_so_many_and_none_that_is_not_understood() {
        let taps = Taps::default();
        let now = Instant::now();
        let failure = taps.answer(&question(1, "colour=red"), usize::MAX, now).unwrap_err();
        assert!(failure.contains("1:1: `colour` is no field"), "{failure}");
        assert!(!taps.is_active());
        for id in 0..TAPS_MAX as u64 {
            taps.answer(&question(id, ""), usize::MAX, now).unwrap();
        }
        assert!(taps.answer(&question(99, ""), usize::MAX, now).unwrap_err().contains("try again"));
        let later = now + Duration::from_secs(60);
        assert!(taps.answer(&question(99, ""), usize::MAX, later).is_ok(), "those that nobody asks for make room");
    }

    #[test]
    fn an_answer_has_an_end_and_the_next_one_the_rest() {
        let taps = Taps::default();
        let now = Instant::now();
        let first = taps.answer(&question(1, ""), usize::MAX, now).unwrap();
        let desk = Arc::clone(&taps.taps.load()[0]);
        for _ in 0..4 {
            desk.desk.lock().unwrap().put(TapRecord { rule: "x".repeat(100), ..TapRecord::default() });
        }
        let ask = |incarnation, after, bytes| {
            let answer = taps.answer(&TapQuestion { incarnation, after, ..question(1, "") }, bytes, now).unwrap();
            answer.records.iter().map(|record| record.sequence).collect::<Vec<_>>()
        };
        assert_eq!(ask(first.incarnation, 0, 250), [1, 2]);
        assert_eq!(ask(7, 2, 250), [1, 2], "arrived of another beginning");
        assert_eq!(ask(first.incarnation, 2, 250), [3, 4]);
    }
}
