//! Rules about one resource by itself: names, weights, matches.

use std::{collections::BTreeMap, fmt};

use super::Finding;
use crate::{
    document::tree::printable,
    name::{is_label, is_version},
    resource::{
        Backend, BackendPolicySpec, FailoverPolicySpec, FailoverTier, LOCAL, Metadata, Resource, ResourceKey,
        RouteMatch, SAME, Sticky, StreamLimits, TopologySpec, TrafficSplitSpec,
    },
};

/// A wrong meaning: where it shows, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The same mistake seen from each resource that takes part in it; the one most likely at fault first.
    pub(super) sites: Vec<Site>,
    pub(super) message: String,
    /// Two resources claim one thing: the message ends where the place of the first belongs.
    pub(super) duplicate: bool,
}

/// A path in a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) subject: Subject,
    pub(super) path: String,
}

/// What has paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Resource(ResourceKey),
    Topology,
}

impl Complaint {
    /// About one path of one resource.
    pub(super) fn about(key: &ResourceKey, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { sites: vec![Site::of(key, path)], message: message.into(), duplicate: false }
    }

    /// The same without a file; `None` when it is about a topology, which exists in files only.
    pub(super) fn finding(&self) -> Option<Finding> {
        let site = self.sites.first()?;
        let Subject::Resource(key) = &site.subject else { return None };
        let message = match self.sites.get(1) {
            Some(first) if self.duplicate => format!("{}: `{}`", self.message, first.subject),
            Some(_) | None => self.message.clone(),
        };
        Some(Finding { key: key.clone(), path: printable(&site.path), message: printable(&message) })
    }
}

impl Site {
    pub(super) fn of(key: &ResourceKey, path: impl Into<String>) -> Self {
        Self { subject: Subject::Resource(key.clone()), path: path.into() }
    }
}

impl fmt::Display for Complaint {
    /// `TrafficSplit shop/checkout: spec.backends[0].cluster: no cluster …`, for places without a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(site) = self.sites.first() {
            write!(f, "{}: ", site.subject)?;
            if !site.path.is_empty() {
                write!(f, "{}: ", site.path)?;
            }
        }
        f.write_str(&self.message)?;
        match self.sites.get(1) {
            Some(first) if self.duplicate => write!(f, ": `{}`", first.subject),
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(key) => key.fmt(f),
            Self::Topology => f.write_str("Topology"),
        }
    }
}

/// Judges one resource.
pub(super) fn resource(resource: &Resource, out: &mut Vec<Complaint>) {
    let mut rules = Rules { subject: Subject::Resource(resource.key()), out };
    rules.metadata(resource.metadata(), resource.kind().namespaced());
    match resource {
        Resource::Cluster(cluster) => rules.label("spec.region", &cluster.spec.region),
        Resource::ServiceExport(export) => rules.names("spec.clusters", &export.spec.clusters),
        Resource::TrafficSplit(split) => rules.traffic_split(&split.spec),
        Resource::FailoverPolicy(policy) => rules.failover_policy(&policy.spec),
        Resource::BackendPolicy(policy) => rules.backend_policy(&policy.spec),
    }
}

/// Judges a topology.
pub(super) fn topology(spec: &TopologySpec, out: &mut Vec<Complaint>) {
    let mut rules = Rules { subject: Subject::Topology, out };
    rules.topology(spec);
}

struct Rules<'o> {
    subject: Subject,
    out: &'o mut Vec<Complaint>,
}

