//! The state directory of one federation: what lies where, and what `down` may remove.
//!
//! ```text
//! STATE/up.json          what was started: topology, base port, workers
//! STATE/up.sock          the supervisor listens here (0600)
//! STATE/LOCK             held by the supervisor; its pid inside
//! STATE/operator/        credential with which `meshctl --state STATE …` reaches this federation
//! STATE/member-N/        data of control-plane member N
//! STATE/clusters/C/…     services/, agent/, gw-N/ of cluster C, and their join tokens
//! STATE/run/C.gw-N.sock  admin sockets of the gateways
//! STATE/members/         what members that are added begin with, and what was left of lost ones
//! STATE/observe/         what `--observe` writes, and what Prometheus gathers
//! STATE/logs/            one file per process
//! ```

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use archipelago_base::durable;
use serde::{Deserialize, Serialize};

use crate::exit::{Failure, Outcome};

/// A state directory, by absolute path.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

/// `up.json`: what a later `up` needs to resume with the same ports and identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Record {
    /// Where the topology came from, for messages.
    pub(crate) topology_file: String,
    /// Its text.
    pub(crate) topology: String,
    /// Where every process listens; versions before knew one address.
    #[serde(default = "host_default")]
    pub(crate) host: IpAddr,
    /// First port.
    pub(crate) base_port: u16,
    /// Workers per gateway.
    pub(crate) workers: u16,
    /// The credentials of members and operator are made, and the topology's resources are committed.
    pub(crate) stage: Stage,
}

fn host_default() -> IpAddr {
    super::layout::HOST_DEFAULT
}

/// How far the first start came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Stage {
    /// Only this record exists.
    Recorded,
    /// Members and operator have their credentials.
    Founded,
    /// The topology's resources are committed; what they are now is the operator's business.
    Applied,
}

impl StateDir {
    /// The directory, made absolute; it need not exist.
    ///
    /// # Errors
    /// The current directory is gone.
    pub(crate) fn new(path: &Path) -> Outcome<Self> {
        let absolute = std::path::absolute(path)
            .map_err(|error| Failure::refused(format!("cannot resolve {}: {error}", path.display())))?;
        // Resolved when it exists, so that one directory has one name, however it is reached.
        Ok(Self { root: absolute.canonicalize().unwrap_or(absolute) })
    }

    /// Its absolute path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Creates it, private to this user, and what must exist before processes start.
    pub(crate) fn create(&self) -> Outcome<Self> {
        let make = |path: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
                Failure::refused(format!("cannot use {} as a state directory: {error}", self.root.display()))
                    .hint("name a writable directory with --state DIR")
            })
        };
        make(&self.root)?;
        for name in ["logs", "run", "clusters"] {
            make(&self.root.join(name))?;
        }
        Self::new(&self.root)
    }

    /// The record of an earlier `up`, if there was one.
    ///
    /// # Errors
    /// It is there and cannot be understood: starting over it would lose a federation.
    pub(crate) fn record(&self) -> Outcome<Option<Record>> {
        let path = self.root.join(RECORD);
        let unusable = |why: &dyn std::fmt::Display| {
            Failure::refused(format!("{}: {why}", path.display())).hint(format!(
                "this federation cannot be resumed; `meshctl --state {} down` removes it",
                self.root.display()
            ))
        };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unusable(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(&error)),
        }
    }

    /// Whether `up` ever began here.
    pub(crate) fn has_record(&self) -> bool {
        self.root.join(RECORD).exists()
    }

    /// Writes the record, durably.
    pub(crate) fn write_record(&self, record: &Record) -> Outcome {
        let bytes = serde_json::to_vec_pretty(record).map_err(anyhow::Error::from)?;
        self.write(&self.root.join(RECORD), &bytes, 0o600)
    }

    /// Writes a file, durably.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Outcome {
        durable::write(path, bytes, mode)
            .map_err(|error| Failure::refused(format!("cannot write {}: {error}", path.display())))
    }

    /// Directory of one cluster.
    pub(crate) fn cluster(&self, cluster: &str) -> PathBuf {
        self.root.join("clusters").join(cluster)
    }

    /// Directory of the files that name the services of one cluster.
    pub(crate) fn services(&self, cluster: &str) -> PathBuf {
        self.cluster(cluster).join("services")
    }

    /// Directory of control-plane member `id`.
    pub(crate) fn member(&self, id: u64) -> PathBuf {
        self.root.join(format!("member-{id}"))
    }

    /// Directory of the members' seal keys, apart from what they open.
    pub(crate) fn seal_keys(&self) -> PathBuf {
        self.root.join(SEAL_KEYS)
    }

    /// Directory of Prometheus and for Grafana.
    pub(crate) fn observe(&self) -> PathBuf {
        self.root.join("observe")
    }

    /// Log of a process; the `/` in its name is a directory.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// Opens a log for appending.
    pub(crate) fn open_log(&self, process: &str) -> io::Result<fs::File> {
        let path = self.log(process);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
    }

    /// Removes what `up` put here, and the directory itself if nothing else is in it.
    ///
    /// Only names of the table above are touched: a state directory may be someone's home.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Ok(()) };
        // The members' start markers go first: one without its directory would keep the next `up` from founding anew.
        let is_marker = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().ends_with(MARKER_SUFFIX);
        let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| !is_marker(entry));
        for entry in entries {
            let name = entry.file_name();
            if !name.to_str().is_some_and(is_ours) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
            _ => Ok(()),
        }
    }
}

