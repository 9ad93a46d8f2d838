//! Services: who has them, where their traffic goes, what the policy says, and why it is otherwise.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use archipelago_model::resource::{
    Backend as Weighted, FailbackMode, FailoverPolicySpec, FailoverTier, Resource, RouteMatch, Sticky, TrafficSplitSpec,
};
use archipelago_page::state::{
    Backend, Failover, Port, Reason, Service, ServiceCluster, ServiceState, Severity, Split, SplitRoute,
};
use archipelago_proto::v1::{self, Protocol, ServiceStatus};

use super::{
    events::{self, Ring},
    federation::some,
    traffic::Traffic,
};
use crate::{
    api::{Context, services::Overview},
    machine::{Key, State as Replicated},
};

/// All of them, the busiest if there are too many; and how many are left off.
pub(super) fn services(context: &Context, traffic: Option<&Traffic>, events: &Ring) -> (Vec<Service>, usize) {
    let (_, federation) = context.compiler.federation();
    let (agents, gateways) = (context.sessions.agents(), context.sessions.gateways());
    let overview = Overview::new(&federation, &agents, &gateways);
    let policies = Policies::of(context);
    let happened = Happened::of(events);
    let mut services: Vec<Service> =
        overview.services(None).map(|status| service(status, &policies, traffic, &happened)).collect();
    let left_off = services.len().saturating_sub(SERVICES_MAX);
    if left_off > 0 {
        let busy = |service: &Service| service.rate.as_ref().map_or(0.0, |rate| rate.requests_per_second);
        services.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        services.truncate(SERVICES_MAX);
        services.sort_by(|a, b| a.name.cmp(&b.name));
    }
    (services, left_off)
}

/// What the policy says of services, by "namespace/name".
#[derive(Default)]
struct Policies {
    splits: HashMap<String, Split>,
    failovers: HashMap<String, Failover>,
}

impl Policies {
    fn of(context: &Context) -> Self {
        let state = context.consensus.state();
        let mut policies = Self::default();
        for (key, resource) in context.consensus.resources(&state).iter() {
            let of = |service: &str| format!("{}/{service}", key.namespace);
            let (revision, origin) = written(&state, &Key::from(key));
            match resource {
                Resource::TrafficSplit(split) => {
                    let can_undo = split.metadata.annotations.contains_key(archipelago_model::edit::switch::HISTORY);
                    let name = split.metadata.name.clone();
                    let shown = Split { can_undo, ..shown_split(&split.spec, name, revision, origin) };
                    policies.splits.entry(of(&split.spec.service)).or_insert(shown);
                }
                Resource::FailoverPolicy(policy) => {
                    let name = policy.metadata.name.clone();
                    let shown = shown_failover(&policy.spec, name, revision, origin);
                    policies.failovers.entry(of(&policy.spec.service)).or_insert(shown);
                }
                Resource::Cluster(_) | Resource::ServiceExport(_) | Resource::BackendPolicy(_) => {}
            }
        }
        policies
    }
}

fn written(state: &Replicated, key: &Key) -> (u64, Option<String>) {
    state.resources().get(key).map_or((0, None), |stored| (stored.modified_revision, some(&stored.origin)))
}

fn shown_split(spec: &TrafficSplitSpec, name: String, revision: u64, origin: Option<String>) -> Split {
    let sticky = spec.sticky.as_ref().map(|sticky| match sticky {
        Sticky::Header(name) => format!("header {name}"),
        Sticky::Cookie(name) => format!("cookie {name}"),
    });
    let route = |route: &archipelago_model::resource::Route| SplitRoute {
        matches: words(&route.matches),
        backends: shares(&route.backends),
    };
    Split {
        name,
        revision,
        origin,
        sticky,
        routes: spec.routes.iter().map(route).collect(),
        backends: shares(&spec.backends),
        can_undo: false,
    }
}

