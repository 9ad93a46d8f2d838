//! Whether an endpoint can be connected to, which is another question than whether it answers well.
//!
//! One that fails requests sits out a while, at most half of a service at a time, since the fault may be elsewhere
//! ([`outlier`](super::outlier)). One to which no connection comes about serves nobody: every request that is sent there waits
//! for a timeout first. So when several connections in a row came to nothing, no request is sent there any more, however
//! many of its siblings are the same: another cluster serves, or the sender hears at once that nobody does. Whether it is back
//! is found out beside the traffic, by one connection at a time and ever more rarely.
//!
//! | | towards peers | requests | is asked |
//! | --- | --- | --- | --- |
//! | [`Reach::Reachable`] | ready | yes | |
//! | [`Reach::Refuses`]: somebody says no, at once | not ready | when nothing else can serve: it costs nothing | by probes, and those requests |
//! | [`Reach::Silent`]: nobody says anything | not ready | none | by probes |

use std::time::Duration;

/// Whether connections to an endpoint come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// As far as is known.
    #[default]
    Reachable,
    /// The machine is there and nobody listens.
    Refuses,
    /// Nobody answers.
    Silent,
}

/// How one connection attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialled {
    /// There is a connection.
    Connected,
    /// It was refused.
    Refused,
    /// No answer in time, or no way there.
    Unanswered,
}

/// What one worker knows of the way to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    reach: Reach,
    /// In a row.
    failures: u32,
}

impl Way {
    /// Whether connections come about.
    pub fn reach(self) -> Reach {
        self.reach
    }

    /// Takes how an attempt ended; true when probes have to begin.
    pub fn observe(&mut self, dialled: Dialled) -> bool {
        let failed = match dialled {
            Dialled::Connected => {
                *self = Self::default();
                return false;
            }
            Dialled::Refused => Reach::Refuses,
            Dialled::Unanswered => Reach::Silent,
        };
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX {
            return false;
        }
        std::mem::replace(&mut self.reach, failed) == Reach::Reachable
    }
}

/// How long to wait before probe `number`, counted from 0; `random` in `[0, 1)` keeps workers and gateways out of step.
pub fn probe_pause(number: u32, random: f64) -> Duration {
    let pause = (PROBE_FIRST * 2_u32.saturating_pow(number.min(16))).min(PROBE_MAX);
    pause.mul_f64(0.75 + random / 2.0)
}

/// One lost packet is none of them, a whole minute of them would be too many: each costs a request its connect timeout.
const FAILURES_MAX: u32 = 3;
const PROBE_FIRST: Duration = Duration::from_millis(100);
/// How late its return may be noticed. The agent's checks say it, too.
const PROBE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_table() {
        use Dialled::{Connected, Refused, Unanswered};
        use Reach::{Reachable, Refuses, Silent};
        type Case<'a> = (&'a [Dialled], Reach, &'a [usize]);
        // What happened; what is known then; after which of them probes begin.
        let cases: &[Case<'_>] = &[
            (&[], Reachable, &[]),
            (&[Refused, Refused], Reachable, &[]),
            (&[Unanswered, Unanswered, Connected, Unanswered, Unanswered], Reachable, &[]),
            (&[Refused, Refused, Refused], Refuses, &[2]),
            (&[Unanswered, Unanswered, Unanswered], Silent, &[2]),
            // The last word counts, and probes that run already do not begin again.
            (&[Refused, Refused, Unanswered, Refused], Refuses, &[2]),
            (&[Unanswered, Unanswered, Refused, Unanswered, Unanswered], Silent, &[2]),
            (&[Unanswered, Unanswered, Unanswered, Connected], Reachable, &[2]),
            (&[Refused, Refused, Refused, Connected, Refused, Refused, Refused], Refuses, &[2, 6]),
        ];
        for (events, reach, probed) in cases {
            let mut way = Way::default();
            let began: Vec<_> = events.iter().enumerate().filter(|(_, dialled)| way.observe(**dialled)).collect();
            let began: Vec<_> = began.into_iter().map(|(place, _)| place).collect();
            assert_eq!((way.reach(), began.as_slice()), (*reach, *probed), "{events:?}");
        }
    }

    #[test]
    fn probes_become_rarer() {
        let ms = Duration::from_millis;
        let pauses: Vec<_> = (0..8).map(|number| probe_pause(number, 0.5)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(ms));
        assert_eq!(probe_pause(u32::MAX, 0.5), ms(5000));
        assert!(probe_pause(0, 0.0) == ms(75) && probe_pause(0, 0.999) < ms(125));
    }
}
