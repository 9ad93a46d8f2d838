//! One gateway, put together: sockets first (so that a taken port is an error of startup), then workers, then everything beside
//! the data path on a thread of its own.

mod addresses;
mod tasks;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use archipelago_base::metrics::Registry;
use archipelago_base::process;
use archipelago_identity::LiveCredential;
use archipelago_otlp::Exporter;
use archipelago_proto::v1::GatewayAddresses;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::tasks::ControlTasks;
use crate::admin::Admin;
use crate::balance::topology::Place;
use crate::callers::{self, CaptureFrom};
use crate::config::store::Store;
use crate::config::{ConfigState, Published, Rejected, Snapshot};
use crate::control::apply::{Applier, Update};
use crate::control::status::ControlStatus;
use crate::dns;
use crate::handover::{Offered, Phase, Seat, Sockets};
use crate::journal::Journal;
use crate::ledger::timing::Told;
use crate::tap::Taps;
use crate::telemetry::{AccessLog, GatewayMetrics, ServingShown, Telemetry};
use crate::tls::{Https, Secured};
use crate::trace::Tracer;
use crate::visitors::{Network, Share, Visitors};
use crate::worker::captures::CapturePorts;
use crate::worker::ports::TcpPorts;
use crate::worker::{self, Identity, Limits};
use crate::workers::Workers;

/// How one gateway runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Cluster that it serves.
    pub cluster: String,
    /// Its name within the cluster.
    pub name: String,
    /// Zone that it is in, until its agent says so; empty: not known.
    pub zone: String,
    /// Where its state is kept.
    pub state_dir: PathBuf,
    /// Members of the control plane; empty: none, serve what is on disk.
    pub control_plane: Vec<String>,
    /// The cluster's agent; absent: none, serve what is on disk.
    pub agent: Option<String>,
    /// HTTP. Port 0 picks one.
    pub http: SocketAddr,
    /// HTTP in TLS, if clients may speak that.
    pub https: Option<Https>,
    /// Tunnels; worker i uses port + i. Port 0 picks one per worker.
    pub tunnel: SocketAddr,
    /// DNS. Port 0 picks one.
    pub dns: SocketAddr,
    /// Health. Port 0 picks one.
    pub health: SocketAddr,
    /// Metrics. Port 0 picks one.
    pub metrics: SocketAddr,
    /// First port of TCP services.
    pub tcp_base: SocketAddr,
    /// How many of them there are.
    pub tcp_ports: u16,
    /// Ports for clients of the node, as far as the agent says what they are for; at the address of `http`.
    pub capture_ports: RangeInclusive<u16>,
    /// Whose connections are taken there.
    pub capture_from: CaptureFrom,
    /// Admin socket.
    pub admin_socket: PathBuf,
    /// Gateways of each other cluster to keep tunnels to.
    pub peers_per_cluster: usize,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Path, "-" or "off".
    pub access_log: String,
    /// Of requests that went well, how many are in it, from 0 to 1.
    pub access_log_sample: f64,
    /// What is written down of requests.
    pub telemetry: Telemetry,
    /// Services whose clients see where the time of their requests went, "namespace/name".
    pub server_timing: Vec<String>,
    /// Where spans go; `None`: no request is recorded.
    pub otlp: Option<archipelago_otlp::Config>,
    /// Bounds of each worker.
    pub limits: Limits,
    /// What one client may have of all workers.
    pub share: Share,
    /// Networks to which that does not apply: behind their addresses there are many clients.
    pub unbounded_clients: Vec<Network>,
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    addresses: GatewayAddresses,
    http: SocketAddr,
    https: Option<SocketAddr>,
    published: Arc<Published>,
    updates: mpsc::Sender<Update>,
    workers: Workers,
    drain: CancellationToken,
    stop: CancellationToken,
    handles: Vec<worker::Handle>,
    boot: u64,
    sockets: Arc<Sockets>,
    /// True once the cluster's agent, if there is one, has said what it knows.
    heard: watch::Receiver<bool>,
    threads: Vec<JoinHandle<()>>,
    exporter: Option<Exporter>,
}

