//! A client's connection: HTTP/2 if it opens with the preface (RFC 9113 §3.4), else HTTP/1.1.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::http1::link::Link;
use super::{http1, http2};
use crate::config::Capture;
use crate::handover::Turn;
use crate::source::Source;
use crate::tls::{self, Facts, Terminator, handshake};
use crate::visitors::Visit;
use crate::worker::Worker;

/// How a client's connection came in.
#[derive(Debug)]
pub struct Entrance {
    /// Who is at the other end.
    pub source: Source,
    /// What the port it came to is for; `None`: the port where host names say it.
    pub capture: Option<Arc<Capture>>,
    /// Its place among the client's connections.
    pub visit: Rc<Visit>,
    /// What was agreed on, if it speaks TLS.
    pub tls: Option<Rc<Facts>>,
}

/// Serves a connection until it ends, or until its exchanges in flight are done once `drain` is cancelled. Once a successor
/// serves, the client is asked to come again: to it. An idle HTTP/1.1 connection is not closed for that, since a request may be
/// on its way; its next response says so.
pub async fn serve(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    entrance: Entrance,
    drain: CancellationToken,
    turn: Turn,
) {
    let _open = worker.metrics.http_connection();
    let _ = stream.set_nodelay(true);
    let timer = worker.timers.timer();
    timer.set(Some(Instant::now() + worker.limits.head_timeout));
    let opening = tokio::select! {
        biased;
        opening = opening(&mut stream) => opening,
        // Nothing came: there is nobody to tell.
        () = timer.is_due() => return,
        () = drain.cancelled() => return,
    };
    drop(timer);
    match opening {
        Ok((read, true)) => {
            let stream = Box::new(Opened { read: Cursor::new(read), stream });
            Box::pin(http2::server::serve(worker, stream, entrance, drain, turn)).await;
        }
        Ok((read, false)) => http1::server::serve(worker, Link::new(stream, read), entrance).await,
        Err(error) => tracing::debug!(%error, "a client left before it said anything"),
    }
}

/// The same for a client that has to speak TLS first. It says by that which protocol it speaks (RFC 7301); if it does not, that is
/// HTTP/1.1.
pub async fn serve_tls(
    worker: Rc<Worker>,
    tls: Terminator,
    socket: TcpStream,
    mut entrance: Entrance,
    drain: CancellationToken,
    turn: Turn,
) {
    let _open = worker.metrics.http_connection();
    let _ = socket.set_nodelay(true);
    let agreed = tokio::select! {
        biased;
        agreed = Box::pin(handshake::accept(&worker, &tls, socket)) => agreed,
        () = drain.cancelled() => return,
    };
    match agreed {
        Ok((stream, facts)) => {
            entrance.tls = Some(Rc::new(facts));
            if stream.session.connection().alpn_protocol() == Some(tls::H2) {
                Box::pin(http2::server::serve(worker, Box::new(stream), entrance, drain, turn)).await;
            } else {
                http1::server::serve(worker, Link::secured(stream), entrance).await;
            }
        }
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no session with a client"),
    }
}

/// Reads until the bytes are the preface of HTTP/2, or cannot become it.
async fn opening(stream: &mut TcpStream) -> io::Result<(BytesMut, bool)> {
    // Who says nothing yet needs no room for it.
    stream.readable().await?;
    let mut read = http1::spare::room();
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return if read.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((read, false)) };
        }
        let length = read.len().min(PREFACE.len());
        if read.get(..length) != PREFACE.get(..length) {
            return Ok((read, false));
        }
        if length == PREFACE.len() {
            return Ok((read, true));
        }
    }
}

/// A connection of which the first bytes have been read.
#[derive(Debug)]
struct Opened {
    read: Cursor<BytesMut>,
    stream: TcpStream,
}

impl AsyncRead for Opened {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read.has_remaining() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.read.remaining().min(buf.remaining());
        buf.put_slice(self.read.chunk().get(..n).unwrap_or_default());
        self.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Opened {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
