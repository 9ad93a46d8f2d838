//! Services: who may have which name and port, what runs in the place of one that cannot be used, and the indexes of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use archipelago_model::compile;
use archipelago_proto::v1::{self as proto, ConfigResource, config_resource::Body};

use super::super::{Closed, Listener, Ports, Protocol, Service, Snapshot, read, read::Local};
use super::{Builder, Kept, SERVICE, usable};
use crate::balance::topology::Place;
use crate::route;

/// What a port of a service was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config::snapshot) struct Source {
    version: Vec<u8>,
    /// Fingerprint of its local endpoints, and of where they were seen from.
    local: u64,
}

impl Source {
    pub(in crate::config::snapshot) fn of(version: &[u8], local: Local<'_>, here: &Place) -> Self {
        Self { version: version.to_vec(), local: fingerprint(local, here) }
    }
}

/// Who keeps a name or a port that two services claim: the one that had it, then the one whose own name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    AsBefore,
    OwnNames,
    OtherNames,
}

impl Builder<'_> {
    /// Services that were not touched have their names and ports, and keep them.
    pub(super) fn services(&mut self, touched: &BTreeSet<String>, same_clusters: bool) {
        let (state, previous) = (self.state, self.previous);
        let mut candidates = Vec::new();
        for (name, key) in touched.iter().filter_map(|name| Some((name, name.strip_prefix(SERVICE)?))) {
            let resource = self.resource(name);
            let config = match resource.map(usable) {
                Some(Ok(Body::Service(config))) => config,
                other => {
                    self.out.forget(key);
                    match (other, resource) {
                        (Some(Ok(Body::UnsupportedService(service))), _) => self.out.close(read::unsupported(service)),
                        (Some(Err(reason)), Some(resource)) => self.reject(resource, reason, Kept::Closed),
                        _ => {}
                    }
                    continue;
                }
            };
            let Some(resource) = resource else { continue };
            let local = state.local.get(key).map(|local| &**local);
            let before = previous.ports_of(key);
            let is_same = same_clusters
                && !resource.version.is_empty()
                && before.first().is_some_and(|(_, unit)| unit.source.version == resource.version);
            if is_same {
                let several = before.len() > 1;
                let units: Vec<_> =
                    before.iter().map(|(_, unit)| unit.with_local(local, several, &state.place)).collect();
                if !self.out.ports_of(key).is_empty() && self.out.closed_by_key(key).is_none() {
                    // Nothing but its endpoints: it has what it had.
                    self.out.replace(units);
                } else {
                    candidates.push((Rank::AsBefore, key, units, resource));
                }
                continue;
            }
            self.out.forget(key);
            match read::service(config, &self.clusters, local, &state.place, &resource.version) {
                Ok(units) => {
                    let own = compile::hosts(&config.namespace, &config.name);
                    let modest = units.iter().flat_map(|unit| &unit.hosts).all(|host| own.contains(host));
                    let rank = if modest { Rank::OwnNames } else { Rank::OtherNames };
                    candidates.push((rank, key, units.into_iter().map(Arc::new).collect(), resource));
                }
                Err(reason) => self.reject(resource, reason, Kept::Closed),
            }
        }
        candidates.sort_by_key(|(rank, key, ..)| (*rank, *key));
        for (_, key, units, resource) in candidates {
            self.out.forget(key);
            if let Err(reason) = self.out.take(previous, units) {
                self.reject(resource, reason, Kept::Closed);
            }
        }
        self.keep_services(same_clusters);
        // Who follows the ports compares where they are kept.
        if previous.tcp.diff(&self.out.tcp).next().is_none() {
            self.out.tcp = previous.tcp.clone();
        }
    }

    /// Gives every rejected service its last good form, as far as nobody stands in its place now, or closes it.
    fn keep_services(&mut self, same_clusters: bool) {
        let (state, previous) = (self.state, self.previous);
        for rejected in &mut self.rejected {
            let Some(key) = rejected.resource.strip_prefix(SERVICE) else { continue };
            let before = previous.ports_of(key);
            let (several, local) = (before.len() > 1, state.local.get(key).map(|local| &**local));
            // Never the version of what was rejected: once it is right, it must be made.
            let again = before.iter().map(|(_, unit)| match same_clusters {
                true => unit.with_local(local, several, &state.place),
                false => {
                    let place = |old: usize| self.clusters.get(previous.cluster_name(old)).copied();
                    Arc::new(unit.moved(&place)).with_local(local, several, &state.place)
                }
            });
            if !before.is_empty() && self.out.take(previous, again.collect()).is_ok() {
                rejected.kept = Kept::LastGood;
                continue;
            }
            let resource: Option<&ConfigResource> = state.held.resources.get(&rejected.resource).map(|known| &**known);
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            let mut hosts = compile::hosts(namespace, name);
            let mut http = true;
            if let Some(Body::Service(config)) = resource.and_then(|resource| resource.body.as_ref()) {
                hosts.extend(config.hosts.iter().map(|host| route::host_name(host)));
                http =
                    config.ports.is_empty() || config.ports.iter().any(|port| port.protocol() != proto::Protocol::Tcp);
            }
            // A host that another service has rightly is answered there.
            hosts.retain(|host| !self.out.hosts.contains_key(host.as_str()));
            self.out.close(Closed { key: key.into(), hosts, why: rejected.reason.clone(), http });
        }
    }
}

