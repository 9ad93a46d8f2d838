//! The message model of the gateway, and HTTP/1.1 (RFC 9112) on it, without I/O.
//!
//! A head is a [`RequestHead`] or a [`ResponseHead`], whatever protocol it came by and whatever it leaves by. Its fields are
//! spans into one text ([`Fields`]), in the order in which they came, and both are reused from message to message: in the steady
//! state a head costs no allocation. Where a message ends is never a field but a [`Framing`](h1::Framing), and whom it is for never a `Host` field but the
//! authority, so that no two parts of the gateway can read either of them differently.
//!
//! [`h1`] turns bytes into heads and bodies and back. Requests are read strictly, responses as far as RFC 9112 lets a proxy.

pub mod h1;

mod convert;
mod fields;
mod head;
mod hop;
mod name;
mod pool;
mod text;

pub use convert::NotHttp;
pub use fields::{Fields, InvalidField};
pub use head::{RequestHead, ResponseHead, Scheme};
pub use name::{Known, Name};
pub use pool::{Pooled, Reusable};
