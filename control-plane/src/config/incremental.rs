//! Configurations kept up to date: what changed of the state is found, and that alone is compiled. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use archipelago_model::{
    compile::{self, Changed, GatewayRecord, Index, compile_service, compile_shared},
    delta::Shared,
    id::{ClusterId, GatewayId, ServiceKey},
    stream::{Compiled, Resource, Resources},
};
use archipelago_proto::v1::{Import, ServiceReport};
use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    consensus::authority_facts,
    machine::{State, convert},
    policy,
};

/// The newest configuration of each cluster that is wanted, and what they were made from.
#[derive(Debug, Default)]
pub(super) struct Incremental {
    last: State,
    /// By service and port.
    tcp_offsets: BTreeMap<(ServiceKey, u32), u32>,
    index: Index,
    compiled: BTreeMap<String, Arc<Compiled>>,
    /// Absent while nobody wants them.
    imports: Option<ImportTable>,
}

/// What the federation exports, by "namespace/name".
pub(crate) type ImportTable = OrdMap<String, Shared<Import>>;

impl Incremental {
    /// Brings the configurations of `clusters`, and of no others, to this state. Costs what changed for those that were
    /// wanted before; resources that did not change are shared with the configuration before. The same with the imports, if
    /// those are wanted.
    pub(super) fn follow(&mut self, state: &State, clusters: &BTreeSet<&str>, imports: bool) {
        let changed = self.learn(state);
        self.imports = imports.then(|| self.import(&changed));
        self.compiled.retain(|cluster, _| clusters.contains(cluster.as_str()));
        let version = state.version();
        for name in clusters {
            let cluster = ClusterId::new(*name);
            let resources = match self.compiled.get(*name) {
                Some(before) if before.version == version && changed.is_nothing() => continue,
                Some(before) => self.again(before.resources.clone(), &cluster, &changed),
                None => {
                    let all = Changed { every_service: true, shared: true, ..Changed::default() };
                    self.again(Resources::default(), &cluster, &all)
                }
            };
            self.compiled.insert((*name).to_owned(), Arc::new(Compiled { version, resources }));
        }
    }

    /// The configuration of a cluster that was asked for.
    pub(super) fn compiled(&self, cluster: &str) -> Option<Arc<Compiled>> {
        self.compiled.get(cluster).cloned()
    }

    /// What the federation exports, if that was asked for.
    pub(super) fn imports(&self) -> Option<&ImportTable> {
        self.imports.as_ref()
    }

    fn import(&mut self, changed: &Changed) -> ImportTable {
        let Some(mut imports) = self.imports.take() else { return self.import_all(ImportTable::default()) };
        if changed.every_service {
            return self.import_all(imports);
        }
        for key in &changed.services {
            put_import(&mut imports, key, compile::import(&self.index, key));
        }
        imports
    }

    fn import_all(&self, mut imports: ImportTable) -> ImportTable {
        let gone: Vec<ServiceKey> = imports
            .keys()
            .filter_map(|key| key.parse().ok())
            .filter(|key| compile::import(&self.index, key).is_none())
            .collect();
        gone.iter().for_each(|key| put_import(&mut imports, key, None));
        for key in self.index.services() {
            put_import(&mut imports, key, compile::import(&self.index, key));
        }
        imports
    }

    fn again(&self, mut resources: Resources, cluster: &ClusterId, changed: &Changed) -> Resources {
        if changed.shared {
            let shared = compile_shared(&self.index, cluster);
            remove(&mut resources, |name| !name.starts_with(SERVICE) && !shared.contains_key(name));
            shared.into_values().for_each(|resource| put(&mut resources, resource.into()));
        }
        if changed.every_service {
            let services: BTreeMap<String, Resource> = self
                .index
                .services()
                .filter_map(|key| compile_service(&self.index, cluster, key))
                .map(|resource| (resource.name.clone(), resource.into()))
                .collect();
            remove(&mut resources, |name| name.starts_with(SERVICE) && !services.contains_key(name));
            services.into_values().for_each(|resource| put(&mut resources, resource));
            return resources;
        }
        for key in &changed.services {
            match compile_service(&self.index, cluster, key) {
                Some(resource) => put(&mut resources, resource.into()),
                None => resources.remove(&format!("{SERVICE}{key}")),
            }
        }
        resources
    }

