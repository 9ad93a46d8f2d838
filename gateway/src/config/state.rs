//! The resources in hand, as the control plane and the agent sent them.

use archipelago_model::delta::{Delta, Shared};
use archipelago_model::stream::{Held, Refusal, Resource};
use archipelago_model::version::Version;
use archipelago_proto::v1::{ConfigResource, ConfigUpdate, LocalService, LocalUpdate};
use imbl::OrdMap;

/// Everything a snapshot is built from. Applying an update makes a new state that shares what did not change; a refused one
/// leaves the old untouched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigState {
    /// What the control plane sent.
    pub held: Held,
    /// By "namespace/name"; what the cluster's agent reported last.
    pub local: OrdMap<String, Shared<LocalService>>,
}

impl ConfigState {
    /// A state that holds these resources, and no local services.
    pub fn new(version: Version, resources: impl IntoIterator<Item = ConfigResource>) -> Self {
        let resources = resources.into_iter().map(Resource::from).collect();
        Self { held: Held { version, resources }, local: OrdMap::new() }
    }

    /// This state after an update of the control plane.
    ///
    /// # Errors
    /// See [`Held::take`].
    pub fn with_update(&self, update: &ConfigUpdate) -> Result<Self, Refusal> {
        Ok(Self { held: self.held.take(update)?, local: self.local.clone() })
    }

    /// This state after an update of the agent.
    #[must_use]
    pub fn with_local(&self, update: LocalUpdate) -> Self {
        let LocalUpdate { full, upserts, removals } = update;
        let mut next = self.clone();
        let upserts = upserts
            .into_iter()
            .map(|service| (format!("{}/{}", service.namespace, service.name), Shared::new(service)))
            .collect();
        Delta { full, upserts, removals }.apply_to(&mut next.local);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_services_survive_configuration_updates() {
        let service =
            |name: &str| LocalService { namespace: "shop".into(), name: name.into(), ..LocalService::default() };
        let local = |full, names: &[&str], removals: &[&str]| LocalUpdate {
            full,
            upserts: names.iter().map(|name| service(name)).collect(),
            removals: removals.iter().map(ToString::to_string).collect(),
        };
        let state = ConfigState::default().with_local(local(true, &["a", "b"], &[]));
        let empty = ConfigUpdate { full: true, digest: vec![0; 16], ..ConfigUpdate::default() };
        let state = state.with_update(&empty).unwrap();
        let state = state.with_local(local(false, &["c"], &["shop/a"]));
        assert_eq!(state.local.keys().collect::<Vec<_>>(), ["shop/b", "shop/c"]);
        let state = state.with_local(local(true, &["z"], &[]));
        assert_eq!(state.local.keys().collect::<Vec<_>>(), ["shop/z"]);
    }
}
