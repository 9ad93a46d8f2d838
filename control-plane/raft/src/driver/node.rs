//! The thread that owns the replica.

use std::{
    collections::HashMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use raft_proto::eraftpb::{ConfState, Message, MessageType};
use tokio::sync::oneshot;

use super::{Notice, Proposed, Request, handle::Shared, worker::Worker};
use crate::{
    config::Config,
    core::{Event, Reply, RequestId, Role, Status, Write},
    error::{Fatal, MembershipError, ProposeError, ReadError, Stopped},
    machine::{StateMachine, Transport},
    replica::{Capture, Output, Replica},
    store::Room,
};

pub(super) struct Node<M> {
    replica: Replica<M>,
    transport: Box<dyn Transport>,
    shared: Arc<Shared<M>>,
    log: Worker<Write>,
    state: Worker<Capture>,
    callers: HashMap<RequestId, Caller>,
    next_request: u64,
    writes_open: usize,
    writes_open_max: usize,
    tick: Duration,
    handover_ticks: usize,
    phase: Phase,
    outputs: Vec<Output>,
    room: Arc<Room>,
    /// A file that cannot grow, and for how many ticks already.
    disk_full: Option<(PathBuf, usize)>,
    /// The newest of the writes that hold nothing but messages, when a full disk left no place for it in the queue.
    parked: Option<Write>,
}

/// Where an answer goes.
enum Caller {
    Propose(oneshot::Sender<Result<Proposed, ProposeError>>),
    Read(oneshot::Sender<Result<u64, ReadError>>),
    Change(oneshot::Sender<Result<ConfState, MembershipError>>),
}

/// What is left to do before the thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Waiting for another node to take over, for so many ticks at most.
    HandingOver {
        ticks_left: usize,
    },
    /// Waiting for the last checkpoint.
    Checkpointing {
        ticks_left: usize,
    },
    Ended,
    Abandoned,
}

impl<M: StateMachine> Node<M> {
    pub(super) fn new(
        replica: Replica<M>,
        transport: Box<dyn Transport>,
        shared: Arc<Shared<M>>,
        log: Worker<Write>,
        state: Worker<Capture>,
        room: Arc<Room>,
        config: &Config,
    ) -> Self {
        Self {
            replica,
            transport,
            shared,
            log,
            state,
            callers: HashMap::new(),
            next_request: 0,
            writes_open: 0,
            writes_open_max: config.limits.writes_inflight_max,
            tick: config.timing.tick,
            handover_ticks: config.timing.election_ticks,
            phase: Phase::Running,
            outputs: Vec::new(),
            room,
            disk_full: None,
            parked: None,
        }
    }

