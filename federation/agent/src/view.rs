//! What the agent tells others, as a pure function of services and readiness.

use std::{collections::BTreeMap, sync::Arc};

use archipelago_proto::v1::{Endpoint, LocalService, LocalUpdate, ServiceReport};

use archipelago_model::service_file::ServiceFile;

use crate::{
    health::{Target, driver::Readiness},
    provider::watch::Catalog,
};

/// Services by `namespace/name`.
pub type Services = BTreeMap<String, Arc<LocalService>>;

/// The cluster as its gateways and the control plane see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// For gateways: with endpoints.
    pub services: Services,
    /// For the control plane: without.
    pub reports: Vec<ServiceReport>,
    /// Every endpoint has been checked at least once.
    pub settled: bool,
}

impl View {
    /// Puts both together. Services that did not change are shared with `previous`.
    #[must_use]
    pub fn new(catalog: &Catalog, readiness: &Readiness, previous: Option<&Self>) -> Self {
        let services: Services = catalog
            .services
            .iter()
            .map(|service| {
                let key = service.key();
                let local = local(service, readiness);
                let shared = previous.and_then(|previous| previous.services.get(&key)).filter(|old| ***old == local);
                let local = shared.cloned().unwrap_or_else(|| Arc::new(local));
                (key, local)
            })
            .collect();
        let reports = catalog
            .services
            .iter()
            .filter_map(|service| Some(report(service, services.get(&service.key())?)))
            .collect();
        Self { services, reports, settled: readiness.settled }
    }
}

/// The first message of a stream: everything.
#[must_use]
pub fn snapshot(now: &Services) -> LocalUpdate {
    let services = now.values().map(|service| LocalService::clone(service)).collect();
    LocalUpdate { snapshot: true, services, removed: Vec::new() }
}

/// What must be said to bring a reader from `before` to `now`; `None`: nothing.
#[must_use]
pub fn delta(before: &Services, now: &Services) -> Option<LocalUpdate> {
    let services: Vec<LocalService> = now
        .iter()
        .filter(|(key, service)| before.get(*key).is_none_or(|old| !Arc::ptr_eq(old, service) && old != *service))
        .map(|(_, service)| LocalService::clone(service))
        .collect();
    let removed: Vec<String> = before.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
    let nothing = services.is_empty() && removed.is_empty();
    (!nothing).then_some(LocalUpdate { snapshot: false, services, removed })
}

fn local(service: &ServiceFile, readiness: &Readiness) -> LocalService {
    let key = service.key();
    let endpoints = service.spec.endpoints.iter().map(|endpoint| Endpoint {
        address: endpoint.address.to_string(),
        version: endpoint.version.clone(),
        instance: endpoint.instance.clone(),
        ready: readiness.ready.contains(&Target { service: key.clone(), address: endpoint.address }),
    });
    LocalService {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone(),
        protocol: service.spec.protocol.to_proto().into(),
        port: service.spec.port.into(),
        endpoints: endpoints.collect(),
    }
}

fn report(service: &ServiceFile, local: &LocalService) -> ServiceReport {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut versions: Vec<String> = local.endpoints.iter().map(|endpoint| endpoint.version.clone()).collect();
    versions.sort();
    versions.dedup();
    ServiceReport {
        namespace: local.namespace.clone(),
        name: local.name.clone(),
        protocol: local.protocol,
        port: local.port,
        exported: service.exported,
        versions,
        ready: count(local.endpoints.iter().filter(|endpoint| endpoint.ready).count()),
        total: count(local.endpoints.len()),
    }
}
