//! The agent of a cluster: provider and health checks in, the cluster's gateways and the control plane out.
//!
//! ```text
//! Provider ─► Catalog ─┬─► health checks ─► Readiness ─┐
//!                      └───────────────────────────────┴─► View ─┬─► LocalDiscovery (gateways of this cluster)
//!                                                                ├─► session (control plane)
//!                                                                └─► state file (next start)
//! ```
//!
//! Every arrow is a `watch`: a slow reader skips what it missed and sees the latest. Nothing here waits for the control
//! plane: without it the gateways are served just the same, once the agent has an identity.

pub mod catalog;
pub mod health;
pub mod provider;

mod discovery;
mod identity;
mod metrics;
mod session;
mod state;
pub mod view;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use archipelago_base::{durable::DirLock, logging, metrics as metrics_port, open_files, process, shutdown::Shutdown};
use archipelago_identity::{CredentialDir, LiveCredential};
use archipelago_rpc::enrol::{self, Joining};
use clap::Args as ClapArgs;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::{discovery::Said, identity::Expected, metrics::Metrics, state::State, view::View};
use crate::{
    catalog::Catalog,
    health::{
        Health,
        driver::{self, Readiness},
    },
    provider::{Link, Nodes, Provider},
};

/// Flags of every agent, whatever its provider.
#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Cluster that this agent speaks for.
    #[arg(long, env = "ARCHIPELAGO_CLUSTER")]
    pub cluster: String,
    /// Name of this agent within its cluster.
    #[arg(long, default_value = "agent")]
    pub name: String,
    /// Directory for identity and last good state.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Control-plane members, host:port, separated by commas; default: those of the token or of the last run.
    #[arg(long, value_delimiter = ',')]
    pub control_plane: Vec<String>,
    /// File with a join token; needed once, ignored while the identity in the state directory is valid.
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// File with a join configuration, the public part of a join token: where the control plane is when no token says it.
    #[arg(long)]
    pub join_config: Option<PathBuf>,
    /// Where the gateways of this cluster connect.
    #[arg(long, default_value = "0.0.0.0:7410")]
    pub listen: SocketAddr,
    /// Metrics and health, plain HTTP.
    #[arg(long, default_value = "127.0.0.1:7491")]
    pub metrics: SocketAddr,
}

/// Runs an agent over `provider` until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start: no identity, a port is taken, the state directory is in use or not writable.
pub fn run(args: Args, provider: impl Provider) -> anyhow::Result<()> {
    logging::init("archipelago-agent");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::install().context("cannot install signal handlers")?;
        run_until(args, provider, shutdown).await
    });
    // A blocking write that hangs on a dead disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The same on the current runtime, until `shutdown`.
///
/// # Errors
/// As [`run`].
pub async fn run_until(args: Args, provider: impl Provider, shutdown: Shutdown) -> anyhow::Result<()> {
    open_files::raise_limit();
    let _lock = DirLock::acquire(&args.state_dir)?;
    let state = State::load(&args.state_dir);
    let credentials = CredentialDir::new(args.state_dir.join("identity"));
    let has_identity = matches!(credentials.load(), Ok(Some(_)));
    let token = match read_token(&args) {
        Ok(token) => token,
        // Not needed any more, so not worth failing over.
        Err(_) if has_identity => None,
        Err(error) => return Err(error),
    };
    let control_plane = [
        args.control_plane.clone(),
        token.as_ref().map_or_else(Vec::new, |token| token.control_plane.clone()),
        read_join_config(&args)?.map_or_else(Vec::new, |config| config.control_plane),
        state.control_plane.clone(),
    ]
    .into_iter()
    .find(|addresses| !addresses.is_empty())
    .context("no control plane is known: give --control-plane, --token-file or --join-config")?;

    let listener = bind(args.listen)?;
    let metrics_listener = bind(args.metrics)?;
    let store = provider.identity_store();
    let expected = Expected { cluster: &args.cluster, name: &args.name };
    let joining = async {
        match &store {
            Some(store) => identity::obtain(&credentials, store, token.clone(), &expected).await,
            None => Ok(enrol::ensure(&credentials, token.clone().map(Joining::Token).as_ref()).await?),
        }
    };
    let credential = tokio::select! {
        credential = joining => credential.context("cannot get an identity")?,
        () = shutdown.requested() => return Ok(()),
    };
    expected.check(&credential.current())?;
    let joining = token.map(Joining::Token);
    let renewal =
        enrol::keep_renewed(credential.clone(), credentials, control_plane.clone(), joining, shutdown.clone());
    let storing = store.map(|store| tokio::spawn(identity::keep_stored(store, credential.clone(), shutdown.clone())));
    let config = Config {
        cluster: args.cluster,
        state_dir: args.state_dir,
        control_plane,
        credential,
        listener,
        metrics_listener,
    };
    let renewal = tokio::spawn(renewal);
    let served = serve(config, provider, state, shutdown).await;
    renewal.abort();
    if let Some(storing) = storing {
        storing.abort();
    }
    served
}

/// Everything an agent needs once it has its identity and its ports.
struct Config {
    cluster: String,
    state_dir: PathBuf,
    control_plane: Vec<String>,
    credential: LiveCredential,
    listener: TcpListener,
    metrics_listener: TcpListener,
}

