//! What the agent tells others, as a pure function of services and readiness.
//!
//! A [`View`] holds no message: what a gateway or the control plane is told is made when it is sent, of the services that the
//! catalog holds anyway. A large cluster's messages are larger than everything that is known of it.

use std::sync::Arc;

use archipelago_model::{delta::Delta, export, id::ServiceKey, selector};
use archipelago_proto::v1::{
    self, Endpoint, ExportFacts, LocalPort, LocalService, LocalUpdate, ReportedPort, ServiceReport,
};
use imbl::OrdMap;

use crate::{
    catalog::{Catalog, Check, Localities, Locality, Port, Service},
    health::{Failure, Health, driver::Readiness},
};

/// Services by name.
pub type Services = OrdMap<ServiceKey, Shown>;

/// The cluster as its gateways and the control plane see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// All of them.
    pub services: Services,
    /// Every endpoint that is asked has been asked at least once.
    pub settled: bool,
}

impl View {
    /// Puts both together. Services that did not change are shared with `previous`, and those of which the provider itself
    /// says what is ready are not even looked at again.
    #[must_use]
    pub fn new(catalog: &Catalog, readiness: &Readiness, previous: Option<&Self>) -> Self {
        let mut services = previous.map(|previous| previous.services.clone()).unwrap_or_default();
        for (key, service) in &catalog.services {
            let before = services.get(key).filter(|before| Arc::ptr_eq(&before.service, service));
            let is_same = match (before, &service.check) {
                (None, _) => false,
                (Some(_), Check::Provider) => true,
                (Some(before), Check::Active(_)) => healths(key, service, readiness).eq(before.health.iter().copied()),
            };
            if !is_same {
                services.insert(key.clone(), Shown::new(key, service, readiness));
            }
        }
        if services.len() > catalog.services.len() {
            let gone = services.keys().filter(|key| !catalog.services.contains_key(*key));
            for key in gone.cloned().collect::<Vec<_>>() {
                services.remove(&key);
            }
        }
        Self { services, settled: readiness.settled }
    }

    /// What the control plane is told of it, sorted by namespace and name.
    #[must_use]
    pub fn reports(&self) -> Vec<ServiceReport> {
        self.services.iter().map(|(key, shown)| shown.report(key)).collect()
    }
}

/// A service, and who of it is ready.
#[derive(Debug, Clone)]
pub struct Shown {
    service: Arc<Service>,
    /// Of every endpoint, port after port. Empty where the provider says what is ready: then the service says it itself.
    health: Arc<[Health]>,
}

impl Shown {
    fn new(key: &ServiceKey, service: &Arc<Service>, readiness: &Readiness) -> Self {
        let health = match service.check {
            Check::Provider => Arc::default(),
            Check::Active(_) => healths(key, service, readiness).collect(),
        };
        Self { service: Arc::clone(service), health }
    }

    /// Ports, and what is known of each of their endpoints.
    fn ports(&self) -> impl Iterator<Item = (&Port, Vec<Health>)> {
        let mut asked = self.health.iter().copied();
        self.service.ports.iter().map(move |port| {
            let health = port.endpoints.iter().map(|endpoint| match (&self.service.check, endpoint.ready) {
                (Check::Active(_), _) => asked.next().unwrap_or(Health::Unknown),
                (Check::Provider, true) => Health::Ready,
                (Check::Provider, false) => Health::Down(Failure::Provider),
            });
            (port, health.collect())
        })
    }

    /// How many endpoints the first port has, and how many of them are as `wanted`. Ports of one service share their endpoints
    /// but for rare cases, and a sum would count every pod once per port.
    #[must_use]
    pub fn count(&self, wanted: impl Fn(Health) -> bool) -> u32 {
        let first = self.ports().next().map(|(_, health)| health).unwrap_or_default();
        u32::try_from(first.into_iter().filter(|health| wanted(*health)).count()).unwrap_or(u32::MAX)
    }