fn shares(backends: &[Weighted]) -> Vec<Backend> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let share = |weight: u32| if total == 0 { 0.0 } else { f64::from(weight) * 100.0 / total as f64 };
    let backend = |one: &Weighted| Backend {
        cluster: one.cluster.clone(),
        version: one.version.clone(),
        weight: one.weight,
        share_percent: super::traffic::rounded(share(one.weight)),
    };
    backends.iter().map(backend).collect()
}

/// `header x-preview=pr-42, path /beta`.
fn words(matches: &RouteMatch) -> String {
    let pairs = |word: &'static str, map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{word} {key}={value}")).collect::<Vec<_>>()
    };
    let mut parts = pairs("header", &matches.headers);
    parts.extend(pairs("cookie", &matches.cookies));
    parts.extend(matches.path_prefix.iter().map(|path| format!("path {path}")));
    parts.extend(matches.method.iter().map(|method| format!("method {method}")));
    parts.join(", ")
}

fn shown_failover(spec: &FailoverPolicySpec, name: String, revision: u64, origin: Option<String>) -> Failover {
    let tier = |tier: &FailoverTier| match tier {
        FailoverTier::Clusters(names) => format!("clusters {}", names.join(", ")),
        FailoverTier::Regions(names) => format!("regions {}", names.join(", ")),
    };
    let residency = spec.residency.as_ref().map(|residency| {
        let regions = residency.regions.iter().map(|region| format!("region {region}"));
        regions.chain(residency.clusters.iter().map(|cluster| format!("cluster {cluster}"))).collect()
    });
    Failover {
        name,
        revision,
        origin,
        order: spec.order.iter().map(tier).collect(),
        avoid: spec.avoid.clone(),
        residency,
        failback: match spec.failback.mode {
            FailbackMode::Auto => "auto",
            FailbackMode::Manual => "manual",
        },
    }
}

/// What gateways said last of each service, as far as it still stands.
#[derive(Default)]
struct Happened<'a>(HashMap<&'a str, Vec<&'a v1::Event>>);

impl<'a> Happened<'a> {
    fn of(events: &'a Ring) -> Self {
        let mut happened = Self::default();
        let mut told = std::collections::HashSet::new();
        for event in events.newest_first() {
            let is_of_service = !event.service.is_empty() && matches!(event.kind.as_str(), "failover" | "ejection");
            // What a gateway says of an endpoint does not end what it says of the service.
            let subject = if event.kind == "ejection" { event.subject.as_str() } else { "" };
            if !is_of_service || !told.insert((&*event.service, &*event.source, &*event.kind, subject)) {
                continue;
            }
            if !matches!(event.reason.as_str(), "FailbackComplete" | "ServiceAvailable" | "EndpointReturned") {
                happened.0.entry(&event.service).or_default().push(event);
            }
        }
        happened
    }

    /// The newest first; several gateways that say the same say it once.
    fn reasons(&self, service: &str) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = Vec::new();
        for event in self.0.get(service).into_iter().flatten() {
            let is_said = |said: &Reason| said.reason == event.reason && said.text == event.message;
            if reasons.len() < REASONS_MAX && !reasons.iter().any(is_said) {
                reasons.push(Reason {
                    since_unix_ms: Some(event.first_unix_ms),
                    severity: events::severity(event),
                    reason: event.reason.clone(),
                    text: event.message.clone(),
                });
            }
        }
        reasons
    }
}

