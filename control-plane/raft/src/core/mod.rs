//! One Raft node without I/O: [`Event`]s in, [`Action`]s out.
//!
//! [`Core`] drives the `raft` crate's `RawNode`. It never reads a clock, a random source, a disk or a socket: ticks
//! arrive as events, randomness is a seed, writes leave as [`Write`]s and come back as [`Persisted`]. The same core
//! runs under the threads of `driver/` and under the seeded simulation of `sim/`.
//!
//! What it adds to the crate, and why, is said where it happens: [`write`] holds messages until the disk has what
//! they promise, [`reads`] makes read contexts that no leader can see twice, [`wire`] keeps local messages off the
//! network, [`membership`] changes who belongs.

mod log;
mod membership;
mod proposals;
mod reads;
#[cfg(test)]
mod tests;
mod types;
mod wire;
mod write;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

use archipelago_base::random::mix;
use bytes::Bytes;
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use raft_proto::{
    ConfChangeI,
    eraftpb::{ConfChange, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType},
};

pub(crate) use log::LogCache;
pub use membership::MembershipChange;
pub(crate) use types::{Action, Command, Event, Position, Recovered, Reply, RequestId, Setup};
pub use types::{Role, Status};
pub(crate) use write::{Fsynced, HeldUntilDurable, Persisted, Write};

use self::{
    proposals::{Kind, Proposals},
    reads::Reads,
};
use crate::{
    config::{Limits, Timing},
    error::{Fatal, MembershipError, ProposeError, ReadError},
};

/// Raft, between the events of a driver and the actions it must perform.
pub(crate) struct Core {
    node: RawNode<LogCache>,
    limits: Limits,
    timing: Timing,
    seed: u64,
    /// Campaigns begun plus changes of role or term: what the next election timeout is derived from.
    elections: u64,
    ticks: u64,
    /// Term and role after the last `poll`.
    standing: (u64, StateRole),
    proposals: Proposals,
    reads: Reads,
    /// Memberships by the index that brought them, oldest first; the first is the one in force at `applied`.
    conf_states: VecDeque<(u64, ConfState)>,
    /// Peers to whom a snapshot is on its way, and the tick at which silence means failure.
    snapshots: BTreeMap<u64, u64>,
    /// A snapshot was asked for and has not come yet.
    snapshot_asked: bool,
    /// The tick at which each other member was last heard.
    heard: BTreeMap<u64, u64>,
    /// A change of the voters that waits for their answers.
    waiting: Option<membership::Waiting>,
    applied: Position,
    writes: WriteOrder,
}

impl Core {
    /// A node that continues from what its disk holds.
    ///
    /// `seed` drives election timeouts; `boot_nonce` must differ between any two starts of the node.
    pub(crate) fn new(setup: Setup) -> Result<Self, raft::Error> {
        let Setup { node_id, timing, limits, seed, boot_nonce, recovered, logger } = setup;
        let config = raft::Config {
            id: node_id,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            applied: recovered.applied.log_index,
            max_size_per_msg: limits.message_bytes_max,
            max_inflight_msgs: limits.inflight_messages_max,
            // Without these two, a node that was cut off returns with a higher term and deposes a healthy leader.
            check_quorum: true,
            pre_vote: true,
            // LeaseBased trusts that all clocks tick alike, which a paused process disproves.
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            batch_append: true,
            max_uncommitted_size: limits.uncommitted_bytes_max,
            max_committed_size_per_ready: limits.committed_bytes_max,
            ..raft::Config::default()
        };
        let (term, vote) = (recovered.hard_state.term, recovered.hard_state.vote);
        let conf_states = VecDeque::from([(recovered.applied.log_index, recovered.conf_state.clone())]);
        let applied = recovered.applied;
        let node = RawNode::new(&config, LogCache::new(recovered), &logger)?;
        let mut core = Self {
            standing: (node.raft.term, node.raft.state),
            node,
            timing,
            seed,
            elections: 0,
            ticks: 0,
            proposals: Proposals::default(),
            reads: Reads::new(node_id, boot_nonce, limits.reads_max),
            limits,
            conf_states,
            snapshots: BTreeMap::new(),
            snapshot_asked: false,
            heard: BTreeMap::new(),
            waiting: None,
            applied,
            writes: WriteOrder { term_vote: (term, vote), ..WriteOrder::default() },
        };
        core.set_election_timeout();
        Ok(core)
    }

