//! From a client's first byte to a session: one certificate is chosen by the name that it asks for, and whoever asks for a name that
//! nobody here has is told so (RFC 6066 §3).
//!
//! A handshake costs some 300 µs of signatures and key agreement, which is thirty requests. So a worker works at one at a time, and
//! all else that it has to do gets its turn in between: a flood of handshakes waits for itself. Who says nothing, or not enough, costs
//! its buffer and its place among the connections, and has until the time for the head of a request is over.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{Error, HandshakeKind, ProtocolVersion};
use tokio::net::TcpStream;

use super::session::{Broken, Raw, Session, Stream};
use super::{Facts, Terminator};
use crate::worker::Worker;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// No certificate is for that name, and there is none for all names.
    #[error("the client asks for a name without a certificate")]
    UnknownName,
    /// It took too long.
    #[error("the handshake did not come to an end in time")]
    Slow,
    /// It went wrong.
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl Failed {
    /// All that [`Self::reason`] says.
    pub const REASONS: &[&str] =
        &["unknown_name", "timeout", "closed", "malformed", "incompatible", "no_protocol", "alert", "other"];

    /// Label value.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownName => "unknown_name",
            Self::Slow => "timeout",
            Self::Broken(Broken::Socket(_)) => "closed",
            Self::Broken(Broken::Protocol(error)) => match error {
                Error::InvalidMessage(_)
                | Error::InappropriateMessage { .. }
                | Error::InappropriateHandshakeMessage { .. }
                | Error::PeerSentOversizedRecord
                | Error::DecryptError
                | Error::PeerMisbehaved(_) => "malformed",
                Error::PeerIncompatible(_) => "incompatible",
                Error::NoApplicationProtocol => "no_protocol",
                Error::AlertReceived(_) => "alert",
                _ => "other",
            },
        }
    }
}

/// Agrees on a session with the client behind `socket`.
///
/// # Errors
/// Why there is none; the client has been told, if there is an alert for it.
pub async fn accept(worker: &Rc<Worker>, tls: &Terminator, socket: TcpStream) -> Result<(Stream, Facts), Failed> {
    let timer = worker.timers.timer();
    timer.set(Some(Instant::now() + worker.limits.head_timeout));
    let agreed = tokio::select! {
        biased;
        agreed = agree(worker, tls, &socket) => agreed,
        () = timer.is_due() => Err(Failed::Slow),
    };
    match agreed {
        Ok((session, facts, kind)) => {
            tls.metrics.done(facts.version, kind == Some(HandshakeKind::Resumed));
            Ok((Stream { socket, session }, facts))
        }
        Err(failed) => {
            tls.metrics.failed(&failed);
            Err(failed)
        }
    }
}

async fn agree(
    worker: &Rc<Worker>,
    tls: &Terminator,
    socket: &TcpStream,
) -> Result<(Session, Facts, Option<HandshakeKind>), Failed> {
    let accepted = hello(socket).await?;
    let name = accepted.client_hello().server_name().map(str::to_owned);
    if tls.live.choose(name.as_deref()).is_none() {
        let _ = socket.try_write(UNRECOGNIZED_NAME);
        return Err(Failed::UnknownName);
    }
    let mut session = {
        // Never closed.
        let _turn = worker.handshakes.acquire().await;
        let conn = accepted.into_connection(tls.config.clone());
        let session = Session::new(conn.map_err(|(error, alert)| told(socket, error, alert))?);
        tokio::task::yield_now().await;
        session
    };
    while session.is_handshaking() {
        poll_fn(|cx| session.poll_step(socket, cx)).await?;
    }
    let conn = session.connection();
    let version = match conn.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    // rustls tells the two kinds of suites apart by their names; IANA does not.
    let cipher = conn.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_"));
    let facts = Facts { version, cipher: cipher.unwrap_or_default(), server_name: name.unwrap_or_default() };
    let kind = conn.handshake_kind();
    Ok((session, facts, kind))
}

/// The client's first message, whole, whatever pieces it comes in; rustls bounds it to 64 KiB.
async fn hello(socket: &TcpStream) -> Result<Accepted, Failed> {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.read_tls(&mut Raw(socket)) {
            Ok(0) => return Err(Broken::from(io::Error::from(io::ErrorKind::UnexpectedEof)).into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await.map_err(Broken::from)?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::from(error).into()),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, alert)) => return Err(told(socket, error, alert)),
        }
    }
}

/// Tells the client why, as far as a fresh socket takes it, which is all of it.
fn told(socket: &TcpStream, error: Error, mut alert: AcceptedAlert) -> Failed {
    // rustls has none for some of what is not the first message of a handshake at all.
    if matches!(alert.write(&mut Raw(socket)), Ok(0)) {
        let _ = socket.try_write(UNEXPECTED_MESSAGE);
    }
    Failed::Broken(error.into())
}

/// Fatal alerts, in the clear, as before any key is agreed on (RFC 8446 §6).
const UNEXPECTED_MESSAGE: &[u8] = &[21, 3, 3, 0, 2, 2, 10];
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
