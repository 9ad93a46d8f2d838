//! Counts of durations by bucket: an HdrHistogram that holds only the buckets that are not empty.
//!
//! The buckets are those of HdrHistogram for 1 µs to 60 s with two significant figures: up to 255 µs each microsecond is one, above that a
//! bucket is at most 1/128 of its lower bound wide. A percentile is the upper bound of its bucket, hence at most 0.8 % above what was
//! measured and never below. What takes longer counts as 60 s, what takes no time as 1 µs.
//!
//! A histogram of all 2,533 buckets takes 20 KB for each series, and a gateway has thousands of which most are narrow; so the buckets
//! that hold something are listed, eight bytes each. Tests hold this against the `hdrhistogram` crate.

/// Durations by bucket, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(Vec<Filled>);

/// A bucket and how much is in it, at least 1: the index in the upper 16 bits, so that the order is that of the buckets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Filled(u64);

/// What one thread writes down on the request path: the bucket of each duration, counted later.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    raw: Vec<u16>,
    counted: Counts,
}

/// Why bytes are no counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end within a number.
    #[error("counts end within a number")]
    Truncated,
    /// A number takes more bytes than it needs, or than there are bits.
    #[error("counts hold a number that is not written as short as it can be")]
    Number,
    /// Beyond the last bucket, or not after the one before.
    #[error("counts name a bucket that there is not")]
    Bucket,
    /// Nothing, or more than can be.
    #[error("counts hold a bucket with nothing in it, or more than can be")]
    Count,
}

impl Counts {
    /// Adds durations, by bucket, in any order; the slice is sorted for it.
    pub fn add_buckets(&mut self, buckets: &mut [u16]) {
        buckets.sort_unstable();
        let runs = buckets.chunk_by(|a, b| a == b).filter_map(|run| Some(Filled::new(*run.first()?, run.len() as u64)));
        self.merge(runs, u64::saturating_add);
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        self.merge(other.0.iter().copied(), u64::saturating_add);
    }

    /// What came since `before`; `None` when that is not what these were once: something is missing that was there.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        let mut rest = before.0.iter().copied().peekable();
        let mut added = Vec::new();
        for filled in &self.0 {
            let known = match rest.peek() {
                Some(other) if other.index() == filled.index() => rest.next().map_or(0, Filled::count),
                _ => 0,
            };
            match filled.count().checked_sub(known)? {
                0 => {}
                more => added.push(Filled::new(filled.index(), more)),
            }
        }
        rest.next().is_none().then_some(Self(added))
    }

    /// How many durations there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, filled| sum.saturating_add(filled.count()))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many buckets are not empty.
    #[must_use]
    pub const fn buckets(&self) -> usize {
        self.0.len()
    }

    /// The longest of the shortest `quantile` (0 to 1) of all durations, in microseconds; `None` without any.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let total = self.total();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a count is a count; beyond 2^53 requests one more or less does not matter"
        )]
        let wanted = ((quantile.clamp(0.0, 1.0) * total as f64).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0_u64;
        for filled in &self.0 {
            seen = seen.saturating_add(filled.count());
            if seen >= wanted {
                return Some(highest(filled.index()));
            }
        }
        None
    }

    /// Buckets that are not empty, ascending: the shortest and the longest of its durations in microseconds, and how many there are.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.0.iter().map(|filled| (lowest(filled.index()), highest(filled.index()), filled.count()))
    }

    /// As `LatencySeries.counts`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 3);
        let mut last = 0;
        for filled in &self.0 {
            write(&mut bytes, u64::from(filled.index() - last));
            write(&mut bytes, filled.count());
            last = filled.index();
        }
        bytes
    }

    /// Out of `LatencySeries.counts`: only what [`Self::encode`] writes, so that no more is allocated than buckets there are.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        // Two bytes at least are a bucket.
        let mut counts = Vec::with_capacity((bytes.len() / 2).min(BUCKETS));
        let mut last = None;
        while !bytes.is_empty() {
            let step = u16::try_from(read(&mut bytes)?).map_err(|_| Malformed::Bucket)?;
            let index = match last {
                None => step,
                Some(_) if step == 0 => return Err(Malformed::Bucket),
                Some(last) => step.checked_add(last).ok_or(Malformed::Bucket)?,
            };
            if usize::from(index) >= BUCKETS {
                return Err(Malformed::Bucket);
            }
            let count = read(&mut bytes)?;
            if count == 0 || count > COUNT_MAX {
                return Err(Malformed::Count);
            }
            counts.push(Filled::new(index, count));
            last = Some(index);
        }
        Ok(Self(counts))
    }

    /// Merges ascending buckets in.
    fn merge(&mut self, others: impl Iterator<Item = Filled>, join: fn(u64, u64) -> u64) {
        // Where most are there already nothing moves: what a service does now is what it did before.
        let mut from = 0;
        for other in others {
            let rest = self.0.get(from..).unwrap_or_default();
            let place = from + rest.partition_point(|filled| filled.index() < other.index());
            match self.0.get_mut(place) {
                Some(known) if known.index() == other.index() => {
                    *known = Filled::new(other.index(), join(known.count(), other.count()));
                }
                _ => {
                    // Thousands of these are kept for ever: an eighth more than is needed, not twice as much.
                    if self.0.len() == self.0.capacity() {
                        self.0.reserve_exact((self.0.len() / 8).max(4));
                    }
                    self.0.insert(place, other);
                }
            }
            from = place + 1;
        }
    }
}

