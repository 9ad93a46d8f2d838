//! Metrics of a process, over plain HTTP.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What is at a URL `http://host:port/path`.
///
/// # Errors
/// Why there is nothing, fit to print.
pub(super) async fn get(url: &str) -> Result<String, String> {
    let answer = tokio::time::timeout(TIME_MAX, exchange(url)).await;
    answer
        .map_err(|_| format!("{url}: no answer within {} s", TIME_MAX.as_secs()))?
        .map_err(|error| format!("{url}: {error:#}"))
}

async fn exchange(url: &str) -> anyhow::Result<String> {
    let uri: http::Uri = url.parse()?;
    let authority = uri.authority().ok_or_else(|| anyhow::anyhow!("names no host"))?.as_str();
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(uri.path()).header(http::header::HOST, authority).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status().is_success(), "answers {}", response.status());
    let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
    driver.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Gateways of other clusters may not be reachable from here at all.
const TIME_MAX: Duration = Duration::from_secs(3);
const BYTES_MAX: usize = 4 * 1024 * 1024;
