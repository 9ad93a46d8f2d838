//! The accepting side: requests that come over the connections of other gateways.

use crate::{
    body::{MessageReader, TunnelBody},
    codec::{Code, Limits, fields},
    conn::{Conn, InFlight},
    connect::{RecvHalf, SendHalf},
    error::TunnelError,
    pump::Pump,
    stream::{Inbox, Outbox},
    tunnels::Core,
};
use archipelago_http::{Pooled, RequestHead, ResponseHead};
use archipelago_identity::tls::PeerCertificate;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::Method;
use http_body::Body;
use std::{
    error::Error,
    fmt,
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};
use tokio::{sync::mpsc, time::timeout};

/// Requests from other gateways, in the order of their arrival.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Box<IncomingRequest>>);

impl Incoming {
    pub(crate) fn new(requests: mpsc::Receiver<Box<IncomingRequest>>) -> Self {
        Self(requests)
    }

    /// The next request; `None` once the tunnels are closed. In a box: it is a kilobyte, and moves a few times before it is looked at.
    pub async fn next(&mut self) -> Option<Box<IncomingRequest>> {
        self.0.recv().await
    }
}

/// A request, whose body may still be arriving.
#[derive(Debug)]
pub struct IncomingRequest {
    /// The certificate of whoever sent it; one value for all requests of a connection.
    pub peer: Arc<PeerCertificate>,
    /// When its head was there.
    pub arrived: Instant,
    /// Its head.
    pub head: Pooled<RequestHead>,
    /// Its body. For CONNECT without a protocol it is empty: the data comes by [`Responder::accept_connect`].
    pub body: TunnelBody,
    /// The way to answer it.
    pub responder: Responder,
}

/// Answers one request. Dropped without an answer, it resets the stream with `H3_INTERNAL_ERROR`.
pub struct Responder {
    outbox: Outbox,
    /// Where the data of a CONNECT comes from.
    tunnel: Option<MessageReader>,
    in_flight: InFlight,
    /// An informational head was sent.
    has_informed: bool,
}

impl Responder {
    /// Sends an informational head (1xx, not 101) ahead of the response.
    ///
    /// # Errors
    /// As [`respond`](Self::respond).
    pub async fn inform(&mut self, head: &ResponseHead) -> Result<(), TunnelError> {
        debug_assert!(head.status.is_informational());
        self.has_informed = true;
        self.push_head(head)?;
        poll_fn(|cx| self.outbox.poll_flush(cx)).await
    }

    /// What follows may last for days, as what an established CONNECT carries, and is no request that waits.
    pub fn becomes_tunnel(&mut self) {
        self.in_flight.become_tunnel();
    }

    /// Sends the response; resolves when all of it is with QUIC. The body goes as fast as the far side reads.
    ///
    /// # Errors
    /// The body failed (the stream is reset with `H3_INTERNAL_ERROR`), the head is larger than the far side takes (it is reset with
    /// `H3_EXCESSIVE_LOAD`), or the far side does not want it any more.
    pub async fn respond<B>(mut self, head: &ResponseHead, body: B) -> Result<(), TunnelError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.push_head(head)?;
        let Self { outbox, tunnel, in_flight, .. } = self;
        let result = Pump::new(outbox, body, Code::INTERNAL_ERROR).await;
        drop((tunnel, in_flight));
        result
    }

    /// Accepts a CONNECT: sends `head`, which should be a 2xx, and gives the two halves.
    ///
    /// # Errors
    /// The request was not a CONNECT ([`TunnelError::Closed`]), or its sender is gone.
    pub async fn accept_connect(mut self, head: &ResponseHead) -> Result<(SendHalf, RecvHalf), TunnelError> {
        let mut reader = self.tunnel.take().ok_or(TunnelError::Closed)?;
        self.push_head(head)?;
        reader.inbox().cancel_on_drop();
        poll_fn(|cx| self.outbox.poll_flush(cx)).await?;
        let in_flight = Some(self.in_flight.into_tunnel());
        Ok((SendHalf::new(self.outbox, in_flight.clone()), RecvHalf::new(reader, in_flight)))
    }

    /// Refuses the request as never processed: its sender may send it elsewhere, whatever it is. Not after an informational head,
    /// which says the contrary: then it is broken.
    pub fn reject(mut self) {
        let code = if self.has_informed { Code::INTERNAL_ERROR } else { Code::REQUEST_REJECTED };
        self.outbox.reset(code);
        if let Some(reader) = &mut self.tunnel {
            reader.inbox().stop(code);
        }
    }

    /// Resolves when the sender no longer wants an answer, or is gone; says which.
    pub async fn cancelled(&mut self) -> TunnelError {
        poll_fn(|cx| self.outbox.poll_stopped(cx)).await
    }

    fn push_head(&mut self, head: &ResponseHead) -> Result<(), TunnelError> {
        let bytes_max = self.outbox.conn().section_bytes_max();
        let pushed = self.outbox.push_frame(|out| fields::encode_response(head, bytes_max, out));
        pushed.map_err(|error| {
            self.outbox.reset(Code::EXCESSIVE_LOAD);
            error.into()
        })
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("peer", &self.outbox.conn().peer().spiffe_id.to_string())
            .finish_non_exhaustive()
    }
}

