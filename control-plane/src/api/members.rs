//! `Members`: what control-plane members ask of each other.

use std::{sync::Arc, time::Duration};

use archipelago_identity::MeshRole;
use archipelago_proto::v1::{
    AskLocalRequest, ChangeGroupRequest, ChangeGroupResponse, ExplainRequest, ExplainResponse, FollowedEvents,
    GatewayAnswer, GatewayQuestion, ListEventsRequest, ListEventsResponse, MemberStatus, MemberStatusRequest,
    ProposeRequest, ProposeResponse, ReadIndexRequest, ReadIndexResponse, ReviewAsk, ReviewLocalRequest, ReviewReply,
    SessionUpdate, WatchSessionsRequest, members_server::Members,
};
use archipelago_raft::{ProposeError, ReadError};
use archipelago_rpc::grpc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Context, telemetry::Addressed};
use crate::{
    machine::State,
    sessions::{AskError, Cursor, gateway_key},
};

pub(super) struct MembersService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Members for MembersService {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        self.member(&request)?;
        let command = request.into_inner().command;
        self.0.consensus.check_entry(&command).map_err(Status::invalid_argument)?;
        let response = match self.0.consensus.raft.propose(command).await {
            Ok(proposed) => {
                ProposeResponse { log_index: proposed.log_index, outcome: proposed.outcome, not_leader_hint: None }
            }
            Err(ProposeError::NotLeader { hint }) => {
                ProposeResponse { not_leader_hint: Some(hint.unwrap_or(0)), ..ProposeResponse::default() }
            }
            Err(error @ ProposeError::TooLarge { .. }) => return Err(Status::invalid_argument(error.to_string())),
            Err(error @ ProposeError::DiskFull { .. }) => return Err(Status::failed_precondition(error.to_string())),
            Err(error @ ProposeError::Overloaded) => return Err(Status::resource_exhausted(error.to_string())),
            Err(error @ (ProposeError::Lost | ProposeError::Stopped)) => {
                return Err(Status::unavailable(error.to_string()));
            }
        };
        Ok(Response::new(response))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexResponse>, Status> {
        self.member(&request)?;
        let response = match self.0.consensus.raft.read_index().await {
            Ok(log_index) => ReadIndexResponse { log_index, not_leader_hint: None },
            Err(ReadError::NotLeader { hint }) => {
                ReadIndexResponse { log_index: 0, not_leader_hint: Some(hint.unwrap_or(0)) }
            }
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(response))
    }

    async fn member_status(&self, request: Request<MemberStatusRequest>) -> Result<Response<MemberStatus>, Status> {
        self.member(&request)?;
        Ok(Response::new(self.0.own_status()))
    }

    type WatchSessionsStream = ReceiverStream<Result<SessionUpdate, Status>>;

