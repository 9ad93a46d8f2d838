//! The threads around a replica.
//!
//! - `raft` owns the replica: it takes requests, messages and notices from the mailbox, keeps the ticks, sends, and
//!   applies. It never waits for a disk.
//! - `raft-log` makes writes durable. All that queued while one fsync ran share the next (group commit).
//! - `raft-state` encodes snapshots and saves them as checkpoints, so that a large one delays neither a heartbeat nor a
//!   commit.
//!
//! What a commit costs: on the leader and on each follower one fsync of `log.redb` per group, side by side, since the
//! leader sends before its own disk is done. An idle cluster commits one write in about one round trip plus one
//! fsync; under load many writes share both. Checkpoints cost one more fsync per thousand entries, off that path.

mod handle;
mod latency;
mod mailbox;
mod node;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    sync::{Arc, RwLock},
    thread,
    time::Instant,
};

use bytes::Bytes;
use raft_proto::eraftpb::{ConfState, Message};
use slog::Drain as _;
use tokio::sync::{oneshot, watch};

pub use handle::{NodeStopped, Proposed, RaftHandle};
pub use latency::LogWrites;

use self::{handle::Shared, mailbox::Mailbox, node::Node, worker::Worker};
use crate::{
    config::Config,
    core::{Core, MembershipChange, Persisted, Setup},
    digest::{self, StateDigest},
    error::{MembershipError, ProposeError, ReadError, StartError},
    machine::{StateMachine, Transport},
    replica::{Capture, Replica},
    store::{self, DataDir, Ident, StoreError},
};

/// Starts nodes.
#[derive(Debug)]
pub struct Raft;

impl Raft {
    /// Opens the data directory, restores `machine` from it, and starts the node's threads.
    ///
    /// `machine` comes in its initial state, the same on every founder. Blocks for as long as reading the disk takes.
    /// A transport that reports back needs the handle made here: let it share a `OnceLock` that is filled afterwards;
    /// what it is asked to send before that may be dropped.
    ///
    /// The node runs until [`RaftHandle::shutdown`], until it fails ([`RaftHandle::stopped`] says why), or until the
    /// last handle is dropped, which ends it as abruptly as a crash would.
    ///
    /// # Errors
    /// [`StartError`] names the setting or the file and what to do about it.
    pub fn start<M: StateMachine>(
        config: Config,
        mut machine: M,
        transport: impl Transport,
    ) -> Result<RaftHandle<M>, StartError> {
        config.validate().map_err(StartError::Config)?;
        let Config { node_id, ref members, ref federation_id, ref data_dir, ref marker, timing, ref limits } = config;
        let genesis = (!members.is_empty()).then(|| {
            let conf_state = ConfState::from((members.iter().copied(), []));
            (conf_state, machine.snapshot()())
        });
        let ident = Ident { federation_id: federation_id.clone(), node_id };
        let DataDir { mut log, state, guard, room } = DataDir::open(data_dir, marker.as_deref(), &ident, genesis)?;
        let (recovered, checkpoint) = store::recover(&mut log, state.as_ref())?;
        let applied = recovered.applied;
        if applied.log_index > 0 {
            let restored = digest::open(&checkpoint.data).and_then(|(_, state)| machine.restore(state));
            restored.map_err(|reason| StartError::Restore { path: data_dir.clone(), reason })?;
        }
        tracing::info!(
            node_id,
            applied = applied.log_index,
            entries = recovered.entries.len(),
            term = recovered.hard_state.term,
            "raft state recovered"
        );
        let setup = Setup {
            node_id,
            timing,
            limits: limits.clone(),
            seed: rand::random(),
            boot_nonce: rand::random(),
            recovered,
            logger: slog::Logger::root(tracing_slog::TracingSlogDrain.fuse(), slog::o!()),
        };
        let core = Core::new(setup).map_err(|error| StartError::Raft(error.to_string()))?;
        let machine = Arc::new(RwLock::new(machine));
        let replica = Replica::new(core, Arc::clone(&machine), &checkpoint, limits, timing);

        let shared = Arc::new(Shared {
            mailbox: Mailbox::new(limits.requests_max, limits.messages_max, limits.messages_bytes_max),
            machine,
            applied: watch::Sender::new(applied.log_index),
            status: watch::Sender::new(replica.status()),
            ended: watch::Sender::new(None),
            command_bytes_max: limits.command_bytes_max,
            log_writes: latency::WriteTimes::default(),
        });
        let guard = Arc::new(guard);
        let log_worker = {
            let (shared, state, guard) = (Arc::clone(&shared), Arc::clone(&state), Arc::clone(&guard));
            Worker::spawn("raft-log", move |writes| {
                let began = Instant::now();
                let notice = match store::persist(&mut log, state.as_ref(), writes) {
                    Ok(persisted) => {
                        shared.log_writes.observe(began.elapsed());
                        Notice::Persisted(persisted)
                    }
                    Err(error) => Notice::failed(error, &guard),
                };
                shared.mailbox.notice(notice);
            })
        };
        let log_worker = log_worker.map_err(StartError::Thread)?;
        let state_worker = {
            let shared = Arc::clone(&shared);
            Worker::spawn("raft-state", move |captures: Vec<Capture>| {
                for capture in captures {
                    let checkpoint = capture.encode();
                    shared.mailbox.notice(Notice::Encoded(checkpoint.clone()));
                    let saved = store::StateStore::save(state.as_ref(), &checkpoint);
                    shared.mailbox.notice(match saved {
                        Ok(()) => Notice::CheckpointSaved { log_index: checkpoint.position.log_index },
                        Err(error) => Notice::failed(error, &guard),
                    });
                }
            })
        };
        let state_worker = state_worker.map_err(StartError::Thread)?;
        let handle = RaftHandle::new(Arc::clone(&shared));
        let node = Node::new(replica, Box::new(transport), shared, log_worker, state_worker, room, &config);
        thread::Builder::new().name("raft".into()).spawn(move || node.run()).map_err(StartError::Thread)?;
        Ok(handle)
    }
}

