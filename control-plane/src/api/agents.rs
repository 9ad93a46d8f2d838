//! `AgentControl`: one stream per cluster's agent. Counts stay soft state; identity facts are replicated when they change.
//! Down goes what the federation exports, and questions who is a gateway of the cluster.

mod imports;
mod policies;
mod reviews;

pub(super) use self::policies::{CONFLICT, may_write};

use std::{sync::Arc, time::Duration};

use archipelago_identity::MeshRole;
use archipelago_model::version::Version;
use archipelago_proto::v1::{
    AgentDirective, AgentHello, AgentMessage, AgentWelcome, ClusterPolicy, Notice, PolicyStatuses, Problem, Problems,
    ReviewAsk, agent_control_server::AgentControl, agent_directive, agent_message::Body, notice,
};
use archipelago_rpc::grpc;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Context,
    stream::{self, End, HELLO_TIMEOUT, Outbox, Peer, RETRY, at},
};
use crate::{
    chronicle::sessions as told,
    machine::{
        State,
        command::{Action, Answer, ReportExports, ReportedService},
        convert, format, same_report,
    },
    refusal,
    sessions::{AgentGuard, door},
};

pub(super) struct AgentService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl AgentControl for AgentService {
    type StreamStream = ReceiverStream<Result<AgentDirective, Status>>;

    async fn stream(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let caller = grpc::require(&request, |role| matches!(role, MeshRole::Agent { .. }))?;
        let Some(MeshRole::Agent { cluster, .. }) = caller.role() else {
            return Err(Status::internal("the role was checked above"));
        };
        let mut messages = request.into_inner();
        let hello = match timeout(HELLO_TIMEOUT, messages.message()).await {
            Ok(Ok(Some(AgentMessage { body: Some(Body::Hello(hello)) }))) => hello,
            Ok(Ok(_)) => return Err(Status::invalid_argument("the first message of an agent is its hello")),
            Ok(Err(status)) => return Err(status),
            Err(_) => return Err(Status::deadline_exceeded("no hello within 5 s")),
        };
        if hello.cluster != cluster {
            return Err(Status::permission_denied(format!("{caller} may not report for cluster {}", hello.cluster)));
        }
        tracing::info!(cluster, version = hello.software_version, "agent connected");
        let (out, directives) = stream::outbox();
        let name = format!("agent of {cluster}");
        let session = Session::new(Arc::clone(&self.0), caller.to_string(), &hello);
        tokio::spawn(stream::run(Arc::clone(&self.0), name, session, messages, out));
        Ok(Response::new(ReceiverStream::new(directives)))
    }
}

/// One connected agent.
struct Session {
    context: Arc<Context>,
    cluster: String,
    actor: String,
    guard: Arc<AgentGuard>,
    versions: watch::Receiver<Version>,
    is_welcomed: bool,
    /// What was admitted of the latest report, as the state machine keeps it.
    latest: Option<Vec<ReportedService>>,
    problems: Vec<Problem>,
    /// What the agent was told of them.
    told: Vec<Problem>,
    /// Absent: it wants none.
    imports: Option<imports::Feed>,
    asked: reviews::Asked,
    /// Absent: it sends none.
    policies: Option<policies::Policies>,
    /// Why its list of policies is not used.
    list_problem: Option<Problem>,
    /// Questions to put to the agent.
    unasked: Vec<ReviewAsk>,
    /// A report on its way into the log.
    writing: Option<oneshot::Receiver<bool>>,
    retry: Option<Instant>,
}

impl Session {
    fn new(context: Arc<Context>, actor: String, hello: &AgentHello) -> Self {
        context.chronicle.note(told::agent_connected(&hello.cluster, &hello.software_version));
        let mut guard = context.sessions.open_agent(hello);
        let asked = reviews::Asked::new(guard.take_reviews());
        let guard = Arc::new(guard);
        let versions = context.consensus.published.subscribe();
        let has = |feature: &str| hello.features.iter().any(|named| named == feature);
        Self {
            imports: has(IMPORTS).then(|| imports::Feed::new(context.compiler.imports())),
            asked,
            policies: has(POLICIES).then(|| policies::Policies::new(&context, &hello.cluster, &actor, &guard)),
            list_problem: None,
            unasked: Vec::new(),
            cluster: hello.cluster.clone(),
            context,
            actor,
            guard,
            versions,
            is_welcomed: false,
            latest: None,
            problems: Vec::new(),
            told: Vec::new(),
            writing: None,
            retry: None,
        }
    }

    /// Takes the complete list of policies. One that is too long is not used at all: what is cut off is not unwanted.
    fn list(&mut self, policies: Vec<ClusterPolicy>) {
        let Some(reconciled) = &self.policies else { return };
        self.list_problem = (policies.len() > POLICIES_MAX).then(|| Problem {
            subject: "policies".to_owned(),
            reason: format!(
                "{} are listed, more than the {POLICIES_MAX} that a cluster may: none is used",
                policies.len()
            ),
        });
        if self.list_problem.is_none() {
            reconciled.list(policies);
        }
        self.guard.problems(self.all_problems());
    }

    fn all_problems(&self) -> Vec<Problem> {
        self.problems.iter().chain(&self.list_problem).cloned().collect()
    }

    fn differs(&self, services: &[ReportedService]) -> bool {
        self.context.consensus.read(|state| match state.reports().get(&self.cluster) {
            Some(known) => !same_report(known, &format::fitting(state.format_version(), services)),
            None => !services.is_empty() && !state.is_deleted_cluster(&self.cluster),
        })
    }

