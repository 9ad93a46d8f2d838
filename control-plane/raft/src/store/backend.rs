//! A redb backend that waits for room on the disk, and remembers whether an fsync ever failed.

use std::{
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{BackendError, StorageBackend};

use super::room::Room;

/// Passes everything on to `inner` and notes failed fsyncs, which redb's errors do not tell from failed writes.
///
/// The difference matters: after a failed write nothing was promised and it may be repeated, after a failed
/// fsync the kernel may have dropped the dirty pages and will report success the next time.
#[derive(Debug)]
pub(crate) struct Watched<B> {
    inner: B,
    sync_failed: Arc<AtomicBool>,
    /// For messages only.
    path: PathBuf,
    room: Arc<Room>,
}

impl<B> Watched<B> {
    /// Writes wait in `room`, under the name of `path`.
    pub(crate) fn new(inner: B, path: &Path, room: Arc<Room>) -> Self {
        Self { inner, sync_failed: Arc::default(), path: path.to_owned(), room }
    }

    /// Becomes true with the first fsync that failed.
    pub(crate) fn sync_failed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.sync_failed)
    }
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room.patiently(&self.path, || self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room.patiently(&self.path, || self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