/// What callers ask for, each with where the answer goes.
enum Request {
    Propose { command: Bytes, reply: oneshot::Sender<Result<Proposed, ProposeError>> },
    Read { reply: oneshot::Sender<Result<u64, ReadError>> },
    Change { change: MembershipChange, reply: oneshot::Sender<Result<ConfState, MembershipError>> },
}

/// News for the node's thread that must not be lost.
#[derive(Debug)]
enum Notice {
    Persisted(Vec<Persisted>),
    Encoded(store::Checkpoint),
    CheckpointSaved {
        log_index: u64,
    },
    StoreFailed(Arc<StoreError>),
    Unreachable {
        peer: u64,
    },
    SnapshotSent {
        peer: u64,
        delivered: bool,
    },
    PeerDigests {
        peer: u64,
        digests: Vec<StateDigest>,
    },
    Transfer {
        to: Option<u64>,
    },
    Shutdown,
    /// The last handle is gone.
    Abandoned,
}

impl Notice {
    fn failed(error: StoreError, guard: &store::Guard) -> Self {
        guard.taint_if_sync_failed(&error);
        Self::StoreFailed(Arc::new(error))
    }

    /// Whether this says the same as a notice that is still waiting.
    fn repeats(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unreachable { peer }, Self::Unreachable { peer: other }) => peer == other,
            (
                Self::SnapshotSent { peer, delivered },
                Self::SnapshotSent { peer: other, delivered: other_delivered },
            ) => (peer, delivered) == (other, other_delivered),
            // The peer repeats its newest; the next time will do.
            (Self::PeerDigests { peer, .. }, Self::PeerDigests { peer: other, .. }) => peer == other,
            (Self::Transfer { to }, Self::Transfer { to: other }) => to == other,
            (Self::Shutdown, Self::Shutdown) | (Self::Abandoned, Self::Abandoned) => true,
            _ => false,
        }
    }
}

/// Peer messages, as the raft crate defines them; encode them with `prost::Message`.
pub type RaftMessage = Message;
