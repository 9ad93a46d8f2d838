//! How many attempts beyond the first a worker may spend.
//!
//! Two buckets with different manners. *Retries* (one endpoint failed, the others are fine) get a fifth of the live load, so
//! that a sick service is not hit twice as hard. *Failovers* (a peer died with requests on board) get one attempt for each
//! request that was admitted: a 20 % budget would turn the loss of a cluster into 80 % errors.

use std::time::{Duration, Instant};

/// Why another attempt is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// One endpoint or stream failed.
    Retry,
    /// A peer or connection died, or refused before processing anything.
    Failover,
}

/// Both buckets of one worker.
#[derive(Debug)]
pub struct Budget {
    retries: Bucket,
    failovers: Bucket,
}

impl Budget {
    /// Full buckets.
    pub fn new(now: Instant) -> Self {
        Self {
            retries: Bucket { per_request: 0.2, per_second: 10.0, max: 200.0, tokens: 200.0, at: now },
            // 16,384 covers the requests in flight of one worker at its connection limit.
            failovers: Bucket { per_request: 1.0, per_second: 100.0, max: 16_384.0, tokens: 16_384.0, at: now },
        }
    }

    /// Counts a first attempt.
    pub fn deposit(&mut self) {
        self.retries.deposit();
        self.failovers.deposit();
    }

    /// Asks for one more attempt.
    pub fn withdraw(&mut self, purpose: Purpose, now: Instant) -> bool {
        match purpose {
            Purpose::Retry => self.retries.withdraw(now),
            Purpose::Failover => self.failovers.withdraw(now),
        }
    }
}

#[derive(Debug)]
struct Bucket {
    per_request: f64,
    per_second: f64,
    max: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn deposit(&mut self) {
        self.tokens = (self.tokens + self.per_request).min(self.max);
    }

    fn withdraw(&mut self, now: Instant) -> bool {
        let elapsed: Duration = now.saturating_duration_since(self.at);
        self.at = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.max);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_and_failovers_all() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        while budget.withdraw(Purpose::Retry, now) {}
        while budget.withdraw(Purpose::Failover, now) {}
        (0..1000).for_each(|_| budget.deposit());
        let count = |budget: &mut Budget, purpose| (0..2000).filter(|_| budget.withdraw(purpose, now)).count();
        let retries = count(&mut budget, Purpose::Retry);
        assert!((199..=200).contains(&retries), "{retries}");
        assert_eq!(count(&mut budget, Purpose::Failover), 1000);
    }

    #[test]
    fn an_idle_worker_may_still_retry() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        while budget.withdraw(Purpose::Retry, now) {}
        assert!(!budget.withdraw(Purpose::Retry, now + Duration::from_millis(50)));
        assert!(budget.withdraw(Purpose::Retry, now + Duration::from_millis(300)));
    }
}
