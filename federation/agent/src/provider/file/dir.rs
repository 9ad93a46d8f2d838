//! The files of a directory and the services in them, as of the last good state of each file.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use archipelago_model::{
    document::{Document, Problem},
    id::ServiceKey,
    resource::Metadata,
    service::HealthCheck,
    service_file::{Content, ServiceEndpoint, ServiceFile, ServiceSpec, combine},
};
use imbl::OrdMap;

use super::hold::{Found, Watched};
use crate::catalog::{Catalog, Check, Endpoint, Locality, Port, Service};

/// A directory of service files.
#[derive(Debug)]
pub struct ServiceDir {
    path: PathBuf,
    /// By name, as last read.
    files: BTreeMap<String, File>,
    /// By name, what was last good.
    good: BTreeMap<String, Content>,
    /// Files that could not be read at the last look.
    unreadable: Vec<Problem>,
    looked: bool,
}

#[derive(Debug, Clone)]
struct File {
    watched: Watched,
    /// Of the bytes in `watched`, once they may be believed.
    content: Option<Result<Content, Vec<Problem>>>,
}

/// What a look at the directory gave.
#[derive(Debug, PartialEq)]
pub enum Look {
    /// Nothing to believe that was not believed before.
    Unchanged,
    /// All services, and what is wrong in files whose last good state stands in.
    Changed {
        /// Complete as far as it may be believed; `read` unless a file that nothing stands in for is still being written.
        catalog: Catalog,
        /// Empty when everything was read.
        problems: Vec<Problem>,
    },
    /// Nothing usable: what was known before stays. Says why.
    Refused(Vec<Problem>),
}

impl ServiceDir {
    /// Looks at nothing yet, and knows what was good before a restart.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, last: &Catalog) -> Self {
        let path = path.into();
        let mut by_file: BTreeMap<String, Vec<ServiceFile>> = BTreeMap::new();
        for (key, service) in &last.services {
            by_file.entry(service.origin.clone()).or_default().extend(to_file(key, service));
        }
        let content = |(name, services): (String, Vec<ServiceFile>)| {
            let content = Content::of(&path.join(&name).display().to_string(), services);
            (name, content)
        };
        let good = by_file.into_iter().map(content).collect();
        Self { path, files: BTreeMap::new(), good, unreadable: Vec::new(), looked: false }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads every `*.yaml` and `*.yml` of the directory, not those that begin with a dot.
    ///
    /// # Errors
    /// The directory cannot be listed; what was known stays.
    pub fn look(&mut self, now: Instant) -> io::Result<Look> {
        let (found, mut problems) = read(&self.path)?;
        let mut files = BTreeMap::new();
        let mut same = self.looked && found.len() == self.files.len() && problems == self.unreadable;
        for (name, found) in found {
            let before = self.files.get(&name);
            let watched = Watched::new(before.map(|before| &before.watched), found, now);
            let known = before.filter(|before| before.watched.bytes == watched.bytes);
            same &= known.is_some_and(|known| known.watched.whole == watched.whole);
            let content = known.and_then(|known| known.content.clone());
            files.insert(name, File { watched, content });
        }
        self.looked = true;
        self.files = files;
        if same {
            return Ok(Look::Unchanged);
        }
        self.unreadable.clone_from(&problems);

        let mut contents = BTreeMap::new();
        let mut read = true;
        for (name, file) in &mut self.files {
            let good = self.good.get(name);
            if !file.watched.whole {
                tracing::debug!(file = name, "still being written, its last good state stays");
                read &= good.is_some();
                contents.extend(good.map(|good| (name.clone(), good.clone())));
                continue;
            }
            let path = self.path.join(name).display().to_string();
            match file.content.get_or_insert_with(|| parse(&path, &file.watched.bytes)) {
                Ok(content) => {
                    contents.insert(name.clone(), content.clone());
                }
                Err(wrong) => {
                    problems.extend(wrong.iter().cloned());
                    contents.extend(good.map(|good| (name.clone(), good.clone())));
                }
            }
        }
        for problem in &self.unreadable {
            let name = name_of(&self.path, problem);
            contents.extend(self.good.get(&name).map(|good| (name, good.clone())));
        }
        let (services, more) = resolve(&self.path, &mut contents, &self.good);
        problems.extend(more);
        let Some(services) = services else { return Ok(Look::Refused(problems)) };
        self.good = contents;
        Ok(Look::Changed { catalog: Catalog { services, read }, problems })
    }

    /// When a file that is being written can be believed if it stays as it is.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.watched.whole_at()).min()
    }
}

fn parse(file: &str, bytes: &[u8]) -> Result<Content, Vec<Problem>> {
    let document = Document::from_bytes(file, bytes).map_err(|problem| vec![problem])?;
    if document.text.trim().is_empty() { Ok(Content::default()) } else { Content::parse(&document) }
}

