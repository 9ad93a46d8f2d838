//! The certificate authority of a federation: a root, an issuing certificate under it, and SVIDs.
//!
//! Keys live in the replicated state only sealed: a random data key encrypts them, and each member's own seal key
//! (a file of that member, mode 0600) encrypts the data key. Any member that can unseal may issue; none must, and
//! leadership never depends on it.

mod genesis;
mod issue;
mod seal;
#[cfg(test)]
mod tests;

pub(crate) use self::issue::share;
pub use self::{
    genesis::{Genesis, found},
    issue::{Authority, CaError, CertificateRequest, Issued},
    seal::{SealError, SealKey},
};
