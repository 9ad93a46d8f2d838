//! Where configuration comes from: the control plane, the cluster's agent, the disk. Never on the data path.
//!
//! [`apply`] is the one task that builds and publishes snapshots; [`stream`] and [`discovery`] feed it.

pub mod apply;
pub mod discovery;
pub mod questions;
pub mod status;
pub mod stream;
