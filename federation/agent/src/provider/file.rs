//! Service files in a directory, for clusters without an API server.
//!
//! A broken file keeps its last good content, and so does one that is still being written ([`hold`]).

mod dir;
mod hold;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use archipelago_base::shutdown::Shutdown;
use archipelago_model::document::Problem;
use clap::Args;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

pub use self::dir::{Look, ServiceDir};
use super::{Link, Provider};

/// Service files as a source; also its flags.
#[derive(Debug, Clone, Args)]
pub struct ServiceFiles {
    /// Directory of service files.
    #[arg(long)]
    pub services: PathBuf,
}

impl Provider for ServiceFiles {
    fn name(&self) -> &'static str {
        "files"
    }

    /// Looks when the kernel says so, and slowly all the time, because notifications get lost (full queues, network file
    /// systems, a directory that is replaced).
    async fn follow(self, link: Link, shutdown: Shutdown) {
        let catalog = link.into_catalog();
        let mut dir = ServiceDir::new(self.services, &catalog.borrow());
        let (hint, mut hinted) = mpsc::channel(1);
        let mut watcher: Option<RecommendedWatcher> = None;
        loop {
            if watcher.is_none() {
                watcher = watch_dir(dir.path(), hint.clone());
            }
            let looked = tokio::task::spawn_blocking(move || {
                let look = dir.look(Instant::now().into_std());
                (dir, look)
            });
            let Ok((returned, look)) = looked.await else {
                tracing::error!("reading the service files failed; they are not followed any more");
                return;
            };
            dir = returned;
            match look {
                Ok(Look::Unchanged) => {}
                Ok(Look::Changed { catalog: found, problems }) => {
                    log(&problems);
                    tracing::info!(services = found.services.len(), path = %dir.path().display(), "service files read");
                    catalog.send_replace(Arc::new(found));
                }
                Ok(Look::Refused(problems)) => {
                    log(&problems);
                    catalog.send_if_modified(|catalog| {
                        let first = !catalog.read;
                        Arc::make_mut(catalog).read = true;
                        first
                    });
                }
                Err(error) => {
                    tracing::warn!(path = %dir.path().display(), %error, "the service directory cannot be read");
                    // A directory that comes back is another one to the kernel.
                    watcher = None;
                }
            }
            let rescan = Instant::now() + RESCAN_INTERVAL;
            let next = dir.next_look().map_or(rescan, |at| rescan.min(Instant::from_std(at)));
            tokio::select! {
                () = shutdown.requested() => return,
                hinted = timeout_at(next, hinted.recv()) => if hinted.is_ok() {
                    // One change is several notifications.
                    sleep(GATHER).await;
                },
            }
            while hinted.try_recv().is_ok() {}
        }
    }
}

fn log(problems: &[Problem]) {
    for problem in problems {
        tracing::warn!(%problem, "service file refused, its last good state stays");
    }
}

fn watch_dir(path: &Path, hint: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is an event too; to look because of it would never end.
        if event.map_or(true, |event| !event.kind.is_access()) {
            // A full channel already holds a hint.
            let _ = hint.try_send(());
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "no notifications of changed files, looking now and then");
            None
        }
    }
}

/// Notifications do the work; this is for those that get lost.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);
const GATHER: Duration = Duration::from_millis(50);
