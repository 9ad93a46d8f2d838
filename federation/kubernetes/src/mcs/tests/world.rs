//! A cluster in memory that takes writes as an API server does, as far as the controller can tell.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_model::id::ServiceKey;
use archipelago_proto::v1::{ExportFacts, ExportType, Exporter, Import, ReportedPort};
use imbl::OrdMap;
use serde_json::{Map, Value, json};

use super::super::{
    gateways,
    plan::{Controller, Plan, Seen},
};
use crate::{
    apply::{What, Write},
    types::{Key, Kind, Names},
    watch::Objects,
};

pub(super) struct World {
    cluster: &'static str,
    objects: BTreeMap<(&'static str, Key), Value>,
    imports: Option<Arc<archipelago_agent::provider::Imports>>,
    controller: Controller,
    /// Labels that a write of the controller put there: an apply that no longer has them takes them away.
    applied: BTreeMap<(&'static str, Key), Map<String, Value>>,
    next: u32,
    now: Instant,
}

const PORTS: RangeInclusive<u16> = 17_000..=24_999;

impl World {
    pub(super) fn new(cluster: &'static str) -> Self {
        Self {
            cluster,
            objects: BTreeMap::new(),
            imports: Some(Arc::default()),
            controller: Controller::new(cluster, "archipelago.test", PORTS),
            applied: BTreeMap::new(),
            next: 0,
            now: Instant::now(),
        }
    }

    pub(super) fn capture_ports(&mut self, ports: RangeInclusive<u16>) {
        self.controller = Controller::new(self.cluster, "archipelago.test", ports);
    }

    pub(super) fn new_leader(&mut self) {
        self.capture_ports(PORTS);
    }

    pub(super) fn imports(&mut self, imports: &[Import]) {
        let imports =
            imports.iter().map(|import| (ServiceKey::new(&*import.namespace, &*import.name), import.clone())).collect();
        self.imports = Some(Arc::new(imports));
    }

    /// Nobody says what the federation exports.
    pub(super) fn silence(&mut self) {
        self.imports = None;
    }

    pub(super) fn namespace(&mut self, name: &str) {
        self.put("namespaces", "", name, json!({}));
    }

    pub(super) fn terminate(&mut self, namespace: &str) {
        self.put("namespaces", "", namespace, json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
    }

    pub(super) fn gateway(&mut self, node: &str, address: &str, ready: bool) {
        let addresses = json!([{ "type": "InternalIP", "address": address }]);
        self.put("nodes", "", node, json!({ "status": { "addresses": addresses } }));
        self.pod("archipelago-system", &format!("gateway-{node}"), node, "archipelago-gateway", ready);
    }

    pub(super) fn pod(&mut self, namespace: &str, name: &str, node: &str, account: &str, ready: bool) {
        let status = if ready { "True" } else { "False" };
        let body = json!({
            "spec": { "nodeName": node, "serviceAccountName": account, "hostNetwork": true },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status }] },
        });
        self.put("pods", namespace, name, body);
    }

    pub(super) fn put(&mut self, plural: &'static str, namespace: &str, name: &str, mut body: Value) -> Value {
        self.next += 1;
        let uid = format!("uid-{}", self.next);
        let metadata = body.as_object_mut().unwrap().entry("metadata").or_insert_with(|| json!({}));
        let metadata = metadata.as_object_mut().unwrap();
        for (field, value) in [("namespace", namespace), ("name", name), ("uid", &uid)] {
            metadata.insert(field.into(), json!(value));
        }
        metadata.entry("generation").or_insert_with(|| json!(1));
        metadata.entry("creationTimestamp").or_insert_with(|| json!("2026-01-01T00:00:00Z"));
        self.objects.insert((plural, Key::new(namespace, name)), body.clone());
        body
    }

    pub(super) fn label(&mut self, plural: &'static str, namespace: &str, name: &str, key: &str, value: &str) {
        self.objects.get_mut(&(plural, Key::new(namespace, name))).unwrap()["metadata"]["labels"][key] = json!(value);
    }

    pub(super) fn remove(&mut self, plural: &'static str, namespace: &str, name: &str) {
        self.objects.remove(&(plural, Key::new(namespace, name))).unwrap();
    }

    pub(super) fn get(&self, plural: &'static str, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&(plural, Key::new(namespace, name))).cloned()
    }

    pub(super) fn names(&self, plural: &'static str) -> Vec<&str> {
        self.objects.keys().filter(|(of, _)| *of == plural).map(|(_, key)| &*key.name).collect()
    }

