//! The session with the control plane: what the cluster offers and asks for up, what the federation offers it down.
//!
//! Of several replicas only the one that leads has one ([`Wires::leading`]), and its term orders the sessions of all of them:
//! whatever an earlier leader still says is outdated to whoever hears both.

mod imports;
mod reviews;

use std::{sync::Arc, time::Duration};

use archipelago_base::{backoff::Backoff, shutdown::Shutdown};
use archipelago_identity::{LiveCredential, tls::Expect};
use archipelago_proto::v1::{
    AgentDirective, AgentHello, AgentMessage, AgentPolicies, AgentReport, PolicyStatus, SessionOrder,
    agent_control_client::AgentControlClient, agent_directive, agent_message::Body, notice::Notice,
};
use archipelago_rpc::grpc;
use prost::Message as _;
use rand::RngExt;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use self::{imports::Assembly, reviews::Reviews};
use super::{metrics::Metrics, view::View};
use crate::provider::{Imports, Review};

/// What a session needs besides the wires.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) cluster: String,
    pub(super) control_plane: Vec<String>,
    pub(super) credential: LiveCredential,
    pub(super) metrics: Metrics,
}

/// The other ends of a provider's [`crate::provider::Link`], and the view.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) views: watch::Receiver<Arc<View>>,
    pub(super) policies: watch::Receiver<Option<Arc<AgentPolicies>>>,
    pub(super) leading: watch::Receiver<Option<u64>>,
    pub(super) imports: watch::Sender<Option<Arc<Imports>>>,
    pub(super) statuses: watch::Sender<Arc<Vec<PolicyStatus>>>,
    pub(super) reviews: mpsc::Sender<Review>,
}

/// Keeps a stream to any member of the control plane while this replica leads, until `shutdown`.
pub(super) async fn run(settings: Settings, mut wires: Wires, shutdown: Shutdown) {
    let sessions = async {
        // A report without any check done would show every service as down.
        let _ = timeout(SETTLE_TIME_MAX, wires.views.wait_for(|view| view.settled)).await;
        let mut session = 0;
        loop {
            let Some(term) = lead(&mut wires.leading).await else { return };
            let lost = lost(wires.leading.clone(), term);
            tokio::select! {
                () = lost => tracing::info!(term, "another replica may lead: the session with the control plane ends"),
                () = keep(&settings, &mut wires, term, &mut session) => return,
            }
            settings.metrics.connected.set(0);
        }
    };
    tokio::select! {
        () = sessions => {}
        () = shutdown.requested() => {}
    }
}

/// Waits until this replica leads; `None`: it never will.
async fn lead(leading: &mut watch::Receiver<Option<u64>>) -> Option<u64> {
    leading.wait_for(Option::is_some).await.ok().and_then(|term| *term)
}

/// Resolves when this replica does not lead in `term` any more.
async fn lost(mut leading: watch::Receiver<Option<u64>>, term: u64) {
    if leading.wait_for(|now| *now != Some(term)).await.is_err() {
        // The provider has said its last word, and that was this term.
        std::future::pending().await
    }
}

/// Session after session; ends when the agent does.
async fn keep(settings: &Settings, wires: &mut Wires, term: u64, session: &mut u64) {
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MIN, BACKOFF_MAX);
    loop {
        let began = Instant::now();
        *session += 1;
        let order = SessionOrder { boot: term, session: *session };
        let ended = stream(settings, wires, order).await;
        settings.metrics.connected.set(0);
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
}

