//! The supervisor's decisions, without I/O: which process runs, waits, is kept down or comes back when.
//!
//! [`Table`] takes [`Event`]s with the current time and emits [`Action`]s; `supervisor.rs` performs them.

use std::time::{Duration, Instant};

/// Every process of the federation.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    stopping: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    state: State,
    restarts: u64,
    /// Deaths in a row, each soon after the start.
    failures: u32,
}

/// What happens to processes. Indexes are positions in the list given to [`Table::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is this process's turn in the order of starting.
    Start(usize),
    /// The process runs.
    Spawned(usize, u32),
    /// It could not be started.
    SpawnFailed(usize, String),
    /// It ended, and how.
    Exited(usize, String),
    /// Kill it and keep it down until then.
    KeepDown(usize, Instant),
    /// Whatever is kept down may come back.
    Release,
    /// Time has passed.
    Tick,
    /// From here on nothing is restarted.
    Stop,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start this process.
    Spawn(usize),
    /// SIGKILL this pid, which is this process.
    Kill(usize, u32),
    /// Tell the people watching.
    Say(String),
}

/// Where one process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its turn has not come.
    Idle,
    /// Being started.
    Launching,
    /// Running.
    Running {
        /// Process id.
        pid: u32,
        /// Since when.
        since: Instant,
    },
    /// Died; comes back then.
    Backoff {
        /// When.
        until: Instant,
    },
    /// A drill keeps it down.
    KeptDown {
        /// When it may come back.
        until: Instant,
        /// Still to die, or still being launched.
        dying: Dying,
    },
    /// Ended, for good.
    Stopped,
}

/// How far a process is that a drill wants dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dying {
    /// Was being launched when the drill began: it is killed once it has a pid.
    Launching,
    /// Killed, its end not yet seen.
    Killed(u32),
    /// Dead.
    Dead,
}

impl Table {
    /// A table of idle processes.
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let entry = |name| Entry { name, state: State::Idle, restarts: 0, failures: 0 };
        Self { entries: names.into_iter().map(entry).collect(), stopping: false }
    }

    /// Takes one event at `now`.
    pub(crate) fn on(&mut self, event: Event, now: Instant, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {
                for index in 0..self.entries.len() {
                    self.wake(index, now, out);
                }
            }
            Event::Stop => {
                self.stopping = true;
                for entry in &mut self.entries {
                    if !matches!(entry.state, State::Running { .. } | State::Launching) && !entry.state.is_dying() {
                        entry.state = State::Stopped;
                    }
                }
            }
            Event::Release => {
                for entry in &mut self.entries {
                    if let State::KeptDown { until, .. } = &mut entry.state {
                        *until = now;
                    }
                }
                self.on(Event::Tick, now, out);
            }
            Event::Start(index)
            | Event::Spawned(index, _)
            | Event::SpawnFailed(index, _)
            | Event::Exited(index, _)
            | Event::KeepDown(index, _) => {
                let stopping = self.stopping;
                if let Some(entry) = self.entries.get_mut(index) {
                    entry.on(index, event, stopping, now, out);
                }
            }
        }
    }

    /// When [`Event::Tick`] is next of use.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.entries
            .iter()
            .filter_map(|entry| match entry.state {
                State::Backoff { until } | State::KeptDown { until, dying: Dying::Dead } => Some(until),
                _ => None,
            })
            .min()
    }

    /// Name, state and restarts of every process.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&str, State, u64)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), entry.state, entry.restarts))
    }

    /// Whether nothing is started any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether the process at `index` runs or is about to.
    pub(crate) fn is_live(&self, index: usize) -> bool {
        self.entries.get(index).is_some_and(|entry| {
            entry.state.pid().is_some() || entry.state == State::Launching || entry.state.is_dying()
        })
    }

    fn wake(&mut self, index: usize, now: Instant, out: &mut Vec<Action>) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        match entry.state {
            State::Backoff { until } | State::KeptDown { until, dying: Dying::Dead } if until <= now => {
                entry.restarts += 1;
                entry.state = State::Launching;
                out.push(Action::Spawn(index));
            }
            _ => {}
        }
    }
}

