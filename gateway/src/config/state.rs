//! The resources in hand, as the control plane and the agent sent them.

use std::collections::BTreeMap;

use archipelago_proto::v1::{ConfigResource, ConfigUpdate, LocalService, LocalUpdate};

/// Everything a snapshot is built from. Applying an update makes a new state; a refused one leaves the old untouched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigState {
    /// Revision of the federation's configuration; 0 before the first update.
    pub revision: u64,
    /// By name.
    pub resources: BTreeMap<String, ConfigResource>,
    /// By "namespace/name"; what the cluster's agent reported last.
    pub local: BTreeMap<String, LocalService>,
}

impl ConfigState {
    /// This state after an update of the control plane.
    #[must_use]
    pub fn with_update(&self, update: ConfigUpdate) -> Self {
        let mut next = Self {
            revision: update.revision,
            resources: if update.full { BTreeMap::new() } else { self.resources.clone() },
            local: self.local.clone(),
        };
        for name in &update.removals {
            next.resources.remove(name);
        }
        next.resources.extend(update.upserts.into_iter().map(|resource| (resource.name.clone(), resource)));
        next
    }

    /// This state after an update of the agent.
    #[must_use]
    pub fn with_local(&self, update: LocalUpdate) -> Self {
        let mut next = self.clone();
        if update.snapshot {
            next.local.clear();
        }
        for key in &update.removed {
            next.local.remove(key);
        }
        next.local.extend(
            update.services.into_iter().map(|service| (format!("{}/{}", service.namespace, service.name), service)),
        );
        next
    }

    /// Resource name → version, for the hello of the control stream.
    pub fn versions(&self) -> BTreeMap<String, Vec<u8>> {
        self.resources.iter().map(|(name, resource)| (name.clone(), resource.version.to_vec())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, version: u8) -> ConfigResource {
        ConfigResource { name: name.into(), version: vec![version].into(), ..Default::default() }
    }

    fn update(revision: u64, upserts: &[(&str, u8)], removals: &[&str], full: bool) -> ConfigUpdate {
        ConfigUpdate {
            revision,
            upserts: upserts.iter().map(|(name, version)| resource(name, *version)).collect(),
            removals: removals.iter().map(|name| (*name).to_owned()).collect(),
            full,
        }
    }

    #[test]
    fn deltas_and_full_updates() {
        let state = ConfigState::default().with_update(update(1, &[("a", 1), ("b", 1)], &[], true));
        let state = state.with_update(update(2, &[("b", 2), ("c", 1)], &["a"], false));
        assert_eq!(state.revision, 2);
        assert_eq!(state.versions(), BTreeMap::from([("b".into(), vec![2]), ("c".into(), vec![1])]));
        let state = state.with_update(update(3, &[("d", 1)], &[], true));
        assert_eq!(state.versions().into_keys().collect::<Vec<_>>(), ["d"]);
    }

    #[test]
    fn local_services_survive_configuration_updates() {
        let service =
            |name: &str| LocalService { namespace: "shop".into(), name: name.into(), ..LocalService::default() };
        let state = ConfigState::default().with_local(LocalUpdate {
            snapshot: true,
            services: vec![service("a"), service("b")],
            removed: vec![],
        });
        let state = state.with_update(update(1, &[("x", 1)], &[], true));
        let state = state.with_local(LocalUpdate {
            snapshot: false,
            services: vec![service("c")],
            removed: vec!["shop/a".into()],
        });
        assert_eq!(state.local.keys().collect::<Vec<_>>(), ["shop/b", "shop/c"]);
        let state = state.with_local(LocalUpdate { snapshot: true, services: vec![service("z")], removed: vec![] });
        assert_eq!(state.local.keys().collect::<Vec<_>>(), ["shop/z"]);
    }
}
