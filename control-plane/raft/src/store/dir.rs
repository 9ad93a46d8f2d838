//! The data directory: whose it is, whether it is whole, and whether it may be used.
//!
//! ```text
//! IDENT         whose directory this is; written last at the first start
//! INITIALISING  there while the first start makes the files below; what it left half-done may be redone
//! TAINTED       an fsync failed; the directory is never used again
//! LOCK          held by the running process
//! log.redb  state.redb
//! ```
//!
//! A marker outside of the directory remembers that the node was started, because a directory that is lost cannot.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use archipelago_base::durable::{self, DirLock};
use raft_proto::eraftpb::{ConfState, HardState};
use redb::backends::FileBackend;

use super::{Checkpoint, LogStore, RedbLog, RedbState, Room, StateStore, StoreError, Watched};

/// An open data directory.
pub(crate) struct DataDir {
    pub(crate) log: RedbLog,
    pub(crate) state: Arc<RedbState>,
    pub(crate) guard: Guard,
    pub(crate) room: Arc<Room>,
}

/// Whose directory it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ident {
    pub(crate) federation_id: String,
    pub(crate) node_id: u64,
}

/// The right to use the directory, and the duty to mark it when its disk fails.
pub(crate) struct Guard {
    dir: PathBuf,
    sync_failed: Vec<Arc<AtomicBool>>,
    _lock: DirLock,
}

impl DataDir {
    /// Opens the directory of `ident`, or makes it if it is empty or absent.
    ///
    /// `genesis` is what a founder's first checkpoint holds; none for a node that joins, which starts from nothing.
    ///
    /// # Errors
    /// [`StoreError`] names the file and what to do. Existing files are never replaced.
    pub(crate) fn open(
        dir: &Path,
        marker: Option<&Path>,
        ident: &Ident,
        genesis: Option<(ConfState, Vec<u8>)>,
    ) -> Result<Self, StoreError> {
        let lock = DirLock::acquire(dir)?;
        refuse_tainted(dir)?;
        let begun = exists(&dir.join(INITIALISING))?;
        if exists(&dir.join(IDENT))? {
            check_ident(&dir.join(IDENT), ident)?;
            if begun {
                // The crash came after the last step.
                remove(&dir.join(INITIALISING))?;
            }
        } else {
            marker.map_or(Ok(()), |marker| refuse_lost(dir, marker))?;
            if begun {
                // The first start did not get to its end, so this node has never spoken. Its files are nothing yet.
                [LOG, STATE].iter().try_for_each(|name| remove(&dir.join(name)))?;
            }
            refuse_occupied(dir)?;
            write(&dir.join(INITIALISING), b"the first start has not finished\n")?;
            initialise(dir, genesis)?;
            write(&dir.join(IDENT), encode_ident(ident).as_bytes())?;
            remove(&dir.join(INITIALISING))?;
        }
        if let Some(marker) = marker {
            // After the directory is whole and before the node speaks: a crash between the two leaves no lie.
            if exists(marker)? {
                check_ident(marker, ident)?;
            } else {
                durable::write(marker, encode_ident(ident).as_bytes(), 0o600)
                    .map_err(|source| StoreError::io(marker, "write the marker of a started member", source))?;
            }
        }
        let room = Arc::default();
        let (log, log_failed) = open_file(&dir.join(LOG), false, &room, RedbLog::open)?;
        let (state, state_failed) = open_file(&dir.join(STATE), false, &room, RedbState::open)?;
        let guard = Guard { dir: dir.to_owned(), sync_failed: vec![log_failed, state_failed], _lock: lock };
        Ok(Self { log, state: Arc::new(state), guard, room })
    }
}

impl Guard {
    /// Marks the directory as unusable if an fsync failed. Returns whether it did.
    pub(crate) fn taint_if_sync_failed(&self, why: &StoreError) -> bool {
        let failed = self.sync_failed.iter().any(|failed| failed.load(Ordering::Acquire));
        if failed {
            // The disk has just failed, so this may fail too; then the file system is likely read-only by now.
            if let Err(error) = write(&self.dir.join(TAINTED), format!("{why}\n").as_bytes()) {
                tracing::error!(%error, "cannot mark the data directory as tainted");
            }
        }
        failed
    }
}

#[cfg(test)]
impl Guard {
    pub(crate) fn pretend_sync_failed(&self) {
        self.sync_failed.iter().for_each(|failed| failed.store(true, Ordering::Release));
    }
}

fn initialise(dir: &Path, genesis: Option<(ConfState, Vec<u8>)>) -> Result<(), StoreError> {
    let room = Arc::default();
    let (mut log, _) = open_file(&dir.join(LOG), true, &room, RedbLog::open)?;
    let (state, _) = open_file(&dir.join(STATE), true, &room, RedbState::open)?;
    let checkpoint = Checkpoint::genesis(genesis);
    let position = checkpoint.position;
    let hard_state = HardState { term: position.term, vote: raft::INVALID_ID, commit: position.log_index };
    log.reset(position, &hard_state)?;
    state.save(&checkpoint)
}

