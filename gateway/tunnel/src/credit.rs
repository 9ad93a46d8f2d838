//! How much a peer may send before somebody reads it: a window per connection and a number of streams that grow with use.
//!
//! QUIC gives credit back for bytes that were read, and a reader that stalls keeps what its stream may hold. With a window of
//! a few streams a few stalled readers stop every other stream of the connection. So the window starts small, doubles
//! whenever the peer says (DATA_BLOCKED) that it is what holds it back, whether for stalled readers or because the path holds
//! more than that, and shrinks again when nothing is in flight. What all connections of a worker hold beyond their first
//! window comes out of one [`Budget`].

use crate::config::TunnelLimits;
use std::sync::atomic::{AtomicU64, Ordering};

/// The window of one connection.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: u64,
    /// DATA_BLOCKED frames seen so far.
    blocked: u64,
}

impl Window {
    pub(crate) fn new(limits: &TunnelLimits) -> Self {
        Self { bytes: limits.connection_window_bytes.into(), blocked: 0 }
    }

    /// Takes how often the peer has been blocked since the connection began, and whether nothing is in flight; returns the
    /// window to set, if it is another.
    pub(crate) fn observe(
        &mut self,
        blocked: u64,
        is_idle: bool,
        limits: &TunnelLimits,
        budget: &Budget,
    ) -> Option<u64> {
        let first = u64::from(limits.connection_window_bytes);
        if blocked != self.blocked {
            self.blocked = blocked;
            let more = (self.bytes * 2).min(limits.connection_window_bytes_max.into()).saturating_sub(self.bytes);
            if more == 0 || !budget.take(more) {
                return None;
            }
            self.bytes += more;
            return Some(self.bytes);
        }
        if is_idle && self.bytes > first {
            budget.give(self.bytes - first);
            self.bytes = first;
            return Some(first);
        }
        None
    }

    /// Gives back what it took.
    pub(crate) fn close(&mut self, limits: &TunnelLimits, budget: &Budget) {
        let first = u64::from(limits.connection_window_bytes);
        budget.give(self.bytes.saturating_sub(first));
        self.bytes = first;
    }
}

/// Bytes that the connections of a worker may hold beyond the first window of each.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU64);

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    fn take(&self, bytes: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How many requests a peer may have open: quinn keeps two entries for every stream that may be opened, used or not.
#[derive(Debug)]
pub(crate) struct StreamCredit(u32);

impl StreamCredit {
    pub(crate) fn new(limits: &TunnelLimits) -> Self {
        Self(first_streams(limits))
    }

    /// Takes how many are open; returns the number to allow, if it is another.
    pub(crate) fn observe(&mut self, open: usize, limits: &TunnelLimits) -> Option<u32> {
        let is_half_used = open >= self.0 as usize / 2;
        (is_half_used && self.0 < limits.streams).then(|| {
            self.0 = self.0.saturating_mul(4).min(limits.streams);
            self.0
        })
    }
}

/// What a connection begins with.
pub(crate) fn first_streams(limits: &TunnelLimits) -> u32 {
    STREAMS_FIRST.min(limits.streams)
}

/// More than most connections ever have in flight, at 20 KiB instead of 1.4 MiB.
const STREAMS_FIRST: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> TunnelLimits {
        TunnelLimits { connection_window_bytes: 8, connection_window_bytes_max: 50, ..TunnelLimits::default() }
    }

    #[test]
    fn a_window_doubles_when_the_peer_is_blocked_and_shrinks_when_idle() {
        let (limits, budget) = (limits(), Budget::new(1000));
        let mut window = Window::new(&limits);
        assert_eq!(window.observe(0, false, &limits, &budget), None);
        assert_eq!(window.observe(1, false, &limits, &budget), Some(16));
        assert_eq!(window.observe(1, false, &limits, &budget), None);
        assert_eq!(window.observe(3, true, &limits, &budget), Some(32), "blocked outweighs idle");
        assert_eq!(window.observe(4, false, &limits, &budget), Some(50));
        assert_eq!(window.observe(5, false, &limits, &budget), None, "as large as it gets");
        assert_eq!(window.observe(5, true, &limits, &budget), Some(8));
        assert_eq!(window.observe(6, false, &limits, &budget), Some(16));
        assert_eq!(budget.0.load(Ordering::Relaxed), 992);
        window.close(&limits, &budget);
        assert_eq!(budget.0.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn windows_share_a_budget() {
        let (limits, budget) = (limits(), Budget::new(10));
        let (mut one, mut other) = (Window::new(&limits), Window::new(&limits));
        assert_eq!(one.observe(1, false, &limits, &budget), Some(16));
        assert_eq!(other.observe(1, false, &limits, &budget), None);
        one.close(&limits, &budget);
        assert_eq!(other.observe(2, false, &limits, &budget), Some(16));
    }

    #[test]
    fn stream_credit_grows_before_it_is_used_up() {
        let limits = TunnelLimits { streams: 3000, ..TunnelLimits::default() };
        let mut credit = StreamCredit::new(&limits);
        assert_eq!(credit.observe(127, &limits), None);
        assert_eq!(credit.observe(128, &limits), Some(1024));
        assert_eq!(credit.observe(128, &limits), None);
        assert_eq!(credit.observe(600, &limits), Some(3000));
        assert_eq!(credit.observe(3000, &limits), None);
        assert_eq!(first_streams(&TunnelLimits { streams: 10, ..limits }), 10);
    }
}
