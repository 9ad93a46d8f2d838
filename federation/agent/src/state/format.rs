//! `agent.json`: the state as text, and what it was in formats before this one.

use std::{borrow::Cow, io::Write, net::SocketAddr, sync::Arc, time::Duration};

use archipelago_model::{
    id::ServiceKey,
    service::{ActiveCheck, Probe, ServiceProtocol},
};
use archipelago_proto::v1::ExportFacts;
use data_encoding::BASE64;
use prost::Message;
use serde::{Deserialize, Serialize, Serializer};

use super::State;
use crate::{
    catalog::{Check, Endpoint, Localities, Locality, Port, Service},
    health::Target,
};

/// Writes service by service: all of them at once would be larger than the state itself.
pub(super) fn encode(state: &State, out: &mut impl Write) -> serde_json::Result<()> {
    let control_plane = state.control_plane.as_slice();
    serde_json::to_writer(out, &Storing { format: FORMAT, control_plane, services: Services(state) })
}

/// Reads this format and those before it.
///
/// # Errors
/// Says what is wrong with the bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<State, String> {
    let damaged = |error: serde_json::Error| format!("it is damaged: {error}");
    let Envelope { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    let stored = match format {
        // What came with this format is absent from those before, and nothing else is different.
        FORMAT | NOWHERE => serde_json::from_slice::<Stored<'_>>(bytes).map_err(damaged)?,
        SINGLE_PORT => serde_json::from_slice::<single_port::Stored>(bytes).map_err(damaged)?.into(),
        _ => return Err(format!("its format is {format}, this version knows {SINGLE_PORT} to {FORMAT}")),
    };
    let mut state = State { control_plane: stored.control_plane.into_owned(), ..State::default() };
    for service in stored.services {
        service.restore(&mut state)?;
    }
    Ok(state)
}

/// What every format has.
#[derive(Deserialize)]
struct Envelope {
    format: u32,
}

/// [`Stored`] on its way out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Storing<'a> {
    format: u32,
    control_plane: &'a [String],
    services: Services<'a>,
}

struct Services<'a>(&'a State);

impl Serialize for Services<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(state) = self;
        serializer.collect_seq(state.services.iter().map(|(key, service)| StoredService::of(state, key, service)))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Stored<'a> {
    #[expect(dead_code, reason = "read before, off the Envelope")]
    format: u32,
    control_plane: Cow<'a, [String]>,
    services: Vec<StoredService<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredService<'a> {
    namespace: Cow<'a, str>,
    name: Cow<'a, str>,
    exported: bool,
    origin: Cow<'a, str>,
    /// Absent: the provider says what is ready.
    check: Option<StoredCheck<'a>>,
    ports: Vec<StoredPort<'a>>,
    /// Encoded `ExportFacts`: a reader keeps what it does not know of them.
    export: Option<String>,
    /// What endpoints refer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    localities: Vec<StoredLocality<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredLocality<'a> {
    zone: Option<Cow<'a, str>>,
    for_zones: Vec<Cow<'a, str>>,
    for_nodes: Vec<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredPort<'a> {
    name: Cow<'a, str>,
    port: u16,
    protocol: ServiceProtocol,
    app_protocol: Cow<'a, str>,
    endpoints: Vec<StoredEndpoint<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredEndpoint<'a> {
    address: SocketAddr,
    version: Cow<'a, str>,
    instance: Cow<'a, str>,
    /// What the provider said.
    provided_ready: bool,
    /// What the checks found.
    ready: bool,
    /// Its place among the localities, counted from 1; 0: nothing is known.
    #[serde(default, skip_serializing_if = "is_zero")]
    locality: u32,
}

/// As `skip_serializing_if` wants it.
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredCheck<'a> {
    /// Path; absent: a connection is enough.
    http: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
    /// Of a gRPC server; versions before knew none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grpc: Option<Cow<'a, str>>,
    interval_ms: u64,
    timeout_ms: u64,
    healthy_after: u32,
    unhealthy_after: u32,
}

