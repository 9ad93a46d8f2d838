//! The client of `GatewayControl.Stream`: hello with the versions in hand, deltas in, acknowledgements and reports out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_identity::LiveCredential;
use archipelago_identity::tls::Expect;
use archipelago_proto::v1::gateway_control_client::GatewayControlClient;
use archipelago_proto::v1::{
    ConfigAck, ExplainAsk, ExplainReply, ExplainResponse, GatewayAddresses, GatewayHello, GatewayMessage,
    GatewayReport, gateway_directive, gateway_message,
};
use archipelago_rpc::grpc;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::apply::{Change, Update};
use super::backoff::Backoff;
use crate::config::ConfigState;
use crate::telemetry::GatewayMetrics;
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
    /// The last good state.
    pub state: watch::Receiver<Arc<ConfigState>>,
    /// Where updates go.
    pub updates: mpsc::Sender<Update>,
    /// The workers, for explanations.
    pub workers: Workers,
    /// Where the state of the tunnels is found.
    pub metrics: GatewayMetrics,
    /// Told when that changed.
    pub reports: Arc<Notify>,
}

impl ControlStream {
    /// Stays connected to any member, for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let mut away = false;
        loop {
            let began = Instant::now();
            let error = match self.connect(&mut away).await {
                Ok(()) => "the control plane ended the stream".to_owned(),
                Err(error) => error,
            };
            if began.elapsed() > HELD {
                backoff.reset();
            }
            if !away {
                tracing::info!(error, "no control plane; the last good configuration stays in use");
            }
            away = true;
            tokio::time::sleep(backoff.next_delay(rand::random())).await;
        }
    }

    async fn connect(&self, away: &mut bool) -> Result<(), String> {
        let channel = grpc::connect(&self.control_plane, &self.credential, Expect::control_plane())
            .await
            .map_err(|e| e.to_string())?;
        let (out, messages) = mpsc::channel(MESSAGES_QUEUED_MAX);
        send(&out, gateway_message::Body::Hello(self.hello())).await?;
        send(&out, gateway_message::Body::Report(self.report())).await?;
        let mut client = GatewayControlClient::new(channel).max_decoding_message_size(UPDATE_BYTES_MAX);
        let mut directives =
            client.stream(ReceiverStream::new(messages)).await.map_err(|status| status.to_string())?.into_inner();
        let mut pending: Option<(u64, oneshot::Receiver<Result<(), String>>)> = None;
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // The next update waits for the acknowledgement of the one before; questions and reports do not.
                outcome = async { match &mut pending { Some((_, applied)) => applied.await, None => std::future::pending().await } } => {
                    let revision = pending.take().map_or(0, |(revision, _)| revision);
                    let error = outcome.map_err(|_| "shutting down")?.err().unwrap_or_default();
                    send(&out, gateway_message::Body::Ack(ConfigAck { revision, error })).await?;
                }
                directive = directives.message(), if pending.is_none() => {
                    let Some(directive) = directive.map_err(|status| status.to_string())? else { return Ok(()) };
                    if std::mem::take(away) {
                        tracing::info!("the control plane is back");
                    }
                    match directive.body {
                        Some(gateway_directive::Body::Update(update)) => {
                            let (applied, outcome) = oneshot::channel();
                            pending = Some((update.revision, outcome));
                            self.updates.send(Update { change: Change::Config(update), applied }).await.map_err(|_| "shutting down")?;
                        }
                        Some(gateway_directive::Body::Explain(ask)) => {
                            let reply = self.explain(ask).await;
                            send(&out, gateway_message::Body::Explain(reply)).await?;
                        }
                        // A newer control plane says something this gateway does not know: not for us.
                        None => {}
                    }
                }
                _ = report.tick() => send(&out, gateway_message::Body::Report(self.report())).await?,
                () = self.reports.notified() => {
                    send(&out, gateway_message::Body::Report(self.report())).await?;
                    report.reset();
                }
            }
        }
    }

    fn hello(&self) -> GatewayHello {
        let state = self.state.borrow();
        let not_after = self.credential.current().not_after;
        GatewayHello {
            cluster: self.cluster.clone(),
            gateway: self.gateway.clone(),
            addresses: Some(self.addresses.clone()),
            versions: state.versions(),
            revision: state.revision,
            workers: u32::try_from(self.workers.len()).unwrap_or(u32::MAX),
            svid_not_after_unix: not_after
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn report(&self) -> GatewayReport {
        GatewayReport { tunnels: self.metrics.tunnels() }
    }

    async fn explain(&self, ask: ExplainAsk) -> ExplainReply {
        let response = match ask.query {
            Some(query) => self.workers.explain(query).await,
            None => None,
        };
        let response = response.unwrap_or_else(|| ExplainResponse {
            failure: "the gateway could not answer".to_owned(),
            ..ExplainResponse::default()
        });
        ExplainReply { id: ask.id, response: Some(response) }
    }
}

async fn send(out: &mpsc::Sender<GatewayMessage>, body: gateway_message::Body) -> Result<(), String> {
    // A control plane that does not read for this long is as good as gone.
    match tokio::time::timeout(SEND_TIMEOUT, out.send(GatewayMessage { body: Some(body) })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the stream is closed".to_owned()),
        Err(_) => Err("the control plane does not read".to_owned()),
    }
}

const HELD: Duration = Duration::from_secs(5);
const MESSAGES_QUEUED_MAX: usize = 16;
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The contract asks for a report at least every 2 s.
const REPORT_INTERVAL: Duration = Duration::from_millis(1_500);
/// 10,000 services of 1 KiB, and room.
const UPDATE_BYTES_MAX: usize = 64 * 1024 * 1024;
