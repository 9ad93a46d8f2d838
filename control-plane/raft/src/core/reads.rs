//! Linearizable reads: which of them one confirmation of leadership answers.
//!
//! The raft crate, 0.7.0, answers a read with a stale index if a leader ever sees the same context twice: the
//! acknowledgements of the first round then release whatever queued before the second (the bug of
//! etcd-io/etcd#20418). So contexts are made here and nowhere else, on the leader, from its id, its term, a nonce
//! of this start and a counter; they are never reused, and no context arrives from the network (`wire.rs`).

use std::{collections::BTreeMap, mem};

use super::RequestId;

pub(super) struct Reads {
    node_id: u64,
    boot_nonce: u64,
    reads_max: usize,
    next_round: u64,
    /// Not yet part of a round, with the tick at which each gives up.
    waiting: Vec<(RequestId, u64)>,
    rounds: BTreeMap<u64, Round>,
    #[cfg(test)]
    pub(super) reuse_contexts: bool,
}

struct Round {
    term: u64,
    requests: Vec<(RequestId, u64)>,
}

impl Reads {
    pub(super) fn new(node_id: u64, boot_nonce: u64, reads_max: usize) -> Self {
        Self {
            node_id,
            boot_nonce,
            reads_max,
            next_round: 0,
            waiting: Vec::new(),
            rounds: BTreeMap::new(),
            #[cfg(test)]
            reuse_contexts: false,
        }
    }

    /// Queues a read for the next round; false when too many wait.
    pub(super) fn push(&mut self, request: RequestId, deadline: u64) -> bool {
        let pending = self.waiting.len() + self.rounds.values().map(|round| round.requests.len()).sum::<usize>();
        if pending >= self.reads_max {
            return false;
        }
        self.waiting.push((request, deadline));
        true
    }

    /// Starts a round for all reads that wait; returns its context, never made before.
    pub(super) fn begin_round(&mut self, term: u64) -> Option<Vec<u8>> {
        if self.waiting.is_empty() || self.rounds.len() >= ROUNDS_MAX {
            return None;
        }
        let number = self.next_round;
        self.next_round += 1;
        #[cfg(test)]
        let number = if self.reuse_contexts { number % 2 } else { number };
        self.rounds.insert(number, Round { term, requests: mem::take(&mut self.waiting) });
        Some(self.context(term, number))
    }

    /// The reads whose round this context started.
    pub(super) fn confirmed(&mut self, context: &[u8]) -> Vec<RequestId> {
        let number = context.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
        let ours =
            |number: &u64| self.rounds.get(number).is_some_and(|round| self.context(round.term, *number) == context);
        let round = number.filter(ours).and_then(|number| self.rounds.remove(&number));
        round.map(|round| round.requests.into_iter().map(|(request, _)| request).collect()).unwrap_or_default()
    }

    /// Takes the reads whose time is up.
    pub(super) fn expired(&mut self, now: u64) -> Vec<RequestId> {
        let mut expired = Vec::new();
        let late = |(request, deadline): &(RequestId, u64)| (*deadline <= now).then_some(*request);
        for requests in self.rounds.values_mut().map(|round| &mut round.requests).chain([&mut self.waiting]) {
            expired.extend(requests.iter().filter_map(late));
            requests.retain(|request| late(request).is_none());
        }
        self.rounds.retain(|_, round| !round.requests.is_empty());
        expired
    }

    /// Takes the reads that no longer have a leader here: all when `leading_term` is none, else those of other terms.
    pub(super) fn orphaned(&mut self, leading_term: Option<u64>) -> Vec<RequestId> {
        let (keep, orphaned): (BTreeMap<_, _>, BTreeMap<_, _>) =
            mem::take(&mut self.rounds).into_iter().partition(|(_, round)| Some(round.term) == leading_term);
        self.rounds = keep;
        let mut requests: Vec<_> = orphaned.into_values().flat_map(|round| round.requests).collect();
        if leading_term.is_none() {
            requests.append(&mut self.waiting);
        }
        requests.into_iter().map(|(request, _)| request).collect()
    }

    fn context(&self, term: u64, round: u64) -> Vec<u8> {
        [self.node_id, term, self.boot_nonce, round].iter().flat_map(|part| part.to_be_bytes()).collect()
    }
}

/// Rounds on their way at once. Reads beyond wait and share the next one, so more would only cost heartbeats.
const ROUNDS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_round_serves_all_that_wait_and_contexts_never_repeat() {
        let mut reads = Reads::new(1, 7, 3);
        assert!(reads.push(RequestId(1), 10) && reads.push(RequestId(2), 10));
        let first = reads.begin_round(4).unwrap();
        assert_eq!(reads.begin_round(4), None);
        assert!(reads.push(RequestId(3), 10));
        assert!(!reads.push(RequestId(4), 10), "bounded");
        let second = reads.begin_round(4).unwrap();
        assert_ne!(first, second);
        assert_eq!(reads.confirmed(&second), [RequestId(3)]);
        assert_eq!(reads.confirmed(&first), [RequestId(1), RequestId(2)]);
        assert!(reads.confirmed(&first).is_empty());
    }

    #[test]
    fn a_context_of_another_start_term_or_node_confirms_nothing() {
        let mut reads = Reads::new(1, 7, 3);
        reads.push(RequestId(1), 10);
        reads.begin_round(4).unwrap();
        for (node_id, nonce, term) in [(2, 7, 4), (1, 8, 4), (1, 7, 5)] {
            let other = Reads::new(node_id, nonce, 3).context(term, 0);
            assert!(reads.confirmed(&other).is_empty());
        }
        assert!(reads.confirmed(b"short").is_empty());
    }

    #[test]
    fn reads_end_by_deadline_or_with_the_leadership() {
        let mut reads = Reads::new(1, 7, 10);
        reads.push(RequestId(1), 10);
        reads.begin_round(4).unwrap();
        reads.push(RequestId(2), 11);
        assert_eq!(reads.expired(10), [RequestId(1)]);
        assert_eq!(reads.orphaned(None), [RequestId(2)]);
        reads.push(RequestId(3), 20);
        reads.begin_round(5).unwrap();
        assert!(reads.orphaned(Some(5)).is_empty());
        assert_eq!(reads.orphaned(Some(6)), [RequestId(3)]);
    }
}
