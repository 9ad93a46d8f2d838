//! How commands change the state. Pure: the result depends on the state and the command alone.

use archipelago_model::{
    admit,
    resource::{Kind, Resource, ResourceKey},
};
use archipelago_proto::v1;
use prost::Message;

use super::{
    command::{
        Action, Answer, Applied, ApplyResources, CaInit, Command, Consumed, Done, Outcome, RecordIssued, RefusalKind,
        Refused, RegisterGateway, ReportExports, TokenConsume, TokenCreate,
    },
    dedup::{Remembered, RequestKey},
    names::label_problem,
    state::{Gateway, Meta, State, Token, TokenUse},
};
use crate::ca::sha256;

impl State {
    /// Applies one command and returns its encoded [`Outcome`]; a request id seen before returns the outcome of then.
    pub(super) fn apply(&mut self, command: Command) -> Vec<u8> {
        let Command { request_id, actor, proposed_unix_ms, action } = command;
        let Some(action) = action else {
            return Outcome::refused(self.revision, RefusalKind::Malformed, "a command without an action")
                .encode_to_vec();
        };
        if request_id.len() > REQUEST_ID_BYTES_MAX {
            let reason = format!("a request id is at most {REQUEST_ID_BYTES_MAX} bytes");
            return Outcome::refused(self.revision, RefusalKind::Malformed, reason).encode_to_vec();
        }
        if request_id.is_empty() {
            return self.perform(action, proposed_unix_ms).encode_to_vec();
        }
        let key = RequestKey { actor, request_id };
        let fingerprint = fingerprint(&action);
        if let Some(remembered) = self.dedup.get(&key) {
            if remembered.fingerprint == fingerprint {
                return remembered.outcome.clone();
            }
            let reason = format!("request id {:?} was already used for a different request", key.request_id);
            return Outcome::refused(self.revision, RefusalKind::Conflict, reason).encode_to_vec();
        }
        let outcome = self.perform(action, proposed_unix_ms).encode_to_vec();
        self.dedup.insert(key, Remembered { fingerprint, outcome: outcome.clone() });
        outcome
    }

    fn perform(&mut self, action: Action, now_unix_ms: i64) -> Outcome {
        let result = match action {
            Action::ApplyResources(apply) => self.apply_resources(apply),
            Action::ReportExports(report) => self.report_exports(report),
            Action::RegisterGateway(gateway) => self.register_gateway(gateway),
            Action::CaInit(ca) => self.ca_init(ca),
            Action::TokenCreate(token) => self.token_create(token, now_unix_ms),
            Action::TokenConsume(token) => self.token_consume(&token, now_unix_ms),
            Action::RecordIssued(records) => Ok(self.record_issued(records)),
        };
        let answer = result
            .unwrap_or_else(|refusal| Answer::Refused(Refused { kind: refusal.kind.into(), reasons: refusal.reasons }));
        Outcome { revision: self.revision, answer: Some(answer) }
    }

