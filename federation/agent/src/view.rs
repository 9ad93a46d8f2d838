//! What the agent tells others, as a pure function of services and readiness.

use std::sync::Arc;

use archipelago_model::{
    delta::{Delta, Shared},
    export,
    id::ServiceKey,
    selector,
};
use archipelago_proto::v1::{
    self, Endpoint, ExportFacts, LocalPort, LocalService, LocalUpdate, ReportedPort, ServiceReport,
};
use imbl::OrdMap;

use crate::{
    catalog::{Catalog, Check, Localities, Locality, Port, Service},
    health::{Health, driver::Readiness},
};

/// Services by `namespace/name`.
pub type Services = OrdMap<String, Shared<LocalService>>;

/// The cluster as its gateways and the control plane see it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// For gateways: with endpoints.
    pub services: Services,
    /// For the control plane: without. Sorted by namespace and name.
    pub reports: Vec<Shared<ServiceReport>>,
    /// Every endpoint that is asked has been asked at least once.
    pub settled: bool,
    made: OrdMap<ServiceKey, Made>,
}

/// What became of a service.
#[derive(Debug, Clone)]
struct Made {
    from: Arc<Service>,
    local: Shared<LocalService>,
    report: Shared<ServiceReport>,
}

impl View {
    /// Puts both together. Services that did not change are shared with `previous`, and those of which the provider itself
    /// says what is ready are not even looked at again.
    #[must_use]
    pub fn new(catalog: &Catalog, readiness: &Readiness, previous: Option<&Self>) -> Self {
        let mut view = Self { settled: readiness.settled, ..Self::default() };
        for (key, service) in &catalog.services {
            let before = previous.and_then(|previous| previous.made.get(key));
            let same = before.filter(|before| Arc::ptr_eq(&before.from, service) && service.check == Check::Provider);
            let made = same.cloned().unwrap_or_else(|| Made {
                from: Arc::clone(service),
                local: share(local(key, service, readiness), before.map(|before| &before.local)),
                report: share(report(key, service, readiness), before.map(|before| &before.report)),
            });
            view.services.insert(key.to_string(), made.local.clone());
            view.reports.push(made.report.clone());
            view.made.insert(key.clone(), made);
        }
        view
    }
}

/// By what it says, not by what it was made from.
impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        (self.settled, &self.services, &self.reports) == (other.settled, &other.services, &other.reports)
    }
}

fn share<T: PartialEq>(now: T, before: Option<&Shared<T>>) -> Shared<T> {
    before.filter(|before| ***before == now).cloned().unwrap_or_else(|| Shared::new(now))
}

/// What a stream says next, for a reader of [`Services`].
#[must_use]
pub fn update(delta: Delta<String, Shared<LocalService>>) -> LocalUpdate {
    let Delta { full, upserts, removals } = delta;
    let upserts = upserts.into_iter().map(|(_, service)| LocalService::clone(&service)).collect();
    LocalUpdate { full, upserts, removals, captures: None, workloads: None }
}

