//! Which endpoint is checked when, and what its answers mean. Time and randomness are passed in.
//!
//! States of an endpoint, with the thresholds of its check:
//!
//! | state | good answer | bad answer |
//! | --- | --- | --- |
//! | ready | stays; bad count back to 0 | bad count + 1; at `unhealthyAfter` not ready |
//! | not ready | good count + 1; at `healthyAfter` ready | stays; good count back to 0 |
//!
//! At most one check of an endpoint runs at a time; the next is due one interval after the last one *began*, give or
//! take a tenth, so that checks which began together drift apart, and a slow answer does not slow the rhythm.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::Target;
use archipelago_model::service_file::{ActiveCheck, HealthCheck, ServiceProtocol};

/// What is known about a target before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How to ask.
    pub check: HealthCheck,
    /// What the endpoint speaks.
    pub protocol: ServiceProtocol,
}

/// A check to run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Whom to ask.
    pub target: Target,
    /// Give it back with the answer.
    pub ticket: Ticket,
    /// What to ask, and for how long to wait.
    pub check: ActiveCheck,
    /// What the endpoint speaks.
    pub protocol: ServiceProtocol,
}

/// Tells the answer of a running check from one to a question that nobody asks any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// What an answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As the check wants it.
    Good,
    /// Refused, wrong, or too late.
    Bad,
}

/// All endpoints of a cluster and when each is due.
#[derive(Debug)]
pub struct Scheduler {
    entries: BTreeMap<Target, Entry>,
    /// Every entry that is checked and has no check running.
    due: BTreeSet<(Instant, Target)>,
    tickets: u64,
    random: SmallRng,
}

