//! HTTP/2 (RFC 9113): [`server`] towards clients by hyper, [`client`] towards endpoints by h2.

pub mod client;
pub mod download;
pub mod open;
pub mod server;
pub mod switch;
