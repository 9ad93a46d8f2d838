//! What happens to the simulated cluster: clients, operators, and faults.

use bytes::Bytes;

use super::{super::machine::NEW, Happening, Network, Op, Plant, World};
use crate::core::{Event, MembershipChange, RequestId, Role};

impl World {
    pub(super) fn client(&mut self) -> Result<(), String> {
        let leaders = self
            .nodes
            .iter()
            .filter(|node| node.live.as_ref().is_some_and(|live| live.replica.status().role == Role::Leader));
        let leaders: Vec<u64> = leaders.map(|node| node.id).collect();
        let any = self.rng.range(1..self.nodes.len() as u64 + 1);
        // Mostly somebody who believes to lead: after a partition there may be two.
        let pick = usize::try_from(self.rng.range(0..leaders.len().max(1) as u64)).unwrap();
        let id = if self.rng.chance(85) { leaders.get(pick).copied().unwrap_or(any) } else { any };
        self.next_op += 1;
        let op = if self.rng.chance(60) {
            // New commands come in the second half, once most members know them.
            let new = if self.now > NEW_COMMANDS_FROM_MICROS && self.rng.chance(20) { NEW } else { 0 };
            Op::Write { id: self.next_op | (id << 32) | new }
        } else {
            Op::Read { seen: self.checker.seen() }
        };
        self.submit(id, op, |request| match op {
            Op::Write { id } => Event::Propose { request, command: Bytes::copy_from_slice(&id.to_be_bytes()) },
            _ => Event::ReadIndex { request },
        })
    }

    fn submit(&mut self, id: u64, op: Op, event: impl FnOnce(RequestId) -> Event) -> Result<(), String> {
        let now = self.now;
        let node = self.node(id);
        let Some(live) = node.live.as_mut().filter(|_| node.paused_until <= now) else { return Ok(()) };
        let request = RequestId(live.next_request);
        live.next_request += 1;
        live.ops.insert(request, op);
        self.event(id, event(request))?;
        let early = self.plant == Plant::AckEarly;
        let Some(live) = self.node(id).live.as_mut().filter(|_| early) else { return Ok(()) };
        if let (Op::Write { id }, Some(_)) = (op, live.ops.remove(&request)) {
            let status = live.replica.status();
            self.stats.writes_acked += u64::from(status.role == Role::Leader);
            return self.checker.acked(status.last_index, id, status.term);
        }
        Ok(())
    }

    pub(super) fn change_membership(&mut self) -> Result<(), String> {
        let statuses = self.nodes.iter().filter_map(|node| Some(node.live.as_ref()?.replica.status()));
        let Some(leader) = statuses.filter(|status| status.role == Role::Leader).max_by_key(|status| status.term)
        else {
            return Ok(());
        };
        let all = self.nodes.len() as u64;
        let id = 1 + self.rng.range(0..all);
        let learner = leader.learners.first().copied();
        let change = match learner {
            Some(learner) if self.rng.chance(40) => MembershipChange::Promote(learner),
            Some(learner) if self.rng.chance(50) && leader.voters.contains(&id) && id != leader.node_id => {
                MembershipChange::Joint(vec![MembershipChange::Promote(learner), MembershipChange::Remove(id)])
            }
            _ if !leader.voters.contains(&id) && !leader.learners.contains(&id) => MembershipChange::AddLearner(id),
            _ if leader.voters.len() > 2 => MembershipChange::Remove(id),
            _ => return Ok(()),
        };
        self.submit(leader.node_id, Op::Change, |request| Event::Change { request, change })
    }

    pub(super) fn fault(&mut self) -> Result<(), String> {
        let id = self.rng.range(1..self.nodes.len() as u64 + 1);
        let length = self.rng.range(20_000..500_000);
        let now = self.now;
        match self.rng.range(0..10) {
            0..=2 => {
                self.crash(id);
                self.schedule(length, Happening::Restart { node: id });
            }
            3 => {
                // Everybody at once, as when a rack loses power.
                for id in self.ids() {
                    self.crash(id);
                    let back = self.rng.range(10_000..300_000);
                    self.schedule(back, Happening::Restart { node: id });
                }
            }
            4 => self.node(id).paused_until = now + length,
            5 => self.node(id).stalled_until = now + length.min(400_000),
            6 => self.network = Network::default(),
            7 => {
                self.network.drop_percent = self.rng.range(0..25);
                self.network.double_percent = self.rng.range(0..25);
                self.network.slow_percent = self.rng.range(0..40);
            }
            8 => {
                self.stats.partitions += 1;
                self.network.blocked.clear();
                let side: Vec<u64> = self.ids().into_iter().filter(|_| self.rng.chance(50)).collect();
                let one_way = self.rng.chance(40);
                for (from, to) in self.pairs() {
                    let leaves = side.contains(&from) && !side.contains(&to);
                    let enters = !side.contains(&from) && side.contains(&to);
                    if leaves || (enters && !one_way) {
                        self.network.blocked.insert((from, to));
                    }
                }
            }
            _ => {
                self.stats.partitions += 1;
                self.network.blocked.clear();
                let lonely = self.pairs().into_iter().filter(|(from, to)| *from == id || *to == id);
                self.network.blocked.extend(lonely);
            }
        }
        Ok(())
    }
}

const NEW_COMMANDS_FROM_MICROS: u64 = 1_000_000;
