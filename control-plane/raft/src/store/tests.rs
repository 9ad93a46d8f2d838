//! The stores on real files and on backends that fail.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, Entry, HardState};
use redb::{StorageBackend, backends::InMemoryBackend};

use super::{dir, *};
use crate::{core::Write, digest::Digest};

fn ident() -> Ident {
    Ident { federation_id: "demo".into(), node_id: 1 }
}

fn genesis() -> Option<(ConfState, Vec<u8>)> {
    Some((ConfState::from((vec![1, 2, 3], vec![])), b"start".to_vec()))
}

fn open(dir: &Path) -> Result<DataDir, StoreError> {
    DataDir::open(dir, None, &ident(), genesis())
}

/// The error of an attempt that must fail, and its words.
fn refused(result: Result<DataDir, StoreError>) -> (StoreError, String) {
    let Err(error) = result else { panic!("opened") };
    let words = error.to_string();
    (error, words)
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: format!("entry {index}").into(), ..Entry::default() }
}

fn append(entries: &[(u64, u64)], hard_state: Option<(u64, u64)>) -> Write {
    Write {
        entries: entries.iter().map(|&(index, term)| entry(index, term)).collect(),
        hard_state: hard_state.map(|(term, commit)| HardState { term, vote: 2, commit }),
        ..Write::default()
    }
}

#[test]
fn what_was_appended_is_there_after_a_reopen() {
    let temp = tempfile::tempdir().unwrap();
    {
        let mut data = open(temp.path()).unwrap();
        data.log.append(&[append(&[(2, 1), (3, 1), (4, 1)], Some((1, 2)))]).unwrap();
        // A later leader replaces the end; two writes of one group, in order.
        data.log.append(&[append(&[(3, 2)], Some((2, 2))), append(&[(4, 2), (5, 2)], None)]).unwrap();
    }
    let mut data = open(temp.path()).unwrap();
    let (recovered, state) = recover(&mut data.log, data.state.as_ref()).unwrap();
    assert_eq!(recovered.hard_state, HardState { term: 2, vote: 2, commit: 2 });
    assert_eq!(recovered.entries, [entry(2, 1), entry(3, 2), entry(4, 2), entry(5, 2)]);
    assert_eq!((recovered.applied, recovered.truncated), (GENESIS, GENESIS));
    assert_eq!(recovered.conf_state.voters, [1, 2, 3]);
    assert_eq!(state, Checkpoint::genesis(genesis()));
}

#[test]
fn compaction_moves_the_start_and_keeps_its_term() {
    let temp = tempfile::tempdir().unwrap();
    let mut data = open(temp.path()).unwrap();
    data.log.append(&[append(&[(2, 1), (3, 1), (4, 2)], Some((2, 4)))]).unwrap();
    let truncated = Position { log_index: 3, term: 1 };
    data.log.append(&[Write { truncated: Some(truncated), ..Write::default() }]).unwrap();
    let contents = data.log.load().unwrap();
    assert_eq!((contents.truncated, contents.entries), (truncated, vec![entry(4, 2)]));
    // The checkpoint still says 1, so the log no longer reaches back to it.
    let error = recover(&mut data.log, data.state.as_ref()).unwrap_err();
    assert!(matches!(error, StoreError::Inconsistent { .. }), "{error}");
}

#[test]
fn an_install_that_a_crash_cut_in_half_is_finished() {
    let temp = tempfile::tempdir().unwrap();
    let mut data = open(temp.path()).unwrap();
    data.log.append(&[append(&[(2, 1), (3, 1)], Some((1, 2)))]).unwrap();
    let checkpoint = Checkpoint {
        position: Position { log_index: 40, term: 6 },
        conf_state: ConfState::from((vec![1, 2], vec![])),
        installed: true,
        digests: Vec::new(),
        data: Bytes::from_static(b"from the leader"),
    };
    data.state.save(&checkpoint).unwrap();
    let (recovered, state) = recover(&mut data.log, data.state.as_ref()).unwrap();
    assert_eq!((recovered.applied, recovered.truncated), (checkpoint.position, checkpoint.position));
    assert_eq!(recovered.hard_state, HardState { term: 6, vote: 0, commit: 40 });
    assert_eq!(state, checkpoint);
    assert_eq!(data.log.load().unwrap().truncated, checkpoint.position, "on disk too");

    // The same distance without the mark of an install means that the log lost its end.
    data.state
        .save(&Checkpoint { position: Position { log_index: 50, term: 6 }, installed: false, ..checkpoint })
        .unwrap();
    let error = recover(&mut data.log, data.state.as_ref()).unwrap_err().to_string();
    assert!(error.contains("lost durable writes"), "{error}");
}

