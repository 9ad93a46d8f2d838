//! How long an endpoint may leave a request unanswered before it is taken for hung.
//!
//! A process that is stopped, deadlocked or swapped out still accepts connections: nothing refuses, nothing breaks, and every
//! request that it is given waits until it times out. What tells it from a slow one is what it usually takes: [`Patience`]
//! keeps a decaying histogram of the times to response heads, and a request that waits [`FACTOR`] times the 99th percentile of
//! them, and a second at least, while nothing at all comes from the endpoint, has waited long enough.

use std::time::{Duration, Instant};

/// What one endpoint usually takes, and how long it has been silent.
#[derive(Debug, Clone)]
pub struct Patience {
    /// By powers of the square root of two, in units of 100 µs.
    counts: [u16; BUCKETS],
    total: u16,
    /// Requests without a response head.
    waiting: u32,
    /// When it last gave a sign of life, or was first given something to answer.
    since: Instant,
}

impl Patience {
    /// Of an endpoint about which nothing is known.
    pub fn new(now: Instant) -> Self {
        Self { counts: [0; BUCKETS], total: 0, waiting: 0, since: now }
    }

    /// It was given a request.
    pub fn begin(&mut self, now: Instant) {
        if self.waiting == 0 {
            self.since = now;
        }
        self.waiting += 1;
    }

    /// A request has its response head after `taken`, or will have none (`None`).
    pub fn end(&mut self, taken: Option<Duration>, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        let Some(taken) = taken else { return };
        self.since = now;
        if self.total >= REMEMBERED {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        if let Some(count) = self.counts.get_mut(bucket(taken)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Requests without a response head.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// How long nothing came from it, while something should have.
    pub fn silence(&self, now: Instant) -> Duration {
        if self.waiting == 0 { Duration::ZERO } else { now.saturating_duration_since(self.since) }
    }

    /// How long a request may wait while the endpoint is silent.
    pub fn limit(&self) -> Duration {
        if self.total < KNOWN_FROM {
            return UNKNOWN;
        }
        let mut left = u32::from(self.total).div_ceil(100);
        for (index, count) in self.counts.iter().enumerate().rev() {
            match left.checked_sub(u32::from(*count)) {
                Some(rest) if rest > 0 => left = rest,
                _ => return (upper(index) * FACTOR).clamp(LEAST, MOST),
            }
        }
        LEAST
    }
}

fn bucket(taken: Duration) -> usize {
    let units = taken.as_micros() / UNIT.as_micros();
    let Some(log) = units.checked_ilog2() else { return 0 };
    // The upper half of an octave begins at its lower end times the square root of two.
    let half = (units * 1000 >= (1_u128 << log) * 1414) as usize;
    (2 * log as usize + half + 1).min(BUCKETS - 1)
}

/// Where a bucket ends.
fn upper(bucket: usize) -> Duration {
    UNIT.mul_f64(2_f64.powf(bucket as f64 / 2.0))
}

/// Up to five minutes.
const BUCKETS: usize = 44;
const UNIT: Duration = Duration::from_micros(100);
/// Then the older half counts half.
const REMEMBERED: u16 = 2_000;
/// Fewer answers say nothing about a percentile.
const KNOWN_FROM: u16 = 20;
/// Of what is usual: a collector's pause or a full queue stays below it.
const FACTOR: u32 = 4;
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);
/// While nothing is known.
const UNKNOWN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn learned(times: impl IntoIterator<Item = Duration>, now: Instant) -> Patience {
        let mut patience = Patience::new(now);
        for taken in times {
            patience.begin(now);
            patience.end(Some(taken), now);
        }
        patience
    }

    #[test]
    fn the_limit_follows_the_99th_percentile() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        assert_eq!(learned([], now).limit(), UNKNOWN);
        assert_eq!(learned([ms(1); 19], now).limit(), UNKNOWN);
        assert_eq!(learned([ms(1); 20], now).limit(), LEAST, "a second at least");
        let slow = learned([ms(2_000); 100], now).limit();
        assert!(slow >= ms(8_000) && slow <= ms(12_000), "{slow:?}");
        let rare = (0..1000).map(|n| if n % 50 == 0 { ms(1_000) } else { ms(1) });
        let rare = learned(rare, now).limit();
        assert!(rare >= ms(4_000) && rare <= ms(6_000), "two in a hundred are usual: {rare:?}");
        let rarer = (0..1000).map(|n| if n == 500 { ms(1_000) } else { ms(1) });
        assert_eq!(learned(rarer, now).limit(), LEAST, "one in a thousand is not");
        assert_eq!(learned([ms(300_000); 100], now).limit(), MOST);
        // What is usual now counts more than what was.
        let mut faster = learned([ms(2_000); 1_000], now);
        for _ in 0..20_000 {
            faster.begin(now);
            faster.end(Some(ms(1)), now);
        }
        assert_eq!(faster.limit(), LEAST);
    }

    #[test]
    fn silence_is_that_of_the_endpoint_not_of_one_request() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut patience = Patience::new(start);
        assert_eq!(patience.silence(at(5_000)), Duration::ZERO, "nobody asked");
        patience.begin(at(1_000));
        patience.begin(at(1_500));
        assert_eq!(patience.silence(at(2_000)), Duration::from_millis(1_000));
        patience.end(Some(Duration::from_millis(600)), at(2_100));
        assert_eq!(patience.silence(at(2_500)), Duration::from_millis(400), "it answered somebody");
        patience.end(None, at(2_600));
        assert_eq!((patience.waiting(), patience.silence(at(9_000))), (0, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn buckets_hold_what_they_are_for(micros in 0_u64..400_000_000) {
            let taken = Duration::from_micros(micros);
            let index = bucket(taken);
            prop_assert!(index < BUCKETS);
            if index < BUCKETS - 1 {
                prop_assert!(taken <= upper(index) + UNIT, "{taken:?} {:?}", upper(index));
                // No more than an octave too long.
                prop_assert!(index == 0 || upper(index) <= taken * 2 + UNIT * 2, "{taken:?} {:?}", upper(index));
            }
        }
    }
}