impl Tally {
    /// Writes down one duration, in microseconds.
    pub fn record(&mut self, micros: u64) {
        if self.raw.len() >= RAW_MAX {
            self.count();
        }
        self.raw.push(bucket(micros));
    }

    /// All of it, counted.
    #[must_use]
    pub fn counted(mut self) -> Counts {
        self.count();
        self.counted
    }

    fn count(&mut self) {
        self.counted.add_buckets(&mut self.raw);
        self.raw.clear();
    }
}

impl Filled {
    const fn new(index: u16, count: u64) -> Self {
        let count = if count > COUNT_MAX { COUNT_MAX } else { count };
        Self((index as u64) << COUNT_BITS | count)
    }

    #[allow(clippy::cast_possible_truncation, reason = "what is left of 64 bits without 48 fits 16")]
    const fn index(self) -> u16 {
        (self.0 >> COUNT_BITS) as u16
    }

    const fn count(self) -> u64 {
        self.0 & COUNT_MAX
    }
}

impl std::fmt::Debug for Filled {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}..={}: {}", lowest(self.index()), highest(self.index()), self.count())
    }
}

/// The bucket of a duration in microseconds.
#[must_use]
pub fn bucket(micros: u64) -> u16 {
    let micros = micros.clamp(1, MICROS_MAX);
    let shift = (u64::BITS - SUB_BITS - (micros | SUB_MASK).leading_zeros()) as u16;
    #[allow(clippy::cast_possible_truncation, reason = "the shift leaves eight bits")]
    let sub = (micros >> shift) as u16;
    (shift << (SUB_BITS - 1)) + sub
}

/// The shortest duration of a bucket, in microseconds.
#[must_use]
pub fn lowest(index: u16) -> u64 {
    let half = 1_u16 << (SUB_BITS - 1);
    match (index / half).checked_sub(1) {
        None | Some(0) => index.into(),
        Some(shift) => u64::from(index % half + half) << shift,
    }
}

/// The longest.
#[must_use]
pub fn highest(index: u16) -> u64 {
    let half = 1_u16 << (SUB_BITS - 1);
    let shift = (index / half).saturating_sub(1);
    lowest(index) + (1_u64 << shift) - 1
}

fn write(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for place in 0..NUMBER_BYTES_MAX {
        let (first, rest) = bytes.split_first().ok_or(Malformed::Truncated)?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << (7 * place);
        if first & 0x80 == 0 {
            return if place > 0 && *first == 0 { Err(Malformed::Number) } else { Ok(number) };
        }
    }
    Err(Malformed::Number)
}

