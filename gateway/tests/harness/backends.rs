//! Backends that the gateways of a test serve from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::Body;

/// What a backend saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    pub(crate) cancelled: AtomicUsize,
}

/// An HTTP backend, HTTP/1.1 and HTTP/2.
pub(crate) async fn backend(cluster: &'static str) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let counters = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            let seen = Arc::clone(&counters);
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(cluster, Arc::clone(&seen), request));
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, seen)
}

async fn answer(
    cluster: &'static str,
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let response = match (parts.next(), parts.next()) {
        (Some("headers"), _) => full(format!("{:?}", request.headers())),
        (Some("seen-trailers"), _) => {
            let collected = request.into_body().collect().await.map_err(std::io::Error::other)?;
            full(format!("{:?}", collected.trailers()))
        }
        (Some("echo"), _) => Response::new(request.into_body().map_err(std::io::Error::other).boxed_unsync()),
        (Some("count"), _) => {
            let mut bytes = 0;
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                bytes += frame.map_err(std::io::Error::other)?.data_ref().map_or(0, Bytes::len);
            }
            full(bytes.to_string())
        }
        (Some("bytes"), Some(n)) => {
            let n: usize = n.parse().unwrap();
            let chunk = Bytes::from(vec![b'x'; 16 * 1024]);
            let chunks = (0..n.div_ceil(chunk.len()))
                .map(move |i| Ok(Frame::data(chunk.slice(..chunk.len().min(n - i * chunk.len())))));
            Response::new(StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync())
        }
        (Some("delay"), Some(ms)) => {
            let guard = Waiting::new(&seen);
            tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
            guard.done();
            full(cluster)
        }
        (Some("trailers"), _) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("abc"));
            trailers.insert("mesh-source", HeaderValue::from_static("forged"));
            let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
            response
        }
        (Some("status"), Some(code)) => {
            let mut response = full(code.to_owned());
            *response.status_mut() = code.parse::<StatusCode>().unwrap();
            response
        }
        (Some("break"), _) => {
            let frames =
                [Ok(Frame::data(Bytes::from_static(b"half"))), Err(std::io::Error::other("broken on purpose"))];
            Response::new(
                StreamBody::new(futures_util::stream::iter(frames).then(|f| async {
                    tokio::task::yield_now().await;
                    f
                }))
                .boxed_unsync(),
            )
        }
        _ => full(cluster),
    };
    Ok(response)
}

fn full(text: impl Into<String>) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text.into())).map_err(|never| match never {}).boxed_unsync())
}

struct Waiting(Arc<Seen>, bool);

impl Waiting {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.waiting.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen), false)
    }

    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A TCP backend: reads to the end, then answers with what it read, and closes.
pub(crate) async fn tcp_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() {
                    let _ = stream.write_all(format!("read {} bytes", all.len()).as_bytes()).await;
                }
            });
        }
    });
    address
}

/// An address where connections are refused as long as the socket lives: nobody else gets the port.
pub(crate) fn refusing() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}
