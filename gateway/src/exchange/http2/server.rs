//! HTTP/2 from a client.

use std::rc::Rc;
use std::time::Duration;

use archipelago_http::RequestHead;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, Response, StatusCode};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::download::Download;
use crate::exchange::body::{Incoming, ResponseBody};
use crate::exchange::client::Entrance;
use crate::exchange::interim::Interim;
use crate::exchange::serve_client;
use crate::handover::{Phase, Turn};
use crate::worker::{LocalExecutor, Worker};

/// Serves a connection until it ends. Once the gateway drains or a successor serves, the client is asked to come again.
pub async fn serve(
    worker: Rc<Worker>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    entrance: Entrance,
    drain: CancellationToken,
    mut turn: Turn,
) {
    let entrance = Rc::new(entrance);
    let service = {
        let worker = Rc::clone(&worker);
        service_fn(move |request| {
            let (worker, entrance) = (Rc::clone(&worker), Rc::clone(&entrance));
            async move { Ok::<_, std::convert::Infallible>(answer(worker, &entrance, request).await) }
        })
    };
    let leaving = async {
        tokio::select! {
            () = drain.cancelled() => {}
            () = turn.until(|phase| phase == Phase::Yielded) => {}
        }
    };
    // Polled when it is woken, not whenever the connection is: a look at the token takes its lock, which all workers share.
    let mut leaving = FuturesUnordered::from_iter([leaving]);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
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
        _ = leaving.next() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "client connection ended");
    }
}

async fn answer(
    worker: Rc<Worker>,
    entrance: &Entrance,
    request: Request<hyper::body::Incoming>,
) -> Response<Download> {
    let (parts, body) = request.into_parts();
    let head = match RequestHead::from_http(&parts) {
        Ok(head) => head,
        Err(error) => return refusal(&worker, StatusCode::BAD_REQUEST, &error),
    };
    let response = serve_client(Rc::clone(&worker), entrance, head.into(), Incoming::http2(body), Interim::None).await;
    match response.head.to_http() {
        Ok(parts) => Response::from_parts(parts, Download::new(&worker, response.body)),
        Err(error) => refusal(&worker, StatusCode::BAD_GATEWAY, &error),
    }
}

fn refusal(worker: &Rc<Worker>, status: StatusCode, why: &impl std::fmt::Display) -> Response<Download> {
    let body = ResponseBody::full(Bytes::from(format!("{why}\n")));
    let mut response = Response::new(Download::new(worker, body));
    *response.status_mut() = status;
    response
}

const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// As for HTTP/1.1.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