impl Snapshot {
    /// All ports of a service that is not there, or none of them. Each has the index that it had in `previous`, if nobody else has it.
    fn take(&mut self, previous: &Self, units: Vec<Arc<Service>>) -> Result<(), String> {
        let Some(service) = units.first().map(|unit| Arc::clone(&unit.service)) else { return Ok(()) };
        self.may_take(&units)?;
        let place = |unit: Arc<Service>| {
            let before = previous.port_of(&service, unit.port).filter(|index| self.free.contains(index));
            let index = match before.or_else(|| self.free.get_min().copied()) {
                Some(index) => {
                    self.free.remove(&index);
                    self.units.set(index, Some(Arc::clone(&unit)));
                    index
                }
                None => {
                    self.units.push_back(Some(Arc::clone(&unit)));
                    self.units.len() - 1
                }
            };
            (index, unit)
        };
        let ports: Arc<[_]> = units.into_iter().map(place).collect();
        // A name alone is the first port that speaks HTTP, or at least the first.
        for http in [true, false] {
            for (index, unit) in ports.iter().filter(|(_, unit)| (unit.listener == Listener::Http) == http) {
                for host in &unit.hosts {
                    self.hosts.entry(host.as_str().into()).or_insert(*index);
                }
            }
        }
        self.tcp.extend(ports.iter().filter_map(|(_, unit)| Some((unit.tcp_offset()?, Arc::clone(&unit.key)))));
        self.names.insert(Arc::clone(&service), Ports(Arc::clone(&ports)));
        self.services.insert(service, Ports(ports));
        Ok(())
    }

    /// Whether nobody else has what the ports of a service claim.
    fn may_take(&self, units: &[Arc<Service>]) -> Result<(), String> {
        let mut own = BTreeMap::new();
        for unit in units {
            for host in &unit.hosts {
                if let Some(other) = self.hosts.get(host.as_str()).and_then(|index| self.service(*index)) {
                    return Err(format!("host {host:?} already selects {}", other.service));
                }
            }
            let Some(offset) = unit.tcp_offset() else { continue };
            if let Some(other) = self.tcp.get(&offset).or_else(|| own.insert(offset, &unit.key)) {
                return Err(format!("TCP port offset {offset} already belongs to {other}"));
            }
        }
        Ok(())
    }

