//! Who belongs to the group, and how that changes without ever having two majorities.
//!
//! The way in for a new node: start it with no members, [`MembershipChange::AddLearner`] it, let it catch up (the
//! leader sends a snapshot), [`MembershipChange::Promote`] it. Several changes at once go through joint consensus
//! (Raft thesis §4.3) with an explicit leave: the crate's own automatic leave can be forgotten at a change of leader
//! (etcd-io/etcd#12136), so here every leader that finds itself in a joint configuration proposes to leave it.

use raft::{ProgressState, StateRole};
use raft_proto::{
    eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState},
    new_conf_change_single,
};

use super::{Action, Core, Kind, Position, Reply, RequestId};
use crate::error::MembershipError;

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Replicate to a node that has no vote yet.
    AddLearner(u64),
    /// Give a learner that has caught up a vote.
    Promote(u64),
    /// Take a node out.
    Remove(u64),
    /// Several of the above at once: both the old and the new majority decide until it is done.
    Joint(Vec<MembershipChange>),
}

impl MembershipChange {
    fn steps(&self, steps: &mut Vec<ConfChangeSingle>) {
        match self {
            Self::AddLearner(id) => steps.push(new_conf_change_single(*id, ConfChangeType::AddLearnerNode)),
            Self::Promote(id) => steps.push(new_conf_change_single(*id, ConfChangeType::AddNode)),
            Self::Remove(id) => steps.push(new_conf_change_single(*id, ConfChangeType::RemoveNode)),
            Self::Joint(changes) => changes.iter().for_each(|change| change.steps(steps)),
        }
    }
}

/// A change of voters that waits until a majority of those who would be left has been heard since it was asked for.
#[derive(Debug)]
pub(super) struct Waiting {
    request: RequestId,
    change: MembershipChange,
    /// The tick at which it was asked for.
    since: u64,
}

/// A change that makes sense.
struct Planned {
    steps: Vec<ConfChangeSingle>,
    /// Voters afterwards, when they are others than before.
    voters: Option<Vec<u64>>,
}

impl Core {
    pub(super) fn change(&mut self, request: RequestId, change: MembershipChange, out: &mut Vec<Action>) {
        if self.waiting.is_some() {
            out.push(Action::Reply(request, Reply::Changed(Err(MembershipError::Busy))));
            return;
        }
        self.waiting = Some(Waiting { request, change, since: self.ticks });
        self.node.ping();
        self.try_change(out);
    }

    /// Makes the change that waits, or refuses it, or lets it wait on.
    pub(super) fn try_change(&mut self, out: &mut Vec<Action>) {
        let Some(waiting) = self.waiting.take() else { return };
        let planned = match self.plan_change(&waiting.change) {
            Ok(planned) => planned,
            Err(error) => return out.push(Action::Reply(waiting.request, Reply::Changed(Err(error)))),
        };
        if let Some(voters) = planned.voters.clone() {
            let silent = self.not_heard(&voters, waiting.since);
            if 2 * silent.len() >= voters.len() {
                if self.ticks.saturating_sub(waiting.since) < self.timing.election_ticks as u64 {
                    self.waiting = Some(waiting);
                    return;
                }
                let error = MembershipError::NoMajority { voters, silent };
                return out.push(Action::Reply(waiting.request, Reply::Changed(Err(error))));
            }
        }
        if let Err(error) = self.propose_change(waiting.request, planned.steps) {
            out.push(Action::Reply(waiting.request, Reply::Changed(Err(error))));
        }
    }

    fn plan_change(&self, change: &MembershipChange) -> Result<Planned, MembershipError> {
        if let Some(hint) = self.cannot_lead() {
            return Err(MembershipError::NotLeader { hint });
        }
        let conf_state = self.conf_state();
        // The crate answers Ok to a change it cannot take now and turns it into an empty entry.
        if self.node.raft.has_pending_conf() || !conf_state.voters_outgoing.is_empty() {
            return Err(MembershipError::Busy);
        }
        let mut steps = Vec::new();
        change.steps(&mut steps);
        let after = plan(&conf_state, &steps).map_err(MembershipError::Refused)?;
        if !after.contains(&self.node.raft.id) {
            return Err(MembershipError::Leads);
        }
        let mut promoted = steps.iter().filter(|step| step.get_change_type() == ConfChangeType::AddNode);
        promoted.try_for_each(|step| self.caught_up(step.node_id))?;
        let voters = (after != conf_state.voters).then_some(after);
        Ok(Planned { steps, voters })
    }

    fn propose_change(&mut self, request: RequestId, steps: Vec<ConfChangeSingle>) -> Result<(), MembershipError> {
        let joint = steps.len() > 1;
        let transition = if joint { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto };
        let change = ConfChangeV2 { transition: transition.into(), changes: steps, ..ConfChangeV2::default() };
        self.node.propose_conf_change(Vec::new(), change).map_err(|error| match error {
            raft::Error::ProposalDropped => MembershipError::Busy,
            other => MembershipError::Refused(other.to_string()),
        })?;
        let position = Position { log_index: self.node.raft.raft_log.last_index(), term: self.node.raft.term };
        self.proposals.insert(position, Kind::Change, request);
        Ok(())
    }