    async fn watch_sessions(
        &self,
        request: Request<WatchSessionsRequest>,
    ) -> Result<Response<Self::WatchSessionsStream>, Status> {
        self.member(&request)?;
        let (updates, receiver) = mpsc::channel(UPDATES_MAX);
        let context = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut changes = context.sessions.subscribe();
            let mut cursor = Cursor::default();
            loop {
                changes.mark_unchanged();
                if let Some(update) = context.sessions.local_since(&mut cursor)
                    && updates.send(Ok(update)).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    () = context.stopping.cancelled() => return,
                    () = updates.closed() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                // Reports of a thousand gateways become one message instead of a thousand.
                tokio::time::sleep(GATHER).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn review_local(&self, request: Request<ReviewLocalRequest>) -> Result<Response<ReviewReply>, Status> {
        self.member(&request)?;
        let ReviewLocalRequest { cluster, ask } = request.into_inner();
        let ReviewAsk { id: _, token, audience } = ask.ok_or_else(|| Status::invalid_argument("no question"))?;
        self.0.review_here(&cluster, token, audience).await.map(Response::new)
    }

    async fn explain_local(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.member(&request)?;
        let ExplainRequest { cluster, gateway, query } = request.into_inner();
        let query = query.ok_or_else(|| Status::invalid_argument("no question"))?;
        let key = gateway_key(&cluster, &gateway);
        self.0.sessions.explain(&key, query).await.map(Response::new).map_err(|error| ask_status(&key, error))
    }

    type AskLocalStream = ReceiverStream<Result<GatewayAnswer, Status>>;

    async fn ask_local(&self, request: Request<AskLocalRequest>) -> Result<Response<Self::AskLocalStream>, Status> {
        self.member(&request)?;
        let mut questions = Vec::new();
        for GatewayQuestion { cluster, gateway, question } in request.into_inner().questions {
            let body = question.and_then(|question| question.body);
            let body =
                body.ok_or_else(|| Status::unimplemented("this member does not know the question: upgrade it"))?;
            questions.push(Addressed { cluster, gateway, body });
        }
        let (answers, receiver) = mpsc::channel(UPDATES_MAX);
        let context = Arc::clone(&self.0);
        tokio::spawn(async move { context.ask_here(questions, |answer| answers.send(Ok(answer))).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        self.member(&request)?;
        Ok(Response::new(self.0.own_events(&request.into_inner())))
    }

    async fn change_group(
        &self,
        request: Request<ChangeGroupRequest>,
    ) -> Result<Response<ChangeGroupResponse>, Status> {
        self.member(&request)?;
        self.0.consensus.change_group_here(request.into_inner()).await.map(Response::new)
    }

    type FollowEventsStream = ReceiverStream<Result<FollowedEvents, Status>>;

    async fn follow_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<Self::FollowEventsStream>, Status> {
        self.member(&request)?;
        let (said, mut saying) = mpsc::channel(UPDATES_MAX);
        let (out, receiver) = mpsc::channel(UPDATES_MAX);
        tokio::spawn(Arc::clone(&self.0).tail_events(request.into_inner(), said));
        tokio::spawn(async move {
            while let Some(said) = saying.recv().await {
                if out.send(Ok(said)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl MembersService {
    fn member<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let known = |id: u64| self.0.roster.member(id).is_some();
        grpc::require(request, |role| matches!(role, MeshRole::ControlPlane { id } if known(*id))).map(|_| ())
    }
}

impl Context {
    /// How this member sees itself.
    pub(crate) fn own_status(&self) -> MemberStatus {
        let status = self.consensus.raft.status();
        MemberStatus {
            id: self.consensus.node_id,
            role: status.role.name().to_owned(),
            address: self.roster.member(self.consensus.node_id).map(|own| own.client).unwrap_or_default(),
            applied_index: status.applied_index,
            term: status.term,
            format_supported: self.consensus.supported_format(),
            format_version: self.consensus.read(State::format_version),
            problem: problem(&status),
            clocks: self.clocks.far_off(self.consensus.node_id),
            checkpoint_index: status.checkpoint.map_or(0, |checkpoint| checkpoint.log_index),
            checkpoint_sha256: status.checkpoint.map_or_else(Vec::new, |checkpoint| checkpoint.digest.0.to_vec()),
        }
    }
}

/// What an operator must see to, if anything.
fn problem(status: &archipelago_raft::Status) -> String {
    let full = status.disk_full.as_ref().map(|path| {
        let path = path.display();
        format!("no space left on device for {path}; free some and it continues by itself")
    });
    let diverged = status.divergence.as_ref().map(ToString::to_string);
    [full, diverged].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

pub(super) fn ask_status(gateway: &str, error: AskError) -> Status {
    let text = format!("{gateway}: {error}");
    match error {
        AskError::NotConnected => Status::not_found(text),
        AskError::NotSupported => Status::failed_precondition(text),
        AskError::Busy | AskError::TooLarge => Status::resource_exhausted(text),
        AskError::Silent => Status::deadline_exceeded(text),
    }
}

/// Slow readers get larger differences, not more of them.
const UPDATES_MAX: usize = 2;
const GATHER: Duration = Duration::from_millis(2);
