//! What operators change from the page: by the calls that `meshctl` makes, judged by the same table, as the same identity.
//!
//! A change is planned first (`dryRun`), and then done with the plan's basis as its precondition: what somebody wrote in between is never
//! undone by a button.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use archipelago_model::{
    compile::Index,
    edit::{self, Edit, ServiceName},
    id::ServiceKey,
};
use archipelago_page::{
    action::{Applied, Change, Done, Plan},
    wish::{Ask, Wish},
};
use archipelago_proto::v1::{
    ApplyRequest, ApplyResponse, DeleteRequest, Document, GetRequest, Precondition, ResourceKey, WaitAppliedRequest,
    fleet_server::Fleet, precondition::Expect, resources_server::Resources,
};
use archipelago_rpc::grpc::PeerInfo;
use http::StatusCode;
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status};

use super::{
    Visitor,
    gather::{lagging, rejected},
    routes::Refused,
};
use crate::api::{Context, access, fleet::FleetService, resources::ResourcesService, services::Overview};

/// One change that somebody wants.
pub(super) struct Acting<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) visitor: &'a Visitor,
    pub(super) remote: SocketAddr,
}

/// What an action is answered with.
#[derive(Debug)]
pub(super) enum Outcome {
    Plan(Plan),
    Done(Done),
}

/// A resource as it was read.
struct Held {
    document: Value,
    revision: u64,
}

