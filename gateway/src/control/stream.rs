//! The client of `GatewayControl.Stream`: hello with a digest of what is held, updates in, acknowledgements and reports out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_base::backoff::Backoff;
use archipelago_identity::LiveCredential;
use archipelago_identity::tls::Expect;
use archipelago_model::feature;
use archipelago_model::stream::Refusal;
use archipelago_model::version::Version;
use archipelago_proto::v1::gateway_control_client::GatewayControlClient;
use archipelago_proto::v1::{
    ConfigAck, ConfigUpdate, ExplainAsk, ExplainReply, ExplainResponse, GatewayAddresses, GatewayDirective,
    GatewayHello, GatewayMessage, GatewayReport, HeldResources, Notice, Problem, SessionOrder, gateway_directive,
    gateway_message, notice,
};
use archipelago_rpc::grpc;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::apply::{Applied, Change, Update};
use super::questions::Questions;
use super::status::ControlStatus;
use crate::config::{ConfigState, Published};
use crate::handover::{Phase, Turn};
use crate::journal::Journal;
use crate::telemetry::GatewayMetrics;
use crate::worker::captures::CapturePorts;
use crate::worker::ports::TcpPorts;
use crate::workers::Workers;

/// What the stream needs.
pub struct ControlStream {
    /// Members of the control plane, host:port.
    pub control_plane: Vec<String>,
    /// Our cluster.
    pub cluster: String,
    /// Our name.
    pub gateway: String,
    /// Where we can be reached.
    pub addresses: GatewayAddresses,
    /// Our SVID.
    pub credential: LiveCredential,
    /// What is held.
    pub state: watch::Receiver<Arc<ConfigState>>,
    /// Which worker serves with what.
    pub published: Arc<Published>,
    /// Where updates go.
    pub updates: mpsc::Sender<Update>,
    /// The workers, for explanations.
    pub workers: Workers,
    /// Who answers what operators ask.
    pub questions: Questions,
    /// Where the state of the tunnels is found.
    pub metrics: GatewayMetrics,
    /// Which TCP services have no port here.
    pub tcp_ports: Arc<TcpPorts>,
    /// Which ports for clients of the node cannot be had here.
    pub capture_ports: Arc<CapturePorts>,
    /// Told when the tunnels changed.
    pub reports: Arc<Notify>,
    /// What operators are told of what this gateway saw.
    pub journal: Journal,
    /// What people are told of this stream.
    pub status: watch::Sender<ControlStatus>,
    /// Number of this start of the process.
    pub boot: u64,
    /// Whose turn it is: while a successor prepares itself or serves, its session is the one that counts.
    pub turn: Turn,
    /// After another process of this gateway: told when the endpoints of this cluster are known. Our session registers our tunnels in
    /// the place of those before, and peers that came too early would find nothing behind them.
    pub after: Option<watch::Receiver<bool>>,
}

/// An update between the control plane and the workers.
struct Pending {
    version: Version,
    applied: oneshot::Receiver<Result<Applied, Refusal>>,
}

/// An update that some worker does not serve with yet.
struct Late {
    version: Version,
    applied: Applied,
}

