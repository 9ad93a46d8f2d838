//! The gateways' ports for TCP ports of services: who wants one, who has one, and when one may go to another service.
//!
//! A TCP port of a service wants one while a cluster reports it and the service is exported: by that cluster, or by an
//! operator's ServiceExport of its name. One that is given up stays its service's for [`GRACE_MS`], so that a client that kept
//! the address does not reach another service; those never used come first, and then the one that was given up longest ago.
//!
//! Until format 4 a service had one port, whose number did not matter: [`ANY_PORT`] stands in its place. The state's way into
//! format 4 gives those slots the numbers that they are for.
//!
//! Only `held` is part of the state; the rest is an index that follows from it and from the reports and resources.

use std::collections::BTreeMap;

use imbl::{OrdMap, OrdSet};

/// Namespace and name of a service, and its port.
pub(super) type Name = (String, String, u32);

/// The port of a service that has one, whatever its number.
pub(super) const ANY_PORT: u32 = 0;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Slots {
    held: OrdMap<Name, Slot>,
    wants: OrdMap<Name, Want>,
    /// Services for which a ServiceExport exists.
    operators: OrdSet<(String, String)>,
    /// Wanted and not held.
    waiting: OrdSet<Name>,
    /// Given up: since when, and by whom.
    freed: OrdSet<(i64, Name)>,
    /// As `freed`, by the cluster whose they are.
    freed_of: OrdSet<(String, i64, Name)>,
    /// Slots held by cluster, given up or not.
    count_of: OrdMap<String, usize>,
}

/// A TCP service's port, relative to the base port of each gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) slot: u32,
    /// Cluster whose report took it.
    pub(super) cluster: String,
    /// Since when nobody exports the service, Unix milliseconds.
    pub(super) freed_unix_ms: Option<i64>,
}

/// Cluster that reports it as TCP → whether that cluster exports it.
type Want = BTreeMap<String, bool>;

impl Slots {
    /// Ports of services and their slots, given up or not.
    pub(super) fn held(&self) -> impl Iterator<Item = (&Name, &Slot)> {
        self.held.iter()
    }

