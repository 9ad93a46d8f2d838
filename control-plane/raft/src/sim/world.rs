//! The simulated cluster: nodes, network, clients, and the faults that befall them.

mod disturb;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, RwLock},
    time::Duration,
};

use raft_proto::eraftpb::{ConfState, HardState, Message, MessageType};

use super::{
    Rng,
    checker::Checker,
    disk::{SimDisk, SimFile},
    machine::{History, Version},
};
use crate::{
    config::{Limits, Timing},
    core::{Core, Event, Fsynced, Reply, RequestId, Role, Setup, Write},
    digest::{self, StateDigest},
    error::Fatal,
    machine::StateMachine as _,
    replica::{Capture, Output, Replica},
    store::{self, Checkpoint, LogStore as _, RedbLog, RedbState, StateStore as _, Watched},
};

/// A bug planted to see whether the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    /// fsync returns at once and does nothing.
    LyingDisk,
    /// Held messages leave before the disk has what they promise.
    SendBeforeSync,
    /// A write is acknowledged once the leader has it.
    AckEarly,
    /// Term and vote are not stored.
    ForgetVote,
    /// A member of an older version skips the commands it does not know.
    SkipUnknown,
    /// A member gets some commands wrong.
    Diverge,
    /// So it does, and nobody compares digests.
    DivergeUnwatched,
}

/// What happened in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) steps: u64,
    pub(crate) writes_acked: u64,
    pub(crate) reads_answered: u64,
    pub(crate) elections: u64,
    pub(crate) crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) snapshots_installed: u64,
    pub(crate) membership_changes: u64,
    pub(crate) stopped_at_unknown: u64,
    pub(crate) digests_told: u64,
}

impl Stats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.writes_acked += other.writes_acked;
        self.reads_answered += other.reads_answered;
        self.elections += other.elections;
        self.crashes += other.crashes;
        self.partitions += other.partitions;
        self.snapshots_installed += other.snapshots_installed;
        self.membership_changes += other.membership_changes;
        self.digests_told += other.digests_told;
        self.stopped_at_unknown += other.stopped_at_unknown;
    }
}

pub(crate) struct World {
    seed: u64,
    rng: Rng,
    plant: Plant,
    now: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    nodes: Vec<Node>,
    network: Network,
    checker: Checker,
    stats: Stats,
    faults: bool,
    clients: bool,
    membership: bool,
    next_op: u64,
}

struct Node {
    id: u64,
    /// Counts starts: what was scheduled for an earlier one is void.
    boot: u64,
    log_disk: SimDisk,
    state_disk: SimDisk,
    live: Option<Live>,
    paused_until: u64,
    stalled_until: u64,
    version: Version,
}

/// A running process.
struct Live {
    replica: Replica<History>,
    log: RedbLog,
    state: RedbState,
    queued: Vec<Write>,
    writing: Option<Vec<Write>>,
    next_request: u64,
    ops: BTreeMap<RequestId, Op>,
    /// Reads that have their index and wait until it is applied, with what they must see.
    reads: Vec<(u64, u64)>,
    checked: usize,
}

#[derive(Clone, Copy)]
enum Op {
    Write { id: u64 },
    Read { seen: u64 },
    Change,
}

#[derive(Default)]
struct Network {
    blocked: BTreeSet<(u64, u64)>,
    drop_percent: u64,
    double_percent: u64,
    slow_percent: u64,
}

enum Happening {
    Tick { node: u64, boot: u64 },
    Deliver(Message),
    Digests { from: u64, to: u64, digests: Vec<StateDigest> },
    DiskDone { node: u64, boot: u64 },
    Encoded { node: u64, boot: u64, capture: Capture },
    CheckpointDone { node: u64, boot: u64, checkpoint: Checkpoint },
    SnapshotReport { node: u64, boot: u64, peer: u64, delivered: bool },
    Client,
    Membership,
    Fault,
    Restart { node: u64 },
}

