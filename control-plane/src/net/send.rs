//! To one peer: batches of messages on one stream, snapshots in chunks on connections of their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use archipelago_base::backoff::Backoff;
use archipelago_identity::{LiveCredential, SpiffeId, tls::Expect};
use archipelago_proto::v1::{self, RaftBatch, SnapshotChunk, raft_transport_client::RaftTransportClient};
use archipelago_raft::StateDigest;
use archipelago_rpc::grpc;
use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::Message;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::LateHandle;
use crate::{digest::sha256, metrics::Metrics};

/// Queues towards one peer.
pub(super) struct Lane {
    pub(super) messages: mpsc::Sender<Outgoing>,
    pub(super) snapshots: mpsc::Sender<Message>,
    /// Set when a message did not fit; the task behind the queue reports it.
    pub(super) overflowed: Arc<AtomicBool>,
}

/// What goes out on a peer's stream.
#[expect(clippy::large_enum_variant, reason = "nearly every item is a message")]
pub(super) enum Outgoing {
    Message(Message),
    Digests(Vec<StateDigest>),
}

/// One peer and how to reach it.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) federation: String,
    pub(super) address: String,
    pub(super) spiffe_id: SpiffeId,
    pub(super) credential: LiveCredential,
    pub(super) raft: LateHandle,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stopping: CancellationToken,
    pub(super) overflowed: Arc<AtomicBool>,
}

impl Link {
    /// Keeps a stream of messages open for as long as the member runs.
    pub(super) async fn carry_messages(self, mut queued: mpsc::Receiver<Outgoing>) {
        let mut backoff = Backoff::new(RECONNECT_FLOOR, RECONNECT, RECONNECT_MAX);
        loop {
            let ended = tokio::select! {
                () = self.stopping.cancelled() => return,
                ended = self.stream_messages(&mut queued) => ended,
            };
            let Ended { after_messages, reason } = ended;
            if after_messages {
                backoff.reset();
            }
            let wait = sleep(backoff.next_delay(rand::random()));
            let failures = backoff.failures();
            if failures == 1 {
                tracing::info!(peer = self.to, reason, "connection to the peer ended");
            } else {
                tracing::debug!(peer = self.to, reason, failures, "the peer cannot be reached");
            }
            self.unreachable();
            tokio::pin!(wait);
            // What Raft sends meanwhile is lost, as on any network, and must not be old news later.
            loop {
                tokio::select! {
                    () = self.stopping.cancelled() => return,
                    () = &mut wait => break,
                    message = queued.recv() => match message {
                        Some(Outgoing::Message(_)) => self.metrics.raft_dropped("unreachable"),
                        Some(Outgoing::Digests(_)) => {}
                        None => return,
                    },
                }
            }
        }
    }

    async fn stream_messages(&self, queued: &mut mpsc::Receiver<Outgoing>) -> Ended {
        let failed = |reason: String| Ended { after_messages: false, reason };
        let mut client = match self.connect().await {
            Ok(client) => client,
            Err(reason) => return failed(reason),
        };
        let (batches, outgoing) = mpsc::channel(BATCHES_MAX);
        let mut answer = std::pin::pin!(client.messages(ReceiverStream::new(outgoing)));
        let mut gathered = Vec::new();
        let mut sent = false;
        loop {
            gathered.clear();
            tokio::select! {
                ended = &mut answer => {
                    let reason = ended.map_or_else(|status| status.message().to_owned(), |_| "the peer ended the stream".to_owned());
                    return Ended { after_messages: sent, reason };
                }
                count = queued.recv_many(&mut gathered, BATCH_MESSAGES_MAX) => if count == 0 {
                    return Ended { after_messages: sent, reason: "this member is stopping".to_owned() };
                },
            }
            for batch in self.batches(&gathered) {
                // The call must be polled while we wait, for it is what drains `outgoing`.
                let sending = timeout(SEND_TIMEOUT, batches.send(batch));
                tokio::select! {
                    biased;
                    delivered = sending => if !matches!(delivered, Ok(Ok(()))) {
                        return Ended { after_messages: sent, reason: "the peer does not take messages".to_owned() };
                    },
                    ended = &mut answer => {
                        let reason = ended.map_or_else(|status| status.message().to_owned(), |_| "the peer ended the stream".to_owned());
                        return Ended { after_messages: sent, reason };
                    }
                }
                sent = true;
            }
            if self.overflowed.swap(false, Ordering::Relaxed) {
                // The peer lives but missed something: probe before streaming on.
                self.unreachable();
            }
        }
    }

