//! Which requests of a service are kept: the slowest of each minute, and beside them some at random, each as likely as any other.
//!
//! Without I/O: time and randomness are passed in. What most requests cost is [`Minutes::wants`], two comparisons and an addition.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The requests of one service that are kept, by minute.
#[derive(Debug)]
pub struct Minutes<E> {
    /// The newest last; there is always one.
    all: VecDeque<Minute<E>>,
    /// When the newest is over.
    ends: Instant,
    /// Only what took longer than this is among its slowest.
    threshold: u32,
    /// Which of its requests is the next that the sample takes.
    next: u64,
    /// See [`Minutes::skip`].
    weight: f64,
}

/// The requests that ended within one minute.
#[derive(Debug)]
pub struct Minute<E> {
    /// When it began: with the first request after the one before was over.
    pub began: Instant,
    /// Requests that ended in it.
    pub seen: u64,
    /// Those that are kept.
    pub kept: Vec<Kept<E>>,
}

/// One that is kept.
#[derive(Debug)]
pub struct Kept<E> {
    /// How long it took, in microseconds.
    pub total: u32,
    /// When it ended.
    pub at: Instant,
    /// One of the slowest.
    pub slowest: bool,
    /// Its place in the sample, if it is in there.
    pub slot: Option<usize>,
    /// What is known of it.
    pub entry: E,
}

/// How many entries all services of a worker may have together, and how many they have.
pub trait Room {
    /// True if there is room for another of a service that has `own`; it is counted then.
    fn take(&self, own: usize) -> bool;
    /// So many are gone.
    fn give(&self, count: usize);
}

impl<E> Minutes<E> {
    /// Nothing kept; the first minute begins `now`.
    pub fn new(now: Instant) -> Self {
        let first = Minute { began: now, seen: 0, kept: Vec::new() };
        Self { all: [first].into(), ends: now + MINUTE, threshold: 0, next: 1, weight: 1.0 }
    }

    /// Counts a request that took `total` and ended `now`; true if it is to be [kept](Self::keep).
    #[inline]
    pub fn wants(&mut self, total: u32, now: Instant, room: &impl Room) -> bool {
        if now >= self.ends {
            self.begin(now, room);
        }
        let Some(minute) = self.all.back_mut() else { return false };
        minute.seen += 1;
        total > self.threshold || minute.seen >= self.next
    }

    /// Keeps the request that was counted last.
    pub fn keep(&mut self, total: u32, now: Instant, entry: E, room: &impl Room, mut random: impl FnMut() -> u64) {
        let Some(minute) = self.all.back_mut() else { return };
        let slot = if minute.seen >= self.next {
            let sampled = minute.kept.iter().filter(|kept| kept.slot.is_some()).count();
            let slot = if sampled < SAMPLE { sampled } else { (random() % SAMPLE as u64) as usize };
            let seen = minute.seen;
            self.skip(seen, sampled + 1, &mut random);
            Some(slot)
        } else {
            None
        };
        let slowest = total > self.threshold;
        let Some(minute) = self.all.back_mut() else { return };
        if let Some(slot) = slot {
            minute.kept.iter_mut().filter(|kept| kept.slot == Some(slot)).for_each(|kept| kept.slot = None);
        }
        if slowest
            && minute.slowest().count() >= SLOWEST
            && let Some(least) = minute.kept.iter_mut().filter(|kept| kept.slowest).min_by_key(|kept| kept.total)
        {
            least.slowest = false;
        }
        let before = minute.kept.len();
        minute.kept.retain(|kept| kept.slowest || kept.slot.is_some());
        room.give(before - minute.kept.len());
        if self.make_room(total, room)
            && let Some(minute) = self.all.back_mut()
        {
            minute.kept.push(Kept { total, at: now, slowest, slot, entry });
        } else if slowest {
            // Nobody asks again for what there was no room for.
            self.threshold = total;
            return;
        }
        if let Some(minute) = self.all.back()
            && minute.slowest().count() >= SLOWEST
        {
            self.threshold = minute.slowest().map(|kept| kept.total).min().unwrap_or(0).max(self.threshold);
        }
    }

    /// Forgets what is older than is kept.
    pub fn expire(&mut self, now: Instant, room: &impl Room) {
        while let Some(oldest) = self.all.front()
            && self.all.len() > 1
            && now.saturating_duration_since(oldest.began) > MINUTE * KEPT_MINUTES
        {
            room.give(oldest.kept.len());
            self.all.pop_front();
        }
        if now >= self.ends + MINUTE * KEPT_MINUTES
            && let Some(last) = self.all.back_mut()
        {
            room.give(last.kept.len());
            last.kept.clear();
            // Whatever comes next begins another minute, and this one said nothing for as long as anything is kept.
            last.seen = 0;
        }
    }

