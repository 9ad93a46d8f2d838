//! Processes of this machine: found by what they carry in their environment, held by pidfd.
//!
//! A pid alone may be someone else's by the time a signal is sent. A pidfd is opened first and the
//! process behind it is then recognised by its environment, so a signal never hits a stranger.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

/// Environment variable that every process under `up` carries: the absolute state directory.
pub(crate) const MARK: &str = "ARCHIPELAGO_UP";

/// A process that is or was alive, safe against reuse of its pid.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Opens a process; `None` when there is no such process. Must run inside a tokio runtime.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self { pid, fd: watch(fd)? })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; a process that has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended (a zombie has ended); false when it still runs after `limit`.
    pub(crate) async fn ended(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.fd.readable()).await.is_ok()
    }
}

/// A pidfd in the runtime's poll set: readable once the process has ended.
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(
        deprecated,
        reason = "deprecated for types whose descriptor may change or close behind its back; an `OwnedFd` that it owns \
                  does neither, and the replacement is an unsafe function"
    )]
    AsyncFd::new(fd)
}

/// Ends processes: SIGTERM, up to `grace` for all together, then SIGKILL. Returns the pids that needed the latter.
pub(crate) async fn end(processes: &[Process], grace: Duration) -> io::Result<Vec<u32>> {
    for process in processes {
        process.signal(Signal::TERM)?;
    }
    let deadline = tokio::time::Instant::now() + grace;
    let mut killed = Vec::new();
    for process in processes {
        if !process.ended(deadline.saturating_duration_since(tokio::time::Instant::now())).await {
            process.signal(Signal::KILL)?;
            killed.push(process.pid());
        }
    }
    for process in processes {
        // SIGKILL is not refused; what still stands after this hangs in the kernel (an unreachable disk).
        if !process.ended(KILL_WAIT).await {
            return Err(io::Error::other(format!("pid {} does not end, not even by SIGKILL", process.pid())));
        }
    }
    Ok(killed)
}

/// Processes that carry the mark of this state directory, except this one. Must run inside a tokio runtime.
pub(crate) fn marked(state: &Path) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for pid in pids().filter(|pid| *pid != std::process::id()) {
        if !carries_mark(pid, state) {
            continue;
        }
        if let Some(process) = Process::open(pid)? {
            // Again, now that the pidfd holds it: the pid may have changed hands in between.
            if carries_mark(pid, state) {
                found.push(process);
            }
        }
    }
    Ok(found)
}

fn carries_mark(pid: u32, state: &Path) -> bool {
    mark_of(pid).is_some_and(|mark| mark == state)
}

/// The state directory whose mark a process carries; processes of other users are unreadable, and carry none.
pub(crate) fn mark_of(pid: u32) -> Option<PathBuf> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let name = [MARK.as_bytes(), b"="].concat();
    let value = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(name.as_slice()))?;
    Some(PathBuf::from(OsStr::from_bytes(value)))
}

/// All process ids visible in `/proc`.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| OsStr::to_str(&entry.file_name())?.parse().ok())
}

/// SIGKILL takes effect at once unless the process waits for a device.
const KILL_WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper(state: &Path) -> std::process::Child {
        Command::new("sleep").arg("600").env(MARK, state).stdin(Stdio::null()).spawn().unwrap()
    }

    #[tokio::test]
    async fn marked_processes_are_found_and_ended_and_others_left_alone() {
        let ours = tempfile::tempdir().unwrap();
        let theirs = tempfile::tempdir().unwrap();
        let mut child = sleeper(ours.path());
        let mut stranger = sleeper(theirs.path());
        // exec happens in the child: until then /proc shows our own environment.
        let found = loop {
            let found = marked(ours.path()).unwrap();
            if !found.is_empty() {
                break found;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(found.iter().map(Process::pid).collect::<Vec<_>>(), [child.id()]);
        assert_eq!(end(&found, Duration::from_secs(20)).await.unwrap(), Vec::<u32>::new());
        child.wait().unwrap();
        assert!(marked(ours.path()).unwrap().is_empty());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[tokio::test]
    async fn a_process_that_is_gone_is_none() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(Process::open(pid).unwrap().is_none());
    }
}
