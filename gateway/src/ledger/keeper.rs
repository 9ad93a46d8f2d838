//! What one worker keeps of one service's requests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use archipelago_proto::v1::{SlowMinute, SlowRequest};

use super::minutes::{Minutes, Room};
use super::report;

/// The requests of one service that a worker keeps.
#[derive(Debug)]
pub struct Keeper {
    minutes: RefCell<Minutes<Box<SlowRequest>>>,
    room: Rc<Shelf>,
}

/// Room for the entries of all services of a worker.
#[derive(Debug, Default)]
pub struct Shelf(Cell<usize>);

impl Room for Shelf {
    fn take(&self, own: usize) -> bool {
        let taken = self.0.get();
        let has_room = taken < ENTRIES_MAX || own < ENTRIES_ALWAYS;
        self.0.set(taken + usize::from(has_room));
        has_room
    }

    fn give(&self, count: usize) {
        self.0.set(self.0.get().saturating_sub(count));
    }
}

impl Keeper {
    /// Nothing is kept yet.
    pub fn new(room: &Rc<Shelf>, now: Instant) -> Rc<Self> {
        Rc::new(Self { minutes: RefCell::new(Minutes::new(now)), room: Rc::clone(room) })
    }

    /// Counts a request; true if it is to be [kept](Self::keep).
    #[inline]
    pub fn wants(&self, total: u32, now: Instant) -> bool {
        self.minutes.borrow_mut().wants(total, now, &*self.room)
    }

    /// Keeps the one that was counted last.
    pub fn keep(&self, total: u32, now: Instant, request: SlowRequest, random: impl FnMut() -> u64) {
        self.minutes.borrow_mut().keep(total, now, Box::new(request), &*self.room, random);
    }

    /// Forgets what is too old.
    pub fn expire(&self, now: Instant) {
        self.minutes.borrow_mut().expire(now, &*self.room);
    }

    /// What is kept of the last `since`.
    pub fn report(&self, service: &str, worker: usize, since: Duration, now: Instant) -> Vec<SlowMinute> {
        let minutes = self.minutes.borrow();
        minutes.since(now, since).map(|minute| report::minute(minute, service, worker, now)).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.room.give(self.minutes.get_mut().len());
    }
}

/// At some 600 bytes each 5 MB per worker: ten busy services for a quarter of an hour, or 315 for a minute.
const ENTRIES_MAX: usize = 8_192;
/// What each service may have whatever the others have.
const ENTRIES_ALWAYS: usize = 8;
