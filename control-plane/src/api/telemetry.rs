//! `Telemetry`: what gateways measure. Here is the one way by which a member asks all gateways something.
//!
//! Each gateway is asked through its stream by the member that serves it; this member asks those members, all at once, and passes
//! answers on as they come. A gateway of which there is no answer is named with the reason: nothing is made up for it.

mod tap;
pub(crate) mod top;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use archipelago_proto::v1::{
    Answer, AskLocalRequest, AskRequest, GatewayAnswer, GatewayQuestion, NoAnswer, NoAnswerReason as Reason, Question,
    TapRequest, TapSaid, TopRequest, TopSnapshot, gateway_answer::Outcome, question, telemetry_server::Telemetry,
};
use futures_util::{StreamExt as _, future::join_all, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{Context, operator};
use crate::sessions::{AskError, gateway_key};

pub(super) struct TelemetryService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Telemetry for TelemetryService {
    type AskStream = ReceiverStream<Result<GatewayAnswer, Status>>;

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        operator(&request)?;
        let AskRequest { clusters, question } = request.into_inner();
        let body = question.and_then(|question| question.body);
        let body = body.ok_or_else(|| Status::invalid_argument("no question that this member knows"))?;
        let clusters: BTreeSet<String> = clusters.into_iter().collect();
        let (answers, receiver) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let is_asked = |cluster: &str| clusters.is_empty() || clusters.contains(cluster);
        let inquiry = self.0.inquire(|cluster, _| is_asked(cluster).then(|| body.clone()))?;
        tokio::spawn(inquiry.run(move |answer| {
            let answers = answers.clone();
            async move { answers.send(Ok(answer)).await }
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TopStream = ReceiverStream<Result<TopSnapshot, Status>>;

    async fn top(&self, request: Request<TopRequest>) -> Result<Response<Self::TopStream>, Status> {
        operator(&request)?;
        let look = top::Look::new(request.into_inner())?;
        let permit = self.0.look()?;
        let (snapshots, receiver) = mpsc::channel(1);
        tokio::spawn(look.run(Arc::clone(&self.0), snapshots, permit));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TapStream = ReceiverStream<Result<TapSaid, Status>>;

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        operator(&request)?;
        let look = tap::Look::new(request.into_inner())?;
        let permit = self.0.look()?;
        let (said, receiver) = mpsc::channel(ANSWERS_QUEUED_MAX);
        tokio::spawn(look.run(Arc::clone(&self.0), said, permit));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A question to one gateway.
#[derive(Debug, Clone)]
pub(super) struct Addressed {
    pub(super) cluster: String,
    pub(super) gateway: String,
    pub(super) body: question::Body,
}

/// Questions to all gateways that are known; there are so many at once at most.
pub(crate) struct Inquiry {
    context: Arc<Context>,
    /// By the member that serves the gateway.
    questions: BTreeMap<u64, Vec<Addressed>>,
    missing: Vec<GatewayAnswer>,
    _permit: OwnedSemaphorePermit,
}

impl Context {
    /// Lets one more look, again and again.
    fn look(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.looks).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{LOOKS_MAX} others look already: end one, or ask another member"))
        })
    }

    /// Prepares to ask every gateway what `question` gives for its cluster and name, if anything.
    ///
    /// # Errors
    /// Too many inquiries are under way.
    pub(crate) fn inquire(
        self: &Arc<Self>,
        mut question: impl FnMut(&str, &str) -> Option<question::Body>,
    ) -> Result<Inquiry, Status> {
        let permit = Arc::clone(&self.inquiries).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("this member asks gateways as much as it may: try again, or ask another member")
        })?;
        let connected = self.sessions.gateways();
        let mut questions: BTreeMap<u64, Vec<Addressed>> = BTreeMap::new();
        for view in connected.values() {
            let (cluster, gateway) = (view.session.cluster.clone(), view.session.gateway.clone());
            if let Some(body) = question(&cluster, &gateway) {
                questions.entry(view.member).or_default().push(Addressed { cluster, gateway, body });
            }
        }
        let missing = self.consensus.read(|state| {
            let known = state.gateways().keys();
            let absent = known.filter(|(cluster, gateway)| !connected.contains_key(&gateway_key(cluster, gateway)));
            let asked = absent.filter(|(cluster, gateway)| question(cluster, gateway).is_some());
            asked
                .map(|(cluster, gateway)| no_answer(cluster, gateway, Reason::NotConnected, "is not connected"))
                .collect()
        });
        Ok(Inquiry { context: Arc::clone(self), questions, missing, _permit: permit })
    }

    /// Asks gateways that are connected to this member, and hands on what they say until nobody takes it any more.
    pub(super) async fn ask_here<E, F: Future<Output = Result<(), E>>>(
        &self,
        questions: Vec<Addressed>,
        hand_on: impl Fn(GatewayAnswer) -> F,
    ) {
        let deadline = Instant::now() + GATEWAYS_TIME_MAX;
        let asked = questions.into_iter().map(|Addressed { cluster, gateway, body }| async move {
            let key = gateway_key(&cluster, &gateway);
            let told = timeout_at(deadline, self.sessions.question(&key, body)).await;
            match told.unwrap_or(Err(AskError::Silent)) {
                Ok(Answer { failure, body: None, .. }) if !failure.is_empty() => {
                    no_answer(&cluster, &gateway, Reason::Failed, printable(&failure))
                }
                // An answer of a kind that this member does not know to a question that it does.
                Ok(Answer { body: None, .. }) => no_answer(&cluster, &gateway, Reason::Failed, "said nothing"),
                Ok(answer) => GatewayAnswer { cluster, gateway, outcome: Some(Outcome::Answer(answer)) },
                Err(error) => no_answer(&cluster, &gateway, reason(error), error.to_string()),
            }
        });
        let mut answers = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX);
        while let Some(answer) = answers.next().await {
            if hand_on(answer).await.is_err() {
                return;
            }
        }
    }
}

