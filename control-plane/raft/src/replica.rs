//! A core together with its state machine: what the threads and the simulation have in common.
//!
//! [`Replica`] applies what the core commits, decides when to write a checkpoint, and leaves to its driver what needs
//! a disk, a network or a caller.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use raft_proto::eraftpb::{ConfState, Message};

use crate::{
    config::{Limits, Timing},
    core::{Action, Command, Core, Event, Position, Reply, RequestId, Status, Write},
    digest::{self, Judge, StateDigest},
    error::Fatal,
    machine::{CannotApply, Encode, StateMachine},
    store::Checkpoint,
};

pub(crate) struct Replica<M> {
    core: Core,
    machine: Arc<RwLock<M>>,
    applied: Position,
    checkpoints: CheckpointPolicy,
    judge: Judge,
    /// Ticks until the digests are told again, and how many there are between two times.
    announce: (u64, u64),
    /// A peer waits for the next encoded snapshot.
    snapshot_wanted: bool,
    actions: Vec<Action>,
}

/// What is left for the driver, in this order.
#[derive(Debug)]
pub(crate) enum Output {
    /// Send these.
    Send(Vec<Message>),
    /// Make this durable, in order with the other writes, then report [`Event::Persisted`].
    Write(Write),
    /// Encode this on another thread and report it with [`Replica::encoded`]; save it, then report it with
    /// [`Replica::checkpoint_saved`]. Never two at once.
    Checkpoint(Capture),
    /// Tell all other members.
    Announce(Vec<StateDigest>),
    /// Answer a request.
    Reply(RequestId, Reply),
}

impl<M: StateMachine> Replica<M> {
    /// A replica whose `machine` was restored from `checkpoint`.
    pub(crate) fn new(
        core: Core,
        machine: Arc<RwLock<M>>,
        checkpoint: &Checkpoint,
        limits: &Limits,
        timing: Timing,
    ) -> Self {
        let announce_ticks = ANNOUNCE_ELECTIONS * timing.election_ticks as u64;
        Self {
            judge: Judge::new(core.status().node_id, &checkpoint.digests),
            core,
            machine,
            applied: checkpoint.position,
            checkpoints: CheckpointPolicy::new(limits, timing),
            announce: (announce_ticks, announce_ticks),
            snapshot_wanted: false,
            actions: Vec::new(),
        }
    }

    /// Takes in one event; see [`Core::on`].
    ///
    /// # Errors
    /// [`Fatal`]: the node must stop at once, and nothing it still holds may leave it.
    pub(crate) fn on(&mut self, event: Event, out: &mut Vec<Output>) -> Result<(), Fatal> {
        if matches!(event, Event::Tick) {
            self.checkpoints.tick();
            self.announce.0 = self.announce.0.saturating_sub(1);
            if self.announce.0 == 0 {
                self.announce(out);
            }
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
        if self.checkpoints.is_due() || self.snapshot_wanted {
            self.capture(out);
        }
        Ok(())
    }

    /// Asks for a checkpoint of what is applied, unless it is saved already or one is under way.
    pub(crate) fn checkpoint(&mut self, out: &mut Vec<Output>) {
        if !self.checkpoints.is_clean() {
            self.capture(out);
        }
    }

    /// The checkpoint asked for is encoded; a peer that waits for a snapshot need not wait for the disk too.
    ///
    /// # Errors
    /// As [`on`](Self::on).
    pub(crate) fn encoded(&mut self, checkpoint: Checkpoint, out: &mut Vec<Output>) -> Result<(), Fatal> {
        if let Some(newest) = checkpoint.digests.last() {
            let node_id = self.core.status().node_id;
            // Told before it is judged: should this member have to stop, the others must know why.
            self.judge.note(node_id, &[*newest]);
            self.announce(out);
            self.hear(node_id, &[*newest])?;
        }
        if !std::mem::take(&mut self.snapshot_wanted) {
            return Ok(());
        }
        let Checkpoint { position, conf_state, data, .. } = checkpoint;
        self.on(Event::SnapshotTaken { position, conf_state, data }, out)
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

    /// A member told its digests.
    ///
    /// # Errors
    /// [`Fatal::StateDiverged`].
    pub(crate) fn hear(&mut self, member: u64, digests: &[StateDigest]) -> Result<(), Fatal> {
        let members = self.core.conf_state_at(self.applied.log_index);
        let node_id = self.core.status().node_id;
        self.judge.hear(member, digests, &members).map_err(|(divergence, own)| Fatal::StateDiverged {
            node_id,
            divergence,
            own,
        })
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            checkpoint: self.judge.own().last().copied(),
            divergence: self.judge.divergence().cloned(),
            ..self.core.status()
        }
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
                    self.apply(commands, out)?;
                    self.applied = last;
                    self.core.on(Event::Applied(last), &mut self.actions)?;
                    if self.checkpoints.applied(last.log_index) {
                        self.capture(out);
                    }
                }
                Action::Restore(snapshot) => {
                    let metadata = snapshot.get_metadata();
                    let position = Position { log_index: metadata.index, term: metadata.term };
                    let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
                    let restored = digest::open(snapshot.get_data())
                        .and_then(|(digest, state)| machine.restore(state).map(|()| digest));
                    let log_index = position.log_index;
                    let digest = restored.map_err(|reason| Fatal::Restore { log_index, reason })?;
                    self.judge.replaced(StateDigest { log_index, digest });
                    self.applied = position;
                    // What was applied before is part of it, and it is on its way to the disk.
                    self.checkpoints.installed();
                }
                Action::TakeSnapshot => self.snapshot_wanted = true,
            }
        }
        Ok(())
    }

    fn apply(&mut self, commands: Vec<Command>, out: &mut Vec<Output>) -> Result<(), Fatal> {
        if commands.is_empty() {
            return Ok(());
        }
        let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
        for Command { log_index, data, request } in commands {
            let outcome = machine
                .apply(log_index, &data)
                .map_err(|CannotApply { reason }| Fatal::CannotApply { log_index, reason })?;
            if let Some(request) = request {
                out.push(Output::Reply(request, Reply::Proposed(Ok((log_index, outcome)))));
            }
        }
        Ok(())
    }

    /// Takes a snapshot of what is applied, unless the one before is not done yet.
    fn capture(&mut self, out: &mut Vec<Output>) {
        if self.checkpoints.begin() {
            let encode = self.machine.read().unwrap_or_else(PoisonError::into_inner).snapshot();
            let conf_state = self.core.conf_state_at(self.applied.log_index);
            let digests = self.judge.own();
            out.push(Output::Checkpoint(Capture { position: self.applied, conf_state, encode, digests }));
        }
    }

    fn announce(&mut self, out: &mut Vec<Output>) {
        self.announce.0 = self.announce.1;
        let digests = self.judge.own();
        if !digests.is_empty() {
            out.push(Output::Announce(digests));
        }
    }
}

