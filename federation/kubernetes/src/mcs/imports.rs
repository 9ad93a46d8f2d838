//! The ServiceImport that an import of the federation is in this cluster.

use std::collections::BTreeMap;

use archipelago_model::export::{Merged, MergedPort, Transport};
use archipelago_proto::v1::{ExportType, Protocol};

use super::derived;
use crate::{
    crd::{
        ClientIp, ClusterName, Condition, ImportPort, ImportSpec, ImportStatus, ImportType, ServiceImport,
        SessionAffinityConfig, Status,
    },
    types::{APP, MANAGED_BY, Service},
};

/// What is wanted of a ServiceImport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) spec: ImportSpec,
    /// By name; `None`: as they stand.
    pub(super) clusters: Option<Vec<ClusterName>>,
}

impl Wanted {
    /// As the federation says it.
    pub(super) fn merged(merged: &Merged, exporters: &[archipelago_proto::v1::Exporter]) -> Self {
        let mut labels: BTreeMap<String, String> =
            merged.labels.iter().filter(|(key, value)| is_label(key, value)).map(owned).collect();
        labels.insert(MANAGED_BY.into(), APP.into());
        let mut clusters: Vec<ClusterName> =
            exporters.iter().map(|exporter| ClusterName { cluster: exporter.cluster.clone() }).collect();
        clusters.sort();
        let headless = merged.kind == ExportType::Headless;
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Self {
            labels,
            annotations: merged.annotations.iter().filter(|(key, _)| is_qualified(key)).map(owned).collect(),
            spec: ImportSpec {
                ports: merged.ports.iter().map(import_port).collect(),
                ips: Vec::new(),
                r#type: if headless { ImportType::Headless } else { ImportType::ClusterSetIP },
                session_affinity: some(&merged.session_affinity),
                session_affinity_config: merged.session_affinity_seconds.map(|seconds| SessionAffinityConfig {
                    client_ip: Some(ClientIp { timeout_seconds: Some(seconds.into()) }),
                }),
                ip_families: if headless { merged.ip_families.clone() } else { Vec::new() },
                internal_traffic_policy: some(&merged.internal_traffic_policy),
                traffic_distribution: some(&merged.traffic_distribution),
            },
            clusters: Some(clusters),
        }
    }

    /// As it stands: while nobody says what the federation exports, what was so stays so.
    pub(super) fn kept(import: &ServiceImport) -> Self {
        let mut labels = import.labels.clone();
        labels.insert(MANAGED_BY.into(), APP.into());
        Self { labels, annotations: import.annotations.clone(), spec: import.spec.clone(), clusters: None }
    }

    /// Its addresses are those of the Service that it is derived into.
    pub(super) fn with_addresses(mut self, service: Option<&Service>) -> Self {
        if self.spec.r#type == ImportType::Headless {
            self.spec.ips.clear();
            return self;
        }
        if let Some(service) = service {
            self.spec.ips = service.cluster_ips.iter().map(ToString::to_string).collect();
            let family = |ip: &std::net::IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            self.spec.ip_families = service.cluster_ips.iter().map(|ip| family(ip).to_owned()).collect();
        }
        self
    }

    /// While that Service is away it is to come back with the addresses that it had: clients know them.
    pub(super) fn awaiting(mut self, found: &ServiceImport) -> Self {
        if self.spec.r#type == ImportType::ClusterSetIP && found.spec.r#type == ImportType::ClusterSetIP {
            self.spec.ips.clone_from(&found.spec.ips);
            self.spec.ip_families.clone_from(&found.spec.ip_families);
        }
        self
    }

    /// Everything of it is there already. Of labels and annotations others may have added theirs.
    pub(super) fn is_in(&self, import: &ServiceImport) -> bool {
        let within = |ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>| {
            ours.iter().all(|(key, value)| theirs.get(key) == Some(value))
        };
        self.spec == import.spec
            && within(&self.labels, &import.labels)
            && within(&self.annotations, &import.annotations)
    }

    /// Nobody, not even an earlier form of ours, has put anything more there.
    pub(super) fn is_all_of(&self, import: &ServiceImport) -> bool {
        self.labels == import.labels && self.annotations == import.annotations
    }
}

