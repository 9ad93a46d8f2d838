//! From ServiceExports to what the federation is told, and back to what their owners are told.

use std::sync::Arc;

use archipelago_agent::provider::Imports;
use archipelago_model::{
    export::Merged,
    id::ServiceKey,
    selector::{self, ClusterSelectors},
};
use archipelago_proto::v1::{ExportFacts, ExportType, UncarriedPort};
use imbl::OrdMap;

use crate::{
    crd::{Condition, ServiceExport, Status},
    discovery::Exports,
    types::{Key, Service, ServiceType, Transport},
    watch::Objects,
};

/// Whether a Service can be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It can.
    Valid,
    /// There is none of this name.
    NoService,
    /// It is another name for something that is not in the cluster.
    ExternalName,
    /// It stands for an import: exporting it would lead requests in a circle.
    Import,
    /// It can, and nothing of it is carried: no port is TCP.
    NothingCarried,
}

impl Verdict {
    /// Judges the Service that an export names.
    #[must_use]
    pub fn of(service: Option<&Service>) -> Self {
        let Some(service) = service.filter(|service| !service.is_terminating) else { return Self::NoService };
        if service.kind == ServiceType::ExternalName {
            Self::ExternalName
        } else if service.imported_name.is_some() {
            Self::Import
        } else if service.ports.iter().any(|port| port.transport == Transport::Tcp) {
            Self::Valid
        } else {
            Self::NothingCarried
        }
    }
}

/// What the cluster exports, for the catalog. What did not change is shared with `before`.
#[must_use]
pub fn exports(exports: &Objects<ServiceExport>, services: &Objects<Service>, before: &Exports) -> Exports {
    let mut facts = OrdMap::new();
    for (key, export) in exports.iter().filter(|(_, export)| !export.is_terminating) {
        let service = services.get(key).map(|service| &**service);
        if let (Verdict::Valid, Some(service)) = (Verdict::of(service), service) {
            let (known, now) = (before.get(key), facts_of(export, service));
            facts.insert(key.clone(), known.filter(|known| ***known == now).cloned().unwrap_or_else(|| Arc::new(now)));
        }
    }
    facts
}

fn facts_of(export: &ServiceExport, service: &Service) -> ExportFacts {
    let r#type = match service.kind {
        ServiceType::Headless => ExportType::Headless,
        ServiceType::ClusterIp | ServiceType::ExternalName => ExportType::ClusterSetIp,
    };
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    let uncarried = service.ports.iter().filter(|port| port.transport != Transport::Tcp);
    let mut annotations = export.annotations.clone();
    annotations.remove(selector::ANNOTATION);
    if let Some(Ok(selectors)) = selectors(export, service)
        && !selectors.as_slice().is_empty()
    {
        annotations.insert(selector::ANNOTATION.to_owned(), selectors.to_json());
    }
    ExportFacts {
        created_unix_ms: export.created_unix_ms,
        r#type: r#type.into(),
        session_affinity: service.session_affinity.to_string(),
        session_affinity_seconds: service
            .session_affinity_timeout_seconds
            .and_then(|seconds| u32::try_from(seconds).ok()),
        internal_traffic_policy: text(&service.internal_traffic_policy),
        traffic_distribution: text(&service.traffic_distribution),
        ip_families: service.ip_families.iter().map(ToString::to_string).collect(),
        labels: export.labels.clone(),
        annotations,
        uncarried_ports: uncarried
            .map(|port| UncarriedPort {
                name: port.name.to_string(),
                port: port.port.into(),
                transport: port.transport.as_str().to_owned(),
                app_protocol: text(&port.app_protocol),
            })
            .collect(),
    }
}

/// The cluster selectors of an export; `None`: it has none. As an error why they do not count: reason and message.
fn selectors(export: &ServiceExport, service: &Service) -> Option<Result<ClusterSelectors, (&'static str, String)>> {
    let text = export.selectors.as_deref()?;
    if service.kind == ServiceType::Headless {
        let message = "cluster selectors are for Services with a cluster IP: clients of a headless one choose its pods themselves.                        Remove the annotation";
        return Some(Err(("InvalidServiceType", message.to_owned())));
    }
    Some(ClusterSelectors::parse(text).map_err(|reason| {
        let message = format!(
            "the annotation {} is not used, and the Service is exported as without it: {reason}",
            selector::ANNOTATION
        );
        ("InvalidClusterSelector", message)
    }))
}

/// What an export is judged by.
pub(super) struct Judged<'a> {
    pub(super) cluster: &'a str,
    pub(super) key: &'a Key,
    pub(super) export: &'a ServiceExport,
    pub(super) service: Option<&'a Service>,
    /// `None` until the control plane has said.
    pub(super) imports: Option<&'a Imports>,
    /// What all exports of the name come to; `None`: there is none, or nobody has said.
    pub(super) merged: Option<&'a Merged>,
    pub(super) now: &'a str,
}

