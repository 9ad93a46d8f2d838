//! How the processes of a federation call each other, and how they come by the identity that takes.
//!
//! - [`server`]: a port that anybody may knock at.
//! - [`grpc`]: who called, and channels to a server of a known identity.
//! - [`resolve`]: names of hosts, without the C library.
//! - [`enrol`]: join tokens, the first SVID, renewal, and the way back after it ran out.
//! - [`wall_clock`]: waiting for moments that certificates name.

pub mod enrol;
pub mod grpc;
pub mod resolve;
pub mod server;
pub mod wall_clock;