/// A snapshot of the state machine, not yet encoded.
pub(crate) struct Capture {
    position: Position,
    conf_state: ConfState,
    encode: Encode,
    /// Of this member's checkpoints before it.
    digests: Vec<StateDigest>,
}

impl Capture {
    /// Takes as long as the state is large.
    pub(crate) fn encode(self) -> Checkpoint {
        let Self { position, conf_state, encode, mut digests } = self;
        let (digest, data) = digest::seal(&encode());
        digests.retain(|before| before.log_index != position.log_index);
        digests.push(StateDigest { log_index: position.log_index, digest });
        Checkpoint { position, conf_state, installed: false, digests, data }
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").field("position", &self.position).finish_non_exhaustive()
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

/// When to take a checkpoint: at every multiple of so many entries, or so many ticks after the first entry in none.
struct CheckpointPolicy {
    entries: u64,
    ticks_max: u64,
    /// Entries were applied that are in no checkpoint.
    dirty: bool,
    ticks: u64,
    under_way: bool,
}

impl CheckpointPolicy {
    fn new(limits: &Limits, timing: Timing) -> Self {
        let ticks_max = limits.checkpoint_interval.as_micros() / timing.tick.as_micros().max(1);
        let ticks_max = u64::try_from(ticks_max).unwrap_or(u64::MAX);
        Self { entries: limits.checkpoint_entries, ticks_max, dirty: false, ticks: 0, under_way: false }
    }

    fn tick(&mut self) {
        self.ticks += u64::from(self.dirty);
    }

    /// Whether all members take a checkpoint here.
    fn applied(&mut self, log_index: u64) -> bool {
        self.dirty = true;
        log_index.is_multiple_of(self.entries)
    }

    fn installed(&mut self) {
        (self.dirty, self.ticks) = (false, 0);
    }

    fn is_due(&self) -> bool {
        self.dirty && self.ticks >= self.ticks_max
    }

    fn is_clean(&self) -> bool {
        !self.dirty && !self.under_way
    }

    fn begin(&mut self) -> bool {
        if self.under_way {
            return false;
        }
        (self.under_way, self.dirty, self.ticks) = (true, false, 0);
        true
    }

    fn end(&mut self) {
        self.under_way = false;
    }
}

/// Digests are told anew after this many election timeouts: about a second on a local network.
const ANNOUNCE_ELECTIONS: u64 = 4;
