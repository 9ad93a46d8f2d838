//! One question to one endpoint.

use std::{net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tower::service_fn;

use archipelago_model::service::{Probe, ServiceProtocol};

use super::Failure;

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
            Probe::Grpc { service } => grpc(stream, address, service).await,
            Probe::Http { path, host } => {
                let host = host.clone().unwrap_or_else(|| address.to_string());
                match status(stream, &host, protocol, path).await? {
                    status if status.is_success() => Ok(()),
                    status => Err(ProbeError::Status(status)),
                }
            }
        }
    };
    timeout(limit, exchange).await.unwrap_or(Err(ProbeError::Timeout))
}

/// What the server says of `service` (`grpc.health.v1.Health/Check`).
async fn grpc(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), ProbeError> {
    // One connection for one question: what the endpoint takes from the next client is what is asked for.
    let mut stream = Some(TokioIo::new(stream));
    let connector = service_fn(move |_| {
        std::future::ready(stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| ProbeError::Closed)?;
    let user_agent = concat!("archipelago-agent/", env!("CARGO_PKG_VERSION"));
    let endpoint = endpoint.user_agent(user_agent).map_err(|_| ProbeError::Closed)?;
    let channel = endpoint.connect_with_connector(connector).await.map_err(|_| ProbeError::Closed)?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(_) => Err(ProbeError::NotServing),
        Err(status) if has_answered(&status) => Err(ProbeError::Grpc(status.code())),
        Err(_) => Err(ProbeError::Closed),
    }
}

/// Whether a server has said this, and not what came, or did not come, over the connection.
fn has_answered(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_none() && status.code() != Code::Internal
}

/// The status of `GET path` on `host`; the body is nobody's business and goes with the connection.
async fn status(
    stream: TcpStream,
    host: &str,
    protocol: ServiceProtocol,
    path: &str,
) -> Result<StatusCode, ProbeError> {
    let user_agent = HeaderValue::from_static(concat!("archipelago-agent/", env!("CARGO_PKG_VERSION")));
    match protocol {
        ServiceProtocol::H2c => {
            let (mut sender, connection) =
                http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await?;
            let request = Request::get(format!("http://{host}{path}"))
                .version(Version::HTTP_2)
                .header(header::USER_AGENT, user_agent)
                .body(Empty::new())?;
            let exchange = sender.send_request(request);
            drive(connection, exchange).await
        }
        ServiceProtocol::Http | ServiceProtocol::Tcp => {
            let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
            let request = Request::get(path)
                .header(header::HOST, host)
                .header(header::USER_AGENT, user_agent)
                .header(header::CONNECTION, "close")
                .body(Empty::new())?;
            let exchange = sender.send_request(request);
            drive(connection, exchange).await
        }
    }
}

/// Runs a connection for as long as its one exchange takes, so that nothing is left behind.
async fn drive(
    connection: impl Future<Output = hyper::Result<()>>,
    exchange: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<StatusCode, ProbeError> {
    let mut connection = Box::pin(connection);
    let mut exchange = pin!(exchange);
    let ended = tokio::select! {
        biased;
        response = &mut exchange => return Ok(response?.status()),
        ended = &mut connection => ended,
    };
    // A server that closes after its answer ends the connection in the same step in which the answer arrives; dropping
    // what is left of the connection makes the exchange say which of the two it was.
    drop(connection);
    match exchange.await {
        Ok(response) => Ok(response.status()),
        Err(error) if error.is_canceled() => Err(ended.err().map_or(ProbeError::Closed, ProbeError::Protocol)),
        Err(error) => Err(ProbeError::Protocol(error)),
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
    /// A gRPC server answered the question with an error.
    #[error("gRPC's health check answered {0:?}")]
    Grpc(Code),
    /// A gRPC server does not serve.
    #[error("not serving, says its gRPC health check")]
    NotServing,
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
    /// What operators are told: one of a closed set, and a status.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Closed => Failure::Closed,
            Self::Connect(_) => Failure::Connect,
            Self::Protocol(_) => Failure::Protocol,
            Self::Grpc(code) => Failure::GrpcStatus(u16::try_from(i32::from(*code)).unwrap_or(u16::MAX)),
            Self::NotServing => Failure::NotServing,
            Self::Request(_) => Failure::Request,
            Self::Status(status) => Failure::Status(status.as_u16()),
            Self::Timeout => Failure::Timeout,
        }
    }
}

/// A health check's answer is two bytes.
const ANSWER_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::service::service_fn;
    use hyper_util::server::conn::auto;
    use tokio::{io::AsyncWriteExt, net::TcpListener};
    use tonic_health::server::health_reporter;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Speaks HTTP/1.1 and HTTP/2; `/ok` is well, `/named` on shop.example:81 too, `/hang` never answers, anything else is not found.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|request: Request<Incoming>| async move {
                    if request.uri().path() == "/hang" {
                        std::future::pending::<()>().await;
                    }
                    let host = request.headers().get("host").and_then(|host| host.to_str().ok());
                    let host = host.or(request.uri().authority().map(|authority| authority.as_str()));
                    let named = request.uri().path() == "/named" && host == Some("shop.example:81");
                    let found = request.uri().path() == "/ok" || named;
                    let status = if found { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND };
                    let mut response = Response::new(Empty::<Bytes>::new());
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                });
                tokio::spawn(async move {
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        address
    }

    async fn reason(address: SocketAddr, protocol: ServiceProtocol, path: &str, limit: Duration) -> &'static str {
        let probe = Probe::Http { path: path.into(), host: None };
        super::probe(address, protocol, &probe, limit)
            .await
            .map_err(|error| error.failure().reason())
            .err()
            .unwrap_or("ok")
    }

    #[tokio::test]
    async fn a_server_by_name_hears_the_name_that_the_check_gives() {
        let address = server().await;
        for protocol in [ServiceProtocol::Http, ServiceProtocol::H2c] {
            let ask = |host: Option<&str>| Probe::Http { path: "/named".into(), host: host.map(String::from) };
            assert!(probe(address, protocol, &ask(Some("shop.example:81")), LIMIT).await.is_ok(), "{protocol}");
            let error = probe(address, protocol, &ask(None), LIMIT).await.unwrap_err();
            assert_eq!(error.failure(), Failure::Status(404), "{protocol}");
        }
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let address = server().await;
        for protocol in [ServiceProtocol::Http, ServiceProtocol::H2c] {
            assert_eq!(reason(address, protocol, "/ok", LIMIT).await, "ok");
            assert_eq!(reason(address, protocol, "/other", LIMIT).await, "status");
            assert_eq!(reason(address, protocol, "/hang", Duration::from_millis(50)).await, "timeout");
        }
        assert!(probe(address, ServiceProtocol::Tcp, &Probe::Tcp, LIMIT).await.is_ok());
    }

    #[tokio::test]
    async fn a_grpc_server_says_of_each_service_whether_it_serves() {
        let (reporter, health) = health_reporter();
        reporter.set_service_status("shop.Checkout", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("shop.Stock", tonic_health::ServingStatus::NotServing).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming));
        let ask = async |address, service: &str| {
            let probe = Probe::Grpc { service: service.into() };
            super::probe(address, ServiceProtocol::H2c, &probe, LIMIT).await.map_err(|error| error.failure())
        };
        assert_eq!(ask(address, "").await, Ok(()));
        assert_eq!(ask(address, "shop.Checkout").await, Ok(()));
        assert_eq!(ask(address, "shop.Stock").await, Err(Failure::NotServing));
        assert_eq!(ask(address, "shop.Unknown").await, Err(Failure::GrpcStatus(5)), "NOT_FOUND");
        reporter.set_service_status("shop.Stock", tonic_health::ServingStatus::Serving).await;
        assert_eq!(ask(address, "shop.Stock").await, Ok(()));
        // A server of HTTP/2 that is none of gRPC.
        let other = ask(server().await, "").await.unwrap_err();
        assert!(matches!(other, Failure::GrpcStatus(_)), "{other:?}");
    }

    #[tokio::test]
    async fn nobody_and_nonsense_are_bad() {
        // Bound and not listening: nobody else gets the port meanwhile.
        let kept = tokio::net::TcpSocket::new_v4().unwrap();
        kept.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobody = kept.local_addr().unwrap();
        assert_eq!(reason(nobody, ServiceProtocol::Http, "/ok", LIMIT).await, "connect");
        assert!(matches!(probe(nobody, ServiceProtocol::Tcp, &Probe::Tcp, LIMIT).await, Err(ProbeError::Connect(_))));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"\x00\x01 this is no HTTP\r\n\r\n").await;
            }
        });
        for protocol in [ServiceProtocol::Http, ServiceProtocol::H2c] {
            let reason = reason(address, protocol, "/ok", LIMIT).await;
            assert!(matches!(reason, "protocol" | "closed"), "{protocol}: {reason}");
        }
    }
}
