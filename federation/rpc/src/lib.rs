//! How the processes of a federation call each other, and how they come by the identity that takes.
//!
//! - [`grpc`]: tonic servers and clients over mutual TLS.
//! - [`enrol`]: join tokens, the first SVID, and renewal.

pub mod enrol;
pub mod grpc;
