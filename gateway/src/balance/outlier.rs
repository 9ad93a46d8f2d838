//! Endpoints that fail several times in a row sit out, each time a little longer, and never too many of them at once.

use std::time::{Duration, Instant};

/// The passive health of one endpoint as one worker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outlier {
    failures_in_a_row: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

/// What an attempt told about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, whatever the answer.
    Answered,
    /// It could not be connected to, or broke the exchange. A status code is an answer: 503 may be all that a client asked for.
    Failed,
}

impl Outlier {
    /// True while it sits out.
    pub fn ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// Takes the verdict of one attempt. `peers` and `ejected` count the service's endpoints and those sitting out.
    pub fn observe(&mut self, verdict: Verdict, peers: usize, ejected: usize, now: Instant) {
        match verdict {
            Verdict::Answered => {
                self.failures_in_a_row = 0;
                // Answers after the hold pay the growth back step by step.
                if self.ejected_until.is_some_and(|until| now >= until + HOLD_STEP) {
                    self.ejections = self.ejections.saturating_sub(1);
                    self.ejected_until = (self.ejections > 0).then_some(now);
                }
            }
            Verdict::Failed => {
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                let room = (ejected + 1) * 100 <= peers * EJECTED_PERCENT_MAX;
                if self.failures_in_a_row >= FAILURES_MAX && !self.ejected(now) && room {
                    self.ejections = self.ejections.saturating_add(1);
                    self.ejected_until = Some(now + (HOLD_STEP * self.ejections).min(HOLD_MAX));
                    self.failures_in_a_row = 0;
                }
            }
        }
    }
}

/// Envoy's default number of consecutive gateway failures.
const FAILURES_MAX: u32 = 5;
/// Active checks by the agent take over within seconds, so holds are shorter than Envoy's 30 s.
const HOLD_STEP: Duration = Duration::from_secs(5);
const HOLD_MAX: Duration = Duration::from_secs(60);
/// When most endpoints fail, the fault is elsewhere, and spreading the load beats crowding it.
const EJECTED_PERCENT_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(outlier: &mut Outlier, times: u32, peers: usize, ejected: usize, now: Instant) {
        for _ in 0..times {
            outlier.observe(Verdict::Failed, peers, ejected, now);
        }
    }

    #[test]
    fn five_in_a_row_and_an_answer_resets() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        fail(&mut outlier, 4, 4, 0, now);
        outlier.observe(Verdict::Answered, 4, 0, now);
        fail(&mut outlier, 4, 4, 0, now);
        assert!(!outlier.ejected(now));
        fail(&mut outlier, 1, 4, 0, now);
        assert!(outlier.ejected(now));
    }

    #[test]
    fn holds_grow_and_shrink_again() {
        let mut now = Instant::now();
        let mut outlier = Outlier::default();
        for round in 1..=3 {
            fail(&mut outlier, 5, 4, 0, now);
            let hold = HOLD_STEP * round;
            assert!(outlier.ejected(now + hold - Duration::from_millis(1)), "round {round}");
            assert!(!outlier.ejected(now + hold), "round {round}");
            now += hold;
        }
        for _ in 0..3 {
            now += HOLD_STEP;
            outlier.observe(Verdict::Answered, 4, 0, now);
        }
        assert_eq!(outlier, Outlier::default());
    }

    #[test]
    fn at_most_half_sit_out() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        fail(&mut outlier, 50, 4, 2, now);
        assert!(!outlier.ejected(now));
        let mut only = Outlier::default();
        fail(&mut only, 50, 1, 0, now);
        assert!(!only.ejected(now), "the only endpoint is never ejected");
    }
}
