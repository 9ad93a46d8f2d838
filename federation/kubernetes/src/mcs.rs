//! The Multi-Cluster Services API (KEP-1645) in one cluster.
//!
//! ```text
//! ServiceExport + Service ──► facts ──► catalog ──► control plane ──► what the federation exports
//!                                                                          │
//! ServiceImport ◄── merge ◄────────────────────────────────────────────────┘
//!      │ uid                    ▲ addresses
//!      └──► derived Service ────┘──► slices: one endpoint per node with a gateway, at a port that stands for the import's port
//!                                       └──► captures: what each gateway listens on
//! ```
//!
//! A client uses the derived Service's address as any other; kube-proxy leads it to the gateway of its own node, and there
//! the port says which service is meant. [`plan`] decides what has to be written, without I/O; [`run`] writes it on the
//! replica that leads. Every replica reads the captures off the same objects.

mod derived;
mod exports;
mod imports;
mod names;
pub mod plan;
mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_agent::provider::Imports;
use archipelago_base::shutdown::Shutdown;
use archipelago_proto::v1;
use kube::Client;
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};

use self::plan::{Controller, Plan, Seen};
pub use self::{
    derived::{Gateway, gateways},
    exports::{Verdict, exports},
};
use crate::{
    apply::{Desk, Writer},
    crd::{ServiceExport, ServiceImport},
    types::{APP, EndpointSlice, Key, Namespace, Node, Pod, Service},
    watch::Feed,
};

/// What the controller reads of the cluster.
#[derive(Debug, Clone)]
pub struct Feeds {
    /// All namespaces.
    pub namespaces: Feed<Namespace>,
    /// All nodes.
    pub nodes: Feed<Node>,
    /// All pods, or those of the installation's namespace.
    pub pods: Feed<Pod>,
    /// All Services.
    pub services: Feed<Service>,
    /// All slices.
    pub slices: Feed<EndpointSlice>,
    /// All ServiceExports.
    pub exports: Feed<ServiceExport>,
    /// All ServiceImports.
    pub service_imports: Feed<ServiceImport>,
}

/// What the controller is told once.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Name of this cluster.
    pub cluster: String,
    /// Name of the clusterset.
    pub trust_domain: String,
    /// Namespace that agents and gateways are installed in.
    pub namespace: String,
    /// What gateways may be told to listen on.
    pub capture_ports: RangeInclusive<u16>,
}

/// What connects the controller with the rest of the agent: see [`archipelago_agent::provider::Link`].
#[derive(Debug)]
pub struct Wires {
    /// What the federation exports.
    pub imports: watch::Receiver<Option<Arc<Imports>>>,
    /// Whether this replica leads; without it nothing is written.
    pub leading: watch::Receiver<Option<u64>>,
    /// Where clients find imports at the gateways.
    pub captures: watch::Sender<Arc<v1::Captures>>,
}

/// Keeps the cluster's imports in step with the federation until `shutdown`.
///
/// Nothing is decided before everything has been read once: what was not found yet is not gone.
pub async fn run(client: Client, feeds: Feeds, setup: Setup, wires: Wires, shutdown: Shutdown) {
    let mut driver = Driver::new(client, feeds, setup, wires);
    tokio::select! {
        () = driver.run() => {}
        () = shutdown.requested() => {}
    }
}

struct Driver {
    feeds: Feeds,
    setup: Setup,
    wires: Wires,
    controller: Controller,
    client: Client,
    desk: Desk,
    writer: Writer,
    term: Option<u64>,
    /// Of the last round.
    imports: Option<Arc<Imports>>,
    /// Of another term than this one: others may have exported since.
    stale: Option<Arc<Imports>>,
    /// As of the last round.
    gateways: BTreeMap<Arc<str>, Gateway>,
    foreign: BTreeSet<Key>,
    without: usize,
}

impl Driver {
    fn new(client: Client, feeds: Feeds, setup: Setup, wires: Wires) -> Self {
        let controller = Controller::new(&setup.cluster, &setup.trust_domain, setup.capture_ports.clone());
        Self {
            feeds,
            setup,
            wires,
            controller,
            desk: Desk::default(),
            writer: Writer::new(client.clone()),
            client,
            term: None,
            imports: None,
            stale: None,
            gateways: BTreeMap::new(),
            foreign: BTreeSet::new(),
            without: 0,
        }
    }

