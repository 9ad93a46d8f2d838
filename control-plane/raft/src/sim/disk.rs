//! A disk in memory under redb: what was written but not synced is gone, or half there, after a crash.

use std::{
    io,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::{BackendError, StorageBackend};

use super::Rng;

/// One file that outlives the process that writes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// What the process sees.
    view: Vec<u8>,
    /// What survives for certain.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    /// Counts crashes: a handle from before one can do nothing any more.
    boots: u64,
    /// Operations until the power fails.
    power: Option<u64>,
    /// The planted bug: syncs return at once and do nothing.
    lies: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl SimDisk {
    /// A handle for the process that is starting now.
    pub(crate) fn open(&self) -> SimFile {
        let boot = self.lock().boots;
        SimFile { platter: Arc::clone(&self.0), boot }
    }

    /// Lets the power fail after so many more operations.
    pub(crate) fn cut_power_after(&self, operations: u64) {
        self.lock().power = Some(operations);
    }

    pub(crate) fn lie(&self) {
        self.lock().lies = true;
    }

    /// The process is gone. Of what it had not synced, any part may have reached the disk, in any order, and a write
    /// may be torn between two sectors.
    pub(crate) fn crash(&self, rng: &mut Rng) {
        let mut platter = self.lock();
        let unsynced = std::mem::take(&mut platter.unsynced);
        let fate = rng.range(0..3);
        for change in unsynced {
            let kept = match (fate, change) {
                (0, _) => continue,
                (1, change) => change,
                (_, _) if rng.chance(50) => continue,
                (_, Change::Write { offset, mut bytes }) if rng.chance(20) => {
                    let sectors = bytes.len() / SECTOR_BYTES;
                    bytes.truncate(SECTOR_BYTES * usize::try_from(rng.range(0..sectors as u64 + 1)).unwrap());
                    Change::Write { offset, bytes }
                }
                (_, change) => change,
            };
            apply(&mut platter.durable, &kept);
        }
        platter.view = platter.durable.clone();
        platter.boots += 1;
        platter.power = None;
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::SetLen(len) => bytes.resize(*len, 0),
        Change::Write { offset, bytes: written } => {
            if bytes.len() < offset + written.len() {
                bytes.resize(offset + written.len(), 0);
            }
            bytes[*offset..offset + written.len()].copy_from_slice(written);
        }
    }
}

/// One process's handle to a [`SimDisk`].
#[derive(Debug)]
pub(crate) struct SimFile {
    platter: Arc<Mutex<Platter>>,
    boot: u64,
}

impl SimFile {
    fn operate<T>(&self, operation: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        let mut platter = self.platter.lock().unwrap();
        let dead = platter.boots != self.boot || platter.power == Some(0);
        if dead {
            return Err(io::Error::other("the power is gone"));
        }
        platter.power = platter.power.map(|left| left - 1);
        operation(&mut platter)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.operate(|platter| {
            apply(&mut platter.view, &change);
            platter.unsynced.push(change);
            Ok(())
        })
    }
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.operate(|platter| Ok(platter.view.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.operate(|platter| {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = platter.view.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|platter| {
            if !platter.lies {
                for change in std::mem::take(&mut platter.unsynced) {
                    apply(&mut platter.durable, &change);
                }
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write { offset: usize::try_from(offset).map_err(io::Error::other)?, bytes: data.to_vec() })
    }

    // Nobody else has the file.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}

const SECTOR_BYTES: usize = 512;

#[test]
fn only_what_was_synced_is_sure_to_survive() {
    let disk = SimDisk::default();
    let file = disk.open();
    file.write(0, b"kept").unwrap();
    file.sync_data().unwrap();
    file.write(0, b"lost").unwrap();
    let mut lost = 0;
    for seed in 0..20 {
        let (durable, unsynced) = {
            let platter = disk.lock();
            (platter.durable.clone(), platter.unsynced.clone())
        };
        let copy = SimDisk(Arc::new(Mutex::new(Platter { durable, unsynced, ..Platter::default() })));
        copy.crash(&mut Rng::new(seed));
        let mut bytes = [0; 4];
        copy.open().read(0, &mut bytes).unwrap();
        assert!(&bytes == b"kept" || &bytes == b"lost");
        lost += u32::from(&bytes == b"kept");
    }
    assert!(lost > 0 && lost < 20);
    disk.crash(&mut Rng::new(0));
    assert!(file.write(0, b"late").is_err(), "a handle from before the crash is dead");
}
