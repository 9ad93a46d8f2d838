//! A thread that works off a queue, taking all that waits at once.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

/// The queue's bound is its user's: the node stops producing when too much is under way.
pub(super) struct Worker<T> {
    queue: Arc<Queue<T>>,
    thread: Option<JoinHandle<()>>,
}

struct Queue<T> {
    state: Mutex<(Vec<T>, bool)>,
    filled: Condvar,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts a thread that gives `work` all items that queued since it was last called, in order.
    pub(super) fn spawn(name: &str, mut work: impl FnMut(Vec<T>) + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue { state: Mutex::new((Vec::new(), false)), filled: Condvar::new() });
        let thread = {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(name.into()).spawn(move || {
                while let Some(items) = queue.take() {
                    work(items);
                }
            })?
        };
        Ok(Self { queue, thread: Some(thread) })
    }

    pub(super) fn push(&self, item: T) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).0.push(item);
        self.queue.filled.notify_one();
    }

    /// Lets the thread finish what is queued, and waits for it.
    pub(super) fn finish(&mut self) {
        self.queue.close(false);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a storage thread panicked");
        }
    }

    /// Drops what is queued; what the thread is doing it still completes.
    pub(super) fn abandon(&mut self) {
        self.queue.close(true);
        self.finish();
    }
}

impl<T> Queue<T> {
    /// All that waits; none once the queue is closed and empty.
    fn take(&self) -> Option<Vec<T>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !state.0.is_empty() {
                return Some(mem::take(&mut state.0));
            }
            if state.1 {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self, forget: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = true;
        if forget {
            state.0.clear();
        }
        drop(state);
        self.filled.notify_all();
    }
}
