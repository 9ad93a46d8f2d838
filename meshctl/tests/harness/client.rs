//! HTTP/1.1 and HTTP/2 clients, one connection each, on hyper.

use std::net::SocketAddr;

use archipelago_chaos::load::Protocol;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

/// A request body of any kind.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().boxed_unsync()
}

/// A body that is all there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// One connection to a gateway; dropping it, and what it gave out, closes it.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// A response that is all there.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Connection {
    /// Connects to the address of a URL such as `status` shows it.
    pub(crate) async fn open(url: &str, protocol: Protocol) -> Self {
        let stream = TcpStream::connect(address(url)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        }
    }

    /// HTTP/1.1.
    pub(crate) async fn http1(url: &str) -> Self {
        Self::open(url, Protocol::Http1).await
    }

    /// Sends a request for `host`; returns when the head of the response is there.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request.uri(path).header("host", host).body(body).unwrap()).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request.uri(format!("http://{host}{path}")).body(body).unwrap()).await
            }
        }
    }

    /// GET, to the last byte.
    pub(crate) async fn get(&mut self, host: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let response = self.send("GET", host, path, headers, empty()).await.unwrap();
        Reply::read(response).await
    }
}

impl Reply {
    /// Reads a response to its end.
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        Self { status: head.status.as_u16(), headers: head.headers, body: collected.to_bytes(), trailers }
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }

    /// A text field of the JSON body.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_else(|| panic!("no {name} in {self:?}")).to_owned()
    }
}

/// The socket address in a URL `http://host:port…`, or in a bare `host:port`.
pub(crate) fn address(url: &str) -> SocketAddr {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    rest.split('/').next().unwrap().parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}
