//! The sockets of the page: anybody on this machine may connect, so that what each may take is bounded before it says who it is.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::{Dashboard, DashboardArgs, routes};
use crate::api::Context;

/// Until when a connection may go on without progress. Requests and readers that make some move it.
#[derive(Debug, Clone)]
pub(super) struct Pace(Arc<watch::Sender<Instant>>);

impl Pace {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Instant::now() + REQUEST_TIME_MAX)))
    }

    /// There is this much time from now on.
    pub(super) fn allow(&self, time: Duration) {
        self.0.send_replace(Instant::now() + time);
    }

    async fn over(&self) {
        let mut deadline = self.0.subscribe();
        loop {
            let until = *deadline.borrow_and_update();
            tokio::select! {
                biased;
                // Cannot fail: this holds the sender.
                _ = deadline.changed() => {}
                () = sleep_until(until) => return,
            }
        }
    }
}

/// Another hold on a socket, by which what is on its way in it is thrown away.
struct Cutter(OwnedFd);

impl Cutter {
    fn of(stream: &TcpStream) -> std::io::Result<Self> {
        stream.as_fd().try_clone_to_owned().map(Self)
    }

    /// Ends with a reset instead of waiting for somebody who does not read.
    fn cut(self) {
        let _ = rustix::net::sockopt::set_socket_linger(self.0, Some(Duration::ZERO));
    }
}

/// Serves the page until the member stops.
pub(crate) async fn serve(context: Arc<Context>, dashboard: Arc<Dashboard>, listener: StdListener) {
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the dashboard cannot be served"),
    };
    let acceptor = dashboard.tls.clone().map(TlsAcceptor::from);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let mut revocations = dashboard.revocations.subscribe();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, stream, remote) = tokio::select! {
            () = context.stopping.cancelled() => break,
            () = sleep(SWEEP) => {
                dashboard.sweep();
                continue;
            }
            _ = revocations.changed() => {
                dashboard.sweep();
                continue;
            }
            (slot, accepted) = next => match (slot, accepted) {
                (Ok(slot), Ok((stream, remote))) => (slot, stream, remote),
                (Err(_), _) => return,
                (_, Err(error)) => {
                    // Out of descriptors passes; spinning on it would not help.
                    tracing::debug!(%error, "accept on the dashboard's port failed");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let (context, dashboard, acceptor) = (Arc::clone(&context), Arc::clone(&dashboard), acceptor.clone());
        connections.spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            let Ok(cutter) = Cutter::of(&stream) else { return };
            match acceptor {
                None => connection(context, dashboard, stream, remote, cutter).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
                        connection(context, dashboard, stream, remote, cutter).await;
                    }
                }
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    context: Arc<Context>,
    dashboard: Arc<Dashboard>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    remote: SocketAddr,
    cutter: Cutter,
) {
    let pace = Pace::new();
    let stopping = context.stopping.clone();
    let service = {
        let pace = pace.clone();
        service_fn(move |request| {
            let (context, dashboard, pace) = (Arc::clone(&context), Arc::clone(&dashboard), pace.clone());
            async move { Ok::<_, Infallible>(routes::answer(context, dashboard, pace, remote, request).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // Who goes away or talks nonsense concerns nobody.
        _ = &mut connection => return,
        // Does not take what it asked for, or sends nothing more.
        () = pace.over() => return cutter.cut(),
        () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(LAST_WORDS, connection).await;
}

/// Takes the port of a page whose arguments are good.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn listen(args: &DashboardArgs) -> anyhow::Result<StdListener> {
    let address = args.dashboard.context("no address is given")?;
    bind(address).with_context(|| format!("cannot listen on {address} (--dashboard)"))
}

fn bind(address: SocketAddr) -> std::io::Result<StdListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Of one that does not read, so much is kept for it.
    socket.set_send_buffer_size(SEND_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Some tabs of some operators, at up to six connections each.
const CONNECTIONS_MAX: usize = 256;
const BACKLOG: u32 = 128;
/// Heads of browsers have one or two kilobytes.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;
/// For the head of a request, and between requests.
const HEADER_TIME_MAX: Duration = Duration::from_secs(15);
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// From one request to the end of its answer, beyond every wait for gateways.
pub(super) const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// For the kernel to hold of what is not read yet.
const SEND_BYTES: u32 = 32 * 1024;
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a session is remembered whose time is over.
const SWEEP: Duration = Duration::from_secs(60);
/// For "bye" to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);
