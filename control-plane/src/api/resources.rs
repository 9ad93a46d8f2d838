//! `Resources`: apply, delete, get.
//!
//! Admission is done here, by the member that proposes: on the state as of a barrier, which the command names. When another
//! write of resources comes in between, the state machine says so, and everything is judged again.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use archipelago_model::{
    admit::{self, Finding, Reports, Resources as Values},
    document::{Document, Problem},
    resource::{Kind, Resource},
};
use archipelago_proto::v1::{
    self, ApplyRequest, ApplyResponse, Change, DeleteRequest, GetRequest, GetResponse, PolicyStatus,
    RaiseRestoreEpochRequest, RaiseRestoreEpochResponse, precondition, resources_server::Resources,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    Context, agents, operator, or_random,
    page::{self, Page},
};
use crate::{
    consensus::{COMMIT_TIMEOUT, CommitError, Consensus},
    machine::{
        Key, State,
        command::{
            Action, Answer, ApplyResources, Conflict, Expect, Outcome, Precondition, RaiseRestoreEpoch, RefusalCode,
            Refused, ResourceWrite,
        },
        convert, format,
    },
    refusal,
    sessions::Sessions,
};

pub(crate) struct ResourcesService(pub(crate) Arc<Context>);

#[tonic::async_trait]
impl Resources for ResourcesService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let begun = Instant::now();
        let actor = operator(&request)?.to_string();
        let ApplyRequest { documents, dry_run, request_id, preconditions } = request.into_inner();
        let documents: Arc<[Document]> =
            documents.into_iter().map(|document| Document { file: document.file, text: document.text }).collect();
        let preconditions = expectations(preconditions)?;
        let write = Write { consensus: &self.0.consensus, actor: &actor, begun };
        if dry_run {
            return write.preview(documents, &preconditions).await;
        }
        let said = Mutex::new(Vec::new());
        let judge = |state: &State| {
            let (documents, current) = (Arc::clone(&documents), self.0.consensus.resources(state));
            let (state, reports, said) = (state.clone(), reports(state), &said);
            async move {
                Ok(judged(documents, Arc::clone(&current), reports).await?.map(|Judged { resources, warnings }| {
                    *said.lock().unwrap_or_else(PoisonError::into_inner) = warnings;
                    let keys: Vec<Key> = resources.iter().map(|resource| Key::from(&resource.key())).collect();
                    let takes_over = takes_over(&state, &current, &keys);
                    let upserts = resources.iter().map(|resource| ResourceWrite {
                        key: Some(convert::resource_key_of(resource.key())),
                        canonical: resource.to_json().into(),
                    });
                    let resources_format = format::of_resources(&resources);
                    ApplyResources {
                        upserts: upserts.collect(),
                        resources_format,
                        takes_over,
                        ..ApplyResources::default()
                    }
                }))
            }
        };
        let mut response = write.commit(request_id, preconditions.clone(), judge).await?;
        let ApplyResponse { problems, conflicts, warnings, .. } = response.get_mut();
        if problems.is_empty() && conflicts.is_empty() {
            *warnings = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        Ok(response)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<ApplyResponse>, Status> {
        let begun = Instant::now();
        let actor = operator(&request)?.to_string();
        let DeleteRequest { keys, request_id, preconditions } = request.into_inner();
        let known: Vec<_> = keys.iter().map(known_key).collect::<Result<_, _>>()?;
        let preconditions = expectations(preconditions)?;
        let write = Write { consensus: &self.0.consensus, actor: &actor, begun };
        let judge = |state: &State| {
            let (known, keys, before) = (known.clone(), keys.clone(), self.0.consensus.resources(state));
            let state = state.clone();
            async move {
                let named: Vec<Key> = known.iter().map(Key::from).collect();
                let takes_over = takes_over(&state, &before, &named);
                let mut after = Values::clone(&before);
                for key in &known {
                    after.remove(key);
                }
                let mut problems = admit::check(&after);
                if !problems.is_empty() {
                    // What was wrong before is not this deletion's fault.
                    let before = admit::check(&before);
                    problems.retain(|problem| !before.contains(problem));
                }
                if problems.is_empty() {
                    let deletes = keys.into_iter().map(convert::key_of).collect();
                    Ok(Ok(ApplyResources { deletes, takes_over, ..ApplyResources::default() }))
                } else {
                    Ok(Err(problems.iter().map(Finding::to_string).collect()))
                }
            }
        };
        write.commit(request_id, preconditions, judge).await
    }

    async fn raise_restore_epoch(
        &self,
        request: Request<RaiseRestoreEpochRequest>,
    ) -> Result<Response<RaiseRestoreEpochResponse>, Status> {
        let actor = operator(&request)?.to_string();
        let request_id = or_random(request.into_inner().request_id);
        let consensus = &self.0.consensus;
        let action = Action::RaiseRestoreEpoch(RaiseRestoreEpoch {});
        refusal::answer(consensus.commit(&request_id, &actor, action).await?)?;
        consensus.barrier().await?;
        let version = consensus.read(State::version);
        tracing::warn!(actor, %version, "the restore epoch was raised: gateways follow to this, whatever they run");
        Ok(Response::new(RaiseRestoreEpochResponse { version: Some(version.into()) }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        operator(&request)?;
        let GetRequest { kind, namespace, name, stale, page_size, page_token } = request.into_inner();
        let after = page::parse(&page_token)?.map(|[kind, namespace, name]| Key { kind, namespace, name });
        if !kind.is_empty() {
            parse_kind(&kind)?;
        }
        if !stale {
            self.0.consensus.barrier().await?;
        }
        let state = self.0.consensus.state();
        let rivals = rivals(&self.0.sessions, None);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Page::new(page_size);
        let resources: Vec<v1::Resource> = state
            .resources()
            .range((from, Bound::Unbounded))
            .filter(|(key, _)| kind.is_empty() || key.kind == kind)
            .filter(|(key, _)| namespace.is_empty() || key.namespace == namespace)
            .filter(|(key, _)| name.is_empty() || key.name == name)
            .take_while(|(_, stored)| page.takes(stored.canonical.len()))
            .map(|(key, stored)| v1::Resource {
                kind: key.kind.clone(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                json: String::from_utf8_lossy(&stored.canonical).into_owned(),
                created_revision: stored.created_revision,
                modified_revision: stored.modified_revision,
                origin: stored.origin.clone(),
                rivals: rivals.get(key).cloned().unwrap_or_default(),
            })
            .collect();
        let last = resources.last().filter(|_| page.is_full());
        let next_page_token =
            last.map_or_else(String::new, |last| format!("{}/{}/{}", last.kind, last.namespace, last.name));
        Ok(Response::new(GetResponse { revision: state.revision(), resources, next_page_token }))
    }
}

/// One write on its way.
pub(super) struct Write<'a> {
    pub(super) consensus: &'a Consensus,
    pub(super) actor: &'a str,
    pub(super) begun: Instant,
}

impl Write<'_> {
    /// Judges and commits, again when other writes come in between.
    ///
    /// `judge` makes the command from the state, or says what is wrong.
    pub(super) async fn commit<J, F>(
        &self,
        request_id: String,
        preconditions: Vec<Precondition>,
        judge: J,
    ) -> Result<Response<ApplyResponse>, Status>
    where
        J: Fn(&State) -> F,
        F: Future<Output = Result<Result<ApplyResources, Vec<String>>, Status>>,
    {
        let request_id = or_random(request_id);
        let deadline = self.begun + COMMIT_TIMEOUT;
        // One at a time here: writers of one member would else refuse each other in turns, and judge n² times.
        let _turn = self.consensus.admission_turn(deadline).await?;
        loop {
            // Admission must see what any member has acknowledged, or `apply` twice in a row could refuse the second.
            self.consensus.barrier().await?;
            let state = self.consensus.state();
            if let Some(outcome) = state.remembered(self.actor, &request_id) {
                return self.respond(outcome);
            }
            if let Some(conflicts) = conflicts(&state, &preconditions) {
                return Ok(self.response(&state, ApplyResponse { conflicts, ..ApplyResponse::default() }));
            }
            let command = match judge(&state).await? {
                Ok(command) => command,
                Err(problems) => {
                    return Ok(self.response(&state, ApplyResponse { problems, ..ApplyResponse::default() }));
                }
            };
            let action = Action::ApplyResources(ApplyResources {
                admitted_revision: Some(state.policy_revision()),
                preconditions: preconditions.clone(),
                ..command
            });
            let outcome = self.consensus.commit(&request_id, self.actor, action).await?;
            let stale = matches!(
                &outcome.answer,
                Some(Answer::Refused(refused)) if refused.code() == RefusalCode::AdmissionStale
            );
            if !stale || Instant::now() >= deadline {
                return self.respond(outcome);
            }
        }
    }

    async fn preview(
        &self,
        documents: Arc<[Document]>,
        preconditions: &[Precondition],
    ) -> Result<Response<ApplyResponse>, Status> {
        self.consensus.barrier().await?;
        let state = self.consensus.state();
        if let Some(conflicts) = conflicts(&state, preconditions) {
            return Ok(self.response(&state, ApplyResponse { conflicts, ..ApplyResponse::default() }));
        }
        let response = match judged(documents, self.consensus.resources(&state), reports(&state)).await? {
            Ok(Judged { resources, warnings }) => {
                let keys: Vec<Key> = resources.iter().map(|resource| Key::from(&resource.key())).collect();
                let problems: Vec<String> = state.others(&keys, "").iter().map(refusal::owner).collect();
                if !problems.is_empty() && !takes_over(&state, &self.consensus.resources(&state), &keys) {
                    return Ok(self.response(&state, ApplyResponse { problems, ..ApplyResponse::default() }));
                }
                let changes = resources.iter().map(|resource| change(&state, resource)).collect();
                ApplyResponse { changes, warnings, ..ApplyResponse::default() }
            }
            Err(problems) => ApplyResponse { problems, ..ApplyResponse::default() },
        };
        Ok(self.response(&state, response))
    }

    fn response(&self, state: &State, response: ApplyResponse) -> Response<ApplyResponse> {
        Response::new(ApplyResponse { revision: state.revision(), ..response })
    }

    fn respond(&self, outcome: Outcome) -> Result<Response<ApplyResponse>, Status> {
        let commit_micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut response = ApplyResponse { revision: outcome.revision, commit_micros, ..ApplyResponse::default() };
        match outcome.answer {
            Some(Answer::Applied(applied)) => {
                response.changes = applied.changes.into_iter().map(convert::change).collect();
            }
            Some(Answer::Refused(refused)) => match refused.code() {
                // What the operator must change in his files comes back as problems.
                RefusalCode::ResourceNotFound | RefusalCode::ResourcesFull | RefusalCode::OtherOrigin => {
                    response.problems = refusal::text(&refused).lines().map(str::to_owned).collect();
                }
                RefusalCode::Precondition => {
                    let Refused { conflicts, .. } = refused;
                    response.conflicts = conflicts.into_iter().map(convert::conflict).collect();
                }
                _ => return Err(refusal::status(&refused)),
            },
            Some(Answer::Done(_) | Answer::Consumed(_)) | None => return Err(CommitError::Incompatible.into()),
        }
        Ok(Response::new(response))
    }
}

/// Judges documents beside what is there; apart from the runtime's threads, since a large or hostile file takes a while.
async fn judged(
    documents: Arc<[Document]>,
    current: Arc<Values>,
    reports: Reports,
) -> Result<Result<Judged, Vec<String>>, Status> {
    let judge = move || {
        let resources = admit::admit(&documents, &current)?;
        let mut after = Values::clone(&current);
        after.extend(resources.iter().map(|resource| (resource.key(), resource.clone())));
        let warnings = admit::warnings(&resources, &after, &reports).iter().map(Finding::to_string).collect();
        Ok(Judged { resources, warnings })
    };
    let judged: Result<Judged, Vec<Problem>> =
        tokio::task::spawn_blocking(judge).await.map_err(|_| Status::internal("the documents could not be judged"))?;
    Ok(judged.map_err(|problems| problems.iter().map(Problem::to_string).collect()))
}

/// Documents that may be applied.
struct Judged {
    resources: Vec<Resource>,
    /// What the operator may want to look at again.
    warnings: Vec<String>,
}

/// Who else than `cluster` lists a resource that somebody else has written, by what it is.
pub(super) fn rivals(sessions: &Sessions, cluster: Option<&str>) -> BTreeMap<Key, Vec<String>> {
    let mut rivals: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    for (cluster, session) in sessions.agents().into_iter().filter(|(other, _)| Some(other.as_str()) != cluster) {
        for status in session.policies.iter().filter(|status| status.reason == agents::CONFLICT) {
            let PolicyStatus { kind, namespace, name, .. } = status.clone();
            rivals.entry(Key { kind, namespace, name }).or_default().push(format!("cluster {cluster}"));
        }
    }
    rivals
}

/// Whether an operator may take over what of `keys` was written in clusters: none of those may write policies any more.
fn takes_over<'k>(state: &State, resources: &Values, keys: impl IntoIterator<Item = &'k Key>) -> bool {
    let others = state.others(keys, "");
    !others.is_empty() && others.iter().all(|owned| !agents::may_write(resources, &owned.origin))
}

