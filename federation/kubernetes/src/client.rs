//! How the API server is spoken to: where it is, what is waited for and how long, and when to ask again.

mod error;
mod retry;

use std::{path::Path, time::Duration};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder};
use tower_http::timeout::ResponseBodyTimeoutLayer;

pub use self::error::Failure;
use self::retry::Patience;

/// The API server of the cluster that this process runs in, as its ServiceAccount.
///
/// # Errors
/// This is not a pod, or it has no ServiceAccount token.
pub fn in_cluster() -> anyhow::Result<Config> {
    Config::incluster().context(
        "this is not a pod with a ServiceAccount token: --kubernetes is for an agent inside of its cluster; \
         from outside give --kubeconfig FILE",
    )
}

/// The API server that the current context of a kubeconfig names.
///
/// # Errors
/// The file cannot be read, or lacks something.
pub async fn kubeconfig(file: &Path) -> anyhow::Result<Config> {
    let read = Kubeconfig::read_from(file);
    let kubeconfig = read.with_context(|| format!("cannot use the kubeconfig {}", file.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.with_context(|| format!("cannot use the current context of the kubeconfig {}", file.display()))
}

/// A client of ours to wherever `config` says.
///
/// # Errors
/// The certificates or credentials of `config` cannot be used.
pub fn new(config: Config) -> anyhow::Result<Client> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIME_MAX));
    // A peer that is gone without a word (its node lost power) is noticed even on a connection where nothing is sent.
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE));
    http.set_keepalive_retries(Some(3));
    let https = config.rustls_https_connector_with_connector(http).context("cannot use the API server's CA")?;
    let connections: HttpClient<_, Body> =
        HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE_TIME).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(tower::retry::RetryLayer::new(Patience::default()))
        .layer(tower::timeout::TimeoutLayer::new(ANSWER_TIME_MAX))
        .option_layer(config.auth_layer().context("cannot use the credentials for the API server")?)
        .layer(config.extra_headers_layer().context("cannot use the headers for the API server")?)
        .map_err(BoxError::from)
        .layer(ResponseBodyTimeoutLayer::new(SILENCE_MAX))
        .map_request(|mut request: Request<Body>| {
            request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
            request
        })
        .service(connections);
    Ok(Client::new(service, config.default_namespace))
}

/// The whole answer to `request`. Unlike `Client::request` it copies no bytes, and logs none: they may be secret.
///
/// # Errors
/// What went wrong, and what is known of when to try again.
pub async fn fetch(client: &Client, request: Request<Vec<u8>>) -> Result<Bytes, Failure> {
    let response = send(client, request).await?;
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(Failure::transport)?.to_bytes())
}

/// The answer to `request` as it comes, line by line.
///
/// # Errors
/// What went wrong, and what is known of when to try again.
pub async fn lines(client: &Client, request: Request<Vec<u8>>) -> Result<Lines, Failure> {
    let body = send(client, request).await?.into_body();
    Ok(Lines { body, read: BytesMut::new(), looked: 0 })
}

async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<http::Response<Body>, Failure> {
    let response = client.send(request.map(Body::from)).await.map_err(Failure::from)?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let text = Limited::new(body, ERROR_BYTES_MAX).collect().await.map(|text| text.to_bytes()).unwrap_or_default();
    Err(Failure::answered(&head, &text))
}

/// An answer that goes on.
pub struct Lines {
    body: Body,
    read: BytesMut,
    /// No newline before here.
    looked: usize,
}

impl Lines {
    /// The next line without its newline; `None`: the answer ended. A last line that was cut off is none.
    ///
    /// # Errors
    /// The connection broke, or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(line) = self.buffered() {
                return Ok(Some(line));
            }
            if self.read.len() > LINE_BYTES_MAX {
                return Err(Failure::transport("one object of the answer is larger than the API server stores"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::transport(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// A line that is here already, without waiting.
    pub fn buffered(&mut self) -> Option<Bytes> {
        let rest = self.read.get(self.looked..)?;
        let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
            self.looked = self.read.len();
            return None;
        };
        let mut line = self.read.split_to(self.looked + at + 1);
        self.looked = 0;
        line.truncate(line.len().saturating_sub(1));
        Some(line.freeze())
    }
}

const USER_AGENT: &str = concat!("archipelago-agent/", env!("CARGO_PKG_VERSION"));
/// The API server is in the same cluster.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Until an answer begins, handshakes included; the API server itself gives up on a request after a minute.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// A watch says something every minute: a bookmark, if nothing else.
const SILENCE_MAX: Duration = Duration::from_secs(80);
const KEEPALIVE: Duration = Duration::from_secs(15);
/// As long as the API server keeps an idle connection, and less than what middle boxes do.
const POOL_IDLE_TIME: Duration = Duration::from_secs(60);
/// A page is 500 objects of rarely more than 10 KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// etcd stores 1.5 MiB; JSON is longer than what it stores.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
