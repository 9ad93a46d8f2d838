//! What is kept of the objects of a cluster: a fraction of what the API server sends.
//!
//! Everything is read leniently. A field that this version does not know is skipped, one that is missing has its default,
//! and what cannot be used at all (an address that is none) is left out, because one odd object must not hide the others.

mod endpoint_slice;
mod meta;
mod namespace;
mod node;
mod pod;
mod service;

use std::{borrow::Borrow, collections::HashSet, fmt, hash::Hash, sync::Arc};

use archipelago_agent::catalog::Locality;
use serde::de::DeserializeOwned;

pub use self::{
    endpoint_slice::{EndpointSlice, SliceEndpoint, SlicePort},
    meta::{APP, FIELD_MANAGER, MANAGED_BY, MANAGED_BY_US, Meta, OwnerReference, SLICE_MANAGED_BY},
    namespace::Namespace,
    node::Node,
    pod::Pod,
    service::{Service, ServicePort, ServiceType, Transport},
};

/// A kind of object that can be followed.
pub trait Kind: Send + Sync + Eq + Sized + 'static {
    /// What the API server sends.
    type Raw: DeserializeOwned;
    /// Where it is.
    const RESOURCE: Resource;

    /// What is kept of it; `None`: nothing, as if it did not exist.
    fn keep(raw: Self::Raw, names: &mut Names) -> Option<Self>;

    /// Takes over parts of what the object was `before`, where they are equal and others hold on to them.
    fn share(&mut self, before: &Self) {
        let _ = before;
    }
}

/// Where the objects of a kind are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// API group; empty: core.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// As in paths: `services`.
    pub plural: &'static str,
}

impl Resource {
    /// Path of all objects, or of those in one namespace; without a query.
    #[must_use]
    pub fn path_in(&self, namespace: Option<&str>) -> String {
        let Self { group, version, plural } = self;
        let root = match *group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        match namespace {
            None => format!("{root}/{plural}"),
            Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        }
    }
}

/// As RBAC names it: `endpointslices.discovery.k8s.io`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            "" => f.write_str(self.plural),
            group => write!(f, "{}.{group}", self.plural),
        }
    }
}

/// Name of an object within its kind. Ordered by namespace first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace; empty: it is in none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// The object `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What many objects share (namespaces, nodes, zones, versions) is held once.
#[derive(Debug, Default)]
pub struct Names {
    texts: Pool<str>,
    localities: Pool<Locality>,
}

impl Names {
    /// The one copy of `text`.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        self.texts.get(text, || text.into())
    }

    /// The one copy of `locality`; one that says nothing counts as missing.
    pub fn intern_locality(&mut self, locality: Locality) -> Option<Arc<Locality>> {
        (locality != Locality::default()).then(|| self.localities.get(&locality, || Arc::new(locality.clone())))
    }

    /// The one copy of a text that may be missing; empty counts as missing.
    pub fn intern_some(&mut self, text: Option<&(impl Borrow<str> + ?Sized)>) -> Option<Arc<str>> {
        text.map(Borrow::borrow).filter(|text| !text.is_empty()).map(|text| self.intern(text))
    }
}

/// Values that are held once.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// Sweep what nobody holds any more when this many are there.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SWEEP_MIN }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn get(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = SWEEP_MIN.max(self.known.len() * 2);
        }
        let value = make();
        self.known.insert(Arc::clone(&value));
        value
    }
}

const SWEEP_MIN: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shared_and_forgotten() {
        let mut names = Names::default();
        let (a, b) = (names.intern("shop"), names.intern("shop"));
        assert!(Arc::ptr_eq(&a, &b));
        for round in 0..4 * SWEEP_MIN {
            names.intern(&format!("gone-{round}"));
        }
        assert!(names.texts.known.len() <= SWEEP_MIN + 1, "{}", names.texts.known.len());
        assert!(Arc::ptr_eq(&a, &names.intern("shop")));
        let mut locality = |zone: &Arc<str>| names.intern_locality(Locality::in_zone(zone.clone(), true)).unwrap();
        assert!(Arc::ptr_eq(&locality(&a), &locality(&b)));
        assert_eq!(names.intern_locality(Locality::default()), None);
    }

    #[test]
    fn resources_have_paths_and_names() {
        let core = Resource { group: "", version: "v1", plural: "pods" };
        let slices = Resource { group: "discovery.k8s.io", version: "v1", plural: "endpointslices" };
        assert_eq!(
            (core.path_in(Some("shop")), core.to_string()),
            ("/api/v1/namespaces/shop/pods".into(), "pods".into())
        );
        assert_eq!(slices.path_in(None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(slices.to_string(), "endpointslices.discovery.k8s.io");
    }
}