/// For readers who know of one port the first stands alone; the list of all is there when there are several, or one with a
/// name.
fn local(key: &ServiceKey, service: &Service, readiness: &Readiness) -> LocalService {
    let localities = Localities::of(service);
    let port = |port: &Port| LocalPort {
        name: port.name.clone(),
        port: port.port.into(),
        protocol: port.protocol.to_proto().into(),
        endpoints: endpoints(key, service, port, readiness, &localities),
    };
    let mut ports: Vec<LocalPort> = service.ports.iter().map(port).collect();
    let first = ports.first().cloned().unwrap_or_default();
    if says_no_more(service) {
        ports.clear();
    }
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

fn told(localities: &Localities<'_>) -> Vec<v1::Locality> {
    let texts = |list: &[Arc<str>]| list.iter().map(|text| text.to_string()).collect();
    let locality = |locality: &&Locality| v1::Locality {
        zone: locality.zone.as_deref().unwrap_or_default().to_owned(),
        for_zones: texts(&locality.for_zones),
        for_nodes: texts(&locality.for_nodes),
    };
    localities.as_slice().iter().map(locality).collect()
}

fn endpoints(
    key: &ServiceKey,
    service: &Service,
    port: &Port,
    readiness: &Readiness,
    localities: &Localities<'_>,
) -> Vec<Endpoint> {
    let endpoint = |endpoint: &crate::catalog::Endpoint| Endpoint {
        address: endpoint.address.to_string(),
        version: endpoint.version.clone(),
        instance: endpoint.instance.clone(),
        readiness: match readiness.of_endpoint(key, service, port, endpoint) {
            Health::Unknown => v1::Readiness::Unknown,
            Health::Ready => v1::Readiness::Ready,
            Health::Down(_) => v1::Readiness::NotReady,
        }
        .into(),
        locality: localities.place(endpoint.locality.as_deref()),
    };
    port.endpoints.iter().map(endpoint).collect()
}

/// Counts are those of the first port: ports of one service share their endpoints but for rare cases, and a sum would count
/// every pod once per port.
fn report(key: &ServiceKey, service: &Service, readiness: &Readiness) -> ServiceReport {
    let first = service.ports.first();
    let health: Vec<Health> = first.map_or_else(Vec::new, |port| {
        port.endpoints.iter().map(|endpoint| readiness.of_endpoint(key, service, port, endpoint)).collect()
    });
    let count =
        |wanted: Health| u32::try_from(health.iter().filter(|health| **health == wanted).count()).unwrap_or(u32::MAX);
    let mut versions: Vec<&str> =
        service.ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| endpoint.version.as_str()).collect();
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
        ready: count(Health::Ready),
        total: u32::try_from(health.len()).unwrap_or(u32::MAX),
        unknown: count(Health::Unknown),
        // The last in the provider's order: which of several does not matter, but it must not change by itself.
        last_failure: health.iter().rev().find_map(|health| match health {
            Health::Down(failure) => Some(failure.to_proto()),
            Health::Unknown | Health::Ready => None,
        }),
        ports: if says_no_more(service) { Vec::new() } else { service.ports.iter().map(port).collect() },
        export: service.export.as_ref().map(carried),
    }
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
    use crate::health::{Failure, Target};

    fn endpoint(address: &str, version: &str, ready: bool) -> crate::catalog::Endpoint {
        let instance = String::new();
        let address = address.parse().unwrap();
        crate::catalog::Endpoint { address, version: version.into(), instance, ready, locality: None }
    }

    fn port(name: &str, port: u16, endpoints: Vec<crate::catalog::Endpoint>) -> Port {
        let (name, app_protocol) = (name.to_owned(), String::new());
        Port { name, port, protocol: ServiceProtocol::Http, app_protocol, endpoints }
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
        let web = &view.services["shop/web"];
        assert_eq!((web.port, web.endpoints.len(), web.ports.len()), (80, 2, 2));
        assert_eq!((web.ports[0].port, &web.ports[0].endpoints), (80, &web.endpoints));
        assert_eq!((&*web.ports[1].name, web.ports[1].port, web.ports[1].endpoints.len()), ("metrics", 9090, 1));
        let ready: Vec<_> = web.endpoints.iter().map(Endpoint::readiness).collect();
        assert_eq!(ready, [v1::Readiness::Ready, v1::Readiness::NotReady], "as the provider says");
        let report = &view.reports[1];
        assert_eq!((report.port, report.ready, report.total, report.ports.len()), (80, 1, 2, 2));
        assert_eq!(report.versions, ["v1", "v2"]);
        assert_eq!(report.last_failure, Some(Failure::Provider.to_proto()));
        assert!(view.services["shop/alone"].ports.is_empty() && view.reports[0].ports.is_empty());
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
        let web = &view.services["shop/web"];
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
        let down = View::new(&catalog, &readiness(Health::Down(Failure::Timeout)), Some(&first));
        assert_eq!(down.services["shop/asked"].endpoints[0].readiness(), v1::Readiness::NotReady);
        assert_eq!(Delta::between(&first.services, &down.services).upserts.len(), 1);

        // The provider changes its mind: another `Arc`.
        let key = ServiceKey::new("shop", "told");
        let told = Service { ports: vec![port("", 80, vec![])], ..Service::clone(&catalog.services[&key]) };
        catalog.services.insert(key, Arc::new(told));
        let less = View::new(&catalog, &readiness(Health::Ready), Some(&first));
        assert!(less != first && less.services["shop/told"].endpoints.is_empty());
    }
}
