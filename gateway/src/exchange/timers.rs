//! Deadlines of one worker: thousands that mostly never come due.
//!
//! A timer of the runtime costs a lock and a place in a wheel each time it is set, and a request sets two. Here setting one
//! writes a number. One task looks over all of them when the earliest has passed, at most once per [`INTERVAL`]: with 8,000
//! connections about 30 µs each time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::Notify;

/// All timers of a worker.
#[derive(Debug, Default)]
pub struct Timers {
    entries: RefCell<Slab<Entry>>,
    /// When the task looks next; `None`: when it is told.
    next: Cell<Option<Instant>>,
    earlier: Notify,
}

#[derive(Debug)]
struct Entry {
    due: Option<Instant>,
    waker: Option<Waker>,
}

impl Timers {
    /// A timer that is not set.
    pub fn timer(self: &Rc<Self>) -> Timer {
        let key = self.entries.borrow_mut().insert(Entry { due: None, waker: None });
        Timer { timers: Rc::clone(self), key }
    }

    /// Wakes whoever waits for what has come due, for ever.
    pub async fn run(self: Rc<Self>) {
        loop {
            let earlier = self.earlier.notified();
            match self.next.get() {
                None => earlier.await,
                Some(next) => {
                    tokio::select! {
                        () = earlier => {}
                        () = tokio::time::sleep_until(next.into()) => self.sweep(Instant::now()),
                    }
                }
            }
        }
    }

    /// Wakes everybody who waits, whatever for: something else is to be looked at.
    pub fn wake_all(&self) {
        let woken: Vec<Waker> =
            self.entries.borrow_mut().iter_mut().filter_map(|(_, entry)| entry.waker.take()).collect();
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes what is due at `now`, and says when to look again.
    fn sweep(&self, now: Instant) {
        let mut earliest = None;
        let mut woken = Vec::new();
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            match entry.due {
                Some(due) if due <= now => woken.extend(entry.waker.take()),
                // Nobody waits for it: it is looked at when somebody does.
                Some(due) if entry.waker.is_some() => earliest = earlier(earliest, due),
                _ => {}
            }
        }
        self.next.set(earliest.map(|due| due.max(now + INTERVAL)));
        woken.into_iter().for_each(Waker::wake);
    }

    fn expect(&self, due: Instant) {
        if self.next.get().is_none_or(|next| due < next) {
            self.next.set(Some(due));
            self.earlier.notify_one();
        }
    }
}

fn earlier(known: Option<Instant>, due: Instant) -> Option<Instant> {
    Some(known.map_or(due, |known| known.min(due)))
}

/// A moment that somebody may wait for.
#[derive(Debug)]
pub struct Timer {
    timers: Rc<Timers>,
    key: usize,
}

impl Timer {
    /// Comes due at `due`, or never. Whoever waits must look again: nothing wakes him for a later moment.
    pub fn set(&self, due: Option<Instant>) {
        let waits = {
            let mut entries = self.timers.entries.borrow_mut();
            let Some(entry) = entries.get_mut(self.key) else { return };
            entry.due = due;
            entry.waker.is_some()
        };
        if let Some(due) = due.filter(|_| waits) {
            self.timers.expect(due);
        }
    }

    /// When it comes due.
    pub fn due(&self) -> Option<Instant> {
        self.timers.entries.borrow().get(self.key).and_then(|entry| entry.due)
    }

    /// Ready once it has come due. Looks at the clock only when it may have.
    pub fn poll_due(&self, cx: &mut Context<'_>) -> Poll<()> {
        let due = {
            let mut entries = self.timers.entries.borrow_mut();
            let Some(entry) = entries.get_mut(self.key) else { return Poll::Pending };
            let Some(due) = entry.due else {
                entry.waker = None;
                return Poll::Pending;
            };
            match &entry.waker {
                // Still to be woken: the sweep takes the waker of what came due.
                Some(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
                _ => {}
            }
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            entry.waker = Some(cx.waker().clone());
            due
        };
        self.timers.expect(due);
        Poll::Pending
    }

    /// Resolves once it has come due.
    pub async fn is_due(&self) {
        std::future::poll_fn(|cx| self.poll_due(cx)).await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.entries.borrow_mut().try_remove(self.key);
    }
}

/// So often at the most are all timers looked at; how late one may be.
const INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn is_ready(timer: &Timer) -> bool {
        timer.poll_due(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test(flavor = "local")]
    async fn whoever_waits_is_woken_when_it_is_due_and_not_before() {
        let timers = Rc::new(Timers::default());
        let task = tokio::task::spawn_local(Rc::clone(&timers).run());
        let (soon, late, never) = (timers.timer(), timers.timer(), timers.timer());
        late.set(Some(Instant::now() + Duration::from_secs(3600)));
        poll_fn(|cx| {
            assert!(late.poll_due(cx).is_pending() && never.poll_due(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let due = Instant::now() + Duration::from_millis(30);
        soon.set(Some(due));
        soon.is_due().await;
        assert!(Instant::now() >= due);
        assert!(!is_ready(&late) && !is_ready(&never));
        task.abort();
    }

    #[test]
    fn a_sweep_wakes_what_is_due_and_says_when_to_look_again() {
        let timers = Rc::new(Timers::default());
        let now = Instant::now();
        let (first, second, third) = (timers.timer(), timers.timer(), timers.timer());
        first.set(Some(now + Duration::from_millis(500)));
        second.set(Some(now + Duration::from_secs(5)));
        third.set(Some(now + Duration::from_secs(1)));
        assert!(!is_ready(&first) && !is_ready(&second));
        timers.sweep(now + Duration::from_millis(500));
        assert_eq!(timers.next.get(), Some(now + Duration::from_secs(5)), "nobody waits for the third");
        assert!(timers.entries.borrow()[first.key].waker.is_none(), "woken");
        // What nobody waits for costs nothing, and is right when it is asked.
        third.set(Some(now));
        assert!(is_ready(&third));
        drop((first, second, third));
        assert!(timers.entries.borrow().is_empty());
        timers.sweep(now);
        assert_eq!(timers.next.get(), None);
    }
}
