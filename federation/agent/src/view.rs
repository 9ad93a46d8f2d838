//! What the agent tells others, as a pure function of services and readiness.

use archipelago_model::{
    delta::{Delta, Shared},
    id::ServiceKey,
};
use archipelago_proto::v1::{self, Endpoint, LocalService, LocalUpdate, ServiceReport};
use imbl::OrdMap;

use crate::{
    catalog::{self, Catalog, Service},
    health::{Health, Target, driver::Readiness},
};

/// Services by `namespace/name`.
pub type Services = OrdMap<String, Shared<LocalService>>;

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
            .map(|(key, service)| {
                let local = local(key, service, readiness);
                let key = key.to_string();
                let shared = previous.and_then(|previous| previous.services.get(&key)).filter(|old| ***old == local);
                let local = shared.cloned().unwrap_or_else(|| Shared::new(local));
                (key, local)
            })
            .collect();
        let reports = catalog.services.iter().map(|(key, service)| report(key, service, readiness)).collect();
        Self { services, reports, settled: readiness.settled }
    }
}

/// What a stream says next, for a reader of [`Services`].
#[must_use]
pub fn update(delta: Delta<String, Shared<LocalService>>) -> LocalUpdate {
    let Delta { full, upserts, removals } = delta;
    let upserts = upserts.into_iter().map(|(_, service)| LocalService::clone(&service)).collect();
    LocalUpdate { full, upserts, removals, captures: None, workloads: None }
}

fn local(key: &ServiceKey, service: &Service, readiness: &Readiness) -> LocalService {
    let endpoints = service.endpoints.iter().map(|endpoint| Endpoint {
        address: endpoint.address.to_string(),
        version: endpoint.version.clone(),
        instance: endpoint.instance.clone(),
        readiness: match readiness.of(&Target { service: key.clone(), address: endpoint.address }) {
            Health::Unknown => v1::Readiness::Unknown,
            Health::Ready => v1::Readiness::Ready,
            Health::Down(_) => v1::Readiness::NotReady,
        }
        .into(),
    });
    LocalService {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        protocol: service.protocol.to_proto().into(),
        port: service.port.into(),
        endpoints: endpoints.collect(),
        ports: Vec::new(),
    }
}

fn report(key: &ServiceKey, service: &Service, readiness: &Readiness) -> ServiceReport {
    let health =
        |endpoint: &catalog::Endpoint| readiness.of(&Target { service: key.clone(), address: endpoint.address });
    let health: Vec<Health> = service.endpoints.iter().map(health).collect();
    let count =
        |wanted: Health| u32::try_from(health.iter().filter(|health| **health == wanted).count()).unwrap_or(u32::MAX);
    let mut versions: Vec<String> = service.endpoints.iter().map(|endpoint| endpoint.version.clone()).collect();
    versions.sort();
    versions.dedup();
    ServiceReport {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        protocol: service.protocol.to_proto().into(),
        port: service.port.into(),
        exported: service.exported,
        versions,
        ready: count(Health::Ready),
        total: u32::try_from(health.len()).unwrap_or(u32::MAX),
        unknown: count(Health::Unknown),
        // The last in the provider's order: which of several does not matter, but it must not change by itself.
        last_failure: health.iter().rev().find_map(|health| match health {
            Health::Down(failure) => Some(failure.to_proto()),
            Health::Unknown | Health::Ready => None,
        }),
        ports: Vec::new(),
        export: None,
    }
}
