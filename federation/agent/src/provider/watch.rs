//! Watches a directory of service files. A broken file keeps its last good content, and says so in the log.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use archipelago_base::shutdown::Shutdown;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};

use archipelago_model::document::{Document, Problem};
use archipelago_model::service_file::{self as file, ServiceFile};

/// The files of a directory and the services in them, as of the last good state of each file.
#[derive(Debug)]
pub struct ServiceDir {
    path: PathBuf,
    /// Name → content as last read, good or not.
    seen: BTreeMap<String, Vec<u8>>,
    /// Name → text that parsed.
    good: BTreeMap<String, Document>,
    /// Files that could not be read at the last look.
    unreadable: Vec<Problem>,
    looked: bool,
}

/// The services of a cluster and the text they came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Complete, by namespace and name.
    pub services: Vec<ServiceFile>,
    /// File name → last good text; what [`ServiceDir::restore`] takes after a restart.
    pub sources: BTreeMap<String, String>,
    /// The directory has been read since the start; until then an absent service may just not have been found yet.
    pub read: bool,
}

/// What a look at the directory gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// No file changed.
    Unchanged,
    /// All services, and what is wrong in files whose last good state stands in.
    Changed {
        /// Complete.
        services: Vec<ServiceFile>,
        /// Empty when everything was read.
        problems: Vec<Problem>,
    },
    /// Nothing usable: what was known before stays. Says why.
    Refused(Vec<Problem>),
}

impl ServiceDir {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), seen: BTreeMap::new(), good: BTreeMap::new(), unreadable: Vec::new(), looked: false }
    }

    /// Takes over what was good before a restart; its services count until the first look at the directory.
    #[must_use]
    pub fn restore(path: impl Into<PathBuf>, sources: BTreeMap<String, String>) -> (Self, Catalog) {
        let mut dir = Self::new(path);
        let documents = sources
            .into_iter()
            .map(|(name, text)| (name.clone(), Document { file: dir.path.join(name).display().to_string(), text }))
            .collect();
        let (services, good, _) = resolve(&dir.path, documents, &BTreeMap::new(), &[]);
        dir.good = good;
        let catalog = Catalog { services: services.unwrap_or_default(), sources: dir.sources(), read: false };
        (dir, catalog)
    }

    fn sources(&self) -> BTreeMap<String, String> {
        self.good.iter().map(|(name, document)| (name.clone(), document.text.clone())).collect()
    }

    /// Reads every `*.yaml` and `*.yml` of the directory, not those that begin with a dot, and what changed anew.
    ///
    /// # Errors
    /// The directory cannot be listed; what was known stays.
    pub fn look(&mut self) -> io::Result<Look> {
        let (files, mut problems) = read(&self.path)?;
        if self.looked && files == self.seen && problems == self.unreadable {
            return Ok(Look::Unchanged);
        }
        self.looked = true;
        self.unreadable.clone_from(&problems);
        let mut documents = BTreeMap::new();
        for (name, bytes) in &files {
            match Document::from_bytes(self.path.join(name).display().to_string(), bytes) {
                Ok(document) if document.text.trim().is_empty() => {}
                Ok(document) => {
                    documents.insert(name.clone(), document);
                }
                Err(problem) => problems.push(problem),
            }
        }
        self.seen = files;
        // Files that are there but could not be read stay as they were.
        let (services, good, more) = resolve(&self.path, documents, &self.good, &problems);
        problems.extend(more);
        match services {
            Some(services) => {
                self.good = good;
                Ok(Look::Changed { services, problems })
            }
            None => Ok(Look::Refused(problems)),
        }
    }
}

/// The services of `documents`, with the last good text in place of every file that has a problem.
fn resolve(
    path: &Path,
    mut documents: BTreeMap<String, Document>,
    good: &BTreeMap<String, Document>,
    unreadable: &[Problem],
) -> (Option<Vec<ServiceFile>>, BTreeMap<String, Document>, Vec<Problem>) {
    let mut problems = Vec::new();
    let stand_in = |documents: &mut BTreeMap<String, Document>, wrong: &[Problem]| {
        let mut changed = false;
        for problem in wrong {
            let name = Path::new(&problem.file).strip_prefix(path).unwrap_or(Path::new(&problem.file));
            let name = name.display().to_string();
            let current = documents.get(&name).cloned();
            let replacement = good.get(&name).cloned().filter(|last| Some(last) != current.as_ref());
            changed |= replacement.is_some() || current.is_some();
            match replacement {
                Some(last) => documents.insert(name, last),
                None => documents.remove(&name),
            };
        }
        changed
    };
    stand_in(&mut documents, unreadable);
    // Each round takes at least one file back a step, to its last good text or to nothing.
    for _ in 0..=2 * documents.len() {
        let set: Vec<Document> = documents.values().cloned().collect();
        match file::parse(&set) {
            Ok(services) => return (Some(services), documents, problems),
            Err(wrong) => {
                let changed = stand_in(&mut documents, &wrong);
                problems.extend(wrong);
                if !changed {
                    break;
                }
            }
        }
    }
    (None, documents, problems)
}

