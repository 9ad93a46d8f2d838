//! Raft between members, on the peer port: one connection for messages, one for snapshots, per peer.
//!
//! Losing a message is allowed, blocking is not: every queue is bounded and drops what does not fit, and Raft repairs it.

mod receive;
mod send;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use archipelago_identity::{LiveCredential, SpiffeId};
use archipelago_raft::{RaftHandle, StateDigest, Transport};
use raft_proto::eraftpb::{Message, MessageType};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

pub(crate) use self::receive::RaftService;
use self::send::{Lane, Link, Outgoing};
use crate::{machine::Machine, metrics::Metrics};

/// The sending side, given to the Raft driver.
pub(crate) struct PeerTransport {
    lanes: BTreeMap<u64, Lane>,
    metrics: Arc<Metrics>,
}

/// The node, known only after the transport was handed to it.
pub(crate) type LateHandle = Arc<OnceLock<RaftHandle<Machine>>>;

/// What every link to a peer shares.
pub(crate) struct Network {
    /// This member.
    pub(crate) node_id: u64,
    /// Federation id, in every batch.
    pub(crate) federation: String,
    /// This member's identity.
    pub(crate) credential: LiveCredential,
    /// To report to.
    pub(crate) raft: LateHandle,
    pub(crate) metrics: Arc<Metrics>,
    /// Ends the links.
    pub(crate) stopping: CancellationToken,
}

impl PeerTransport {
    /// Starts the tasks that carry messages to `peers` (id and peer address).
    pub(crate) fn start(runtime: &Handle, network: &Network, peers: impl IntoIterator<Item = (u64, String)>) -> Self {
        let trust_domain = network.credential.current().spiffe_id.trust_domain().clone();
        let lanes = peers
            .into_iter()
            .map(|(id, address)| {
                let (messages, queued) = mpsc::channel(MESSAGES_MAX);
                let (snapshots, queued_snapshots) = mpsc::channel(SNAPSHOTS_MAX);
                let overflowed = Arc::new(AtomicBool::new(false));
                let link = Link {
                    from: network.node_id,
                    to: id,
                    federation: network.federation.clone(),
                    address,
                    spiffe_id: SpiffeId::control_plane(&trust_domain, id),
                    credential: network.credential.clone(),
                    raft: Arc::clone(&network.raft),
                    metrics: Arc::clone(&network.metrics),
                    stopping: network.stopping.clone(),
                    overflowed: Arc::clone(&overflowed),
                };
                runtime.spawn(link.clone().carry_messages(queued));
                runtime.spawn(link.carry_snapshots(queued_snapshots));
                (id, Lane { messages, snapshots, overflowed })
            })
            .collect();
        Self { lanes, metrics: Arc::clone(&network.metrics) }
    }
}

impl Transport for PeerTransport {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            if !travels(&message) {
                continue;
            }
            let Some(lane) = self.lanes.get(&message.to) else {
                self.metrics.raft_dropped("unknown_peer");
                continue;
            };
            let queued = if message.msg_type == i32::from(MessageType::MsgSnapshot) {
                lane.snapshots.try_send(message).is_ok()
            } else {
                lane.messages.try_send(Outgoing::Message(message)).is_ok()
            };
            if !queued {
                lane.overflowed.store(true, Ordering::Relaxed);
                self.metrics.raft_dropped("queue_full");
            }
        }
    }

    fn send_digests(&mut self, digests: Vec<StateDigest>) {
        for lane in self.lanes.values() {
            // Lost with a full queue; they are told again soon.
            let _ = lane.messages.try_send(Outgoing::Digests(digests.clone()));
        }
    }
}

/// Whether a message may cross the network. The rest is a node talking to itself, or a request that must be made by
/// the leader's own member: a forwarded ReadIndex can answer a read with old state (etcd-io/etcd#20418).
fn travels(message: &Message) -> bool {
    match MessageType::try_from(message.msg_type) {
        Ok(
            MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgSnapshot
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow,
        ) => true,
        Ok(_) | Err(_) => false,
    }
}

/// Messages waiting for one peer: at 256 appends in flight and heartbeats, a few round trips' worth.
const MESSAGES_MAX: usize = 1_024;
/// Raft sends a peer no second snapshot before the first was reported.
const SNAPSHOTS_MAX: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_messages_stay_local() {
        for local in [
            MessageType::MsgHup,
            MessageType::MsgBeat,
            MessageType::MsgPropose,
            MessageType::MsgUnreachable,
            MessageType::MsgSnapStatus,
            MessageType::MsgCheckQuorum,
            MessageType::MsgTransferLeader,
            MessageType::MsgReadIndex,
            MessageType::MsgReadIndexResp,
        ] {
            assert!(!travels(&Message { msg_type: local.into(), ..Message::default() }), "{local:?}");
        }
        assert!(travels(&Message { msg_type: MessageType::MsgAppend.into(), ..Message::default() }));
        assert!(!travels(&Message { msg_type: 999, ..Message::default() }));
    }
}
