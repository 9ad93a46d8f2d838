//! Cores on a bench: no time, no disk, and messages that move only when a test says so.

use std::{collections::BTreeMap, mem};

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, HardState, Message, MessageType};

use crate::{
    config::{Limits, Timing},
    core::{Action, Core, Event, Fsynced, Position, Recovered, Reply, RequestId, Role, Setup, Status, Write},
    error::Fatal,
    store::GENESIS,
};

/// A few cores, the messages between them, and what they answered.
pub(crate) struct Lab {
    cores: BTreeMap<u64, Core>,
    pub(crate) wire: Vec<Message>,
    pub(crate) replies: Vec<(u64, RequestId, Reply)>,
    /// Writes wait here instead of being durable at once.
    pub(crate) slow_disk: bool,
    pub(crate) writes: Vec<(u64, Write)>,
}

impl Lab {
    pub(crate) fn new(voters: &[u64], learners: &[u64]) -> Self {
        let mut lab = Self {
            cores: BTreeMap::new(),
            wire: Vec::new(),
            replies: Vec::new(),
            slow_disk: false,
            writes: Vec::new(),
        };
        for &node_id in voters.iter().chain(learners) {
            lab.cores.insert(node_id, core(node_id, founder(voters, learners)));
        }
        lab
    }

    /// Adds a node that knows nothing, as one that joins.
    pub(crate) fn add_empty(&mut self, node_id: u64) {
        self.cores.insert(node_id, core(node_id, Recovered::default()));
    }

    pub(crate) fn core(&mut self, id: u64) -> &mut Core {
        self.cores.get_mut(&id).unwrap()
    }

    pub(crate) fn status(&self, id: u64) -> Status {
        self.cores[&id].status()
    }

    pub(crate) fn on(&mut self, id: u64, event: Event) {
        self.try_on(id, event).unwrap();
    }

    pub(crate) fn try_on(&mut self, id: u64, event: Event) -> Result<(), Fatal> {
        let mut actions = Vec::new();
        let core = self.cores.get_mut(&id).unwrap();
        core.on(event, &mut actions)?;
        loop {
            core.poll(&mut actions)?;
            if actions.is_empty() {
                return Ok(());
            }
            for action in mem::take(&mut actions) {
                match action {
                    Action::Send(messages) => self.wire.extend(messages),
                    Action::Write(write) if self.slow_disk => self.writes.push((id, write)),
                    Action::Write(write) => {
                        core.on(Event::Persisted(write.durable(&Fsynced::after_fsync())), &mut actions)?;
                    }
                    Action::Apply { last, .. } => core.on(Event::Applied(last), &mut actions)?,
                    Action::Restore(_) => {}
                    Action::TakeSnapshot => {
                        let applied = core.status().applied_index;
                        let term = core.term_of(applied).unwrap();
                        let position = Position { log_index: applied, term };
                        let conf_state = core.conf_state_at(applied);
                        let data = Bytes::from_static(b"state");
                        core.on(Event::SnapshotTaken { position, conf_state, data }, &mut actions)?;
                    }
                    Action::Reply(request, reply) => self.replies.push((id, request, reply)),
                }
            }
        }
    }

    /// The waiting writes reach the disk.
    pub(crate) fn sync(&mut self) {
        for (id, write) in mem::take(&mut self.writes) {
            self.on(id, Event::Persisted(write.durable(&Fsynced::after_fsync())));
        }
    }

    pub(crate) fn tick(&mut self, ids: &[u64], times: usize) {
        for _ in 0..times {
            for &id in ids {
                self.on(id, Event::Tick);
            }
            self.deliver_among(ids);
        }
    }

    /// Delivers until nothing moves between `ids`; messages from or to others are lost.
    pub(crate) fn deliver_among(&mut self, ids: &[u64]) {
        while !self.wire.is_empty() {
            for message in mem::take(&mut self.wire) {
                if ids.contains(&message.from) && ids.contains(&message.to) {
                    self.on(message.to, Event::Message(message));
                }
            }
        }
    }

    /// Takes the messages of one type off the wire.
    pub(crate) fn take(&mut self, kind: MessageType) -> Vec<Message> {
        let (taken, kept) = mem::take(&mut self.wire).into_iter().partition(|message| message.get_msg_type() == kind);
        self.wire = kept;
        taken
    }

    /// Lets `ids` run until one of them leads with a committed entry of its term; returns it.
    pub(crate) fn elect(&mut self, ids: &[u64]) -> u64 {
        for _ in 0..200 {
            self.tick(ids, 1);
            let leader = ids.iter().copied().find(|id| self.status(*id).role == Role::Leader);
            if let Some(leader) = leader {
                self.tick(ids, 10);
                return leader;
            }
        }
        panic!("no leader among {ids:?}");
    }

    pub(crate) fn propose(&mut self, id: u64, request: u64) {
        self.on(id, Event::Propose { request: RequestId(request), command: Bytes::from_static(b"command") });
    }
}

fn founder(voters: &[u64], learners: &[u64]) -> Recovered {
    Recovered {
        hard_state: HardState { term: GENESIS.term, vote: 0, commit: GENESIS.log_index },
        conf_state: ConfState::from((voters.iter().copied(), learners.iter().copied())),
        applied: GENESIS,
        truncated: GENESIS,
        entries: Vec::new(),
    }
}

fn core(node_id: u64, recovered: Recovered) -> Core {
    let setup = Setup {
        node_id,
        timing: Timing::LAN,
        limits: Limits::default(),
        seed: 1,
        boot_nonce: 1,
        recovered,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    };
    Core::new(setup).unwrap()
}