/// Follows `dir` until `shutdown`, publishing every good state. Looks when the kernel says so, and slowly all the time,
/// because notifications get lost (full queues, network file systems, a directory that is replaced).
pub async fn follow(mut dir: ServiceDir, catalog: watch::Sender<Arc<Catalog>>, shutdown: Shutdown) {
    let (hint, mut hinted) = mpsc::channel(1);
    let mut watcher: Option<RecommendedWatcher> = None;
    loop {
        if watcher.is_none() {
            watcher = watch_dir(&dir.path, hint.clone());
        }
        let looked = tokio::task::spawn_blocking(move || {
            let look = dir.look();
            (dir, look)
        });
        let Ok((returned, look)) = looked.await else {
            tracing::error!("reading the service files failed; they are not followed any more");
            return;
        };
        dir = returned;
        match look {
            Ok(Look::Unchanged) => {}
            Ok(Look::Changed { services: found, problems }) => {
                log(&problems);
                tracing::info!(services = found.len(), path = %dir.path.display(), "service files read");
                catalog.send_replace(Arc::new(Catalog { services: found, sources: dir.sources(), read: true }));
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
                tracing::warn!(path = %dir.path.display(), %error, "the service directory cannot be read");
                // A directory that comes back is another one to the kernel.
                watcher = None;
            }
        }
        let rescan = Instant::now() + RESCAN_INTERVAL;
        tokio::select! {
            () = shutdown.requested() => return,
            hinted = timeout_at(rescan, hinted.recv()) => if hinted.is_ok() {
                // An editor writes in several steps.
                sleep(SETTLE).await;
            },
        }
        while hinted.try_recv().is_ok() {}
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

/// Name → content, and files that are there but cannot be read.
type Files = (BTreeMap<String, Vec<u8>>, Vec<Problem>);

fn read(path: &Path) -> io::Result<Files> {
    let mut files = BTreeMap::new();
    let mut problems = Vec::new();
    let mut total = 0u64;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_yaml = Path::new(&name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if !is_yaml || name.starts_with('.') {
            continue;
        }
        let file = path.join(&name);
        let refuse = |message: String| Problem {
            file: file.display().to_string(),
            line: 1,
            column: 1,
            path: String::new(),
            message,
        };
        let size = fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if size > FILE_BYTES_MAX || total + size > DIRECTORY_BYTES_MAX || files.len() >= FILES_MAX {
            problems.push(refuse(format!(
                "too much: at most {FILES_MAX} files of {FILE_BYTES_MAX} bytes, {DIRECTORY_BYTES_MAX} bytes together, are read"
            )));
            continue;
        }
        total += size;
        match fs::read(&file) {
            Ok(bytes) => {
                files.insert(name, bytes);
            }
            // Deleted since it was listed: as if it had never been there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(refuse(format!("cannot be read: {error}"))),
        }
    }
    problems.sort();
    Ok((files, problems))
}

/// Notifications do the work; this is for those that get lost.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_millis(50);
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1_024;
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> String {
        format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ port: 80 }}\n"
        )
    }

    fn names(look: &Look) -> Vec<String> {
        match look {
            Look::Changed { services, .. } => services.iter().map(|service| service.metadata.name.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_state() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(temp.path().join(name), text).unwrap();
        let mut dir = ServiceDir::new(temp.path());
        assert_eq!(names(&dir.look().unwrap()), Vec::<String>::new());

        write("a.yaml", &service("web"));
        write("b.yaml", &service("cart"));
        write("notes.txt", "not YAML: [");
        assert_eq!(names(&dir.look().unwrap()), ["cart", "web"]);
        assert_eq!(dir.look().unwrap(), Look::Unchanged);

        // Broken: the other file still changes.
        write("a.yaml", "apiVersion: [");
        write("b.yaml", &service("basket"));
        let look = dir.look().unwrap();
        assert_eq!(names(&look), ["basket", "web"]);
        let Look::Changed { problems, .. } = &look else { panic!() };
        assert!(problems[0].file.ends_with("a.yaml") && problems[0].line == 1, "{problems:?}");
        assert_eq!(dir.look().unwrap(), Look::Unchanged);

        // Binary, then repaired, then deleted.
        fs::write(temp.path().join("a.yaml"), b"\xff\xfe").unwrap();
        assert_eq!(names(&dir.look().unwrap()), ["basket", "web"]);
        write("a.yaml", &service("store"));
        assert_eq!(names(&dir.look().unwrap()), ["basket", "store"]);
        fs::remove_file(temp.path().join("a.yaml")).unwrap();
        assert_eq!(names(&dir.look().unwrap()), ["basket"]);
        fs::remove_dir_all(temp.path()).unwrap();
        assert!(dir.look().is_err());
    }

    #[test]
    fn a_service_claimed_by_two_files_stays_with_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = ServiceDir::new(temp.path());
        fs::write(temp.path().join("a.yaml"), service("web")).unwrap();
        assert_eq!(names(&dir.look().unwrap()), ["web"]);
        fs::write(temp.path().join("b.yaml"), service("web")).unwrap();
        let look = dir.look().unwrap();
        assert_eq!(names(&look), ["web"]);
        let Look::Changed { problems, .. } = &look else { panic!() };
        assert!(problems[0].message.contains("already given"), "{problems:?}");
    }
}
