//! Formats of the log: what each brought, and which one an action needs.
//!
//! The state holds the format that the federation has agreed on, and only entries up to it may be proposed. It rises when
//! every member supports more ([`Action::RaiseFormat`]), so that an upgrade can go member by member and back again until then.

use std::borrow::Cow;

use archipelago_model::resource::Resource;

use super::command::{Action, ApplyResources, CaInit, RaiseFormat, ReportedService};

/// What every log begins with.
pub const BASE: u32 = 1;
/// Brings preconditions of clients and `RaiseRestoreEpoch`.
pub const PRECONDITIONS: u32 = 2;
/// Brings revoked identities, and the list of operators.
pub const REVOCATIONS: u32 = 3;
/// Brings several ports of a service, what the Multi-Cluster Services API says of exports, policies that are written in a
/// cluster, and clusters that may.
pub const PORTS: u32 = 4;
/// Brings `BackendPolicy`.
pub const BACKEND_POLICIES: u32 = 5;
/// Brings members that are added and taken out while the federation runs.
pub const MEMBERS: u32 = 6;
/// The newest format that this version knows.
pub const CURRENT: u32 = MEMBERS;
/// What [`CURRENT`] was one version ago; see `--compatibility`.
pub const PREVIOUS: u32 = BASE;

/// The lowest format that knows everything in `action`.
#[must_use]
pub fn required(action: &Action) -> u32 {
    match action {
        Action::ApplyResources(ApplyResources { preconditions, origin, takes_over, resources_format, .. }) => {
            let base = if preconditions.is_empty() { BASE } else { PRECONDITIONS };
            let ownership = if origin.is_empty() && !takes_over { BASE } else { PORTS };
            // Even to say that a format is needed is a word of format 4.
            let content = if *resources_format == 0 { BASE } else { PORTS.max(*resources_format) };
            base.max(ownership).max(content)
        }
        Action::ReportExports(report) if report.services.iter().any(is_of_ports) => PORTS,
        Action::RaiseRestoreEpoch(_) => PRECONDITIONS,
        Action::RevokeIdentity(_) => REVOCATIONS,
        Action::PutMember(_) | Action::RetireMember(_) => MEMBERS,
        // An older member must stop at it.
        Action::RaiseFormat(RaiseFormat { format_version }) => (*format_version).max(BASE),
        Action::CaInit(CaInit { founded_format, .. }) => (*founded_format).max(BASE),
        Action::ReportExports(_)
        | Action::RegisterGateway(_)
        | Action::TokenCreate(_)
        | Action::TokenConsume(_)
        | Action::RecordIssued(_) => BASE,
    }
}

/// What goes into [`ApplyResources::resources_format`]: the lowest format whose members can read `resources`, 0 when all can.
/// A kind or a field that older members do not know must be named here.
pub fn of_resources<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> u32 {
    let of = |resource: &Resource| match resource {
        Resource::Cluster(cluster) if cluster.spec.policies => PORTS,
        Resource::BackendPolicy(_) => BACKEND_POLICIES,
        Resource::Cluster(_) | Resource::ServiceExport(_) | Resource::TrafficSplit(_) | Resource::FailoverPolicy(_) => {
            0
        }
    };
    resources.into_iter().map(of).max().unwrap_or(0)
}

/// As much of a report as the agreed format can hold: before several ports, the first one of each service.
#[must_use]
pub fn fitting(agreed: u32, services: &[ReportedService]) -> Cow<'_, [ReportedService]> {
    if agreed >= PORTS || !services.iter().any(is_of_ports) {
        return Cow::Borrowed(services);
    }
    let fit = |service: &ReportedService| ReportedService {
        port_name: String::new(),
        app_protocol: String::new(),
        more_ports: Vec::new(),
        export: None,
        ..service.clone()
    };
    Cow::Owned(services.iter().map(fit).collect())
}

fn is_of_ports(service: &ReportedService) -> bool {
    let ReportedService { port_name, app_protocol, more_ports, export, .. } = service;
    !port_name.is_empty() || !app_protocol.is_empty() || !more_ports.is_empty() || export.is_some()
}

/// Whether `action` may be proposed while the federation's format is `agreed`: it raises it, or needs no more.
#[must_use]
pub fn permits(agreed: u32, action: &Action) -> bool {
    matches!(action, Action::RaiseFormat(_) | Action::CaInit(_)) || required(action) <= agreed
}

/// What an operator asked for when `action` is refused for its format.
#[must_use]
pub fn feature(action: &Action) -> &'static str {
    match action {
        Action::ApplyResources(ApplyResources { resources_format, .. }) if *resources_format >= BACKEND_POLICIES => {
            "a BackendPolicy"
        }
        Action::ApplyResources(ApplyResources { resources_format, .. }) if *resources_format > 0 => {
            "a Cluster that may write policies (`policies: true`)"
        }
        Action::ApplyResources(ApplyResources { origin, takes_over, .. }) if !origin.is_empty() || *takes_over => {
            "a policy that is written in a cluster"
        }
        Action::ApplyResources(ApplyResources { preconditions, .. }) if !preconditions.is_empty() => {
            "a write with preconditions"
        }
        Action::RaiseRestoreEpoch(_) => "raising the restore epoch",
        Action::RevokeIdentity(_) => "revoking an identity",
        Action::PutMember(_) => "adding a member of the control plane",
        Action::RetireMember(_) => "taking a member of the control plane out",
        _ => "this write",
    }
}
