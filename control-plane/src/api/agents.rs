//! `AgentControl`: one stream per cluster's agent. Counts stay soft state; identity facts are replicated when they change.

use std::{sync::Arc, time::Duration};

use archipelago_identity::MeshRole;
use archipelago_proto::v1::{AgentDirective, AgentMessage, agent_control_server::AgentControl};
use archipelago_rpc::grpc;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use crate::{
    consensus::cut_off,
    machine::{
        command::{Action, Answer, ReportExports, ReportedService},
        convert,
    },
    refusal,
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
        let messages = request.into_inner();
        let (directives, receiver) = mpsc::channel(DIRECTIVES_MAX);
        let context = Arc::clone(&self.0);
        tokio::spawn(async move {
            tracing::info!(cluster, "agent connected");
            let status = serve(&context, &cluster, &caller.to_string(), messages, &directives).await;
            tracing::info!(
                cluster,
                reason = status.as_ref().map_or("it closed the stream", Status::message),
                "agent disconnected"
            );
            if let Some(status) = status {
                let _ = timeout(GOODBYE_TIMEOUT, directives.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves one agent; the status is what it is told at the end, if anything.
async fn serve(
    context: &Arc<Context>,
    cluster: &str,
    actor: &str,
    mut messages: Streaming<AgentMessage>,
    directives: &mpsc::Sender<Result<AgentDirective, Status>>,
) -> Option<Status> {
    let guard = context.sessions.open_agent(cluster);
    let replaced = guard.replaced();
    let mut revisions = context.consensus.published.subscribe();
    revisions.mark_changed();
    let mut leaderless = context.consensus.leaderless();
    let cut_off = async {
        sleep(SESSION_MIN).await;
        cut_off(&mut leaderless).await;
    };
    tokio::pin!(cut_off);
    let mut silent_at = Instant::now() + SILENCE_MAX;
    let mut latest: Option<Vec<ReportedService>> = None;
    let mut retry: Option<Instant> = None;
    loop {
        tokio::select! {
            () = context.stopping.cancelled() => {
                return Some(Status::unavailable("this member is shutting down, connect to another"));
            }
            () = replaced.cancelled() => return Some(Status::aborted("a newer session of this cluster's agent began")),
            () = sleep_until(silent_at) => return Some(Status::deadline_exceeded("no message within 20 s")),
            () = &mut cut_off => {
                return Some(Status::unavailable("this member is cut off from the others, connect to another"));
            }
            () = directives.closed() => return None,
            changed = revisions.changed() => {
                if changed.is_err() {
                    return None;
                }
                let revision = revisions.borrow_and_update().revision;
                if !matches!(timeout(SEND_TIMEOUT, directives.send(Ok(AgentDirective { revision }))).await, Ok(Ok(()))) {
                    return None;
                }
            }
            message = messages.message() => match message {
                Ok(Some(message)) => {
                    silent_at = Instant::now() + SILENCE_MAX;
                    if message.cluster != cluster {
                        return Some(Status::permission_denied(format!(
                            "{actor} may not report for cluster {}",
                            message.cluster
                        )));
                    }
                    guard.report(message.services.clone());
                    latest = Some(convert::reported(message.services));
                }
                Ok(None) => return None,
                Err(status) => {
                    tracing::debug!(cluster, error = status.message(), "the agent's connection broke");
                    return None;
                }
            },
            () = at(retry) => retry = None,
        }
        // After every event, not only after a report: a revision may have brought back an older report.
        if let Some(services) = &latest
            && retry.is_none()
            && guard.is_newest()
            && differs(context, cluster, services)
            && !report(context, cluster, actor, services).await
        {
            retry = Some(Instant::now() + REPORT_RETRY);
        }
    }
}

fn differs(context: &Context, cluster: &str, services: &Vec<ReportedService>) -> bool {
    context.consensus.read(|state| match state.reports().get(cluster) {
        Some(known) => **known != *services,
        None => !services.is_empty() && !state.is_deleted_cluster(cluster),
    })
}

async fn report(context: &Context, cluster: &str, actor: &str, services: &[ReportedService]) -> bool {
    let action = Action::ReportExports(ReportExports { cluster: cluster.to_owned(), services: services.to_vec() });
    match context.consensus.commit("", actor, action).await {
        Ok(outcome) => {
            if let Some(Answer::Refused(refused)) = outcome.answer {
                tracing::warn!(cluster, reason = refusal::text(&refused), "the agent's report is refused");
                return false;
            }
            true
        }
        Err(error) => {
            tracing::debug!(cluster, %error, "the agent's report is not committed yet");
            false
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

const DIRECTIVES_MAX: usize = 16;
/// Agents report every 5 s.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// An agent that nobody serves better stays at least this long.
const SESSION_MIN: Duration = Duration::from_secs(10);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const REPORT_RETRY: Duration = Duration::from_secs(1);
