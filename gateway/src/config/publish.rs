//! One snapshot at a time, and the proof that every worker uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::Snapshot;

/// The current snapshot and the generation that each worker has reached. Shared by all threads.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
    workers: Vec<AtomicU64>,
    reached: Notify,
}

impl Published {
    /// Starts with `first`, generation 1, for `workers` workers that have not seen it yet.
    pub fn new(first: Snapshot, workers: usize) -> Self {
        Self {
            current: ArcSwap::from_pointee(first),
            generation: watch::channel(1).0,
            workers: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            reached: Notify::new(),
        }
    }

    /// The current snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Swaps in `next` and returns its generation. Only one task publishes.
    pub fn publish(&self, next: Snapshot) -> u64 {
        // The pointer first: a worker that sees the new generation must see the new snapshot.
        self.current.store(Arc::new(next));
        let mut generation = 0;
        self.generation.send_modify(|g| {
            *g += 1;
            generation = *g;
        });
        generation
    }

    /// The generation of the current snapshot.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// The generation counter, for a worker's loop.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Worker `worker` serves every request from now on with the snapshot of `generation` or a later one.
    pub fn worker_reached(&self, worker: usize, generation: u64) {
        if let Some(cell) = self.workers.get(worker) {
            cell.store(generation, Ordering::Release);
        }
        self.reached.notify_waiters();
    }

    /// Workers that have not reached `generation`.
    pub fn late(&self, generation: u64) -> Vec<usize> {
        let reached = |worker: &AtomicU64| worker.load(Ordering::Acquire) >= generation;
        self.workers.iter().enumerate().filter(|(_, worker)| !reached(worker)).map(|(index, _)| index).collect()
    }

    /// Waits until every worker but those in `except` reached `generation`.
    pub async fn reached_by_all(&self, generation: u64, except: &[usize]) {
        loop {
            let notified = self.reached.notified();
            tokio::pin!(notified);
            // Registered before the check, or a worker could arrive between the two.
            notified.as_mut().enable();
            if self.late(generation).iter().all(|worker| except.contains(worker)) {
                return;
            }
            notified.await;
        }
    }

    /// Waits as long as a swap may take, and returns the workers that are late then. Those in `known_late` are not waited for:
    /// one that hangs must not slow down what the others get.
    pub async fn settle(&self, generation: u64, known_late: &[usize]) -> Vec<usize> {
        let _ = tokio::time::timeout(SWAP_TIME_MAX, self.reached_by_all(generation, known_late)).await;
        self.late(generation)
    }
}

/// A worker takes a snapshot between two polls, in microseconds; one that needs this long hangs.
const SWAP_TIME_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acknowledged_only_after_the_last_worker() {
        let published = Arc::new(Published::new(Snapshot::empty(), 3));
        let generation = published.publish(Snapshot::empty());
        assert_eq!(generation, 2);
        published.worker_reached(0, generation);
        published.worker_reached(1, generation);
        assert_eq!(published.late(generation), [2]);
        let waiter = tokio::spawn({
            let published = Arc::clone(&published);
            async move { published.settle(generation, &[]).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        published.worker_reached(2, generation);
        assert_eq!(waiter.await.unwrap(), Vec::<usize>::new());
    }

    #[tokio::test]
    async fn a_worker_that_hangs_holds_up_one_swap_and_no_later_one() {
        let published = Published::new(Snapshot::empty(), 2);
        let generation = published.publish(Snapshot::empty());
        published.worker_reached(0, generation);
        let begun = tokio::time::Instant::now();
        let late = published.settle(generation, &[]).await;
        assert_eq!(late, [1]);
        assert!(begun.elapsed() >= SWAP_TIME_MAX);
        let generation = published.publish(Snapshot::empty());
        published.worker_reached(0, generation);
        let begun = tokio::time::Instant::now();
        assert_eq!(published.settle(generation, &late).await, [1]);
        assert!(begun.elapsed() < SWAP_TIME_MAX);
        published.worker_reached(1, generation);
        assert!(published.late(generation).is_empty());
    }
}
