//! The state as bytes: `magic | sha256(body) | body`, body being one [`Image`].

use std::sync::Arc;

use archipelago_proto::log::v1::{
    self as log, Envelope, Image, StoredOutcome, StoredResource, StoredRevocation, StoredToken, TcpSlot,
};
use prost::Message;

use super::{
    apply::SERVICE_EXPORT,
    command::{RegisterGateway, ReportExports},
    dedup::{Dedup, Remembered, RequestKey},
    fleet::tcp_ports,
    format,
    slots::{Name, Slot, Slots, WantChange},
    state::{DeletedCluster, Gateway, Revocation, State, Stored, Token},
    tokens::Tokens,
};
use crate::digest::sha256;

/// Encodes the whole state. Equal states give equal bytes: every map in it is ordered.
pub(super) fn encode(state: &State) -> Vec<u8> {
    let body = image(state).encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 32 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&sha256(&body));
    bytes.extend_from_slice(&body);
    bytes
}

/// The inverse of [`encode`], for formats up to `supported`.
///
/// # Errors
/// The bytes are no state image, are damaged, or hold what this version does not know.
pub(super) fn decode(bytes: &[u8], supported: u32) -> Result<State, ImageError> {
    if bytes.starts_with(MAGIC_BEFORE_FORMATS) {
        return Err(ImageError::BeforeFormats);
    }
    let body = bytes.strip_prefix(MAGIC).ok_or(ImageError::Foreign)?;
    let (hash, body) = body.split_at_checked(32).ok_or(ImageError::Foreign)?;
    if sha256(body) != hash {
        return Err(ImageError::Damaged);
    }
    let Envelope { format_version } = Envelope::decode(body)?;
    if format_version > supported {
        return Err(ImageError::Format { format_version, supported });
    }
    let image = Image::decode(body)?;
    if image.encoded_len() != body.len() {
        return Err(ImageError::Field);
    }
    state(image)
}

/// Why bytes are no state.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error("not a snapshot of this control plane's state")]
    Foreign,
    #[error(
        "the state was written by a version from before log formats, which cannot be upgraded: found a new federation"
    )]
    BeforeFormats,
    #[error("the snapshot is damaged: its hash does not match")]
    Damaged,
    #[error(
        "the state is of format {format_version}, this version knows formats up to {supported}: run a newer version"
    )]
    Format { format_version: u32, supported: u32 },
    #[error("the state holds what this version does not know: run a newer version")]
    Field,
    #[error("the snapshot cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the snapshot holds what is not valid: {0}")]
    Invalid(&'static str),
}

fn image(state: &State) -> Image {
    let State {
        format_version,
        restore_epoch,
        revision,
        fleet,
        policy_revision,
        resources,
        deleted_clusters,
        reports,
        gateways,
        slots,
        ca,
        tokens,
        issued,
        operators,
        revocations,
        members,
        last_member,
        dedup,
    } = state;
    Image {
        format_version: *format_version,
        restore_epoch: *restore_epoch,
        revision: *revision,
        fleet: *fleet,
        policy_revision: *policy_revision,
        resources: resources
            .iter()
            .map(|(key, stored)| StoredResource {
                key: Some(key.clone().into()),
                canonical: stored.canonical.clone(),
                created_revision: stored.created_revision,
                modified_revision: stored.modified_revision,
                origin: stored.origin.clone(),
            })
            .collect(),
        deleted_clusters: deleted_clusters
            .iter()
            .map(|(cluster, deleted)| log::DeletedCluster {
                cluster: cluster.clone(),
                deleted_unix_ms: deleted.deleted_unix_ms,
                recreated: deleted.recreated,
            })
            .collect(),
        reports: reports
            .iter()
            .map(|(cluster, services)| ReportExports { cluster: cluster.clone(), services: services.to_vec() })
            .collect(),
        gateways: gateways
            .iter()
            .map(|((cluster, name), gateway)| RegisterGateway {
                cluster: cluster.clone(),
                name: name.clone(),
                spiffe_id: gateway.spiffe_id.clone(),
                addresses: Some(gateway.addresses.clone()),
                workers: gateway.workers,
            })
            .collect(),
        tcp_slots: slots
            .held()
            .map(|((namespace, name, port), slot)| TcpSlot {
                namespace: namespace.clone(),
                name: name.clone(),
                slot: slot.slot,
                cluster: slot.cluster.clone(),
                freed_unix_ms: slot.freed_unix_ms,
                port: *port,
            })
            .collect(),
        ca: ca.as_deref().cloned(),
        tokens: tokens
            .all()
            .iter()
            .map(|(secret, token)| StoredToken {
                secret_sha256: secret.to_vec(),
                cluster: token.cluster.clone(),
                role: token.role,
                name: token.name.clone(),
                expires_unix_ms: token.expires_unix_ms,
                used_unix_ms: token.used_unix_ms,
            })
            .collect(),
        issued: issued.iter().map(|record| (**record).clone()).collect(),
        operators: operators.values().map(|record| (**record).clone()).collect(),
        revocations: revocations
            .iter()
            .map(|(spiffe_id, revocation)| StoredRevocation {
                spiffe_id: spiffe_id.clone(),
                issued_before_unix: revocation.issued_before_unix,
                reason: revocation.reason.clone(),
                by: revocation.by.clone(),
            })
            .collect(),
        members: members.values().map(|member| (**member).clone()).collect(),
        last_member: *last_member,
        outcomes: dedup
            .iter()
            .map(|(key, remembered)| StoredOutcome {
                actor: key.actor.clone(),
                request_id: key.request_id.clone(),
                fingerprint: remembered.fingerprint.to_vec(),
                outcome: remembered.outcome.clone(),
            })
            .collect(),
    }
}

