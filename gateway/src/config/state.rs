//! The resources in hand, as the control plane and the agent sent them.

use std::sync::Arc;

use archipelago_model::delta::{Delta, Shared};
use archipelago_model::stream::{Held, Refusal, Resource};
use archipelago_model::version::Version;
use archipelago_proto::v1::{Captures, ConfigResource, ConfigUpdate, LocalService, LocalUpdate, Workloads};
use imbl::OrdMap;

use crate::balance::topology::Place;

/// Everything a snapshot is built from. Applying an update makes a new state that shares what did not change; a refused one
/// leaves the old untouched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigState {
    /// What the control plane sent.
    pub held: Held,
    /// By "namespace/name"; what the cluster's agent reported last.
    pub local: OrdMap<String, Shared<LocalService>>,
    /// Where clients find services here, as the agent said last; `None`: it never said, clients come by host name.
    pub captures: Option<Arc<Captures>>,
    /// Where this gateway is.
    pub place: Place,
    /// By name: the forms that run in the place of resources that are held and cannot be used here.
    pub last_good: OrdMap<String, Resource>,
}

impl ConfigState {
    /// A state that holds these resources, and no local services.
    pub fn new(version: Version, resources: impl IntoIterator<Item = ConfigResource>) -> Self {
        let resources = resources.into_iter().map(Resource::from).collect();
        Self { held: Held { version, resources }, ..Self::default() }
    }

    /// This state after an update of the control plane.
    ///
    /// # Errors
    /// See [`Held::take`].
    pub fn with_update(&self, update: &ConfigUpdate) -> Result<Self, Refusal> {
        Ok(Self { held: self.held.take(update)?, ..self.clone() })
    }

    /// This state after an update of the agent.
    #[must_use]
    pub fn with_local(&self, update: LocalUpdate) -> Self {
        let LocalUpdate { full, upserts, removals, captures, workloads } = update;
        let mut next = self.clone();
        let upserts = upserts
            .into_iter()
            .map(|service| (format!("{}/{}", service.namespace, service.name), Shared::new(service)))
            .collect();
        Delta { full, upserts, removals }.apply_to(&mut next.local);
        // The same once more is no change.
        if captures.is_some() && captures.as_ref() != next.captures.as_deref() {
            next.captures = captures.map(Arc::new);
        }
        if let Some(zone) = workloads.as_ref().and_then(zone_of) {
            next.place.zone = zone.into();
        }
        next
    }
}

/// What the agent says of our zone; a node that it knows nothing of, for now, has not moved.
pub(crate) fn zone_of(workloads: &Workloads) -> Option<&str> {
    let is_known = !workloads.zone.is_empty() || !workloads.node_ips.is_empty();
    is_known.then_some(workloads.zone.as_str())
}

impl ConfigState {
    /// Keeps, of the state before, the last good form of each of these resources, and of no other ones.
    #[must_use]
    pub fn keeping(mut self, names: impl IntoIterator<Item = String>, before: &Self) -> Self {
        let form = |name: &str| before.last_good.get(name).or_else(|| before.held.resources.get(name)).cloned();
        self.last_good = names.into_iter().filter_map(|name| form(&name).map(|form| (name, form))).collect();
        self
    }

    /// This state with the last good form of whatever cannot be used: what a snapshot is built from before anything ran.
    #[must_use]
    pub fn as_last_good(&self) -> Self {
        let mut good = Self { last_good: OrdMap::new(), ..self.clone() };
        self.last_good.values().for_each(|form| good.held.resources.put(form.clone()));
        good
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
            captures: None,
            workloads: None,
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

    #[test]
    fn the_zone_stays_until_the_agent_says_another() {
        let told = |zone: &str, node_ips: &[&str]| {
            let node_ips = node_ips.iter().map(ToString::to_string).collect();
            let workloads = Workloads { zone: zone.into(), node_ips, ..Workloads::default() };
            LocalUpdate { workloads: Some(workloads), ..LocalUpdate::default() }
        };
        let mut state = ConfigState::default();
        for (update, expected) in [
            (told("a", &["192.0.2.1"]), "a"),
            (LocalUpdate::default(), "a"),
            (told("", &[]), "a"),
            (told("b", &["192.0.2.1"]), "b"),
            (told("", &["192.0.2.1"]), ""),
        ] {
            state = state.with_local(update);
            assert_eq!(&*state.place.zone, expected);
        }
    }

    #[test]
    fn captures_stay_until_others_come() {
        let capture = |listen| archipelago_proto::v1::Capture { listen, ..Default::default() };
        let update = |list: &[u32]| LocalUpdate {
            captures: Some(Captures { captures: list.iter().map(|listen| capture(*listen)).collect() }),
            ..LocalUpdate::default()
        };
        let state = ConfigState::default();
        assert_eq!(state.captures, None);
        let state = state.with_local(update(&[17_000]));
        let silent = state.with_local(LocalUpdate { full: true, ..LocalUpdate::default() });
        let same = state.with_local(update(&[17_000]));
        for next in [&silent, &same] {
            assert!(Arc::ptr_eq(state.captures.as_ref().unwrap(), next.captures.as_ref().unwrap()));
        }
        assert_eq!(state.with_local(update(&[])).captures, Some(Arc::default()), "none is not the same as never said");
    }
}