    fn apply_resources(&mut self, apply: ApplyResources) -> Result<Answer, Refusal> {
        let mut candidate = self.resources.clone();
        let mut changes = Vec::new();
        let mut texts = Vec::new();
        let mut problems = Vec::new();
        for text in apply.upserts {
            match Resource::from_json(&text.json) {
                Ok(resource) => {
                    let key = resource.key();
                    let json = resource.to_json();
                    let what = match self.meta.get(&key) {
                        None => "created",
                        Some(meta) if meta.json == json => "unchanged",
                        Some(_) => "updated",
                    };
                    changes.push(change(&key, what));
                    candidate.insert(key.clone(), resource);
                    texts.push((key, json, what));
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        if !problems.is_empty() {
            return Err(Refusal { kind: RefusalKind::Malformed, reasons: problems });
        }
        let mut deletes = Vec::new();
        for named in apply.deletes {
            let key = named.kind.parse::<Kind>().ok().map(|kind| ResourceKey {
                kind,
                namespace: named.namespace.clone(),
                name: named.name.clone(),
            });
            match key.filter(|key| candidate.remove(key).is_some()) {
                Some(key) => {
                    changes.push(change(&key, "deleted"));
                    deletes.push(key);
                }
                None => problems.push(format!("{} does not exist", display_key(&named))),
            }
        }
        if !problems.is_empty() {
            return Err(Refusal { kind: RefusalKind::NotFound, reasons: problems });
        }
        if candidate.len() > RESOURCES_MAX {
            return Err(Refusal::one(
                RefusalKind::Full,
                format!("a federation holds at most {RESOURCES_MAX} resources"),
            ));
        }
        // The documents were admitted against the state one member had; another write may have come in between.
        let contradictions = admit::check(&candidate);
        if !contradictions.is_empty() {
            return Err(Refusal { kind: RefusalKind::Inconsistent, reasons: contradictions });
        }

        if changes.iter().all(|change| change.what == "unchanged") {
            return Ok(Answer::Applied(Applied { changes }));
        }
        self.revision += 1;
        self.resources = candidate;
        for (key, json, what) in texts {
            if key.kind == Kind::Cluster {
                self.deleted_clusters.remove(&key.name);
            }
            if what == "unchanged" {
                continue;
            }
            let created_revision = self.meta.get(&key).map_or(self.revision, |meta| meta.created_revision);
            self.meta.insert(key, Meta { json, created_revision, modified_revision: self.revision });
        }
        for key in deletes {
            self.meta.remove(&key);
            if key.kind == Kind::Cluster {
                self.forget_cluster(key.name);
            }
        }
        Ok(Answer::Applied(Applied { changes }))
    }

    /// Takes a deleted cluster out of the registry, so that nobody waits for its gateways or sends it traffic.
    fn forget_cluster(&mut self, cluster: String) {
        self.gateways.retain(|(of, _), _| *of != cluster);
        self.reports.remove(&cluster);
        self.deleted_clusters.insert(cluster);
    }

    fn report_exports(&mut self, report: ReportExports) -> Result<Answer, Refusal> {
        let ReportExports { cluster, mut services } = report;
        if let Some(problem) = label_problem("cluster", &cluster) {
            return Err(Refusal::one(RefusalKind::Malformed, problem));
        }
        if self.deleted_clusters.contains(&cluster) {
            return Err(Refusal::one(RefusalKind::NotFound, format!("cluster {cluster} was deleted")));
        }
        if services.len() > SERVICES_PER_CLUSTER_MAX {
            let reason = format!("cluster {cluster} reports more than {SERVICES_PER_CLUSTER_MAX} services");
            return Err(Refusal::one(RefusalKind::Full, reason));
        }
        for service in &mut services {
            let problem = label_problem("namespace", &service.namespace).or(label_problem("service", &service.name));
            if let Some(problem) = problem {
                return Err(Refusal::one(RefusalKind::Malformed, problem));
            }
            strip_counts(service);
        }
        services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        services.dedup_by(|a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name));
        if self.reports.get(&cluster) == Some(&services)
            || (services.is_empty() && !self.reports.contains_key(&cluster))
        {
            return Ok(Answer::Done(Done {}));
        }
        for service in services.iter().filter(|service| service.protocol() == v1::Protocol::Tcp) {
            self.assign_tcp_slot(&service.namespace, &service.name);
        }
        self.revision += 1;
        self.reports.insert(cluster, services);
        Ok(Answer::Done(Done {}))
    }

    /// Slots are dense and never reused: a client that kept an address must not reach another service.
    fn assign_tcp_slot(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let next = self.tcp_slots.len();
        if next >= TCP_SLOTS_MAX || self.tcp_slots.contains_key(&key) {
            return;
        }
        if let Ok(slot) = u32::try_from(next) {
            self.tcp_slots.insert(key, slot);
        }
    }

    fn register_gateway(&mut self, register: RegisterGateway) -> Result<Answer, Refusal> {
        let RegisterGateway { cluster, name, spiffe_id, addresses, workers } = register;
        if let Some(problem) = label_problem("cluster", &cluster).or(label_problem("gateway", &name)) {
            return Err(Refusal::one(RefusalKind::Malformed, problem));
        }
        if self.deleted_clusters.contains(&cluster) {
            return Err(Refusal::one(RefusalKind::NotFound, format!("cluster {cluster} was deleted")));
        }
        let gateway = Gateway { spiffe_id, addresses: addresses.unwrap_or_default(), workers };
        let key = (cluster, name);
        if self.gateways.get(&key) == Some(&gateway) {
            return Ok(Answer::Done(Done {}));
        }
        if self.gateways.len() >= GATEWAYS_MAX && !self.gateways.contains_key(&key) {
            return Err(Refusal::one(RefusalKind::Full, format!("a federation holds at most {GATEWAYS_MAX} gateways")));
        }
        self.revision += 1;
        self.gateways.insert(key, gateway);
        Ok(Answer::Done(Done {}))
    }

    fn ca_init(&mut self, ca: CaInit) -> Result<Answer, Refusal> {
        match &self.ca {
            Some(present) if *present == ca => Ok(Answer::Done(Done {})),
            Some(_) => Err(Refusal::one(RefusalKind::Conflict, "this federation already has another authority")),
            None => {
                self.revision += 1;
                self.ca = Some(ca);
                Ok(Answer::Done(Done {}))
            }
        }
    }

    fn token_create(&mut self, create: TokenCreate, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let secret = secret_key(&create.secret_sha256)?;
        let problem = label_problem("cluster", &create.cluster).or(label_problem(role_name(create.role), &create.name));
        if let Some(problem) = problem {
            return Err(Refusal::one(RefusalKind::Malformed, problem));
        }
        if self.tokens.contains_key(&secret) {
            return Err(Refusal::one(RefusalKind::Conflict, "a token with this secret exists"));
        }
        self.tokens.retain(|_, token| token.expires_unix_ms.saturating_add(TOKEN_RETENTION_MS) > now_unix_ms);
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::one(RefusalKind::Full, format!("at most {TOKENS_MAX} tokens are kept")));
        }
        let TokenCreate { cluster, role, name, ttl_ms, .. } = create;
        let expires_unix_ms = now_unix_ms.saturating_add(ttl_ms.max(0));
        self.tokens.insert(secret, Token { cluster, role, name, expires_unix_ms, used: None });
        Ok(Answer::Done(Done {}))
    }