impl Rules<'_> {
    fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>) {
        let site = Site { subject: self.subject.clone(), path: path.into() };
        self.out.push(Complaint { sites: vec![site], message: message.into(), duplicate: false });
    }

    fn metadata(&mut self, metadata: &Metadata, namespaced: bool) {
        self.label("metadata.name", &metadata.name);
        if namespaced {
            self.label("metadata.namespace", &metadata.namespace);
        } else if !metadata.namespace.is_empty() {
            self.wrong("metadata.namespace", "this kind has no namespace");
        }
        let bytes: usize = metadata.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > ANNOTATION_BYTES_MAX {
            self.wrong("metadata.annotations", format!("{bytes} bytes, at most {ANNOTATION_BYTES_MAX} are allowed"));
        }
    }

    fn traffic_split(&mut self, spec: &TrafficSplitSpec) {
        self.label("spec.service", &spec.service);
        match &spec.sticky {
            Some(Sticky::Header(name)) => self.header_name("spec.sticky.header", name),
            Some(Sticky::Cookie(name)) => self.token("spec.sticky.cookie", "cookie name", name),
            None => {}
        }
        if spec.routes.is_empty() && spec.backends.is_empty() {
            self.wrong("spec", "a TrafficSplit needs `backends` or `routes`");
        }
        if spec.routes.len() > ROUTES_MAX {
            self.wrong("spec.routes", format!("{} routes, at most {ROUTES_MAX} are allowed", spec.routes.len()));
        }
        for (index, route) in spec.routes.iter().enumerate() {
            let path = format!("spec.routes[{index}]");
            self.route_match(&format!("{path}.match"), &route.matches);
            if route.backends.is_empty() {
                self.wrong(format!("{path}.backends"), "a route needs at least one backend");
            }
            self.backends(&format!("{path}.backends"), &route.backends);
        }
        self.backends("spec.backends", &spec.backends);
        let total = spec.routes.iter().map(|route| route.backends.len()).sum::<usize>() + spec.backends.len();
        if total > BACKENDS_TOTAL_MAX {
            self.wrong("spec.routes", format!("{total} backends in all, at most {BACKENDS_TOTAL_MAX} are allowed"));
        }
    }

    fn route_match(&mut self, path: &str, matches: &RouteMatch) {
        if matches.is_empty() {
            self.wrong(path, "an empty match takes every request: put these backends into `spec.backends`");
        }
        for (name, value) in &matches.headers {
            let path = format!("{path}.headers");
            self.header_name(&path, name);
            self.header_value(&path, value);
        }
        for (name, value) in &matches.cookies {
            let path = format!("{path}.cookies");
            self.token(&path, "cookie name", name);
            self.header_value(&path, value);
        }
        if let Some(prefix) = &matches.path_prefix
            && (!prefix.starts_with('/')
                || prefix.len() > PATH_BYTES_MAX
                || !prefix.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#')))
        {
            self.wrong(format!("{path}.pathPrefix"), "expected a path that begins with `/`, without query or fragment");
        }
        if let Some(method) = &matches.method
            && (method.is_empty() || method.len() > 32 || !method.bytes().all(|byte| byte.is_ascii_uppercase()))
        {
            self.wrong(format!("{path}.method"), "expected a method in upper case, such as `GET`");
        }
    }

    fn backends(&mut self, path: &str, backends: &[Backend]) {
        if backends.len() > BACKENDS_MAX {
            self.wrong(path, format!("{} backends, at most {BACKENDS_MAX} are allowed", backends.len()));
        }
        let mut seen = BTreeMap::new();
        for (index, backend) in backends.iter().enumerate() {
            let at = format!("{path}[{index}]");
            self.label(format!("{at}.cluster"), &backend.cluster);
            if let Some(version) = &backend.version {
                self.version(format!("{at}.version"), version);
            }
            if backend.weight > Backend::WEIGHT_MAX {
                self.wrong(
                    format!("{at}.weight"),
                    format!("expected a whole number from 0 to {}", Backend::WEIGHT_MAX),
                );
            }
            if let Some(first) = seen.insert((&backend.cluster, &backend.version), index) {
                let version =
                    backend.version.as_ref().map_or_else(String::new, |version| format!(" version `{version}`"));
                let message = format!("cluster `{}`{version} is already a backend at {path}[{first}]", backend.cluster);
                self.wrong(format!("{at}.cluster"), message);
            }
        }
        if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            self.wrong(path, "every weight is 0: no backend would get a request");
        }
    }

    fn failover_policy(&mut self, spec: &FailoverPolicySpec) {
        self.label("spec.service", &spec.service);
        if spec.order.len() > TIERS_MAX {
            self.wrong("spec.order", format!("{} tiers, at most {TIERS_MAX} are allowed", spec.order.len()));
        }
        let mut seen: BTreeMap<(bool, &str), String> = BTreeMap::new();
        for (index, tier) in spec.order.iter().enumerate() {
            let (field, names, word) = match tier {
                FailoverTier::Clusters(names) => ("clusters", names, LOCAL),
                FailoverTier::Regions(names) => ("regions", names, SAME),
            };
            let list = format!("spec.order[{index}].{field}");
            if names.is_empty() {
                self.wrong(&list, "a tier needs at least one entry");
            }
            for (entry, name) in names.iter().enumerate() {
                let path = format!("{list}[{entry}]");
                if name.starts_with('@') {
                    if name != word {
                        self.wrong(&path, format!("expected a name or `{word}`, found `{}`", shown(name)));
                    }
                } else {
                    self.label(&path, name);
                }
                if let Some(first) = seen.get(&(field == "clusters", name.as_str())) {
                    self.wrong(&path, format!("`{}` already stands at {first}", shown(name)));
                } else {
                    seen.insert((field == "clusters", name), path);
                }
            }
        }
        if let Some(residency) = &spec.residency {
            if residency.regions.is_empty() && residency.clusters.is_empty() {
                self.wrong("spec.residency", "needs `regions` or `clusters`: nobody could serve otherwise");
            }
            self.names("spec.residency.regions", &residency.regions);
            self.names("spec.residency.clusters", &residency.clusters);
        }
        self.names("spec.avoid", &spec.avoid);
    }

    fn backend_policy(&mut self, spec: &BackendPolicySpec) {
        self.label("spec.service", &spec.service);
        let limits = &spec.limits;
        if limits.is_empty() {
            self.wrong(
                "spec.limits",
                "needs at least one limit: without any, nothing would be other than without this policy",
            );
        }
        for (name, time) in limits.times() {
            if !time.is_zero() && time < StreamLimits::TIME_MIN {
                let message = "expected `none` or at least 1s: networks that work pause for longer than that";
                self.wrong(format!("spec.limits.{name}"), message);
            }
        }
        if limits.upload_grace.is_some_and(|grace| grace < StreamLimits::TIME_MIN) {
            let message = "a rate is measured over at least 1s; `uploadMinRate: 0` asks for none";
            self.wrong("spec.limits.uploadGrace", message);
        }
        if limits.upload_min_rate.is_some_and(|rate| rate > StreamLimits::RATE_MAX) {
            let message = format!("expected a whole number from 0 to {}", StreamLimits::RATE_MAX);
            self.wrong("spec.limits.uploadMinRate", message);
        }
    }

    fn topology(&mut self, spec: &TopologySpec) {
        if spec.trust_domain.is_empty()
            || spec.trust_domain.len() > 255
            || !spec.trust_domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        {
            self.wrong("spec.trustDomain", "expected lower-case letters, digits, dots, dashes and underscores");
        }
        if spec.clusters.is_empty() {
            self.wrong("spec.clusters", "a topology needs at least one cluster");
        }
        let mut names = BTreeMap::new();
        let mut services = BTreeMap::new();
        for (index, cluster) in spec.clusters.iter().enumerate() {
            let at = format!("spec.clusters[{index}]");
            self.label(format!("{at}.name"), &cluster.name);
            self.label(format!("{at}.region"), &cluster.region);
            if let Some(first) = names.insert(&cluster.name, index) {
                let message = format!("`{}` is already the name of spec.clusters[{first}]", shown(&cluster.name));
                self.wrong(format!("{at}.name"), message);
            }
            let mut here = BTreeMap::new();
            for (index, service) in cluster.services.iter().enumerate() {
                let at = format!("{at}.services[{index}]");
                self.label(format!("{at}.name"), &service.name);
                self.label(format!("{at}.namespace"), &service.namespace);
                self.names_by(format!("{at}.versions"), &service.versions, Self::version);
                if service.versions.is_empty() {
                    self.wrong(format!("{at}.versions"), "needs at least one version");
                }
                let key = (&service.namespace, &service.name);
                if here.insert(key, ()).is_some() {
                    self.wrong(
                        format!("{at}.name"),
                        format!("`{}` is already a service of this cluster", shown(&service.name)),
                    );
                }
                let (protocol, port, first) =
                    *services.entry(key).or_insert((service.protocol, service.port, &cluster.name));
                if (protocol, port) != (service.protocol, service.port) {
                    let other = if *first == cluster.name { "this cluster" } else { "cluster" };
                    let who = if *first == cluster.name { String::new() } else { format!(" `{}`", shown(first)) };
                    self.wrong(&at, format!("{other}{who} has this service as {protocol} on port {port}"));
                }
            }
        }
    }

    /// RFC 1123 labels without repetition.
    fn names(&mut self, path: &str, names: &[String]) {
        self.names_by(path.to_owned(), names, Self::label);
    }

    fn names_by(&mut self, path: String, names: &[String], rule: fn(&mut Self, String, &str)) {
        let mut seen = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            let at = format!("{path}[{index}]");
            if let Some(first) = seen.insert(name, index) {
                self.wrong(at.as_str(), format!("`{}` already stands at {path}[{first}]", shown(name)));
            }
            rule(self, at, name);
        }
    }

    /// RFC 1123 label: what Kubernetes allows as a name and DNS as a part of one.
    fn label(&mut self, path: impl Into<String>, name: &str) {
        if !is_label(name) {
            let message = format!(
                "`{}` is no valid name: 1 to 63 lower-case letters, digits and dashes, not at the ends",
                shown(name)
            );
            self.wrong(path, message);
        }
    }

    fn version(&mut self, path: String, version: &str) {
        if !is_version(version) {
            let message =
                format!("`{}` is no valid version: 1 to 63 letters, digits, dots, dashes, underscores", shown(version));
            self.wrong(path, message);
        }
    }

    fn header_name(&mut self, path: &str, name: &str) {
        self.token(path, "header name", name);
        if name.starts_with("mesh-") {
            self.wrong(path, format!("`{}`: headers that begin with `mesh-` belong to the gateways", shown(name)));
        }
    }

    /// A token of RFC 9110 §5.6.2.
    fn token(&mut self, path: &str, what: &str, text: &str) {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || text.len() > TOKEN_BYTES_MAX || !text.bytes().all(token) {
            self.wrong(path, format!("`{}` is no valid {what}", shown(text)));
        }
    }

    fn header_value(&mut self, path: &str, value: &str) {
        let allowed = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if value.len() > VALUE_BYTES_MAX || !value.bytes().all(allowed) || value.trim() != value {
            self.wrong(path, format!("`{}` is no value that a header can have", shown(value)));
        }
    }
}

