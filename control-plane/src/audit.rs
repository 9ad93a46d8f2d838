//! Issued certificates into the replicated audit list: batched, bounded, and never in the way of issuing.

use std::{sync::Arc, time::Duration};

use archipelago_identity::SpiffeId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    ca::Issued,
    consensus::{Consensus, unix_ms},
    machine::command::{Action, IssuedRecord, RecordIssued},
    metrics::Metrics,
};

/// Where issued certificates are noted.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    member: u64,
    records: mpsc::Sender<IssuedRecord>,
    metrics: Arc<Metrics>,
}

impl Audit {
    /// The list and the task that writes it.
    pub(crate) fn new(member: u64, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<IssuedRecord>) {
        let (records, received) = mpsc::channel(QUEUE_MAX);
        (Self { member, records, metrics }, received)
    }

    /// Notes a certificate. When the control plane has had no leader for long, the record is counted and dropped.
    pub(crate) fn record(&self, record: IssuedRecord) {
        if self.records.try_send(record).is_err() {
            self.metrics.audit_dropped();
        }
    }

    /// What is noted of a certificate.
    pub(crate) fn describe(&self, issued: &Issued, spiffe_id: &SpiffeId, public_key_sha256: [u8; 32]) -> IssuedRecord {
        IssuedRecord {
            serial: issued.serial.to_vec(),
            spiffe_id: spiffe_id.to_string(),
            public_key_sha256: public_key_sha256.to_vec(),
            not_after_unix: issued.not_after.unix_timestamp(),
            member: self.member,
            issued_unix_ms: unix_ms(),
        }
    }
}

/// Commits batches until cancelled.
pub(crate) async fn write_batches(
    mut records: mpsc::Receiver<IssuedRecord>,
    consensus: Arc<Consensus>,
    stopping: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        if batch.is_empty() {
            tokio::select! {
                () = stopping.cancelled() => return,
                received = records.recv_many(&mut batch, BATCH_MAX) => if received == 0 { return },
            }
        }
        // A fleet that joins at once becomes a handful of log entries instead of thousands.
        tokio::time::sleep(GATHER).await;
        while batch.len() < BATCH_MAX {
            let Ok(record) = records.try_recv() else { break };
            batch.push(record);
        }
        let action = Action::RecordIssued(RecordIssued { certificates: batch.clone() });
        // The id makes the retry below commit once.
        let id = format!("audit-{:032x}", rand::random::<u128>());
        let actor = format!("member:{}", consensus.node_id);
        while let Err(error) = consensus.commit(&id, &actor, action.clone()).await {
            tracing::debug!(%error, "audit records wait for a leader");
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        batch.clear();
    }
}

const QUEUE_MAX: usize = 10_000;
const BATCH_MAX: usize = 1_000;
const GATHER: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(1);
