//! From the resources in hand to a snapshot, one resource at a time.

mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use archipelago_identity::revocation::Revocations;
use archipelago_model::delta::{Delta, Shared};
use archipelago_model::stream::Resources;
use archipelago_model::{compile, feature};
use archipelago_proto::v1::{ConfigResource, LocalService, config_resource::Body};
use imbl::OrdMap;

pub(super) use self::services::Source;
use super::{Cluster, Membership, Peer, Snapshot, read};
use crate::balance::topology::Place;
use crate::config::{Captures, ConfigState};

/// A snapshot, and what of the state is not in it.
#[derive(Debug)]
pub struct Built {
    /// Fit to run.
    pub snapshot: Snapshot,
    /// In the order of the resources' names.
    pub rejected: Vec<Rejected>,
}

/// A resource that this gateway cannot use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub resource: String,
    /// Its version.
    pub version: Vec<u8>,
    /// What is wrong with it.
    pub reason: String,
    /// What runs instead.
    pub kept: Kept,
}

/// What runs instead of a rejected resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The form of it that ran before.
    LastGood,
    /// Nothing: a service is answered closed, anything else is not there.
    Closed,
}

/// Why a configuration was refused as a whole; the last good one stays.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{resource}: {reason}")]
pub struct SnapshotError {
    /// Name of the resource at fault.
    pub resource: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a snapshot was made of, to find what another state changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Made {
    /// `None`: of nothing.
    pub(super) of: Option<Arc<Inputs>>,
    /// Names of resources that could not be used: they may be usable whenever anything changes.
    rejected: Arc<[String]>,
}

#[derive(Debug)]
pub(super) struct Inputs {
    resources: Resources,
    local: OrdMap<String, Shared<LocalService>>,
    place: Place,
}

/// Names of clusters to their places in the snapshot.
pub(super) type Clusters = BTreeMap<Arc<str>, usize>;

impl Snapshot {
    /// Makes the snapshot of a state. Pure; `previous` is what runs now.
    ///
    /// A resource that cannot be used keeps the form that it has in `previous`, or is closed, and touches no other one. A
    /// service that did not change is the same `Arc` as before: a change costs what it is about, unless it changes which clusters
    /// there are, or where this gateway is. Local services never fail (an agent's unusable endpoint is left out).
    ///
    /// # Errors
    /// The configuration is that of another trust domain: nothing in it is meant for this gateway.
    pub fn build(
        state: &ConfigState,
        cluster: &str,
        trust_domain: &str,
        previous: &Self,
    ) -> Result<Built, SnapshotError> {
        let touched = previous.made.touched(state);
        let mut builder =
            Builder { state, previous, rejected: Vec::new(), out: previous.clone(), clusters: Clusters::new() };
        let is_about_clusters = |names: &BTreeSet<String>| names.iter().any(|name| name.starts_with(CLUSTER));
        if touched.as_ref().is_none_or(is_about_clusters) {
            builder.clusters();
        }
        let same_clusters = same_names(&previous.clusters, &builder.out.clusters);
        let touched = touched.filter(|_| same_clusters).unwrap_or_else(|| {
            let clusters = Arc::clone(&builder.out.clusters);
            builder.out = Self { clusters, ..Self::empty() };
            state.held.resources.iter().map(|resource| resource.name.clone()).collect()
        });
        let places = builder.out.clusters.iter().enumerate();
        builder.clusters = places.map(|(place, cluster)| (Arc::clone(&cluster.name), place)).collect();
        builder.out.revision = state.held.version.revision;
        builder.out.own_cluster = builder.clusters.get(cluster).copied();
        builder.out.captures = state.captures.as_ref().map(|source| {
            let before = previous.captures.as_ref().filter(|before| before.are_of(source));
            before.map_or_else(|| Arc::new(Captures::read(source)), Arc::clone)
        });
        builder.membership(&touched, trust_domain)?;
        builder.peers(&touched);
        builder.services(&touched, same_clusters);
        builder.unknown(&touched);
        Ok(builder.done())
    }
}

impl Made {
    /// Names of the resources to look at, those that are gone included; `None`: all of them.
    fn touched(&self, state: &ConfigState) -> Option<BTreeSet<String>> {
        let before = self.of.as_ref().filter(|before| before.place == state.place)?;
        let resources = state.held.resources.since(&before.resources);
        let local = Delta::between(&before.local, &state.local);
        let local = local.upserts.into_iter().map(|(key, _)| key).chain(local.removals);
        let mut touched: BTreeSet<String> = self.rejected.iter().cloned().collect();
        touched.extend(resources.upserts.into_iter().map(|(name, _)| name).chain(resources.removals));
        touched.extend(local.map(|key| format!("{SERVICE}{key}")));
        Some(touched)
    }
}

/// The body of a resource that this gateway can read at all.
fn usable(resource: &ConfigResource) -> Result<&Body, String> {
    if let Some(missing) = resource.required_features.iter().find(|name| !feature::is_supported(name)) {
        return Err(format!("it needs {missing}, which this gateway lacks"));
    }
    let body = resource.body.as_ref().ok_or("an unknown kind of resource: this gateway is too old for it")?;
    let name = compile::name(body);
    // Names are unique, so this also means that no two resources are about the same thing, and that the name tells the kind.
    if name == resource.name { Ok(body) } else { Err(format!("it is about {name}")) }
}

struct Builder<'a> {
    state: &'a ConfigState,
    previous: &'a Snapshot,
    rejected: Vec<Rejected>,
    out: Snapshot,
    clusters: Clusters,
}

