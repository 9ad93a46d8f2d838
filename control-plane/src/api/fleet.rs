//! `Fleet`: what operators see of members, clusters, gateways, services and tunnels, and how far a revision got.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use archipelago_model::{id::ServiceKey, resource::Resource, version::Version};
use archipelago_proto::v1::{
    AgentSession, ClockOffset, ClusterStatus, ExplainRequest, ExplainResponse, GatewayStatus, Kept, MemberStatus,
    MemberStatusRequest, PolicyStatus, Problem, ResourceKey, ServicesRequest, ServicesResponse, StatusRequest,
    StatusResponse, TunnelsRequest, TunnelsResponse, WaitAppliedProgress, WaitAppliedRequest, fleet_server::Fleet,
};
use futures_util::future::join_all;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    Context,
    members::ask_status,
    operator,
    page::{self, Page},
    services,
};
use crate::machine::{Key, State, command::Role, convert};
use crate::policy;
use crate::sessions::{GatewayView, gateway_key, progress::judge};

pub(crate) struct FleetService(pub(crate) Arc<Context>);

#[tonic::async_trait]
impl Fleet for FleetService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        operator(&request)?;
        let members = self.0.member_statuses().await;
        let (version, clusters) = self.0.clusters();
        let clocks = latest(members.iter().flat_map(|member| member.clocks.iter().cloned()));
        let trust_domain = self.0.trust_domain.to_string();
        Ok(Response::new(StatusResponse {
            revision: version.revision,
            fleet: version.fleet,
            restore_epoch: version.restore_epoch,
            trust_domain,
            members,
            clusters,
            clocks,
        }))
    }

    async fn services(&self, request: Request<ServicesRequest>) -> Result<Response<ServicesResponse>, Status> {
        operator(&request)?;
        let ServicesRequest { page_size, page_token } = request.into_inner();
        let after = page::parse(&page_token)?.map(|[namespace, name]| ServiceKey::new(namespace, name));
        let (_, federation) = self.0.compiler.federation();
        let (agents, gateways) = (self.0.sessions.agents(), self.0.sessions.gateways());
        // Tens of thousands of reports are work for a while, and none for a thread that serves streams.
        let answer = tokio::task::spawn_blocking(move || {
            let mut page = Page::new(page_size);
            let overview = services::Overview::new(&federation, &agents, &gateways);
            let services: Vec<_> =
                overview.services(after.as_ref()).take_while(|service| page.takes(service.encoded_len())).collect();
            let last = services.last().filter(|_| page.is_full());
            let next_page_token = last.map(|last| format!("{}/{}", last.namespace, last.name)).unwrap_or_default();
            ServicesResponse { services, next_page_token }
        });
        Ok(Response::new(answer.await.map_err(|_| Status::internal("the listing failed"))?))
    }

    async fn tunnels(&self, request: Request<TunnelsRequest>) -> Result<Response<TunnelsResponse>, Status> {
        operator(&request)?;
        let gateways = self.0.sessions.gateways();
        let tunnels = gateways.into_values().flat_map(|view| view.session.tunnels.clone()).collect();
        Ok(Response::new(TunnelsResponse { tunnels }))
    }

    type WaitAppliedStream = ReceiverStream<Result<WaitAppliedProgress, Status>>;

    async fn wait_applied(
        &self,
        request: Request<WaitAppliedRequest>,
    ) -> Result<Response<Self::WaitAppliedStream>, Status> {
        operator(&request)?;
        let WaitAppliedRequest { revision, timeout_ms, percent, majority, wrote } = request.into_inner();
        let enough = if majority { Enough::Majority } else { Enough::Percent(percent) };
        let wait = if timeout_ms == 0 { WAIT_DEFAULT } else { Duration::from_millis(timeout_ms).min(WAIT_MAX) };
        let (progress, receiver) = mpsc::channel(PROGRESS_MAX);
        tokio::spawn(wait_applied(Arc::clone(&self.0), revision, wrote, enough, Instant::now() + wait, progress));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        operator(&request)?;
        let ExplainRequest { cluster, gateway, query } = request.into_inner();
        let query = query.ok_or_else(|| Status::invalid_argument("no question"))?;
        let gateways = self.0.sessions.gateways();
        let wanted = |view: &&GatewayView| {
            (cluster.is_empty() || view.session.cluster == cluster)
                && (gateway.is_empty() || view.session.gateway == gateway)
        };
        // One of our own answers a hop earlier.
        let here = self.0.consensus.node_id;
        let found = gateways.values().filter(wanted).min_by_key(|view| view.member != here);
        let Some(GatewayView { session, member }) = found else {
            let who = match (cluster.is_empty(), gateway.is_empty()) {
                (true, true) => "no gateway is connected".to_owned(),
                (_, true) => format!("no gateway of cluster {cluster} is connected"),
                (_, false) => format!("gateway {} is not connected", gateway_key(&cluster, &gateway)),
            };
            return Err(Status::not_found(who));
        };
        let key = gateway_key(&session.cluster, &session.gateway);
        if *member == here {
            let response = self.0.sessions.explain(&key, query).await.map_err(|error| ask_status(&key, error))?;
            return Ok(Response::new(response));
        }
        let mut client = self.0.consensus.peers.client(*member).await?;
        let question =
            ExplainRequest { cluster: session.cluster.clone(), gateway: session.gateway.clone(), query: Some(query) };
        match timeout(EXPLAIN_TIMEOUT, client.explain_local(question)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("member {member}, which serves {key}, did not answer"))),
        }
    }
}