impl Scheduler {
    /// `seed` spreads the first checks and the jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { entries: BTreeMap::new(), due: BTreeSet::new(), tickets: 0, random: SmallRng::seed_from_u64(seed) }
    }

    /// Takes over the complete list of targets; returns whether any readiness changed.
    ///
    /// Known targets keep their state; a changed plan is asked at once. New ones are asked at once; until then they
    /// are what `presumed_ready` says (the last good state after a restart), not ready otherwise.
    pub fn set_targets(
        &mut self,
        now: Instant,
        plans: BTreeMap<Target, Plan>,
        presumed_ready: &BTreeSet<Target>,
    ) -> bool {
        let before = self.ready();
        self.entries.retain(|target, entry| {
            let keep = plans.contains_key(target);
            if !keep && let Some(at) = entry.due {
                self.due.remove(&(at, target.clone()));
            }
            keep
        });
        for (target, plan) in plans {
            match self.entries.get_mut(&target) {
                Some(entry) if entry.plan == plan => {}
                Some(entry) => {
                    entry.plan = plan;
                    // An answer to the old question says nothing about the new one.
                    entry.running = None;
                    self.schedule(&target, now);
                }
                None => {
                    let state = if presumed_ready.contains(&target) { State::READY } else { State::NOT_READY };
                    let entry = Entry { plan, state, answered: false, running: None, due: None };
                    self.entries.insert(target.clone(), entry);
                    self.schedule(&target, now);
                }
            }
        }
        before != self.ready()
    }

    /// Checks that are due, at most `free` of them, longest overdue first.
    pub fn start_due(&mut self, now: Instant, free: usize) -> Vec<Start> {
        let mut starts = Vec::new();
        while starts.len() < free {
            let Some((at, target)) = self.due.first().cloned() else { break };
            if at > now {
                break;
            }
            self.due.remove(&(at, target.clone()));
            let Some(entry) = self.entries.get_mut(&target) else { continue };
            entry.due = None;
            let HealthCheck::Active(check) = &entry.plan.check else { continue };
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            entry.running = Some(Running { ticket, began: now });
            starts.push(Start { target, ticket, check: check.clone(), protocol: entry.plan.protocol });
        }
        starts
    }

    /// Takes an answer; returns whether the endpoint's readiness changed.
    pub fn finish(&mut self, now: Instant, target: &Target, ticket: Ticket, verdict: Verdict) -> bool {
        let Some(entry) = self.entries.get_mut(target) else { return false };
        let Some(running) = entry.running.filter(|running| running.ticket == ticket) else { return false };
        let HealthCheck::Active(check) = &entry.plan.check else { return false };
        entry.running = None;
        entry.answered = true;
        let before = entry.state.is_ready();
        entry.state = entry.state.after(verdict, check);
        let changed = before != entry.state.is_ready();
        let next = running.began + jittered(check.interval, &mut self.random);
        self.schedule(target, next.max(now));
        changed
    }

    /// When [`Scheduler::start_due`] has something to do next, given free capacity.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Endpoints that are ready.
    #[must_use]
    pub fn ready(&self) -> BTreeSet<Target> {
        self.entries.iter().filter(|(_, entry)| entry.state.is_ready()).map(|(target, _)| target.clone()).collect()
    }

    /// Whether every endpoint has been heard at least once, so that "not ready" means something.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.entries.values().all(|entry| entry.answered)
    }

    fn schedule(&mut self, target: &Target, at: Instant) {
        let Some(entry) = self.entries.get_mut(target) else { return };
        if let Some(earlier) = entry.due.take() {
            self.due.remove(&(earlier, target.clone()));
        }
        match entry.plan.check {
            HealthCheck::None => {
                entry.state = State::READY;
                entry.answered = true;
            }
            HealthCheck::Active(_) => {
                entry.due = Some(at);
                self.due.insert((at, target.clone()));
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    plan: Plan,
    state: State,
    answered: bool,
    running: Option<Running>,
    due: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    ticket: Ticket,
    began: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready { bad: u32 },
    NotReady { good: u32 },
}

impl State {
    const READY: Self = Self::Ready { bad: 0 };
    const NOT_READY: Self = Self::NotReady { good: 0 };

    fn is_ready(self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    fn after(self, verdict: Verdict, check: &ActiveCheck) -> Self {
        match (self, verdict) {
            (Self::Ready { .. }, Verdict::Good) => Self::READY,
            (Self::Ready { bad }, Verdict::Bad) if bad + 1 >= check.unhealthy_after => Self::NOT_READY,
            (Self::Ready { bad }, Verdict::Bad) => Self::Ready { bad: bad + 1 },
            (Self::NotReady { good }, Verdict::Good) if good + 1 >= check.healthy_after => Self::READY,
            (Self::NotReady { good }, Verdict::Good) => Self::NotReady { good: good + 1 },
            (Self::NotReady { .. }, Verdict::Bad) => Self::NOT_READY,
        }
    }
}

fn jittered(interval: Duration, random: &mut SmallRng) -> Duration {
    interval.mul_f64(random.random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use archipelago_model::service_file::Probe;

    fn target(port: u16) -> Target {
        Target { service: "shop/checkout".into(), address: ([127, 0, 0, 1], port).into() }
    }

    fn plan(healthy_after: u32, unhealthy_after: u32) -> Plan {
        let check = ActiveCheck { probe: Probe::Tcp, healthy_after, unhealthy_after, ..ActiveCheck::default() };
        Plan { check: HealthCheck::Active(check), protocol: ServiceProtocol::Tcp }
    }

    /// One round: what is due now is asked and answered at once.
    fn round(scheduler: &mut Scheduler, now: Instant, verdict: Verdict) -> bool {
        let starts = scheduler.start_due(now, usize::MAX);
        assert!(!starts.is_empty());
        starts
            .into_iter()
            .fold(false, |changed, start| scheduler.finish(now, &start.target, start.ticket, verdict) | changed)
    }

    #[test]
    fn thresholds_decide() {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(1);
        assert!(!scheduler.set_targets(start, [(target(1), plan(2, 3))].into(), &BTreeSet::new()));
        let answers = [
            (Verdict::Good, false, false),
            (Verdict::Good, true, true),
            (Verdict::Bad, true, false),
            (Verdict::Bad, true, false),
            (Verdict::Good, true, false),
            (Verdict::Bad, true, false),
            (Verdict::Bad, true, false),
            (Verdict::Bad, false, true),
            (Verdict::Good, false, false),
            (Verdict::Bad, false, false),
            (Verdict::Good, false, false),
            (Verdict::Good, true, true),
        ];
        let mut now = start;
        for (step, (verdict, ready, changed)) in answers.into_iter().enumerate() {
            assert_eq!(round(&mut scheduler, now, verdict), changed, "step {step}");
            assert_eq!(scheduler.ready().contains(&target(1)), ready, "step {step}");
            now = scheduler.next_due().unwrap();
            assert!(now > start);
        }
    }

    #[test]
    fn what_was_ready_before_a_restart_stays_so_until_it_answers_otherwise() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(1);
        let plans = [(target(1), plan(1, 2)), (target(2), plan(1, 2))];
        assert!(scheduler.set_targets(now, plans.into(), &[target(1)].into()));
        assert_eq!(scheduler.ready(), [target(1)].into());
        assert!(!scheduler.is_settled());
        round(&mut scheduler, now, Verdict::Bad);
        assert!(scheduler.is_settled());
        assert_eq!(scheduler.ready(), [target(1)].into());
    }

    #[test]
    fn endpoints_without_a_check_are_ready_at_once_and_never_asked() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(1);
        let unchecked = Plan { check: HealthCheck::None, protocol: ServiceProtocol::Http };
        assert!(scheduler.set_targets(now, [(target(1), unchecked)].into(), &BTreeSet::new()));
        assert!(scheduler.is_settled());
        assert_eq!(scheduler.next_due(), None);
    }

    #[test]
    fn an_answer_to_an_old_question_is_ignored() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(1);
        scheduler.set_targets(now, [(target(1), plan(1, 1))].into(), &BTreeSet::new());
        let old = scheduler.start_due(now, 9).remove(0);
        scheduler.set_targets(now, [(target(1), plan(1, 2))].into(), &BTreeSet::new());
        let new = scheduler.start_due(now, 9).remove(0);
        assert!(!scheduler.finish(now, &old.target, old.ticket, Verdict::Good));
        assert!(scheduler.finish(now, &new.target, new.ticket, Verdict::Good));
        // A target that is gone takes its running check along.
        let last = scheduler.next_due().unwrap();
        let running = scheduler.start_due(last, 9).remove(0);
        assert!(scheduler.set_targets(last, BTreeMap::new(), &BTreeSet::new()));
        assert!(!scheduler.finish(last, &running.target, running.ticket, Verdict::Bad));
        assert_eq!(scheduler.next_due(), None);
    }

    proptest! {
        /// However answers and capacity fall: one check per endpoint at a time, everyone gets a turn, and each entry is
        /// either waiting or running.
        #[test]
        fn everyone_is_asked(seed: u64, count in 1u16..30, free in 1usize..5, answers in prop::collection::vec(any::<bool>(), 1..200)) {
            let mut now = Instant::now();
            let mut scheduler = Scheduler::new(seed);
            let plans = (0..count).map(|port| (target(port), plan(1, 2))).collect();
            scheduler.set_targets(now, plans, &BTreeSet::new());
            let mut running: Vec<Start> = Vec::new();
            let mut asked = BTreeSet::new();
            for good in answers {
                for start in scheduler.start_due(now, free - running.len()) {
                    prop_assert!(running.iter().all(|other| other.target != start.target));
                    asked.insert(start.target.clone());
                    running.push(start);
                }
                prop_assert_eq!(scheduler.due.len() + running.len(), usize::from(count));
                now += Duration::from_millis(7);
                if !running.is_empty() {
                    let start = running.remove(0);
                    let verdict = if good { Verdict::Good } else { Verdict::Bad };
                    scheduler.finish(now, &start.target, start.ticket, verdict);
                }
            }
            prop_assert!(scheduler.next_due().is_none_or(|at| at <= now + Duration::from_millis(1_100)));
        }
    }
}
