//! How long the log's disk takes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counts writes by how long they took; read while they go on.
#[derive(Debug, Default)]
pub(super) struct WriteTimes {
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// Groups of writes that this node made durable in its log, each with one fsync.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogWrites {
    /// Upper bounds in seconds, the last one infinite, and how many took no longer than that but longer than the one before.
    pub buckets: Vec<(f64, u64)>,
    /// All of them together.
    pub seconds: f64,
}

impl WriteTimes {
    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> LogWrites {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        LogWrites {
            buckets: bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect(),
            seconds: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

/// From a disk with a battery behind it to one that holds elections up.
const BOUNDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_write_is_in_one_bucket() {
        let times = WriteTimes::default();
        for micros in [400, 500, 3_000, 2_000_000] {
            times.observe(Duration::from_micros(micros));
        }
        let read = times.read();
        let counted: Vec<_> = read.buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(counted, [(0.0005, 2), (0.005, 1), (f64::INFINITY, 1)]);
        assert!((read.seconds - 2.0039).abs() < 1e-9, "{}", read.seconds);
    }
}
