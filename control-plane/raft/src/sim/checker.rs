//! What must hold after every step, whatever fails (Raft paper, Figure 3), and what clients may count on.

use std::collections::{BTreeMap, HashMap};

use raft_proto::eraftpb::Entry;

use super::machine::History;

/// Remembers what was seen on any node and finds contradictions.
#[derive(Default)]
pub(crate) struct Checker {
    leaders: BTreeMap<u64, u64>,
    /// Every entry ever appended anywhere, with the term of the one before it: (index, term) -> (data, term before).
    entries: HashMap<(u64, u64), (Vec<u8>, u64)>,
    /// The history all machines must follow.
    applied: BTreeMap<u64, u64>,
    /// Acknowledged writes by index, with the term in which the client was told.
    acked: BTreeMap<u64, (u64, u64)>,
    /// The newest index a client has seen, by an acknowledged write or an answered read.
    seen: u64,
}

impl Checker {
    /// Election safety: at most one leader per term. True when this leadership is new.
    pub(crate) fn leader(&mut self, term: u64, node: u64) -> Result<bool, String> {
        match self.leaders.insert(term, node) {
            Some(other) if other != node => Err(format!("two leaders in term {term}: nodes {other} and {node}")),
            known => Ok(known.is_none()),
        }
    }

    /// Log matching: entries with the same index and term are the same, and so is what comes before them.
    pub(crate) fn appended(&mut self, node: u64, before: Option<u64>, entries: &[Entry]) -> Result<(), String> {
        let mut before = before;
        for entry in entries {
            if let Some(term_before) = before {
                let known = self.entries.entry((entry.index, entry.term));
                let known = known.or_insert_with(|| (entry.data.to_vec(), term_before));
                if known.0 != entry.data || known.1 != term_before {
                    return Err(format!(
                        "log matching: node {node} has another entry {} of term {} than an earlier one",
                        entry.index, entry.term
                    ));
                }
            }
            before = Some(entry.term);
        }
        Ok(())
    }

    /// State machine safety: all nodes apply the same commands at the same places, from `from` on in `history`.
    pub(crate) fn applied(&mut self, node: u64, history: &History, from: usize) -> Result<(), String> {
        for &(log_index, id) in history.applied.get(from..).unwrap_or_default() {
            let known = *self.applied.entry(log_index).or_insert(id);
            if known != id {
                return Err(format!("node {node} applied {id:x} at {log_index}, another applied {known:x}"));
            }
        }
        Ok(())
    }

    /// A machine that restored a snapshot must hold exactly the history up to its index.
    pub(crate) fn whole(&self, node: u64, history: &History, applied_index: u64) -> Result<(), String> {
        let expected = self.applied.range(..=applied_index).map(|(log_index, id)| (*log_index, *id));
        if history.applied.iter().copied().eq(expected) {
            Ok(())
        } else {
            Err(format!("node {node} holds another state at index {applied_index} than was applied"))
        }
    }

    /// Leader completeness: a new leader has every write acknowledged in an earlier term that its log still keeps.
    ///
    /// Of its own term and later ones it may know nothing: votes that were long under way can still make a leader
    /// of a term that is over.
    pub(crate) fn leader_log(
        &self,
        node: u64,
        term: u64,
        first_index: u64,
        read: impl Fn(u64) -> Option<Vec<u8>>,
    ) -> Result<(), String> {
        let earlier = self.acked.range(first_index..).filter(|(_, (_, acked_in))| *acked_in < term);
        for (log_index, (id, _)) in earlier {
            if read(*log_index) != Some(id.to_be_bytes().to_vec()) {
                return Err(format!("new leader {node} lacks the acknowledged write {id:x} at {log_index}"));
            }
        }
        Ok(())
    }

    /// A client was told that its write is in.
    pub(crate) fn acked(&mut self, log_index: u64, id: u64, term: u64) -> Result<(), String> {
        self.seen = self.seen.max(log_index);
        match (self.acked.insert(log_index, (id, term)), self.applied.get(&log_index)) {
            (Some((other, _)), _) => Err(format!("writes {other:x} and {id:x} were both acknowledged at {log_index}")),
            (_, Some(other)) if *other != id => {
                Err(format!("write {id:x} was acknowledged at {log_index}, where {other:x} was applied"))
            }
            _ => Ok(()),
        }
    }

    /// What a read that begins now must see.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// Linearizability: a read sees everything that was seen before it began.
    pub(crate) fn read(&mut self, node: u64, log_index: u64, seen_at_begin: u64) -> Result<(), String> {
        if log_index < seen_at_begin {
            return Err(format!(
                "stale read: node {node} answered {log_index}, a client had already seen {seen_at_begin}"
            ));
        }
        self.seen = self.seen.max(log_index);
        Ok(())
    }

    /// No acknowledged write is missing from a machine that has applied everything.
    pub(crate) fn complete(&self, node: u64, history: &History) -> Result<(), String> {
        let held: BTreeMap<u64, u64> = history.applied.iter().copied().collect();
        match self.acked.iter().find(|(log_index, (id, _))| held.get(log_index) != Some(id)) {
            Some((log_index, (id, _))) => Err(format!("node {node} lost the acknowledged write {id:x} at {log_index}")),
            None => Ok(()),
        }
    }
}