fn reports(state: &State) -> Reports {
    let reports = state.reports().iter();
    reports
        .map(|(cluster, services)| (cluster.clone(), services.iter().map(convert::service_report).collect()))
        .collect()
}

/// What a client expects, each resource once.
fn expectations(preconditions: Vec<v1::Precondition>) -> Result<Vec<Precondition>, Status> {
    let mut expected = BTreeMap::new();
    for v1::Precondition { key, expect } in preconditions {
        let (Some(key), Some(expect)) = (key, expect) else {
            return Err(Status::invalid_argument("a precondition names a resource and what is expected of it"));
        };
        let expect = match expect {
            precondition::Expect::Revision(revision) => Expect::Revision(revision),
            precondition::Expect::Absent(true) => Expect::Absent(true),
            precondition::Expect::Absent(false) => {
                return Err(Status::invalid_argument("`absent` is true, or the precondition names a revision"));
            }
        };
        let key = Key::from(convert::key_of(key));
        if expected.insert(key.clone(), expect).is_some_and(|before| before != expect) {
            return Err(Status::invalid_argument(format!("two preconditions contradict each other about {key}")));
        }
    }
    let expected = expected.into_iter();
    Ok(expected.map(|(key, expect)| Precondition { key: Some(key.into()), expect: Some(expect) }).collect())
}

