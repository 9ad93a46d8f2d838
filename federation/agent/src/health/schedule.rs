//! Which endpoint is checked when, and what its answers mean. Time and randomness are passed in.
//!
//! States of an endpoint, with the thresholds of its check:
//!
//! | state | good answer | bad answer |
//! | --- | --- | --- |
//! | unknown | good count + 1; at `healthyAfter` ready | down |
//! | ready | stays; bad count back to 0 | bad count + 1; at `unhealthyAfter` down |
//! | down | good count + 1; at `healthyAfter` ready | stays, with the latest failure; good count back to 0 |
//!
//! At most one check of an endpoint runs at a time; the next is due one interval after the last one *began*, give or
//! take a tenth, so that checks which began together drift apart, and a slow answer does not slow the rhythm.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{Failure, Health, Target};
use archipelago_model::service::{ActiveCheck, ServiceProtocol};

/// What is known about a target before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How to ask.
    pub check: ActiveCheck,
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

/// What an endpoint answered: as the check wants it, or not.
pub type Answer = Result<(), Failure>;

/// All endpoints of a cluster that are asked, and when each is due. Those whose provider says what is ready are not here.
#[derive(Debug)]
pub struct Scheduler {
    entries: BTreeMap<Target, Entry>,
    /// Every entry that has no check running.
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

    /// Takes over the complete list of targets; returns whether any health changed.
    ///
    /// Known targets keep their state; a changed plan is asked at once. New ones are asked at once; until then they
    /// are what `presumed_ready` says (the last good state after a restart), unknown otherwise.
    pub fn set_targets(
        &mut self,
        now: Instant,
        plans: BTreeMap<Target, Plan>,
        presumed_ready: &BTreeSet<Target>,
    ) -> bool {
        let before = self.health();
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
                    let state = if presumed_ready.contains(&target) { State::READY } else { State::UNKNOWN };
                    let entry = Entry { plan, state, answered: false, running: None, due: None };
                    self.entries.insert(target.clone(), entry);
                    self.schedule(&target, now);
                }
            }
        }
        before != self.health()
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
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            entry.running = Some(Running { ticket, began: now });
            starts.push(Start { target, ticket, check: entry.plan.check.clone(), protocol: entry.plan.protocol });
        }
        starts
    }

    /// Takes an answer; returns what the endpoint's health changed to, if it did.
    pub fn finish(&mut self, now: Instant, target: &Target, ticket: Ticket, answer: Answer) -> Option<Health> {
        let entry = self.entries.get_mut(target)?;
        let running = entry.running.filter(|running| running.ticket == ticket)?;
        entry.running = None;
        entry.answered = true;
        let before = entry.state.health();
        entry.state = entry.state.after(answer, &entry.plan.check);
        let after = entry.state.health();
        let next = running.began + jittered(entry.plan.check.interval, &mut self.random);
        self.schedule(target, next.max(now));
        (before != after).then_some(after)
    }

    /// When [`Scheduler::start_due`] has something to do next, given free capacity.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is known of every endpoint.
    #[must_use]
    pub fn health(&self) -> BTreeMap<Target, Health> {
        self.entries.iter().map(|(target, entry)| (target.clone(), entry.state.health())).collect()
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
        entry.due = Some(at);
        self.due.insert((at, target.clone()));
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
    Unknown { good: u32 },
    Ready { bad: u32 },
    Down { good: u32, failure: Failure },
}

impl State {
    const UNKNOWN: Self = Self::Unknown { good: 0 };
    const READY: Self = Self::Ready { bad: 0 };

    fn health(self) -> Health {
        match self {
            Self::Unknown { .. } => Health::Unknown,
            Self::Ready { .. } => Health::Ready,
            Self::Down { failure, .. } => Health::Down(failure),
        }
    }

