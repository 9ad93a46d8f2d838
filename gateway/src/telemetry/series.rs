//! How long the requests of one label set took, by bucket, with the last recorded trace of each bucket.
//!
//! Buckets are of two kinds: the classic ones, few and chosen, and those of native histograms, eight to a power of two. The second are found
//! first, by a few comparisons of a mantissa, and say by themselves which two of the first can be meant.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use archipelago_base::metrics::Native;

/// One label set.
#[derive(Debug, Clone, Default)]
pub struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
    native: Fine,
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
        let fine = fine(seconds);
        self.native.raw.push(fine);
        let place = place(seconds, fine);
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
        self.native.add(other.native);
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

    /// The same by the buckets of native histograms.
    pub fn native(&self) -> Native {
        let counted = self.native.counted.iter();
        Native {
            sum: self.seconds,
            buckets: counted.map(|(index, count)| (i32::from(*index) + FINE_MIN, *count)).collect(),
        }
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

/// By fine buckets, counted from the lowest that there is.
#[derive(Debug, Clone, Default)]
struct Fine {
    /// What a worker writes down, counted when it is handed over.
    raw: Vec<u16>,
    /// Ascending.
    counted: Vec<(u16, u64)>,
}

impl Fine {
    fn add(&mut self, mut other: Self) {
        other.raw.sort_unstable();
        let runs = other.raw.chunk_by(|a, b| a == b).filter_map(|run| Some((*run.first()?, run.len() as u64)));
        for (index, count) in runs.chain(other.counted) {
            match self.counted.binary_search_by_key(&index, |(index, _)| *index) {
                Ok(place) => {
                    if let Some((_, known)) = self.counted.get_mut(place) {
                        *known += count;
                    }
                }
                Err(place) => self.counted.insert(place, (index, count)),
            }
        }
    }
}

/// The fine bucket of a duration, counted from the lowest: the `i`th ends at 2^((`i` + [`FINE_MIN`])/8) seconds.
fn fine(seconds: f64) -> u16 {
    let bits = seconds.clamp(SECONDS_MIN, SECONDS_MAX).to_bits();
    let (exponent, mantissa) = ((bits >> MANTISSA_BITS) as i32 - EXPONENT_BIAS, bits & ((1 << MANTISSA_BITS) - 1));
    // A power of two is the end of its bucket, not the beginning of the next.
    let above = ENDS.iter().map(|end| u16::from(mantissa > *end)).sum::<u16>();
    // Not below 0, for what was clamped.
    (exponent * 8 - FINE_MIN) as u16 + above
}

/// The classic bucket of a duration whose fine one is known.
fn place(seconds: f64, fine: u16) -> usize {
    let first = usize::from(FIRST.get(usize::from(fine)).copied().unwrap_or(BUCKETS.len() as u8));
    // A fine bucket is narrower than any two classic ones are apart: at most one of those ends in it.
    first + usize::from(BUCKETS.get(first).is_some_and(|upper| seconds > *upper))
}

const MANTISSA_BITS: u32 = 52;
const EXPONENT_BIAS: i32 = 1023;
/// About a microsecond, and 36 hours: exact powers of two.
const SECONDS_MIN: f64 = 1.0 / (1 << 20) as f64;
const SECONDS_MAX: f64 = (1 << 17) as f64;
/// Index of the bucket that ends at the shortest.
const FINE_MIN: i32 = -20 * 8;
const FINE_LEN: usize = (20 + 17) * 8 + 1;
/// Mantissas of 2^(0/8) to 2^(7/8).
const ENDS: [u64; 8] = [
    0,
    0x0001_72b8_3c7d_517b,
    0x0003_06fe_0a31_b715,
    0x0004_bfda_d536_2a27,
    0x0006_a09e_667f_3bcd,
    0x0008_ace5_422a_a0db,
    0x000a_e89f_995a_d3ad,
    0x000d_5818_dcfb_a487,
];
/// Of each fine bucket, the first classic one that ends in or behind it.
const FIRST: [u8; FINE_LEN] = {
    let mut first = [0; FINE_LEN];
    let (mut fine, mut classic) = (0, 0);
    while fine < FINE_LEN {
        // Where it begins: the one before ends there.
        let begins = ends(fine as i32 - 1);
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, bounded by the loops")]
        {
            while classic < BUCKETS.len() && BUCKETS[classic] <= begins {
                classic += 1;
            }
            first[fine] = classic as u8;
        }
        fine += 1;
    }
    first
};

/// Where a fine bucket ends, in seconds.
const fn ends(fine: i32) -> f64 {
    let index = fine + FINE_MIN;
    let exponent = index.div_euclid(8) + EXPONENT_BIAS;
    #[expect(clippy::indexing_slicing, reason = "a remainder of eight")]
    let mantissa = ENDS[index.rem_euclid(8) as usize];
    f64::from_bits((exponent as u64) << MANTISSA_BITS | mantissa)
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
    use proptest::prelude::*;

    #[test]
    fn fine_buckets_end_at_eighths_of_powers_of_two() {
        for fine in 0..FINE_LEN as i32 {
            let end = ends(fine);
            let exact = f64::from(fine + FINE_MIN) / 8.0;
            assert!((end.log2() - exact).abs() < 1e-12, "{fine}: {end}");
            assert_eq!(super::fine(end), fine as u16, "its end is in it");
            assert_eq!(super::fine(end * 1.0001), (fine as u16 + 1).min(FINE_LEN as u16 - 1), "and no more");
        }
        assert_eq!([0.0, f64::MAX, 1e-9].map(super::fine), [0, FINE_LEN as u16 - 1, 0]);
    }

    proptest! {
        #[test]
        fn a_classic_bucket_is_found_by_the_fine_one(nanos in 0_u64..1 << 50, millis in 0_u64..20_000) {
            let bounds = BUCKETS.iter().flat_map(|upper| [*upper, upper * 0.999_999, upper * 1.000_001]);
            for seconds in [Duration::from_nanos(nanos), Duration::from_millis(millis)].map(|d| d.as_secs_f64()).into_iter().chain(bounds) {
                let searched = BUCKETS.iter().position(|upper| seconds <= *upper).unwrap_or(BUCKETS.len());
                prop_assert_eq!(place(seconds, fine(seconds)), searched, "{}", seconds);
            }
        }
    }

    #[test]
    fn native_buckets_hold_every_request_once() {
        let (mut worker, mut shared) = (Series::default(), Series::default());
        for millis in [1, 1, 1, 30, 5_000, 1] {
            worker.observe(Duration::from_millis(millis), None);
        }
        shared.add(worker);
        let mut worker = Series::default();
        worker.observe(Duration::from_millis(30), None);
        shared.add(worker);
        let native = shared.native();
        // 2^(-79/8) is 1.06 ms, 2^(-40/8) is 31.25 ms, 2^(19/8) is 5.19 s.
        assert_eq!(native.buckets, [(-79, 4), (-40, 2), (19, 1)]);
        assert_eq!(native.buckets.iter().map(|(_, count)| count).sum::<u64>(), shared.count());
        assert!((native.sum - 5.064).abs() < 1e-9);
    }

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
