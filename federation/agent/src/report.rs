//! Reports to the control plane: which services there are, how many endpoints of each are ready.

use std::{sync::Arc, time::Duration};

use archipelago_base::{backoff::Backoff, shutdown::Shutdown};
use archipelago_identity::{LiveCredential, tls::Expect};
use archipelago_proto::v1::{
    AgentDirective, AgentHello, AgentMessage, AgentReport, ServiceReport, SessionOrder,
    agent_control_client::AgentControlClient, agent_directive, agent_message::Body, notice::Notice,
};
use archipelago_rpc::grpc;
use rand::RngExt;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{metrics::Metrics, view::View};

/// Keeps a stream to any member of the control plane until `shutdown`.
pub(super) async fn run(
    cluster: String,
    control_plane: Vec<String>,
    credential: LiveCredential,
    boot: u64,
    mut views: watch::Receiver<Arc<View>>,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let session = async {
        // A report without any check done would show every service as down.
        let _ = timeout(SETTLE_TIME_MAX, views.wait_for(|view| view.settled)).await;
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MIN, BACKOFF_MAX);
        let mut session = 0;
        loop {
            let began = Instant::now();
            session += 1;
            let order = SessionOrder { boot, session };
            let ended = stream(&cluster, &control_plane, &credential, order, &mut views, &metrics).await;
            metrics.connected.set(0);
            if began.elapsed() > STABLE_AFTER {
                backoff.reset();
            }
            let delay = backoff.next_delay(rand::rng().random_range(0.0..1.0));
            // One line per change of state, not one per attempt of a long outage.
            match backoff.failures() {
                0 | 1 => tracing::warn!(reason = %ended, "stream to the control plane ended, reconnecting"),
                failures => tracing::debug!(reason = %ended, failures, "the control plane cannot be reached"),
            }
            sleep(delay).await;
        }
    };
    tokio::select! {
        () = session => {}
        () = shutdown.requested() => {}
    }
}

/// One stream from connect to end; says why it ended.
async fn stream(
    cluster: &str,
    control_plane: &[String],
    credential: &LiveCredential,
    order: SessionOrder,
    views: &mut watch::Receiver<Arc<View>>,
    metrics: &Metrics,
) -> String {
    let channel = match grpc::connect(control_plane, credential, Expect::control_plane()).await {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    let message = |views: &mut watch::Receiver<Arc<View>>| {
        let services = views.borrow_and_update().reports.iter().map(|report| ServiceReport::clone(report)).collect();
        let report = AgentReport { services };
        AgentMessage { body: Some(Body::Report(report)) }
    };
    let hello = AgentHello {
        cluster: cluster.to_owned(),
        order: Some(order),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Vec::new(),
    };
    let (reports, outgoing) = mpsc::channel(2);
    let first = [AgentMessage { body: Some(Body::Hello(hello)) }, message(views)];
    if first.into_iter().any(|message| reports.try_send(message).is_err()) {
        return "the stream ended before it began".to_owned();
    }
    let mut client = AgentControlClient::new(channel);
    let opened = client.stream(ReceiverStream::new(outgoing));
    let mut directives = match timeout(OPEN_TIME_MAX, opened).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return format!("{}: {}", status.code(), status.message()),
        Err(_) => return format!("no answer within {} s", OPEN_TIME_MAX.as_secs()),
    };
    tracing::info!("connected to the control plane");
    metrics.connected.set(1);
    let mut again = Instant::now() + REPORT_INTERVAL;
    let mut due = false;
    let mut leave_at = None;
    loop {
        tokio::select! {
            directive = directives.message() => match directive {
                Ok(Some(directive)) => {
                    if let Some(notice) = heard(directive) {
                        leave_at = match notice {
                            Leadership::Missing if control_plane.len() > 1 => Some(Instant::now() + LEADERLESS_MAX),
                            Leadership::Missing | Leadership::Present => None,
                        };
                    }
                }
                Ok(None) => return "the control plane closed it".to_owned(),
                Err(status) => return format!("{}: {}", status.code(), status.message()),
            },
            changed = views.changed(), if !due => match changed {
                Ok(()) => due = true,
                Err(_) => return "the agent is stopping".to_owned(),
            },
            () = tokio::time::sleep_until(again), if !due => due = true,
            () = at(leave_at) => return "this member knows no leader; perhaps another does".to_owned(),
            // The report is made when there is room for it, so it is never an old one.
            room = reports.reserve(), if due => match room {
                Ok(room) => {
                    room.send(message(views));
                    due = false;
                    again = Instant::now() + REPORT_INTERVAL;
                }
                Err(_) => return "the connection ended".to_owned(),
            },
        }
    }
}

/// What a notice says of the member at the other end.
enum Leadership {
    Missing,
    Present,
}

/// Takes a directive in: what people should know goes to the log.
fn heard(directive: AgentDirective) -> Option<Leadership> {
    let Some(agent_directive::Body::Notice(notice)) = directive.body else { return None };
    match notice.notice? {
        Notice::NoLeader(from) => {
            tracing::info!(member = from.member, "the control plane knows no leader; reports wait");
            Some(Leadership::Missing)
        }
        Notice::HasLeader(_) => Some(Leadership::Present),
        Notice::Problems(problems) => {
            for problem in problems.problems {
                tracing::warn!(
                    subject = problem.subject,
                    reason = problem.reason,
                    "the control plane does not use what this agent reports"
                );
            }
            None
        }
        Notice::Behind(_) => None,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The contract of the protocol: at least every 5 s; a second is left for a slow network.
const REPORT_INTERVAL: Duration = Duration::from_secs(4);
/// Many failed elections: a member that is cut off alone must not keep us from the others.
const LEADERLESS_MAX: Duration = Duration::from_secs(8);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);
const OPEN_TIME_MAX: Duration = Duration::from_secs(5);
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Quick after a restart of the one member we were on, spread out when all agents of a federation lost theirs.
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
