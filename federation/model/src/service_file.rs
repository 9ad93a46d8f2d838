//! Service files: the services of a cluster as YAML, for clusters without an API server.
//!
//! ```yaml
//! apiVersion: archipelago.dev/v1alpha1
//! kind: Service
//! metadata: { name: checkout, namespace: shop }
//! spec:
//!   port: 80
//!   protocol: http                                  # http | h2c | tcp
//!   endpoints:
//!     - { address: "10.0.0.7:8080", version: v1, instance: checkout-v1-0, zone: rack-1 }
//!   trafficDistribution: PreferSameZone             # gateways prefer endpoints of their own --zone; absent: all the same
//!   healthCheck: { http: /healthz, interval: 1s }   # or { grpc: shop.Checkout }, { tcp: true }, or none; absent: TCP
//!                                                   # `host: shop.example` beside `http` is sent as Host header
//! ---
//! apiVersion: archipelago.dev/v1alpha1
//! kind: ServiceExport                               # this cluster offers it to the others
//! metadata: { name: checkout, namespace: shop }
//! ```

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Serialize, Serializer};

use crate::{
    document::{
        self, Document, Problem,
        decode::{Cursor, Fields, Mistakes},
        frame::Frame,
    },
    name::{is_label, is_version},
    resource::{API_VERSION, Metadata, ServiceExportSpec, Spec},
    service::{HealthCheck, ServiceProtocol},
};

/// One service of a cluster, and whether the cluster itself exports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFile {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it is and where it runs.
    pub spec: ServiceSpec,
    /// A `ServiceExport` stands beside it.
    pub exported: bool,
}

/// What a service is and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Port under which clients know it.
    pub port: u16,
    /// What its endpoints speak.
    pub protocol: ServiceProtocol,
    /// Where it runs; may be empty.
    pub endpoints: Vec<ServiceEndpoint>,
    /// Gateways use endpoints of their own zone while it has any; in YAML as in a Service of Kubernetes, `trafficDistribution:
    /// PreferSameZone`, or `PreferClose`, which is its older name.
    #[serde(rename = "trafficDistribution", serialize_with = "same_zone", skip_serializing_if = "is_false")]
    pub prefers_same_zone: bool,
    /// How to tell that an endpoint is ready.
    pub health_check: HealthCheck,
}

/// One place where a service runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Version of the service there.
    pub version: String,
    /// Name of the instance, for logs.
    pub instance: String,
    /// Zone that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl ServiceFile {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// YAML that [`parse`] reads back.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let service =
            Written { api_version: API_VERSION, kind: "Service", metadata: &self.metadata, spec: Some(&self.spec) };
        let mut text = yaml(&service);
        if self.exported {
            let metadata = Metadata { annotations: BTreeMap::new(), ..self.metadata.clone() };
            let export = Written { api_version: API_VERSION, kind: "ServiceExport", metadata: &metadata, spec: None };
            text.push_str("---\n");
            text.push_str(&yaml(&export));
        }
        text
    }
}

/// Reads the service files of a cluster, in any order, as one set.
///
/// # Errors
/// Every problem found; a service without endpoints and no service at all are none.
pub fn parse(documents: &[Document]) -> Result<Vec<ServiceFile>, Vec<Problem>> {
    let mut contents = Vec::new();
    let mut problems = Vec::new();
    for document in documents {
        let (content, wrong) = Content::read(document);
        contents.push(content);
        problems.extend(wrong);
    }
    match merge(contents.iter(), problems.is_empty()) {
        Ok(services) if problems.is_empty() => Ok(services.into_iter().map(|(service, _)| service).collect()),
        Ok(_) => Err(problems),
        Err(wrong) => {
            problems.extend(wrong);
            Err(problems)
        }
    }
}

/// What one file says, before it is seen together with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// With the place of each.
    services: Vec<(ServiceFile, Problem)>,
    /// Exports, with the place of each.
    exports: Vec<(Metadata, Problem)>,
}

#[derive(Clone, Copy)]
enum FileKind {
    Service,
    ServiceExport,
}

impl Content {
    /// Reads one file.
    ///
    /// # Errors
    /// Every problem found.
    pub fn parse(document: &Document) -> Result<Self, Vec<Problem>> {
        let (content, problems) = Self::read(document);
        if problems.is_empty() { Ok(content) } else { Err(problems) }
    }

    /// What a file is known to have said, without its text.
    #[must_use]
    pub fn of(file: &str, services: Vec<ServiceFile>) -> Self {
        let place = Problem { file: file.to_owned(), line: 1, column: 1, path: String::new(), message: String::new() };
        Self { services: services.into_iter().map(|service| (service, place.clone())).collect(), exports: Vec::new() }
    }