    /// With endpoints, for gateways. For readers who know of one port the first stands alone; the list of all is there when
    /// there are several, or one with a name.
    #[must_use]
    pub fn local(&self, key: &ServiceKey) -> LocalService {
        let localities = Localities::of(&self.service);
        let port = |(port, health): (&Port, Vec<Health>)| LocalPort {
            name: port.name.clone(),
            port: port.port.into(),
            protocol: port.protocol.to_proto().into(),
            endpoints: endpoints(port, &health, &localities),
        };
        let mut ports: Vec<LocalPort> = self.ports().map(port).collect();
        let first = match says_no_more(&self.service) {
            true => ports.pop(),
            false => ports.first().cloned(),
        }
        .unwrap_or_default();
        LocalService {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            protocol: first.protocol,
            port: first.port,
            endpoints: first.endpoints,
            ports,
            localities: told(&localities),
        }
    }

    /// Without endpoints, for the control plane.
    #[must_use]
    pub fn report(&self, key: &ServiceKey) -> ServiceReport {
        let service = &self.service;
        let first = self.ports().next();
        let health = first.map(|(_, health)| health).unwrap_or_default();
        let first = service.ports.first();
        let mut versions: Vec<&str> =
            service.ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| &*endpoint.version).collect();
        versions.sort_unstable();
        versions.dedup();
        let port = |port: &Port| ReportedPort {
            name: port.name.clone(),
            port: port.port.into(),
            protocol: port.protocol.to_proto().into(),
            app_protocol: port.app_protocol.clone(),
        };
        ServiceReport {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            protocol: first.map_or(v1::Protocol::Unspecified, |port| port.protocol.to_proto()).into(),
            port: first.map_or(0, |port| port.port.into()),
            exported: service.exported,
            versions: versions.into_iter().map(str::to_owned).collect(),
            ready: self.count(|health| health == Health::Ready),
            total: self.count(|_| true),
            unknown: self.count(|health| health == Health::Unknown),
            // The last in the provider's order: which of several does not matter, but it must not change by itself.
            last_failure: health.iter().rev().find_map(|health| match health {
                Health::Down(failure) => Some(failure.to_proto()),
                Health::Unknown | Health::Ready => None,
            }),
            ports: if says_no_more(service) { Vec::new() } else { service.ports.iter().map(port).collect() },
            export: service.export.as_deref().map(carried),
        }
    }
}

/// By what it says, not by what it was made from; most are the very same.
impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        self.health == other.health && (Arc::ptr_eq(&self.service, &other.service) || self.service == other.service)
    }
}

/// What a stream says next, for a reader of [`Services`].
#[must_use]
pub fn update(delta: Delta<ServiceKey, Shown>) -> LocalUpdate {
    let Delta { full, upserts, removals } = delta;
    let upserts = upserts.into_iter().map(|(key, shown)| shown.local(&key)).collect();
    let removals = removals.iter().map(ToString::to_string).collect();
    LocalUpdate { full, upserts, removals, captures: None, workloads: None }
}

fn healths(key: &ServiceKey, service: &Service, readiness: &Readiness) -> impl Iterator<Item = Health> {
    let endpoints = service.ports.iter().flat_map(|port| port.endpoints.iter().map(move |endpoint| (port, endpoint)));
    endpoints.map(|(port, endpoint)| readiness.of_endpoint(key, service, port, endpoint))
}

fn told(localities: &Localities<'_>) -> Vec<v1::Locality> {
    let texts = |list: &[Arc<str>]| list.iter().map(|text| text.to_string()).collect();
    let locality = |locality: &&Locality| v1::Locality {
        zone: locality.zone.as_deref().unwrap_or_default().to_owned(),
        for_zones: texts(&locality.for_zones),
        for_nodes: texts(&locality.for_nodes),
    };
    localities.as_slice().iter().map(locality).collect()
}

fn endpoints(port: &Port, health: &[Health], localities: &Localities<'_>) -> Vec<Endpoint> {
    let endpoint = |(endpoint, health): (&crate::catalog::Endpoint, &Health)| Endpoint {
        address: endpoint.address.to_string(),
        version: endpoint.version.to_string(),
        instance: endpoint.instance.to_string(),
        readiness: match health {
            Health::Unknown => v1::Readiness::Unknown,
            Health::Ready => v1::Readiness::Ready,
            Health::Down(_) => v1::Readiness::NotReady,
        }
        .into(),
        locality: localities.place(endpoint.locality.as_deref()),
    };
    port.endpoints.iter().zip(health).map(endpoint).collect()
}

