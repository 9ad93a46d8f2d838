//! The accepting side: connections of other gateways, and the requests that come over them.

use crate::{
    body::{MessageReader, TunnelBody},
    codec::{Code, Limits, fields},
    conn::{Conn, InFlight, Role},
    connect::{RecvHalf, SendHalf},
    error::TunnelError,
    pump::Pump,
    stream::{Inbox, Outbox},
    transport::{self, varint},
    tunnels::Core,
};
use archipelago_identity::{MeshRole, tls::PeerCertificate};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Method, Request, Response};
use http_body::Body;
use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

/// Requests from other gateways, in the order of their arrival.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<IncomingRequest>);

impl Incoming {
    pub(crate) fn new(requests: mpsc::Receiver<IncomingRequest>) -> Self {
        Self(requests)
    }

    /// The next request; `None` once the tunnels are closed.
    pub async fn next(&mut self) -> Option<IncomingRequest> {
        self.0.recv().await
    }
}

/// A request, whose body may still be arriving.
#[derive(Debug)]
pub struct IncomingRequest {
    /// The certificate of whoever sent it; one value for all requests of a connection.
    pub peer: Arc<PeerCertificate>,
    /// The request; its URI carries scheme and authority. For CONNECT the body is empty: the data comes by
    /// [`Responder::accept_connect`].
    pub request: Request<TunnelBody>,
    /// The way to answer it.
    pub responder: Responder,
}

/// Answers one request. Dropped without an answer, it resets the stream with `H3_INTERNAL_ERROR`.
pub struct Responder {
    outbox: Outbox,
    /// Where the data of a CONNECT comes from.
    tunnel: Option<MessageReader>,
    in_flight: InFlight,
}

impl Responder {
    /// Sends the response; resolves when all of it is with QUIC. The body goes as fast as the far side reads.
    ///
    /// # Errors
    /// The body failed (the stream is reset with `H3_INTERNAL_ERROR`), or the far side does not want it any more.
    pub async fn respond<B>(mut self, response: Response<B>) -> Result<(), TunnelError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.push_head(&response);
        let Self { outbox, tunnel, in_flight } = self;
        let result = Pump::new(outbox, response.into_body(), Code::INTERNAL_ERROR).await;
        drop((tunnel, in_flight));
        result
    }

    /// Accepts a CONNECT: sends `response`, which should be a 2xx, and gives the two halves.
    ///
    /// # Errors
    /// The request was not a CONNECT ([`TunnelError::Closed`]), or its sender is gone.
    pub async fn accept_connect(mut self, response: Response<()>) -> Result<(SendHalf, RecvHalf), TunnelError> {
        let reader = self.tunnel.take().ok_or(TunnelError::Closed)?;
        self.push_head(&response);
        poll_fn(|cx| self.outbox.poll_flush(cx)).await?;
        let in_flight = Some(self.in_flight.into_tunnel());
        Ok((SendHalf::new(self.outbox, in_flight.clone()), RecvHalf::new(reader, in_flight)))
    }

    /// Refuses the request as never processed: its sender may send it elsewhere, whatever it is.
    pub fn reject(mut self) {
        self.outbox.reset(Code::REQUEST_REJECTED);
        if let Some(reader) = &mut self.tunnel {
            reader.inbox().stop(Code::REQUEST_REJECTED);
        }
    }

    /// Resolves when the sender no longer wants an answer, or is gone; says which.
    pub async fn cancelled(&mut self) -> TunnelError {
        poll_fn(|cx| self.outbox.poll_stopped(cx)).await
    }

    fn push_head<B>(&mut self, response: &Response<B>) {
        let Ok(()) = self.outbox.push_frame(|out| -> Result<(), Infallible> {
            fields::encode_response(response, out);
            Ok(())
        });
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("peer", &self.outbox.conn().peer().spiffe_id.to_string())
            .finish_non_exhaustive()
    }
}

/// Accepts connections until the endpoint closes.
pub(crate) async fn accept(core: Arc<Core>) {
    let limits = &core.config().limits;
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    while let Some(incoming) = core.endpoint().accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if core.is_draining() {
            incoming.refuse();
        } else if handshakes.available_permits() < limits.handshakes / 2 && incoming.may_retry() {
            // Busy: spend nothing on addresses that may be forged.
            let _ = incoming.retry();
        } else {
            tokio::spawn(greet(core.clone(), incoming, permit));
        }
    }
}

