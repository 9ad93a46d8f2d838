//! How commands talk to a running supervisor: JSON lines over `STATE/up.sock`.
//!
//! One request per connection, then replies until the last one, which is never [`Reply::Progress`].

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::state::{SOCKET, SocketPath, StateDir};
use crate::exit::{Failure, Outcome};
use crate::views::ProcessView;

/// What a command asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Request {
    /// Every process.
    Status,
    /// Kill -9 what `target` names and keep it down.
    Kill {
        /// Cluster, `control-plane`, or process.
        target: String,
        /// For how long.
        for_ms: u64,
    },
    /// Drop the packets of tunnels in silence: all of one cluster, or those between two.
    Cut {
        /// One or two clusters.
        clusters: Vec<String>,
        /// For how long.
        for_ms: u64,
    },
    /// End every drill.
    EndDrills,
    /// End every process, then the supervisor.
    Stop,
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Reply {
    /// More is to come.
    Progress {
        /// For people.
        line: String,
    },
    /// Answer to [`Request::Status`].
    Processes {
        /// Every process, the supervisor first.
        processes: Vec<ProcessView>,
    },
    /// Done.
    Done {
        /// For people.
        lines: Vec<String>,
    },
    /// Not done.
    Refused {
        /// Why.
        message: String,
    },
}

/// A request and the way back.
pub(crate) type Call = (Request, mpsc::Sender<Reply>);

/// Asks the supervisor of `state`; `Ok(None)` when none is listening.
///
/// # Errors
/// It refused, or went silent for longer than `limit` between two lines.
pub(crate) async fn ask(
    state: &StateDir,
    request: &Request,
    limit: Duration,
    mut progress: impl FnMut(&str),
) -> Outcome<Option<Reply>> {
    let stream = match connect(state.root()).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(lost(&error)),
    };
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(anyhow::Error::from)?;
    line.push(b'\n');
    write.write_all(&line).await.map_err(|error| lost(&error))?;
    let mut lines = BufReader::new(read).lines();
    loop {
        let line = match tokio::time::timeout(limit, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(lost(&"it closed the connection")),
            Ok(Err(error)) => return Err(lost(&error)),
            Err(_) => return Err(lost(&format!("it said nothing for {}", crate::duration::display(limit)))),
        };
        match serde_json::from_str(&line).map_err(|error| lost(&error))? {
            Reply::Progress { line } => progress(&line),
            Reply::Refused { message } => return Err(Failure::refused(message)),
            reply => return Ok(Some(reply)),
        }
    }
}

/// Listens on `STATE/up.sock`, replacing what a dead supervisor left. Only for the holder of the lock.
pub(crate) fn listen(state: &StateDir) -> io::Result<UnixListener> {
    let path = state.root().join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let short = SocketPath::new(state.root(), SOCKET)?;
    let listener = UnixListener::bind(short.path())?;
    // The directory is private already; this holds when someone opens it up.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections until the receiver of `calls` is gone.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>) {
    while !calls.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer(stream, calls.clone()));
            }
            // Out of descriptors, most likely: wait for some to come free instead of spinning.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn answer(stream: UnixStream, calls: mpsc::Sender<Call>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(REQUEST_BYTES_MAX));
    let read = tokio::time::timeout(REQUEST_TIME_MAX, reader.read_line(&mut line)).await;
    if !matches!(read, Ok(Ok(_))) {
        return;
    }
    let (reply_to, mut replies) = mpsc::channel(REPLIES_MAX);
    match serde_json::from_str(&line) {
        Ok(request) => {
            if calls.send((request, reply_to)).await.is_err() {
                return;
            }
        }
        Err(error) => {
            let refused = Reply::Refused { message: format!("not a request: {error}") };
            let _ = reply_to.send(refused).await;
            drop(reply_to);
        }
    }
    while let Some(reply) = replies.recv().await {
        let Ok(mut bytes) = serde_json::to_vec(&reply) else { return };
        bytes.push(b'\n');
        let last = !matches!(reply, Reply::Progress { .. });
        if write.write_all(&bytes).await.is_err() || last {
            return;
        }
    }
}

async fn connect(root: &Path) -> io::Result<UnixStream> {
    let short = SocketPath::new(root, SOCKET)?;
    UnixStream::connect(short.path()).await
}

fn lost(why: &dyn std::fmt::Display) -> Failure {
    Failure::refused(format!("the supervisor of this federation does not answer: {why}"))
        .hint("its log is logs/supervisor.log in the state directory; `meshctl down` ends everything")
}

const REQUEST_BYTES_MAX: u64 = 64 * 1024;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// Replies are a few lines; a reader that stalls holds up only its own request.
const REPLIES_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_and_replies_cross_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        assert!(ask(&state, &Request::Status, LIMIT, |_| {}).await.unwrap().is_none(), "nobody listens yet");

        let listener = listen(&state).unwrap();
        let (calls, mut received) = mpsc::channel(1);
        tokio::spawn(serve(listener, calls));
        let request = Request::Kill { target: "paris".into(), for_ms: 20_000 };
        let asked = tokio::spawn({
            let (state, request) = (state.clone(), request.clone());
            async move {
                let mut seen = Vec::new();
                let reply = ask(&state, &request, LIMIT, |line| seen.push(line.to_owned())).await;
                (reply, seen)
            }
        });
        let (got, reply_to) = received.recv().await.unwrap();
        assert_eq!(got, request);
        reply_to.send(Reply::Progress { line: "killing".into() }).await.unwrap();
        reply_to.send(Reply::Done { lines: vec!["killed".into()] }).await.unwrap();
        let (reply, seen) = asked.await.unwrap();
        assert_eq!(reply.unwrap(), Some(Reply::Done { lines: vec!["killed".into()] }));
        assert_eq!(seen, ["killing"]);
    }

    #[tokio::test]
    async fn garbage_is_answered_and_a_second_listener_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        drop(listen(&state).unwrap());
        let listener = listen(&state).unwrap();
        let (calls, _received) = mpsc::channel(1);
        tokio::spawn(serve(listener, calls));
        let mut stream = connect(state.root()).await.unwrap();
        stream.write_all(b"{\"rm\":\"-rf\"}\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("not a request"), "{answer}");
    }

    const LIMIT: Duration = Duration::from_secs(20);
}
