//! What an entry of the log did, as events: the same on every member that applies it, under the same ids.
//!
//! Resources are read here, beside the state machine, which reads none.

use std::collections::BTreeSet;
use std::sync::Arc;

use archipelago_model::event::{Draft, Reason};
use archipelago_model::resource::Resource;
use archipelago_proto::v1::Event;
use prost::Message as _;

use super::{Chronicle, LOG, source_of};
use crate::machine::command::{
    Action, Answer, ApplyResources, ChangeKind, Command, ControlPlaneMember, Outcome, ReportedService, Role, role_name,
};
use crate::machine::{Key, State, Witness};
use crate::policy;

/// Notes what entries do.
pub(super) fn witness(chronicle: Arc<Chronicle>) -> Witness {
    Box::new(move |state, command| {
        let before = Before::of(state, command);
        let (actor, proposed_unix_ms) = (command.actor.clone(), command.proposed_unix_ms);
        let chronicle = Arc::clone(&chronicle);
        Some(Box::new(move |log_index, state, outcome| {
            let drafts = before.map(|before| before.drafts(state, outcome)).unwrap_or_default();
            let event = |(place, draft): (u64, Draft)| {
                let draft = if draft.actor.is_empty() { Draft { actor: actor.clone(), ..draft } } else { draft };
                event(log_index, place, draft, proposed_unix_ms)
            };
            let events = (0..).zip(drafts).map(event).collect();
            chronicle.entry(events, proposed_unix_ms);
        }))
    })
}

fn event(log_index: u64, place: u64, draft: Draft, unix_ms: i64) -> Event {
    // Two bytes for the place within the entry: more than a write may change.
    let id = (log_index << 16) | place;
    draft.into_event(LOG, 0, (id, id), unix_ms)
}

/// What an action will change, and how that was before.
enum Before {
    Write {
        revision: u64,
        origin: String,
        values: Vec<(Key, Option<Resource>)>,
    },
    Revoked {
        revision: u64,
        spiffe_id: String,
        reason: String,
        by: String,
    },
    Token {
        secret: Vec<u8>,
        was_there: bool,
        was_used: bool,
    },
    Gateway {
        cluster: String,
        name: String,
        is_known: bool,
        is_first: bool,
    },
    Report {
        cluster: String,
        offered: BTreeSet<(String, String)>,
        is_first: bool,
    },
    Operators(Vec<String>),
    Format(u32),
    Epoch(u64),
    Authority {
        was_there: bool,
    },
    Members {
        before: imbl::OrdMap<u64, Arc<ControlPlaneMember>>,
        last: u64,
        founders: Vec<ControlPlaneMember>,
        why: String,
    },
}

impl Before {
    fn of(state: &State, command: &Command) -> Option<Self> {
        let is_first = |cluster: &str| {
            let mut gateways = state.gateways().range((cluster.to_owned(), String::new())..);
            let has_gateway = gateways.next().is_some_and(|((of, _), _)| of == cluster);
            !has_gateway && !state.reports().contains_key(cluster)
        };
        let token = |secret: &[u8]| {
            let known = <[u8; 32]>::try_from(secret).ok().and_then(|secret| state.tokens().get(&secret));
            let was_used = known.is_some_and(|token| token.used_unix_ms.is_some());
            Self::Token { secret: secret.to_vec(), was_there: known.is_some(), was_used }
        };
        Some(match command.action.as_ref()? {
            Action::ApplyResources(apply) => Self::Write {
                revision: state.revision(),
                origin: apply.origin.clone(),
                values: named(apply).map(|key| (key.clone(), value(state, &key))).collect(),
            },
            Action::RevokeIdentity(revoke) => Self::Revoked {
                revision: state.revision(),
                spiffe_id: revoke.spiffe_id.clone(),
                reason: revoke.reason.clone(),
                by: revoke.by.clone(),
            },
            Action::TokenCreate(create) => token(&create.secret_sha256),
            Action::TokenConsume(consume) => token(&consume.secret_sha256),
            Action::RegisterGateway(gateway) => Self::Gateway {
                is_known: state.gateways().contains_key(&(gateway.cluster.clone(), gateway.name.clone())),
                is_first: is_first(&gateway.cluster),
                cluster: gateway.cluster.clone(),
                name: gateway.name.clone(),
            },
            Action::ReportExports(report) => Self::Report {
                offered: offered(state, &report.cluster),
                is_first: is_first(&report.cluster),
                cluster: report.cluster.clone(),
            },
            Action::RecordIssued(records) => {
                let path = |id: &str| id.split('/').nth(3).map(ToOwned::to_owned);
                let operators = records.certificates.iter().map(|record| record.spiffe_id.clone());
                Self::Operators(operators.filter(|id| path(id).as_deref() == Some("operator")).collect())
            }
            Action::RaiseFormat(_) => Self::Format(state.format_version()),
            Action::RaiseRestoreEpoch(_) => Self::Epoch(state.version().restore_epoch),
            Action::CaInit(_) => Self::Authority { was_there: state.ca().is_some() },
            Action::PutMember(put) => members(state, &put.founders, ""),
            Action::RetireMember(retire) => members(state, &retire.founders, &retire.reason),
        })
    }