impl Gateway {
    /// Starts serving with what is on disk.
    ///
    /// # Errors
    /// A port is taken, or a thread cannot be had. A configuration on disk that cannot be used is no error: the gateway starts
    /// empty and asks for everything.
    pub fn start(settings: Settings, credential: LiveCredential) -> anyhow::Result<Self> {
        Self::start_in(Seat::alone(), settings, credential)
    }

    /// As [`Self::start`], in the place of another process.
    pub(crate) fn start_in(seat: Seat, settings: Settings, credential: LiveCredential) -> anyhow::Result<Self> {
        let spiffe_id = credential.current().spiffe_id.clone();
        let trust_domain = spiffe_id.trust_domain().to_string();
        let identity = Arc::new(
            Identity::new(&settings.cluster, &settings.name, spiffe_id).context("names of cluster and gateway")?,
        );
        let mut registry = Registry::default();
        let metrics = GatewayMetrics::register(&mut registry);
        process::register(&mut registry, "gateway");
        let live = credential.clone();
        process::register_expiries(&mut registry, move || live.current().expiries());
        metrics.set_cluster(&settings.cluster);
        metrics.vitals.limits(&settings.limits, settings.workers.max(1));
        let access_log =
            AccessLog::start(&settings.access_log, settings.access_log_sample, metrics.access_log_dropped.clone())
                .with_context(|| format!("cannot write the access log {}", settings.access_log))?;

        let exporter = export(&settings, &identity, &mut registry).context("cannot start the export of spans")?;
        let tracer = settings.otlp.as_ref().zip(exporter.as_ref());
        let tracer = tracer.map(|(config, exporter)| Tracer::new(config.sampler, exporter.spans()));

        let store = Store::new(&settings.state_dir, &settings.cluster, &settings.name);
        let place = Place { node: settings.name.as_str().into(), zone: settings.zone.as_str().into() };
        let (state, snapshot) = load(&store, &settings.cluster, &trust_domain, place);
        metrics.config_revision.set(i64::try_from(snapshot.revision).unwrap_or(i64::MAX));
        let count = settings.workers.max(1);
        let published = Arc::new(Published::new(snapshot, count));

        let bound = |what: &'static str, address: SocketAddr| move || format!("cannot bind {what} at {address}");
        let Seat { sockets, turn, before } = seat;
        let http = sockets.listen_shared(settings.http, count).with_context(bound("HTTP", settings.http))?;
        let http_address = http.iter().flatten().next().context("no worker")?.local_addr()?;
        let Secured { listeners: https, address: https_address, terminator: tls, keeper } =
            Secured::open(settings.https.as_ref(), &sockets, count, &mut registry)?;
        let dns_sockets =
            dns::server::Sockets::bind(settings.dns, &sockets).with_context(bound("DNS", settings.dns))?;
        let health_listener = sockets.listen_always(settings.health).with_context(bound("health", settings.health))?;
        let metrics_listener =
            sockets.listen_always(settings.metrics).with_context(bound("metrics", settings.metrics))?;
        let boot = archipelago_base::boot::next(&settings.state_dir)
            .with_context(|| format!("cannot write to {}", settings.state_dir.display()))?;
        // Its state may lie elsewhere than ours, and its clock may have been ahead.
        let boot = before.as_ref().map_or(boot, |before| boot.max(before.boot.saturating_add(1)));
        let tunnels = addresses::tunnels(settings.tunnel, count, before.as_ref())?;

        let journal = Journal::new(&format!("{}/{}", settings.cluster, settings.name), boot);
        registry.register_collector(Box::new(ServingShown::new(journal.clone())));
        let callers = Arc::new(callers::Table::default());
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let tunnels_changed = Arc::new(Notify::new());
        let unserved = metrics.unserved_services.clone();
        let tcp_ports = Arc::new(TcpPorts::new(settings.tcp_base, settings.tcp_ports, unserved, Arc::clone(&sockets)));
        let unserved = metrics.unserved_captures.clone();
        let (ip, range) = (settings.http.ip(), settings.capture_ports.clone());
        let capture_ports = Arc::new(CapturePorts::new(ip, range, unserved, Arc::clone(&sockets)));
        let taps = Arc::new(Taps::default());
        let shared = worker::Shared {
            identity: Arc::clone(&identity),
            limits: settings.limits,
            visitors: Visitors::new(settings.share, settings.unbounded_clients.clone()),
            tls,
            peers_per_cluster: settings.peers_per_cluster,
            credential: credential.clone(),
            published: Arc::clone(&published),
            metrics: metrics.clone(),
            access_log,
            tracer,
            counts_requests: settings.telemetry.counts_requests(),
            server_timing: Told::new(&settings.server_timing),
            taps: Arc::clone(&taps),
            tcp_ports: Arc::clone(&tcp_ports),
            clients: Arc::clone(&callers),
            captures: (Arc::clone(&capture_ports), settings.capture_from),
            drain: drain.clone(),
            turn: turn.clone(),
            tunnels_changed: Arc::clone(&tunnels_changed),
            journal: journal.clone(),
        };
        let mut handles = Vec::with_capacity(count);
        for (index, ((http, https), tunnel)) in http.into_iter().zip(https).zip(tunnels).enumerate() {
            handles.push(worker::start(index, shared.clone(), worker::Sockets { http, https, tunnel })?);
        }
        let workers = Workers::new(handles.iter().map(|h| h.commands.clone()).collect());

        let own = addresses::own_ip();
        let reach = |address: SocketAddr| {
            if address.ip().is_unspecified() { SocketAddr::new(own, address.port()) } else { address }
        };
        let addresses = GatewayAddresses {
            http: reach(http_address).to_string(),
            tunnel: handles.iter().map(|h| reach(h.tunnel).to_string()).collect(),
            dns: reach(dns_sockets.local_addr()?).to_string(),
            metrics: reach(metrics_listener.local_addr()?).to_string(),
            health: reach(health_listener.local_addr()?).to_string(),
            tcp_base: reach(settings.tcp_base).to_string(),
        };
        let (status, control) = watch::channel(ControlStatus::default());
        let admin = Arc::new(Admin {
            control,
            identity: Arc::clone(&identity),
            addresses: addresses.clone(),
            published: Arc::clone(&published),
            workers: workers.clone(),
            telemetry: settings.telemetry,
            tcp_ports,
            capture_ports,
            drain: drain.clone(),
            turn: turn.clone(),
            drill: Mutex::new(None),
        });

        let (updates, queue) = mpsc::channel(UPDATES_QUEUED_MAX);
        let (state_sender, state) = watch::channel(Arc::new(state));
        let applier = Applier {
            published: Arc::clone(&published),
            state: state_sender,
            callers: Arc::clone(&callers),
            cluster: settings.cluster.clone(),
            trust_domain,
            metrics: metrics.clone(),
        };
        let zone = dns::Zone { http: reach(http_address), tcp_base: reach(settings.tcp_base) };
        let dns_thread = thread("dns", {
            let (published, stop, mut turn) = (Arc::clone(&published), stop.clone(), turn.clone());
            // hickory logs every question at info; on a gateway that is noise, and a way to fill a disk.
            move |runtime| {
                let served = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
                    runtime.block_on(async {
                        tokio::select! {
                            () = stop.cancelled() => return Ok(()),
                            () = turn.until(Phase::answers) => {}
                        }
                        dns::server::serve(dns_sockets, published, zone, stop).await
                    })
                });
                if let Err(error) = served {
                    tracing::error!(%error, "DNS ended");
                }
            }
        })?;
        let (hear, heard) = watch::channel(settings.agent.is_none());
        let tasks = ControlTasks {
            turn,
            is_successor: before.is_some(),
            keeper,
            hear,
            registry: Arc::new(Mutex::new(registry)),
            listeners: [health_listener, metrics_listener],
            published: Arc::clone(&published),
            drain: drain.clone(),
            metrics,
            workers: workers.clone(),
            tunnels_changed,
            journal,
            taps,
            callers,
            status,
            boot,
            store,
            state,
            applier,
            queue,
            updates: updates.clone(),
            addresses: addresses.clone(),
            credential,
            admin,
            settings,
        };
        let control_stop = stop.clone();
        let control_thread = thread("control", move |runtime| {
            if let Err(error) = runtime.block_on(tasks.run(control_stop)) {
                tracing::error!(error = format!("{error:#}"), "the control thread ended");
            }
        })?;
        Ok(Self {
            addresses,
            http: http_address,
            https: https_address,
            published,
            updates,
            workers,
            drain,
            stop,
            handles,
            boot,
            sockets,
            heard,
            threads: vec![dns_thread, control_thread],
            exporter,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> &GatewayAddresses {
        &self.addresses
    }

    /// Where it takes HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where it takes HTTP in TLS, if it does.
    pub fn https(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Revision in use.
    pub fn revision(&self) -> u64 {
        self.published.load().revision
    }

    /// Where updates go; what the control plane and the agent send takes the same way.
    pub fn updates(&self) -> mpsc::Sender<Update> {
        self.updates.clone()
    }

    /// Its workers.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Resolves once a drain was asked for, on the admin socket or by [`Gateway::stop`].
    pub async fn drain_requested(&self) {
        self.drain.cancelled().await;
    }

    /// What a successor is told.
    pub(crate) fn offered(&self) -> Offered {
        let port = |handle: &worker::Handle| handle.tunnel.port();
        Offered { boot: self.boot, tunnel_ports: self.handles.iter().map(port).collect() }
    }

    /// Resolves once clients would be served here as well as by the gateway before: there is a configuration, the cluster's
    /// agent has named its endpoints, and the tunnels are up, as far as they come up soon.
    pub(crate) fn settled(&self) -> impl Future<Output = ()> + Send + 'static {
        let (published, workers, mut heard) = (Arc::clone(&self.published), self.workers.clone(), self.heard.clone());
        async move {
            if heard.wait_for(|heard| *heard).await.is_err() {
                return std::future::pending().await;
            }
            while published.load().revision == 0 {
                tokio::time::sleep(SETTLE_POLL).await;
            }
            let generation = *published.subscribe().borrow();
            published.reached_by_all(generation, &[]).await;
            let deadline = Instant::now() + TUNNELS_PATIENCE;
            while Instant::now() < deadline {
                let reports = workers.reports().await;
                if reports.len() == workers.len() && reports.iter().all(|report| report.is_settled) {
                    return;
                }
                tokio::time::sleep(SETTLE_POLL).await;
            }
        }
    }

    /// Drains and ends. Blocks, at most about the drain timeout.
    pub fn stop(self) {
        self.drain.cancel();
        // Nobody accepts here any more: whoever comes now is refused, not kept waiting.
        self.sockets.release();
        self.handles.into_iter().for_each(worker::Handle::join);
        self.stop.cancel();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread beside the data path panicked");
            }
        }
        // Whatever is under way has ended, and its spans are there.
        if let Some(exporter) = self.exporter {
            exporter.close();
        }
    }
}

