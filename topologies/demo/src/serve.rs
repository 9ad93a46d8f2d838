//! Accepts connections and drives them, with a bound on their number, their silence and their end.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Sleep, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{Identity, Protocol, http::Backend, tcp};

/// Serves connections of `listener` until `stop`, then lets open ones finish for up to ten seconds.
///
/// Never fails: a connection that cannot be accepted or served costs only itself.
pub async fn serve(listener: TcpListener, identity: Arc<Identity>, protocol: Protocol, stop: CancellationToken) {
    let backend = Arc::new(Backend::new(identity));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        // The slot comes first: at the limit, new connections wait in the kernel's backlog.
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or a client that left before we accepted it.
                warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (backend, stop, abort) = (Arc::clone(&backend), stop.clone(), abort.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, backend, protocol, stop) => {}
                () = abort.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_TIME, connections.wait()).await.is_err() {
        warn!(open = connections.len(), "closing connections that did not finish");
        abort.cancel();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, backend: Arc<Backend>, protocol: Protocol, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "setting TCP_NODELAY failed");
    }
    let outcome = match protocol {
        Protocol::Http => http1_connection(stream, backend, stop).await,
        Protocol::H2c => http2_connection(stream, backend, stop).await,
        Protocol::Tcp => tcp::answer(WriteStall::new(stream), backend.identity()).await.map_err(Into::into),
    };
    if let Err(error) = outcome {
        debug!(error = %error, "connection ended early");
    }
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn http1_connection(stream: TcpStream, backend: Arc<Backend>, stop: CancellationToken) -> Outcome {
    let service = service_fn(move |request| {
        let backend = Arc::clone(&backend);
        async move { Ok::<_, Infallible>(backend.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .serve_connection(TokioIo::new(WriteStall::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        outcome = connection.as_mut() => return Ok(outcome?),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

async fn http2_connection(stream: TcpStream, backend: Arc<Backend>, stop: CancellationToken) -> Outcome {
    let service = service_fn(move |request| {
        let backend = Arc::clone(&backend);
        async move { Ok::<_, Infallible>(backend.answer(request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HTTP2_HEADER_LIST_BYTES)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        // A client that vanished without a FIN is noticed within these two together.
        .keep_alive_interval(HTTP2_PING_EVERY)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .serve_connection(TokioIo::new(WriteStall::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        outcome = connection.as_mut() => return Ok(outcome?),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// A stream whose writes fail once the peer has taken nothing for [`WRITE_STALL_MAX`].
///
/// Without it a client that stops reading and never leaves would hold its connection for ever.
struct WriteStall {
    stream: TcpStream,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl WriteStall {
    fn new(stream: TcpStream) -> Self {
        Self { stream, deadline: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        deadline
            .as_mut()
            .poll(context)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading")))
    }
}

impl AsyncRead for WriteStall {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteStall {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Open connections of one backend; each costs two small buffers and one descriptor.
const CONNECTIONS_MAX: usize = 4096;
/// Time to send a request head, which is also how long an idle HTTP/1.1 connection is kept. Longer
/// than the idle time of the gateways' pools, so that it is the client who closes: the other way
/// round a request can be on its way to a port that is just being closed.
const IDLE_TIME: Duration = Duration::from_secs(120);
/// Long enough that a test may stop reading on purpose, short enough to end.
const WRITE_STALL_MAX: Duration = Duration::from_secs(300);
const DRAIN_TIME: Duration = Duration::from_secs(10);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const HTTP1_BUFFER_BYTES: usize = 256 << 10;
const HTTP2_STREAMS_MAX: u32 = 1024;
const HTTP2_STREAM_WINDOW_BYTES: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const HTTP2_HEADER_LIST_BYTES: u32 = 64 << 10;
const HTTP2_SEND_BUFFER_BYTES: usize = 256 << 10;
const HTTP2_PING_EVERY: Duration = Duration::from_secs(20);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