/// Opens one database file; `new` says whether it must not, or must, exist already.
fn open_file<T>(
    path: &Path,
    new: bool,
    room: &Arc<Room>,
    open: impl FnOnce(PathBuf, Watched<FileBackend>) -> Result<T, StoreError>,
) -> Result<(T, Arc<AtomicBool>), StoreError> {
    if !new && !exists(path)? {
        return Err(StoreError::Missing { path: path.to_owned() });
    }
    let failed = |source| StoreError::io(path, "open", source);
    let file = OpenOptions::new().read(true).write(true).create_new(new).open(path).map_err(failed)?;
    // redb would take an empty file for a new database.
    if !new && file.metadata().map_err(failed)?.len() == 0 {
        return Err(StoreError::Corrupt { path: path.to_owned(), what: "the file is empty".into() });
    }
    if new {
        let dir = path.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| StoreError::io(dir, "sync", source))?;
    }
    let backend = FileBackend::new(file).map_err(|error| StoreError::redb(path, "open", error))?;
    let backend = Watched::new(backend, path, Arc::clone(room));
    let sync_failed = backend.sync_failed();
    Ok((open(path.to_owned(), backend)?, sync_failed))
}

fn refuse_tainted(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(TAINTED);
    if !exists(&path)? {
        return Ok(());
    }
    let why = fs::read_to_string(&path).map_err(|source| StoreError::io(&path, "read", source))?;
    Err(StoreError::Tainted { path, why: why.trim().to_owned() })
}

/// A directory without IDENT must be empty: anything in it is somebody else's, or what is left of a node.
fn refuse_occupied(dir: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::io(dir, "read", source);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let ours = [LOCK, INITIALISING].map(OsString::from).contains(&name);
        // Left-overs of an interrupted durable write.
        let temporary = name.to_string_lossy().starts_with('.');
        if !ours && !temporary {
            return Err(if [LOG, STATE].map(OsString::from).contains(&name) {
                StoreError::Missing { path: dir.join(IDENT) }
            } else {
                StoreError::Foreign {
                    path: dir.join(name),
                    found: "something else".into(),
                    expected: "a Raft node, which needs an empty directory".into(),
                }
            });
        }
    }
    Ok(())
}

fn encode_ident(ident: &Ident) -> String {
    // Debug form: one line whatever the id contains.
    let body = format!("{MAGIC}\nfederation {:?}\nnode {}\n", ident.federation_id, ident.node_id);
    let checksum = crc32fast::hash(body.as_bytes());
    format!("{body}crc32 {checksum:08x}\n")
}

/// Refuses a start from nothing of a node that was started before, as `marker` remembers.
///
/// # Errors
/// [`StoreError::Lost`], if the marker is there. Any other: it cannot be read.
pub fn refuse_lost(dir: &Path, marker: &Path) -> Result<(), StoreError> {
    if !exists(marker)? {
        return Ok(());
    }
    let body = read_ident(marker)?;
    let found = match body.lines().collect::<Vec<_>>()[..] {
        [_, federation, node] => format!("{node} of {federation}"),
        _ => return Err(StoreError::Corrupt { path: marker.to_owned(), what: "unknown layout".into() }),
    };
    Err(StoreError::Lost { path: dir.to_owned(), marker: marker.to_owned(), found })
}

/// Forgets that a node was started here, if it was one of this group and belongs to it no longer: whoever is in its place has another
/// id and has promised nothing. Returns the id that was forgotten.
///
/// # Errors
/// The marker cannot be read or removed.
pub fn forget_replaced(marker: &Path, federation_id: &str, members: &[u64]) -> Result<Option<u64>, StoreError> {
    if !exists(marker)? {
        return Ok(None);
    }
    let body = read_ident(marker)?;
    let lines: Vec<&str> = body.lines().collect();
    let [magic, federation, node] = lines[..] else { return Ok(None) };
    let Some(node) = node.strip_prefix("node ").and_then(|node| node.parse::<u64>().ok()) else { return Ok(None) };
    if magic != MAGIC || federation != format!("federation {federation_id:?}") || members.contains(&node) {
        return Ok(None);
    }
    remove(marker)?;
    Ok(Some(node))
}

/// What precedes the checksum in an IDENT file.
fn read_ident(path: &Path) -> Result<String, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt { path: path.to_owned(), what: what.into() };
    let bytes = fs::read(path).map_err(|source| StoreError::io(path, "read", source))?;
    let mut text = String::from_utf8(bytes).map_err(|_| corrupt("not text"))?;
    let (body, checksum) = text.rsplit_once("crc32 ").ok_or_else(|| corrupt("cut short"))?;
    if checksum != format!("{:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err(corrupt("checksum mismatch"));
    }
    text.truncate(body.len());
    Ok(text)
}

fn check_ident(path: &Path, expected: &Ident) -> Result<(), StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt { path: path.to_owned(), what: what.into() };
    let body = read_ident(path)?;
    if encode_ident(expected).starts_with(&body) {
        return Ok(());
    }
    let foreign = |found: String, expected: String| StoreError::Foreign { path: path.to_owned(), found, expected };
    let lines: Vec<&str> = body.lines().collect();
    let [magic, federation, node] = lines[..] else { return Err(corrupt("unknown layout")) };
    if magic != MAGIC {
        return Err(foreign(format!("format {magic:?}"), format!("format {MAGIC:?}")));
    }
    Err(foreign(
        format!("{} of {federation}", node),
        format!("node {} of federation {:?}", expected.node_id, expected.federation_id),
    ))
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|source| StoreError::io(path, "look for", source))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    durable::write(path, bytes, 0o600).map_err(|source| StoreError::io(path, "write", source))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(path, "remove", error)),
        _ => Ok(()),
    }
}

const MAGIC: &str = "archipelago-raft 2";
pub(super) const IDENT: &str = "IDENT";
const INITIALISING: &str = "INITIALISING";
pub(super) const TAINTED: &str = "TAINTED";
const LOCK: &str = "LOCK";
pub(super) const LOG: &str = "log.redb";
pub(super) const STATE: &str = "state.redb";