/// Without labels and annotations that the control plane would not take: a few large ones would keep the whole report out.
fn carried(facts: &ExportFacts) -> ExportFacts {
    let mut facts = facts.clone();
    if export::words_bytes(&facts) > export::WORDS_BYTES_MAX {
        facts.labels.clear();
        // Those decide where requests go, and are short.
        facts.annotations.retain(|key, _| key == selector::ANNOTATION);
    }
    facts
}

/// Whether the fields for one port say everything.
fn says_no_more(service: &Service) -> bool {
    matches!(service.ports.as_slice(), [only] if only.name.is_empty() && only.app_protocol.is_empty())
}

#[cfg(test)]
mod tests {
    use archipelago_model::service::{ActiveCheck, ServiceProtocol};

    use super::*;
    use crate::health::Target;

    fn endpoint(address: &str, version: &str, ready: bool) -> crate::catalog::Endpoint {
        let instance = Arc::default();
        let address = address.parse().unwrap();
        crate::catalog::Endpoint { address, version: version.into(), instance, ready, locality: None }
    }

    fn port(name: &str, port: u16, endpoints: Vec<crate::catalog::Endpoint>) -> Port {
        let (name, app_protocol) = (name.to_owned(), String::new());
        Port { name, port, protocol: ServiceProtocol::Http, app_protocol, endpoints }
    }

    /// What gateways are told of a service.
    fn local(view: &View, name: &str) -> LocalService {
        let key = ServiceKey::new("shop", name);
        view.services[&key].local(&key)
    }

    fn catalog(services: &[(&str, Check, Vec<Port>)]) -> Catalog {
        let services = services.iter().map(|(name, check, ports)| {
            let (ports, check) = (ports.clone(), check.clone());
            let service = Service { ports, exported: true, check, origin: String::new(), export: None };
            (ServiceKey::new("shop", *name), Arc::new(service))
        });
        Catalog { services: services.collect(), read: true }
    }

    #[test]
    fn older_readers_see_the_first_port_and_newer_ones_all() {
        let ports = vec![
            port("http", 80, vec![endpoint("10.0.0.1:8080", "v1", true), endpoint("10.0.0.2:8080", "v2", false)]),
            port("metrics", 9090, vec![endpoint("10.0.0.1:9090", "v1", true)]),
        ];
        let alone = vec![port("", 80, vec![endpoint("10.0.0.1:8080", "", true)])];
        let catalog = catalog(&[("alone", Check::Provider, alone), ("web", Check::Provider, ports)]);
        let view = View::new(&catalog, &Readiness { settled: true, ..Readiness::default() }, None);
        let web = local(&view, "web");
        assert_eq!((web.port, web.endpoints.len(), web.ports.len()), (80, 2, 2));
        assert_eq!((web.ports[0].port, &web.ports[0].endpoints), (80, &web.endpoints));
        assert_eq!((&*web.ports[1].name, web.ports[1].port, web.ports[1].endpoints.len()), ("metrics", 9090, 1));
        let ready: Vec<_> = web.endpoints.iter().map(Endpoint::readiness).collect();
        assert_eq!(ready, [v1::Readiness::Ready, v1::Readiness::NotReady], "as the provider says");
        let reports = view.reports();
        let report = &reports[1];
        assert_eq!((report.port, report.ready, report.total, report.ports.len()), (80, 1, 2, 2));
        assert_eq!(report.versions, ["v1", "v2"]);
        assert_eq!(report.last_failure, Some(Failure::Provider.to_proto()));
        let alone = local(&view, "alone");
        assert!(alone.ports.is_empty() && alone.endpoints.len() == 1 && reports[0].ports.is_empty());
    }

