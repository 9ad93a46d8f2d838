//! The two halves of a QUIC stream, such that forgetting one cancels it.
//!
//! A dropped `quinn::SendStream` sends FIN: the far side would take a truncated body for a complete one. Here a half that
//! is dropped before its end is reset (or stopped) with the code it was given.

use crate::{
    codec::{
        self, Code,
        fields::{self, EncodeError},
    },
    conn::Conn,
    error::TunnelError,
    stops::Waiting,
    transport::varint,
};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

/// The sending half: what was queued goes out in as few writes as possible.
pub(crate) struct Outbox {
    stream: quinn::SendStream,
    conn: Arc<Conn>,
    /// Code to reset with when dropped before [`Outbox::finish`].
    on_drop: Code,
    is_open: bool,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Frame headers and sections, carved from one allocation.
    scratch: BytesMut,
    /// Our place among those who wait for a stop.
    waiting: Option<Waiting>,
    /// News of stops when we last asked.
    looked: u64,
    /// The same towards a peer without beats.
    stopped: Option<Pin<Box<StoppedFuture>>>,
}

type StoppedFuture = dyn Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>> + Send + Sync;

impl Outbox {
    pub(crate) fn new(stream: quinn::SendStream, conn: Arc<Conn>, on_drop: Code) -> Self {
        Self {
            stream,
            looked: conn.stops().news(),
            conn,
            on_drop,
            is_open: true,
            queue: VecDeque::with_capacity(4),
            queued_bytes: 0,
            scratch: BytesMut::with_capacity(512),
            waiting: None,
            stopped: None,
        }
    }

    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Queues what `encode` writes: a frame, complete.
    pub(crate) fn push_frame<E>(&mut self, encode: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        encode(&mut self.scratch)?;
        self.push_scratch();
        Ok(())
    }

    /// Queues a DATA frame around `data`, which is not copied.
    pub(crate) fn push_data(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        codec::data_header(data.len(), &mut self.scratch);
        self.push_scratch();
        self.queued_bytes += data.len();
        self.queue.push_back(data);
    }

    pub(crate) fn push_trailers(&mut self, trailers: &HeaderMap) -> Result<(), EncodeError> {
        let bytes_max = self.conn.section_bytes_max();
        self.push_frame(|out| fields::encode_trailers(trailers, bytes_max, out))
    }

    fn push_scratch(&mut self) {
        let chunk = self.scratch.split().freeze();
        self.queued_bytes += chunk.len();
        self.queue.push_back(chunk);
    }

    /// Bytes not yet handed to QUIC.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Hands everything queued to QUIC; pending while flow control holds it back.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        while !self.queue.is_empty() {
            let written = {
                let chunks = self.queue.make_contiguous();
                ready!(pin!(self.stream.write_chunks(chunks)).poll(cx))
            };
            match written {
                Ok(written) => {
                    self.queued_bytes = self.queued_bytes.saturating_sub(written.bytes);
                    self.queue.drain(..written.chunks);
                }
                Err(error) => return Poll::Ready(Err(self.failed(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Resolves when the far side stops reading, or the connection is gone. Never resolves on a finished stream.
    pub(crate) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        if !self.is_open {
            return Poll::Pending;
        }
        if self.stopped.is_none() && (self.waiting.is_some() || self.conn.has_beats()) {
            // First a place, then the look: what comes in between is seen by one of them.
            self.conn.stops().wait(&mut self.waiting, cx.waker());
            let news = self.conn.stops().news();
            if std::mem::replace(&mut self.looked, news) == news {
                return Poll::Pending;
            }
            // Writing nothing says what writing something would.
            let asked = pin!(self.stream.write_chunks(&mut [])).poll(cx);
            return match asked {
                Poll::Ready(Err(error)) => Poll::Ready(self.failed(error)),
                Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
            };
        }
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(self.stream.stopped()));
        match ready!(stopped.as_mut().poll(cx)) {
            Ok(Some(code)) => Poll::Ready(self.failed(quinn::WriteError::Stopped(code))),
            Ok(None) => Poll::Pending,
            Err(quinn::StoppedError::ConnectionLost(cause)) => {
                Poll::Ready(self.failed(quinn::WriteError::ConnectionLost(cause)))
            }
            Err(quinn::StoppedError::ZeroRttRejected) => Poll::Ready(TunnelError::Closed),
        }
    }

    /// Ends the stream cleanly. Everything must have been flushed.
    pub(crate) fn finish(&mut self) {
        debug_assert!(self.queue.is_empty());
        if self.close() {
            let _ = self.stream.finish();
        }
    }

    /// Ends the stream with an error.
    pub(crate) fn reset(&mut self, code: Code) {
        if self.close() {
            let _ = self.stream.reset(varint(code));
        }
    }

    /// Nothing more is sent; true if that is news.
    fn close(&mut self) -> bool {
        if let Some(waiting) = self.waiting.take() {
            self.conn.stops().leave(waiting);
        }
        std::mem::take(&mut self.is_open)
    }

    fn failed(&mut self, error: quinn::WriteError) -> TunnelError {
        match error {
            quinn::WriteError::Stopped(code) => {
                self.close();
                let _ = self.stream.reset(code);
                from_code(code)
            }
            quinn::WriteError::ConnectionLost(cause) => {
                self.close();
                self.conn.lost(cause, Some(self.stream.id()))
            }
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => TunnelError::Closed,
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.reset(self.on_drop);
    }
}

/// The receiving half.
pub(crate) struct Inbox {
    stream: quinn::RecvStream,
    conn: Arc<Conn>,
    /// Code to stop with when dropped before the end.
    on_drop: Code,
    is_open: bool,
}

impl Inbox {
    pub(crate) fn new(stream: quinn::RecvStream, conn: Arc<Conn>, on_drop: Code) -> Self {
        Self { stream, conn, on_drop, is_open: true }
    }

    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Hands what has arrived to `take`; `false` at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Bytes),
    ) -> Poll<Result<bool, TunnelError>> {
        let mut chunks: [Bytes; CHUNKS_PER_READ] = Default::default();
        let read = {
            let reading = pin!(self.stream.read_chunks(&mut chunks));
            ready!(reading.poll(cx))
        };
        match read {
            Ok(Some(count)) => {
                chunks.into_iter().take(count).for_each(&mut take);
                Poll::Ready(Ok(true))
            }
            Ok(None) => {
                self.is_open = false;
                Poll::Ready(Ok(false))
            }
            Err(error) => {
                self.is_open = false;
                Poll::Ready(Err(match error {
                    quinn::ReadError::Reset(code) => from_code(code),
                    quinn::ReadError::ConnectionLost(cause) => self.conn.lost(cause, Some(self.stream.id())),
                    _ => TunnelError::Closed,
                }))
            }
        }
    }

    /// From now on forgetting it means that what comes is not wanted, rather than not needed.
    pub(crate) fn cancel_on_drop(&mut self) {
        self.on_drop = Code::REQUEST_CANCELLED;
    }

    /// Tells the far side to stop sending.
    pub(crate) fn stop(&mut self, code: Code) {
        if self.is_open {
            self.is_open = false;
            let _ = self.stream.stop(varint(code));
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.stop(self.on_drop);
    }
}

/// What the far side's code means to the caller.
fn from_code(code: quinn::VarInt) -> TunnelError {
    match Code(code.into_inner()) {
        Code::REQUEST_REJECTED => TunnelError::Rejected,
        code => TunnelError::Reset { code },
    }
}

/// One lock for this many packets' worth of data.
const CHUNKS_PER_READ: usize = 16;
