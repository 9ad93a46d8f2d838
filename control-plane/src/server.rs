//! A member put together: what starts in which order, and what ends in which.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener as StdListener},
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use archipelago_base::error::chain;
use archipelago_base::{
    durable::DirLock,
    metrics::{self as metrics_port, Registry},
    open_files, process,
    shutdown::Shutdown,
};
use archipelago_identity::{CredentialDir, LiveCredential, TrustDomain, tls::ClientAuth};
use archipelago_proto::v1::WatchSessionsRequest;
use archipelago_raft::{Config, Limits, Raft, RaftHandle, Stopped, Timing};
use archipelago_rpc::server::{self as rpc, Server};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    Args, Profile,
    api::{self, Context},
    audit::{self, Audit},
    authority::{self, AuthorityHolder},
    bootstrap::{FEDERATION_FILE, FederationFile, IDENTITY_DIR, Member, SEAL_KEY_FILE, read_federation, read_sealed},
    ca::SealKey,
    chronicle::{self, Chronicle},
    config::Compiler,
    consensus::{Consensus, Peers},
    dashboard::{self, Dashboard},
    machine::{
        Machine,
        command::{Action, CaInit},
    },
    metrics::{Metrics, Scraped},
    net::{LateHandle, Links, Network, PeerTransport, RaftService},
    published::Published,
    revocations,
    roster::{self, PerPeer, Roster},
    sessions::Sessions,
    started::marker,
    upgrade,
};

/// Runs a member until `shutdown`, or until it stops by itself.
///
/// # Errors
/// What keeps it from starting, or what stopped it.
pub(crate) async fn serve(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let member = Starting::open(args)?.start().await?;
    let ended = tokio::select! {
        () = shutdown.requested() => None,
        stopped = member.raft.stopped() => Some(stopped),
    };
    member.stop().await;
    match ended {
        Some(Stopped::Failed(fatal)) => Err(anyhow::Error::new(fatal).context("this member stopped")),
        Some(Stopped::Shutdown) | None => Ok(()),
    }
}

/// What is known before anything runs: files read, ports taken.
struct Starting {
    args: Args,
    /// Raft id.
    node_id: u64,
    /// Whether it was there from the beginning; a later one gets everything from the others.
    is_founder: bool,
    federation: FederationFile,
    trust_domain: TrustDomain,
    genesis: CaInit,
    holder: Arc<AuthorityHolder>,
    identity: CredentialDir,
    credential: LiveCredential,
    client_listener: StdListener,
    peer_listener: StdListener,
    metrics_listener: StdListener,
    /// The page and its port.
    dashboard: Option<(Arc<Dashboard>, StdListener)>,
    lock: DirLock,
}

impl Starting {
    fn open(args: Args) -> anyhow::Result<Self> {
        open_files::raise_limit();
        let data_dir = &args.data_dir;
        let marker = args.marker.clone().unwrap_or_else(|| marker(data_dir));
        if !data_dir.join(FEDERATION_FILE).exists() {
            archipelago_raft::refuse_lost(data_dir, &marker)?;
        }
        ensure!(
            data_dir.is_dir(),
            "{} is no directory\nhint: found a federation with `archipelago-control-plane bootstrap`",
            data_dir.display()
        );
        let lock = DirLock::acquire(data_dir)?;
        let federation = read_federation(data_dir)?;
        check_members(&federation.members, &args.members)?;
        let Some(own) = federation.member(args.node_id) else {
            bail!(
                "member {} does not belong to this federation (members {:?})",
                args.node_id,
                federation.members.iter().map(|member| member.id).collect::<Vec<_>>()
            );
        };
        let (node_id, is_founder) = (own.id, own.place.is_none());
        if node_id != args.node_id {
            tracing::info!(node_id, place = args.node_id, "this member is in the place of one that was lost");
        }
        let trust_domain: TrustDomain = federation.trust_domain.parse()?;
        let genesis = read_sealed(data_dir)?;
        ensure!(genesis.trust_domain == federation.trust_domain, "ca.sealed belongs to another trust domain");

        let seal_key_file = args.seal_key_file.clone().unwrap_or_else(|| data_dir.join(SEAL_KEY_FILE));
        let seal_key = SealKey::load(&seal_key_file);
        if seal_key.is_ok() && lies_in(&seal_key_file, data_dir) {
            tracing::warn!(
                seal_key = %seal_key_file.display(),
                "the seal key lies beside the keys that it seals: who copies the data directory can issue certificates \
                 (keep it elsewhere, with --seal-key-file)"
            );
        }
        if let Err(error) = &seal_key {
            tracing::warn!(error = %chain(error), "this member serves, but cannot issue certificates");
        }
        let seal_key = seal_key.map_err(|error| chain(&error));
        let holder = Arc::new(AuthorityHolder::new(node_id, seal_key, Some(genesis.clone())));
        let identity = CredentialDir::new(data_dir.join(IDENTITY_DIR));
        let credential = authority::ensure_own(&holder, &identity, args.svid_ttl)?;
        let own = credential.current().spiffe_id.clone();
        let expected = archipelago_identity::SpiffeId::control_plane(&trust_domain, node_id);
        ensure!(own == expected, "{} holds the identity {own}, not {expected}", identity.path().display());

        let dashboard = match Dashboard::new(&args.dashboard, credential.revocations().clone())? {
            None => None,
            Some(dashboard) => Some((Arc::new(dashboard), dashboard::listen(&args.dashboard)?)),
        };

        Ok(Self {
            dashboard,
            client_listener: bind(args.listen_client, "--listen-client")?,
            peer_listener: bind(args.listen_peer, "--listen-peer")?,
            metrics_listener: bind(args.listen_metrics, "--listen-metrics")?,
            args,
            node_id,
            is_founder,
            federation,
            trust_domain,
            genesis,
            holder,
            identity,
            credential,
            lock,
        })
    }