impl ControlStream {
    /// Stays connected to any member, for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(DELAY_FLOOR, DELAY_MIN, DELAY_MAX);
        let mut pending = None;
        let mut session = 0;
        if let Some(mut heard) = self.after.take()
            && heard.wait_for(|heard| *heard).await.is_err()
        {
            return;
        }
        loop {
            self.turn.until(Phase::begins_sessions).await;
            let began = Instant::now();
            session += 1;
            // What the hello says must be what runs: an update that is still being applied is awaited.
            if let Some(Pending { applied, .. }) = pending.take() {
                let _ = applied.await;
            }
            let error = match self.connect(session, &mut pending).await {
                Ok(()) => "the control plane ended the stream".to_owned(),
                Err(error) => error,
            };
            if began.elapsed() > HELD {
                backoff.reset();
            }
            if self.status.borrow().connected || session == 1 {
                tracing::info!(error, "no control plane; the last good configuration stays in use");
            }
            self.status.send_modify(|status| status.disconnected(&error));
            tokio::time::sleep(backoff.next_delay(rand::random())).await;
        }
    }

    async fn connect(&self, session: u64, pending: &mut Option<Pending>) -> Result<(), String> {
        let channel = grpc::connect(&self.control_plane, &self.credential, Expect::control_plane())
            .await
            .map_err(|e| e.to_string())?;
        let (out, messages) = mpsc::channel(MESSAGES_QUEUED_MAX);
        send(&out, gateway_message::Body::Hello(self.hello(session))).await?;
        send(&out, gateway_message::Body::Report(self.report())).await?;
        let mut client = GatewayControlClient::new(channel).max_decoding_message_size(UPDATE_BYTES_MAX);
        let mut directives =
            client.stream(ReceiverStream::new(messages)).await.map_err(|status| status.to_string())?.into_inner();
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut late: Option<Late> = None;
        let (mut news, mut heard) = (self.journal.subscribe(), None);
        let mut leave_at: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                outcome = outcome(pending) => {
                    let version = pending.take().map_or_else(Version::default, |pending| pending.version);
                    let outcome = outcome.map_err(|_| "shutting down")?;
                    send(&out, gateway_message::Body::Ack(self.ack(version, &outcome))).await?;
                    late = outcome.ok().filter(|applied| !applied.late_workers.is_empty()).map(|applied| Late { version, applied });
                }
                () = caught_up(&self.published, late.as_ref()) => if let Some(Late { version, applied }) = late.take() {
                    // Unless a newer one is on its way to the workers: then that is what they have caught up with.
                    if pending.is_none() {
                        let applied = Applied { late_workers: Vec::new(), ..applied };
                        send(&out, gateway_message::Body::Ack(self.ack(version, &Ok(applied)))).await?;
                    }
                },
                directive = directives.message() => {
                    let Some(GatewayDirective { body }) = directive.map_err(|status| status.to_string())? else { return Ok(()) };
                    if !self.status.borrow().connected {
                        tracing::info!("connected to the control plane");
                        self.status.send_modify(ControlStatus::connected);
                    }
                    match body {
                        Some(gateway_directive::Body::Update(update)) => {
                            if pending.is_some() {
                                return Err("the control plane sent an update before the one before was answered".to_owned());
                            }
                            late = None;
                            *pending = Some(self.apply(update).await?);
                        }
                        Some(gateway_directive::Body::EventsFrom(from)) => {
                            heard = Some(self.say_events(self.journal.resume(from), true, &out).await?);
                        }
                        Some(gateway_directive::Body::SendHeld(_)) => {
                            send(&out, gateway_message::Body::Held(self.held())).await?;
                        }
                        // Beside everything else: it lasts as long as a peer that does not answer. Who asks is limited by the member.
                        Some(gateway_directive::Body::Explain(ask)) if asks_for_probes(&ask) => {
                            let (workers, out) = (self.workers.clone(), out.clone());
                            tokio::spawn(async move {
                                let response =
                                    ExplainResponse { probed: true, probes: workers.probe().await, ..ExplainResponse::default() };
                                let reply = ExplainReply { id: ask.id, response: Some(response) };
                                // The session may have ended meanwhile, and whoever asked has been told.
                                drop(send(&out, gateway_message::Body::Explain(reply)).await);
                            });
                        }
                        Some(gateway_directive::Body::Explain(ask)) => {
                            let reply = self.explain(ask).await;
                            send(&out, gateway_message::Body::Explain(reply)).await?;
                        }
                        Some(gateway_directive::Body::Question(question)) => self.questions.put(question, &out),
                        Some(gateway_directive::Body::Notice(Notice { notice: Some(notice) })) => {
                            match notice {
                                // Alone there is nobody better to ask.
                                notice::Notice::NoLeader(_) if self.control_plane.len() > 1 => {
                                    leave_at = Some(tokio::time::Instant::now() + LEADERLESS_MAX);
                                }
                                notice::Notice::HasLeader(_) => leave_at = None,
                                _ => {}
                            }
                            self.status.send_modify(|status| status.notice(notice));
                        }
                        // A newer control plane says something this gateway does not know: not for us.
                        Some(gateway_directive::Body::Notice(Notice { notice: None })) | None => {}
                    }
                }
                moved = news.changed(), if heard.is_some() => {
                    moved.map_err(|_| "shutting down")?;
                    if let Some(sequence) = &mut heard {
                        *sequence = self.say_events(*sequence, false, &out).await?;
                    }
                }
                () = at(leave_at) => return Err("this member knows no leader; perhaps another does".to_owned()),
                _ = report.tick() => send(&out, gateway_message::Body::Report(self.report())).await?,
                () = self.reports.notified() => {
                    send(&out, gateway_message::Body::Report(self.report())).await?;
                    report.reset();
                }
            }
        }
    }

    /// Says what was seen after `sequence`, or at least, `anyway`, that there is nothing; where to go on.
    async fn say_events(
        &self,
        mut sequence: u64,
        mut anyway: bool,
        out: &mpsc::Sender<GatewayMessage>,
    ) -> Result<u64, String> {
        loop {
            let (said, next) = self.journal.after(sequence);
            if said.events.is_empty() && !anyway {
                return Ok(sequence);
            }
            (sequence, anyway) = (next, false);
            send(out, gateway_message::Body::Events(said)).await?;
        }
    }

    async fn apply(&self, update: ConfigUpdate) -> Result<Pending, String> {
        let version = update.version.map_or_else(Version::default, Version::from);
        let (sender, applied) = oneshot::channel();
        let update = Update { change: Change::Config(update), applied: sender };
        self.updates.send(update).await.map_err(|_| "shutting down")?;
        Ok(Pending { version, applied })
    }

    fn ack(&self, version: Version, outcome: &Result<Applied, Refusal>) -> ConfigAck {
        let ack = ConfigAck { version: Some(version.into()), ..ConfigAck::default() };
        match outcome {
            Ok(Applied { rejections, late_workers, .. }) => {
                self.status.send_modify(|status| status.applied(rejections));
                let late_workers =
                    late_workers.iter().map(|worker| u32::try_from(*worker).unwrap_or(u32::MAX)).collect();
                ConfigAck { rejections: rejections.clone(), late_workers, ..ack }
            }
            Err(refusal) => {
                tracing::warn!(%version, %refusal, "configuration refused; the last good one stays");
                self.status.send_modify(|status| status.refused(refusal));
                ConfigAck { refused: Some(refusal.clone().into()), ..ack }
            }
        }
    }

    fn hello(&self, session: u64) -> GatewayHello {
        let state = self.state.borrow();
        let not_after = self.credential.current().not_after;
        GatewayHello {
            cluster: self.cluster.clone(),
            gateway: self.gateway.clone(),
            addresses: Some(self.addresses.clone()),
            workers: u32::try_from(self.workers.len()).unwrap_or(u32::MAX),
            svid_not_after_unix: not_after
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            running: (state.held.version != Version::default()).then(|| state.held.version.into()),
            held_digest: state.held.resources.digest().to_bytes(),
            features: features(),
            order: Some(SessionOrder { boot: self.boot, session }),
        }
    }

    fn held(&self) -> HeldResources {
        let state = self.state.borrow();
        let version =
            |resource: &archipelago_model::stream::Resource| (resource.name.clone(), resource.version.to_vec());
        HeldResources { versions: state.held.resources.iter().map(version).collect() }
    }

    fn report(&self) -> GatewayReport {
        let problems = |subject: &'static str, reasons: Vec<String>| {
            reasons.into_iter().map(move |reason| Problem { subject: subject.to_owned(), reason })
        };
        let mut captures = self.capture_ports.unserved();
        if let Some(known) = &self.published.load().captures {
            captures.extend(known.problems().iter().cloned());
        }
        let unserved = problems("TCP service", self.tcp_ports.unserved()).chain(problems("capture", captures));
        GatewayReport { tunnels: self.metrics.tunnels(), unserved: unserved.take(UNSERVED_MAX).collect() }
    }

    async fn explain(&self, ask: ExplainAsk) -> ExplainReply {
        let response = match ask.query {
            Some(query) => self.workers.explain(query).await,
            None => None,
        };
        let response = response.unwrap_or_else(|| ExplainResponse {
            gateway: self.gateway.clone(),
            cluster: self.cluster.clone(),
            failure: "no worker answered".to_owned(),
            ..ExplainResponse::default()
        });
        ExplainReply { id: ask.id, response: Some(response) }
    }
}

