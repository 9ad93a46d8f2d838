//! One way to write and to read linearizably from any member: find the leader, ask it, retry over leader changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant as StdInstant, SystemTime},
};

use archipelago_identity::{LiveCredential, SpiffeId, tls::Expect};
use archipelago_model::{
    admit::Resources,
    compile::{FederationState, GatewayRecord},
    id::{ClusterId, ServiceKey},
    version::Version,
};
use archipelago_proto::v1::{ProposeRequest, ReadIndexRequest, members_client::MembersClient};
use archipelago_raft::{ProposeError, RaftHandle, ReadError};
use archipelago_rpc::grpc;
use prost::Message;
use tokio::{
    sync::{Mutex, MutexGuard, Semaphore, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{
    machine::{
        Machine, State,
        command::{self, Action, Command, Outcome},
        convert, format,
    },
    metrics::Metrics,
    policy::Policy,
    published::Published,
    quota::Quotas,
    refusal, revocations,
    roster::{PerPeer, Roster},
    upgrade,
};

/// This member's view of the replicated state, and its way to the leader.
#[derive(Debug)]
pub(crate) struct Consensus {
    pub(crate) node_id: u64,
    pub(crate) raft: RaftHandle<Machine>,
    pub(crate) published: Arc<Published>,
    pub(crate) peers: Peers,
    pub(crate) metrics: Arc<Metrics>,
    policy: Policy,
    writes: Semaphore,
    admissions: Semaphore,
    admitting: Mutex<()>,
    quotas: StdMutex<Quotas>,
    /// Since when this member has known no leader.
    leaderless: watch::Sender<Option<Instant>>,
}

impl Consensus {
    pub(crate) fn new(
        node_id: u64,
        raft: RaftHandle<Machine>,
        published: Arc<Published>,
        peers: Peers,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            node_id,
            raft,
            published,
            peers,
            metrics,
            policy: Policy::default(),
            writes: Semaphore::new(WRITES_MAX),
            admissions: Semaphore::new(ADMISSIONS_MAX),
            admitting: Mutex::default(),
            quotas: StdMutex::default(),
            leaderless: watch::Sender::new(None),
        }
    }

    /// Reads the applied state. Keep it short: applying waits.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        self.raft.with_state(|machine| read(machine.state()))
    }

    /// Since when this member has known no leader, if so. Moves only when that changes.
    pub(crate) fn leaderless(&self) -> watch::Receiver<Option<Instant>> {
        self.leaderless.subscribe()
    }

    /// Keeps [`Self::leaderless`] until cancelled.
    pub(crate) async fn track_leader(self: Arc<Self>, stopping: CancellationToken) {
        let mut status = self.raft.subscribe_status();
        loop {
            let missing = status.borrow_and_update().leader.is_none();
            self.leaderless.send_if_modified(|since| {
                let changed = since.is_some() != missing;
                if changed {
                    *since = missing.then(Instant::now);
                }
                changed
            });
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    }

    /// A copy of the applied state, which costs nothing to take: for whatever takes longer than a look.
    pub(crate) fn state(&self) -> State {
        self.read(State::clone)
    }

    /// The resources of `state` as values.
    pub(crate) fn resources(&self, state: &State) -> Arc<Resources> {
        self.policy.values(state.resources())
    }

    /// What the policy compiler reads.
    pub(crate) fn federation(&self) -> (Version, FederationState) {
        let state = self.state();
        let resources = Resources::clone(&self.resources(&state));
        (state.version(), federation_of(&state, resources))
    }

    /// Commits a command exactly once and returns its outcome, refusals included.
    ///
    /// The same bytes are proposed again after every leader change, so the command must carry a request id or be
    /// idempotent by its content. When this returns, this member has applied the command too, or nearly (1 s).
    pub(crate) async fn commit(&self, request_id: &str, actor: &str, action: Action) -> Result<Outcome, CommitError> {
        let begun = Instant::now();
        let result = self.commit_within(request_id, actor, action, begun + COMMIT_TIMEOUT).await;
        self.metrics.commit(&result, begun.elapsed());
        result
    }

    async fn commit_within(
        &self,
        request_id: &str,
        actor: &str,
        action: Action,
        deadline: Instant,
    ) -> Result<Outcome, CommitError> {
        let _slot = self.writes.try_acquire().map_err(|_| CommitError::Overloaded)?;
        if let Err(refused) = self.read(|state| state.check(&action)) {
            return Ok(*refused);
        }
        let quota = self.quotas.lock().unwrap_or_else(PoisonError::into_inner).take(actor, &action, StdInstant::now());
        quota.map_err(|wait| CommitError::TooFast { wait })?;
        self.require_format(&action).await?;
        let command = Command {
            format_version: format::required(&action),
            request_id: request_id.to_owned(),
            actor: actor.to_owned(),
            proposed_unix_ms: unix_ms(),
            action: Some(action),
        };
        let done = self.ask_leader(&Question::Commit(command.encode_to_vec()), deadline).await?;
        // So that a read from this member sees the write; others wait by ReadIndex.
        let _ = timeout(FOLLOW_TIMEOUT, self.raft.wait_applied(done.log_index)).await;
        Outcome::decode(done.outcome.as_slice()).map_err(|_| CommitError::Incompatible)
    }

    /// Whether an entry that another member made may stand in the log: one that some member cannot apply stops that member.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_entry(&self, entry: &[u8]) -> Result<(), String> {
        let (supported, agreed) =
            self.raft.with_state(|machine| (machine.supported(), machine.state().format_version()));
        let command = command::decode(entry, supported).map_err(|error| error.to_string())?;
        match command.action {
            Some(action) if format::permits(agreed, &action) => Ok(()),
            _ => Err(format!("the federation has agreed on log format {agreed}, and the entry needs a later one")),
        }
    }

    /// The newest log format that this member knows.
    pub(crate) fn supported_format(&self) -> u32 {
        self.raft.with_state(Machine::supported)
    }

    async fn require_format(&self, action: &Action) -> Result<(), CommitError> {
        let permits = || format::permits(self.read(State::format_version), action);
        if permits() {
            return Ok(());
        }
        // This member may only be behind.
        self.barrier().await?;
        if permits() {
            return Ok(());
        }
        let required = format::required(action);
        let held_back_by = upgrade::held_back_by(self, required).await;
        Err(CommitError::Format { feature: format::feature(action), required, held_back_by })
    }

    /// Waits for the turn to judge a write of resources at this member.
    pub(crate) async fn admission_turn(&self, deadline: Instant) -> Result<MutexGuard<'_, ()>, CommitError> {
        let _waiting = self.admissions.try_acquire().map_err(|_| CommitError::Overloaded)?;
        timeout_at(deadline, self.admitting.lock()).await.map_err(|_| CommitError::Overloaded)
    }

    /// Returns once this member has applied everything that was committed before the call.
    pub(crate) async fn barrier(&self) -> Result<(), CommitError> {
        let deadline = Instant::now() + COMMIT_TIMEOUT;
        let confirmed = self.ask_leader(&Question::ReadIndex, deadline).await?;
        match timeout_at(deadline, self.raft.wait_applied(confirmed.log_index)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(CommitError::Stopped),
            Err(_) => {
                Err(CommitError::NoLeader { waited: COMMIT_TIMEOUT, last: "this member did not catch up".to_owned() })
            }
        }
    }

    /// Puts one question to whoever leads, again and again over changes of leader, until `deadline`.
    async fn ask_leader(&self, question: &Question, deadline: Instant) -> Result<Led, CommitError> {
        let mut hint = None;
        let mut last = String::from("no leader is known");
        let mut attempt = 0;
        let mut full_since = None;
        loop {
            let asked = match hint.filter(|id| *id != self.node_id) {
                Some(id) => timeout_at(deadline, self.ask_member(id, question)).await,
                None => timeout_at(deadline, self.ask_here(question)).await,
            };
            match asked {
                Ok(Ok(led)) => return Ok(led),
                Ok(Err(Attempt::Fatal(error))) => return Err(error),
                Ok(Err(Attempt::Elsewhere(next))) => hint = next,
                Ok(Err(Attempt::Again(why))) => {
                    last = why;
                    hint = None;
                }
                Ok(Err(Attempt::DiskFull(why))) => {
                    if full_since.get_or_insert_with(Instant::now).elapsed() > DISK_FULL_PATIENCE {
                        return Err(CommitError::DiskFull(why));
                    }
                    last = why;
                    hint = None;
                }
                Err(_) => return Err(CommitError::NoLeader { waited: COMMIT_TIMEOUT, last }),
            }
            if !pause(&mut attempt, deadline, hint.is_some()).await {
                return Err(CommitError::NoLeader { waited: COMMIT_TIMEOUT, last });
            }
        }
    }

    async fn ask_here(&self, question: &Question) -> Result<Led, Attempt> {
        match question {
            Question::Commit(command) => match self.raft.propose(command.clone()).await {
                Ok(proposed) => Ok(Led { log_index: proposed.log_index, outcome: proposed.outcome }),
                Err(ProposeError::NotLeader { hint }) => Err(Attempt::elsewhere(hint, self.node_id)),
                Err(ProposeError::TooLarge { bytes, bytes_max }) => {
                    Err(Attempt::Fatal(CommitError::TooLarge { bytes, bytes_max }))
                }
                Err(error @ ProposeError::DiskFull { .. }) => Err(Attempt::disk_full(self.node_id, &error.to_string())),
                Err(ProposeError::Stopped) => Err(Attempt::Fatal(CommitError::Stopped)),
                Err(error @ (ProposeError::Lost | ProposeError::Overloaded)) => Err(Attempt::Again(error.to_string())),
            },
            Question::ReadIndex => match timeout(ATTEMPT_TIMEOUT, self.raft.read_index()).await {
                Ok(Ok(log_index)) => Ok(Led { log_index, outcome: Vec::new() }),
                Ok(Err(ReadError::NotLeader { hint })) => Err(Attempt::elsewhere(hint, self.node_id)),
                Ok(Err(ReadError::Stopped)) => Err(Attempt::Fatal(CommitError::Stopped)),
                Ok(Err(error @ (ReadError::Timeout | ReadError::Overloaded))) => Err(Attempt::Again(error.to_string())),
                Err(_) => Err(Attempt::Again("no majority confirmed the leader in time".to_owned())),
            },
        }
    }

    async fn ask_member(&self, id: u64, question: &Question) -> Result<Led, Attempt> {
        let again = |status: Status| Attempt::Again(format!("member {id}: {}", status.message()));
        let mut client = self.peers.client(id).await.map_err(again)?;
        let asked = async {
            match question {
                Question::Commit(command) => {
                    let mut request = tonic::Request::new(ProposeRequest { command: command.clone() });
                    request.set_timeout(ATTEMPT_TIMEOUT);
                    let answer = client.propose(request).await?.into_inner();
                    let led = Led { log_index: answer.log_index, outcome: answer.outcome };
                    Ok((led, answer.not_leader_hint))
                }
                Question::ReadIndex => {
                    let answer = client.read_index(ReadIndexRequest {}).await?.into_inner();
                    Ok::<_, Status>((Led { log_index: answer.log_index, outcome: Vec::new() }, answer.not_leader_hint))
                }
            }
        };
        match timeout(ATTEMPT_TIMEOUT, asked).await {
            Ok(Ok((led, None))) => Ok(led),
            Ok(Ok((_, Some(next)))) => Err(Attempt::elsewhere(Some(next).filter(|next| *next != 0), id)),
            Ok(Err(status)) if status.code() == Code::InvalidArgument => {
                Err(Attempt::Fatal(CommitError::Refused(status.message().to_owned())))
            }
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                Err(Attempt::disk_full(id, status.message()))
            }
            Ok(Err(status)) => Err(again(status)),
            Err(_) => Err(Attempt::Again(format!("member {id} did not answer"))),
        }
    }
}