    /// Splits by size, so that no batch grows past what the peer accepts.
    fn batches(&self, outgoing: &[Outgoing]) -> Vec<RaftBatch> {
        let empty = || RaftBatch { from: self.from, federation: self.federation.clone(), ..RaftBatch::default() };
        let mut batches = vec![empty()];
        let mut bytes = 0;
        for item in outgoing {
            let message = match item {
                Outgoing::Message(message) => message,
                Outgoing::Digests(digests) => {
                    let digest = |StateDigest { log_index, digest }: &StateDigest| v1::StateDigest {
                        log_index: *log_index,
                        sha256: digest.0.to_vec(),
                    };
                    if let Some(batch) = batches.last_mut() {
                        batch.digests = digests.iter().map(digest).collect();
                    }
                    continue;
                }
            };
            let encoded = message.encode_to_vec();
            if bytes > 0 && bytes + encoded.len() > BATCH_BYTES {
                batches.push(empty());
                bytes = 0;
            }
            bytes += encoded.len();
            if let Some(batch) = batches.last_mut() {
                batch.messages.push(encoded);
            }
        }
        batches
    }

    /// Delivers snapshots one after another, and always says how that ended: otherwise the peer would starve.
    pub(super) async fn carry_snapshots(self, mut queued: mpsc::Receiver<Message>) {
        loop {
            let message = tokio::select! {
                () = self.stopping.cancelled() => return,
                message = queued.recv() => match message {
                    Some(message) => message,
                    None => return,
                },
            };
            let bytes = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len());
            let delivered = tokio::select! {
                () = self.stopping.cancelled() => return,
                delivered = timeout(SNAPSHOT_TIMEOUT, self.deliver_snapshot(message)) => delivered,
            };
            let reason = match delivered {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(reason),
                Err(_) => Some("it took too long".to_owned()),
            };
            match &reason {
                None => tracing::info!(peer = self.to, bytes, "snapshot delivered"),
                Some(reason) => tracing::warn!(peer = self.to, bytes, reason, "snapshot not delivered"),
            }
            self.metrics.snapshot_sent(reason.is_none());
            if let Some(raft) = self.raft.get() {
                raft.report_snapshot(self.to, reason.is_none());
            }
        }
    }

    async fn deliver_snapshot(&self, mut message: Message) -> Result<(), String> {
        let snapshot = message.snapshot.as_mut().ok_or_else(|| "a snapshot message without a snapshot".to_owned())?;
        let data: Bytes = std::mem::take(&mut snapshot.data);
        let head = message.encode_to_vec();
        let mut client = self.connect().await?;
        let (chunks, outgoing) = mpsc::channel(CHUNKS_MAX);
        let (from, federation) = (self.from, self.federation.clone());
        let produce = async move {
            let total = data.len();
            let mut offset = 0;
            loop {
                let end = (offset + CHUNK_BYTES).min(total);
                let last = end == total;
                let chunk = SnapshotChunk {
                    from,
                    federation: federation.clone(),
                    message: if offset == 0 { head.clone() } else { Vec::new() },
                    offset: offset as u64,
                    data: data.slice(offset..end).to_vec(),
                    last,
                    total: if last { total as u64 } else { 0 },
                    sha256: if last { sha256(&data).to_vec() } else { Vec::new() },
                };
                if chunks.send(chunk).await.is_err() || last {
                    return;
                }
                offset = end;
            }
        };
        let (answer, ()) = tokio::join!(client.snapshot(ReceiverStream::new(outgoing)), produce);
        answer.map(|_| ()).map_err(|status| status.message().to_owned())
    }

    async fn connect(&self) -> Result<RaftTransportClient<tonic::transport::Channel>, String> {
        let expect = Expect::Id(self.spiffe_id.clone());
        let channel = grpc::connect(std::slice::from_ref(&self.address), &self.credential, expect)
            .await
            .map_err(|error| error.to_string())?;
        Ok(RaftTransportClient::new(channel).max_encoding_message_size(BATCH_BYTES_MAX))
    }

    fn unreachable(&self) {
        if let Some(raft) = self.raft.get() {
            raft.report_unreachable(self.to);
        }
    }
}

struct Ended {
    /// The stream worked for a while: reconnect at once.
    after_messages: bool,
    reason: String,
}

const BATCH_MESSAGES_MAX: usize = 256;
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// One message may hold one entry above every bound but the command's own (8 MiB).
pub(super) const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
const BATCHES_MAX: usize = 4;
pub(super) const CHUNK_BYTES: usize = 1024 * 1024;
const CHUNKS_MAX: usize = 2;
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the 30 s after which the Raft core gives up on a report by itself.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(25);
const RECONNECT_FLOOR: Duration = Duration::from_millis(20);
const RECONNECT: Duration = Duration::from_millis(30);
/// A member that restarts must be heard before the next election timeout.
const RECONNECT_MAX: Duration = Duration::from_millis(230);
