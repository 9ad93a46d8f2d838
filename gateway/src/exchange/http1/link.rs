//! A TCP connection that speaks HTTP/1.1, from either end: what was read and not used yet, and what is to be written.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead as _, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::io::poll_read_buf;

use super::out::Out;
use super::spare::{self, ROOM};
use crate::tls::session::{Session, Stream};

/// One connection.
#[derive(Debug)]
pub struct Link {
    // Halves, because reading through one knows by a short read that the socket is empty and spares the next call.
    reader: OwnedReadHalf,
    writer: Rc<Writer>,
    /// What is between the socket and the messages, if anything is.
    tls: Option<Session>,
    /// Read and not used yet.
    pub read: BytesMut,
    /// To be written.
    pub out: Out,
    /// The other end sends no more.
    pub eof: bool,
    want: usize,
}

impl Link {
    /// A connection from which `read` has been read.
    pub fn new(stream: TcpStream, read: BytesMut) -> Self {
        let (reader, writer) = stream.into_split();
        let writer = Rc::new(Writer { half: Some(writer), resets: Cell::new(false) });
        Self { reader, writer, tls: None, read, out: Out::default(), eof: false, want: ROOM }
    }

    /// A connection whose bytes are a session's.
    pub fn secured(stream: Stream) -> Self {
        let Stream { socket, session } = stream;
        let mut link = Self::new(socket, BytesMut::new());
        link.tls = Some(session);
        link
    }

    /// Reads more; ready with false at the end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.eof {
            return Poll::Ready(Ok(false));
        }
        if let Some(tls) = &mut self.tls {
            let said = ready!(tls.poll_said(self.reader.as_ref(), cx))?;
            if self.read.capacity() == 0 {
                self.read = spare::room();
            }
            let n = said.len();
            self.read.extend_from_slice(said);
            tls.consume(n);
            self.eof = n == 0;
            return Poll::Ready(Ok(n > 0));
        }
        if self.read.capacity() == 0 {
            // Who has nothing to read yet needs no room for it: idle connections are many.
            ready!(self.reader.as_ref().poll_read_ready(cx))?;
            self.read = spare::room();
        }
        if self.read.capacity() - self.read.len() < self.want / 2 {
            self.read.reserve(self.want);
        }
        let room = self.read.capacity() - self.read.len();
        let n = ready!(poll_read_buf(Pin::new(&mut self.reader), cx, &mut self.read))?;
        self.eof = n == 0;
        // A sender that fills what is offered gets more, one that does not gets less.
        self.want = if n == room { (self.want * 2).min(READ_MAX) } else { (self.want / 2).max(ROOM.max(n)) };
        Poll::Ready(Ok(n > 0))
    }

    /// Writes what is to be written; ready when all is.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.reader.as_ref();
        let Some(tls) = &mut self.tls else { return self.out.poll_flush(socket, cx) };
        loop {
            ready!(tls.poll_flush(socket, cx))?;
            if self.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.out.write_with(|slices| tls.say(slices))?;
        }
    }

    /// Grows while the other end takes something that is not in `out` any more: what a session has encrypted.
    pub fn taken(&self) -> u64 {
        self.tls.as_ref().map_or(0, Session::written)
    }

    /// True when the connection, idle, can be used: the other end has neither closed it nor said anything.
    pub fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        let mut probe = ReadBuf::new(&mut byte);
        self.read.is_empty()
            && self.out.is_empty()
            && !self.eof
            && Pin::new(&mut self.reader).poll_read(cx, &mut probe).is_pending()
    }

    /// Something to watch the connection by.
    pub fn watch(&self) -> Watch {
        Watch(Rc::clone(&self.writer))
    }

    /// Gives back the buffers of a connection that waits for its next message.
    pub fn rest(&mut self) {
        if self.read.is_empty() && self.read.capacity() > 0 {
            spare::take_room(std::mem::take(&mut self.read));
        }
        self.out.rest();
    }

    /// Tells the other end that nothing more comes.
    pub fn close_writing(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close(self.reader.as_ref());
        }
        let _ = SockRef::from(self.reader.as_ref()).shutdown(std::net::Shutdown::Write);
    }

    /// Lets the other end see a reset when this is dropped: what it has is not all.
    pub fn reset(&self) {
        self.writer.resets.set(true);
        let _ = SockRef::from(self.reader.as_ref()).set_linger(Some(Duration::ZERO));
    }

    /// Notices after two minutes of silence that the other end has vanished: what is spoken may be silent for days.
    pub fn keep_alive(&self) {
        crate::tcp::keep_alive(&SockRef::from(self.reader.as_ref()));
    }

    /// Reads and forgets, until the other end has closed or sent `left` bytes more.
    pub fn poll_drain(&mut self, left: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.read.clear();
            match ready!(self.poll_fill(cx)) {
                Ok(true) if *left > self.read.len() => *left -= self.read.len(),
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // An end without a word would look like one that somebody on the way has made.
        if let Some(tls) = &mut self.tls
            && !self.writer.resets.get()
        {
            tls.close(self.reader.as_ref());
        }
    }
}

/// The writing half, which ends in order when it is dropped, unless the connection is to be reset: its other end could read the end
/// before it sees the reset.
#[derive(Debug)]
struct Writer {
    /// Gone when it is dropped.
    half: Option<OwnedWriteHalf>,
    resets: Cell<bool>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.resets.get()
            && let Some(half) = self.half.take()
        {
            half.forget();
        }
    }
}

/// Knows when a connection is no more.
#[derive(Debug)]
pub struct Watch(Rc<Writer>);

impl Watch {
    /// Resolves when the connection was reset, or closed in both directions; a half that is merely closed does not count.
    pub async fn is_gone(&self) {
        // An error of the registration means that the runtime ends.
        if let Some(half) = &self.0.half {
            let _ = half.ready(Interest::ERROR).await;
        }
    }
}

/// What is in a socket under load.
const READ_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// Thousands of clients that say nothing for a while cost no buffers, and are heard all the same.
    #[tokio::test]
    async fn idle_connections_hold_no_room_to_read_into() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut link = Link::new(listener.accept().await.unwrap().0, spare::room());
        let mut idle = Context::from_waker(Waker::noop());
        assert!(link.poll_fill(&mut idle).is_pending());
        link.rest();
        // Asked again, as whoever reads does.
        assert!(link.poll_fill(&mut idle).is_pending());
        assert_eq!(link.read.capacity(), 0);
        for said in ["GET / HTTP/1.1\r\n", "Host: shop\r\n\r\n"] {
            other.write_all(said.as_bytes()).await.unwrap();
            assert!(std::future::poll_fn(|cx| link.poll_fill(cx)).await.unwrap());
            assert_eq!(link.read.split(), said.as_bytes());
            link.rest();
        }
        drop(other);
        assert!(!std::future::poll_fn(|cx| link.poll_fill(cx)).await.unwrap());
    }
}
