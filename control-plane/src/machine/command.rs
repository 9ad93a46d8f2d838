//! The vocabulary of the log, and how an entry is read: whole, or not at all.

use archipelago_proto::log::v1::Envelope;
pub use archipelago_proto::log::v1::{
    Applied, ApplyResources, CaInit, Change, ChangeKind, Command, Conflict, Consumed, ControlPlaneMember, Done,
    ExportFacts, ExportType, GatewayAddresses, IssuedRecord, Outcome, OwnedResource, Precondition, Protocol, PutMember,
    RaiseFormat, RaiseRestoreEpoch, RecordIssued, RefusalCode, Refused, RegisterGateway, ReportExports, ReportedPort,
    ReportedService, ResourceKey, ResourceWrite, RetireMember, RevokeIdentity, Role, Sealed, TokenConsume, TokenCreate,
    UncarriedPort, WrappedKey, command::Action, outcome::Answer, precondition::Expect,
};
use prost::Message;

/// Reads an entry of the log that this version, which knows formats up to `supported`, understands completely.
///
/// # Errors
/// Anything in it is unknown here: its format, its action, or a single field. Skipping that would make this member's state
/// another one than that of the members who know it.
pub(crate) fn decode(bytes: &[u8], supported: u32) -> Result<Command, UnknownEntry> {
    let Envelope { format_version } = Envelope::decode(bytes).map_err(|_| UnknownEntry::Foreign)?;
    if format_version == 0 {
        return Err(UnknownEntry::Foreign);
    }
    if format_version > supported {
        return Err(UnknownEntry::Format { format_version, supported });
    }
    let command = Command::decode(bytes).map_err(UnknownEntry::Shape)?;
    if command.action.is_none() {
        return Err(UnknownEntry::Action);
    }
    // Unknown fields are dropped in decoding, at whatever depth they are: what is left is shorter than what came.
    if command.encoded_len() != bytes.len() {
        return Err(UnknownEntry::Field);
    }
    Ok(command)
}

/// Why an entry cannot be applied by this version.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnknownEntry {
    /// From before formats, or no entry at all.
    #[error(
        "the entry is none of this log: it was written by a version from before log formats, which cannot be upgraded"
    )]
    Foreign,
    #[error(
        "the entry is of format {format_version}, this version knows formats up to {supported}: run a newer version"
    )]
    Format { format_version: u32, supported: u32 },
    #[error("the entry cannot be read: {0}")]
    Shape(prost::DecodeError),
    #[error("the entry holds an action that this version does not know: run a newer version")]
    Action,
    #[error("the entry holds a field that this version does not know: run a newer version")]
    Field,
}

/// Word for a role in SPIFFE paths and messages.
pub(crate) fn role_name(role: i32) -> &'static str {
    match Role::try_from(role) {
        Ok(Role::Agent) => "agent",
        Ok(Role::Gateway) => "gateway",
        Ok(Role::Unspecified) | Err(_) => "unspecified",
    }
}
