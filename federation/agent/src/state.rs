//! The last good state on disk: an agent that restarts without its control plane, beside a file that is just broken,
//! still knows what it knew.

mod format;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use archipelago_base::{durable, shutdown::Shutdown};
use archipelago_model::id::ServiceKey;
use imbl::OrdMap;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    catalog::{Catalog, Service},
    health::{Target, driver::Readiness},
};

/// What survives a restart.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    pub(super) control_plane: Vec<String>,
    pub(super) services: OrdMap<ServiceKey, Arc<Service>>,
    /// Endpoints that were asked and answered well.
    pub(super) ready: BTreeSet<Target>,
}

impl State {
    /// What is in `dir`. A file that cannot be used is no reason not to start: everything in it is learnt again.
    pub(super) fn load(dir: &Path) -> Self {
        let file = dir.join(FILE_NAME);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the last state cannot be read, starting without");
                return Self::default();
            }
        };
        format::decode(&bytes).unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "the last state cannot be used, starting without");
            Self::default()
        })
    }

    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        durable::write_with(&dir.join(FILE_NAME), 0o600, |file| Ok(format::encode(self, file)?))
    }
}

/// Stores every change, at most one a second, and once more at the end.
pub(super) async fn keep(
    dir: PathBuf,
    control_plane: Vec<String>,
    mut catalogs: watch::Receiver<Arc<Catalog>>,
    mut readinesses: watch::Receiver<Readiness>,
    shutdown: Shutdown,
) {
    let mut stored = State::default();
    let mut failing = false;
    loop {
        let last = shutdown.is_requested();
        let state = State {
            control_plane: control_plane.clone(),
            services: catalogs.borrow_and_update().services.clone(),
            ready: readinesses.borrow_and_update().ready().cloned().collect(),
        };
        if state == stored {
            // What was stored would be held for the comparison alone.
            stored = state;
        } else {
            let (path, copy) = (dir.clone(), state.clone());
            let written = tokio::task::spawn_blocking(move || copy.store(&path)).await;
            match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => {
                    stored = state;
                    failing = false;
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(dir = %dir.display(), %error, "the state cannot be stored; serving goes on");
                }
                Err(_) => {}
            }
        }
        if last {
            return;
        }
        tokio::select! {
            () = shutdown.requested() => continue,
            () = sleep(STORE_INTERVAL) => {}
        }
        let changed = async {
            tokio::select! {
                changed = catalogs.changed() => changed.is_ok(),
                changed = readinesses.changed() => changed.is_ok(),
            }
        };
        // While storing fails there is something to store even without a change.
        let wait = if failing { RETRY_INTERVAL } else { Duration::from_secs(3600) };
        tokio::select! {
            () = shutdown.requested() => {}
            changed = timeout(wait, changed) => if changed == Ok(false) {
                // Nothing changes any more: the agent is stopping.
                shutdown.requested().await;
            },
        }
    }
}

const FILE_NAME: &str = "agent.json";
/// An fsync a second is nothing to a disk, and a flapping endpoint must not become more.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
