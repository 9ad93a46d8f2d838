//! When an SVID is renewed, recovered, or joined for again. Pure: the time and randomness are passed in.

use std::time::{Duration, SystemTime};

use archipelago_base::backoff::Backoff;

/// When to ask for the next SVID, and how. Pure: the time and randomness are passed in.
#[derive(Debug)]
pub struct Renewal {
    not_before: SystemTime,
    not_after: SystemTime,
    due: SystemTime,
    can_join: bool,
    /// The last recovery was refused for good; a token may help.
    recovery_refused: bool,
    backoff: Backoff,
    /// After a failure: not before this long.
    pause: Option<Duration>,
    in_doubt: bool,
}

/// A way to an SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As at first, by what was given for that.
    Join,
    /// By a signature with the key of an SVID that has run out.
    Recover,
    /// Over a connection that the SVID in hand authenticates.
    Renew,
}

impl Renewal {
    /// For an SVID with this validity; `can_join`: there is a way to join. `jitter` as in [`renewal_due`].
    #[must_use]
    pub fn new((not_before, not_after): (SystemTime, SystemTime), can_join: bool, jitter: f64) -> Self {
        Self {
            not_before,
            not_after,
            due: renewal_due(not_before, not_after, jitter),
            can_join,
            recovery_refused: false,
            backoff: Backoff::new(RETRY_DELAY, RETRY_DELAY, RETRY_DELAY_MAX),
            pause: None,
            in_doubt: false,
        }
    }

    /// What to do next, and when.
    #[must_use]
    pub fn next(&self, now: SystemTime) -> (SystemTime, How) {
        let how = match (now < self.not_after, self.recovery_refused && self.can_join) {
            (true, _) => How::Renew,
            (false, false) => How::Recover,
            (false, true) => How::Join,
        };
        let at = match self.pause {
            Some(pause) => now + pause,
            // Before its beginning: the clock jumped back, and nobody else may accept the SVID.
            None if self.in_doubt || now < self.not_before => now,
            None => self.due.max(now),
        };
        (at, how)
    }

    /// Another SVID is in use.
    pub fn succeeded(&mut self, validity: (SystemTime, SystemTime), jitter: f64) {
        *self = Self::new(validity, self.can_join, jitter);
    }

    /// An attempt failed; `random` in `[0, 1)`.
    pub fn failed(&mut self, how: How, retryable: bool, random: f64) {
        self.pause = Some(self.backoff.next_delay(random));
        self.in_doubt = false;
        // A token that is refused is spent or over: recovery may work again one day, once an operator allows it.
        self.recovery_refused = how == How::Recover && !retryable;
    }

    /// The clock is not what it was: ask at once, the answer tells the time.
    pub fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }
}

/// When an SVID with this validity is to be renewed: a quarter into its life, give or take a tenth of that.
///
/// `jitter` is in -1.0..=1.0 and keeps a fleet that joined together from renewing together.
#[must_use]
pub fn renewal_due(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_before + life.mul_f64(0.25 * (1.0 + 0.1 * jitter.clamp(-1.0, 1.0)))
}

const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_at_a_quarter_of_the_life() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_secs(48 * 3600);
        assert_eq!(renewal_due(start, end, 0.0), start + Duration::from_secs(12 * 3600));
        assert!(renewal_due(start, end, 1.0) < start + Duration::from_secs(14 * 3600));
        assert_eq!(renewal_due(end, start, 0.0), end, "a validity that ends before it begins is due at once");
    }

    /// Every situation of an SVID: what is done about it, and when.
    #[test]
    fn renewal_recovery_and_the_token_have_their_times() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let fresh = |can_join| Renewal::new((at(1_000), at(2_000)), can_join, 0.0);
        for (now, expected) in [
            (1_000, (at(1_250), How::Renew)),
            (1_500, (at(1_500), How::Renew)),
            (1_999, (at(1_999), How::Renew)),
            (2_000, (at(2_000), How::Recover)),
            (900, (at(900), How::Renew)),
        ] {
            assert_eq!(fresh(true).next(at(now)), expected, "at {now}");
        }
        let mut doubting = fresh(false);
        doubting.doubt();
        assert_eq!(doubting.next(at(1_001)), (at(1_001), How::Renew), "a set clock asks at once");

        for (can_join, retryable, then) in [
            (false, false, How::Recover),
            (false, true, How::Recover),
            (true, true, How::Recover),
            (true, false, How::Join),
        ] {
            let mut renewal = fresh(can_join);
            renewal.failed(How::Recover, retryable, 0.0);
            let (when, how) = renewal.next(at(3_000));
            assert_eq!((when, how), (at(3_000) + RETRY_DELAY, then), "token {can_join}, retryable {retryable}");
        }
        let mut renewal = fresh(true);
        renewal.failed(How::Recover, false, 0.0);
        renewal.failed(How::Join, false, 0.0);
        assert_eq!(renewal.next(at(3_000)).1, How::Recover, "a spent token is not tried for ever");
        assert_eq!(renewal.failures(), 2);
        for _ in 0..40 {
            renewal.failed(How::Recover, true, 1.0);
        }
        assert_eq!(renewal.next(at(3_000)).0, at(3_000) + RETRY_DELAY_MAX + RETRY_DELAY);
        renewal.succeeded((at(3_000), at(4_000)), 0.0);
        assert_eq!((renewal.next(at(3_000)), renewal.failures()), ((at(3_250), How::Renew), 0));
    }
}