/// Exports spans, if there is a collector.
fn export(settings: &Settings, identity: &Identity, registry: &mut Registry) -> std::io::Result<Option<Exporter>> {
    let counts = archipelago_otlp::Counts::register(registry, "gateway");
    let Some(config) = &settings.otlp else { return Ok(None) };
    let instance = format!("{}/{}", identity.cluster, identity.gateway);
    let resource = config.resource(&[
        ("service.name", "archipelago-gateway"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &instance),
        ("mesh.cluster", &identity.cluster),
        ("mesh.gateway", &identity.gateway),
    ]);
    Exporter::start(config.clone(), resource, "archipelago-gateway", counts).map(Some)
}

/// The last good state and its snapshot; empty, with a warning, when it cannot be used.
///
/// Whose `place` has no zone had the one that its agent said last.
fn load(store: &Store, cluster: &str, trust_domain: &str, place: Place) -> (ConfigState, Snapshot) {
    let nothing = || (ConfigState { place: place.clone(), ..ConfigState::default() }, Snapshot::empty());
    let state = match store.load() {
        Ok(Some(state)) => state,
        Ok(None) => return nothing(),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the configuration on disk cannot be used; starting empty"
            );
            return nothing();
        }
    };
    let zone = if place.zone.is_empty() { Arc::clone(&state.place.zone) } else { Arc::clone(&place.zone) };
    let state = ConfigState { place: Place { zone, ..place.clone() }, ..state };
    // What ran in the place of a resource that cannot be used is what runs in its place again.
    let before = Snapshot::build(&state.as_last_good(), cluster, trust_domain, &Snapshot::empty());
    match before.and_then(|before| Snapshot::build(&state, cluster, trust_domain, &before.snapshot)) {
        Ok(built) => {
            for Rejected { resource, reason, .. } in &built.rejected {
                tracing::warn!(resource, reason, "a resource on disk cannot be used");
            }
            (state, built.snapshot)
        }
        Err(error) => {
            tracing::warn!(%error, "the configuration on disk is refused; starting empty");
            nothing()
        }
    }
}

