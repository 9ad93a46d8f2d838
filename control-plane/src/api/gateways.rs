//! `GatewayControl`: one stream per gateway, from hello to goodbye.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use archipelago_identity::{MeshRole, SpiffeId};
use archipelago_proto::v1::{
    ConfigAck, ExplainAsk, ExplainResponse, GatewayDirective, GatewayHello, GatewayMessage,
    gateway_control_server::GatewayControl, gateway_directive, gateway_message::Body,
};
use archipelago_rpc::grpc;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Context,
    offer::{Offer, Verdict},
};
use crate::{
    consensus::cut_off,
    machine::{
        Gateway,
        command::{Action, Answer, RegisterGateway},
        convert,
    },
    refusal,
    sessions::{Ask, GatewayGuard, gateway_key},
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
        let (directives, receiver) = mpsc::channel(DIRECTIVES_MAX);
        let session = Session::new(Arc::clone(&self.0), caller, hello, directives);
        tokio::spawn(session.run(messages));
        Ok(Response::new(ReceiverStream::new(receiver)))
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
    directives: mpsc::Sender<Result<GatewayDirective, Status>>,
    /// Explain questions that the gateway has not answered.
    asked: BTreeMap<u64, oneshot::Sender<ExplainResponse>>,
    next_ask: u64,
}

impl Session {
    fn new(
        context: Arc<Context>,
        spiffe_id: SpiffeId,
        mut hello: GatewayHello,
        directives: mpsc::Sender<Result<GatewayDirective, Status>>,
    ) -> Self {
        let offer = Offer::new(std::mem::take(&mut hello.versions));
        let record = Gateway {
            spiffe_id: spiffe_id.to_string(),
            addresses: convert::addresses_of(hello.addresses.clone().unwrap_or_default()),
            workers: hello.workers,
        };
        let (cluster, gateway) = (hello.cluster.clone(), hello.gateway.clone());
        tracing::info!(
            cluster,
            gateway,
            revision = hello.revision,
            version = hello.software_version,
            "gateway connected"
        );
        let guard = context.sessions.open_gateway(hello);
        Self { context, cluster, gateway, record, guard, offer, directives, asked: BTreeMap::new(), next_ask: 1 }
    }

    async fn run(mut self, mut messages: Streaming<GatewayMessage>) {
        let end = self.serve(&mut messages).await;
        tracing::info!(cluster = self.cluster, gateway = self.gateway, reason = %end, "gateway disconnected");
        let status = match end {
            End::Goodbye | End::Unreachable => return,
            End::Lost(_) => return,
            End::Replaced => Status::aborted("a newer session of this gateway began"),
            End::Stopping => Status::unavailable("this member is shutting down, connect to another"),
            End::CutOff => Status::unavailable("this member is cut off from the others, connect to another"),
            End::Silent => Status::deadline_exceeded("no message within 15 s"),
            End::Protocol(reason) => Status::invalid_argument(reason),
        };
        let _ = timeout(GOODBYE_TIMEOUT, self.directives.send(Err(status))).await;
    }

    async fn serve(&mut self, messages: &mut Streaming<GatewayMessage>) -> End {
        let stopping = self.context.stopping.clone();
        let replaced = self.guard.replaced();
        let mut revisions = self.context.consensus.published.subscribe();
        let mut asks = self.guard.take_asks();
        let cut_off = self.cut_off();
        tokio::pin!(cut_off);
        let mut silent_at = Instant::now() + SILENCE_MAX;
        let mut registration = self.registration();
        let mut register_again = None;
        loop {
            revisions.mark_unchanged();
            if !self.offer_newest().await {
                return End::Unreachable;
            }
            // Also when somebody else's stale registration overwrote ours: the live session is the truth.
            if registration.is_none() && register_again.is_none() {
                registration = self.registration();
            }
            tokio::select! {
                () = stopping.cancelled() => return End::Stopping,
                () = replaced.cancelled() => return End::Replaced,
                () = sleep_until(silent_at) => return End::Silent,
                () = &mut cut_off => return End::CutOff,
                () = self.directives.closed() => return End::Unreachable,
                changed = revisions.changed() => if changed.is_err() { return End::Stopping },
                message = messages.message() => {
                    silent_at = Instant::now() + SILENCE_MAX;
                    match message {
                        Ok(Some(GatewayMessage { body })) => if let Some(end) = self.on_message(body) { return end },
                        Ok(None) => return End::Goodbye,
                        Err(status) => return End::Lost(status.message().to_owned()),
                    }
                }
                ask = next_ask(&mut asks) => self.on_ask(ask).await,
                done = pending(&mut registration) => {
                    registration = None;
                    if !done {
                        register_again = Some(Instant::now() + REGISTER_RETRY);
                    }
                }
                () = at(register_again) => register_again = None,
            }
        }
    }

    /// Counts from the beginning of the session: a gateway that found no better member is served here again.
    fn cut_off(&self) -> impl Future<Output = ()> + use<> {
        let mut leaderless = self.context.consensus.leaderless();
        async move {
            sleep(SESSION_MIN).await;
            cut_off(&mut leaderless).await;
        }
    }