    /// Takes in one event. Actions it causes appear here or at the next [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`Fatal`]: the node must stop, and nothing it still holds may leave it.
    pub(crate) fn on(&mut self, event: Event, out: &mut Vec<Action>) -> Result<(), Fatal> {
        match event {
            Event::Tick => self.tick(out),
            Event::Message(message) => self.message(message)?,
            Event::Propose { request, command } => self.propose(request, command, out),
            Event::ReadIndex { request } => self.read_index(request, out),
            Event::Change { request, change } => self.change(request, change, out),
            Event::DiskFull => self.lose_proposals(None, out),
            Event::Transfer { to } => self.transfer(to),
            Event::Persisted(persisted) => self.persisted(persisted, out),
            Event::Applied(position) => {
                self.applied = position;
                self.node.advance_apply_to(position.log_index);
                while self.conf_states.get(1).is_some_and(|(from, _)| *from <= position.log_index) {
                    self.conf_states.pop_front();
                }
            }
            Event::SnapshotTaken { position, conf_state, data } => {
                self.snapshot_asked = false;
                self.node.mut_store().offer_snapshot(position, conf_state, data);
            }
            Event::CheckpointDurable { log_index } => self.compact(log_index, out),
            Event::Unreachable { peer } => self.node.report_unreachable(peer),
            Event::SnapshotSent { peer, delivered } => self.snapshot_sent(peer, delivered),
        }
        self.set_election_timeout();
        Ok(())
    }

    /// Turns everything that the events since the last call made ready into actions.
    ///
    /// # Errors
    /// As [`on`](Self::on).
    pub(crate) fn poll(&mut self, out: &mut Vec<Action>) -> Result<(), Fatal> {
        self.leave_joint();
        self.start_read_round();
        while self.node.has_ready() {
            self.take_ready(out)?;
        }
        self.note_standing(out);
        if self.node.store().snapshot_wanted() && !mem::replace(&mut self.snapshot_asked, true) {
            out.push(Action::TakeSnapshot);
        }
        Ok(())
    }