    async fn start(self) -> anyhow::Result<Running> {
        let Self { args, node_id, federation, trust_domain, genesis, holder, identity, credential, .. } = self;
        let (lock, dashboard) = (self.lock, self.dashboard);
        let roster = Roster::new(node_id, federation.members.clone(), &args.members);
        let draining = CancellationToken::new();
        let stopped = CancellationToken::new();
        let tasks = TaskTracker::new();

        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let scraped = Scraped::register(&mut registry);
        process::register(&mut registry, "control-plane");
        let live = credential.clone();
        process::register_expiries(&mut registry, move || live.current().expiries());

        let late: LateHandle = Arc::new(OnceLock::new());
        let network = Network {
            node_id,
            federation: federation.federation.clone(),
            credential: credential.clone(),
            raft: Arc::clone(&late),
            metrics: Arc::clone(&metrics),
            stopping: stopped.clone(),
            runtime: Handle::current(),
        };
        let (links, transport) = Links::new(network);
        links.set(&roster.others());
        let chronicle = Arc::new(Chronicle::new(node_id));
        let ids = federation.members.iter().map(|member| member.id).filter(|_| self.is_founder).collect();
        let config = raft_config(&args, Config::new(node_id, ids, &federation.federation, args.data_dir.join("raft")));
        let (raft, published) = start_raft(config, args.compatibility.format(), transport, &chronicle).await?;
        let _ = late.set(raft.clone());
        // What was agreed on before this start.
        raft.with_state(|machine| roster.update(machine.state()));

        let peers = Peers::new(credential.clone(), Arc::clone(&roster));
        let consensus =
            Arc::new(Consensus::new(node_id, raft.clone(), Arc::clone(&published), peers, Arc::clone(&metrics)));
        let (audit, records) = Audit::new(node_id, Arc::clone(&metrics));
        let context = Arc::new(Context {
            compiler: Compiler::new(Arc::clone(&consensus)),
            sessions: Arc::new(Sessions::new(node_id, published)),
            chronicle,
            authority: Arc::clone(&holder),
            audit,
            metrics,
            trust_domain,
            federation: federation.federation.clone(),
            roster: Arc::clone(&roster),
            svid_ttl: args.svid_ttl,
            joins: Semaphore::new(api::JOINS_MAX),
            attestations: api::attest::Attestations::default(),
            recovery_grace: args.recovery_grace,
            clocks: api::identity::Clocks::default(),
            inquiries: Arc::new(Semaphore::new(api::telemetry::INQUIRIES_MAX)),
            looks: Arc::new(Semaphore::new(api::telemetry::LOOKS_MAX)),
            stopping: draining.clone(),
            dashboard: dashboard.as_ref().map(|(dashboard, _)| Arc::clone(dashboard)),
            consensus: Arc::clone(&consensus),
        });
        scraped.bind(&context);

        tasks.spawn(Arc::clone(&consensus).track_leader(draining.clone()));
        tasks.spawn(revocations::follow(Arc::clone(&consensus), credential.revocations().clone(), draining.clone()));
        tasks.spawn(Arc::clone(&holder).follow(Arc::clone(&consensus), draining.clone()));
        tasks.spawn(authority::keep_own_renewed(
            Arc::clone(&holder),
            credential.clone(),
            identity,
            args.svid_ttl,
            draining.clone(),
        ));
        tasks.spawn(audit::write_batches(records, Arc::clone(&consensus), draining.clone()));
        tasks.spawn(install_authority(Arc::clone(&consensus), genesis, draining.clone()));
        tasks.spawn(upgrade::raise_format(Arc::clone(&consensus), draining.clone()));
        tasks.spawn(chronicle::watch(Arc::clone(&context)));
        if let Some((dashboard, listener)) = dashboard {
            tasks.spawn(dashboard::gather(Arc::clone(&context), Arc::clone(&dashboard)));
            tasks.spawn(dashboard::serve(Arc::clone(&context), dashboard, listener));
        }
        tasks.spawn(Arc::clone(&roster).follow(Arc::clone(&consensus), draining.clone()));
        // Until the very end: handing leadership over needs them.
        tasks.spawn(roster::keep_up(Arc::clone(&roster), stopped.clone(), move |others| links.set(others)));
        let (watched, watching, of) = (PerPeer::new(draining.clone()), tasks.clone(), Arc::clone(&context));
        tasks.spawn(roster::keep_up(Arc::clone(&roster), draining.clone(), move |others| {
            watched.set(others, |peer, until| drop(watching.spawn(watch_sessions(Arc::clone(&of), peer.id, until))));
        }));

        let raft_service =
            RaftService::server(node_id, federation.federation.clone(), Arc::clone(&roster), raft.clone());
        // The peer port ends last: handing leadership over needs it.
        let port = |name, auth, access| Server {
            name,
            credential: credential.clone(),
            auth,
            access,
            limits: rpc::Limits::default(),
        };
        let client = port("client", ClientAuth::Optional, api::access::CLIENT_PORT);
        tasks.spawn(serve_port(client, self.client_listener, api::routes(&context), draining.clone()));
        let peer = port("peer", ClientAuth::Required, api::access::PEER_PORT);
        tasks.spawn(serve_port(peer, self.peer_listener, Routes::new(raft_service), stopped.clone()));
        let ready = {
            let consensus = Arc::clone(&consensus);
            Arc::new(move || readiness(&consensus))
        };
        let port = metrics_port::serve(self.metrics_listener, Arc::new(Mutex::new(registry)), ready);
        // Not among `tasks`: it answers until the process ends.
        tokio::spawn(async move {
            if let Err(error) = port.await {
                tracing::error!(%error, "the metrics port failed");
            }
        });
        tracing::info!(
            node_id,
            client = %args.listen_client,
            peer = %args.listen_peer,
            metrics = %args.listen_metrics,
            trust_domain = federation.trust_domain,
            "member started"
        );
        Ok(Running { raft, draining, stopped, tasks, _lock: lock })
    }
}

