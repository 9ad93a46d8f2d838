//! One question to one endpoint.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Version, header};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::timeout};

use crate::provider::file::{Probe, ServiceProtocol};

/// Asks `address` and waits at most `limit` for the whole exchange.
///
/// # Errors
/// [`ProbeError`] says what was wrong with the answer.
pub async fn probe(
    address: SocketAddr,
    protocol: ServiceProtocol,
    probe: &Probe,
    limit: Duration,
) -> Result<(), ProbeError> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(ProbeError::Connect)?;
        match probe {
            Probe::Tcp => Ok(()),
            Probe::Http(path) => match status(stream, address, protocol, path).await? {
                status if status.is_success() => Ok(()),
                status => Err(ProbeError::Status(status)),
            },
        }
    };
    timeout(limit, exchange).await.unwrap_or(Err(ProbeError::Timeout))
}

/// The status of `GET path`; the body is nobody's business and goes with the connection.
async fn status(
    stream: TcpStream,
    address: SocketAddr,
    protocol: ServiceProtocol,
    path: &str,
) -> Result<StatusCode, ProbeError> {
    let user_agent = HeaderValue::from_static(concat!("archipelago-agent/", env!("CARGO_PKG_VERSION")));
    match protocol {
        ServiceProtocol::H2c => {
            let (mut sender, connection) =
                http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await?;
            let request = Request::get(format!("http://{address}{path}"))
                .version(Version::HTTP_2)
                .header(header::USER_AGENT, user_agent)
                .body(Empty::new())?;
            let exchange = sender.send_request(request);
            // The connection runs only as long as the exchange: dropped together, nothing is left behind.
            tokio::select! {
                biased;
                response = exchange => Ok(response?.status()),
                ended = connection => Err(ended.err().map_or(ProbeError::Closed, ProbeError::Protocol)),
            }
        }
        ServiceProtocol::Http | ServiceProtocol::Tcp => {
            let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
            let request = Request::get(path)
                .header(header::HOST, address.to_string())
                .header(header::USER_AGENT, user_agent)
                .header(header::CONNECTION, "close")
                .body(Empty::new())?;
            let exchange = sender.send_request(request);
            tokio::select! {
                biased;
                response = exchange => Ok(response?.status()),
                ended = connection => Err(ended.err().map_or(ProbeError::Closed, ProbeError::Protocol)),
            }
        }
    }
}

/// What was wrong with an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Closed before an answer.
    #[error("closed without an answer")]
    Closed,
    /// No connection.
    #[error("no connection: {0}")]
    Connect(#[source] std::io::Error),
    /// Not the protocol that was spoken.
    #[error("no valid answer: {0}")]
    Protocol(#[from] hyper::Error),
    /// The question itself could not be written.
    #[error("the check is not valid: {0}")]
    Request(#[from] http::Error),
    /// Not 2xx.
    #[error("answered {0}")]
    Status(StatusCode),
    /// Nothing in time.
    #[error("no answer in time")]
    Timeout,
}

impl ProbeError {
    /// Bounded label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Connect(_) => "connect",
            Self::Protocol(_) => "protocol",
            Self::Request(_) => "request",
            Self::Status(_) => "status",
            Self::Timeout => "timeout",
        }
    }
}
