//! Formats of the log: what each brought, and which one an action needs.
//!
//! The state holds the format that the federation has agreed on, and only entries up to it may be proposed. It rises when
//! every member supports more ([`Action::RaiseFormat`]), so that an upgrade can go member by member and back again until then.

use super::command::{Action, ApplyResources, CaInit, RaiseFormat};

/// What every log begins with.
pub const BASE: u32 = 1;
/// Brings preconditions of clients and `RaiseRestoreEpoch`.
pub const PRECONDITIONS: u32 = 2;
/// Brings revoked identities, and the list of operators.
pub const REVOCATIONS: u32 = 3;
/// The newest format that this version knows.
pub const CURRENT: u32 = REVOCATIONS;
/// What [`CURRENT`] was one version ago; see `--compatibility`.
pub const PREVIOUS: u32 = BASE;

/// The lowest format that knows everything in `action`.
#[must_use]
pub fn required(action: &Action) -> u32 {
    match action {
        Action::ApplyResources(ApplyResources { preconditions, .. }) if !preconditions.is_empty() => PRECONDITIONS,
        Action::RaiseRestoreEpoch(_) => PRECONDITIONS,
        Action::RevokeIdentity(_) => REVOCATIONS,
        // An older member must stop at it.
        Action::RaiseFormat(RaiseFormat { format_version }) => (*format_version).max(BASE),
        Action::CaInit(CaInit { founded_format, .. }) => (*founded_format).max(BASE),
        // A kind of resource that older members do not know must name its format here.
        Action::ApplyResources(_)
        | Action::ReportExports(_)
        | Action::RegisterGateway(_)
        | Action::TokenCreate(_)
        | Action::TokenConsume(_)
        | Action::RecordIssued(_) => BASE,
    }
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
        Action::ApplyResources(ApplyResources { preconditions, .. }) if !preconditions.is_empty() => {
            "a write with preconditions"
        }
        Action::RaiseRestoreEpoch(_) => "raising the restore epoch",
        Action::RevokeIdentity(_) => "revoking an identity",
        _ => "this write",
    }
}