impl Entry {
    fn on(&mut self, index: usize, event: Event, stopping: bool, now: Instant, out: &mut Vec<Action>) {
        let name = &self.name;
        self.state = match (self.state, event) {
            (State::Idle, Event::Start(_)) if !stopping => {
                out.push(Action::Spawn(index));
                State::Launching
            }
            (State::Launching, Event::Spawned(_, pid)) => {
                if stopping {
                    // Too late to start: the driver ends everything that has a pid.
                    out.push(Action::Kill(index, pid));
                } else if self.restarts > 0 {
                    out.push(Action::Say(format!("{name} runs again, pid {pid}")));
                }
                State::Running { pid, since: now }
            }
            (State::KeptDown { until, dying: Dying::Launching }, Event::Spawned(_, pid)) => {
                out.push(Action::Kill(index, pid));
                State::KeptDown { until, dying: Dying::Killed(pid) }
            }
            (State::Launching, Event::SpawnFailed(_, why)) => {
                self.failures = self.failures.saturating_add(1);
                if stopping {
                    State::Stopped
                } else {
                    let delay = backoff(self.failures);
                    out.push(Action::Say(format!("{name} cannot be started: {why}; again in {}", show(delay))));
                    State::Backoff { until: now + delay }
                }
            }
            (State::KeptDown { until, dying: Dying::Launching }, Event::SpawnFailed(..)) => {
                State::KeptDown { until, dying: Dying::Dead }
            }
            (State::Running { pid, since }, Event::Exited(_, how)) => {
                if stopping {
                    State::Stopped
                } else {
                    let lived = now.saturating_duration_since(since);
                    self.failures = if lived >= STEADY { 1 } else { self.failures.saturating_add(1) };
                    let delay = backoff(self.failures);
                    out.push(Action::Say(format!("{name} (pid {pid}) {how}; restarting in {}", show(delay))));
                    State::Backoff { until: now + delay }
                }
            }
            (State::KeptDown { until, dying: Dying::Killed(_) }, Event::Exited(..)) => {
                if stopping {
                    State::Stopped
                } else {
                    State::KeptDown { until, dying: Dying::Dead }
                }
            }
            (State::Running { pid, .. }, Event::KeepDown(_, until)) => {
                out.push(Action::Kill(index, pid));
                State::KeptDown { until, dying: Dying::Killed(pid) }
            }
            (State::Launching, Event::KeepDown(_, until)) => State::KeptDown { until, dying: Dying::Launching },
            (State::Backoff { .. }, Event::KeepDown(_, until)) => State::KeptDown { until, dying: Dying::Dead },
            (State::KeptDown { dying, .. }, Event::KeepDown(_, until)) => State::KeptDown { until, dying },
            // A process that has not had its turn, or is gone for good, has nothing to answer.
            (state, _) => state,
        };
    }
}

impl State {
    /// The word in `status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Idle => "pending",
            Self::Launching => "starting",
            Self::Running { .. } => "running",
            Self::Backoff { .. } => "restarting",
            Self::KeptDown { .. } => "kept down",
            Self::Stopped => "stopped",
        }
    }

    /// The pid that a running or dying process has.
    pub(crate) fn pid(self) -> Option<u32> {
        match self {
            Self::Running { pid, .. } | Self::KeptDown { dying: Dying::Killed(pid), .. } => Some(pid),
            _ => None,
        }
    }

    fn is_dying(self) -> bool {
        matches!(self, Self::KeptDown { dying: Dying::Launching | Dying::Killed(_), .. })
    }
}

/// Doubles from a tenth of a second, at which a killed process is back before anyone looks, to five
/// seconds, at which a process that cannot run costs nothing.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (RESTART_DELAY_MIN * 2_u32.pow(doublings)).min(RESTART_DELAY_MAX)
}

fn show(duration: Duration) -> String {
    crate::duration::display(duration)
}

