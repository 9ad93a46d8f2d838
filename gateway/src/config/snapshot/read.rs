//! Reads one resource: what is not understood whole is not understood.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use archipelago_identity::{MeshRole, SpiffeId, revocation};
use archipelago_proto::v1::{
    self as proto, r#match::On, named_match, path_match, revocation::Subject, service_port::Listener as Kind,
};
use http::{HeaderName, Method};

use super::{
    Backend, Closed, Cluster, Listener, LocalEndpoint, Peer, Protocol, Rule, Rules, Service, StickyKey,
    build::{Clusters, Source},
};
use crate::balance::topology::{Hints, Place, Preference};
use crate::balance::{failback, hash};
use crate::pace;
use crate::route::{self, Condition, Matcher, PathPattern, Pattern};

/// Why a resource cannot be used, for people.
type Reason = String;

pub(super) fn cluster(config: &proto::ClusterConfig) -> Cluster {
    Cluster { name: config.name.as_str().into(), region: config.region.clone(), drained: config.drained }
}

pub(super) fn unsupported(config: &proto::UnsupportedService) -> Closed {
    Closed {
        key: format!("{}/{}", config.namespace, config.name).into(),
        hosts: config.hosts.iter().map(|host| route::host_name(host)).collect(),
        why: format!("this gateway lacks {}", config.missing_features.join(", ")),
        // What it speaks is not said; a service of bytes has no hosts that anybody sends, and loses nothing by an answer.
        http: true,
    }
}

/// Whose certificates are refused, and those that began before when.
pub(super) fn revocation(config: &proto::Revocation) -> Result<(revocation::Subject, SystemTime), Reason> {
    let subject = match &config.subject {
        Some(Subject::SpiffeId(id)) => {
            revocation::Subject::Identity(id.parse().map_err(|error| format!("{id:?} is no SPIFFE id: {error}"))?)
        }
        Some(Subject::Cluster(cluster)) => revocation::Subject::Cluster(cluster.clone()),
        None => return Err("a revocation of an unknown kind of subject".to_owned()),
    };
    let seconds = u64::try_from(config.issued_before_unix).unwrap_or(0);
    let issued_before = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    Ok((subject, issued_before.ok_or("a revocation beyond all time")?))
}

pub(super) fn peer(config: &proto::PeerConfig, clusters: &Clusters) -> Result<Peer, Reason> {
    let spiffe_id: SpiffeId = config.spiffe_id.parse().map_err(|error| format!("{:?}: {error}", config.spiffe_id))?;
    let expected = MeshRole::Gateway { cluster: config.cluster.clone(), name: config.gateway.clone() };
    if spiffe_id.role().as_ref() != Some(&expected) {
        return Err(format!("{spiffe_id} is not the identity of gateway {}/{}", config.cluster, config.gateway));
    }
    let addresses = config
        .tunnel_addresses
        .iter()
        .map(|text| text.parse().map_err(|_| format!("tunnel address {text:?} is not ip:port")))
        .collect::<Result<Vec<_>, _>>()?;
    let cluster = clusters.get(config.cluster.as_str()).copied();
    let cluster = cluster.ok_or_else(|| format!("no cluster {:?}", config.cluster))?;
    Ok(Peer { cluster, gateway: config.gateway.clone(), spiffe_id, addresses })
}

/// Every port of a service, in its order.
pub(super) fn service(
    config: &proto::ServiceConfig,
    clusters: &Clusters,
    local: Option<&proto::LocalService>,
    here: &Place,
    version: &[u8],
) -> Result<Vec<Service>, Reason> {
    if config.ports.is_empty() {
        return Err("it has no ports".to_owned());
    }
    let mut seen = HashSet::new();
    if let Some(port) = config.ports.iter().find(|port| !seen.insert(port.port)) {
        return Err(format!("port {} appears twice", port.port));
    }
    let several = config.ports.len() > 1;
    let unit = |(place, port): (usize, &proto::ServicePort)| {
        let endpoints = Local::of(local, port.port, several);
        let source = Source::of(version, endpoints, here);
        unit(config, place, port, clusters, endpoints.read(here), source).map_err(|reason| match several {
            true => format!("port {}: {reason}", port.port),
            false => reason,
        })
    };
    config.ports.iter().enumerate().map(unit).collect()
}

