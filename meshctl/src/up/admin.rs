//! The admin socket of a gateway, as far as drills need it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::state::SocketPath;

/// Posts JSON to `path` of the gateway that listens on `socket` (relative to `root`).
///
/// # Errors
/// It does not answer within a few seconds, or with anything but 2xx.
pub(crate) async fn post(root: &Path, socket: &str, path: &str, body: &serde_json::Value) -> anyhow::Result<()> {
    tokio::time::timeout(TIMEOUT, exchange(root, socket, path, body.to_string()))
        .await
        .with_context(|| format!("{socket}: no answer within {} s", TIMEOUT.as_secs()))?
        .with_context(|| socket.to_owned())
}

async fn exchange(root: &Path, socket: &str, path: &str, body: String) -> anyhow::Result<()> {
    let (dir, name) = socket.rsplit_once('/').unwrap_or((".", socket));
    let short = SocketPath::new(&root.join(dir), name)?;
    let stream = UnixStream::connect(short.path()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::post(path)
        .header(http::header::HOST, "gateway")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    driver.abort();
    if !status.is_success() {
        let text = answer.map(|body| body.to_bytes()).unwrap_or_default();
        bail!("{status}: {}", String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}

/// The gateway is on this machine.
const TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: usize = 64 * 1024;
