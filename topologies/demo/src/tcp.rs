//! The TCP protocol of `shop/ledger`: everything up to end of stream in, one JSON line out.

use std::{io, time::Duration};

use aws_lc_rs::digest;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{Identity, body::hex};

/// Reads `stream` to its end, answers one JSON [`Receipt`] and a newline, and closes.
///
/// # Errors
/// The peer reset the connection, or sent nothing for two minutes; there is then no answer.
pub(crate) async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, identity: &Identity) -> io::Result<()> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut bytes = 0_u64;
    let mut buffer = vec![0_u8; READ_BYTES];
    loop {
        let read = timeout(SILENCE_MAX, stream.read(&mut buffer)).await??;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        hash.update(chunk);
        bytes = bytes.saturating_add(chunk.len() as u64);
    }
    let receipt =
        Receipt { service: &identity.service, cluster: &identity.cluster, bytes, sha256: &hex(hash.finish().as_ref()) };
    let mut line = serde_json::to_vec(&receipt)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.shutdown().await
}

/// The answer: who received how much, and its SHA-256 in lower-case hex.
#[derive(Serialize)]
struct Receipt<'a> {
    service: &'a str,
    cluster: &'a str,
    bytes: u64,
    sha256: &'a str,
}

const READ_BYTES: usize = 64 << 10;
const SILENCE_MAX: Duration = Duration::from_secs(120);