/// What only the leader can answer.
enum Question {
    /// Commit this entry.
    Commit(Vec<u8>),
    /// Up to where must a linearizable read have applied?
    ReadIndex,
}

/// The leader's answer.
struct Led {
    /// Of the committed entry, or of the newest before a read.
    log_index: u64,
    /// Encoded, of a committed entry.
    outcome: Vec<u8>,
}

/// What came of one try.
enum Attempt {
    /// Nothing happened; that member leads.
    Elsewhere(Option<u64>),
    /// The effect is unknown or nothing happened; try again.
    Again(String),
    /// Nothing happened: the leader's disk is full, and soon another one may lead.
    DiskFull(String),
    /// Trying again cannot help.
    Fatal(CommitError),
}

impl Attempt {
    fn disk_full(id: u64, why: &str) -> Self {
        Self::DiskFull(format!("member cp-{id}: {why}"))
    }

    /// A member that names itself while refusing is between two terms: wait instead of asking it in a loop.
    fn elsewhere(hint: Option<u64>, asked: u64) -> Self {
        match hint.filter(|id| *id != asked) {
            Some(id) => Self::Elsewhere(Some(id)),
            None => Self::Again("no leader is known".to_owned()),
        }
    }
}

/// Waits between tries; false when the deadline would pass. A redirect is followed at once, the first few times.
async fn pause(attempt: &mut u32, deadline: Instant, redirected: bool) -> bool {
    *attempt += 1;
    if redirected && *attempt <= 3 {
        return true;
    }
    // An election takes 300 to 600 ms: probing every 20 to 100 ms finds its end early without a storm.
    let ceiling = Duration::from_millis(100).min(Duration::from_millis(20) * *attempt);
    let delay = rand::random_range(Duration::from_millis(5)..=ceiling);
    if Instant::now() + delay >= deadline {
        return false;
    }
    sleep(delay).await;
    true
}

