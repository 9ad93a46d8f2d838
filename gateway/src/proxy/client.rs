//! One client's connection: HTTP/2 if it opens with the preface, else HTTP/1.1 behind the [`super::guard`].

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{HeaderValue, StatusCode, Version, header};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::guard::RequestGuard;
use crate::config::Capture;
use crate::handover::{Phase, Turn};
use crate::source::Source;
use crate::worker::{LocalExecutor, Worker};

/// How a client's connection came in.
#[derive(Debug)]
pub struct Entrance {
    /// Who is at the other end.
    pub source: Source,
    /// What the port it came to is for; `None`: the port where host names say it.
    pub capture: Option<Arc<Capture>>,
}

/// Serves a connection until it ends, or until its exchanges in flight are done once `drain` is cancelled. Once a successor
/// serves, the client is asked to come again: to it. An idle HTTP/1.1 connection is not closed for that, since a request may be
/// on its way; its next response says so.
pub async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    entrance: Entrance,
    drain: CancellationToken,
    mut turn: Turn,
) {
    let _open = worker.metrics.http_connection();
    let _ = stream.set_nodelay(true);
    let mut stream =
        ClientStream { stream, prefix: Bytes::new(), guard: None, refused: false, worker: Rc::clone(&worker) };
    let http2 = tokio::select! {
        preface = tokio::time::timeout(HEAD_TIMEOUT, stream.opens_with_preface()) => match preface {
            Ok(Ok(http2)) => http2,
            // Nothing came, or the client left: there is nobody to tell.
            Ok(Err(_)) | Err(_) => return,
        },
        () = drain.cancelled() => return,
    };
    let service = {
        let (worker, entrance) = (Rc::clone(&worker), Rc::new(entrance));
        service_fn(move |request| {
            let (worker, entrance) = (Rc::clone(&worker), Rc::clone(&entrance));
            async move {
                let is_http1 = request.version() < Version::HTTP_2;
                let mut response = super::serve_client(Rc::clone(&worker), &entrance, request).await;
                if worker.is_leaving.get() && is_http1 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        })
    };
    let leaving = async {
        tokio::select! {
            () = drain.cancelled() => {}
            () = turn.until(|phase| phase == Phase::Yielded) => {}
        }
    };
    // Polled when it is woken, not whenever the connection is: a look at the token takes its lock, which all workers share.
    let result = if http2 {
        let mut leaving = FuturesUnordered::from_iter([leaving]);
        let connection = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(BUFFER_BYTES_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            biased;
            result = &mut connection => result,
            _ = leaving.next() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        stream.guard = Some(RequestGuard::default());
        let mut drained = FuturesUnordered::from_iter([drain.cancelled()]);
        // pipeline_flush stays off too: with unread bytes in its buffer hyper would never send the 400 of a refused head.
        // half_close stays off: a client that closes looks like one that half-closes, and its request must be cancelled.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            biased;
            result = &mut connection => result,
            _ = drained.next() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "client connection ended");
    }
}

/// A client's bytes: what was read to tell the protocol comes first, and HTTP/1.1 passes the guard.
#[derive(Debug)]
struct ClientStream {
    stream: TcpStream,
    prefix: Bytes,
    guard: Option<RequestGuard>,
    refused: bool,
    worker: Rc<Worker>,
}

impl ClientStream {
    /// Reads until the bytes are the HTTP/2 preface (RFC 9113 §3.4) or cannot become it.
    async fn opens_with_preface(&mut self) -> io::Result<bool> {
        let mut read = BytesMut::with_capacity(PREFACE.len());
        let http2 = loop {
            if !PREFACE.starts_with(&read) {
                break false;
            }
            if read.len() == PREFACE.len() {
                break true;
            }
            let mut rest = (&mut self.stream).take((PREFACE.len() - read.len()) as u64);
            if rest.read_buf(&mut read).await? == 0 {
                if read.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                break false;
            }
        };
        self.prefix = read.freeze();
        Ok(http2)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(this.prefix.get(..n).unwrap_or_default());
            this.prefix.advance(n);
        } else if !this.refused {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        if let Some(guard) = &mut this.guard
            && let Some(new) = buf.filled_mut().get_mut(before..)
            && let Some(violation) = guard.inspect(new)
        {
            this.worker.metrics.violation(violation);
            // hyper waits for the end of a head before it looks at it again; then comes the end of the stream.
            (this.guard, this.refused, this.prefix) = (None, true, Bytes::from_static(REFUSED_HEAD));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// No parser takes a NUL in a head.
const REFUSED_HEAD: &[u8] = b"\0\r\n\r\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client that connects must say something.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// hyper runs one clock for idle connections and for slow heads.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// nginx allows 32 KiB of headers, Envoy 60 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;
const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const BUFFER_BYTES_MAX: usize = 64 * 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
