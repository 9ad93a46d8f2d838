//! Sending requests to a peer.

use crate::{
    body::MessageReader,
    codec::{
        Code, Limits,
        fields::{self, EncodeError},
    },
    config::PeerName,
    conn::{Conn, InFlight},
    connect::{RecvHalf, SendHalf},
    error::TunnelError,
    exchange::Exchange,
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
    pin::pin,
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

    /// Begins a request; resolves as soon as its stream is open. The exchange then has the heads and the body of the response, and
    /// sends the request whenever it is polled.
    ///
    /// Dropping it before the response has ended cancels the request on the far side.
    ///
    /// # Errors
    /// [`TunnelError::never_processed`] says whether the request may be sent elsewhere regardless of what it is;
    /// [`TunnelError::is_head_too_large`] that it makes no sense to.
    pub async fn exchange<B>(&self, request: Request<B>) -> Result<Exchange<B>, TunnelError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Opened { mut outbox, reader } = self.open(|conn| Some(InFlight::new(conn))).await?;
        push_request(&mut outbox, &request)?;
        let method = request.method().clone();
        Ok(Exchange::new(reader, Pump::new(outbox, request.into_body(), Code::REQUEST_CANCELLED), method))
    }

    /// Sends a request; resolves with the response's head, whose body goes on sending the request.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn request<B>(&self, request: Request<B>) -> Result<Response<Exchange<B>>, TunnelError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.exchange(request).await?.response().await
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
        push_request(&mut outbox, &request)?;
        poll_fn(|cx| outbox.poll_flush(cx)).await?;
        let response = loop {
            let head = poll_fn(|cx| reader.poll_response(cx, request.method())).await?;
            if !head.status().is_informational() {
                break head;
            }
        };
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

fn push_request<B>(outbox: &mut Outbox, request: &Request<B>) -> Result<(), EncodeError> {
    let bytes_max = outbox.conn().section_bytes_max();
    outbox.push_frame(|out| fields::encode_request(request, bytes_max, out))
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
