//! What each cluster's gateways should run at the applied revision, compiled once per revision and cluster.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use archipelago_model::compile::{FederationState, compile};
use archipelago_proto::v1::ConfigResource;

use crate::consensus::Consensus;

/// The configuration of one cluster's gateways at one revision.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Compiled {
    /// Global revision it was compiled from.
    pub(crate) revision: u64,
    /// By resource name.
    pub(crate) resources: BTreeMap<String, ConfigResource>,
}

/// Compiles on demand and remembers the newest revision.
#[derive(Debug)]
pub(crate) struct Compiler {
    consensus: Arc<Consensus>,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    revision: u64,
    federation: Option<Arc<FederationState>>,
    clusters: BTreeMap<String, Arc<Compiled>>,
}

impl Compiler {
    pub(crate) fn new(consensus: Arc<Consensus>) -> Self {
        Self { consensus, cache: Mutex::default() }
    }

    /// The newest configuration of `cluster`.
    pub(crate) fn compiled(&self, cluster: &str) -> Arc<Compiled> {
        // Held while compiling: a hundred streams of one cluster that wake together want one compilation.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let federation = self.refresh(&mut cache);
        if let Some(compiled) = cache.clusters.get(cluster) {
            return Arc::clone(compiled);
        }
        let compiled = Arc::new(Compiled { revision: cache.revision, resources: compile(&federation, cluster) });
        cache.clusters.insert(cluster.to_owned(), Arc::clone(&compiled));
        compiled
    }

    /// The federation as the compiler sees it, with its revision.
    pub(crate) fn federation(&self) -> (u64, Arc<FederationState>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let federation = self.refresh(&mut cache);
        (cache.revision, federation)
    }

    fn refresh(&self, cache: &mut Cache) -> Arc<FederationState> {
        let stale = cache.federation.is_none() || cache.revision != self.consensus.published.revision();
        if let Some(federation) = cache.federation.as_ref().filter(|_| !stale) {
            return Arc::clone(federation);
        }
        let (version, federation) = self.consensus.federation();
        let federation = Arc::new(federation);
        let revision = version.revision;
        *cache = Cache { revision, federation: Some(Arc::clone(&federation)), clusters: BTreeMap::new() };
        federation
    }
}
