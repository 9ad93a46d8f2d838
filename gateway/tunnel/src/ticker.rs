//! One timer for all failure detectors of a worker, so that beats of many connections share wake-ups.

use crate::conn::Conn;
use std::{
    sync::{
        Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Wakes detectors when they are due.
#[derive(Debug)]
pub(crate) struct Ticker {
    epoch: Instant,
    conns: Mutex<Vec<Weak<Conn>>>,
    /// When the timer fires next, microseconds since `epoch`.
    next_micros: AtomicU64,
    wake: Notify,
}

impl Ticker {
    pub(crate) fn new() -> Self {
        Self { epoch: now(), conns: Mutex::default(), next_micros: AtomicU64::new(u64::MAX), wake: Notify::new() }
    }

    /// Adds a connection that has a detector now.
    pub(crate) fn add(&self, conn: Weak<Conn>) {
        self.conns.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
        self.wake.notify_one();
    }

    /// A detector is now due at `due`; wakes the timer only if that is sooner than it would fire.
    pub(crate) fn expect(&self, due: Instant) {
        if self.micros(due) < self.next_micros.load(Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Runs until the worker ends.
    pub(crate) async fn run(&self) {
        let mut conns = Vec::new();
        loop {
            self.live(&mut conns);
            let next = conns.iter().filter_map(|conn| conn.tick_due()).min();
            self.next_micros.store(next.map_or(u64::MAX, |due| self.micros(due)), Ordering::Relaxed);
            let due = next.unwrap_or_else(|| now() + Duration::from_secs(3600));
            conns.clear(); // do not keep connections alive across the wait
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = self.wake.notified() => continue,
            }
            // Packets that are already here must count as life: let the endpoint read its socket, then the connections
            // their packets, before anyone is judged.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            self.live(&mut conns);
            let horizon = now() + TOGETHER;
            for conn in conns.iter().filter(|conn| conn.tick_due().is_some_and(|due| due <= horizon)) {
                conn.tick(now());
            }
        }
    }

    fn live(&self, out: &mut Vec<std::sync::Arc<Conn>>) {
        out.clear();
        let mut conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        conns.retain(|conn| match conn.upgrade() {
            Some(conn) => {
                let is_open = conn.is_open();
                if is_open {
                    out.push(conn);
                }
                is_open
            }
            None => false,
        });
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }
}

/// Now, by the clock of the runtime's timers.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Ticks this close go together.
const TOGETHER: Duration = Duration::from_micros(500);
