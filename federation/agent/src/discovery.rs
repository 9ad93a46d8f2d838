//! `LocalDiscovery`: the endpoints of this cluster, where its clients find services, and who runs on a gateway's node; for its own
//! gateways only, and to each only its own node.

use std::{net::TcpListener, sync::Arc, time::Duration};

use archipelago_base::shutdown::Shutdown;
use archipelago_identity::{LiveCredential, MeshRole, tls::ClientAuth};
use archipelago_model::{delta::Reader, id::ServiceKey};
use archipelago_proto::v1::{
    Captures, LocalUpdate, WatchLocalRequest,
    local_discovery_server::{LocalDiscovery, LocalDiscoveryServer},
};
use archipelago_rpc::{
    grpc,
    server::{Access, Call, Caller, Limits, Rule, Server},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, service::Routes};

use super::{
    metrics::Metrics,
    view::{self, Shown, View},
};
use crate::provider::{Nodes, Workloads};

/// What gateways are told of.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) views: watch::Receiver<Arc<View>>,
    pub(super) captures: Said<Arc<Captures>>,
    pub(super) nodes: Said<Nodes>,
}

/// What a provider says; the value that was there at the beginning is none of its words.
#[derive(Debug, Clone)]
pub(super) struct Said<T> {
    receiver: watch::Receiver<T>,
    is_said: bool,
}

impl<T> Said<T> {
    /// `receiver` has not been looked at.
    pub(super) const fn new(receiver: watch::Receiver<T>) -> Self {
        Self { receiver, is_said: false }
    }

    fn latest(&mut self) -> Option<watch::Ref<'_, T>> {
        let value = self.receiver.borrow_and_update();
        self.is_said |= value.has_changed();
        self.is_said.then_some(value)
    }

    /// Resolves when it says something; never, when it never will.
    async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending().await
        }
        self.is_said = true;
    }
}

/// Serves until `shutdown`, then ends every stream.
pub(super) async fn serve(
    listener: TcpListener,
    credential: &LiveCredential,
    cluster: String,
    sources: Sources,
    metrics: Metrics,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(STREAMS_MAX));
    let service = Discovery { cluster, sources, metrics, slots, shutdown: shutdown.clone() };
    let server = Server {
        name: "discovery",
        credential: credential.clone(),
        auth: ClientAuth::Required,
        access: ACCESS,
        limits: Limits::default(),
    };
    let routes = Routes::new(LocalDiscoveryServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX));
    let ending = shutdown.clone();
    let serving = server.serve(listener, routes, async move { ending.requested().await });
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return Ok(served?),
        () = shutdown.requested() => {}
    }
    // A gateway may hold a connection open that has nothing more to say.
    match timeout(LAST_WORDS_TIME, serving).await {
        Ok(served) => Ok(served?),
        Err(_) => Ok(()),
    }
}

/// Gateways watch; which ones is the service's to say.
const ACCESS: Access = Access(&[Rule {
    path: "/archipelago.v1.LocalDiscovery/",
    callers: &[Caller::Gateway],
    call: Call::Unary { request_bytes_max: REQUEST_BYTES_MAX + 64, time_max: Duration::from_secs(10) },
}]);

struct Discovery {
    cluster: String,
    sources: Sources,
    metrics: Metrics,
    slots: Arc<Semaphore>,
    shutdown: Shutdown,
}

#[tonic::async_trait]
impl LocalDiscovery for Discovery {
    type WatchStream = ReceiverStream<Result<LocalUpdate, Status>>;

    async fn watch(&self, request: Request<WatchLocalRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let own = |role: &MeshRole| matches!(role, MeshRole::Gateway { cluster, .. } if *cluster == self.cluster);
        let peer = grpc::require(&request, own)?;
        // Who asks is who has proved to be it: whatever the request says, nobody hears of another node.
        let Some(MeshRole::Gateway { name: node, .. }) = peer.role() else {
            return Err(Status::internal("the role was checked above"));
        };
        let slot = self
            .slots
            .clone()
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{STREAMS_MAX} streams are open already")))?;
        tracing::info!(spiffe_id = %peer, "gateway watches");
        // One message in flight; a reader that is slower gets one delta to the latest state instead of a queue.
        let (updates, stream) = mpsc::channel(1);
        let (sources, metrics, shutdown) = (self.sources.clone(), self.metrics.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            metrics.watchers.inc();
            tokio::select! {
                () = feed(sources, &node, &updates, slot) => {}
                () = updates.closed() => {}
                () = shutdown.requested() => {}
            }
            metrics.watchers.dec();
            tracing::info!(spiffe_id = %peer, "gateway stopped watching");
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn feed(
    mut sources: Sources,
    node: &str,
    updates: &mpsc::Sender<Result<LocalUpdate, Status>>,
    _slot: OwnedSemaphorePermit,
) {
    // Right after a start "not ready" may only mean "not asked yet": a gateway that boots waits a moment for the truth.
    let _ = timeout(SETTLE_TIME_MAX, sources.views.wait_for(|view| view.settled)).await;
    let mut told = Told::default();
    loop {
        // Room first, then the latest: what changes while the reader is slow is merged.
        let Ok(room) = updates.reserve().await else { return };
        if let Some(update) = told.next(&mut sources, node) {
            room.send(Ok(update));
        }
        if !sources.changed().await {
            return;
        }
    }
}

impl Sources {
    /// Resolves when one of them changed; false: the agent is stopping.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.views.changed() => changed.is_ok(),
            () = self.captures.changed() => true,
            () = self.nodes.changed() => true,
        }
    }
}

/// What one reader knows.
#[derive(Default)]
struct Told {
    services: Reader<ServiceKey, Shown>,
    captures: Option<Arc<Captures>>,
    workloads: Option<Arc<Workloads>>,
}

impl Told {
    /// What to tell it now; `None`: it knows.
    fn next(&mut self, sources: &mut Sources, node: &str) -> Option<LocalUpdate> {
        let services = self.services.next(&sources.views.borrow_and_update().services);
        let captures = sources.captures.latest().map(|captures| Arc::clone(&captures));
        let captures = news(&mut self.captures, captures).map(|captures| Captures::clone(&captures));
        // A node that nothing is known of, any more: nobody there is identified.
        let workloads = sources.nodes.latest().map(|nodes| nodes.get(node).cloned().unwrap_or_default());
        let workloads = news(&mut self.workloads, workloads).map(|workloads| workloads.to_proto());
        if services.is_none() && captures.is_none() && workloads.is_none() {
            return None;
        }
        let update = services.map(view::update).unwrap_or_default();
        Some(LocalUpdate { captures, workloads, ..update })
    }
}

/// `now`, if that is not what was told before.
fn news<T: PartialEq>(told: &mut Option<Arc<T>>, now: Option<Arc<T>>) -> Option<Arc<T>> {
    let now = now?;
    // What says the same is taken all the same: the one before would be held for it alone.
    let before = told.replace(Arc::clone(&now));
    let is_same = before.is_some_and(|before| Arc::ptr_eq(&before, &now) || before == now);
    (!is_same).then_some(now)
}

/// One per gateway, some of them twice during an upgrade.
const STREAMS_MAX: usize = 4_096;
/// A request is one name.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// One timeout of the default check and a bit.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);
/// Streams end by themselves at shutdown; this is for their last bytes.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
