//! `GatewayControl`: one stream per gateway, from hello to goodbye.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use archipelago_identity::{MeshRole, SpiffeId};
use archipelago_model::{
    event::Draft,
    feature,
    stream::{Digest, Next, Offer, Refusal},
    version::Version,
};
use archipelago_proto::v1::{
    Behind, ConfigAck, ExplainAsk, GatewayDirective, GatewayHello, GatewayMessage, Notice, Problem, Problems, Question,
    SendHeld, gateway_control_server::GatewayControl, gateway_directive, gateway_message::Body, notice,
};
use archipelago_rpc::grpc;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
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
    chronicle::sessions::{self as told, Unusable},
    config::Suited,
    machine::{
        Gateway,
        command::{Action, Answer, RegisterGateway},
        convert,
    },
    refusal,
    sessions::{ANSWER_BYTES_MAX, Ask, AskError, Asked, GatewayGuard, Told, door, gateway_key},
};

pub(super) struct GatewayService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl GatewayControl for GatewayService {
    type StreamStream = ReceiverStream<Result<GatewayDirective, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<GatewayMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = grpc::require(&request, |role| matches!(role, MeshRole::Gateway { .. }))?;
        let mut messages = request.into_inner();
        let hello = match timeout(HELLO_TIMEOUT, messages.message()).await {
            Ok(Ok(Some(GatewayMessage { body: Some(Body::Hello(hello)) }))) => hello,
            Ok(Ok(_)) => return Err(Status::invalid_argument("the first message of a gateway is its hello")),
            Ok(Err(status)) => return Err(status),
            Err(_) => return Err(Status::deadline_exceeded("no hello within 5 s")),
        };
        let own = SpiffeId::gateway(&self.0.trust_domain, &hello.cluster, &hello.gateway);
        if own != caller {
            return Err(Status::permission_denied(format!(
                "{caller} may not act as gateway {} of cluster {}",
                hello.gateway, hello.cluster
            )));
        }
        let (out, directives) = stream::outbox();
        let name = format!("gateway {}", gateway_key(&hello.cluster, &hello.gateway));
        let session = Session::new(Arc::clone(&self.0), &caller, hello);
        tokio::spawn(stream::run(Arc::clone(&self.0), name, session, messages, out));
        Ok(Response::new(ReceiverStream::new(directives)))
    }
}

/// One connected gateway.
struct Session {
    context: Arc<Context>,
    cluster: String,
    gateway: String,
    record: Gateway,
    guard: GatewayGuard,
    offer: Offer,
    configurations: watch::Receiver<Option<Suited>>,
    versions: watch::Receiver<Version>,
    asks: Option<mpsc::Receiver<Ask>>,
    /// Questions to put to the gateway.
    unasked: Vec<Ask>,
    /// Questions that the gateway has not answered.
    asked: BTreeMap<u64, oneshot::Sender<Result<Told, AskError>>>,
    next_ask: u64,
    /// What is not used of what the gateway said, when that is news to it.
    untold: Option<Vec<Problem>>,
    /// The newest version that the gateway was told it is ahead of.
    told_behind: Option<Version>,
    registration: Option<oneshot::Receiver<Registration>>,
    register_again: Option<Instant>,
    problems: Vec<Problem>,
    /// It says what it sees, and is to be told from where on.
    ask_events: bool,
    /// What of its configuration it cannot use, as events have said it.
    unusable: Unusable,
}

/// What became of an entry in the replicated registry.
enum Registration {
    Done,
    /// No leader took it.
    NotYet,
    Refused(String),
}

