//! The state that every member holds, and how it is read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use archipelago_model::{
    compile::{FederationState, GatewayRecord},
    resource::{Resource, ResourceKey},
};
use archipelago_proto::v1;

use super::{
    command::{CaInit, IssuedRecord, Outcome},
    dedup::{Dedup, RequestKey},
};

/// Everything the federation agrees on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(super) revision: u64,
    pub(super) resources: BTreeMap<ResourceKey, Resource>,
    pub(super) meta: BTreeMap<ResourceKey, Meta>,
    /// Clusters whose `Cluster` resource was deleted and not created again: their gateways are not registered.
    pub(super) deleted_clusters: BTreeSet<String>,
    pub(super) reports: BTreeMap<String, Vec<v1::ServiceReport>>,
    pub(super) gateways: BTreeMap<(String, String), Gateway>,
    pub(super) tcp_slots: BTreeMap<(String, String), u32>,
    pub(super) ca: Option<CaInit>,
    pub(super) tokens: BTreeMap<[u8; 32], Token>,
    pub(super) issued: VecDeque<IssuedRecord>,
    pub(super) dedup: Dedup,
}

/// What is kept beside a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Canonical JSON.
    pub json: String,
    /// Revision that created it.
    pub created_revision: u64,
    /// Revision that changed it last.
    pub modified_revision: u64,
}

/// A registered gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Identity it proved.
    pub spiffe_id: String,
    /// Where it listens.
    pub addresses: v1::GatewayAddresses,
    /// Worker count.
    pub workers: u32,
}

/// A join token; its secret is known only to its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Cluster that the holder joins.
    pub cluster: String,
    /// Encoded [`v1::JoinRole`].
    pub role: i32,
    /// Name within the cluster.
    pub name: String,
    /// End of life, Unix milliseconds.
    pub expires_unix_ms: i64,
    /// Set once it was used.
    pub used: Option<TokenUse>,
}

/// The one use of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// When, Unix milliseconds.
    pub unix_ms: i64,
    /// SPIFFE path of the identity that was handed out.
    pub by: String,
}

impl State {
    /// The global revision: dense, moving only with what a gateway could care about.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All resources.
    #[must_use]
    pub fn resources(&self) -> &BTreeMap<ResourceKey, Resource> {
        &self.resources
    }

    /// Canonical text and revisions of a resource.
    #[must_use]
    pub fn meta(&self, key: &ResourceKey) -> Option<&Meta> {
        self.meta.get(key)
    }

    /// What each cluster's agent reported; counts are zero.
    #[must_use]
    pub fn reports(&self) -> &BTreeMap<String, Vec<v1::ServiceReport>> {
        &self.reports
    }

    /// The registry of gateways by (cluster, name). Gateways of deleted clusters are not in it.
    #[must_use]
    pub fn gateways(&self) -> &BTreeMap<(String, String), Gateway> {
        &self.gateways
    }

    /// Whether the cluster was deleted by an operator.
    #[must_use]
    pub fn is_deleted_cluster(&self, cluster: &str) -> bool {
        self.deleted_clusters.contains(cluster)
    }

    /// TCP port slots by (namespace, name).
    #[must_use]
    pub fn tcp_slots(&self) -> &BTreeMap<(String, String), u32> {
        &self.tcp_slots
    }

    /// The authority, once installed.
    #[must_use]
    pub fn ca(&self) -> Option<&CaInit> {
        self.ca.as_ref()
    }

    /// Tokens by the SHA-256 of their secret.
    #[must_use]
    pub fn tokens(&self) -> &BTreeMap<[u8; 32], Token> {
        &self.tokens
    }

    /// Recently issued certificates, oldest first.
    #[must_use]
    pub fn issued(&self) -> &VecDeque<IssuedRecord> {
        &self.issued
    }

    /// The outcome of an earlier request, while the window still holds it.
    #[must_use]
    pub fn remembered(&self, actor: &str, request_id: &str) -> Option<Outcome> {
        let key = RequestKey { actor: actor.to_owned(), request_id: request_id.to_owned() };
        let remembered = self.dedup.get(&key)?;
        prost::Message::decode(remembered.outcome.as_slice()).ok()
    }

    /// What the policy compiler reads.
    #[must_use]
    pub fn federation(&self) -> FederationState {
        let (trust_domain, bundle_der) = match &self.ca {
            Some(ca) => (ca.trust_domain.clone(), vec![ca.root_der.clone()]),
            None => (String::new(), Vec::new()),
        };
        let gateways = self
            .gateways
            .iter()
            .map(|(key, gateway)| {
                let record =
                    GatewayRecord { spiffe_id: gateway.spiffe_id.clone(), addresses: gateway.addresses.clone() };
                (key.clone(), record)
            })
            .collect();
        FederationState {
            trust_domain,
            bundle_der,
            resources: self.resources.clone(),
            reports: self.reports.clone(),
            gateways,
            tcp_slots: self.tcp_slots.clone(),
        }
    }
}