fn service(status: ServiceStatus, policies: &Policies, traffic: Option<&Traffic>, happened: &Happened<'_>) -> Service {
    let name = format!("{}/{}", status.namespace, status.name);
    let mut reasons = happened.reasons(&name);
    let wanted = status.clusters.iter().filter_map(|cluster| match cluster.state.as_str() {
        "drained" => {
            Some(("ClusterDrained", format!("{} is drained: others serve as far as they can", cluster.cluster)))
        }
        "avoided" => Some(("TrafficMoved", format!("an operator moved it away from {}", cluster.cluster))),
        _ => None,
    });
    let wanted = wanted.map(|(reason, text)| Reason {
        since_unix_ms: None,
        severity: Severity::Info,
        reason: reason.to_owned(),
        text,
    });
    reasons.extend(wanted);
    // What is known without a time stands there now.
    reasons.sort_by_key(|reason| Reverse(reason.since_unix_ms.unwrap_or(i64::MAX)));
    reasons.truncate(REASONS_MAX);
    let ports = if status.ports.is_empty() {
        let clusters = status.clusters.iter().map(|cluster| cluster.cluster.clone()).collect();
        vec![Port { name: String::new(), port: status.port, protocol: protocol(status.protocol()), clusters }]
    } else {
        let port = |port: &v1::PortStatus| Port {
            name: port.name.clone(),
            port: port.port,
            protocol: protocol(port.protocol()),
            clusters: port.exporters.clone(),
        };
        status.ports.iter().map(port).collect()
    };
    Service {
        state: state(&status),
        hosts: status.hosts,
        ports,
        headless: status.headless,
        clusters: status.clusters.into_iter().map(in_cluster).collect(),
        rate: traffic.and_then(|traffic| traffic.rate(&name)),
        flows: traffic.and_then(|traffic| traffic.flows(&name)),
        versions: traffic.and_then(|traffic| traffic.versions(&name)),
        split: policies.splits.get(&name).cloned(),
        failover: policies.failovers.get(&name).cloned(),
        reasons,
        name,
    }
}

/// The best that a cluster which may serve can do; an avoided or drained one still serves when no other can.
fn state(status: &ServiceStatus) -> ServiceState {
    let all = |is: &dyn Fn(&v1::ServiceClusterStatus) -> bool| status.clusters.iter().all(is);
    let any = |is: &dyn Fn(&v1::ServiceClusterStatus) -> bool| status.clusters.iter().any(is);
    if status.clusters.is_empty() || all(&|cluster| cluster.state == "unknown") {
        return ServiceState::Unknown;
    }
    if !any(&|cluster| cluster.ready > 0) {
        return if any(&|cluster| cluster.state == "unknown") { ServiceState::Unknown } else { ServiceState::Down };
    }
    let is_well = |cluster: &v1::ServiceClusterStatus| cluster.ready == cluster.total && cluster.state != "unknown";
    if all(&is_well) { ServiceState::Ready } else { ServiceState::Degraded }
}

fn in_cluster(cluster: v1::ServiceClusterStatus) -> ServiceCluster {
    ServiceCluster {
        last_failure: cluster.last_failure.as_ref().map(heard),
        cluster: cluster.cluster,
        state: cluster.state,
        ready: cluster.ready,
        total: cluster.total,
        unknown: cluster.unknown,
        versions: cluster.versions,
        weight_percent: cluster.weight.map(super::traffic::rounded),
    }
}

/// What a failing check heard.
fn heard(failure: &v1::CheckFailure) -> String {
    use v1::CheckFailureReason as Why;
    match failure.reason() {
        Why::Connect => "nobody accepts connections",
        Why::Closed => "closed without an answer",
        Why::Protocol => "answered in another protocol",
        Why::Status => return format!("answered {}", failure.status),
        Why::GrpcStatus => return format!("gRPC's health check answered code {}", failure.status),
        Why::NotServing => "not serving, says its gRPC health check",
        Why::Timeout => "no answer in time",
        Why::Request => "host or path of the check are not valid",
        Why::Provider => "not ready, says its provider",
        Why::Unspecified => "failed",
    }
    .to_owned()
}

fn protocol(protocol: Protocol) -> String {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::H2c => "h2c",
        Protocol::Tcp => "tcp",
        Protocol::Unspecified => "unknown",
    }
    .to_owned()
}

const SERVICES_MAX: usize = 1_000;
const REASONS_MAX: usize = 8;