fn unit(
    config: &proto::ServiceConfig,
    place: usize,
    port: &proto::ServicePort,
    clusters: &Clusters,
    (local, preference): (Vec<LocalEndpoint>, Option<Preference>),
    source: Source,
) -> Result<Service, Reason> {
    let protocol = Protocol::from_proto(port.protocol).ok_or("unknown protocol")?;
    let mut hosts: Vec<String> = config.hosts.iter().map(|host| route::host_name(host)).collect();
    let listener = match (&port.listener, protocol) {
        (Some(Kind::Http(http)), Protocol::Http1 | Protocol::H2c) => {
            hosts.extend(http.hosts.iter().map(|host| route::host_name(host)));
            Listener::Http
        }
        (Some(Kind::Tcp(tcp)), Protocol::Tcp) => Listener::Tcp {
            port_offset: u16::try_from(tcp.port_offset)
                .map_err(|_| format!("TCP port offset {} is out of range", tcp.port_offset))?,
        },
        (Some(Kind::Http(_) | Kind::Tcp(_)), _) => return Err("its listener does not fit its protocol".to_owned()),
        (None, _) => return Err("an unknown kind of listener".to_owned()),
    };
    let mut seen = HashSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    let sticky = match port.sticky.as_ref().map(|sticky| &sticky.key) {
        None => None,
        Some(Some(proto::sticky::Key::Header(header))) => Some(StickyKey::Header(header_name(header)?)),
        Some(Some(proto::sticky::Key::Cookie(cookie))) => Some(StickyKey::Cookie(cookie.clone())),
        Some(None) => return Err("an unknown kind of sticky key".to_owned()),
    };
    let chains = port
        .chains
        .iter()
        .map(|chain| chain.tiers.iter().map(|tier| backends(&tier.backends, clusters)).collect())
        .collect::<Result<Vec<Arc<[_]>>, _>>()?;
    let rules = port
        .rules
        .iter()
        .map(|config| rule(config, &chains, clusters).map_err(|reason| format!("{}: {reason}", config.name)))
        .collect::<Result<Vec<_>, _>>()?;
    if !rules.last().is_some_and(|last| last.matcher.is_empty()) {
        return Err("the last rule must match everything".to_owned());
    }
    // A cluster that is not known here cannot serve, so leaving it out changes nothing; that it is not known is said of
    // the cluster's own resource.
    let places = |list: &[String]| list.iter().filter_map(|name| clusters.get(name.as_str()).copied()).collect();
    let failback = config.failback.as_ref().map_or_else(failback::Policy::default, |f| failback::Policy {
        after: Duration::from_millis(f.after_ms),
        ramp: Duration::from_millis(f.ramp_ms),
        automatic: f.automatic,
    });
    let limits = config.backend_settings.as_ref().map(limits).transpose()?.flatten();
    let service: Arc<str> = format!("{}/{}", config.namespace, config.name).into();
    let number = u16::try_from(port.port).map_err(|_| format!("port {} is out of range", port.port))?;
    Ok(Service {
        key: if config.ports.len() > 1 { format!("{service}:{number}").into() } else { Arc::clone(&service) },
        service,
        place,
        hosts,
        protocol,
        port: number,
        port_name: port.name.clone(),
        listener,
        sticky,
        rules: Rules::new(rules),
        failback,
        limits,
        residency: (!config.residency_clusters.is_empty()).then(|| places(&config.residency_clusters)),
        exporters: places(&config.exporters),
        avoid: places(&config.avoid_clusters),
        local,
        preference,
        source,
    })
}