    /// Role, term, leader and progress; whether members diverge is not the core's to know.
    pub(crate) fn status(&self) -> Status {
        let raft = &self.node.raft;
        let conf = self.conf_state();
        let learner = conf.learners.contains(&raft.id);
        Status {
            node_id: raft.id,
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
                StateRole::Follower if learner => Role::Learner,
                StateRole::Follower => Role::Follower,
            },
            term: raft.term,
            leader: (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id),
            last_index: raft.raft_log.last_index(),
            commit: raft.raft_log.committed,
            applied_index: self.applied.log_index,
            voters: conf.voters,
            learners: conf.learners,
            checkpoint: None,
            divergence: None,
            disk_full: None,
        }
    }

    /// The membership in force at an index between the applied one and the newest handed out.
    pub(crate) fn conf_state_at(&self, log_index: u64) -> ConfState {
        let known = self.conf_states.iter().rev().find(|(from, _)| *from <= log_index);
        known.or(self.conf_states.front()).map(|(_, conf_state)| conf_state.clone()).unwrap_or_default()
    }

    /// Whether a write is on its way to the disk.
    pub(crate) fn writes_in_flight(&self) -> bool {
        self.writes.in_flight()
    }

    fn tick(&mut self, out: &mut Vec<Action>) {
        self.ticks += 1;
        // A sole voter elects itself on the spot, and the raft crate then asserts that all it has is durable.
        // Anybody else's vote request waits behind those writes anyway.
        let too_early = self.node.raft.state != StateRole::Leader && self.writes.in_flight() && self.sole_voter();
        if !too_early {
            let state = self.node.raft.state;
            self.node.tick();
            if state != StateRole::Leader && self.node.raft.election_elapsed == 0 {
                self.elections += 1;
            }
        }
        let late: Vec<u64> =
            self.snapshots.iter().filter(|(_, at)| **at <= self.ticks).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.snapshot_sent(peer, false);
        }
        for request in self.reads.expired(self.ticks) {
            out.push(Action::Reply(request, Reply::Read(Err(ReadError::Timeout))));
        }
        self.try_change(out);
    }

    fn message(&mut self, message: Message) -> Result<(), Fatal> {
        let raft = &self.node.raft;
        if let Err(reason) = wire::admit(&message, raft.id) {
            tracing::debug!(from = message.from, reason, "message refused");
            return Ok(());
        }
        if message.term >= raft.term {
            wire::check_against_log(&message, &raft.raft_log, raft.id)?;
        }
        if raft.prs().get(message.from).is_some() {
            self.heard.insert(message.from, self.ticks);
        }
        // Only the leader hands its office over; and see `tick` for the sole voter.
        let raft = &self.node.raft;
        if message.get_msg_type() == MessageType::MsgTimeoutNow
            && (message.from != raft.leader_id || (self.writes.in_flight() && self.sole_voter()))
        {
            return Ok(());
        }
        // Errors are: a peer that is not a member (any more), a dropped proposal. Both are harmless here.
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "message ignored");
        }
        Ok(())
    }

    fn propose(&mut self, request: RequestId, command: Bytes, out: &mut Vec<Action>) {
        if let Some(hint) = self.cannot_lead() {
            out.push(Action::Reply(request, Reply::Proposed(Err(ProposeError::NotLeader { hint }))));
            return;
        }
        let entry = Entry { data: command, context: Bytes::from_static(COMMAND_MARK), ..Entry::default() };
        let message = Message {
            msg_type: MessageType::MsgPropose.into(),
            from: self.node.raft.id,
            entries: vec![entry],
            ..Message::default()
        };
        match self.node.raft.step(message) {
            Ok(()) => {
                let (log_index, term) = (self.node.raft.raft_log.last_index(), self.node.raft.term);
                self.proposals.insert(Position { log_index, term }, Kind::Command, request);
            }
            Err(error) => {
                tracing::debug!(%error, "proposal dropped");
                out.push(Action::Reply(request, Reply::Proposed(Err(ProposeError::Overloaded))));
            }
        }
    }

    fn read_index(&mut self, request: RequestId, out: &mut Vec<Action>) {
        let deadline = self.ticks + READ_TIMEOUT_ELECTIONS * self.timing.election_ticks as u64;
        if let Some(hint) = self.cannot_lead() {
            out.push(Action::Reply(request, Reply::Read(Err(ReadError::NotLeader { hint }))));
        } else if !self.reads.push(request, deadline) {
            out.push(Action::Reply(request, Reply::Read(Err(ReadError::Overloaded))));
        }
    }

    /// Asks for one confirmation of leadership on behalf of all reads that wait.
    fn start_read_round(&mut self) {
        let raft = &self.node.raft;
        // The crate drops a read silently while the leader has committed nothing in its term, because entries of
        // earlier leaders may be committed without its knowledge.
        if raft.state != StateRole::Leader || !raft.commit_to_current_term() {
            return;
        }
        let term = raft.term;
        if let Some(context) = self.reads.begin_round(term) {
            self.node.read_index(context);
        }
    }

    fn transfer(&mut self, to: Option<u64>) {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return;
        }
        let voters = self.conf_state().voters;
        let best =
            raft.prs().iter().filter(|(id, progress)| **id != raft.id && progress.recent_active && voters.contains(id));
        // The lower id wins a tie, so that the choice is the same in every run.
        let best = best.max_by_key(|(id, progress)| (progress.matched, std::cmp::Reverse(**id))).map(|(id, _)| *id);
        if let Some(to) = to.or(best) {
            tracing::info!(node_id = raft.id, to, "handing leadership over");
            self.node.transfer_leader(to);
        }
    }

    fn persisted(&mut self, persisted: Persisted, out: &mut Vec<Action>) {
        let Persisted { number, snapshot, messages } = persisted;
        self.writes.durable = self.writes.durable.max(number);
        // Readies without a write get no report of their own; they are done once nothing before them is open.
        let done = if self.writes.in_flight() { number } else { self.writes.newest_ready };
        self.node.on_persist_ready(done);
        if let Some(position) = snapshot
            && position.log_index >= self.node.raft.raft_log.applied
        {
            self.node.advance_apply_to(position.log_index);
        }
        self.send(messages, out);
    }

    fn snapshot_sent(&mut self, peer: u64, delivered: bool) {
        // Without the report the crate would keep the peer in its snapshot state, and silent, for ever.
        if self.snapshots.remove(&peer).is_some() {
            let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
            self.node.report_snapshot(peer, status);
        }
    }

    fn compact(&mut self, checkpoint_index: u64, out: &mut Vec<Action>) {
        let bound = checkpoint_index.min(self.applied.log_index);
        let Limits { log_tail_entries, log_tail_bytes, .. } = self.limits;
        if let Some(truncated) = self.node.mut_store().compact(bound, log_tail_entries, log_tail_bytes) {
            let number = self.writes.newest_ready;
            self.writes.issued = number;
            out.push(Action::Write(Write { number, truncated: Some(truncated), ..Write::default() }));
        }
    }

    /// Turns one `Ready` of the raft crate into actions, in the order its contract asks for.
    fn take_ready(&mut self, out: &mut Vec<Action>) -> Result<(), Fatal> {
        let mut ready = self.node.ready();
        let number = ready.number();
        let must_sync = ready.must_sync();
        let hard_state = ready.hs().cloned();
        let mut at_once = ready.take_messages();
        let mut held = ready.take_persisted_messages();
        let reads = ready.take_read_states();
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let snapshot = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty()).cloned();

        // Entries must be readable through the storage before the crate may forget its own copy.
        if let Some(snapshot) = &snapshot {
            self.node.mut_store().install(snapshot);
            let metadata = snapshot.get_metadata();
            self.conf_states = VecDeque::from([(metadata.index, metadata.get_conf_state().clone())]);
            self.applied = Position { log_index: metadata.index, term: metadata.term };
            out.push(Action::Restore(snapshot.clone()));
        }
        self.node.mut_store().append(&entries).map_err(Fatal::Internal)?;
        self.node.advance_append_async(ready);

        self.writes.newest_ready = number;
        if let Some(hard_state) = hard_state {
            self.writes.note_hard_state(hard_state, number);
        }
        // The crate lets a leader speak before its own disk did, counting on the votes that made it leader having
        // waited for the disk. A sole voter (with learners) has no such votes: were its new term lost in a crash,
        // it would be leader of the same term again, with other entries.
        if self.writes.term_in_flight() || (must_sync && self.writes.term_changed_in == number) {
            held.append(&mut at_once);
        } else {
            // The answer to a heartbeat promises nothing but the term. So a leader whose followers' disks are slow, or
            // full, goes on leading.
            at_once.extend(held.extract_if(.., |message| message.get_msg_type() == MessageType::MsgHeartbeatResponse));
        }
        if must_sync || (self.writes.in_flight() && !held.is_empty()) {
            self.note_snapshots(&held);
            self.writes.issued = number;
            let hard_state = self.writes.hard_state.take();
            let held = HeldUntilDurable::new(held);
            out.push(Action::Write(Write { number, entries, hard_state, snapshot, truncated: None, held }));
        } else {
            at_once.append(&mut held);
            if !self.writes.in_flight() {
                self.node.on_persist_ready(number);
            }
        }
        self.send(at_once, out);

        for state in reads {
            for request in self.reads.confirmed(&state.request_ctx) {
                out.push(Action::Reply(request, Reply::Read(Ok(state.index))));
            }
        }
        self.commit(committed, out);
        Ok(())
    }

    /// Hands committed entries out; membership changes among them take effect here.
    fn commit(&mut self, committed: Vec<Entry>, out: &mut Vec<Action>) {
        let mut last = None;
        let mut commands = Vec::new();
        let mut replies = Vec::new();
        for entry in committed {
            let position = Position::of(&entry);
            let waiting = self.proposals.remove(position);
            last = Some(position);
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.get_context() == COMMAND_MARK => {
                    let request = waiting.map(|(_, request)| request);
                    commands.push(Command { log_index: position.log_index, data: entry.data, request });
                }
                EntryType::EntryNormal => {
                    // A leader's first entry, or a membership change that the crate emptied because it refused it.
                    if let Some((Kind::Change, request)) = waiting {
                        let refused = MembershipError::Refused("the change does not fit the membership".into());
                        replies.push(Action::Reply(request, Reply::Changed(Err(refused))));
                    }
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    let result = self.apply_change(&entry);
                    if let Some((_, request)) = waiting {
                        replies.push(Action::Reply(request, Reply::Changed(result)));
                    }
                }
            }
            if position.log_index.is_multiple_of(self.limits.checkpoint_entries) {
                last = None;
                out.push(Action::Apply { commands: mem::take(&mut commands), last: position });
            }
        }
        if let Some(last) = last {
            out.push(Action::Apply { commands, last });
        }
        out.append(&mut replies);
    }

    fn apply_change(&mut self, entry: &Entry) -> Result<ConfState, MembershipError> {
        let malformed = |error: prost::DecodeError| MembershipError::Refused(format!("malformed change: {error}"));
        let change = match entry.get_entry_type() {
            EntryType::EntryConfChange => {
                <ConfChange as prost::Message>::decode(entry.data.clone()).map_err(malformed)?.into_v2()
            }
            _ => <ConfChangeV2 as prost::Message>::decode(entry.data.clone()).map_err(malformed)?,
        };
        let conf_state = self.node.apply_conf_change(&change).map_err(|error| {
            // The same on every member, because it depends on the log alone.
            MembershipError::Refused(error.to_string())
        })?;
        tracing::info!(
            node_id = self.node.raft.id, log_index = entry.index, voters = ?conf_state.voters,
            learners = ?conf_state.learners, outgoing = ?conf_state.voters_outgoing, "membership changed"
        );
        self.conf_states.push_back((entry.index, conf_state.clone()));
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            // Its removal was in the log when it became leader. The crate would let it go on, though it takes no
            // proposals from it, and panics when it next looks for the leader's own progress.
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        Ok(conf_state)
    }

    fn send(&mut self, messages: Vec<Message>, out: &mut Vec<Action>) {
        if !messages.is_empty() {
            self.note_snapshots(&messages);
            out.push(Action::Send(messages));
        }
    }

    fn note_snapshots(&mut self, messages: &[Message]) {
        let patience = self.limits.snapshot_report_timeout.as_micros() / self.timing.tick.as_micros().max(1);
        let deadline = self.ticks.saturating_add(u64::try_from(patience).unwrap_or(u64::MAX));
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots.insert(message.to, deadline);
            }
        }
    }

    /// Tells callers whose requests cannot be answered any more because leadership or term changed.
    fn note_standing(&mut self, out: &mut Vec<Action>) {
        let standing = (self.node.raft.term, self.node.raft.state);
        if standing == self.standing {
            return;
        }
        self.standing = standing;
        self.elections += 1;
        let leading = (standing.1 == StateRole::Leader).then_some(standing.0);
        self.lose_proposals(leading, out);
        if leading.is_none() {
            self.snapshots.clear();
        }
        let hint = self.leader_elsewhere();
        for request in self.reads.orphaned(leading) {
            out.push(Action::Reply(request, Reply::Read(Err(ReadError::NotLeader { hint }))));
        }
        self.set_election_timeout();
    }

    /// Tells those whose proposals are not of this term that their outcome is unknown.
    fn lose_proposals(&mut self, leading_term: Option<u64>, out: &mut Vec<Action>) {
        for (kind, request) in self.proposals.orphaned(leading_term) {
            let reply = match kind {
                Kind::Command => Reply::Proposed(Err(ProposeError::Lost)),
                Kind::Change => Reply::Changed(Err(MembershipError::Lost)),
            };
            out.push(Action::Reply(request, reply));
        }
    }

    /// `Some(hint)` when this node cannot take requests: it does not lead, or is handing leadership over.
    fn cannot_lead(&self) -> Option<Option<u64>> {
        let raft = &self.node.raft;
        match raft.lead_transferee {
            _ if raft.state != StateRole::Leader => Some(self.leader_elsewhere()),
            Some(successor) => Some(Some(successor)),
            None => None,
        }
    }

    fn leader_elsewhere(&self) -> Option<u64> {
        let raft = &self.node.raft;
        (raft.leader_id != raft::INVALID_ID && raft.leader_id != raft.id).then_some(raft.leader_id)
    }

    fn conf_state(&self) -> ConfState {
        self.node.raft.prs().conf().to_conf_state()
    }

    fn sole_voter(&self) -> bool {
        let conf = self.conf_state();
        conf.voters == [self.node.raft.id] && conf.voters_outgoing.is_empty()
    }

    /// Replaces the crate's own random timeout, which it draws from the thread's generator at every change of role.
    fn set_election_timeout(&mut self) {
        let spread = self.timing.election_ticks as u64;
        let draw = mix(self.seed ^ mix(self.node.raft.id ^ mix(self.elections + 1))) % spread.max(1);
        let ticks = self.timing.election_ticks + usize::try_from(draw).unwrap_or(0);
        self.node.raft.set_randomized_election_timeout(ticks);
    }
}