    fn token_consume(&mut self, consume: &TokenConsume, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let secret = secret_key(&consume.secret_sha256)?;
        let Some(token) = self.tokens.get_mut(&secret) else {
            return Err(Refusal::one(RefusalKind::TokenUnknown, "this join token is unknown here"));
        };
        if let Some(used) = &token.used {
            let reason = format!("this join token was already used by {} at {}", used.by, utc(used.unix_ms));
            return Err(Refusal::one(RefusalKind::TokenUsed, reason));
        }
        if now_unix_ms >= token.expires_unix_ms {
            let reason = format!("this join token expired at {}", utc(token.expires_unix_ms));
            return Err(Refusal::one(RefusalKind::TokenExpired, reason));
        }
        let by = format!("/cluster/{}/{}/{}", token.cluster, role_name(token.role), token.name);
        token.used = Some(TokenUse { unix_ms: now_unix_ms, by });
        Ok(Answer::Consumed(Consumed { cluster: token.cluster.clone(), role: token.role, name: token.name.clone() }))
    }

    fn record_issued(&mut self, records: RecordIssued) -> Answer {
        self.issued.extend(records.certificates);
        let excess = self.issued.len().saturating_sub(ISSUED_MAX);
        self.issued.drain(..excess);
        Answer::Done(Done {})
    }
}

/// Why a command changed nothing.
struct Refusal {
    kind: RefusalKind,
    reasons: Vec<String>,
}

impl Refusal {
    fn one(kind: RefusalKind, reason: impl Into<String>) -> Self {
        Self { kind, reasons: vec![reason.into()] }
    }
}

/// Word for a role in SPIFFE paths and messages.
pub(crate) fn role_name(role: i32) -> &'static str {
    match v1::JoinRole::try_from(role) {
        Ok(v1::JoinRole::Agent) => "agent",
        Ok(v1::JoinRole::Gateway) => "gateway",
        Ok(v1::JoinRole::Unspecified) | Err(_) => "unspecified",
    }
}

/// Drops what is soft state: counts live in the agent's session.
pub(crate) fn strip_counts(service: &mut v1::ServiceReport) {
    service.ready = 0;
    service.total = 0;
    service.unknown = 0;
    service.last_failure = None;
    service.versions.sort();
    service.versions.dedup();
}

/// RFC 3339 text of a Unix time in milliseconds.
fn utc(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| format!("{unix_ms} ms"), |at| at.to_string())
}

fn secret_key(sha256: &[u8]) -> Result<[u8; 32], Refusal> {
    <[u8; 32]>::try_from(sha256)
        .map_err(|_| Refusal::one(RefusalKind::Malformed, "the hash of a token's secret has 32 bytes"))
}

fn fingerprint(action: &Action) -> [u8; 32] {
    let mut bytes = Vec::new();
    action.encode(&mut bytes);
    sha256(&bytes)
}

fn change(key: &ResourceKey, what: &str) -> v1::Change {
    v1::Change {
        kind: key.kind.to_string(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        what: what.to_owned(),
    }
}

fn display_key(key: &v1::ResourceKey) -> String {
    if key.namespace.is_empty() {
        format!("{} {}", key.kind, key.name)
    } else {
        format!("{} {}/{}", key.kind, key.namespace, key.name)
    }
}

const REQUEST_ID_BYTES_MAX: usize = 128;
const RESOURCES_MAX: usize = 100_000;
const SERVICES_PER_CLUSTER_MAX: usize = 10_000;
const GATEWAYS_MAX: usize = 100_000;
/// TCP ports 16000 and up of a gateway; beyond this the range would run into the ephemeral ports (32768).
const TCP_SLOTS_MAX: usize = 16_000;
const TOKENS_MAX: usize = 10_000;
/// A used or expired token stays listed for a week, so that `token list` and refusals can say what became of it.
const TOKEN_RETENTION_MS: i64 = 7 * 24 * 3_600 * 1_000;
const ISSUED_MAX: usize = 10_000;
