//! From what the federation exports and what the cluster holds to what has to be written there. Without I/O.
//!
//! Level-triggered: [`Controller::plan`] compares the whole of what should be with the whole of what is, and says the
//! difference. Nothing is remembered that could not be read off the cluster, but for ports that rest ([`super::ports`]).
//! Objects follow one from another (an import's uid makes its Service, the Service's addresses make the slices), so it takes
//! a few rounds until there is nothing left to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Instant,
};

use archipelago_agent::provider::Imports;
use archipelago_model::{
    export::{self, Merged},
    id::ServiceKey,
};
use archipelago_proto::v1;
use serde_json::{Value, json};

use super::{
    derived::{self, Gateway, PortKeyOf},
    exports,
    imports::{self, Wanted},
    names::{self, PortKey},
    ports::Allocator,
};
use crate::{
    apply::{Target, What, Write},
    crd::{Condition, ImportType, MCS_GROUP, MCS_VERSION, ServiceExport, ServiceImport},
    types::{APP, EndpointSlice, Key, Kind, MANAGED_BY, MANAGED_BY_US, Namespace, Resource, Service, Transport},
    watch::Objects,
};

/// A cluster and the federation around it, at one moment.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What the federation exports; `None` until somebody said.
    pub imports: Option<Arc<Imports>>,
    /// All namespaces.
    pub namespaces: Objects<Namespace>,
    /// All exports of this cluster.
    pub exports: Objects<ServiceExport>,
    /// All imports of this cluster, whoever made them.
    pub service_imports: Objects<ServiceImport>,
    /// All Services.
    pub services: Objects<Service>,
    /// All slices.
    pub slices: Objects<EndpointSlice>,
    /// Nodes that have a gateway.
    pub gateways: BTreeMap<Arc<str>, Gateway>,
}

/// What has to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Each object at most once, but for its status.
    pub writes: Vec<Write>,
    /// ServiceImports that stand where ours should, made by somebody else.
    pub foreign: BTreeSet<Key>,
    /// Ports for which no listen port is left.
    pub without: Vec<PortKey>,
}

/// The controller of one cluster.
#[derive(Debug)]
pub struct Controller {
    cluster: String,
    trust_domain: String,
    ports: Allocator,
    /// Derived Services that cannot have the addresses back that they had.
    moved: BTreeSet<Key>,
}

impl Controller {
    /// `capture_ports`: what gateways may be told to listen on.
    #[must_use]
    pub fn new(cluster: &str, trust_domain: &str, capture_ports: RangeInclusive<u16>) -> Self {
        let (cluster, trust_domain) = (cluster.into(), trust_domain.into());
        Self { cluster, trust_domain, ports: Allocator::new(capture_ports), moved: BTreeSet::new() }
    }

    /// The API server does not take this write as it is, whenever it is repeated.
    pub fn refused(&mut self, write: &Write) {
        let asks = |body: &Value| body.pointer("/spec/clusterIPs").is_some();
        if let (What::Apply(body), Resource { plural: "services", .. }) = (&write.what, write.target.resource)
            && asks(&body.value())
        {
            self.moved.insert(write.target.key.clone());
        }
    }

    /// What has to be written. `now` is RFC 3339, for conditions that change.
    pub fn plan(&mut self, seen: &Seen, now: &str, at: Instant) -> Plan {
        let mut plan = Plan::default();
        let merged = merged(seen);
        let wanted = wanted(seen, &merged, &mut plan);
        self.allocate(seen, &wanted, at, &mut plan);
        if !self.moved.is_empty() {
            let derived = wanted.keys().map(|key| Key::new(key.namespace.clone(), names::derived(&key.name)));
            let away: BTreeSet<Key> = derived.filter(|key| !seen.services.contains_key(key)).collect();
            self.moved.retain(|key| away.contains(key));
        }
        let mut expected = Expected::default();
        for (key, wanted) in &wanted {
            self.import(seen, key, wanted, now, &mut expected, &mut plan);
        }
        remove(seen, &wanted, &expected, &mut plan);
        for (key, export) in &seen.exports {
            self.export(seen, key, export, &merged, now, &mut plan);
        }
        self.properties(&mut plan);
        plan
    }

