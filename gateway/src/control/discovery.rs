//! The client of the agent's `LocalDiscovery`: endpoints of this cluster. While the agent is away, the last good list stays.

use std::time::{Duration, Instant};

use archipelago_base::backoff::Backoff;
use archipelago_identity::tls::Expect;
use archipelago_identity::{LiveCredential, MeshRole};
use archipelago_proto::v1::WatchLocalRequest;
use archipelago_proto::v1::local_discovery_client::LocalDiscoveryClient;
use archipelago_rpc::grpc;
use tokio::sync::{mpsc, oneshot, watch};

use super::apply::{Change, Update};

/// What the watch needs.
pub struct Discovery {
    /// The agent, host:port.
    pub agent: String,
    /// Our cluster: only its agent is believed.
    pub cluster: String,
    /// Our name.
    pub gateway: String,
    /// Our SVID.
    pub credential: LiveCredential,
    /// Where updates go.
    pub updates: mpsc::Sender<Update>,
    /// Whether the agent is there.
    pub connected: watch::Sender<bool>,
    /// Told once the first is in use.
    pub heard: watch::Sender<bool>,
}

impl Discovery {
    /// Watches for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::new(DELAY_FLOOR, DELAY_MIN, DELAY_MAX);
        let mut away = false;
        loop {
            let began = Instant::now();
            let error = match self.watch(&mut away).await {
                Ok(()) => "the agent ended the stream".to_owned(),
                Err(error) => error,
            };
            if began.elapsed() > HELD {
                backoff.reset();
            }
            self.connected.send_replace(false);
            if !away {
                tracing::info!(agent = %self.agent, error, "the agent is away; its last endpoints stay in use");
            }
            away = true;
            tokio::time::sleep(backoff.next_delay(rand::random())).await;
        }
    }

    async fn watch(&self, away: &mut bool) -> Result<(), String> {
        let cluster = self.cluster.clone();
        let expect = Expect::Role(std::sync::Arc::new(move |id| match id.role() {
            Some(MeshRole::Agent { cluster: theirs, .. }) if theirs == cluster => Ok(()),
            _ => Err(format!("the agent of cluster {cluster}")),
        }));
        let channel = grpc::connect(std::slice::from_ref(&self.agent), &self.credential, expect)
            .await
            .map_err(|e| e.to_string())?;
        let mut client = LocalDiscoveryClient::new(channel).max_decoding_message_size(UPDATE_BYTES_MAX);
        let request = WatchLocalRequest { gateway: self.gateway.clone() };
        let mut stream = client.watch(request).await.map_err(|status| status.to_string())?.into_inner();
        while let Some(update) = stream.message().await.map_err(|status| status.to_string())? {
            if std::mem::take(away) {
                tracing::info!(agent = %self.agent, "the agent is back");
            }
            self.connected.send_replace(true);
            let (applied, outcome) = oneshot::channel();
            self.updates.send(Update { change: Change::Local(update), applied }).await.map_err(|_| "shutting down")?;
            outcome.await.map_err(|_| "shutting down")?.map_err(|refusal| refusal.to_string())?;
            self.heard.send_replace(true);
        }
        Ok(())
    }
}

const HELD: Duration = Duration::from_secs(5);
const DELAY_FLOOR: Duration = Duration::from_millis(20);
const DELAY_MIN: Duration = Duration::from_millis(100);
/// The first message is everything: 20,000 endpoints with the names of their pods are 3 MB, what they are captured by and who runs
/// on a node less.
const UPDATE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// An agent that returns is heard within this.
const DELAY_MAX: Duration = Duration::from_secs(3);
