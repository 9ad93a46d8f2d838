//! Words and status codes for what the state machine refused: it says only codes and parameters.

use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    consensus::CommitError,
    machine::command::{Answer, Conflict, Outcome, OwnedResource, RefusalCode, Refused, ResourceKey},
};

/// A refusal as the status that tells the caller what to do next.
pub(crate) fn status(refused: &Refused) -> Status {
    let code = match refused.code() {
        RefusalCode::Malformed | RefusalCode::Unspecified => Code::InvalidArgument,
        RefusalCode::ResourceNotFound | RefusalCode::ClusterDeleted => Code::NotFound,
        RefusalCode::RequestIdReused | RefusalCode::OtherAuthority | RefusalCode::TokenExists => Code::AlreadyExists,
        RefusalCode::AdmissionStale | RefusalCode::Precondition | RefusalCode::MemberId => Code::Aborted,
        RefusalCode::TokenUnknown => Code::Unauthenticated,
        RefusalCode::TokenUsed | RefusalCode::TokenExpired => Code::PermissionDenied,
        RefusalCode::OtherOrigin => Code::FailedPrecondition,
        RefusalCode::ResourcesFull
        | RefusalCode::ServicesFull
        | RefusalCode::GatewaysFull
        | RefusalCode::TokensFull
        | RefusalCode::ReportTooLarge
        | RefusalCode::RegistrationTooLarge
        | RefusalCode::PoliciesFull
        | RefusalCode::RevocationsFull
        | RefusalCode::MembersFull => Code::ResourceExhausted,
    };
    let word = refused.code().as_str_name();
    coded(Status::new(code, text(refused)), word.strip_prefix("REFUSAL_CODE_").unwrap_or(word))
}

/// A status that also names its reason by a word that never changes, for clients that must tell reasons apart.
pub(crate) fn coded(mut status: Status, word: &'static str) -> Status {
    status.metadata_mut().insert(CODE_KEY, MetadataValue::from_static(word));
    status
}

/// The answer of an outcome, refusals as a status.
pub(crate) fn answer(outcome: Outcome) -> Result<(u64, Answer), Status> {
    match outcome.answer {
        Some(Answer::Refused(refused)) => Err(status(&refused)),
        Some(answer) => Ok((outcome.revision, answer)),
        None => Err(CommitError::Incompatible.into()),
    }
}

/// A refusal as lines for an operator.
pub(crate) fn text(refused: &Refused) -> String {
    let Refused { subject, bound, at_unix_ms, conflicts, missing, owned, .. } = refused;
    let at = utc(*at_unix_ms);
    match refused.code() {
        RefusalCode::Unspecified => "refused for a reason that this version does not know".to_owned(),
        RefusalCode::Malformed if *bound > 0 => format!("a request id is at most {bound} bytes"),
        RefusalCode::Malformed => "the command lacks what it must have".to_owned(),
        RefusalCode::RequestIdReused => format!("request id {subject:?} was already used for a different request"),
        RefusalCode::ResourceNotFound => lines(missing.iter().map(|key| format!("{} does not exist", name(key)))),
        RefusalCode::AdmissionStale => "resources changed while these were judged, try again".to_owned(),
        RefusalCode::Precondition => lines(conflicts.iter().map(conflict)),
        RefusalCode::ClusterDeleted => format!("cluster {subject} was deleted at {at}"),
        RefusalCode::OtherAuthority => "this federation already has another authority".to_owned(),
        RefusalCode::TokenExists => "a token with this secret exists".to_owned(),
        RefusalCode::TokenUnknown => "this join token is unknown here".to_owned(),
        RefusalCode::TokenUsed => format!("this join token was already used by {subject} at {at}"),
        RefusalCode::TokenExpired => format!("this join token expired at {at}"),
        RefusalCode::ResourcesFull => format!("a federation holds at most {bound} resources"),
        RefusalCode::ServicesFull => format!("cluster {subject} reports more than {bound} services"),
        RefusalCode::GatewaysFull if subject.is_empty() => format!("a federation holds at most {bound} gateways"),
        RefusalCode::GatewaysFull => format!("cluster {subject} has {bound} gateways, which is the most it may have"),
        RefusalCode::TokensFull => format!("at most {bound} tokens are kept"),
        RefusalCode::ReportTooLarge => format!("the report of cluster {subject} is larger than {bound} bytes"),
        RefusalCode::RevocationsFull => format!("at most {bound} revoked identities are kept"),
        RefusalCode::PoliciesFull => format!("cluster {subject} has {bound} policies, which is the most it may have"),
        RefusalCode::MemberId => "another member was added meanwhile; `meshctl member list` shows it".to_owned(),
        RefusalCode::MembersFull => {
            format!("a control plane has at most {bound} members; `meshctl member remove` one first")
        }
        RefusalCode::OtherOrigin => lines(owned.iter().map(owner)),
        RefusalCode::RegistrationTooLarge => {
            format!("what gateway {subject} says of itself is larger than {bound} bytes")
        }
    }
}

fn conflict(conflict: &Conflict) -> String {
    let key = conflict.key.as_ref().map(name).unwrap_or_default();
    match conflict.current_revision {
        0 => format!("{key} does not exist any more"),
        revision => format!("{key} was changed by somebody else, at revision {revision}"),
    }
}

/// Who wrote a resource, and what to do about it.
pub(crate) fn owner(owned: &OwnedResource) -> String {
    let key = owned.key.as_ref().map(name).unwrap_or_default();
    match owned.origin.as_str() {
        "" => format!("{key} was written by an operator: change it with meshctl, or delete it there first"),
        cluster => format!("{key} was written in cluster {cluster}: change it there, or delete it there first"),
    }
}

fn name(key: &ResourceKey) -> String {
    crate::machine::Key::from(key.clone()).to_string()
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// RFC 3339 text of a Unix time in milliseconds.
fn utc(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| format!("{unix_ms} ms"), |at| at.to_string())
}

/// Metadata of an error: `TOKEN_EXPIRED`, `NO_LEADER` and the like.
const CODE_KEY: &str = "archipelago-code";