    /// Takes into the index what differs from the last state.
    fn learn(&mut self, state: &State) -> Changed {
        let last = std::mem::replace(&mut self.last, state.clone());
        let facts = authority_facts(state);
        let index = &mut self.index;
        let mut changed = index.set_authority(&facts.trust_domain, &facts.bundle_der);
        changed.merge(index.set_revocations(&facts.revocations));
        for difference in last.resources().diff(state.resources()) {
            let (key, stored) = now(difference);
            if let Some(known) = policy::known(key) {
                let value = stored.and_then(|stored| policy::value(key, stored));
                changed.merge(index.set_resource(&known, value.as_ref()));
            }
        }
        for difference in last.reports().diff(state.reports()) {
            let (cluster, services) = now(difference);
            let reports: Vec<ServiceReport> =
                services.map(|services| services.iter().map(convert::service_report).collect()).unwrap_or_default();
            let since: BTreeMap<(&str, &str), u64> = services
                .iter()
                .flat_map(|services| services.iter())
                .map(|service| ((service.namespace.as_str(), service.name.as_str()), service.since))
                .collect();
            let since = |key: &ServiceKey| since.get(&(&*key.namespace, &*key.name)).copied().unwrap_or(0);
            changed.merge(index.set_reports(&ClusterId::new(cluster.as_str()), &reports, since));
        }
        for difference in last.gateways().diff(state.gateways()) {
            let ((cluster, name), gateway) = now(difference);
            let record = gateway.map(|gateway| GatewayRecord {
                spiffe_id: gateway.spiffe_id.clone(),
                addresses: convert::addresses(&gateway.addresses),
            });
            changed.merge(index.set_gateway(&GatewayId::new(cluster.as_str(), name.as_str()), record.as_ref()));
        }
        let offsets: BTreeMap<(ServiceKey, u32), u32> = state
            .tcp_slots()
            .map(|((namespace, name, port), offset)| {
                ((ServiceKey::new(namespace.as_str(), name.as_str()), *port), offset)
            })
            .collect();
        for (key, port) in self.tcp_offsets.keys().filter(|name| !offsets.contains_key(name)) {
            changed.merge(index.set_tcp_offset(key, *port, None));
        }
        for ((key, port), offset) in &offsets {
            changed.merge(index.set_tcp_offset(key, *port, Some(*offset)));
        }
        self.tcp_offsets = offsets;
        changed
    }
}

/// A row's key, and the row if it is still there.
fn now<'m, K, V>(difference: DiffItem<'m, 'm, K, V>) -> (&'m K, Option<&'m V>) {
    match difference {
        DiffItem::Add(key, row) | DiffItem::Update { new: (key, row), .. } => (key, Some(row)),
        DiffItem::Remove(key, _) => (key, None),
    }
}

fn put(resources: &mut Resources, resource: Resource) {
    // Sharing what is equal is what makes the difference to a gateway's base cheap to find.
    if resources.get(&resource.name) != Some(&resource) {
        resources.put(resource);
    }
}

fn put_import(imports: &mut ImportTable, key: &ServiceKey, import: Option<Import>) {
    let key = key.to_string();
    match import {
        Some(import) if imports.get(&key).is_none_or(|known| **known != import) => {
            imports.insert(key, Shared::new(import));
        }
        Some(_) => {}
        None => drop(imports.remove(&key)),
    }
}

fn remove(resources: &mut Resources, gone: impl Fn(&str) -> bool) {
    let names: Vec<String> = resources.iter().filter(|row| gone(&row.name)).map(|row| row.name.clone()).collect();
    names.iter().for_each(|name| resources.remove(name));
}

const SERVICE: &str = "service/";