    /// What the entry did. A command that was refused, or had its answer already, did nothing.
    fn drafts(self, state: &State, outcome: &[u8]) -> Vec<Draft> {
        let Ok(outcome) = Outcome::decode(outcome) else { return Vec::new() };
        match self {
            Self::Write { revision, origin, values } => written(state, &outcome, revision, &origin, &values),
            Self::Revoked { revision, spiffe_id, reason, by } if state.revision() > revision => {
                let message = match reason.is_empty() {
                    true => format!("{spiffe_id} is refused from now on"),
                    false => format!("{spiffe_id} is refused from now on: {reason}"),
                };
                let gateway = gateway_of(&spiffe_id);
                let (subject, actor, revision) = (spiffe_id, by, state.revision());
                vec![Draft { subject, actor, gateway, revision, ..Draft::new(Reason::IdentityRevoked, message) }]
            }
            Self::Revoked { .. } => Vec::new(),
            Self::Token { secret, was_there, was_used } => {
                let known = <[u8; 32]>::try_from(secret.as_slice()).ok();
                let Some(token) = known.and_then(|secret| state.tokens().get(&secret)) else { return Vec::new() };
                let is_used = token.used_unix_ms.is_some();
                let (reason, verb) = match (was_there, was_used, is_used) {
                    (false, _, _) => (Reason::TokenCreated, "may join once by a token"),
                    (true, false, true) => (Reason::TokenUsed, "joined by its token"),
                    _ => return Vec::new(),
                };
                let is_gateway = token.role == i32::from(Role::Gateway);
                let gateway = if is_gateway { format!("{}/{}", token.cluster, token.name) } else { String::new() };
                let message = match is_gateway {
                    true => format!("gateway {gateway} {verb}"),
                    false => format!("the {} of {} {verb}", role_name(token.role), token.cluster),
                };
                vec![Draft { cluster: token.cluster.clone(), gateway, ..Draft::new(reason, message) }]
            }
            Self::Gateway { cluster, name, is_known, is_first } => {
                let key = (cluster.clone(), name);
                if is_known || !state.gateways().contains_key(&key) {
                    return Vec::new();
                }
                let gateway = format!("{cluster}/{}", key.1);
                let message = format!("{gateway} is registered");
                let registered =
                    Draft { cluster: cluster.clone(), gateway, ..Draft::new(Reason::GatewayRegistered, message) };
                joined(is_first, &cluster).into_iter().chain([registered]).collect()
            }
            Self::Report { cluster, offered: before, is_first } => {
                let after = offered(state, &cluster);
                let is_first = is_first && state.reports().contains_key(&cluster);
                joined(is_first, &cluster).into_iter().chain(services(&cluster, &before, &after)).collect()
            }
            Self::Operators(ids) => ids
                .into_iter()
                .map(|id| {
                    let message = format!("{id} was given a certificate");
                    Draft { subject: id, ..Draft::new(Reason::OperatorCertificateIssued, message) }
                })
                .collect(),
            Self::Format(before) if state.format_version() > before => {
                let message = format!("log format {} is in use, {before} was before", state.format_version());
                vec![Draft::new(Reason::LogFormatRaised, message)]
            }
            Self::Epoch(before) if state.version().restore_epoch > before => {
                let message = "what is here now counts as newer than anything that a gateway runs";
                vec![Draft { revision: state.revision(), ..Draft::new(Reason::RestoreDeclared, message) }]
            }
            Self::Authority { was_there: false } if state.ca().is_some() => {
                vec![Draft::new(Reason::AuthorityInstalled, "the certificate authority of the federation is installed")]
            }
            Self::Members { before, last, founders, why } => changed_members(state, &before, last, &founders, &why),
            Self::Format(_) | Self::Epoch(_) | Self::Authority { .. } => Vec::new(),
        }
    }
}