/// For the simulation's checks.
#[cfg(test)]
impl Core {
    pub(crate) fn first_index(&self) -> u64 {
        self.node.raft.raft_log.first_index()
    }

    pub(crate) fn term_of(&self, log_index: u64) -> Option<u64> {
        self.node.raft.raft_log.term(log_index).ok().filter(|term| *term > 0)
    }

    pub(crate) fn entry(&self, log_index: u64) -> Option<Entry> {
        let context = raft::GetEntriesContext::empty(false);
        let known = (self.first_index()..=self.node.raft.raft_log.last_index()).contains(&log_index);
        let entries = known.then(|| self.node.raft.raft_log.slice(log_index, log_index + 1, None, context));
        entries?.ok()?.pop()
    }

    pub(crate) fn reuse_read_contexts(&mut self) {
        self.reads.reuse_contexts = true;
    }
}

/// Which `Ready` numbers are on their way to the disk. Writes become durable in the order they were issued.
#[derive(Default)]
struct WriteOrder {
    newest_ready: u64,
    issued: u64,
    durable: u64,
    /// The newest hard state that no write carries yet. A bare advance of the commit index rides with the next one.
    hard_state: Option<HardState>,
    term_vote: (u64, u64),
    term_changed_in: u64,
}

impl WriteOrder {
    fn in_flight(&self) -> bool {
        self.issued > self.durable
    }

    fn term_in_flight(&self) -> bool {
        self.in_flight() && self.term_changed_in > self.durable
    }

    fn note_hard_state(&mut self, hard_state: HardState, number: u64) {
        let term_vote = (hard_state.term, hard_state.vote);
        if term_vote != self.term_vote {
            self.term_vote = term_vote;
            self.term_changed_in = number;
        }
        self.hard_state = Some(hard_state);
    }
}

/// Tells a client's entry, even an empty one, from those that Raft makes itself.
const COMMAND_MARK: &[u8] = b"c";
/// A read waits this many election timeouts: one to find out that the leader is none, one for the round trip.
const READ_TIMEOUT_ELECTIONS: u64 = 2;
