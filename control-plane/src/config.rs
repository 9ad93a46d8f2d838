//! What each cluster's gateways should run, compiled beside the runtime, once for all sessions that want the same.
//!
//! One task follows the applied state. Each round takes a copy of it, which costs nothing, finds what changed since the last
//! round, compiles that alone ([`incremental`]) on a thread that may block, and hands every session the result. Rounds that
//! change nothing for a cluster share the resources of the last one.

mod incremental;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use archipelago_model::{
    compile::FederationState,
    stream::{Compiled, Lack, suit},
    version::Version,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use self::incremental::ImportTable;
use self::incremental::Incremental;
use crate::consensus::Consensus;

/// What gateways of one cluster with the same features should run.
#[derive(Debug, Clone)]
pub(crate) struct Suited {
    pub(crate) compiled: Arc<Compiled>,
    /// Resources that are not in it as they are, because those gateways lack a feature.
    pub(crate) lacks: Arc<Vec<Lack>>,
}

/// What the federation exports, as of a version.
#[derive(Debug, Clone)]
pub(crate) struct Imports {
    pub(crate) version: Version,
    pub(crate) table: ImportTable,
}

/// Compiles for whoever subscribes. Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct Compiler {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    consensus: Arc<Consensus>,
    wanted: Mutex<BTreeMap<Wanted, watch::Sender<Option<Suited>>>>,
    imports: watch::Sender<Option<Imports>>,
    /// Somebody wants what nobody wanted before.
    more: Notify,
    /// Begin of the last round trip in which a majority confirmed that this member is current.
    confirmed: tokio::sync::Mutex<Option<Instant>>,
    federation: Mutex<Option<(Version, Arc<FederationState>)>>,
}

/// Cluster and features.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    cluster: String,
    features: BTreeSet<String>,
}

impl Compiler {
    /// Starts on the current runtime.
    pub(crate) fn new(consensus: Arc<Consensus>) -> Self {
        let shared = Arc::new(Shared {
            consensus,
            wanted: Mutex::default(),
            imports: watch::Sender::new(None),
            more: Notify::new(),
            confirmed: tokio::sync::Mutex::default(),
            federation: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(work(Arc::clone(&shared), stop.clone()));
        Self { shared, _stop: stop.drop_guard() }
    }

    /// What a gateway of `cluster` with these features should run, from now on; `None` until it was compiled first.
    pub(crate) fn subscribe(&self, cluster: &str, features: BTreeSet<String>) -> watch::Receiver<Option<Suited>> {
        let wanted = Wanted { cluster: cluster.to_owned(), features };
        let receiver = self.shared.lock().entry(wanted).or_insert_with(|| watch::Sender::new(None)).subscribe();
        if receiver.borrow().is_none() {
            self.shared.more.notify_one();
        }
        receiver
    }

    /// What the federation exports, from now on; `None` until it was looked at first.
    pub(crate) fn imports(&self) -> watch::Receiver<Option<Imports>> {
        let receiver = self.shared.imports.subscribe();
        if receiver.borrow().is_none() {
            self.shared.more.notify_one();
        }
        receiver
    }

    /// Resolves once a majority confirmed, in a round trip that began after this call, that this member has applied
    /// everything that was committed; to the version of its state. Tries for ever.
    ///
    /// Sessions that begin together share round trips: a member that is found by ten thousand gateways at once asks the
    /// leader twice.
    pub(crate) fn confirmation(&self) -> impl Future<Output = Version> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        let since = Instant::now();
        async move {
            loop {
                let mut confirmed = shared.confirmed.lock().await;
                let begun = Instant::now();
                if confirmed.is_none_or(|last| last < since) {
                    if let Err(error) = shared.consensus.barrier().await {
                        drop(confirmed);
                        tracing::debug!(%error, "no majority confirms this member yet");
                        sleep(CONFIRM_RETRY).await;
                        continue;
                    }
                    *confirmed = Some(begun);
                }
                return shared.consensus.state().version();
            }
        }
    }

    /// The federation as the compiler sees it, with its version.
    pub(crate) fn federation(&self) -> (Version, Arc<FederationState>) {
        let mut cached = self.shared.federation.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.shared.consensus.published.version();
        if let Some((version, federation)) = cached.as_ref().filter(|(version, _)| *version == newest) {
            return (*version, Arc::clone(federation));
        }
        let (version, federation) = self.shared.consensus.federation();
        let federation = Arc::new(federation);
        *cached = Some((version, Arc::clone(&federation)));
        (version, federation)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Wanted, watch::Sender<Option<Suited>>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn work(shared: Arc<Shared>, stop: CancellationToken) {
    let mut versions = shared.consensus.published.subscribe();
    let mut incremental = Incremental::default();
    loop {
        versions.mark_unchanged();
        let wanted: Vec<Wanted> = {
            let mut wanted = shared.lock();
            wanted.retain(|_, sender| sender.receiver_count() > 0);
            wanted.keys().cloned().collect()
        };
        let imports_wanted = !shared.imports.is_closed();
        if !imports_wanted {
            shared.imports.send_replace(None);
        }
        if !wanted.is_empty() || imports_wanted {
            let consensus = Arc::clone(&shared.consensus);
            let round = tokio::task::spawn_blocking(move || {
                let clusters = wanted.iter().map(|wanted| wanted.cluster.as_str()).collect();
                let state = consensus.state();
                incremental.follow(&state, &clusters, imports_wanted);
                let suited: Vec<(Wanted, Suited)> = wanted
                    .into_iter()
                    .filter_map(|wanted| {
                        Some((suited(incremental.compiled(&wanted.cluster)?, &wanted.features), wanted))
                    })
                    .map(|(suited, wanted)| (wanted, suited))
                    .collect();
                (incremental, suited, state.version())
            });
            let (suited, version) = match round.await {
                Ok((next, suited, version)) => {
                    incremental = next;
                    (suited, version)
                }
                Err(error) => {
                    // Begins anew: what was half done is gone with the thread.
                    tracing::error!(%error, "compiling failed");
                    incremental = Incremental::default();
                    sleep(CONFIRM_RETRY).await;
                    continue;
                }
            };
            if let Some(table) = incremental.imports() {
                shared.imports.send_replace(Some(Imports { version, table: table.clone() }));
            }
            let senders = shared.lock();
            for (wanted, suited) in suited {
                if let Some(sender) = senders.get(&wanted) {
                    sender.send_replace(Some(suited));
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = versions.changed() => if changed.is_err() { return },
            () = shared.more.notified() => {}
        }
    }
}

fn suited(compiled: Arc<Compiled>, features: &BTreeSet<String>) -> Suited {
    let (suited, lacks) = suit(&compiled, features);
    let compiled = if lacks.is_empty() { compiled } else { Arc::new(suited) };
    Suited { compiled, lacks: Arc::new(lacks) }
}

/// Between attempts, each of which waits for an election by itself.
const CONFIRM_RETRY: Duration = Duration::from_millis(200);