impl<'a> Builder<'a> {
    fn reject(&mut self, resource: &ConfigResource, reason: String, kept: Kept) {
        let (name, version) = (resource.name.clone(), resource.version.to_vec());
        self.rejected.push(Rejected { resource: name, version, reason, kept });
    }

    fn resource(&self, name: &str) -> Option<&'a ConfigResource> {
        self.state.held.resources.get(name).map(|resource| &**resource)
    }

    /// All clusters. One that cannot be used stays as it was.
    fn clusters(&mut self) {
        let (state, previous) = (self.state, self.previous);
        let mut clusters = Vec::new();
        for resource in state.held.resources.under(CLUSTER) {
            let resource: &ConfigResource = resource;
            match usable(resource) {
                Ok(Body::Cluster(config)) => clusters.push(read::cluster(config)),
                Ok(_) => {}
                Err(reason) => {
                    let name = resource.name.strip_prefix(CLUSTER).unwrap_or_default();
                    let before = previous.clusters.iter().find(|cluster| *cluster.name == *name);
                    clusters.extend(before.cloned());
                    let kept = if before.is_some() { Kept::LastGood } else { Kept::Closed };
                    self.reject(resource, reason, kept);
                }
            }
        }
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        let is_same = *clusters == *previous.clusters;
        self.out.clusters = if is_same { Arc::clone(&previous.clusters) } else { clusters.into() };
    }

    fn membership(&mut self, touched: &BTreeSet<String>, trust_domain: &str) -> Result<(), SnapshotError> {
        let before = Arc::clone(&self.out.membership);
        let Membership { trust_domain: named, revocations, .. } = Membership::clone(&before);
        let named = if touched.contains(MESH) { self.mesh(trust_domain)? } else { named };
        let revocations = if touched.contains(REVOCATIONS) { self.revocations() } else { revocations };
        let (clusters, own_cluster) = (Arc::clone(&self.out.clusters), self.out.own_cluster);
        let now = Membership { trust_domain: named, clusters, own_cluster, revocations };
        if !self.previous.membership.is_same(&now) {
            self.out.membership = Arc::new(now);
        } else {
            self.out.membership = Arc::clone(&self.previous.membership);
        }
        Ok(())
    }

    /// The trust domain that the configuration is of.
    fn mesh(&mut self, trust_domain: &str) -> Result<String, SnapshotError> {
        let Some(resource) = self.resource(MESH) else { return Ok(String::new()) };
        match usable(resource) {
            Ok(Body::Mesh(mesh)) if mesh.trust_domain != trust_domain => {
                let reason = format!("trust domain {:?}, this gateway belongs to {trust_domain:?}", mesh.trust_domain);
                Err(SnapshotError { resource: resource.name.clone(), reason })
            }
            Ok(Body::Mesh(mesh)) => Ok(mesh.trust_domain.clone()),
            Ok(_) => Ok(String::new()),
            Err(reason) => {
                let before = &self.previous.membership.trust_domain;
                self.reject(resource, reason, if before.is_empty() { Kept::Closed } else { Kept::LastGood });
                Ok(before.clone())
            }
        }
    }

    /// What can be understood of the list counts, at once: a revocation is urgent, and never lets anyone in.
    fn revocations(&mut self) -> Option<Arc<Revocations>> {
        let before = self.previous.membership.revocations.clone();
        let Some(resource) = self.resource(REVOCATIONS) else { return Some(Arc::default()) };
        let list = match usable(resource) {
            Ok(Body::Revocations(list)) => list,
            Ok(_) => return Some(Arc::default()),
            Err(reason) => {
                // An empty list is no list: nobody may come in while it is not known who must not.
                let before = before.filter(|list| !list.is_empty());
                match before {
                    Some(_) => self.reject(resource, reason, Kept::LastGood),
                    None => {
                        let reason = format!("{reason}; no gateway is let in, and none called, until it can be read");
                        self.reject(resource, reason, Kept::Closed);
                    }
                }
                return before;
            }
        };
        let mut understood = Revocations::default();
        let mut reason = None;
        for entry in &list.revocations {
            match read::revocation(entry) {
                Ok((subject, issued_before)) => understood.refuse(subject, issued_before),
                Err(why) => reason = reason.or(Some(why)),
            }
        }
        if let Some(reason) = reason {
            if let Some(before) = &before {
                understood.merge(before);
            }
            self.reject(resource, reason, Kept::LastGood);
        }
        Some(Arc::new(understood))
    }

    /// A gateway that cannot be used stays as it was, if its cluster is there.
    fn peers(&mut self, touched: &BTreeSet<String>) {
        for name in touched.iter().filter_map(|name| name.strip_prefix(PEER)) {
            let before = self.previous.peers.get(name);
            self.out.peers.remove(name);
            let Some(resource) = self.resource(&format!("{PEER}{name}")) else { continue };
            let peer = match usable(resource) {
                Ok(Body::Peer(config)) => read::peer(config, &self.clusters),
                Ok(_) => continue,
                Err(reason) => Err(reason),
            };
            let peer = peer.or_else(|reason| {
                let cluster = |before: &Peer| self.clusters.get(self.previous.cluster_name(before.cluster)).copied();
                let before = before.and_then(|before| Some(Peer { cluster: cluster(before)?, ..Peer::clone(before) }));
                let kept = if before.is_some() { Kept::LastGood } else { Kept::Closed };
                self.reject(resource, reason, kept);
                before.ok_or(())
            });
            let Ok(peer) = peer else { continue };
            let same = before.filter(|before| ***before == peer).cloned();
            self.out.peers.insert(name.into(), same.unwrap_or_else(|| Arc::new(peer)));
        }
    }

    /// Kinds of which this gateway knows nothing.
    fn unknown(&mut self, touched: &BTreeSet<String>) {
        let is_known = |name: &str| {
            [MESH, REVOCATIONS].contains(&name) || [CLUSTER, PEER, SERVICE].iter().any(|kind| name.starts_with(kind))
        };
        for name in touched.iter().filter(|name| !is_known(name)) {
            let Some(resource) = self.resource(name) else { continue };
            let reason = usable(resource).err().unwrap_or_default();
            self.reject(resource, reason, Kept::Closed);
        }
    }

    fn done(mut self) -> Built {
        self.rejected.sort_by(|a, b| a.resource.cmp(&b.resource));
        let ConfigState { held, local, place, .. } = self.state;
        let inputs = Inputs { resources: held.resources.clone(), local: local.clone(), place: place.clone() };
        let rejected = self.rejected.iter().map(|rejected| rejected.resource.clone()).collect();
        self.out.made = Made { of: Some(Arc::new(inputs)), rejected };
        Built { snapshot: self.out, rejected: self.rejected }
    }
}

impl Membership {
    fn is_same(&self, other: &Self) -> bool {
        let same_revocations = match (&self.revocations, &other.revocations) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
            (one, other) => one.is_none() && other.is_none(),
        };
        let clusters = Arc::ptr_eq(&self.clusters, &other.clusters) || self.clusters == other.clusters;
        clusters && same_revocations && self.trust_domain == other.trust_domain && self.own_cluster == other.own_cluster
    }
}

fn same_names(before: &[Cluster], now: &[Cluster]) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|(before, now)| before.name == now.name)
}

const MESH: &str = "mesh";
const REVOCATIONS: &str = "revocations";
const CLUSTER: &str = "cluster/";
const PEER: &str = "peer/";
const SERVICE: &str = "service/";