    /// Sends the newest configuration unless one is on its way; false when the gateway is gone.
    async fn offer_newest(&mut self) -> bool {
        let compiled = self.context.compiler.compiled(&self.cluster);
        let Some(update) = self.offer.next(&compiled) else { return true };
        self.context.metrics.update_sent(update.upserts.len() + update.removals.len());
        tracing::debug!(
            cluster = self.cluster,
            gateway = self.gateway,
            revision = update.revision,
            upserts = update.upserts.len(),
            removals = update.removals.len(),
            "configuration sent"
        );
        let directive = GatewayDirective { body: Some(gateway_directive::Body::Update(update)) };
        matches!(timeout(SEND_TIMEOUT, self.directives.send(Ok(directive))).await, Ok(Ok(())))
    }

    fn on_message(&mut self, body: Option<Body>) -> Option<End> {
        match body {
            Some(Body::Ack(ack)) => self.on_ack(ack),
            Some(Body::Report(report)) => {
                let mut tunnels = report.tunnels;
                tunnels.truncate(TUNNELS_MAX);
                for tunnel in &mut tunnels {
                    // A gateway speaks for its own end only.
                    tunnel.from = gateway_key(&self.cluster, &self.gateway);
                    tunnel.from_cluster.clone_from(&self.cluster);
                }
                self.guard.report(tunnels);
            }
            Some(Body::Explain(reply)) => {
                if let (Some(waiting), Some(mut response)) = (self.asked.remove(&reply.id), reply.response) {
                    response.gateway.clone_from(&self.gateway);
                    response.cluster.clone_from(&self.cluster);
                    // Whoever asked may have given up.
                    let _ = waiting.send(response);
                }
            }
            Some(Body::Hello(_)) => return Some(End::Protocol("a second hello")),
            // A field of a newer version.
            None => {}
        }
        None
    }

    fn on_ack(&mut self, ack: ConfigAck) {
        let ConfigAck { revision, error } = ack;
        if error.is_empty() {
            if self.offer.acknowledged(revision) == Verdict::Expected {
                self.guard.acked(revision);
                self.context.metrics.acked();
            }
        } else if self.offer.rejected(revision) == Verdict::Expected {
            let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
            tracing::warn!(
                cluster = self.cluster,
                gateway = self.gateway,
                revision,
                error,
                "gateway rejected the configuration"
            );
            self.guard.rejected(revision, error);
            self.context.metrics.rejected();
        }
    }

    async fn on_ask(&mut self, ask: Ask) {
        while self.asked.len() >= ASKED_MAX {
            self.asked.pop_first();
        }
        let id = self.next_ask;
        self.next_ask += 1;
        self.asked.insert(id, ask.reply);
        let question = ExplainAsk { id, query: Some(ask.query) };
        let directive = GatewayDirective { body: Some(gateway_directive::Body::Explain(question)) };
        // A stream that is stuck is noticed by the next update; the question times out by itself.
        let _ = self.directives.try_send(Ok(directive));
    }

    /// Records the gateway in the replicated registry, unless it stands there as it is.
    fn registration(&self) -> Option<oneshot::Receiver<bool>> {
        let key = (self.cluster.clone(), self.gateway.clone());
        let needed = self.context.consensus.read(|state| {
            !state.is_deleted_cluster(&self.cluster)
                && state.gateways().get(&key).map(|known| &**known) != Some(&self.record)
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
                    Some(Answer::Refused(refused)) => {
                        tracing::warn!(gateway, reason = refusal::text(&refused), "gateway not registered");
                        false
                    }
                    _ => true,
                },
                Err(error) => {
                    tracing::debug!(gateway, %error, "gateway not registered yet");
                    false
                }
            };
            // The session may have ended meanwhile.
            let _ = done.send(committed);
        });
        Some(receiver)
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it closed the stream")]
    Goodbye,
    #[error("it does not take messages any more")]
    Unreachable,
    #[error("the connection broke: {0}")]
    Lost(String),
    #[error("a newer session began")]
    Replaced,
    #[error("this member is stopping")]
    Stopping,
    #[error("this member knows no leader")]
    CutOff,
    #[error("it was silent for too long")]
    Silent,
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
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

async fn pending(registration: &mut Option<oneshot::Receiver<bool>>) -> bool {
    match registration {
        Some(receiver) => receiver.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Gateways report every 2 s; seven missed reports are a gateway that hangs behind a living kernel.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A gateway that nobody serves better stays at least this long.
const SESSION_MIN: Duration = Duration::from_secs(10);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const REGISTER_RETRY: Duration = Duration::from_secs(1);
/// One update is on its way at most; the rest are questions.
const DIRECTIVES_MAX: usize = 16;
const ASKED_MAX: usize = 64;
const TUNNELS_MAX: usize = 10_000;
const ERROR_CHARS_MAX: usize = 2_000;
