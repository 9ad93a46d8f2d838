//! What waits to be written to a socket: heads and small pieces in one buffer, large pieces as they came.
//!
//! A copy of a kilobyte costs less than one more entry in a gather list; from [`COPIED_MAX`] on, pieces are written from where
//! they lie. One response of a few kilobytes leaves in one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

use super::spare;

/// Bytes in the order in which they are to be written.
#[derive(Debug, Default)]
pub struct Out {
    /// Before `tail`.
    queue: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// Of `tail`.
    written: usize,
    /// In `queue`.
    queued: usize,
}

impl Out {
    /// Where heads and framing are written to, behind all that is there.
    pub fn text(&mut self) -> &mut Vec<u8> {
        if self.tail.capacity() == 0 {
            self.tail = spare::text();
        }
        &mut self.tail
    }

    /// Appends a piece of a body.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= COPIED_MAX {
            self.text().extend_from_slice(&bytes);
            return;
        }
        self.seal();
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Bytes that are not written yet.
    pub fn len(&self) -> usize {
        self.queued + self.tail.len() - self.written
    }

    /// True when everything is written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what is not written, and the memory.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives back its memory, when everything is written.
    pub fn rest(&mut self) {
        if self.is_empty() && self.tail.capacity() + self.queue.capacity() > 0 {
            spare::take_text(std::mem::take(&mut self.tail));
            *self = Self::default();
        }
    }

    /// Writes as much as the socket takes; ready when all is written.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn poll_flush(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            match self.write_with(|slices| match slices {
                [one] => stream.try_write(one),
                _ => stream.try_write_vectored(slices),
            }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_write_ready(cx))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Lets `write` take as much as it likes; returns how much that was.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write_with(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let tail = self.tail.get(self.written..).unwrap_or_default();
        let n = if self.queue.is_empty() { write(&[IoSlice::new(tail)])? } else { self.gather(tail, write)? };
        self.advance(n);
        Ok(n)
    }

    fn gather(&self, tail: &[u8], write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let pieces = self.queue.iter().map(|bytes| &bytes[..]).chain((!tail.is_empty()).then_some(tail));
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        write(slices.get(..count).unwrap_or_default())
    }

    fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let Some(first) = self.queue.front_mut() else { break };
            let of_first = n.min(first.len());
            first.advance(of_first);
            (self.queued, n) = (self.queued - of_first, n - of_first);
            if first.is_empty() {
                self.queue.pop_front();
            }
        }
        self.written += n;
        if self.queue.is_empty() && self.written == self.tail.len() {
            self.written = 0;
            self.tail.clear();
            if self.tail.capacity() > KEPT_MAX {
                self.tail = Vec::new();
            }
        }
    }

    /// What comes next is behind the text so far.
    fn seal(&mut self) {
        if self.tail.len() == self.written {
            return;
        }
        let mut sealed = Bytes::from(std::mem::take(&mut self.tail));
        sealed.advance(self.written);
        self.written = 0;
        self.queued += sealed.len();
        self.queue.push_back(sealed);
    }
}

/// Half of what one packet on a common link holds.
const COPIED_MAX: usize = 2 * 1024;
/// Kept between messages.
const KEPT_MAX: usize = 8 * 1024;
/// At 1 KiB a piece, as they come out of tunnels, 64 KiB.
const SLICES_MAX: usize = 64;