impl Inquiry {
    /// Hands on what each gateway says, or why it says nothing, until nobody takes it any more.
    pub(crate) async fn run<E, F: Future<Output = Result<(), E>>>(self, hand_on: impl Fn(GatewayAnswer) -> F) {
        let Self { context, questions, missing, _permit } = self;
        for absent in missing {
            if hand_on(absent).await.is_err() {
                return;
            }
        }
        let (context, hand_on) = (&context, &hand_on);
        let asked = questions.into_iter().map(|(member, questions)| async move {
            if member == context.consensus.node_id {
                context.ask_here(questions, hand_on).await;
            } else {
                context.ask_member(member, questions, hand_on).await;
            }
        });
        join_all(asked).await;
    }
}

impl Context {
    /// Has another member ask the gateways that it serves. Of those that it has not answered for in the end the reason is told.
    async fn ask_member<E, F: Future<Output = Result<(), E>>>(
        &self,
        member: u64,
        questions: Vec<Addressed>,
        hand_on: &impl Fn(GatewayAnswer) -> F,
    ) {
        let deadline = Instant::now() + MEMBER_TIME_MAX;
        let mut open: BTreeSet<(String, String)> =
            questions.iter().map(|asked| (asked.cluster.clone(), asked.gateway.clone())).collect();
        let questions = questions.into_iter().map(|Addressed { cluster, gateway, body }| GatewayQuestion {
            cluster,
            gateway,
            question: Some(Question { id: 0, body: Some(body) }),
        });
        let request = AskLocalRequest { questions: questions.collect() };
        let asked = async {
            let mut client = self.consensus.peers.client(member).await?;
            let mut answers = client.ask_local(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                // A member speaks of the gateways that it was asked about, and once.
                if open.remove(&(answer.cluster.clone(), answer.gateway.clone())) && hand_on(answer).await.is_err() {
                    open.clear();
                    break;
                }
            }
            Ok::<(), Status>(())
        };
        let (reason, detail) = match timeout_at(deadline, asked).await {
            Ok(Ok(())) => (Reason::TimedOut, format!("cp-{member}, which serves it, did not say")),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                (Reason::NotSupported, format!("cp-{member}, which serves it, does not know the question: upgrade it"))
            }
            Ok(Err(status)) => {
                (Reason::TimedOut, format!("cp-{member}, which serves it: {}", printable(status.message())))
            }
            Err(_) => (Reason::TimedOut, format!("cp-{member}, which serves it, did not answer in time")),
        };
        for (cluster, gateway) in open {
            if hand_on(no_answer(&cluster, &gateway, reason, detail.clone())).await.is_err() {
                return;
            }
        }
    }
}

fn no_answer(cluster: &str, gateway: &str, reason: Reason, detail: impl Into<String>) -> GatewayAnswer {
    let missing = NoAnswer { reason: reason.into(), detail: detail.into() };
    GatewayAnswer { cluster: cluster.to_owned(), gateway: gateway.to_owned(), outcome: Some(Outcome::Missing(missing)) }
}

const fn reason(error: AskError) -> Reason {
    match error {
        AskError::NotConnected => Reason::NotConnected,
        AskError::NotSupported => Reason::NotSupported,
        AskError::Busy => Reason::Busy,
        AskError::Silent => Reason::TimedOut,
        AskError::TooLarge => Reason::TooLarge,
    }
}

/// What somebody else says, as far as people read it.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(DETAIL_CHARS_MAX).collect()
}

/// Each holds [`ASKED_AT_ONCE_MAX`] answers at most, of every member.
pub(crate) const INQUIRIES_MAX: usize = 16;
/// A thousand gateways in 16 round trips; 128 MiB of answers if all of them say as much as they may.
const ASKED_AT_ONCE_MAX: usize = 64;
/// Each holds what it knows of all gateways: 64 MiB at most, a few in a small federation.
pub(crate) const LOOKS_MAX: usize = 8;
const ANSWERS_QUEUED_MAX: usize = 4;
/// For all gateways of one member, of which one that does not answer takes 2 s.
const GATEWAYS_TIME_MAX: Duration = Duration::from_secs(4);
/// For another member to say so.
const MEMBER_TIME_MAX: Duration = Duration::from_secs(5);
const DETAIL_CHARS_MAX: usize = 200;