/// What is said of an import.
pub(super) struct Judged<'a> {
    pub(super) import: &'a ServiceImport,
    pub(super) wanted: &'a Wanted,
    /// The Service that it is derived into is there.
    pub(super) is_derived: bool,
    /// The Service that it is derived into is not this agent's.
    pub(super) is_blocked: bool,
    /// TCP ports without a listen port.
    pub(super) without: &'a [u16],
    pub(super) now: &'a str,
}

impl Judged<'_> {
    pub(super) fn status(&self) -> ImportStatus {
        let (status, reason, message) = self.ready();
        let ready = Condition::new("Ready", status, reason, message, self.import.generation, self.now);
        ImportStatus {
            // The slices of the derived Service hold this cluster's gateways, not the endpoints of others.
            endpoint_slice_objects: Some("Absent".into()),
            clusters: self.wanted.clusters.clone().unwrap_or_else(|| self.import.status.clusters.clone()),
            conditions: vec![ready.after(&self.import.status.conditions)],
        }
    }

    fn ready(&self) -> (Status, &'static str, String) {
        let spec = &self.wanted.spec;
        if spec.r#type == ImportType::Headless {
            let message = "a headless Service is reached by the addresses of its pods, and those of other clusters cannot be \
                           reached from here: nothing answers under its name. Export a Service with a cluster IP to use it";
            return (Status::False, "Unsupported", message.into());
        }
        if self.is_blocked {
            let message =
                "a Service of the name that stands for this import is there and is not the agent's: delete it";
            return (Status::False, "Failed", message.into());
        }
        if !self.without.is_empty() {
            let ports: Vec<String> = self.without.iter().map(ToString::to_string).collect();
            let message = format!(
                "no listen port is free for port {}: start agent and gateways with a larger --capture-ports",
                ports.join(", ")
            );
            return (Status::False, "Failed", message);
        }
        if spec.ips.is_empty() || !self.is_derived {
            return (Status::False, "Pending", "waits for the addresses of the Service that stands for it".into());
        }
        let uncarried = spec.ports.iter().filter(|port| port.protocol != "TCP");
        let uncarried: Vec<String> = uncarried.map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        let message = match uncarried.is_empty() {
            true => String::new(),
            false => {
                format!("nothing answers at {}: only TCP ports are carried between clusters", uncarried.join(", "))
            }
        };
        (Status::True, "Ready", message)
    }
}

fn import_port(port: &MergedPort) -> ImportPort {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let mut shown = ImportPort {
        name: port.name.clone(),
        protocol: port.transport.as_str().to_owned(),
        app_protocol: some(&port.app_protocol),
        port: port.port.into(),
    };
    // A cluster that is described by files says what it speaks in its own words; here it must be readable off the import.
    if port.transport == Transport::Tcp && derived::protocol(&shown).to_proto() != port.protocol {
        shown.app_protocol = match port.protocol {
            Protocol::Http1 => Some("http".into()),
            Protocol::H2c => Some("kubernetes.io/h2c".into()),
            Protocol::Tcp => Some("tcp".into()),
            Protocol::Unspecified => shown.app_protocol,
        };
    }
    shown
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// What an API server takes as a label: another cluster's word must not make an object impossible to write.
fn is_label(key: &str, value: &str) -> bool {
    is_qualified(key) && (value.is_empty() || is_name(value))
}

/// `name` or `dns.prefix/name`.
fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name(key),
        Some((prefix, name)) => {
            let label = |label: &str| {
                label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                    && !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            prefix.len() <= 253 && prefix.split('.').all(label) && is_name(name)
        }
    }
}

fn is_name(text: &str) -> bool {
    let ends = |text: &str, end: Option<char>| !text.is_empty() && end.is_some_and(|end| end.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && ends(text, text.chars().next())
        && ends(text, text.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_others_are_taken_only_if_an_api_server_takes_them() {
        for (key, value) in [("a", ""), ("a", "b"), ("example.com/tier", "front_end.1"), ("A-b", "C")] {
            assert!(is_label(key, value), "{key}={value}");
        }
        let long = "a".repeat(64);
        for (key, value) in [
            ("", "a"),
            ("a b", "c"),
            ("-a", "b"),
            ("a", "-b"),
            ("Ex.com/a", "b"),
            ("/a", "b"),
            ("a/b/c", "d"),
            ("a", &long),
        ] {
            assert!(!is_label(key, value), "{key}={value}");
        }
    }
}
