//! Versions of the state as this member applied them: written by the thread that applies, read by everything else.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use archipelago_model::version::Version;
use tokio::sync::watch;

use crate::machine::{Machine, Observer};

/// The newest version, and when each policy revision was applied here.
#[derive(Debug)]
pub(crate) struct Published {
    version: watch::Sender<Version>,
    commits: Mutex<VecDeque<(u64, Instant)>>,
}

impl Published {
    pub(crate) fn new() -> Self {
        Self { version: watch::Sender::new(Version::default()), commits: Mutex::default() }
    }

    /// A machine whose versions appear on the handle beside it.
    pub(crate) fn machine(supported: u32) -> (Machine, Arc<Self>) {
        let published = Arc::new(Self::new());
        (Machine::new(supported, Arc::clone(&published).observer()), published)
    }

    fn observer(self: Arc<Self>) -> Observer {
        Box::new(move |version| self.publish(version))
    }

    /// The applied version, and every later one. A slow reader sees the latest, not each.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// The applied version.
    pub(crate) fn version(&self) -> Version {
        *self.version.borrow()
    }

    /// When this member applied the policy revision; `None` when that is too long ago or it arrived inside a snapshot.
    pub(crate) fn applied_at(&self, revision: u64) -> Option<Instant> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let place = commits.binary_search_by_key(&revision, |(revision, _)| *revision).ok()?;
        commits.get(place).map(|(_, at)| *at)
    }

    fn publish(&self, version: Version) {
        {
            let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
            // A restore may go anywhere; keep the list sorted whatever happens.
            while commits.back().is_some_and(|(last, _)| *last > version.revision) {
                commits.pop_back();
            }
            // The first of a revision counts: later ones moved only the fleet version.
            if commits.back().is_none_or(|(last, _)| *last < version.revision) {
                if commits.len() >= COMMIT_TIMES_MAX {
                    commits.pop_front();
                }
                commits.push_back((version.revision, Instant::now()));
            }
        }
        self.version.send_replace(version);
    }
}

/// Commit times kept: at 100 changes a second, long enough for any `--timeout` in use (40 s).
const COMMIT_TIMES_MAX: usize = 4_096;