impl World {
    pub(crate) fn new(seed: u64, plant: Plant) -> Result<Self, String> {
        let mut rng = Rng::new(seed ^ 0x51b1_5eed);
        // One run in four changes its membership: three founders, two nodes that may join. The others are groups of
        // three or five.
        let membership = seed.is_multiple_of(4);
        let (founders, total) = match (membership, rng.chance(50)) {
            (true, _) => (3, 5),
            (false, true) => (3, 3),
            (false, false) => (5, 5),
        };
        let mut world = Self {
            seed,
            rng,
            plant,
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: Vec::new(),
            network: Network::default(),
            checker: Checker::default(),
            stats: Stats::default(),
            faults: true,
            clients: true,
            membership,
            next_op: 0,
        };
        // One run in five upgrades its members one by one: one of them is still old when the first new command comes.
        let planted = matches!(plant, Plant::SkipUnknown | Plant::Diverge | Plant::DivergeUnwatched);
        let old = (seed % 5 == 2 || planted).then(|| world.rng.range(1..founders + 1));
        for id in 1..=total {
            let version = match plant {
                _ if old != Some(id) => Version::New,
                Plant::SkipUnknown => Version::OldAndSkips,
                Plant::Diverge | Plant::DivergeUnwatched => Version::Faulty,
                _ => Version::Old,
            };
            let node = Node {
                id,
                boot: 0,
                log_disk: SimDisk::default(),
                state_disk: SimDisk::default(),
                live: None,
                paused_until: 0,
                stalled_until: 0,
                version,
            };
            let genesis = (id <= founders).then(|| ConfState::from((1..=founders, [])));
            initialise(&node, genesis)?;
            if plant == Plant::LyingDisk {
                node.log_disk.lie();
            }
            world.nodes.push(node);
            world.start(id)?;
        }
        world.schedule(1_000, Happening::Client);
        world.schedule(200_000, Happening::Fault);
        world.schedule(300_000, Happening::Membership);
        Ok(world)
    }

    pub(crate) fn run_with_faults(&mut self, micros: u64) -> Result<(), String> {
        self.run_until(self.now + micros)
    }