fn state(image: Image) -> Result<State, ImageError> {
    let mut state = State {
        format_version: image.format_version.max(format::BASE),
        restore_epoch: image.restore_epoch,
        revision: image.revision,
        fleet: image.fleet,
        policy_revision: image.policy_revision,
        ca: image.ca.map(Arc::new),
        members: image.members.into_iter().map(|member| (member.id, Arc::new(member))).collect(),
        last_member: image.last_member,
        issued: image.issued.into_iter().map(Arc::new).collect(),
        operators: image.operators.into_iter().map(|record| (record.spiffe_id.clone(), Arc::new(record))).collect(),
        ..State::default()
    };
    for stored in image.resources {
        let StoredResource { key, canonical, created_revision, modified_revision, origin } = stored;
        let key = key.ok_or(ImageError::Invalid("a resource without a key"))?;
        let stored = Stored { canonical, created_revision, modified_revision, origin };
        state.resources.insert(key.into(), Arc::new(stored));
    }
    for deleted in image.deleted_clusters {
        let log::DeletedCluster { cluster, deleted_unix_ms, recreated } = deleted;
        state.deleted_clusters.insert(cluster, DeletedCluster { deleted_unix_ms, recreated });
    }
    for report in image.reports {
        state.reports.insert(report.cluster, Arc::new(report.services));
    }
    for gateway in image.gateways {
        let RegisterGateway { cluster, name, spiffe_id, addresses, workers } = gateway;
        let gateway = Gateway { spiffe_id, addresses: addresses.unwrap_or_default(), workers };
        state.gateways.insert((cluster, name), Arc::new(gateway));
    }
    for revocation in image.revocations {
        let StoredRevocation { spiffe_id, issued_before_unix, reason, by } = revocation;
        state.revocations.insert(spiffe_id, Arc::new(Revocation { issued_before_unix, reason, by }));
    }
    let held = image.tcp_slots.into_iter().map(|stored| {
        let TcpSlot { namespace, name, slot, cluster, freed_unix_ms, port } = stored;
        ((namespace, name, port), Slot { slot, cluster, freed_unix_ms })
    });
    state.slots = slots(held, &state);
    state.tokens = tokens(image.tokens)?;
    state.dedup = outcomes(image.outcomes)?;
    Ok(state)
}

/// The index over these slots that follows from the rest of the state.
pub(super) fn slots(held: impl IntoIterator<Item = (Name, Slot)>, state: &State) -> Slots {
    let mut slots = Slots::default();
    for (name, slot) in held {
        slots.restore_held(name, slot);
    }
    for key in state.resources.keys().filter(|key| key.kind == SERVICE_EXPORT) {
        let service = (key.namespace.clone(), key.name.clone());
        slots.restore_want(WantChange::Operator { service });
    }
    for (cluster, services) in &state.reports {
        for (name, exported) in tcp_ports(services, state.format_version) {
            slots.restore_want(WantChange::Reported { name, cluster, exported });
        }
    }
    slots
}

fn tokens(stored: Vec<StoredToken>) -> Result<Tokens, ImageError> {
    let mut tokens = Tokens::default();
    for token in stored {
        let StoredToken { secret_sha256, cluster, role, name, expires_unix_ms, used_unix_ms } = token;
        tokens.insert(hash(&secret_sha256)?, Token { cluster, role, name, expires_unix_ms, used_unix_ms });
    }
    Ok(tokens)
}

fn outcomes(stored: Vec<StoredOutcome>) -> Result<Dedup, ImageError> {
    let mut dedup = Dedup::default();
    for StoredOutcome { actor, request_id, fingerprint, outcome } in stored {
        let fingerprint = hash(&fingerprint)?;
        dedup.insert(RequestKey { actor, request_id }, Remembered { fingerprint, outcome });
    }
    Ok(dedup)
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], ImageError> {
    <[u8; 32]>::try_from(bytes).map_err(|_| ImageError::Invalid("a hash of another length"))
}

/// Of the container; what is inside says its format itself.
const MAGIC: &[u8] = b"archipelago-image-1\n";
const MAGIC_BEFORE_FORMATS: &[u8] = b"archipelago-state-1\n";
