//! The state that every member holds, and how it is read.
//!
//! All maps are persistent: a clone costs nothing, and a change costs what it changes. So a reader takes a clone and works
//! on it as long as it likes, and a checkpoint is one too.

use std::{fmt, sync::Arc};

use archipelago_model::{resource, version::Version};
use bytes::Bytes;
use imbl::{OrdMap, Vector};

use super::{
    command::{self, CaInit, ControlPlaneMember, IssuedRecord, Outcome, ReportedService},
    dedup::{Dedup, RequestKey},
    format,
    slots::Slots,
    tokens::Tokens,
};

/// Everything the federation agrees on.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub(super) format_version: u32,
    pub(super) restore_epoch: u64,
    pub(super) revision: u64,
    pub(super) fleet: u64,
    pub(super) policy_revision: u64,
    pub(super) resources: OrdMap<Key, Arc<Stored>>,
    pub(super) deleted_clusters: OrdMap<String, DeletedCluster>,
    pub(super) reports: OrdMap<String, Arc<Vec<ReportedService>>>,
    pub(super) gateways: OrdMap<(String, String), Arc<Gateway>>,
    pub(super) slots: Slots,
    pub(super) ca: Option<Arc<CaInit>>,
    pub(super) tokens: Tokens,
    pub(super) issued: Vector<Arc<IssuedRecord>>,
    pub(super) operators: OrdMap<String, Arc<IssuedRecord>>,
    pub(super) revocations: OrdMap<String, Arc<Revocation>>,
    pub(super) members: OrdMap<u64, Arc<ControlPlaneMember>>,
    pub(super) last_member: u64,
    pub(super) dedup: Dedup,
}

/// What identifies a resource. Its kind is a word: members keep kinds that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// As it is written in a file.
    pub kind: String,
    /// Empty for kinds without a namespace.
    pub namespace: String,
    /// Unique within kind and namespace.
    pub name: String,
}

/// A resource as it is kept: opaque, with its revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Canonical form of the whole resource.
    pub canonical: Bytes,
    /// Revision that created it.
    pub created_revision: u64,
    /// Revision that changed it last.
    pub modified_revision: u64,
    /// Cluster whose users wrote it there; empty: an operator.
    pub origin: String,
}

/// A cluster whose `Cluster` resource was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletedCluster {
    /// When, Unix milliseconds.
    pub deleted_unix_ms: i64,
    /// A Cluster of this name was created again; what was issued before the deletion stays suspect.
    pub recreated: bool,
}

/// An identity whose certificates from before are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Those whose notBefore is older, Unix seconds.
    pub issued_before_unix: i64,
    /// For people.
    pub reason: String,
    /// SPIFFE id of the operator who did it.
    pub by: String,
}

/// A registered gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Identity it proved.
    pub spiffe_id: String,
    /// Where it listens.
    pub addresses: command::GatewayAddresses,
    /// Worker count.
    pub workers: u32,
}

/// A join token; its secret is known only to its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Cluster that the holder joins.
    pub cluster: String,
    /// Encoded [`command::Role`].
    pub role: i32,
    /// Name within the cluster.
    pub name: String,
    /// End of life, Unix milliseconds.
    pub expires_unix_ms: i64,
    /// When it was used, Unix milliseconds.
    pub used_unix_ms: Option<i64>,
}

impl State {
    /// Where the state stands in the history of the federation.
    #[must_use]
    pub fn version(&self) -> Version {
        Version { restore_epoch: self.restore_epoch, revision: self.revision, fleet: self.fleet }
    }

    /// The policy revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Revision of the last write of any resource: what admission reads, and names in its command.
    #[must_use]
    pub fn policy_revision(&self) -> u64 {
        self.policy_revision
    }

    /// Format of the log that every member has agreed to.
    #[must_use]
    pub fn format_version(&self) -> u32 {
        self.format_version
    }

    /// All resources, as they are stored.
    #[must_use]
    pub fn resources(&self) -> &OrdMap<Key, Arc<Stored>> {
        &self.resources
    }

    /// What each cluster's agent reported, sorted by namespace and name.
    #[must_use]
    pub fn reports(&self) -> &OrdMap<String, Arc<Vec<ReportedService>>> {
        &self.reports
    }

