//! The state as bytes: `magic | sha256(body) | body`, body being one prost message.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_model::resource::Resource;
use archipelago_proto::v1;
use prost::Message;

use super::{
    command::{CaInit, IssuedRecord},
    dedup::{Dedup, Remembered, RequestKey},
    state::{Gateway, Meta, State, Token, TokenUse},
};
use crate::ca::sha256;

/// Encodes the whole state. Equal states give equal bytes: every map in it is ordered.
pub(super) fn encode(state: &State) -> Vec<u8> {
    let body = Image::from(state).encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 32 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&sha256(&body));
    bytes.extend_from_slice(&body);
    bytes
}

/// The inverse of [`encode`].
///
/// # Errors
/// The bytes are not a state image, or are damaged.
pub(super) fn decode(bytes: &[u8]) -> Result<State, ImageError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ImageError::Foreign)?;
    let (hash, body) = body.split_at_checked(32).ok_or(ImageError::Foreign)?;
    if sha256(body) != hash {
        return Err(ImageError::Damaged);
    }
    State::try_from(Image::decode(body)?)
}

/// Why bytes are no state.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error("not a snapshot of this control plane's state")]
    Foreign,
    #[error("the snapshot is damaged: its hash does not match")]
    Damaged,
    #[error("the snapshot cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the snapshot holds what is not valid: {0}")]
    Invalid(String),
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<ResourceImage>,
    #[prost(string, repeated, tag = "3")]
    deleted_clusters: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    reports: Vec<ReportImage>,
    #[prost(message, repeated, tag = "5")]
    gateways: Vec<GatewayImage>,
    #[prost(message, repeated, tag = "6")]
    tcp_slots: Vec<SlotImage>,
    #[prost(message, optional, tag = "7")]
    ca: Option<CaInit>,
    #[prost(message, repeated, tag = "8")]
    tokens: Vec<TokenImage>,
    #[prost(message, repeated, tag = "9")]
    issued: Vec<IssuedRecord>,
    #[prost(message, repeated, tag = "10")]
    outcomes: Vec<OutcomeImage>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceImage {
    #[prost(string, tag = "1")]
    json: String,
    #[prost(uint64, tag = "2")]
    created_revision: u64,
    #[prost(uint64, tag = "3")]
    modified_revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ReportImage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(message, repeated, tag = "2")]
    services: Vec<v1::ServiceReport>,
}

#[derive(Clone, PartialEq, Message)]
struct GatewayImage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    spiffe_id: String,
    #[prost(message, optional, tag = "4")]
    addresses: Option<v1::GatewayAddresses>,
    #[prost(uint32, tag = "5")]
    workers: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SlotImage {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    slot: u32,
}

#[derive(Clone, PartialEq, Message)]
struct TokenImage {
    #[prost(bytes = "vec", tag = "1")]
    secret_sha256: Vec<u8>,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(int32, tag = "3")]
    role: i32,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(int64, tag = "5")]
    expires_unix_ms: i64,
    #[prost(message, optional, tag = "6")]
    used: Option<UseImage>,
}

#[derive(Clone, PartialEq, Message)]
struct UseImage {
    #[prost(int64, tag = "1")]
    unix_ms: i64,
    #[prost(string, tag = "2")]
    by: String,
}

#[derive(Clone, PartialEq, Message)]
struct OutcomeImage {
    #[prost(string, tag = "1")]
    actor: String,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(bytes = "vec", tag = "3")]
    fingerprint: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    outcome: Vec<u8>,
}