/// Preconditions that fail already: nothing need be judged, and the log stays as it is.
fn conflicts(state: &State, preconditions: &[Precondition]) -> Option<Vec<v1::Conflict>> {
    let conflicts = state.conflicts(preconditions);
    (!conflicts.is_empty())
        .then(|| conflicts.into_iter().map(|conflict: Conflict| convert::conflict(conflict)).collect())
}

fn change(state: &State, resource: &Resource) -> Change {
    let key = resource.key();
    let what = match state.resources().get(&Key::from(&key)) {
        None => "created",
        Some(stored) if *stored.canonical == *resource.to_json().as_bytes() => "unchanged",
        Some(_) => "updated",
    };
    Change { kind: key.kind.to_string(), namespace: key.namespace, name: key.name, what: what.to_owned() }
}

fn known_key(key: &v1::ResourceKey) -> Result<archipelago_model::resource::ResourceKey, Status> {
    let kind = parse_kind(&key.kind)?;
    Ok(archipelago_model::resource::ResourceKey { kind, namespace: key.namespace.clone(), name: key.name.clone() })
}

fn parse_kind(kind: &str) -> Result<Kind, Status> {
    kind.parse().map_err(|error: archipelago_model::resource::UnknownKind| Status::invalid_argument(error.to_string()))
}
