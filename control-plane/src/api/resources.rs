//! `Resources`: apply, delete, get.

use std::{sync::Arc, time::Instant};

use archipelago_model::{
    admit,
    document::Document,
    resource::{Kind, Resource},
};
use archipelago_proto::v1::{
    self, ApplyRequest, ApplyResponse, Change, DeleteRequest, GetRequest, GetResponse, resources_server::Resources,
};
use tonic::{Request, Response, Status};

use super::{Context, operator, or_random};
use crate::{
    consensus::{CommitError, refusal_status},
    machine::command::{Action, Answer, ApplyResources, Outcome, RefusalKind, ResourceText},
};

pub(super) struct ResourcesService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Resources for ResourcesService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let begun = Instant::now();
        let actor = operator(&request)?.to_string();
        let ApplyRequest { documents, dry_run, request_id } = request.into_inner();
        let consensus = &self.0.consensus;
        // Admission must see what any member has acknowledged, or `apply` twice in a row could refuse the second.
        consensus.barrier().await?;
        if !dry_run && let Some(outcome) = consensus.read(|state| state.remembered(&actor, &request_id)) {
            return respond(outcome, begun);
        }
        let (revision, current) = consensus.read(|state| (state.revision(), state.resources().clone()));
        let documents: Vec<Document> =
            documents.into_iter().map(|document| Document { file: document.file, text: document.text }).collect();
        // Parsing may take a while on a large or hostile file; streams must not wait for it.
        let admitted = tokio::task::spawn_blocking(move || admit::admit(&documents, &current))
            .await
            .map_err(|_| Status::internal("the documents could not be judged"))?;
        let resources = match admitted {
            Ok(resources) => resources,
            Err(problems) => {
                let problems = problems.iter().map(ToString::to_string).collect();
                return Ok(Response::new(ApplyResponse { revision, problems, ..ApplyResponse::default() }));
            }
        };
        if dry_run {
            let changes = consensus.read(|state| {
                resources
                    .iter()
                    .map(|resource| preview(state.meta(&resource.key()).map(|meta| &*meta.json), resource))
                    .collect()
            });
            return Ok(Response::new(ApplyResponse { revision, changes, ..ApplyResponse::default() }));
        }
        let upserts = resources.iter().map(|resource| ResourceText { json: resource.to_json() }).collect();
        let action = Action::ApplyResources(ApplyResources { upserts, deletes: Vec::new() });
        let outcome = consensus.commit(&or_random(request_id), &actor, action).await?;
        respond(outcome, begun)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<ApplyResponse>, Status> {
        let begun = Instant::now();
        let actor = operator(&request)?.to_string();
        let DeleteRequest { keys, request_id } = request.into_inner();
        for key in &keys {
            parse_kind(&key.kind)?;
        }
        let action = Action::ApplyResources(ApplyResources { upserts: Vec::new(), deletes: keys });
        let outcome = self.0.consensus.commit(&or_random(request_id), &actor, action).await?;
        respond(outcome, begun)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        operator(&request)?;
        let GetRequest { kind, namespace, name, stale } = request.into_inner();
        let kind = if kind.is_empty() { None } else { Some(parse_kind(&kind)?) };
        if !stale {
            self.0.consensus.barrier().await?;
        }
        let response = self.0.consensus.read(|state| {
            let resources = state
                .resources()
                .keys()
                .filter(|key| kind.is_none_or(|kind| key.kind == kind))
                .filter(|key| namespace.is_empty() || key.namespace == namespace)
                .filter(|key| name.is_empty() || key.name == name)
                .filter_map(|key| state.meta(key).map(|meta| (key, meta)))
                .map(|(key, meta)| v1::Resource {
                    kind: key.kind.to_string(),
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                    json: meta.json.clone(),
                    created_revision: meta.created_revision,
                    modified_revision: meta.modified_revision,
                })
                .collect();
            GetResponse { revision: state.revision(), resources }
        });
        Ok(Response::new(response))
    }
}

fn respond(outcome: Outcome, begun: Instant) -> Result<Response<ApplyResponse>, Status> {
    let commit_micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut response = ApplyResponse { revision: outcome.revision, commit_micros, ..ApplyResponse::default() };
    match outcome.answer {
        Some(Answer::Applied(applied)) => response.changes = applied.changes,
        // What the operator must change in his files comes back as problems; a reused request id is his client's fault.
        Some(Answer::Refused(refused)) if refused.kind() != RefusalKind::Conflict => {
            response.problems = refused.reasons;
        }
        Some(Answer::Refused(refused)) => return Err(refusal_status(&refused)),
        Some(Answer::Done(_) | Answer::Consumed(_)) | None => return Err(CommitError::Incompatible.into()),
    }
    Ok(Response::new(response))
}

fn preview(current: Option<&str>, resource: &Resource) -> Change {
    let what = match current {
        None => "created",
        Some(json) if json == resource.to_json() => "unchanged",
        Some(_) => "updated",
    };
    let key = resource.key();
    Change { kind: key.kind.to_string(), namespace: key.namespace, name: key.name, what: what.to_owned() }
}

fn parse_kind(kind: &str) -> Result<Kind, Status> {
    kind.parse().map_err(|error: archipelago_model::resource::UnknownKind| Status::invalid_argument(error.to_string()))
}