    fn after(self, answer: Answer, check: &ActiveCheck) -> Self {
        match (self, answer) {
            (Self::Ready { .. }, Ok(())) => Self::READY,
            (Self::Unknown { good } | Self::Down { good, .. }, Ok(())) if good + 1 >= check.healthy_after => {
                Self::READY
            }
            (Self::Unknown { good }, Ok(())) => Self::Unknown { good: good + 1 },
            (Self::Down { good, failure }, Ok(())) => Self::Down { good: good + 1, failure },
            (Self::Ready { bad }, Err(_)) if bad + 1 < check.unhealthy_after => Self::Ready { bad: bad + 1 },
            (Self::Unknown { .. } | Self::Ready { .. } | Self::Down { .. }, Err(failure)) => {
                Self::Down { good: 0, failure }
            }
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
    use archipelago_model::service::Probe;

    const GOOD: Answer = Ok(());
    const BAD: Answer = Err(Failure::Status(404));

    fn ready(scheduler: &Scheduler) -> BTreeSet<Target> {
        scheduler
            .health()
            .into_iter()
            .filter(|(_, health)| *health == Health::Ready)
            .map(|(target, _)| target)
            .collect()
    }

    fn target(port: u16) -> Target {
        Target {
            service: archipelago_model::id::ServiceKey::new("shop", "checkout"),
            port: 80,
            address: ([127, 0, 0, 1], port).into(),
        }
    }

    fn plan(healthy_after: u32, unhealthy_after: u32) -> Plan {
        let check = ActiveCheck { probe: Probe::Tcp, healthy_after, unhealthy_after, ..ActiveCheck::default() };
        Plan { check, protocol: ServiceProtocol::Tcp }
    }

    /// One round: what is due now is asked and answered at once.
    fn round(scheduler: &mut Scheduler, now: Instant, answer: Answer) -> bool {
        let starts = scheduler.start_due(now, usize::MAX);
        assert!(!starts.is_empty());
        starts.into_iter().fold(false, |changed, start| {
            scheduler.finish(now, &start.target, start.ticket, answer).is_some() | changed
        })
    }

    #[test]
    fn thresholds_decide() {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(1);
        assert!(scheduler.set_targets(start, [(target(1), plan(2, 3))].into(), &BTreeSet::new()));
        let answers = [
            (GOOD, false, false),
            (GOOD, true, true),
            (BAD, true, false),
            (BAD, true, false),
            (GOOD, true, false),
            (BAD, true, false),
            (BAD, true, false),
            (BAD, false, true),
            (GOOD, false, false),
            (BAD, false, false),
            (GOOD, false, false),
            (GOOD, true, true),
        ];
        let mut now = start;
        for (step, (answer, is_ready, changed)) in answers.into_iter().enumerate() {
            assert_eq!(round(&mut scheduler, now, answer), changed, "step {step}");
            assert_eq!(ready(&scheduler).contains(&target(1)), is_ready, "step {step}");
            now = scheduler.next_due().unwrap();
            assert!(now > start);
        }
    }

    #[test]
    fn an_endpoint_nobody_asked_is_unknown_and_one_that_fails_says_how() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(1);
        scheduler.set_targets(now, [(target(1), plan(2, 3))].into(), &BTreeSet::new());
        let health = |scheduler: &Scheduler| scheduler.health()[&target(1)];
        assert_eq!(health(&scheduler), Health::Unknown);
        assert!(!round(&mut scheduler, now, GOOD), "one of two good answers");
        assert_eq!(health(&scheduler), Health::Unknown);
        for failure in [Failure::Status(404), Failure::Timeout, Failure::Connect] {
            let now = scheduler.next_due().unwrap();
            assert!(round(&mut scheduler, now, Err(failure)), "another reason is a change too");
            assert_eq!(health(&scheduler), Health::Down(failure));
        }
    }

    #[test]
    fn what_was_ready_before_a_restart_stays_so_until_it_answers_otherwise() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(1);
        let plans = [(target(1), plan(1, 2)), (target(2), plan(1, 2))];
        assert!(scheduler.set_targets(now, plans.into(), &[target(1)].into()));
        assert_eq!(ready(&scheduler), [target(1)].into());
        assert!(!scheduler.is_settled());
        round(&mut scheduler, now, BAD);
        assert!(scheduler.is_settled());
        assert_eq!(ready(&scheduler), [target(1)].into());
    }

    #[test]
    fn an_answer_to_an_old_question_is_ignored() {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(1);
        scheduler.set_targets(now, [(target(1), plan(1, 1))].into(), &BTreeSet::new());
        let old = scheduler.start_due(now, 9).remove(0);
        scheduler.set_targets(now, [(target(1), plan(1, 2))].into(), &BTreeSet::new());
        let new = scheduler.start_due(now, 9).remove(0);
        assert_eq!(scheduler.finish(now, &old.target, old.ticket, GOOD), None);
        assert_eq!(scheduler.finish(now, &new.target, new.ticket, GOOD), Some(Health::Ready));
        // A target that is gone takes its running check along.
        let last = scheduler.next_due().unwrap();
        let running = scheduler.start_due(last, 9).remove(0);
        assert!(scheduler.set_targets(last, BTreeMap::new(), &BTreeSet::new()));
        assert_eq!(scheduler.finish(last, &running.target, running.ticket, BAD), None);
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
                    let answer = if good { GOOD } else { BAD };
                    scheduler.finish(now, &start.target, start.ticket, answer);
                }
            }
            prop_assert!(scheduler.next_due().is_none_or(|at| at <= now + Duration::from_millis(1_100)));
        }
    }
}