    /// Proposes a report beside the session, which goes on meanwhile.
    fn write(&self, services: &[ReportedService]) -> oneshot::Receiver<bool> {
        let (done, receiver) = oneshot::channel();
        // A format that knows no more ports is no reason to lose the first.
        let agreed = self.context.consensus.read(State::format_version);
        let services = format::fitting(agreed, services).into_owned();
        let action = Action::ReportExports(ReportExports { cluster: self.cluster.clone(), services });
        let (context, cluster, actor) = (Arc::clone(&self.context), self.cluster.clone(), self.actor.clone());
        tokio::spawn(async move {
            let committed = match context.consensus.commit("", &actor, action).await {
                Ok(outcome) => match outcome.answer {
                    Some(Answer::Refused(refused)) => {
                        tracing::warn!(cluster, reason = refusal::text(&refused), "the agent's report is refused");
                        false
                    }
                    _ => true,
                },
                Err(error) => {
                    tracing::debug!(cluster, %error, "the agent's report is not committed yet");
                    false
                }
            };
            // The session may have ended meanwhile.
            let _ = done.send(committed);
        });
        receiver
    }
}

impl Peer for Session {
    type In = AgentMessage;
    type Out = AgentDirective;
    /// Agents report every 5 s.
    const SILENCE_MAX: Duration = Duration::from_secs(20);

    fn replaced(&self) -> CancellationToken {
        self.guard.replaced()
    }

    fn notice(notice: Notice) -> AgentDirective {
        AgentDirective { body: Some(agent_directive::Body::Notice(notice)) }
    }

    fn confirmed(&mut self, applied: Version) {
        if let Some(imports) = &mut self.imports {
            imports.confirmed(applied);
        }
    }

    async fn advance(&mut self, out: &Outbox<AgentDirective>) -> Result<(), End> {
        if !std::mem::replace(&mut self.is_welcomed, true) {
            let trust_domain = self.context.trust_domain.to_string();
            let welcome = AgentWelcome { member: self.context.consensus.node_id, trust_domain };
            out.send(AgentDirective { body: Some(agent_directive::Body::Welcome(welcome)) }).await?;
        }
        let problems = self.all_problems();
        if self.told != problems {
            self.told = problems;
            let problems = notice::Notice::Problems(Problems { problems: self.told.clone() });
            out.send(Self::notice(Notice { notice: Some(problems) })).await?;
        }
        for part in self.imports.as_mut().map(imports::Feed::next).unwrap_or_default() {
            out.send(AgentDirective { body: Some(agent_directive::Body::Imports(part)) }).await?;
        }
        for ask in self.unasked.drain(..) {
            // A stream that is stuck is noticed by the next message; the question times out by itself.
            out.try_send(AgentDirective { body: Some(agent_directive::Body::Review(ask)) });
        }
        if let Some(statuses) = self.policies.as_mut().and_then(policies::Policies::news) {
            let statuses = PolicyStatuses { statuses };
            out.send(AgentDirective { body: Some(agent_directive::Body::Policies(statuses)) }).await?;
        }
        self.versions.mark_unchanged();
        // After every event, not only after a report: a change elsewhere may have brought back an older report.
        if let Some(services) = &self.latest
            && self.retry.is_none()
            && self.writing.is_none()
            && self.guard.is_newest()
            && self.differs(services)
        {
            self.writing = Some(self.write(services));
        }
        Ok(())
    }

    async fn event(&mut self) -> Result<(), End> {
        tokio::select! {
            changed = self.versions.changed() => changed.map_err(|_| End::Stopping)?,
            changed = imports_changed(&mut self.imports) => if !changed { return Err(End::Stopping) },
            ask = self.asked.next() => self.unasked.push(ask),
            () = policies_changed(&mut self.policies) => {}
            () = at(self.retry) => self.retry = None,
            committed = written(&mut self.writing) => {
                self.writing = None;
                if !committed {
                    self.retry = Some(Instant::now() + RETRY);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, message: AgentMessage) -> Result<(), End> {
        match message.body {
            Some(Body::Report(report)) => {
                let (admitted, problems) = door::admit_report(report.services);
                if !problems.is_empty() && problems != self.problems {
                    let first = problems.first().map(|p| format!("{}: {}", p.subject, p.reason)).unwrap_or_default();
                    tracing::warn!(
                        cluster = self.cluster,
                        count = problems.len(),
                        first,
                        "part of the agent's report is not used"
                    );
                }
                self.problems = problems;
                self.guard.report(admitted.clone(), self.all_problems());
                self.latest = Some(convert::reported(admitted));
                Ok(())
            }
            Some(Body::Review(reply)) => {
                self.asked.answered(reply);
                Ok(())
            }
            Some(Body::Policies(list)) => {
                self.list(list.policies);
                Ok(())
            }
            Some(Body::Hello(_)) => Err(End::Protocol("a second hello")),
            // A message of a newer version.
            None => Ok(()),
        }
    }

    fn ended(&self, end: &End) {
        if end.is_departure() && self.guard.is_newest() {
            self.context.chronicle.note(told::agent_disconnected(&self.cluster, &end.to_string()));
        }
    }
}

async fn imports_changed(imports: &mut Option<imports::Feed>) -> bool {
    match imports {
        Some(imports) => imports.changed().await,
        None => std::future::pending().await,
    }
}

async fn policies_changed(policies: &mut Option<policies::Policies>) {
    match policies {
        Some(policies) => policies.changed().await,
        None => std::future::pending().await,
    }
}

async fn written(writing: &mut Option<oneshot::Receiver<bool>>) -> bool {
    match writing {
        Some(done) => done.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

/// One for each of a few thousand services.
const POLICIES_MAX: usize = 2_000;
/// Features of agents.
const IMPORTS: &str = "imports";
const POLICIES: &str = "policies";
/// It answers whether somebody is a gateway of its cluster.
pub(super) const REVIEWS: &str = "reviews";