    fn allocate(&mut self, seen: &Seen, wanted: &BTreeMap<Key, Wanted>, at: Instant, plan: &mut Plan) {
        let mut ports = BTreeSet::new();
        for (key, wanted) in wanted.iter().filter(|(_, wanted)| wanted.spec.r#type == ImportType::ClusterSetIP) {
            let tcp = derived::usable(&wanted.spec.ports).filter(|(_, transport, _)| *transport == Transport::Tcp);
            ports.extend(tcp.map(|(port, _, _)| (service_key(key), port)));
        }
        plan.without = self.ports.allocate(&ports, &allocations(seen), at);
    }

    /// One import: the object, its Service, its slices.
    fn import(&self, seen: &Seen, key: &Key, wanted: &Wanted, now: &str, expected: &mut Expected, plan: &mut Plan) {
        let derived_key = Key::new(key.namespace.clone(), names::derived(&key.name));
        let service = seen.services.get(&derived_key).filter(|service| !service.is_terminating);
        let ours = service.filter(|service| derived::is_ours(service));
        let found = seen.service_imports.get(key);
        let is_away = !seen.services.contains_key(&derived_key) && !self.moved.contains(&derived_key);
        let wanted = match found {
            Some(found) if is_away => wanted.clone().awaiting(found),
            _ => wanted.clone().with_addresses(ours.map(|service| &**service)),
        };
        if found.is_none_or(|found| !wanted.is_in(found)) {
            plan.write(ServiceImport::RESOURCE, key, What::Apply(import_body(key, &wanted).into()));
        } else if found.is_some_and(|found| !wanted.is_all_of(found)) {
            // There is more than we ask for: either somebody else's, or what we no longer ask for. Asking once settles it.
            plan.write(ServiceImport::RESOURCE, key, What::ApplyOnce(import_body(key, &wanted).into()));
        }
        let Some(import) = found else { return };
        let is_headless = wanted.spec.r#type == ImportType::Headless;
        let is_blocked = !is_headless && service.is_some() && ours.is_none();
        if !is_headless && !is_blocked {
            expected.services.insert(derived_key.clone());
            if ours.is_none_or(|ours| !derived::is_right(ours, &key.name, &import.uid, &wanted.spec.ports)) {
                let addresses = if is_away { wanted.spec.ips.as_slice() } else { &[] };
                let body = derived::service(&derived_key, &key.name, &import.uid, &wanted.spec.ports, addresses);
                plan.write(Service::RESOURCE, &derived_key, What::Apply(body.into()));
            }
            if let Some(service) = ours {
                self.slices(seen, key, &wanted, &derived_key, service, expected, plan);
            }
        }
        let without: Vec<u16> =
            plan.without.iter().filter(|(service, _)| *service == service_key(key)).map(|(_, port)| *port).collect();
        let judged =
            imports::Judged { import, wanted: &wanted, is_derived: ours.is_some(), is_blocked, without: &without, now };
        let status = judged.status();
        if status != import.status {
            let body = json!({
                "apiVersion": format!("{MCS_GROUP}/{MCS_VERSION}"), "kind": "ServiceImport",
                "metadata": { "name": key.name, "namespace": key.namespace },
                "status": status,
            });
            plan.write(ServiceImport::RESOURCE, key, What::ApplyStatus(body.into()));
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one step, which have no name together")]
    fn slices(
        &self,
        seen: &Seen,
        key: &Key,
        wanted: &Wanted,
        derived_key: &Key,
        service: &Service,
        expected: &mut Expected,
        plan: &mut Plan,
    ) {
        let import = PortKeyOf { namespace: &key.namespace, name: &key.name, ports: &wanted.spec.ports };
        for (slice_key, slice) in derived::slices(derived_key, &import, service, &seen.gateways, &self.ports) {
            let found = seen.slices.get(&slice_key);
            if found.is_none_or(|found| **found != slice) {
                let family = service.ip_families.iter().find(|family| names::slice_is_of(&slice_key.name, family));
                let family = family.map_or("IPv4", |family| &**family);
                let body = derived::slice(&slice_key, &slice, family, &service.uid);
                plan.write(EndpointSlice::RESOURCE, &slice_key, What::Apply(body.into()));
            }
            expected.slices.insert(slice_key);
        }
    }

    fn export(
        &self,
        seen: &Seen,
        key: &Key,
        export: &ServiceExport,
        merged: &BTreeMap<Key, Merged>,
        now: &str,
        plan: &mut Plan,
    ) {
        if export.is_terminating || !is_live(seen, key) {
            return;
        }
        let judged = exports::Judged {
            cluster: &self.cluster,
            key,
            export,
            service: seen.services.get(key).map(|service| &**service),
            imports: seen.imports.as_deref(),
            merged: merged.get(key),
            now,
        };
        let conditions = exports::conditions(&judged);
        let is_said = |condition: &Condition| export.conditions.contains(condition);
        let is_about = |condition: &Condition| condition.r#type == exports::SELECTORS;
        let is_over = export.conditions.iter().any(is_about) && !conditions.iter().any(is_about);
        if is_over || !conditions.iter().all(is_said) {
            let body = json!({
                "apiVersion": format!("{MCS_GROUP}/{MCS_VERSION}"), "kind": "ServiceExport",
                "metadata": { "name": key.name, "namespace": key.namespace },
                "status": { "conditions": conditions },
            });
            plan.write(ServiceExport::RESOURCE, key, What::ApplyStatus(body.into()));
        }
    }

    /// Who this cluster is, by the About API.
    fn properties(&self, plan: &mut Plan) {
        for (name, value) in [("cluster.clusterset.k8s.io", &self.cluster), ("clusterset.k8s.io", &self.trust_domain)] {
            let body = json!({
                "apiVersion": "about.k8s.io/v1beta1", "kind": "ClusterProperty",
                "metadata": { "name": name, "labels": { MANAGED_BY: APP } },
                "spec": { "value": value },
            });
            plan.write(CLUSTER_PROPERTY, &Key::new("", name), What::ApplyOnce(body.into()));
        }
    }
}

impl Plan {
    fn write(&mut self, resource: Resource, key: &Key, what: What) {
        self.writes.push(Write { target: Target { resource, key: key.clone() }, what });
    }
}

/// Objects that may stay.
#[derive(Debug, Default)]
struct Expected {
    services: BTreeSet<Key>,
    slices: BTreeSet<Key>,
}

/// What the exports of every name come to.
fn merged(seen: &Seen) -> BTreeMap<Key, Merged> {
    let imports = seen.imports.iter().flat_map(|imports| imports.iter());
    imports
        .filter(|(_, import)| !import.exporters.is_empty())
        .map(|(key, import)| {
            (Key { namespace: key.namespace.clone(), name: key.name.clone() }, export::merge(&import.exporters))
        })
        .collect()
}

/// The imports that belong into this cluster: those of namespaces that are here, unless somebody else made one.
fn wanted(seen: &Seen, merged: &BTreeMap<Key, Merged>, plan: &mut Plan) -> BTreeMap<Key, Wanted> {
    let Some(imports) = &seen.imports else {
        let ours = seen.service_imports.iter().filter(|(_, import)| is_ours(import) && !import.is_terminating);
        return ours
            .filter(|(key, _)| is_live(seen, key))
            .map(|(key, import)| (key.clone(), Wanted::kept(import)))
            .collect();
    };
    let mut wanted = BTreeMap::new();
    for (key, merged) in merged {
        if !is_live(seen, key) {
            continue;
        }
        match seen.service_imports.get(key) {
            // It will be gone in a moment, and then there is a place for ours.
            Some(import) if import.is_terminating => continue,
            Some(import) if !is_ours(import) => {
                plan.foreign.insert(key.clone());
                continue;
            }
            Some(_) | None => {}
        }
        let exporters = imports.get(&service_key(key)).map(|import: &v1::Import| import.exporters.as_slice());
        wanted.insert(key.clone(), Wanted::merged(merged, exporters.unwrap_or_default()));
    }
    wanted
}

/// Deletes what is ours and stands for nothing any more.
fn remove(seen: &Seen, wanted: &BTreeMap<Key, Wanted>, expected: &Expected, plan: &mut Plan) {
    // A namespace that is going takes everything with it.
    for (key, import) in seen.service_imports.iter().filter(|(key, _)| is_live(seen, key)) {
        if is_ours(import) && !import.is_terminating && !wanted.contains_key(key) {
            plan.write(ServiceImport::RESOURCE, key, What::Delete { uid: Some(import.uid.clone()) });
        }
    }
    for (key, service) in seen.services.iter().filter(|(key, _)| is_live(seen, key)) {
        if derived::is_ours(service) && !service.is_terminating && !expected.services.contains(key) {
            plan.write(Service::RESOURCE, key, What::Delete { uid: Some(service.uid.to_string()) });
        }
    }
    for (key, slice) in seen.slices.iter().filter(|(key, _)| is_live(seen, key)) {
        if slice.managed_by.as_deref() != Some(MANAGED_BY_US) || expected.slices.contains(key) {
            continue;
        }
        // Of a Service that is there, and will have its addresses in a moment: the slice holds the listen ports.
        let service = Key { namespace: key.namespace.clone(), name: slice.service.clone() };
        if expected.services.contains(&service) && !seen.services.contains_key(&service) {
            continue;
        }
        plan.write(EndpointSlice::RESOURCE, key, What::Delete { uid: None });
    }
}

/// What our slices say of listen ports: the port of the import is in the name of the slice's port, and the import is on the
/// label of the Service.
fn allocations(seen: &Seen) -> BTreeMap<PortKey, u16> {
    let mut allocations = BTreeMap::new();
    for (key, _) in ours(seen) {
        let derived = Key::new(key.namespace.clone(), names::derived(&key.name));
        for (name, listen) in ports_of_slices(seen, &derived) {
            allocations.entry((service_key(key), name)).or_insert(listen);
        }
    }
    allocations
}

fn ours(seen: &Seen) -> impl Iterator<Item = (&Key, &Arc<ServiceImport>)> {
    seen.service_imports.iter().filter(|(_, import)| is_ours(import))
}

/// Import port and listen port, out of every slice of a derived Service.
fn ports_of_slices<'a>(seen: &'a Seen, derived: &'a Key) -> impl Iterator<Item = (u16, u16)> + 'a {
    let first = Key::new(derived.namespace.clone(), format!("{}-", derived.name));
    let range = seen.slices.range(first..).take_while(|(key, _)| {
        key.namespace == derived.namespace
            && key.name.strip_prefix(&*derived.name).is_some_and(|rest| rest.starts_with('-'))
    });
    range
        .filter(|(_, slice)| slice.managed_by.as_deref() == Some(MANAGED_BY_US) && slice.service == derived.name)
        .flat_map(|(_, slice)| slice.ports.iter())
        .filter_map(|port| Some((names::tcp_port(&port.name)?, port.port)))
}

/// Where clients of this cluster find imports at its gateways, as the cluster itself says it: the same on every replica of the
/// agent, whoever leads.
#[must_use]
pub fn captures(seen: &Seen) -> v1::Captures {
    let mut captures = Vec::new();
    for (key, import) in ours(seen).filter(|(_, import)| !import.is_terminating) {
        let derived = Key::new(key.namespace.clone(), names::derived(&key.name));
        let Some(service) = seen.services.get(&derived).filter(|service| derived::is_ours(service)) else { continue };
        let cluster_ips: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
        let listens: BTreeMap<u16, u16> = ports_of_slices(seen, &derived).collect();
        for (port, transport, said) in derived::usable(&import.spec.ports) {
            let (Transport::Tcp, Some(listen)) = (transport, listens.get(&port)) else { continue };
            captures.push(v1::Capture {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                port: port.into(),
                port_name: said.name.clone(),
                protocol: derived::protocol(said).to_proto().into(),
                listen: (*listen).into(),
                cluster_ips: cluster_ips.clone(),
            });
        }
    }
    v1::Captures { captures }
}

fn import_body(key: &Key, wanted: &Wanted) -> Value {
    json!({
        "apiVersion": format!("{MCS_GROUP}/{MCS_VERSION}"), "kind": "ServiceImport",
        "metadata": {
            "name": key.name, "namespace": key.namespace, "labels": wanted.labels, "annotations": wanted.annotations,
        },
        "spec": wanted.spec,
    })
}

fn is_ours(import: &ServiceImport) -> bool {
    import.managed_by() == Some(APP)
}

/// The namespace of `key` is here and stays.
fn is_live(seen: &Seen, key: &Key) -> bool {
    let namespace = Key { namespace: "".into(), name: key.namespace.clone() };
    seen.namespaces.get(&namespace).is_some_and(|namespace| !namespace.is_terminating)
}

fn service_key(key: &Key) -> ServiceKey {
    ServiceKey { namespace: key.namespace.clone(), name: key.name.clone() }
}

const CLUSTER_PROPERTY: Resource = Resource { group: "about.k8s.io", version: "v1beta1", plural: "clusterproperties" };