/// How slow one may be with its requests, if that is said.
fn limits(settings: &proto::BackendSettings) -> Result<Option<Box<pace::Given>>, Reason> {
    let proto::BackendSettings { connect_timeout_ms, requests_max, connections_max, outlier_detection, limits } =
        settings;
    if connect_timeout_ms.is_some()
        || requests_max.is_some()
        || connections_max.is_some()
        || outlier_detection.is_some()
    {
        return Err("it has backend settings, which this gateway does not know".to_owned());
    }
    let given = limits.as_ref().map(|limits| pace::Given {
        upload_idle_ms: limits.upload_idle_ms,
        upload_rate_min: limits.upload_rate_min,
        upload_grace_ms: limits.upload_grace_ms,
        download_idle_ms: limits.download_idle_ms,
        endpoint_idle_ms: limits.endpoint_idle_ms,
        stream_idle_ms: limits.stream_idle_ms,
    });
    Ok(given.map(Box::new))
}

/// What the agent knows of one port of a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local<'a> {
    pub(super) endpoints: &'a [proto::Endpoint],
    /// What endpoints refer to.
    pub(super) localities: &'a [proto::Locality],
}

impl<'a> Local<'a> {
    /// Where the service has one port on both sides that is the one, whatever its number; an agent that knows of one port only
    /// says nothing of others.
    pub(super) fn of(local: Option<&'a proto::LocalService>, port: u32, several: bool) -> Self {
        let Some(local) = local else { return Self { endpoints: &[], localities: &[] } };
        let endpoints: &[proto::Endpoint] = match local.ports.as_slice() {
            [] if !several || local.port == port => &local.endpoints,
            [] => &[],
            [only] if !several => &only.endpoints,
            ports => ports.iter().find(|known| known.port == port).map_or(&[], |known| &known.endpoints),
        };
        Self { endpoints, localities: &local.localities }
    }

    /// Its endpoints as a gateway at `here` sees them, and which of them it prefers. Unusable and repeated addresses are left
    /// out.
    pub(super) fn read(self, here: &Place) -> (Vec<LocalEndpoint>, Option<Preference>) {
        let ready = self.endpoints.iter().filter(|endpoint| endpoint.readiness() == proto::Readiness::Ready);
        let preference = Preference::of(ready.map(|endpoint| self.hints(endpoint)), here);
        let endpoint = |endpoint: &proto::Endpoint| {
            Some(LocalEndpoint {
                address: endpoint.address.parse().ok()?,
                version: endpoint.version.as_str().into(),
                instance: endpoint.instance.as_str().into(),
                readiness: endpoint.readiness(),
                preferred: preference.is_none_or(|preference| preference.is_met(self.hints(endpoint), here)),
            })
        };
        let mut endpoints: Vec<_> = self.endpoints.iter().filter_map(endpoint).collect();
        endpoints.sort_by_key(|e| e.address);
        endpoints.dedup_by_key(|e| e.address);
        (endpoints, preference)
    }

    fn hints(self, endpoint: &proto::Endpoint) -> Hints<'a> {
        let place = usize::try_from(endpoint.locality).ok().and_then(|place| place.checked_sub(1));
        let locality = place.and_then(|place| self.localities.get(place));
        locality
            .map_or_else(Hints::default, |locality| Hints { zones: &locality.for_zones, nodes: &locality.for_nodes })
    }
}

fn rule(config: &proto::RouteRule, chains: &[Arc<[Vec<Backend>]>], clusters: &Clusters) -> Result<Rule, Reason> {
    if !config.filters.is_empty() {
        return Err("it has filters, which this gateway does not know".to_owned());
    }
    if config.timeouts.is_some() || config.retry.is_some() {
        return Err("it has timeouts or retries, which this gateway does not know".to_owned());
    }
    let conditions = config.matches.iter().map(condition).collect::<Result<_, _>>()?;
    let tiers = match config.chain {
        None => Arc::default(),
        Some(place) => {
            let chain = usize::try_from(place).ok().and_then(|place| chains.get(place));
            Arc::clone(chain.ok_or_else(|| format!("no failover chain {place}"))?)
        }
    };
    Ok(Rule {
        name: config.name.as_str().into(),
        matcher: Matcher { conditions },
        backends: backends(&config.backends, clusters)?,
        tiers,
    })
}

