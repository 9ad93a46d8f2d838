//! A token bucket per source. Pure: the time is passed in.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Bounds how often each source may do something that costs more than asking for it.
#[derive(Debug)]
pub(super) struct Throttle<K> {
    buckets: HashMap<K, Bucket>,
    burst: f64,
    per_second: f64,
    sources_max: usize,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl<K: Eq + Hash> Throttle<K> {
    pub(super) fn new(burst: u32, per_second: u32, sources_max: usize) -> Self {
        Self { buckets: HashMap::new(), burst: burst.into(), per_second: per_second.into(), sources_max }
    }

    /// Whether `key` may go on now.
    pub(super) fn take(&mut self, key: K, now: Instant) -> bool {
        let (burst, per_second) = (self.burst, self.per_second);
        if self.buckets.len() >= self.sources_max {
            // Who has not asked for long is full again, which is what a source without a bucket is.
            let full_after = Duration::from_secs_f64(burst / per_second);
            self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.filled) < full_after);
        }
        if self.buckets.len() >= self.sources_max && !self.buckets.contains_key(&key) {
            return false;
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: burst, filled: now });
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * per_second;
        bucket.tokens = (bucket.tokens + gained).min(burst);
        bucket.filled = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_nobody_pays_for_another() {
        let start = Instant::now();
        let mut throttle = Throttle::new(3, 2, 2);
        let taken = |throttle: &mut Throttle<_>, key, at| throttle.take(key, start + Duration::from_millis(at));
        assert!((0..3).all(|_| taken(&mut throttle, "a", 0)) && !taken(&mut throttle, "a", 0));
        assert!(taken(&mut throttle, "b", 0));
        assert!(!taken(&mut throttle, "a", 400) && taken(&mut throttle, "a", 501) && !taken(&mut throttle, "a", 502));
        assert!(!taken(&mut throttle, "c", 503), "the table is full of others that asked just now");
        assert!(taken(&mut throttle, "c", 3_000), "and makes room once they have been quiet");
    }
}