#[test]
fn an_older_checkpoint_never_replaces_a_newer_one() {
    let temp = tempfile::tempdir().unwrap();
    let data = open(temp.path()).unwrap();
    let at = |log_index| Checkpoint {
        position: Position { log_index, term: 2 },
        conf_state: ConfState::default(),
        installed: false,
        digests: vec![StateDigest { log_index, digest: Digest([7; 32]) }],
        data: Bytes::from(format!("state {log_index}")),
    };
    data.state.save(&at(9)).unwrap();
    data.state.save(&at(8)).unwrap();
    assert_eq!(data.state.load().unwrap(), Some(at(9)));
}

#[test]
fn an_own_checkpoint_does_not_hide_that_the_leader_sent_the_same_one() {
    let temp = tempfile::tempdir().unwrap();
    let mut data = open(temp.path()).unwrap();
    data.log.append(&[append(&[(2, 1)], Some((1, 1)))]).unwrap();
    let own = Checkpoint { position: Position { log_index: 40, term: 6 }, ..Checkpoint::default() };
    data.state.save(&Checkpoint { installed: true, ..own.clone() }).unwrap();
    // The node applied it and checkpoints it by itself; the power fails before the log is reset.
    data.state.save(&own).unwrap();
    let (recovered, _) = recover(&mut data.log, data.state.as_ref()).unwrap();
    assert_eq!((recovered.applied, recovered.truncated), (own.position, own.position));
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()).unwrap());
    let other = Ident { federation_id: "other".into(), node_id: 2 };
    let (error, words) = refused(DataDir::open(temp.path(), None, &other, genesis()));
    assert!(matches!(error, StoreError::Foreign { .. }));
    assert!(words.contains("IDENT: belongs to node 1 of federation \"demo\"") && words.contains("node 2"), "{words}");

    let occupied = tempfile::tempdir().unwrap();
    fs::write(occupied.path().join("letters.txt"), "mine").unwrap();
    let (_, words) = refused(open(occupied.path()));
    assert!(words.contains("letters.txt"), "{words}");
    assert_eq!(fs::read_to_string(occupied.path().join("letters.txt")).unwrap(), "mine");
}

#[test]
fn missing_truncated_and_damaged_files_are_refused_by_name() {
    type Harm = dyn Fn(&Path);
    let damage: [(&str, &Harm); 7] = [
        (dir::LOG, &|path| fs::remove_file(path).unwrap()),
        (dir::STATE, &|path| fs::remove_file(path).unwrap()),
        (dir::IDENT, &|path| fs::remove_file(path).unwrap()),
        (dir::LOG, &|path| fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap()),
        (dir::LOG, &|path| fs::File::options().write(true).open(path).unwrap().set_len(5000).unwrap()),
        (dir::STATE, &|path| fs::write(path, "not a database, but long enough to be one".repeat(1000)).unwrap()),
        (dir::IDENT, &|path| fs::write(path, "archipelago-raft 1\n").unwrap()),
    ];
    for (number, (name, harm)) in damage.into_iter().enumerate() {
        let temp = tempfile::tempdir().unwrap();
        {
            let mut data = open(temp.path()).unwrap();
            data.log.append(&[append(&[(2, 1)], Some((1, 1)))]).unwrap();
        }
        harm(&temp.path().join(name));
        let before: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let (_, words) = refused(open(temp.path()));
        assert!(words.contains(name) && words.contains("hint"), "case {number}: {words}");
        let after: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(before, after, "case {number}: nothing is made anew");
    }
}

#[test]
fn a_first_start_that_was_cut_short_begins_again() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("INITIALISING"), "").unwrap();
    fs::write(temp.path().join(dir::LOG), "half").unwrap();
    drop(open(temp.path()).unwrap());
    assert!(!temp.path().join("INITIALISING").exists() && temp.path().join(dir::IDENT).exists());
}

#[test]
fn a_directory_that_was_lost_is_not_begun_anew() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, marker) = (temp.path().join("raft"), temp.path().join("raft.started"));
    let open = || DataDir::open(&dir, Some(&marker), &ident(), genesis());
    drop(open().unwrap());
    assert!(marker.exists());
    drop(open().unwrap());
    for wiped in [&*dir, &dir.join(dir::IDENT)] {
        // Emptied, gone, and with a first start that seems to have been cut short.
        if wiped.is_dir() {
            fs::remove_dir_all(wiped).unwrap();
        }
        for begun in [false, true] {
            fs::create_dir_all(&dir).unwrap();
            if begun {
                fs::write(dir.join("INITIALISING"), "").unwrap();
            }
            let (error, words) = refused(open());
            assert!(matches!(error, StoreError::Lost { .. }), "{words}");
            assert!(words.contains("node 1 of federation \"demo\"") && words.contains("raft.started"), "{words}");
            assert!(!dir.join(dir::LOG).exists());
        }
    }
    // A federation founded anew in its place.
    let other = Ident { federation_id: "other".into(), node_id: 1 };
    let (error, _) = refused(DataDir::open(&dir, Some(&marker), &other, genesis()));
    assert!(matches!(error, StoreError::Lost { .. }));
    fs::remove_file(&marker).unwrap();
    drop(open().unwrap());
    // An older version left no marker: the next start does.
    fs::remove_file(&marker).unwrap();
    drop(open().unwrap());
    let (error, _) = refused(DataDir::open(&dir, Some(&marker), &other, genesis()));
    assert!(matches!(error, StoreError::Foreign { .. }) && marker.exists());
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let temp = tempfile::tempdir().unwrap();
    let _first = open(temp.path()).unwrap();
    let (error, _) = refused(open(temp.path()));
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("file"), "").unwrap();
    let (_, words) = refused(open(&temp.path().join("file/data")));
    assert!(words.contains("file/data"), "{words}");
}