async fn serve(config: Config, provider: impl Provider, state: State, shutdown: Shutdown) -> anyhow::Result<()> {
    let boot = archipelago_base::boot::next(&config.state_dir)
        .with_context(|| format!("cannot write to {}", config.state_dir.display()))?;
    let metrics = Metrics::new();
    let restored = Catalog { services: state.services, read: false };
    let (catalog, catalogs) = watch::channel(Arc::new(restored));
    let (readiness, readinesses) = watch::channel(Readiness {
        endpoints: state.ready.into_iter().map(|target| (target, Health::Ready)).collect(),
        settled: false,
    });
    let first = View::new(&catalogs.borrow(), &readinesses.borrow(), None);
    let (view, views) = watch::channel(Arc::new(first));
    let (captures, captured) = watch::channel(Arc::default());
    let (workloads, nodes) = watch::channel(Nodes::default());
    let (policies, policies_read) = watch::channel(None);
    let (leading, leads) = watch::channel((!provider.is_replicated()).then_some(boot));
    let (imports_said, imports) = watch::channel(None);
    let (statuses_said, statuses) = watch::channel(Arc::default());
    let (asks, reviews) = mpsc::channel(provider::REVIEWS_QUEUED_MAX);
    let link = Link {
        cluster: config.cluster.clone(),
        trust_domain: config.credential.current().spiffe_id.trust_domain().to_string(),
        catalog,
        captures,
        workloads,
        policies,
        leading,
        imports,
        statuses,
        reviews,
    };

    let mut tasks = JoinSet::new();
    tracing::info!(provider = provider.name(), "following the services of this cluster");
    tasks.spawn(provider.follow(link, shutdown.clone()));
    tasks.spawn(driver::run(catalogs.clone(), readiness, rand::random(), metrics.observer()));
    tasks.spawn(merge(catalogs.clone(), readinesses.clone(), view, metrics.clone()));
    tasks.spawn(state::keep(config.state_dir, config.control_plane.clone(), catalogs, readinesses, shutdown.clone()));
    let settings = session::Settings {
        cluster: config.cluster.clone(),
        control_plane: config.control_plane,
        credential: config.credential.clone(),
        metrics: metrics.clone(),
    };
    let wires = session::Wires {
        views: views.clone(),
        policies: policies_read,
        leading: leads,
        imports: imports_said,
        statuses: statuses_said,
        reviews: asks,
    };
    tasks.spawn(session::run(settings, wires, shutdown.clone()));
    let ready = {
        let views = views.clone();
        Arc::new(move || match views.borrow().settled {
            true => Ok(()),
            false => Err("the services have not been read and checked yet".to_owned()),
        })
    };
    let mut registry = metrics.registry();
    process::register(&mut registry, "agent");
    let credential = config.credential.clone();
    process::register_expiries(&mut registry, move || credential.current().expiries());
    let registry = Arc::new(Mutex::new(registry));
    let port = tokio::spawn(metrics_port::serve(config.metrics_listener, registry, ready));

    let address = config.listener.local_addr().context("the listener has no address")?;
    tracing::info!(cluster = config.cluster, %address, "serving the gateways of this cluster");
    let sources = discovery::Sources { views, captures: Said::new(captured), nodes: Said::new(nodes) };
    discovery::serve(config.listener, &config.credential, config.cluster, sources, metrics, shutdown.clone())
        .await
        .context("LocalDiscovery ended")?;
    if !shutdown.is_requested() {
        bail!("LocalDiscovery ended unexpectedly");
    }
    // What ends by itself gets its time: the state file is written once more.
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    port.abort();
    tracing::info!("stopped");
    Ok(())
}

/// Puts services and readiness together, again and again.
async fn merge(
    mut catalogs: watch::Receiver<Arc<Catalog>>,
    mut readinesses: watch::Receiver<Readiness>,
    view: watch::Sender<Arc<View>>,
    metrics: Metrics,
) {
    loop {
        let next = {
            let (catalog, readiness) = (catalogs.borrow_and_update(), readinesses.borrow_and_update());
            View::new(&catalog, &readiness, Some(&view.borrow()))
        };
        metrics.viewed(&next);
        // What says the same is replaced all the same: it would hold on to a whole catalog of before.
        view.send_if_modified(|current| {
            let changed = **current != next;
            *current = Arc::new(next);
            changed
        });
        let changed = tokio::select! {
            changed = catalogs.changed() => changed,
            changed = readinesses.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true).with_context(|| format!("cannot listen on {address}"))?;
    Ok(listener)
}

/// The token, if a file with one is there. One for something else is refused before it is spent.
fn read_token(args: &Args) -> anyhow::Result<Option<enrol::JoinToken>> {
    let Some(file) = &args.token_file else { return Ok(None) };
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        // Whoever started us may have removed a token that is spent.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let token = text.parse::<enrol::JoinToken>().with_context(|| file.display().to_string())?;
    ensure!(
        (token.role.as_str(), &token.cluster, &token.name) == ("agent", &args.cluster, &args.name),
        "{}: the token is for {} {} of cluster {}, but this is agent {} of cluster {}",
        file.display(),
        token.role,
        token.name,
        token.cluster,
        args.name,
        args.cluster
    );
    Ok(Some(token))
}

/// The join configuration, if a file with one is there. One of another cluster is a mistake.
fn read_join_config(args: &Args) -> anyhow::Result<Option<enrol::JoinConfig>> {
    let Some(file) = &args.join_config else { return Ok(None) };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let config = text.parse::<enrol::JoinConfig>().with_context(|| file.display().to_string())?;
    ensure!(
        config.cluster == args.cluster,
        "{}: it is for cluster {}, but this is an agent of cluster {}",
        file.display(),
        config.cluster,
        args.cluster
    );
    Ok(Some(config))
}

/// Health checks and a few streams: one thread would do, two keep a TLS handshake from delaying a check.
const RUNTIME_THREADS: usize = 2;
/// Nothing here holds user traffic; a second writes one file.
const DRAIN_TIME: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