    /// What could be read, and what could not.
    fn read(document: &Document) -> (Self, Vec<Problem>) {
        let mut content = Self::default();
        let (parts, mut problems) = document::parse(document);
        for part in parts {
            let mut out = Mistakes::default();
            let kinds = [("Service", FileKind::Service), ("ServiceExport", FileKind::ServiceExport)];
            if let Some((frame, kind)) = Frame::read(&part.root, &kinds, &mut out) {
                let metadata = frame.metadata(true, &mut out);
                for (path, name) in [("metadata.name", &metadata.name), ("metadata.namespace", &metadata.namespace)] {
                    if !name.is_empty() && !is_label(name) {
                        let shown = document::tree::shorten(name);
                        out.push(
                            part.root.place,
                            path,
                            format!("`{shown}` is no valid name: expected an RFC 1123 label"),
                        );
                    }
                }
                let here = part.root.place.problem(&document.file, "metadata.name", "");
                match kind {
                    FileKind::Service => {
                        let spec = frame.spec::<ServiceSpec>(&mut out);
                        if let (Some(spec), true) = (spec, out.is_empty()) {
                            content.services.push((ServiceFile { metadata, spec, exported: false }, here));
                        }
                    }
                    FileKind::ServiceExport => {
                        let spec = frame.spec::<ServiceExportSpec>(&mut out);
                        if spec.is_some_and(|spec| !spec.clusters.is_empty()) {
                            let message = "an export beside its service is of this cluster: leave `clusters` out";
                            out.push(part.root.place, "spec.clusters", message);
                        }
                        content.exports.push((metadata, here));
                    }
                }
            }
            problems.extend(out.into_vec().into_iter().map(|m| m.place.problem(&document.file, &m.path, &m.message)));
        }
        (content, problems)
    }
}

/// The services of a cluster out of all its files, in any order, each with the file that it stands in.
///
/// # Errors
/// A service that is given twice, and an export without its service.
pub fn combine<'a>(
    contents: impl Iterator<Item = &'a Content> + Clone,
) -> Result<Vec<(ServiceFile, &'a str)>, Vec<Problem>> {
    merge(contents, true)
}

