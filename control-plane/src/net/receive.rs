//! From the peers: batches and snapshots, checked before Raft sees them.

use std::sync::Arc;

use archipelago_identity::MeshRole;
use archipelago_proto::v1::{
    self, RaftAck, RaftBatch, SnapshotChunk,
    raft_transport_server::{RaftTransport, RaftTransportServer},
};
use archipelago_raft::{Digest, RaftHandle, StateDigest};
use archipelago_rpc::grpc;
use prost::Message as _;
use raft_proto::eraftpb::{Message, MessageType};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::{
    send::{BATCH_BYTES_MAX, CHUNK_BYTES},
    travels,
};
use crate::{digest::sha256, machine::Machine, roster::Roster};

/// The gRPC service of the peer port.
pub(crate) struct RaftService {
    node_id: u64,
    federation: String,
    roster: Arc<Roster>,
    raft: RaftHandle<Machine>,
    /// Snapshots arriving at once: each is held in memory.
    snapshots: Arc<Semaphore>,
}

impl RaftService {
    /// The service, ready for a tonic server.
    pub(crate) fn server(
        node_id: u64,
        federation: String,
        roster: Arc<Roster>,
        raft: RaftHandle<Machine>,
    ) -> RaftTransportServer<Self> {
        let service = Self { node_id, federation, roster, raft, snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)) };
        RaftTransportServer::new(service).max_decoding_message_size(BATCH_BYTES_MAX)
    }

    /// The member that calls, by its certificate.
    fn caller<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let id = grpc::require(request, |role| matches!(role, MeshRole::ControlPlane { .. }))?;
        match id.role() {
            Some(MeshRole::ControlPlane { id }) if id != self.node_id && self.roster.member(id).is_some() => Ok(id),
            _ => Err(Status::permission_denied(format!("{id} is no member, as far as member {} knows", self.node_id))),
        }
    }

    /// Checks that what comes is from who called, and from a member of this federation.
    fn check_sender(&self, caller: u64, from: u64, federation: &str) -> Result<(), Status> {
        if federation != self.federation {
            return Err(Status::permission_denied(format!(
                "member {caller} belongs to federation {federation:.64}, this is {}",
                self.federation
            )));
        }
        if from != caller {
            return Err(Status::permission_denied(format!("member {caller} sends in the name of {from}")));
        }
        Ok(())
    }

    /// Checks whom a message is from and for; decodes it.
    fn accept(&self, caller: u64, message: &[u8]) -> Result<Message, Status> {
        let message = Message::decode(message).map_err(|_| Status::invalid_argument("not a Raft message"))?;
        if message.from != caller {
            return Err(Status::permission_denied(format!("member {caller} sends in the name of {}", message.from)));
        }
        if message.to != self.node_id {
            return Err(Status::invalid_argument(format!(
                "a message for member {} came to {}",
                message.to, self.node_id
            )));
        }
        if !travels(&message) {
            return Err(Status::invalid_argument("a message that must not cross the network"));
        }
        Ok(message)
    }
}

#[tonic::async_trait]
impl RaftTransport for RaftService {
    async fn messages(&self, request: Request<Streaming<RaftBatch>>) -> Result<Response<RaftAck>, Status> {
        let caller = self.caller(&request)?;
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            if self.roster.member(caller).is_none() {
                return Err(Status::permission_denied(format!("member {caller} was taken out")));
            }
            self.check_sender(caller, batch.from, &batch.federation)?;
            if !batch.digests.is_empty() {
                self.raft.peer_digests(caller, digests(&batch.digests)?);
            }
            for message in &batch.messages {
                let message = self.accept(caller, message)?;
                if message.msg_type != i32::from(MessageType::MsgSnapshot) {
                    self.raft.step(message);
                }
            }
        }
        Ok(Response::new(RaftAck {}))
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Result<Response<RaftAck>, Status> {
        let caller = self.caller(&request)?;
        let _slot =
            self.snapshots.try_acquire().map_err(|_| Status::resource_exhausted("another snapshot is arriving"))?;
        let mut chunks = request.into_inner();
        let mut message = None;
        let mut data = Vec::new();
        loop {
            let Some(chunk) = chunks.message().await? else {
                return Err(Status::data_loss("the snapshot ended before its last chunk"));
            };
            if message.is_none() {
                self.check_sender(caller, chunk.from, &chunk.federation)?;
                message = Some(self.accept(caller, &chunk.message)?);
            }
            if chunk.offset != data.len() as u64 || chunk.data.len() > CHUNK_BYTES {
                return Err(Status::invalid_argument("chunks out of order"));
            }
            if data.len() + chunk.data.len() > SNAPSHOT_BYTES_MAX {
                return Err(Status::resource_exhausted(format!("a snapshot above {SNAPSHOT_BYTES_MAX} bytes")));
            }
            data.extend_from_slice(&chunk.data);
            if chunk.last {
                if chunk.total != data.len() as u64 || sha256(&data).as_slice() != chunk.sha256 {
                    return Err(Status::data_loss("the snapshot's size or hash does not match"));
                }
                break;
            }
        }
        let mut message = message.ok_or_else(|| Status::data_loss("an empty snapshot"))?;
        let Some(snapshot) = message.snapshot.as_mut() else {
            return Err(Status::invalid_argument("a snapshot stream without a snapshot"));
        };
        tracing::info!(peer = caller, bytes = data.len(), "snapshot received");
        snapshot.data = data.into();
        self.raft.step(message);
        Ok(Response::new(RaftAck {}))
    }
}

/// The newest digests of a peer.
fn digests(told: &[v1::StateDigest]) -> Result<Vec<StateDigest>, Status> {
    let newest = told.get(told.len().saturating_sub(DIGESTS_MAX)..).unwrap_or_default();
    let digest = |told: &v1::StateDigest| {
        let sha256 = told.sha256.as_slice().try_into();
        let sha256 = sha256.map_err(|_| Status::invalid_argument("a digest of another length"))?;
        Ok(StateDigest { log_index: told.log_index, digest: Digest(sha256) })
    };
    newest.iter().map(digest).collect()
}

/// As many as a member keeps of each peer.
const DIGESTS_MAX: usize = 16;
const SNAPSHOTS_MAX: usize = 1;
/// A federation at its bounds (100,000 resources and gateways) encodes to about 200 MiB.
const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024 * 1024;
