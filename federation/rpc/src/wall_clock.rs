//! Waiting for a moment of the wall clock, and connections that end at one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// Sleeps until `at` in steps, looking at the wall clock between them: a clock that was set, or a machine that slept, is noticed.
pub async fn sleep_until_wall(at: SystemTime) {
    loop {
        let left = at.duration_since(SystemTime::now()).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        sleep(left.min(STEP)).await;
    }
}

/// A byte stream that fails from a moment of the wall clock on: a certificate's end is that of its connections.
pub(crate) struct Ending<S> {
    stream: S,
    at: SystemTime,
    /// The next look at the clock.
    look: Pin<Box<Sleep>>,
}

impl<S> Ending<S> {
    pub(crate) fn new(stream: S, at: SystemTime) -> Self {
        let left = at.duration_since(SystemTime::now()).unwrap_or_default();
        Self { stream, at, look: Box::pin(sleep(left.min(STEP))) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.look.as_mut().poll(cx).is_ready() {
            let left = self.at.duration_since(SystemTime::now()).unwrap_or_default();
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server's certificate has run out"));
            }
            self.look.set(sleep_until(Instant::now() + left.min(STEP)));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ending<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ending<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A set clock is noticed this soon.
const STEP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_connection_fails_at_its_end_even_when_nothing_moves() {
        let (_other, stream) = tokio::io::duplex(64);
        let end = SystemTime::now() + Duration::from_millis(50);
        let error = Ending::new(stream, end).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(SystemTime::now() >= end);
    }
}