fn condition(config: &proto::Match) -> Result<Condition, Reason> {
    match &config.on {
        Some(On::Method(method)) => Ok(Condition::Method(
            Method::try_from(method.as_str()).map_err(|_| format!("{method:?} is not an HTTP method"))?,
        )),
        Some(On::Path(path)) => match &path.how {
            Some(path_match::How::Exact(path)) => Ok(Condition::Path(PathPattern::Exact(path.clone()))),
            Some(path_match::How::Prefix(prefix)) => Ok(Condition::Path(PathPattern::Prefix(prefix.clone()))),
            Some(path_match::How::RegularExpression(_)) => Err(NO_EXPRESSIONS.to_owned()),
            None => Err(UNKNOWN_MATCH.to_owned()),
        },
        Some(On::Header(header)) => Ok(Condition::Header(header_name(&header.name)?, pattern(header)?)),
        Some(On::QueryParameter(query)) => Ok(Condition::Query(query.name.clone(), pattern(query)?)),
        Some(On::Cookie(cookie)) => Ok(Condition::Cookie(cookie.name.clone(), pattern(cookie)?)),
        None => Err(UNKNOWN_MATCH.to_owned()),
    }
}

fn pattern(config: &proto::NamedMatch) -> Result<Pattern, Reason> {
    match &config.how {
        Some(named_match::How::Exact(value)) => Ok(Pattern::Exact(value.clone())),
        Some(named_match::How::Prefix(prefix)) => Ok(Pattern::Prefix(prefix.clone())),
        Some(named_match::How::Present(_)) => Ok(Pattern::Present),
        Some(named_match::How::RegularExpression(_)) => Err(NO_EXPRESSIONS.to_owned()),
        None => Err(UNKNOWN_MATCH.to_owned()),
    }
}

fn backends(list: &[proto::Backend], clusters: &Clusters) -> Result<Vec<Backend>, Reason> {
    let mut seen = HashSet::new();
    let mut backends = Vec::with_capacity(list.len());
    for config in list {
        if !config.service.is_empty() {
            return Err(format!(
                "a backend of another service, {:?}, which this gateway does not know",
                config.service
            ));
        }
        let version = (!config.subset.is_empty()).then_some(config.subset.as_str());
        if !seen.insert((config.cluster.as_str(), version)) {
            return Err(format!("{}/{} appears twice", config.cluster, config.subset));
        }
        // As for exporters: who is not known cannot serve.
        if let Some(cluster) = clusters.get(config.cluster.as_str()) {
            backends.push(Backend {
                cluster: *cluster,
                version: version.map(Arc::from),
                weight: config.weight,
                id: hash::choice_id(&config.cluster, version),
            });
        }
    }
    Ok(backends)
}

impl Rules {
    /// The same rules in a snapshot with other clusters.
    pub(super) fn moved(&self, place: &impl Fn(usize) -> Option<usize>) -> Self {
        let all = |list: &[Backend]| {
            list.iter().filter_map(|old| Some(Backend { cluster: place(old.cluster)?, ..old.clone() })).collect()
        };
        let moved = |rule: &Rule| Rule {
            name: Arc::clone(&rule.name),
            matcher: rule.matcher.clone(),
            backends: all(&rule.backends),
            tiers: rule.tiers.iter().map(|tier| all(tier)).collect(),
        };
        Self::new(self.as_slice().iter().map(moved).collect())
    }
}

fn header_name(name: &str) -> Result<HeaderName, Reason> {
    HeaderName::try_from(name).map_err(|_| format!("{name:?} is not a header name"))
}

const UNKNOWN_MATCH: &str = "an unknown kind of match";
const NO_EXPRESSIONS: &str = "a regular expression, which this gateway does not know";
