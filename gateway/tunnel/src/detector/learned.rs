//! The longest silence that a peer survived in the last minute.

use std::time::{Duration, Instant};

/// Maxima of six buckets of ten seconds, used as a ring.
#[derive(Debug, Default)]
pub(super) struct LearnedSilence {
    buckets: [(u64, Duration); BUCKETS],
}

impl LearnedSilence {
    /// Notes a silence that just ended. Longer ones than [`TEACHES_MAX`] were outages: learning from them would make
    /// the next outage go unnoticed for as long.
    pub(super) fn record(&mut self, silence: Duration, now: Instant, epoch: Instant) {
        if silence > TEACHES_MAX {
            return;
        }
        let period = period(now, epoch);
        if let Some((of, longest)) = self.buckets.get_mut((period % BUCKETS as u64) as usize) {
            *longest = if *of == period { silence.max(*longest) } else { silence };
            *of = period;
        }
    }

    pub(super) fn longest(&self, now: Instant, epoch: Instant) -> Duration {
        let period = period(now, epoch);
        let fresh = self.buckets.iter().filter(|(of, _)| of + (BUCKETS as u64) > period);
        fresh.map(|(_, longest)| *longest).max().unwrap_or_default()
    }
}

fn period(now: Instant, epoch: Instant) -> u64 {
    now.saturating_duration_since(epoch).as_secs() / BUCKET_SECONDS
}

const BUCKETS: usize = 6;
const BUCKET_SECONDS: u64 = 10;
const TEACHES_MAX: Duration = Duration::from_millis(400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_after_a_minute() {
        let epoch = Instant::now();
        let at = |seconds| epoch + Duration::from_secs(seconds);
        let mut learned = LearnedSilence::default();
        learned.record(Duration::from_millis(90), at(1), epoch);
        learned.record(Duration::from_millis(30), at(25), epoch);
        learned.record(Duration::from_secs(5), at(26), epoch); // an outage
        assert_eq!(learned.longest(at(30), epoch), Duration::from_millis(90));
        assert_eq!(learned.longest(at(60), epoch), Duration::from_millis(30));
        assert_eq!(learned.longest(at(100), epoch), Duration::ZERO);
    }
}