    /// Other forms of the ports of a service, that claim what those claim that are there.
    fn replace(&mut self, units: Vec<Arc<Service>>) {
        let Some(service) = units.first().map(|unit| Arc::clone(&unit.service)) else { return };
        let before = self.ports_of(&service);
        if before.iter().zip(&units).all(|((_, before), now)| Arc::ptr_eq(before, now)) {
            return;
        }
        let ports: Arc<[_]> = before.iter().zip(units).map(|((index, _), unit)| (*index, unit)).collect();
        for (index, unit) in ports.iter() {
            self.units.set(*index, Some(Arc::clone(unit)));
        }
        self.names.insert(Arc::clone(&service), Ports(Arc::clone(&ports)));
        self.services.insert(service, Ports(ports));
    }

    /// Nothing of the service is left, whether it was closed or not.
    fn forget(&mut self, key: &str) {
        if let Some(closed) = self.closed.remove(key) {
            for host in &closed.hosts {
                self.closed_hosts.remove(&(Arc::from(host.as_str()), Arc::clone(&closed.key)));
            }
        }
        let Some(Ports(ports)) = self.services.remove(key) else { return };
        self.names.remove(key);
        for (index, unit) in ports.iter() {
            self.units.set(*index, None);
            self.free.insert(*index);
            for host in &unit.hosts {
                self.hosts.remove(host.as_str());
            }
            if let Some(offset) = unit.tcp_offset() {
                self.tcp.remove(&offset);
            }
        }
    }

    fn close(&mut self, closed: Closed) {
        let hosts = closed.hosts.iter().map(|host| (Arc::from(host.as_str()), Arc::clone(&closed.key)));
        self.closed_hosts.extend(hosts);
        self.closed.insert(Arc::clone(&closed.key), Arc::new(closed));
    }
}

impl Service {
    /// The same policy with the endpoints that the agent knows now, seen from `here`; `several`: it is one port of several.
    fn with_local(self: &Arc<Self>, local: Option<&proto::LocalService>, several: bool, here: &Place) -> Arc<Self> {
        let local = Local::of(local, self.port.into(), several);
        let source = Source::of(&self.source.version, local, here);
        if source == self.source {
            return Arc::clone(self);
        }
        let (local, preference) = local.read(here);
        Arc::new(Self { local, preference, source, ..(**self).clone() })
    }

    /// The same policy in a snapshot with other clusters; those that are gone can serve nothing.
    fn moved(&self, place: &impl Fn(usize) -> Option<usize>) -> Self {
        let all = |list: &[usize]| list.iter().filter_map(|old| place(*old)).collect();
        Self {
            exporters: all(&self.exporters),
            avoid: all(&self.avoid),
            residency: self.residency.as_deref().map(all),
            rules: self.rules.moved(place),
            ..self.clone()
        }
    }
}

/// Equal for equal lists of endpoints, seen from the same place, within one process.
fn fingerprint(local: Local<'_>, here: &Place) -> u64 {
    static SEED: std::sync::LazyLock<foldhash::quality::RandomState> = std::sync::LazyLock::new(Default::default);
    let mut hasher = SEED.build_hasher();
    for endpoint in local.endpoints {
        let proto::Endpoint { address, version, instance, readiness, locality } = endpoint;
        (address, version, instance, readiness, locality).hash(&mut hasher);
    }
    for proto::Locality { zone: _, for_zones, for_nodes } in local.localities {
        (for_zones, for_nodes).hash(&mut hasher);
    }
    // Where nothing is known it does not matter where we are.
    if !local.localities.is_empty() {
        here.hash(&mut hasher);
    }
    hasher.finish()
}

impl Protocol {
    pub(in crate::config) fn from_proto(value: i32) -> Option<Self> {
        match proto::Protocol::try_from(value).ok()? {
            proto::Protocol::Http1 => Some(Self::Http1),
            proto::Protocol::H2c => Some(Self::H2c),
            proto::Protocol::Tcp => Some(Self::Tcp),
            proto::Protocol::Unspecified => None,
        }
    }
}