/// Connections to the other members' client port.
pub(crate) struct Peers {
    credential: LiveCredential,
    roster: Arc<Roster>,
    members: PerPeer<Arc<Peer>>,
}

struct Peer {
    address: String,
    spiffe_id: SpiffeId,
    channel: Mutex<Option<Channel>>,
}

impl Peers {
    /// To all others in `roster`, as it is when they are asked.
    pub(crate) fn new(credential: LiveCredential, roster: Arc<Roster>) -> Self {
        Self { credential, roster, members: PerPeer::new(CancellationToken::new()) }
    }

    /// Ids of the other members, ascending.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.roster.others().iter().map(|member| member.id).collect()
    }

    /// Client address of another member.
    pub(crate) fn address(&self, id: u64) -> Option<String> {
        self.roster.member(id).map(|member| member.client)
    }

    /// A client of another member. The channel reconnects by itself once it was made.
    pub(crate) async fn client(&self, id: u64) -> Result<MembersClient<Channel>, Status> {
        self.members.set(&self.roster.others(), |member, _| {
            let trust_domain = self.credential.current().spiffe_id.trust_domain().clone();
            let spiffe_id = SpiffeId::control_plane(&trust_domain, member.id);
            Arc::new(Peer { address: member.client.clone(), spiffe_id, channel: Mutex::default() })
        });
        let peer = self.members.with(id, Arc::clone);
        let peer = peer.ok_or_else(|| Status::unavailable(format!("member {id} is unknown")))?;
        let mut channel = peer.channel.lock().await;
        let channel = match &*channel {
            Some(channel) => channel.clone(),
            None => {
                let connect = grpc::connect(
                    std::slice::from_ref(&peer.address),
                    &self.credential,
                    Expect::Id(peer.spiffe_id.clone()),
                );
                let made = timeout(ATTEMPT_TIMEOUT, connect)
                    .await
                    .map_err(|_| Status::unavailable(format!("{} did not answer", peer.address)))?
                    .map_err(|error| Status::unavailable(error.to_string()))?;
                channel.insert(made).clone()
            }
        };
        Ok(MembersClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_list().entries(self.ids()).finish()
    }
}