/// Finishes a handshake, checks who it is, and serves the connection.
async fn greet(core: Arc<Core>, incoming: quinn::Incoming, permit: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    let connection = match timeout(core.config().limits.dial_timeout * 2, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            core.count_refused();
            tracing::info!(%remote, %error, "tunnel handshake refused");
            return;
        }
        Err(_) => return core.count_refused(),
    };
    drop(permit);
    let peer = match authorize(&core, &connection) {
        Ok(peer) => peer,
        Err(reason) => {
            core.count_refused();
            tracing::info!(%remote, reason, "tunnel refused");
            connection.close(varint(Code::GENERAL_PROTOCOL_ERROR), reason.as_bytes());
            return;
        }
    };
    let conn = Conn::start(connection, Role::Accepted, peer, &core);
    core.accepted(&conn);
    serve(&core, conn).await;
}

/// Only gateways of our trust domain tunnel to us.
fn authorize(core: &Core, connection: &quinn::Connection) -> Result<PeerCertificate, String> {
    let peer = transport::peer_certificate(connection).map_err(|error| error.to_string())?;
    let peer_id = &peer.spiffe_id;
    let ours = core.config().credential.current();
    if peer_id.trust_domain() != ours.spiffe_id.trust_domain() {
        return Err(format!("{peer_id} is not of trust domain {}", ours.spiffe_id.trust_domain()));
    }
    if !matches!(peer_id.role(), Some(MeshRole::Gateway { .. })) {
        return Err(format!("{peer_id} is not a gateway"));
    }
    if core.connections_of(peer_id) >= core.config().limits.connections_per_peer {
        return Err(format!("{peer_id} has too many connections"));
    }
    Ok(peer)
}

/// Reads request heads and hands the requests out. One task for all streams of a connection: a head mostly arrives with
/// its stream, so it is read where the stream is accepted, and only the slow ones are waited for side by side.
async fn serve(core: &Arc<Core>, conn: Arc<Conn>) {
    let limits = &core.config().limits;
    let mut draining = core.draining();
    let mut slow = FuturesUnordered::new();
    let mut next_id = 0;
    let mut refuse_from = u64::MAX;
    loop {
        tokio::select! {
            accepted = conn.quinn().accept_bi() => {
                let Ok((send, recv)) = accepted else { return };
                let id = u64::from(recv.id());
                next_id = id.saturating_add(4);
                let mut arriving = Arriving::new(&conn, send, recv);
                if id >= refuse_from {
                    arriving.reject();
                    continue;
                }
                match poll_fn(|cx| Poll::Ready(arriving.poll_head(cx))).await {
                    Poll::Ready(head) => arriving.deliver(core, head),
                    Poll::Pending if slow.len() < SLOW_HEADS_MAX => slow.push(async move {
                        let head = timeout(limits.head_timeout, poll_fn(|cx| arriving.poll_head(cx))).await;
                        (arriving, head)
                    }),
                    Poll::Pending => arriving.reject(),
                }
            }
            Some((arriving, head)) = slow.next(), if !slow.is_empty() => match head {
                Ok(head) => arriving.deliver(core, head),
                Err(_) => arriving.reject(),
            },
            () = async { let _ = draining.wait_for(|draining| *draining).await; }, if refuse_from == u64::MAX => {
                refuse_from = next_id;
                conn.say_goaway(next_id);
            }
        }
    }
}

/// A stream whose request head is not complete yet.
struct Arriving {
    outbox: Outbox,
    reader: MessageReader,
    in_flight: InFlight,
}

impl Arriving {
    fn new(conn: &Arc<Conn>, send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        let inbox = Inbox::new(recv, conn.clone(), Code::NO_ERROR);
        Self {
            outbox: Outbox::new(send, conn.clone(), Code::INTERNAL_ERROR),
            reader: MessageReader::new(inbox, Limits::default(), None),
            in_flight: InFlight::new(conn.clone()),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request<()>, TunnelError>> {
        self.reader.poll_request(cx)
    }

    fn deliver(mut self, core: &Core, head: Result<Request<()>, TunnelError>) {
        let head = match head {
            Ok(head) => head,
            Err(TunnelError::Protocol(error)) => return self.outbox.reset(error.code),
            Err(_) => return self.outbox.reset(Code::REQUEST_CANCELLED),
        };
        let Self { outbox, reader, in_flight } = self;
        let peer = Arc::clone(outbox.conn().peer());
        let is_tunnel = head.method() == Method::CONNECT;
        let (body, tunnel) =
            if is_tunnel { (TunnelBody::empty(), Some(reader)) } else { (TunnelBody::new(reader), None) };
        let request = head.map(|()| body);
        let responder = Responder { outbox, tunnel, in_flight };
        if let Err(refused) = core.incoming().try_send(IncomingRequest { peer, request, responder }) {
            core.count_rejected();
            refused.into_inner().responder.reject();
        }
    }

    fn reject(mut self) {
        self.reader.inbox().stop(Code::REQUEST_REJECTED);
        self.outbox.reset(Code::REQUEST_REJECTED);
    }
}

/// Heads waited for on one connection; a peer that has more open is not one of ours.
const SLOW_HEADS_MAX: usize = 1024;