/// One stream from connect to end; says why it ended.
async fn stream(settings: &Settings, wires: &mut Wires, order: SessionOrder) -> String {
    let Settings { cluster, control_plane, credential, metrics } = settings;
    let channel = match grpc::connect(control_plane, credential, Expect::control_plane()).await {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    let hello = AgentHello {
        cluster: cluster.clone(),
        order: Some(order),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: wires.features(),
    };
    let (messages, outgoing) = mpsc::channel(MESSAGES_MAX);
    let first = [AgentMessage { body: Some(Body::Hello(hello)) }, wires.report()];
    if first.into_iter().any(|message| messages.try_send(message).is_err()) {
        return "the stream ended before it began".to_owned();
    }
    let mut client = AgentControlClient::new(channel).max_decoding_message_size(DIRECTIVE_BYTES_MAX);
    let opened = client.stream(ReceiverStream::new(outgoing));
    let mut directives = match timeout(OPEN_TIME_MAX, opened).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return format!("{}: {}", status.code(), status.message()),
        Err(_) => return format!("no answer within {} s", OPEN_TIME_MAX.as_secs()),
    };
    tracing::info!("connected to the control plane");
    metrics.connected.set(1);
    let mut hearing = Hearing::new(wires);
    let mut again = Instant::now() + REPORT_INTERVAL;
    let mut report_due = false;
    // What was read before the session began is news to it.
    let mut policies_due = true;
    let mut policies_known = true;
    let mut leave_at = None;
    loop {
        tokio::select! {
            directive = directives.message() => match directive {
                Ok(Some(directive)) => match hearing.take(directive, wires, &messages) {
                    Ok(Some(Leadership::Missing)) if control_plane.len() > 1 => {
                        leave_at = Some(Instant::now() + LEADERLESS_MAX);
                    }
                    Ok(Some(Leadership::Missing | Leadership::Present)) => leave_at = None,
                    Ok(None) => {}
                    Err(broken) => return broken.to_string(),
                },
                Ok(None) => return "the control plane closed it".to_owned(),
                Err(status) => return format!("{}: {}", status.code(), status.message()),
            },
            changed = wires.views.changed(), if !report_due => match changed {
                Ok(()) => report_due = true,
                Err(_) => return "the agent is stopping".to_owned(),
            },
            changed = wires.policies.changed(), if !policies_due && policies_known => match changed {
                Ok(()) => policies_due = true,
                // The provider has none to tell, or no more.
                Err(_) => policies_known = false,
            },
            () = tokio::time::sleep_until(again), if !report_due => report_due = true,
            () = at(leave_at) => return "this member knows no leader; perhaps another does".to_owned(),
            // What is sent is made when there is room for it, so it is never an old one.
            room = messages.reserve(), if report_due || policies_due => match room {
                Ok(room) if report_due => {
                    room.send(wires.report());
                    report_due = false;
                    again = Instant::now() + REPORT_INTERVAL;
                }
                Ok(room) => {
                    if let Some(policies) = wires.policies() {
                        room.send(policies);
                    }
                    policies_due = false;
                }
                Err(_) => return "the connection ended".to_owned(),
            },
        }
    }
}

impl Wires {
    /// What somebody behind the wires has a use for, or an answer to.
    fn features(&self) -> Vec<String> {
        let features = [
            ("imports", !self.imports.is_closed()),
            ("policies", self.policies.has_changed().is_ok()),
            ("reviews", !self.reviews.is_closed()),
        ];
        features.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect()
    }

    fn report(&mut self) -> AgentMessage {
        let view = Arc::clone(&self.views.borrow_and_update());
        AgentMessage { body: Some(Body::Report(AgentReport { services: view.reports() })) }
    }

    /// The policies, once all have been read.
    fn policies(&mut self) -> Option<AgentMessage> {
        let policies = self.policies.borrow_and_update().clone()?;
        let bytes = policies.encoded_len();
        if bytes > POLICIES_BYTES_MAX {
            // The control plane would end the session for it, and with it the reports.
            tracing::error!(
                bytes,
                bytes_max = POLICIES_BYTES_MAX,
                "the policies of this cluster are too large together: none is sent"
            );
            return None;
        }
        Some(AgentMessage { body: Some(Body::Policies(AgentPolicies::clone(&policies))) })
    }
}

/// What the control plane has said in this session.
struct Hearing {
    imports: Assembly,
    reviews: Reviews,
}

/// What a notice says of the member at the other end.
enum Leadership {
    Missing,
    Present,
}

impl Hearing {
    fn new(wires: &Wires) -> Self {
        Self { imports: Assembly::default(), reviews: Reviews::new(wires.reviews.clone()) }
    }

    /// Takes a directive in, and hands it to whom it is for.
    fn take(
        &mut self,
        directive: AgentDirective,
        wires: &Wires,
        messages: &mpsc::Sender<AgentMessage>,
    ) -> Result<Option<Leadership>, imports::Broken> {
        match directive.body {
            Some(agent_directive::Body::Notice(notice)) => return Ok(notice.notice.and_then(heard)),
            Some(agent_directive::Body::Imports(message)) => {
                if let Some(imports) = self.imports.take(message)? {
                    tracing::debug!(services = imports.len(), "the federation's exports changed");
                    wires.imports.send_replace(Some(imports));
                }
            }
            Some(agent_directive::Body::Review(ask)) => self.reviews.ask(ask, messages.clone()),
            Some(agent_directive::Body::Policies(said)) => {
                wires.statuses.send_if_modified(|statuses| {
                    let changed = **statuses != said.statuses;
                    if changed {
                        *statuses = Arc::new(said.statuses);
                    }
                    changed
                });
            }
            // The last: a directive of a newer version.
            Some(agent_directive::Body::Welcome(_)) | None => {}
        }
        Ok(None)
    }
}

/// Takes a notice in: what people should know goes to the log.
fn heard(notice: Notice) -> Option<Leadership> {
    match notice {
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
/// A hello, a report, and replies of reviews, each of which waits for its place.
const MESSAGES_MAX: usize = 4;
/// The control plane takes 8 MiB.
const POLICIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Parts of imports are an eighth of this.
const DIRECTIVE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Many failed elections: a member that is cut off alone must not keep us from the others.
const LEADERLESS_MAX: Duration = Duration::from_secs(8);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);
const OPEN_TIME_MAX: Duration = Duration::from_secs(5);
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Quick after a restart of the one member we were on, spread out when all agents of a federation lost theirs.
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
