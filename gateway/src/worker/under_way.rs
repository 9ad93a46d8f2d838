//! Requests of one service that are under way, by the cluster that serves them: what a drain waits for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::telemetry::Name;

/// Counts them.
#[derive(Debug, Default)]
pub struct UnderWay(RefCell<Vec<(Name, Rc<Cell<u64>>)>>);

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub struct Entered {
    all: Rc<UnderWay>,
    count: Rc<Cell<u64>>,
}

impl UnderWay {
    /// Counts one that is served by `cluster`.
    pub fn enter(self: &Rc<Self>, cluster: &Name) -> Entered {
        let count = self.count(cluster);
        count.set(count.get() + 1);
        Entered { all: Rc::clone(self), count }
    }

    /// How many each cluster serves, without those that serve none.
    pub fn counts(&self) -> Vec<(Name, u64)> {
        let all = self.0.borrow();
        all.iter().filter(|(_, count)| count.get() > 0).map(|(cluster, count)| (cluster.clone(), count.get())).collect()
    }

    fn count(&self, cluster: &Name) -> Rc<Cell<u64>> {
        let mut all = self.0.borrow_mut();
        if let Some((_, count)) = all.iter().find(|(known, _)| known == cluster) {
            return Rc::clone(count);
        }
        // Names are made anew whenever the list of clusters changes.
        all.retain(|(_, count)| count.get() > 0);
        let count = Rc::default();
        all.push((cluster.clone(), Rc::clone(&count)));
        count
    }
}

impl Entered {
    /// Another cluster serves it.
    pub fn moves_to(&mut self, cluster: &Name) {
        *self = self.all.enter(cluster);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.count.set(self.count.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &UnderWay) -> Vec<(String, u64)> {
        all.counts().into_iter().map(|(cluster, count)| (cluster.to_string(), count)).collect()
    }

    #[test]
    fn each_is_counted_where_it_is_now() {
        let (all, paris, tokyo) = (Rc::<UnderWay>::default(), Name::from("paris"), Name::from("tokyo"));
        let (mut first, second) = (all.enter(&paris), all.enter(&paris));
        assert_eq!(counts(&all), [("paris".into(), 2)]);
        first.moves_to(&tokyo);
        assert_eq!(counts(&all), [("paris".into(), 1), ("tokyo".into(), 1)]);
        drop((first, second));
        assert_eq!(counts(&all), []);
    }

    #[test]
    fn names_that_are_no_more_are_forgotten() {
        let all = Rc::<UnderWay>::default();
        let held = all.enter(&Name::from("paris"));
        for _ in 0..100 {
            drop(all.enter(&Name::from("paris")));
        }
        assert!(all.0.borrow().len() <= 2);
        assert_eq!(counts(&all), [("paris".into(), 1)]);
        drop(held);
    }
}