/// A disk that fails in one way once told to.
#[derive(Debug)]
struct Failing {
    inner: InMemoryBackend,
    failing: Arc<AtomicBool>,
    kind: io::ErrorKind,
    on_sync: bool,
}

impl Failing {
    fn result(&self, sync: bool) -> io::Result<()> {
        let fails = self.failing.load(Ordering::Relaxed) && sync == self.on_sync;
        if fails { Err(io::Error::new(self.kind, "planted")) } else { Ok(()) }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.result(true)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.result(false)?;
        self.inner.write(offset, data)
    }
    fn try_lock_range(&self, _: std::ops::Bound<u64>, _: std::ops::Bound<u64>) -> Result<bool, redb::BackendError> {
        Ok(true)
    }
    fn unlock_range(&self, _: std::ops::Bound<u64>, _: std::ops::Bound<u64>) -> Result<(), redb::BackendError> {
        Ok(())
    }
    fn query_lock_range(&self, _: std::ops::Bound<u64>, _: std::ops::Bound<u64>) -> Result<bool, redb::BackendError> {
        Ok(false)
    }
}

fn fail_an_append(kind: io::ErrorKind, on_sync: bool) -> (StoreError, bool) {
    let failing = Arc::new(AtomicBool::new(false));
    let backend = Failing { inner: InMemoryBackend::new(), failing: Arc::clone(&failing), kind, on_sync };
    let backend = Watched::new(backend, "log.redb".as_ref(), Arc::default());
    let sync_failed = backend.sync_failed();
    let mut log = RedbLog::open("log.redb".into(), backend).unwrap();
    log.append(&[append(&[(1, 1)], Some((1, 0)))]).unwrap();
    failing.store(true, Ordering::Relaxed);
    let error = log.append(&[append(&[(2, 1)], None)]).unwrap_err();
    (error, sync_failed.load(Ordering::Relaxed))
}

#[test]
fn a_full_disk_is_told_from_a_failed_fsync() {
    let (error, sync_failed) = fail_an_append(io::ErrorKind::StorageFull, false);
    assert!(matches!(error, StoreError::DiskFull { .. }) && !sync_failed, "{error}");
    let (error, sync_failed) = fail_an_append(io::ErrorKind::Other, true);
    assert!(matches!(error, StoreError::Io { .. }) && sync_failed, "{error}");
}

#[test]
fn a_write_waits_for_room_and_is_then_made() {
    let failing = Arc::new(AtomicBool::new(false));
    let room = Arc::new(Room::default());
    let backend = Failing {
        inner: InMemoryBackend::new(),
        failing: Arc::clone(&failing),
        kind: io::ErrorKind::StorageFull,
        on_sync: false,
    };
    let backend = Watched::new(backend, "log.redb".as_ref(), Arc::clone(&room));
    let mut log = RedbLog::open("log.redb".into(), backend).unwrap();
    log.append(&[append(&[(1, 1)], Some((1, 0)))]).unwrap();
    room.wait();
    failing.store(true, Ordering::Relaxed);
    let until = |full: bool| {
        while room.full().is_some() != full {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| log.append(&[append(&[(2, 1)], None)]).map(drop));
        until(true);
        assert_eq!(room.full().unwrap(), Path::new("log.redb"));
        assert!(!writing.is_finished());
        failing.store(false, Ordering::Relaxed);
        writing.join().unwrap().unwrap();
        until(false);
    });
    assert_eq!(log.load().unwrap().entries, [entry(1, 1), entry(2, 1)]);
    // A node that stops waits no longer.
    failing.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| log.append(&[append(&[(3, 1)], None)]).map(drop));
        until(true);
        room.fail();
        assert!(matches!(writing.join().unwrap(), Err(StoreError::DiskFull { .. })));
    });
    assert_eq!(room.full(), None);
}

#[test]
fn a_directory_whose_fsync_failed_is_never_used_again() {
    let temp = tempfile::tempdir().unwrap();
    let data = open(temp.path()).unwrap();
    let why = StoreError::io(Path::new("log.redb"), "sync", io::Error::other("planted"));
    assert!(!data.guard.taint_if_sync_failed(&why), "no fsync failed yet");
    data.guard.pretend_sync_failed();
    assert!(data.guard.taint_if_sync_failed(&why));
    drop(data);
    let (error, words) = refused(open(temp.path()));
    assert!(matches!(error, StoreError::Tainted { .. }) && words.contains("planted"), "{words}");
}