#[cfg(test)]
mod tests {
    use archipelago_model::{compile::compile, resource::Resource as Value};
    use archipelago_proto::v1::{self as proto, config_resource::Body};
    use archipelago_raft::StateMachine as _;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{
        consensus::federation_of,
        machine::{
            Machine, Stored,
            command::{
                Action, ApplyResources, Command, ExportFacts, GatewayAddresses, Protocol, RegisterGateway,
                ReportExports, ReportedPort, ReportedService, ResourceKey, ResourceWrite,
            },
            format,
        },
    };

    fn resource(kind: &str, namespace: &str, name: &str, spec: &str) -> Action {
        let namespace_field =
            if namespace.is_empty() { String::new() } else { format!(r#","namespace":"{namespace}""#) };
        let json = format!(
            r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}"{namespace_field}}},"spec":{spec}}}"#
        );
        let value = Value::from_json(&json).unwrap();
        let key = ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        let write = ResourceWrite { key: Some(key), canonical: value.to_json().into() };
        Action::ApplyResources(ApplyResources { upserts: vec![write], ..ApplyResources::default() })
    }

    fn delete(kind: &str, namespace: &str, name: &str) -> Action {
        let key = ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        Action::ApplyResources(ApplyResources { deletes: vec![key], ..ApplyResources::default() })
    }

    /// One of many changes, chosen by numbers.
    fn action(kind: u8, a: usize, b: usize, c: u32) -> Action {
        let cluster = ["oslo", "paris", "tokyo"][a % 3];
        let service = ["api", "ledger", "web"][b % 3];
        match kind % 8 {
            0 => resource(
                "Cluster",
                "",
                cluster,
                &format!(r#"{{"region":"r{}","drained":{}}}"#, c % 2, c.is_multiple_of(3)),
            ),
            1 if c.is_multiple_of(3) => delete("Cluster", "", cluster),
            1 | 2 => {
                let backends = format!(r#"[{{"cluster":"{cluster}","weight":{}}}]"#, c % 100 + 1);
                resource(
                    "TrafficSplit",
                    "shop",
                    ["s1", "s2"][a % 2],
                    &format!(r#"{{"service":"{service}","backends":{backends}}}"#),
                )
            }
            3 if c.is_multiple_of(2) => delete("TrafficSplit", "shop", ["s1", "s2"][a % 2]),
            3 => {
                resource("FailoverPolicy", "shop", "p", &format!(r#"{{"service":"{service}","avoid":["{cluster}"]}}"#))
            }
            4 => resource("ServiceExport", "shop", service, "{}"),
            5 => Action::RegisterGateway(RegisterGateway {
                cluster: cluster.into(),
                name: ["gw-1", "gw-2"][b % 2].into(),
                spiffe_id: format!("spiffe://mesh.example/cluster/{cluster}/gateway/gw-1"),
                addresses: Some(GatewayAddresses {
                    tunnel: vec![format!("10.0.0.1:{}", c % 9 + 1)],
                    ..Default::default()
                }),
                workers: 1,
            }),
            _ => {
                let services = ["api", "ledger", "web"].iter().enumerate().filter(|(n, _)| c >> n & 1 == 1);
                let services = services.map(|(n, name)| ReportedService {
                    namespace: "shop".into(),
                    name: (*name).into(),
                    // Disputed as often as not: then the age of the reports decides.
                    protocol: if c >> (8 + n) & 1 == 1 { Protocol::Tcp } else { Protocol::Http1 }.into(),
                    port: 80 + c % 2,
                    exported: !c.is_multiple_of(5),
                    versions: vec![format!("v{}", c % 4)],
                    more_ports: (0..c >> (12 + n) & 3)
                        .map(|port| ReportedPort {
                            name: format!("p{port}"),
                            port: 8_080 + port,
                            protocol: if c >> (16 + n) & 1 == 1 { Protocol::Tcp } else { Protocol::H2c }.into(),
                            ..ReportedPort::default()
                        })
                        .collect(),
                    export: c.is_multiple_of(7).then(|| ExportFacts {
                        created_unix_ms: i64::from(c % 3),
                        r#type: i32::from(c.is_multiple_of(21)) + 1,
                        ..ExportFacts::default()
                    }),
                    ..ReportedService::default()
                });
                Action::ReportExports(ReportExports { cluster: cluster.into(), services: services.collect() })
            }
        }
    }

    /// By age, not by name; and a cluster that changes its mind is younger than the other one.
    #[test]
    fn the_older_report_of_a_disputed_protocol_counts_and_goes_by_what_it_says_now() {
        let mut machine = Machine::new(format::CURRENT, Box::new(|_| {}));
        let mut incremental = Incremental::default();
        let report = |cluster: &str, protocol: Protocol| {
            let service = ReportedService {
                namespace: "shop".into(),
                name: "api".into(),
                protocol: protocol.into(),
                port: 80,
                exported: true,
                ..ReportedService::default()
            };
            Action::ReportExports(ReportExports { cluster: cluster.into(), services: vec![service] })
        };
        let declare = |cluster: &str| resource("Cluster", "", cluster, r#"{"region":"r"}"#);
        let mut protocol_after = |action: Action| {
            let command =
                Command { format_version: format::required(&action), action: Some(action), ..Command::default() };
            machine.apply(1, &command.encode_to_vec()).unwrap();
            incremental.follow(machine.state(), &BTreeSet::from(["oslo"]), false);
            let compiled = incremental.compiled("oslo").unwrap();
            match compiled.resources.get("service/shop/api").and_then(|resource| resource.body.clone()) {
                Some(Body::Service(service)) => service.ports.first().map(proto::ServicePort::protocol),
                _ => None,
            }
        };
        assert_eq!(protocol_after(declare("oslo")), None);
        assert_eq!(protocol_after(declare("tokyo")), None);
        assert_eq!(protocol_after(report("tokyo", Protocol::Tcp)), Some(proto::Protocol::Tcp));
        assert_eq!(protocol_after(report("oslo", Protocol::Http1)), Some(proto::Protocol::Tcp));
        assert_eq!(protocol_after(report("tokyo", Protocol::H2c)), Some(proto::Protocol::Http1));
        assert_eq!(protocol_after(report("oslo", Protocol::Http1)), Some(proto::Protocol::Http1));
    }

    fn values(state: &State) -> archipelago_model::admit::Resources {
        let value = |(key, stored): (&crate::machine::Key, &Arc<Stored>)| policy::value(key, stored);
        state.resources().iter().filter_map(value).map(|value| (value.key(), value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// However the state moves and whoever looks when: what is kept up to date is what the compiler gives for the whole.
        #[test]
        fn what_is_kept_up_to_date_is_what_a_fresh_compilation_gives(
            steps in prop::collection::vec((any::<u8>(), 0usize..3, 0usize..3, any::<u32>(), 0u8..8), 1..40)
        ) {
            let mut machine = Machine::new(format::CURRENT, Box::new(|_| {}));
            let mut incremental = Incremental::default();
            for (kind, a, b, c, wanted) in steps {
                let action = action(kind, a, b, c);
                let command = Command { format_version: format::required(&action), action: Some(action), ..Command::default() };
                machine.apply(1, &command.encode_to_vec()).unwrap();
                if wanted & 1 == 0 {
                    continue;
                }
                let clusters: BTreeSet<&str> = ["oslo", "paris", "tokyo"].into_iter().enumerate()
                    .filter(|(n, _)| wanted >> n & 1 == 1).map(|(_, name)| name).collect();
                let state = machine.state();
                incremental.follow(state, &clusters, wanted & 2 == 0);
                let all = incremental.import_all(ImportTable::default());
                prop_assert_eq!(incremental.imports(), (wanted & 2 == 0).then_some(&all));
                let federation = federation_of(state, values(state));
                for cluster in clusters {
                    let kept = incremental.compiled(cluster).unwrap();
                    let fresh: Resources = compile(&federation, cluster).into_values().map(Resource::from).collect();
                    prop_assert_eq!(kept.version, state.version());
                    prop_assert_eq!(&kept.resources, &fresh, "{}", cluster);
                }
            }
        }
    }
}