impl Session {
    fn new(context: Arc<Context>, spiffe_id: &SpiffeId, mut hello: GatewayHello) -> Self {
        let problems = door::admit_hello(&mut hello);
        let running = hello.running.map_or_else(Version::default, Version::from);
        let offer = Offer::new(running, Digest::from_bytes(&hello.held_digest).unwrap_or_default());
        let record = Gateway {
            spiffe_id: spiffe_id.to_string(),
            addresses: convert::addresses_of(hello.addresses.clone().unwrap_or_default()),
            workers: hello.workers,
        };
        let (cluster, gateway) = (hello.cluster.clone(), hello.gateway.clone());
        tracing::info!(cluster, gateway, %running, version = hello.software_version, "gateway connected");
        if let Some(first) = problems.first() {
            let (count, subject) = (problems.len(), &first.subject);
            tracing::warn!(cluster, gateway, count, subject, reason = first.reason, "part of the hello is not used");
        }
        let ask_events = hello.features.iter().any(|named| named == feature::SAYS_EVENTS);
        let before = context.sessions.boot_of(&gateway_key(&cluster, &gateway));
        context.chronicle.note(told::gateway_connected(&hello, before));
        let configurations = context.compiler.subscribe(&cluster, hello.features.iter().cloned().collect());
        let mut guard = context.sessions.open_gateway(hello, problems.clone());
        let asks = guard.take_asks();
        let versions = context.consensus.published.subscribe();
        Self {
            context,
            cluster,
            gateway,
            record,
            guard,
            offer,
            configurations,
            versions,
            asks,
            unasked: Vec::new(),
            asked: BTreeMap::new(),
            next_ask: 1,
            untold: (!problems.is_empty()).then(|| problems.clone()),
            told_behind: None,
            registration: None,
            register_again: None,
            problems,
            ask_events,
            unusable: Unusable::default(),
        }
    }

    fn note(&self, drafts: impl IntoIterator<Item = Draft>) {
        drafts.into_iter().for_each(|draft| self.context.chronicle.note(draft));
    }

    /// Sends what the gateway should have next, if it is its turn.
    async fn offer_newest(&mut self, out: &Outbox<GatewayDirective>) -> Result<(), End> {
        let Some(Suited { compiled, lacks }) = self.configurations.borrow_and_update().clone() else { return Ok(()) };
        let body = match self.offer.next(&compiled) {
            Next::Nothing => return Ok(()),
            Next::AskHeld => gateway_directive::Body::SendHeld(SendHeld {}),
            Next::Update(update) => {
                self.told_behind = None;
                let unsupported: Vec<Problem> = lacks
                    .iter()
                    .map(|lack| Problem {
                        subject: lack.resource.clone(),
                        reason: format!("unsupported here: this gateway lacks {}", lack.missing_features.join(", ")),
                    })
                    .collect();
                self.guard.unsupported(compiled.version, &unsupported);
                let at = (self.cluster.as_str(), self.gateway.as_str());
                let news = self.unusable.unsupported(at, compiled.version.revision, &unsupported);
                self.note(news);
                self.context.metrics.update_sent(update.upserts.len() + update.removals.len());
                tracing::debug!(
                    cluster = self.cluster,
                    gateway = self.gateway,
                    version = %compiled.version,
                    full = update.full,
                    upserts = update.upserts.len(),
                    removals = update.removals.len(),
                    "configuration sent"
                );
                gateway_directive::Body::Update(update)
            }
            Next::Behind { running, newest } => {
                if self.told_behind.replace(newest) == Some(newest) {
                    return Ok(());
                }
                let member = self.context.consensus.node_id;
                let why = format!(
                    "runs revision {running}, cp-{member} offers {newest}; after a restore run `meshctl raft restored`"
                );
                tracing::warn!(
                    cluster = self.cluster,
                    gateway = self.gateway,
                    why,
                    "a gateway is ahead of the federation"
                );
                self.guard.refused(newest, why);
                let behind = Behind { member, running: Some(running.into()), newest: Some(newest.into()) };
                gateway_directive::Body::Notice(Notice { notice: Some(notice::Notice::Behind(behind)) })
            }
        };
        out.send(GatewayDirective { body: Some(body) }).await
    }

    fn on_ack(&mut self, ack: ConfigAck) {
        let Some(version) = ack.version.map(Version::from) else { return };
        let (cluster, gateway) = (&self.cluster, &self.gateway);
        if let Some(refused) = ack.refused {
            let refusal = Refusal::from_wire(refused, version);
            if !self.offer.refused(version, &refusal) {
                return;
            }
            if let Refusal::WrongBase { .. } = refusal {
                tracing::info!(cluster, gateway, %version, "the gateway holds something else; it gets everything");
                return;
            }
            let why: String = refusal.to_string().chars().take(ERROR_CHARS_MAX).collect();
            tracing::warn!(cluster, gateway, %version, why, "gateway refused the configuration");
            let news = self.unusable.refused((cluster, gateway), version.revision, &why);
            self.context.chronicle.note(news);
            self.guard.refused(version, why);
            self.context.metrics.rejected();
            return;
        }
        if !self.offer.acknowledged(version) {
            return;
        }
        if !ack.late_workers.is_empty() {
            let late: Vec<String> = ack.late_workers.iter().take(LATE_SHOWN_MAX).map(ToString::to_string).collect();
            let why = format!("worker {} does not serve with {version} yet", late.join(", "));
            tracing::warn!(cluster, gateway, why, "a gateway has a slow worker");
            self.guard.late(why);
            return;
        }
        let mut rejections = ack.rejections;
        rejections.truncate(REJECTIONS_MAX);
        for rejection in &mut rejections {
            rejection.reason = rejection.reason.chars().take(ERROR_CHARS_MAX).collect();
            let (resource, reason) = (&rejection.resource, &rejection.reason);
            tracing::warn!(cluster, gateway, %version, resource, reason, "gateway rejected a resource");
            self.context.metrics.rejected();
        }
        let news = self.unusable.acknowledged((cluster, gateway), version.revision, &rejections);
        self.note(news);
        self.guard.acked(version, rejections);
        self.context.metrics.acked();
    }