    /// The minutes of the last `since`, oldest first: whole ones, and those that are partly of that time.
    pub fn since(&self, now: Instant, since: Duration) -> impl Iterator<Item = &Minute<E>> {
        let is_recent = move |minute: &&Minute<E>| {
            minute.seen > 0 && now.saturating_duration_since(minute.began) < since.saturating_add(MINUTE)
        };
        self.all.iter().filter(is_recent)
    }

    /// Entries that are kept.
    pub fn len(&self) -> usize {
        self.all.iter().map(|minute| minute.kept.len()).sum()
    }

    fn begin(&mut self, now: Instant, room: &impl Room) {
        self.all.push_back(Minute { began: now, seen: 0, kept: Vec::new() });
        (self.ends, self.threshold, self.next, self.weight) = (now + MINUTE, 0, 1, 1.0);
        self.expire(now, room);
        while self.all.len() > KEPT_MINUTES as usize + 1
            && let Some(oldest) = self.all.pop_front()
        {
            room.give(oldest.kept.len());
        }
    }

    /// How many requests the sample lets pass before it takes the next: Algorithm L (Li, 1994), which draws as every request would,
    /// by a number for those it takes only.
    fn skip(&mut self, seen: u64, sampled: usize, random: &mut impl FnMut() -> u64) {
        if sampled < SAMPLE {
            self.next = seen + 1;
            return;
        }
        let mut unit = || ((random() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        self.weight *= (unit().ln() / SAMPLE as f64).exp();
        let passed = (unit().ln() / (-self.weight).ln_1p()).floor();
        self.next = seen.saturating_add(passed as u64).saturating_add(1);
    }

    /// Room for one entry. If there is none, what this service has of its oldest minute goes, and in its only minute whatever was
    /// faster, first of what the sample does not need.
    fn make_room(&mut self, total: u32, room: &impl Room) -> bool {
        if room.take(self.len()) {
            return true;
        }
        let past = self.all.len().saturating_sub(1);
        if let Some(oldest) = self.all.iter_mut().take(past).find(|minute| !minute.kept.is_empty()) {
            room.give(oldest.kept.len());
            oldest.kept.clear();
            return room.take(self.len());
        }
        let Some(minute) = self.all.back_mut() else { return false };
        let faster = minute.kept.iter().enumerate().filter(|(_, kept)| kept.total < total);
        let Some((place, _)) = faster.min_by_key(|(_, kept)| (kept.slot.is_some(), kept.total)) else { return false };
        minute.kept.swap_remove(place);
        room.give(1);
        room.take(self.len())
    }
}

impl<E> Minute<E> {
    fn slowest(&self) -> impl Iterator<Item = &Kept<E>> {
        self.kept.iter().filter(|kept| kept.slowest)
    }
}

/// Of each minute.
pub const SLOWEST: usize = 10;
/// At random, of each minute.
pub const SAMPLE: usize = 16;
/// How far back anything is known.
pub const KEPT_MINUTES: u32 = 15;
/// How long one lasts.
pub const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::hash;
    use proptest::prelude::*;
    use std::cell::Cell;

    struct Places(Cell<usize>);

    impl Room for Places {
        fn take(&self, _own: usize) -> bool {
            let left = self.0.get();
            self.0.set(left.saturating_sub(1));
            left > 0
        }

        fn give(&self, count: usize) {
            self.0.set(self.0.get() + count);
        }
    }

    fn dice(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_add(1);
            hash::mix(seed)
        }
    }

    fn offer(
        minutes: &mut Minutes<u64>,
        total: u32,
        at: Instant,
        id: u64,
        room: &Places,
        dice: &mut impl FnMut() -> u64,
    ) {
        if minutes.wants(total, at, room) {
            minutes.keep(total, at, id, room, &mut *dice);
        }
    }