impl<'a> StoredService<'a> {
    fn of(state: &State, key: &'a ServiceKey, service: &'a Service) -> Self {
        let localities = Localities::of(service);
        let endpoint = |port: &Port, endpoint: &'a Endpoint| StoredEndpoint {
            address: endpoint.address,
            version: Cow::Borrowed(&endpoint.version),
            instance: Cow::Borrowed(&endpoint.instance),
            provided_ready: endpoint.ready,
            ready: !state.ready.is_empty()
                && state.ready.contains(&Target { service: key.clone(), port: port.port, address: endpoint.address }),
            locality: localities.place(endpoint.locality.as_deref()),
        };
        let port = |port: &'a Port| StoredPort {
            name: Cow::Borrowed(&port.name),
            port: port.port,
            protocol: port.protocol,
            app_protocol: Cow::Borrowed(&port.app_protocol),
            endpoints: port.endpoints.iter().map(|each| endpoint(port, each)).collect(),
        };
        Self {
            namespace: Cow::Borrowed(&key.namespace),
            name: Cow::Borrowed(&key.name),
            exported: service.exported,
            origin: Cow::Borrowed(&service.origin),
            check: match &service.check {
                Check::Provider => None,
                Check::Active(check) => Some(StoredCheck::of(check)),
            },
            ports: service.ports.iter().map(port).collect(),
            export: service.export.as_ref().map(|facts| BASE64.encode(&facts.encode_to_vec())),
            localities: localities.as_slice().iter().map(|locality| StoredLocality::of(locality)).collect(),
        }
    }

    fn restore(self, state: &mut State) -> Result<(), String> {
        let Self { namespace, name, exported, origin, check, ports, export, localities } = self;
        let key = ServiceKey::new(&*namespace, &*name);
        let unusable = || format!("the export facts of {key} cannot be read");
        let facts = |text: String| {
            let bytes = BASE64.decode(text.as_bytes()).map_err(|_| unusable())?;
            ExportFacts::decode(bytes.as_slice()).map_err(|_| unusable())
        };
        let export = export.map(facts).transpose()?;
        if ports.is_empty() {
            return Err(format!("{key} has no port"));
        }
        for port in &ports {
            let ready = port.endpoints.iter().filter(|endpoint| endpoint.ready);
            state.ready.extend(ready.map(|endpoint| Target {
                service: key.clone(),
                port: port.port,
                address: endpoint.address,
            }));
        }
        let localities: Vec<_> = localities.into_iter().map(|locality| Arc::new(locality.restore())).collect();
        let service = Service {
            ports: ports.into_iter().map(|port| port.restore(&localities)).collect(),
            exported,
            check: check.map_or(Check::Provider, |check| Check::Active(check.restore())),
            origin: origin.into_owned(),
            export: export.map(Arc::new),
        };
        state.services.insert(key, Arc::new(service));
        Ok(())
    }
}

impl<'a> StoredLocality<'a> {
    fn of(locality: &'a Locality) -> Self {
        let texts = |list: &'a [Arc<str>]| list.iter().map(|text| Cow::Borrowed(&**text)).collect();
        Self {
            zone: locality.zone.as_deref().map(Cow::Borrowed),
            for_zones: texts(&locality.for_zones),
            for_nodes: texts(&locality.for_nodes),
        }
    }

    fn restore(self) -> Locality {
        let texts = |list: Vec<Cow<'_, str>>| list.into_iter().map(Arc::from).collect();
        let Self { zone, for_zones, for_nodes } = self;
        Locality { zone: zone.map(Arc::from), for_zones: texts(for_zones), for_nodes: texts(for_nodes) }
    }
}

impl StoredPort<'_> {
    fn restore(self, localities: &[Arc<Locality>]) -> Port {
        let Self { name, port, protocol, app_protocol, endpoints } = self;
        let endpoints = endpoints.into_iter().map(|endpoint| Endpoint {
            address: endpoint.address,
            version: (&*endpoint.version).into(),
            instance: (&*endpoint.instance).into(),
            ready: endpoint.provided_ready,
            locality: usize::try_from(endpoint.locality)
                .ok()
                .and_then(|place| localities.get(place.checked_sub(1)?))
                .cloned(),
        });
        let endpoints = endpoints.collect();
        Port { name: name.into_owned(), port, protocol, app_protocol: app_protocol.into_owned(), endpoints }
    }
}

impl<'a> StoredCheck<'a> {
    fn of(check: &'a ActiveCheck) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (http, host, grpc) = match &check.probe {
            Probe::Http { path, host } => {
                (Some(Cow::Borrowed(path.as_str())), host.as_deref().map(Cow::Borrowed), None)
            }
            Probe::Tcp => (None, None, None),
            Probe::Grpc { service } => (None, None, Some(Cow::Borrowed(service.as_str()))),
        };
        Self {
            http,
            host,
            grpc,
            interval_ms: millis(check.interval),
            timeout_ms: millis(check.timeout),
            healthy_after: check.healthy_after,
            unhealthy_after: check.unhealthy_after,
        }
    }

    fn restore(self) -> ActiveCheck {
        ActiveCheck {
            probe: match (self.http, self.grpc) {
                (Some(path), _) => Probe::Http { path: path.into_owned(), host: self.host.map(Cow::into_owned) },
                (None, Some(service)) => Probe::Grpc { service: service.into_owned() },
                (None, None) => Probe::Tcp,
            },
            interval: Duration::from_millis(self.interval_ms),
            timeout: Duration::from_millis(self.timeout_ms),
            healthy_after: self.healthy_after,
            unhealthy_after: self.unhealthy_after,
        }
    }
}

