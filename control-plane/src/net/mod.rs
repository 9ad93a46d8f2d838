//! Raft between members, on the peer port: one connection for messages, one for snapshots, per peer.
//!
//! Losing a message is allowed, blocking is not: every queue is bounded and drops what does not fit, and Raft repairs it.

mod receive;
mod send;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use archipelago_identity::{LiveCredential, SpiffeId};
use archipelago_raft::{RaftHandle, StateDigest, Transport};
use raft_proto::eraftpb::{Message, MessageType};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

pub(crate) use self::receive::RaftService;
use self::send::{Lane, Link, Outgoing};
use crate::{bootstrap::Member, machine::Machine, metrics::Metrics, roster::PerPeer};

/// The sending side, given to the Raft driver.
pub(crate) struct PeerTransport {
    lanes: Arc<PerPeer<Lane>>,
    metrics: Arc<Metrics>,
}

/// The links behind it: one per other member.
pub(crate) struct Links {
    lanes: Arc<PerPeer<Lane>>,
    network: Network,
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
    /// Where they run: not on the thread that sends.
    pub(crate) runtime: Handle,
}

impl Links {
    /// Links to nobody yet, and what sends through them.
    pub(crate) fn new(network: Network) -> (Self, PeerTransport) {
        let lanes = Arc::new(PerPeer::new(network.stopping.clone()));
        let transport = PeerTransport { lanes: Arc::clone(&lanes), metrics: Arc::clone(&network.metrics) };
        (Self { lanes, network }, transport)
    }

    /// Starts the tasks that carry messages to `peers`, and ends those of others.
    pub(crate) fn set(&self, peers: &[Member]) {
        let network = &self.network;
        self.lanes.set(peers, |peer, stopping| {
            let trust_domain = network.credential.current().spiffe_id.trust_domain().clone();
            let (messages, queued) = mpsc::channel(MESSAGES_MAX);
            let (snapshots, queued_snapshots) = mpsc::channel(SNAPSHOTS_MAX);
            let overflowed = Arc::new(AtomicBool::new(false));
            let link = Link {
                from: network.node_id,
                to: peer.id,
                federation: network.federation.clone(),
                address: peer.peer.clone(),
                spiffe_id: SpiffeId::control_plane(&trust_domain, peer.id),
                credential: network.credential.clone(),
                raft: Arc::clone(&network.raft),
                metrics: Arc::clone(&network.metrics),
                stopping,
                overflowed: Arc::clone(&overflowed),
            };
            network.runtime.spawn(link.clone().carry_messages(queued));
            network.runtime.spawn(link.carry_snapshots(queued_snapshots));
            Lane { messages, snapshots, overflowed }
        });
    }
}

impl Transport for PeerTransport {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            if !travels(&message) {
                continue;
            }
            let queued = self.lanes.with(message.to, |lane| {
                let queued = if message.msg_type == i32::from(MessageType::MsgSnapshot) {
                    lane.snapshots.try_send(message).is_ok()
                } else {
                    lane.messages.try_send(Outgoing::Message(message)).is_ok()
                };
                if !queued {
                    lane.overflowed.store(true, Ordering::Relaxed);
                }
                queued
            });
            match queued {
                Some(true) => {}
                Some(false) => self.metrics.raft_dropped("queue_full"),
                None => self.metrics.raft_dropped("unknown_peer"),
            }
        }
    }

    fn send_digests(&mut self, digests: Vec<StateDigest>) {
        // Lost with a full queue; they are told again soon.
        self.lanes.each(|lane| drop(lane.messages.try_send(Outgoing::Digests(digests.clone()))));
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
