//! What runs beside the data path: configuration in, health and metrics out, the admin socket.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use archipelago_base::metrics::{self, Registry};
use archipelago_identity::LiveCredential;
use archipelago_proto::v1::GatewayAddresses;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Settings;
use crate::admin::{self, Admin};
use crate::callers;
use crate::config::store::Store;
use crate::config::{ConfigState, Published};
use crate::control::apply::{self, Applier, Update};
use crate::control::discovery::Discovery;
use crate::control::questions::Questions;
use crate::control::status::ControlStatus;
use crate::control::stream::ControlStream;
use crate::handover::{Phase, Turn};
use crate::journal::Journal;
use crate::tap::Taps;
use crate::telemetry::{GatewayMetrics, Vitals};
use crate::tls::keeper::Keeper;
use crate::workers::{self, Workers};

/// Everything beside the data path but DNS.
pub(super) struct ControlTasks {
    pub(super) turn: Turn,
    pub(super) is_successor: bool,
    pub(super) keeper: Option<Keeper>,
    pub(super) hear: watch::Sender<bool>,
    pub(super) registry: Arc<Mutex<Registry>>,
    pub(super) listeners: [TcpListener; 2],
    pub(super) published: Arc<Published>,
    pub(super) drain: CancellationToken,
    pub(super) metrics: GatewayMetrics,
    pub(super) workers: Workers,
    pub(super) tunnels_changed: Arc<Notify>,
    pub(super) journal: Journal,
    pub(super) taps: Arc<Taps>,
    pub(super) callers: Arc<callers::Table>,
    pub(super) status: watch::Sender<ControlStatus>,
    pub(super) boot: u64,
    pub(super) store: Store,
    pub(super) state: watch::Receiver<Arc<ConfigState>>,
    pub(super) applier: Applier,
    pub(super) queue: mpsc::Receiver<Update>,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) addresses: GatewayAddresses,
    pub(super) credential: LiveCredential,
    pub(super) admin: Arc<Admin>,
    pub(super) settings: Settings,
}

impl ControlTasks {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// The admin socket cannot be had.
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Settings { cluster, name, control_plane, agent, admin_socket, telemetry, .. } = self.settings;
        let ready = {
            let (published, drain, turn) = (Arc::clone(&self.published), self.drain.clone(), self.turn.clone());
            let ready: archipelago_base::metrics::Readiness = Arc::new(move || {
                if drain.is_cancelled() {
                    return Err("draining".to_owned());
                }
                if let Some(reason) = turn.phase().unready() {
                    return Err(reason.to_owned());
                }
                if published.load().revision == 0 { Err("no configuration yet".to_owned()) } else { Ok(()) }
            });
            ready
        };
        let listener = admin::bind(&admin_socket)
            .with_context(|| format!("cannot open the admin socket {}", admin_socket.display()))?;
        let reports = Arc::new(Notify::new());
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.listeners {
            let (registry, ready) = (Arc::clone(&self.registry), Arc::clone(&ready));
            let beside = metrics::Beside { exemplars: self.metrics.exemplars(), natives: self.metrics.natives() };
            let serve = move || {
                let serve = listener
                    .try_clone()
                    .map(|own| metrics::serve_with(own, Arc::clone(&registry), beside.clone(), Arc::clone(&ready)));
                async move {
                    let ended = match serve {
                        Ok(serve) => serve.await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = ended {
                        tracing::error!(%error, "health or metrics ended");
                    }
                }
            };
            tasks.spawn(self.turn.clone().whenever(Phase::accepts, serve));
        }
        let (tcp_ports, capture_ports) = (Arc::clone(&self.admin.tcp_ports), Arc::clone(&self.admin.capture_ports));
        tasks.spawn(admin::serve(listener, self.admin));
        tasks.spawn(self.applier.run(self.queue));
        if let Some(keeper) = self.keeper {
            tasks.spawn(keeper.run());
        }
        let kept = tokio::spawn(apply::keep_on_disk(self.store, self.state.clone(), stop.clone()));
        tasks.spawn(workers::watch_tunnels(
            self.workers.clone(),
            self.metrics.clone(),
            self.tunnels_changed,
            Arc::clone(&reports),
        ));
        tasks.spawn(self.journal.clone().run(self.credential.clone(), self.drain.clone()));
        tasks.spawn(Arc::clone(&self.metrics.latencies).settle_on(SETTLE_INTERVAL));
        tasks.spawn(Arc::clone(&self.taps).expire_on(SETTLE_INTERVAL));
        tasks.spawn(follow_status(self.status.subscribe(), self.metrics.vitals.clone()));
        if let Some(agent) = agent {
            let (connected, away) = watch::channel(false);
            let callers = self.callers;
            tasks.spawn(async move { callers.forget_when_away(away, callers::FORGOTTEN_AFTER).await });
            let discovery = Discovery {
                agent,
                cluster: cluster.clone(),
                gateway: name.clone(),
                credential: self.credential.clone(),
                updates: self.updates.clone(),
                connected,
                heard: self.hear.clone(),
            };
            tasks.spawn(discovery.run());
        }
        if !control_plane.is_empty() {
            let stream = ControlStream {
                control_plane,
                cluster,
                gateway: name,
                addresses: self.addresses,
                credential: self.credential,
                state: self.state,
                published: self.published,
                updates: self.updates,
                questions: Questions::new(
                    self.workers.clone(),
                    Arc::clone(&self.metrics.latencies),
                    Arc::clone(&self.taps),
                    telemetry,
                ),
                workers: self.workers,
                metrics: self.metrics,
                tcp_ports,
                capture_ports,
                reports,
                journal: self.journal,
                status: self.status,
                boot: self.boot,
                turn: self.turn,
                after: self.is_successor.then(|| self.hear.subscribe()),
            };
            tasks.spawn(stream.run());
        }
        stop.cancelled().await;
        tasks.shutdown().await;
        if tokio::time::timeout(LAST_WRITE_TIME, kept).await.is_err() {
            tracing::warn!("the disk is slow; a restart may begin with an older configuration");
        }
        let _ = std::fs::remove_file(&admin_socket);
        Ok(())
    }
}

/// Of what four flushes of each worker hold.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);
/// Shows what is known of the stream to the control plane, until nobody says anything of it any more.
async fn follow_status(mut status: watch::Receiver<ControlStatus>, vitals: Vitals) {
    loop {
        {
            let status = status.borrow_and_update();
            vitals.connected.set(status.connected.into());
            vitals.unusable.set(i64::try_from(status.rejections.len()).unwrap_or(i64::MAX));
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Of a gateway that stops; a drain has its own.
const LAST_WRITE_TIME: Duration = Duration::from_secs(5);