/// A unix socket by a path short enough for `sun_path` (108 bytes), however deep the directory is.
///
/// The path goes through a descriptor of the directory, which must stay open while it is used.
pub(crate) struct SocketPath {
    _dir: fs::File,
    path: PathBuf,
}

impl SocketPath {
    /// `dir/name`.
    pub(crate) fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let handle = fs::File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()));
        Ok(Self { _dir: handle, path })
    }

    /// What to bind or connect.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether `up` makes an entry of this name in a state directory.
fn is_ours(name: &str) -> bool {
    let name = name.strip_suffix(MARKER_SUFFIX).unwrap_or(name);
    let member = name.strip_prefix("member-").is_some_and(|id| id.parse::<u64>().is_ok());
    member || OURS.contains(&name)
}

/// Beside the directory of a member that was started.
const MARKER_SUFFIX: &str = archipelago_control_plane::MARKER_SUFFIX;
/// Members' seal keys, apart from the data that they open.
const SEAL_KEYS: &str = "seal-keys";
const RECORD: &str = "up.json";
/// The supervisor's socket.
pub(crate) const SOCKET: &str = "up.sock";
const OURS: [&str; 10] =
    [RECORD, SOCKET, "LOCK", "operator", "clusters", "run", "logs", "observe", SEAL_KEYS, "members"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_spares_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(&dir.path().join("state")).unwrap().create().unwrap();
        fs::create_dir_all(state.member(2).join("x")).unwrap();
        fs::write(state.root().join("thesis.txt"), "years of work").unwrap();
        fs::create_dir(state.root().join("member-of-the-club")).unwrap();
        fs::write(state.root().join("member-2.started"), "").unwrap();
        state.remove().unwrap();
        let mut left: Vec<_> = fs::read_dir(state.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["member-of-the-club", "thesis.txt"]);
    }

    #[test]
    fn removal_takes_the_directory_when_nothing_else_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(&dir.path().join("state")).unwrap().create().unwrap();
        state.remove().unwrap();
        assert!(!state.root().exists());
        state.remove().unwrap();
    }

    #[test]
    fn a_record_reads_back_and_a_mangled_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        assert_eq!(state.record().unwrap(), None);
        let record = Record {
            topology_file: "three-clusters.yaml".into(),
            topology: "kind: Topology\n".into(),
            host: crate::up::layout::HOST_DEFAULT,
            base_port: 7400,
            workers: 1,
            stage: Stage::Founded,
        };
        state.write_record(&record).unwrap();
        assert_eq!(state.record().unwrap(), Some(record));
        fs::write(dir.path().join(RECORD), "{\"topology\":").unwrap();
        assert!(state.record().unwrap_err().render().contains("up.json"));
    }

    #[test]
    fn a_deep_directory_still_has_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let socket = SocketPath::new(&deep, SOCKET).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(socket.path()).unwrap();
        assert!(deep.join(SOCKET).exists());
        std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
        drop(listener);
    }
}