impl Context {
    /// All members, asked at once; one that does not answer in time is unreachable.
    pub(crate) async fn member_statuses(&self) -> Vec<MemberStatus> {
        let consensus = &self.consensus;
        let others = consensus.peers.ids().into_iter().map(|id| async move {
            let asked = async {
                let mut client = consensus.peers.client(id).await?;
                client.member_status(MemberStatusRequest {}).await
            };
            match timeout(MEMBER_TIMEOUT, asked).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(_)) | Err(_) => MemberStatus {
                    id,
                    role: "unreachable".to_owned(),
                    address: consensus.peers.address(id).unwrap_or_default(),
                    ..MemberStatus::default()
                },
            }
        });
        let mut members = join_all(others).await;
        members.push(self.own_status());
        members.sort_by_key(|member| member.id);
        members
    }
}

/// The latest word on each clock: who asks another member next time leaves the earlier one with an older word.
fn latest(offsets: impl Iterator<Item = ClockOffset>) -> Vec<ClockOffset> {
    let mut latest: BTreeMap<String, ClockOffset> = BTreeMap::new();
    for offset in offsets {
        if latest.get(&offset.spiffe_id).is_none_or(|known| known.measured_unix_ms < offset.measured_unix_ms) {
            latest.insert(offset.spiffe_id.clone(), offset);
        }
    }
    latest.into_values().collect()
}