/// Format 2: a service was one port.
mod single_port {
    use std::borrow::Cow;

    use archipelago_model::service::ServiceProtocol;
    use serde::Deserialize;

    use super::{StoredCheck, StoredEndpoint, StoredPort, StoredService};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Stored {
        format: u32,
        control_plane: Vec<String>,
        services: Vec<Service>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Service {
        namespace: String,
        name: String,
        port: u16,
        protocol: ServiceProtocol,
        exported: bool,
        origin: String,
        check: Option<StoredCheck<'static>>,
        endpoints: Vec<StoredEndpoint<'static>>,
    }

    impl From<Stored> for super::Stored<'static> {
        fn from(Stored { format, control_plane, services }: Stored) -> Self {
            let services = services.into_iter().map(StoredService::from).collect();
            Self { format, control_plane: Cow::Owned(control_plane), services }
        }
    }

    impl From<Service> for StoredService<'static> {
        fn from(service: Service) -> Self {
            let Service { namespace, name, port, protocol, exported, origin, check, endpoints } = service;
            let (name_of_port, app_protocol) = (Cow::Borrowed(""), Cow::Borrowed(""));
            let port = StoredPort { name: name_of_port, port, protocol, app_protocol, endpoints };
            Self {
                namespace: namespace.into(),
                name: name.into(),
                exported,
                origin: origin.into(),
                check,
                ports: vec![port],
                export: None,
                localities: Vec::new(),
            }
        }
    }
}

