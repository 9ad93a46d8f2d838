//! SPIFFE identities: who every process of a federation is, and how two of them prove it to each other.
//!
//! - [`SpiffeId`], [`TrustDomain`] and [`MeshRole`]: names (SPIFFE-ID specification).
//! - [`Credential`], [`LiveCredential`], [`CredentialDir`]: an X.509-SVID with its key and trust bundle, in memory and on disk.
//! - [`revocation`]: certificates that are refused before they run out.
//! - [`pem`]: keys and certificates as text.
//! - [`proof`]: possession of a key shown outside of a handshake.
//! - [`tls`]: rustls configurations that verify the other side's SPIFFE id against the bundle, and follow renewals.
//!
//! Calls over these connections, enrolment and renewal are `archipelago-rpc`'s; issuing certificates is the control plane's.

pub mod pem;
pub mod proof;
pub mod revocation;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;

mod credential;
mod spiffe;
mod verifier;

pub use credential::{Credential, CredentialDir, CredentialError, LiveCredential};
pub use spiffe::{MeshRole, SpiffeId, SpiffeIdError, TrustDomain};