    /// Ends all faults: links whole, disks fast, everybody up.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.faults = false;
        self.membership = false;
        self.network = Network::default();
        for id in self.ids() {
            let node = self.node(id);
            (node.paused_until, node.stalled_until) = (0, 0);
            let upgrade = node.version == Version::Old;
            if upgrade {
                node.version = Version::New;
                self.crash(id);
            }
            let node = self.node(id);
            if node.live.is_none() {
                self.start(id)?;
            }
        }
        Ok(())
    }

    /// Runs until all members hold everything that was acknowledged, with clients going on for a while.
    pub(crate) fn converge(mut self, micros: u64) -> Result<Stats, String> {
        let acked = self.stats.writes_acked;
        let deadline = self.now + micros;
        loop {
            self.run_until(self.now + 50_000)?;
            // Clients go on until a write of the healed cluster is in; then they let it settle.
            self.clients &= self.stats.writes_acked == acked;
            if !self.clients && self.agreed()? {
                return Ok(self.stats);
            }
            if self.now > deadline {
                let live = self.nodes.iter().filter_map(|node| node.live.as_ref());
                let status: Vec<_> = live.map(|live| live.replica.status()).collect();
                return Err(format!("no convergence {micros} us after all faults ended: {status:?}"));
            }
        }
    }

    fn agreed(&mut self) -> Result<bool, String> {
        let statuses: Vec<_> =
            self.nodes.iter().filter_map(|node| Some(node.live.as_ref()?.replica.status())).collect();
        let Some(leader) =
            statuses.iter().filter(|status| status.role == Role::Leader).max_by_key(|status| status.term)
        else {
            return Ok(false);
        };
        let members: Vec<u64> = leader.voters.iter().chain(&leader.learners).copied().collect();
        let behind = statuses.iter().filter(|status| members.contains(&status.node_id));
        if leader.commit != leader.last_index || behind.into_iter().any(|status| status.applied_index != leader.commit)
        {
            return Ok(false);
        }
        for node in self.nodes.iter().filter(|node| members.contains(&node.id)) {
            if let Some(live) = &node.live {
                self.checker.complete(node.id, &live.replica.machine().read().unwrap())?;
            }
        }
        Ok(true)
    }

    fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some(next) = self.queue.first_entry().filter(|next| next.key().0 <= end) {
            let ((at, _), happening) = next.remove_entry();
            self.now = at;
            self.stats.steps += 1;
            self.happen(happening).map_err(|why| format!("at {at} us: {why}"))?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        let now = self.now;
        match happening {
            Happening::Client => {
                if self.clients {
                    let pause = self.rng.range(3_000..20_000);
                    self.schedule(pause, Happening::Client);
                    self.client()?;
                }
                Ok(())
            }
            Happening::Membership => {
                if self.membership {
                    let pause = self.rng.range(200_000..700_000);
                    self.schedule(pause, Happening::Membership);
                    self.change_membership()?;
                }
                Ok(())
            }
            Happening::Fault => {
                if self.faults {
                    let pause = self.rng.range(40_000..250_000);
                    self.schedule(pause, Happening::Fault);
                    self.fault()?;
                }
                Ok(())
            }
            Happening::Restart { node } => match self.node(node).live {
                Some(_) => Ok(()),
                None => self.start(node),
            },
            Happening::Deliver(message) => {
                let node = self.node(message.to);
                if node.paused_until > now {
                    let wait = node.paused_until - now;
                    self.schedule(wait, Happening::Deliver(message));
                    return Ok(());
                }
                self.event(message.to, Event::Message(message))
            }
            Happening::Tick { node: id, boot } => {
                let node = self.node(id);
                if node.boot != boot {
                    return Ok(());
                }
                let wait = node.paused_until.saturating_sub(now).max(TICK_MICROS);
                let paused = node.paused_until > now;
                self.schedule(wait, Happening::Tick { node: id, boot });
                if paused { Ok(()) } else { self.event(id, Event::Tick) }
            }
            Happening::DiskDone { node, boot } => self.disk_done(node, boot),
            Happening::Encoded { node: id, boot, capture } => {
                if self.node(id).boot != boot {
                    return Ok(());
                }
                let checkpoint = capture.encode();
                let latency = self.disk_latency(id);
                self.schedule(latency, Happening::CheckpointDone { node: id, boot, checkpoint: checkpoint.clone() });
                self.with(id, |replica, out| replica.encoded(checkpoint, out))
            }
            Happening::CheckpointDone { node: id, boot, checkpoint } => {
                let node = self.node(id);
                let Some(live) = node.live.as_mut().filter(|_| node.boot == boot) else { return Ok(()) };
                live.state.save(&checkpoint).map_err(|error| error.to_string())?;
                self.with(id, |replica, out| replica.checkpoint_saved(checkpoint.position.log_index, out))
            }
            Happening::Digests { from, to, digests } => {
                self.stats.digests_told += 1;
                self.with(to, |replica, _| replica.hear(from, &digests))
            }
            Happening::SnapshotReport { node, boot, peer, delivered } => {
                if self.node(node).boot != boot {
                    return Ok(());
                }
                self.event(node, Event::SnapshotSent { peer, delivered })
            }
        }
    }

    fn event(&mut self, id: u64, event: Event) -> Result<(), String> {
        self.with(id, |replica, out| replica.on(event, out))
    }

    /// Lets a node take something in, and performs what it then wants done.
    fn with(
        &mut self,
        id: u64,
        take_in: impl FnOnce(&mut Replica<History>, &mut Vec<Output>) -> Result<(), Fatal>,
    ) -> Result<(), String> {
        let mut out = Vec::new();
        let Some(live) = self.node(id).live.as_mut() else { return Ok(()) };
        match take_in(&mut live.replica, &mut out) {
            Ok(()) => self.settle(id, out),
            Err(fatal) => self.stopped(id, &fatal),
        }
    }

    /// A node stopped by itself. An old one may, in front of what it does not know; its operator starts it again, and
    /// may upgrade it first.
    fn stopped(&mut self, id: u64, fatal: &Fatal) -> Result<(), String> {
        let node = self.node(id);
        let unknown = matches!(fatal, Fatal::CannotApply { .. } | Fatal::Restore { .. });
        let Some(live) = node.live.as_ref().filter(|_| unknown && node.version == Version::Old) else {
            return Err(format!("node {id}: {fatal}"));
        };
        if let Fatal::CannotApply { log_index, .. } = fatal
            && live.replica.applied_index() >= *log_index
        {
            return Err(format!("node {id} counts {log_index} as applied and says that it cannot apply it"));
        }
        self.crash(id);
        self.stats.stopped_at_unknown += 1;
        if self.rng.chance(50) {
            self.node(id).version = Version::New;
        }
        let back = self.rng.range(10_000..300_000);
        self.schedule(back, Happening::Restart { node: id });
        Ok(())
    }

    /// Performs what a node wants done after an event, and checks all invariants.
    fn settle(&mut self, id: u64, mut out: Vec<Output>) -> Result<(), String> {
        let Some(live) = self.node(id).live.as_mut() else { return Ok(()) };
        if let Err(fatal) = live.replica.poll(&mut out) {
            return self.stopped(id, &fatal);
        }
        for output in out {
            match output {
                Output::Send(messages) => self.send(id, messages),
                Output::Write(write) => self.write(id, write)?,
                Output::Checkpoint(capture) => {
                    let boot = self.node(id).boot;
                    let delay = self.rng.range(50..20_000);
                    self.schedule(delay, Happening::Encoded { node: id, boot, capture });
                }
                Output::Announce(digests) => self.tell(id, &digests),
                Output::Reply(request, reply) => self.reply(id, request, reply)?,
            }
        }
        self.check(id)
    }

    fn check(&mut self, id: u64) -> Result<(), String> {
        let Self { nodes, checker, stats, .. } = self;
        let Some(live) = nodes.iter_mut().find(|node| node.id == id).and_then(|node| node.live.as_mut()) else {
            return Ok(());
        };
        let status = live.replica.status();
        {
            let machine = Arc::clone(live.replica.machine());
            let history = machine.read().unwrap();
            checker.applied(id, &history, live.checked)?;
            live.checked = history.applied.len();
        }
        let reads = mem::take(&mut live.reads);
        let (ready, waiting): (Vec<_>, _) = reads.into_iter().partition(|(index, _)| *index <= status.applied_index);
        live.reads = waiting;
        for (log_index, seen) in ready {
            checker.read(id, log_index, seen)?;
            stats.reads_answered += 1;
        }
        if status.role == Role::Leader && checker.leader(status.term, id)? {
            stats.elections += 1;
            let core = live.replica.core_mut();
            checker.leader_log(id, status.term, core.first_index(), |log_index| {
                core.entry(log_index).map(|entry| entry.data.to_vec())
            })?;
        }
        Ok(())
    }

    fn write(&mut self, id: u64, mut write: Write) -> Result<(), String> {
        if self.plant == Plant::SendBeforeSync {
            let early = mem::take(&mut write.held).release(&Fsynced::after_fsync());
            self.send(id, early);
        }
        let Self { nodes, checker, stats, .. } = self;
        let live = nodes.iter_mut().find(|node| node.id == id).and_then(|node| node.live.as_mut());
        let live = live.ok_or("a dead node writes")?;
        if let Some(first) = write.entries.first() {
            let before = live.replica.core_mut().term_of(first.index - 1);
            checker.appended(id, before, &write.entries)?;
        }
        if let Some(snapshot) = &write.snapshot {
            stats.snapshots_installed += 1;
            let machine = Arc::clone(live.replica.machine());
            let history = machine.read().unwrap();
            checker.whole(id, &history, snapshot.get_metadata().index)?;
            live.checked = history.applied.len();
        }
        live.queued.push(write);
        if live.writing.is_none() {
            self.begin_writing(id);
        }
        Ok(())
    }

    /// Group commit: everything queued goes to the disk at once.
    fn begin_writing(&mut self, id: u64) {
        let latency = self.disk_latency(id);
        let node = self.node(id);
        let boot = node.boot;
        let Some(live) = node.live.as_mut().filter(|live| !live.queued.is_empty()) else { return };
        live.writing = Some(mem::take(&mut live.queued));
        self.schedule(latency, Happening::DiskDone { node: id, boot });
    }

    fn disk_done(&mut self, id: u64, boot: u64) -> Result<(), String> {
        let plant = self.plant;
        let node = self.node(id);
        let Some(live) = node.live.as_mut().filter(|_| node.boot == boot) else { return Ok(()) };
        let mut writes = live.writing.take().ok_or("the disk is done with nothing")?;
        if plant == Plant::ForgetVote {
            writes.iter_mut().for_each(|write| write.hard_state = None);
        }
        let persisted = store::persist(&mut live.log, &live.state, writes).map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        for persisted in persisted {
            if let Err(fatal) = live.replica.on(Event::Persisted(persisted), &mut out) {
                return self.stopped(id, &fatal);
            }
        }
        self.begin_writing(id);
        self.settle(id, out)
    }

    fn disk_latency(&mut self, id: u64) -> u64 {
        let stall = self.node(id).stalled_until.saturating_sub(self.now);
        stall + self.rng.range(50..3_000)
    }

    fn send(&mut self, from: u64, messages: Vec<Message>) {
        for message in messages {
            let lost = self.network.blocked.contains(&(from, message.to)) || self.rng.chance(self.network.drop_percent);
            let slow = self.rng.chance(self.network.slow_percent);
            let delay = if slow { self.rng.range(5_000..400_000) } else { self.rng.range(100..2_000) };
            if message.get_msg_type() == MessageType::MsgSnapshot && !self.rng.chance(10) {
                let report = Happening::SnapshotReport {
                    node: from,
                    boot: self.node(from).boot,
                    peer: message.to,
                    delivered: !lost,
                };
                self.schedule(delay + 1_000, report);
            }
            if lost {
                continue;
            }
            if self.rng.chance(self.network.double_percent) {
                let again = self.rng.range(100..500_000);
                self.schedule(again, Happening::Deliver(message.clone()));
            }
            self.schedule(delay, Happening::Deliver(message));
        }
    }

    fn tell(&mut self, from: u64, digests: &[StateDigest]) {
        for to in self.ids().into_iter().filter(|to| *to != from) {
            let lost = self.network.blocked.contains(&(from, to)) || self.rng.chance(self.network.drop_percent);
            if !lost && self.plant != Plant::DivergeUnwatched {
                let delay = self.rng.range(100..100_000);
                self.schedule(delay, Happening::Digests { from, to, digests: digests.to_vec() });
            }
        }
    }

    fn reply(&mut self, id: u64, request: RequestId, reply: Reply) -> Result<(), String> {
        let Some(live) = self.node(id).live.as_mut() else { return Ok(()) };
        match (live.ops.remove(&request), reply) {
            (Some(Op::Write { id }), Reply::Proposed(Ok((log_index, outcome)))) => {
                if outcome != id.to_be_bytes() {
                    return Err(format!("the outcome of write {id:x} is somebody else's"));
                }
                let term = live.replica.status().term;
                self.stats.writes_acked += 1;
                self.checker.acked(log_index, id, term)
            }
            (Some(Op::Read { seen }), Reply::Read(Ok(log_index))) => {
                live.reads.push((log_index, seen));
                Ok(())
            }
            (Some(Op::Change), Reply::Changed(result)) => {
                self.stats.membership_changes += u64::from(result.is_ok());
                Ok(())
            }
            (Some(_), Reply::Proposed(Err(_)) | Reply::Read(Err(_))) | (None, _) => Ok(()),
            (Some(_), reply) => Err(format!("a reply of another kind: {reply:?}")),
        }
    }

    fn crash(&mut self, id: u64) {
        let mid_write = self.rng.chance(50);
        let operations = self.rng.range(0..40);
        let mut rng = Rng::new(self.rng.next());
        let node = self.node(id);
        let Some(mut live) = node.live.take() else { return };
        if let Some(writes) = live.writing.take().filter(|_| mid_write) {
            // The power fails somewhere inside the transaction.
            node.log_disk.cut_power_after(operations);
            node.state_disk.cut_power_after(operations);
            let _ = store::persist(&mut live.log, &live.state, writes);
        }
        node.log_disk.crash(&mut rng);
        node.state_disk.crash(&mut rng);
        node.boot += 1;
        node.paused_until = 0;
        self.stats.crashes += 1;
    }

    fn start(&mut self, id: u64) -> Result<(), String> {
        let seed = self.seed;
        let node = self.node(id);
        node.boot += 1;
        let boot = node.boot;
        let (mut log, state) = open(node)?;
        let (recovered, checkpoint) =
            store::recover(&mut log, &state).map_err(|error| format!("node {id}: {error}"))?;
        let applied = recovered.applied;
        let mut machine = History { version: node.version, ..History::default() };
        if applied.log_index > 0 {
            machine.restore(digest::open(&checkpoint.data)?.1)?;
        }
        let checked = machine.applied.len();
        let (limits, timing) = (limits(), TIMING);
        let setup = Setup {
            node_id: id,
            timing,
            limits: limits.clone(),
            seed,
            boot_nonce: boot,
            recovered,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        };
        let core = Core::new(setup).map_err(|error| error.to_string())?;
        let replica = Replica::new(core, Arc::new(RwLock::new(machine.clone())), &checkpoint, &limits, timing);
        node.live = Some(Live {
            replica,
            log,
            state,
            queued: Vec::new(),
            writing: None,
            next_request: 0,
            ops: BTreeMap::new(),
            reads: Vec::new(),
            checked,
        });
        self.checker.whole(id, &machine, applied.log_index)?;
        let first = self.rng.range(0..TICK_MICROS);
        self.schedule(first, Happening::Tick { node: id, boot });
        self.settle(id, Vec::new())
    }

    fn schedule(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), happening);
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    fn pairs(&self) -> Vec<(u64, u64)> {
        let ids = self.ids();
        ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to))).filter(|(from, to)| from != to).collect()
    }
}