/// A member at work.
struct Running {
    raft: RaftHandle<Machine>,
    draining: CancellationToken,
    stopped: CancellationToken,
    tasks: TaskTracker,
    _lock: DirLock,
}

impl Running {
    /// Sends clients elsewhere, hands leadership over, writes a checkpoint, and ends.
    async fn stop(self) {
        self.draining.cancel();
        if timeout(RAFT_STOP_MAX, self.raft.shutdown()).await.is_err() {
            tracing::warn!("the Raft node did not stop in time; its log is durable all the same");
        }
        self.stopped.cancel();
        self.tasks.close();
        // A client may hold a connection open.
        let _ = timeout(TASKS_STOP_MAX, self.tasks.wait()).await;
        tracing::info!("stopped");
    }
}

fn raft_config(args: &Args, config: Config) -> Config {
    Config {
        marker: Some(args.marker.clone().unwrap_or_else(|| marker(&args.data_dir))),
        timing: match args.profile {
            Profile::Lan => Timing::LAN,
            Profile::Wan => Timing::WAN,
        },
        limits: Limits {
            log_tail_entries: args.snapshot_entries,
            checkpoint_entries: args.snapshot_entries.min(Limits::default().checkpoint_entries),
            ..Limits::default()
        },
        ..config
    }
}

