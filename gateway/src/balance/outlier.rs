//! Endpoints that fail several times in a row, or leave requests unanswered, sit out, each time a little longer, and never too many
//! of them at once. They come back by one request at a time until one was answered, and then slowly.

use std::time::{Duration, Instant};

/// The passive health of one endpoint as one worker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outlier {
    failures_in_a_row: u32,
    hung_in_a_row: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
    /// Its hold is over and it has not answered since.
    on_probation: bool,
    /// It was for leaving requests unanswered that it sits out.
    hung: bool,
    /// When it answered on probation.
    returned: Option<Instant>,
}

/// What an attempt told about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, whatever the answer.
    Answered,
    /// It could not be connected to, or broke the exchange. A status code is an answer: 503 may be all that a client asked for.
    Failed,
    /// It left a request unanswered for longer than it ever takes, and was silent all the while.
    Hung,
}

impl Outlier {
    /// True while it sits out; `waiting`: requests that it has not answered. On probation it is given one at a time.
    pub fn ejected(&self, waiting: u32, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until) || (self.on_probation && waiting > 0)
    }

    /// Whether it sits out, or has not answered since; `Some(true)`: for leaving requests unanswered.
    pub fn sits_out_for_hanging(&self, now: Instant) -> Option<bool> {
        let sits_out = self.on_probation || self.ejected_until.is_some_and(|until| now < until);
        sits_out.then_some(self.hung)
    }

    /// How much dearer it is than its siblings, for a while after it came back; 1: not.
    pub fn dearer(&self, now: Instant) -> f64 {
        let Some(returned) = self.returned else { return 1.0 };
        let gone = now.saturating_duration_since(returned).as_secs_f64() / RAMP.as_secs_f64();
        1.0 + (RAMP_FROM - 1.0) * (1.0 - gone).max(0.0)
    }

    /// Takes the verdict of one attempt. `peers` and `ejected` count the service's endpoints and those sitting out.
    pub fn observe(&mut self, verdict: Verdict, peers: usize, ejected: usize, now: Instant) {
        match verdict {
            Verdict::Answered => self.answered(now),
            Verdict::Failed => {
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                if self.failures_in_a_row >= FAILURES_MAX || self.on_probation {
                    self.eject(false, peers, ejected, now);
                }
            }
            Verdict::Hung => {
                self.hung_in_a_row = self.hung_in_a_row.saturating_add(1);
                if self.hung_in_a_row >= HUNG_MAX || self.on_probation {
                    self.eject(true, peers, ejected, now);
                }
            }
        }
    }

    fn answered(&mut self, now: Instant) {
        (self.failures_in_a_row, self.hung_in_a_row) = (0, 0);
        if std::mem::take(&mut self.on_probation) {
            self.returned = Some(now);
        }
        self.hung = false;
        // Answers after the hold pay the growth back step by step.
        if self.ejected_until.is_some_and(|until| now >= until + HOLD_STEP) {
            self.ejections = self.ejections.saturating_sub(1);
            self.ejected_until = (self.ejections > 0).then_some(now);
        }
        if self.returned.is_some_and(|at| now >= at + RAMP) {
            self.returned = None;
        }
    }

    fn eject(&mut self, hung: bool, peers: usize, ejected: usize, now: Instant) {
        let sits_out = self.ejected_until.is_some_and(|until| now < until);
        let room = (ejected + 1) * 100 <= peers * EJECTED_PERCENT_MAX;
        if sits_out || !(room || self.on_probation) {
            return;
        }
        self.ejections = self.ejections.saturating_add(1);
        self.ejected_until = Some(now + (HOLD_STEP * self.ejections).min(HOLD_MAX));
        (self.failures_in_a_row, self.hung_in_a_row) = (0, 0);
        (self.on_probation, self.returned, self.hung) = (true, None, hung);
    }
}

/// Envoy's default number of consecutive gateway failures.
const FAILURES_MAX: u32 = 5;
/// Each of them has waited for a second or more.
const HUNG_MAX: u32 = 2;
/// Active checks by the agent take over within seconds, so holds are shorter than Envoy's 30 s.
const HOLD_STEP: Duration = Duration::from_secs(5);
const HOLD_MAX: Duration = Duration::from_secs(60);
/// When most endpoints fail, the fault is elsewhere, and spreading the load beats crowding it.
const EJECTED_PERCENT_MAX: usize = 50;
/// It gets its share back over this time.
const RAMP: Duration = Duration::from_secs(10);
const RAMP_FROM: f64 = 10.0;

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
        assert!(!outlier.ejected(0, now));
        fail(&mut outlier, 1, 4, 0, now);
        assert!(outlier.ejected(0, now));
        assert_eq!(outlier.sits_out_for_hanging(now), Some(false));
    }

    #[test]
    fn holds_grow_and_shrink_again() {
        let mut now = Instant::now();
        let mut outlier = Outlier::default();
        for round in 1..=3 {
            fail(&mut outlier, 5, 4, 0, now);
            let hold = HOLD_STEP * round;
            assert!(outlier.ejected(0, now + hold - Duration::from_millis(1)), "round {round}");
            assert!(!outlier.ejected(0, now + hold), "round {round}");
            now += hold;
        }
        for _ in 0..4 {
            now += HOLD_STEP;
            outlier.observe(Verdict::Answered, 4, 0, now);
        }
        assert_eq!(outlier, Outlier::default());
    }

    #[test]
    fn one_that_hangs_sits_out_sooner_and_comes_back_by_one_request_at_a_time() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        outlier.observe(Verdict::Hung, 2, 0, now);
        outlier.observe(Verdict::Answered, 2, 0, now);
        outlier.observe(Verdict::Hung, 2, 0, now);
        assert!(!outlier.ejected(9, now), "it answered in between");
        outlier.observe(Verdict::Hung, 2, 0, now);
        assert!(outlier.ejected(0, now));
        assert_eq!(outlier.sits_out_for_hanging(now), Some(true));
        let later = now + HOLD_STEP;
        assert_eq!(outlier.sits_out_for_hanging(later), Some(true), "until it has answered");
        assert!(!outlier.ejected(0, later) && outlier.ejected(1, later), "one at a time");
        outlier.observe(Verdict::Hung, 2, 1, later);
        assert!(outlier.ejected(0, later + HOLD_STEP), "the next hold is longer");
        let back = later + HOLD_STEP * 2;
        assert!(!outlier.ejected(0, back));
        outlier.observe(Verdict::Answered, 2, 0, back);
        assert!(!outlier.ejected(9, back), "it answers");
        assert_eq!(outlier.sits_out_for_hanging(back), None);
        assert!((outlier.dearer(back) - RAMP_FROM).abs() < 1e-9);
        assert!(outlier.dearer(back + RAMP / 2) < RAMP_FROM / 1.5);
        assert!((outlier.dearer(back + RAMP) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn at_most_half_sit_out() {
        let now = Instant::now();
        let mut outlier = Outlier::default();
        fail(&mut outlier, 50, 4, 2, now);
        assert!(!outlier.ejected(0, now));
        let mut only = Outlier::default();
        fail(&mut only, 50, 1, 0, now);
        assert!(!only.ejected(0, now), "the only endpoint is never ejected");
    }
}