/// Why nothing was committed, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error("no leader took the request within {} s ({last}); it may still take effect, repeat it with the same request id", waited.as_secs())]
    NoLeader { waited: Duration, last: String },
    #[error("a request of {bytes} bytes exceeds the maximum of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("{0}")]
    DiskFull(String),
    #[error("too many writes are waiting, try again")]
    Overloaded,
    #[error("too many changes, the next is taken in {} s", wait.as_secs() + 1)]
    TooFast { wait: Duration },
    #[error("this member is stopping")]
    Stopped,
    #[error("{0}")]
    Refused(String),
    #[error("{feature} needs log format {required}: {}", waits_for(held_back_by))]
    Format {
        feature: &'static str,
        required: u32,
        /// Members that do not know it, in words; none: the leader is about to raise it.
        held_back_by: Vec<String>,
    },
    #[error("the leader answered what this version does not understand")]
    Incompatible,
}

impl From<CommitError> for Status {
    fn from(error: CommitError) -> Self {
        let (code, word) = match &error {
            CommitError::NoLeader { .. } => (Code::Unavailable, "NO_LEADER"),
            CommitError::Stopped => (Code::Unavailable, "STOPPING"),
            CommitError::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
            CommitError::DiskFull(_) => (Code::ResourceExhausted, "DISK_FULL"),
            CommitError::TooFast { .. } => (Code::ResourceExhausted, "TOO_FAST"),
            CommitError::TooLarge { .. } => (Code::InvalidArgument, "TOO_LARGE"),
            CommitError::Refused(_) => (Code::InvalidArgument, "REFUSED_BY_LEADER"),
            CommitError::Format { held_back_by, .. } if held_back_by.is_empty() => (Code::Unavailable, "FORMAT_RISES"),
            CommitError::Format { .. } => (Code::FailedPrecondition, "FORMAT_HELD_BACK"),
            CommitError::Incompatible => (Code::Internal, "INCOMPATIBLE"),
        };
        refusal::coded(Self::new(code, error.to_string()), word)
    }
}

