//! What real peers, and scripted ones that break the rules, get from gateways: any body through any pair of protocols.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod bodies;
mod grpc;
mod h2;
#[path = "../harness/mod.rs"]
mod harness;
mod limits;
mod otlp;
mod programs;
mod tls;
mod tools;
mod websocket;
