//! What is open on a client's connection of HTTP/2: whether it is idle, and whether what we hold of its bodies keeps it from sending.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// One connection.
#[derive(Debug)]
pub struct Open {
    streams: Cell<usize>,
    /// Since when there is none.
    idle_since: Cell<Instant>,
    /// Bodies of which a piece waits for whoever is to take it.
    held: Cell<usize>,
    /// With so many of those the window that all bodies share may be used up.
    held_max: usize,
    /// When there were as many last.
    choked: Cell<Option<Instant>>,
}

/// One of its streams, held by all that belongs to it.
#[derive(Debug)]
pub struct OpenStream {
    open: Rc<Open>,
    holds: Cell<bool>,
}

impl Open {
    /// Of a connection that begins now, on which `held_max` bodies that nobody takes may keep others from coming.
    pub fn new(held_max: usize, now: Instant) -> Rc<Self> {
        let (streams, held) = (Cell::new(0), Cell::new(0));
        Rc::new(Self { streams, idle_since: Cell::new(now), held, held_max, choked: Cell::new(None) })
    }

    /// One more.
    pub fn stream(self: &Rc<Self>) -> OpenStream {
        self.streams.set(self.streams.get() + 1);
        OpenStream { open: Rc::clone(self), holds: Cell::new(false) }
    }

    /// Since when there is none.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }

    fn is_choked(&self) -> bool {
        self.held.get() >= self.held_max
    }
}

impl OpenStream {
    /// Another part of the same stream.
    pub fn part(&self) -> Self {
        self.open.stream()
    }

    /// A piece of its body waits to be taken, or no more.
    pub fn hold(&self, holds: bool) {
        match (self.holds.replace(holds), holds) {
            (false, true) => self.open.held.set(self.open.held.get() + 1),
            (true, false) => {
                if self.open.is_choked() {
                    self.open.choked.set(Some(Instant::now()));
                }
                self.open.held.set(self.open.held.get().saturating_sub(1));
            }
            _ => {}
        }
    }

    /// Until when its client may not have been able to send, because of what is held of other bodies; `None`: that never was.
    pub fn choked_until(&self, now: Instant) -> Option<Instant> {
        if self.open.is_choked() { Some(now) } else { self.open.choked.get() }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.hold(false);
        let streams = self.open.streams.get().saturating_sub(1);
        self.open.streams.set(streams);
        if streams == 0 {
            self.open.idle_since.set(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_once_nothing_belongs_to_any_stream() {
        let began = Instant::now();
        let open = Open::new(2, began);
        assert_eq!(open.idle_since(), Some(began));
        let response = open.stream();
        let request = response.part();
        drop(response);
        assert_eq!(open.idle_since(), None);
        drop(request);
        assert!(open.idle_since().is_some_and(|since| since > began));
    }

    #[test]
    fn bodies_that_nobody_takes_excuse_others() {
        let now = Instant::now();
        let open = Open::new(2, now);
        let (first, second, third) = (open.stream(), open.stream(), open.stream());
        first.hold(true);
        first.hold(true);
        assert_eq!(third.choked_until(now), None, "one, however often it is said");
        second.hold(true);
        assert_eq!(third.choked_until(now), Some(now), "they fill the window");
        drop(second);
        assert!(third.choked_until(now).is_some_and(|until| until >= now && until <= Instant::now()));
        first.hold(false);
        assert_eq!(open.held.get(), 0);
    }
}