async fn start_raft(
    config: Config,
    format: u32,
    transport: PeerTransport,
    chronicle: &Arc<Chronicle>,
) -> anyhow::Result<(RaftHandle<Machine>, Arc<Published>)> {
    let (machine, published) = Published::machine(format);
    let machine = machine.with_witness(chronicle.witness());
    // Reading the disk may take seconds.
    let raft = tokio::task::spawn_blocking(move || Raft::start(config, machine, transport))
        .await
        .context("starting the Raft node failed")??;
    Ok((raft, published))
}

async fn serve_port(server: Server, listener: StdListener, routes: Routes, until: CancellationToken) {
    let name = server.name;
    if let Err(error) = server.serve(listener, routes, until.cancelled_owned()).await {
        tracing::error!(server = name, %error, "the server failed");
    }
}

/// Puts the authority into the replicated state, once, by whichever member gets there first.
async fn install_authority(consensus: Arc<Consensus>, genesis: CaInit, stopping: CancellationToken) {
    let actor = format!("member:{}", consensus.node_id);
    loop {
        if consensus.read(|state| state.ca().is_some()) {
            return;
        }
        let leads = consensus.raft.status().leader == Some(consensus.node_id);
        if leads {
            match consensus.commit("", &actor, Action::CaInit(genesis.clone())).await {
                Ok(outcome) => tracing::info!(revision = outcome.revision, "certificate authority installed"),
                Err(error) => tracing::debug!(%error, "the certificate authority is not installed yet"),
            }
            continue;
        }
        let mut status = consensus.raft.subscribe_status();
        let mut revisions = consensus.published.subscribe();
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
            changed = revisions.changed() => if changed.is_err() { return },
            // Either may have changed between the look and the subscription.
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Follows the sessions that another member serves.
async fn watch_sessions(context: Arc<Context>, member: u64, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => {
                context.sessions.forget_member(member);
                return;
            }
            result = follow_sessions(&context, member) => {
                let reason = result.err().map_or_else(String::new, |status| status.message().to_owned());
                tracing::debug!(peer = member, reason, "the peer's sessions are out of sight");
            }
        }
        context.sessions.forget_member(member);
        tokio::select! {
            () = stopping.cancelled() => return,
            () = sleep(rand::random_range(WATCH_RETRY_MIN..=WATCH_RETRY_MAX)) => {}
        }
    }
}

async fn follow_sessions(context: &Context, member: u64) -> Result<(), tonic::Status> {
    let mut client = context.consensus.peers.client(member).await?;
    let mut updates = client.watch_sessions(WatchSessionsRequest {}).await?.into_inner();
    while let Some(update) = updates.message().await? {
        context.sessions.merge(member, update);
    }
    Ok(())
}

/// Whether this member serves current state.
fn readiness(consensus: &Consensus) -> Result<(), String> {
    let status = consensus.raft.status();
    if status.leader.is_none() {
        return Err("no leader is known".to_owned());
    }
    if status.applied_index < status.commit {
        return Err(format!("applied {} of {} log entries", status.applied_index, status.commit));
    }
    if consensus.read(|state| state.ca().is_none()) {
        return Err("the certificate authority is not installed yet".to_owned());
    }
    Ok(())
}

/// Also by way of links.
fn lies_in(file: &Path, dir: &Path) -> bool {
    match (file.canonicalize(), dir.canonicalize()) {
        (Ok(file), Ok(dir)) => file.starts_with(dir),
        _ => file.starts_with(dir),
    }
}

/// Addresses may change at a start, members may not: that goes through the log. Whoever is in the place of another member is named as
/// that one was.
fn check_members(known: &[Member], given: &[Member]) -> anyhow::Result<()> {
    let places = |members: &[Member]| members.iter().map(Member::place).collect::<BTreeSet<_>>();
    let (known, named) = (places(known), places(given));
    if named.len() != given.len() {
        bail!("--member names a member twice");
    }
    ensure!(
        given.is_empty() || known.is_subset(&named) || named.is_subset(&known),
        "--member names the members {named:?}, this federation has {known:?}"
    );
    Ok(())
}

fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<StdListener> {
    StdListener::bind(address).with_context(|| format!("cannot listen on {address} ({flag})"))
}

/// A transfer takes one election timeout at most, the checkpoint a second on a slow disk.
const RAFT_STOP_MAX: Duration = Duration::from_secs(8);
const TASKS_STOP_MAX: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Sessions are soft state: soon enough that `status` is right again, not so often that a dead member is hammered.
const WATCH_RETRY_MIN: Duration = Duration::from_millis(100);
const WATCH_RETRY_MAX: Duration = Duration::from_millis(300);
