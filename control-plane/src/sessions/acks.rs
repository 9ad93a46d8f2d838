//! When each gateway acknowledged what, for the times that `apply --wait` prints.

use std::{collections::VecDeque, time::Instant};

use archipelago_model::version::Version;

/// Acknowledgements of one gateway, as they were seen here, ascending by version.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    entries: VecDeque<Ack>,
}

#[derive(Debug, Clone, Copy)]
struct Ack {
    version: Version,
    at: Instant,
    /// From the commit of exactly this revision, by the member that served the gateway.
    micros: Option<u64>,
}

impl AckLog {
    pub(super) fn push(&mut self, version: Version, micros: Option<u64>) {
        if self.entries.back().is_some_and(|last| last.version >= version) {
            return;
        }
        if self.entries.len() >= ACKS_PER_GATEWAY {
            self.entries.pop_front();
        }
        self.entries.push_back(Ack { version, at: Instant::now(), micros });
    }

    /// The newest version ever acknowledged.
    pub(super) fn last(&self) -> Version {
        self.entries.back().map_or_else(Version::default, |ack| ack.version)
    }

    /// Microseconds from the commit of `version` to the first acknowledgement that covers it.
    pub(super) fn micros(&self, version: Version, applied_at: Option<Instant>) -> Option<u64> {
        let first = self.entries.iter().find(|ack| ack.version >= version)?;
        if first.version.revision == version.revision && first.micros.is_some() {
            return first.micros;
        }
        let elapsed = first.at.saturating_duration_since(applied_at?);
        u64::try_from(elapsed.as_micros()).ok()
    }
}

/// Revisions between a commit and the `WaitApplied` that asks for it; beyond this only the time is less exact.
const ACKS_PER_GATEWAY: usize = 64;
