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

pub use self::{
    genesis::{Genesis, found},
    issue::{Authority, CaError, CertificateRequest, Issued},
    seal::{SealError, SealKey},
};

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
