//! The bytes of one session, between a socket and whoever speaks HTTP: rustls's own machine does the protocol, this moves bytes.

use std::fmt;
use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One session, without its socket.
pub struct Session {
    // In a box: a kilobyte, and sessions move about.
    conn: Box<ServerConnection>,
    written: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// A session that has begun, or is about to.
    pub fn new(conn: ServerConnection) -> Self {
        let mut conn = Box::new(conn);
        conn.set_buffer_limit(Some(AHEAD_BYTES));
        Self { conn, written: 0 }
    }

    /// Both sides have proven themselves.
    pub fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }

    /// What was agreed on.
    pub fn connection(&self) -> &ServerConnection {
        &self.conn
    }

    /// Bytes that the socket has taken: while this grows, the other end reads.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes one more step of the handshake; see [`Self::is_handshaking`].
    ///
    /// # Errors
    /// The other end is gone, or what it said is wrong, which it is told.
    pub fn poll_step(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        ready!(self.poll_flush(socket, cx))?;
        if self.conn.is_handshaking() {
            ready!(self.poll_more(socket, cx))?;
            ready!(self.poll_flush(socket, cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// What the other end has said and is not consumed yet; empty once it says no more.
    ///
    /// # Errors
    /// The connection is gone, was cut off, or holds what is not of this session.
    pub fn poll_said(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        loop {
            let has = match self.conn.reader().fill_buf() {
                Ok(_) => true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if has {
                return Poll::Ready(self.conn.reader().into_first_chunk());
            }
            ready!(self.poll_more(socket, cx)).map_err(io::Error::from)?;
            // A key update, or tickets: nobody waits for it, and what does not fit now goes with what comes next.
            let _ = self.poll_flush(socket, &mut Context::from_waker(Waker::noop()));
        }
    }

    /// Forgets the first of what was said.
    pub fn consume(&mut self, n: usize) {
        self.conn.reader().consume(n);
    }

    /// Takes something to say, as much as has room.
    ///
    /// # Errors
    /// The session is over.
    pub fn say(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.conn.writer().write_vectored(slices)
    }

    /// Writes what was said; ready when the socket has all of it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_flush(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.conn.wants_write() {
            match self.conn.write_tls(&mut Raw(socket)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => self.written += n as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_write_ready(cx))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more comes, as far as there is room for that: whoever misses it takes what it has for cut off.
    pub fn close(&mut self, socket: &TcpStream) {
        self.conn.send_close_notify();
        let _ = self.poll_flush(socket, &mut Context::from_waker(Waker::noop()));
    }

    /// Reads from the socket once.
    fn poll_more(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            match self.conn.read_tls(&mut Raw(socket)) {
                // Whether that was a proper end is the reader's to say; a handshake has none.
                Ok(0) if self.conn.is_handshaking() => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                }
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_read_ready(cx))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        if let Err(error) = self.conn.process_new_packets() {
            // The alert that says why.
            let _ = self.poll_flush(socket, &mut Context::from_waker(Waker::noop()));
            return Poll::Ready(Err(error.into()));
        }
        Poll::Ready(Ok(()))
    }
}

/// Why a session goes no further.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection is gone.
    #[error("the connection ended")]
    Socket(#[from] io::Error),
    /// The protocol was broken.
    #[error("TLS failed")]
    Protocol(#[from] rustls::Error),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Socket(error) => error,
            Broken::Protocol(error) => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// A session and its socket, for those who speak through both at once.
#[derive(Debug)]
pub struct Stream {
    /// The socket.
    pub socket: TcpStream,
    /// The session on it.
    pub session: Session,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, session } = self.get_mut();
        let said = ready!(session.poll_said(socket, cx))?;
        let n = said.len().min(buf.remaining());
        buf.put_slice(said.get(..n).unwrap_or_default());
        session.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, session } = self.get_mut();
        loop {
            let n = session.say(slices)?;
            let flushed = session.poll_flush(socket, cx)?;
            // What was taken is sent by whoever flushes; where there was no room, there is some once all is sent.
            if n > 0 || slices.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(n));
            }
            ready!(flushed);
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, session } = self.get_mut();
        session.poll_flush(socket, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, session } = self.get_mut();
        session.close(socket);
        ready!(session.poll_flush(socket, cx))?;
        Pin::new(socket).poll_shutdown(cx)
    }
}

/// A socket as rustls wants it.
pub(super) struct Raw<'a>(pub(super) &'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encrypted ahead of what the socket takes: four records.
const AHEAD_BYTES: usize = 64 * 1024;