impl From<&State> for Image {
    fn from(state: &State) -> Self {
        Self {
            revision: state.revision,
            resources: state
                .meta
                .values()
                .map(|meta| ResourceImage {
                    json: meta.json.clone(),
                    created_revision: meta.created_revision,
                    modified_revision: meta.modified_revision,
                })
                .collect(),
            deleted_clusters: state.deleted_clusters.iter().cloned().collect(),
            reports: state
                .reports
                .iter()
                .map(|(cluster, services)| ReportImage { cluster: cluster.clone(), services: services.clone() })
                .collect(),
            gateways: state
                .gateways
                .iter()
                .map(|((cluster, name), gateway)| GatewayImage {
                    cluster: cluster.clone(),
                    name: name.clone(),
                    spiffe_id: gateway.spiffe_id.clone(),
                    addresses: Some(gateway.addresses.clone()),
                    workers: gateway.workers,
                })
                .collect(),
            tcp_slots: state
                .tcp_slots
                .iter()
                .map(|((namespace, name), slot)| SlotImage {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    slot: *slot,
                })
                .collect(),
            ca: state.ca.clone(),
            tokens: state
                .tokens
                .iter()
                .map(|(secret, token)| TokenImage {
                    secret_sha256: secret.to_vec(),
                    cluster: token.cluster.clone(),
                    role: token.role,
                    name: token.name.clone(),
                    expires_unix_ms: token.expires_unix_ms,
                    used: token.used.as_ref().map(|used| UseImage { unix_ms: used.unix_ms, by: used.by.clone() }),
                })
                .collect(),
            issued: state.issued.iter().cloned().collect(),
            outcomes: state
                .dedup
                .iter()
                .map(|(key, remembered)| OutcomeImage {
                    actor: key.actor.clone(),
                    request_id: key.request_id.clone(),
                    fingerprint: remembered.fingerprint.to_vec(),
                    outcome: remembered.outcome.clone(),
                })
                .collect(),
        }
    }
}

impl TryFrom<Image> for State {
    type Error = ImageError;

    fn try_from(image: Image) -> Result<Self, ImageError> {
        let mut resources = BTreeMap::new();
        let mut meta = BTreeMap::new();
        for stored in image.resources {
            let resource = Resource::from_json(&stored.json).map_err(|error| ImageError::Invalid(error.to_string()))?;
            let key = resource.key();
            resources.insert(key.clone(), resource);
            meta.insert(
                key,
                Meta {
                    json: stored.json,
                    created_revision: stored.created_revision,
                    modified_revision: stored.modified_revision,
                },
            );
        }
        let mut tokens = BTreeMap::new();
        for token in image.tokens {
            let secret = hash(&token.secret_sha256)?;
            let used = token.used.map(|used| TokenUse { unix_ms: used.unix_ms, by: used.by });
            tokens.insert(
                secret,
                Token {
                    cluster: token.cluster,
                    role: token.role,
                    name: token.name,
                    expires_unix_ms: token.expires_unix_ms,
                    used,
                },
            );
        }
        let mut dedup = Dedup::default();
        for outcome in image.outcomes {
            let fingerprint = hash(&outcome.fingerprint)?;
            let key = RequestKey { actor: outcome.actor, request_id: outcome.request_id };
            dedup.insert(key, Remembered { fingerprint, outcome: outcome.outcome });
        }
        Ok(Self {
            revision: image.revision,
            resources,
            meta,
            deleted_clusters: image.deleted_clusters.into_iter().collect::<BTreeSet<_>>(),
            reports: image.reports.into_iter().map(|report| (report.cluster, report.services)).collect(),
            gateways: image
                .gateways
                .into_iter()
                .map(|gateway| {
                    let record = Gateway {
                        spiffe_id: gateway.spiffe_id,
                        addresses: gateway.addresses.unwrap_or_default(),
                        workers: gateway.workers,
                    };
                    ((gateway.cluster, gateway.name), record)
                })
                .collect(),
            tcp_slots: image.tcp_slots.into_iter().map(|slot| ((slot.namespace, slot.name), slot.slot)).collect(),
            ca: image.ca,
            tokens,
            issued: image.issued.into_iter().collect(),
            dedup,
        })
    }
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], ImageError> {
    <[u8; 32]>::try_from(bytes).map_err(|_| ImageError::Invalid("a hash of another length".to_owned()))
}

/// Format 1. A change of format is a new magic and a decoder for both.
const MAGIC: &[u8] = b"archipelago-state-1\n";
