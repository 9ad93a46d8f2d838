//! Who waits to learn that the far side stopped reading.
//!
//! `quinn::SendStream::stopped` keeps an entry per stream that goes only when the stream is finished or stopped: one that we
//! reset, such as every rejected request and every response whose backend broke, would leave its entry until the connection
//! ends. Here waiters are kept per connection and leave with the half of the stream that waits. They are woken when the
//! connection's count of STOP_SENDING frames has moved, which is looked at with every beat, and then ask their own stream.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
};

/// The waiters of one connection.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    news: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: Vec<Option<Waker>>,
    free: Vec<u32>,
    /// STOP_SENDING frames seen so far.
    count: u64,
}

/// A place among them; to be given back by [`Stops::leave`].
#[derive(Debug)]
pub(crate) struct Waiting(u32);

impl Stops {
    /// A number that moves whenever a stream may have been stopped: as long as it does not, nobody needs to ask his.
    pub(crate) fn news(&self) -> u64 {
        self.news.load(Ordering::Relaxed)
    }

    /// Waits, or goes on waiting, with `waker`.
    pub(crate) fn wait(&self, waiting: &mut Option<Waiting>, waker: &Waker) {
        let mut inner = self.inner();
        let slot = match waiting {
            Some(Waiting(slot)) => *slot,
            None => {
                let slot = inner.free.pop().unwrap_or_else(|| {
                    inner.slots.push(None);
                    (inner.slots.len() - 1) as u32
                });
                *waiting = Some(Waiting(slot));
                slot
            }
        };
        if let Some(place) = inner.slots.get_mut(slot as usize) {
            match place {
                Some(known) if known.will_wake(waker) => {}
                place => *place = Some(waker.clone()),
            }
        }
    }

    /// Waits no longer.
    pub(crate) fn leave(&self, Waiting(slot): Waiting) {
        let mut inner = self.inner();
        if let Some(place) = inner.slots.get_mut(slot as usize) {
            *place = None;
            inner.free.push(slot);
        }
    }

    /// Takes how many STOP_SENDING frames have come; wakes everybody who waits if that is news.
    pub(crate) fn observe(&self, count: u64) {
        let mut inner = self.inner();
        if inner.count != count {
            inner.count = count;
            self.tell(&inner);
        }
    }

    /// Wakes everybody: the connection is gone.
    pub(crate) fn wake_all(&self) {
        self.tell(&self.inner());
    }

    fn tell(&self, inner: &Inner) {
        self.news.fetch_add(1, Ordering::Relaxed);
        inner.slots.iter().flatten().for_each(Waker::wake_by_ref);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn waiters_are_woken_by_news_and_leave_nothing_behind() {
        let stops = Stops::default();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        for round in 1..=1000 {
            let (mut one, mut other) = (None, None);
            stops.wait(&mut one, &waker);
            stops.wait(&mut one, &waker);
            stops.wait(&mut other, &waker);
            stops.observe(round - 1);
            stops.leave(other.unwrap());
            let before = stops.news();
            stops.observe(round);
            assert_eq!(stops.news(), before + 1);
            stops.observe(round);
            assert_eq!(stops.news(), before + 1);
            assert_eq!(count.0.swap(0, Ordering::Relaxed), 1, "round {round}");
            stops.leave(one.unwrap());
        }
        assert_eq!(stops.inner().slots.len(), 2);
        assert!(stops.inner().slots.iter().all(Option::is_none));
    }
}
