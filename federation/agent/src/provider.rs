//! Where an agent learns what its cluster has to offer.
//!
//! A [`Provider`] follows one source and publishes complete pictures of it, in the words of [`crate::catalog`] and not in
//! its own: everything behind the catalog (checks, gateways, control plane, the state on disk) is the same for all of
//! them. To add a kind of provider, implement the trait in a crate of its own and let the agent's binary depend on it; the
//! control plane, the gateway and `meshctl` never do.
//!
//! A source that is an orchestrator has more to say and to hear than services: see [`Link`]. A provider uses what it has a
//! use for; the rest of a link stays as it is.

pub mod file;
mod workload;

use std::{collections::BTreeMap, sync::Arc};

use archipelago_base::shutdown::Shutdown;
use archipelago_model::id::ServiceKey;
use archipelago_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::workload::{Addresses, Nodes, Uid, Workload, Workloads};
use crate::catalog::Catalog;

/// A source of services and endpoints.
pub trait Provider: Send + 'static {
    /// What it is called in logs: `files`.
    fn name(&self) -> &'static str;

    /// Several replicas share this agent's identity; only the one that leads talks to the control plane. See [`Link::leading`].
    fn is_replicated(&self) -> bool {
        false
    }

    /// Where the identity survives the process; `None`: in its state directory, and nowhere else.
    fn identity_store(&self) -> Option<Arc<dyn IdentityStore>> {
        None
    }

    /// Follows the source until `shutdown`, publishing every change of it.
    ///
    /// `link.catalog` holds the last good state of the run before, with `read: false`. A provider replaces it by what it finds
    /// once it has looked at everything, and keeps what it knows of whatever cannot be read: absence must be seen, silence
    /// is none.
    fn follow(self, link: Link, shutdown: Shutdown) -> impl Future<Output = ()> + Send;
}

/// A place that outlives the process and is shared by the replicas of an agent.
#[tonic::async_trait]
pub trait IdentityStore: Send + Sync {
    /// What was stored last; `None`: nothing yet.
    async fn load(&self) -> anyhow::Result<Option<Vec<u8>>>;
    /// Replaces what is there. The bytes are a private key and its certificates.
    async fn store(&self, identity: &[u8]) -> anyhow::Result<()>;
}

/// What runs between a provider and the rest of the agent. Each part is a `watch`: the latest counts, whoever is slow misses
/// what came in between.
#[derive(Debug)]
pub struct Link {
    /// Cluster that the agent speaks for.
    pub cluster: String,
    /// Trust domain of its identity.
    pub trust_domain: String,

    /// Services and endpoints, for the gateways and the control plane.
    pub catalog: watch::Sender<Arc<Catalog>>,
    /// Where clients find the federation's services at each gateway of this cluster. Until the first is sent, gateways keep what
    /// they had; so it is with `workloads`.
    pub captures: watch::Sender<Arc<v1::Captures>>,
    /// Who runs on which node. Of a node that is not in it, nothing is known.
    pub workloads: watch::Sender<Nodes>,
    /// Policies that the cluster's users wrote there; `None` until all have been read, and without a say in policies.
    pub policies: watch::Sender<Option<Arc<v1::AgentPolicies>>>,
    /// `Some` while this replica leads: the number of its term, above every earlier one. At first `Some` for a provider that is
    /// not replicated, `None` for one that is.
    pub leading: watch::Sender<Option<u64>>,

    /// What the federation exports; `None` until the control plane has said.
    pub imports: watch::Receiver<Option<Arc<Imports>>>,
    /// What became of `policies`.
    pub statuses: watch::Receiver<Arc<Vec<v1::PolicyStatus>>>,
    /// Questions whether somebody is a gateway of this cluster. Dropped without an answer is no.
    pub reviews: mpsc::Receiver<Review>,
}

impl Link {
    /// For a provider that knows services and nothing else: hangs up whatever else there is to hear or say, so that the control
    /// plane need not send it.
    #[must_use]
    pub fn into_catalog(self) -> watch::Sender<Arc<Catalog>> {
        self.catalog
    }
}

/// What the federation exports, by service.
pub type Imports = BTreeMap<ServiceKey, v1::Import>;

/// Is the holder of this token a gateway of this cluster?
pub struct Review {
    /// A ServiceAccount token. Never to be logged.
    pub token: String,
    /// Audience that it must have been issued for.
    pub audience: String,
    /// The node that the gateway runs on, or why not.
    pub answer: oneshot::Sender<Result<String, String>>,
}

impl std::fmt::Debug for Review {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Review").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// Reviews that wait for a provider; more are refused.
pub(crate) const REVIEWS_QUEUED_MAX: usize = 16;