/// Not `whole`: in what could not be read there may be the service that an export misses.
fn merge<'a>(
    contents: impl Iterator<Item = &'a Content> + Clone,
    whole: bool,
) -> Result<Vec<(ServiceFile, &'a str)>, Vec<Problem>> {
    let mut services: BTreeMap<(String, String), (ServiceFile, &Problem)> = BTreeMap::new();
    let mut problems = Vec::new();
    for (service, place) in contents.clone().flat_map(|content| &content.services) {
        let key = (service.metadata.namespace.clone(), service.metadata.name.clone());
        if let Some((_, first)) = services.get(&key) {
            let message = format!("this Service is already given at {}:{}", first.file, first.line);
            problems.push(Problem { message, ..place.clone() });
        } else {
            services.insert(key, (service.clone(), place));
        }
    }
    for (metadata, place) in contents.flat_map(|content| &content.exports) {
        match services.get_mut(&(metadata.namespace.clone(), metadata.name.clone())) {
            Some((service, _)) => service.exported = true,
            None if !whole => {}
            None => {
                let message = format!("no Service {}/{} to export", metadata.namespace, metadata.name);
                problems.push(Problem { message, ..place.clone() });
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(services.into_values().map(|(service, place)| (service, place.file.as_str())).collect())
}

impl Spec for ServiceSpec {
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else {
            at.wrong(out, "`spec` is missing");
            return None;
        };
        let port = fields.required("port").map_or(1, |cursor| cursor.port(out));
        let protocol = fields
            .optional("protocol")
            .and_then(|cursor| cursor.one_of(&ServiceProtocol::WORDS, out))
            .unwrap_or(ServiceProtocol::Http);
        let mut seen = BTreeMap::new();
        let endpoints = fields.optional("endpoints").map_or_else(Vec::new, |cursor| {
            cursor.list(out, |item, out| {
                let endpoint = ServiceEndpoint::decode(item, out)?;
                if let Some(first) = seen.insert(endpoint.address, item.path.clone()) {
                    item.wrong(out, format!("{} is already the address of {first}", endpoint.address));
                }
                Some(endpoint)
            })
        });
        let health_check = fields
            .optional("healthCheck")
            .map_or_else(HealthCheck::default, |cursor| HealthCheck::decode(&cursor, protocol, out));
        let prefers_same_zone = fields
            .optional("trafficDistribution")
            .is_some_and(|cursor| cursor.one_of(&[(SAME_ZONE, ()), ("PreferClose", ())], out).is_some());
        fields.finish(out);
        Some(Self { port, protocol, endpoints, prefers_same_zone, health_check })
    }
}

impl ServiceEndpoint {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let address = fields.required("address").and_then(|cursor| cursor.socket_address(out));
        let version = match fields.optional("version") {
            None => "v1".to_owned(),
            Some(cursor) => {
                let version = cursor.text(out);
                if !version.is_empty() && !is_version(&version) {
                    cursor.wrong(out, "expected 1 to 63 letters, digits, dots, dashes, underscores");
                }
                version
            }
        };
        let instance = fields.optional("instance").map(|cursor| cursor.text(out));
        let zone = fields.optional("zone").map(|cursor| {
            let zone = cursor.text(out);
            if !is_version(&zone) {
                cursor.wrong(out, "expected 1 to 63 letters, digits, dots, dashes, underscores");
            }
            zone
        });
        fields.finish(out);
        let address = address?;
        Some(Self { address, version, instance: instance.unwrap_or_else(|| address.to_string()), zone })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: &'a Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<&'a ServiceSpec>,
}

/// As `skip_serializing_if` wants it.
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Written only when it is so.
fn same_zone<S: Serializer>(_: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(SAME_ZONE)
}

const SAME_ZONE: &str = "PreferSameZone";

fn yaml(written: &Written<'_>) -> String {
    let text = serde_saphyr::to_string(written).expect("structs of texts and numbers always serialize");
    if text.ends_with('\n') { text } else { format!("{text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{ActiveCheck, Probe};

    fn document(text: &str) -> Document {
        Document { file: "paris.yaml".into(), text: text.into() }
    }

    const CHECKOUT: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata: { name: checkout, namespace: shop }
spec:
  port: 80
  endpoints:
    - { address: \"10.0.0.7:8080\", version: v2, instance: a, zone: rack-1 }
    - { address: \"[::1]:8080\" }
  trafficDistribution: PreferClose
  healthCheck: { http: /healthz, interval: 250ms, unhealthyAfter: 3 }
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
";

    #[test]
    fn what_is_written_reads_back() {
        let services = parse(&[document(CHECKOUT)]).unwrap();
        assert_eq!(services.len(), 1);
        assert!(services[0].exported);
        assert_eq!(services[0].spec.endpoints[1].instance, "[::1]:8080");
        assert_eq!(services[0].spec.endpoints[0].zone.as_deref(), Some("rack-1"));
        assert!(services[0].spec.prefers_same_zone);
        let named = ActiveCheck {
            probe: Probe::Http { path: "/".into(), host: Some("shop.example:8080".into()) },
            ..ActiveCheck::default()
        };
        let grpc = |service: &str| {
            HealthCheck::Active(ActiveCheck {
                probe: Probe::Grpc { service: service.into() },
                ..ActiveCheck::default()
            })
        };
        for health_check in [
            HealthCheck::None,
            HealthCheck::default(),
            HealthCheck::Active(named),
            grpc("shop.Checkout"),
            grpc(""),
            services[0].spec.health_check.clone(),
        ] {
            let mut service = services[0].clone();
            service.spec.health_check = health_check;
            service.spec.protocol = ServiceProtocol::H2c;
            let text = service.to_yaml();
            assert_eq!(parse(&[document(&text)]).unwrap(), vec![service], "{text}");
        }
    }

    #[test]
    fn mistakes_have_places() {
        for (from, to, expected) in [
            ("port: 80", "port: 0", "paris.yaml:5:9: spec.port: expected a whole number from 1 to 65535"),
            ("10.0.0.7:8080", "localhost:1", "paris.yaml:7:18: spec.endpoints[0].address: expected ip:port"),
            ("[::1]", "10.0.0.7", "paris.yaml:8:7: spec.endpoints[1]: 10.0.0.7:8080 is already the address"),
            ("http: /healthz", "http: healthz", "spec.healthCheck.http: expected a path"),
            ("http: /healthz", "http: /healthz, host: a b", "spec.healthCheck.host: expected a host name"),
            ("http: /healthz", "http: /healthz, host: u@h", "spec.healthCheck.host: expected a host name"),
            (
                "http: /healthz",
                "grpc: shop.Checkout",
                "spec.healthCheck.grpc: gRPC is spoken by services of protocol h2c",
            ),
            ("http: /healthz", "http: /healthz, grpc: a", "expected one of `grpc`, `http` and `tcp`"),
            ("http: /healthz", "grpc: a b", "expected the name of a gRPC service"),
            ("http: /healthz", "host: h", "only a check with `http` sends a host"),
            ("interval: 250ms", "interval: 1ms", "expected a duration from 10ms to 5m"),
            ("unhealthyAfter: 3", "unhealthyafter: 3", "did you mean `unhealthyAfter`?"),
            (
                "kind: ServiceExport\nmetadata: { name: checkout,",
                "kind: ServiceExport\nmetadata: { name: chekout,",
                "no Service shop/chekout to export",
            ),
            ("kind: Service\n", "kind: Servce\n", "did you mean `Service`?"),
        ] {
            let text = CHECKOUT.replacen(from, to, 1);
            let problems = parse(&[document(&text)]).unwrap_err();
            let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert!(shown.iter().any(|problem| problem.contains(expected)), "{shown:?}");
        }
    }
}
