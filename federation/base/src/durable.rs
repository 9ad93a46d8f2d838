//! Files that survive a crash: written whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{FlockOperation, flock};

/// Replaces `path` with `bytes` atomically: after a crash the file is the old one or the new one.
///
/// Writes a temporary file beside it, syncs it, renames it, and syncs the directory. `mode` is the permission of the new file.
///
/// # Errors
/// Any step failed; `path` is then unchanged.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_with(path, mode, |file| file.write_all(bytes))
}

/// As [`write`], of what `content` writes piece by piece: for what would be large in memory.
///
/// # Errors
/// Any step failed, `content` included; `path` is then unchanged.
pub fn write_with(
    path: &Path,
    mode: u32,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path without a file name"));
    };
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{}.{}.{unique}", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        let mut writer = BufWriter::new(file);
        content(&mut writer)?;
        writer.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // Already failing: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Exclusive use of a directory by one process, released when dropped or when the process dies.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes `dir/LOCK`, creating `dir` if need be.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that has it; [`LockError::Io`] when the directory cannot be used.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { dir: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("LOCK"))
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The holder's number is a help, not a need.
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held { dir: dir.to_owned(), pid: holder.trim().parse().ok() });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        write!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another live process has it.
    #[error("{} is in use by {}", dir.display(), pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The process, when it could be read.
        pid: Option<u32>,
    },
    /// The directory cannot be created or written.
    #[error("cannot use {} as a state directory", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn write_replaces_whole_and_sets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"first, and longer", 0o600).unwrap();
        write(&path, b"second", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing").join("file");
        assert!(write(&missing, b"x", 0o600).is_err());
        let path = dir.path().join("file");
        write(&path, b"old", 0o600).unwrap();
        let half = write_with(&path, 0o600, |file| {
            file.write_all(b"new")?;
            Err(io::Error::other("no more"))
        });
        assert!(half.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn the_second_taker_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::acquire(dir.path()).unwrap();
        let refused = DirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        DirLock::acquire(dir.path()).unwrap();
    }
}
