//! What one tap keeps for who asks, without I/O: so many records a second, until they have arrived.
//!
//! Records have numbers. Who asks says up to which one they have arrived, and gets those after it: an answer that is lost loses nothing, and
//! one that is told twice is told the same. What is left out is counted, never hidden.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records of one tap.
#[derive(Debug)]
pub struct Desk<R> {
    /// Between two records when there are as many as may be.
    interval: Duration,
    /// When all that has been taken would have been taken, one per interval.
    taken_until: Instant,
    /// In the order in which they came, with their numbers.
    records: VecDeque<(u64, Arc<R>)>,
    next: u64,
    matched: u64,
    left_out: u64,
    asked: Instant,
}

/// What a desk tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Told<R> {
    /// Records and their numbers.
    pub records: Vec<(u64, Arc<R>)>,
    /// Requests that the tap was about, since it began.
    pub matched: u64,
    /// Those of them that are in no record.
    pub left_out: u64,
}

impl<R> Desk<R> {
    /// Nothing yet; `rate_max` records a second, and as many at once after a quiet second.
    pub fn new(rate_max: u32, now: Instant) -> Self {
        Self {
            interval: Duration::from_secs(1) / rate_max.max(1),
            taken_until: now,
            records: VecDeque::new(),
            next: 1,
            matched: 0,
            left_out: 0,
            asked: now,
        }
    }

    /// Counts a request that the tap is about; true if there is to be a [record](Self::put) of it.
    pub fn counts(&mut self, now: Instant) -> bool {
        self.matched += 1;
        let until = self.taken_until.max(now) + self.interval;
        let is_taken = until.saturating_duration_since(now) <= BURST;
        if is_taken {
            self.taken_until = until;
        } else {
            self.left_out += 1;
        }
        is_taken
    }

    /// Keeps a record; the oldest goes where nobody asks for them quickly enough.
    pub fn put(&mut self, record: R) {
        if self.records.len() >= RECORDS_MAX {
            self.records.pop_front();
            self.left_out += 1;
        }
        self.records.push_back((self.next, Arc::new(record)));
        self.next += 1;
    }

    /// Forgets what has arrived and tells the rest.
    pub fn tell(&mut self, after: u64, now: Instant) -> Told<R> {
        self.asked = now;
        self.records.retain(|(number, _)| *number > after);
        Told { records: self.records.iter().cloned().collect(), matched: self.matched, left_out: self.left_out }
    }

    /// Whether nobody has asked for so long that nobody will.
    pub fn is_abandoned(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked) > UNASKED_MAX
    }
}

/// After a quiet second, what a second may have.
const BURST: Duration = Duration::from_secs(1);
/// Two seconds at the highest rate; members ask twice a second. 1 MiB, mostly.
const RECORDS_MAX: usize = 500;
/// A member that has a gateway to wait for asks again after 5 s at the latest.
const UNASKED_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn numbers(told: &Told<u32>) -> Vec<u64> {
        told.records.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn so_many_a_second_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut desk: Desk<u32> = Desk::new(10, start);
        let taken = |desk: &mut Desk<u32>, now, count| (0..count).filter(|_| desk.counts(now)).count();
        assert_eq!(taken(&mut desk, start, 25), 10, "a quiet second's worth at once");
        assert_eq!(taken(&mut desk, at(start, 100), 5), 1);
        assert_eq!(taken(&mut desk, at(start, 1_000), 50), 9);
        assert_eq!(taken(&mut desk, at(start, 9_000), 50), 10, "what was not used before is not saved");
        let told = desk.tell(0, start);
        assert_eq!((told.matched, told.left_out), (130, 100));
    }

    #[test]
    fn what_has_not_arrived_is_told_again() {
        let now = Instant::now();
        let mut desk = Desk::new(100, now);
        (0..3).for_each(|n| desk.put(n));
        assert_eq!(numbers(&desk.tell(0, now)), [1, 2, 3]);
        assert_eq!(numbers(&desk.tell(0, now)), [1, 2, 3], "the answer was lost");
        desk.put(3);
        assert_eq!(numbers(&desk.tell(2, now)), [3, 4]);
        assert_eq!(numbers(&desk.tell(4, now)), [0_u64; 0]);
        assert_eq!(numbers(&desk.tell(99, now)), [0_u64; 0], "more than there is");
        desk.put(4);
        assert_eq!(numbers(&desk.tell(4, now)), [5]);
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let now = Instant::now();
        let mut desk = Desk::new(u32::MAX, now);
        let count = u32::try_from(RECORDS_MAX).unwrap() + 7;
        for n in 0..count {
            assert!(desk.counts(now));
            desk.put(n);
        }
        let told = desk.tell(0, now);
        assert_eq!((told.records.len(), told.matched, told.left_out), (RECORDS_MAX, count.into(), 7));
        assert_eq!(told.records[0].0, 8);
    }

    #[test]
    fn who_does_not_ask_is_gone() {
        let start = Instant::now();
        let mut desk: Desk<u32> = Desk::new(1, start);
        assert!(!desk.is_abandoned(at(start, 15_000)) && desk.is_abandoned(at(start, 15_001)));
        desk.tell(0, at(start, 15_001));
        assert!(!desk.is_abandoned(at(start, 30_000)));
        // A clock that is read on another thread may be behind.
        assert!(!desk.is_abandoned(start));
    }
}
