//! Whose certificates are refused: identities that were revoked, and clusters that were deleted, from then on.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use archipelago_identity::revocation::{RevocationList, Revocations, Subject};
use archipelago_proto::v1::{Revocation, revocation};
use tokio_util::sync::CancellationToken;

use crate::{consensus::Consensus, machine::State};

/// What the state refuses, as this process checks it.
pub(crate) fn in_force(state: &State) -> Revocations {
    let mut revocations = Revocations::default();
    for (spiffe_id, revocation) in state.revocations() {
        // Judged when it was revoked: an id that is none cannot stand in a certificate either.
        if let Ok(id) = spiffe_id.parse() {
            revocations.refuse(Subject::Identity(id), time(revocation.issued_before_unix));
        }
    }
    for (cluster, deleted) in state.deleted_clusters() {
        revocations.refuse(Subject::Cluster(cluster.clone()), time(deleted_before_unix(deleted.deleted_unix_ms)));
    }
    revocations
}

/// The same, as gateways get it; in a fixed order.
pub(crate) fn config(state: &State) -> Vec<Revocation> {
    let identities = state.revocations().iter().map(|(spiffe_id, revocation)| Revocation {
        subject: Some(revocation::Subject::SpiffeId(spiffe_id.clone())),
        issued_before_unix: revocation.issued_before_unix,
    });
    let clusters = state.deleted_clusters().iter().map(|(cluster, deleted)| Revocation {
        subject: Some(revocation::Subject::Cluster(cluster.clone())),
        issued_before_unix: deleted_before_unix(deleted.deleted_unix_ms),
    });
    identities.chain(clusters).collect()
}

/// Keeps `list` as the state has it: sessions and connections of whoever it names end when it changes.
pub(crate) async fn follow(consensus: Arc<Consensus>, list: RevocationList, stopping: CancellationToken) {
    let mut versions = consensus.published.subscribe();
    let mut seen = consensus.read(|state| (state.revocations().clone(), state.deleted_clusters().clone()));
    list.replace(consensus.read(in_force));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = versions.changed() => if changed.is_err() { return },
        }
        let now = consensus.read(|state| (state.revocations().clone(), state.deleted_clusters().clone()));
        // Most versions are about something else.
        if !(now.0.ptr_eq(&seen.0) && now.1.ptr_eq(&seen.1)) {
            list.replace(consensus.read(in_force));
            seen = now;
        }
    }
}

/// Whole seconds, rounded up, as certificates count.
fn deleted_before_unix(deleted_unix_ms: i64) -> i64 {
    deleted_unix_ms.div_euclid(1_000).saturating_add(1)
}

fn time(unix: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}
