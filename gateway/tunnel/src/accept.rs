//! Handshakes of other gateways: who is let in.

use crate::{
    codec::Code,
    conn::{Conn, Role},
    lobby::{Lobby, Source, Ticket},
    server,
    transport::{self, varint},
    tunnels::Core,
};
use archipelago_identity::{MeshRole, tls::PeerCertificate};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{task::AbortHandle, time::timeout};

/// Who may keep a tunnel with us, asked when a connection begins and about every open one whenever [`crate::Tunnels::set_gate`]
/// puts another in force. The error is a label of metrics, from a closed set.
pub type Gate = Arc<dyn Fn(&PeerCertificate) -> Result<(), &'static str> + Send + Sync>;

/// Accepts connections until the endpoint closes.
pub(crate) async fn accept(core: Arc<Core>) {
    let limits = &core.config().limits;
    let waiting = Arc::new(Waiting {
        lobby: Mutex::new(Lobby::new(limits.handshakes, limits.handshakes_per_source)),
        tasks: Mutex::default(),
    });
    while let Some(incoming) = core.endpoint().accept().await {
        let source = Source::of(incoming.remote_address());
        if core.is_draining() {
            incoming.refuse();
        } else if incoming.may_retry() && waiting.lobby().is_busy(source) {
            // Spend nothing on addresses that may be forged.
            let _ = incoming.retry();
        } else {
            let (ticket, dropped) = waiting.lobby().arrive(source);
            if let Some(task) = dropped.and_then(|dropped| waiting.tasks().remove(&dropped)) {
                core.count_refused("displaced");
                task.abort();
            }
            let place = Place { waiting: waiting.clone(), ticket };
            let task = tokio::spawn(greet(core.clone(), incoming, place));
            // Nothing of the task has run yet: this is the thread that would run it.
            waiting.tasks().insert(ticket, task.abort_handle());
        }
    }
}

/// The handshakes in progress, with the tasks that carry them.
struct Waiting {
    lobby: Mutex<Lobby>,
    tasks: Mutex<HashMap<Ticket, AbortHandle>>,
}

impl Waiting {
    fn lobby(&self) -> MutexGuard<'_, Lobby> {
        self.lobby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<Ticket, AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among them, given up when dropped.
struct Place {
    waiting: Arc<Waiting>,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.lobby().leave(self.ticket);
        self.waiting.tasks().remove(&self.ticket);
    }
}

/// Finishes a handshake, checks who it is, and serves the connection.
async fn greet(core: Arc<Core>, incoming: quinn::Incoming, place: Place) {
    let remote = incoming.remote_address();
    let connection = match timeout(core.config().limits.dial_timeout * 2, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            core.count_refused("handshake");
            tracing::info!(%remote, %error, "tunnel handshake refused");
            return;
        }
        Err(_) => return core.count_refused("timeout"),
    };
    // From here on displacing it would break a connection in use.
    drop(place);
    let peer = match examine(&core, &connection) {
        Ok(peer) => peer,
        Err(Refused { reason, text }) => {
            core.count_refused(reason);
            tracing::info!(%remote, reason = text, "tunnel refused");
            connection.close(varint(Code::GENERAL_PROTOCOL_ERROR), text.as_bytes());
            return;
        }
    };
    let conn = Conn::start(connection, Role::Accepted, peer, &core);
    core.accepted(&conn);
    server::serve(&core, conn).await;
}

struct Refused {
    reason: &'static str,
    text: String,
}

/// Only gateways of our trust domain tunnel to us, if the gate lets them.
fn examine(core: &Core, connection: &quinn::Connection) -> Result<PeerCertificate, Refused> {
    let refused = |reason, text| Refused { reason, text };
    let peer = transport::peer_certificate(connection).map_err(|error| refused("certificate", error.to_string()))?;
    let id = &peer.spiffe_id;
    let ours = core.config().credential.current();
    if id.trust_domain() != ours.spiffe_id.trust_domain() {
        let text = format!("{id} is not of trust domain {}", ours.spiffe_id.trust_domain());
        return Err(refused("trust_domain", text));
    }
    if !matches!(id.role(), Some(MeshRole::Gateway { .. })) {
        return Err(refused("not_a_gateway", format!("{id} is not a gateway")));
    }
    core.gate()(&peer).map_err(|reason| refused(reason, format!("{id} is refused: {reason}")))?;
    let limits = &core.config().limits;
    if core.connections_of(id) >= limits.connections_per_peer {
        return Err(refused("connections_per_peer", format!("{id} has too many connections")));
    }
    if core.connections() >= limits.connections {
        return Err(refused("connections", "too many connections".to_owned()));
    }
    Ok(peer)
}
