//! Pauses between attempts, without a clock: randomness is passed in.

use std::time::Duration;

/// Full-jitter exponential back-off (AWS Architecture Blog, "Exponential Backoff and Jitter").
///
/// A restarted server sees all its clients redial at once, and any common part of the delay would keep them in step, so
/// nothing but `floor` is common.
#[derive(Debug, Clone)]
pub struct Backoff {
    floor: Duration,
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses of `floor` and up to `first` more after the first failure, the latter doubling up to `max`.
    #[must_use]
    pub const fn new(floor: Duration, first: Duration, max: Duration) -> Self {
        Self { floor, first, max, failures: 0 }
    }

    /// The pause after one more failure; `random` in `[0, 1)`.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        self.floor + ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// An attempt held: start over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let (floor, first, max) = (Duration::from_millis(20), Duration::from_millis(100), Duration::from_secs(3));
        let mut backoff = Backoff::new(floor, first, max);
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay(1.0)).collect();
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!((delays.first(), delays.last()), (Some(&(floor + first)), Some(&(floor + max))));
        assert_eq!(backoff.next_delay(0.0), floor);
        assert_eq!(backoff.failures(), 41);
        backoff.reset();
        assert_eq!(backoff.next_delay(1.0), floor + first);
    }
}