impl Acting<'_> {
    /// Plans it, or does it.
    pub(super) async fn act(&self, verb: &str, ask: Ask) -> Result<Outcome, Refused> {
        if self.visitor.read_only {
            let hint = "run `meshctl dashboard` without --read-only, as somebody who may change it".to_owned();
            let refused =
                Refused::new(StatusCode::FORBIDDEN, "this session is a reader's: it sees, and changes nothing");
            return Err(Refused { hint: Some(hint), ..refused });
        }
        let wish = Wish::read(verb, &ask).map_err(|why| Refused::new(StatusCode::BAD_REQUEST, why))?;
        let wish = wish.ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, "there is no such action"))?;
        if ask.dry_run {
            self.plan(&wish).await.map(Outcome::Plan)
        } else {
            self.run(&wish, &ask).await.map(Outcome::Done)
        }
    }

    async fn plan(&self, wish: &Wish) -> Result<Plan, Refused> {
        let (held, revision) = self.read(wish).await?;
        let edit = self.edit(wish, held.as_ref())?;
        let before = held.as_ref().map_or(Value::Null, |held| spec(&held.document));
        let (changes, mut warnings, after) = match edit {
            Edit::Apply(document) => {
                let request = ApplyRequest {
                    documents: vec![source(wish, &document)],
                    dry_run: true,
                    request_id: String::new(),
                    preconditions: vec![precondition(wish, &document, held.as_ref().map(|held| held.revision))],
                };
                let answer = self.resources().apply(self.call(APPLY, request)?).await?.into_inner();
                let ApplyResponse { changes, warnings, .. } = accepted(answer)?;
                (changes.into_iter().map(change).collect(), warnings, spec(&document))
            }
            Edit::Delete => {
                let key = held.as_ref().map(|held| key(wish, &held.document)).unwrap_or_default();
                let ResourceKey { kind, namespace, name } = key;
                (vec![Change { kind, namespace, name, what: "deleted".to_owned() }], Vec::new(), Value::Null)
            }
        };
        if let Wish::Drain { cluster, drained: true } = wish {
            warnings.extend(self.alone(cluster.clone()).await?);
        }
        let basis = basis(held.as_ref());
        Ok(Plan { command: wish.command(), changes, before, after, warnings, revision, basis })
    }

    /// That a drained cluster would go on to serve what nobody else can.
    async fn alone(&self, cluster: String) -> Result<Option<String>, Refused> {
        let (_, federation) = self.context.compiler.federation();
        let (agents, gateways) = (self.context.sessions.agents(), self.context.sessions.gateways());
        // Tens of thousands of reports are work for a while, and none for a thread that serves streams.
        let alone = tokio::task::spawn_blocking(move || {
            let services: Vec<_> = Overview::new(&federation, &agents, &gateways).services(None).collect();
            let alone = edit::cluster::last_to_serve(&cluster, &services);
            let shown = alone.iter().take(SERVICES_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = alone.len().saturating_sub(SERVICES_NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            (!alone.is_empty())
                .then(|| format!("no other cluster can serve {shown}{more}: their requests go on to {cluster}"))
        });
        alone.await.map_err(|_| Refused::from(Status::internal("the listing failed")))
    }

    async fn run(&self, wish: &Wish, ask: &Ask) -> Result<Done, Refused> {
        let missing = |what: &str| Refused::new(StatusCode::BAD_REQUEST, format!("`{what}` is missing: plan it first"));
        let basis = ask.basis.as_deref().ok_or_else(|| missing("basis"))?;
        let request_id = request_id(ask.request_id.as_deref().ok_or_else(|| missing("requestId"))?)?;
        let expected = match basis {
            ABSENT => None,
            number => Some(number.parse::<u64>().map_err(|_| missing("basis"))?),
        };
        let answer = if self.is_repeated(&request_id).await? {
            // What it did the first time is answered, whatever is written here.
            let request = ApplyRequest { request_id, ..ApplyRequest::default() };
            self.resources().apply(self.call(APPLY, request)?).await?.into_inner()
        } else {
            let (held, _) = self.read(wish).await?;
            if held.as_ref().map(|held| held.revision) != expected {
                return Err(conflict());
            }
            match self.edit(wish, held.as_ref())? {
                Edit::Apply(document) => {
                    let request = ApplyRequest {
                        documents: vec![source(wish, &document)],
                        dry_run: false,
                        request_id,
                        preconditions: vec![precondition(wish, &document, expected)],
                    };
                    self.resources().apply(self.call(APPLY, request)?).await?.into_inner()
                }
                Edit::Delete => {
                    let Some(Held { document, .. }) = &held else { return Err(conflict()) };
                    let preconditions = vec![precondition(wish, document, expected)];
                    let request = DeleteRequest { keys: vec![key(wish, document)], request_id, preconditions };
                    self.resources().delete(self.call(DELETE, request)?).await?.into_inner()
                }
            }
        };
        let ApplyResponse { revision, commit_micros, changes, warnings, .. } = accepted(answer)?;
        tracing::info!(actor = %self.visitor.spiffe_id(), revision, command = wish.command(), "done from the dashboard");
        let wrote = changes.iter().map(|change| ResourceKey {
            kind: change.kind.clone(),
            namespace: change.namespace.clone(),
            name: change.name.clone(),
        });
        let applied = self.applied(revision, wrote.collect()).await?;
        Ok(Done { revision, changes: changes.into_iter().map(change).collect(), warnings, commit_micros, applied })
    }

    /// Whether the same request has been done before.
    async fn is_repeated(&self, request_id: &str) -> Result<bool, Refused> {
        self.context.consensus.barrier().await.map_err(Status::from)?;
        let actor = self.visitor.spiffe_id().to_string();
        Ok(self.context.consensus.read(|state| state.remembered(&actor, request_id).is_some()))
    }

    /// The resource that a wish is about, and the revision of all policy as of which it was read.
    async fn read(&self, wish: &Wish) -> Result<(Option<Held>, u64), Refused> {
        let mut request = GetRequest {
            kind: wish.kind().to_owned(),
            namespace: wish.namespace().to_owned(),
            ..GetRequest::default()
        };
        loop {
            let page = self.resources().get(self.call(GET, request.clone())?).await?.into_inner();
            for resource in page.resources {
                let document: Value = serde_json::from_str(&resource.json)
                    .map_err(|_| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "a resource cannot be read"))?;
                if wish.is_about(&document) {
                    return Ok((Some(Held { document, revision: resource.modified_revision }), page.revision));
                }
            }
            if page.next_page_token.is_empty() {
                return Ok((None, page.revision));
            }
            request.page_token = page.next_page_token;
        }
    }

    fn edit(&self, wish: &Wish, held: Option<&Held>) -> Result<Edit, Refused> {
        // A policy may come before its service; a button beside a service may not.
        if let Some(service) = wish.service().filter(|_| held.is_none())
            && !self.is_known(service)
        {
            let error = format!("no cluster has a service {service}");
            return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error));
        }
        wish.change(held.map(|held| &held.document)).map_err(|why| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, why))
    }

    fn is_known(&self, service: &ServiceName) -> bool {
        let (_, federation) = self.context.compiler.federation();
        let key = ServiceKey::new(service.namespace.clone(), service.name.clone());
        Index::of(&federation).services().any(|known| *known == key)
    }

    /// Waits for the gateways, but not for long: the page is told of the rest.
    async fn applied(&self, revision: u64, wrote: Vec<ResourceKey>) -> Result<Applied, Refused> {
        let timeout_ms = u64::try_from(APPLIED_WAIT.as_millis()).unwrap_or(u64::MAX);
        let request = WaitAppliedRequest { revision, timeout_ms, wrote, ..WaitAppliedRequest::default() };
        let fleet = FleetService(Arc::clone(self.context));
        let mut progress = fleet.wait_applied(self.call(WAIT, request)?).await?.into_inner();
        let mut applied = Applied::default();
        while let Some(Ok(now)) = progress.next().await {
            let time = |micros: u64| (micros > 0).then_some(micros);
            applied = Applied {
                expected: now.expected,
                acknowledged: now.acknowledged,
                first_ack_micros: time(now.first_ack_micros),
                last_ack_micros: time(now.last_ack_micros),
                lagging: lagging(now.stragglers),
                rejected: rejected(now.rejections),
            };
        }
        Ok(applied)
    }

    fn resources(&self) -> ResourcesService {
        ResourcesService(Arc::clone(self.context))
    }

    /// A call as whoever signed in, if that may make it.
    fn call<T>(&self, path: &str, message: T) -> Result<Request<T>, Refused> {
        access::CLIENT_PORT.judge(path, Some(self.visitor.spiffe_id()))?;
        let mut request = Request::new(message);
        let certificate = Some(Arc::clone(&self.visitor.certificate));
        request.extensions_mut().insert(PeerInfo { certificate, remote: self.remote });
        Ok(request)
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::PermissionDenied | Code::Unauthenticated => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Aborted | Code::AlreadyExists => StatusCode::CONFLICT,
            Code::FailedPrecondition => StatusCode::UNPROCESSABLE_ENTITY,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let again = code == StatusCode::SERVICE_UNAVAILABLE;
        let hint = again.then(|| "try again: repeating it does it once".to_owned());
        Self { hint, ..Self::new(code, status.message()) }
    }
}

