//! From feeds to what the rest of the agent is told: waits for changes, gathers what comes at once, publishes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_agent::{catalog::Catalog, provider::Nodes};
use tokio::{
    sync::watch,
    time::{interval, sleep},
};

use crate::{
    crd::ServiceExport,
    discovery::{Discovery, Exports, Sources},
    mcs,
    types::{EndpointSlice, Node, Pod, Service},
    watch::Feed,
    workloads::{FRESH_TIME_MAX, Roster},
};

/// What the catalog is made of.
pub(crate) struct Offered {
    pub(crate) services: Feed<Service>,
    pub(crate) slices: Feed<EndpointSlice>,
    pub(crate) pods: Feed<Pod>,
    pub(crate) exports: Feed<ServiceExport>,
}

/// Keeps the catalog in step with the cluster. Until everything has been read once, the one of the last run stays.
pub(crate) async fn catalog(feeds: Offered, catalog: watch::Sender<Arc<Catalog>>) {
    let Offered { services, slices, pods, exports } = feeds;
    tokio::join!(services.complete(), slices.complete(), exports.complete(), complete_or_forbidden(&pods));
    let mut discovery = Discovery::default();
    // Made anew only when they may have changed: endpoints come and go far more often.
    let mut exported = (exports.now(), services.now(), Exports::default());
    exported.2 = mcs::exports(&exported.0.objects, &exported.1.objects, &exported.2);
    let (mut changed_services, mut changed_slices) = (services.index(), slices.index());
    let (mut changed_pods, mut changed_exports) = (pods.index(), exports.index());
    loop {
        let began = Instant::now();
        let now = (exports.now(), services.now());
        if !now.0.objects.ptr_eq(&exported.0.objects) || !now.1.objects.ptr_eq(&exported.1.objects) {
            let fresh = mcs::exports(&now.0.objects, &now.1.objects, &exported.2);
            exported = (now.0, now.1, fresh);
        }
        let sources = Sources {
            services: exported.1.objects.clone(),
            slices: slices.now().objects,
            pods: pods.now().objects,
            exports: exported.2.clone(),
        };
        let found = discovery.update(sources);
        catalog.send_if_modified(|current| {
            let is_same = current.read && (current.services.ptr_eq(&found) || current.services == found);
            if !is_same {
                tracing::debug!(services = found.len(), "the catalog changed");
                *current = Arc::new(Catalog { services: found, read: true });
            }
            !is_same
        });
        let changed = tokio::select! {
            changed = changed_services.changed() => changed,
            changed = changed_slices.changed() => changed,
            changed = changed_pods.changed() => changed,
            changed = changed_exports.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        // A single change goes out at once. Where many come, a round costs what changed, and not half of the time is spent on it.
        sleep(began.elapsed().min(GATHER_MAX)).await;
    }
}

/// Keeps the lists of who runs where in step with the cluster, and says when they are too old to be believed.
pub(crate) async fn workloads(pods: Feed<Pod>, nodes: Feed<Node>, lists: watch::Sender<Nodes>) {
    pods.complete().await;
    let mut roster = Roster::default();
    let (mut changed_pods, mut changed_nodes) = (pods.index(), nodes.index());
    let mut look = interval(LOOK_INTERVAL);
    loop {
        let fresh = pods.age().is_some_and(|age| age < FRESH_TIME_MAX);
        changed_pods.mark_unchanged();
        changed_nodes.mark_unchanged();
        let now = roster.update(pods.now().objects, nodes.now().objects, fresh);
        lists.send_if_modified(|current| {
            let changed = !current.ptr_eq(&now) && *current != now;
            if changed {
                *current = now;
            }
            changed
        });
        let changed = tokio::select! {
            changed = changed_pods.changed() => changed,
            changed = changed_nodes.changed() => changed,
            _ = look.tick() => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Without pods there are services without versions; that is better than none.
async fn complete_or_forbidden(pods: &Feed<Pod>) {
    let forbidden = async {
        let mut look = interval(LOOK_INTERVAL);
        loop {
            look.tick().await;
            if pods.failure().is_some_and(|failure| failure.is_forbidden()) {
                return;
            }
        }
    };
    tokio::select! {
        () = pods.complete() => {}
        () = forbidden => {}
    }
}

const GATHER_MAX: Duration = Duration::from_millis(250);
/// How late a view that is too old may be noticed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
