//! What a page asks for, and what it is answered, beside the state.
#![expect(missing_docs, reason = "the contract says what each field is")]

use serde::{Deserialize, Serialize};

use crate::state::{Lagging, Rejected};

/// The secret of a link.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// As it stands behind `#`.
    pub secret: String,
}

/// Who looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Me {
    pub identity: String,
    pub name: String,
    pub role: Role,
    pub expires_unix_ms: i64,
    pub member: u64,
    pub federation: String,
}

/// What a session may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See and change.
    Operator,
    /// See.
    Reader,
}

/// The last word of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bye {
    pub reason: End,
    pub message: String,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// By its own wish, or for newer ones of the same operator.
    SignedOut,
    /// Its time is over, or that of the certificate behind it.
    Expired,
    /// The identity behind it was revoked.
    Revoked,
    /// The member shuts down.
    Stopping,
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub error: String,
    pub hint: Option<String>,
    pub problems: Vec<String>,
}

/// What a change would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub command: String,
    pub changes: Vec<Change>,
    pub before: serde_json::Value,
    pub after: serde_json::Value,
    pub warnings: Vec<String>,
    pub revision: u64,
    pub basis: String,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    pub revision: u64,
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
    pub commit_micros: u64,
    pub applied: Applied,
}

/// A resource that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub what: String,
}

/// How many gateways have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    pub expected: u32,
    pub acknowledged: u32,
    pub first_ack_micros: Option<u64>,
    pub last_ack_micros: Option<u64>,
    pub lagging: Vec<Lagging>,
    pub rejected: Vec<Rejected>,
}
