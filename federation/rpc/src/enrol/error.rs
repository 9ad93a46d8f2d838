//! Why a process has no SVID, split by what it may do next.

use std::{io, path::PathBuf};

use archipelago_base::error::chain;
use archipelago_identity::{CredentialError, tls::IdentityError};
use tonic::{Code, Status};

use crate::grpc::ConnectError;

/// Why a process has no SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// No member of the control plane could be reached, or none showed an acceptable identity.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stored credential cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A certificate is not acceptable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Making a key or a CSR failed.
    #[error("a key could not be made")]
    Key(#[from] rcgen::Error),
    /// The token text is damaged.
    #[error("this is not a join token: {what}")]
    MalformedToken {
        /// What is wrong with it.
        what: String,
    },
    /// The join configuration is damaged.
    #[error(
        "this is not a join configuration: {what}\nhint: it is one JSON object with controlPlane, trustDomain, cluster and caSha256"
    )]
    MalformedConfig {
        /// What is wrong with it.
        what: String,
    },
    /// Neither a stored credential nor a token.
    #[error("no identity yet: give a join token (meshctl token create)")]
    NoCredential,
    /// The control plane, or the agent of the cluster that it asked, does not take the ServiceAccount token.
    #[error("the ServiceAccount token was not accepted: {0}")]
    NotVouchedFor(String),
    /// The control plane said no, in its words.
    #[error("the control plane refused: {0}")]
    Refused(String),
    /// The ServiceAccount token cannot be read.
    #[error("cannot read the ServiceAccount token in {}", path.display())]
    ServiceAccountToken {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control plane cannot answer now.
    #[error("the control plane cannot answer now: {0}")]
    Unavailable(String),
}

impl EnrolError {
    pub(super) fn from_status(status: Status) -> Self {
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Aborted
            | Code::Cancelled
            | Code::ResourceExhausted => Self::Unavailable(chain(&status)),
            _ => Self::Refused(status.message().to_owned()),
        }
    }

    /// Whether the same attempt may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(error) => !error.is_identity_refusal(),
            // The token is rotated, and what its cluster may say can be put right there.
            Self::Unavailable(_) | Self::NotVouchedFor(_) | Self::ServiceAccountToken { .. } => true,
            _ => false,
        }
    }
}
