//! Bodies that are made or passed on piece by piece, and the count of those nobody waited for.

use std::{
    fmt::Write as _,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use tokio::time::{Instant, Sleep, sleep_until};

/// Every response body of this crate.
pub(crate) type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is at hand in full.
pub(crate) fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Byte `offset` of every `/bytes/N`: the remainder of its offset by [`PATTERN_PERIOD`].
///
/// A prime period, so that a block lost, doubled or moved by any power of two shows.
pub fn pattern_byte(offset: u64) -> u8 {
    // The remainder is below 251.
    (offset % PATTERN_PERIOD) as u8
}

/// Period of the pattern that `/bytes/N` sends.
pub const PATTERN_PERIOD: u64 = 251;

/// `remaining` bytes of the pattern, from one shared buffer however many are asked for.
pub(crate) struct Pattern {
    remaining: u64,
}

impl Pattern {
    pub(crate) fn new(length: u64) -> Self {
        Self { remaining: length }
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // A whole number of periods, so that every chunk starts at byte 0 of the pattern.
        static CHUNK: LazyLock<Bytes> = LazyLock::new(|| (0..PATTERN_PERIOD * 256).map(pattern_byte).collect());
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let chunk = match usize::try_from(self.remaining) {
            Ok(left) if left < CHUNK.len() => CHUNK.slice(..left),
            _ => CHUNK.clone(),
        };
        self.remaining -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// Numbered lines, the first at once and then one each `every`.
pub(crate) struct Ticks {
    sent: u64,
    count: u64,
    every: Duration,
    next: Pin<Box<Sleep>>,
}

impl Ticks {
    pub(crate) fn new(count: u64, every: Duration) -> Self {
        Self { sent: 0, count, every, next: Box::pin(sleep_until(Instant::now())) }
    }
}

impl Body for Ticks {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.sent == self.count {
            return Poll::Ready(None);
        }
        // The first line must not wait for the timer's granularity.
        if self.sent > 0 {
            ready!(self.next.as_mut().poll(context));
        }
        let line = format!("{}\n", self.sent);
        self.sent += 1;
        let next = Instant::now() + self.every;
        self.next.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(line)))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.count
    }
}

/// A request body that fails once its sender has been silent for `limit`.
pub(crate) struct Patient<B> {
    inner: B,
    limit: Duration,
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<B> Patient<B> {
    pub(crate) fn new(inner: B, limit: Duration) -> Self {
        Self { inner, limit, deadline: Box::pin(sleep_until(Instant::now() + limit)), waiting: false }
    }
}

impl<B> Body for Patient<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            self.waiting = false;
            let frame = frame.map(|frame| frame.map_err(|error| BodyError::Broken(error.into())));
            return Poll::Ready(frame);
        }
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now() + self.limit;
            self.deadline.as_mut().reset(deadline);
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(BodyError::Silent)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Why a request body did not arrive whole.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// The client was silent for too long.
    Silent,
    /// The client went away, or broke the protocol.
    Broken(BoxError),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => formatter.write_str("the client stopped sending"),
            Self::Broken(error) => write!(formatter, "the request body broke: {error}"),
        }
    }
}

impl std::error::Error for BodyError {}

/// How many requests lost their client before their response ended.
#[derive(Debug, Default, Clone)]
pub(crate) struct Cancelled(Arc<AtomicU64>);

impl Cancelled {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a cancellation unless the request's response is seen to end.
    pub(crate) fn watch(&self) -> Watch {
        Watch { cancelled: self.clone(), ended: false }
    }
}

/// Lives as long as one request: first in its handler, then in its response body.
pub(crate) struct Watch {
    cancelled: Cancelled,
    ended: bool,
}

impl Watch {
    /// Follows the response into its body.
    pub(crate) fn over(mut self, body: ResponseBody) -> ResponseBody {
        self.ended = body.is_end_stream();
        Watched { body, watch: self }.boxed_unsync()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.cancelled.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Watched {
    body: ResponseBody,
    watch: Watch,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // An error is no end: the body came from a request whose sender went away.
        self.watch.ended = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
            Some(Err(_)) => false,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pattern_is_exact_and_shared() {
        for length in [0, 1, 250, 251, 64_255, 64_256, 64_257, 300_000] {
            let body = Pattern::new(length).collect().await.unwrap().to_bytes();
            let expected: Vec<u8> = (0..length).map(pattern_byte).collect();
            assert_eq!(body, expected, "{length}");
        }
    }

    #[tokio::test]
    async fn only_an_unfinished_body_counts_as_cancelled() {
        let cancelled = Cancelled::default();
        let whole = cancelled.watch().over(Pattern::new(100_000).boxed_unsync());
        whole.collect().await.unwrap();
        drop(cancelled.watch().over(full("")));
        assert_eq!(cancelled.count(), 0);
        let mut part = cancelled.watch().over(Pattern::new(100_000).boxed_unsync());
        part.frame().await.unwrap().unwrap();
        drop(part);
        drop(cancelled.watch());
        assert_eq!(cancelled.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sender_is_given_up() {
        let (_sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(1);
        let mut body = Patient::new(body, Duration::from_secs(7));
        let started = Instant::now();
        assert!(matches!(body.frame().await.unwrap(), Err(BodyError::Silent)));
        assert_eq!(started.elapsed().as_secs(), 7);
    }

    #[test]
    fn hex_is_lower_case_and_padded() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
