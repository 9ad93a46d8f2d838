//! The data plane: listeners, routing, balancing, replay, DNS and telemetry of one gateway.

pub mod balance;
pub mod config;
pub mod dns;
pub mod proxy;
pub mod route;