    async fn run(&mut self) {
        self.complete().await;
        let mut namespaces = self.feeds.namespaces.index();
        let mut nodes = self.feeds.nodes.index();
        let mut pods = self.feeds.pods.index();
        let mut services = self.feeds.services.index();
        let mut slices = self.feeds.slices.index();
        let mut exports = self.feeds.exports.index();
        let mut service_imports = self.feeds.service_imports.index();
        let mut leading = self.wires.leading.clone();
        let mut imports = self.wires.imports.clone();
        loop {
            let began = Instant::now();
            let again = self.round(began);
            // A change rarely comes alone, and a round costs what the cluster is large.
            let pause = (began.elapsed() * 8).clamp(ROUND_INTERVAL_MIN, ROUND_INTERVAL_MAX);
            let until = again.unwrap_or(began + LOOK_AGAIN).max(began + pause);
            loop {
                tokio::select! {
                    () = sleep_until(until.into()) => break,
                    done = self.writer.done() => self.done(&done),
                    // Of pods and nodes only the gateways matter, and most changes are of others.
                    Ok(()) = nodes.changed() => if self.gateways() == self.gateways { continue },
                    Ok(()) = pods.changed() => if self.gateways() == self.gateways { continue },
                    Ok(()) = namespaces.changed() => {}
                    Ok(()) = services.changed() => {}
                    Ok(()) = slices.changed() => {}
                    Ok(()) = exports.changed() => {}
                    Ok(()) = service_imports.changed() => {}
                    Ok(()) = leading.changed() => {}
                    Ok(()) = imports.changed() => {}
                }
                break;
            }
            // Whatever else ends or changes until then is part of the same round.
            while let Some(rest) = (began + pause).checked_duration_since(Instant::now()) {
                if let Ok(done) = timeout(rest, self.writer.done()).await {
                    self.done(&done);
                }
            }
        }
    }

    async fn complete(&self) {
        let Feeds { namespaces, nodes, pods, services, slices, exports, service_imports } = &self.feeds;
        tokio::join!(
            namespaces.complete(),
            nodes.complete(),
            pods.complete(),
            services.complete(),
            slices.complete(),
            exports.complete(),
            service_imports.complete(),
        );
    }

    /// Looks at everything once. When to look again, if nothing changes.
    fn round(&mut self, now: Instant) -> Option<Instant> {
        self.gateways = self.gateways();
        let seen = self.seen();
        let captures = plan::captures(&seen);
        self.wires.captures.send_if_modified(|current| {
            let changed = **current != captures;
            if changed {
                *current = Arc::new(captures);
            }
            changed
        });
        let term = *self.wires.leading.borrow();
        if term != self.term {
            // Another replica may have written in between, and this one's notes are of another time.
            self.term = term;
            self.stale = self.imports.take();
            self.desk = Desk::default();
            self.writer = Writer::new(self.client.clone());
            self.controller =
                Controller::new(&self.setup.cluster, &self.setup.trust_domain, self.setup.capture_ports.clone());
        }
        self.imports.clone_from(&seen.imports);
        term?;
        // What was true in another term would have deleted here what came after it.
        let is_stale = match (&seen.imports, &self.stale) {
            (Some(said), Some(stale)) => Arc::ptr_eq(said, stale),
            (Some(_) | None, _) => false,
        };
        let imports = seen.imports.clone().filter(|_| !is_stale);
        let plan = self.controller.plan(&Seen { imports, ..seen }, &timestamp(), now);
        self.report(&plan);
        let choice = self.desk.choose(plan.writes, now);
        for write in choice.now {
            tracing::debug!(object = %write.target, "writing");
            self.writer.begin(write);
        }
        choice.again
    }

    fn seen(&self) -> Seen {
        let Feeds { namespaces, services, slices, exports, service_imports, .. } = &self.feeds;
        Seen {
            imports: self.wires.imports.borrow().clone(),
            namespaces: namespaces.now().objects,
            exports: exports.now().objects,
            service_imports: service_imports.now().objects,
            services: services.now().objects,
            slices: slices.now().objects,
            gateways: self.gateways.clone(),
        }
    }

    fn gateways(&self) -> BTreeMap<Arc<str>, Gateway> {
        gateways(&self.feeds.nodes.now().objects, &self.feeds.pods.now().objects, &self.setup.namespace)
    }

    fn done(&mut self, done: &crate::apply::Done) {
        let failures = self.desk.done(done, Instant::now(), rand::random());
        if done.result.as_ref().is_err_and(crate::client::Failure::is_invalid) {
            self.controller.refused(&done.write);
        }
        crate::apply::log(done, failures);
    }

    /// What only a person can change is said once.
    fn report(&mut self, plan: &Plan) {
        for key in plan.foreign.difference(&self.foreign) {
            tracing::warn!(
                service = %key,
                "a ServiceImport of this name is managed by somebody else and is left alone; \
                 delete it, or label it app.kubernetes.io/managed-by={APP}, to have it follow the federation",
            );
        }
        self.foreign.clone_from(&plan.foreign);
        if let Some((service, port)) = plan.without.first().filter(|_| plan.without.len() > self.without) {
            tracing::warn!(
                ports = plan.without.len(), %service, port,
                "no listen port is free for some ports of imports; give agent and gateways a larger --capture-ports",
            );
        }
        self.without = plan.without.len();
    }
}

/// RFC 3339 in whole seconds, as the API writes times.
pub(crate) fn timestamp() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// Soon enough for a person, late enough that a rollout is not a hundred rounds.
const ROUND_INTERVAL_MIN: Duration = Duration::from_millis(50);
const ROUND_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// In case that something was missed; nothing should be.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
