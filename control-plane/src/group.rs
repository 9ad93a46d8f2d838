//! Changing who belongs to the Raft group, from any member: the leader does it, and is asked again over changes of leader.

use std::time::Duration;

use archipelago_proto::v1::{ChangeGroupRequest, ChangeGroupResponse};
use archipelago_raft::{MembershipChange, MembershipError};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Code, Status};

use crate::{consensus::Consensus, refusal::coded};

impl Consensus {
    /// Has the leader change the group; see [`ChangeGroupRequest`]. What is true already is not changed again, so that a change whose
    /// answer was lost may be asked for again.
    ///
    /// # Errors
    /// What is wrong with it, or nobody leads.
    pub(crate) async fn change_group(&self, change: ChangeGroupRequest) -> Result<ChangeGroupResponse, Status> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let mut last = Status::unavailable("no leader is known");
        loop {
            let leader = self.raft.status().leader;
            let answer = match leader {
                Some(id) if id == self.node_id => timeout_at(deadline, self.change_group_here(change)).await,
                Some(id) => timeout_at(deadline, self.change_group_at(id, change)).await,
                None => Ok(Err(Status::unavailable("no leader is known"))),
            };
            match answer {
                Ok(Ok(answer)) if answer.not_leader_hint.is_none() => return Ok(answer),
                Ok(Ok(_)) => {}
                Ok(Err(status)) if matches!(status.code(), Code::Unavailable | Code::Aborted) => last = status,
                Ok(Err(status)) => return Err(status),
                Err(_) => {
                    return Err(Status::unavailable(format!("nobody changed it within 20 s: {}", last.message())));
                }
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(last);
            }
            sleep(PAUSE).await;
        }
    }

    async fn change_group_at(&self, id: u64, change: ChangeGroupRequest) -> Result<ChangeGroupResponse, Status> {
        match self.peers.client(id).await?.change_group(change).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) if status.code() == Code::Unimplemented => Err(Status::failed_precondition(format!(
                "member {id} leads and knows no such change: upgrade it first"
            ))),
            Err(status) => Err(status),
        }
    }

    /// The same at this member, if it leads.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn change_group_here(&self, change: ChangeGroupRequest) -> Result<ChangeGroupResponse, Status> {
        let status = self.raft.status();
        if status.leader != Some(self.node_id) {
            return Ok(elsewhere(status.leader));
        }
        let ChangeGroupRequest { learner, voter, out, transfer } = change;
        if let Some(to) = transfer {
            return self.hand_over(to).await;
        }
        let belongs = |id: u64| status.voters.contains(&id) || status.learners.contains(&id);
        let steps = [
            (learner != 0 && !belongs(learner)).then_some(MembershipChange::AddLearner(learner)),
            (voter != 0 && !status.voters.contains(&voter)).then_some(MembershipChange::Promote(voter)),
            (out != 0 && belongs(out)).then_some(MembershipChange::Remove(out)),
        ];
        let mut steps: Vec<_> = steps.into_iter().flatten().collect();
        let change = match steps.len() {
            0 => return Ok(ChangeGroupResponse::default()),
            1 => steps.remove(0),
            _ => MembershipChange::Joint(steps),
        };
        tracing::info!(?change, "changing the group");
        match self.raft.change_membership(change).await {
            Ok(_) => Ok(ChangeGroupResponse::default()),
            Err(MembershipError::NotLeader { hint }) => Ok(elsewhere(hint)),
            Err(MembershipError::NotCaughtUp { lag, .. }) => {
                Ok(ChangeGroupResponse { behind: Some(lag), ..ChangeGroupResponse::default() })
            }
            Err(error @ (MembershipError::Lost | MembershipError::Stopped)) => {
                Err(Status::unavailable(error.to_string()))
            }
            // Asked again: a change that is about to end is no reason to refuse the next one.
            Err(error @ MembershipError::Busy) => Err(coded(Status::aborted(error.to_string()), "CHANGE_UNDER_WAY")),
            Err(error @ MembershipError::Leads) => {
                Err(coded(Status::failed_precondition(format!("cp-{out} cannot go: {error}")), "MEMBER_LEADS"))
            }
            Err(error @ MembershipError::NoMajority { .. }) => {
                Err(coded(Status::failed_precondition(error.to_string()), "NO_MAJORITY"))
            }
            Err(error @ MembershipError::Refused(_)) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn hand_over(&self, to: u64) -> Result<ChangeGroupResponse, Status> {
        if to == self.node_id {
            return Ok(ChangeGroupResponse::default());
        }
        let mut status = self.raft.subscribe_status();
        if to != 0 && !status.borrow().voters.contains(&to) {
            return Err(Status::failed_precondition(format!("cp-{to} has no vote, so it cannot lead")));
        }
        self.raft.transfer_leadership((to != 0).then_some(to));
        let over = status.wait_for(|status| status.leader.is_some_and(|leader| leader != self.node_id));
        match timeout(HAND_OVER_TIMEOUT, over).await {
            Ok(Ok(_)) => Ok(ChangeGroupResponse::default()),
            Ok(Err(_)) => Err(Status::unavailable("this member is stopping")),
            Err(_) => Err(coded(
                Status::failed_precondition(
                    "nobody took leadership over: no other voter answers, or it is too far behind",
                ),
                "NOBODY_TOOK_OVER",
            )),
        }
    }
}

fn elsewhere(leader: Option<u64>) -> ChangeGroupResponse {
    ChangeGroupResponse { not_leader_hint: Some(leader.unwrap_or(0)), ..ChangeGroupResponse::default() }
}

/// Two commits over slow disks, and an election between them.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// The crate gives a transfer up after one election timeout (4 s at most), and a client may ask again.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
