//! Where an agent learns what its cluster has to offer.
//!
//! A [`Provider`] follows one source and publishes complete pictures of it, in the words of [`crate::catalog`] and not in
//! its own: everything behind the catalog (checks, gateways, control plane, the state on disk) is the same for all of
//! them. To add a kind of provider, implement the trait in a crate of its own and let the agent's binary depend on it; the
//! control plane, the gateway and `meshctl` never do.

pub mod file;

use std::sync::Arc;

use archipelago_base::shutdown::Shutdown;
use tokio::sync::watch;

use crate::catalog::Catalog;

/// A source of services and endpoints.
pub trait Provider: Send + 'static {
    /// What it is called in logs: `files`.
    fn name(&self) -> &'static str;

    /// Follows the source until `shutdown`, publishing every change of it.
    ///
    /// `catalog` holds the last good state of the run before, with `read: false`. A provider replaces it by what it finds
    /// once it has looked at everything, and keeps what it knows of whatever cannot be read: absence must be seen, silence
    /// is none.
    fn follow(self, catalog: watch::Sender<Arc<Catalog>>, shutdown: Shutdown) -> impl Future<Output = ()> + Send;
}