impl Context {
    /// Every cluster that was declared or has joined, with its gateways; and the version they are judged against.
    pub(crate) fn clusters(&self) -> (Version, Vec<ClusterStatus>) {
        let connected = self.sessions.gateways();
        let agents = self.sessions.agents();
        let mut names = BTreeSet::new();
        let mut declared = BTreeMap::new();
        let state = self.consensus.state();
        for resource in self.consensus.resources(&state).values() {
            if let Resource::Cluster(cluster) = resource {
                let spec = (cluster.spec.region.clone(), cluster.spec.drained);
                declared.insert(cluster.metadata.name.clone(), spec);
            }
        }
        names.extend(state.gateways().keys().map(|(cluster, _)| cluster.clone()));
        names.extend(state.reports().keys().cloned());
        let (version, registered, reported) = (state.version(), state.gateways(), state.reports());
        let agent_tokens_used: BTreeSet<&str> = state
            .tokens()
            .values()
            .filter(|token| token.used_unix_ms.is_some() && token.role == i32::from(Role::Agent))
            .map(|token| token.cluster.as_str())
            .collect();
        names.extend(declared.keys().cloned());
        let clusters = names
            .into_iter()
            .map(|name| {
                let gateways: Vec<GatewayStatus> = registered
                    .range((name.clone(), String::new())..)
                    .take_while(|((cluster, _), _)| *cluster == name)
                    .map(|((cluster, gateway), record)| {
                        let view = connected.get(&gateway_key(cluster, gateway));
                        gateway_status(cluster, gateway, record, view, version)
                    })
                    .collect();
                let agent_state = if agents.contains_key(&name) {
                    "connected"
                } else if reported.contains_key(&name) || agent_tokens_used.contains(name.as_str()) {
                    "disconnected"
                } else {
                    "pending"
                };
                let (region, drained) = declared.get(&name).cloned().unwrap_or_default();
                let alive =
                    agent_state == "connected" || gateways.iter().any(|gateway| gateway.state != "disconnected");
                let state = if gateways.is_empty() && agent_state == "pending" {
                    "pending"
                } else if !alive {
                    "unreachable"
                } else if drained {
                    "drained"
                } else {
                    "active"
                };
                let (state, agent_state) = (state.to_owned(), agent_state.to_owned());
                let problems = agents.get(&name).map(|agent| problems(agent)).unwrap_or_default();
                ClusterStatus { name, region, state, gateways, agent_state, problems }
            })
            .collect();
        (version, clusters)
    }
}

/// What its agent says and is not used, and what its users wrote and does not count.
fn problems(agent: &AgentSession) -> Vec<Problem> {
    let is_settled = |status: &&PolicyStatus| matches!(status.reason.as_str(), "Accepted" | "Pending");
    let policies = agent.policies.iter().filter(|status| !is_settled(status)).map(|status| Problem {
        subject: format!("policy {} {}/{}", status.kind, status.namespace, status.name),
        reason: format!("{}: {}", status.reason, status.message.replace('\n', "; ")),
    });
    agent.problems.iter().cloned().chain(policies.take(POLICIES_SHOWN_MAX)).collect()
}

fn gateway_status(
    cluster: &str,
    gateway: &str,
    record: &crate::machine::Gateway,
    view: Option<&GatewayView>,
    version: Version,
) -> GatewayStatus {
    let mut status = GatewayStatus {
        name: gateway.to_owned(),
        cluster: cluster.to_owned(),
        state: "disconnected".to_owned(),
        addresses: Some(convert::addresses(&record.addresses)),
        workers: record.workers,
        ..GatewayStatus::default()
    };
    let Some(GatewayView { session, .. }) = view else { return status };
    let acked = session.acked.map_or_else(Version::default, Version::from);
    status.revision = acked.revision;
    status.last_seen_unix_ms = session.last_seen_unix_ms;
    if let Some(hello) = &session.hello {
        status.svid_not_after_unix = hello.svid_not_after_unix;
        status.running = hello.running;
    }
    status.running = session.acked.or(status.running);
    status.refused = session.refused;
    let rejected = session.rejections.iter().map(|rejection| Problem {
        subject: rejection.resource.clone(),
        reason: format!("rejected, {}: {}", kept(rejection.kept()), rejection.reason),
    });
    let of_itself = [&session.unsupported, &session.unserved, &session.problems];
    status.problems = rejected.chain(of_itself.into_iter().flatten().cloned()).collect();
    let state = if !session.held_back.is_empty() {
        status.error.clone_from(&session.held_back);
        "rejected"
    } else if acked >= version.policy() {
        "synced"
    } else {
        "syncing"
    };
    status.state = state.to_owned();
    status
}