fn members(state: &State, founders: &[ControlPlaneMember], why: &str) -> Before {
    let (before, last, founders, why) =
        (state.members().clone(), state.last_member(), founders.to_vec(), why.to_owned());
    Before::Members { before, last, founders, why }
}

/// Who came and who went.
fn changed_members(
    state: &State,
    before: &imbl::OrdMap<u64, Arc<ControlPlaneMember>>,
    last: u64,
    founders: &[ControlPlaneMember],
    why: &str,
) -> Vec<Draft> {
    let after = state.members();
    // Before the first change the founders stand in files, and a command that is refused changes none of it.
    if state.last_member() == 0 {
        return Vec::new();
    }
    let was = |id: &u64| match last {
        0 => founders.iter().any(|founder| founder.id == *id),
        _ => before.contains_key(id),
    };
    let added = after.values().filter(|member| !was(&member.id)).map(|member| {
        let name = source_of(member.id);
        let place = match member.place == member.id {
            true => String::new(),
            false => format!(", in the place of {}", source_of(member.place)),
        };
        let message = format!("{name} was added at {}{place}", member.client);
        Draft { subject: name, ..Draft::new(Reason::MemberAdded, message) }
    });
    let gone: Vec<u64> = match last {
        0 => founders.iter().map(|founder| founder.id).collect(),
        _ => before.keys().copied().collect(),
    };
    let removed = gone.into_iter().filter(|id| !after.contains_key(id)).map(|id| {
        let name = source_of(id);
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let message = format!("{name} is no member any more{why}");
        Draft { subject: name, revision: state.revision(), ..Draft::new(Reason::MemberRemoved, message) }
    });
    added.chain(removed).collect()
}

fn written(
    state: &State,
    outcome: &Outcome,
    revision: u64,
    origin: &str,
    values: &[(Key, Option<Resource>)],
) -> Vec<Draft> {
    let Some(Answer::Applied(applied)) = &outcome.answer else { return Vec::new() };
    // The same number as before: nothing moved, or the command had been applied already.
    if outcome.revision <= revision {
        return Vec::new();
    }
    let revision = outcome.revision;
    let changes: Vec<_> = applied.changes.iter().filter(|change| change.kind() != ChangeKind::Unchanged).collect();
    let by = if origin.is_empty() { String::new() } else { format!(", by users of cluster {origin}") };
    let mut drafts = Vec::new();
    for change in changes.iter().take(NAMED_MAX) {
        let Some(key) = change.key.clone().map(Key::from) else { continue };
        let before = values.iter().find(|(of, _)| *of == key).and_then(|(_, value)| value.as_ref());
        let after = value(state, &key);
        let (reason, verb) = match change.kind() {
            ChangeKind::Created => (Reason::ResourceCreated, "was created"),
            ChangeKind::Deleted => (Reason::ResourceDeleted, "was deleted"),
            _ => (Reason::ResourceUpdated, "was changed"),
        };
        let subject = subject(&key);
        let (service, cluster) = about(&key, after.as_ref().or(before));
        let draft = Draft { service, cluster, revision, ..Draft::new(reason, format!("{subject} {verb}{by}")) };
        let draft = Draft { subject, ..draft };
        if let Some(reason) = drain(before, after.as_ref()) {
            let verb = if reason == Reason::ClusterDrained { "is drained" } else { "is not drained any more" };
            drafts.push(Draft { reason, message: format!("cluster {} {verb}{by}", draft.cluster), ..draft.clone() });
        }
        drafts.push(draft);
    }
    if changes.len() > NAMED_MAX {
        let message = format!("{} more resources were changed{by}", changes.len() - NAMED_MAX);
        drafts.push(Draft { revision, ..Draft::new(Reason::ResourcesWritten, message) });
    }
    drafts
}

