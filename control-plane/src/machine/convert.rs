//! Between the messages of the public API and those of the log.
//!
//! Every field is named on both sides: one that is added to the API does not compile until somebody decides whether it is
//! replicated, and in which format.

use archipelago_model::resource::ResourceKey;
use archipelago_proto::v1;

use super::command::{
    self, ChangeKind, ExportFacts, ExportType, GatewayAddresses, Protocol, ReportedPort, ReportedService, Role,
    UncarriedPort,
};

/// What is replicated of an agent's report: without counts, sorted, each service once.
#[must_use]
pub fn reported(services: Vec<v1::ServiceReport>) -> Vec<ReportedService> {
    let mut services: Vec<ReportedService> = services.into_iter().map(reported_service).collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    services.dedup_by(|a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name));
    services
}

fn reported_service(service: v1::ServiceReport) -> ReportedService {
    let protocol = protocol_of(service.protocol());
    // Counts are soft state and live in the agent's session.
    let v1::ServiceReport {
        namespace,
        name,
        port,
        exported,
        mut versions,
        ports,
        export,
        protocol: _,
        ready: _,
        total: _,
        unknown: _,
        last_failure: _,
    } = service;
    versions.sort();
    versions.dedup();
    let mut ports = ports.into_iter();
    // The first stands in the service's own fields.
    let first = ports.next().unwrap_or_default();
    ReportedService {
        namespace,
        name,
        protocol: protocol.into(),
        port,
        exported,
        versions,
        since: 0,
        port_name: first.name,
        app_protocol: first.app_protocol,
        more_ports: ports.map(port_of).collect(),
        export: export.map(facts_of),
    }
}

/// A replicated service as agents report it, with counts of zero.
#[must_use]
pub fn service_report(service: &ReportedService) -> v1::ServiceReport {
    let ReportedService {
        namespace,
        name,
        protocol: _,
        port: number,
        exported,
        versions,
        since: _,
        port_name,
        app_protocol,
        more_ports,
        export,
    } = service;
    let protocol = protocol(service.protocol()).into();
    let mut ports = Vec::new();
    if !(port_name.is_empty() && app_protocol.is_empty() && more_ports.is_empty()) {
        let (name, app_protocol) = (port_name.clone(), app_protocol.clone());
        ports.push(v1::ReportedPort { name, port: *number, protocol, app_protocol });
        ports.extend(more_ports.iter().map(port));
    }
    v1::ServiceReport {
        namespace: namespace.clone(),
        name: name.clone(),
        protocol,
        port: *number,
        exported: *exported,
        versions: versions.clone(),
        ready: 0,
        total: 0,
        unknown: 0,
        last_failure: None,
        ports,
        export: export.as_ref().map(facts),
    }
}

fn port_of(port: v1::ReportedPort) -> ReportedPort {
    let protocol = protocol_of(port.protocol()).into();
    let v1::ReportedPort { name, port, protocol: _, app_protocol } = port;
    ReportedPort { name, port, protocol, app_protocol }
}

fn port(port: &ReportedPort) -> v1::ReportedPort {
    let protocol = protocol(port.protocol()).into();
    let ReportedPort { name, port, protocol: _, app_protocol } = port.clone();
    v1::ReportedPort { name, port, protocol, app_protocol }
}

fn facts_of(facts: v1::ExportFacts) -> ExportFacts {
    let r#type = match facts.r#type() {
        v1::ExportType::Unspecified => ExportType::Unspecified,
        v1::ExportType::ClusterSetIp => ExportType::ClusterSetIp,
        v1::ExportType::Headless => ExportType::Headless,
    };
    let v1::ExportFacts {
        created_unix_ms,
        r#type: _,
        session_affinity,
        session_affinity_seconds,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        uncarried_ports,
    } = facts;
    let uncarried = |port: v1::UncarriedPort| {
        let v1::UncarriedPort { name, port, transport, app_protocol } = port;
        UncarriedPort { name, port, transport, app_protocol }
    };
    ExportFacts {
        created_unix_ms,
        r#type: r#type.into(),
        session_affinity,
        session_affinity_seconds,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        uncarried_ports: uncarried_ports.into_iter().map(uncarried).collect(),
    }
}

