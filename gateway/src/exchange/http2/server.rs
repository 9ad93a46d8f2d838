//! HTTP/2 from a client.

use std::rc::Rc;
use std::time::{Duration, Instant};

use archipelago_http::RequestHead;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::download::Download;
use super::open::{Open, OpenStream};
use super::switch;
use crate::exchange::body::{Incoming, Replayable, ResponseBody};
use crate::exchange::client::Entrance;
use crate::exchange::interim::Interim;
use crate::exchange::{serve_client, websocket};
use crate::handover::{Phase, Turn};
use crate::worker::{LocalExecutor, Worker};

/// Serves a connection until it ends. Once the gateway drains or a successor serves, the client is asked to come again; one on which
/// there is nothing for too long is closed, with GOAWAY first.
pub async fn serve(
    worker: Rc<Worker>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    entrance: Entrance,
    drain: CancellationToken,
    mut turn: Turn,
) {
    let entrance = Rc::new(entrance);
    let open = Open::new(HELD_MAX, Instant::now());
    let service = {
        let (worker, open) = (Rc::clone(&worker), Rc::clone(&open));
        service_fn(move |request| {
            let (worker, entrance, stream) = (Rc::clone(&worker), Rc::clone(&entrance), open.stream());
            async move { Ok::<_, std::convert::Infallible>(answer(worker, &entrance, request, stream).await) }
        })
    };
    let leaving = async {
        tokio::select! {
            () = drain.cancelled() => {}
            () = turn.until(|phase| phase == Phase::Yielded) => {}
        }
    };
    let leaving = async {
        tokio::select! {
            () = leaving => false,
            () = idle(&worker, &open) => true,
        }
    };
    // Polled when it is woken, not whenever the connection is: a look at the token takes its lock, which all workers share.
    let mut leaving = FuturesUnordered::from_iter([leaving]);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        biased;
        result = &mut connection => result,
        is_idle = leaving.next() => {
            connection.as_mut().graceful_shutdown();
            if is_idle == Some(true) {
                // Nobody may be there any more who could answer that.
                let Ok(result) = tokio::time::timeout(GOAWAY_TIMEOUT, connection).await else { return };
                result
            } else {
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "client connection ended");
    }
}

/// Resolves when the connection has had no stream for too long.
async fn idle(worker: &Worker, open: &Open) {
    let timer = worker.timers.timer();
    let mut from = Instant::now();
    loop {
        timer.set(Some(from + worker.limits.idle_timeout));
        timer.is_due().await;
        let now = Instant::now();
        match open.idle_since() {
            Some(since) if now >= since + worker.limits.idle_timeout => return,
            since => from = since.unwrap_or(now),
        }
    }
}

async fn answer(
    worker: Rc<Worker>,
    entrance: &Entrance,
    request: Request<hyper::body::Incoming>,
    stream: OpenStream,
) -> Response<Download> {
    if request.extensions().get::<Protocol>().is_some() {
        return connect(worker, entrance, request, stream).await;
    }
    let (parts, body) = request.into_parts();
    let head = match RequestHead::from_http(&parts) {
        Ok(head) => head,
        Err(error) => return refusal(&worker, StatusCode::BAD_REQUEST, &error, stream),
    };
    let now = Instant::now();
    let body = Replayable::new(Incoming::http2(body, stream.part()), now);
    let response = serve_client(Rc::clone(&worker), entrance, head.into(), body, Interim::None, now).await;
    match response.head.to_http() {
        Ok(parts) => Response::from_parts(parts, Download::new(&worker, response.body, stream)),
        Err(error) => refusal(&worker, StatusCode::BAD_GATEWAY, &error, stream),
    }
}

/// Answers an extended CONNECT (RFC 8441).
#[cold]
async fn connect(
    worker: Rc<Worker>,
    entrance: &Entrance,
    mut request: Request<hyper::body::Incoming>,
    stream: OpenStream,
) -> Response<Download> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, _) = request.into_parts();
    let protocol = parts.extensions.remove::<Protocol>();
    // Its target is that of a GET.
    parts.method = Method::GET;
    let head = RequestHead::from_http(&parts).map(|mut head| {
        head.method = Method::CONNECT;
        head
    });
    let mut head = match head {
        Ok(head) => head,
        Err(error) => return refusal(&worker, StatusCode::BAD_REQUEST, &error, stream),
    };
    websocket::from_connect(&mut head, protocol.as_ref().map_or("", Protocol::as_str));
    let now = Instant::now();
    let (switch, switched) = switch::pair(upgrade, stream.part());
    let body = Replayable::new(Incoming::http2_switched(switched), now);
    body.hold();
    let mut response = serve_client(Rc::clone(&worker), entrance, head.into(), body, Interim::None, now).await;
    if response.head.status == StatusCode::SWITCHING_PROTOCOLS {
        websocket::to_connect(&mut response.head);
        let body = std::mem::replace(&mut response.body, ResponseBody::empty());
        switch.switch(Rc::clone(&worker), body, stream.part());
    } else if response.head.status.is_success() {
        // Said here, 2xx would switch.
        return refusal(
            &worker,
            StatusCode::BAD_GATEWAY,
            &"the service answered, and did not switch to WebSocket",
            stream,
        );
    }
    match response.head.to_http() {
        Ok(parts) => Response::from_parts(parts, Download::new(&worker, response.body, stream)),
        Err(error) => refusal(&worker, StatusCode::BAD_GATEWAY, &error, stream),
    }
}

fn refusal(
    worker: &Rc<Worker>,
    status: StatusCode,
    why: &impl std::fmt::Display,
    stream: OpenStream,
) -> Response<Download> {
    let body = ResponseBody::full(Bytes::from(format!("{why}\n")));
    let mut response = Response::new(Download::new(worker, body, stream));
    *response.status_mut() = status;
    response
}

const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// As many full windows of streams as the window of the connection holds.
const HELD_MAX: usize = (CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES) as usize;
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// As for HTTP/1.1.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// For whoever is there a round trip is enough.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