/// What can be run here, and what else can be asked of this gateway; sorted.
fn features() -> Vec<String> {
    let mut features: Vec<String> =
        feature::ALL.iter().chain([&feature::SAYS_EVENTS]).map(ToString::to_string).collect();
    features.sort_unstable();
    features
}

fn asks_for_probes(ask: &ExplainAsk) -> bool {
    ask.query.as_ref().is_some_and(|query| query.probe_tunnels)
}

async fn outcome(pending: &mut Option<Pending>) -> Result<Result<Applied, Refusal>, oneshot::error::RecvError> {
    match pending {
        Some(pending) => (&mut pending.applied).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the workers that were late serve with it after all.
async fn caught_up(published: &Published, late: Option<&Late>) {
    match late {
        Some(late) => published.reached_by_all(late.applied.generation, &[]).await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn send(out: &mpsc::Sender<GatewayMessage>, body: gateway_message::Body) -> Result<(), String> {
    // A control plane that does not read for this long is as good as gone.
    match tokio::time::timeout(SEND_TIMEOUT, out.send(GatewayMessage { body: Some(body) })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the stream is closed".to_owned()),
        Err(_) => Err("the control plane does not read".to_owned()),
    }
}

const HELD: Duration = Duration::from_secs(5);
const DELAY_FLOOR: Duration = Duration::from_millis(20);
const DELAY_MIN: Duration = Duration::from_millis(100);
/// A control plane that returns sees all its gateways again within this.
const DELAY_MAX: Duration = Duration::from_secs(3);
/// Many failed elections: a member that is cut off alone must not keep us from the others.
const LEADERLESS_MAX: Duration = Duration::from_secs(8);
const MESSAGES_QUEUED_MAX: usize = 16;
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// As many as the control plane keeps.
const UNSERVED_MAX: usize = 100;
/// The contract asks for a report at least every 2 s.
const REPORT_INTERVAL: Duration = Duration::from_millis(1_500);
/// 10,000 services of 1 KiB, and room.
const UPDATE_BYTES_MAX: usize = 64 * 1024 * 1024;