    #[test]
    fn where_endpoints_are_is_said_once() {
        let within = |address: &str, zone: &str, stays: bool| crate::catalog::Endpoint {
            locality: Some(Arc::new(Locality::in_zone(zone.into(), stays))),
            ..endpoint(address, "", true)
        };
        let all = vec![
            within("10.0.0.1:80", "b", true),
            within("10.0.0.2:80", "a", false),
            endpoint("10.0.0.3:80", "", true),
            within("10.0.0.4:80", "b", true),
        ];
        let ports = vec![port("", 80, all.clone()), port("admin", 81, vec![all[1].clone()])];
        let view = View::new(&catalog(&[("web", Check::Provider, ports)]), &Readiness::default(), None);
        let web = local(&view, "web");
        let places = |port: &LocalPort| port.endpoints.iter().map(|each| each.locality).collect::<Vec<_>>();
        assert_eq!((places(&web.ports[0]), places(&web.ports[1])), (vec![2, 1, 0, 2], vec![1]));
        let locality = |zone: &str, for_zones: &[&str]| v1::Locality {
            zone: zone.into(),
            for_zones: for_zones.iter().map(ToString::to_string).collect(),
            for_nodes: vec![],
        };
        assert_eq!(web.localities, [locality("a", &[]), locality("b", &["b"])]);
    }

    #[test]
    fn labels_that_nobody_would_take_stay_here() {
        let facts = |bytes: usize| ExportFacts {
            labels: [("l".to_owned(), "x".repeat(bytes))].into(),
            created_unix_ms: 7,
            ..ExportFacts::default()
        };
        assert_eq!(carried(&facts(100)), facts(100));
        let annotations = ["other", selector::ANNOTATION].map(|key| (key.to_owned(), "[]".to_owned()));
        let cut = carried(&ExportFacts { annotations: annotations.into(), ..facts(100_000) });
        assert_eq!((cut.labels.len(), cut.created_unix_ms), (0, 7));
        assert_eq!(cut.annotations.keys().collect::<Vec<_>>(), [selector::ANNOTATION]);
    }

    #[test]
    fn what_did_not_change_is_shared_and_checks_are_heard() {
        let one = || port("", 80, vec![endpoint("10.0.0.1:8080", "v1", true)]);
        let asked = Check::Active(ActiveCheck::default());
        let mut catalog = catalog(&[("asked", asked, vec![one()]), ("told", Check::Provider, vec![one()])]);
        let target =
            Target { service: ServiceKey::new("shop", "asked"), port: 80, address: "10.0.0.1:8080".parse().unwrap() };
        let readiness = |health| Readiness { endpoints: [(target.clone(), health)].into(), settled: true };
        let first = View::new(&catalog, &readiness(Health::Ready), None);
        assert_eq!(View::new(&catalog, &readiness(Health::Ready), Some(&first)), first);
        // What says the same is another `Arc` after a restart; the one of before is not held on to.
        let again = Catalog {
            services: catalog
                .services
                .iter()
                .map(|(key, service)| (key.clone(), Arc::new(Service::clone(service))))
                .collect(),
            read: true,
        };
        let view = View::new(&again, &readiness(Health::Ready), Some(&first));
        assert!(view == first && view.services.iter().all(|(key, it)| Arc::ptr_eq(&it.service, &again.services[key])));
        let down = View::new(&catalog, &readiness(Health::Down(Failure::Timeout)), Some(&first));
        assert_eq!(local(&down, "asked").endpoints[0].readiness(), v1::Readiness::NotReady);
        assert_eq!(Delta::between(&first.services, &down.services).upserts.len(), 1);

        // The provider changes its mind: another `Arc`.
        let key = ServiceKey::new("shop", "told");
        let told = Service { ports: vec![port("", 80, vec![])], ..Service::clone(&catalog.services[&key]) };
        catalog.services.insert(key, Arc::new(told));
        let less = View::new(&catalog, &readiness(Health::Ready), Some(&first));
        assert!(less != first && local(&less, "told").endpoints.is_empty());
        catalog.services.remove(&ServiceKey::new("shop", "asked"));
        let one = View::new(&catalog, &readiness(Health::Ready), Some(&less));
        assert_eq!(one.services.keys().map(ToString::to_string).collect::<Vec<_>>(), ["shop/told"]);
    }
}
