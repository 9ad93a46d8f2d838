//! Who waits for which log entry.

use std::{collections::BTreeMap, mem};

use super::{Position, RequestId};

/// Requests that became an entry of the log and are not yet committed. Bounded by the bytes a leader may hold
/// uncommitted.
///
/// An entry is recognised by index and term: with both equal it is the same entry (Raft's log matching property).
#[derive(Default)]
pub(super) struct Proposals {
    waiting: BTreeMap<Position, (Kind, RequestId)>,
}

/// What was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    Change,
}

impl Proposals {
    pub(super) fn insert(&mut self, position: Position, kind: Kind, request: RequestId) {
        self.waiting.insert(position, (kind, request));
    }

    /// The request whose entry this is.
    pub(super) fn remove(&mut self, position: Position) -> Option<(Kind, RequestId)> {
        self.waiting.remove(&position)
    }

    /// Takes the requests whose fate this node can no longer tell: all but those of the term it leads.
    pub(super) fn orphaned(&mut self, leading_term: Option<u64>) -> Vec<(Kind, RequestId)> {
        let (keep, orphaned): (BTreeMap<_, _>, BTreeMap<_, _>) =
            mem::take(&mut self.waiting).into_iter().partition(|(position, _)| Some(position.term) == leading_term);
        self.waiting = keep;
        orphaned.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_index_and_term_is_the_same_entry() {
        let mut proposals = Proposals::default();
        let at = |log_index, term| Position { log_index, term };
        proposals.insert(at(5, 2), Kind::Command, RequestId(1));
        proposals.insert(at(5, 3), Kind::Change, RequestId(2));
        assert_eq!(proposals.remove(at(5, 4)), None);
        assert_eq!(proposals.orphaned(Some(3)), [(Kind::Command, RequestId(1))]);
        assert_eq!(proposals.remove(at(5, 3)), Some((Kind::Change, RequestId(2))));
        assert!(proposals.orphaned(None).is_empty());
    }
}