    /// A cluster's TCP services changed: name → whether the cluster exports it, before and now.
    pub(super) fn report(
        &mut self,
        cluster: &str,
        before: &BTreeMap<Name, bool>,
        now: &BTreeMap<Name, bool>,
        unix_ms: i64,
    ) {
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            self.change(name, unix_ms, |want| {
                want.remove(cluster);
            });
        }
        for (name, exported) in now.iter().filter(|(name, exported)| before.get(*name) != Some(exported)) {
            self.change(name, unix_ms, |want| {
                want.insert(cluster.to_owned(), *exported);
            });
        }
        self.settle(unix_ms);
    }

    /// A ServiceExport of this name was created or deleted.
    pub(super) fn operator_exports(&mut self, service: &(String, String), exists: bool, unix_ms: i64) {
        match exists {
            true => self.operators.insert(service.clone()),
            false => self.operators.remove(service),
        };
        let (namespace, name) = service.clone();
        let ports: Vec<Name> = self
            .wants
            .range((namespace.clone(), name.clone(), 0)..=(namespace, name, u32::MAX))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ports {
            self.change(&name, unix_ms, |_| {});
        }
        self.settle(unix_ms);
    }

    /// Puts back a slot of an image; the wants follow with [`Self::restore_want`].
    pub(super) fn restore_held(&mut self, name: Name, slot: Slot) {
        self.hold(name, slot);
    }

    /// Puts back a want, without giving out anything: what waits was waiting when the image was made. Operators' exports come
    /// first.
    pub(super) fn restore_want(&mut self, change: WantChange<'_>) {
        match change {
            WantChange::Operator { service } => drop(self.operators.insert(service)),
            WantChange::Reported { name, cluster, exported } => {
                let mut want = self.wants.get(&name).cloned().unwrap_or_default();
                want.insert(cluster.to_owned(), exported);
                if self.is_wanted(&name, &want) && !self.held.contains_key(&name) {
                    self.waiting.insert(name.clone());
                }
                self.wants.insert(name, want);
            }
        }
    }

    fn is_wanted(&self, name: &Name, want: &Want) -> bool {
        let (namespace, service, _) = name;
        let by_operator = || self.operators.contains(&(namespace.clone(), service.clone()));
        !want.is_empty() && (want.values().any(|exported| *exported) || by_operator())
    }

    fn change(&mut self, name: &Name, unix_ms: i64, change: impl FnOnce(&mut Want)) {
        let mut want = self.wants.get(name).cloned().unwrap_or_default();
        change(&mut want);
        let wanted = self.is_wanted(name, &want);
        if want.is_empty() {
            self.wants.remove(name);
        } else {
            self.wants.insert(name.clone(), want);
        }
        match (self.held.get(name).cloned(), wanted) {
            (Some(slot), true) if slot.freed_unix_ms.is_some() => {
                self.release(name);
                self.hold(name.clone(), Slot { freed_unix_ms: None, ..slot });
            }
            (Some(slot), false) if slot.freed_unix_ms.is_none() => {
                self.release(name);
                self.hold(name.clone(), Slot { freed_unix_ms: Some(unix_ms), ..slot });
            }
            (Some(_), _) => {}
            (None, true) => {
                self.waiting.insert(name.clone());
            }
            (None, false) => {
                self.waiting.remove(name);
            }
        }
    }

    /// Gives slots to those who wait, in the order of their names.
    pub(super) fn settle(&mut self, unix_ms: i64) {
        for name in self.waiting.clone() {
            let Some(want) = self.wants.get(&name) else { continue };
            let taken = want.keys().find_map(|cluster| Some((cluster.clone(), self.free_slot(cluster, unix_ms)?)));
            if let Some((cluster, slot)) = taken {
                if let FreeSlot::Reused { from, .. } = &slot {
                    self.release(from);
                }
                self.waiting.remove(&name);
                self.hold(name, Slot { slot: slot.number(), cluster, freed_unix_ms: None });
            }
        }
    }

    fn free_slot(&self, cluster: &str, unix_ms: i64) -> Option<FreeSlot> {
        let past_grace = |at: i64| at.saturating_add(GRACE_MS) <= unix_ms;
        let reuse =
            |from: &Name| self.held.get(from).map(|slot| FreeSlot::Reused { slot: slot.slot, from: from.clone() });
        if self.count_of.get(cluster).is_some_and(|count| *count >= SLOTS_PER_CLUSTER_MAX) {
            let first = (cluster.to_owned(), i64::MIN, Name::default());
            let (of, at, from) = self.freed_of.range(first..).next()?;
            return if of == cluster && past_grace(*at) { reuse(from) } else { None };
        }
        // Slots are dense: a slot that is given on takes its number along.
        if self.held.len() < SLOTS_MAX {
            return u32::try_from(self.held.len()).ok().map(FreeSlot::New);
        }
        let (at, from) = self.freed.get_min()?;
        if past_grace(*at) { reuse(from) } else { None }
    }

    fn hold(&mut self, name: Name, slot: Slot) {
        if let Some(at) = slot.freed_unix_ms {
            self.freed.insert((at, name.clone()));
            self.freed_of.insert((slot.cluster.clone(), at, name.clone()));
        }
        let count = self.count_of.get(&slot.cluster).copied().unwrap_or(0);
        self.count_of.insert(slot.cluster.clone(), count + 1);
        self.held.insert(name, slot);
    }

    fn release(&mut self, name: &Name) {
        let Some(slot) = self.held.remove(name) else { return };
        if let Some(at) = slot.freed_unix_ms {
            self.freed.remove(&(at, name.clone()));
            self.freed_of.remove(&(slot.cluster.clone(), at, name.clone()));
        }
        match self.count_of.get(&slot.cluster).copied() {
            Some(count) if count > 1 => self.count_of.insert(slot.cluster, count - 1),
            _ => self.count_of.remove(&slot.cluster),
        };
    }
}

/// See [`Slots::restore_want`].
pub(super) enum WantChange<'a> {
    /// This cluster reports the service's port as TCP.
    Reported { name: Name, cluster: &'a str, exported: bool },
    /// A ServiceExport of its name exists.
    Operator { service: (String, String) },
}

enum FreeSlot {
    New(u32),
    Reused { slot: u32, from: Name },
}

impl FreeSlot {
    fn number(&self) -> u32 {
        match self {
            Self::New(slot) | Self::Reused { slot, .. } => *slot,
        }
    }
}

/// TCP ports 16000 and up of a gateway; beyond this the range would run into the ephemeral ports (32768).
pub(super) const SLOTS_MAX: usize = 16_000;
/// A quarter of all: no single cluster can take the ports of the others.
pub(super) const SLOTS_PER_CLUSTER_MAX: usize = 4_000;
/// Longer than clients keep an address that they looked up, and than a deployment is taken away and brought back.
pub(super) const GRACE_MS: i64 = 3_600_000;