/// What runs in the place of a rejected resource.
const fn kept(kept: Kept) -> &'static str {
    match kept {
        Kept::LastGood => "its last good form runs",
        Kept::Closed => "requests for it are refused",
        Kept::Unspecified => "and what runs instead is not known",
    }
}

/// Whose acknowledgements end the wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Enough {
    /// 0: all.
    Percent(u32),
    Majority,
}

impl Enough {
    fn percent(self) -> u32 {
        match self {
            Self::Percent(percent) => percent,
            Self::Majority => 0,
        }
    }
}

/// Name of the configuration resource that a resource of an operator is about; `None` for one that was deleted, because
/// then the other one changed with it.
pub(super) fn configured_by(state: &State, key: &ResourceKey) -> Option<String> {
    let key = Key { kind: key.kind.clone(), namespace: key.namespace.clone(), name: key.name.clone() };
    let service = |namespace: &str, name: &str| Some(format!("service/{namespace}/{name}"));
    match policy::value(&key, state.resources().get(&key)?)? {
        Resource::Cluster(_) => Some(format!("cluster/{}", key.name)),
        Resource::ServiceExport(_) => service(&key.namespace, &key.name),
        Resource::TrafficSplit(split) => service(&key.namespace, &split.spec.service),
        Resource::FailoverPolicy(policy) => service(&key.namespace, &policy.spec.service),
        Resource::BackendPolicy(policy) => service(&key.namespace, &policy.spec.service),
    }
}

/// Streams progress until the revision is everywhere, refused by the rest, or the deadline passes.
async fn wait_applied(
    context: Arc<Context>,
    revision: u64,
    wrote: Vec<ResourceKey>,
    enough: Enough,
    deadline: Instant,
    progress: mpsc::Sender<Result<WaitAppliedProgress, Status>>,
) {
    let mut sessions = context.sessions.subscribe();
    let mut revisions = context.consensus.published.subscribe();
    let newest = context.consensus.published.version();
    let target = match revision {
        0 => newest.policy(),
        _ => Version { restore_epoch: newest.restore_epoch, revision, fleet: 0 },
    };
    let mut last_sent = None;
    loop {
        sessions.mark_unchanged();
        revisions.mark_unchanged();
        // Before this member has applied the revision it may not know every gateway that must apply it.
        let caught_up = context.consensus.published.version() >= target;
        let (expected, concerned): (Vec<String>, BTreeSet<String>) = context.consensus.read(|state| {
            let gateways = state.gateways().keys().map(|(cluster, gateway)| gateway_key(cluster, gateway));
            (gateways.collect(), wrote.iter().filter_map(|key| configured_by(state, key)).collect())
        });
        let mut judged = judge(target, &concerned, &expected, &context.sessions.acks(target), enough.percent());
        judged.done |= enough == Enough::Majority && judged.acknowledged > judged.expected / 2;
        judged.done &= caught_up;
        let over = Instant::now() >= deadline;
        let done = judged.done || over;
        let changed = last_sent.as_ref() != Some(&judged);
        if changed || done {
            last_sent = Some(judged.clone());
            judged.done = done;
            if progress.send(Ok(judged)).await.is_err() || done {
                return;
            }
        }
        tokio::select! {
            () = progress.closed() => return,
            () = context.stopping.cancelled() => {
                let status = Status::unavailable("this member is shutting down, ask another");
                let _ = progress.try_send(Err(status));
                return;
            }
            () = sleep_until(deadline) => {}
            changed = sessions.changed() => if changed.is_err() { return },
            changed = revisions.changed() => if changed.is_err() { return },
        }
    }
}

/// A dead member must not make `status` slow; a living one answers in a round trip.
const MEMBER_TIMEOUT: Duration = Duration::from_millis(300);
/// Longer than the gateway may take (2 s).
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(3);
const WAIT_DEFAULT: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(3_600);
const PROGRESS_MAX: usize = 4;
/// Of one cluster's policies that do not count; beyond this nobody reads on.
const POLICIES_SHOWN_MAX: usize = 100;
