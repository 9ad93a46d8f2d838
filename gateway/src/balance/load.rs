//! Power of two choices over Peak-EWMA: two candidates at random, the cheaper one wins.
//!
//! Cost = (requests in flight + 1) × latency / weight. The latency is an exponentially decaying average that jumps up at
//! once and comes down slowly (Finagle's Peak-EWMA), so one slow answer is believed and one fast answer is not.

use std::time::{Duration, Instant};

/// Decaying peak of a target's latency.
#[derive(Debug, Clone, Copy)]
pub struct PeakEwma {
    /// Seconds; `None` before the first observation.
    seconds: Option<f64>,
    at: Instant,
}

impl PeakEwma {
    /// Knows nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { seconds: None, at: now }
    }

    /// Takes one latency.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        self.seconds = Some(match self.seconds {
            Some(current) if latency < current => {
                let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
                let keep = (-elapsed / DECAY.as_secs_f64()).exp();
                // At least a little moves, or a burst of equal timestamps would never bring a peak down.
                let keep = keep.min(KEEP_MAX);
                current * keep + latency * (1.0 - keep)
            }
            _ => latency,
        });
        self.at = now;
    }

    /// The latency to reckon with, or `otherwise` before the first observation.
    pub fn latency(&self, otherwise: Duration) -> Duration {
        self.seconds.map_or(otherwise, Duration::from_secs_f64)
    }
}

/// What one more request on a target would cost; lower is better.
pub fn cost(in_flight: usize, latency: Duration, weight: f64) -> f64 {
    let latency = latency.max(LATENCY_FLOOR).as_secs_f64();
    (in_flight as f64 + 1.0) * latency / weight.max(WEIGHT_FLOOR)
}

/// Picks one of `count` targets: two by `random`, then the one with the lower `cost`. `None` when there is none.
pub fn pick_of_two(count: usize, random: u64, cost: impl Fn(usize) -> f64) -> Option<usize> {
    match count {
        0 => None,
        1 => Some(0),
        _ => {
            let n = count as u64;
            let first = (random >> 32) % n;
            // Distinct from the first: an offset of 1..n.
            let second = (first + 1 + (random & 0xffff_ffff) % (n - 1)) % n;
            let (first, second) = (first as usize, second as usize);
            Some(if cost(second) < cost(first) { second } else { first })
        }
    }
}

/// A first latency for endpoints on the same network.
pub const LATENCY_DEFAULT: Duration = Duration::from_millis(1);
/// Finagle and linkerd decay over 10 s.
const DECAY: Duration = Duration::from_secs(10);
const KEEP_MAX: f64 = 0.995;
/// Below this the differences are noise of the scheduler.
const LATENCY_FLOOR: Duration = Duration::from_micros(50);
const WEIGHT_FLOOR: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn peaks_are_believed_at_once_and_forgotten_slowly() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(start);
        assert_eq!(ewma.latency(LATENCY_DEFAULT), LATENCY_DEFAULT);
        ewma.observe(Duration::from_millis(2), start);
        ewma.observe(Duration::from_millis(100), start);
        assert_eq!(ewma.latency(LATENCY_DEFAULT), Duration::from_millis(100));
        ewma.observe(Duration::from_millis(2), start + Duration::from_millis(10));
        assert!(ewma.latency(LATENCY_DEFAULT) > Duration::from_millis(95));
        ewma.observe(Duration::from_millis(2), start + Duration::from_secs(60));
        assert!(ewma.latency(LATENCY_DEFAULT) < Duration::from_millis(3));
    }

    #[test]
    fn the_faster_and_the_idler_and_the_larger_win() {
        let ms = Duration::from_millis;
        assert!(cost(0, ms(1), 1.0) < cost(0, ms(2), 1.0));
        assert!(cost(0, ms(1), 1.0) < cost(1, ms(1), 1.0));
        assert!(cost(0, ms(1), 2.0) < cost(0, ms(1), 1.0));
    }

    proptest! {
        #[test]
        fn two_different_candidates_and_the_cheaper_wins(count in 2_usize..50, random: u64) {
            let seen = std::cell::RefCell::new(Vec::new());
            let picked = pick_of_two(count, random, |i| { seen.borrow_mut().push(i); i as f64 });
            let seen = seen.into_inner();
            prop_assert_eq!(seen.len(), 2);
            prop_assert!(seen[0] != seen[1] && seen.iter().all(|i| *i < count));
            prop_assert_eq!(picked, seen.iter().min().copied());
        }
    }

    #[test]
    fn equal_targets_share_evenly() {
        let mut counts = [0_u32; 5];
        let mut random = 1;
        for _ in 0..50_000 {
            random = super::super::hash::mix(random);
            counts[pick_of_two(5, random, |_| 1.0).unwrap()] += 1;
        }
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 500), "{counts:?}");
    }
}
