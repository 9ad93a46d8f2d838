//! Messages and services of Archipelago, as `tonic` and `prost` generate them from the `.proto` files beside this crate's manifest.
//!
//! Nothing but generated types lives here; conversion to domain types lives with whoever uses them.

/// Package `archipelago.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto files carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("archipelago.v1");
}

/// What control-plane members write to their log and disks, apart from the public API.
pub mod log {
    /// Package `archipelago.log.v1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code; the .proto file carries the documentation"
    )]
    pub mod v1 {
        tonic::include_proto!("archipelago.log.v1");
    }
}
