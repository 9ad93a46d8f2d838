//! Sending requests to a peer.

use crate::{
    body::{MessageReader, TunnelBody},
    codec::{Code, Limits, fields},
    config::PeerName,
    conn::{Conn, InFlight},
    connect::{RecvHalf, SendHalf},
    error::TunnelError,
    health::ServiceHealth,
    peer::{PeerState, Peering},
    pump::Pump,
    stream::{Inbox, Outbox},
};
use archipelago_identity::SpiffeId;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::time::timeout;

/// A peer to send requests to; cheap to clone, valid as long as its [`crate::Tunnels`].
#[derive(Clone)]
pub struct PeerHandle(Arc<Peering>);

impl PeerHandle {
    pub(crate) fn new(peering: Arc<Peering>) -> Self {
        Self(peering)
    }

    /// Its name.
    pub fn name(&self) -> &PeerName {
        self.0.name()
    }

    /// Who it must prove to be.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.0.spiffe_id()
    }

    /// Its UDP addresses, worker 0 first.
    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.0.addresses()
    }

    /// Where it stands.
    pub fn state(&self) -> PeerState {
        self.0.state()
    }

    /// Why it could not be dialled last, while it cannot be.
    pub fn last_error(&self) -> Option<String> {
        self.0.last_error()
    }

    /// Smoothed round trip; zero without a connection.
    pub fn rtt(&self) -> Duration {
        self.0.current().map_or(Duration::ZERO, |conn| conn.rtt())
    }

    /// Requests whose response has not ended, on the connection in use.
    pub fn in_flight(&self) -> usize {
        self.0.current().map_or(0, |conn| conn.in_flight())
    }

    /// What the peer last said about a service (`namespace/name`): one entry per version; empty when it never did.
    pub fn health(&self, service: &str) -> Vec<ServiceHealth> {
        self.0.health(service)
    }

    /// True once it has said what is ready behind it.
    pub fn has_said_health(&self) -> bool {
        self.0.has_said_health()
    }

    /// Resolves when the peer is dead, at once if it is already; the time to replay elsewhere what may be replayed.
    pub async fn died(&self) {
        self.0.died().await;
    }

    /// Sends a request; resolves with the head of the response, while the request's body may still be on its way.
    ///
    /// The body is sent as fast as the far side reads it. Dropping this future, or the response's body before its end,
    /// cancels the request on the far side.
    ///
    /// # Errors
    /// [`TunnelError::never_processed`] says whether the request may be sent elsewhere regardless of what it is.
    pub async fn request<B>(&self, request: Request<B>) -> Result<Response<TunnelBody>, TunnelError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Opened { mut outbox, mut reader } = self.open(|conn| Some(InFlight::new(conn))).await?;
        outbox.push_frame(|out| fields::encode_request(&request, out))?;
        let method = request.method().clone();
        let mut pump = Pump::new(outbox, request.into_body(), Code::REQUEST_CANCELLED);
        // Mostly all of the request is at hand and leaves in one write; only then is no task needed.
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut pump).poll(cx))).await {
            Poll::Pending => reader.attach_pump(tokio::spawn(pump)),
            Poll::Ready(Err(error @ TunnelError::Body(_))) => return Err(error),
            // The far side stopped reading or is gone: what it answered, or why not, is on the other half.
            Poll::Ready(_) => {}
        }
        let response = poll_fn(|cx| reader.poll_response(cx, &method)).await?;
        Ok(response.map(|()| TunnelBody::new(reader)))
    }

    /// Opens a CONNECT tunnel. After a 2xx response the halves carry bytes; otherwise the receiving half carries the body
    /// of the refusal.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn connect(&self, request: Request<()>) -> Result<(Response<()>, SendHalf, RecvHalf), TunnelError> {
        debug_assert_eq!(request.method(), Method::CONNECT);
        let mut in_flight = None;
        let Opened { mut outbox, mut reader } = self
            .open(|conn| {
                in_flight = Some(InFlight::new(conn));
                None
            })
            .await?;
        outbox.push_frame(|out| fields::encode_request(&request, out))?;
        poll_fn(|cx| outbox.poll_flush(cx)).await?;
        let response = poll_fn(|cx| reader.poll_response(cx, request.method())).await?;
        let in_flight = in_flight.map(InFlight::into_tunnel);
        Ok((response, SendHalf::new(outbox, in_flight.clone()), RecvHalf::new(reader, in_flight)))
    }

    async fn open(&self, count: impl FnOnce(Arc<Conn>) -> Option<InFlight>) -> Result<Opened, TunnelError> {
        let conn = self.0.usable()?;
        // Before the stream exists: the detector must watch from here on.
        let in_flight = count(conn.clone());
        let mut opening = pin!(conn.quinn().open_bi());
        let opened = match poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx))).await {
            Poll::Ready(opened) => opened,
            Poll::Pending => timeout(OPEN_TIMEOUT, opening).await.map_err(|_| TunnelError::NoStreamCredit)?,
        };
        let (send, recv) = opened.map_err(|cause| conn.lost(cause, None))?;
        let outbox = Outbox::new(send, conn.clone(), Code::REQUEST_CANCELLED);
        let inbox = Inbox::new(recv, conn.clone(), Code::REQUEST_CANCELLED);
        Ok(Opened { outbox, reader: MessageReader::new(inbox, Limits::default(), in_flight) })
    }
}

impl fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerHandle").field("name", self.name()).field("state", &self.state()).finish_non_exhaustive()
    }
}

struct Opened {
    outbox: Outbox,
    reader: MessageReader,
}

/// A wait for stream credit longer than this is an overloaded peer: better to try another.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