    fn put_question(&mut self, ask: Ask, out: &Outbox<GatewayDirective>) {
        // Whoever waits gives up in the end, and a gateway need not answer.
        self.asked.retain(|_, reply| !reply.is_closed());
        let id = self.next_ask;
        self.next_ask += 1;
        let body = match ask.asked {
            Asked::Explain(query) => gateway_directive::Body::Explain(ExplainAsk { id, query: Some(query) }),
            Asked::Measured(body) => gateway_directive::Body::Question(Question { id, body: Some(body) }),
        };
        if self.asked.len() < ASKED_MAX && out.try_send(GatewayDirective { body: Some(body) }) {
            self.asked.insert(id, ask.reply);
        } else {
            let _ = ask.reply.send(Err(AskError::Busy));
        }
    }

    fn on_told(&mut self, id: u64, told: Result<Told, AskError>) {
        if let Some(waiting) = self.asked.remove(&id) {
            // Whoever asked may have given up.
            let _ = waiting.send(told);
        }
    }

    /// Records the gateway in the replicated registry, unless it stands there as it is.
    fn register(&self) -> Option<oneshot::Receiver<Registration>> {
        let key = (self.cluster.clone(), self.gateway.clone());
        let needed = self.context.consensus.read(|state| {
            let known = state.gateways().get(&key).map(|known| &**known);
            !state.is_deleted_cluster(&self.cluster) && known != Some(&self.record)
        });
        if !needed || !self.guard.is_newest() {
            return None;
        }
        let (done, receiver) = oneshot::channel();
        let consensus = Arc::clone(&self.context.consensus);
        let action = Action::RegisterGateway(RegisterGateway {
            cluster: self.cluster.clone(),
            name: self.gateway.clone(),
            spiffe_id: self.record.spiffe_id.clone(),
            addresses: Some(self.record.addresses.clone()),
            workers: self.record.workers,
        });
        let actor = self.record.spiffe_id.clone();
        let gateway = gateway_key(&self.cluster, &self.gateway);
        tokio::spawn(async move {
            let committed = match consensus.commit("", &actor, action).await {
                Ok(outcome) => match outcome.answer {
                    Some(Answer::Refused(why)) => {
                        let reason = refusal::text(&why);
                        tracing::warn!(gateway, reason, "gateway not registered");
                        Registration::Refused(reason)
                    }
                    _ => Registration::Done,
                },
                Err(error) => {
                    tracing::debug!(gateway, %error, "gateway not registered yet");
                    Registration::NotYet
                }
            };
            // The session may have ended meanwhile.
            let _ = done.send(committed);
        });
        Some(receiver)
    }

    fn on_registered(&mut self, outcome: Registration) {
        self.registration = None;
        let mut problems = self.problems.clone();
        problems.retain(|problem| problem.subject != REGISTRATION);
        match outcome {
            Registration::Done => {}
            Registration::NotYet => {
                self.register_again = Some(Instant::now() + RETRY);
                return;
            }
            Registration::Refused(reason) => {
                self.register_again = Some(Instant::now() + RETRY);
                problems.push(Problem { subject: REGISTRATION.to_owned(), reason });
            }
        }
        if problems != self.problems {
            self.problems.clone_from(&problems);
            self.untold = Some(problems.clone());
            self.guard.problems(problems);
        }
    }
}

impl Peer for Session {
    type In = GatewayMessage;
    type Out = GatewayDirective;
    /// Gateways report every 2 s; seven missed reports are a gateway that hangs behind a living kernel.
    const SILENCE_MAX: Duration = Duration::from_secs(15);

    fn replaced(&self) -> CancellationToken {
        self.guard.replaced()
    }