    /// Those of `voters` that have said nothing after the tick `since`. One that was killed a moment ago still looks alive; so who is
    /// needed is asked, and must answer.
    fn not_heard(&mut self, voters: &[u64], since: u64) -> Vec<u64> {
        let prs = self.node.raft.prs();
        self.heard.retain(|id, _| prs.get(*id).is_some());
        let own = self.node.raft.id;
        let answers = |id: &u64| *id == own || self.heard.get(id).is_some_and(|at| *at > since);
        voters.iter().copied().filter(|id| !answers(id)).collect()
    }

    /// A voter that lags would take part in every majority it cannot help to form.
    fn caught_up(&self, node_id: u64) -> Result<(), MembershipError> {
        let progress = self.node.raft.prs().get(node_id);
        let matched = progress.filter(|progress| progress.state == ProgressState::Replicate && progress.recent_active);
        let last_index = self.node.raft.raft_log.last_index();
        let lag = last_index.saturating_sub(matched.map_or(0, |progress| progress.matched));
        if lag > PROMOTION_LAG_MAX {
            return Err(MembershipError::NotCaughtUp { node_id, lag, lag_max: PROMOTION_LAG_MAX });
        }
        Ok(())
    }

    /// Ends a joint configuration, whoever began it.
    pub(super) fn leave_joint(&mut self) {
        let raft = &self.node.raft;
        let free = raft.state == StateRole::Leader && !raft.has_pending_conf() && raft.lead_transferee.is_none();
        if free && !self.conf_state().voters_outgoing.is_empty() {
            // Should the proposal be dropped, the next poll proposes it again.
            if let Err(error) = self.node.propose_conf_change(Vec::new(), ConfChangeV2::default()) {
                tracing::debug!(%error, "leaving the joint configuration has to wait");
            }
        }
    }
}

/// The voters after `steps`.
///
/// # Errors
/// A sentence about the first step that makes no sense.
fn plan(conf_state: &ConfState, steps: &[ConfChangeSingle]) -> Result<Vec<u64>, String> {
    let (mut voters, mut learners) = (conf_state.voters.clone(), conf_state.learners.clone());
    if steps.is_empty() || steps.len() > STEPS_MAX {
        return Err(format!("a change has 1 to {STEPS_MAX} steps"));
    }
    for (position, step) in steps.iter().enumerate() {
        let id = step.node_id;
        if id == raft::INVALID_ID {
            return Err("node id 0 is reserved by Raft".into());
        }
        if steps.iter().take(position).any(|earlier| earlier.node_id == id) {
            return Err(format!("node {id} appears twice in one change"));
        }
        match step.get_change_type() {
            ConfChangeType::AddLearnerNode if voters.contains(&id) || learners.contains(&id) => {
                return Err(format!("node {id} is a member already"));
            }
            ConfChangeType::AddLearnerNode => learners.push(id),
            ConfChangeType::AddNode if voters.contains(&id) => return Err(format!("node {id} has a vote already")),
            ConfChangeType::AddNode if !learners.contains(&id) => {
                return Err(format!("node {id} is not a learner: add it as one, then promote it"));
            }
            ConfChangeType::AddNode => voters.push(id),
            ConfChangeType::RemoveNode if !voters.contains(&id) && !learners.contains(&id) => {
                return Err(format!("node {id} is not a member"));
            }
            ConfChangeType::RemoveNode => voters.retain(|voter| *voter != id),
        }
        learners.retain(|learner| !voters.contains(learner));
    }
    if voters.is_empty() { Err("no voter would be left".into()) } else { Ok(voters) }
}

/// Entries a learner may lack and still get a vote: a few milliseconds of work.
const PROMOTION_LAG_MAX: u64 = 100;
/// Steps in one joint change; a group has at most seven voters in practice.
const STEPS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use MembershipChange::{AddLearner, Joint, Promote, Remove};

    #[test]
    fn senseless_changes_are_named() {
        let conf_state = ConfState::from((vec![1, 2, 3], vec![4]));
        let table = [
            (AddLearner(5), Ok(vec![1, 2, 3])),
            (Promote(4), Ok(vec![1, 2, 3, 4])),
            (Remove(2), Ok(vec![1, 3])),
            (Remove(4), Ok(vec![1, 2, 3])),
            (Joint(vec![Promote(4), Remove(1)]), Ok(vec![2, 3, 4])),
            (AddLearner(2), Err("member already")),
            (Promote(2), Err("vote already")),
            (Promote(5), Err("not a learner")),
            (Remove(9), Err("not a member")),
            (AddLearner(0), Err("reserved")),
            (Joint(vec![]), Err("steps")),
            (Joint(vec![Remove(1), Remove(1)]), Err("twice")),
            (Joint(vec![Remove(1), Remove(2), Remove(3)]), Err("no voter")),
        ];
        for (change, expected) in table {
            let mut steps = Vec::new();
            change.steps(&mut steps);
            match (plan(&conf_state, &steps), expected) {
                (Ok(voters), Ok(expected)) => assert_eq!(voters, expected, "{change:?}"),
                (Err(error), Err(word)) => assert!(error.contains(word), "{change:?}: {error}"),
                (result, _) => panic!("{change:?}: {result:?}"),
            }
        }
    }
}
