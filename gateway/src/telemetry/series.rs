//! How long the requests of one label set took, by bucket, with the last recorded trace of each bucket.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One label set.
#[derive(Debug, Clone, Default)]
pub struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
    /// Only where requests are recorded, which are few: 1 KB.
    exemplars: Option<Box<[Option<Exemplar>; BUCKETS.len() + 1]>>,
}

/// A request by whose trace can be seen what such requests do.
#[derive(Debug, Clone, Copy)]
pub struct Exemplar {
    trace_id: u128,
    seconds: f64,
    at: SystemTime,
}

impl Series {
    /// Counts a request, which may have been recorded.
    pub fn observe(&mut self, duration: Duration, trace: Option<u128>) {
        let seconds = duration.as_secs_f64();
        self.count += 1;
        self.seconds += seconds;
        let place = BUCKETS.iter().position(|upper| seconds <= *upper).unwrap_or(BUCKETS.len());
        if let Some(bucket) = self.buckets.get_mut(place) {
            *bucket += 1;
        }
        if let Some(trace_id) = trace
            && let Some(exemplar) = self.exemplars.get_or_insert_default().get_mut(place)
        {
            *exemplar = Some(Exemplar { trace_id, seconds, at: SystemTime::now() });
        }
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        let Some(theirs) = other.exemplars else { return };
        for (mine, theirs) in self.exemplars.get_or_insert_default().iter_mut().zip(*theirs) {
            *mine = [*mine, theirs].into_iter().flatten().max_by_key(|exemplar| exemplar.at);
        }
    }

    /// Requests.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long all of them took.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Upper bounds, and how many requests are below each and above the one before: prometheus-client adds them up itself.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let rest = self.count - self.buckets.iter().sum::<u64>();
        BUCKETS.iter().copied().zip(self.buckets).chain([(f64::INFINITY, rest)]).collect()
    }

    /// True if any of its requests was recorded.
    pub fn has_exemplars(&self) -> bool {
        self.exemplars.is_some()
    }

    /// The last recorded request of each bucket that has one, with the bucket's upper bound as a label says it.
    pub fn exemplars(&self) -> impl Iterator<Item = (String, Exemplar)> {
        let bounds = BUCKETS.iter().map(|upper| format!("{upper:?}")).chain(["+Inf".to_owned()]);
        let exemplars = self.exemplars.iter().flat_map(|exemplars| exemplars.iter());
        bounds.zip(exemplars).filter_map(|(upper, exemplar)| Some((upper, (*exemplar)?)))
    }
}

impl fmt::Display for Exemplar {
    /// As OpenMetrics writes it behind a sample.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        write!(f, "{{trace_id=\"{:032x}\"}} {:?} {at:.3}", self.trace_id, self.seconds)
    }
}

/// OpenTelemetry's list, finer below 5 ms: a gateway hop is a fraction of a millisecond.
const BUCKETS: [f64; 17] =
    [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_recorded_request_of_a_bucket_is_its_example() {
        let (mut one, mut other) = (Series::default(), Series::default());
        one.observe(Duration::from_millis(1), None);
        assert!(!one.has_exemplars(), "only what was recorded can be looked up");
        one.observe(Duration::from_millis(1), Some(0xa));
        one.observe(Duration::from_secs(60), Some(0xb));
        other.observe(Duration::from_micros(900), Some(0xc));
        one.add(other);
        one.add(Series::default());
        let all: Vec<_> = one.exemplars().map(|(upper, exemplar)| (upper, exemplar.trace_id)).collect();
        assert_eq!(all, [("0.001".to_owned(), 0xc), ("+Inf".to_owned(), 0xb)]);
        assert_eq!(one.buckets().last(), Some(&(f64::INFINITY, 1)));
        let at = UNIX_EPOCH + Duration::from_millis(1_500);
        let text = Exemplar { trace_id: 0xabc, seconds: 0.25, at }.to_string();
        assert_eq!(text, "{trace_id=\"00000000000000000000000000000abc\"} 0.25 1.500");
    }
}
