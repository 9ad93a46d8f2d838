//! A cluster's services, workloads and policies, as its Kubernetes API server knows them.
//!
//! ```text
//! API server ─► watch: one list-watch per kind ─► Feed: an index of slim objects ─┬─► discovery ─► Catalog
//!                                                                                 ├─► workloads ─► pod IP → identity, per node
//!                                                                                 └─► mcs, policy
//! ```
//!
//! [`types`] say what is kept of an object, [`watch`] keeps a whole kind, [`client`] is how the API server is spoken to.
//! What is made of the indexes is a pure function of them. An index is replaced only by a complete one and stays as it is
//! while the API server is away; how old it is is its [`watch::Feed`]'s to say. Of several replicas one leads ([`lease`]); only
//! that one writes to the cluster and talks to the control plane. What is to be written is decided without I/O ([`mcs::plan`],
//! [`policy`]) and written by [`apply`]; [`crd`] are the kinds that Kubernetes itself does not have.

pub mod apply;
pub mod client;
pub mod crd;
pub mod discovery;
mod follow;
pub mod lease;
pub mod mcs;
pub mod policy;
mod provider;
pub mod review;
pub mod secret;
pub mod types;
pub mod watch;
pub mod workloads;

pub use self::provider::{Flags, Kubernetes};
