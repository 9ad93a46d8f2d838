//! What happens to a write when the disk has no room for it: it waits.
//!
//! A write that failed has promised nothing, so it may be tried again; redb must not hear of it, because it gives a
//! database up at its first error. An fsync that failed is another matter (`backend.rs`).

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The room on the disk of one data directory, and the writes that wait for some.
#[derive(Debug, Default)]
pub(crate) struct Room {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Before the node runs, and once it stops, nobody would answer for it while a write waits.
    waits: bool,
    /// Files that could not grow, each as often as a write to it waits.
    full: Vec<PathBuf>,
}

impl Room {
    /// From now on writes wait.
    pub(crate) fn wait(&self) {
        self.lock().waits = true;
    }

    /// From now on they fail, those that wait too.
    pub(crate) fn fail(&self) {
        self.lock().waits = false;
        self.stopped.notify_all();
    }

    /// A file that cannot grow at the moment.
    pub(crate) fn full(&self) -> Option<PathBuf> {
        self.lock().full.first().cloned()
    }

    /// Runs `write`, which must be repeatable, until the disk has room for it.
    pub(super) fn patiently<T>(&self, path: &Path, write: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let mut result = write();
        if !result.as_ref().is_err_and(is_full) {
            return result;
        }
        let mut state = self.lock();
        state.full.push(path.to_owned());
        while state.waits && result.as_ref().is_err_and(is_full) {
            state = self.stopped.wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
            result = write();
            state = self.lock();
        }
        if let Some(place) = state.full.iter().position(|full| full == path) {
            state.full.swap_remove(place);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Soon enough that nobody waits for long once there is room, and no load on a disk that has none.
const RETRY: Duration = Duration::from_millis(200);