/// An answer that nothing stood in the way of.
fn accepted(answer: ApplyResponse) -> Result<ApplyResponse, Refused> {
    if !answer.conflicts.is_empty() {
        return Err(conflict());
    }
    if !answer.problems.is_empty() {
        let refused = Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "refused, and nothing changed");
        return Err(Refused { problems: answer.problems, ..refused });
    }
    Ok(answer)
}

fn conflict() -> Refused {
    let hint = Some("look at it again, and plan it anew".to_owned());
    Refused { hint, ..Refused::new(StatusCode::CONFLICT, "somebody else changed it meanwhile; nothing was done") }
}

fn basis(held: Option<&Held>) -> String {
    held.map_or_else(|| ABSENT.to_owned(), |held| held.revision.to_string())
}

/// Apart from those of other programs of the same operator.
fn request_id(given: &str) -> Result<String, Refused> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if given.is_empty() || given.len() > REQUEST_ID_BYTES_MAX || !given.bytes().all(is_good) {
        let error = format!("`requestId` is 1 to {REQUEST_ID_BYTES_MAX} letters, digits and -");
        return Err(Refused::new(StatusCode::BAD_REQUEST, error));
    }
    Ok(format!("page-{given}"))
}

fn source(wish: &Wish, document: &Value) -> Document {
    Document { file: wish.command(), text: document.to_string() }
}

fn precondition(wish: &Wish, document: &Value, revision: Option<u64>) -> Precondition {
    let expect = revision.map_or(Expect::Absent(true), Expect::Revision);
    Precondition { key: Some(key(wish, document)), expect: Some(expect) }
}

fn key(wish: &Wish, document: &Value) -> ResourceKey {
    let kind = wish.kind().to_owned();
    ResourceKey { kind, namespace: wish.namespace().to_owned(), name: edit::name(document).to_owned() }
}

fn spec(document: &Value) -> Value {
    document.get("spec").cloned().unwrap_or(Value::Null)
}

fn change(change: archipelago_proto::v1::Change) -> Change {
    Change { kind: change.kind, namespace: change.namespace, name: change.name, what: change.what }
}

const GET: &str = "/archipelago.v1.Resources/Get";
const APPLY: &str = "/archipelago.v1.Resources/Apply";
const DELETE: &str = "/archipelago.v1.Resources/Delete";
const WAIT: &str = "/archipelago.v1.Fleet/WaitApplied";
/// Basis of what is not there.
const ABSENT: &str = "absent";
const REQUEST_ID_BYTES_MAX: usize = 64;
/// In a warning.
const SERVICES_NAMED: usize = 5;
/// Gateways that are well take milliseconds.
const APPLIED_WAIT: Duration = Duration::from_secs(5);