fn waits_for(held_back_by: &[String]) -> String {
    if held_back_by.is_empty() {
        return "every member knows it by now, try again in a second".to_owned();
    }
    format!(
        "{}\nhint: start or upgrade it, the format rises by itself once every member knows it; one that is lost: `meshctl member remove ID`",
        held_back_by.join(", ")
    )
}

/// What the policy compiler reads of a state whose resources have these values.
pub(crate) fn federation_of(state: &State, resources: Resources) -> FederationState {
    let gateways = state.gateways().iter().map(|(key, gateway)| {
        let addresses = convert::addresses(&gateway.addresses);
        (key.clone(), GatewayRecord { spiffe_id: gateway.spiffe_id.clone(), addresses })
    });
    let reports = state
        .reports()
        .iter()
        .map(|(cluster, services)| (cluster.clone(), services.iter().map(convert::service_report).collect()));
    let mut reported_since: BTreeMap<ServiceKey, BTreeMap<ClusterId, u64>> = BTreeMap::new();
    for (cluster, services) in state.reports() {
        for service in services.iter() {
            let key = ServiceKey::new(service.namespace.as_str(), service.name.as_str());
            reported_since.entry(key).or_default().insert(ClusterId::new(cluster.as_str()), service.since);
        }
    }
    FederationState {
        resources,
        reports: reports.collect(),
        reported_since,
        gateways: gateways.collect(),
        tcp_slots: state.tcp_slots().map(|(name, slot)| (name.clone(), slot)).collect(),
        ..authority_facts(state)
    }
}

/// The part of it that is about trust: domain, roots and revocations.
pub(crate) fn authority_facts(state: &State) -> FederationState {
    let (trust_domain, bundle_der) = match state.ca() {
        Some(ca) => (ca.trust_domain.clone(), vec![ca.root_der.clone()]),
        None => (String::new(), Vec::new()),
    };
    let revocations = revocations::config(state);
    FederationState { trust_domain, bundle_der, revocations, ..FederationState::default() }
}

/// Wall clock, Unix milliseconds; 0 before 1970.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A client waits this long at most: more than one failed election (1.2 s) and a slow disk together.
pub(crate) const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A leader whose disk is full hands over after one election timeout (300 ms), if anybody can take over; and a client
/// that asks several members waits for each little more than a second.
const DISK_FULL_PATIENCE: Duration = Duration::from_millis(600);
/// One try at one member; longer than a commit over a slow disk, short enough to try another leader.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);
/// Writes of resources waiting to be judged: a hundred a second at worst, so that the last still has its turn in time.
const ADMISSIONS_MAX: usize = 256;
/// Writes waiting at this member; at 2,000 commits a second, half a second of work.
const WRITES_MAX: usize = 1_024;
/// Above the largest command (8 MiB) with its envelope.
pub(crate) const MESSAGE_BYTES_MAX: usize = 12 * 1024 * 1024;