    /// Runs until the node is told to stop or cannot go on, then tells everybody.
    pub(super) fn run(mut self) {
        // The raft crate panics when its invariants break, and a state machine may. Either way this node is done, but
        // its process must hear of it: callers would wait for ever.
        let ended = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|panic| {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without words");
            Err(Fatal::Internal(words.to_owned()))
        });
        self.shared.mailbox.close();
        self.callers.clear();
        self.room.fail();
        let stopped = match ended {
            Ok(()) => {
                if self.phase == Phase::Abandoned {
                    self.log.abandon();
                    self.state.abandon();
                } else {
                    self.log.finish();
                    self.state.finish();
                }
                Stopped::Shutdown
            }
            Err(fatal) => {
                tracing::error!(error = %fatal, "raft node failed");
                // They promise nothing, and without them the others would not learn in what this member differed.
                for output in mem::take(&mut self.outputs) {
                    if let Output::Announce(digests) = output {
                        self.transport.send_digests(digests);
                    }
                }
                // Whoever looks for the leader must not find one here for ever.
                self.shared.status.send_modify(|status| (status.role, status.leader) = (Role::Follower, None));
                self.log.abandon();
                self.state.abandon();
                Stopped::Failed(fatal)
            }
        };
        let Self { shared, log, state, .. } = self;
        // The stores are closed with their threads, before anybody hears that the node has stopped.
        drop((log, state));
        shared.ended.send_replace(Some(stopped));
    }

    fn work(&mut self) -> Result<(), Fatal> {
        let mut next_tick = Instant::now() + self.tick;
        self.room.wait();
        loop {
            self.look_for_room()?;
            // With a full disk nothing that needs it is taken in; the rest must not wait for it.
            let work = self.writes_open < self.writes_open_max || self.disk_full.is_some();
            let batch = self.shared.mailbox.drain(next_tick, work);
            if batch.messages_dropped > 0 {
                tracing::debug!(dropped = batch.messages_dropped, "peer messages dropped: the queue was full");
            }
            for notice in batch.notices {
                self.notice(notice)?;
            }
            for message in batch.messages {
                if self.disk_full.is_some() && needs_room(&message) {
                    continue;
                }
                self.event(Event::Message(message))?;
            }
            for request in batch.requests {
                self.request(request)?;
            }
            let now = Instant::now();
            if now >= next_tick {
                self.event(Event::Tick)?;
                self.leave_to_others()?;
                self.phase = self.phase.tick();
                // After a pause the missed ticks are dropped: replaying them would depose a healthy leader.
                next_tick = (next_tick + self.tick).max(now);
            }
            self.replica.poll(&mut self.outputs)?;
            // Whoever is answered below must find the state he was told of.
            self.publish();
            self.advance_phase();
            self.perform();
            if matches!(self.phase, Phase::Ended | Phase::Abandoned) {
                return Ok(());
            }
        }
    }

    /// Notices when the disk becomes full, and when there is room again.
    fn look_for_room(&mut self) -> Result<(), Fatal> {
        match (self.room.full(), &self.disk_full) {
            (Some(path), None) => {
                tracing::error!(path = %path.display(), "no space left on device: no writes are taken until there is some");
                self.disk_full = Some((path, 0));
                self.event(Event::DiskFull)
            }
            (None, Some((path, _))) => {
                tracing::info!(path = %path.display(), "there is space on the device again");
                self.disk_full = None;
                self.outputs.extend(self.parked.take().map(Output::Write));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Hands leadership over, once, when the disk stays full: by then a successor on the same disk knows that it is.
    fn leave_to_others(&mut self) -> Result<(), Fatal> {
        let Some((_, ticks)) = &mut self.disk_full else { return Ok(()) };
        *ticks += 1;
        if *ticks == self.handover_ticks { self.event(Event::Transfer { to: None }) } else { Ok(()) }
    }

    fn event(&mut self, event: Event) -> Result<(), Fatal> {
        self.replica.on(event, &mut self.outputs)
    }

    fn notice(&mut self, notice: Notice) -> Result<(), Fatal> {
        match notice {
            Notice::Persisted(persisted) => {
                for persisted in persisted {
                    self.writes_open = self.writes_open.saturating_sub(1);
                    self.event(Event::Persisted(persisted))?;
                }
                Ok(())
            }
            Notice::Encoded(checkpoint) => self.replica.encoded(checkpoint, &mut self.outputs),
            Notice::CheckpointSaved { log_index } => self.replica.checkpoint_saved(log_index, &mut self.outputs),
            Notice::StoreFailed(error) => Err(Fatal::Store(error)),
            Notice::Unreachable { peer } => self.event(Event::Unreachable { peer }),
            Notice::SnapshotSent { peer, delivered } => self.event(Event::SnapshotSent { peer, delivered }),
            Notice::PeerDigests { peer, digests } => self.replica.hear(peer, &digests),
            Notice::Transfer { to } => self.event(Event::Transfer { to }),
            Notice::Shutdown => {
                if self.phase == Phase::Running {
                    self.phase = Phase::HandingOver { ticks_left: self.handover_ticks };
                    self.event(Event::Transfer { to: None })?;
                }
                Ok(())
            }
            Notice::Abandoned => {
                if self.phase == Phase::Running {
                    self.phase = Phase::Abandoned;
                }
                Ok(())
            }
        }
    }

    fn request(&mut self, request: Request) -> Result<(), Fatal> {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let (event, caller) = match request {
            Request::Propose { reply, .. }
                if self.disk_full.is_some() && self.replica.status().role == Role::Leader =>
            {
                let path = self.disk_full.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
                let _ = reply.send(Err(ProposeError::DiskFull { path }));
                return Ok(());
            }
            Request::Propose { command, reply } => (Event::Propose { request: id, command }, Caller::Propose(reply)),
            Request::Read { reply } => (Event::ReadIndex { request: id }, Caller::Read(reply)),
            Request::Change { change, reply } => (Event::Change { request: id, change }, Caller::Change(reply)),
        };
        self.callers.insert(id, caller);
        self.event(event)
    }

    fn perform(&mut self) {
        let mut messages: Vec<Message> = Vec::new();
        for output in mem::take(&mut self.outputs) {
            match output {
                Output::Send(more) => messages.extend(more),
                // Messages may be lost, and their number may not grow for as long as the disk is full.
                Output::Write(write)
                    if self.disk_full.is_some() && write.is_empty() && self.writes_open >= self.writes_open_max =>
                {
                    self.parked = Some(write);
                }
                Output::Write(write) => {
                    self.writes_open += 1;
                    self.log.push(write);
                }
                Output::Checkpoint(capture) => self.state.push(capture),
                Output::Announce(digests) => self.transport.send_digests(digests),
                Output::Reply(request, reply) => self.reply(request, reply),
            }
        }
        if !messages.is_empty() {
            self.transport.send(messages);
        }
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        // A caller that gave up has dropped its end; there is nobody to tell.
        match (self.callers.remove(&request), reply) {
            (Some(Caller::Propose(caller)), Reply::Proposed(result)) => {
                let _ = caller.send(result.map(|(log_index, outcome)| Proposed { log_index, outcome }));
            }
            (Some(Caller::Read(caller)), Reply::Read(result)) => drop(caller.send(result)),
            (Some(Caller::Change(caller)), Reply::Changed(result)) => drop(caller.send(result)),
            _ => {}
        }
    }

    fn publish(&self) {
        let applied = self.replica.applied_index();
        self.shared.applied.send_if_modified(|seen| mem::replace(seen, applied) != applied);
        let disk_full = self.disk_full.as_ref().map(|(path, _)| path.clone());
        let status = Status { disk_full, ..self.replica.status() };
        self.shared.status.send_if_modified(|seen| {
            let changed = *seen != status;
            if changed {
                *seen = status;
            }
            changed
        });
    }

    fn advance_phase(&mut self) {
        if let Phase::HandingOver { ticks_left } = self.phase {
            let status = self.replica.status();
            let alone = status.voters.len() <= 1;
            if status.role != Role::Leader || alone || ticks_left == 0 {
                self.phase = Phase::Checkpointing { ticks_left: CHECKPOINT_TICKS_MAX };
            }
        }
        if let Phase::Checkpointing { ticks_left } = self.phase {
            self.replica.checkpoint(&mut self.outputs);
            let settled = self.replica.is_checkpointed() && !self.replica.writes_in_flight();
            if settled || ticks_left == 0 {
                self.phase = Phase::Ended;
            }
        }
    }
}

/// Whether a message would make this node write more than a term, or promise what a full disk cannot keep. Lost they
/// are sent again.
fn needs_room(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgAppend => !message.entries.is_empty(),
        MessageType::MsgSnapshot
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote => true,
        _ => false,
    }
}

impl Phase {
    fn tick(self) -> Self {
        match self {
            Self::HandingOver { ticks_left } => Self::HandingOver { ticks_left: ticks_left.saturating_sub(1) },
            Self::Checkpointing { ticks_left } => Self::Checkpointing { ticks_left: ticks_left.saturating_sub(1) },
            other => other,
        }
    }
}

/// Under steady traffic there is always something newer to checkpoint, so a stopping node waits no longer than this
/// many ticks: 2 s on a local network, above what the last fsyncs take on a slow disk.
const CHECKPOINT_TICKS_MAX: usize = 200;
