//! `LocalDiscovery`: the endpoints of this cluster, for its own gateways only.

use std::{net::TcpListener, sync::Arc, time::Duration};

use archipelago_base::shutdown::Shutdown;
use archipelago_identity::{LiveCredential, MeshRole, tls::ClientAuth};
use archipelago_model::delta::Reader;
use archipelago_proto::v1::{
    LocalUpdate, WatchLocalRequest,
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
    view::{self, View},
};

/// Serves until `shutdown`, then ends every stream.
pub(super) async fn serve(
    listener: TcpListener,
    credential: &LiveCredential,
    cluster: String,
    views: watch::Receiver<Arc<View>>,
    metrics: Metrics,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let service =
        Discovery { cluster, views, metrics, slots: Arc::new(Semaphore::new(STREAMS_MAX)), shutdown: shutdown.clone() };
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
    views: watch::Receiver<Arc<View>>,
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
        let slot = self
            .slots
            .clone()
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{STREAMS_MAX} streams are open already")))?;
        tracing::info!(spiffe_id = %peer, "gateway watches");
        // One message in flight; a reader that is slower gets one delta to the latest state instead of a queue.
        let (updates, stream) = mpsc::channel(1);
        let (views, metrics, shutdown) = (self.views.clone(), self.metrics.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            metrics.watchers.inc();
            tokio::select! {
                () = feed(views, &updates, slot) => {}
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
    mut views: watch::Receiver<Arc<View>>,
    updates: &mpsc::Sender<Result<LocalUpdate, Status>>,
    _slot: OwnedSemaphorePermit,
) {
    // Right after a start "not ready" may only mean "not asked yet": a gateway that boots waits a moment for the truth.
    let _ = timeout(SETTLE_TIME_MAX, views.wait_for(|view| view.settled)).await;
    let mut reader = Reader::default();
    loop {
        // Room first, then the latest: what changes while the reader is slow is merged.
        let Ok(room) = updates.reserve().await else { return };
        let now = views.borrow_and_update().services.clone();
        if let Some(delta) = reader.next(&now) {
            room.send(Ok(view::update(delta)));
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// One per gateway, some of them twice during an upgrade.
const STREAMS_MAX: usize = 4_096;
/// A request is one name.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// One timeout of the default check and a bit.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);
/// Streams end by themselves at shutdown; this is for their last bytes.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
