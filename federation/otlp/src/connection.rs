//! One request at a time to a collector, over a connection that is kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::reply::Answer;
use crate::{Config, Protocol};

/// To one collector.
#[derive(Debug)]
pub struct Connection {
    endpoint: Uri,
    protocol: Protocol,
    headers: HeaderMap,
    certificate: Option<PathBuf>,
    open: Option<Open>,
}

#[derive(Debug)]
enum Open {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Why there was no answer; all of it may be otherwise the next time.
#[derive(Debug)]
pub struct Unanswered(String);

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&dyn std::error::Error> for Unanswered {
    fn from(error: &dyn std::error::Error) -> Self {
        Self(archipelago_base::error::chain(error))
    }
}

impl Connection {
    /// None yet: it is made with the first request.
    pub fn new(config: &Config) -> Self {
        let mut headers: HeaderMap = config.headers.iter().cloned().collect();
        let kind = match config.protocol {
            Protocol::Grpc => "application/grpc",
            Protocol::Http => "application/x-protobuf",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let name = HeaderValue::from_static(concat!("archipelago/", env!("CARGO_PKG_VERSION")));
        headers.entry(header::USER_AGENT).or_insert(name);
        if config.protocol == Protocol::Grpc {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else if let Some(authority) = config.endpoint.authority()
            && let Ok(host) = HeaderValue::try_from(authority.as_str())
        {
            headers.insert(header::HOST, host);
        }
        let (endpoint, certificate) = (config.endpoint.clone(), config.certificate.clone());
        Self { endpoint, protocol: config.protocol, headers, certificate, open: None }
    }

    /// Sends a message and waits for the whole answer.
    ///
    /// # Errors
    /// There was none.
    pub async fn send(&mut self, message: &[u8]) -> Result<Answer, Unanswered> {
        let request = self.request(message);
        let mut open = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => {
                timeout(CONNECT_TIMEOUT, self.connect()).await.map_err(|_| Unanswered("no connection".to_owned()))??
            }
        };
        let response = match &mut open {
            Open::Http1(sender) => sender.send_request(request).await,
            Open::Http2(sender) => sender.send_request(request).await,
        };
        let (parts, body) = response.map_err(|error| Unanswered::from(&error as &dyn std::error::Error))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Unanswered(archipelago_base::error::chain(&*error)))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        self.open = Some(open);
        Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
    }

    fn request(&self, message: &[u8]) -> Request<Full<Bytes>> {
        let mut body = Vec::with_capacity(message.len() + 5);
        if self.protocol == Protocol::Grpc {
            // Not compressed, and so long.
            body.push(0);
            body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        }
        body.extend_from_slice(message);
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.headers.clone();
        if self.protocol == Protocol::Grpc {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.endpoint.clone();
        } else if let Some(path) = self.endpoint.path_and_query() {
            *request.uri_mut() = Uri::from(path.clone());
        }
        request
    }

    async fn connect(&self) -> Result<Open, Unanswered> {
        let failed = |error: io::Error| Unanswered::from(&error as &dyn std::error::Error);
        let host = self.endpoint.host().unwrap_or_default();
        let is_tls = self.endpoint.scheme_str() == Some("https");
        let port = self.endpoint.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let mut last = Unanswered(format!("{host} has no address"));
        for address in archipelago_rpc::resolve::resolve(&format!("{host}:{port}")).await.map_err(failed)? {
            let stream = match TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = Unanswered(format!("{address}: {error}"));
                    continue;
                }
            };
            stream.set_nodelay(true).map_err(failed)?;
            if !is_tls {
                return self.handshake(stream).await;
            }
            let connector = self.tls().map_err(failed)?;
            let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name =
                ServerName::try_from(name).map_err(|error| Unanswered::from(&error as &dyn std::error::Error))?;
            return self.handshake(connector.connect(name, stream).await.map_err(failed)?).await;
        }
        Err(last)
    }

    async fn handshake(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Open, Unanswered> {
        let stream = TokioIo::new(stream);
        let failed = |error: hyper::Error| Unanswered::from(&error as &dyn std::error::Error);
        // How it ends is what the next request hears.
        Ok(match self.protocol {
            Protocol::Http => {
                let (sender, connection) = http1::handshake(stream).await.map_err(failed)?;
                tokio::spawn(async move { drop(connection.await) });
                Open::Http1(sender)
            }
            Protocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.map_err(failed)?;
                tokio::spawn(async move { drop(connection.await) });
                Open::Http2(sender)
            }
        })
    }

    /// The file is read for each connection: it may have been replaced.
    fn tls(&self) -> io::Result<TlsConnector> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = roots(self.certificate.as_deref())?;
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        let protocol: &[u8] = if self.protocol == Protocol::Grpc { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

impl Open {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed() || !sender.is_ready(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

fn roots(certificate: Option<&Path>) -> io::Result<RootCertStore> {
    let path = match certificate {
        Some(path) => path.to_owned(),
        None => std::env::var_os("SSL_CERT_FILE")
            .map(PathBuf::from)
            .into_iter()
            .chain(ROOTS.iter().map(PathBuf::from))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                io::Error::other(
                    "this machine has no file of root certificates; name one in OTEL_EXPORTER_OTLP_CERTIFICATE",
                )
            })?,
    };
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&path).map_err(|error| failed(&error))?;
    // A bundle of a machine may hold what nobody can read any more.
    certificates.flatten().for_each(|certificate| drop(roots.add(certificate)));
    if roots.is_empty() {
        return Err(failed(&"there is no certificate in this file"));
    }
    Ok(roots)
}

/// Of Debian and of Red Hat, and their kin.
const ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is a number and a sentence.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