fn shown(text: &str) -> &str {
    crate::document::tree::shorten(text)
}

/// A preview environment for every branch of a large company. What a gateway pays per request does not grow with them
/// (it looks under what the request carries: 0.3 µs among 4,000), the text of so many fits a file, and the compiled
/// service, failover chains shared, fits a message four times over.
pub(crate) const ROUTES_MAX: usize = 4_096;
/// Over all routes: at about forty bytes each, less than a megabyte in every gateway's configuration.
const BACKENDS_TOTAL_MAX: usize = 4 * ROUTES_MAX;
/// Sums of this many weights, and products of two of them, stay far inside `u64`.
pub(crate) const BACKENDS_MAX: usize = 64;
/// Clusters of a large federation, each its own tier.
pub(crate) const TIERS_MAX: usize = 64;
/// Annotations travel with every copy of the resource.
const ANNOTATION_BYTES_MAX: usize = 16 * 1024;
/// Longer than any header or cookie name in use.
pub(crate) const TOKEN_BYTES_MAX: usize = 256;
/// A quarter of the header section that the gateways accept.
pub(crate) const VALUE_BYTES_MAX: usize = 4 * 1024;
/// As [`VALUE_BYTES_MAX`], for a path.
pub(crate) const PATH_BYTES_MAX: usize = 4 * 1024;