/// What takes longer is told as this.
pub const MICROS_MAX: u64 = 60_000_000;
/// How many buckets there are.
pub const BUCKETS: usize = 2_533;
/// 256 sub-buckets tell any two numbers of two significant figures apart.
const SUB_BITS: u32 = 8;
const SUB_MASK: u64 = (1 << SUB_BITS) - 1;
const COUNT_BITS: u32 = 48;
/// At a million requests a second, nine years.
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
/// Seven times seven bits hold 48.
const NUMBER_BYTES_MAX: u32 = 7;
/// 8 KiB of one series on one worker; more are counted in between.
const RAW_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    use super::*;

    fn histogram() -> Histogram<u64> {
        Histogram::new_with_bounds(1, MICROS_MAX, 2).unwrap()
    }

    fn counts(micros: &[u64]) -> Counts {
        let mut tally = Tally::default();
        micros.iter().for_each(|micros| tally.record(*micros));
        tally.counted()
    }

    /// Durations as they are: many magnitudes, and both ends.
    fn micros() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..300, (0_u32..27, 0_u64..1 << 27).prop_map(|(bits, n)| n >> bits), Just(u64::MAX)]
    }

    #[test]
    fn the_buckets_are_those_of_hdrhistogram() {
        let histogram = histogram();
        for index in 1..u16::try_from(BUCKETS).unwrap() {
            let (low, high) = (lowest(index), highest(index));
            assert_eq!((histogram.lowest_equivalent(high), histogram.highest_equivalent(low)), (low, high), "{index}");
            assert_eq!((bucket(low), bucket(high.min(MICROS_MAX))), (index, index));
            assert!(high - low <= low / 128, "{low} to {high} is wider than is promised");
        }
        assert_eq!(usize::from(bucket(MICROS_MAX)), BUCKETS - 1);
        assert_eq!((bucket(0), bucket(u64::MAX)), (1, bucket(MICROS_MAX)));
    }

    #[test]
    fn what_no_gateway_writes_is_refused() {
        assert_eq!(Counts::decode(&[]), Ok(Counts::default()));
        assert_eq!(counts(&[7, 7, 9]).encode(), [7, 2, 2, 1]);
        for (bytes, error) in [
            (&[7][..], Malformed::Truncated),
            (&[0x87], Malformed::Truncated),
            (&[7, 0x82, 0], Malformed::Number),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1], Malformed::Number),
            (&[7, 1, 0, 1], Malformed::Bucket),
            (&[0xe5, 0x13, 1], Malformed::Bucket),
            (&[0xff, 0xff, 0x7f, 1], Malformed::Bucket),
            (&[7, 0], Malformed::Count),
            (&[7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], Malformed::Count),
        ] {
            assert_eq!(Counts::decode(bytes), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn they_say_what_a_histogram_says(values in prop::collection::vec(micros(), 0..5_000), more in prop::collection::vec(micros(), 0..200)) {
            let mut oracle = histogram();
            let mut both = counts(&values);
            both.add(&counts(&more));
            for value in values.iter().chain(&more) {
                oracle.record((*value).clamp(1, MICROS_MAX)).unwrap();
            }
            prop_assert_eq!(both.total(), oracle.len());
            for quantile in [0.001, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let expected = (!oracle.is_empty()).then(|| oracle.value_at_quantile(quantile));
                prop_assert_eq!(both.quantile(quantile), expected, "{}", quantile);
            }
            prop_assert_eq!(both.since(&counts(&values)), Some(counts(&more)));
            prop_assert_eq!(Counts::decode(&both.encode()), Ok(both.clone()));
            if !more.is_empty() {
                prop_assert_eq!(counts(&values).since(&both), None, "counts do not go back");
            }
        }

        #[test]
        fn no_bytes_are_trusted(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(counts) = Counts::decode(&bytes) {
                prop_assert_eq!(counts.encode(), bytes);
            }
        }
    }
}
