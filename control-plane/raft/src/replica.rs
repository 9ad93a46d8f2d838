//! A core together with its state machine: what the threads and the simulation have in common.
//!
//! [`Replica`] applies what the core commits, decides when to write a checkpoint, and leaves to its driver what needs
//! a disk, a network or a caller.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use raft_proto::eraftpb::Message;

use crate::{
    config::{Limits, Timing},
    core::{Action, Command, Core, Event, Position, Reply, RequestId, Status, Write},
    error::Fatal,
    machine::StateMachine,
    store::Checkpoint,
};

pub(crate) struct Replica<M> {
    core: Core,
    machine: Arc<RwLock<M>>,
    applied: Position,
    checkpoints: CheckpointPolicy,
    actions: Vec<Action>,
}

/// What is left for the driver, in this order.
#[derive(Debug)]
pub(crate) enum Output {
    /// Send these.
    Send(Vec<Message>),
    /// Make this durable, in order with the other writes, then report [`Event::Persisted`].
    Write(Write),
    /// Save this, then report it with [`Replica::checkpoint_saved`]. Never two at once.
    Checkpoint(Checkpoint),
    /// Answer a request.
    Reply(RequestId, Reply),
}

impl<M: StateMachine> Replica<M> {
    pub(crate) fn new(core: Core, machine: Arc<RwLock<M>>, applied: Position, limits: &Limits, timing: Timing) -> Self {
        Self { core, machine, applied, checkpoints: CheckpointPolicy::new(limits, timing), actions: Vec::new() }
    }

    /// Takes in one event; see [`Core::on`].
    ///
    /// # Errors
    /// [`Fatal`]: the node must stop at once, and nothing it still holds may leave it.
    pub(crate) fn on(&mut self, event: Event, out: &mut Vec<Output>) -> Result<(), Fatal> {
        if matches!(event, Event::Tick) {
            self.checkpoints.tick();
        }
        self.core.on(event, &mut self.actions)?;
        self.perform(out)
    }

    /// Performs all that the events so far made ready.
    ///
    /// # Errors
    /// As [`on`](Self::on).
    pub(crate) fn poll(&mut self, out: &mut Vec<Output>) -> Result<(), Fatal> {
        loop {
            self.core.poll(&mut self.actions)?;
            if self.actions.is_empty() {
                break;
            }
            self.perform(out)?;
        }
        if self.checkpoints.is_due() {
            self.checkpoint(out);
        }
        Ok(())
    }

    /// Asks for a checkpoint of what is applied, unless it is saved already or one is under way.
    pub(crate) fn checkpoint(&mut self, out: &mut Vec<Output>) {
        if self.checkpoints.begin() {
            let data = self.snapshot();
            let conf_state = self.core.conf_state_at(self.applied.log_index);
            out.push(Output::Checkpoint(Checkpoint { position: self.applied, conf_state, installed: false, data }));
        }
    }

    /// The checkpoint asked for is durable.
    ///
    /// # Errors
    /// As [`on`](Self::on).
    pub(crate) fn checkpoint_saved(&mut self, log_index: u64, out: &mut Vec<Output>) -> Result<(), Fatal> {
        self.checkpoints.end();
        self.on(Event::CheckpointDurable { log_index }, out)
    }

    /// Whether nothing applied is missing from the newest durable checkpoint.
    pub(crate) fn is_checkpointed(&self) -> bool {
        self.checkpoints.is_clean()
    }

    pub(crate) fn status(&self) -> Status {
        self.core.status()
    }

    pub(crate) fn applied_index(&self) -> u64 {
        self.applied.log_index
    }

    pub(crate) fn writes_in_flight(&self) -> bool {
        self.core.writes_in_flight()
    }

    fn perform(&mut self, out: &mut Vec<Output>) -> Result<(), Fatal> {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Send(messages) => out.push(Output::Send(messages)),
                Action::Write(write) => out.push(Output::Write(write)),
                Action::Reply(request, reply) => out.push(Output::Reply(request, reply)),
                Action::Apply { commands, last } => {
                    self.apply(commands, out);
                    self.checkpoints.applied(last.log_index.saturating_sub(self.applied.log_index));
                    self.applied = last;
                    self.core.on(Event::Applied(last), &mut self.actions)?;
                }
                Action::Restore(snapshot) => {
                    let metadata = snapshot.get_metadata();
                    let position = Position { log_index: metadata.index, term: metadata.term };
                    let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
                    machine
                        .restore(snapshot.get_data())
                        .map_err(|reason| Fatal::Restore { log_index: position.log_index, reason })?;
                    self.applied = position;
                }
                Action::TakeSnapshot => {
                    let event = Event::SnapshotTaken { position: self.applied, data: self.snapshot() };
                    self.core.on(event, &mut self.actions)?;
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, commands: Vec<Command>, out: &mut Vec<Output>) {
        if commands.is_empty() {
            return;
        }
        let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
        for Command { log_index, data, request } in commands {
            let outcome = machine.apply(log_index, &data);
            if let Some(request) = request {
                out.push(Output::Reply(request, Reply::Proposed(Ok((log_index, outcome)))));
            }
        }
    }

    fn snapshot(&self) -> Bytes {
        self.machine.read().unwrap_or_else(PoisonError::into_inner).snapshot().into()
    }
}

#[cfg(test)]
impl<M> Replica<M> {
    pub(crate) fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    pub(crate) fn machine(&self) -> &Arc<RwLock<M>> {
        &self.machine
    }
}

/// When to write a checkpoint: after so many entries, or so many ticks after the first of them.
struct CheckpointPolicy {
    entries_max: u64,
    ticks_max: u64,
    entries: u64,
    ticks: u64,
    under_way: bool,
}

impl CheckpointPolicy {
    fn new(limits: &Limits, timing: Timing) -> Self {
        let ticks_max = limits.checkpoint_interval.as_micros() / timing.tick.as_micros().max(1);
        let ticks_max = u64::try_from(ticks_max).unwrap_or(u64::MAX);
        Self { entries_max: limits.checkpoint_entries, ticks_max, entries: 0, ticks: 0, under_way: false }
    }

    fn tick(&mut self) {
        self.ticks += u64::from(self.entries > 0);
    }

    fn applied(&mut self, entries: u64) {
        self.entries += entries;
    }

    fn is_due(&self) -> bool {
        !self.under_way && (self.entries >= self.entries_max || (self.entries > 0 && self.ticks >= self.ticks_max))
    }

    fn is_clean(&self) -> bool {
        self.entries == 0 && !self.under_way
    }

    fn begin(&mut self) -> bool {
        if self.under_way || self.entries == 0 {
            return false;
        }
        (self.under_way, self.entries, self.ticks) = (true, 0, 0);
        true
    }

    fn end(&mut self) {
        self.under_way = false;
    }
}