/// Whether a write of a Cluster begins or ends its drain.
fn drain(before: Option<&Resource>, after: Option<&Resource>) -> Option<Reason> {
    let drained = |resource: Option<&Resource>| match resource {
        Some(Resource::Cluster(cluster)) => cluster.spec.drained,
        _ => false,
    };
    match (drained(before), drained(after)) {
        (false, true) => Some(Reason::ClusterDrained),
        (true, false) if after.is_some() => Some(Reason::ClusterUncordoned),
        _ => None,
    }
}

/// What services a cluster begins and ceases to offer, the first of them by name.
fn services(cluster: &str, before: &BTreeSet<(String, String)>, after: &BTreeSet<(String, String)>) -> Vec<Draft> {
    let of = |reason: Reason, changed: Vec<&(String, String)>, verb: &str| {
        let more = changed.len().saturating_sub(NAMED_MAX);
        let named = changed.into_iter().take(NAMED_MAX).map(|(namespace, name)| {
            let service = format!("{namespace}/{name}");
            let message = format!("{cluster} {verb} {service}");
            Draft { service, cluster: cluster.to_owned(), ..Draft::new(reason, message) }
        });
        let rest = Draft { cluster: cluster.to_owned(), ..Draft::new(reason, format!("{cluster} {verb} {more} more")) };
        named.chain((more > 0).then_some(rest)).collect::<Vec<_>>()
    };
    let offered = of(Reason::ServiceOffered, after.difference(before).collect(), "offers");
    let withdrawn = of(Reason::ServiceWithdrawn, before.difference(after).collect(), "does not offer any more:");
    [offered, withdrawn].concat()
}

fn joined(is_first: bool, cluster: &str) -> Option<Draft> {
    let message = || format!("cluster {cluster} is part of the federation");
    is_first.then(|| Draft { cluster: cluster.to_owned(), ..Draft::new(Reason::ClusterJoined, message()) })
}

/// The keys of a write, as many as events name.
fn named(apply: &ApplyResources) -> impl Iterator<Item = Key> + '_ {
    let upserts = apply.upserts.iter().filter_map(|write| write.key.clone());
    upserts.chain(apply.deletes.iter().cloned()).take(NAMED_MAX).map(Key::from)
}

fn value(state: &State, key: &Key) -> Option<Resource> {
    policy::known(key)?;
    policy::value(key, state.resources().get(key)?)
}

/// Service and cluster that a resource is about.
fn about(key: &Key, value: Option<&Resource>) -> (String, String) {
    let service = |name: &str| (format!("{}/{name}", key.namespace), String::new());
    match value {
        Some(Resource::Cluster(_)) => (String::new(), key.name.clone()),
        Some(Resource::ServiceExport(_)) => service(&key.name),
        Some(Resource::TrafficSplit(split)) => service(&split.spec.service),
        Some(Resource::FailoverPolicy(policy)) => service(&policy.spec.service),
        Some(Resource::BackendPolicy(policy)) => service(&policy.spec.service),
        None => (String::new(), String::new()),
    }
}

fn subject(key: &Key) -> String {
    match key.namespace.as_str() {
        "" => format!("{} {}", key.kind, key.name),
        namespace => format!("{} {namespace}/{}", key.kind, key.name),
    }
}

/// "cluster/name" of `spiffe://<trust domain>/cluster/<cluster>/gateway/<name>`.
fn gateway_of(spiffe_id: &str) -> String {
    let parts: Vec<&str> = spiffe_id.split('/').collect();
    match parts.as_slice() {
        [_, _, _, "cluster", cluster, "gateway", name] => format!("{cluster}/{name}"),
        _ => String::new(),
    }
}

fn offered(state: &State, cluster: &str) -> BTreeSet<(String, String)> {
    let of = |service: &ReportedService| (service.namespace.clone(), service.name.clone());
    let services = state.reports().get(cluster).map(|services| services.as_slice()).unwrap_or_default();
    services.iter().map(of).collect()
}