const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A process that lived this long did start; its next death counts as the first.
const STEADY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        table: Table,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { table: Table::new(["paris/gw-1".to_owned()]), now: Instant::now() }
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            let mut out = Vec::new();
            self.table.on(event, self.now, &mut out);
            out
        }

        fn running() -> Self {
            let mut world = Self::new();
            assert_eq!(world.on(Event::Start(0)), [Action::Spawn(0)]);
            assert_eq!(world.on(Event::Spawned(0, 7)), []);
            world
        }

        fn state(&self) -> (&'static str, Option<u32>, u64) {
            let (_, state, restarts) = self.table.rows().next().unwrap();
            (state.word(), state.pid(), restarts)
        }

        fn until_wake(&self) -> Duration {
            self.table.next_wake().unwrap().saturating_duration_since(self.now)
        }
    }

    #[test]
    fn a_death_is_said_and_repaired() {
        let mut world = World::running();
        let said = world.on(Event::Exited(0, "was killed by signal 9".into()));
        assert_eq!(said, [Action::Say("paris/gw-1 (pid 7) was killed by signal 9; restarting in 100ms".into())]);
        assert_eq!(world.on(Event::Tick), [], "not before its time");
        world.now += world.until_wake();
        assert_eq!(world.on(Event::Tick), [Action::Spawn(0)]);
        assert_eq!(world.on(Event::Spawned(0, 8)), [Action::Say("paris/gw-1 runs again, pid 8".into())]);
        assert_eq!(world.state(), ("running", Some(8), 1));
    }

    #[test]
    fn restarts_back_off_to_a_bound_and_recover() {
        let mut world = World::running();
        let mut delays = Vec::new();
        for _ in 0..9 {
            world.on(Event::Exited(0, "exited with 1".into()));
            delays.push(world.until_wake());
            world.now += world.until_wake();
            world.on(Event::Tick);
            world.on(Event::Spawned(0, 9));
        }
        assert_eq!(delays.first(), Some(&RESTART_DELAY_MIN));
        assert_eq!(delays.last(), Some(&RESTART_DELAY_MAX));
        assert!(delays.is_sorted());
        world.now += STEADY;
        world.on(Event::Exited(0, "exited with 1".into()));
        assert_eq!(world.until_wake(), RESTART_DELAY_MIN);
    }

    #[test]
    fn a_drill_keeps_it_down_for_its_time() {
        let mut world = World::running();
        let until = world.now + Duration::from_secs(20);
        assert_eq!(world.on(Event::KeepDown(0, until)), [Action::Kill(0, 7)]);
        assert_eq!(world.on(Event::Exited(0, "was killed by signal 9".into())), [], "its end was asked for");
        assert_eq!(world.state(), ("kept down", None, 0));
        world.now += Duration::from_secs(19);
        assert_eq!(world.on(Event::Tick), []);
        world.now += Duration::from_secs(1);
        assert_eq!(world.on(Event::Tick), [Action::Spawn(0)]);
    }

    #[test]
    fn the_end_of_a_drill_brings_it_back_even_if_it_is_not_dead_yet() {
        let mut world = World::running();
        world.on(Event::KeepDown(0, world.now + Duration::from_secs(20)));
        assert_eq!(world.on(Event::Release), [], "still dying");
        world.on(Event::Exited(0, "was killed by signal 9".into()));
        assert_eq!(world.until_wake(), Duration::ZERO);
        assert_eq!(world.on(Event::Tick), [Action::Spawn(0)]);
    }

    #[test]
    fn a_drill_catches_a_process_that_is_being_launched() {
        let mut world = World::new();
        world.on(Event::Start(0));
        assert_eq!(world.on(Event::KeepDown(0, world.now + Duration::from_secs(5))), []);
        assert_eq!(world.on(Event::Spawned(0, 11)), [Action::Kill(0, 11)]);
    }

    #[test]
    fn nothing_comes_back_after_stop() {
        let mut world = World::running();
        assert_eq!(world.on(Event::Stop), []);
        assert_eq!(world.state(), ("running", Some(7), 0));
        assert_eq!(world.on(Event::Exited(0, "exited with 0".into())), []);
        assert_eq!((world.state().0, world.table.next_wake(), world.table.is_live(0)), ("stopped", None, false));

        let mut waiting = World::running();
        waiting.on(Event::Exited(0, "exited with 1".into()));
        waiting.on(Event::Stop);
        assert_eq!((waiting.state().0, waiting.table.next_wake()), ("stopped", None));

        let mut launching = World::new();
        launching.on(Event::Start(0));
        launching.on(Event::Stop);
        assert_eq!(launching.on(Event::Spawned(0, 12)), [Action::Kill(0, 12)]);
    }

    #[test]
    fn a_process_that_cannot_be_started_is_tried_again() {
        let mut world = World::new();
        world.on(Event::Start(0));
        let said = world.on(Event::SpawnFailed(0, "no such file".into()));
        assert_eq!(said, [Action::Say("paris/gw-1 cannot be started: no such file; again in 100ms".into())]);
        world.now += world.until_wake();
        assert_eq!(world.on(Event::Tick), [Action::Spawn(0)]);
    }
}
