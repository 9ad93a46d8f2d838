//! Pauses between attempts to reconnect.

use std::time::Duration;

/// Full-jitter exponential backoff: when a control plane restarts, all gateways redial, and any common part of the delay would
/// keep them in step.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure; `random` in `[0, 1)`.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let ceiling = DELAY_MIN.saturating_mul(1 << self.failures.min(10)).min(DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        FLOOR + ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// A connection held: start over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

const FLOOR: Duration = Duration::from_millis(20);
const DELAY_MIN: Duration = Duration::from_millis(100);
/// A control plane that returns sees all its gateways again within this.
const DELAY_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay(1.0)).collect();
        assert!(delays.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(delays.last(), Some(&(FLOOR + DELAY_MAX)));
        assert_eq!(backoff.next_delay(0.0), FLOOR);
        backoff.reset();
        assert_eq!(backoff.next_delay(1.0), FLOOR + DELAY_MIN);
    }
}
