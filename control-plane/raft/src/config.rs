//! What an operator or a test may choose about a node, checked once.

use std::{path::PathBuf, time::Duration};

/// Everything one node needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node. Raft reserves 0.
    pub node_id: u64,
    /// The founding voters, the same list on every founder, this node included. It counts only for an empty data
    /// directory: afterwards membership comes from the log. Empty for a node that joins an existing group: it
    /// stays silent until the leader has added it and sends a snapshot.
    pub members: Vec<u64>,
    /// Names the group on disk, so that a directory of another federation is refused. At most 1,024 bytes.
    pub federation_id: String,
    /// A directory of this node's own, holding nothing else. Created when missing.
    pub data_dir: PathBuf,
    /// A file outside of `data_dir` that says that this node was started: with it and without the directory's content,
    /// the node refuses to start from nothing. None does without, and trusts that a directory is never lost.
    pub marker: Option<PathBuf>,
    /// Clock of the protocol.
    pub timing: Timing,
    /// Bounds of every queue and buffer.
    pub limits: Limits,
}

impl Config {
    /// A configuration with the defaults for one local network.
    pub fn new(
        node_id: u64,
        members: Vec<u64>,
        federation_id: impl Into<String>,
        data_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            node_id,
            members,
            federation_id: federation_id.into(),
            data_dir: data_dir.into(),
            marker: None,
            timing: Timing::LAN,
            limits: Limits::default(),
        }
    }

    /// Checks what cannot be expressed in the types.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub fn validate(&self) -> Result<(), String> {
        let Timing { tick, heartbeat_ticks, election_ticks } = self.timing;
        let mut members = self.members.clone();
        members.sort_unstable();
        members.dedup();
        if self.node_id == 0 || self.members.contains(&0) {
            Err("node id 0 is reserved by Raft".into())
        } else if members.len() != self.members.len() {
            Err(format!("members {:?} names a node twice", self.members))
        } else if !self.members.is_empty() && !self.members.contains(&self.node_id) {
            Err(format!("members {:?} does not contain this node, {}", self.members, self.node_id))
        } else if self.federation_id.len() > FEDERATION_ID_BYTES_MAX {
            Err(format!("federation id is longer than {FEDERATION_ID_BYTES_MAX} bytes"))
        } else if self.limits.checkpoint_entries == 0 {
            Err("checkpoint_entries must be above zero".into())
        } else if tick.is_zero() || heartbeat_ticks == 0 || election_ticks <= heartbeat_ticks {
            Err(format!("timing {:?} needs 0 < heartbeat_ticks < election_ticks and a tick above zero", self.timing))
        } else {
            Ok(())
        }
    }
}

/// The protocol's clock, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Length of one tick.
    pub tick: Duration,
    /// The leader speaks at least this often.
    pub heartbeat_ticks: usize,
    /// A follower that hears nothing for `election_ticks..2 * election_ticks` (random) campaigns.
    pub election_ticks: usize,
}

impl Timing {
    /// One data centre: heartbeats every 50 ms, elections after 300 to 600 ms.
    pub const LAN: Self = Self { tick: Duration::from_millis(10), heartbeat_ticks: 5, election_ticks: 30 };
    /// Members up to 150 ms apart: heartbeats every 200 ms, elections after 2 to 4 s.
    pub const WAN: Self = Self { tick: Duration::from_millis(50), heartbeat_ticks: 4, election_ticks: 40 };
}

/// Bounds of every queue and buffer, each with the reason for its default.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest command. 8 MiB: far above any resource, far below what a slow disk makes a heartbeat wait for.
    pub command_bytes_max: usize,
    /// Entries in one append message, in bytes; an entry larger than this travels alone. 1 MiB keeps messages
    /// under the 4 MiB a gRPC server accepts by default, with pipelining doing the rest.
    pub message_bytes_max: u64,
    /// Append messages on the way to one peer. 256 covers 256 MiB/s at one second of round trip.
    pub inflight_messages_max: usize,
    /// Proposed but uncommitted bytes a leader holds before it answers `Overloaded`. 64 MiB.
    pub uncommitted_bytes_max: u64,
    /// Bytes handed to the state machine between two looks at the clock. 4 MiB applies in well under a heartbeat.
    pub committed_bytes_max: u64,
    /// Requests waiting for the node's thread. 4,096: a tenth of a second of work at 40,000/s.
    pub requests_max: usize,
    /// Peer messages waiting for the node's thread; beyond it they are dropped, which Raft repairs.
    pub messages_max: usize,
    /// Bytes of those messages. 64 MiB.
    pub messages_bytes_max: usize,
    /// Log writes handed to the disk and not yet durable; beyond it the node takes no new work but heartbeats.
    pub writes_inflight_max: usize,
    /// Linearizable reads waiting for one confirmation of leadership.
    pub reads_max: usize,
    /// Entries kept below the newest checkpoint, so that a peer that was away briefly needs no snapshot.
    pub log_tail_entries: u64,
    /// Bytes of those entries. All entries above the compaction point are in memory too, so this bounds it.
    pub log_tail_bytes: u64,
    /// A checkpoint is taken at every log index that is a multiple of this, unless the one before is not yet written:
    /// so all members take theirs in the same places. Above zero, and the same on all members.
    pub checkpoint_entries: u64,
    /// And at the latest this long after the first entry that is in none.
    pub checkpoint_interval: Duration,
    /// A snapshot whose delivery was not reported within this time counts as failed. 30 s at 1 MiB/s is 30 MiB.
    pub snapshot_report_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command_bytes_max: 8 << 20,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 256,
            uncommitted_bytes_max: 64 << 20,
            committed_bytes_max: 4 << 20,
            requests_max: 4096,
            messages_max: 4096,
            messages_bytes_max: 64 << 20,
            writes_inflight_max: 64,
            reads_max: 4096,
            log_tail_entries: 10_000,
            log_tail_bytes: 64 << 20,
            checkpoint_entries: 1_000,
            checkpoint_interval: Duration::from_secs(2),
            snapshot_report_timeout: Duration::from_secs(30),
        }
    }
}

const FEDERATION_ID_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_named() {
        let good = Config::new(1, vec![1, 2, 3], "f", "/tmp/x");
        assert_eq!(good.validate(), Ok(()));
        let table = [
            (Config { node_id: 0, ..good.clone() }, "reserved"),
            (Config { members: vec![1, 1], ..good.clone() }, "twice"),
            (Config { members: vec![2, 3], ..good.clone() }, "does not contain this node"),
            (Config { federation_id: "x".repeat(2000), ..good.clone() }, "federation id"),
            (Config { timing: Timing { election_ticks: 5, ..Timing::LAN }, ..good.clone() }, "heartbeat_ticks"),
        ];
        for (config, word) in table {
            let error = config.validate().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