/// The conditions of an export, in the words of the API: `Valid`, `Ready`, `Conflict`.
pub(super) fn conditions(judged: &Judged<'_>) -> Vec<Condition> {
    let Judged { key, export, service, now, .. } = judged;
    let verdict = Verdict::of(*service);
    let said = |r#type: &str, (status, reason, message): (Status, String, String)| {
        Condition::new(r#type, status, reason, message, export.generation, now).after(&export.conditions)
    };
    let mut conditions = vec![said("Valid", valid(verdict, key))];
    if let Some(selectors) = service.and_then(|service| selectors(export, service)) {
        conditions.push(said(
            SELECTORS,
            match selectors {
                Ok(_) => (Status::True, "Accepted".into(), "they count unless a FailoverPolicy has an order".into()),
                Err((reason, message)) => (Status::False, reason.into(), message),
            },
        ));
    }
    match judged.listed() {
        // Nobody to ask: what was true when there was is the best guess.
        None if verdict == Verdict::Valid => {
            let known = export.conditions.iter().filter(|condition| matches!(&*condition.r#type, "Ready" | "Conflict"));
            let before = conditions.len();
            conditions.extend(known.cloned());
            if conditions.len() == before {
                let message =
                    "the federation has not said anything yet: the agent has no session with the control plane";
                conditions.push(said("Ready", (Status::Unknown, "Pending".into(), message.into())));
            }
        }
        listed => {
            let listed = listed.unwrap_or_default();
            conditions.push(said("Ready", judged.ready(verdict, listed)));
            conditions.push(said("Conflict", judged.conflict(listed)));
        }
    }
    conditions
}

fn valid(verdict: Verdict, key: &Key) -> (Status, String, String) {
    let name = &key.name;
    let (status, reason, message) = match verdict {
        Verdict::Valid | Verdict::NothingCarried if SYSTEM_NAMESPACES.contains(&&*key.namespace) => (
            Status::True,
            "Valid",
            format!(
                "exported; note that `{}` is a namespace of every cluster, and its Services are rarely meant for others",
                key.namespace
            ),
        ),
        Verdict::Valid | Verdict::NothingCarried => (Status::True, "Valid", "the Service can be exported".to_owned()),
        Verdict::NoService => (
            Status::False,
            "NoService",
            format!("there is no Service `{name}` in this namespace: create it, or delete this ServiceExport"),
        ),
        Verdict::ExternalName => (
            Status::False,
            "InvalidServiceType",
            "a Service of type ExternalName cannot be exported: it has no endpoints in this cluster".to_owned(),
        ),
        Verdict::Import => (
            Status::False,
            "InvalidServiceType",
            "this Service stands for one of the clusterset: export the Service behind it, in its own cluster"
                .to_owned(),
        ),
    };
    (status, reason.into(), message)
}

impl Judged<'_> {
    /// Whether the federation lists this export; `None`: it has not said.
    fn listed(&self) -> Option<bool> {
        let key = ServiceKey { namespace: self.key.namespace.clone(), name: self.key.name.clone() };
        let exporters = self.imports?.get(&key).map(|import| import.exporters.as_slice()).unwrap_or_default();
        Some(exporters.iter().any(|exporter| exporter.cluster == self.cluster))
    }

    fn ready(&self, verdict: Verdict, listed: bool) -> (Status, String, String) {
        let uncarried = self.service.iter().flat_map(|service| &service.ports);
        let uncarried = uncarried.filter(|port| port.transport != Transport::Tcp);
        let uncarried: Vec<String> =
            uncarried.map(|port| format!("{}/{}", port.port, port.transport.as_str())).collect();
        let (status, reason, message) = match verdict {
            Verdict::NothingCarried => (
                Status::False,
                "Failed",
                format!("only TCP ports are carried between clusters, and this Service has {}", uncarried.join(", ")),
            ),
            Verdict::NoService | Verdict::ExternalName | Verdict::Import => {
                (Status::False, "Failed", "not exported: see the condition Valid".to_owned())
            }
            Verdict::Valid if !listed => (
                Status::False,
                "Pending",
                "not listed by the federation yet. If this stays, ask an operator whether a ServiceExport of the federation \
                 names other clusters only"
                    .to_owned(),
            ),
            Verdict::Valid if uncarried.is_empty() => (Status::True, "Exported", "every cluster can use it".to_owned()),
            Verdict::Valid => (
                Status::True,
                "Exported",
                format!("every cluster can use it but for {}: only TCP ports are carried", uncarried.join(", ")),
            ),
        };
        (status, reason.into(), message)
    }

    fn conflict(&self, listed: bool) -> (Status, String, String) {
        let conflicts = self.merged.map(|merged| merged.conflicts.as_slice()).unwrap_or_default();
        let conflicts: Vec<_> = conflicts
            .iter()
            .filter(|conflict| listed && conflict.clusters.iter().any(|name| name == self.cluster))
            .collect();
        if conflicts.is_empty() {
            return (Status::False, "NoConflicts".into(), String::new());
        }
        let join = |parts: Vec<&str>, with: &str| parts.join(with);
        let reasons = join(conflicts.iter().map(|conflict| conflict.kind.reason()).collect(), ",");
        let messages = join(conflicts.iter().map(|conflict| conflict.message.as_str()).collect(), ". ");
        (Status::True, reasons, messages)
    }
}

/// Type of the condition about cluster selectors.
pub(super) const SELECTORS: &str = "archipelago.dev/ClusterSelectors";
/// Every cluster has them, and they are not the same thing everywhere.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