/// Reads request heads and hands the requests out. One task for all streams of a connection: a head mostly arrives with
/// its stream, so it is read where the stream is accepted, and only the slow ones are waited for side by side.
pub(crate) async fn serve(core: &Arc<Core>, conn: Arc<Conn>) {
    let limits = &core.config().limits;
    let mut draining = core.draining();
    let mut slow = FuturesUnordered::new();
    let mut next_id = 0;
    let mut refuse_from = u64::MAX;
    let mut burst = 0u32;
    loop {
        tokio::select! {
            accepted = conn.quinn().accept_bi() => {
                let Ok((send, recv)) = accepted else { return };
                // quinn hands out what is there without an end: whoever else shares the thread gets his turn in between.
                burst = burst.wrapping_add(1);
                if burst.is_multiple_of(STREAMS_PER_TURN) {
                    tokio::task::yield_now().await;
                }
                let id = u64::from(recv.id());
                next_id = id.saturating_add(4);
                conn.extend_streams();
                let mut arriving = Arriving::new(&conn, send, recv);
                if id >= refuse_from {
                    arriving.reject();
                    continue;
                }
                match poll_fn(|cx| Poll::Ready(arriving.poll_head(cx))).await {
                    Poll::Ready(head) => arriving.deliver(core, head),
                    Poll::Pending if slow.len() < SLOW_HEADS_MAX => slow.push(async move {
                        let waited = timeout(limits.head_timeout, poll_fn(|cx| arriving.poll_slow_head(cx))).await;
                        (arriving, waited.unwrap_or(None))
                    }),
                    Poll::Pending => arriving.reject(),
                }
            }
            Some((arriving, head)) = slow.next(), if !slow.is_empty() => match head {
                Some(head) => arriving.deliver(core, head),
                None => arriving.reject(),
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
    /// Bytes of the head so far, once it is slow.
    held: usize,
}

impl Arriving {
    fn new(conn: &Arc<Conn>, send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        let inbox = Inbox::new(recv, conn.clone(), Code::NO_ERROR);
        Self {
            outbox: Outbox::new(send, conn.clone(), Code::INTERNAL_ERROR),
            reader: MessageReader::new(inbox, Limits::default(), None),
            in_flight: InFlight::new(conn.clone()),
            held: 0,
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pooled<RequestHead>, TunnelError>> {
        self.reader.poll_request(cx)
    }

    /// The same, within what all incomplete heads of a connection may hold together; `None` when that is too much.
    fn poll_slow_head(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pooled<RequestHead>, TunnelError>>> {
        let polled = self.poll_head(cx);
        let held = if polled.is_pending() { self.reader.buffered() } else { 0 };
        let total = self.hold(held);
        match polled {
            Poll::Pending if total > SLOW_HEAD_BYTES_MAX => Poll::Ready(None),
            polled => polled.map(Some),
        }
    }

    /// Accounts for `bytes` of this head; returns what all heads of the connection hold.
    fn hold(&mut self, bytes: usize) -> usize {
        let held = self.outbox.conn().head_bytes();
        held.fetch_sub(self.held, Ordering::Relaxed);
        self.held = bytes;
        held.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    fn deliver(mut self, core: &Core, head: Result<Pooled<RequestHead>, TunnelError>) {
        let head = match head {
            Ok(head) => head,
            Err(TunnelError::Protocol(error)) => return self.outbox.reset(error.code),
            Err(_) => return self.outbox.reset(Code::REQUEST_CANCELLED),
        };
        let Self { outbox, reader, in_flight, .. } = self;
        let peer = Arc::clone(outbox.conn().peer());
        let is_tunnel = head.method == Method::CONNECT && head.protocol.is_none();
        let (body, tunnel) =
            if is_tunnel { (TunnelBody::empty(), Some(reader)) } else { (TunnelBody::new(reader), None) };
        let responder = Responder { outbox, tunnel, in_flight, has_informed: false };
        let request = IncomingRequest { peer, arrived: Instant::now(), head, body, responder };
        if let Err(refused) = core.incoming().try_send(Box::new(request)) {
            core.count_rejected();
            refused.into_inner().responder.reject();
        }
    }

    fn reject(mut self) {
        self.hold(0);
        self.reader.inbox().stop(Code::REQUEST_REJECTED);
        self.outbox.reset(Code::REQUEST_REJECTED);
    }
}

const STREAMS_PER_TURN: u32 = 64;
/// Heads waited for on one connection: a burst of lost packets leaves hundreds of streams without a byte for a round trip.
const SLOW_HEADS_MAX: usize = 1024;
/// What they may hold together: a thousand heads of usual size. With 64 connections per peer the bound is 64 MiB, not 4 GiB.
const SLOW_HEAD_BYTES_MAX: usize = 1 << 20;
