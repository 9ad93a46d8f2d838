//! What a worker says to the journal: never while a request waits for it, and a few services at a time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::Worker;
use crate::config::Snapshot;

/// What is to be said yet.
#[derive(Debug, Default)]
pub struct Statements {
    /// Services by index.
    dirty: RefCell<BTreeSet<usize>>,
    /// Keys of services of which endpoints sit out, as was said.
    outs: RefCell<BTreeSet<Arc<str>>>,
    wake: Notify,
}

impl Statements {
    /// Something of these services may be otherwise.
    pub fn mark(&self, services: impl IntoIterator<Item = usize>) {
        let mut dirty = self.dirty.borrow_mut();
        dirty.extend(services);
        if !dirty.is_empty() {
            self.wake.notify_one();
        }
    }

    /// The same of all.
    pub fn mark_all(&self, snapshot: &Snapshot) {
        self.mark(snapshot.services().map(|(index, _)| index));
    }
}

/// Says what is to be said, for ever.
pub(super) async fn say(worker: Rc<Worker>) {
    loop {
        worker.statements.wake.notified().await;
        while worker.say_some() {
            // A peer's death is about thousands of services, and its clients come first.
            tokio::task::yield_now().await;
        }
    }
}

impl Worker {
    /// Says a few; true when there are more.
    fn say_some(&self) -> bool {
        let (view, now) = (self.view(), Instant::now());
        for _ in 0..SERVICES_AT_ONCE {
            let Some(index) = self.statements.dirty.borrow_mut().pop_first() else { return false };
            let Some(config) = view.snapshot.service(index) else { continue };
            self.journal.service(self.index, &config.key, view.standing(index, now));
            let outs = view.outs(index, now);
            let is_news = match outs.is_empty() {
                true => self.statements.outs.borrow_mut().remove(&config.key),
                false => {
                    self.statements.outs.borrow_mut().insert(Arc::clone(&config.key));
                    true
                }
            };
            if is_news {
                self.journal.endpoints(self.index, &config.key, outs);
            }
        }
        true
    }

    /// A service is gone.
    pub(super) fn say_gone(&self, key: &Arc<str>) {
        self.journal.service(self.index, key, None);
        if self.statements.outs.borrow_mut().remove(key) {
            self.journal.endpoints(self.index, key, std::collections::BTreeMap::new());
        }
    }
}

/// At a microsecond or so each.
const SERVICES_AT_ONCE: usize = 32;