    #[test]
    fn a_sample_takes_early_and_late_ones_alike() {
        let (start, room, mut dice) = (Instant::now(), Places(Cell::new(usize::MAX / 2)), dice(7));
        let (rounds, requests) = (2_000, 400);
        let mut taken = [0_u32; 4];
        for _ in 0..rounds {
            let mut minutes = Minutes::new(start);
            for id in 0..requests {
                offer(&mut minutes, 5, start, id, &room, &mut dice);
            }
            for kept in minutes.all[0].kept.iter().filter(|kept| kept.slot.is_some()) {
                taken[(kept.entry * 4 / requests) as usize] += 1;
            }
        }
        // A quarter of them each: 8,000 of 32,000, with a standard deviation of 77.
        assert_eq!(taken.iter().sum::<u32>(), rounds * SAMPLE as u32);
        assert!(taken.iter().all(|quarter| quarter.abs_diff(8_000) < 400), "{taken:?}");
    }

    #[test]
    fn minutes_pass_and_are_forgotten() {
        let (start, room, mut dice) = (Instant::now(), Places(Cell::new(1_000)), dice(1));
        let mut minutes = Minutes::new(start);
        for minute in 0..40 {
            offer(&mut minutes, 1_000 * minute, start + MINUTE * minute, u64::from(minute), &room, &mut dice);
        }
        let now = start + MINUTE * 39;
        assert_eq!(
            minutes.since(now, Duration::from_secs(150)).map(|m| m.kept[0].entry).collect::<Vec<_>>(),
            [36, 37, 38, 39]
        );
        assert_eq!(minutes.since(now, Duration::MAX).count(), 16, "the one that runs, and fifteen before it");
        assert_eq!(room.0.get() + minutes.len(), 1_000);
        minutes.expire(now + MINUTE * 100, &room);
        assert_eq!((minutes.len(), room.0.get()), (0, 1_000));
        assert_eq!(minutes.since(now + MINUTE * 100, Duration::MAX).count(), 0);
        offer(&mut minutes, 9, now + MINUTE * 101, 99, &room, &mut dice);
        assert_eq!(minutes.since(now + MINUTE * 101, MINUTE).map(|m| m.kept[0].entry).collect::<Vec<_>>(), [99]);
    }

    #[test]
    fn without_room_the_oldest_of_the_service_goes() {
        let (start, room, mut dice) = (Instant::now(), Places(Cell::new(4)), dice(3));
        let mut minutes = Minutes::new(start);
        for minute in 0..3 {
            for id in 0..3 {
                offer(
                    &mut minutes,
                    10 + minute + id,
                    start + MINUTE * minute,
                    u64::from(minute * 10 + id),
                    &room,
                    &mut dice,
                );
            }
        }
        let left: Vec<u64> = minutes.all.iter().flat_map(|m| m.kept.iter().map(|kept| kept.entry)).collect();
        assert_eq!(left, [20, 21, 22], "those of the newest minute");
        // Another service that comes now has nothing of its own to give up.
        room.0.set(0);
        let mut late = Minutes::new(start);
        offer(&mut late, 50, start, 1, &room, &mut dice);
        assert_eq!(late.len(), 0);
        late.next = u64::MAX;
        assert!(!late.wants(50, start, &room), "and does not ask for room again for what is no slower");
        assert!(late.wants(51, start, &room));
    }

    proptest! {
        #[test]
        fn the_slowest_are_kept_and_bounds_hold(totals in proptest::collection::vec(0_u32..500, 1..600), seed: u64) {
            let (start, room, mut dice) = (Instant::now(), Places(Cell::new(1_000)), dice(seed));
            let mut minutes = Minutes::new(start);
            for (id, total) in totals.iter().enumerate() {
                offer(&mut minutes, *total, start, id as u64, &room, &mut dice);
            }
            let minute = &minutes.all[0];
            prop_assert_eq!(minute.seen as usize, totals.len());
            let mut kept: Vec<u32> = minute.slowest().map(|kept| kept.total).collect();
            let mut slowest: Vec<u32> = totals.iter().copied().filter(|total| *total > 0).collect();
            slowest.sort_unstable_by(|a, b| b.cmp(a));
            slowest.truncate(SLOWEST);
            kept.sort_unstable_by(|a, b| b.cmp(a));
            prop_assert_eq!(kept, slowest);
            let mut slots: Vec<usize> = minute.kept.iter().filter_map(|kept| kept.slot).collect();
            slots.sort_unstable();
            prop_assert_eq!(slots, (0..totals.len().min(SAMPLE)).collect::<Vec<_>>());
            prop_assert!(minute.kept.iter().all(|kept| kept.slowest || kept.slot.is_some()));
            prop_assert!(minute.kept.iter().all(|kept| totals[kept.entry as usize] == kept.total));
            prop_assert_eq!(room.0.get() + minutes.len(), 1_000);
        }
    }
}