fn thread(name: &str, body: impl FnOnce(tokio::runtime::Runtime) + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(move || body(runtime))?)
}

const UPDATES_QUEUED_MAX: usize = 16;
const SETTLE_POLL: Duration = Duration::from_millis(10);
/// A peer that cannot be reached is no reason to wait for ever: the gateway before cannot reach it either, or will go on.
const TUNNELS_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway that restarts with a resource on disk that it cannot use serves the form that it served before.
    #[test]
    fn a_restart_keeps_the_last_good_form() {
        use archipelago_model::{compile, version::Version};
        use archipelago_proto::v1::{self as proto, ConfigUpdate, config_resource::Body};
        let service = |port: u32, protocol: proto::Protocol| {
            let listener = Some(proto::service_port::Listener::Http(proto::HttpListener::default()));
            let rules = vec![proto::RouteRule { name: "default".into(), ..Default::default() }];
            let port = proto::ServicePort { port, protocol: protocol.into(), listener, rules, ..Default::default() };
            compile::resource(Body::Service(proto::ServiceConfig {
                namespace: "shop".into(),
                name: "web".into(),
                hosts: compile::hosts("shop", "web"),
                ports: vec![port],
                ..Default::default()
            }))
        };
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path(), "paris", "gw-1");
        let mut registry = Registry::default();
        let applier = Applier {
            published: Arc::new(Published::new(Snapshot::empty(), 1)),
            state: watch::channel(Arc::default()).0,
            callers: Arc::default(),
            cluster: "paris".into(),
            trust_domain: "mesh.test".into(),
            metrics: GatewayMetrics::register(&mut registry),
        };
        let (http, unknown) = (proto::Protocol::Http1, proto::Protocol::Unspecified);
        // Good, bad, bad in another way.
        for (revision, resource) in [(1, service(80, http)), (2, service(81, unknown)), (3, service(82, unknown))] {
            let version = Version { revision, ..Version::default() };
            let held = ConfigState::new(version, [resource.clone()]).held.resources;
            let update = ConfigUpdate {
                version: Some(version.into()),
                full: true,
                upserts: vec![resource],
                digest: held.digest().to_bytes(),
                ..ConfigUpdate::default()
            };
            let (_, rejections) = applier.publish(crate::control::apply::Change::Config(update)).unwrap();
            assert_eq!(rejections.len(), usize::from(revision > 1));
            store.save(&applier.state.borrow()).unwrap();
        }
        let (state, snapshot) = load(&store, "paris", "mesh.test", Place::default());
        assert_eq!(state.held.version.revision, 3, "what is held is what was sent");
        assert_eq!(snapshot.services().map(|(_, service)| service.port).collect::<Vec<_>>(), [80]);
        assert_eq!(snapshot.closed().count(), 0);
        assert_eq!(snapshot.revision, 3);
    }
}
