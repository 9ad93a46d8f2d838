//! The election of one replica, without I/O.
//!
//! The record in the Lease is compared with the one seen before; how long it has been the same, by our own clock, is how
//! long its holder has been silent. Times in the record are for people, and for numbering the terms.

use std::time::{Duration, Instant};

/// What the Lease says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty: nobody.
    pub holder: String,
    /// When its term began, Unix milliseconds: the number of the term.
    pub acquired_ms: u64,
    /// When it was last renewed, Unix microseconds.
    pub renewed_us: i64,
    /// Changes of holder so far.
    pub transitions: i32,
}

/// What to do with the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Somebody else leads.
    Wait,
    /// Write this.
    Write(Record),
}

/// One replica's part.
#[derive(Debug)]
pub struct Election {
    identity: String,
    /// What was seen last, and since when it has been like that.
    seen: Option<(Record, Instant)>,
    /// Our term, and when the renewal began that last went through.
    term: Option<(u64, Instant)>,
}

impl Election {
    /// A replica called `identity`, unlike every other.
    #[must_use]
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, term: None }
    }

    /// The Lease was read at `now` (`None`: there is none); `unix_us` is the time of day.
    pub fn read(&mut self, record: Option<Record>, now: Instant, unix_us: i64) -> Act {
        let record = record.unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == record => *since,
            _ => now,
        };
        let is_ours = record.holder == self.identity;
        let is_free = record.holder.is_empty() || now.saturating_duration_since(since) >= EXPIRY;
        self.seen = Some((record.clone(), since));
        if !is_ours {
            // Whoever wrote it did so after our time was up.
            self.term = None;
        }
        if !is_ours && !is_free {
            return Act::Wait;
        }
        // A term that we do not remember was that of a process before us: its work is not ours to continue.
        let continues = is_ours && self.term(now).is_some_and(|term| term == record.acquired_ms);
        let unix_ms = u64::try_from(unix_us / 1_000).unwrap_or_default();
        Act::Write(Record {
            holder: self.identity.clone(),
            // Above the last even if our clock is behind.
            acquired_ms: if continues { record.acquired_ms } else { unix_ms.max(record.acquired_ms.saturating_add(1)) },
            // Each record is unlike the one before it, or others would not see that it was renewed.
            renewed_us: unix_us.max(record.renewed_us.saturating_add(1)),
            transitions: record.transitions.saturating_add(i32::from(!is_ours)),
        })
    }

    /// `record` was written by an attempt that began at `began`.
    pub fn written(&mut self, record: Record, began: Instant) {
        self.term = (record.holder == self.identity).then_some((record.acquired_ms, began));
        self.seen = Some((record, began));
    }

    /// The number of our term, if we still lead at `now`.
    #[must_use]
    pub fn term(&self, now: Instant) -> Option<u64> {
        let (term, renewed) = self.term?;
        (now.saturating_duration_since(renewed) < RENEW_TIME_MAX).then_some(term)
    }

    /// Until when we lead without another renewal.
    #[must_use]
    pub fn leads_until(&self) -> Option<Instant> {
        self.term.map(|(_, renewed)| renewed + RENEW_TIME_MAX)
    }

    /// What gives the Lease back, if we hold it at `now`.
    pub fn release(&mut self, now: Instant) -> Option<Record> {
        self.term(now)?;
        self.term = None;
        let (record, _) = self.seen.as_ref()?;
        Some(Record { holder: String::new(), renewed_us: record.renewed_us.saturating_add(1), ..record.clone() })
    }
}

/// How often a leader renews and the others look.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// A leader that could not renew for so long no longer is one.
pub const RENEW_TIME_MAX: Duration = Duration::from_secs(7);
/// A leader that was silent for so long is followed.
pub const EXPIRY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u64) -> (Instant, i64) {
            (self.0 + Duration::from_secs(seconds), i64::try_from(1_000_000_000 + seconds * 1_000_000).unwrap())
        }
    }

    /// A replica that looks at the Lease, and whose writes go through.
    fn look(replica: &mut Election, lease: &mut Option<Record>, (now, unix): (Instant, i64)) -> Option<u64> {
        if let Act::Write(record) = replica.read(lease.clone(), now, unix) {
            *lease = Some(record.clone());
            replica.written(record, now);
        }
        replica.term(now)
    }

    #[test]
    fn one_leads_and_keeps_its_term_while_it_renews() {
        let (clock, mut lease) = (Clock(Instant::now()), None);
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let term = look(&mut a, &mut lease, clock.at(0)).unwrap();
        for second in (2..60).step_by(2) {
            assert_eq!(look(&mut b, &mut lease, clock.at(second)), None);
            assert_eq!(look(&mut a, &mut lease, clock.at(second)), Some(term));
        }
        assert_eq!(lease.unwrap().transitions, 1);
    }

    #[test]
    fn a_silent_leader_has_stepped_down_before_it_is_followed() {
        let (clock, mut lease) = (Clock(Instant::now()), None);
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let first = look(&mut a, &mut lease, clock.at(0)).unwrap();
        // The other one sees it at once, and waits from then.
        assert_eq!(look(&mut b, &mut lease, clock.at(0)), None);
        for second in 1..10 {
            assert_eq!(look(&mut b, &mut lease, clock.at(second)), None);
            assert_eq!(a.term(clock.at(second).0).is_some(), second < 7, "second {second}");
        }
        let second = look(&mut b, &mut lease, clock.at(10)).unwrap();
        assert!(second > first);
        // The first comes back to find that it lost.
        assert_eq!(look(&mut a, &mut lease, clock.at(11)), None);
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once_and_terms_rise_with_any_clock() {
        let (clock, mut lease) = (Clock(Instant::now()), None);
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let first = look(&mut a, &mut lease, clock.at(1000)).unwrap();
        lease = a.release(clock.at(1001).0);
        assert_eq!(a.term(clock.at(1001).0), None);
        // Its wall clock is a quarter of an hour behind.
        let (now, _) = clock.at(1001);
        let second = look(&mut b, &mut lease, (now, clock.at(100).1)).unwrap();
        assert!(second > first, "{second} {first}");
        assert_eq!(b.release(clock.at(1100).0), None, "too late to be ours");
    }

    #[test]
    fn a_process_of_the_same_name_begins_a_new_term() {
        let (clock, mut lease) = (Clock(Instant::now()), None);
        let first = look(&mut Election::new("a".into()), &mut lease, clock.at(0)).unwrap();
        let second = look(&mut Election::new("a".into()), &mut lease, clock.at(1)).unwrap();
        assert!(second > first);
        // So does one that slept through its time.
        let mut a = Election::new("a".into());
        let third = look(&mut a, &mut lease, clock.at(2)).unwrap();
        assert!(look(&mut a, &mut lease, clock.at(12)).unwrap() > third);
    }

    #[test]
    fn a_write_that_lost_a_race_makes_no_leader() {
        let clock = Clock(Instant::now());
        let mut a = Election::new("a".into());
        let (now, unix) = clock.at(0);
        assert!(matches!(a.read(None, now, unix), Act::Write(_)));
        assert_eq!(a.term(now), None);
    }
}
