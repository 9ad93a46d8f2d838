//! Outcomes of recent requests, so that a retry gets the answer of the first try and commits nothing.

use std::sync::Arc;

use imbl::OrdMap;

/// A window over the last requests, bounded in number and in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Dedup {
    /// With the place of each in `order`.
    outcomes: OrdMap<RequestKey, (u64, Arc<Remembered>)>,
    order: OrdMap<u64, RequestKey>,
    next: u64,
    bytes: usize,
}

/// Request ids are private to an actor: nobody can learn another's outcome by guessing its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RequestKey {
    pub(super) actor: String,
    pub(super) request_id: String,
}

/// What is kept of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    /// SHA-256 of the action.
    pub(super) fingerprint: [u8; 32],
    /// Encoded outcome.
    pub(super) outcome: Vec<u8>,
}

impl Dedup {
    pub(super) fn get(&self, key: &RequestKey) -> Option<&Remembered> {
        self.outcomes.get(key).map(|(_, remembered)| &**remembered)
    }

    /// Remembers an outcome and forgets the oldest ones beyond the bounds.
    pub(super) fn insert(&mut self, key: RequestKey, remembered: Remembered) {
        self.bytes += cost(&key, &remembered);
        let place = self.next;
        self.next += 1;
        if let Some((before, old)) = self.outcomes.insert(key.clone(), (place, Arc::new(remembered))) {
            self.bytes -= cost(&key, &old);
            self.order.remove(&before);
        }
        self.order.insert(place, key);
        while self.order.len() > OUTCOMES_MAX || (self.bytes > BYTES_MAX && self.order.len() > 1) {
            let Some((oldest, key)) = self.order.get_min().cloned() else { break };
            self.order.remove(&oldest);
            if let Some((_, gone)) = self.outcomes.remove(&key) {
                self.bytes -= cost(&key, &gone);
            }
        }
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&RequestKey, &Remembered)> {
        self.order
            .values()
            .filter_map(|key| self.outcomes.get_key_value(key))
            .map(|(key, (_, remembered))| (key, &**remembered))
    }
}

/// Places count from another beginning after a restore; what follows what is all that matters.
impl PartialEq for Dedup {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

fn cost(key: &RequestKey, remembered: &Remembered) -> usize {
    key.actor.len() + key.request_id.len() + remembered.outcome.len()
}

/// A client gives up after seconds; 4,096 requests cover that even at a rate no operator reaches.
pub(super) const OUTCOMES_MAX: usize = 4_096;
/// Outcomes list every named resource; this bounds a run of huge applies.
const BYTES_MAX: usize = 8 * 1024 * 1024;
