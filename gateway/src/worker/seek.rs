//! Waiting for somebody to serve a request, when nobody can.
//!
//! A gateway that was lost a moment ago is often back a moment later: a stalled processor looks like a death to whoever waits for
//! beats, and a gateway that is started again is away for a second. Failing a request at once would turn every such moment into
//! errors, so it waits for as long as there is hope ([`View::hope`](super::view::View::hope)), and is sent once, to whoever comes.

use std::cell::Cell;
use std::pin::pin;
use std::time::Instant;

use super::Worker;

impl Worker {
    /// Asks `choose` now and after every change of the view, until it finds something. It says until when to go on when it finds nothing;
    /// `None`: not at all.
    pub async fn seek<T>(&self, mut choose: impl FnMut() -> Result<T, Option<Instant>>) -> Option<T> {
        let mut place = None;
        loop {
            let mut changed = pin!(self.view_changed.notified());
            changed.as_mut().enable();
            let until = match choose() {
                Ok(found) => return Some(found),
                Err(until) => until.filter(|until| *until > Instant::now())?,
            };
            if place.is_none() {
                place = Some(Place::take(&self.seeking, self.limits.requests_max / SEEKING_PART)?);
            }
            let timer = self.timers.timer();
            timer.set(Some(until));
            tokio::select! {
                () = changed => {}
                () = timer.is_due() => {}
            }
        }
    }
}

/// One of those that wait, until dropped.
struct Place<'a>(&'a Cell<usize>);

impl<'a> Place<'a> {
    fn take(seeking: &'a Cell<usize>, max: usize) -> Option<Self> {
        (seeking.get() < max).then(|| {
            seeking.set(seeking.get() + 1);
            Self(seeking)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Those who wait for one cluster must not take all places of those who ask for another.
const SEEKING_PART: usize = 4;