/// Whoever applies a folder sees each of its files; a thousand at once are a migration.
const NAMED_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::EventFilter;
    use archipelago_raft::StateMachine as _;

    use super::*;
    use crate::machine::command::{
        RegisterGateway, ReportExports, ResourceKey, ResourceWrite, RevokeIdentity, TokenConsume, TokenCreate,
    };
    use crate::machine::{Machine, format};

    struct Log {
        machine: Machine,
        chronicle: Arc<Chronicle>,
        index: u64,
        seen: u64,
    }

    impl Log {
        fn new() -> Self {
            let chronicle = Arc::new(Chronicle::new(1));
            let machine = Machine::new(format::CURRENT, Box::new(|_| ())).with_witness(chronicle.witness());
            let mut log = Self { machine, chronicle, index: 0, seen: 0 };
            log.seen = log.chronicle.after(0, &EventFilter::default(), 10).1;
            log.apply(
                "",
                Action::RaiseFormat(crate::machine::command::RaiseFormat { format_version: format::CURRENT }),
            );
            log
        }

        /// What the entry did, as "Reason about: message".
        fn apply(&mut self, request_id: &str, action: Action) -> Vec<String> {
            self.index += 1;
            let command = Command {
                format_version: format::required(&action),
                request_id: request_id.to_owned(),
                actor: "spiffe://mesh.example/operator/admin".to_owned(),
                proposed_unix_ms: 1_000 * self.index as i64,
                action: Some(action),
            };
            self.machine.apply(self.index, &command.encode_to_vec()).unwrap();
            let (events, version) = self.chronicle.after(self.seen, &EventFilter::default(), 100);
            self.seen = version;
            for event in &events {
                assert_eq!((&*event.source, event.id >> 16, event.incarnation), ("log", self.index, 0));
                assert_eq!(event.last_unix_ms, 1_000 * self.index as i64);
                assert_eq!(event.actor, "spiffe://mesh.example/operator/admin");
            }
            let shown = |event: &Event| {
                let about = [&*event.service, &event.cluster, &event.gateway].join(",");
                format!("{} [{about}] {}", event.reason, event.message)
            };
            events.iter().map(shown).collect()
        }
    }

    fn write(kind: &str, namespace: &str, name: &str, spec: &str) -> Action {
        let key = ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        let metadata = match namespace {
            "" => format!(r#"{{"name":"{name}"}}"#),
            _ => format!(r#"{{"name":"{name}","namespace":"{namespace}"}}"#),
        };
        let text = format!(
            r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"{kind}","metadata":{metadata},"spec":{spec}}}"#
        );
        let upserts = vec![ResourceWrite { key: Some(key), canonical: text.into() }];
        Action::ApplyResources(ApplyResources { upserts, ..ApplyResources::default() })
    }

    #[test]
    fn golden_table() {
        let mut log = Log::new();
        let split = |weight: u32| {
            write(
                "TrafficSplit",
                "shop",
                "green",
                &format!(r#"{{"service":"checkout","backends":[{{"cluster":"paris","weight":{weight}}}]}}"#),
            )
        };
        assert_eq!(log.apply("a", split(1)), ["ResourceCreated [shop/checkout,,] TrafficSplit shop/green was created"]);
        assert_eq!(log.apply("b", split(2)), ["ResourceUpdated [shop/checkout,,] TrafficSplit shop/green was changed"]);
        assert_eq!(log.apply("b", split(2)), [""; 0], "the same request, again");
        assert_eq!(log.apply("c", split(2)), [""; 0], "nothing changed");
        let key = ResourceKey { kind: "TrafficSplit".into(), namespace: "shop".into(), name: "green".into() };
        let delete = |key: &ResourceKey| {
            Action::ApplyResources(ApplyResources { deletes: vec![key.clone()], ..ApplyResources::default() })
        };
        assert_eq!(
            log.apply("d", delete(&key)),
            ["ResourceDeleted [shop/checkout,,] TrafficSplit shop/green was deleted"]
        );
        assert_eq!(log.apply("e", delete(&key)), [""; 0], "it was refused");

        let cluster = |spec: &str| write("Cluster", "", "tokyo", spec);
        assert_eq!(
            log.apply("f", cluster(r#"{"region":"asia"}"#)),
            ["ResourceCreated [,tokyo,] Cluster tokyo was created"]
        );
        assert_eq!(
            log.apply("g", cluster(r#"{"region":"asia","drained":true}"#)),
            [
                "ClusterDrained [,tokyo,] cluster tokyo is drained",
                "ResourceUpdated [,tokyo,] Cluster tokyo was changed"
            ]
        );
        assert_eq!(
            log.apply("h", cluster(r#"{"region":"asia"}"#)),
            [
                "ClusterUncordoned [,tokyo,] cluster tokyo is not drained any more",
                "ResourceUpdated [,tokyo,] Cluster tokyo was changed"
            ]
        );

        let create = Action::TokenCreate(TokenCreate {
            secret_sha256: vec![7; 32],
            cluster: "tokyo".into(),
            role: Role::Gateway.into(),
            name: "gw-1".into(),
            ttl_ms: 60_000,
        });
        let consume = Action::TokenConsume(TokenConsume { secret_sha256: vec![7; 32], public_key_sha256: vec![1; 32] });
        assert_eq!(
            log.apply("i", create),
            ["TokenCreated [,tokyo,tokyo/gw-1] gateway tokyo/gw-1 may join once by a token"]
        );
        assert_eq!(
            log.apply("j", consume.clone()),
            ["TokenUsed [,tokyo,tokyo/gw-1] gateway tokyo/gw-1 joined by its token"]
        );
        assert_eq!(log.apply("j", consume), [""; 0]);

        let register = Action::RegisterGateway(RegisterGateway {
            cluster: "tokyo".into(),
            name: "gw-1".into(),
            spiffe_id: "spiffe://mesh.example/cluster/tokyo/gateway/gw-1".into(),
            ..RegisterGateway::default()
        });
        assert_eq!(
            log.apply("", register.clone()),
            [
                "ClusterJoined [,tokyo,] cluster tokyo is part of the federation",
                "GatewayRegistered [,tokyo,tokyo/gw-1] tokyo/gw-1 is registered"
            ]
        );
        assert_eq!(log.apply("", register), [""; 0]);

        let report = |names: &[&str]| {
            let service = |name: &&str| ReportedService {
                namespace: "shop".into(),
                name: (*name).into(),
                protocol: 1,
                port: 80,
                ..ReportedService::default()
            };
            Action::ReportExports(ReportExports {
                cluster: "tokyo".into(),
                services: names.iter().map(service).collect(),
            })
        };
        assert_eq!(
            log.apply("", report(&["cart", "checkout"])),
            [
                "ServiceOffered [shop/cart,tokyo,] tokyo offers shop/cart",
                "ServiceOffered [shop/checkout,tokyo,] tokyo offers shop/checkout"
            ]
        );
        assert_eq!(
            log.apply("", report(&["cart"])),
            ["ServiceWithdrawn [shop/checkout,tokyo,] tokyo does not offer any more: shop/checkout"]
        );

        let revoke = Action::RevokeIdentity(RevokeIdentity {
            spiffe_id: "spiffe://mesh.example/cluster/tokyo/gateway/gw-1".into(),
            reason: "stolen \u{1b}[31m".into(),
            by: "spiffe://mesh.example/operator/admin".into(),
        });
        assert_eq!(
            log.apply("k", revoke),
            [
                "IdentityRevoked [,,tokyo/gw-1] spiffe://mesh.example/cluster/tokyo/gateway/gw-1 is refused from now on: stolen [31m"
            ]
        );
    }

    #[test]
    fn a_large_write_names_the_first_and_counts_the_rest() {
        let mut log = Log::new();
        let upserts = (0..100).map(|n| {
            let Action::ApplyResources(mut one) = write("ServiceExport", "shop", &format!("s-{n:03}"), "{}") else {
                unreachable!()
            };
            one.upserts.remove(0)
        });
        let all = log.apply(
            "a",
            Action::ApplyResources(ApplyResources { upserts: upserts.collect(), ..ApplyResources::default() }),
        );
        assert_eq!(all.len(), NAMED_MAX + 1);
        assert_eq!(all.last().unwrap(), "ResourcesWritten [,,] 68 more resources were changed");
    }
}
