//! From a cluster's objects to the services it offers: a pure function, taken one changed service at a time.
//!
//! A service is in the catalog if and only if the cluster exports it. What it keeps to itself stays out, even from its own
//! gateways: pods reach it as they always did, and a gateway on the node's network must be no way around a NetworkPolicy.

mod service;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use archipelago_agent::catalog;
use archipelago_model::id::ServiceKey;
use archipelago_proto::v1::ExportFacts;
use imbl::OrdMap;

pub use self::service::protocol;
use crate::{
    types::{EndpointSlice, Key, Pod, Service},
    watch::{Objects, differences},
};

/// What the cluster exports, and what its ServiceExports say of it. Only valid exports.
pub type Exports = OrdMap<Key, Arc<ExportFacts>>;

/// The cluster at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// All Services.
    pub services: Objects<Service>,
    /// All slices of them.
    pub slices: Objects<EndpointSlice>,
    /// All pods; only their versions count here.
    pub pods: Objects<Pod>,
    /// All exports.
    pub exports: Exports,
}

/// Keeps a catalog in step with a cluster.
#[derive(Debug, Default)]
pub struct Discovery {
    seen: Sources,
    /// Slices by the service that they belong to, in their order. Nearly always one.
    slices: HashMap<Key, Vec<Key>>,
    catalog: OrdMap<ServiceKey, Arc<catalog::Service>>,
}

impl Discovery {
    /// The catalog of `now`. Services that did not change are shared with the one before.
    pub fn update(&mut self, now: Sources) -> OrdMap<ServiceKey, Arc<catalog::Service>> {
        let changed = self.changed(&now);
        self.seen = now;
        for key in changed {
            let name = ServiceKey { namespace: key.namespace.clone(), name: key.name.clone() };
            match self.derive(&key) {
                None => {
                    self.catalog.remove(&name);
                }
                Some(service) if self.catalog.get(&name).is_some_and(|before| **before == service) => {}
                Some(service) => {
                    self.catalog.insert(name, Arc::new(service));
                }
            }
        }
        self.catalog.clone()
    }

    /// Services that may be different from what was seen last.
    fn changed(&mut self, now: &Sources) -> HashSet<Key> {
        let mut changed: HashSet<Key> = HashSet::new();
        changed.extend(differences(&self.seen.services, &now.services).map(|(key, _, _)| key.clone()));
        changed.extend(differences(&self.seen.exports, &now.exports).map(|(key, _, _)| key.clone()));
        for (key, before, after) in differences(&self.seen.slices, &now.slices) {
            if let Some(before) = before {
                let service = Key { namespace: key.namespace.clone(), name: before.service.clone() };
                if let Some(slices) = self.slices.get_mut(&service) {
                    slices.retain(|slice| slice != key);
                    if slices.is_empty() {
                        self.slices.remove(&service);
                    }
                }
                changed.insert(service);
            }
            if let Some(after) = after {
                let service = Key { namespace: key.namespace.clone(), name: after.service.clone() };
                let slices = self.slices.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
                if let Err(at) = slices.binary_search(key) {
                    slices.insert(at, key.clone());
                }
                changed.insert(service);
            }
        }
        let relabelled = differences(&self.seen.pods, &now.pods)
            .filter(|(_, before, after)| {
                before.and_then(|pod| pod.version.as_ref()) != after.and_then(|pod| pod.version.as_ref())
            })
            .map(|(key, _, _)| key);
        let relabelled: HashSet<&Key> = relabelled.collect();
        let namespaces: HashSet<&str> = relabelled.iter().map(|key| &*key.namespace).collect();
        for key in now.exports.keys().filter(|key| namespaces.contains(&*key.namespace)) {
            let slices = self.slices.get(key).into_iter().flatten().filter_map(|slice| now.slices.get(slice));
            let mut pods = slices.flat_map(|slice| slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone()));
            if pods.any(|name| relabelled.contains(&Key { namespace: key.namespace.clone(), name })) {
                changed.insert(key.clone());
            }
        }
        changed
    }

    fn derive(&self, key: &Key) -> Option<catalog::Service> {
        let export = self.seen.exports.get(key)?;
        let service = self.seen.services.get(key)?;
        let slices = self.slices.get(key).into_iter().flatten();
        let slices: Vec<&EndpointSlice> =
            slices.filter_map(|slice| self.seen.slices.get(slice).map(|slice| &**slice)).collect();
        let version = |pod: &Arc<str>| {
            let pod = Key { namespace: key.namespace.clone(), name: pod.clone() };
            self.seen.pods.get(&pod)?.version.clone()
        };
        service::derive(service, &slices, version, export)
    }
}

#[cfg(test)]
mod tests;
