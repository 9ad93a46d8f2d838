//! The last good state on disk: an agent that restarts without its control plane, beside a file that is just broken,
//! still knows what it knew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use archipelago_base::{durable, shutdown::Shutdown};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    health::{Target, driver::Readiness},
    provider::watch::Catalog,
};

/// What survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) control_plane: Vec<String>,
    /// Name of a service file → its last good text.
    pub(super) sources: BTreeMap<String, String>,
    pub(super) ready: BTreeSet<Target>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Stored {
    format: u32,
    control_plane: Vec<String>,
    sources: BTreeMap<String, String>,
    /// `namespace/name` and ip:port.
    ready: Vec<(String, std::net::SocketAddr)>,
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
        match serde_json::from_slice::<Stored>(&bytes) {
            Ok(stored) if stored.format == FORMAT => Self {
                control_plane: stored.control_plane,
                sources: stored.sources,
                ready: stored.ready.into_iter().map(|(service, address)| Target { service, address }).collect(),
            },
            Ok(stored) => {
                tracing::warn!(file = %file.display(), format = stored.format, "unknown format, starting without");
                Self::default()
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the last state is damaged, starting without");
                Self::default()
            }
        }
    }

    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        let stored = Stored {
            format: FORMAT,
            control_plane: self.control_plane.clone(),
            sources: self.sources.clone(),
            ready: self.ready.iter().map(|target| (target.service.clone(), target.address)).collect(),
        };
        durable::write(&dir.join(FILE_NAME), &serde_json::to_vec(&stored)?, 0o600)
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
            sources: catalogs.borrow_and_update().sources.clone(),
            ready: readinesses.borrow_and_update().ready().cloned().collect(),
        };
        if state != stored {
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
                // The sources are gone: the agent is stopping.
                shutdown.requested().await;
            },
        }
    }
}

const FILE_NAME: &str = "agent.json";
const FORMAT: u32 = 1;
/// An fsync a second is nothing to a disk, and a flapping endpoint must not become more.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_and_damage_does_not_hurt() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(State::load(temp.path()), State::default());
        let state = State {
            control_plane: vec!["127.0.0.1:7400".into()],
            sources: [("a.yaml".to_owned(), "x: 1".to_owned())].into(),
            ready: [Target { service: "shop/web".into(), address: "127.0.0.1:1".parse().unwrap() }].into(),
        };
        state.store(temp.path()).unwrap();
        assert_eq!(State::load(temp.path()), state);
        let file = temp.path().join(FILE_NAME);
        let text = fs::read_to_string(&file).unwrap();
        for damaged in [&text[..text.len() / 2], "", "{}", "[1]", &text.replace("\"format\":1", "\"format\":9")] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(State::load(temp.path()), State::default());
        }
    }
}