fn facts(facts: &ExportFacts) -> v1::ExportFacts {
    let r#type = match facts.r#type() {
        ExportType::Unspecified => v1::ExportType::Unspecified,
        ExportType::ClusterSetIp => v1::ExportType::ClusterSetIp,
        ExportType::Headless => v1::ExportType::Headless,
    };
    let ExportFacts {
        created_unix_ms,
        r#type: _,
        session_affinity,
        session_affinity_seconds,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        uncarried_ports,
    } = facts.clone();
    let uncarried = |port: UncarriedPort| {
        let UncarriedPort { name, port, transport, app_protocol } = port;
        v1::UncarriedPort { name, port, transport, app_protocol }
    };
    v1::ExportFacts {
        created_unix_ms,
        r#type: r#type.into(),
        session_affinity,
        session_affinity_seconds,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        uncarried_ports: uncarried_ports.into_iter().map(uncarried).collect(),
    }
}

fn protocol_of(protocol: v1::Protocol) -> Protocol {
    match protocol {
        v1::Protocol::Unspecified => Protocol::Unspecified,
        v1::Protocol::Http1 => Protocol::Http1,
        v1::Protocol::H2c => Protocol::H2c,
        v1::Protocol::Tcp => Protocol::Tcp,
    }
}

fn protocol(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Unspecified => v1::Protocol::Unspecified,
        Protocol::Http1 => v1::Protocol::Http1,
        Protocol::H2c => v1::Protocol::H2c,
        Protocol::Tcp => v1::Protocol::Tcp,
    }
}

/// Addresses as they are replicated.
#[must_use]
pub fn addresses_of(addresses: v1::GatewayAddresses) -> GatewayAddresses {
    let v1::GatewayAddresses { http, tunnel, dns, metrics, health, tcp_base } = addresses;
    GatewayAddresses { http, tunnel, dns, metrics, health, tcp_base }
}

/// Addresses as clients see them.
#[must_use]
pub fn addresses(addresses: &GatewayAddresses) -> v1::GatewayAddresses {
    let GatewayAddresses { http, tunnel, dns, metrics, health, tcp_base } = addresses.clone();
    v1::GatewayAddresses { http, tunnel, dns, metrics, health, tcp_base }
}

/// A role as it is replicated.
#[must_use]
pub fn role_of(role: v1::JoinRole) -> Role {
    match role {
        v1::JoinRole::Unspecified => Role::Unspecified,
        v1::JoinRole::Agent => Role::Agent,
        v1::JoinRole::Gateway => Role::Gateway,
    }
}

/// A role as clients see it.
#[must_use]
pub fn role(role: i32) -> v1::JoinRole {
    match Role::try_from(role) {
        Ok(Role::Agent) => v1::JoinRole::Agent,
        Ok(Role::Gateway) => v1::JoinRole::Gateway,
        Ok(Role::Unspecified) | Err(_) => v1::JoinRole::Unspecified,
    }
}

/// A client's key, of whatever kind it says.
#[must_use]
pub fn key_of(key: v1::ResourceKey) -> command::ResourceKey {
    let v1::ResourceKey { kind, namespace, name } = key;
    command::ResourceKey { kind, namespace, name }
}

/// A key of a known kind as it is replicated.
#[must_use]
pub fn resource_key_of(key: ResourceKey) -> command::ResourceKey {
    let ResourceKey { kind, namespace, name } = key;
    command::ResourceKey { kind: kind.to_string(), namespace, name }
}

/// A failed precondition as clients see it.
#[must_use]
pub fn conflict(conflict: command::Conflict) -> v1::Conflict {
    let command::Conflict { key, current_revision } = conflict;
    let key = key.map(|command::ResourceKey { kind, namespace, name }| v1::ResourceKey { kind, namespace, name });
    v1::Conflict { key, current_revision }
}

/// A change as clients see it.
#[must_use]
pub fn change(change: command::Change) -> v1::Change {
    let what = match change.kind() {
        ChangeKind::Created => "created",
        ChangeKind::Updated => "updated",
        ChangeKind::Deleted => "deleted",
        ChangeKind::Unchanged | ChangeKind::Unspecified => "unchanged",
    };
    let command::ResourceKey { kind, namespace, name } = change.key.unwrap_or_default();
    v1::Change { kind, namespace, name, what: what.to_owned() }
}
