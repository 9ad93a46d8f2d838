//! Sending requests to a peer.

use crate::{
    body::MessageReader,
    codec::{
        Code, Limits,
        fields::{self, EncodeError},
    },
    config::PeerName,
    conn::InFlight,
    connect::{RecvHalf, SendHalf},
    error::TunnelError,
    exchange::Exchange,
    health::ServiceHealth,
    peer::{PeerState, Peering},
    pump::Pump,
    stream::{Inbox, Outbox},
};
use archipelago_http::{Fields, Pooled, RequestHead, ResponseHead};
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
    time::{Duration, Instant},
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

    /// When it came to that state.
    pub fn since(&self) -> Instant {
        self.0.since().into_std()
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

    /// The names under which it last said anything about services.
    pub fn services(&self) -> Vec<String> {
        self.0.services()
    }

    /// True when both are the same peer, since the same moment.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// True once it has said what is ready behind it.
    pub fn has_said_health(&self) -> bool {
        self.0.has_said_health()
    }

    /// Resolves when the peer is dead, at once if it is already; the time to replay elsewhere what may be replayed.
    pub async fn died(&self) {
        self.0.died().await;
    }

    /// Opens a stream for a request.
    ///
    /// # Errors
    /// No connection, or no credit for another stream on it: nothing was processed.
    pub async fn open(&self) -> Result<Opening, TunnelError> {
        let conn = self.0.usable()?;
        // Before the stream exists: the detector must watch from here on.
        let in_flight = InFlight::new(conn.clone());
        let mut opening = pin!(conn.quinn().open_bi());
        let opened = match poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx))).await {
            Poll::Ready(opened) => opened,
            Poll::Pending => timeout(OPEN_TIMEOUT, opening).await.map_err(|_| TunnelError::NoStreamCredit)?,
        };
        let (send, recv) = opened.map_err(|cause| conn.lost(cause, None))?;
        let outbox = Outbox::new(send, conn.clone(), Code::REQUEST_CANCELLED);
        let inbox = Inbox::new(recv, conn.clone(), Code::REQUEST_CANCELLED);
        Ok(Opening { outbox, inbox, in_flight })
    }

    /// Sends a request in the types of the `http` crate; resolves with the response's head, whose body goes on sending the request.
    /// Informational heads are passed over.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`Opening::request`].
    pub async fn request<B>(&self, request: Request<B>) -> Result<Response<Exchange<B>>, TunnelError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let head = RequestHead::from_http(&parts).map_err(|_| EncodeError::Path)?;
        let mut exchange = self.open().await?.request(&head, &Fields::new(), body)?;
        loop {
            let head = exchange.head().await?;
            if !head.status.is_informational() {
                let parts = head.to_http().map_err(|_| TunnelError::Closed)?;
                return Ok(Response::from_parts(parts, exchange));
            }
        }
    }
}

impl fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerHandle").field("name", self.name()).field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A stream on which nothing was sent yet.
pub struct Opening {
    outbox: Outbox,
    inbox: Inbox,
    in_flight: InFlight,
}

impl Opening {
    /// Begins a request: what `head` has, then the fields of `said`, then `body`. The exchange then has the heads and the body of the
    /// response, and sends the request whenever it is polled.
    ///
    /// Dropping it before the response has ended cancels the request on the far side.
    ///
    /// # Errors
    /// A head that cannot be sent, or one with a protocol to a peer that takes none. Later: [`TunnelError::never_processed`] says whether the request may be sent elsewhere regardless of
    /// what it is; [`TunnelError::is_head_too_large`] that it makes no sense to.
    pub fn request<B>(mut self, head: &RequestHead, said: &Fields, body: B) -> Result<Exchange<B>, TunnelError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        if head.protocol.is_some() && !self.outbox.conn().takes_extended_connect() {
            return Err(TunnelError::NoExtendedConnect);
        }
        self.push(head, said)?;
        let Self { outbox, inbox, in_flight } = self;
        let reader = MessageReader::new(inbox, Limits::default(), Some(in_flight));
        let method = if head.protocol.is_some() { Method::CONNECT } else { head.method.clone() };
        Ok(Exchange::new(reader, Pump::new(outbox, body, Code::REQUEST_CANCELLED), method))
    }

    /// Asks for a CONNECT tunnel. After a 2xx response the halves carry bytes; otherwise the receiving half carries the body
    /// of the refusal.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn connect(
        mut self,
        head: &RequestHead,
        said: &Fields,
    ) -> Result<(Pooled<ResponseHead>, SendHalf, RecvHalf), TunnelError> {
        debug_assert_eq!(head.method, Method::CONNECT);
        self.push(head, said)?;
        let Self { mut outbox, inbox, in_flight } = self;
        let mut reader = MessageReader::new(inbox, Limits::default(), None);
        poll_fn(|cx| outbox.poll_flush(cx)).await?;
        let response = loop {
            let response = poll_fn(|cx| reader.poll_response(cx, &head.method)).await?;
            if !response.status.is_informational() {
                break response;
            }
        };
        let in_flight = Some(in_flight.into_tunnel());
        Ok((response, SendHalf::new(outbox, in_flight.clone()), RecvHalf::new(reader, in_flight)))
    }

    fn push(&mut self, head: &RequestHead, said: &Fields) -> Result<(), EncodeError> {
        let bytes_max = self.outbox.conn().section_bytes_max();
        self.outbox.push_frame(|out| fields::encode_request(head, said, bytes_max, out))
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

/// A wait for stream credit longer than this is an overloaded peer: better to try another.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