/// 1 held the texts of service files.
const FORMAT: u32 = 4;
/// Nobody knew where an endpoint stands.
const NOWHERE: u32 = 3;
const SINGLE_PORT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, number: u16, protocol: ServiceProtocol, addresses: &[(&str, bool)]) -> Port {
        let endpoint = |(address, ready): &(&str, bool)| Endpoint {
            address: address.parse().unwrap(),
            version: "v1".into(),
            instance: (*address).into(),
            ready: *ready,
            locality: None,
        };
        Port {
            name: name.into(),
            port: number,
            protocol,
            app_protocol: String::new(),
            endpoints: addresses.iter().map(endpoint).collect(),
        }
    }

    fn service(check: Check, ports: Vec<Port>) -> Arc<Service> {
        Arc::new(Service { ports, exported: true, check, origin: "a.yaml".into(), export: None })
    }

    fn state() -> State {
        let web = || vec![port("", 80, ServiceProtocol::H2c, &[("127.0.0.1:1", true), ("[::1]:1", false)])];
        let named = Probe::Http { path: "/".into(), host: Some("shop.example".into()) };
        let check = ActiveCheck { probe: named, ..ActiveCheck::default() };
        let grpc = ActiveCheck { probe: Probe::Grpc { service: "shop.Calls".into() }, ..ActiveCheck::default() };
        let mut http = port("http", 80, ServiceProtocol::H2c, &[("10.0.0.1:8080", true), ("10.0.0.2:8080", true)]);
        let node = Locality { for_nodes: ["n1".into()].into(), ..Locality::in_zone("z1".into(), true) };
        http.endpoints[1].locality = Some(Arc::new(node));
        let many = vec![
            Port { app_protocol: "kubernetes.io/h2c".into(), ..http },
            port("metrics", 9090, ServiceProtocol::Tcp, &[("10.0.0.1:8080", false)]),
        ];
        let facts = ExportFacts { labels: [("team".into(), "shop".into())].into(), ..ExportFacts::default() };
        let exported = Service { export: Some(Arc::new(facts)), ..Service::clone(&service(Check::Provider, many)) };
        let key = ServiceKey::new("shop", "web");
        State {
            control_plane: vec!["127.0.0.1:7400".into()],
            services: [
                (key.clone(), service(Check::Active(check), web())),
                (ServiceKey::new("shop", "cart"), Arc::new(exported)),
                (ServiceKey::new("shop", "tcp"), service(Check::Active(ActiveCheck::default()), web())),
                (ServiceKey::new("shop", "calls"), service(Check::Active(grpc), web())),
            ]
            .into_iter()
            .collect(),
            ready: [Target { service: key, port: 80, address: "127.0.0.1:1".parse().unwrap() }].into(),
        }
    }

    fn encoded(state: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(state, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn everything_comes_back_and_what_is_damaged_does_not() {
        let state = state();
        let bytes = encoded(&state);
        assert_eq!(decode(&bytes).unwrap(), state);
        let text = String::from_utf8(bytes).unwrap();
        let later = text.replace("\"format\":4", "\"format\":9");
        let no_port = r#"{"format":4,"controlPlane":[],"services":[{"namespace":"a","name":"b","exported":true,"origin":"","check":null,"ports":[],"export":null}]}"#;
        for (damaged, says) in [
            (&text[..text.len() / 2], "damaged"),
            ("", "damaged"),
            ("{}", "damaged"),
            ("[1]", "its format is 1, this version knows 2 to 4"),
            (&later, "its format is 9, this version knows 2 to 4"),
            (no_port, "a/b has no port"),
        ] {
            let error = decode(damaged.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    /// As versions before wrote it.
    #[test]
    fn the_formats_before_are_read() {
        let text = r#"{"format":3,"controlPlane":[],"services":[{"namespace":"shop","name":"web","exported":true,"origin":"","check":null,"ports":[{"name":"","port":80,"protocol":"http","appProtocol":"","endpoints":[{"address":"127.0.0.1:1","version":"v1","instance":"one","providedReady":true,"ready":false}]}],"export":null}]}"#;
        let state = decode(text.as_bytes()).unwrap();
        let endpoint = &state.services[&ServiceKey::new("shop", "web")].ports[0].endpoints[0];
        assert_eq!((&*endpoint.instance, endpoint.ready, &endpoint.locality), ("one", true, &None));
        let text = r#"{"format":2,"controlPlane":["127.0.0.1:7400"],"services":[{"namespace":"shop","name":"web","port":80,"protocol":"h2c","exported":true,"origin":"a.yaml","check":{"http":"/","host":null,"intervalMs":1000,"timeoutMs":1000,"healthyAfter":1,"unhealthyAfter":2},"endpoints":[{"address":"127.0.0.1:1","version":"v1","instance":"one","providedReady":true,"ready":true},{"address":"[::1]:1","version":"","instance":"","providedReady":false,"ready":false}]}]}"#;
        let state = decode(text.as_bytes()).unwrap();
        let key = ServiceKey::new("shop", "web");
        let service = &state.services[&key];
        assert_eq!((state.control_plane.as_slice(), service.ports.len()), (&["127.0.0.1:7400".to_owned()][..], 1));
        let port = &service.ports[0];
        assert_eq!((port.port, port.protocol, &*port.name, port.endpoints.len()), (80, ServiceProtocol::H2c, "", 2));
        assert_eq!(&*port.endpoints[0].instance, "one");
        assert!(
            matches!(&service.check, Check::Active(check) if matches!(&check.probe, Probe::Http { host: None, .. }))
        );
        let ready = Target { service: key, port: 80, address: "127.0.0.1:1".parse().unwrap() };
        assert_eq!(state.ready, [ready].into());
    }

    /// The figure that the issue of Kubernetes names; what is written every second must stay small.
    #[test]
    fn a_large_cluster_is_a_few_megabytes() {
        let endpoints: Vec<Endpoint> = (0..10)
            .map(|n| Endpoint {
                address: format!("10.200.100.{n}:8080").parse().unwrap(),
                version: "1.2.3".into(),
                instance: format!("checkout-7d9c8b7f5d-abc{n}x").into(),
                ready: true,
                locality: Some(Arc::new(Locality::in_zone(format!("eu-west-1{}", n % 3).into(), true))),
            })
            .collect();
        let with = |endpoints: &[Endpoint]| Port {
            endpoints: endpoints.to_vec(),
            ..port("http", 80, ServiceProtocol::Http, &[])
        };
        let large = State {
            services: (0..2_000)
                .map(|n| {
                    let key = ServiceKey::new("shop", format!("service-{n}"));
                    (key, service(Check::Provider, vec![with(&endpoints)]))
                })
                .collect(),
            ..State::default()
        };
        let bytes = encoded(&large);
        assert!(bytes.len() < 4 << 20, "{} bytes", bytes.len());
        assert_eq!(decode(&bytes).unwrap(), large);
    }
}