    /// The registry of gateways by (cluster, name). Gateways of deleted clusters are not in it.
    #[must_use]
    pub fn gateways(&self) -> &OrdMap<(String, String), Arc<Gateway>> {
        &self.gateways
    }

    /// Whether the cluster was deleted by an operator, and not created again.
    #[must_use]
    pub fn is_deleted_cluster(&self, cluster: &str) -> bool {
        self.deleted_clusters.get(cluster).is_some_and(|deleted| !deleted.recreated)
    }

    /// Clusters that were ever deleted, for as long as a certificate from before may live.
    #[must_use]
    pub fn deleted_clusters(&self) -> &OrdMap<String, DeletedCluster> {
        &self.deleted_clusters
    }

    /// The gateways' ports for TCP ports of services that are exported now, by (namespace, name, port); the port is 0 where
    /// the service has one and the federation's format none for it.
    pub fn tcp_slots(&self) -> impl Iterator<Item = (&(String, String, u32), u32)> {
        self.slots.held().filter(|(_, slot)| slot.freed_unix_ms.is_none()).map(|(name, slot)| (name, slot.slot))
    }

    /// The authority, once installed.
    #[must_use]
    pub fn ca(&self) -> Option<&Arc<CaInit>> {
        self.ca.as_ref()
    }

    /// Tokens by the SHA-256 of their secret.
    #[must_use]
    pub fn tokens(&self) -> &OrdMap<[u8; 32], Token> {
        self.tokens.all()
    }

    /// Recently issued certificates, oldest first.
    #[must_use]
    pub fn issued(&self) -> &Vector<Arc<IssuedRecord>> {
        &self.issued
    }

    /// The newest certificate of each operator.
    #[must_use]
    pub fn operators(&self) -> &OrdMap<String, Arc<IssuedRecord>> {
        &self.operators
    }

    /// Revoked identities by SPIFFE id. Deleted clusters count as revoked, too: [`Self::deleted_clusters`].
    #[must_use]
    pub fn revocations(&self) -> &OrdMap<String, Arc<Revocation>> {
        &self.revocations
    }

    /// Members of the control plane by id. Empty until the first change: then they are those of the founding.
    #[must_use]
    pub fn members(&self) -> &OrdMap<u64, Arc<ControlPlaneMember>> {
        &self.members
    }

    /// The highest id that a member ever had; 0 until the first change.
    #[must_use]
    pub fn last_member(&self) -> u64 {
        self.last_member
    }

    /// The outcome of an earlier request, while the window still holds it.
    #[must_use]
    pub fn remembered(&self, actor: &str, request_id: &str) -> Option<Outcome> {
        let key = RequestKey { actor: actor.to_owned(), request_id: request_id.to_owned() };
        let remembered = self.dedup.get(&key)?;
        prost::Message::decode(remembered.outcome.as_slice()).ok()
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            format_version: format::BASE,
            restore_epoch: 0,
            revision: 0,
            fleet: 0,
            policy_revision: 0,
            resources: OrdMap::default(),
            deleted_clusters: OrdMap::default(),
            reports: OrdMap::default(),
            gateways: OrdMap::default(),
            slots: Slots::default(),
            ca: None,
            tokens: Tokens::default(),
            issued: Vector::default(),
            operators: OrdMap::default(),
            revocations: OrdMap::default(),
            members: OrdMap::default(),
            last_member: 0,
            dedup: Dedup::default(),
        }
    }
}

impl From<command::ResourceKey> for Key {
    fn from(key: command::ResourceKey) -> Self {
        let command::ResourceKey { kind, namespace, name } = key;
        Self { kind, namespace, name }
    }
}

impl From<Key> for command::ResourceKey {
    fn from(key: Key) -> Self {
        let Key { kind, namespace, name } = key;
        Self { kind, namespace, name }
    }
}

impl From<&resource::ResourceKey> for Key {
    fn from(key: &resource::ResourceKey) -> Self {
        Self { kind: key.kind.to_string(), namespace: key.namespace.clone(), name: key.name.clone() }
    }
}

/// `TrafficSplit shop/checkout`.
impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() { write!(out, "{kind} {name}") } else { write!(out, "{kind} {namespace}/{name}") }
    }
}