    fn objects<K: Kind>(&self) -> Objects<K> {
        let mut names = Names::default();
        let plural = K::RESOURCE.plural;
        let mut objects = OrdMap::new();
        for ((_, key), body) in self.objects.iter().filter(|((of, _), _)| *of == plural) {
            let raw: K::Raw = serde_json::from_value(body.clone()).unwrap();
            if let Some(object) = K::keep(raw, &mut names) {
                objects.insert(key.clone(), Arc::new(object));
            }
        }
        objects
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            imports: self.imports.clone(),
            namespaces: self.objects(),
            exports: self.objects(),
            service_imports: self.objects(),
            services: self.objects(),
            slices: self.objects(),
            gateways: gateways(&self.objects(), &self.objects(), "archipelago-system"),
        }
    }

    pub(super) fn plan_of(&mut self, seen: &Seen) -> Plan {
        self.now += Duration::from_secs(1);
        self.controller.plan(seen, "2026-02-02T00:00:00Z", self.now)
    }

    /// The API server takes none of the writes of a round.
    pub(super) fn refuse(&mut self) {
        for write in self.writes() {
            self.controller.refused(&write);
        }
    }

    pub(super) fn plan(&mut self) -> Plan {
        let seen = self.seen();
        self.plan_of(&seen)
    }

    pub(super) fn writes(&mut self) -> Vec<Write> {
        self.plan().writes
    }

    /// One plan, carried out. Whether it changed anything.
    pub(super) fn round(&mut self) -> bool {
        let before = self.objects.clone();
        self.writes().into_iter().for_each(|write| self.take(write));
        self.objects != before
    }

    /// Until there is nothing more to do, which must be soon.
    pub(super) fn settle(&mut self) {
        for _ in 0..8 {
            if !self.round() {
                return;
            }
        }
        panic!("it does not settle: {:#?}", self.writes());
    }

    fn take(&mut self, Write { target, what }: Write) {
        let slot = (target.resource.plural, target.key.clone());
        match what {
            What::Delete { uid } => {
                let found = self.objects.get(&slot).map(|object| object["metadata"]["uid"].clone());
                assert!(uid.is_none() || found == uid.map(Value::from), "the uid of {target}");
                self.objects.remove(&slot);
            }
            What::ApplyStatus(body) => {
                let body = body.value();
                let object = self.objects.get_mut(&slot).unwrap();
                object["status"] = body["status"].clone();
            }
            What::Apply(body) | What::ApplyOnce(body) => self.apply(slot, body.value()),
        }
    }

    fn apply(&mut self, slot: (&'static str, Key), mut body: Value) {
        if !self.objects.contains_key(&slot) {
            self.put(slot.0, &slot.1.namespace, &slot.1.name, json!({}));
        }
        let labels = body["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        let before = self.applied.insert(slot.clone(), labels.clone()).unwrap_or_default();
        let object = self.objects.get_mut(&slot).unwrap();
        let mut all = object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        all.retain(|key, _| !before.contains_key(key));
        all.extend(labels);
        object["metadata"]["labels"] = Value::Object(all);
        object["metadata"]["ownerReferences"] = body["metadata"]["ownerReferences"].take();
        if object["metadata"]["ownerReferences"].is_null() {
            object["metadata"].as_object_mut().unwrap().remove("ownerReferences");
        }
        if slot.0 == "services" {
            let asked = body["spec"].get("clusterIPs").or_else(|| object["spec"].get("clusterIPs"));
            let addresses = asked.cloned().unwrap_or_else(|| {
                self.next += 1;
                json!([format!("10.96.{}.{}", self.next / 250, self.next % 250 + 1)])
            });
            body["spec"]["clusterIP"] = addresses[0].clone();
            body["spec"]["clusterIPs"] = addresses;
            body["spec"]["ipFamilies"] = json!(["IPv4"]);
        }
        for (field, value) in body.as_object().unwrap() {
            if !matches!(field.as_str(), "metadata" | "apiVersion" | "kind") {
                object[field] = value.clone();
            }
        }
    }
}

pub(super) fn exporter(cluster: &str, created_unix_ms: i64, ports: Vec<ReportedPort>) -> Exporter {
    let facts = ExportFacts {
        created_unix_ms,
        r#type: ExportType::ClusterSetIp.into(),
        session_affinity: "None".into(),
        internal_traffic_policy: "Cluster".into(),
        ip_families: vec!["IPv4".into()],
        ..ExportFacts::default()
    };
    Exporter { cluster: cluster.into(), ports, facts: Some(facts), ..Exporter::default() }
}

pub(super) fn import(namespace: &str, name: &str, exporters: Vec<Exporter>) -> Import {
    Import { namespace: namespace.into(), name: name.into(), exporters }
}