    fn notice(notice: Notice) -> GatewayDirective {
        GatewayDirective { body: Some(gateway_directive::Body::Notice(notice)) }
    }

    fn confirmed(&mut self, applied: Version) {
        self.offer.confirmed(applied);
    }

    async fn advance(&mut self, out: &Outbox<GatewayDirective>) -> Result<(), End> {
        if let Some(problems) = self.untold.take() {
            let problems = notice::Notice::Problems(Problems { problems });
            out.send(Self::notice(Notice { notice: Some(problems) })).await?;
        }
        if std::mem::take(&mut self.ask_events) {
            let from = self.context.chronicle.heard_of(&gateway_key(&self.cluster, &self.gateway));
            out.send(GatewayDirective { body: Some(gateway_directive::Body::EventsFrom(from)) }).await?;
        }
        self.offer_newest(out).await?;
        for ask in std::mem::take(&mut self.unasked) {
            self.put_question(ask, out);
        }
        self.versions.mark_unchanged();
        // Also when somebody else's stale registration overwrote ours: the live session is the truth.
        if self.registration.is_none() && self.register_again.is_none() {
            self.registration = self.register();
        }
        Ok(())
    }

    async fn event(&mut self) -> Result<(), End> {
        tokio::select! {
            changed = self.configurations.changed() => {
                // Seen by `offer_newest`, which looks at the newest whatever woke it.
                changed.map_err(|_| End::Stopping)?;
            }
            changed = self.versions.changed() => changed.map_err(|_| End::Stopping)?,
            ask = next_ask(&mut self.asks) => self.unasked.push(ask),
            outcome = pending(&mut self.registration) => self.on_registered(outcome),
            () = at(self.register_again) => self.register_again = None,
        }
        Ok(())
    }

    fn take(&mut self, message: GatewayMessage) -> Result<(), End> {
        match message.body {
            Some(Body::Ack(ack)) => self.on_ack(ack),
            Some(Body::Held(held)) => self.offer.held(held.versions),
            Some(Body::Report(report)) => {
                let mut tunnels = report.tunnels;
                tunnels.truncate(TUNNELS_MAX);
                for tunnel in &mut tunnels {
                    // A gateway speaks for its own end only.
                    tunnel.from = gateway_key(&self.cluster, &self.gateway);
                    tunnel.from_cluster.clone_from(&self.cluster);
                }
                let unserved = door::admit_unserved(report.unserved);
                let news = self.unusable.unserved((&self.cluster, &self.gateway), &unserved);
                self.note(news);
                self.guard.report(tunnels, unserved);
            }
            Some(Body::Explain(reply)) => {
                if let Some(mut response) = reply.response {
                    response.gateway.clone_from(&self.gateway);
                    response.cluster.clone_from(&self.cluster);
                    self.on_told(reply.id, Ok(Told::Explained(Box::new(response))));
                }
            }
            Some(Body::Answer(answer)) => {
                let id = answer.id;
                let told = match answer.encoded_len() <= ANSWER_BYTES_MAX {
                    true => Ok(Told::Measured(answer)),
                    false => Err(AskError::TooLarge),
                };
                self.on_told(id, told);
            }
            Some(Body::Events(said)) => self.context.chronicle.hear(&gateway_key(&self.cluster, &self.gateway), said),
            Some(Body::Hello(_)) => return Err(End::Protocol("a second hello")),
            // A message of a newer version.
            None => {}
        }
        Ok(())
    }

    fn ended(&self, end: &End) {
        if end.is_departure() && self.guard.is_newest() {
            let why = end.to_string();
            self.context.chronicle.note(told::gateway_disconnected(&self.cluster, &self.gateway, &why));
        }
    }
}

async fn next_ask(asks: &mut Option<mpsc::Receiver<Ask>>) -> Ask {
    match asks {
        Some(receiver) => match receiver.recv().await {
            Some(ask) => ask,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn pending(registration: &mut Option<oneshot::Receiver<Registration>>) -> Registration {
    match registration {
        Some(receiver) => receiver.await.unwrap_or(Registration::NotYet),
        None => std::future::pending().await,
    }
}

const REGISTRATION: &str = "registration";
const ASKED_MAX: usize = 64;
const TUNNELS_MAX: usize = 10_000;
const ERROR_CHARS_MAX: usize = 2_000;
/// A gateway that cannot use more than this has one fault, not a thousand.
const REJECTIONS_MAX: usize = 1_000;
const LATE_SHOWN_MAX: usize = 8;
