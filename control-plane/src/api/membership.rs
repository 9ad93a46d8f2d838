//! `Membership`: operators add members to the control plane, and take them out.
//!
//! The steps are made so that each may be repeated: a member is known (log), takes the log (Raft), has a vote (Raft), and another one is
//! known no longer (log). Whatever is interrupted between two of them is shown by `List`, and ended by asking again or by `Remove`.

use std::{sync::Arc, time::Duration};

use archipelago_identity::SpiffeId;
use archipelago_model::event::{Draft, Reason};
use archipelago_proto::v1::{
    AddMemberRequest, AddMemberResponse, ChangeGroupRequest, FederationMember, ListMembersRequest, ListMembersResponse,
    MemberStanding, MemberStatusRequest, PromoteMemberRequest, PromoteMemberResponse, RemoveMemberRequest,
    RemoveMemberResponse, TransferLeadershipRequest, TransferLeadershipResponse, membership_server::Membership,
};
use prost::Message as _;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status};

use super::{Context, operator};
use crate::{
    bootstrap::{FederationFile, Member},
    chronicle::source_of,
    consensus::CommitError,
    machine::command::{Action, CaInit, ControlPlaneMember, PutMember, RetireMember},
    refusal::{answer, coded},
};

pub(super) struct MembershipService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn list(&self, request: Request<ListMembersRequest>) -> Result<Response<ListMembersResponse>, Status> {
        operator(&request)?;
        self.0.consensus.barrier().await?;
        let members = self.0.agreed().into_iter().map(|member| self.0.view(&member)).collect();
        Ok(Response::new(ListMembersResponse { members }))
    }

    async fn add(&self, request: Request<AddMemberRequest>) -> Result<Response<AddMemberResponse>, Status> {
        let caller = operator(&request)?;
        self.0.add_member(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn promote(&self, request: Request<PromoteMemberRequest>) -> Result<Response<PromoteMemberResponse>, Status> {
        let caller = operator(&request)?;
        let PromoteMemberRequest { id, replaces, reason } = request.into_inner();
        check_reason(&reason)?;
        self.0.consensus.barrier().await?;
        let member = self.0.known_member(id)?;
        let was = self.0.view(&member).standing();
        let change = ChangeGroupRequest { voter: id, out: replaces, ..ChangeGroupRequest::default() };
        let done = self.0.consensus.change_group(change).await?;
        if let Some(behind) = done.behind {
            return Ok(Response::new(PromoteMemberResponse { promoted: false, behind: Some(behind) }));
        }
        if was != MemberStanding::Voter {
            let message = format!("{} has a vote", source_of(id));
            let draft = Draft { actor: caller.to_string(), ..Draft::new(Reason::MemberPromoted, message) };
            self.0.chronicle.note(Draft { subject: source_of(id), ..draft });
        }
        if replaces != 0 {
            self.0.retire(&caller, replaces, &reason).await?;
        }
        Ok(Response::new(PromoteMemberResponse { promoted: true, behind: None }))
    }

    async fn remove(&self, request: Request<RemoveMemberRequest>) -> Result<Response<RemoveMemberResponse>, Status> {
        let caller = operator(&request)?;
        let RemoveMemberRequest { id, reason } = request.into_inner();
        check_reason(&reason)?;
        self.0.consensus.barrier().await?;
        self.0.known_member(id)?;
        let change = ChangeGroupRequest { out: id, ..ChangeGroupRequest::default() };
        self.0.consensus.change_group(change).await?;
        self.0.retire(&caller, id, &reason).await?;
        Ok(Response::new(RemoveMemberResponse {}))
    }

    async fn transfer(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let caller = operator(&request)?;
        let TransferLeadershipRequest { to } = request.into_inner();
        let raft = &self.0.consensus.raft;
        let before = raft.status().leader;
        let change = ChangeGroupRequest { transfer: Some(to), ..ChangeGroupRequest::default() };
        self.0.consensus.change_group(change).await?;
        let mut status = raft.subscribe_status();
        let moved = status.wait_for(|status| match status.leader {
            Some(leader) if to != 0 => leader == to,
            leader => leader.is_some() && leader != before,
        });
        let leader = match timeout(SEEN_TIMEOUT, moved).await {
            Ok(Ok(status)) => status.leader,
            Ok(Err(_)) | Err(_) => raft.status().leader,
        };
        tracing::info!(actor = %caller, ?leader, "leadership was handed over");
        Ok(Response::new(TransferLeadershipResponse { leader: leader.unwrap_or(0) }))
    }
}

impl Context {
    /// The members that the federation has agreed on.
    fn agreed(&self) -> Vec<Member> {
        self.roster.agreed(&self.consensus.state())
    }

    fn known_member(&self, id: u64) -> Result<Member, Status> {
        let members = self.agreed();
        if let Some(member) = members.iter().find(|member| member.id == id) {
            return Ok(member.clone());
        }
        let names: Vec<String> = members.iter().map(|member| source_of(member.id)).collect();
        let there = match members.iter().find(|member| member.place() == id) {
            Some(member) => format!("{} is in its place", source_of(member.id)),
            None => format!("members are {}", names.join(", ")),
        };
        Err(coded(Status::not_found(format!("{} is no member: {there}", source_of(id))), "NO_MEMBER"))
    }

    fn view(&self, member: &Member) -> FederationMember {
        let group = self.consensus.raft.status();
        let standing = match member.id {
            id if group.voters.contains(&id) => MemberStanding::Voter,
            id if group.learners.contains(&id) => MemberStanding::Learner,
            _ => MemberStanding::Outside,
        };
        FederationMember {
            id: member.id,
            client: member.client.clone(),
            peer: member.peer.clone(),
            place: member.place(),
            standing: standing.into(),
        }
    }

    async fn add_member(&self, caller: &SpiffeId, request: AddMemberRequest) -> Result<AddMemberResponse, Status> {
        let AddMemberRequest { client, peer, replaces } = request;
        self.consensus.barrier().await?;
        let members = self.agreed();
        // One after the other: of two at once, neither could say what is left when the other one fails.
        if let Some(other) = members.iter().find(|member| self.view(member).standing() != MemberStanding::Voter) {
            let id = other.id;
            return Err(coded(
                Status::failed_precondition(format!(
                    "{} is being added, and has no vote yet: one change at a time\nhint: let it end, or `meshctl member remove {id}`",
                    source_of(id)
                )),
                "CHANGE_UNDER_WAY",
            ));
        }
        let replaced = match replaces {
            0 => None,
            id => Some(self.known_member(id)?),
        };
        if let Some(replaced) = &replaced {
            self.refuse_alive(replaced.id).await?;
        }
        let or = |given: String, of: fn(&Member) -> &String| match (&replaced, given.is_empty()) {
            (Some(replaced), true) => of(replaced).clone(),
            _ => given,
        };
        let (client, peer) = (or(client, |member| &member.client), or(peer, |member| &member.peer));
        let state = self.consensus.state();
        let id = members.iter().map(|member| member.id).max().unwrap_or(0).max(state.last_member()) + 1;
        let place = replaced.as_ref().map_or(id, Member::place);
        let parsed: Member = format!("{id}={client}/{peer}").parse().map_err(|_| {
            Status::invalid_argument(format!(
                "{client:?} and {peer:?} are not both HOST:PORT: where is the new member reached?"
            ))
        })?;
        let others = members.iter().filter(|other| Some(other.id) != replaced.as_ref().map(|replaced| replaced.id));
        if let Some(other) = others.clone().find(|other| other.client == client || other.peer == peer) {
            return Err(Status::invalid_argument(format!("{} is reached there already", source_of(other.id))));
        }

        let ca = state.ca().ok_or_else(|| Status::unavailable("the certificate authority is not installed yet"))?;
        let (seal_key, data_key) = self.authority.share(ca, id)?;
        let entry = ControlPlaneMember { id, client, peer, place };
        let put = PutMember { member: Some(entry), data_key: Some(data_key), founders: self.roster.founders() };
        answer(self.consensus.commit("", &caller.to_string(), Action::PutMember(put)).await?)?;
        tracing::info!(actor = %caller, member = id, place, "a member was added");
        let change = ChangeGroupRequest { learner: id, ..ChangeGroupRequest::default() };
        if let Err(status) = self.consensus.change_group(change).await {
            return Err(coded(
                Status::new(
                    status.code(),
                    format!("{}\nhint: `meshctl member remove {id}` undoes what was begun", status.message()),
                ),
                "CHANGE_INTERRUPTED",
            ));
        }

        let member = Member { place: Some(place), ..parsed };
        // With a place nobody in it is a founder: whoever begins with this file on an empty disk waits for the log of the others, and does
        // not vote as if there had been none.
        let joins = |member: &Member| Member { place: Some(member.place()), ..member.clone() };
        let federation = FederationFile {
            federation: self.federation.clone(),
            trust_domain: self.trust_domain.to_string(),
            members: others.map(joins).chain([member.clone()]).collect(),
        };
        let federation_json =
            serde_json::to_vec_pretty(&federation).map_err(|error| Status::internal(error.to_string()))?;
        let ca = self.consensus.read(|state| state.ca().map(|ca| CaInit::clone(ca))).unwrap_or_default();
        Ok(AddMemberResponse {
            member: Some(self.view(&member)),
            federation_json,
            ca_sealed: ca.encode_to_vec(),
            seal_key: seal_key.to_bytes().to_vec(),
        })
    }

    /// Only what is lost is replaced: of one that works, two would be in one place.
    async fn refuse_alive(&self, id: u64) -> Result<(), Status> {
        let answers = async { self.consensus.peers.client(id).await?.member_status(MemberStatusRequest {}).await };
        let answers = id == self.consensus.node_id || matches!(timeout(ALIVE_TIMEOUT, answers).await, Ok(Ok(_)));
        if !answers {
            return Ok(());
        }
        Err(coded(
            Status::failed_precondition(format!(
                "{0} works: only a member that is lost is replaced\nhint: stop it first; or `meshctl member add` another one, \
                 and then `meshctl member remove {id}`",
                source_of(id)
            )),
            "MEMBER_WORKS",
        ))
    }

    /// Nobody talks to it any more, and nobody accepts what it shows.
    async fn retire(&self, caller: &SpiffeId, id: u64, reason: &str) -> Result<(), Status> {
        let action = Action::RetireMember(RetireMember {
            id,
            founders: self.roster.founders(),
            spiffe_id: SpiffeId::control_plane(&self.trust_domain, id).to_string(),
            reason: reason.to_owned(),
            by: caller.to_string(),
        });
        let deadline = Instant::now() + FORMAT_TIMEOUT;
        loop {
            match self.consensus.commit("", &caller.to_string(), action.clone()).await {
                Ok(outcome) => {
                    answer(outcome)?;
                    tracing::info!(actor = %caller, member = id, "a member was taken out");
                    return Ok(());
                }
                // It was this member that held the format back, and now it rises.
                Err(CommitError::Format { .. }) if Instant::now() < deadline => sleep(FORMAT_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn check_reason(reason: &str) -> Result<(), Status> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(Status::invalid_argument(format!("a reason is at most {REASON_BYTES_MAX} bytes")));
    }
    Ok(())
}

const REASON_BYTES_MAX: usize = 256;
/// A living one answers in a round trip; a dead one must not make an operator wait.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// A follower hears of the new leader with its first heartbeat.
const SEEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The leader looks every half second whether all members know more.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(5);
const FORMAT_PAUSE: Duration = Duration::from_millis(200);
