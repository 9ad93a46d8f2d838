//! The stored resources as values: parsed once per change, outside the state machine.

use std::{
    collections::BTreeMap,
    str::from_utf8,
    sync::{Arc, Mutex, PoisonError},
};

use archipelago_model::{
    admit::Resources,
    resource::{Kind, Resource, ResourceKey},
};
use imbl::{OrdMap, ordmap::DiffItem};

use crate::machine::{Key, Stored};

/// The newest resources that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    newest: Mutex<Parsed>,
}

#[derive(Clone, Debug, Default)]
struct Parsed {
    stored: OrdMap<Key, Arc<Stored>>,
    values: Arc<Resources>,
}

impl Policy {
    /// The values of `stored`. Costs what changed since the last call, and a copy when that one's values are still in use.
    pub(crate) fn values(&self, stored: &OrdMap<Key, Arc<Stored>>) -> Arc<Resources> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if !newest.stored.ptr_eq(stored) {
            let Parsed { stored: before, values } = &mut *newest;
            let values = Arc::make_mut(values);
            for difference in before.diff(stored) {
                match difference {
                    DiffItem::Add(key, stored) | DiffItem::Update { new: (key, stored), .. } => {
                        put(values, key, stored)
                    }
                    DiffItem::Remove(key, _) => {
                        if let Some(key) = known(key) {
                            values.remove(&key);
                        }
                    }
                }
            }
            *before = stored.clone();
        }
        Arc::clone(&newest.values)
    }
}

fn put(values: &mut BTreeMap<ResourceKey, Resource>, key: &Key, stored: &Stored) {
    match (value(key, stored), known(key)) {
        (Some(resource), _) => drop(values.insert(resource.key(), resource)),
        (None, Some(key)) => drop(values.remove(&key)),
        (None, None) => {}
    }
}

/// A stored resource as a value; `None`, and an error in the log, when it cannot be read.
pub(crate) fn value(key: &Key, stored: &Stored) -> Option<Resource> {
    let text = from_utf8(&stored.canonical).map_err(|error| error.to_string());
    match text.and_then(|text| Resource::from_json(text).map_err(|error| error.to_string())) {
        Ok(resource) => Some(resource),
        // Formats keep this from happening: a kind or a field is admitted only where every member knows it.
        Err(error) => {
            tracing::error!(resource = %key, error, "a stored resource cannot be read, and counts as absent here");
            None
        }
    }
}

/// The key of a resource of a kind that this version knows.
pub(crate) fn known(key: &Key) -> Option<ResourceKey> {
    let kind: Kind = key.kind.parse().ok()?;
    Some(ResourceKey { kind, namespace: key.namespace.clone(), name: key.name.clone() })
}