fn name_of(path: &Path, problem: &Problem) -> String {
    Path::new(&problem.file).strip_prefix(path).unwrap_or(Path::new(&problem.file)).display().to_string()
}

/// Puts the files together, with the last good content in place of every one that does not fit the others.
fn resolve(
    path: &Path,
    contents: &mut BTreeMap<String, Content>,
    good: &BTreeMap<String, Content>,
) -> (Option<OrdMap<ServiceKey, Arc<Service>>>, Vec<Problem>) {
    let mut problems = Vec::new();
    // Each round takes at least one file back a step, to its last good content or to nothing.
    for _ in 0..=2 * contents.len() {
        let wrong = match combine(contents.values()) {
            Ok(services) => {
                let origin =
                    |file: &str| Path::new(file).strip_prefix(path).unwrap_or(Path::new(file)).display().to_string();
                let services = services.into_iter().map(|(service, file)| from_file(service, origin(file)));
                return (Some(services.collect()), problems);
            }
            Err(wrong) => wrong,
        };
        let mut changed = false;
        for problem in &wrong {
            let name = name_of(path, problem);
            let current = contents.remove(&name);
            let replacement = good.get(&name).filter(|last| Some(*last) != current.as_ref());
            changed |= replacement.is_some() || current.is_some();
            contents.extend(replacement.map(|last| (name, last.clone())));
        }
        problems.extend(wrong);
        if !changed {
            break;
        }
    }
    (None, problems)
}

fn from_file(file: ServiceFile, origin: String) -> (ServiceKey, Arc<Service>) {
    let ServiceSpec { port, protocol, endpoints, prefers_same_zone, health_check } = file.spec;
    let check = match health_check {
        HealthCheck::None => Check::Provider,
        HealthCheck::Active(check) => Check::Active(check),
    };
    // One copy for all endpoints of a zone.
    let mut zones: BTreeMap<String, Arc<Locality>> = BTreeMap::new();
    let mut locality = |zone: String| {
        let new = |zone: &String| Arc::new(Locality::in_zone(zone.as_str().into(), prefers_same_zone));
        Arc::clone(zones.entry(zone).or_insert_with_key(new))
    };
    let endpoint = |ServiceEndpoint { address, version, instance, zone }| Endpoint {
        address,
        version: version.into(),
        instance: instance.into(),
        ready: true,
        locality: zone.map(&mut locality),
    };
    let endpoints = endpoints.into_iter().map(endpoint).collect();
    let key = ServiceKey::new(file.metadata.namespace, file.metadata.name);
    let port = Port { name: String::new(), port, protocol, app_protocol: String::new(), endpoints };
    (key, Arc::new(Service { ports: vec![port], exported: file.exported, check, origin, export: None }))
}

/// A file has one port; a service without any came from no file.
fn to_file(key: &ServiceKey, service: &Service) -> Option<ServiceFile> {
    let port = service.ports.first()?;
    let endpoint = |endpoint: &Endpoint| ServiceEndpoint {
        address: endpoint.address,
        version: endpoint.version.to_string(),
        instance: endpoint.instance.to_string(),
        zone: endpoint.locality.as_ref().and_then(|locality| locality.zone.as_deref()).map(str::to_owned),
    };
    let stays = |endpoint: &Endpoint| endpoint.locality.as_ref().is_some_and(|locality| !locality.for_zones.is_empty());
    Some(ServiceFile {
        metadata: Metadata { name: key.name.to_string(), namespace: key.namespace.to_string(), ..Metadata::default() },
        spec: ServiceSpec {
            port: port.port,
            protocol: port.protocol,
            endpoints: port.endpoints.iter().map(endpoint).collect(),
            prefers_same_zone: port.endpoints.iter().any(stays),
            health_check: match &service.check {
                Check::Provider => HealthCheck::None,
                Check::Active(check) => HealthCheck::Active(check.clone()),
            },
        },
        exported: service.exported,
    })
}

/// By name, and files that are there but cannot be read.
type Files = (BTreeMap<String, Found>, Vec<Problem>);

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
        match open(&file) {
            Ok(found) => {
                files.insert(name, found);
            }
            // Deleted since it was listed: as if it had never been there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(refuse(format!("cannot be read: {error}"))),
        }
    }
    problems.sort();
    Ok((files, problems))
}

fn open(file: &Path) -> io::Result<Found> {
    let mut file = fs::File::open(file)?;
    let mut bytes = Vec::new();
    file.by_ref().take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    // After the content: what was written while it was read shows as a young file.
    let metadata = file.metadata()?;
    let moved = (metadata.ctime(), metadata.ctime_nsec()) > (metadata.mtime(), metadata.mtime_nsec());
    // Modified in the future, by a clock that was set since: as if just now.
    let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    Ok(Found { bytes, inode: metadata.ino(), moved, age })
}

const FILE_BYTES_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1_024;
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
