//! How a cluster that stopped serving a service comes back: hold, then ramp, then in full.
//!
//! One [`Failback`] per (service, cluster) and worker. A cluster that was never seen serving is let in at once, so that a
//! starting gateway does not treat its peers as recovering.

use std::time::{Duration, Instant};

/// The policy, from the service's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long it must stay healthy before it takes any traffic.
    pub after: Duration,
    /// How long its share grows from nothing to all.
    pub ramp: Duration,
    /// False: it stays out until an operator releases it.
    pub automatic: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { after: Duration::ZERO, ramp: Duration::ZERO, automatic: true }
    }
}

/// Where one (service, cluster) stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failback {
    /// Not seen serving since this worker started.
    #[default]
    Unseen,
    /// Takes its whole share.
    In,
    /// Cannot serve.
    Away,
    /// Healthy again, not yet trusted.
    Holding {
        /// Since when it has been healthy without a break.
        since: Instant,
    },
    /// Taking a growing share.
    Ramping {
        /// When the ramp began.
        since: Instant,
    },
    /// Healthy again, waiting for an operator.
    Waiting,
}

impl Failback {
    /// Moves on with what is known at `now`.
    #[must_use]
    pub fn step(self, serving: bool, policy: &Policy, now: Instant) -> Self {
        match (self, serving) {
            (Self::Unseen, false) => Self::Unseen,
            (_, false) => Self::Away,
            (Self::Unseen | Self::In, true) => Self::In,
            (Self::Away | Self::Waiting, true) if !policy.automatic => Self::Waiting,
            (Self::Away | Self::Waiting, true) => Self::Holding { since: now }.settle(policy, now),
            (state, true) => state.settle(policy, now),
        }
    }

    /// Time alone moves it on.
    pub fn is_moving(self) -> bool {
        matches!(self, Self::Holding { .. } | Self::Ramping { .. })
    }

    /// An operator lets it back in: the ramp still applies.
    #[must_use]
    pub fn release(self, policy: &Policy, now: Instant) -> Self {
        match self {
            Self::Waiting | Self::Holding { .. } => Self::Ramping { since: now }.settle(policy, now),
            other => other,
        }
    }

    /// The share of its weight that it takes at `now`; `None` while it only serves from reserve.
    pub fn factor(self, policy: &Policy, now: Instant) -> Option<f64> {
        match self {
            Self::Unseen | Self::In => Some(1.0),
            Self::Ramping { since } => {
                let part = now.saturating_duration_since(since).as_secs_f64()
                    / policy.ramp.as_secs_f64().max(f64::MIN_POSITIVE);
                Some(part.clamp(RAMP_SHARE_MIN, 1.0))
            }
            Self::Away | Self::Holding { .. } | Self::Waiting => None,
        }
    }

    fn settle(self, policy: &Policy, now: Instant) -> Self {
        match self {
            Self::Holding { since } if now.saturating_duration_since(since) >= policy.after => {
                Self::Ramping { since: since + policy.after }.settle(policy, now)
            }
            Self::Ramping { since } if now.saturating_duration_since(since) >= policy.ramp => Self::In,
            other => other,
        }
    }
}

/// A ramp begins with enough traffic to show whether the cluster really serves.
const RAMP_SHARE_MIN: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { after: Duration::from_secs(10), ramp: Duration::from_secs(20), automatic: true };

    #[test]
    fn golden_walk() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut state = Failback::default();
        // (second, serving) -> share in percent, None = reserve only
        let walk: &[(u64, bool, Option<u32>)] = &[
            (0, false, Some(100)), // not seen yet: nothing to fail back from
            (1, true, Some(100)),
            (2, false, None),
            (3, true, None),   // hold starts
            (12, true, None),  // 9 s of 10
            (12, false, None), // a break resets the hold
            (13, true, None),
            (22, true, None),
            (23, true, Some(1)), // hold over, ramp starts
            (33, true, Some(50)),
            (42, true, Some(95)),
            (43, true, Some(100)),
            (90, true, Some(100)),
        ];
        for (second, serving, share) in walk {
            state = state.step(*serving, &POLICY, at(*second));
            let got = state.factor(&POLICY, at(*second)).map(|f| (f * 100.0).round() as u32);
            assert_eq!(got, *share, "at {second} s, {state:?}");
        }
    }

    #[test]
    fn manual_waits_for_an_operator() {
        let policy = Policy { automatic: false, ..POLICY };
        let now = Instant::now();
        let state = Failback::In.step(false, &policy, now).step(true, &policy, now + Duration::from_secs(1000));
        assert_eq!(state, Failback::Waiting);
        assert_eq!(state.factor(&policy, now), None);
        let released = state.release(&policy, now);
        assert_eq!(released, Failback::Ramping { since: now });
        assert_eq!(released.step(true, &policy, now + policy.ramp), Failback::In);
    }

    #[test]
    fn no_policy_means_at_once() {
        let now = Instant::now();
        let policy = Policy::default();
        assert_eq!(Failback::In.step(false, &policy, now).step(true, &policy, now), Failback::In);
    }
}