fn open(node: &Node) -> Result<(RedbLog, RedbState), String> {
    let log = RedbLog::open("log".into(), watched(node.log_disk.open())).map_err(|error| error.to_string())?;
    let state = RedbState::open("state".into(), watched(node.state_disk.open())).map_err(|error| error.to_string())?;
    Ok((log, state))
}

fn watched(file: SimFile) -> Watched<SimFile> {
    Watched::new(file, "simulated".as_ref(), Arc::default())
}

/// What a first start leaves on disk.
fn initialise(node: &Node, genesis: Option<ConfState>) -> Result<(), String> {
    let (mut log, state) = open(node)?;
    let checkpoint = Checkpoint::genesis(genesis.map(|conf_state| (conf_state, History::default().snapshot()())));
    let position = checkpoint.position;
    let hard_state = HardState { term: position.term, vote: 0, commit: position.log_index };
    log.reset(position, &hard_state).map_err(|error| error.to_string())?;
    state.save(&checkpoint).map_err(|error| error.to_string())
}

/// Small bounds, so that every one of them is reached.
fn limits() -> Limits {
    Limits {
        message_bytes_max: 256,
        inflight_messages_max: 8,
        uncommitted_bytes_max: 4096,
        committed_bytes_max: 1024,
        reads_max: 100,
        log_tail_entries: 30,
        checkpoint_entries: 20,
        checkpoint_interval: Duration::from_millis(500),
        snapshot_report_timeout: Duration::from_millis(800),
        ..Limits::default()
    }
}

const TICK_MICROS: u64 = 10_000;
const TIMING: Timing = Timing { tick: Duration::from_micros(TICK_MICROS), heartbeat_ticks: 3, election_ticks: 15 };
